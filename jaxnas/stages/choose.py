"""Stages that choose which pending moves are made."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxnas import combine, groups, layers, morphisms, network
from jaxnas.base import Candidate, Population, Stage
from jaxnas.morphisms import width
from jaxnas.spec import Spec
from jaxnas.stages import judge

Sizes = Mapping[str, int]


class Choice(NamedTuple):
  """Moves chosen together, and the loss change predicted for the set.

  Attributes:
    indices: positions of the chosen candidates, in the order of choice.
    predicted: the change of the loss, in nats.
  """

  indices: tuple[int, ...]
  predicted: float


Rule = Callable[[Sequence[Candidate]], Choice]


def parameters(spec: Spec) -> Callable[[Sizes], int]:
  """A price: the number of parameters as a function of the groups' sizes.

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
  table, shapes = groups.table(spec), network.shapes(spec).variables
  terms = []
  for node in spec.nodes:
    for (collection, leaf), roles in layers.axes(node.op).items():
      if collection != 'params':
        continue
      shape = shapes['params'][node.name][leaf].shape
      fixed, axes = 1, []
      for role, size in zip(roles, shape):
        if role is None:
          fixed *= size
        else:
          source = node.name if role == 'out' else node.inputs[0]
          axes.append(table.axes[source])
      terms.append((fixed, axes))

  def count(sizes: Sizes) -> int:
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


def jointly(
  *,
  price: float,
  z: float = 1.0,
  limit: int | None = None,
  tolerance: float = 1e-5,
  cost: Callable[[Spec], Callable[[Sizes], float]] = parameters,
) -> Rule:
  """Chooses a set of splits and prunes by its joint estimate (Gram term).

  Greedy (growth specification, 1.3.6): adds the move with the least
  `linear + z error + M_cc / 2 + sum over chosen of M_cj + price * dP`, while
  that is below `-tolerance`; M is the Gram matrix of the coefficients and dP
  the change of cost given what is chosen already. Splits and prunes pay and
  earn the same price. A channel is split or pruned once, and no group loses
  its last channel.

  Args:
    price: lambda_p, nats per unit of cost (per parameter).
    z: standard errors to add to each estimate.
    limit: at most so many moves; None for no limit.
    tolerance: nats that an addition must gain at least.
    cost: `cost(spec)(sizes)`, what a network with such groups costs.

  Returns:
    A rule for `choose`.

  Raises:
    ValueError: for a negative price, error factor or limit.
  """
  if price < 0 or z < 0 or (limit is not None and limit < 0):
    raise ValueError(
      f'jointly: price, z and limit must not be negative, got price={price},'
      f' z={z}, limit={limit}.'
    )

  def rule(members: Sequence[Candidate]) -> Choice:
    _check_scored(members)
    rho = np.stack([m.metrics['coefficients'] for m in members], axis=1)
    linear = np.array([m.metrics['linear'] for m in members])
    error = np.array([m.metrics['error'] for m in members])
    alone = linear + z * error + np.square(rho).mean(axis=0) / 2
    spec = members[0].net.spec
    sizes = {g.name: g.size for g in groups.growable(spec)}
    count = cost(spec)
    effects = [_effect(m.move) for m in members]
    kinds = sorted({tuple(e.items()) for e in effects})
    kind = np.array([kinds.index(tuple(e.items())) for e in effects])
    acting: dict[tuple[str, int], list[int]] = {}
    for i, member in enumerate(members):
      for channel in _channels(member.move):
        acting.setdefault(channel, []).append(i)
    free = np.ones(len(members), bool)
    cross, chosen, total = np.zeros(len(members)), [], 0.0
    while limit is None or len(chosen) < limit:
      now = count(sizes)
      steps = [
        {name: sizes[name] + by for name, by in change} for change in kinds
      ]
      legal = np.array([min(step.values()) > 0 for step in steps])
      dearer = np.array([count({**sizes, **step}) - now for step in steps])
      gain = alone + cross + price * dearer[kind]
      able = free & legal[kind] & np.isfinite(gain)  # NaN is never chosen.
      gain = np.where(able, gain, np.inf)
      best = int(np.argmin(gain))
      if not gain[best] < -tolerance:
        break
      chosen.append(best)
      total += linear[best] + np.square(rho[:, best]).mean() / 2 + cross[best]
      cross = cross + rho.T @ rho[:, best] / len(rho)
      sizes.update(steps[kind[best]])
      for channel in _channels(members[best].move):
        free[acting[channel]] = False
    return Choice(tuple(chosen), float(total))

  return rule


