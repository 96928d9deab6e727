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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import base

Rule = Callable[[base.Key, Any], Any]


def _space(scores: Any) -> Any:
  """The module whose functions the scores are for."""
  return jnp if isinstance(scores, jax.Array) else np


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
  base.check_counts('top', k=k)
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
  base.check_counts('bottom', k=k)
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
  base.check_counts('tournament', size=size, count=count)

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
    number = np.flatnonzero(~np.isnan(scores).any(axis=1))
    if scores.shape[1] == 2:
      return number[_staircase(scores[number])]
    return np.intersect1d(number, np.flatnonzero(fronts(scores) == 0))

  return rule


def _staircase(scores: np.ndarray) -> np.ndarray:
  """Which of (n, 2) scores none dominates, by one sweep: (n,) booleans."""
  found = np.zeros(len(scores), bool)
  if not len(scores):
    return found
  order = np.lexsort((-scores[:, 1], -scores[:, 0]))
  sweep = scores[order]
  most = np.maximum.accumulate(sweep[:, 1])
  better = np.append(True, sweep[1:, 1] > most[:-1])
  # Equal points are neighbours, and all are as good as the first of them.
  new = np.append(True, (sweep[1:] != sweep[:-1]).any(axis=1))
  first = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
  found[order] = better[first]
  return found


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
  base.check_counts('nsga2', k=k)

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


class Parents(NamedTuple):
  """Who is replaced, and by a child of whom.

  Attributes:
    slot: (n,) members that are replaced, each once.
    base: (n,) the first parent of each child, the fitter of the two; where it
      is the slot itself, that member stays as it is.
    donor: (n,) the second parent, perhaps the same.
  """

  slot: Any
  base: Any
  donor: Any


Pairing = Callable[[base.Key, Any], Parents]


def _part(name: str, **fractions: float) -> None:
  for field, fraction in fractions.items():
    if not 0 < fraction <= 0.5:
      raise ValueError(
        f'{name}: {field} must be in (0, 1/2], got {fraction!r}.'
      )


def pairs(fraction: float = 0.25, best: float | None = None) -> Pairing:
  """The worst part makes way for children of pairs from the best part.

  The replacement of PBT-NAS (arXiv 2307.15621): each of the worst
  int(fraction * n) members is replaced by a child of two distinct members
  drawn uniformly from the best int(best * n); the fitter is the base.

  Args:
    fraction: of the members that are replaced, at most one half.
    best: of the members that are parents; None for as many.

  Returns:
    A function of key and (n,) JAX scores to `Parents`; NaN ranks last.

  Raises:
    ValueError: for a fraction outside (0, 1/2], and, when called, for so few
      members that there are no two parents.

  Example:
    >>> found = pairs()(jax.random.key(0), jnp.arange(8.0))
    >>> found.slot.tolist(), found.base.tolist(), found.donor.tolist()
    ([1, 0], [7, 7], [6, 6])
  """
  best = fraction if best is None else best
  _part('pairs', fraction=fraction, best=best)

  def pairing(key: base.Key, scores: Any) -> Parents:
    count, pool = (int(part * len(scores)) for part in (fraction, best))
    if pool < 2:
      raise ValueError(
        f'pairs: the best {best} of {len(scores)} members are {pool}, and a '
        f'child needs two parents; take {math.ceil(2 / best)} members or more.'
      )
    ranked = order(scores)

    def pair(key):
      # Of places in the ranking, the first is that of the fitter.
      return jnp.sort(jax.random.choice(key, pool, (2,), replace=False))

    drawn = jax.vmap(pair)(jax.random.split(key, count))
    slot = ranked[len(scores) - count :]
    return Parents(slot, ranked[drawn[:, 0]], ranked[drawn[:, 1]])

  return pairing


def copies(fraction: float = 0.2) -> Pairing:
  """The worst part is replaced by copies of members of the best part.

  The truncation selection of population based training (Jaderberg et al. 2017,
  arXiv 1711.09846, section 4.1).

  Args:
    fraction: of the members that are replaced, and that may be copied.

  Raises:
    ValueError: for a fraction outside (0, 1/2], and, when called, for so few
      members that this is nobody.

  Example:
    >>> found = copies(0.25)(jax.random.key(0), jnp.arange(4.0))
    >>> found.slot.tolist(), found.base.tolist()
    ([0], [3])
  """
  _part('copies', fraction=fraction)

  def pairing(key: base.Key, scores: Any) -> Parents:
    count = int(fraction * len(scores))
    if not count:
      raise ValueError(
        f'copies: fraction={fraction} of {len(scores)} members is nobody; take '
        f'{math.ceil(1 / fraction)} members or more.'
      )
    ranked = order(scores)
    source = ranked[jax.random.randint(key, (count,), 0, count)]
    return Parents(ranked[len(scores) - count :], source, source)

  return pairing


