"""Random search of a space of arrays: what every search is compared with."""

from jaxnas import combine
from jaxnas.base import ArraySpace, Stage
from jaxnas.stages import trials


def array_random(space: ArraySpace, query: Stage, *, count: int = 1) -> Stage:
  """Asks of random genotypes, repeats and all.

  Args:
    space: what is searched.
    query: answers questions, such as `stages.trials.query(table, 'val_ep12')`.
    count: questions in a generation, and so slots.

  Returns:
    A stage, one generation.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxnas import base, run, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> table = base.Table(space, {'score': jnp.arange(4096.0)})
    >>> stage = array_random(space, trials.query(table, 'score'), count=4)
    >>> last, _ = run(jax.random.key(0), stage, trials.start(space, 8), 2)
    >>> int(last.spent.evaluations)
    8
  """
  return combine.chain(
    trials.ask(trials.sampled(space, count)), query, name='array_random'
  )
