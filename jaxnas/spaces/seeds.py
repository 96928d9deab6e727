"""Seed networks: the small specs that growth starts from.

Each factory takes its widths, so the same function gives the published
network and a seed of any width. Names of nodes are stable under growth.
"""

from collections.abc import Sequence

from jaxnas.spec import (
  Activation,
  Add,
  BatchNorm,
  Conv,
  Dense,
  DepthwiseConv,
  Flatten,
  GlobalPool,
  Input,
  Node,
  Op,
  Pool,
  Shape,
  Spec,
)


def sequential(
  shape: Shape, layers: Sequence[tuple[str, Op]], name: str = 'input'
) -> Spec:
  """Nodes one behind the other.

  Args:
    shape: of one input, without the batch axis.
    layers: names and operations, first to last.
    name: of the input node.

  Example:
    >>> from jaxnas import spec
    >>> sequential((4,), [('logits', spec.Dense(3))]).shapes['logits']
    (3,)
  """
  nodes = [Node(name, Input(tuple(shape)))]
  for layer, op in layers:
    nodes.append(Node(layer, op, (nodes[-1].name,)))
  return Spec(tuple(nodes), nodes[-1].name)


def mlp(
  shape: Shape,
  widths: Sequence[int],
  classes: int,
  *,
  activation: str = 'relu',
) -> Spec:
  """A multi-layer perceptron `dense1, act1, ..., logits`.

  Args:
    shape: of one input; an image is flattened first.
    widths: hidden units, first to last.
    classes: width of the output.
    activation: one of `jaxnas.spec.ACTIVATIONS`.

  Example:
    >>> mlp((64,), (32, 16), 10).shapes['dense2']
    (16,)
  """
  layers: list[tuple[str, Op]] = []
  if len(shape) > 1:
    layers.append(('flat', Flatten()))
  for i, width in enumerate(widths, 1):
    layers.append((f'dense{i}', Dense(width)))
    layers.append((f'act{i}', Activation(activation)))
  return sequential(shape, [*layers, ('logits', Dense(classes))])


def _unit(name: str, op: Op, activation: str) -> list[tuple[str, Op]]:
  return [
    (name, op),
    (f'{name}_bn', BatchNorm()),
    (f'{name}_act', Activation(activation)),
  ]


def chain(
  shape: Shape,
  widths: Sequence[int | str],
  classes: int,
  *,
  kernel: int = 3,
  activation: str = 'relu',
) -> Spec:
  """Convolutions with batch norm, `'M'` for 2 x 2 max pooling in between.

  Args:
    shape: (height, width, channels).
    widths: channels of each convolution, or `'M'`.
    classes: width of the output.
    kernel: rows and columns of the convolutions.
    activation: one of `jaxnas.spec.ACTIVATIONS`.

  Example:
    >>> chain((32, 32, 3), (8, 'M', 16), 10).shapes['conv2']
    (16, 16, 16)
  """
  layers: list[tuple[str, Op]] = []
  convs = pools = 0
  for width in widths:
    if width == 'M':
      pools += 1
      layers.append((f'pool{pools}', Pool('max')))
    else:
      convs += 1
      conv = Conv(width, (kernel, kernel), use_bias=False)
      layers += _unit(f'conv{convs}', conv, activation)
  head = [('gap', GlobalPool()), ('logits', Dense(classes))]
  return sequential(shape, layers + head)


def cells(
  shape: Shape,
  channels: Sequence[int],
  units: Sequence[int],
  classes: int,
  *,
  pool: str = 'max',
) -> Spec:
  """Cells of a convolution and a 2 x 2 pooling, then hidden dense layers.

  The start networks of ECToNAS (arXiv 2403.05123), up to the order within a
  cell: there convolution, pooling, ReLU, batch norm; here the batch norm comes
  before the ReLU, so that layers read what is never negative, behind which a
  new layer can be an identity.

  Args:
    shape: (height, width, channels).
    channels: of each cell's convolution.
    units: of each hidden dense layer.
    classes: width of the output.
    pool: `'max'` or `'mean'`.

  Example:
    >>> from jaxnas import network
    >>> network.param_count(cells((8, 8, 1), (3, 6), (10, 10), 10))
    686
  """
  layers: list[tuple[str, Op]] = []
  for i, width in enumerate(channels, 1):
    layers += _unit(f'conv{i}', Conv(width), 'relu')
    layers.append((f'pool{i}', Pool(pool)))
  layers.append(('flat', Flatten()))
  for i, width in enumerate(units, 1):
    layers += [(f'dense{i}', Dense(width)), (f'act{i}', Activation('relu'))]
  return sequential(shape, [*layers, ('logits', Dense(classes))])


_VGG19 = ((64,) * 2 + ('M',) + (128,) * 2 + ('M',) + (256,) * 4 + ('M',)) + (
  (512,) * 4 + ('M',) + (512,) * 4
)


