"""Random search: the baseline that every search is compared with."""

import optax

from jaxnas import combine, selection, stages
from jaxnas.base import Space, Stage, Task


def random_search(
  task: Task,
  tx: optax.GradientTransformation,
  space: Space,
  *,
  epochs: int,
  batch: int,
) -> Stage:
  """Draws networks, trains and measures them, and keeps the best.

  One generation replaces each member by a random network of the space, trains
  it for `epochs`, and measures it. The answer is the best by validation of all
  that were measured, the only candidate in the population's archive
  (`jaxnas.workdir.leader`). It spends what an evolution spends that makes as
  many networks (`jaxnas.algorithms.regularized_evolution`).

  Args:
    task: the task.
    tx: the optimizer, for each network from its start.
    space: what is drawn from.
    epochs: of training, of each network.
    batch: training examples in a step.

  Returns:
    A stage, one generation; it keeps the number of members, so the first
    population (`jaxnas.stages.founders`) says how many are drawn in each.

  Example:
    >>> import jax, optax
    >>> from jaxnas import run, spaces, tasks
    >>> task = tasks.digits()
    >>> space = spaces.chain(task.shape, task.outputs, stages=0, hidden=(1, 2),
    ...                      widths=(2, 4))
    >>> stage = random_search(task, optax.adam(1e-2), space, epochs=1, batch=64)
    >>> start = stages.founders(jax.random.key(0), space, 1)
    >>> last, _ = run(jax.random.key(1), stage, start, until=2)
    >>> last.spent.evaluations, len(last.archive)
    (2, 1)
  """
  return combine.chain(
    stages.sample(space),
    stages.train(task, tx, epochs=epochs, batch=batch),
    stages.measure(task),
    stages.remember(selection.top(1)),
    name='random_search',
  )
