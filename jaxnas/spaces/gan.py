"""Generators and discriminators whose architecture is data.

`dense` is for small images: slots of dense networks. `easy` and `hard` are the
convolutional spaces of PBT-NAS (Chebykin et al. 2023, arXiv 2307.15621), after
AdversarialNAS (Gao et al. 2020, arXiv 1912.02037): three generator cells with
21 genes, and those with searched noise projections and a searched
discriminator, 72 genes.

Weights of one position lie in one array of the largest option's shape, of which
the others read a part, so that a position's weights can move between networks
of different genes. What an option does not read is zero.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import layers as convolutions
from jaxnas.base import Genes, Key
from jaxnas.spaces import slots

Layers = Mapping[str, Any]


class Networks(NamedTuple):
  """A generator and a discriminator, as pure functions of their genes.

  Attributes:
    genes: of both.
    init: `init(key, genotype) -> layers`, fresh, by name.
    generate: `generate(layers, genotype, z, key) -> images` (B, H, W, C) in
      [-1, 1]; with None for the key nothing is dropped out.
    discriminate: `discriminate(layers, genotype, images) -> (B,)`, larger for
      what looks real.
    generator: names of the generator's layers.
    discriminator: names of the discriminator's; their leaves called `u`, `v`
      and `w` are what spectral normalisation divides.
    latent: numbers in z.
  """

  genes: Genes
  init: Callable[..., Layers]
  generate: Callable[..., jax.Array]
  discriminate: Callable[..., jax.Array]
  generator: tuple[str, ...]
  discriminator: tuple[str, ...]
  latent: int


def architectures(genes: Genes) -> int:
  """How many genotypes there are.

  Example:
    >>> f'{architectures(easy((32, 32, 3)).genes):.1e}'
    '3.5e+15'
    >>> f'{architectures(hard((32, 32, 3)).genes):.1e}'
    '2.9e+52'
  """
  return int(np.prod([int(n) for n in genes.options], dtype=object))


def dense(
  shape: Sequence[int],
  *,
  latent: int = 12,
  width: int = 32,
  depths: tuple[int, int] = (4, 2),
) -> Networks:
  """Slots between linear layers; 12 genes with the default depths.

  The generator is linear, slots, linear, tanh; the discriminator linear, slots,
  linear to one number (`jaxnas.spaces.slots`).

  Args:
    shape: (H, W, C) of an image.
    latent: numbers in z.
    width: of the slots.
    depths: slots of the generator and of the discriminator.

  Example:
    >>> found = dense((8, 8, 1))
    >>> len(found.genes.options), architectures(found.genes)
    (12, 16777216)
  """
  pixels = int(np.prod(shape))
  pieces = (
    slots.genes(depths[0], 'generator/slots'),
    slots.fixed('generator/in', 'generator/out'),
    slots.genes(depths[1], 'discriminator/slots'),
    slots.fixed('discriminator/in', 'discriminator/out'),
  )

  def cut(genotype):
    made, _, judged, _ = slots.cut(pieces, genotype)
    return made.reshape((2, -1)), judged.reshape((2, -1))

  def init(key, genotype):
    made, judged = cut(genotype)
    keys = jax.random.split(key, 6)
    return {
      'generator/in': slots.dense(keys[0], latent, width),
      'generator/slots': slots.init(keys[1], made[0], width),
      'generator/out': slots.dense(keys[2], width, pixels),
      'discriminator/in': slots.dense(keys[3], pixels, width),
      'discriminator/slots': slots.init(keys[4], judged[0], width),
      'discriminator/out': slots.dense(keys[5], width, 1),
    }

  def generate(layers, genotype, z, key=None):
    del key
    made, _ = cut(genotype)
    x = slots.linear(layers['generator/in'], z)
    x = slots.apply(layers['generator/slots'], made[0], made[1], x)
    x = jnp.tanh(slots.linear(layers['generator/out'], x))
    return x.reshape((x.shape[0], *shape))

  def discriminate(layers, genotype, images):
    _, judged = cut(genotype)
    x = images.reshape((images.shape[0], pixels))
    x = slots.linear(layers['discriminator/in'], x)
    x = slots.apply(layers['discriminator/slots'], judged[0], judged[1], x)
    return slots.linear(layers['discriminator/out'], x)[:, 0]

  parts = ('in', 'slots', 'out')
  return Networks(
    slots.join(*pieces),
    init,
    generate,
    discriminate,
    tuple(f'generator/{part}' for part in parts),
    tuple(f'discriminator/{part}' for part in parts),
    latent,
  )


# The options of genes, in this order.
EDGES = ('none', 'skip', 'conv1', 'conv3', 'conv5', 'dilated3', 'dilated5')
UPS = ('nearest', 'bilinear', 'transposed')
READS = tuple(
  f'{read} {size}'
  for read in ('whole', 'part')
  for size in ('bottom', 'prev', 'target')
)
FILLS = ('nearest', 'bilinear')
DROPOUTS = (0.0, 0.1, 0.2)
DOWNS = (
  *('average first', 'max first', 'average', 'max'),
  *('conv3', 'conv5', 'dilated3', 'dilated5'),
)
_OFF = ('no', 'yes')

_NONE, _SKIP = 0, 1
_CELLS, _BLOCKS = 3, 4

# Where an edge of a cell comes from and goes to: nodes 0 and 1 are the two
# upsampled inputs, node 3 is the output.
_SOURCES, _ENDS = np.array([0, 1, 0, 1, 2]), np.array([2, 2, 3, 3, 3])

# Which of 5 x 5 taps an edge reads.
_TAPS = np.zeros((len(EDGES), 5, 5), bool)
_TAPS[2, 2, 2] = True
_TAPS[[3, 5], 1:4, 1:4] = True
_TAPS[[4, 6]] = True

# What a downsampling does: average, max, or an edge of stride 2.
_DOWN_KINDS = np.array([0, 1, 0, 1, 2, 3, 4, 5])
_DOWN_EDGES = np.array([0, 0, 0, 0, 3, 4, 5, 6])


def _conv(
  x: jax.Array, kernel: jax.Array, dilation: int = 1, stride: int = 1
) -> jax.Array:
  """A convolution with as many zeros before as after."""
  side = kernel.shape[0]
  pad = dilation * (side // 2)
  if convolutions.conv_form() == 'native':
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride, stride),
      [(pad, pad)] * 2,
      rhs_dilation=(dilation, dilation),
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
  high, wide = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  # Rows and then columns: fewer slices to compile than taps.
  steps = range(0, dilation * side, dilation)
  rows = jnp.concatenate(
    [padded[:, i : i + high : stride] for i in steps], axis=-1
  )
  taps = jnp.concatenate(
    [rows[:, :, j : j + wide : stride] for j in steps], axis=-1
  )
  return taps @ kernel.swapaxes(0, 1).reshape((-1, kernel.shape[-1]))


def _convolved(own: Layers, x: jax.Array, kind: int, stride: int = 1):
  """An edge with weights, by its number in `EDGES`."""
  inner = own['w'][1:4, 1:4]
  kernel, dilation = {
    2: (own['w'][2:3, 2:3], 1),
    3: (inner, 1),
    4: (own['w'], 1),
    5: (inner, 2),
    6: (own['w'], 2),
  }[kind]
  return convolutions.plus(_conv(x, kernel, dilation, stride), own['b'])


@jax.checkpoint
def edge(own: Layers, gene: jax.Array, x: jax.Array) -> jax.Array:
  """One of `EDGES`; those with weights rectify what they read.

  Args:
    own: `w` (5, 5, C, C) and `b` (C,), of which an option reads a part.
    gene: which option; a branch is taken where members run one by one.
    x: (B, H, W, C).

  Example:
    >>> own = {'w': jnp.ones((5, 5, 1, 1)), 'b': jnp.zeros(1)}
    >>> [edge(own, jnp.array(i), jnp.ones((1, 5, 5, 1)))[0, 2, 2, 0].item()
    ...  for i in range(7)]
    [0.0, 1.0, 1.0, 9.0, 25.0, 9.0, 9.0]
  """
  return jax.lax.switch(
    gene,
    [
      lambda own, x: jnp.zeros_like(x),
      lambda own, x: x,
      *(
        lambda own, x, kind=kind: _convolved(own, jax.nn.relu(x), kind)
        for kind in range(2, len(EDGES))
      ),
    ],
    own,
    x,
  )


@jax.checkpoint
def _image_edge(own: Layers, gene: jax.Array, x: jax.Array) -> jax.Array:
  """An edge that reads images: the last five of `EDGES`, without rectifier."""
  return jax.lax.switch(
    gene,
    [
      lambda own, x, kind=kind: _convolved(own, x, kind)
      for kind in range(2, len(EDGES))
    ],
    own,
    x,
  )


def _fresh_edges(
  key: Key, kinds: jax.Array, inputs: int, outputs: int, gain: float = 2.0
) -> Layers:
  """Kernels (S, 5, 5, inputs, outputs) of the scale of each edge's kind."""
  taps = jnp.asarray(_TAPS)[kinds]
  fan = jnp.maximum(taps.sum(axis=(1, 2)), 1) * inputs
  shape = (kinds.shape[0], 5, 5, inputs, outputs)
  w = jax.random.normal(key, shape) * jnp.sqrt(gain / fan).reshape(
    (-1, 1, 1, 1, 1)
  )
  return {
    'w': jnp.where(taps[..., None, None], w, 0.0),
    'b': jnp.zeros((kinds.shape[0], outputs)),
  }


