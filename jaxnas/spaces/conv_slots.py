"""Convolutional networks of slots, whose architecture is data.

A stem, stages of slots at a constant width with pooling between them, and a
head. What a slot does, and its activation, are genes; networks that differ in
them have the same arrays and are one program, so that a slot's weights can move
from one network to another as they are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import layers as convolutions
from jaxnas import spec
from jaxnas.base import Genes, Key
from jaxnas.spaces import slots as dense_slots

# The options of an activation gene, in this order.
ACTIVATIONS = dense_slots.ACTIVATIONS


class Op(NamedTuple):
  """What a slot may do, over weights whose layout is the same for all ops.

  The weights of a slot of width C are `kernel` (3, 3, C, C), `depth`
  (3, 3, 1, C), and `bias`, `scale` and `shift` (C,).

  Attributes:
    init: `init(kernel, depth) -> weights`, of standard Gaussian draws, at the
      op's own scale; what the op does not read is zero, and learning leaves it
      so.
    apply: `apply(weights, x, conv) -> z`, before the activation, with
      `conv(x, kernel, depthwise=False)`.
    residual: whether the slot's input is added to what is activated.
  """

  init: Callable[[jax.Array, jax.Array], dict[str, jax.Array]]
  apply: Callable[..., jax.Array]
  residual: bool = False


class Network(NamedTuple):
  """A space of networks as three functions; what `learners.classifier` takes.

  Attributes:
    genes: the genotype, and which layers its genes own.
    init: `init(key, genes) -> layers`, fresh weights by layer.
    apply: `apply(layers, genes, inputs) -> outputs` of a batch.
  """

  genes: Genes
  init: Callable[[Key, jax.Array], dict[str, Any]]
  apply: Callable[..., jax.Array]


def _normal(key: Key, shapes: Any) -> Any:
  """Standard Gaussian arrays, of one draw: that is one program to compile."""
  leaves, structure = jax.tree.flatten(
    shapes, is_leaf=lambda leaf: isinstance(leaf, tuple)
  )
  ends = np.cumsum([math.prod(leaf) for leaf in leaves])
  drawn = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
  return structure.unflatten([x.reshape(s) for x, s in zip(drawn, leaves)])


def _he(normal: jax.Array) -> jax.Array:
  """He's initialiser: of variance 2 over the numbers that are summed."""
  return normal * np.sqrt(2 / math.prod(normal.shape[:-1])).astype(np.float32)


def _nothing(kernel: jax.Array, depth: jax.Array) -> dict[str, jax.Array]:
  channels = jnp.zeros(kernel.shape[-1:])
  return {
    'kernel': jnp.zeros_like(kernel),
    'depth': jnp.zeros_like(depth),
    'bias': channels,
    'scale': channels,
    'shift': channels,
  }


def _full(kernel: jax.Array, depth: jax.Array) -> dict[str, jax.Array]:
  held = _nothing(kernel, depth)
  return {**held, 'kernel': _he(kernel), 'scale': held['scale'] + 1}


def _point(kernel: jax.Array, depth: jax.Array) -> dict[str, jax.Array]:
  held = _nothing(kernel, depth)
  middle = held['kernel'].at[1, 1].set(_he(kernel[1, 1]))
  return {**held, 'kernel': middle, 'scale': held['scale'] + 1}


def _separate(kernel: jax.Array, depth: jax.Array) -> dict[str, jax.Array]:
  return {**_point(kernel, depth), 'depth': _he(depth)}