def vgg19(
  shape: Shape,
  classes: int,
  *,
  width: int | None = None,
  multiplier: float = 1.0,
) -> Spec:
  """VGG-19 in its CIFAR form: 16 convolutions with batch norm, one dense.

  Simonyan and Zisserman (2015), configuration E, with the three dense layers
  replaced by global pooling and one, as growth papers use it.

  Args:
    shape: (height, width, channels).
    classes: width of the output.
    width: the same channels everywhere (16 is the seed of Firefly, Wu et al.
      2020); None for the published 64 to 512.
    multiplier: scales the published channels.

  Example:
    >>> from jaxnas import network
    >>> network.param_count(vgg19((32, 32, 3), 10))
    20035018
  """
  widths = [
    w if w == 'M' else width or max(1, round(w * multiplier)) for w in _VGG19
  ]
  return chain(shape, widths, classes)


def resnet(
  classes: int,
  *,
  shape: Shape = (32, 32, 3),
  blocks: int = 3,
  widths: Sequence[int] = (16, 32, 64),
  activation: str = 'relu',
) -> Spec:
  """The CIFAR form of ResNet: stages of two-convolution residual blocks.

  He et al. (2016), section 4.2, with `blocks` = 3, 5, 9 for ResNet-20, 32,
  56. Departs from the paper in its shortcuts: a 1 x 1 convolution with batch
  norm where the width or resolution changes (option B), which keeps every
  stage's width free.

  Args:
    classes: width of the output.
    shape: (height, width, channels).
    blocks: blocks in each stage.
    widths: channels of each stage; all but the first halve the resolution.
    activation: one of `jaxnas.spec.ACTIVATIONS`.

  Example:
    >>> spec = resnet(10)
    >>> spec.shapes['stage3_block3_out']
    (8, 8, 64)
  """
  nodes = [Node('input', Input(tuple(shape)))]

  def add(name: str, op: Op, *inputs: str) -> str:
    nodes.append(Node(name, op, inputs))
    return name

  def unit(name: str, conv: Conv, source: str, act: bool = True) -> str:
    last = add(f'{name}_bn', BatchNorm(), add(name, conv, source))
    return add(f'{name}_act', Activation(activation), last) if act else last

  x = unit('stem', Conv(widths[0], use_bias=False), 'input')
  for s, width in enumerate(widths, 1):
    for b in range(1, blocks + 1):
      stem, first = f'stage{s}_block{b}', b == 1 and s > 1
      strides = (2, 2) if first else (1, 1)
      inner = unit(
        f'{stem}_conv1', Conv(width, strides=strides, use_bias=False), x
      )
      inner = unit(
        f'{stem}_conv2', Conv(width, use_bias=False), inner, act=False
      )
      if first:
        shortcut = Conv(width, (1, 1), strides, use_bias=False)
        x = unit(f'{stem}_shortcut', shortcut, x, act=False)
      total = add(f'{stem}_add', Add(), x, inner)
      x = add(f'{stem}_out', Activation(activation), total)
  add('logits', Dense(classes), add('gap', GlobalPool(), x))
  return Spec(tuple(nodes), 'logits')


_MOBILENET_V1 = (
  ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2))
  + ((512, 1),) * 5
  + ((1024, 2), (1024, 1))
)


def mobilenet_v1(
  shape: Shape,
  classes: int,
  *,
  width: int | None = None,
  multiplier: float = 1.0,
  activation: str = 'relu',
) -> Spec:
  """MobileNetV1 in its CIFAR form: a stem and 13 depthwise-separable layers.

  Howard et al. (2017), table 1. Departs from it in the stem's stride (1 and
  not 2) and the second layer's (1 and not 2), as is usual for images of 32 x
  32, so that the last feature map has 4 x 4 positions.

  Args:
    shape: (height, width, channels).
    classes: width of the output.
    width: the same channels everywhere (32 is the seed of the splitting
      papers); None for the published ones.
    multiplier: scales the published channels.
    activation: one of `jaxnas.spec.ACTIVATIONS`.

  Example:
    >>> spec = mobilenet_v1((32, 32, 3), 10, width=32)
    >>> spec.shapes['point13']
    (4, 4, 32)
  """

  def scaled(channels: int) -> int:
    return width or max(1, round(channels * multiplier))

  layers = _unit('stem', Conv(scaled(32), use_bias=False), activation)
  for i, (channels, stride) in enumerate(_MOBILENET_V1, 1):
    stride = 1 if i == 2 else stride
    depth = DepthwiseConv(strides=(stride, stride), use_bias=False)
    layers += _unit(f'depth{i}', depth, activation)
    point = Conv(scaled(channels), (1, 1), use_bias=False)
    layers += _unit(f'point{i}', point, activation)
  head = [('gap', GlobalPool()), ('logits', Dense(classes))]
  return sequential(shape, layers + head)
