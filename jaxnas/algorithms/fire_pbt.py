"""Population based training that looks further than the next round."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxnas import combine, mixing, stages
from jaxnas.base import Learner, Stage


def fire_pbt(
  learner: Learner,
  priors: Mapping[str, mixing.Prior],
  *,
  sizes: Sequence[int] = (8, 8),
  evaluators: int = 6,
  points: int = 10,
  factors: tuple[float, float] = (0.5, 2.0),
  resample: float = 0.0,
  fraction: float = 0.25,
  most: int = 3,
  after: int = 1,
  level: float = 0.01,
  **where: Any,
) -> Stage:
  """One round of FIRE PBT.

  Dalibard and Jaderberg (2021), "Faster Improvement Rate Population Based
  Training", arXiv 2109.13800: a greedy population, long-term ones that are
  judged by how fast their weights improve under the greedy one's settings, and
  evaluators that find that out (`jaxnas.stages.fire`, which says what is known
  of the paper and what of a re-implementation alone). The answer is the best
  of the greedy population, `jaxnas.stages.champion`.

  A round is `points` rounds of the learner, so that any learner has a curve
  without measuring itself on the way. It decides on the host, once a round: it
  is for `jaxnas.run.run`, and not for `jaxnas.run.rounds`.

  Args:
    learner: what the members are; its round is a piece of one here.
    priors: of the hyper-parameters; the ranges they are kept in.
    sizes: of the greedy population and the long-term ones, each two or more.
    evaluators: how many; with the sizes, the members.
    points: of a round's curve.
    factors: by one of which a hyper-parameter is multiplied.
    resample: probability that it is drawn from its prior instead.
    fraction: of a population that is replaced, and that may be copied; of each
      one member at least.
    most: rounds that an evaluator may run without an overlap.
    after: rounds before the first evaluation.
    level: of the sign test.
    **where: `over` and `mesh`, see `stages.advance`.

  Example:
    >>> import jax
    >>> from jaxnas import learners
    >>> from jaxnas.run import run
    >>> learner = learners.deceptive(steps=2)
    >>> start = stages.members(jax.random.key(0), learner, 22,
    ...                        learners.toys.START)
    >>> stage = fire_pbt(learner, learners.toys.RANGE)
    >>> last, state = run(jax.random.key(1), stage, start, 3)
    >>> sum(e is not None for e in state[0].evaluations)
    6
    >>> stages.champion(last, first=8) < 8
    True
  """
  change = stages.fire(
    learner,
    mixing.explore(priors, factors=factors, resample=resample),
    sizes=sizes,
    evaluators=evaluators,
    fraction=fraction,
    most=most,
    after=after,
    level=level,
  )
  learned = combine.chain(
    stages.advance(learner, **where), stages.assess(learner, **where)
  )
  return combine.chain(
    combine.when(lambda members: members.generation > 0, change),
    stages.pieces(points, learned),
  )
