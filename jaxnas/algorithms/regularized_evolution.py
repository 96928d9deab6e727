"""Regularized evolution: tournaments, and death by age."""

import optax

from jaxnas import combine, selection, stages
from jaxnas.base import Stage, Task


def regularized_evolution(
  task: Task,
  tx: optax.GradientTransformation,
  moves: stages.Moves,
  *,
  size: int,
  entrants: int,
  epochs: int,
  batch: int,
  children: int = 1,
  weights: Stage = stages.restart(),
) -> Stage:
  """Evolves a population in which the oldest die.

  Real, Aggarwal, Huang and Le (2019), "Regularized Evolution for Image
  Classifier Architecture Search", algorithm 1. Generation 0 trains and measures
  the first population. Each later one

  1. draws `entrants` members with replacement, of which the best by
     validation is the parent;
  2. makes a child: one random move, and training for `epochs`;
  3. appends it, and removes the oldest member.

  The answer is the best of the *history*, the only candidate in the
  population's archive (`jaxnas.workdir.leader`), a member or not.

  Departs from the paper in that a generation can make several children, of
  parents drawn at the same time; in that moves come from any space; and with
  `weights=stages.inherit()` in that a child goes on from its parent's weights,
  through the move, so that it costs the same and starts from what was learned:
  best with `stages.preserving(moves)`, under which it starts from the very
  function.

  Args:
    task: the task.
    tx: the optimizer, for each child from its start.
    moves: what children may do, such as `stages.within(space)`.
    size: P, members that stay; as many as `stages.founders` makes.
    entrants: S, members in a tournament.
    epochs: of training, of each member of the first population and each child.
    batch: training examples in a step.
    children: made in a generation.
    weights: `stages.restart()` for fresh ones, or `stages.inherit()`.

  Returns:
    A stage, one generation.

  Example:
    >>> import jax, optax
    >>> from jaxnas import run, spaces, tasks
    >>> task = tasks.digits()
    >>> space = spaces.chain(task.shape, task.outputs, stages=0, hidden=(1, 2),
    ...                      widths=(2, 4))
    >>> stage = regularized_evolution(
    ...     task, optax.adam(1e-2), stages.within(space),
    ...     size=2, entrants=2, epochs=1, batch=64)
    >>> start = stages.founders(jax.random.key(0), space, 2)
    >>> last, _ = run(jax.random.key(1), stage, start, until=3)
    >>> [member.born for member in last.members], last.spent.evaluations
    ([1, 2], 4)
  """
  fit = combine.chain(
    stages.train(task, tx, epochs=epochs, batch=batch),
    stages.measure(task),
    name='fit',
  )
  child = combine.chain(
    stages.select(selection.tournament(entrants, count=children)),
    stages.mutate(moves),
    stages.realise(),
    weights,
    fit,
    name='child',
  )
  cycle = combine.chain(combine.append(child), stages.youngest(size))
  return combine.chain(
    combine.when(lambda population: population.generation == 0, fit),
    combine.when(lambda population: population.generation > 0, cycle),
    stages.remember(selection.top(1)),
    name='regularized_evolution',
  )
