"""Networks of one space stored alike, so that they share compiled programs."""

import dataclasses
import functools
from typing import NamedTuple

from jaxnas import groups, morphisms, network, plans
from jaxnas import spec as specs
from jaxnas.base import Candidate, Population, Stage


class Room(NamedTuple):
  """What every network has room for, so that more of them are stored alike.

  Attributes:
    channels: of every group.
    images: convolutions before a pooling; 0 for those that there are.
    vectors: hidden dense layers, likewise.
    poolings: of an image, or two, four, ... more. The last one may be absent if
      there are two or more, so that networks of one and two share a structure,
      those of three and four, ...; 0 for those that there are.
    last: convolutions behind a pooling that may be absent; 0 for those that
      there are.
  """

  channels: int = 16
  images: int = 2
  vectors: int = 3
  poolings: int = 2
  last: int = 1


def alike(inner: Stage, *, room: Room = Room()) -> Stage:
  """Runs a stage on networks made as alike as they can be.

  Nodes get names by their place, and groups of channels a capacity of at least
  `room.channels`, so that networks which differ by names and a few channels
  share one compiled program. So do chains of equal blocks that differ in their
  number, if no group has more channels than that: there is room for so many
  blocks, or two, four, ... more, between one pooling and the next and behind
  the flattening, of which those that a network lacks are absent, as may be the
  last pooling (`jaxnas.morphisms.embed`). Afterwards all is as it was. For
  small networks, which compile a thousand times as long as they train. One that
  is stored at a capacity already is left as it is. The last pooling may be
  absent if it makes images smaller on both axes, and has a block before it and
  a `Flatten` behind.

  Args:
    inner: a stage that leaves one candidate for each, of the same architecture,
      and does not walk it node by node (`jaxnas.network.caller`).
    room: what there is room for at least.

  Example:
    >>> import jax
    >>> from jaxnas import combine
    >>> from jaxnas.spaces import seeds
    >>> given = [seeds.mlp((4,), widths, 3) for widths in ((5,), (7, 6), (9,))]
    >>> nets = [network.init(spec, jax.random.key(0)) for spec in given]
    >>> start = Population(tuple(map(Candidate, nets)))
    >>> seen = []
    >>> look = combine.observe(
    ...     lambda population: seen.extend(population.members))
    >>> last, _ = alike(look).update(None, start, ())
    >>> len({member.net.spec for member in seen})
    1
    >>> [member.net.spec for member in last.members] == given
    True
  """

  def update(key, population: Population, state):
    storages = [
      _storage(member.net.spec, room) for member in population.members
    ]
    held = tuple(_held(member, room) for member in population.members)
    after, state = inner.update(key, population._replace(members=held), state)
    bare = tuple(
      _bare(member, storage)
      for member, storage in zip(after.members, storages, strict=True)
    )
    return after._replace(members=bare), state

  return Stage(inner.init, update, f'alike({inner.name})')


def stored(
  population: Population, *, room: Room = Room()
) -> list[network.Network]:
  """The networks of a population as stages within `alike` meet them.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> spec = seeds.mlp((4,), (5,), 3)
    >>> net = network.init(spec, jax.random.key(0))
    >>> (held,) = stored(Population((Candidate(net),)))
    >>> held.spec.padded, network.absent(held)
    (('run0_slot0_0', 'run0_slot1_0', 'run0_slot2_0'),...
  """
  return [_held(member, room).net for member in population.members]


def _held(member: Candidate, room: Room) -> Candidate:
  moves = _storage(member.net.spec, room).moves
  return functools.reduce(_made, moves, member)


class _Storage(NamedTuple):
  """How a network is stored: names of its nodes there, and the moves."""

  names: dict[str, str]
  moves: tuple[morphisms.Morphism, ...]


def _bare(member: Candidate, storage: _Storage) -> Candidate:
  """The candidate as it was before it was stored so."""
  if not storage.moves:
    return member
  member = _made(member, morphisms.extract(member.net))
  member = _made(member, morphisms.uncapped(member.net))
  back = {new: old for old, new in storage.names.items()}
  return _made(member, morphisms.rename(back))


