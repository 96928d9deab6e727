"""ECToNAS: exhaustive edits, brief training, two knock-out tournaments."""

from collections.abc import Mapping
from typing import Any

import optax

from jaxnas import combine, stages
from jaxnas.base import Population, Stage, Task

# Epochs of training after an edit (official `runtime_parameters.py`).
RECOVERY = {
  'identity': 0.1,
  'add channels': 0.1,
  'add units': 0.1,
  'add dense': 0.1,
  'add block': 0.25,
  'remove channels': 1.0,
  'remove units': 1.0,
  'remove dense': 1.0,
  'remove block': 1.0,
}


def ectonas(
  lesson: stages.Lessons,
  *,
  propose: Stage | None = None,
  alpha: float = 1.0,
  warmup: float = 10,
  epochs: float = 5,
  rounds: int = 3,
  parents: int = 2,
  recovery: Mapping[str, float] = RECOVERY,
  match: stages.Match = stages.strongest,
  last: int = 3,
  keep: Stage | None = None,
  screen: Stage | None = None,
) -> Stage:
  """A generation of "ECToNAS: Evolutionary Cross-Topology NAS".

  arXiv 2403.05123; the rules are those of the official code (commit 6aa476a,
  `main.py`), since its constants may not be the paper's. One generation

  1. (the first) trains the start network for `warmup` epochs;
  2. makes a child of every parent for each of its edits, drops those that are
     degenerate, and trains each for as long as its kind of edit asks for;
  3. holds a bracket within each kind, by score alone, in which every entry is
     trained for `epochs` before each match;
  4. holds another across the winners, if they are more than `parents`, by
     `relative(alpha)`; its winners are the next parents.

  Departs from the official code, where it has defects or costs (see
  `official` for them): edits are the function-preserving ones of
  `stages.edits`, the optimizer's state moves with them, scores are of the
  validation split, and the budget is the lesson's: hard.

  Args:
    lesson: `lesson(epochs) -> Stage` trains and records, such as
      `stages.lessons(task, tx, batch=32, budget=1000)`.
    propose: a stage that makes of parents children with pending moves; None
      for `stages.expand(stages.edits())`. With `stages.calibrate(task)` behind
      that, edits take into account what one forward pass tells.
    alpha: greediness across kinds: 1 for accuracy alone, 0 for size alone.
    warmup: epochs before the first generation.
    epochs: of training before each match.
    rounds: of a bracket.
    parents: kept at most.
    recovery: epochs after an edit, by its kind.
    match: who wins a match; `stages.anyone` is the official `random_mode`.
    last: how many scores of a candidate's history count.
    keep: the stage that drops children; None for those not `stages.sound()`.
    screen: a stage on the children after their recovery, such as
      `stages.top(6, stages.rolling)`, so that brackets train fewer; None, as
      officially, for all.

  Returns:
    A stage, one generation; from n members come at most `parents`, and the
    members themselves where the budget allows no child its recovery.

  Example:
    >>> import jax, optax
    >>> from jaxnas import base, network, run, tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(seeds.mlp(task.shape, (4,), 10), jax.random.key(0))
    >>> lesson = stages.lessons(task, optax.adam(1e-2), batch=64, budget=2)
    >>> stage = ectonas(lesson, warmup=1, epochs=1)
    >>> start = base.Population((base.Candidate(net),))
    >>> last, _ = run(jax.random.key(1), stage, start, until=1)
    >>> len(last.members), last.spent.examples <= 2 * 1168
    (2, True)
  """
  greedy = stages.relative(1.0, last=last)
  weighted = stages.relative(alpha, last=last)
  keep = keep or stages.keep(stages.sound(), 'sound')

  def need(member) -> float:
    return recovery[stages.kind(member)]

  def bracket(fitness, winners) -> Stage:
    return stages.bracket(
      lesson(epochs),
      fitness,
      rounds=rounds,
      winners=winners,
      match=match,
    )

  def kinds(population: Population) -> int:
    return len(set(map(stages.kind, population.members)))

  def within(winners: int) -> Stage:
    return combine.group_by(stages.kind, bracket(greedy, winners))

  children = combine.chain(
    propose or stages.expand(stages.edits()),
    stages.realise(),
    keep,
    lesson(need),
    keep,
    stages.keep(stages.retrained, 'retrained'),
    *([screen] if screen else []),
    combine.when(lambda p: kinds(p) < 2, within(parents)),
    combine.when(lambda p: kinds(p) >= 2, within(1)),
    combine.when(
      lambda p: len(p.members) > parents, bracket(weighted, parents)
    ),
    name='children',
  )
  return combine.chain(
    combine.when(lambda p: p.generation == 0, lesson(warmup)),
    stages.note_parents(last=last),
    stages.or_parents(children),
    name='ectonas',
  )


def official(
  task: Task,
  tx: optax.GradientTransformation,
  *,
  batch: int = 32,
  budget: float = 1000,
  **settings: Any,
) -> Stage:
  """A generation of `ectonas` that counts and selects as the official code.

  Scores are *training* accuracy, added blocks pool (always by maximum: its
  "random" choice has one outcome), and the budget is looked at between
  generations only, so that it is overshot: by about a tenth at its default.

  Departs from it still: training accuracy is measured after an epoch and not
  while it goes on; a part of an epoch costs what was trained, whole batches,
  where 0.1 is counted there; the optimizer's state is kept; and what an edit
  does to weights is this project's, not its truncated SVD, signed scales and
  kernels of ones (specification, B1 to B8).

  Args:
    task: the task.
    tx: the optimizer; there plain gradient descent with a rate of 0.01.
    batch: examples in a step.
    budget: epochs, of all candidates together.
    **settings: of `ectonas`.

  Example:
    >>> import optax
    >>> from jaxnas import tasks
    >>> official(tasks.digits(), optax.sgd(0.01)).name
    'when(ectonas)'
  """
  lesson = stages.lessons(task, tx, batch=batch, split='train')
  settings = {'propose': stages.expand(stages.edits(pool='max')), **settings}
  return combine.when(
    stages.unspent(task, batch=batch, budget=budget),
    ectonas(lesson, **settings),
  )
