"""Stages of evolution: who is a parent, what changes, who goes, who is kept.

Scores of candidates are read from their metrics by *objectives*, functions
`candidate -> float` of which more is better: `more('valid_metric')`,
`less('params')`, or one of your own. A candidate whose training diverged scores
NaN, which no rule of `jaxnas.selection` prefers to a number.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxnas import combine, morphisms, network, selection
from jaxnas.base import Candidate, Key, Population, Space, Stage, rng
from jaxnas.stages import propose
from jaxnas.stages.propose import Moves

Objective = Callable[[Candidate], float]
Objectives = Objective | Sequence[Objective]


def more(name: str) -> Objective:
  """The objective of more of a metric, such as `'valid_metric'`.

  Args:
    name: of the metric.

  Returns:
    `objective(candidate)`: the metric, or NaN if the candidate's last training
    diverged (it has the weights of before, and no claim to be the best).

  Raises:
    ValueError: when called, for a candidate without that metric.

  Example:
    >>> more('valid_metric')(Candidate(None, metrics={'valid_metric': 0.9}))
    0.9
  """

  def objective(candidate: Candidate) -> float:
    if name not in candidate.metrics:
      raise ValueError(
        f'a candidate has no metric {name!r}, it has '
        f'{sorted(candidate.metrics)}; add measure() before the stage that '
        'selects.'
      )
    value = float(candidate.metrics[name])
    return math.nan if diverged(candidate) else value

  return objective


def less(name: str) -> Objective:
  """The objective of less of a metric, such as `'params'` or `'flops'`.

  Args:
    name: of the metric; as in `more`.

  Example:
    >>> less('params')(Candidate(None, metrics={'params': 67}))
    -67.0
  """
  positive = more(name)
  return lambda candidate: -positive(candidate)


def faster(*, operations: float, numbers: float) -> Objective:
  """The objective of less latency, by a roofline.

  Each layer takes as long as its operations or its memory traffic, whichever
  is longer (Williams et al. 2009); an estimate for one example, which is the
  same on every machine and in every run, as measured times are not.

  Args:
    operations: floating-point operations a second of the device.
    numbers: values it reads or writes in a second.

  Returns:
    `objective(candidate)`: the seconds of a forward pass, negated.

  Raises:
    ValueError: for rates that are not positive.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> net = network.shapes(seeds.mlp((4,), (8,), 3))
    >>> round(faster(operations=100, numbers=1e9)(Candidate(net)), 3)
    -1.12
  """
  if not (operations > 0 and numbers > 0):
    raise ValueError(
      'faster: operations and numbers a second must be positive, got '
      f'{operations!r} and {numbers!r}.'
    )

  def objective(candidate: Candidate) -> float:
    layers = network_layers(candidate.net)
    return -sum(max(f / operations, v / numbers) for f, v in layers)

  return objective


def network_layers(net: network.Network) -> Iterator[tuple[int, int]]:
  """For each node its operations, and the values it reads and writes."""
  spec = network.active_spec(net)
  params = network.shapes(spec).variables.get('params', {})
  for node in spec.nodes:
    held = params.get(node.name, {})
    positions = math.prod(spec.shapes[node.name][:-1])
    kernel = math.prod(held['kernel'].shape) if 'kernel' in held else 0
    values = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(held))
    values += sum(math.prod(spec.shapes[s]) for s in node.inputs)
    if node.inputs:
      yield 2 * positions * kernel, values + math.prod(spec.shapes[node.name])


def diverged(candidate: Candidate) -> bool:
  """Whether a candidate's last training diverged: its loss is not finite.

  Example:
    >>> diverged(Candidate(None, metrics={'train_loss': math.nan}))
    True
  """
  return not math.isfinite(candidate.metrics.get('train_loss', 0.0))


def score(members: Sequence[Candidate], by: Objectives) -> np.ndarray:
  """The members' scores: (n,) by one objective, (n, objectives) by several.

  Args:
    members: candidates, at least one.
    by: an objective, or a sequence of them.

  Example:
    >>> member = Candidate(None, metrics={'valid_metric': 0.5, 'params': 3})
    >>> score([member, member], (more('valid_metric'), less('params')))
    array([[ 0.5, -3. ],
           [ 0.5, -3. ]])
  """
  if callable(by):
    return np.array([by(member) for member in members], float)
  return np.array([[f(member) for f in by] for member in members], float)


def select(
  rule: selection.Rule, *, by: Objectives = more('valid_metric')
) -> Stage:
  """Keeps the members that a rule chooses, in the order of its choice.

  One stage for parents (`tournament`) and survivors (`nsga2`, `top`). Out
  come as many members as the rule gives indices, a member as often as it is
  chosen.

  Args:
    rule: a rule of `jaxnas.selection`, or one of your own.
    by: what it ranks by.

  Raises:
    ValueError: when run, for members without the metrics that `by` reads.

  Example:
    >>> better = select(selection.top(1))
    >>> members = tuple(
    ...     Candidate(None, metrics={'valid_metric': v}) for v in (0.1, 0.3))
    >>> best, _ = better.update(None, Population(members), ())
    >>> best.members == members[1:]
    True
  """

  def update(key: Key, population: Population) -> Population:
    members = population.members
    if not members:
      return population
    chosen = rule(key, score(members, by))
    return population._replace(members=tuple(members[i] for i in chosen))

  return combine.stage(update, 'select')


def remember(
  rule: selection.Rule, *, by: Objectives = more('valid_metric')
) -> Stage:
  """Keeps in the archive what a rule chooses of archive and members.

  The answer of a search that forgets: `top(1)` is the best in its history, as
  regularized evolution returns it; `front()` is the Pareto set of all that it
  measured. Members stay as they are. Of candidates that have one architecture
  and equal scores the archive holds one, the oldest.

  Args:
    rule: a rule of `jaxnas.selection`.
    by: what it ranks by.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> keep = remember(selection.top(1))
    >>> net = network.shapes(seeds.mlp((4,), (8,), 3))
    >>> old, new = (
    ...     Candidate(net, metrics={'valid_metric': v}) for v in (0.5, 0.4))
    >>> population = Population((new,), archive=(old,))
    >>> keep.update(None, population, ())[0].archive == (old,)
    True
  """

  def update(key: Key, population: Population) -> Population:
    known = (*population.archive, *population.members)
    if not known:
      return population
    scores = score(known, by)
    labels = [(c.net.spec, s.tobytes()) for c, s in zip(known, scores)]
    first = [i for i, label in enumerate(labels) if labels.index(label) == i]
    chosen = rule(key, scores[first])
    kept = tuple(known[first[i]] for i in chosen)
    return population._replace(archive=kept)

  return combine.stage(update, 'remember')


def youngest(count: int) -> Stage:
  """Keeps the members that were born last: ageing.

  Real et al. (2019), algorithm 1, where the oldest leaves for each child that
  comes. Of equal age those that come later in the population are younger, so
  a population to which children are appended is a queue. Out come `count`
  members, or all if there are fewer, in their order.

  Args:
    count: P, the size of the population.

  Raises:
    ValueError: for a count below one.

  Example:
    >>> members = tuple(Candidate(None, born=b) for b in (0, 2, 0, 1))
    >>> kept, _ = youngest(3).update(None, Population(members), ())
    >>> [member.born for member in kept.members]
    [2, 0, 1]
  """
  if not isinstance(count, int) or count < 1:
    raise ValueError(
      f'youngest: count must be a whole number of at least 1, got {count!r}.'
    )

  def update(key: Key, population: Population) -> Population:
    del key
    members = population.members
    ages = sorted(range(len(members)), key=lambda i: (members[i].born, i))
    kept = sorted(ages[-count:])
    return population._replace(members=tuple(members[i] for i in kept))

  return combine.stage(update, 'youngest')


def within(space: Space) -> Moves:
  """The moves of a space, as stages propose them.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.chain((4,), 3, stages=0, hidden=(1, 1))
    >>> net = network.shapes(space.sample(jax.random.key(1)))
    >>> [type(move).__name__ for move in within(space)(net)]
    ['Prune', 'Widen']
  """
  return lambda net: space.moves(net.spec)


def preserving(moves: Moves) -> Moves:
  """Of the moves those that leave the network's function as it is.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.chain((4,), 3, stages=0, hidden=(1, 1))
    >>> net = network.shapes(space.sample(jax.random.key(1)))
    >>> [type(move).__name__ for move in preserving(within(space))(net)]
    ['Widen']
  """
  return lambda net: [move for move in moves(net) if move.preserves]


def mutate(*moves: Moves) -> Stage:
  """Gives each member one random move, to be made by `realise`.

  The move is drawn uniformly from all legal ones; what would be illegal is
  not proposed. A member without a legal move goes on without one. Out come as
  many members as go in, born in this generation.

  Args:
    *moves: `moves(net)`, what to draw from, such as `within(space)`.

  Raises:
    ValueError: for a member with a pending move.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.chain((4,), 3, stages=0, hidden=(1, 1))
    >>> start = founders(jax.random.key(1), space, 1)
    >>> stage = mutate(within(space))
    >>> child, _ = stage.update(jax.random.key(0), start, ())
    >>> type(child.members[0].move).__name__
    'Prune'
  """

  def one(key: Key, member: Candidate) -> Candidate:
    found = [move for propose in moves for move in propose(member.net)]
    for i in rng(key).permutation(len(found)):
      if _legal(found[i], member.net):
        return member._replace(move=found[i], theta=None)
    return member

  def update(key: Key, population: Population) -> Population:
    propose.refuse_pending('mutate', population)
    members = [
      one(jax.random.fold_in(key, i), member)._replace(
        born=population.generation
      )
      for i, member in enumerate(population.members)
    ]
    return population._replace(members=tuple(members))

  return combine.stage(update, 'mutate')


def _legal(move: Any, net: network.Network) -> bool:
  try:
    morphisms.respec(move, net.spec)
  except ValueError:
    return False
  return True


def _fresh(key: Key, candidate: Candidate) -> Candidate:
  """The candidate as it would be at the start, with fresh weights."""
  net = network.to_host(network.init(candidate.net.spec, key))
  return candidate._replace(net=net, opt_state=None, metrics={}, steps=0)


def restart() -> Stage:
  """Fresh weights for every member, of the same architecture.

  The optimizer's state, the steps and the measurements go too. Out come as
  many members as go in.

  Raises:
    ValueError: for a member with a pending move.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.chain((4,), 3, stages=0, hidden=(1, 1))
    >>> start = founders(jax.random.key(0), space, 2)
    >>> again, _ = restart().update(jax.random.key(1), start, ())
    >>> [m.net.spec for m in again.members] == [
    ...     m.net.spec for m in start.members]
    True
  """

  def update(key: Key, population: Population) -> Population:
    propose.refuse_pending('restart', population)
    members = [
      _fresh(jax.random.fold_in(key, i), member)
      for i, member in enumerate(population.members)
    ]
    return population._replace(members=tuple(members))

  return combine.stage(update, 'restart')


def inherit() -> Stage:
  """Keeps every member's weights, and starts its optimizer anew.

  What stands in the place of `restart` where children go on from what their
  parents learned: a learning rate's schedule over a child's training starts
  again with it. Out come as many members as go in.

  Example:
    >>> start = Population((Candidate(None, opt_state=(1,)),))
    >>> inherit().update(None, start, ())[0].members[0].opt_state is None
    True
  """

  def update(key: Key, population: Population) -> Population:
    del key
    members = tuple(m._replace(opt_state=None) for m in population.members)
    return population._replace(members=members)

  return combine.stage(update, 'inherit')


def sample(space: Space) -> Stage:
  """Replaces every member by a random network of the space.

  Out come as many members as go in, born in this generation, untrained.

  Args:
    space: gives the architectures.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.chain((4,), 3, stages=0, hidden=(1, 2))
    >>> start = founders(jax.random.key(0), space, 2)
    >>> drawn, _ = sample(space).update(jax.random.key(1), start, ())
    >>> len(drawn.members)
    2
  """

  def update(key: Key, population: Population) -> Population:
    count, born = len(population.members), population.generation
    drawn = founders(key, space, count).members
    members = tuple(member._replace(born=born) for member in drawn)
    return population._replace(members=members)

  return combine.stage(update, 'sample')


def founders(key: Key, space: Space, count: int) -> Population:
  """A first population: random networks of a space, untrained.

  Args:
    key: draws architectures and weights.
    space: gives the architectures.
    count: how many.

  Returns:
    A population of `count` candidates.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.chain((4,), 3, stages=0, hidden=(1, 2))
    >>> len(founders(jax.random.key(0), space, 3).members)
    3
  """
  members = []
  for i in range(count):
    spec_key, net_key = jax.random.split(jax.random.fold_in(key, i))
    spec = space.sample(spec_key)
    net = network.to_host(network.init(spec, net_key))
    members.append(Candidate(net))
  return Population(tuple(members))