def _made(member: Candidate, move: morphisms.Morphism) -> Candidate:
  """The candidate after a move that is no edit: the lineage does not tell."""
  net, state = morphisms.morph(
    move,
    network.to_host(member.net),
    theta=(),  # None of these moves has parameters.
    opt_state=network.to_host(member.opt_state),
  )
  return member._replace(net=net, opt_state=state)


@functools.lru_cache(maxsize=1024)
def _storage(spec: specs.Spec, room: Room) -> _Storage:
  """How a network of the spec is stored."""
  if spec.padded or spec.optional:
    return _Storage({}, ())
  runs = _runs(spec)
  small = all(g.size <= room.channels for g in groups.growable(spec))
  if runs is not None and small:
    names, into = _deepest(spec, runs, room)
  else:
    names = {node.name: f'node{i}' for i, node in enumerate(spec.order)}
    into = None
  moves = [morphisms.rename(names)]
  sizes = {
    g.name: room.channels if into else max(room.channels, plans.bucket(g.size))
    for g in groups.growable(morphisms.respec(moves[0], spec))
  }
  moves += [morphisms.pad(sizes)] if sizes else []
  moves += [morphisms.embed(into)] if into and into.optional else []
  return _Storage(names, tuple(moves))


_Block = tuple[specs.Node, ...]


class _Run(NamedTuple):
  """Blocks one behind the other, and the node behind them, if there is one.

  A block is a linear layer with the operations on its channels that follow.
  """

  blocks: tuple[_Block, ...]
  end: specs.Node | None

  @property
  def hidden(self) -> tuple[_Block, ...]:
    """The blocks but that of the output, with which the last run ends."""
    return self.blocks[:-1] if self.end is None else self.blocks


def _runs(spec: specs.Spec) -> tuple[_Run, ...] | None:
  """A network as runs of equal blocks; None if it is none.

  The last run ends with the block of the output, which may be another.
  """
  runs, blocks = [], []
  source, *nodes = spec.order
  before = source.name
  for node in nodes:
    if node.inputs != (before,) or isinstance(node.op, specs.Dropout):
      return None
    keeps = spec.shapes[node.name] == spec.shapes[before]
    before = node.name
    if node.op.kind == 'mixing':
      blocks.append((node,))
    elif node.op.kind == 'channelwise' and keeps and blocks:
      blocks[-1] = (*blocks[-1], node)
    elif node.op.kind in ('channelwise', 'flatten') and not keeps:
      runs.append(_Run(tuple(blocks), node))
      blocks = []
    else:
      return None
  if not blocks:
    return None
  runs.append(_Run(tuple(blocks), None))
  hidden = [
    (len(spec.shapes[block[0].name]), _pattern(block))
    for run in runs
    for block in run.hidden
  ]
  alike_ = len(dict(hidden)) == len(set(hidden))
  still = all(
    spec.shapes[b[0].name][:-1] == spec.shapes[b[0].inputs[0]][:-1]
    for run in runs
    for b in run.blocks
  )
  return tuple(runs) if alike_ and still else None


def _pattern(block: _Block) -> tuple[specs.Op, ...]:
  """The operations of a block, whatever its width."""
  return _at(tuple(node.op for node in block), 1)


def _at(ops: tuple[specs.Op, ...], features: int) -> tuple[specs.Op, ...]:
  return (dataclasses.replace(ops[0], features=features), *ops[1:])


