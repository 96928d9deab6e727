"""Predictors: what a genotype is worth, learned from those that were asked.

A `Predictor` is three pure functions of arrays of fixed shape with a mask, so
that a search that fits one in every generation is one program, under `vmap`
for many seeds. What it reads is features, (N, F): `ArraySpace.encode`, perhaps
with more columns (`jaxnas.stages.features`). What it learns is in the units of
the targets, which callers standardise.

`jaxnas.estimators.differences` predicts what one genotype is worth more than
another.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas.base import Key, check_counts

Params = Any


class Prediction(NamedTuple):
  """What a predictor expects of M genotypes.

  Attributes:
    mean: (M,).
    deviation: (M,) how unsure it is, a standard deviation; 0 for a predictor
      of one member that knows no better.
  """

  mean: jax.Array
  deviation: jax.Array


class Predictor(NamedTuple):
  """A regression, as pure functions for `jit` and `vmap`.

  Attributes:
    init: `init(key, features) -> params`, of F features, knowing nothing.
    fit: `fit(key, params, x, y, use) -> params` from rows (N, F), targets (N,)
      and which of them count, (N,) booleans; other rows may hold anything but
      NaN in x. It goes on from the given params, which may have been fitted to
      something else: free labels, another task.
    predict: `predict(params, x) -> Prediction` of (M, F).
  """

  init: Callable[[Key, int], Params]
  fit: Callable[..., Params]
  predict: Callable[[Params, jax.Array], Prediction]


class Basis(NamedTuple):
  """The columns that a ridge is linear in, without writing them down.

  With Phi the (N, P) columns of features x, (N, F), and weights a tree of P
  numbers:

  Attributes:
    kernel: `kernel(x, z) -> (N, M)`, Phi(x) Phi(z)'.
    zeros: `zeros(features) -> weights`, all 0.
    gather: `gather(x, a) -> weights`, Phi(x)' a of (N,).
    apply: `apply(weights, x) -> (N,)`, Phi(x) weights.
  """

  kernel: Callable[[jax.Array, jax.Array], jax.Array]
  zeros: Callable[[int], Any]
  gather: Callable[[jax.Array, jax.Array], Any]
  apply: Callable[[Any, jax.Array], jax.Array]


def plain() -> Basis:
  """Features as they are: effects of choices that add up.

  Example:
    >>> x = jnp.array([[1.0, 2.0]])
    >>> plain().gather(x, jnp.array([2.0])).tolist()
    [2.0, 4.0]
  """
  return Basis(
    lambda x, z: x @ z.T,
    jnp.zeros,
    lambda x, a: x.T @ a,
    lambda weights, x: x @ weights,
  )


def products() -> Basis:
  """Features with the products of all pairs of them, F (F + 1) / 2 in all.

  Of one-hot codes these are "both choices are made", the interactions of
  pairs of positions. Inner products of so many columns are those of the
  features, `s + (s^2 - q) / 2` with q that of their squares; weights are a
  vector and a matrix that is strictly upper triangular.

  Example:
    >>> x, z = jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[1.0, 0.0, 1.0]])
    >>> products().kernel(x, z).tolist()  # 1 + 3, and 1 * 3 of one pair.
    [[7.0]]
    >>> basis = products()
    >>> weights = basis.gather(x, jnp.array([1.0]))
    >>> weights[1].tolist(), basis.apply(weights, z).tolist()
    ([[0.0, 2.0, 3.0], [0.0, 0.0, 6.0], [0.0, 0.0, 0.0]], [7.0])
  """

  def kernel(x: jax.Array, z: jax.Array) -> jax.Array:
    once, squares = x @ z.T, jnp.square(x) @ jnp.square(z).T
    return once + (jnp.square(once) - squares) / 2

  def gather(x: jax.Array, a: jax.Array) -> Any:
    return x.T @ a, jnp.triu((x * a[:, None]).T @ x, 1)

  def apply(weights: Any, x: jax.Array) -> jax.Array:
    single, pairs = weights
    # Summed by a product: XLA's CPU backend of JAX 0.10.2 makes one fusion of
    # `((x @ pairs) * x).sum(axis=1)`, which under `vmap` reads memory that
    # nobody wrote where the pairs are a constant, as zeros are.
    return x @ single + ((x @ pairs) * x) @ jnp.ones(x.shape[1])

  return Basis(
    kernel,
    lambda features: (jnp.zeros(features), jnp.zeros((features, features))),
    gather,
    apply,
  )


def penalised(
  basis: Basis,
  x: jax.Array,
  factor: jax.Array,
  y: jax.Array,
  penalty: float,
  prior: Any,
) -> Any:
  """The weights of least squares in a metric, near what was known before.

  They minimise `|B' (y - Phi b)|^2 + penalty |b - prior|^2`, by a positive
  definite system of N unknowns, `penalty + B' Phi Phi' B`.

  Args:
    basis: of the columns Phi.
    x: (N, F).
    factor: B, (N, N), of the metric B B'.
    y: (N,).
    penalty: above 0.
    prior: weights.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> y, nothing = jnp.array([2.0, 5.0]), jnp.zeros(2)
    >>> found = penalised(plain(), x, jnp.eye(2), y, 1.0, nothing)
    >>> [round(float(weight), 3) for weight in found]
    [1.0, 2.0]
  """
  rest = factor.T @ (y - basis.apply(prior, x))
  system = factor.T @ basis.kernel(x, x) @ factor + penalty * jnp.eye(len(x))
  root = jax.scipy.linalg.cho_factor(system, lower=True)
  learned = basis.gather(x, factor @ jax.scipy.linalg.cho_solve(root, rest))
  return jax.tree.map(jnp.add, prior, learned)


def ridge(
  *,
  penalty: float = 1.0,
  members: int = 1,
  share: float = 1.0,
  basis: Basis = products(),
) -> Predictor:
  """Ridge regression on one-hot codes and their products, in bags.

  The predictor of the PNAS acceptance run has five members, each of a random
  4/5 of the data, and a penalty of 1 for standardised targets. Fitting goes on
  from params by penalising the distance to them.

  Args:
    penalty: of squared weights.
    members: E ridges, each of its own bag; their mean is the prediction and
      their spread its deviation.
    share: of the rows in a bag, drawn without replacement.
    basis: the columns it is linear in, `products()` or `plain()`.

  Raises:
    ValueError: for a penalty not above 0, no member, or a share outside (0, 1].

  Example:
    >>> x = jnp.eye(3)
    >>> model = ridge(penalty=1e-3)
    >>> start = model.init(jax.random.key(0), 3)
    >>> use = jnp.array([True, True, False])
    >>> found = model.fit(
    ...     jax.random.key(1), start, x, jnp.array([1.0, 2.0, 9.0]), use)
    >>> np.round(model.predict(found, x).mean, 2).tolist()
    [1.0, 2.0, 0.0]
  """
  if not penalty > 0 or members < 1 or not 0 < share <= 1:
    raise ValueError(
      'ridge: penalty must be above 0, members at least 1 and share in (0, 1], '
      f'got {penalty!r}, {members!r} and {share!r}.'
    )

  def init(key: Key, features: int) -> Params:
    del key
    zeros = basis.zeros(features)
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * members), zeros)

  def fit(key: Key, params: Params, x: Any, y: Any, use: Any) -> Params:
    clean = jnp.where(use, y, 0.0)

    def one(key, weights):
      bag = _bag(key, use, share) if share < 1 else use
      factor = jnp.diag(bag.astype(jnp.float32))
      return penalised(basis, x, factor, clean, penalty, weights)

    return jax.vmap(one)(jax.random.split(key, members), params)

  def predict(params: Params, x: Any) -> Prediction:
    return _moments(jax.vmap(basis.apply, (0, None))(params, x))

  return Predictor(init, fit, predict)


def _bag(key: Key, use: Any, share: float) -> jax.Array:
  """A random part of the rows in use, rounded up."""
  drawn = jnp.where(use, jax.random.uniform(key, use.shape), jnp.inf)
  place = jnp.argsort(jnp.argsort(drawn))
  return use & (place < jnp.ceil(share * use.sum()))


def _moments(values: jax.Array) -> Prediction:
  """Mean and spread of what E members say, (E, M)."""
  return Prediction(values.mean(axis=0), values.std(axis=0))


def perceptron(
  key: Key, features: int, widths: Sequence[int]
) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """Kernels and biases of dense layers that end in one number.

  Kernels are He-normal; the last one is 0, so that it predicts 0 at first.

  Example:
    >>> layers = perceptron(jax.random.key(0), 3, (4,))
    >>> [kernel.shape for kernel, _ in layers]
    [(3, 4), (4, 1)]
  """
  sizes = (features, *widths, 1)
  keys = jax.random.split(key, len(sizes) - 1)
  layers = []
  for number, (own, fan) in enumerate(zip(keys, sizes)):
    shape = (fan, sizes[number + 1])
    scale = 0.0 if number == len(widths) else np.sqrt(2 / fan)
    layers.append((scale * jax.random.normal(own, shape), jnp.zeros(shape[1])))
  return tuple(layers)


def perceive(layers: Any, x: jax.Array) -> jax.Array:
  """What the dense layers give for (..., F): relu between them; (...).

  Example:
    >>> layers = perceptron(jax.random.key(0), 3, (4,))
    >>> perceive(layers, jnp.ones((2, 3))).tolist()
    [0.0, 0.0]
  """
  for kernel, bias in layers[:-1]:
    y = x @ kernel
    x = jax.nn.relu(y + bias.reshape((1,) * (y.ndim - 1) + bias.shape))
  kernel, bias = layers[-1]
  return (x @ kernel)[..., 0] + bias[0]


def descend(
  key: Key,
  params: Params,
  loss: Callable[[Key, Params], jax.Array],
  *,
  steps: int,
  rate: float,
) -> Params:
  """Adam for so many steps, the rate falling to 0 by a cosine.

  Args:
    key: folded with the step.
    params: a tree to start from.
    loss: `loss(key, params) -> ()`.
    steps: how many.
    rate: the first learning rate.

  Example:
    >>> found = descend(jax.random.key(0), jnp.zeros(()),
    ...                 lambda key, x: (x - 1.0) ** 2, steps=200, rate=0.1)
    >>> round(float(found), 2)
    1.0
  """
  tx = optax.adam(optax.cosine_decay_schedule(rate, steps))

  def step(carry, number):
    params, state = carry
    own = jax.random.fold_in(key, number)
    gradient = jax.grad(functools.partial(loss, own))(params)
    updates, state = tx.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), None

  start = (params, tx.init(params))
  (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps))
  return params


def mlp(
  *,
  widths: Sequence[int] = (128, 128),
  members: int = 5,
  steps: int = 200,
  rate: float = 1e-2,
) -> Predictor:
  """An ensemble of multilayer perceptrons, trained in full batches.

  Five as in BANANAS (White, Neiswanger and Savani 2019), which differ in their
  first weights. The loss is Huber's.

  Args:
    widths: of the hidden layers.
    members: E.
    steps: of Adam, each on all rows.
    rate: the first learning rate.

  Raises:
    ValueError: for widths, members or steps that are not at least 1.

  Example:
    >>> x = jnp.eye(3)
    >>> model = mlp(widths=(16,), members=2)
    >>> start = model.init(jax.random.key(0), 3)
    >>> y = jnp.array([1.0, -1.0, 0.0])
    >>> found = model.fit(jax.random.key(1), start, x, y, jnp.ones(3, bool))
    >>> np.abs(np.round(model.predict(found, x).mean, 1)).tolist()
    [1.0, 1.0, 0.0]
  """
  least = min(widths, default=0)
  check_counts('mlp', members=members, steps=steps, widths=least)

  def init(key: Key, features: int) -> Params:
    keys = jax.random.split(key, members)
    return jax.vmap(lambda own: perceptron(own, features, widths))(keys)

  def fit(key: Key, params: Params, x: Any, y: Any, use: Any) -> Params:
    clean = jnp.where(use, y, 0.0)
    rows = jnp.maximum(use.sum(), 1)

    def loss(key, layers):
      del key
      each = optax.losses.huber_loss(perceive(layers, x), clean)
      return jnp.where(use, each, 0.0).sum() / rows

    def one(key, layers):
      return descend(key, layers, loss, steps=steps, rate=rate)

    return jax.vmap(one)(jax.random.split(key, members), params)

  def predict(params: Params, x: Any) -> Prediction:
    return _moments(jax.vmap(perceive, (0, None))(params, x))

  return Predictor(init, fit, predict)


def rbf(distance: jax.Array) -> jax.Array:
  """The covariance at so many lengths: functions that are smooth throughout.

  Example:
    >>> round(float(rbf(jnp.array(1.0))), 3)
    0.607
  """
  return jnp.exp(-jnp.square(distance) / 2)


def matern(distance: jax.Array) -> jax.Array:
  """The covariance at so many lengths, Matern's of 5/2: twice differentiable.

  Equation 4.17 of Rasmussen and Williams (2006).

  Example:
    >>> round(float(matern(jnp.array(1.0))), 3)
    0.524
  """
  far = jnp.sqrt(5.0) * distance
  return (1 + far + jnp.square(far) / 3) * jnp.exp(-far)


def gaussian_process(
  *,
  length: float | Sequence[float] = 1.0,
  noise: float = 1e-4,
  covariance: Callable[[jax.Array], jax.Array] = rbf,
) -> Predictor:
  """A Gaussian process of prior mean 0 and variance 1.

  Its params are the rows it was fitted to, so what it was fitted to before is
  forgotten.

  Args:
    length: scale of the covariance, in the units of the features. Of several,
      the one by which the targets are likeliest (Rasmussen and Williams 2006,
      equation 2.30); the first of those that are alike.
    noise: variance of the targets about the process.
    covariance: of two rows at a distance of so many lengths, `rbf` or `matern`.

  Raises:
    ValueError: for no length, or a length or noise not above 0.

  Example:
    >>> x = jnp.array([[0.0], [1.0], [5.0]])
    >>> model = gaussian_process()
    >>> use = jnp.array([True, True, False])
    >>> found = model.fit(None, None, x, jnp.array([1.0, -1.0, 7.0]), use)
    >>> mean, deviation = model.predict(found, x)
    >>> [round(float(value), 2) for value in mean[:2]]
    [1.0, -1.0]
    >>> [round(float(value), 2) for value in deviation]
    [0.01, 0.01, 1.0]
  """
  lengths = np.atleast_1d(np.asarray(length, np.float32))
  if not lengths.size or not (lengths > 0).all() or not noise > 0:
    raise ValueError(
      'gaussian_process: length and noise must be above 0, and each of several '
      f'lengths, of which there must be one; got {length!r} and {noise!r}.'
    )

  def related(a: jax.Array, b: jax.Array, length: jax.Array) -> jax.Array:
    square = jnp.square(a[:, None, :] - b[None, :, :]).sum(axis=-1)
    return covariance(jnp.sqrt(square) / length)

  def init(key: Key, features: int) -> Params:
    del key
    return (
      *(jnp.zeros((0, features)), jnp.zeros(0, bool), jnp.zeros(0)),
      *(jnp.zeros((0, 0)), jnp.asarray(lengths[0])),
    )

  def fit(key: Key, params: Params, x: Any, y: Any, use: Any) -> Params:
    del key, params
    # A row that does not count knows nothing of any other.
    both = use[:, None] & use[None, :]
    clean = jnp.where(use, y, 0.0)

    def one(length: jax.Array):
      within = jnp.where(both, related(x, x, length), 0.0)
      within = within + jnp.diag(jnp.where(use, noise, 1.0))
      root = jnp.linalg.cholesky(within)
      weights = jax.scipy.linalg.cho_solve((root, True), clean)
      unlikely = clean @ weights / 2 + jnp.log(jnp.diag(root)).sum()
      return unlikely, weights, root

    unlikely, weights, roots = jax.vmap(one)(lengths)
    # Rounding may leave a matrix without a root.
    best = jnp.argmin(jnp.where(jnp.isnan(unlikely), jnp.inf, unlikely))
    return x, use, weights[best], roots[best], jnp.asarray(lengths)[best]

  def predict(params: Params, x: Any) -> Prediction:
    read, use, weights, root, length = params
    across = jnp.where(use, related(x, read, length), 0.0)
    seen = jax.scipy.linalg.solve_triangular(root, across.T, lower=True)
    rest = 1.0 - jnp.square(seen).sum(axis=0)
    return Prediction(across @ weights, jnp.sqrt(jnp.maximum(rest, 0.0)))

  return Predictor(init, fit, predict)
