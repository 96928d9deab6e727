"""Stages that choose which pending moves are made."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnas import combine, groups, layers, morphisms, network, training
from jaxnas.base import Candidate, Population, Stage, Task
from jaxnas.morphisms import depth, outgoing, width
from jaxnas.spec import Spec
from jaxnas.stages import fit, judge

Sizes = Mapping[str, int]
Count = Callable[[Sizes], float]

# A merge leans on channels of which it takes more than this share; they stay.
_LEANS = 0.1


class Choice(NamedTuple):
  """Moves chosen together, and the loss changes predicted for the sets.

  Attributes:
    indices: positions of the chosen candidates, in the order of choice.
    predictions: the change of the loss, in nats, after each of them.
    evaluations: networks measured to choose.
  """

  indices: tuple[int, ...]
  predictions: tuple[float, ...]
  evaluations: int = 0

  @property
  def predicted(self) -> float:
    """The change of the loss for the whole set, in nats."""
    return self.predictions[-1] if self.predictions else 0.0

  def first(self, count: int) -> 'Choice':
    """The first moves of the choice only."""
    return Choice(
      self.indices[:count], self.predictions[:count], self.evaluations
    )


Rule = Callable[[Sequence[Candidate]], Choice]


def _counted(spec: Spec, weigh: Callable[[str, str], float]) -> Count:
  """A polynomial in the groups' sizes: weighted sizes of the parameters."""
  table, shapes = groups.table(spec), network.shapes(spec).variables
  terms = []
  for node in spec.nodes:
    for (collection, leaf), roles in layers.axes(node.op).items():
      if collection != 'params' or not weigh(node.name, leaf):
        continue
      shape = shapes['params'][node.name][leaf].shape
      fixed, axes = weigh(node.name, leaf), []
      for role, size in zip(roles, shape):
        if role is None:
          fixed *= size
        else:
          source = node.name if role == 'out' else node.inputs[0]
          axes.append(table.axes[source])
      terms.append((fixed, axes))

  def count(sizes: Sizes) -> float:
    total = 0
    for fixed, axes in terms:
      product = fixed
      for axis in axes:
        product *= axis.repeat * sum(
          sizes.get(g, size) for g, size in zip(axis.groups, axis.sizes)
        )
      total += product
    return total

  return count


def parameters(spec: Spec) -> Count:
  """A cost: the number of parameters as a function of the groups' sizes.

  Args:
    spec: the spec whose groups change.

  Returns:
    `count(sizes)`, groups left out counting as they are.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> count = parameters(seeds.mlp((4,), (8,), 3))
    >>> count({}), count({'dense1': 9})
    (67, 75)
  """
  return _counted(spec, lambda node, leaf: 1)


def operations(spec: Spec) -> Count:
  """A cost: `jaxnas.network.flops` as a function of the groups' sizes.

  Args:
    spec: the spec whose groups change.

  Returns:
    `count(sizes)`, groups left out counting as they are.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> count = operations(seeds.mlp((4,), (8,), 3))
    >>> count({}), count({'dense1': 9})
    (112, 126)
  """

  def weigh(node: str, leaf: str) -> float:
    positions = math.prod(spec.shapes[node][:-1])
    return 2 * positions if leaf == 'kernel' else 0

  return _counted(spec, weigh)


