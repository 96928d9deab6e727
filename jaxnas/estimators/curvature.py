"""Output Hessians as factors, and the closed forms of small quadratics.

A *factor* of a loss's Hessian H in the network's outputs is a function
`factor(key, outputs) -> (m, batch, outputs)` of m vectors for each example
whose mean outer product is H, exactly or in expectation. Pulled back through
the network, they give the curvature of whatever is injected into it (growth
specification, 1.3.3): all columns of H's root are route B, random ones C.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import tasks

Key = jax.Array
Factor = Callable[[Key, jax.Array], jax.Array]


def _draws(name: str, draws: int) -> None:
  if draws < 1:
    raise ValueError(f'{name}: draws must be at least 1, got {draws!r}.')


@functools.lru_cache(maxsize=64)
def softmax_sketch(draws: int = 1) -> Factor:
  """Cross-entropy's Hessian by Rademacher vectors (route C).

  `A eps` with `A = diag(sqrt p) - p sqrt(p)^T`, `A A^T = diag(p) - p p^T` and
  eps Rademacher. Targets (hard, soft or smoothed) do not enter.

  Args:
    draws: m, independent vectors for each example; each costs one reverse
      pass.

  Raises:
    ValueError: for fewer than one draw.

  Example:
    >>> import jax
    >>> factor = softmax_sketch(3)
    >>> factor(jax.random.key(0), jnp.zeros((2, 4))).shape
    (3, 2, 4)
  """
  _draws('softmax_sketch', draws)

  def factor(key, outputs):
    shape = (draws, *outputs.shape)
    return _softmax_root(
      outputs, jax.random.rademacher(key, shape, outputs.dtype)
    )

  return factor


def _softmax_root(outputs: jax.Array, vectors: jax.Array) -> jax.Array:
  """`A` applied to vectors (m, batch, classes)."""
  root = jnp.sqrt(jax.nn.softmax(outputs))[None]
  inner = (root * vectors).sum(axis=-1, keepdims=True)
  return root * vectors - jnp.square(root) * inner


@functools.lru_cache(maxsize=64)
def softmax_labels(draws: int = 1) -> Factor:
  """Cross-entropy's Hessian by sampled labels (route C', the Fisher identity).

  `p - onehot(y)` with y drawn from the network's own p.

  Args:
    draws: labels for each example.

  Raises:
    ValueError: for fewer than one draw.

  Example:
    >>> import jax
    >>> vectors = softmax_labels()(jax.random.key(0), jnp.zeros((2, 4)))
    >>> vectors.min(), vectors.max()
    (Array(-0.75, dtype=float32), Array(0.25, dtype=float32))
  """
  _draws('softmax_labels', draws)

  def factor(key, outputs):
    p = jax.nn.softmax(outputs)[None]
    shape = (draws, *outputs.shape[:-1])
    labels = jax.random.categorical(key, outputs, shape=shape)
    return p - jax.nn.one_hot(labels, p.shape[-1], dtype=p.dtype)

  return factor


@functools.lru_cache(maxsize=1)
def softmax_exact() -> Factor:
  """Cross-entropy's Hessian by all columns of its root (route B).

  As many reverse passes as there are classes, and no sampling noise.

  Example:
    >>> import jax
    >>> softmax_exact()(jax.random.key(0), jnp.zeros((2, 4))).shape
    (4, 2, 4)
  """

  def factor(key, outputs):
    del key
    return _softmax_root(outputs, _basis(outputs))

  return factor


def _basis(outputs: jax.Array) -> jax.Array:
  """Scaled unit vectors (K, batch, K) whose mean outer product is I."""
  count = outputs.shape[-1]
  eye = jnp.eye(count, dtype=outputs.dtype)[:, None] * np.sqrt(count)
  return jnp.broadcast_to(eye.astype(outputs.dtype), (count, *outputs.shape))


@functools.lru_cache(maxsize=64)
def squares_sketch(draws: int = 1) -> Factor:
  """The Hessian of `jaxnas.tasks.squared_error`, I, by Rademacher vectors.

  Args:
    draws: vectors for each example.

  Raises:
    ValueError: for fewer than one draw.

  Example:
    >>> import jax
    >>> squares_sketch(2)(jax.random.key(0), jnp.zeros((5, 3))).shape
    (2, 5, 3)
  """
  _draws('squares_sketch', draws)

  def factor(key, outputs):
    shape = (draws, *outputs.shape)
    return jax.random.rademacher(key, shape, outputs.dtype)

  return factor


@functools.lru_cache(maxsize=1)
def squares_exact() -> Factor:
  """The Hessian of `jaxnas.tasks.squared_error`, I, by unit vectors (route B).

  Example:
    >>> import jax
    >>> squares_exact()(jax.random.key(0), jnp.zeros((5, 3))).shape
    (3, 5, 3)
  """

  def factor(key, outputs):
    del key
    return _basis(outputs)

  return factor


@functools.lru_cache(maxsize=1)
def flat() -> Factor:
  """No curvature at all: estimates are of first order (a control).

  Example:
    >>> import jax
    >>> flat()(jax.random.key(0), jnp.zeros((5, 3))).shape
    (0, 5, 3)
  """

  def factor(key, outputs):
    del key
    return jnp.zeros((0, *outputs.shape), outputs.dtype)

  return factor


def sketch_of(loss: Callable, draws: int = 1) -> Factor:
  """The random factor of a loss that jaxnas knows.

  Args:
    loss: `jaxnas.tasks.cross_entropy`, a `jaxnas.tasks.SmoothedCrossEntropy`,
      optax's softmax cross-entropies, or `jaxnas.tasks.squared_error`.
    draws: vectors for each example.

  Raises:
    ValueError: for any other loss, saying what to give.

  Example:
    >>> sketch_of(tasks.cross_entropy) is softmax_sketch(1)
    True
  """
  if loss == tasks.squared_error:
    return squares_sketch(draws)
  if loss in tasks.CROSS_ENTROPIES or isinstance(
    loss, tasks.SmoothedCrossEntropy
  ):
    return softmax_sketch(draws)
  raise ValueError(
    f'the output Hessian of the loss {loss!r} is not known; give factor=, a '
    'function of key and outputs to vectors (m, batch, outputs) whose mean '
    'outer product is that Hessian (see jaxnas.estimators.softmax_sketch).'
  )


def exact_of(loss: Callable) -> Factor:
  """The exact factor of a loss that `sketch_of` knows.

  Raises:
    ValueError: for any other loss, saying what to give.

  Example:
    >>> exact_of(tasks.squared_error) is squares_exact()
    True
  """
  sketch = sketch_of(loss)
  return softmax_exact() if sketch is softmax_sketch(1) else squares_exact()


class Optimum(NamedTuple):
  """The minimum of a quadratic estimate.

  Attributes:
    step: where it lies.
    gain: by how much the loss falls there, in nats, never negative.
  """

  step: np.ndarray
  gain: np.ndarray


def gated(slope: np.ndarray, curvature: np.ndarray) -> Optimum:
  """The best opening of a gate: `alpha* = -b / k`, gain `b^2 / (2 k)`.

  For anything added behind a closed gate (a block, a head, a skip): its effect
  on the loss is `alpha b + alpha^2 k / 2` (growth specification, 1.3.5), so
  insertions of every kind are compared by one number.

  Args:
    slope: b, the derivative of the mean loss in alpha, any shape.
    curvature: k, its Gauss-Newton curvature, of that shape, not negative.

  Example:
    >>> gated(np.array([-0.2]), np.array([0.4]))
    Optimum(step=array([0.5]), gain=array([0.05]))
  """
  slope, curvature = np.asarray(slope, float), np.asarray(curvature, float)
  known = curvature > 0
  safe = np.where(known, curvature, 1.0)
  return Optimum(
    np.where(known, -slope / safe, 0.0),
    np.where(known, slope**2 / (2 * safe), 0.0),
  )


def split_step(linear: np.ndarray, curvature: np.ndarray) -> Optimum:
  """The best length of a split's direction, from scores at a small length.

  At small lengths s the difference that a split makes grows with s^2, so the
  estimate is `linear s^2 + curvature s^4 / 2`, with s in units of the scored
  direction: `s* = sqrt(-linear / curvature)`, which is `s*^2 = -2 lambda / k`
  with gain `lambda^2 / (2 k)` in the units of the growth specification, 1.3.5
  (lambda the splitting matrix's value along the direction). For smooth
  activations; piecewise linear ones have no small-length limit.

  Args:
    linear: first-order scores of short directions.
    curvature: mean squares of their coefficients.

  Returns:
    The factors by which to lengthen the directions, zero where no length
    lowers the loss.

  Example:
    >>> split_step(np.array([-0.02, 0.01]), np.array([0.005, 0.1]))
    Optimum(step=array([2., 0.]), gain=array([0.04, 0.  ]))
  """
  best = gated(linear, curvature)
  square = np.maximum(best.step, 0.0)
  return Optimum(np.sqrt(square), np.where(square > 0, best.gain, 0.0))


def outgoing(
  gradient: np.ndarray, curvature: np.ndarray, ridge: float = 1e-6
) -> Optimum:
  """The best outgoing weights of new neurons: `-Q^-1 b`, gain `b^T Q^-1 b / 2`.

  Half of the natural expansion score of SENN (arXiv 2307.04526), with the
  Gauss-Newton matrix in the place of the Fisher matrix (growth specification,
  1.3.5).

  Args:
    gradient: (n,) b, the derivative of the mean loss in the weights.
    curvature: (n, n) Q, their Gauss-Newton matrix.
    ridge: added to Q's diagonal, relative to its mean.

  Example:
    >>> outgoing(np.array([1.0, 0.0]), np.eye(2), ridge=0.0)
    Optimum(step=array([-1., -0.]), gain=0.5)
  """
  gradient = np.asarray(gradient, float)
  curvature = np.asarray(curvature, float)
  size = len(gradient)
  damping = ridge * np.trace(curvature) / max(size, 1)
  step = -np.linalg.solve(curvature + damping * np.eye(size), gradient)
  return Optimum(step, float(-gradient @ step / 2))
