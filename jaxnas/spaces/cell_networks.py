"""The networks that cells build: NAS-Bench-201, NAS-Bench-101, DARTS.

Each function unrolls a genotype into a `Spec`, with the skeleton of its
publication and arguments for smaller ones. Every network is an ordinary one,
to train, draw, grow or export, and has exactly the parameters that the
publication counts. `jaxnas.spaces.supernet` has the networks of all cells of
NAS-Bench-201 as one program.

What leads nowhere stays where its parameters count: an edge that carries
nothing is a `Zero`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas.spaces import cell as cells
from jaxnas.spaces import nas_bench_101 as bench101
from jaxnas.spaces import nas_bench_201 as bench201
from jaxnas.spaces import tabular
from jaxnas.spec import (
  Activation,
  Add,
  BatchNorm,
  Concat,
  Conv,
  Dense,
  DepthwiseConv,
  GlobalPool,
  Input,
  Narrow,
  Node,
  Op,
  Pool,
  Shape,
  Spec,
  Trim,
  Zero,
)


class _Nodes(NamedTuple):
  """Nodes in the order of their making.

  The list grows; it lives within one call.
  """

  all: list[Node]

  def add(self, name: str, op: Op, *inputs: str) -> str:
    self.all.append(Node(name, op, inputs))
    return name

  def row(self, name: str, x: str, **ops: Op) -> str:
    """Operations one behind the other, named by their keywords."""
    for key, op in ops.items():
      x = self.add(f'{name}_{key}', op, x)
    return x

  def head(self, x: str, classes: int) -> Spec:
    x = self.add('gap', GlobalPool(), x)
    self.add('logits', Dense(classes), x)
    return Spec(tuple(self.all), 'logits')


def _started(shape: Shape) -> _Nodes:
  return _Nodes([Node('input', Input(tuple(shape)))])


def _plain(features: int, kernel: int = 1, stride: int = 1) -> Conv:
  size = (kernel, kernel)
  return Conv(features, size, (stride, stride), use_bias=False, padding='EVEN')


def _pool(reduce: str, window: int, stride: int) -> Pool:
  return Pool(reduce, (window, window), (stride, stride), 'EVEN')


_RELU = Activation('relu')


def edge_name(stage: int, number: int, source: int, target: int):
  """The prefix of the names of an edge's nodes.

  Example:
    >>> edge_name(1, 5, 0, 3)
    'stage1_cell5_edge03'
  """
  return f'stage{stage}_cell{number}_edge{source}{target}'


def nas_bench_201(
  genotype: Sequence[int],
  *,
  channels: int = 16,
  repeats: int = 5,
  classes: int = 10,
  shape: Shape = (32, 32, 3),
) -> Spec:
  """The network of a cell of NAS-Bench-201 (Dong and Yang 2020).

  A stem, three stages of cells with a residual block of stride two between
  them, batch norm, ReLU, the mean over positions and a dense layer.

  Args:
    genotype: (6,) ops, see `jaxnas.spaces.nas_bench_201`.
    channels: of the first stage; every stage has twice those before.
    repeats: cells in each stage.
    classes: width of the output.
    shape: (height, width, channels) of an image.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> from jaxnas import network
    >>> network.param_count(nas_bench_201([3, 0, 3, 1, 0, 1]))
    559386
  """
  options = bench201.space().options
  tabular.check_genotype('nas_bench_201', options, genotype)
  ops = [bench201.OPS[op] for op in genotype]
  net = _started(shape)
  x = net.row('stem', 'input', conv=_plain(channels, 3), bn=BatchNorm())
  for stage in (1, 2, 3):
    width = channels * 2 ** (stage - 1)
    if stage > 1:
      x = _residual(net, f'stage{stage}_reduce', x, width)
    for number in range(1, repeats + 1):
      states = [x]
      for target in (1, 2, 3):
        terms = []
        for op, (source, to) in zip(ops, bench201.EDGES):
          if to == target:
            name = edge_name(stage, number, source, target)
            terms.append(_edge_201(net, name, op, states[source], width))
        name = f'stage{stage}_cell{number}_node{target}'
        states.append(net.add(name, Add(), *terms))
      x = states[-1]
  x = net.row('last', x, bn=BatchNorm(), relu=_RELU)
  return net.head(x, classes)


def _edge_201(net: _Nodes, name: str, op: str, x: str, width: int) -> str:
  if op == 'none':
    return net.add(name, Zero(), x)
  if op == 'skip_connect':
    return x
  if op == 'avg_pool_3x3':
    return net.add(name, _pool('mean', 3, 1), x)
  conv = _plain(width, 3 if op == 'nor_conv_3x3' else 1)
  return net.row(name, x, relu=_RELU, conv=conv, bn=BatchNorm())


def _residual(net: _Nodes, name: str, x: str, width: int) -> str:
  inner = net.row(
    name,
    x,
    relu1=_RELU,
    conv1=_plain(width, 3, 2),
    bn1=BatchNorm(),
    relu2=_RELU,
    conv2=_plain(width, 3),
    bn2=BatchNorm(),
  )
  mean = Pool('mean', (2, 2), (2, 2), 'VALID')
  shortcut = net.row(name, x, pool=mean, shortcut=_plain(width))
  return net.add(f'{name}_add', Add(), inner, shortcut)


def nas_bench_101(
  genotype: Any,
  *,
  channels: int = 128,
  stacks: int = 3,
  modules: int = 3,
  classes: int = 10,
  shape: Shape = (32, 32, 3),
) -> Spec:
  """The network of a cell of NAS-Bench-101 (Ying et al. 2019).

  A stem, and stacks of cells with 2 x 2 max pooling and twice the channels in
  between. An inner vertex adds up what it reads, what comes from the input
  through a projection; the output joins the vertices that feed it side by side
  and adds the projected input if there is an edge from it.

  Args:
    genotype: (26,), see `jaxnas.spaces.nas_bench_101`.
    channels: of the first stack.
    stacks: of cells.
    modules: cells in each stack.
    classes: width of the output.
    shape: (height, width, channels) of an image.

  Raises:
    ValueError: for what is no genotype, or none that is legal.

  Example:
    >>> from jaxnas import network
    >>> from jaxnas.spaces import nas_bench_101 as bench101
    >>> whole = bench101.cell('0-1 0-2 1-6 2-6', 'conv3x3 maxpool3x3')
    >>> spec = nas_bench_101(whole, channels=8, modules=1)
    >>> network.param_count(spec) == int(
    ...     bench101.param_count(whole, channels=8, modules=1))
    True
  """
  tabular.check_genotype('nas_bench_101', bench101.OPTIONS, genotype)
  genotype = np.asarray(genotype)
  wide = [
    channels * 2**stack for stack in range(stacks) for _ in range(modules)
  ]
  reads = np.array([channels, *wide[:-1]])
  legal, edges, widths = jax.device_get(
    _layout(genotype, reads, np.array(wide))
  )
  if not legal:
    raise ValueError(
      'nas_bench_101: the genotype is not legal: input and output must '
      f'be connected by at most {bench101.EDGES} edges, got {genotype}.'
    )
  ops = genotype[len(bench101.OPTIONS) - 5 :]
  net, widths = _started(shape), iter(widths.tolist())
  x = _unit_101(net, 'stem', 'input', channels, 3)
  for stack in range(1, stacks + 1):
    if stack > 1:
      x = net.add(f'stack{stack}_pool', Pool('max'), x)
    for module in range(1, modules + 1):
      name = f'stack{stack}_module{module}'
      x = _module_101(net, name, x, edges, ops, next(widths))
  return net.head(x, classes)


@jax.jit
def _layout(genotype, reads, writes):
  """Whether a cell is legal, its edges, and the channels in every module."""
  whole = bench101.prune(genotype)
  channels = jax.vmap(bench101.vertex_channels, (None, 0, 0))
  return (
    bench101.legal(whole),
    bench101.matrix(whole),
    channels(whole, reads, writes),
  )


def _unit_101(net: _Nodes, name: str, x: str, width: int, kernel: int) -> str:
  norm = BatchNorm(momentum=0.997)
  conv = _plain(width, kernel)
  return net.row(name, x, conv=conv, bn=norm, relu=_RELU)


def _module_101(net, name, x, edges, ops, widths) -> str:
  last = len(edges) - 1

  def projected(vertex):
    return _unit_101(net, f'{name}_input{vertex}', x, widths[vertex], 1)

  values: dict[int, str] = {}
  for vertex in range(1, last):
    if not edges[:, vertex].any():
      continue
    terms = []
    for source, value in values.items():
      if edges[source, vertex]:
        if widths[source] > widths[vertex]:
          narrow = f'{name}_vertex{source}_for{vertex}'
          value = net.add(narrow, Narrow(widths[vertex]), value)
        terms.append(value)
    if edges[0, vertex]:
      terms.append(projected(vertex))
    here = f'{name}_vertex{vertex}'
    value = net.add(f'{here}_add', Add(), *terms) if terms[1:] else terms[0]
    op = bench101.OPS[ops[vertex - 1]]
    if op == 'maxpool3x3':
      values[vertex] = net.add(f'{here}_pool', _pool('max', 3, 1), value)
    else:
      kernel = 3 if op == 'conv3x3' else 1
      values[vertex] = _unit_101(net, here, value, widths[vertex], kernel)
  feeds = [value for vertex, value in values.items() if edges[vertex, last]]
  terms = [feeds[0]] if len(feeds) == 1 else []
  if len(feeds) > 1:
    terms = [net.add(f'{name}_concat', Concat(), *feeds)]
  if edges[0, last]:
    terms.append(projected(last))
  return net.add(f'{name}_out', Add(), *terms) if terms[1:] else terms[0]


def darts(
  grammar: cells.Grammar,
  genotype: Any,
  *,
  channels: int = 36,
  layers: int = 20,
  classes: int = 10,
  shape: Shape = (32, 32, 3),
) -> Spec:
  """The network of cells of DARTS, NASNet and their kin.

  The evaluation network of Liu, Simonyan and Yang (2019): a stem of three
  times the channels, and cells of which those a third and two thirds down
  halve the resolution and double the channels. Without drop-path and the
  auxiliary head, which are matters of training. An input that no block reads
  keeps its pre-processing, as there, which then leads to a `Zero`.

  Args:
    grammar: the family.
    genotype: (L,), see `jaxnas.spaces.cell`.
    channels: of the first cells, even.
    layers: cells.
    classes: width of the output.
    shape: (height, width, channels) of an image; with two reductions, of even
      height and width twice over.

  Raises:
    ValueError: for what is no genotype, odd channels, blocks that do not add,
      and images that are not even where they are halved.

  Example:
    >>> from jaxnas import network
    >>> grammar, genotype = cells.named('darts_v2')
    >>> spec = darts(grammar, genotype, channels=4, layers=3)
    >>> network.param_count(spec) == cells.params(
    ...     grammar, genotype, channels=4, layers=3)
    True
  """
  cells.check('darts', grammar, genotype)
  rows = cells.blocks(grammar, np.asarray(genotype))
  cells.refuse_combined(grammar, rows)
  if channels % 2:
    raise ValueError(
      f'darts: channels must be even, as half of them are reduced apart; got '
      f'{channels}.'
    )
  net = _started(shape)
  stem = net.row('stem', 'input', conv=_plain(3 * channels, 3), bn=BatchNorm())
  older, newer, width, halved = stem, stem, channels, False
  for layer in range(layers):
    reduces = layer in cells.reductions(layers)
    width *= 2 if reduces else 1
    name, cell = f'cell{layer + 1}', rows[-1 if reduces else 0]
    pre = _reduced if halved else _pointwise
    states = [
      pre(net, f'{name}_in0', older, width),
      _pointwise(net, f'{name}_in1', newer, width),
    ]
    read = {int(state) for state in cell[:, (0, 2)].ravel()}
    for block, row in enumerate(cell):
      here, terms = f'{name}_block{block + 2}', []
      for number, (state, op) in enumerate(row[:4].reshape(2, 2)):
        stride = 2 if reduces and state < 2 else 1
        edge = f'{here}_edge{number + 1}'
        op, x = grammar.ops[op], states[state]
        terms.append(_edge(net, edge, op, x, width, stride))
      if block == 0:
        stride = 2 if reduces else 1
        terms += [
          net.add(f'{name}_unread{i}', Zero((stride, stride)), states[i])
          for i in (0, 1)
          if i not in read
        ]
      states.append(net.add(here, Add(), *terms))
    outputs = [states[state] for state in cells.joined(grammar, cell)]
    x = net.add(name, Concat(), *outputs)
    older, newer, halved = newer, x, reduces
  return net.head(newer, classes)


def _pointwise(net: _Nodes, name: str, x: str, width: int) -> str:
  return net.row(name, x, relu=_RELU, conv=_plain(width), bn=BatchNorm())


def _reduced(net: _Nodes, name: str, x: str, width: int) -> str:
  """Half of the channels from even positions, half from odd ones."""
  x = net.add(f'{name}_relu', _RELU, x)
  half = _plain(width // 2, 1, 2)
  even = net.add(f'{name}_even', half, x)
  odd = net.row(f'{name}_odd', x, trim=Trim(), conv=half)
  both = net.add(f'{name}_concat', Concat(), even, odd)
  return net.add(f'{name}_bn', BatchNorm(), both)


def _edge(
  net: _Nodes, name: str, op: str, x: str, width: int, stride: int
) -> str:
  if op == 'none':
    return net.add(name, Zero((stride, stride)), x)
  if op == 'skip':
    return _reduced(net, name, x, width) if stride > 1 else x
  if op[:3] in ('max', 'avg'):
    reduce = {'max': 'max', 'avg': 'mean'}[op[:3]]
    return net.add(name, _pool(reduce, int(op[3:]), stride), x)
  if op[:4] == 'conv':
    conv = _plain(width, int(op[4:]), stride)
    return net.row(name, x, relu=_RELU, conv=conv, bn=BatchNorm())
  if op in ('3x1_1x3', '7x1_1x7'):
    size = int(op[0])
    return net.row(
      name,
      x,
      relu=_RELU,
      columns=Conv(width, (1, size), (1, stride), False, 'EVEN'),
      rows=Conv(width, (size, 1), (stride, 1), False, 'EVEN'),
      bn=BatchNorm(),
    )
  size, dilation = int(op[3:]), 2 if op[:3] == 'dil' else 1
  for number in (1,) if op[:3] == 'dil' else (1, 2):
    depth = DepthwiseConv(
      (size, size), (stride, stride), False, 'EVEN', (dilation, dilation)
    )
    x = net.row(
      f'{name}_sep{number}',
      x,
      relu=_RELU,
      depth=depth,
      point=_plain(width),
      bn=BatchNorm(),
    )
    stride = 1
  return x