def _deepest(
  spec: specs.Spec, runs: tuple[_Run, ...], room: Room
) -> tuple[dict[str, str], specs.Spec]:
  """The spec in which there is room, and where in it the nodes are."""
  patterns = {
    len(spec.shapes[block[0].name]): _at(_pattern(block), room.channels)
    for run in runs
    for block in run.hidden
  }
  source = spec.order[0]
  nodes = [specs.Node('start', source.op)]
  names, optional = {source.name: 'start'}, []
  shape = spec.shapes[source.name]
  pooling, frame = _last_pooling(spec, runs, room), ()
  if pooling is not None:
    runs = _with_pooling(spec, runs, pooling)

  def add(name: str, op: specs.Op) -> str:
    nonlocal shape
    nodes.append(specs.Node(name, op, (nodes[-1].name,)))
    shape = op.shape(shape)
    return name

  def add_framed(name: str, ops: tuple[specs.Op, ...]) -> tuple[str, ...]:
    cut = (specs.Trim(*frame),) if frame else ()
    pad = (specs.ZeroPad(*frame),) if frame else ()
    before = [add(f'{name}_cut', op) for op in cut]
    inner = [add(f'{name}_{j}', op) for j, op in enumerate(ops)]
    behind = [add(f'{name}_frame', op) for op in pad]
    optional.append((*before, *inner, *behind))
    return tuple(inner)

  flat = False
  for i, run in enumerate(runs):
    own = run.hidden
    ops = patterns.get(len(shape), ())
    # The first block of what is not as wide as blocks are must be there, as
    # that behind a flattening, which has all positions' channels.
    first = flat or shape[-1] != room.channels
    least = room.vectors if len(shape) == 1 else room.images
    least = room.last if frame else least
    slots = _even(len(own), least) if ops and (own or not first) else 0
    flat = False
    for k in range(slots):
      name = f'run{i}_slot{k}'
      if k == 0 and first:
        inner = tuple(add(f'{name}_{j}', op) for j, op in enumerate(ops))
      else:
        inner = add_framed(name, ops)
      if k < len(own):
        names.update(zip([node.name for node in own[k]], inner))
    if run.end is None:
      for j, node in enumerate(run.blocks[-1]):
        names[node.name] = add(f'out_{j}', node.op)
      continue
    if run.end.name in spec.by_name:
      names[run.end.name] = f'end{i}'
    before = shape
    add(f'end{i}', run.end.op)
    if i == pooling:
      frame = before[0] - shape[0], before[1] - shape[1]
      add(f'end{i}_frame', specs.ZeroPad(*frame))
      optional.append((f'end{i}', f'end{i}_frame'))
    elif run.end.op.kind == 'flatten':
      flat, frame = True, ()
  into = specs.Spec(tuple(nodes), nodes[-1].name)
  padded = sorted(group.name for group in groups.growable(into))
  into = dataclasses.replace(
    into, padded=tuple(padded), optional=tuple(optional)
  )
  return names, into


def _last_pooling(
  spec: specs.Spec, runs: tuple[_Run, ...], room: Room
) -> int | None:
  """The number of the run whose pooling may be absent; None for none.

  It is the last before the flattening, and that of a run to be put in if the
  network has one less than there is room for.
  """
  ends = [run.end.op for run in runs if run.end is not None]
  count = len(ends) - 1
  if count < 1 or not all(isinstance(op, specs.Pool) for op in ends[:-1]):
    return None
  total = _even(count, room.poolings)
  blocks = any(run.hidden for run in runs[:count])
  paired = room.poolings and 1 < total <= count + 1
  if not paired or not blocks or ends[-1].kind != 'flatten':
    return None
  before = spec.shapes[runs[total - 2].end.name]
  try:
    after = ends[count - 1].shape(before)
  except ValueError:  # There is nothing left to pool.
    return None
  smaller = all(b > a for b, a in zip(before[:2], after[:2]))
  return total - 1 if smaller else None


def _with_pooling(
  spec: specs.Spec, runs: tuple[_Run, ...], number: int
) -> tuple[_Run, ...]:
  """The runs with a pooling at the end of one, if it ends with none yet."""
  run, pooling = runs[number], runs[number - 1].end
  if isinstance(run.end.op, specs.Pool):
    return runs
  end = dataclasses.replace(pooling, name=spec.fresh(pooling.name))
  added = _Run(run.blocks, end), _Run((), run.end)
  return (*runs[:number], *added, *runs[number + 1 :])


def _even(count: int, least: int) -> int:
  """So many at least, or two, four, ... more; with 0 as many as there are."""
  return max(count + (count - least) % 2, least) if least else count
