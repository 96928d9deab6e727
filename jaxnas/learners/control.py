"""Proximal policy optimization of networks whose architecture is data.

Actor and critic are searched apart: a feature, normalised or not, of one of
several widths, and a run of slots (`jaxnas.spaces.slots`) behind it. The
environments in which a member learns stay its own (`Body.rest`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import mixing
from jaxnas.base import Body, Genes, Learner
from jaxnas.spaces import slots
from jaxnas.tasks import control

WIDTHS = (8, 16, 32, 64)

_NETS = ('actor', 'critic')


class ActorCritic(NamedTuple):
  """A policy and a value function with genes.

  Attributes:
    genes: the genotype of both.
    init: `init(key, genotype) -> layers`, fresh weights of both by layer.
    act: `act(layers, genotype, observations) -> outputs`: the logits of the
      actions, or their means and the logarithms of their deviations.
    value: `value(layers, genotype, observations) -> (...)` values.
  """

  genes: Genes
  init: Callable[..., Any]
  act: Callable[..., jax.Array]
  value: Callable[..., jax.Array]


def _pieces(net: str, count: int, widths: Sequence[int]) -> list[Genes]:
  """The genes of one network: width, feature, slots, and a head without."""
  kinds = {'normalised': ('no', 'yes'), 'activation': (*slots.ACTIVATIONS,)}
  feature = Genes(
    tuple(len(kind) for kind in kinds.values()),
    {},
    tuple(f'{net}/{name}' for name in kinds),
    tuple(kinds.values()),
  )
  return [
    slots.group(f'{net}/width', widths, (f'{net}/in', f'{net}/out')),
    feature,
    slots.genes(count, f'{net}/slots'),
    slots.fixed(f'{net}/head'),
  ]


def _normalised(x: jax.Array, live: jax.Array) -> jax.Array:
  """Layer normalisation over the units in use; the others stay zero."""
  units = live.sum()
  x = jnp.where(live, x - x.sum(axis=-1, keepdims=True) / units, 0.0)
  power = jnp.square(x).sum(axis=-1, keepdims=True) / units
  return x * jax.lax.rsqrt(power + 1e-5)


def actor_critic(
  environment: control.Environment,
  *,
  count: int = 4,
  width: int = 16,
  widths: Sequence[int] = WIDTHS,
) -> ActorCritic:
  """Networks for an environment, of 2 (3 + 2 count) genes.

  In each of the two, a dense layer reads the observation and gives a feature,
  whose width is a gene that owns both this layer and the one that reads the
  feature; two more genes say whether it is layer-normalised and what activation
  it has. Slots follow, each with an op and an activation, and a linear head,
  which no gene owns. A policy of continuous actions has deviations that depend
  on no observation, in a layer `spread` that no gene owns.

  Args:
    environment: what is observed and done.
    count: slots in each.
    width: features in a slot.
    widths: options of the width genes.

  Example:
    >>> nets = actor_critic(control.pendulum())
    >>> len(nets.genes.options)
    22
    >>> genotype = jnp.zeros(22, jnp.int32)
    >>> layers = jax.eval_shape(nets.init, jax.random.key(0), genotype)
    >>> layers['actor/in']['w'].shape, layers['actor/slots']['u'].shape
    ((3, 64), (4, 16, 32))
    >>> jax.eval_shape(nets.act, layers, genotype, jnp.ones((5, 3))).shape
    (5, 2)
  """
  pieces = {net: _pieces(net, count, widths) for net in _NETS}
  every = [piece for own in pieces.values() for piece in own]
  continuous = environment.continuous
  genes = slots.join(*every, slots.fixed(*(('spread',) if continuous else ())))
  outputs = {'actor': environment.actions, 'critic': 1}
  # Small first outputs, so that a first policy prefers nothing.
  scales = {'actor': 0.01, 'critic': 1.0}

  def cut(genotype):
    parts = slots.cut(every, genotype)
    half = len(parts) // 2
    return {'actor': parts[:half], 'critic': parts[half:]}

  def init(key, genotype):
    own = [cut(genotype)[net] for net in _NETS]
    sizes, ops = (jnp.stack([part[i] for part in own]) for i in (0, 2))

    def one(key, size, ops):
      live, keys = slots.mask(widths, size), jax.random.split(key, 4)
      seen = environment.observation
      return {
        'in': slots.dense(keys[0], seen, max(widths), writes=live),
        'out': slots.dense(keys[1], max(widths), width, reads=live),
        'slots': slots.init(keys[2], ops, width),
        'head': slots.dense(keys[3], width, max(outputs.values())),
      }

    # Side by side, because draws are slow to compile.
    both = jax.vmap(one)(jax.random.split(key), sizes[:, 0], ops[:, :count])
    layers = {
      f'{net}/{part}': jax.tree.map(lambda leaf, i=i: leaf[i], layer)
      for i, net in enumerate(_NETS)
      for part, layer in both.items()
    }
    for net in _NETS:
      layers[f'{net}/head'] = jax.tree.map(
        lambda leaf, net=net: scales[net] * leaf[..., : outputs[net]],
        layers[f'{net}/head'],
      )
    if continuous:
      layers['spread'] = {'log': -0.5 * jnp.ones(environment.actions)}
    return layers

  def forward(net, layers, genotype, x):
    (size,), (normal, gene), held, _ = cut(genotype)[net]
    live = slots.mask(widths, size)
    x = jnp.where(live, slots.linear(layers[f'{net}/in'], x), 0.0)
    x = jnp.where(normal == 1, _normalised(x, live), x)
    x = slots.linear(layers[f'{net}/out'], slots.activated(gene, x))
    ops, activations = held[:count], held[count:]
    x = slots.apply(layers[f'{net}/slots'], ops, activations, x)
    return slots.linear(layers[f'{net}/head'], x)

  def act(layers, genotype, x):
    found = forward('actor', layers, genotype, x)
    if not continuous:
      return found
    spread = jnp.broadcast_to(layers['spread']['log'], found.shape)
    return jnp.concatenate([found, spread], axis=-1)

  def value(layers, genotype, x):
    return forward('critic', layers, genotype, x)[..., 0]

  return ActorCritic(genes, init, act, value)


class _Policy(NamedTuple):
  """What outputs mean: `sample`, the best action, and logarithms of chances."""

  sample: Callable[..., jax.Array]
  best: Callable[..., jax.Array]
  log_prob: Callable[..., jax.Array]
  entropy: Callable[..., jax.Array]


def _categorical() -> _Policy:

  def log_prob(outputs, action):
    logs = jax.nn.log_softmax(outputs)
    return jnp.take_along_axis(logs, action[..., None], axis=-1)[..., 0]

  def entropy(outputs):
    logs = jax.nn.log_softmax(outputs)
    return -(jnp.exp(logs) * logs).sum(axis=-1)

  def best(outputs):
    return outputs.argmax(axis=-1)

  return _Policy(jax.random.categorical, best, log_prob, entropy)


def _gaussian() -> _Policy:

  def sample(key, outputs):
    mean, log = jnp.split(outputs, 2, axis=-1)
    return mean + jnp.exp(log) * jax.random.normal(key, mean.shape, mean.dtype)

  def log_prob(outputs, action):
    mean, log = jnp.split(outputs, 2, axis=-1)
    square = jnp.square((action - mean) * jnp.exp(-log))
    return -(square / 2 + log + np.log(2 * np.pi) / 2).sum(axis=-1)

  def entropy(outputs):
    _, log = jnp.split(outputs, 2, axis=-1)
    return (log + (1 + np.log(2 * np.pi)) / 2).sum(axis=-1)

  def best(outputs):
    return jnp.split(outputs, 2, axis=-1)[0]

  return _Policy(sample, best, log_prob, entropy)


def advantages(
  rewards: jax.Array,
  values: jax.Array,
  following: jax.Array,
  done: jax.Array,
  over: jax.Array,
  *,
  discount: float,
  trace: float,
) -> jax.Array:
  """Generalized advantage estimates (Schulman et al. 2016, arXiv 1506.02438).

  Equation 16, with episodes that end and others that are cut off: the value
  after the last step counts for the latter, and no step of the next episode
  counts for either.

  Args:
    rewards: (T, ...) of each step.
    values: (T, ...) of the states acted in.
    following: (T, ...) of the states the steps led to, before another episode.
    done: (T, ...) whether the episode ended there.
    over: (T, ...) whether it ended or was cut off there.
    discount: gamma.
    trace: lambda; 0 for one-step estimates, 1 for sums of rewards.

  Returns:
    (T, ...) advantages; with the values added, targets for those.

  Example:
    >>> one, no = jnp.ones(3), jnp.zeros(3, bool)
    >>> advantages(one, 0 * one, 0 * one, no, no, discount=1.0,
    ...            trace=1.0).tolist()
    [3.0, 2.0, 1.0]
  """
  surprise = rewards + discount * jnp.where(done, 0.0, following) - values

  def back(later, now):
    own, over = now
    found = own + discount * trace * jnp.where(over, 0.0, later)
    return found, found

  start = jnp.zeros_like(surprise[0])
  return jax.lax.scan(back, start, (surprise, over), reverse=True)[1]


def clipped(
  log_prob: jax.Array, before: jax.Array, advantage: jax.Array, clip: float
) -> jax.Array:
  """PPO's clipped objective of each step, of which more is better.

  Equation 7 of Schulman et al. (2017), arXiv 1707.06347.

  Args:
    log_prob: of the action, by the policy that learns.
    before: by the policy that acted.
    advantage: of the action.
    clip: epsilon, the change of the ratio beyond which nothing is gained.

  Example:
    >>> clipped(jnp.log(2.0), jnp.log(1.0), jnp.array(1.0), 0.2).round(3).item()
    1.2000000476837158
  """
  ratio = jnp.exp(log_prob - before)
  within = jnp.clip(ratio, 1 - clip, 1 + clip)
  return jnp.minimum(ratio * advantage, within * advantage)


def ppo(
  environment: control.Environment,
  *,
  rate: float = 2e-3,
  entropy: float = 0.01,
  discount: float = 0.99,
  trace: float = 0.95,
  clip: float = 0.2,
  scale: float = 0.1,
  most: float = 0.5,
  envs: int = 64,
  steps: int = 32,
  updates: int = 8,
  epochs: int = 2,
  batches: int = 4,
  episodes: tuple[int, int] = (32, 64),
  **nets: Any,
) -> Learner:
  """A member learns to control by proximal policy optimization.

  Schulman et al. (2017), arXiv 1707.06347, section 5, with separate networks,
  of which each is clipped to a norm of gradients by itself. A round is
  `updates` times: act for `steps` steps in `envs` environments, estimate
  advantages, standardise them, and take `epochs` passes over what was seen in
  `batches` parts, each a step of Adam. An episode cut off at the horizon is not
  taken for one that ended. `member.hyper` may hold `rate` and `entropy` in the
  places of those given here, and nothing else. A member is measured by the most
  likely action of its policy in episodes that begin anew.

  Args:
    environment: where it learns.
    rate: of Adam.
    entropy: weight of the bonus for the policy's entropy.
    discount: of rewards, a step.
    trace: lambda of `advantages`.
    clip: epsilon of `clipped`.
    scale: of rewards in learning, so that values are about one.
    most: norm to which the gradient of each network is clipped.
    envs: environments of a member.
    steps: in each, between updates.
    updates: in a round.
    epochs: passes over the steps of an update.
    batches: into which the steps of an update are dealt.
    episodes: how many there are for the fitness, and for the test.
    **nets: of `actor_critic`.

  Returns:
    A learner with the metrics `fitness`, the mean return of the episodes, and
    `returns`, that of each, for `selection.significant_duels`. An example is
    an environment step.

  Raises:
    ValueError: if the steps of an update cannot be dealt into equal batches.

  Example:
    >>> learner = ppo(control.pendulum(), envs=4, steps=4, updates=1, epochs=1,
    ...               batches=2, episodes=(2, 2))
    >>> learner.examples, len(learner.genes.options)
    (16, 22)
  """
  if envs * steps % batches:
    raise ValueError(
      f'ppo: envs={envs} times steps={steps} must be a multiple of '
      f'batches={batches}.'
    )
  net = actor_critic(environment, **nets)
  policy = _gaussian() if environment.continuous else _categorical()
  tx = mixing.layered(optax.scale_by_adam(eps=1e-5), net.genes)
  bound = optax.clip_by_global_norm(most)

  def init(key, own, hyper, data):
    del data
    mixing.check_hyper('ppo', hyper, 'rate', 'entropy')
    layer_key, world_key = jax.random.split(key)
    layers = net.init(layer_key, own)
    keys = jax.random.split(world_key, envs)
    running = jax.vmap(lambda key: control.begin(environment, key))(keys)
    return Body(layers, tx.init(layers), rest=running)

  def bounded(grads):
    parts = [
      {name: g for name, g in grads.items() if name.startswith('critic') == of}
      for of in (False, True)
    ]
    first, second = (bound.update(part, bound.init(part))[0] for part in parts)
    return first | second

  def loss(layers, own, seen, bonus):
    outputs = net.act(layers, own, seen['observation'])
    log_prob = policy.log_prob(outputs, seen['action'])
    gain = clipped(log_prob, seen['log_prob'], seen['advantage'], clip)
    value = net.value(layers, own, seen['observation'])
    error = jnp.square(value - seen['target']) / 2
    return (error - gain - bonus * policy.entropy(outputs)).mean()

  def acted(layers, own, running, key):
    """A step in every environment."""
    act_key, step_key = jax.random.split(key)
    outputs = net.act(layers, own, running.observation)
    action = policy.sample(act_key, outputs)
    after, step = jax.vmap(lambda *given: control.proceed(environment, *given))(
      jax.random.split(step_key, envs), running, action
    )
    seen = {
      'observation': running.observation,
      'action': action,
      'log_prob': policy.log_prob(outputs, action),
    }
    return after, (seen, step)

  def train(key, member, data):
    del data
    own, body = member.genes, member.body
    speed = member.hyper.get('rate', rate)
    bonus = member.hyper.get('entropy', entropy)

    def update(held, key):
      layers, moments, running = held
      act_key, *epoch_keys = jax.random.split(key, epochs + 1)
      running, (seen, step) = jax.lax.scan(
        lambda running, key: acted(layers, own, running, key),
        running,
        jax.random.split(act_key, steps),
      )
      values = net.value(layers, own, seen['observation'])
      following = net.value(layers, own, step.observation)
      advantage = advantages(
        *(scale * step.reward, values, following, step.done, step.over),
        discount=discount,
        trace=trace,
      )
      seen['target'] = values + advantage
      centred = advantage - advantage.mean()
      seen['advantage'] = centred / (advantage.std() + 1e-8)
      flat = jax.tree.map(
        lambda leaf: leaf.reshape(envs * steps, *leaf.shape[2:]), seen
      )

      def learn(held, chosen):
        layers, moments = held
        batch = jax.tree.map(lambda leaf: leaf[chosen], flat)
        grads = bounded(jax.grad(loss)(layers, own, batch, bonus))
        updates, moments = tx.update(grads, moments, layers)
        layers = jax.tree.map(lambda w, u: w - speed * u, layers, updates)
        return (layers, moments), None

      order = jnp.concatenate(
        [jax.random.permutation(key, envs * steps) for key in epoch_keys]
      )
      (layers, moments), _ = jax.lax.scan(
        learn, (layers, moments), order.reshape(epochs * batches, -1)
      )
      return (layers, moments, running), None

    start = (body.layers, body.moments, body.rest)
    keys = jax.random.split(key, updates)
    (layers, moments, running), _ = jax.lax.scan(update, start, keys)
    return body._replace(layers=layers, moments=moments, rest=running)

  def measured(which):
    def measure(key, member, data):
      del data

      def act(key, observation):
        del key
        layers, own = member.body.layers, member.genes
        return policy.best(net.act(layers, own, observation))

      own = jax.random.fold_in(key, which)
      keys = jax.random.split(own, episodes[which])
      returns = jax.vmap(
        lambda key: control.episode_return(environment, key, act)
      )(keys)
      return {'fitness': returns.mean(), 'returns': returns}

    return measure

  return Learner(
    *(net.genes, init, train, measured(0), measured(1)),
    examples=envs * steps * updates,
  )