def jointly(
  *,
  price: float,
  z: float = 1.0,
  limit: int | None = None,
  ratio: float = math.inf,
  tolerance: float = 1e-5,
  cost: Callable[[Spec], Count] = parameters,
) -> Rule:
  """Chooses a set of moves by its joint estimate (Gram term).

  Greedy (growth specification, 1.3.6): adds the move with the least
  `linear + z error + M_cc / 2 + sum over chosen of M_cj + price * dP`, while
  that is below `-tolerance`; M is the Gram matrix of the coefficients and dP
  the change of cost given what is chosen already. All kinds of moves pay and
  earn the same price. A channel is split or pruned once, no channel goes that
  a merge leans on, one block is inserted behind a node, and no group loses its
  last channel.

  Args:
    price: lambda_p, nats per unit of cost (per parameter).
    z: standard errors to add to each estimate.
    limit: at most so many moves; None for no limit.
    ratio: the cost may grow to so many times what it is.
    tolerance: nats that an addition must gain at least, its price paid;
      `-math.inf` to go on for as long as limit and ratio allow.
    cost: `cost(spec)(sizes)`, what a network whose groups have such sizes
      costs: `parameters`, `operations`, or a latency of your own.

  Returns:
    A rule for `choose`.

  Raises:
    ValueError: for a negative price, error factor or limit, and for a ratio
      below one.

  Example:
    >>> rule = jointly(price=1e-6, z=1.0, ratio=1.5)
  """
  _check_knobs('jointly', price, z, limit, ratio)

  def rule(members: Sequence[Candidate]) -> Choice:
    _check_scored(members)
    rho = np.stack([m.metrics['coefficients'] for m in members], axis=1)
    squares = np.einsum('nc,nc->c', rho, rho) / len(rho)

    def interact(chosen: int) -> np.ndarray:
      return (rho.T @ rho[:, chosen]).astype(float) / len(rho)

    return _greedily(
      members,
      _column(members, 'linear') + squares / 2,
      z * _column(members, 'error'),
      interact,
      _Knobs(price, limit, ratio, tolerance, cost),
    )

  return rule


def independently(
  *,
  price: float,
  z: float = 0.0,
  limit: int | None = None,
  ratio: float = math.inf,
  tolerance: float = -math.inf,
  cost: Callable[[Spec], Count] = parameters,
) -> Rule:
  """The best moves by their single estimates: a control.

  It ignores that moves interact: the individually best ones are redundant and
  overshoot together. Its prediction is the sum of the single estimates. For
  judges whose scores are no loss changes (magnitudes, random), it goes on for
  as long as `limit` and `ratio` allow.

  Args:
    price: nats per unit of cost.
    z: standard errors to add to each estimate.
    limit: at most so many moves; None for no limit.
    ratio: the cost may grow to so many times what it is.
    tolerance: as of `jointly`.
    cost: as of `jointly`.

  Returns:
    A rule for `choose`.

  Raises:
    ValueError: as `jointly`.

  Example:
    >>> rule = independently(price=0.0, ratio=1.35)
  """
  _check_knobs('independently', price, z, limit, ratio)

  def rule(members: Sequence[Candidate]) -> Choice:
    _check_scored(members)
    return _greedily(
      members,
      _column(members, 'predicted'),
      z * _column(members, 'error'),
      lambda chosen: np.zeros(len(members)),
      _Knobs(price, limit, ratio, tolerance, cost),
    )

  return rule


def confirmed(
  rule: Rule,
  task: Task,
  *,
  price: float = 0.0,
  cost: Callable[[Spec], Count] = parameters,
) -> Rule:
  """Accepts on a second fold: builds what a rule chose, and measures it.

  The set is accepted if the loss on the validation split, the price of what
  the set costs added, does not rise; else its first half (in the order of
  choice) is tried, and so on down to one move. Scores are estimates from few
  examples, and their minimum is an optimistic one (growth specification,
  1.3.7).

  Args:
    rule: chooses, such as `jointly(...)`.
    task: its validation split is the second fold.
    price: nats per unit of cost, as of the rule.
    cost: as of the rule.

  Returns:
    A rule for `choose`.

  Example:
    >>> from jaxnas import tasks
    >>> rule = confirmed(jointly(price=1e-6), tasks.digits(), price=1e-6)
  """

  def loss(net: network.Network) -> float:
    return training.evaluate(net, task, task.valid).loss

  def confirming(members: Sequence[Candidate]) -> Choice:
    choice = rule(members)
    count, made = len(choice.indices), 0
    if not count:
      return choice
    net = network.to_host(members[0].net)
    before, spent = loss(net), cost(net.spec)({})
    while count:
      picked = [members[i] for i in choice.indices[:count]]
      move, theta = morphisms.unite(
        net, [m.move for m in picked], [m.theta for m in picked]
      )
      built = move(net, network.to_host(theta))
      made += 1
      dearer = cost(built.spec)({}) - spent
      if loss(built) - before + price * dearer <= 0:
        break
      count //= 2
    return choice.first(count)._replace(evaluations=made + 1)

  return confirming


