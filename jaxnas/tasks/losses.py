"""Losses and metrics of each example."""

import dataclasses

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
    >>> logits = jnp.array([[0.0, 0.0], [0.0, 100.0]])
    >>> [round(float(x), 4) for x in cross_entropy(logits, jnp.array([0, 1]))]
    [0.6931, 0.0]
  """
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


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


# Losses whose Hessian in the logits is that of the softmax.
CROSS_ENTROPIES = (
  cross_entropy,
  optax.softmax_cross_entropy,
  optax.softmax_cross_entropy_with_integer_labels,
)
