"""Losses and metrics of each example."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Softmax cross-entropy of each example, in nats.

  Args:
    logits: (batch, classes) unnormalised log-probabilities.
    labels: (batch,) integer classes.

  Returns:
    (batch,) losses, in float32 where the logits are narrower.

  Example:
    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[0.0, 0.0], [0.0, 3.0]])
    >>> [round(float(x), 4) for x in cross_entropy(logits, jnp.array([0, 1]))]
    [0.6931, 0.0486]
  """
  # Not `optax.softmax_cross_entropy_with_integer_labels`: the gradient of its
  # look-up is a scatter, on CPU a loop over examples.
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
  return optax.softmax_cross_entropy(logits, hot)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """One for each example whose largest logit is its label's, else zero.

  Args:
    logits: (batch, classes) scores.
    labels: (batch,) integer classes.

  Returns:
    (batch,) float32 zeros and ones.

  Example:
    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[2.0, 1.0], [2.0, 1.0]])
    >>> accuracy(logits, jnp.array([0, 1])).tolist()
    [1.0, 0.0]
  """
  return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class SmoothedCrossEntropy:
  """Softmax cross-entropy with label smoothing (Szegedy et al., 2016).

  `smoothing` of the probability is spread over all classes.

  Attributes:
    smoothing: in [0, 1).

  Raises:
    ValueError: for a smoothing out of range.

  Example:
    >>> import jax.numpy as jnp
    >>> loss = SmoothedCrossEntropy(0.1)
    >>> round(float(loss(jnp.array([[0.0, 9.0]]), jnp.array([1]))[0]), 4)
    0.4501
  """

  smoothing: float

  def __post_init__(self):
    if not 0 <= self.smoothing < 1:
      raise ValueError(
        f'label smoothing must be in [0, 1), got {self.smoothing!r}.'
      )

  def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(
      logits, optax.smooth_labels(hot, self.smoothing)
    )


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Half the squared distance of each example, so that its Hessian is I.

  Args:
    outputs: (batch, K).
    targets: (batch, K).

  Returns:
    (batch,) losses.

  Example:
    >>> import jax.numpy as jnp
    >>> squared_error(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)))
    Array([2.5], dtype=float32)
  """
  return optax.l2_loss(outputs, targets).sum(axis=-1)


# The coefficients of `taylor`, in their order.
TAYLOR = ('a', 'b', 'c1', 'c2', 'c3', 'c4', 'c5', 'c6')


def taylor(
  coefficients: jax.Array,
  logits: jax.Array,
  targets: jax.Array,
  predict: Callable[[jax.Array], jax.Array] = jax.nn.softmax,
) -> jax.Array:
  """A loss whose coefficients are to be searched for.

  The third-order Taylor polynomial in targets y and predictions p about (a, b)
  of TaylorGLO (Gonzalez and Miikkulainen 2020), without the terms that have no
  p and so no gradient; EPBT (Liang et al. 2021, arXiv 2002.04225) searches for
  the eight coefficients while networks train. With q = p - b and z = y - a, the
  sum over classes of

      c1 q + c2/2 q^2 + c3/6 q^3 + c4 z q + c5/2 z q^2 + c6/2 z^2 q

  is minimised, as it stands. So (0, 0, 0, 1, 0, -1, 0, 0) has the gradient of
  half the squared distance of p and y, and (0, b, 0, 0, 0, -1/b, 1/b^2, 0) is,
  up to a constant, the cross-entropy -y log p to second order about p = b.

  Each coefficient changes the gradient in p. Of predictions that sum to one, as
  those of the softmax do, c1 multiplies a constant, and does not change the
  gradient in the logits.

  Args:
    coefficients: (8,), named by `TAYLOR`.
    logits: (batch, classes).
    targets: (batch, classes) probabilities, such as one-hot labels.
    predict: logits to predictions.

  Returns:
    (batch,) losses, which may be negative.

  Example:
    >>> import jax.numpy as jnp
    >>> half_squared = jnp.array([0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
    >>> y = jnp.array([[0.0, 1.0]])
    >>> float(taylor(half_squared, jnp.zeros((1, 2)), y)[0])  # (p - y)^2 - y^2
    -0.25
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  a, b, c1, c2, c3, c4, c5, c6 = coefficients
  q, z = predict(logits) - b, targets - a
  alone = c1 * q + c2 / 2 * q**2 + c3 / 6 * q**3
  mixed = c4 * z * q + c5 / 2 * z * q**2 + c6 / 2 * z**2 * q
  return (alone + mixed).sum(axis=-1)


# Losses whose Hessian in the logits is that of the softmax.
CROSS_ENTROPIES = (
  cross_entropy,
  optax.softmax_cross_entropy,
  optax.softmax_cross_entropy_with_integer_labels,
)
