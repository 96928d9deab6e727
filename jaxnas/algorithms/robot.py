"""RoBoT: which weights of free metrics rank best, then their ranking."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import combine, estimators, stages
from jaxnas.base import Stage, Table
from jaxnas.spaces import tables


def likeliest_process() -> estimators.Predictor:
  """The Gaussian process of RoBoT's code, at the likeliest of 21 lengths.

  There the length is what L-BFGS finds, from 1e-5 to 1e5, and the noise is
  1e-6, which single precision does not allow; here it is one of 0.1 to 10, and
  1e-4.

  Example:
    >>> model = likeliest_process()
    >>> x = jnp.linspace(-1.0, 1.0, 9)[:, None]
    >>> *_, length = model.fit(None, None, x, x[:, 0], jnp.ones(9, bool))
    >>> 0.1 < float(length) <= 10.0
    True
  """
  lengths = np.geomspace(0.1, 10.0, 21)
  return estimators.gaussian_process(
    length=lengths.tolist(), covariance=estimators.matern
  )


def robot(
  table: Table,
  query: Stage,
  columns: Sequence[str],
  pool: Any,
  *,
  total: int = 20,
  scale: Callable[[Any], jax.Array] = stages.scaled,
  **search: Any,
) -> Stage:
  """One question of a search among rankings by weighted metrics.

  RoBoT (He et al. 2024, arXiv 2403.07591), see `stages.weigh`: metrics scaled
  to 0..1 over the pool, where one that is missing counts as 0; `total`
  generations in which weights are chosen, first at random and then by the upper
  confidence bound of a Gaussian process, at 2.576 deviations; then the ranking
  by the best of them is walked down until `total` networks have been asked.

  Departs from the paper's code, which has Matern's covariance of 5/2 at the
  likeliest length, anew in each generation: here it is the RBF of length 2.
  What weights are worth is constant in steps, so that the likeliest length may
  be far too short: on NAS-Bench-201 fewer searches find the best network
  (RESULTS.md; `likeliest_process` is as the code has it). Also, the noise is
  1e-4, and the acquisition is maximised over 2,000 random weights, without
  gradients.

  Args:
    table: gives the space and the metrics.
    query: answers questions, such as `stages.trials.query(table, 'val_ep12')`.
    columns: of the metrics, of one number for each network. The paper's are
      grad_norm, snip, grasp, fisher, synflow and jacob_cov.
    pool: (A, L) genotypes to choose among.
    total: networks asked in all.
    scale: of the metrics, (A, M), to comparable ones. The paper's is
      `stages.scaled`, by their extremes, which metrics of heavy tails fill
      badly: give those as logarithms, or take `stages.places`, their ranks.
    **search: `predictor`, `acquire` and `candidates` of `stages.weigh`.

  Returns:
    A stage; `2 * total` generations use as many slots of trials.

  Raises:
    ValueError: for a total below two, no metric, or a pool that is empty or has
      a genotype that is not of the space.
    KeyError: for a column that the table has not.

  Example:
    >>> from jaxnas import spaces
    >>> from jaxnas.run import rounds
    >>> from jaxnas.stages import trials
    >>> space = spaces.tabular.independent('sum', (3,) * 4)
    >>> score = jnp.arange(81.0)
    >>> table = Table(space, {
    ...     'score': score, 'good': jnp.sqrt(score), 'bad': score % 7})
    >>> pool = jnp.stack(jnp.unravel_index(jnp.arange(81), (3,) * 4), axis=1)
    >>> query = trials.query(table, 'score')
    >>> stage = robot(table, query, ('good', 'bad'), pool, total=6)
    >>> last, _ = rounds(
    ...     jax.random.key(0), stage, trials.start(space, 12), 12)
    >>> int((last.index >= 0).sum()), float(last.metrics['fitness'][0] < 80)
    (6, 1.0)
  """
  if total < 2 or not columns:
    raise ValueError(
      'robot: total must be at least 2 and columns name a metric or more, got '
      f'{total!r} and {tuple(columns)!r}.'
    )
  pool = np.asarray(pool)
  if not len(pool):
    raise ValueError(
      'robot: the pool is empty; give genotypes to choose among.'
    )
  index = np.asarray(jax.jit(jax.vmap(table.space.index))(pool))
  if (index < 0).any():
    strange = pool[np.flatnonzero(index < 0)[0]].tolist()
    raise ValueError(
      f'robot: the pool has {strange}, which is not in {table.space.name}.'
    )
  held = [tables.column(table, name)[index] for name in columns]
  metrics = scale(jnp.stack(held, axis=1))
  weigh = stages.weigh(
    pool, index, metrics, explore=total, total=total, **search
  )
  return combine.chain(weigh, query, name='robot')
