"""Judging generated images: features of a classifier, and Frechet's distance.

A set of images is summed up by the mean and the covariance of features, and
two sets are compared by the distance of the Gaussians with these moments
(Heusel et al. 2017, arXiv 1706.08500). The features are those of a small
classifier of the same images, not of Inception: distances are in units of
their own and compare with none that are published.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import layers, programs
from jaxnas.base import Key, Task
from jaxnas.tasks.losses import cross_entropy


class Moments(NamedTuple):
  """The mean (F,) and the covariance (F, F) of features."""

  mean: jax.Array
  covariance: jax.Array


class Features(NamedTuple):
  """A network of images whose last hidden layer describes them.

  Attributes:
    init: `init(key, shape) -> params`, for images (H, W, C).
    apply: `apply(params, images) -> (batch, F)`, for images in [-1, 1].
  """

  init: Callable[..., Any]
  apply: Callable[..., jax.Array]


def moments(features: jax.Array) -> Moments:
  """Mean and covariance of features (N, F), with N - 1 in the denominator.

  Example:
    >>> found = moments(jnp.array([[0.0, 1.0], [2.0, 1.0]]))
    >>> found.mean.tolist(), found.covariance.tolist()
    ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
  """
  mean = features.mean(axis=0)
  centred = features - mean[None]
  return Moments(mean, centred.T @ centred / (features.shape[0] - 1))


def sampled_moments(
  features: Callable[[Key], jax.Array], key: Key, parts: int
) -> Moments:
  """`moments` of features that are drawn a part at a time.

  Args:
    features: `features(key) -> (M, F)`, one part.
    key: of all draws.
    parts: how many, so that the moments are of parts * M draws.

  Example:
    >>> draw = lambda key: jax.random.normal(key, (1000, 2))
    >>> found = sampled_moments(draw, jax.random.key(0), 20)
    >>> bool(jnp.abs(found.covariance - jnp.eye(2)).max() < 0.05)
    True
  """
  keys = jax.random.split(key, parts)
  first = moments(features(keys[0]))
  count = jax.eval_shape(features, key).shape[0]

  # Sums about the first part's mean: those about zero would cancel.
  def add(total, own):
    off = features(own) - first.mean[None]
    return (total[0] + off.sum(axis=0), total[1] + off.T @ off), None

  start = (
    jnp.zeros_like(first.mean),
    first.covariance * (count - 1),
  )
  (shift, square), _ = jax.lax.scan(add, start, keys[1:])
  size = count * parts
  shift = shift / size
  square = square - size * jnp.outer(shift, shift)
  return Moments(first.mean + shift, square / (size - 1))


def _root(matrix: jax.Array) -> jax.Array:
  """The square root of a symmetric matrix without negative eigenvalues."""
  values, vectors = jnp.linalg.eigh(matrix)
  return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]) @ vectors.T


def frechet(one: Moments, other: Moments) -> jax.Array:
  """The squared Frechet distance of two Gaussians.

  `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)`: the product in the
  root is symmetric, and has the eigenvalues of C1 C2, so that `eigh` does and
  the distance can be computed on any device under `jit`.

  Args:
    one: moments of a set.
    other: those of another.

  Returns:
    The distance, not negative but for rounding.

  Example:
    >>> a = Moments(jnp.zeros(2), jnp.eye(2))
    >>> b = Moments(jnp.array([3.0, 0.0]), 4 * jnp.eye(2))
    >>> round(frechet(a, b).item(), 4)
    11.0
  """
  root = _root(one.covariance)
  inner = root @ other.covariance @ root
  values = jnp.linalg.eigvalsh((inner + inner.T) / 2)
  cross = jnp.sqrt(jnp.maximum(values, 0.0)).sum()
  traces = jnp.trace(one.covariance) + jnp.trace(other.covariance)
  return jnp.square(one.mean - other.mean).sum() + traces - 2 * cross


def pixel_range(task: Task) -> tuple[float, float]:
  """The smallest and the largest stored value of a task's training images.

  Example:
    >>> from jaxnas import tasks
    >>> pixel_range(tasks.digits())
    (0.0, 16.0)
  """
  images = np.asarray(task.train.inputs)
  return float(images.min()), float(images.max())


def to_unit(images: jax.Array, low: float, high: float) -> jax.Array:
  """Stored images, from [low, high] to [-1, 1] in float32.

  Example:
    >>> to_unit(np.array([0, 128, 255], np.uint8), 0, 255).round(2).tolist()
    [-1.0, 0.0, 1.0]
  """
  return jnp.asarray(images).astype(jnp.float32) * (2 / (high - low)) - (
    (high + low) / (high - low)
  )


def _matrix(key: Key, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))


def dense_features(units: int = 24, hidden: int = 64) -> Features:
  """A hidden layer of rectified units, then the features, through tanh.

  Args:
    units: F features.
    hidden: units below.

  Example:
    >>> features = dense_features()
    >>> params = features.init(jax.random.key(0), (8, 8, 1))
    >>> features.apply(params, jnp.zeros((3, 8, 8, 1))).shape
    (3, 24)
  """

  def init(key, shape):
    one, two = jax.random.split(key)
    return {
      'w0': np.sqrt(2) * _matrix(one, (int(np.prod(shape)), hidden)),
      'b0': jnp.zeros(hidden),
      'w1': _matrix(two, (hidden, units)),
      'b1': jnp.zeros(units),
    }

  def apply(params, images):
    x = images.reshape((images.shape[0], -1))
    x = jax.nn.relu(x @ params['w0'] + params['b0'][None])
    return jnp.tanh(x @ params['w1'] + params['b1'][None])

  return Features(init, apply)


def conv_features(
  units: int = 64, channels: Sequence[int] = (32, 64, 128)
) -> Features:
  """Convolutions of stride 2, the mean over places, then tanh features.

  Args:
    units: F features.
    channels: of the 3 x 3 convolutions, each followed by a rectifier.

  Example:
    >>> features = conv_features(16, (4, 8))
    >>> params = features.init(jax.random.key(0), (32, 32, 3))
    >>> features.apply(params, jnp.zeros((2, 32, 32, 3))).shape
    (2, 16)
  """

  def init(key, shape):
    keys = jax.random.split(key, len(channels) + 1)
    fans = (shape[-1], *channels)
    params = {
      f'k{i}': np.sqrt(2) * _matrix(keys[i], (3, 3, fans[i], fans[i + 1]))
      for i in range(len(channels))
    }
    params |= {f'c{i}': jnp.zeros(n) for i, n in enumerate(channels)}
    return params | {
      'w': _matrix(keys[-1], (fans[-1], units)),
      'b': jnp.zeros(units),
    }

  def apply(params, images):
    x = images
    for i in range(len(channels)):
      x = layers.conv2d(x, params[f'k{i}'], (2, 2))
      x = jax.nn.relu(layers.plus(x, params[f'c{i}']))
    x = x.mean(axis=(1, 2))
    return jnp.tanh(x @ params['w'] + params['b'][None])

  return Features(init, apply)


def fitted(
  key: Key,
  features: Features,
  task: Task,
  *,
  steps: int = 1000,
  batch: int = 64,
  rate: float = 2e-3,
) -> Any:
  """Parameters of features that classify a task's training images.

  A linear layer on the features is trained with them, on cross-entropy, and
  dropped. One compiled loop; the same key gives the same features.

  Args:
    key: of the initial weights and the batches.
    features: the network.
    task: whose training split it learns.
    steps: of Adam, whose rate falls to zero linearly.
    batch: images in a step.
    rate: the first rate.

  Returns:
    The parameters.

  Example:
    >>> from jaxnas import tasks
    >>> params = fitted(
    ...   jax.random.key(0), dense_features(), tasks.digits(), steps=3
    ... )
    >>> params['w1'].shape
    (64, 24)
  """
  return fitted_with_head(key, features, task, steps, batch, rate)[0]


def fitted_with_head(
  key: Key,
  features: Features,
  task: Task,
  steps: int,
  batch: int,
  rate: float,
) -> tuple[Any, jax.Array]:
  """As `fitted`, with the matrix (F, classes) that reads the features."""
  low, high = pixel_range(task)
  tx = optax.adam(optax.linear_schedule(rate, 0.0, steps))
  init_key, head_key, step_key = jax.random.split(key, 3)
  params = features.init(init_key, task.shape)
  width = jax.eval_shape(
    features.apply, params, jax.ShapeDtypeStruct((1, *task.shape), jnp.float32)
  ).shape[-1]
  start = (params, _matrix(head_key, (width, task.outputs)))

  def loss(held, images, labels):
    found = features.apply(held[0], to_unit(images, low, high))
    return cross_entropy(found @ held[1], labels).mean()

  @programs.jit
  def run(start, data, key):
    def step(carry, key):
      held, state = carry
      rows = jax.random.randint(key, (batch,), 0, data.targets.shape[0])
      grads = jax.grad(loss)(held, data.inputs[rows], data.targets[rows])
      updates, state = tx.update(grads, state, held)
      return (optax.apply_updates(held, updates), state), None

    keys = jax.random.split(key, steps)
    return jax.lax.scan(step, (start, tx.init(start)), keys)[0][0]

  return run(start, task.train, step_key)


def split_moments(
  features: Features, params: Any, task: Task, split: str = 'train'
) -> Moments:
  """Moments of the features of all images of a split.

  Args:
    features: the network.
    params: of `fitted`.
    task: whose images.
    split: `'train'`, `'valid'` or `'test'`.

  Example:
    >>> from jaxnas import tasks
    >>> features = dense_features()
    >>> params = features.init(jax.random.key(0), (8, 8, 1))
    >>> split_moments(features, params, tasks.digits()).covariance.shape
    (24, 24)
  """
  low, high = pixel_range(task)
  apply = programs.jit(features.apply)
  images = getattr(task, split).inputs
  size = min(512, len(images))
  # The last part overlaps the one before, so that all are of one shape.
  starts = [min(i, len(images) - size) for i in range(0, len(images), size)]
  found = []
  for number, start in enumerate(starts):
    part = apply(params, to_unit(images[start : start + size], low, high))
    found.append(part[number * size - start :])
  return moments(jnp.concatenate(found))
