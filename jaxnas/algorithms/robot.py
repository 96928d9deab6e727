"""RoBoT: which weights of free metrics rank best, then their ranking."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import combine, stages
from jaxnas.base import Stage, Table
from jaxnas.spaces import tables


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
  to 0..1 over the pool, where one that is missing counts as 0; `total - 1`
  generations in which a Gaussian process chooses weights by its upper
  confidence bound; then the ranking by the best of them is walked down until
  `total` networks have been asked.

  Departs from the paper's code in what it does not say: the covariance is the
  RBF of length 2 with a noise of 1e-4, bounds are at 2.576 deviations, and
  the acquisition is maximised over 2,000 random weights a generation.

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
    A stage; `2 * total - 1` generations use as many slots of trials.

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
    ...     jax.random.key(0), stage, trials.start(space, 11), 11)
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
    pool, index, metrics, explore=total - 1, total=total, **search
  )
  return combine.chain(weigh, query, name='robot')
