"""Chains: convolutions in stages, then dense layers, as a space to search.

A network of the space is

    input, stage 1, pool, stage 2, ..., mean over positions, hidden, logits

A stage is one or more units of a convolution, batch norm and activation, a
hidden layer is dense with an activation. Depths, widths and windows are free
within choices. Every unit can be wider, narrower, gone, or followed by another,
so every network of the space is reached from every other.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxnas import base, morphisms
from jaxnas import spec as specs
from jaxnas.morphisms import Morphism
from jaxnas.spaces import seeds
from jaxnas.spec import Activation, BatchNorm, Conv, Dense, Shape, Spec


class Unit(NamedTuple):
  """A layer of a chain with what follows it.

  Attributes:
    name: of its convolution or dense node.
    part: its stage, counted from 0, or `'hidden'`.
    width: its channels or units.
    window: the rows of its convolution's window; 0 for a dense layer.
    nodes: the names of all its nodes, the activation last.
  """

  name: str
  part: int | str
  width: int
  window: int
  nodes: tuple[str, ...]


class _Choices(NamedTuple):
  """What is free in a chain, see `chain`."""

  shape: Shape
  classes: int
  stages: int
  depth: tuple[int, int]
  hidden: tuple[int, int]
  widths: tuple[int, ...]
  windows: tuple[int, ...]
  norm: bool


def chain(
  shape: Shape,
  classes: int,
  *,
  stages: int = 2,
  depth: tuple[int, int] = (1, 3),
  hidden: tuple[int, int] = (0, 1),
  widths: Sequence[int] = (4, 8, 16, 32),
  windows: Sequence[int] = (1, 3, 5),
  norm: bool = True,
) -> base.Space:
  """The space of chains.

  `sample` draws each stage's depth, each width and each window uniformly from
  its choices. `moves` offers for every unit, where the choices allow it

  * the next larger width (its channels duplicated), and the next smaller one
    (the last channels removed);
  * the next larger window (zeros around it), and the next smaller one (its
    rim removed);
  * another unit behind it that does nothing yet, of its width and window;
  * its removal, where its width is what it reads: a unit of another width is
    narrowed or widened to that first.

  and the first hidden layer. What adds preserves the function, what takes
  away does not (`Morphism.preserves`; `jaxnas.stages.preserving`).

  Convolutions have a bias although a batch norm follows, as the ones that
  moves insert do, so that all networks of the space look alike.

  Args:
    shape: (height, width, channels) of the input, or (features,).
    classes: width of the output.
    stages: stages of convolutions, with 2 x 2 max pooling between them; 0 for
      dense chains, to which an image is one vector.
    depth: least and most convolutions in a stage.
    hidden: least and most dense layers before the last.
    widths: channels and units to choose from.
    windows: rows and columns of convolutions to choose from, odd.
    norm: whether batch norm follows the convolutions.

  Returns:
    A `jaxnas.base.Space`.

  Raises:
    ValueError: for choices of which no network can be made.

  Example:
    >>> import jax
    >>> space = chain((8, 8, 1), 10, stages=2, hidden=(0, 0))
    >>> spec = space.sample(jax.random.key(1))
    >>> [(unit.part, unit.width, unit.window) for unit in units(spec)]
    [(0, 32, 5), (0, 8, 3), (1, 32, 1), (1, 4, 5), (1, 4, 1)]
    >>> len(space.moves(spec))
    18
  """
  choices = _checked(
    _Choices(
      tuple(shape),
      classes,
      stages,
      tuple(depth),
      tuple(hidden),
      tuple(sorted(widths)),
      tuple(sorted(windows)),
      norm,
    )
  )

  def sample(key: base.Key) -> Spec:
    return _sample(choices, key)

  def moves(spec: Spec) -> list[Morphism]:
    return list(_moves(choices, spec))

  return base.Space(sample, moves)


def _checked(choices: _Choices) -> _Choices:
  def refuse(field: str, legal: str) -> None:
    value = getattr(choices, field)
    raise ValueError(f'chain: {field} must be {legal}, got {value!r}.')

  if len(choices.shape) not in (1, 3):
    refuse('shape', '(height, width, channels) or (features,)')
  if choices.stages < 0 or (len(choices.shape) == 1 and choices.stages):
    refuse('stages', 'at least 0, and 0 for features')
  for field, least in (('depth', 1), ('hidden', not choices.stages)):
    bounds = getattr(choices, field)
    if len(bounds) != 2 or not least <= bounds[0] <= bounds[1]:
      refuse(field, f'(least, most) with {int(least)} <= least <= most')
  if not choices.widths or choices.widths[0] < 1:
    refuse('widths', 'at least one width, each at least 1')
  windows = choices.windows
  if choices.stages and (
    not windows or windows[0] < 1 or not all(w % 2 for w in windows)
  ):
    refuse('windows', 'at least one odd window')
  return choices


def units(spec: Spec) -> list[Unit]:
  """The units of a chain, in order, without the last dense layer.

  Raises:
    ValueError: for a spec that is no chain.

  Example:
    >>> [unit.name for unit in units(seeds.mlp((4,), (8, 5), 3))]
    ['dense1', 'dense2']
  """
  stage, found, source = 0, [], spec.input
  for node in spec.order:
    if len(node.inputs) > 1 or (node.inputs and node.inputs[0] != source):
      raise ValueError(
        f'this space is of chains, each node reading the one before, and '
        f'{node.name!r} reads {list(node.inputs)}; search from a network that '
        "the space's sample gives."
      )
    source = node.name
    name, op, nodes = node.name, node.op, (node.name,)
    if isinstance(op, specs.Pool):
      stage += 1
    elif isinstance(op, Conv):
      found.append(Unit(name, stage, op.features, op.kernel[0], nodes))
    elif isinstance(op, Dense) and name != spec.output:
      found.append(Unit(name, 'hidden', op.features, 0, nodes))
    elif found and isinstance(op, BatchNorm | Activation):
      found[-1] = found[-1]._replace(nodes=(*found[-1].nodes, name))
  return found


def _sample(choices: _Choices, key: base.Key) -> Spec:
  rng = base.rng(key)

  def between(bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))

  def one(values: Sequence[int]) -> int:
    return int(values[rng.integers(len(values))])

  layers, count = [], itertools.count(1)
  for stage in range(choices.stages):
    if stage:
      layers.append((f'pool{stage}', specs.Pool('max')))
    for _ in range(between(choices.depth)):
      name, window = f'conv{next(count)}', one(choices.windows)
      layers.append((name, Conv(one(choices.widths), (window, window))))
      layers += [(f'{name}_bn', BatchNorm())] if choices.norm else []
      layers.append((f'{name}_act', Activation('relu')))
  if choices.stages:
    layers.append(('gap', specs.GlobalPool()))
  elif len(choices.shape) > 1:
    layers.append(('flat', specs.Flatten()))
  for i in range(1, between(choices.hidden) + 1):
    layers.append((f'dense{i}', Dense(one(choices.widths))))
    layers.append((f'dense{i}_act', Activation('relu')))
  layers.append(('logits', Dense(choices.classes)))
  return seeds.sequential(choices.shape, layers)


def _moves(choices: _Choices, spec: Spec) -> Iterator[Morphism]:
  found = units(spec)
  for unit in found:
    yield from _resized(choices, unit)
    yield from _rewindowed(choices, unit)
    least, most = choices.hidden if unit.part == 'hidden' else choices.depth
    depth = sum(other.part == unit.part for other in found)
    if depth < most:
      yield _inserted(choices, spec, unit.nodes[-1], unit.window)
    if depth > least:
      yield from _removed(spec, unit)
  if choices.hidden[1] and all(unit.part != 'hidden' for unit in found):
    for node in spec.nodes:
      if isinstance(node.op, specs.GlobalPool):
        yield _inserted(choices, spec, node.name, 0)


def _next(values: Sequence[int], value: int) -> tuple[int | None, int | None]:
  """The next smaller and the next larger choice, None where there is none."""
  smaller = [v for v in values if v < value]
  larger = [v for v in values if v > value]
  return max(smaller, default=None), min(larger, default=None)


def _resized(choices: _Choices, unit: Unit) -> Iterator[Morphism]:
  smaller, larger = _next(choices.widths, unit.width)
  if smaller is not None:
    yield _to_width(unit, smaller)
  if larger is not None:
    yield _to_width(unit, larger)


def _to_width(unit: Unit, width: int) -> Morphism:
  """The unit at another width: the last channels go, or all are doubled."""
  if width > unit.width:
    return morphisms.widen({unit.name: width})
  if width < unit.width:
    return morphisms.prune({unit.name: range(width, unit.width)})
  return morphisms.identity()


def _rewindowed(choices: _Choices, unit: Unit) -> Iterator[Morphism]:
  if unit.part == 'hidden':
    return
  smaller, larger = _next(choices.windows, unit.window)
  if smaller is not None:
    yield morphisms.shrink_kernel(unit.name, (smaller, smaller))
  if larger is not None:
    yield morphisms.grow_kernel(unit.name, (larger, larger))


def _inserted(
  choices: _Choices, spec: Spec, after: str, window: int
) -> Morphism:
  """A unit behind a node that does nothing yet."""
  if not window:
    return morphisms.insert(after, form='identity', name=_free(spec, 'dense'))
  return morphisms.insert(
    after,
    form='identity',
    kernel=(window, window),
    norm=choices.norm,
    name=_free(spec, 'conv'),
  )


def _free(spec: Spec, base_name: str) -> str:
  """The first of conv1, conv2, ... that no unit has."""
  names = (f'{base_name}{i}' for i in itertools.count(1))
  return next(name for name in names if name not in spec.by_name)


def _removed(spec: Spec, unit: Unit) -> Iterator[Morphism]:
  """The unit gone; none for the first, which reads what it cannot stand for."""
  source = spec.shapes[spec.node(unit.name).inputs[0]][-1]
  if unit.name == units(spec)[0].name:
    return
  gone = [morphisms.remove(name) for name in reversed(unit.nodes)]
  yield morphisms.compose(_to_width(unit, source), *gone)