def independently(*, price: float, count: int) -> Rule:
  """The `count` best moves by their single estimates: a control.

  It ignores that moves interact: the individually best ones are redundant and
  overshoot together. Its prediction is the sum of the single estimates.

  Args:
    price: nats per parameter.
    count: how many moves to choose.
  """

  def rule(members: Sequence[Candidate]) -> Choice:
    _check_scored(members)
    spec = members[0].net.spec
    sizes = {g.name: g.size for g in groups.growable(spec)}
    cost = parameters(spec)
    now = cost(sizes)
    single = np.array([m.metrics['predicted'] for m in members])
    priced = single + price * np.array(
      [
        cost({**sizes, **{n: sizes[n] + by for n, by in e.items()}}) - now
        for e in (_effect(m.move) for m in members)
      ]
    )
    chosen, taken = [], set()
    for i in np.argsort(priced, kind='stable'):
      if len(chosen) < count and not taken & _channels(members[i].move):
        chosen.append(int(i))
        taken |= _channels(members[i].move)
    return Choice(tuple(chosen), float(single[chosen].sum()))

  return rule


def _check_scored(members: Sequence[Candidate]) -> None:
  """Refuses what these rules cannot choose among, saying what to add."""
  for member in members:
    if not isinstance(member.move, width.Split | width.Prune):
      raise ValueError(
        'choose: this rule chooses among splits and prunes, got '
        f'{member.move}; give choose() a rule of your own.'
      )
    if 'coefficients' not in member.metrics:
      raise ValueError(
        f'choose: {member.move} has no scores; add judge() before choose().'
      )


def _channels(move) -> set[tuple[str, int]]:
  return {(name, c) for name, chosen in move.channels for c in chosen}


def _effect(move) -> dict[str, int]:
  """How many channels a split or prune adds to each group."""
  sign = 1 if isinstance(move, width.Split) else -1
  return {name: sign * len(chosen) for name, chosen in move.channels}


def choose(rule: Rule) -> Stage:
  """Keeps one candidate for each network, with the chosen moves merged.

  The merged candidate's metrics hold the rule's prediction as `predicted`,
  and `chosen`, the number of moves. Where a rule chooses none, the parent goes
  on without a move.

  Args:
    rule: `rule(candidates) -> Choice`.
  """

  def update(key, population: Population) -> Population:
    del key
    members = []
    for _, rows in judge.by_parent(population.members):
      pending = [population.members[i] for i in rows]
      members.append(_merged(rule, pending))
    return population._replace(members=tuple(members))

  return combine.stage(update, 'choose')


def _merged(rule: Rule, pending: Sequence[Candidate]) -> Candidate:
  pending = [m for m in pending if m.move is not None] or list(pending)
  scratch = ('linear', 'error', 'coefficients', 'predicted', 'chosen')
  kept = {k: v for k, v in pending[0].metrics.items() if k not in scratch}
  parent = pending[0]._replace(move=None, theta=(), metrics=kept, parent=None)
  if pending[0].move is None:
    return parent
  choice = rule(pending)
  if not choice.indices:
    return parent
  picked = [pending[i] for i in choice.indices]
  move, theta = morphisms.unite(
    parent.net, [m.move for m in picked], [m.theta for m in picked]
  )
  metrics = {
    **kept,
    'predicted': choice.predicted,
    'chosen': len(choice.indices),
  }
  return parent._replace(move=move, theta=theta, metrics=metrics)