class _Knobs(NamedTuple):
  price: float
  limit: int | None
  ratio: float
  tolerance: float
  cost: Callable[[Spec], Count]


def _check_knobs(name, price, z, limit, ratio) -> None:
  if price < 0 or z < 0 or (limit is not None and limit < 0):
    raise ValueError(
      f'{name}: price, z and limit must not be negative, got price={price},'
      f' z={z}, limit={limit}.'
    )
  if not ratio >= 1:
    raise ValueError(f'{name}: ratio must be at least 1, got {ratio}.')


def _column(members: Sequence[Candidate], name: str) -> np.ndarray:
  return np.array([m.metrics[name] for m in members])


def _greedily(
  members: Sequence[Candidate],
  single: np.ndarray,
  margin: np.ndarray,
  interact: Callable[[int], np.ndarray],
  knobs: _Knobs,
) -> Choice:
  """Adds the best legal move until none gains enough."""
  spec = members[0].net.spec
  sizes = {g.name: g.size for g in groups.growable(spec)}
  count = knobs.cost(spec)
  effects = [_effect(m.move) for m in members]
  kinds = sorted(set(effects))
  kind = np.array([kinds.index(e) for e in effects])
  blocks = {
    i: _block(spec, m.move, knobs.cost)
    for i, m in enumerate(members)
    if isinstance(m.move, depth.Insert)
  }
  clashes = _clashes(members)
  free = np.ones(len(members), bool)
  cross, chosen = np.zeros(len(members)), []
  predictions, total, first = [], 0.0, count({})

  def spent(sizes: Sizes) -> float:  # Blocks grow with what they read.
    held = (blocks[i](sizes) for i in chosen if i in blocks)
    return count(sizes) + sum(held)

  while knobs.limit is None or len(chosen) < knobs.limit:
    now = spent(sizes)
    steps = [
      {name: sizes[name] + by for name, by in change} for change in kinds
    ]
    legal = np.array([min(s.values(), default=1) > 0 for s in steps])
    change = np.array([spent({**sizes, **step}) - now for step in steps])
    dearer = change[kind]
    for i in blocks:
      dearer[i] += blocks[i](sizes)
    gain = single + margin + cross + knobs.price * dearer
    able = free & legal[kind] & np.isfinite(gain)  # NaN is never chosen.
    able &= now + dearer <= max(first * knobs.ratio, now)
    gain = np.where(able, gain, np.inf)
    best = int(np.argmin(gain))
    if not (able[best] and gain[best] < -knobs.tolerance):
      break
    chosen.append(best)
    total += single[best] + cross[best]
    predictions.append(float(total))
    cross = cross + interact(best)
    sizes.update(steps[kind[best]])
    free[best] = False
    free[clashes(best)] = False
  return Choice(tuple(chosen), tuple(predictions))


def _check_scored(members: Sequence[Candidate]) -> None:
  """Refuses what these rules cannot choose among, saying what to add."""
  for member in members:
    if not isinstance(member.move, width.Split | width.Prune | depth.Insert):
      raise ValueError(
        'choose: this rule chooses among splits, prunes and insertions, got '
        f'{member.move}; give choose() a rule of your own.'
      )
    if 'coefficients' not in member.metrics:
      raise ValueError(
        f'choose: {member.move} has no scores; add judge() before choose().'
      )