def _drawn(key: Key, shape: Sequence[int], gain: float = 2.0) -> jax.Array:
  """A matrix or kernel of Gaussian entries, gain over its fan in."""
  return jax.random.normal(key, shape) * np.sqrt(gain / np.prod(shape[:-1]))


def _doubled(x: jax.Array) -> jax.Array:
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


def _bilinear(x: jax.Array, side: int) -> jax.Array:
  shape = (x.shape[0], side, side, x.shape[-1])
  return jax.image.resize(x, shape, 'bilinear')


def _transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Each channel by a transposed 3 x 3 convolution of stride 2.

  As its four phases, sums of shifted copies: a convolution by groups is slow
  on CPU.
  """
  batch, high, wide, channels = x.shape
  right = jnp.pad(x[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
  down = jnp.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
  both = jnp.pad(x[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
  k = kernel[:, :, None, None, None, :]
  rows = [
    [x * k[1, 1], x * k[1, 2] + right * k[1, 0]],
    [
      x * k[2, 1] + down * k[0, 1],
      x * k[2, 2] + right * k[2, 0] + down * k[0, 2] + both * k[0, 0],
    ],
  ]
  y = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)
  return y.reshape((batch, 2 * high, 2 * wide, channels))


@jax.checkpoint
def upsampled(own: Layers, gene: jax.Array, x: jax.Array) -> jax.Array:
  """One of `UPS`, to twice the height and width.

  All rectify and mix channels; nearest and bilinear interpolate before,
  transposed convolves each channel between, and has no offset.

  Args:
    own: `w` (C, C), `b` (C,) and `k` (3, 3, C).
    gene: which.
    x: (B, H, W, C).

  Example:
    >>> own = {'w': jnp.eye(2), 'b': jnp.zeros(2), 'k': jnp.ones((3, 3, 2))}
    >>> upsampled(own, jnp.array(1), jnp.ones((1, 4, 4, 2))).shape
    (1, 8, 8, 2)
  """

  def nearest(own, x):  # The same as to interpolate first.
    return _doubled(convolutions.plus(jax.nn.relu(x) @ own['w'], own['b']))

  def bilinear(own, x):
    x = jax.nn.relu(_bilinear(x, 2 * x.shape[1]))
    return convolutions.plus(x @ own['w'], own['b'])

  def transposed(own, x):
    return _transposed(jax.nn.relu(x), own['k']) @ own['w']

  return jax.lax.switch(gene, [nearest, bilinear, transposed], own, x)


def _fresh_ups(key: Key, kinds: jax.Array, width: int) -> Layers:
  w_key, k_key = jax.random.split(key)
  count = kinds.shape[0]
  w = jax.random.normal(w_key, (count, width, width)) * np.sqrt(2 / width)
  # 9 / 4 taps reach a pixel on average.
  k = jax.random.normal(k_key, (count, 3, 3, width)) * (2 / 3)
  used = (kinds == UPS.index('transposed')).reshape((-1, 1, 1, 1))
  return {
    'w': w,
    'b': jnp.zeros((count, width)),
    'k': jnp.where(used, k, 0.0),
  }


def _at(layer: Layers, where: Any) -> Layers:
  return jax.tree.map(lambda leaf: leaf[where], layer)


def cell(
  ups: Layers, edges: Layers, genes: jax.Array, x: jax.Array, more: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """A cell of the generator: two upsampled inputs and five edges.

  Where no edge reaches node 2 it is the sum of the inputs, and where none
  reaches the output that is node 2: every genotype is a network.

  Args:
    ups: weights of two upsamplings, see `upsampled`.
    edges: weights of five edges, see `edge`.
    genes: (7,) of the upsamplings and the edges.
    x: (B, H, W, C).
    more: (B, 2 H, 2 W, C) that is added to node 2, from earlier cells.

  Returns:
    Node 2 and the output, both (B, 2 H, 2 W, C).
  """
  kinds = genes[2:]

  def up(_, xs):
    return (), upsampled(xs[0], xs[1], x)

  _, starts = jax.lax.scan(up, (), (ups, genes[:2]))
  absent = kinds == _NONE
  middle = jnp.where(absent[0] & absent[1], starts[0] + starts[1], 0.0) + more
  nodes = jnp.concatenate([starts, middle[None], jnp.zeros_like(middle)[None]])

  def join(nodes, xs):
    own, kind, source, end = xs
    found = edge(own, kind, nodes[source])
    return nodes.at[end].add(found), None

  nodes, _ = jax.lax.scan(join, nodes, (edges, kinds, _SOURCES, _ENDS))
  out = jnp.where(absent[2:].all(), nodes[2], nodes[3])
  return nodes[2], out


def _cell_genes() -> Genes:
  names, values = [], []
  for i in range(_CELLS):
    names += [f'cell{i}/up{j}' for j in range(2)]
    names += [f'cell{i}/edge{j}' for j in range(5)]
    values += [UPS] * 2 + [EDGES] * 5
  numbers = np.arange(len(names)).reshape((_CELLS, 7))
  owner = {
    'generator/ups': numbers[:, :2].ravel(),
    'generator/edges': numbers[:, 2:].ravel(),
    'generator/skips': -1,
    'generator/out': -1,
  }
  return Genes(tuple(map(len, values)), owner, tuple(names), tuple(values))


def _fresh_cells(
  key: Key, genes: jax.Array, width: int, channels: int
) -> dict[str, Layers]:
  keys = jax.random.split(key, 4)
  table = genes.reshape((_CELLS, 7))
  return {
    'generator/ups': _fresh_ups(keys[0], table[:, :2].ravel(), width),
    'generator/edges': _fresh_edges(
      keys[1], table[:, 2:].ravel(), width, width
    ),
    'generator/skips': {
      'w': jax.random.normal(keys[2], (3, width, width)) / np.sqrt(width),
      'b': jnp.zeros((3, width)),
    },
    'generator/out': {
      'scale': jnp.ones(width),
      'offset': jnp.zeros(width),
      'w': _drawn(keys[3], (3, 3, width, channels), 1.0),
      'b': jnp.zeros(channels),
    },
  }


def _generated(
  layers: Layers, genes: jax.Array, projected: Sequence[jax.Array]
) -> jax.Array:
  """Images of three cells, each of which reads a projection of the noise."""
  table = genes.reshape((_CELLS, 7))
  skips, x, middles = layers['generator/skips'], 0.0, []
  for i in range(_CELLS):
    x = x + projected[i]
    side, more = 2 * x.shape[1], 0.0
    for j, middle in enumerate(middles):
      own = _at(skips, i - 1 + j)
      # By nearest or bilinear interpolation in turns.
      while i % 2 == 0 and middle.shape[1] < side:
        middle = _doubled(middle)
      if middle.shape[1] < side:
        middle = _bilinear(middle, side)
      more = more + convolutions.plus(middle @ own['w'], own['b'])
    middle, x = cell(
      _at(layers['generator/ups'], slice(2 * i, 2 * i + 2)),
      _at(layers['generator/edges'], slice(5 * i, 5 * i + 5)),
      *(table[i], x, more),
    )
    middles.append(middle)
  out = layers['generator/out']
  x = x - x.mean(axis=(1, 2, 3), keepdims=True)
  x = x * jax.lax.rsqrt(
    jnp.square(x).mean(axis=(1, 2, 3), keepdims=True) + 1e-5
  )
  x = convolutions.plus(x * convolutions.along(x, out['scale']), out['offset'])
  return jnp.tanh(convolutions.plus(_conv(jax.nn.relu(x), out['w']), out['b']))


def _check_shape(name: str, shape: Sequence[int], least: int) -> int:
  """The side of the images."""
  if len(shape) != 3 or shape[0] != shape[1] or shape[0] % least:
    raise ValueError(
      f'{name}: images must be (side, side, channels) with a side that '
      f'{least} divides, got {tuple(shape)}.'
    )
  return shape[0]


def easy(
  shape: Sequence[int],
  *,
  widths: tuple[int, int] = (64, 32),
  latent: int = 120,
) -> Networks:
  """PBT-NAS' `Gan` space: three searched generator cells, 21 genes.

  A third of the noise is projected to the input of each cell. A cell has 2
  upsampling genes and 5 edge genes (`cell`), and node 2 of earlier cells is
  added to its own. The discriminator is AutoGAN's: four residual blocks, two of
  which halve the image, summed over places; the learner normalises it.

  Departs from the official code in the generator's last normalisation, which
  here is of each image by itself (there by batch statistics), and in Gaussian
  initial weights of He's scale (there Glorot's).

  Args:
    shape: (side, side, channels) of an image, a side that 8 divides.
    widths: channels of the generator (256 in the paper) and of the
      discriminator (128).
    latent: numbers in z, a multiple of three.

  Raises:
    ValueError: for images of another shape, or such a latent.

  Example:
    >>> found = easy((8, 8, 1), widths=(4, 4), latent=6)
    >>> own = jnp.zeros(21, jnp.int32)
    >>> layers = jax.eval_shape(found.init, jax.random.key(0), own)
    >>> z = jnp.ones((2, 6))
    >>> jax.eval_shape(found.generate, layers, own, z, None).shape
    (2, 8, 8, 1)
  """
  side = _check_shape('easy', shape, 8)
  width, judging = widths
  _check_latent('easy', latent)
  sides = [side // 8 * 2**i for i in range(_CELLS)]
  inputs = tuple(f'generator/in{i}' for i in range(_CELLS))
  judges = tuple(
    f'discriminator/{name}'
    for name in ('first', 'shortcut0', 'shortcut1', 'convs', 'out')
  )
  genes = slots.join(_cell_genes(), slots.fixed(*inputs, *judges))

  def init(key, genotype):
    keys = jax.random.split(key, 9)
    layers = _fresh_cells(keys[0], genotype, width, shape[-1])
    for i, name in enumerate(inputs):
      layers[name] = slots.dense(
        keys[1 + i], latent // _CELLS, sides[i] ** 2 * width
      )
    shapes = (
      (3, 3, shape[-1], judging),
      (1, 1, shape[-1], judging),
      (1, 1, judging, judging),
      (7, 3, 3, judging, judging),
      (judging, 1),
    )
    for name, own, form in zip(judges, keys[4:], shapes):
      gain = 7.0 if len(form) == 5 else 1.0  # Seven kernels are drawn at once.
      layers[name] = {'w': _drawn(own, form, 2.0 * gain)}
      if name != 'discriminator/out':
        lead = form[:1] if len(form) == 5 else ()
        layers[name]['b'] = jnp.zeros((*lead, form[-1]))
    return layers

  def generate(layers, genotype, z, key=None):
    del key
    parts = jnp.split(z, _CELLS, axis=1)
    projected = [
      slots.linear(layers[name], part).reshape((-1, n, n, width))
      for name, part, n in zip(inputs, parts, sides)
    ]
    return _generated(layers, genotype, projected)

  def discriminate(layers, genotype, images):
    del genotype
    first, enter, halve, convs, out = (layers[name] for name in judges)
    relu = jax.nn.relu

    def conv(own, x):
      return convolutions.plus(_conv(x, own['w']), own['b'])

    x = conv(_at(convs, 0), relu(conv(first, images)))
    x = _average(x) + conv(enter, _average(images))
    for i in range(3):
      h = conv(_at(convs, 2 * i + 1), relu(x))
      h = conv(_at(convs, 2 * i + 2), relu(h))
      x = _average(h) + _average(conv(halve, x)) if i == 0 else h + x
    return (relu(x).sum(axis=(1, 2)) @ out['w'])[:, 0]

  generator = (*_cell_genes().owner, *inputs)
  return Networks(
    genes, init, generate, discriminate, generator, judges, latent
  )


def _average(x: jax.Array) -> jax.Array:
  """Means of 2 x 2 pixels."""
  batch, high, wide, channels = x.shape
  x = x.reshape((batch, high // 2, 2, wide // 2, 2, channels))
  return x.mean(axis=(2, 4))


def _maximum(x: jax.Array) -> jax.Array:
  batch, high, wide, channels = x.shape
  x = x.reshape((batch, high // 2, 2, wide // 2, 2, channels))
  return x.max(axis=(2, 4))


def _check_latent(name: str, latent: int) -> None:
  if latent < _CELLS or latent % _CELLS:
    raise ValueError(
      f'{name}: latent must be a multiple of {_CELLS}, got {latent}.'
    )


def _projection_genes() -> Genes:
  """Three projections of the noise; the first cannot be switched off."""
  kinds = {
    'on': _OFF,
    'reads': READS,
    'fill': FILLS,
    'dropout': tuple(map(str, DROPOUTS)),
  }
  pairs = [
    (f'noise{i}/{name}', values)
    for i in range(_CELLS)
    for name, values in kinds.items()
    if i or name != 'on'
  ]
  names = tuple(name for name, _ in pairs)
  return Genes(
    tuple(len(values) for _, values in pairs),
    {f'generator/in{i}': names.index(f'noise{i}/reads') for i in range(_CELLS)},
    names,
    tuple(values for _, values in pairs),
  )


def _block_genes() -> Genes:
  """Four blocks: seven edges, whether to halve, and how in both branches.

  The first three edges of the first block read the image and must have
  weights.
  """
  pairs = []
  for i in range(_BLOCKS):
    pairs += [
      (f'block{i}/edge{j}', EDGES[2:] if i == 0 and j < 3 else EDGES)
      for j in range(7)
    ]
    pairs += [(f'block{i}/halve', _OFF)]
    pairs += [(f'block{i}/down{j}', DOWNS) for j in range(2)]
  numbers = np.arange(10 * _BLOCKS).reshape((_BLOCKS, 10))
  return Genes(
    tuple(len(values) for _, values in pairs),
    {
      'discriminator/image': numbers[0, :3],
      'discriminator/edges': np.concatenate(
        [numbers[0, 3:7], numbers[1:, :7].ravel()]
      ),
      'discriminator/downs': numbers[:, 8:].ravel(),
      'discriminator/out': -1,
    },
    tuple(name for name, _ in pairs),
    tuple(values for _, values in pairs),
  )


def _inside(x: jax.Array, live: jax.Array) -> jax.Array:
  """x with zeros outside its first `live` rows and columns."""
  near = jnp.arange(x.shape[1]) < live
  near = near[:, None] & near[None, :]
  return jnp.where(near[None, :, :, None], x, 0.0)


@jax.checkpoint
def _halved(own: Layers, kind: jax.Array, x: jax.Array, live: jax.Array):
  """x as it is (kind 0), or half as large in its first rows and columns."""
  half = x.shape[1] // 2

  def room(y):
    return jnp.pad(y, ((0, 0), (0, half), (0, half), (0, 0)))

  found = jax.lax.switch(
    kind,
    [
      lambda own, x: x,
      lambda own, x: room(_average(x)),
      lambda own, x: room(_maximum(x)),
      *(
        lambda own, x, kind=kind: room(_convolved(own, jax.nn.relu(x), kind, 2))
        for kind in (3, 4, 5, 6)
      ),
    ],
    own,
    x,
  )
  return _inside(found, jnp.where(kind > 0, live // 2, live))


def branch(
  own: Mapping[str, Layers],
  genes: Mapping[str, jax.Array],
  start: jax.Array,
  other: jax.Array,
  known: jax.Array,
  live: jax.Array,
) -> jax.Array:
  """One of the two branches of a discriminator's block.

  Its node, to which an edge adds node 0, passes another edge (where that is
  not `none`); it is halved before or after, if the block halves.

  Args:
    own: weights, `across`, `along` and `down`.
    genes: for each of them, and `halve`.
    start: (B, S, S, C), the branch's node.
    other: node 0.
    known: whether there is a node 0.
    live: rows and columns that are in use.
  """
  kind = 1 + jnp.asarray(_DOWN_KINDS)[genes['down']]
  first = genes['down'] < 2
  before = jnp.where(genes['halve'] & first, kind, 0)
  after = jnp.where(genes['halve'] & ~first, kind, 0)
  found = _inside(edge(own['across'], genes['across'], other), live)
  # The pools are not linear: each summand is halved by itself.
  found = _halved(own['down'], before, found, live)
  adds = known & (genes['across'] != _NONE)
  x = _halved(own['down'], before, start, live) + jnp.where(adds, found, 0.0)
  live = jnp.where(before > 0, live // 2, live)
  passed = _inside(edge(own['along'], genes['along'], x), live)
  x = jnp.where(genes['along'] == _NONE, x, passed)
  return _halved(own['down'], after, x, live)


def _block(
  edges: Layers,
  downs: Layers,
  genes: jax.Array,
  x: jax.Array,
  nodes: jax.Array,
  there: jax.Array,
  live: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """A block from its first three nodes on, and the rows then in use.

  Args:
    edges: weights of its last four edges.
    downs: weights of its two downsamplings.
    genes: (10,) of the block.
    x: its input, which is the output if there is no node.
    nodes: (3, B, S, S, C).
    there: (3,) which of them there are.
    live: rows and columns in use.
  """
  halve = genes[7] == 1

  def one(_, xs):
    across, along, down, kinds, start = xs
    own = {'across': across, 'along': along, 'down': down}
    found = branch(
      own,
      {
        'across': kinds[0],
        'along': kinds[1],
        'down': kinds[2],
        'halve': halve,
      },
      *(start, nodes[0], there[0], live),
    )
    return (), found

  kinds = jnp.stack([genes[3:5], genes[5:7], genes[8:]], axis=1)
  xs = (_at(edges, slice(0, 2)), _at(edges, slice(2, 4)), downs, kinds)
  _, ends = jax.lax.scan(one, (), (*xs, nodes[1:]))
  both = jnp.where(there[1:].reshape((2, 1, 1, 1, 1)), ends, 0.0).sum(axis=0)
  branches = there[1] | there[2]
  alone = jnp.where(there[0], nodes[0], x)
  found = jnp.where(branches, both, alone)
  return found, jnp.where(branches & halve, live // 2, live)


def hard(
  shape: Sequence[int],
  *,
  widths: tuple[int, int] = (64, 32),
  latent: int = 120,
) -> Networks:
  """PBT-NAS' `GanHard` space: `easy`, noise and discriminator searched too.

  72 genes. For each projection of the noise: whether there is one (not of the
  first), whether it reads all of the noise or its third, and at which size it
  writes, how that is interpolated to the cell's input, and dropout. For each of
  four blocks of the discriminator: seven edges, whether it halves the image,
  and how in either branch.

  Both branches of a block are added up; the official code overwrites their sum
  by the first. A block's size depends on genes, so all compute at the image's
  size on the rows and columns in use, and the rest is zero: exact, at the cost
  of the largest. Departures of `easy` hold here too.

  Args:
    shape: (side, side, channels) of an image, a side that 16 divides.
    widths: channels of the generator and of the discriminator.
    latent: numbers in z, a multiple of three.

  Raises:
    ValueError: for images of another shape, or such a latent.

  Example:
    >>> genes = hard((16, 16, 1), widths=(4, 4), latent=6).genes
    >>> len(genes.options), genes.names[:3]
    (72, ('noise0/reads', 'noise0/fill', 'noise0/dropout'))
  """
  side = _check_shape('hard', shape, 16)
  width, judging = widths
  _check_latent('hard', latent)
  sides = [side // 8 * 2**i for i in range(_CELLS)]
  pieces = (_projection_genes(), _cell_genes(), _block_genes())
  genes = slots.join(*pieces)
  inputs = tuple(pieces[0].owner)
  third = latent // _CELLS

  def options(genotype, i):
    """on, reads, fill, dropout of a projection."""
    if i == 0:
      return jnp.concatenate([jnp.ones(1, genotype.dtype), genotype[:3]])
    return genotype[4 * i - 1 : 4 * i + 3]

  def rows(reads, i):
    own = (jnp.arange(latent) // third) == i
    return own | (reads < 3)

  def written(i):
    """Sides that a projection may write at."""
    return sides[0], sides[i] // 2, sides[i]

  def init(key, genotype):
    noise, cells, blocks = slots.cut(pieces, genotype)
    keys = jax.random.split(key, 8)
    layers = _fresh_cells(keys[0], cells, width, shape[-1])
    for i, name in enumerate(inputs):
      reads = options(noise, i)[1]
      count = jnp.asarray(written(i))[reads % 3] ** 2 * width
      most = sides[i] ** 2 * width
      layers[name] = slots.dense(
        *(keys[1 + i], latent, most),
        reads=rows(reads, i),
        writes=jnp.arange(most) < count,
      )
    table = blocks.reshape((_BLOCKS, 10))
    kinds = jnp.concatenate([table[0, 3:7], table[1:, :7].ravel()])
    layers['discriminator/image'] = _fresh_edges(
      keys[4], 2 + table[0, :3], shape[-1], judging, 1.0
    )
    layers['discriminator/edges'] = _fresh_edges(
      keys[5], kinds, judging, judging
    )
    downs = jnp.asarray(_DOWN_EDGES)[table[:, 8:].ravel()]
    layers['discriminator/downs'] = _fresh_edges(
      keys[6], downs, judging, judging
    )
    layers['discriminator/out'] = {'w': _drawn(keys[7], (judging, 1))}
    return layers

  def projected(layer, own, z, i, key):
    on, reads, fill, dropout = own
    x = jnp.where(rows(reads, i)[None], z, 0.0)
    x = slots.linear(layer, x)

    def at(size, bilinear):
      def spread(x):
        x = x[:, : size**2 * width].reshape((-1, size, size, width))
        if bilinear:
          return _bilinear(x, sides[i])
        times = sides[i] // size
        return jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)

      return spread

    forms = [at(n, b) for b in (False, True) for n in written(i)]
    x = jax.lax.switch(3 * fill + reads % 3, forms, x)
    if key is not None:
      rate = jnp.asarray(DROPOUTS)[dropout]
      kept = jax.random.bernoulli(key, 1 - rate, x.shape)
      x = jnp.where(kept, x / (1 - rate), 0.0)
    return jnp.where(on == 1, x, 0.0)

  def generate(layers, genotype, z, key=None):
    noise, cells, _ = slots.cut(pieces, genotype)
    keys = [None] * _CELLS if key is None else jax.random.split(key, _CELLS)
    found = [
      projected(layers[name], options(noise, i), z, i, keys[i])
      for i, name in enumerate(inputs)
    ]
    return _generated(layers, cells, found)

  def discriminate(layers, genotype, images):
    table = slots.cut(pieces, genotype)[2].reshape((_BLOCKS, 10))
    edges, downs = layers['discriminator/edges'], layers['discriminator/downs']

    def first(_, xs):
      return (), _image_edge(xs[0], xs[1], images)

    _, nodes = jax.lax.scan(
      first, (), (layers['discriminator/image'], table[0, :3])
    )
    x, live = _block(
      *(_at(edges, slice(0, 4)), _at(downs, slice(0, 2)), table[0]),
      *(nodes[0], nodes, jnp.ones(3, bool), jnp.asarray(side)),
    )

    def later(carry, xs):
      x, live = carry
      own, down, kinds = xs

      def node(_, xs):
        return (), _inside(edge(xs[0], xs[1], x), live)

      _, nodes = jax.lax.scan(node, (), (_at(own, slice(0, 3)), kinds[:3]))
      there = kinds[:3] != _NONE
      return _block(
        *(_at(own, slice(3, 7)), down, kinds, x, nodes, there, live)
      ), None

    rest = jax.tree.map(
      lambda leaf: leaf[4:].reshape((_BLOCKS - 1, 7, *leaf.shape[1:])), edges
    )
    halves = jax.tree.map(
      lambda leaf: leaf[2:].reshape((_BLOCKS - 1, 2, *leaf.shape[1:])), downs
    )
    (x, _), _ = jax.lax.scan(later, (x, live), (rest, halves, table[1:]))
    x = jax.nn.relu(x).sum(axis=(1, 2))
    return (x @ layers['discriminator/out']['w'])[:, 0]

  return Networks(
    genes,
    init,
    generate,
    discriminate,
    (*inputs, *pieces[1].owner),
    tuple(pieces[2].owner),
    latent,
  )
