"""Networks that mix while they train, and what they are compared with."""

from typing import Any

from jaxnas import combine, mixing, selection, stages
from jaxnas.base import Learner, Stage


def evolving(
  learner: Learner, change: Stage, *, every: int = 1, **where: Any
) -> Stage:
  """A round of an array population: change, learn, measure.

  The first round changes nothing, since nothing is measured yet; so the last
  one ends with all members measured.

  Args:
    learner: what the members are.
    change: makes children, such as `stages.replace(...)`.
    every: rounds from one change to the next.
    **where: `over` and `mesh` of `stages.advance` and `stages.assess`.

  Raises:
    ValueError: for `every` below one.
  """
  if every < 1:
    raise ValueError(f'evolving: every must be at least 1, got {every!r}.')

  def due(members):
    return (members.generation > 0) & (members.generation % every == 0)

  return combine.chain(
    combine.when(due, change),
    stages.advance(learner, **where),
    stages.assess(learner, **where),
  )


def pbt_nas(
  learner: Learner,
  *,
  fraction: float = 0.25,
  probability: float = 0.25,
  keep: float = 0.4,
  noise: float = 0.1,
  moments: str = 'zero',
  mixed: bool = True,
  every: int = 1,
  **where: Any,
) -> Stage:
  """One round of PBT-NAS.

  Chebykin, Dushatskiy, Alderliesten and Bosman (2023), "Shrink-Perturb Improves
  Architecture Mixing during Population Based Training for Neural Architecture
  Search", arXiv 2307.15621. The worst quarter makes way for children of two
  of the best quarter: the fitter's network, each gene of which comes with a
  quarter's chance from the other, its weights shrunk and perturbed. With (keep,
  noise) = (1, 0) weights are copied and with (0, 1) drawn anew, the paper's
  ablations.

  Departs from the official code in what `jaxnas.mixing.mix` says, and in that
  the answer is the best of the last round (`stages.champion`), as it is there
  for control: the best checkpoint ever, which it reports of generators, is not
  kept, and no soup is made of the last ones. Its baseline of random search with
  the whole network shrunk and perturbed each round has no counterpart here.

  Args:
    learner: what the members are.
    fraction: of members that are replaced, and that are parents.
    probability: of a gene to come from the second parent.
    keep: what remains of the weights that come.
    noise: of fresh weights that is added.
    moments: of the optimizer for those, see `jaxnas.mixing.mix`.
    mixed: False for the ablation in which the fitter parent is both.
    every: rounds from one replacement to the next.
    **where: `over` and `mesh`, see `stages.advance`.

  Raises:
    ValueError: for `every` below one, and for what `mixing.mix` and
      `selection.pairs` refuse.

  Example:
    >>> import jax
    >>> from jaxnas import learners
    >>> from jaxnas.run import run
    >>> learner = learners.teacher(jax.random.key(0), slots=4, steps=5)
    >>> start = stages.members(jax.random.key(1), learner, 8)
    >>> last, _ = run(jax.random.key(2), pbt_nas(learner), start, 2)
    >>> last.spent.examples
    3840
  """
  child = mixing.mix(
    learner.genes,
    probability=probability,
    keep=keep,
    noise=noise,
    moments=moments,
  )
  child = child if mixed else mixing.itself(child)
  change = stages.replace(learner, selection.pairs(fraction), child)
  return evolving(learner, change, every=every, **where)


def mutation_only(
  learner: Learner,
  *,
  fraction: float = 0.25,
  child: mixing.Child | None = None,
  every: int = 1,
  **where: Any,
) -> Stage:
  """The baseline without a second parent.

  A child is that of a member drawn from the best part. With
  `spaces.slots.morph(...)` it computes what its parent does and has room for
  more: PBT-NAS with function-preserving children, which is no paper's method.

  Args:
    learner: what the members are.
    fraction: of members that are replaced, and that are parents.
    child: makes a child of one parent; None for `jaxnas.mixing.mutate`.
    every: rounds from one replacement to the next.
    **where: `over` and `mesh`, see `stages.advance`.

  Raises:
    ValueError: for `every` below one, and for what `selection.copies` refuses.
  """
  child = mixing.mutate(learner.genes) if child is None else child
  change = stages.replace(learner, selection.copies(fraction), child)
  return evolving(learner, change, every=every, **where)


def train_only(learner: Learner, **where: Any) -> Stage:
  """Random search: members learn and are measured, and none is replaced.

  The first population is the sample; the best of it is the answer.

  Args:
    learner: what the members are.
    **where: `over` and `mesh`, see `stages.advance`.
  """
  return combine.chain(
    stages.advance(learner, **where), stages.assess(learner, **where)
  )
