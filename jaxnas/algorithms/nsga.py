"""NSGA-Net's search: accuracy against size, operations or latency."""

from collections.abc import Sequence

import optax

from jaxnas import combine, selection, stages
from jaxnas.base import Stage, Task


def nsga(
  task: Task,
  tx: optax.GradientTransformation,
  moves: stages.Moves,
  *,
  size: int,
  children: int,
  epochs: int,
  batch: int,
  by: Sequence[stages.Objective] = (
    stages.more('valid_metric'),
    stages.less('flops'),
  ),
  weights: Stage = stages.restart(),
) -> Stage:
  """Evolves a population toward the Pareto front of several objectives.

  Lu et al. (2019), "NSGA-Net", by the selection of NSGA-II (Deb et al. 2002).
  Generation 0 trains and measures the first population. Each later one makes
  `children` of parents that win binary crowded tournaments, and keeps the
  `size` best of parents and children by front and crowding distance. The
  answer is the Pareto front of all that was measured, the population's
  archive.

  Departs from the paper in that children come of one move each, and not of
  crossover with polynomial mutation, for which networks need genes of fixed
  length; in that duplicates are not removed; in that fitness is measured on
  the validation split (the released search reads the test split); and as
  `regularized_evolution` in `weights`. The Bayesian network of the paper's
  last phase is not in its released search either.

  Args:
    task: the task.
    tx: the optimizer, for each child from its start.
    moves: what children may do, such as `stages.within(space)`.
    size: members that survive; as many as `stages.founders` makes.
    children: made in a generation.
    epochs: of training, of each network.
    batch: training examples in a step.
    by: two or more objectives: `stages.more`, `less`, `faster` or your own.
    weights: `stages.restart()` for fresh ones, or `stages.inherit()`.

  Returns:
    A stage, one generation.

  Example:
    >>> import optax
    >>> from jaxnas import spaces, tasks
    >>> task = tasks.digits()
    >>> space = spaces.chain(task.shape, task.outputs)
    >>> stage = nsga(task, optax.adam(1e-2), stages.within(space),
    ...              size=8, children=8, epochs=2, batch=64)
  """
  fit = combine.chain(
    stages.train(task, tx, epochs=epochs, batch=batch),
    stages.measure(task),
    name='fit',
  )
  child = combine.chain(
    stages.select(selection.crowded_tournament(2, count=children), by=by),
    stages.mutate(moves),
    stages.realise(),
    weights,
    fit,
    name='child',
  )
  cycle = combine.chain(
    combine.append(child), stages.select(selection.nsga2(size), by=by)
  )
  return combine.chain(
    combine.when(lambda population: population.generation == 0, fit),
    combine.when(lambda population: population.generation > 0, cycle),
    stages.remember(selection.front(), by=by),
    name='nsga',
  )
