"""Channel groups: which axes of a network must change width together.

Element-wise operations tie the channels of their inputs and outputs: a
residual add, a depthwise convolution, a norm, a bias. A *group* is a class of
tied axes, with the layers that write it, the per-channel layers in between,
and the layers that read it. Every width morphism acts on groups. Concatenated
groups lie side by side in an axis; a flattened axis holds its groups once per
position.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from jaxnas import spec as specs


class Axis(NamedTuple):
  """The channel axis of a node's value, as a row of groups.

  Attributes:
    groups: the groups' names, in order; a group may occur twice.
    sizes: their sizes.
    repeat: how often the row is repeated (positions, after a `Flatten`).
  """

  groups: tuple[str, ...]
  sizes: tuple[int, ...]
  repeat: int = 1

  def spread(self, maps: dict[str, np.ndarray], fill: str) -> np.ndarray:
    """Per-group vectors laid out over the whole axis.

    Args:
      maps: one vector for each group that differs from the default.
      fill: what other groups get: `'index'`: their own positions, and the
        vectors of `maps` are positions within the old group; `'ones'` or
        `'zeros'`: factors.

    Returns:
      A vector over the axis as it will be.
    """
    width, rows = sum(self.sizes), []
    for repetition in range(self.repeat):
      offset = repetition * width
      for group, size in zip(self.groups, self.sizes):
        if fill == 'index':
          row = offset + np.asarray(maps.get(group, np.arange(size)))
        else:
          row = maps.get(group, getattr(np, fill)(size))
        rows.append(row)
        offset += size
    return np.concatenate(rows)


@dataclasses.dataclass(frozen=True)
class Group:
  """A class of tied channel axes.

  Attributes:
    name: the name of the first layer that writes it; where that layer's
      output falls into several groups, with their number behind a dot.
    size: the number of channels.
    writers: names of the layers that make its channels.
    channelwise: names of the per-channel operations on it.
    readers: names of the layers that mix its channels into others.
    frozen: why its width cannot change, or `''`.
  """

  name: str
  size: int
  writers: tuple[str, ...]
  channelwise: tuple[str, ...]
  readers: tuple[str, ...]
  frozen: str = ''


class Table(NamedTuple):
  """The groups of a spec by name, and the axis of every node's value."""

  groups: dict[str, Group]
  axes: dict[str, Axis]


