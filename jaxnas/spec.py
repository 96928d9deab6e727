"""What a network is, as a value: operations, nodes and the graph of nodes.

Nothing here knows arrays. A `Spec` is hashable and compares by value, so it
is the static half of a `Network`, the key of every compiled program, and, as
JSON, the `spec.json` of a finished run.
"""

import dataclasses
import functools
import graphlib
import importlib
import json
import math
from typing import Any, ClassVar, Protocol

Shape = tuple[int, ...]


def _positive(op: Any, **fields: Any) -> None:
  """Refuses sizes that are not positive integers, by name."""
  for name, value in fields.items():
    sizes = value if isinstance(value, tuple) else (value,)
    for size in sizes:
      if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(
          f'{type(op).__name__}: {name} must be a positive integer '
          f'(or a tuple of them), got {value!r}.'
        )


def _windowed(op: Any, **fields: Any) -> None:
  """Refuses windows and strides that are not (rows, columns)."""
  _positive(op, **fields)
  for name, value in fields.items():
    if not isinstance(value, tuple) or len(value) != 2:
      raise ValueError(
        f'{type(op).__name__}: {name} must be (rows, columns), got {value!r}.'
      )


def _spatial(op: Any, shape: Shape) -> Shape:
  if len(shape) != 3:
    raise ValueError(
      f'{type(op).__name__} reads (height, width, channels), got an input '
      f'of shape {shape}.'
    )
  return shape


