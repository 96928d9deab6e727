"""EcoNAS: evolution on a ladder of ever longer training."""

from collections.abc import Sequence

import jax

from jaxnas import combine, stages
from jaxnas.base import ArraySpace, Stage, check_counts
from jaxnas.stages import trials
from jaxnas.stages.rungs import Mutation


def econas(
  space: ArraySpace,
  answer: Stage,
  *,
  first: int = 16,
  promote: Sequence[int] = (8, 4),
  mothers: Sequence[int] = (6, 5, 5),
  share: float = 0.25,
  life: int = 9,
  mutate: Mutation | None = None,
) -> Stage:
  """Hierarchical proxy evolution, "EcoNAS" (CVPR 2020, arXiv 2001.01233).

  The rules and constants are those of the official code (commit 334bf5d,
  `search/main.py`), since those of the paper may differ. All networks are
  trained for one rung, E0 epochs; only the best go on, from where they are.
  Generation 0 asks `first` random genotypes. Each later one

  1. looks at the networks that were trained in the last `life` generations, in
     three sets by the rung that they have reached;
  2. lets the best 8 of the first and the best 4 of the second go on;
  3. draws 6, 5 and 5 mothers from the sets, each the best of a quarter of its
     set (and one more) drawn with replacement, and makes one child of each;
  4. trains those that go on and the children, for a rung.

  The answer is the best of the last rung (`stages.leaders`). With
  `promote=()`, `mothers=(16,)` and rungs of 35 epochs in the place of 20 this
  is the paper's control, the reliable proxy alone, at the same cost.

  Departs from the official code where that has defects: mothers keep their
  genotypes, the list of the best is sorted, every draw has a seed. What a rung
  costs, and what is scored, is up to `answer`.

  Args:
    space: what is searched.
    answer: trains or looks up what is pending, such as
      `stages.climb(space, stages.by_rung(table, ['val_ep12', 'val_ep200']))`
      or `stages.teach(space, trainer)`.
    first: random genotypes.
    promote: how many go on from rung 1, 2, ...; one number less than rungs.
    mothers: how many come from rung 1, 2, ...
    share: of a set that enters a tournament.
    life: generations for which a network counts after its last training; the
      official code ignores those that were last trained 10 cycles ago.
    mutate: makes children; None for `jax.vmap(space.mutate)`. That of
      `stages.best_of` makes several, of which a proxy chooses one: a rung
      before the first.

  Returns:
    A stage, one generation; it takes `econas_slots` slots.

  Raises:
    ValueError: for numbers with which no ladder can be climbed.

  Example:
    >>> from jaxnas import run, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> answer = stages.climb(
    ...     space, lambda key, genotype, index, rung: (index - 100 / rung, 20))
    >>> stage = econas(space, answer)
    >>> start = trials.start(space, 16 + 3 * 28, metrics=stages.RUNGS)
    >>> last, _ = run(jax.random.key(0), stage, start, 4)
    >>> [int((last.metrics['rung'] == rung).sum()) for rung in (1, 2, 3)]
    [49, 24, 8]
  """
  check_counts('econas', first=first, life=life)
  rungs = len(mothers)
  if not rungs or len(promote) != rungs - 1:
    raise ValueError(
      f'econas: {rungs} rungs have mothers, {tuple(mothers)}, and '
      f'{len(promote)} are gone on from, {tuple(promote)}; give one number for '
      'each rung, and one for each but the last.'
    )
  slots = econas_slots(promote, mothers)
  within = life * slots
  # Fewer are never in view in part.
  oldest = first if first > slots else 0
  steps = []
  if any(promote):
    steps = [stages.onward(promote, within, founders=oldest)]
  cycle = combine.chain(
    *steps,
    stages.breed(
      mutate or jax.vmap(space.mutate),
      mothers,
      within,
      founders=oldest,
      share=share,
    ),
    answer,
  )
  founders = combine.chain(trials.ask(trials.sampled(space, first)), answer)
  return combine.chain(
    combine.when(lambda held: held.generation == 0, founders),
    combine.when(lambda held: held.generation > 0, cycle),
    name='econas',
  )


def econas_slots(promote: Sequence[int], mothers: Sequence[int]) -> int:
  """How many slots a generation of `econas` takes, but for the first.

  Example:
    >>> econas_slots((8, 4), (6, 5, 5))
    28
  """
  return sum(promote) + sum(mothers)


def econas_memory(
  first: int, promote: Sequence[int], mothers: Sequence[int], life: int
) -> int:
  """How many of the last slots a generation of `econas` may go on from.

  Example:
    >>> econas_memory(16, (8, 4), (6, 5, 5), life=9)
    252
    >>> econas_memory(50, (8, 4), (6, 5, 5), life=9)
    274
  """
  slots = econas_slots(promote, mothers)
  return (life - 1) * slots + max(first, slots)


def halving(
  space: ArraySpace, answer: Stage, *, first: int = 16, keep: Sequence[int]
) -> Stage:
  """Successive halving: many are begun, the best go on, and again.

  Jamieson and Talwalkar (2016, arXiv 1502.07943), a bracket in a generation:
  `first` random genotypes are trained for a rung, the best `keep[0]` of them
  for another, and so on. The control of `econas` that learns nothing from one
  bracket to the next; with `keep=(8, 4)` it costs the same.

  Args:
    space: what is searched.
    answer: trains or looks up what is pending, as of `econas`.
    first: random genotypes in a bracket.
    keep: how many go on to rung 2, 3, ...

  Returns:
    A stage, one generation; it takes `first + sum(keep)` slots.

  Raises:
    ValueError: unless each number is at most the one before it.

  Example:
    >>> from jaxnas import run, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> answer = stages.climb(
    ...     space, lambda key, genotype, index, rung: (index, 20))
    >>> stage = halving(space, answer, first=4, keep=(2, 1))
    >>> start = trials.start(space, 14, metrics=stages.RUNGS)
    >>> last, _ = run(jax.random.key(0), stage, start, 2)
    >>> [int((last.metrics['rung'] == rung).sum()) for rung in (1, 2, 3)]
    [8, 4, 2]
  """
  check_counts('halving', first=first, keep=min(keep, default=0))
  counts = (first, *keep)
  if list(counts) != sorted(counts, reverse=True):
    raise ValueError(
      f'halving: of {first} are kept {tuple(keep)}; give numbers that do not '
      'grow.'
    )
  steps = [trials.ask(trials.sampled(space, first)), answer]
  for place, count in enumerate(keep):
    choice = (*(0,) * place, count)
    steps += [stages.onward(choice, counts[place]), answer]
  return combine.chain(*steps, name='halving')
