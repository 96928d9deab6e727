"""Learning curves compared from the level at which they meet.

What FIRE PBT (Dalibard and Jaderberg 2021, arXiv 2109.13800) reads off curves:
of two, which gets further from the same score. A curve is a vector of scores,
larger being better, at equal distances in time. All is NumPy, for the host,
and a function of its arguments. The definitions are those of a published
re-implementation, PBT-Zoo, which quotes the paper's criteria; what is known
from there alone is said where it is.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Overlap(NamedTuple):
  """Where two curves run side by side from the same level.

  Attributes:
    first: where in the first curve the overlap begins.
    second: where in the second.
    length: points of either.
  """

  first: int
  second: int
  length: int


def _curve(name: str, curve: ArrayLike) -> np.ndarray:
  found = np.asarray(curve, float)
  if found.ndim != 1 or not len(found) or not np.isfinite(found).all():
    raise ValueError(
      f'{name}: a curve is (n,) finite scores, n >= 1; got {found!r}.'
    )
  return found


@functools.lru_cache(maxsize=64)
def _smoother(points: int, length: float, noise: float) -> np.ndarray:
  """(n, n) that maps a curve to the posterior mean at its own points."""
  at = np.arange(points) / points
  kernel = np.exp(-np.square((at[:, None] - at) / length) / 2)
  root = np.linalg.cholesky(kernel + noise * np.eye(points))
  half = np.linalg.solve(root, kernel)
  return np.linalg.solve(root.T, half).T


def smooth(
  curve: ArrayLike, *, length: float = 1.0, noise: float = 1e-8
) -> np.ndarray:
  """A curve without its noise: the mean of a Gaussian process given it.

  Gaussian-process regression of the standardised scores on the time, which
  runs from 0 to 1, with the kernel `exp(-(t - u)^2 / (2 length^2))`. That it is
  such a regression is known; the kernel's form is that of the
  re-implementation, which takes a library's defaults (length 1 and noise 1e-10
  before anything is fitted). Here nothing is fitted, so that smoothing is
  linear in the curve, and `smooth(c + a) = smooth(c) + a`.

  Args:
    curve: (n,) scores.
    length: of the kernel, in parts of the curve.
    noise: variance of the noise, in that of the curve. With the defaults a
      curve keeps about six degrees of freedom, however long it is.

  Returns:
    (n,) smoothed scores.

  Raises:
    ValueError: for what is no curve, and length or noise of zero or less.

  Example:
    >>> smooth([1.0, 1.0, 1.0]).tolist()
    [1.0, 1.0, 1.0]
  """
  if not (length > 0 and noise > 0):
    raise ValueError(
      f'smooth: length and noise must be above 0, got {length!r}, {noise!r}.'
    )
  found = _curve('smooth', curve)
  mean, scale = found.mean(), found.std()
  if not scale > 0:
    return found
  matrix = _smoother(len(found), float(length), float(noise))
  return mean + scale * (matrix @ ((found - mean) / scale))


def align(first: ArrayLike, second: ArrayLike) -> Overlap | None:
  """Where two smoothed curves overlap, from the level at which both have been.

  Of the curve that starts lower it is what follows from where it first reaches
  the start of the other, of the other it is all; both as long as the shorter.

  Args:
    first: (n,) smoothed scores.
    second: (m,) smoothed scores.

  Returns:
    The overlap, or None where the lower curve never gets there.

  Example:
    >>> align([0.0, 1.0, 2.0, 3.0], [2.0, 4.0, 8.0])
    Overlap(first=2, second=0, length=2)
    >>> align([2.0, 4.0, 8.0], [0.0, 1.0])
  """
  one, two = _curve('align', first), _curve('align', second)
  if one[0] < two[0]:
    reached = np.flatnonzero(one >= two[0])
    start = (reached[:1], np.array([0]))
  else:
    reached = np.flatnonzero(two >= one[0])
    start = (np.array([0]), reached[:1])
  if not len(reached):
    return None
  i, j = int(start[0][0]), int(start[1][0])
  return Overlap(i, j, min(len(one) - i, len(two) - j))


def _gain(one, two, overlap: Overlap) -> float:
  i, j, length = overlap
  return float(one[i : i + length].max() - two[j : j + length].max())


def best_score_diff(first: ArrayLike, second: ArrayLike, **kernel) -> float:
  """How much further the first curve gets than the second, from one level.

  The difference of the best scores, as measured, within the overlap of the
  smoothed curves. Where there is none and the first lies above the second
  altogether, it is lowered by ten offsets from min(first) - max(second) on, in
  equal steps towards min(first) - min(second) exclusively, and the largest
  difference counts, if above 0. Where there is none otherwise, it is 0. The
  offsets are known from the re-implementation alone. Not antisymmetric.

  Args:
    first: (n,) scores.
    second: (m,) scores.
    **kernel: of `smooth`.

  Example:
    >>> best_score_diff([1.9, 3.0, 5.0], [2.0, 3.0, 4.0])
    2.0
  """
  one = _curve('best_score_diff', first)
  two = _curve('best_score_diff', second)
  return _difference(one, two, smooth(one, **kernel), smooth(two, **kernel))


def _difference(one, two, smooth_one, smooth_two) -> float:
  overlap = align(smooth_one, smooth_two)
  if overlap is not None:
    return _gain(one, two, overlap)
  least, most = one.min() - two.max(), one.min() - two.min()
  # A curve of one level has no offsets between the two.
  if least <= 0 or np.allclose(least, most):
    return 0.0
  best = 0.0
  for part in range(10):
    lower = least + (most - least) * part / 10
    overlap = align(smooth_one - lower, smooth_two)
    if overlap is not None:
      best = max(best, _gain(one - lower, two, overlap))
  return best


# More than any level with which a probability is compared.
NEVER = 2.0


def sign_test(first: ArrayLike, second: ArrayLike, **kernel) -> float:
  """The chance of so many points of the first above the second if alike.

  One-sided sign test over the overlap; equal points count against the first.
  Without an overlap it is 0 where the first lies above the second altogether,
  `NEVER` where below, and else that of the curves from their starts, which is
  known from the re-implementation alone.

  Args:
    first: (n,) scores.
    second: (m,) scores.
    **kernel: of `smooth`.

  Returns:
    A probability, or `NEVER`.

  Example:
    >>> sign_test([0.9, 3.0, 5.0], [1.0, 2.0, 4.0])
    0.25
  """
  one, two = _curve('sign_test', first), _curve('sign_test', second)
  overlap = align(smooth(one, **kernel), smooth(two, **kernel))
  if overlap is None:
    if one.min() > two.max():
      return 0.0
    if one.max() < two.min():
      return NEVER
    overlap = Overlap(0, 0, min(len(one), len(two)))
  i, j, length = overlap
  above = int((one[i : i + length] > two[j : j + length]).sum())
  tail = sum(math.comb(length, k) for k in range(above, length + 1))
  return tail / 2**length


def fire_fitness(curves: Sequence[ArrayLike | None], **kernel) -> np.ndarray:
  """How much further each curve gets than all others together.

  The fitness of members of FIRE PBT's long-term populations: the sum of
  `best_score_diff` over the others.

  Args:
    curves: of M members; None, or an empty one, where there is none.
    **kernel: of `smooth`.

  Returns:
    (M,) fitness, NaN for those without a curve.

  Example:
    >>> fire_fitness([[0.0, 1.0, 2.0], [0.5, 3.0, 4.0], None]).tolist()
    [-1.0, 1.0, nan]
  """
  held = {
    i: (_curve('fire_fitness', curve), smooth(curve, **kernel))
    for i, curve in enumerate(curves)
    if curve is not None and len(curve)
  }
  found = np.full(len(curves), np.nan)
  for i, (one, smooth_one) in held.items():
    found[i] = sum(
      _difference(one, two, smooth_one, smooth_two)
      for j, (two, smooth_two) in held.items()
      if j != i
    )
  return found


def verdict(
  curve: ArrayLike,
  child: ArrayLike,
  rounds: int,
  *,
  most: int = 3,
  level: float = 0.01,
  child_lost: bool = False,
  parent_lost: bool = False,
  overwritten: bool = False,
  **kernel,
) -> str:
  """What becomes of an evaluator of FIRE PBT after a round.

  It trains the weights of its parent, of a long-term population, with the
  settings of its child, of the population below. It succeeds where its curve
  gets further than the child's (`best_score_diff` above 0, and `sign_test`
  below the level). It is stopped where

  1. the curves do not overlap after the most rounds,
  2. they do, and the test gives more than `level + max(0, 1 - rounds / most)`,
  3. the child, or the parent, has copied another member since,
  4. another evaluator overwrote the child in this round, and it is no better
     than that one; this rule is the re-implementation's addition.

  Success comes before the rules, except where the child is gone; this order
  too is known from the re-implementation alone.

  Args:
    curve: (n,) scores of the evaluator.
    child: (m,) scores of the child since it last copied another member, or
      those of the evaluator that overwrote it.
    rounds: that the evaluator has run.
    most: rounds it may run without an overlap.
    level: of the test.
    child_lost: whether the child copied another member.
    parent_lost: whether the parent did.
    overwritten: whether the child was overwritten in this round.
    **kernel: of `smooth`.

  Returns:
    `'running'`, `'success'` or `'stopped'`.

  Example:
    >>> low, high = np.linspace(0, 1, 10), np.linspace(-0.1, 2, 10)
    >>> verdict(high, low, 1), verdict(low, high, 1), verdict(low, high + 9, 1)
    ('success', 'stopped', 'running')
  """
  if child_lost:
    return 'stopped'
  p = sign_test(curve, child, **kernel)
  if p < level and best_score_diff(curve, child, **kernel) > 0:
    return 'success'
  if parent_lost or overwritten:
    return 'stopped'
  if align(smooth(curve, **kernel), smooth(child, **kernel)) is None:
    return 'stopped' if rounds >= most else 'running'
  allowed = level + max(0.0, 1 - rounds / most)
  return 'stopped' if p > allowed else 'running'
