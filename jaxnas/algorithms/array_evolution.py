"""Regularized evolution of arrays."""

from jaxnas import combine
from jaxnas.base import ArraySpace, Stage
from jaxnas.stages import trials

# Children that are drawn for one that was not asked before.
_TRIES = 16


def array_evolution(
  space: ArraySpace,
  query: Stage,
  *,
  size: int = 10,
  entrants: int = 3,
  unique: bool = False,
) -> Stage:
  """Evolves genotypes whose oldest die, one question in a generation.

  Real et al. (2019), algorithm 1, as the benchmarks of Dong and Yang (2020) run
  it, whose population of 10 and tournaments of 3 are the defaults: random
  genotypes until there are `size`, and then one edit of the best of `entrants`
  of the youngest `size`, drawn with replacement. The population is a view of
  the trials. The answer is the best of all that was asked
  (`stages.trials.incumbents`), not of the population.

  As in that reference a child may have been asked before, and is asked and paid
  for again. `incumbents(free_repeats=True)` is the reading in which repeats,
  which enter the population all the same, are free.

  Args:
    space: what is searched.
    query: answers questions, such as `stages.trials.query(table, 'val_ep12')`.
    size: P, the population.
    entrants: S, of a tournament.
    unique: whether a child that was asked before is drawn again, up to 16
      times with its tournament, and then at random in the space.

  Returns:
    A stage, one generation; it takes one slot.

  Raises:
    ValueError: for a number below one.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxnas import base, run, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> table = base.Table(space, {'score': jnp.arange(4096.0)})
    >>> stage = array_evolution(space, trials.query(table, 'score'))
    >>> last, _ = run(jax.random.key(0), stage, trials.start(space, 12), 12)
    >>> int(last.spent.evaluations)
    12
  """
  if not unique:
    child = trials.mutants(space, size=size, entrants=entrants)
    propose = trials.until(size, trials.sampled(space), child)
    return combine.chain(trials.ask(propose), query, name='array_evolution')
  child = trials.mutants(space, size=size, entrants=entrants, count=_TRIES)
  propose = trials.until(
    size,
    trials.sampled(space, _TRIES + 1),
    trials.both(child, trials.sampled(space)),
  )
  return combine.chain(
    trials.ask(propose),
    trials.unseen(space),
    trials.keep(1),
    query,
    name='array_evolution',
  )
