"""Predictors of differences: what one genotype is worth more than another.

The idea of Delta-NAS (Sridhar and Chen 2024, arXiv 2411.14498): an
architecture is compared with a close one, and a predictor reads the difference
of their encodings, `encode(b) - encode(a)`, which has few values where the two
differ in one choice (`one_edit_differences`). Its paper's code, model and
budgets are not public, and what is here is this project's own.

A `Difference` is odd, f(b, a) = -f(a, b), to the last bit. With `context` it
also knows what the two have in common, which the difference alone forgets.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas.base import Key, check_counts
from jaxnas.estimators import predictors
from jaxnas.estimators.predictors import Params

CONTEXTS = ('none', 'parent')
# By which part of the largest degree a Laplacian is lifted from singularity.
_SINGULAR = 1e-5


class Difference(NamedTuple):
  """A regression of differences, as pure functions for `jit` and `vmap`.

  Attributes:
    init: `init(key, features) -> params`, of F features, knowing nothing.
    fit: `fit(key, params, x, y, pairs) -> params` from rows (N, F), targets
      (N,) and the weights (N, N) of pairs of rows, symmetric and not negative;
      it goes on from the given params. Rows of no pair may hold anything but
      NaN.
    predict: `predict(params, a, b) -> (A, B)`, by how much each of b, (B, F),
      is better than each of a, (A, F).
  """

  init: Callable[[Key, int], Params]
  fit: Callable[..., Params]
  predict: Callable[[Params, jax.Array, jax.Array], jax.Array]


def one_edit_differences(options: Sequence[int]) -> np.ndarray:
  """The different inputs of a difference of one-hot codes, for one edit.

  There are `sum(k (k - 1))` for positions of k options, of which half are the
  negatives of the others: linear in the positions, while genotypes are
  exponentially many. This is the complexity that Delta-NAS claims.

  Args:
    options: how many values each position may take.

  Returns:
    (C, sum(options)) integers in -1, 0, 1.

  Example:
    >>> [len(one_edit_differences((5,) * edges)) for edges in (6, 12)]
    [120, 240]
    >>> one_edit_differences((2, 1)).tolist()
    [[-1, 1, 0], [1, -1, 0]]
  """
  code = np.eye(sum(options), dtype=int)
  first = np.cumsum([0, *options])[:-1]
  found = [
    code[start + b] - code[start + a]
    for start, count in zip(first, options)
    for a in range(count)
    for b in range(count)
    if a != b
  ]
  return np.array(found, int).reshape((-1, sum(options)))


def edits(genotypes: jax.Array, others: jax.Array) -> jax.Array:
  """In how many positions genotypes differ: (N, L) and (M, L) to (N, M).

  Example:
    >>> edits(jnp.array([[0, 1]]), jnp.array([[0, 1], [0, 0], [1, 0]])).tolist()
    [[0, 1, 2]]
  """
  return (genotypes[:, None, :] != others[None, :, :]).sum(axis=-1)


def _context(name: str, context: str) -> None:
  if context not in CONTEXTS:
    raise ValueError(
      f'{name}: context must be one of {CONTEXTS}, got {context!r}.'
    )


def ridge_difference(
  *, penalty: float = 1.0, context: str = 'parent'
) -> Difference:
  """Ridge regression of differences on differences.

  With context 'none' it is linear in `b - a`. With 'parent' it reads the
  differences of the products too, `b_i b_j - a_i a_j = d_i d_j + a_i d_j +
  d_i a_j`, and so what a change meets in its parent.

  All pairs are learned from, and none is enumerated: the squared errors of
  pairs of weights W add up to those of single rows in the metric of the graph's
  Laplacian, `sum_ab W_ab (r_a - r_b)^2 / 2 = r' (diag(W 1) - W) r`.

  Args:
    penalty: of squared weights.
    context: 'none' or 'parent'.

  Raises:
    ValueError: for a penalty not above 0, or another context.

  Example:
    >>> x, y = jnp.eye(3), jnp.array([5.0, 6.0, 8.0])
    >>> model = ridge_difference(penalty=1e-3)
    >>> start = model.init(jax.random.key(0), 3)
    >>> found = model.fit(None, start, x, y, 1 - jnp.eye(3))
    >>> np.round(model.predict(found, x[:1], x), 1).tolist()
    [[0.0, 1.0, 3.0]]
  """
  _context('ridge_difference', context)
  if not penalty > 0:
    raise ValueError(
      f'ridge_difference: penalty must be above 0, got {penalty!r}.'
    )
  basis = predictors.plain() if context == 'none' else predictors.products()

  def init(key: Key, features: int) -> Params:
    del key
    return basis.zeros(features)

  def fit(key: Key, params: Params, x: Any, y: Any, pairs: Any) -> Params:
    del key
    degrees = pairs.sum(axis=1)
    # A Laplacian is singular: what all rows have in common is no difference.
    lift = _SINGULAR * jnp.maximum(degrees.max(), 1.0)
    laplacian = jnp.diag(degrees + lift) - pairs
    factor = jnp.linalg.cholesky(laplacian)
    clean = jnp.where(degrees > 0, y, 0.0)
    return predictors.penalised(basis, x, factor, clean, penalty, params)

  def predict(params: Params, a: Any, b: Any) -> jax.Array:
    return basis.apply(params, b)[None, :] - basis.apply(params, a)[:, None]

  return Difference(init, fit, predict)


def mlp_difference(
  *,
  context: str = 'none',
  widths: Sequence[int] = (64, 64),
  members: int = 3,
  steps: int = 200,
  batch: int = 256,
  rate: float = 1e-2,
) -> Difference:
  """An ensemble of odd perceptrons of differences.

  With context 'none' a member reads d = b - a and is `(g(d) - g(-d)) / 2`; with
  'parent' it reads d and a, and is `(g(d, a) - g(-d, b)) / 2`. Their mean is
  the prediction. A step of Adam takes pairs drawn in proportion to their
  weights; the loss is Huber's.

  Args:
    context: 'none' or 'parent'.
    widths: of the hidden layers.
    members: E, which differ in first weights and draws.
    steps: of Adam.
    batch: pairs in a step.
    rate: the first learning rate.

  Raises:
    ValueError: for another context, or counts below one.

  Example:
    >>> x, y = jnp.eye(3), jnp.array([5.0, 6.0, 8.0])
    >>> model = mlp_difference(widths=(16,), members=2, batch=32)
    >>> start = model.init(jax.random.key(0), 3)
    >>> found = model.fit(jax.random.key(1), start, x, y, 1 - jnp.eye(3))
    >>> np.round(model.predict(found, x[:1], x)).tolist()
    [[0.0, 1.0, 3.0]]
  """
  _context('mlp_difference', context)
  least = min(widths, default=0)
  check_counts(
    'mlp_difference', members=members, steps=steps, batch=batch, widths=least
  )

  def init(key: Key, features: int) -> Params:
    read = features * (1 if context == 'none' else 2)
    make = functools.partial(
      predictors.perceptron, features=read, widths=widths
    )
    return jax.vmap(make)(jax.random.split(key, members))

  def half(layers: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    read = b - a
    if context == 'parent':
      read = jnp.concatenate([read, jnp.broadcast_to(a, read.shape)], axis=-1)
    return predictors.perceive(layers, read)

  def odd(layers: Any, a: jax.Array, b: jax.Array) -> jax.Array:
    return (half(layers, a, b) - half(layers, b, a)) / 2

  def fit(key: Key, params: Params, x: Any, y: Any, pairs: Any) -> Params:
    clean = jnp.where(pairs.sum(axis=1) > 0, y, 0.0)
    total = jnp.cumsum(pairs.ravel())

    def loss(key, layers):
      drawn = jax.random.uniform(key, (batch,)) * total[-1]
      # Of the first row up to the weight drawn, so never of weight 0.
      found = jnp.searchsorted(total, drawn, side='right')
      a, b = jnp.divmod(jnp.minimum(found, total.size - 1), len(x))
      said = odd(layers, x[a], x[b])
      each = optax.losses.huber_loss(said, clean[b] - clean[a])
      return jnp.where(total[-1] > 0, each, 0.0).mean()

    def one(key, layers):
      return predictors.descend(key, layers, loss, steps=steps, rate=rate)

    return jax.vmap(one)(jax.random.split(key, members), params)

  def predict(params: Params, a: Any, b: Any) -> jax.Array:
    said = jax.vmap(odd, (0, None, None))(params, a[:, None, :], b[None, :, :])
    return said.mean(axis=0)

  return Difference(init, fit, predict)