class _Segments(NamedTuple):
  """Union-find over stretches of channels that can still be cut in two.

  The only mutable object of this module; it lives within one call.
  """

  sizes: list[int]
  parts: dict[int, tuple[int, ...]]
  frozen: dict[int, str]

  def new(self, size: int) -> int:
    self.sizes.append(size)
    return len(self.sizes) - 1

  def resolve(self, row: tuple[int, ...]) -> tuple[int, ...]:
    out = []
    for segment in row:
      parts = self.parts.get(segment)
      out.extend((segment,) if parts is None else self.resolve(parts))
    return tuple(out)

  def tie(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """Makes two rows of equal total size the same, cutting where needed."""
    while True:
      a, b = self.resolve(a), self.resolve(b)
      differ = next(((x, y) for x, y in zip(a, b) if x != y), None)
      if differ is None:
        return
      x, y = sorted(differ, key=lambda s: self.sizes[s])
      cut = self.sizes[x]
      if self.sizes[y] == cut:
        x, y = sorted(differ)
        self.parts[y] = (x,)
      else:
        self.parts[y] = (self.new(cut), self.new(self.sizes[y] - cut))

  def freeze(self, row: tuple[int, ...], why: str) -> None:
    for segment in row:
      self.frozen.setdefault(segment, why)


@functools.lru_cache(maxsize=4096)
def table(spec: specs.Spec) -> Table:
  """The channel groups of a spec and the axes made of them.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> found = table(seeds.resnet(8, blocks=1, widths=(4, 8, 16)))
    >>> found.groups['stem'].writers
    ('stem', 'stage1_block1_conv2')
  """
  segments = _Segments([], {}, {})
  rows: dict[str, tuple[tuple[int, ...], int]] = {}
  for node in spec.order:
    rows[node.name] = _row(node, spec, segments, rows)
  segments.freeze(rows[spec.input][0], "it is the network's input")
  segments.freeze(rows[spec.output][0], "it is the network's output")
  frozen = {}
  for segment, why in segments.frozen.items():
    for root in segments.resolve((segment,)):
      frozen.setdefault(root, why)

  names: dict[int, str] = {}
  for node in spec.order:
    if node.op.kind in ('mixing', 'input'):
      roots = segments.resolve(rows[node.name][0])
      for i, root in enumerate(roots):
        single = len(roots) == 1
        names.setdefault(root, node.name if single else f'{node.name}.{i}')
  for i, root in enumerate(
    r
    for node in spec.order
    for r in segments.resolve(rows[node.name][0])
    if r not in names
  ):
    names.setdefault(root, f'opaque.{i}')

  axes = {}
  for name, (row, repeat) in rows.items():
    roots = segments.resolve(row)
    axes[name] = Axis(
      tuple(names[r] for r in roots),
      tuple(segments.sizes[r] for r in roots),
      repeat,
    )
  reasons = {names[root]: why for root, why in frozen.items()}
  return Table(_groups(spec, axes, reasons), axes)


def _row(node, spec, segments, rows) -> tuple[tuple[int, ...], int]:
  """The segments of a node's channel axis, and how often they repeat."""
  kind = node.op.kind
  width = spec.shapes[node.name][-1]
  if kind in ('input', 'mixing'):
    return (segments.new(width),), 1
  sources = [rows[s] for s in node.inputs]
  repeats = {repeat for _, repeat in sources}
  if kind == 'flatten':
    (row, repeat) = sources[0]
    positions = int(np.prod(spec.shapes[node.inputs[0]][:-1], dtype=int))
    return row, repeat * positions
  if kind == 'concat' and repeats == {1}:
    return sum((row for row, _ in sources), ()), 1
  if kind == 'channelwise' and len(repeats) == 1:
    first, repeat = sources[0]
    for other, _ in sources[1:]:
      segments.tie(first, other)
    return first, repeat
  for row, _ in sources:
    segments.freeze(
      row, f'node {node.name!r} combines axes of different layout'
    )
  opaque = (segments.new(width),)
  segments.freeze(opaque, f'node {node.name!r} combines different layouts')
  return opaque, 1


def _groups(spec, axes, frozen) -> dict[str, Group]:
  roles = {'writers': {}, 'channelwise': {}, 'readers': {}}
  sizes: dict[str, int] = {}
  for node in spec.order:
    axis = axes[node.name]
    sizes.update(zip(axis.groups, axis.sizes))
    kind = node.op.kind
    role = {'mixing': 'writers', 'input': 'writers'}.get(kind, 'channelwise')
    for group in dict.fromkeys(axis.groups):
      roles[role].setdefault(group, []).append(node.name)
    if kind == 'mixing':
      for group in dict.fromkeys(axes[node.inputs[0]].groups):
        roles['readers'].setdefault(group, []).append(node.name)
  return {
    name: Group(
      name,
      size,
      **{r: tuple(found.get(name, ())) for r, found in roles.items()},
      frozen=frozen.get(name, ''),
    )
    for name, size in sizes.items()
  }


def growable(spec: specs.Spec) -> tuple[Group, ...]:
  """The groups whose width may change, in the order of the network."""
  return tuple(g for g in table(spec).groups.values() if not g.frozen)


def resized(spec: specs.Spec, sizes: dict[str, int]) -> specs.Spec:
  """The spec with the given groups at other sizes (no checks of legality)."""
  return _resized(spec, tuple(sorted(sizes.items())))


@functools.lru_cache(maxsize=1024)
def _resized(
  spec: specs.Spec, given: tuple[tuple[str, int], ...]
) -> specs.Spec:
  axes, sizes = table(spec).axes, dict(given)
  ops = {}
  for node in spec.nodes:
    axis = axes[node.name]
    if node.op.kind == 'mixing' and set(axis.groups) & set(sizes):
      features = sum(
        sizes.get(g, size) for g, size in zip(axis.groups, axis.sizes)
      )
      ops[node.name] = dataclasses.replace(node.op, features=features)
  return spec.update(ops)


def masks(spec: specs.Spec, active: dict) -> dict:
  """Boolean vectors of active channels for nodes on padded groups.

  Args:
    spec: a spec; only its padded groups are masked.
    active: the number of active channels of each padded group (data).

  Returns:
    `{node: (channels,) mask}` for nodes whose axis holds a padded group.
  """
  found = {}
  alive = {g: np.arange(table(spec).groups[g].size) < active[g] for g in active}
  for node, axis in table(spec).axes.items():
    if set(axis.groups) & set(spec.padded):
      row = [
        alive[g] if g in alive else np.ones(size, bool)
        for g, size in zip(axis.groups, axis.sizes)
      ]
      found[node] = row * axis.repeat
  return found