def _others(key: base.Key, members: int) -> Any:
  """For each member another one, drawn uniformly."""
  step = jax.random.randint(key, (members,), 1, max(members, 2))
  return (jnp.arange(members) + step) % members


def duels() -> Pairing:
  """Every member meets another, and is replaced by it if that is better.

  The binary tournament of population based training (Jaderberg et al. 2017,
  section 4.3). A member that diverged loses to any that did not.

  Example:
    >>> found = duels()(jax.random.key(0), jnp.array([1.0, 2.0]))
    >>> found.slot.tolist(), found.base.tolist()
    ([0, 1], [1, 1])
  """

  def pairing(key: base.Key, scores: Any) -> Parents:
    place = jnp.argsort(order(scores))
    own, other = jnp.arange(len(scores)), _others(key, len(scores))
    better = (place[other] < place[own]) & (scores[other] != scores[own])
    source = jnp.where(better, other, own)
    return Parents(own, source, source)

  return pairing


def significant_duels(level: float = 0.05) -> Pairing:
  """Duels that are lost only where the difference is no chance.

  The t-test selection of population based training (Jaderberg et al. 2017,
  section 4.1): a member is replaced by another whose mean of the last K scores
  is higher, if Welch's one-sided test says so at the level.

  Args:
    level: of the test, in (0, 1).

  Returns:
    A function of key and (n, K) scores, K of at least 2, to `Parents`.

  Raises:
    ValueError: for a level outside (0, 1), and, when called, for other scores.

  Example:
    >>> scores = jnp.array([[1.0, 1.1, 0.9], [5.0, 5.1, 4.9]])
    >>> significant_duels()(jax.random.key(0), scores).base.tolist()
    [1, 1]
  """
  if not 0 < level < 1:
    raise ValueError(
      f'significant_duels: level must be in (0, 1), got {level!r}.'
    )

  def pairing(key: base.Key, scores: Any) -> Parents:
    if scores.ndim != 2 or scores.shape[1] < 2:
      raise ValueError(
        'significant_duels: scores must be (n, K), K >= 2 of each member, got '
        f'shape {scores.shape}.'
      )
    own, other = jnp.arange(len(scores)), _others(key, len(scores))
    bad = jnp.isnan(scores).any(axis=1)
    mean = scores.mean(axis=1)
    noise = scores.var(axis=1, ddof=1) / scores.shape[1]
    both = noise + noise[other]
    t = (mean[other] - mean) / jnp.sqrt(jnp.maximum(both, 1e-30))
    # Welch and Satterthwaite; P(T > t) by the incomplete beta function.
    freedom = jnp.square(both) * (scores.shape[1] - 1)
    freedom /= jnp.maximum(jnp.square(noise) + jnp.square(noise[other]), 1e-30)
    freedom = jnp.maximum(freedom, 1.0)
    tail = jax.scipy.special.betainc(
      freedom / 2, 0.5, freedom / (freedom + jnp.square(t))
    )
    lost = (t > 0) & (tail / 2 < level)
    lost = jnp.where(bad, ~bad[other], lost & ~bad[other])
    source = jnp.where(lost, other, own)
    return Parents(own, source, source)

  return pairing


