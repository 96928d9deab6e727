"""Population based training, and what it is compared with."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxnas import combine, mixing, selection, stages
from jaxnas.algorithms.pbt_nas import evolving
from jaxnas.base import Learner, Stage


def pbt(
  learner: Learner,
  priors: Mapping[str, mixing.Prior],
  *,
  pairing: selection.Pairing | None = None,
  by: str = 'fitness',
  factors: tuple[float, float] = (0.8, 1.2),
  resample: float = 0.0,
  every: int = 1,
  **where: Any,
) -> Stage:
  """One round of population based training.

  Jaderberg et al. (2017), arXiv 1711.09846. Members that a rule of selection
  gives up copy another with all it has (exploit), and then their
  hyper-parameters are perturbed, or drawn anew (explore). The paper's rules are
  `selection.copies`, truncation, of a fifth; `selection.duels`, the binary
  tournament; and `selection.significant_duels`, the t-test on the last scores,
  for which `by` names a metric of shape (K,). All members are at one round,
  while the paper's workers need not wait for each other.

  Args:
    learner: what the members are.
    priors: of the hyper-parameters; the ranges they are kept in.
    pairing: who copies whom; None for `selection.copies(0.2)`.
    by: the metric it reads.
    factors: by one of which a hyper-parameter is multiplied.
    resample: probability that it is drawn from its prior instead.
    every: rounds from one exploit to the next.
    **where: `over` and `mesh`, see `stages.advance`.

  Raises:
    ValueError: for `every` below one.

  Example:
    >>> from jaxnas import learners
    >>> from jaxnas.run import run
    >>> learner = learners.plain()
    >>> start = stages.members(jax.random.key(0), learner, 10,
    ...                        learners.toys.START)
    >>> stage = pbt(learner, learners.toys.RANGE)
    >>> last, _ = run(jax.random.key(1), stage, start, 5)
    >>> float(last.member.hyper['h'].min()) < 0.9
    True
  """
  child = mixing.explore(priors, factors=factors, resample=resample)
  child = mixing.following(mixing.copy(), child)
  pairing = selection.copies() if pairing is None else pairing
  change = stages.replace(learner, pairing, child, by=by)
  return evolving(learner, change, every=every, **where)


def exploit_only(
  learner: Learner,
  *,
  pairing: selection.Pairing | None = None,
  by: str = 'fitness',
  every: int = 1,
  **where: Any,
) -> Stage:
  """The control that copies and never explores.

  Args:
    learner: what the members are.
    pairing: as of `pbt`.
    by: as of `pbt`.
    every: as of `pbt`.
    **where: `over` and `mesh`, see `stages.advance`.
  """
  pairing = selection.copies() if pairing is None else pairing
  change = stages.replace(learner, pairing, mixing.copy(), by=by)
  return evolving(learner, change, every=every, **where)


def explore_only(
  learner: Learner,
  priors: Mapping[str, mixing.Prior],
  *,
  factors: tuple[float, float] = (0.8, 1.2),
  resample: float = 0.0,
  every: int = 1,
  **where: Any,
) -> Stage:
  """The control in which every member explores, and none is copied.

  Args:
    learner: what the members are.
    priors: as of `pbt`.
    factors: as of `pbt`.
    resample: as of `pbt`.
    every: as of `pbt`.
    **where: `over` and `mesh`, see `stages.advance`.
  """
  child = mixing.explore(priors, factors=factors, resample=resample)

  def init(*drawn):
    return learner.init(*drawn, learner.data)

  def explore(key, members):
    keys = stages.keys_of(key, len(members.parents))
    make = jax.vmap(lambda key, own: child(key, own, own, init))
    return members._replace(member=make(keys, members.member))

  change = combine.stage(explore)
  return evolving(learner, change, every=every, **where)
