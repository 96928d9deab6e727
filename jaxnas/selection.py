"""Selection rules: `(key, scores) -> indices`, larger scores being better.

A rule obeys the laws of `jaxnas.testing.check_rule`: its indices are in range
and a function of key and scores, a strictly better score never hurts, and NaN,
the score of a member that diverged, never wins.

Scores are (n,), or (n, objectives) for the rules of several objectives. NumPy
scores are ranked on the host, with draws of a NumPy generator, and compile
nothing; JAX scores are ranked by `jax.numpy` and drawn for by `jax.random`, so
that rules of fixed count run under `jit`, `vmap` and `scan`. The two rank alike
and draw differently.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import base

Rule = Callable[[base.Key, Any], Any]


def _space(scores: Any) -> Any:
  """The module whose functions the scores are for."""
  return jnp if isinstance(scores, jax.Array) else np


def _positive(name: str, **counts: int) -> None:
  for field, count in counts.items():
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
      raise ValueError(
        f'{name}: {field} must be a whole number of at least 1, got {count!r}.'
      )


def _vector(name: str, scores: Any) -> Any:
  """(n,) scores as floats; refuses what one cannot rank."""
  xp = _space(scores)
  scores = xp.asarray(scores, float)
  if scores.ndim != 1 or not scores.shape[0]:
    raise ValueError(
      f'{name}: it ranks one score for each of some members, (n,), got scores '
      f'of shape {scores.shape}; for several objectives take nsga2, front or '
      'crowded_tournament.'
    )
  return scores


def _matrix(name: str, scores: Any) -> Any:
  """(n, objectives) scores as floats; one score is one objective."""
  xp = _space(scores)
  scores = xp.asarray(scores, float)
  if scores.ndim == 1:
    scores = scores[:, None]
  if scores.ndim != 2 or not all(scores.shape):
    raise ValueError(
      f'{name}: scores must be (n, objectives), at least one of each, got '
      f'shape {scores.shape}.'
    )
  return scores


def order(scores: Any) -> Any:
  """The members from best to worst.

  Args:
    scores: (n,), larger is better; NaN comes last, equals in their order.

  Returns:
    (n,) indices.

  Example:
    >>> order(np.array([1.0, np.nan, 3.0, 1.0])).tolist()
    [2, 0, 3, 1]
  """
  # Negated, so that equals keep their order and NaN its place at the end.
  return _space(scores).argsort(-_vector('order', scores), stable=True)


def top(k: int) -> Rule:
  """The k best, best first; all of them if there are fewer.

  Args:
    k: how many.

  Raises:
    ValueError: for a k below one.

  Example:
    >>> top(2)(None, np.array([0.1, np.nan, 0.3])).tolist()
    [2, 0]
  """
  _positive('top', k=k)
  return lambda key, scores: order(scores)[:k]


def truncation(fraction: float) -> Rule:
  """The best `fraction` of the members, rounded down but at least one.

  Args:
    fraction: in (0, 1].

  Raises:
    ValueError: for a fraction outside (0, 1].

  Example:
    >>> truncation(0.5)(None, np.array([0.1, 0.4, 0.3, 0.2, 0.0])).tolist()
    [1, 2]
  """
  if not 0 < fraction <= 1:
    raise ValueError(
      f'truncation: fraction must be in (0, 1], got {fraction!r}.'
    )

  def rule(key: base.Key, scores: Any) -> Any:
    del key
    best = order(scores)
    return best[: max(1, math.floor(fraction * len(best)))]

  return rule


def bottom(k: int) -> Rule:
  """The k worst, worst first, NaN before all numbers: who is to go.

  Being chosen is the loss here, so the laws are those of `others(bottom(k))`,
  who stays, which is `top(n - k)`.

  Args:
    k: how many; all of them if there are fewer.

  Raises:
    ValueError: for a k below one.

  Example:
    >>> bottom(2)(None, np.array([0.1, np.nan, 0.3])).tolist()
    [1, 0]
  """
  _positive('bottom', k=k)
  return lambda key, scores: order(scores)[::-1][:k]


def others(rule: Rule) -> Rule:
  """The members that a rule does not choose, in their order.

  How many they are depends on the scores where a rule may choose a member
  twice, so it is for the host only.

  Example:
    >>> others(bottom(1))(None, np.array([0.1, np.nan, 0.3])).tolist()
    [0, 2]
  """

  def rest(key: base.Key, scores: Any) -> np.ndarray:
    return np.setdiff1d(np.arange(len(scores)), rule(key, scores))

  return rest


def tournament(size: int, count: int = 1) -> Rule:
  """The winners of tournaments among members drawn with replacement.

  Goldberg and Deb (1991); the parents of regularized evolution (Real et al.
  2019, algorithm 1: the best of S members drawn uniformly). Among equals the
  first that was drawn wins. Departs from it where members diverged: a NaN is
  not drawn as long as there is a number, so none wins by being alone.

  Args:
    size: S, members in a tournament; one draws uniformly.
    count: tournaments.

  Returns:
    A rule for (n,) scores that gives (count,) indices, which may repeat.

  Raises:
    ValueError: for a size or count below one.

  Example:
    >>> rule = tournament(2, count=3)
    >>> rule(jax.random.key(0), np.array([np.nan, 1.0, np.nan])).tolist()
    [1, 1, 1]
  """
  _positive('tournament', size=size, count=count)

  def rule(key: base.Key, scores: Any) -> Any:
    scores = _vector('tournament', scores)
    xp, ranked = _space(scores), order(scores)
    numbers = (~xp.isnan(scores)).sum()
    able = xp.where(numbers, numbers, len(scores))
    if xp is np:
      drawn = base.rng(key).integers(able, size=(count, size))
    else:
      drawn = jax.random.randint(key, (count, size), 0, able)
    entrants = ranked[drawn]
    best = xp.argmax(scores[entrants], axis=1)
    return xp.take_along_axis(entrants, best[:, None], axis=1)[:, 0]

  return rule


def dominance(scores: Any) -> Any:
  """Who dominates whom: nowhere worse, and better somewhere.

  Equal points do not dominate each other. A point with a NaN among its
  objectives is dominated by all points without, and dominates none.

  Args:
    scores: (n, objectives), larger is better.

  Returns:
    (n, n) booleans, `[i, j]` for "i dominates j".

  Example:
    >>> dominance(np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]])).astype(int)
    array([[0, 1, 0],
           [0, 0, 0],
           [0, 1, 0]])
  """
  scores = _matrix('dominance', scores)
  bad = _space(scores).isnan(scores).any(axis=1)
  one, two = scores[:, None], scores[None, :]
  better = (one >= two).all(axis=2) & (one > two).any(axis=2)
  return better | (~bad[:, None] & bad[None, :])


def fronts(scores: Any) -> Any:
  """The front of each point: 0 for those that none dominates, and so on.

  The exact non-dominated sort of NSGA-II (Deb et al. 2002, section III.A):
  front f is the Pareto set of what fronts 0 to f - 1 leave. It is computed as
  the longest chain of points that each dominate the next one, which is the
  same; points with NaN make a last front of their own.

  Args:
    scores: (n, objectives), larger is better.

  Returns:
    (n,) integers.

  Example:
    >>> fronts(np.array([[2.0, 0], [0, 2], [1, 0], [0, 0], [0, np.nan]]))
    array([0, 0, 1, 2, 3])
  """
  dominates = dominance(scores)
  xp = _space(dominates)

  def longer(depth: Any) -> Any:
    reached = xp.where(dominates, depth[:, None] + 1, 0)
    return reached.max(axis=0)

  start = xp.zeros(len(dominates), int)
  if xp is np:
    depth, following = start, longer(start)
    while (depth != following).any():
      depth, following = following, longer(following)
    return depth
  depth, _ = jax.lax.while_loop(
    lambda pair: (pair[0] != pair[1]).any(),
    lambda pair: (pair[1], longer(pair[1])),
    (start, longer(start)),
  )
  return depth


def crowding(scores: Any, front: Any) -> Any:
  """The crowding distance of each point within its front.

  Deb et al. (2002), section III.B: for each objective the distance of the two
  neighbours in the front, in units of the front's range, summed over the
  objectives; infinite at an end of the front. An objective in which a front
  has no range tells its points not apart, and adds nothing. Of equal points,
  neighbours in their order, one may stand at an end and another not.

  Args:
    scores: (n, objectives).
    front: (n,) integers, such as `fronts(scores)`.

  Returns:
    (n,) distances; a point alone in its front is at both its ends, and a point
    with NaN has 0.

  Example:
    >>> line = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    >>> crowding(line, np.zeros(4, int)).tolist()
    [inf, 1.5, 1.5, inf]
  """
  scores = _matrix('crowding', scores)
  xp = _space(scores)
  front = xp.asarray(front)
  bad = xp.isnan(scores).any(axis=1)
  together = front[:, None] == front[None, :]
  alone = together.sum(axis=0) == 1
  total = xp.where(alone, xp.inf, xp.zeros(len(scores)))
  most = xp.finfo(scores.dtype).max / 8  # Infinities have no differences.
  for values in scores.T:
    values = xp.where(bad, 0.0, xp.clip(values, -most, most))
    total = total + _gaps(xp, values, front, together)
  return xp.where(bad, 0.0, total)


def _gaps(xp: Any, values: Any, front: Any, together: Any) -> Any:
  """The part of one objective in the crowding distance, (n,)."""
  low = xp.where(together, values[None, :], xp.inf).min(axis=1)
  high = xp.where(together, values[None, :], -xp.inf).max(axis=1)
  wide = high > low
  sort = xp.lexsort((values, front))
  held, rows = values[sort], front[sort]
  edge = rows[1:] != rows[:-1]
  ends = xp.concatenate([xp.array([True]), edge])
  ends |= xp.concatenate([edge, xp.array([True])])
  # Neighbours of the first and the last are not asked for: they are ends.
  padded = xp.concatenate([held[:1], held, held[-1:]])
  span = xp.where(wide, high - low, 1.0)[sort]
  gap = (padded[2:] - padded[:-2]) / span
  gap = xp.where(ends, xp.inf, gap)
  return xp.where(wide, gap[xp.argsort(sort)], 0.0)


def front() -> Rule:
  """All members that none dominates; the Pareto set, NaN left out.

  How many they are depends on the scores, so it is for the host only.

  Example:
    >>> front()(None, np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])).tolist()
    [0, 2]
  """

  def rule(key: base.Key, scores: Any) -> np.ndarray:
    del key
    scores = _matrix('front', np.asarray(scores))
    number = ~np.isnan(scores).any(axis=1)
    return np.flatnonzero((fronts(scores) == 0) & number)

  return rule


def nsga2(k: int) -> Rule:
  """The k survivors of NSGA-II: by front, then the least crowded.

  Deb et al. (2002), section III.C: whole fronts as long as they fit, and of
  the one that does not fit those of the largest crowding distance.

  Args:
    k: how many; all of them if there are fewer.

  Returns:
    A rule for (n, objectives) scores, larger being better.

  Raises:
    ValueError: for a k below one.

  Example:
    >>> points = np.array([[0.0, 4.0], [1.0, 3.0], [3.5, 0.5], [4.0, 0.0]])
    >>> nsga2(3)(None, points).tolist()
    [0, 3, 1]
  """
  _positive('nsga2', k=k)

  def rule(key: base.Key, scores: Any) -> Any:
    del key
    scores = _matrix('nsga2', scores)
    ranks = fronts(scores)
    distance = crowding(scores, ranks)
    return _space(scores).lexsort((-distance, ranks))[:k]

  return rule


def crowded_tournament(size: int = 2, count: int = 1) -> Rule:
  """Tournaments won by the better front, then by the less crowded.

  The crowded comparison of NSGA-II (Deb et al. 2002, section III.B), under
  which its parents compete in pairs.

  Args:
    size: members in a tournament, drawn with replacement.
    count: tournaments.

  Returns:
    A rule for (n, objectives) scores that gives (count,) indices.

  Raises:
    ValueError: for a size or count below one.

  Example:
    >>> rule = crowded_tournament(2, count=2)
    >>> points = np.array([[1.0, np.nan], [1.0, 2.0], [np.nan, 0.0]])
    >>> rule(jax.random.key(0), points).tolist()
    [1, 1]
  """
  compete = tournament(size, count)

  def rule(key: base.Key, scores: Any) -> Any:
    scores = _matrix('crowded_tournament', scores)
    xp, ranks = _space(scores), fronts(scores)
    # In [0, 1/2], and so never as much as a front.
    spread = (1 - 1 / (1 + crowding(scores, ranks))) / 2
    bad = xp.isnan(scores).any(axis=1)
    return compete(key, xp.where(bad, xp.nan, spread - ranks))

  return rule