def tournaments(fraction: float = 0.5, size: int = 2) -> Pairing:
  """The best stay; children of winners of tournaments take the other places.

  The replacement of EPBT (Liang et al. 2021, arXiv 2002.04225), whose elite is
  the best half. For every child two tournaments are held, each among members
  drawn without replacement from all but the one that is replaced; their winners
  are the base, whose weights the child will have, and the donor, which may be
  the fitter or the same.

  Args:
    fraction: of the members that are replaced, at most one half.
    size: members in a tournament.

  Returns:
    A function of key and (n,) JAX scores to `Parents`; NaN ranks last.

  Raises:
    ValueError: for a fraction outside (0, 1/2] or a size below one, and, when
      called, for fewer members than a tournament needs.

  Example:
    >>> found = tournaments(0.25, 3)(jax.random.key(0), jnp.arange(4.0))
    >>> found.slot.tolist(), found.base.tolist(), found.donor.tolist()
    ([0], [3], [3])
  """
  _part('tournaments', fraction=fraction)
  base.check_counts('tournaments', size=size)

  def pairing(key: base.Key, scores: Any) -> Parents:
    members, count = len(scores), int(fraction * len(scores))
    if not count or size > members - 1:
      raise ValueError(
        f'tournaments: of {members} members a fraction of {fraction} is '
        f'{count}, and a tournament needs {size} others; take more members.'
      )
    ranked = order(scores)
    place = jnp.argsort(ranked)
    slot = ranked[members - count :]

    def winner(key, slot):
      step = jax.random.choice(key, members - 1, (size,), replace=False)
      others = (slot + 1 + step) % members
      return others[jnp.argmin(place[others])]

    keys = jax.random.split(key, (2, count))
    won = jax.vmap(jax.vmap(winner), (0, None))(keys, slot)
    return Parents(slot, won[0], won[1])

  return pairing


def novelty_order(
  fitness: jax.Array, behaviour: jax.Array, elite: int, multiple: float = 2.0
) -> jax.Array:
  """The members with an elite that is fit and diverse in front.

  Novelty selection (Shahrzad et al. 2018, arXiv 1803.03744), as known from
  published code. The int(multiple * elite) fittest are the pool. Its
  best stays first, and the others are sorted by the sum of their Euclidean
  distances to all of the pool; the first `elite` are the elite. Every other one
  is then put in, and of the closest pair the less fit is put out. That it is
  the less fit, so that the best cannot be, and the order of the result within
  and after the elite, by fitness, are choices made here.

  Args:
    fitness: (N,); NaN ranks last, and is nobody's neighbour: it is put out
      first.
    behaviour: (N, B) what a member did, such as which examples it had right.
    elite: how many are wanted.
    multiple: how many times as many to choose from, at least 1; with 1 the
      elite are the fittest.

  Returns:
    (N,) indices: the elite, then all others. Distances take O(N^2 B), and each
    of the pool's leftovers O(N^2).

  Raises:
    ValueError: for an elite of none or of more than all, a multiple below 1 or
      a behaviour that is not (N, B).

  Example:
    >>> fitness = jnp.array([4.0, 3.0, 2.0, 1.0])
    >>> behaviour = jnp.array([[0.0], [0.1], [5.0], [9.0]])
    >>> novelty_order(fitness, behaviour, 2, 1.5).tolist()
    [0, 2, 1, 3]
  """
  members = len(fitness)
  if not 1 <= elite <= members or multiple < 1:
    raise ValueError(
      f'novelty_order: elite must be in 1..{members} and multiple at least 1, '
      f'got {elite} and {multiple}.'
    )
  if behaviour.ndim != 2 or len(behaviour) != members:
    raise ValueError(
      f'novelty_order: behaviour must be ({members}, B), got shape '
      f'{behaviour.shape}.'
    )
  ranked = order(jnp.asarray(fitness))
  pool = min(int(multiple * elite), members)
  held = ranked[:pool]
  # From here on a member is its place in the pool: the larger, the less fit.
  bad = jnp.isnan(fitness[held]) | jnp.isnan(behaviour[held]).any(axis=1)
  seen = jnp.where(bad[:, None], 0.0, behaviour[held])
  square = jnp.square(seen).sum(axis=1)
  far = square[:, None] + square[None, :] - 2 * seen @ seen.T
  far = jnp.sqrt(jnp.maximum(far, 0.0))
  either = bad[:, None] | bad[None, :]
  total = jnp.where(either, 0.0, far).sum(axis=1)
  total = jnp.where(bad, -1.0, total).at[0].set(jnp.inf)
  novel = order(total)
  apart = jnp.where(either, -1.0, far)
  upper = jnp.triu(jnp.ones((pool, pool), bool), 1)

  def push(i, inside):
    inside = inside.at[novel[i]].set(True)
    pair = inside[:, None] & inside[None, :] & upper
    closest = jnp.argmin(jnp.where(pair, apart, jnp.inf))
    return inside.at[closest % pool].set(False)

  inside = jnp.zeros(pool, bool).at[novel[:elite]].set(True)
  inside = jax.lax.fori_loop(elite, pool, push, inside)
  chosen = jnp.zeros(members, bool).at[:pool].set(inside)
  return ranked[jnp.argsort(~chosen, stable=True)]