def _window(
  size: int, window: int, stride: int, padding: str, dilation: int = 1
) -> int:
  if padding == 'SAME':
    return -(-size // stride)
  reach = (window - 1) * dilation + 1
  if padding == 'EVEN':
    size += 2 * (reach // 2)
  if size < reach:
    raise ValueError(
      f'a {padding} window of {reach} does not fit an extent of {size}.'
    )
  return (size - reach) // stride + 1


class Op(Protocol):
  """One operation: a frozen dataclass of plain values.

  Attributes:
    kind: how the op treats the channel (last) axis. `'input'`: makes it;
      `'mixing'`: a linear map from one channel axis to a new one (it reads its
      input's channels and writes its own); `'channelwise'`: the output
      channels are the input channels, and all inputs share them; `'concat'`:
      the inputs' channels one after another; `'flatten'`: the channels once
      per position, row-major; `'opaque'`: anything else, so that no width on
      either side can change. A mixing op has one input, a field
      `features`, and a parameter `kernel` whose last two axes are its input's
      and its output's channels.
    normalises: whether a channelwise op mixes the channels' statistics, as
      layer norm does. Its layer must leave out channels where `mask` is false,
      and moves that would change the statistics are refused. Ops without the
      attribute do not.
  """

  kind: ClassVar[str]

  def shape(self, *inputs: Shape) -> Shape:
    """The output's shape without the batch axis; `ValueError` if illegal."""
    ...


@dataclasses.dataclass(frozen=True)
class Input:
  """The network's input, of shape `dims` without the batch axis."""

  dims: Shape
  kind: ClassVar[str] = 'input'

  def __post_init__(self):
    _positive(self, dims=self.dims)
    if not isinstance(self.dims, tuple) or not self.dims:
      raise ValueError(
        f'Input: dims must be a tuple of sizes, at least one, got '
        f'{self.dims!r}.'
      )

  def shape(self) -> Shape:
    return self.dims


@dataclasses.dataclass(frozen=True)
class Dense:
  """A linear map of the last axis to `features` units."""

  features: int
  use_bias: bool = True
  kind: ClassVar[str] = 'mixing'

  def __post_init__(self):
    _positive(self, features=self.features)

  def shape(self, x: Shape) -> Shape:
    return (*x[:-1], self.features)


@dataclasses.dataclass(frozen=True)
class Conv:
  """A 2-d convolution to `features` channels (NHWC, kernels HWIO).

  Padding is `'SAME'` or `'VALID'` as in XLA, or `'EVEN'`: half of the window,
  rounded down, on both sides. With strides above one SAME puts less in front
  than behind, which is not what networks published with PyTorch do.
  """

  features: int
  kernel: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  use_bias: bool = True
  padding: str = 'SAME'
  kind: ClassVar[str] = 'mixing'

  def __post_init__(self):
    _positive(self, features=self.features)
    _windowed(self, kernel=self.kernel, strides=self.strides)
    _padding(self)

  def shape(self, x: Shape) -> Shape:
    h, w, _ = _spatial(self, x)
    rows = _window(h, self.kernel[0], self.strides[0], self.padding)
    columns = _window(w, self.kernel[1], self.strides[1], self.padding)
    return (rows, columns, self.features)


@dataclasses.dataclass(frozen=True)
class DepthwiseConv:
  """A 2-d convolution of each channel on its own (multiplier one).

  Its taps are `dilation` rows and columns apart.
  """

  kernel: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  use_bias: bool = True
  padding: str = 'SAME'
  dilation: tuple[int, int] = (1, 1)
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    _windowed(
      self, kernel=self.kernel, strides=self.strides, dilation=self.dilation
    )
    _padding(self)

  def shape(self, x: Shape) -> Shape:
    h, w, channels = _spatial(self, x)
    rows, columns = (
      _window(
        size, self.kernel[i], self.strides[i], self.padding, self.dilation[i]
      )
      for i, size in enumerate((h, w))
    )
    return (rows, columns, channels)


def _padding(op: Any) -> None:
  if op.padding not in ('SAME', 'VALID', 'EVEN'):
    raise ValueError(
      f"{type(op).__name__}: padding must be 'SAME', 'VALID' or 'EVEN', got "
      f'{op.padding!r}.'
    )


@dataclasses.dataclass(frozen=True)
class BatchNorm:
  """Batch normalisation per channel (Ioffe and Szegedy, 2015)."""

  momentum: float = 0.9
  epsilon: float = 1e-5
  kind: ClassVar[str] = 'channelwise'

  def shape(self, x: Shape) -> Shape:
    return x


@dataclasses.dataclass(frozen=True)
class LayerNorm:
  """Layer normalisation over the channel axis (Ba et al., 2016)."""

  epsilon: float = 1e-6
  kind: ClassVar[str] = 'channelwise'
  normalises: ClassVar[bool] = True

  def shape(self, x: Shape) -> Shape:
    return x


ACTIVATIONS = (
  'relu',
  'gelu',
  'silu',
  'hard_swish',
  'softplus',
  'leaky_relu',
  'elu',
  'tanh',
  'sigmoid',
)


@dataclasses.dataclass(frozen=True)
class Activation:
  """An element-wise non-linearity, one of `jaxnas.spec.ACTIVATIONS`."""

  fn: str = 'relu'
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    if self.fn not in ACTIVATIONS:
      raise ValueError(
        f'Activation: fn must be one of {", ".join(ACTIVATIONS)}, got '
        f'{self.fn!r}.'
      )

  def shape(self, x: Shape) -> Shape:
    return x


@dataclasses.dataclass(frozen=True)
class Pool:
  """Max or average pooling; `reduce` is `'max'` or `'mean'`.

  The mean of a padded window is taken over the positions inside the image.
  """

  reduce: str = 'max'
  window: tuple[int, int] = (2, 2)
  strides: tuple[int, int] = (2, 2)
  padding: str = 'SAME'
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    _windowed(self, window=self.window, strides=self.strides)
    _padding(self)
    if self.reduce not in ('max', 'mean'):
      raise ValueError(
        f"Pool: reduce must be 'max' or 'mean', got {self.reduce!r}."
      )

  def shape(self, x: Shape) -> Shape:
    h, w, channels = _spatial(self, x)
    rows = _window(h, self.window[0], self.strides[0], self.padding)
    columns = _window(w, self.window[1], self.strides[1], self.padding)
    return (rows, columns, channels)


@dataclasses.dataclass(frozen=True)
class GlobalPool:
  """The mean over all positions: (height, width, C) to (C,)."""

  kind: ClassVar[str] = 'channelwise'

  def shape(self, x: Shape) -> Shape:
    return _spatial(self, x)[-1:]


@dataclasses.dataclass(frozen=True)
class Dropout:
  """Dropout with probability `rate`, active in training only."""

  rate: float
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    if not 0 <= self.rate < 1:
      raise ValueError(f'Dropout: rate must be in [0, 1), got {self.rate!r}.')

  def shape(self, x: Shape) -> Shape:
    return x


@dataclasses.dataclass(frozen=True)
class Gate:
  """One learned scalar times the input, `init` at the start.

  A branch behind `Gate()` starts at zero and so leaves the function as it is.
  """

  init: float = 0.0
  kind: ClassVar[str] = 'channelwise'

  def shape(self, x: Shape) -> Shape:
    return x


@dataclasses.dataclass(frozen=True)
class Add:
  """The element-wise sum of one or more inputs of equal shape."""

  kind: ClassVar[str] = 'channelwise'

  def shape(self, *xs: Shape) -> Shape:
    if not xs or len(set(xs)) > 1:
      raise ValueError(f'Add reads inputs of one shape, got {list(xs)}.')
    return xs[0]


@dataclasses.dataclass(frozen=True)
class Concat:
  """The inputs side by side along the channel axis."""

  kind: ClassVar[str] = 'concat'

  def shape(self, *xs: Shape) -> Shape:
    if not xs or len({x[:-1] for x in xs}) > 1:
      raise ValueError(
        f'Concat reads inputs that differ in channels only, got {list(xs)}.'
      )
    return (*xs[0][:-1], sum(x[-1] for x in xs))


@dataclasses.dataclass(frozen=True)
class Zero:
  """Zeros, of the input's shape or one of fewer positions.

  An edge that carries nothing. What lies before it stays in the network, with
  parameters that count and never learn.
  """

  strides: tuple[int, int] = (1, 1)
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    _windowed(self, strides=self.strides)

  def shape(self, x: Shape) -> Shape:
    h, w, channels = _spatial(self, x)
    return (-(-h // self.strides[0]), -(-w // self.strides[1]), channels)


@dataclasses.dataclass(frozen=True)
class Trim:
  """The input without its first rows and columns."""

  rows: int = 1
  columns: int = 1
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    _positive(self, rows=self.rows, columns=self.columns)

  def shape(self, x: Shape) -> Shape:
    h, w, channels = _spatial(self, x)
    if h <= self.rows or w <= self.columns:
      raise ValueError(
        f'Trim: {self.rows} rows and {self.columns} columns of {h} x {w} leave '
        'nothing.'
      )
    return (h - self.rows, w - self.columns, channels)


@dataclasses.dataclass(frozen=True)
class ZeroPad:
  """The input behind rows and columns of zeros; `Trim` undoes it."""

  rows: int = 1
  columns: int = 1
  kind: ClassVar[str] = 'channelwise'

  def __post_init__(self):
    _positive(self, rows=self.rows, columns=self.columns)

  def shape(self, x: Shape) -> Shape:
    h, w, channels = _spatial(self, x)
    return (h + self.rows, w + self.columns, channels)


@dataclasses.dataclass(frozen=True)
class Narrow:
  """The first `features` channels of the input."""

  features: int
  kind: ClassVar[str] = 'opaque'

  def __post_init__(self):
    _positive(self, features=self.features)

  def shape(self, x: Shape) -> Shape:
    if x[-1] < self.features:
      raise ValueError(f'Narrow: there are no {self.features} channels in {x}.')
    return (*x[:-1], self.features)


@dataclasses.dataclass(frozen=True)
class Flatten:
  """All positions and channels as one axis, channels varying fastest."""

  kind: ClassVar[str] = 'flatten'

  def shape(self, x: Shape) -> Shape:
    return (math.prod(x),)


_RESERVED = ('active', 'params', 'present')


@dataclasses.dataclass(frozen=True)
class Node:
  """An operation in place: `name` is its identity, never a position."""

  name: str
  op: Op
  inputs: tuple[str, ...] = ()

  def __post_init__(self):
    if not isinstance(self.name, str) or not self.name.isidentifier():
      raise ValueError(
        f'a node name must be a Python identifier, got {self.name!r}.'
      )
    if self.name in _RESERVED:
      raise ValueError(
        f'the node names {", ".join(_RESERVED)} are taken by Flax and by '
        f'padded networks; give {self.name!r} another.'
      )
    if not isinstance(self.inputs, tuple):
      raise ValueError(
        f'node {self.name!r}: inputs must be a tuple of names, got '
        f'{self.inputs!r}.'
      )


@dataclasses.dataclass(frozen=True)
class Spec:
  """The architecture of a network: a directed acyclic graph of nodes.

  Attributes:
    nodes: the nodes, in any order; exactly one of them is an `Input`.
    output: the name of the node whose value the network returns.
    padded: names of the channel groups stored at a capacity, with the number
      of active channels as data (`jaxnas.morphisms.pad`); sorted.
    optional: stretches of nodes, each reading the one before, that a network
      may do without, with which it does as data (`jaxnas.morphisms.embed`);
      in the order of the network. A stretch that is absent hands on what it
      reads, so it must leave the shape as it is: one that makes images smaller
      ends with a `ZeroPad`, and one behind it begins with the `Trim` that
      undoes that. These two are how the stretch is stored, and none of the
      network.

  Raises:
    ValueError: for names used twice or unknown, a cycle, a missing or second
      input, nodes that do not reach the output, and shapes that do not fit;
      the message names the node.

  Example:
    >>> from jaxnas import spec
    >>> net = spec.Spec((
    ...     spec.Node('image', spec.Input((8, 8, 1))),
    ...     spec.Node('conv', spec.Conv(16), ('image',)),
    ...     spec.Node('relu', spec.Activation('relu'), ('conv',)),
    ...     spec.Node('pool', spec.GlobalPool(), ('relu',)),
    ...     spec.Node('logits', spec.Dense(10), ('pool',)),
    ... ), output='logits')
    >>> net.shapes['conv'], net.shapes['logits']
    ((8, 8, 16), (10,))
    >>> spec.from_json(spec.to_json(net)) == net
    True
  """

  nodes: tuple[Node, ...]
  output: str
  padded: tuple[str, ...] = ()
  optional: tuple[tuple[str, ...], ...] = ()

  def __post_init__(self):
    if not isinstance(self.nodes, tuple):
      raise ValueError(f'nodes must be a tuple, got {type(self.nodes)}.')
    names = [node.name for node in self.nodes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
      raise ValueError(f'node names must be unique; used twice: {twice}.')
    known = set(names)
    for node in self.nodes:
      for source in node.inputs:
        if source not in known:
          raise ValueError(
            f'node {node.name!r} reads {source!r}, which is no node; the '
            f'nodes are {sorted(known)}.'
          )
    if self.output not in known:
      raise ValueError(
        f'the output {self.output!r} is no node; the nodes are {sorted(known)}.'
      )
    inputs = [node.name for node in self.nodes if node.op.kind == 'input']
    if len(inputs) != 1:
      raise ValueError(f'a spec has exactly one Input node, got {inputs}.')
    unused = sorted(known - set(self._reaching()) - set(inputs))
    if unused:
      raise ValueError(
        f'nodes that do not reach the output {self.output!r}: {unused}; '
        'remove them.'
      )
    self.shapes  # noqa: B018  Fails here, before anything is built.
    for stretch in self.optional:
      self._check_optional(stretch)

  def __hash__(self) -> int:
    return self._hash

  @functools.cached_property
  def _hash(self) -> int:
    """Kept: programs and much else are looked up by spec."""
    return hash((self.nodes, self.output, self.padded, self.optional))

  def __getstate__(self) -> dict[str, Any]:
    # Strings have other hashes in another process.
    return {k: v for k, v in self.__dict__.items() if k != '_hash'}

  def _check_optional(self, stretch: tuple[str, ...]) -> None:
    """Refuses what cannot be left out."""
    nodes = [self.node(name, asker='optional') for name in stretch]
    inner = zip(nodes, nodes[1:])
    if (
      not nodes
      or any(len(node.inputs) != 1 for node in nodes)
      or any(b.inputs != (a.name,) for a, b in inner)
      or any(self.consumers[a] != (b,) for a, b in zip(stretch, stretch[1:]))
    ):
      raise ValueError(
        f'optional: {stretch} is no chain of nodes of which each reads the one '
        'before and nothing else does.'
      )
    before, after = self.shapes[nodes[0].inputs[0]], self.shapes[stretch[-1]]
    if before != after:
      raise ValueError(
        f'optional: {stretch} reads {before} and makes {after}, so it cannot '
        'be left out; both shapes must be the same.'
      )
    if self.frame(stretch):
      self._check_frame(stretch)

  def _check_frame(self, stretch: tuple[str, ...]) -> None:
    """Refuses what would read the zeros beside a smaller image."""
    last = self.by_name[stretch[-1]]
    inner = {s[0]: s for s in self.optional if len(self.frame(s)) == 2}
    undone = Trim(last.op.rows, last.op.columns)

    def fine(reader: str) -> bool:
      if self.by_name[reader].op.kind == 'flatten':
        readers = self.consumers[reader]
        linear = [self.by_name[name].op.kind == 'mixing' for name in readers]
        return all(linear) and reader != self.output
      ends = self.by_name[inner[reader][-1]].op if reader in inner else None
      return self.by_name[reader].op == undone and ends == last.op

    wrong = [name for name in self.consumers[last.name] if not fine(name)]
    wrong += [last.name] * (last.name == self.output)
    if wrong:
      raise ValueError(
        f'optional: {stretch} ends with a {last.op}, so it may be read by a '
        'Flatten before linear layers, and by optional stretches that begin '
        f'with {undone} and end with {last.op}; {wrong[0]!r} is none of them.'
      )
    source = self.by_name[stretch[0]].inputs[0]
    if stretch[0] in inner and not any(
      s[-1] == source and self.frame(s) for s in self.optional
    ):
      raise ValueError(
        f'optional: {stretch} begins with a Trim and reads {source!r}, which '
        'is not the end of a stretch that makes images smaller.'
      )

  def frame(self, stretch: tuple[str, ...]) -> tuple[str, ...]:
    """The nodes by which an optional stretch keeps the shape as it is.

    A `ZeroPad` at its end, and then a `Trim` at its beginning; () for none.
    """
    first, last = stretch[0], stretch[-1]
    if not isinstance(self.by_name[last].op, ZeroPad):
      return ()
    cut = isinstance(self.by_name[first].op, Trim)
    return (first, last) if cut else (last,)

  def _reaching(self) -> list[str]:
    """Names of the nodes the output depends on; raises on a cycle."""
    sources = {node.name: node.inputs for node in self.nodes}
    try:
      tuple(graphlib.TopologicalSorter(sources).static_order())
    except graphlib.CycleError as error:
      cycle = ' -> '.join(reversed(error.args[1]))
      raise ValueError(
        f'the nodes form a cycle: {cycle}; a network is acyclic.'
      ) from None
    reached, pending = [], [self.output]
    while pending:
      name = pending.pop()
      if name not in reached:
        reached.append(name)
        pending.extend(sources[name])
    return reached

  @functools.cached_property
  def order(self) -> tuple[Node, ...]:
    """The nodes in an order in which every input comes first."""
    done, order, pending = set(), [], list(self.nodes)
    while pending:
      rest = []
      for node in pending:
        if all(source in done for source in node.inputs):
          order.append(node)
          done.add(node.name)
        else:
          rest.append(node)
      pending = rest
    return tuple(order)

  @functools.cached_property
  def shapes(self) -> dict[str, Shape]:
    """The shape of every node's value, without the batch axis."""
    shapes: dict[str, Shape] = {}
    for node in self.order:
      try:
        shapes[node.name] = node.op.shape(*(shapes[s] for s in node.inputs))
      except (ValueError, TypeError) as error:
        raise ValueError(
          f'node {node.name!r} cannot read '
          f'{[shapes[s] for s in node.inputs]}: {error}'
        ) from None
    return shapes

  @functools.cached_property
  def by_name(self) -> dict[str, Node]:
    """The nodes by name."""
    return {node.name: node for node in self.nodes}

  @functools.cached_property
  def consumers(self) -> dict[str, tuple[str, ...]]:
    """For every node the names of the nodes that read it."""
    return {
      node.name: tuple(n.name for n in self.nodes if node.name in n.inputs)
      for node in self.nodes
    }

  @property
  def input(self) -> str:
    """The name of the input node."""
    return next(n.name for n in self.nodes if n.op.kind == 'input')

  def node(self, name: str, *, asker: Any = None) -> Node:
    """The node called `name`; `ValueError`, naming `asker`, if none is."""
    if name not in self.by_name:
      prefix = f'{asker}: ' if asker is not None else ''
      raise ValueError(
        f'{prefix}there is no node {name!r}; the nodes are '
        f'{sorted(self.by_name)}.'
      )
    return self.by_name[name]

  def update(self, ops: dict[str, Op]) -> 'Spec':
    """The same graph with other operations under the given names."""
    nodes = tuple(
      dataclasses.replace(node, op=ops.get(node.name, node.op))
      for node in self.nodes
    )
    return dataclasses.replace(self, nodes=nodes)

  def fresh(self, base: str) -> str:
    """`base`, or `base` with the first free number behind it."""
    if base not in self.by_name:
      return base
    numbered = (f'{base}_{i}' for i in range(2, len(self.nodes) + 3))
    return next(name for name in numbered if name not in self.by_name)

  def module(self, conv: str = 'auto'):
    """The Flax Linen module of this spec (`jaxnas.network.SpecModule`).

    Args:
      conv: the form of convolutions: `'native'`, `'patches'`, or `'auto'` for
        the faster on the default backend (`jaxnas.layers.conv2d`).
    """
    from jaxnas import (
      network,
    )  # The one upward import: a spec stays free of jax.

    return network.SpecModule(self, conv)


def encode(value: Any) -> Any:
  """Plain JSON values of a frozen dataclass of plain values.

  Classes defined in `jaxnas.spec` are named by their class, all others by
  `module:class`, so operations and moves of a user's own round-trip too.
  """
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    cls = type(value)
    name = cls.__qualname__
    if cls.__module__ != __name__:
      name = f'{cls.__module__}:{name}'
    fields = {
      f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)
    }
    return {'type': name, **fields}
  if isinstance(value, tuple | list):
    return [encode(v) for v in value]
  if value is None or isinstance(value, bool | int | float | str):
    return value
  raise TypeError(
    f'cannot write {value!r} of type {type(value).__name__} as JSON: specs '
    'and moves hold numbers, strings, tuples and dataclasses of these.'
  )


def decode(value: Any) -> Any:
  """The inverse of `encode`; JSON lists become tuples."""
  if isinstance(value, dict):
    if 'type' not in value:
      raise ValueError(f'expected an object with a "type", got {value!r}.')
    fields = {k: decode(v) for k, v in value.items() if k != 'type'}
    module, _, name = str(value['type']).rpartition(':')
    cls = getattr(importlib.import_module(module or __name__), name, None)
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
      raise ValueError(f'{value["type"]!r} names no dataclass.')
    try:
      return cls(**fields)
    except TypeError as error:  # A field that is missing or unknown.
      raise ValueError(f'cannot make a {value["type"]}: {error}.') from None
  if isinstance(value, list):
    return tuple(decode(v) for v in value)
  return value


def to_json(spec: Any, **options: Any) -> str:
  """JSON text of a spec, node or op; `options` go to `json.dumps`."""
  return json.dumps(encode(spec), **options)


def from_json(text: str) -> Any:
  """The inverse of `to_json`; validates as the constructors do."""
  return decode(json.loads(text))
