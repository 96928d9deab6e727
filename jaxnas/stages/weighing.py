"""A stage that searches for how free metrics are to be weighed: RoBoT's.

Its trials are the best networks by weighted sums of metrics that cost nothing
to know, such as zero-cost proxies.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnas.base import Key, Stage, Trials, check_counts
from jaxnas.estimators import predictors
from jaxnas.stages import trials
from jaxnas.stages.surrogate import Acquisition, targets, upper


class Weighed(NamedTuple):
  """What has been tried.

  Attributes:
    weights: (T, M) by which the M metrics were weighed.
    index: (T,) the network that was best then; -1 for none yet.
  """

  weights: jax.Array
  index: jax.Array


def scaled(metrics: Any, axis: int = 0) -> jax.Array:
  """Metrics as numbers in 0..1 by their least and most; 0 where not finite.

  Args:
    metrics: (A, M), or one of them, (A,).
    axis: along which to take extremes.

  Example:
    >>> scaled(jnp.array([1.0, 3.0, jnp.nan, 2.0])).tolist()
    [0.0, 1.0, 0.0, 0.5]
  """
  metrics = jnp.asarray(metrics, jnp.float32)
  number = jnp.isfinite(metrics)
  low = jnp.where(number, metrics, jnp.inf).min(axis=axis, keepdims=True)
  high = jnp.where(number, metrics, -jnp.inf).max(axis=axis, keepdims=True)
  wide = jnp.where(high > low, high - low, 1.0)
  return jnp.where(number, (metrics - low) / wide, 0.0)


def places(metrics: Any) -> jax.Array:
  """Metrics as ranks in 0..1, equal ones alike; 0 where not finite.

  Args:
    metrics: (A, M), each ranked by itself.

  Example:
    >>> metrics = jnp.array([[1.0], [30.0], [jnp.nan], [2.0], [1.0]])
    >>> [round(float(place), 2) for place in places(metrics)[:, 0]]
    [0.33, 1.0, 0.0, 0.67, 0.33]
  """

  def one(column: jax.Array) -> jax.Array:
    number = jnp.isfinite(column)
    held = jnp.sort(jnp.where(number, column, jnp.inf))
    below = jnp.searchsorted(held, column, side='left')
    first = jnp.concatenate([jnp.ones(1, bool), held[1:] != held[:-1]])
    rank = jnp.cumsum(first & jnp.isfinite(held))[
      jnp.minimum(below, held.size - 1)
    ]
    most = jnp.maximum(jnp.where(number, rank, 0).max(), 1)
    return jnp.where(number, rank / most, 0.0)

  columns = jnp.asarray(metrics, jnp.float32)
  return jax.vmap(one, in_axes=1, out_axes=1)(columns)


def weigh(
  pool: Any,
  index: Any,
  metrics: Any,
  *,
  explore: int,
  total: int,
  predictor: predictors.Predictor | None = None,
  acquire: Acquisition | None = None,
  candidates: int = 2000,
) -> Stage:
  """Proposes one network: the best by a weighted sum of metrics.

  The search of RoBoT (He et al. 2024, arXiv 2403.07591). In the first
  `explore` generations weights in [-1, 1] are chosen by Bayesian optimisation,
  without a start at random: of random candidates those of the largest
  acquisition, whose value is what the best network by them is worth. Networks
  that were asked before cost nothing. From then on (greedily) the ranking by
  the best weights found, the last of those that are alike, is walked down until
  `total` networks have been asked.

  Args:
    pool: (A, L) genotypes to choose among.
    index: (A,) of these networks, as the space numbers them.
    metrics: (A, M), comparable with each other, see `scaled`.
    explore: generations of exploration.
    total: different networks that are asked in all.
    predictor: of a value from weights, (N, M); None for a Gaussian process of
      length 2, the distance of two random weights of six metrics.
    acquire: None for the upper confidence bound at 2.576 deviations.
    candidates: weights drawn in a generation.

  Returns:
    A stage; its state is `Weighed`. Follow it by `trials.query`.

  Raises:
    ValueError: for numbers below one, or arrays that do not agree.
  """
  check_counts('weigh', explore=explore, total=total, candidates=candidates)
  pool, metrics = jnp.asarray(pool, jnp.int32), jnp.asarray(metrics)
  index = jnp.asarray(index, jnp.int32)
  if metrics.ndim != 2 or not len(pool) == len(metrics) == len(index):
    raise ValueError(
      'weigh: pool, index and metrics must be (A, L), (A,) and (A, M), got '
      f'{pool.shape}, {index.shape} and {metrics.shape}.'
    )
  if predictor is None:
    predictor = predictors.gaussian_process(length=2.0)
  acquire = upper(2.576) if acquire is None else acquire
  width = metrics.shape[1]

  def init(held: Trials) -> Weighed:
    del held
    return Weighed(jnp.zeros((explore, width)), jnp.full(explore, -1))

  def update(key: Key, held: Trials, state: Weighed):
    draw_key, fit_key, acquire_key = jax.random.split(key, 3)
    found = trials.recall(held, state.index)
    drawn = jax.random.uniform(draw_key, (candidates, width), minval=-1.0)
    params = predictor.fit(
      fit_key,
      predictor.init(fit_key, width),
      state.weights,
      targets(found),
      jnp.isfinite(found),
    )
    bound = acquire(acquire_key, predictor.predict(params, drawn))
    worths = jnp.where(jnp.isnan(found), -jnp.inf, found)
    best = state.weights[explore - 1 - jnp.argmax(worths[::-1])]
    exploring = jnp.asarray(held.generation) < explore
    weights = jnp.where(exploring, drawn[jnp.argmax(bound)], best)

    asked = (index[:, None] == held.index[None, :]).any(axis=1)
    worth = metrics @ weights
    row = jnp.argmax(jnp.where(~exploring & asked, -jnp.inf, worth))
    room = (held.index >= 0).sum() < total
    at = jnp.minimum(held.generation, explore - 1)

    def tried(into: jax.Array, value: jax.Array) -> jax.Array:
      return into.at[at].set(jnp.where(exploring, value, into[at]))

    state = Weighed(
      tried(state.weights, weights), tried(state.index, index[row])
    )
    held = held._replace(
      pending=pool[row][None], wanted=(room & ~asked[row])[None]
    )
    return held, state

  return Stage(init, update, 'weigh')
