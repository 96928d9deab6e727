"""Local search: uphill by the best neighbour, and again from elsewhere."""

import jax
import jax.numpy as jnp

from jaxnas import combine
from jaxnas.base import ArraySpace, Key, Stage, Trials
from jaxnas.stages import trials


def local_search(space: ArraySpace, query: Stage) -> Stage:
  """Goes to the best neighbour as long as it is better, then starts anew.

  Hill climbing on all single edits, the baseline of White et al. (2020, arXiv
  2005.02960). A generation asks of all neighbours of its point that were not
  asked before; the next one's point is the best of them all if it is better
  than the point, and a random genotype otherwise.

  Departs from the paper in that it goes on from a new random point when it is
  stuck, for as long as it is run.

  Args:
    space: what is searched.
    query: answers questions, such as `stages.trials.query(table, 'val_ep12')`.

  Returns:
    A stage, one generation. It takes a slot for its point and for each of its
    N neighbours, asked or not (`slots`).

  Example:
    >>> from jaxnas import base, run, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> table = base.Table(space, {'score': jnp.arange(4096.0)})
    >>> stage = local_search(space, trials.query(table, 'score'))
    >>> start = trials.start(space, 8 * slots(space))
    >>> last, _ = run(jax.random.key(0), stage, start, 8)
    >>> int(trials.incumbents(last).index[-1])  # Its only optimum.
    4095
  """
  width = slots(space)

  def propose(key: Key, held: Trials) -> jax.Array:
    before, _ = trials.youngest(held, width)
    heard = trials.recall(held, jax.vmap(space.index)(before))
    heard = jnp.where(jnp.isnan(heard), -jnp.inf, heard)
    up = (heard.max() > heard[0]) & (jnp.asarray(held.count) > 0)
    point = jnp.where(up, before[jnp.argmax(heard)], space.sample(key))
    return jnp.concatenate([point[None], space.neighbours(point)[0]])

  return combine.chain(
    trials.ask(propose), trials.unseen(space), query, name='local_search'
  )


def slots(space: ArraySpace) -> int:
  """How many slots a generation of `local_search` takes.

  Example:
    >>> from jaxnas import spaces
    >>> slots(spaces.nas_bench_201.space())
    25
  """
  return 1 + sum(count - 1 for count in space.options)
