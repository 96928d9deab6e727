"""Generators that learn against a discriminator.

The members of a population are pairs of both; what they are selected by is
Frechet's distance of generated images from real ones.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnas import mixing
from jaxnas.base import Body, Key, Learner, Task
from jaxnas.spaces import gan as spaces
from jaxnas.tasks import generation

# Leaves of a discriminator's layers that spectral normalisation divides.
_MATRICES = ('u', 'v', 'w')

# Hyper-parameters of a member, of generator and discriminator.
_RATES = ('generator_rate', 'discriminator_rate')


def gan(key: Key, task: Task, **settings: Any) -> Learner:
  """Small images by dense networks, on CPU in minutes: 12 genes.

  The generator reads 12 numbers and has four slots of width 32, the
  discriminator two (`jaxnas.spaces.gan.dense`); the distance is that of 24
  features of a small classifier. 250 steps a round of batches of 32, Adam with
  rate 5e-4 and betas (0, 0.9), hinge loss, a decay of 0.99 of the average.

  Args:
    key: draws the classifier.
    task: whose training images are learned, such as `tasks.digits()`.
    **settings: others than the above, of `adversarial`.

  Example:
    >>> from jaxnas import base, tasks
    >>> learner = gan(jax.random.key(0), tasks.digits(), steps=2,
    ...               samples=(100, 200), part=100, taught=5)
    >>> genes = jnp.arange(12) % 4
    >>> body = learner.init(jax.random.key(1), genes, {}, learner.data)
    >>> member = base.Member(body, genes)
    >>> found = jax.eval_shape(
    ...   learner.measure, jax.random.key(2), member, learner.data
    ... )
    >>> sorted(found)
    ['fitness', 'frechet']
  """
  networks = spaces.dense(task.shape)
  return adversarial(
    key, task, networks, generation.dense_features(), **settings
  )


def conv_gan(
  key: Key,
  task: Task,
  space: Callable[..., spaces.Networks] = spaces.easy,
  *,
  width: int = 64,
  **settings: Any,
) -> Learner:
  """Images of 16 or more pixels a side by convolutions: 21 or 72 genes.

  Settings of PBT-NAS where they are known: Adam with rate 2e-4, betas (0, 0.9)
  and epsilon 1e-4, five steps of the discriminator, which is spectrally
  normalised, for each of the generator, a decay of 0.999. The generator's width
  there is 256, and the distance is that of features of Inception.

  Args:
    key: draws the classifier.
    task: such as `tasks.tfds_images('cifar10')`.
    space: `jaxnas.spaces.gan.easy` or `hard`.
    width: channels of the generator; the discriminator has half.
    **settings: others than the above, of `adversarial`.
  """
  settings = {
    'steps': 1000,
    'batch': 40,
    'rate': 2e-4,
    'epsilon': 1e-4,
    'decay': 0.999,
    'noise': 0.0,
    'penalty': 0.0,
    'critics': 5,
    'spectral': True,
    'samples': (10000, 50000),
    'part': 250,
    **settings,
  }
  networks = space(task.shape, widths=(width, width // 2))
  return adversarial(
    key, task, networks, generation.conv_features(), **settings
  )


def adversarial(
  key: Key,
  task: Task,
  networks: spaces.Networks,
  features: generation.Features,
  *,
  steps: int = 250,
  batch: int = 32,
  rate: float = 5e-4,
  betas: tuple[float, float] = (0.0, 0.9),
  epsilon: float = 1e-8,
  decay: float = 0.99,
  noise: float = 0.05,
  penalty: float = 1e-3,
  critics: int = 1,
  spectral: bool = False,
  samples: tuple[int, int] = (2000, 20000),
  part: int = 1000,
  taught: int = 1000,
) -> Learner:
  """A generator and a discriminator with the hinge loss.

  A step is `critics` updates of the discriminator D, on the mean of
  max(0, 1 - D(real)) + max(0, 1 + D(fake)) + penalty * D(real)^2, and one of
  the generator, on the mean of -D(fake). What is measured is the generator's
  running average, with fresh noise each time. Fitness is the negated distance
  to the training images, as in PBT-NAS; the test draws more noise, of its own,
  and also gives the distance to the test images, which nothing has seen.
  `member.hyper` may hold `generator_rate` and `discriminator_rate` in the place
  of `rate`, and nothing else.

  Spectral normalisation (Miyato et al. 2018, arXiv 1802.05957) divides each of
  the discriminator's matrices by an estimate of its largest singular value; the
  vectors of the estimate are in `Body.rest`, so children have their base's and
  no method perturbs them. A round begins with eight iterations on them, for
  matrices that came from another member.

  Args:
    key: draws the classifier whose features are measured.
    task: its training images are learned, its test images are for the test.
    networks: the space.
    features: of the distance.
    steps: updates of the generator in a round.
    batch: images in an update.
    rate: of Adam, for both.
    betas: of Adam.
    epsilon: of Adam.
    decay: of the generator's average, a step.
    noise: standard deviation of what is added to real images, in [-1, 1].
    penalty: weight of D(real)^2.
    critics: updates of the discriminator for one of the generator.
    spectral: whether the discriminator is spectrally normalised.
    samples: images for the fitness, and for the test.
    part: images at a time in both.
    taught: steps in which the classifier learns.

  Returns:
    A learner with the metrics `fitness` and `frechet`, and in its test
    `held_out`, the distance to the test images. `examples` counts the real
    images that a round reads.

  Raises:
    ValueError: for samples that parts do not divide.
  """
  if any(count % part for count in samples):
    raise ValueError(
      f'adversarial: samples={samples} must be multiples of part={part}.'
    )
  low, high = generation.pixel_range(task)
  tx = mixing.layered(
    optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=epsilon), networks.genes
  )

  def of(layers, names):
    return {name: layers[name] for name in names}

  def init(key, genotype, hyper, data):
    del data
    mixing.check_hyper('adversarial', hyper, *_RATES)
    layers_key, key = jax.random.split(key)
    layers = networks.init(layers_key, genotype)
    rest = ()
    if spectral:
      rest = vectors(key, of(layers, networks.discriminator))
    return Body(layers, tx.init(layers), of(layers, networks.generator), rest)

  def scores(judge, rest, genotype, images):
    if spectral:
      judge = normalised(judge, rest)
    return networks.discriminate(judge, genotype, images)

  def train(key, member, data):
    own = member.genes
    speeds = [member.hyper.get(name, rate) for name in _RATES]

    def judged(judge, rest, real, fake):
      true = scores(judge, rest, own, real)
      false = scores(judge, rest, own, fake)
      hinge = jax.nn.relu(1 - true) + jax.nn.relu(1 + false)
      return (hinge + penalty * jnp.square(true)).mean()

    def faked(maker, z_key, drop_key):
      z = jax.random.normal(z_key, (batch, networks.latent))
      return networks.generate(maker, own, z, drop_key)

    def made(maker, judge, rest, key):
      fake = faked(maker, *jax.random.split(key))
      return -scores(judge, rest, own, fake).mean()

    def descend(grads, moments, layers, speed):
      updates, moved = tx.update(grads, of(moments, grads), layers)
      layers = jax.tree.map(lambda w, u: w - speed * u, layers, updates)
      return layers, {**moments, **moved}

    def criticise(carry, key):
      maker, judge, moments, rest = carry
      row_key, noise_key, z_key, drop_key = jax.random.split(key, 4)
      rows = jax.random.randint(row_key, (batch,), 0, data['images'].shape[0])
      real = generation.to_unit(data['images'][rows], low, high)
      real = real + noise * jax.random.normal(noise_key, real.shape)
      fake = faked(maker, z_key, drop_key)
      if spectral:
        rest = iterated(judge, rest, 1)
      grads = jax.grad(judged)(judge, rest, real, fake)
      judge, moments = descend(grads, moments, judge, speeds[1])
      return (maker, judge, moments, rest), None

    def step(carry, key):
      maker, judge, moments, average, rest = carry
      keys = jax.random.split(key, critics + 1)
      inner = (maker, judge, moments, rest)
      if critics == 1:
        inner, _ = criticise(inner, keys[0])
      else:
        inner, _ = jax.lax.scan(criticise, inner, keys[:critics])
      _, judge, moments, rest = inner
      grads = jax.grad(made)(maker, judge, rest, keys[critics])
      maker, moments = descend(grads, moments, maker, speeds[0])
      average = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new, average, maker
      )
      return (maker, judge, moments, average, rest), None

    body = member.body
    judge, rest = of(body.layers, networks.discriminator), body.rest
    if spectral:
      rest = iterated(judge, rest, 8)
    start = (
      *(of(body.layers, networks.generator), judge),
      *(body.moments, body.average, rest),
    )
    keys = jax.random.split(key, steps)
    (maker, judge, moments, average, rest), _ = jax.lax.scan(step, start, keys)
    return Body({**maker, **judge}, moments, average, rest)

  def drawn(key, member, data, count):
    def few(key):
      z = jax.random.normal(key, (part, networks.latent))
      images = networks.generate(member.body.average, member.genes, z, None)
      return features.apply(data['features'], images)

    return generation.sampled_moments(few, key, count // part)

  def judged_by(found, data):
    distance = generation.frechet(found, data['real'])
    return {'fitness': -distance, 'frechet': distance}

  def measure(key, member, data):
    found = drawn(jax.random.fold_in(key, 0), member, data, samples[0])
    return judged_by(found, data)

  def test(key, member, data):
    # Another fold, so that not even an equal key repeats the noise.
    found = drawn(jax.random.fold_in(key, 1), member, data, samples[1])
    held_out = generation.frechet(found, data['held'])
    return {**judged_by(found, data), 'held_out': held_out}

  params = generation.fitted(key, features, task, steps=taught)
  data = {
    'images': task.train.inputs,
    'features': params,
    'real': generation.split_moments(features, params, task, 'train'),
    'held': generation.split_moments(features, params, task, 'test'),
  }
  examples = steps * critics * batch
  return Learner(networks.genes, init, train, measure, test, data, examples)


def _matrices(layers: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
  """Every matrix, and kernel as a matrix, as (S, inputs, outputs)."""

  def flat(leaf):
    stacked = leaf if leaf.ndim % 2 else leaf[None]
    return stacked.reshape((stacked.shape[0], -1, stacked.shape[-1]))

  return {
    layer: {n: flat(leaf) for n, leaf in leaves.items() if n in _MATRICES}
    for layer, leaves in layers.items()
  }


def _unit(x: jax.Array, otherwise: jax.Array) -> jax.Array:
  """(S, n) vectors of length one; others where x is zero."""
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return jnp.where(length > 1e-12, x / jnp.maximum(length, 1e-12), otherwise)


def vectors(key: Key, layers: Mapping[str, Any]) -> dict[str, Any]:
  """Random unit vectors for the power iteration on the layers' matrices.

  Returns:
    For each matrix of each layer (S, outputs), S being one where the layer is
    not stacked.
  """
  matrices = _matrices(layers)
  leaves, structure = jax.tree.flatten(matrices)
  keys = jax.random.split(key, len(leaves))
  drawn = [
    jax.random.normal(own, (m.shape[0], m.shape[2]))
    for own, m in zip(keys, leaves)
  ]
  return structure.unflatten([_unit(x, x) for x in drawn])


def iterated(
  layers: Mapping[str, Any], held: Mapping[str, Any], count: int
) -> dict[str, Any]:
  """`vectors` after some power iterations; those of zero matrices stay.

  Example:
    >>> layers = {'a': {'w': jnp.diag(jnp.array([2.0, 1.0]))}}
    >>> held = vectors(jax.random.key(0), layers)
    >>> jnp.abs(iterated(layers, held, 20)['a']['w']).round(3).tolist()
    [[1.0, 0.0]]
  """

  def one(matrix, vector):
    def turn(_, vector):
      up = jnp.einsum('sio,so->si', matrix, vector)
      return _unit(jnp.einsum('sio,si->so', matrix, up), vector)

    return jax.lax.fori_loop(0, count, turn, vector)

  matrices = jax.lax.stop_gradient(_matrices(layers))
  return jax.tree.map(one, matrices, dict(held))


def normalised(
  layers: Mapping[str, Any], held: Mapping[str, Any]
) -> dict[str, Any]:
  """Layers whose matrices are divided by their largest singular values.

  The gradient passes through the value, and not through the vectors. Zero
  matrices stay zero.

  Args:
    layers: of the discriminator.
    held: of `vectors` or `iterated`.

  Example:
    >>> layers = {'a': {'w': jnp.diag(jnp.array([2.0, 1.0]))}}
    >>> held = iterated(layers, vectors(jax.random.key(0), layers), 20)
    >>> normalised(layers, held)['a']['w'].round(3).tolist()
    [[1.0, 0.0], [0.0, 0.5]]
  """
  matrices = _matrices(layers)

  def size(matrix, vector):
    out = jnp.einsum('sio,so->si', matrix, vector)
    along = jax.lax.stop_gradient(_unit(out, jnp.zeros_like(out)))
    return jnp.maximum(jnp.einsum('si,si->s', along, out), 1e-6)

  sizes = jax.tree.map(size, matrices, dict(held))

  def divided(leaves, own):
    return {
      name: leaf / own[name].reshape((-1,) + (1,) * (leaf.ndim - 1))
      if name in own
      else leaf
      for name, leaf in leaves.items()
    }

  return {name: divided(layers[name], sizes[name]) for name in layers}
