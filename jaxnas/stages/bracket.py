"""Knock-out tournaments in which the matches are the training."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxnas.base import Candidate, Key, Population, Stage, rng

Fitness = Callable[[Candidate], float]
Match = Callable[[Key, np.ndarray], np.ndarray]


def strongest(key: Key, scores: np.ndarray) -> np.ndarray:
  """A rule for matches: the best score wins, the first among equals.

  Example:
    >>> strongest(None, np.array([0.5, math.nan, 0.75]))
    array([2])
  """
  del key
  return np.array([np.where(np.isnan(scores), -math.inf, scores).argmax()])


def anyone(key: Key, scores: np.ndarray) -> np.ndarray:
  """A rule for matches: chance alone, among those with a score; a control.

  Example:
    >>> anyone(jax.random.key(0), np.array([math.nan, 0.5]))
    array([1])
  """
  able = np.flatnonzero(~np.isnan(scores))
  able = able if len(able) else np.arange(len(scores))
  return rng(key).choice(able, size=1)


def pairings(count: int, groups: int, winners: int) -> list[list[int]]:
  """Which entries meet in a round (ECToNAS, official `main.py`).

  Group i holds entries 2i and 2i + 1, and every `groups`-th of those beyond
  `2 groups`. No more entries than winners walk over, each by itself.

  Args:
    count: entries, in the order drawn.
    groups: matches in the round.
    winners: how many the tournament is to leave.

  Returns:
    The entries of every group that has any.

  Example:
    >>> pairings(5, 2, 1), pairings(2, 4, 2)
    ([[0, 1, 4], [2, 3]], [[0], [1]])
  """
  if count <= winners:
    return [[i] for i in range(count)]
  found = [
    [i for i in (2 * g, 2 * g + 1) if i < count]
    + list(range(2 * groups + g, count, groups))
    for g in range(groups)
  ]
  return [group for group in found if group]


def bracket(
  train: Stage,
  fitness: Fitness,
  *,
  rounds: int = 3,
  winners: int = 1,
  match: Match = strongest,
) -> Stage:
  """A knock-out: every member is trained, then groups leave one each.

  ECToNAS (arXiv 2403.05123) as its official code does it: in round r of
  `rounds` there are `winners * 2 ** (rounds - 1 - r)` groups of entries that
  chance put together (`pairings`), so it is no top-k. Who has no opponent is
  trained all the same. From n members come `min(n, winners)`, the survivors
  trained in every round.

  Args:
    train: a stage that trains, and writes what fitness reads.
    fitness: `fitness(member)`, larger is better; NaN ranks last.
    rounds: of training and matches.
    winners: who may be left.
    match: a rule `match(key, scores) -> indices`, of which the first wins.

  Raises:
    ValueError: for no rounds or no winners.

  Example:
    >>> from jaxnas import combine
    >>> lazy = combine.stage(lambda key, population: population, 'lazy')
    >>> field = tuple(Candidate(None, metrics={'f': f}) for f in (3, 1, 2))
    >>> stage = bracket(lazy, lambda member: member.metrics['f'])
    >>> start = Population(field)
    >>> last, _ = stage.update(jax.random.key(0), start, stage.init(start))
    >>> [member.metrics['f'] for member in last.members]
    [3]
  """
  if rounds < 1 or winners < 1:
    raise ValueError(
      f'bracket: rounds and winners must be at least 1, got rounds={rounds} '
      f'and winners={winners}.'
    )

  def winner(key: Key, members: Sequence[Candidate]) -> Candidate:
    scores = np.array([fitness(member) for member in members], float)
    return members[int(match(key, scores)[0])]

  def update(key, population: Population, state):
    for number in range(rounds):
      own = jax.random.fold_in(key, number)
      draw, learn, play = jax.random.split(own, 3)
      order = rng(draw).permutation(len(population.members))
      entries = tuple(population.members[i] for i in order)
      entered = population._replace(members=entries)
      population, state = train.update(learn, entered, state)
      groups = winners * 2 ** (rounds - 1 - number)
      field = population.members
      left = [
        winner(jax.random.fold_in(play, i), [field[j] for j in group])
        for i, group in enumerate(pairings(len(field), groups, winners))
      ]
      population = population._replace(members=tuple(left))
    return population, state

  return Stage(train.init, update, 'bracket')


def rolling(member: Candidate, *, last: int = 3) -> float:
  """The mean of a candidate's last scores (its own or inherited); NaN if none.

  Example:
    >>> rolling(Candidate(None, metrics={'history': (0.0, 0.5, 0.75, 1.0)}))
    0.75
  """
  history = member.metrics.get('history', ())[-last:]
  return float(np.mean(history)) if history else math.nan


def relative(alpha: float, *, last: int = 3) -> Fitness:
  """Accuracy gained against size gained, both relative to the parent.

  ECToNAS' fitness (official `main.py`):
  `alpha (s - s') / s' - (1 - alpha) (P - P') / P'`, s the score, P the
  parameters, primed the direct parent's at the time of the edit (see
  `jaxnas.stages.note_parents`). With alpha of 1 or more it is s.

  Args:
    alpha: greediness; 1 for accuracy alone, 0 for size alone.
    last: of the history, how many scores count.

  Raises:
    ValueError: for a negative alpha.

  Example:
    >>> metrics = {'history': (0.6,), 'params': 50}
    >>> metrics |= {'parent_score': 0.5, 'parent_params': 100}
    >>> fitness = relative(0.5)
    >>> round(fitness(Candidate(None, metrics=metrics)), 6)
    0.35
  """
  if not alpha >= 0:
    raise ValueError(f'relative: alpha must be 0 or more, got {alpha!r}.')

  def fitness(member: Candidate) -> float:
    own = rolling(member, last=last)
    if alpha >= 1:
      return own
    held = member.metrics
    if 'parent_score' not in held:
      return math.nan
    before, size = held['parent_score'], held['parent_params']
    gained = (own - before) / before if before else math.nan
    grown = (held['params'] - size) / size
    return alpha * gained - (1 - alpha) * grown

  return fitness


def fittest(population: Population, fitness: Fitness) -> Candidate:
  """The member of the best fitness, the first among equals.

  Raises:
    ValueError: for an empty population.
  """
  if not population.members:
    raise ValueError('an empty population has no fittest member.')
  scores = np.array([fitness(member) for member in population.members], float)
  return population.members[int(strongest(None, scores)[0])]
