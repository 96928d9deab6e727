"""ECToNAS' children, those that change widths first ranked by a judge."""

import itertools

from jaxnas import combine, groups, morphisms
from jaxnas import spec as specs
from jaxnas.base import Candidate, Estimator, Key, Population, Stage, Task
from jaxnas.morphisms import width
from jaxnas.stages.edits import edits
from jaxnas.stages.judge import by_parent, judge, learn
from jaxnas.stages.lessons import calibrate
from jaxnas.stages.propose import expand, prunes, splits

_JUDGED = ('add channels', 'add units', 'remove channels', 'remove units')


def ranked(
  estimator: Estimator,
  task: Task,
  *,
  learn_examples: int = 512,
  score_examples: int = 512,
  keep: int = 1,
  channels: int = 3,
  units: float = 0.1,
  least: int = 2,
) -> Stage:
  """Children of every parent by `edits`, of which a judge ranks what it can.

  Not of the paper: ECToNAS (arXiv 2403.05123) copies the first channels, drops
  the least, and trains each such child to know what it is worth. Here every
  channel's split and prune is scored in one pass, and of each group the best
  few become one edit, split along learned directions. Of each kind only the
  `keep` edits with the best prediction are made, so a tournament has fewer
  entries to train. All other edits are as they were.

  A member of the population becomes one candidate for each edit left.

  Args:
    estimator: such as `jaxnas.estimators.gauss_newton()`.
    task: gives the examples.
    learn_examples: to learn directions from, for each parent.
    score_examples: to score on, for each parent.
    keep: edits left of each kind that is judged.
    channels: as of `edits`.
    units: as of `edits`.
    least: as of `edits`.

  Raises:
    ValueError: for `keep` below one, and as `edits`.
  """
  if keep < 1:
    raise ValueError(f'ranked: keep must be at least 1, got {keep}.')
  steps = {'channels': channels, 'units': units, 'least': least}
  every = edits(**steps)

  def others(net):
    return (move for move in every(net) if move.kind not in _JUDGED)

  def chosen(key: Key, population: Population) -> Population:
    del key
    made = []
    for _, rows in by_parent(population.members):
      found = _united([population.members[i] for i in rows], **steps)
      made.extend(_best(found, keep))
    return population._replace(members=tuple(made))

  judged = combine.chain(
    expand(splits(), prunes()),
    learn(estimator, task, examples=learn_examples),
    judge(estimator, task, examples=score_examples),
    combine.stage(chosen),
  )
  plain = combine.chain(expand(others), calibrate(task))
  return _both(plain, judged)


def _both(*inner: Stage) -> Stage:
  """What each of several stages makes of the same members, side by side."""

  def init(population: Population):
    return tuple(stage.init(population) for stage in inner)

  def update(key: Key, population: Population, state):
    made, states, spent = [], [], population.spent
    for stage, held in zip(inner, state, strict=True):
      given = population._replace(spent=spent)
      part, held = stage.update(key, given, held)
      made.extend(part.members)
      states.append(held)
      spent = part.spent
    after = population._replace(members=tuple(made), spent=spent)
    return after, tuple(states)

  return Stage(init, update, 'both')


def _united(pending: list[Candidate], channels, units, least):
  """One candidate for each group and direction, of the best single moves."""
  spec, made = pending[0].net.spec, []
  pending = [m for m in pending if m.move is not None]

  def place(member: Candidate) -> tuple[str, str]:
    what = 'add' if isinstance(member.move, width.Split) else 'remove'
    return what, member.move.channels[0][0]

  order = sorted(pending, key=place)
  for (what, name), found in itertools.groupby(order, place):
    group = groups.table(spec).groups[name]
    conv = isinstance(spec.by_name[group.writers[0]].op, specs.Conv)
    by = channels if conv else max(least, int(units * group.size))
    best = sorted(found, key=lambda m: m.metrics['predicted'])[:by]
    if len(best) < by or (what == 'remove' and group.size <= by):
      continue
    move, theta = morphisms.unite(
      best[0].net, [m.move for m in best], [m.theta for m in best]
    )
    kind = f'{what} {"channels" if conv else "units"}'
    predicted = sum(m.metrics['predicted'] for m in best)
    metrics = {
      name: value
      for name, value in best[0].metrics.items()
      if name not in ('linear', 'error', 'coefficients')
    }
    made.append(
      best[0]._replace(
        move=morphisms.label(kind, move),
        theta=theta,
        metrics={**metrics, 'predicted': predicted},
      )
    )
  return made


def _best(members: list[Candidate], keep: int) -> list[Candidate]:
  """Of each kind the members with the least loss predicted."""
  order = sorted(members, key=lambda m: (m.move.kind, m.metrics['predicted']))
  return [
    member
    for _, found in itertools.groupby(order, lambda m: m.move.kind)
    for member in itertools.islice(found, keep)
  ]
