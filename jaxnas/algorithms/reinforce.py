"""REINFORCE: a policy of independent choices learns from the answers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas.base import ArraySpace, Key, Stage, Trials
from jaxnas.stages import trials


class Policy(NamedTuple):
  """What the policy has learned.

  Attributes:
    logits: (L, K) for the options of each position; K is the largest number of
      them, and options that a position has not are never drawn.
    moments: the optimizer's state.
    rewards: decayed sum of the rewards.
    weights: decayed sum of ones; the baseline is the quotient.
  """

  logits: jax.Array
  moments: Any
  rewards: jax.Array
  weights: jax.Array


def reinforce(
  space: ArraySpace,
  query: Stage,
  *,
  learning_rate: float = 0.01,
  momentum: float = 0.9,
  scale: float = 0.01,
  spread: float = 1e-3,
) -> Stage:
  """Draws a genotype from a policy, and makes it likelier if it was good.

  Williams (1992), as the benchmarks of Dong and Yang (2020) run it: a softmax
  of its own for each position, Adam on `-log p(genotype) (reward - baseline)`,
  and a baseline that is the moving average of the rewards, this one included.
  Adam's steps do not depend on the scale of the rewards, so where all rewards
  are equal it walks by their rounding.

  Args:
    space: what is searched; of one whose combinations are not all legal, the
      illegal ones are drawn too, and nothing is learned from them.
    query: answers questions, such as `stages.trials.query(table, 'val_ep12')`.
    learning_rate: of Adam.
    momentum: of the baseline.
    scale: of fitness to reward; accuracies are in percent.
    spread: standard deviation of the first logits.

  Returns:
    A stage, one generation, whose state is a `Policy`; it takes one slot.

  Raises:
    ValueError: for a momentum outside [0, 1).

  Example:
    >>> from jaxnas import base, run, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> table = base.Table(space, {'score': jnp.arange(4096.0) / 40})
    >>> stage = reinforce(space, trials.query(table, 'score'))
    >>> start = trials.start(space, 40)
    >>> last, policy = run(jax.random.key(0), stage, start, 40)
    >>> policy.logits.shape, int(last.spent.evaluations)
    ((6, 4), 40)
  """
  if not 0 <= momentum < 1:
    raise ValueError(
      f'reinforce: momentum must be in [0, 1), got {momentum!r}.'
    )
  shape = len(space.options), max(space.options)
  adam = optax.adam(learning_rate)

  def init(held: Trials) -> Policy:
    del held
    logits = jnp.zeros(shape)
    zero = jnp.zeros(())
    return Policy(logits, adam.init(logits), zero, zero)

  def learned(policy: Policy, drawn: jax.Array, reward: jax.Array) -> Policy:
    rewards = momentum * policy.rewards + (1 - momentum) * reward
    weights = momentum * policy.weights + (1 - momentum)
    advantage = reward - rewards / weights

    def loss(logits: jax.Array) -> jax.Array:
      chances = jax.nn.log_softmax(_masked(space, logits), axis=1)
      taken = jnp.take_along_axis(chances, drawn[:, None], axis=1)
      return -advantage * taken.sum()

    steps, moments = adam.update(jax.grad(loss)(policy.logits), policy.moments)
    logits = optax.apply_updates(policy.logits, steps)
    return Policy(logits, moments, rewards, weights)

  def update(key: Key, held: Trials, policy: Policy) -> tuple[Trials, Policy]:
    of_start, of_draw, of_query = jax.random.split(key, 3)
    # The first logits are drawn here, since `init` has no key.
    fresh = spread * jax.random.normal(of_start, shape)
    logits = jnp.where(policy.weights > 0, policy.logits, fresh)
    policy = policy._replace(logits=logits)
    drawn = jax.random.categorical(of_draw, _masked(space, logits)).astype(
      jnp.int32
    )
    held = held._replace(pending=drawn[None], wanted=jnp.ones(1, bool))
    held, _ = query.update(of_query, held, query.init(held))
    reward = scale * trials.youngest(held, 1)[1][0]
    # Of what was not answered there is nothing to learn.
    known = ~jnp.isnan(reward)
    return held, jax.tree.map(
      lambda new, old: jnp.where(known, new, old),
      learned(policy, drawn, reward),
      policy,
    )

  return Stage(init, update, 'reinforce')


def _masked(space: ArraySpace, logits: jax.Array) -> jax.Array:
  """Logits, -inf for values that a position cannot take."""
  values = np.arange(max(space.options))
  return jnp.where(values < np.array(space.options)[:, None], logits, -jnp.inf)


def entropy(policy: Policy, space: ArraySpace) -> jax.Array:
  """The entropy of a policy in nats, summed over the positions.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> policy = Policy(jnp.zeros((6, 4)), (), 0.0, 0.0)
    >>> round(float(entropy(policy, space)), 3)  # 6 log 4
    8.318
  """
  chances = jax.nn.softmax(_masked(space, policy.logits), axis=1)
  return -jnp.sum(jax.scipy.special.xlogy(chances, chances))