def _effect(move: Any) -> tuple[tuple[str, int], ...]:
  """How many channels a move adds to each group."""
  if isinstance(move, depth.Insert):
    return ()
  sign = 1 if isinstance(move, width.Split) else -1
  return tuple((name, sign * len(chosen)) for name, chosen in move.channels)


@functools.lru_cache(maxsize=4096)
def _block(spec: Spec, move: depth.Insert, cost: Callable) -> Count:
  """What an insertion costs, as a function of the groups' sizes."""
  before, after = cost(spec), cost(morphisms.respec(move, spec))
  return lambda sizes: after(sizes) - before(sizes)


def _touched(move: Any) -> Iterable[tuple[str, Any]]:
  """What a move acts on, and no other may."""
  if isinstance(move, depth.Insert):
    return [('', move.after)]
  return [(name, c) for name, chosen in move.channels for c in chosen]


def _leaned_on(member: Candidate) -> Iterable[tuple[str, int]]:
  """The channels that must stay for a merge to mean what it was scored as."""
  if not isinstance(member.move, outgoing.Merge) or not member.theta:
    return
  for name, chosen in member.move.channels:
    shares = np.abs(np.asarray(member.theta['shares'][name]))
    for channel in np.flatnonzero(shares.max(axis=0) > _LEANS):
      if channel not in chosen:
        yield name, int(channel)


def _clashes(members: Sequence[Candidate]) -> Callable[[int], list[int]]:
  """`clashes(chosen)`: the candidates that a choice rules out."""
  acting: dict[Any, list[int]] = {}
  removing: dict[Any, list[int]] = {}
  leaning: dict[Any, list[int]] = {}
  for i, member in enumerate(members):
    for what in _touched(member.move):
      acting.setdefault(what, []).append(i)
      if isinstance(member.move, width.Prune):
        removing.setdefault(what, []).append(i)
    for what in _leaned_on(member):
      leaning.setdefault(what, []).append(i)

  def clashes(chosen: int) -> list[int]:
    member = members[chosen]
    found = [i for what in _touched(member.move) for i in acting[what]]
    for what in _leaned_on(member):
      found += removing.get(what, [])
    if isinstance(member.move, width.Prune):
      for what in _touched(member.move):
        found += leaning.get(what, [])
    return found

  return clashes


def choose(rule: Rule) -> Stage:
  """Keeps one candidate for each network, with the chosen moves united.

  The candidate's metrics hold the rule's prediction as `predicted`, and
  `chosen`, the number of moves. Where a rule chooses none, the parent goes on
  without a move.

  Args:
    rule: `rule(candidates) -> Choice`.

  Example:
    >>> stage = choose(jointly(price=1e-6))
  """

  def update(key, population: Population) -> Population:
    del key
    members, spent = [], population.spent
    for _, rows in judge.by_parent(population.members):
      pending = [population.members[i] for i in rows]
      member, evaluations = _united(rule, pending)
      members.append(member)
      spent = spent.add(evaluations=evaluations)
    return population._replace(members=tuple(members), spent=spent)

  return combine.stage(update, 'choose')


def _united(rule: Rule, pending: Sequence[Candidate]) -> tuple[Candidate, int]:
  pending = [m for m in pending if m.move is not None] or list(pending)
  scratch = ('linear', 'error', 'coefficients', *fit.SAID)
  kept = {k: v for k, v in pending[0].metrics.items() if k not in scratch}
  parent = pending[0]._replace(move=None, theta=(), metrics=kept, parent=None)
  if pending[0].move is None:
    return parent, 0
  choice = rule(pending)
  if not choice.indices:
    return parent, choice.evaluations
  picked = [pending[i] for i in choice.indices]
  move, theta = morphisms.unite(
    parent.net, [m.move for m in picked], [m.theta for m in picked]
  )
  metrics = {
    **kept,
    'predicted': choice.predicted,
    'chosen': len(choice.indices),
    'nats': all(m.metrics.get('nats', True) for m in picked),
  }
  united = parent._replace(move=move, theta=theta, metrics=metrics)
  return united, choice.evaluations