def normalised(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
  """Group norm of one group: over rows, columns and channels of each image.

  It needs no statistics of a batch, which would be state that no member could
  hand on with a slot, and lets no example see another. Unlike a norm over the
  channels of each pixel, it leaves an image's empty parts empty.

  Args:
    x: (batch, rows, columns, C).
    scale: (C,).
    shift: (C,).

  Returns:
    As x.

  Example:
    >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
    >>> y = normalised(x, jnp.ones(2), jnp.zeros(2))
    >>> abs(float(y.mean())) < 1e-3, round(float(y.std()), 3)
    (True, 1.0)
  """
  x = x - x.mean(axis=(1, 2, 3), keepdims=True)
  square = jnp.square(x).mean(axis=(1, 2, 3), keepdims=True)
  x = x * jax.lax.rsqrt(square + 1e-5)
  return convolutions.plus(x * convolutions.along(x, scale), shift)


def _settled(held: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
  x = convolutions.plus(x, held['bias'])
  return normalised(x, held['scale'], held['shift'])


def _conv3(held, x, conv):
  return _settled(held, conv(x, held['kernel']))


def _conv1(held, x, conv):
  return _settled(held, conv(x, held['kernel'][1:2, 1:2]))


def _separable(held, x, conv):
  return _conv1(held, conv(x, held['depth'], depthwise=True), conv)


# The ops of a slot, in the order of its gene's values.
OPS: Mapping[str, Op] = {
  'identity': Op(_nothing, lambda held, x, conv: x),
  'conv1': Op(_point, _conv1),
  'conv3': Op(_full, _conv3),
  'residual3': Op(_full, _conv3, residual=True),
  'separable3': Op(_separate, _separable),
}


def _stage(name: str, count: int, ops: Mapping[str, Op]) -> Genes:
  """Genes of a stage: for each slot its op, which owns it, and activation."""
  kinds = {'op': tuple(ops), 'activation': tuple(ACTIVATIONS)}
  every = [(i, kind) for i in range(count) for kind in kinds]
  return Genes(
    tuple(len(kinds[kind]) for _, kind in every),
    {name: 2 * np.arange(count)},
    tuple(f'{name}/{kind}{i}' for i, kind in every),
    tuple(kinds[kind] for _, kind in every),
  )


def conv_slots(
  shape: Sequence[int],
  outputs: int,
  *,
  widths: Sequence[int] = (16, 32),
  slots: int = 3,
  ops: Mapping[str, Op] = OPS,
  form: str = 'auto',
) -> Network:
  """A space of convolutional classifiers.

  `stem` is a 3 x 3 convolution. `stage0`, `stage1`, ... are stacked slots, each
  of which gives act(op(x)), or x + act(op(x)) where the op is residual; between
  two stages the mean of 2 x 2 pixels is taken, and `widen1`, ... is a 1 x 1
  convolution to the next width. `head` is dense, on the mean over all pixels.
  Convolutions of stem, slots and widenings are followed by `normalised`, so
  shrinking a slot's weights acts through its scale. A slot's op gene owns the
  slot; an activation gene owns nothing, and nothing owns the other layers.

  The op is a `lax.switch`: a true branch for members in turn, and under `vmap`
  all branches and a choice.

  Args:
    shape: of an input, (rows, columns, channels).
    outputs: classes.
    widths: channels of each stage.
    slots: S slots in a stage.
    ops: by name, what a slot may do.
    form: of convolutions (`layers.conv2d`); `'auto'` is `'images'` on CPU,
      where programs loop over members, steps and slots.

  Returns:
    The space, with 2 S genes for each stage.

  Raises:
    ValueError: for no stage or slot, a shape that is not an image's, or one too
      small for so many stages.

  Example:
    >>> space = conv_slots((8, 8, 1), 10, widths=(4, 6), slots=1)
    >>> space.genes.names
    ('stage0/op0', 'stage0/activation0', 'stage1/op0', 'stage1/activation0')
    >>> genes = jnp.array([2, 1, 4, 2])
    >>> held = jax.eval_shape(space.init, jax.random.key(0), genes)
    >>> held['stage1']['kernel'].shape
    (1, 3, 3, 6, 6)
    >>> images = jnp.ones((5, 8, 8, 1))
    >>> jax.eval_shape(space.apply, held, genes, images).shape
    (5, 10)
  """
  if len(shape) != 3 or min(shape) < 1 or outputs < 1:
    raise ValueError(
      'conv_slots: shape must be (rows, columns, channels) and outputs '
      f'positive, got {tuple(shape)} and {outputs}.'
    )
  if not widths or min(widths) < 1 or slots < 1 or not ops:
    raise ValueError(
      'conv_slots: there must be a width of at least 1, a slot and an op, got '
      f'widths={tuple(widths)}, slots={slots}, ops={tuple(ops)}.'
    )
  if min(shape[:2]) < 2 ** (len(widths) - 1):
    raise ValueError(
      f'conv_slots: {len(widths)} stages halve an image {len(widths) - 1} '
      f'times, which {tuple(shape)} is too small for; give fewer widths.'
    )
  names = [f'stage{i}' for i in range(len(widths))]
  joints = {'stem': (3, shape[-1], widths[0])} | {
    f'widen{i}': (1, widths[i - 1], widths[i]) for i in range(1, len(widths))
  }
  genes = dense_slots.join(
    *(_stage(name, slots, ops) for name in names),
    dense_slots.fixed(*joints, 'head'),
  )
  residual = np.array([op.residual for op in ops.values()])

  def cut(own):
    """For each stage the (S,) ops and (S,) activations."""
    return jnp.moveaxis(own.reshape((len(widths), slots, 2)), -1, 1)

  shapes = {
    name: {'kernel': (slots, 3, 3, c, c), 'depth': (slots, 3, 3, 1, c)}
    for name, c in zip(names, widths)
  } | {name: (side, side, i, o) for name, (side, i, o) in joints.items()}

  def init(key, own):
    normal_key, head_key = jax.random.split(key)
    normal = _normal(normal_key, shapes)

    def slot(op, normal):
      inits = [lambda normal, op=op: op.init(**normal) for op in ops.values()]
      return jax.lax.switch(op, inits, normal)

    held = {
      name: jax.vmap(slot)(chosen, normal[name])
      for name, (chosen, _) in zip(names, cut(own))
    }
    for name, (_, _, width) in joints.items():
      held[name] = {
        'kernel': _he(normal[name]),
        'bias': jnp.zeros(width),
        'scale': jnp.ones(width),
        'shift': jnp.zeros(width),
      }
    held['head'] = dense_slots.dense(head_key, widths[-1], outputs)
    return held

  def apply(held, own, x):
    found = convolutions.conv_form(form)
    found = 'images' if form == 'auto' and found == 'patches' else found

    def conv(x, kernel, depthwise=False):
      return convolutions.conv2d(x, kernel, depthwise=depthwise, form=found)

    # Kept for the gradient are a slot's inputs alone: a switch would keep what
    # each of its branches wants, filled with zeros for those not taken.
    @jax.checkpoint
    def slot(x, read):
      weights, op, activation = read
      branches = [
        lambda weights, x, op=op: op.apply(weights, x, conv)
        for op in ops.values()
      ]
      z = jax.lax.switch(op, branches, weights, x)
      z = jax.lax.switch(activation, list(ACTIVATIONS.values()), z)
      return jnp.where(jnp.asarray(residual)[op], x + z, z), None

    x = _conv3(held['stem'], x, conv)
    for i, (name, (chosen, acts)) in enumerate(zip(names, cut(own))):
      if i:
        x = convolutions.pool2d(x, spec.Pool('mean'))
        joint = held[f'widen{i}']
        x = _settled(joint, conv(x, joint['kernel']))
      x, _ = jax.lax.scan(slot, x, (held[name], chosen, acts))
    return dense_slots.linear(held['head'], x.mean(axis=(1, 2)))

  return Network(genes, init, apply)


def pinned(network: Network, genotype: Sequence[int]) -> Network:
  """A space of one architecture: no genes, and the layers of the genotype.

  For a search of hyper-parameters alone.

  Args:
    network: the space.
    genotype: G integers, one for each of its genes.

  Raises:
    ValueError: for a genotype that is none of the space's.

  Example:
    >>> space = conv_slots((8, 8, 1), 10, widths=(4,), slots=1)
    >>> one = pinned(space, (2, 1))
    >>> held = jax.eval_shape(one.init, jax.random.key(0), jnp.zeros(0, int))
    >>> one.genes.options, held['stage0']['kernel'].shape
    ((), (1, 3, 3, 4, 4))
  """
  options = network.genes.options
  if len(genotype) != len(options) or not all(
    0 <= gene < count for gene, count in zip(genotype, options)
  ):
    raise ValueError(
      f'pinned: a genotype has {len(options)} genes below {options}, got '
      f'{tuple(genotype)}.'
    )
  own = np.asarray(genotype, np.int32)
  return Network(
    dense_slots.fixed(*network.genes.owner),
    lambda key, genes: network.init(key, jnp.asarray(own)),
    lambda layers, genes, inputs: network.apply(
      layers, jnp.asarray(own), inputs
    ),
  )
