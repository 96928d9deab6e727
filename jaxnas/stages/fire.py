"""FIRE PBT's replacement: long-term populations, judged by evaluators.

Dalibard and Jaderberg (2021), "Faster Improvement Rate Population Based
Training", arXiv 2109.13800. What is decided between two rounds is decided on
the host, in NumPy, once a round; weights move by one gather on the device.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import base, curves, mixing, network, programs, selection
from jaxnas.base import Learner, Stage
from jaxnas.stages import arrays


class Evaluation(NamedTuple):
  """What a running evaluator does.

  Attributes:
    parent: the member whose weights it took.
    child: the member whose settings it took, and may overwrite.
    rounds: that it has run.
  """

  parent: int
  child: int
  rounds: int


class Fire(NamedTuple):
  """What FIRE PBT remembers between rounds.

  Attributes:
    curves: (n,) scores of every member since it last copied another, and of
      every evaluator since it began; in the order of the members.
    waits: for every member of a long-term population for how many rounds it
      has not been evaluated; -1 for one that was just replaced.
    evaluations: what each evaluator does, None for an idle one.
    outcomes: how many evaluations ended as `'success'` and as `'stopped'`.
  """

  curves: tuple[np.ndarray, ...]
  waits: Mapping[str, int]
  evaluations: tuple[Evaluation | None, ...]
  outcomes: Mapping[str, int]


class _Moves(NamedTuple):
  """Who takes whose weights and settings, filled in place."""

  source: np.ndarray  # (N,) whose weights each member has next.
  setting: np.ndarray  # (N,) whose hyper-parameters.
  explored: np.ndarray  # (N,) whether those are explored then.


def pieces(points: int, inner: Stage, *, by: str = 'fitness') -> Stage:
  """A round in pieces, after each of which its members are measured.

  Any learner so gets a curve: its round is the piece, and `inner` trains and
  measures once. The last measurement stays, with the metric `curve` added.

  Args:
    points: pieces.
    inner: a stage that trains and measures, of array populations.
    by: the metric of which the curve is made.

  Returns:
    A stage after which `metrics['curve']` is (N, points).

  Raises:
    ValueError: for less than one point.

  Example:
    >>> from jaxnas import combine, learners, stages
    >>> learner = learners.plain(steps=2)
    >>> inner = combine.chain(stages.advance(learner), stages.assess(learner))
    >>> start = stages.members(jax.random.key(0), learner, 3,
    ...                        learners.toys.START)
    >>> last, _ = pieces(10, inner).update(jax.random.key(1), start, ((), ()))
    >>> last.metrics['curve'].shape, last.spent.examples
    ((3, 10), 60)
  """
  if points < 1:
    raise ValueError(f'pieces: points must be at least 1, got {points!r}.')

  def update(key, members, state):
    seen = []
    for i in range(points):
      own = jax.random.fold_in(key, i)
      members, state = inner.update(own, members, state)
      seen.append(members.metrics[by])
    curve = jnp.stack(seen, axis=1)
    metrics = {**members.metrics, 'curve': curve}
    return members._replace(metrics=metrics), state

  return Stage(inner.init, update, f'pieces({inner.name})')


def fire(
  learner: Learner,
  child: mixing.Child,
  *,
  sizes: Sequence[int] = (8, 8),
  evaluators: int = 6,
  fraction: float = 0.25,
  most: int = 3,
  after: int = 1,
  level: float = 0.01,
  by: str = 'fitness',
) -> Stage:
  """What FIRE PBT changes between two rounds.

  The members are, in this order, a greedy population P1, long-term populations
  P2, P3, ..., and evaluators. It reads the curves of the round before and then

  1. in P1 the worst part copies members drawn from the best, by the metric, and
     explores;
  2. in every other population too, by `curves.fire_fitness` of the curves of
     those that have an evaluator running; the others are neither best nor
     worst;
  3. evaluators are judged in turn (`curves.verdict`). One that succeeds
     overwrites its child, whose settings it has, and whose curve its own
     replaces; one that is stopped is idle;
  4. idle evaluators take the weights of the long-term member that waits
     longest, those just replaced last, and the settings of the best member of
     the population before, those just replaced excepted.

  A member's curve is emptied when it copies another. All is a function of key,
  population and state, which a checkpoint can hold.

  The paper's criteria are known here from the re-implementation PBT-Zoo, which
  quotes them, and not from the paper. From the code alone are known the sizes
  (8, 8, 6 for 22 members, 3, 3, 2 for 8, and 18, 18, 14 for 50), the order of
  the steps, that a fitness ends with its evaluator, and the defaults of
  `fraction`, `most` and `after`. This departs from that code in four things.
  A part of a population is one member at least: there a fraction of 0.34 makes
  it one of three, where a quarter would be nobody. Where so few members of a
  long-term population are evaluated that its best and its worst part would
  share some, both are smaller. An evaluator whose child
  was overwritten in the same round is tested against the new curve, not the
  old. An idle evaluator trains on what it has, which is spent and not read.
  The code has no P3: that it is to P2 as P2 is to P1 is an extrapolation, which
  was compared with nothing.

  Args:
    learner: draws fresh bodies, if the child asks for them.
    child: makes a replaced member of the one it copied, such as
      `mixing.explore(priors, factors=(0.5, 2.0))`.
    sizes: of P1, P2, ..., each two or more.
    evaluators: how many.
    fraction: of a population that is replaced, and that may be copied; of each
      one member at least.
    most: rounds that an evaluator may run without an overlap.
    after: rounds before the first evaluation.
    level: of the sign test.
    by: the metric of P1; the metric `curve`, (N, points), is that of
      `pieces`.

  Raises:
    ValueError: for sizes, fractions or numbers that are no such, and, when
      run, for a population of another size or without a curve.
  """
  workers, size = sum(sizes), sum(sizes) + evaluators
  if len(sizes) < 2 or min(sizes) < 2 or evaluators < 1:
    raise ValueError(
      'fire: there must be two populations or more, of two members or more, '
      f'and an evaluator, got sizes={tuple(sizes)}, evaluators={evaluators}.'
    )
  if not 0 < fraction <= 0.5 or not 0 < level < 1 or most < 1:
    raise ValueError(
      'fire: fraction must be in (0, 1/2], level in (0, 1) and most at least '
      f'1, got {fraction!r}, {level!r}, {most!r}.'
    )
  ends = np.cumsum(sizes)
  ranks = [range(end - n, end) for n, end in zip(sizes, ends)]
  level_of = {i: rank for rank, own in enumerate(ranks) for i in own}

  def init(members):
    if len(members.parents) != size:
      raise ValueError(
        f'fire: sizes={tuple(sizes)} and {evaluators} evaluators are {size} '
        f'members, got {len(members.parents)}.'
      )
    waits = {str(i): 0 for i in range(sizes[0], workers)}
    empty = tuple(np.zeros(0) for _ in range(size))
    return Fire(
      empty, waits, (None,) * evaluators, {'success': 0, 'stopped': 0}
    )

  def update(key, members, state):
    if 'curve' not in members.metrics or by not in members.metrics:
      raise ValueError(
        f"fire: members need the metrics {by!r} and 'curve', they have "
        f'{sorted(members.metrics)}; train them in pieces().'
      )
    points = _finite(np.asarray(members.metrics['curve'], float))
    rng = base.rng(network.named_key(key, 'draws'))
    held = [np.append(*pair) for pair in zip(state.curves, points)]
    running = [e and e._replace(rounds=e.rounds + 1) for e in state.evaluations]
    evaluated = {e.parent: workers + n for n, e in enumerate(running) if e}
    waits = {
      i: state.waits[str(i)] + (i not in evaluated)
      for i in range(sizes[0], workers)
    }
    own = np.arange(size)
    moves = _Moves(own.copy(), own.copy(), np.zeros(size, bool))

    fitness = np.full(size, np.nan)
    fitness[: sizes[0]] = np.asarray(members.metrics[by])[: sizes[0]]
    for rank, who in enumerate(ranks):
      if rank:
        watched = [held[evaluated[i]] if i in evaluated else None for i in who]
        fitness[who] = curves.fire_fitness(watched)
      _exploit(rng, fitness, who, fraction, rank > 0, moves)
    for i in np.flatnonzero(moves.explored):
      held[i] = np.zeros(0)
      if i in waits:
        waits[i] = -1

    outcomes, won = dict(state.outcomes), set()
    for n, e in enumerate(running):
      if e is None:
        continue
      found = curves.verdict(
        held[workers + n],
        held[e.child],
        e.rounds,
        most=most,
        level=level,
        child_lost=bool(moves.explored[e.child]),
        parent_lost=bool(moves.explored[e.parent]),
        overwritten=e.child in won,
      )
      if found == 'success':
        won.add(e.child)
        moves.source[e.child] = workers + n
        held[e.child] = held[workers + n]
      if found != 'running':
        outcomes[found] += 1
        running[n] = None

    if members.generation >= after:
      _assign(running, waits, fitness, ranks, level_of, held, moves)

    program = _moving(learner.init, child)
    member = program(
      network.named_key(key, 'children'),
      members.member,
      moves.source,
      moves.setting,
      moves.explored,
      learner.data,
    )
    moved = (moves.source != own) | moves.explored
    metrics = dict(members.metrics)
    nothing = {n: jnp.full_like(x, jnp.nan) for n, x in metrics.items()}
    members = members._replace(
      member=member,
      metrics=mixing.pick(moved, nothing, metrics),
      parents=jnp.stack([moves.source, moves.setting], axis=1),
    )
    waits = {str(i): int(wait) for i, wait in waits.items()}
    return members, Fire(tuple(held), waits, tuple(running), outcomes)

  return Stage(init, update, 'fire')


def _finite(points: np.ndarray) -> np.ndarray:
  """(N, K) points with the worst score of the round for what is not finite."""
  fine = np.isfinite(points)
  worst = points[fine].min() if fine.any() else 0.0
  return np.where(fine, points, worst)


def _exploit(rng, fitness, who, fraction, partly, moves: _Moves) -> None:
  """The worst of `who` copy members drawn from the best, and explore."""
  who = np.asarray(who)
  count = max(int(fraction * len(who)), 1)
  if partly:
    who = who[~np.isnan(fitness[who])]
    count = min(count, len(who) // 2)
  ranked = who[selection.order(fitness[who])] if len(who) else who
  for victim in ranked[len(ranked) - count :]:
    source = rng.choice(ranked[:count])
    moves.source[victim] = moves.setting[victim] = source
    moves.explored[victim] = True


def _assign(running, waits, fitness, ranks, level_of, held, moves) -> None:
  """Gives every idle evaluator a parent and a child, as far as there are."""
  workers = len(level_of)
  busy = {e.parent for e in running if e}
  queue = sorted((i for i in waits if i not in busy), key=lambda i: -waits[i])
  for n, e in enumerate(running):
    if e is not None:
      continue
    for parent in queue:
      below = np.asarray(ranks[level_of[parent] - 1])
      scores = np.where(moves.explored[below], np.nan, fitness[below])
      if not np.isnan(scores).all():
        child = int(below[np.nanargmax(scores)])
        running[n] = Evaluation(int(parent), child, 0)
        moves.source[workers + n] = moves.source[parent]
        moves.setting[workers + n] = child
        held[workers + n] = np.zeros(0)
        waits[parent] = 0
        queue.remove(parent)
        break


@programs.kept
def _moving(init, child):
  def run(key, member, source, setting, explored, data):
    def gather(index, tree):
      return jax.tree.map(lambda leaf: leaf[index], tree)

    def make(key, base):
      return child(key, base, base, lambda *drawn: init(*drawn, data))

    moved = gather(source, member)
    moved = moved._replace(hyper=gather(setting, member.hyper))
    made = jax.vmap(make)(arrays.keys_of(key, len(source)), moved)
    return mixing.pick(explored, made, moved)

  return programs.jit(run)
