"""One Flax layer per operation, and the axes of its variables as data.

`layer` builds the layer of an op, `axes` says which axis of which variable
carries the op's input or output channels. Both are open to new ops by
`functools.singledispatch`: `layers.layer.register(MyOp)`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxnas import spec as specs

Axes = dict[tuple[str, str], tuple[str | None, ...]]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'relu': nn.relu,
  'gelu': functools.partial(nn.gelu, approximate=False),
  'silu': nn.silu,
  'hard_swish': nn.hard_swish,
  'softplus': nn.softplus,
  'leaky_relu': functools.partial(nn.leaky_relu, negative_slope=0.1),
  'elu': nn.elu,
  'tanh': nn.tanh,
  'sigmoid': nn.sigmoid,
}


def conv_form(form: str = 'auto') -> str:
  """The form of convolutions in use: `'native'`, `'patches'` or `'images'`.

  `'auto'` is `'patches'` on CPU, where XLA's own convolution is several times
  slower, and 30 times slower again inside a loop (docs/design.md, section 4),
  and `'native'` on every other backend.

  Raises:
    ValueError: for any other form.
  """
  if form == 'auto':
    return 'patches' if jax.default_backend() == 'cpu' else 'native'
  if form not in ('native', 'patches', 'images'):
    raise ValueError(
      f"conv must be 'auto', 'native', 'patches' or 'images', got {form!r}."
    )
  return form


# Numbers in the patches that fit into a core's own cache: 1 MiB of float32.
CACHED = 1 << 18


def divisor(number: int, most: int) -> int:
  """The largest divisor of a number that is at most so much, or 1.

  Example:
    >>> divisor(128, 30), divisor(7, 4)
    (16, 1)
  """
  most = min(number, most)
  return max((n for n in range(1, most + 1) if number % n == 0), default=1)


def patches(spec: specs.Spec) -> int:
  """How many numbers the patches of one image hold, in the layer with most.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> patches(seeds.chain((8, 8, 1), (4, 6), 10)) == 8 * 8 * 9 * 4
    True
  """
  return max(
    (
      math.prod(spec.shapes[node.name][:-1])
      * math.prod(node.op.kernel)
      * spec.shapes[node.inputs[0]][-1]
      for node in spec.nodes
      if isinstance(node.op, specs.Conv)
    ),
    default=0,
  )


def cached(batch: int, patches: int) -> int:
  """How many images to take at a time so that their patches stay in cache.

  Patches hold each pixel once for every tap, and memory is slower than the
  matrix product. A training step of convolutions 3-16-32-32, 3 x 3, on 64
  images of 32 x 32, on one core with 1 MiB of second-level cache and 32 MiB
  of third-level cache: 127 ms with the patches of all images, 73 with those of
  4, 62 with those of 2, 60 with those of 1.

  Args:
    batch: images in all.
    patches: numbers in the patches of one image.

  Returns:
    All of them, if their patches are at most 16 MiB of float32; else the
    largest divisor of `batch` of which they are at most 1 MiB, or 1.

  Example:
    >>> cached(64, 32 * 32 * 9 * 32), cached(64, 8 * 8 * 9 * 32)
    (1, 64)
  """
  if batch * patches <= 16 * CACHED:
    return batch
  return divisor(batch, CACHED // patches)


def _pads(x, window, strides, padding, dilation=(1, 1)):
  """What is put before and behind the rows and the columns of images."""
  reach = tuple((w - 1) * d + 1 for w, d in zip(window, dilation))
  if padding == 'EVEN':
    return [(r // 2, r // 2) for r in reach]
  return lax.padtype_to_pads(x.shape[1:3], reach, strides, padding)


def _shifts(x, window, strides, padding, fill=0.0, dilation=(1, 1)):
  """The k*k shifted, strided views of a padded image, row-major."""
  pads = _pads(x, window, strides, padding, dilation)
  rows, columns = (
    (x.shape[i + 1] + sum(pads[i]) - (window[i] - 1) * dilation[i] - 1)
    // strides[i]
    + 1
    for i in (0, 1)
  )
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
  reach = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
  for i in range(0, window[0] * dilation[0], dilation[0]):
    for j in range(0, window[1] * dilation[1], dilation[1]):
      # Not by indices, which take three times as long to trace.
      yield lax.slice(
        x,
        (0, i, j, 0),
        (x.shape[0], i + reach[0], j + reach[1], x.shape[3]),
        (1, *strides, 1),
      )


def conv2d(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, int] = (1, 1),
  padding: str = 'SAME',
  *,
  depthwise: bool = False,
  dilation: tuple[int, int] = (1, 1),
  form: str = 'auto',
) -> jax.Array:
  """A 2-d convolution, in the form that is fast where it runs.

  Args:
    x: (batch, height, width, channels in).
    kernel: (rows, columns, channels in, channels out), or with `depthwise`
      (rows, columns, 1, channels).
    strides: rows and columns to move by.
    padding: `'SAME'`, `'VALID'` or `'EVEN'` (`jaxnas.spec.Conv`).
    depthwise: each channel by itself.
    dilation: rows and columns between taps, of a depthwise one.
    form: `'native'` for `lax.conv_general_dilated`; `'patches'` for shifted
      slices and one matrix product; `'images'` for the same in a loop over as
      many images as `cached` says, which keeps no patches for the gradient and
      has neither forward-mode nor second derivatives; `'auto'` for
      `conv_form()`.

  Returns:
    (batch, rows, columns, channels out).

  Example:
    >>> import jax.numpy as jnp
    >>> x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 5))
    >>> y = conv2d(x, kernel, form='patches')
    >>> y.shape, float(y[0, 1, 1, 0]), float(y[0, 0, 0, 0])
    ((1, 4, 4, 5), 18.0, 8.0)
  """
  dtype = jnp.result_type(x, kernel)
  x, kernel = x.astype(dtype), kernel.astype(dtype)
  if conv_form(form) == 'native':
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      _pads(x, kernel.shape[:2], strides, padding, dilation),
      rhs_dilation=dilation,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x.shape[-1] if depthwise else 1,
    )
  window = kernel.shape[:2]
  if conv_form(form) == 'images' and not depthwise and window != (1, 1):
    return _by_images(x, kernel, strides, padding)
  if depthwise:
    shifts = _shifts(x, window, strides, padding, dilation=dilation)
    return sum(s * t[None, None, None] for s, t in zip(shifts, _flat(kernel)))
  return _patches(x, window, strides, padding) @ _flat(kernel)


def _by_images(x, kernel, strides, padding):
  """`conv2d` of a few images at a time; patches are made again, not kept."""
  pads = _pads(x, kernel.shape[:2], strides, padding)
  rows, columns = (
    (x.shape[i + 1] + sum(pads[i]) - kernel.shape[i]) // strides[i] + 1
    for i in (0, 1)
  )
  taps = math.prod(kernel.shape[:3])
  few = cached(len(x), rows * columns * taps)
  if few == len(x):
    return _remade(x, kernel, strides, padding)
  parts = x.reshape((-1, few, *x.shape[1:]))
  y = lax.map(lambda part: _remade(part, kernel, strides, padding), parts)
  return y.reshape((len(x), *y.shape[2:]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _remade(x, kernel, strides, padding):
  """A convolution whose gradient makes the patches again.

  As `jax.checkpoint` would, whose barriers cost a tenth of a training step.
  """
  return _patches(x, kernel.shape[:2], strides, padding) @ _flat(kernel)


def _remade_forward(x, kernel, strides, padding):
  return _remade(x, kernel, strides, padding), (x, kernel)


def _remade_backward(strides, padding, kept, dy):
  x, kernel = kept
  patches, back = jax.vjp(
    lambda x: _patches(x, kernel.shape[:2], strides, padding), x
  )
  (dx,) = back(dy @ _flat(kernel).T)
  taps = _flat(patches).T @ _flat(dy)
  return dx, taps.reshape(kernel.shape)


_remade.defvjp(_remade_forward, _remade_backward)


def _flat(x):
  """All axes but the last as one."""
  return x.reshape((-1, x.shape[-1]))


def _patches(x, window, strides, padding):
  """(batch, rows, columns, taps * channels): each output's inputs."""
  shifts = list(_shifts(x, window, strides, padding))
  return shifts[0] if len(shifts) == 1 else jnp.concatenate(shifts, -1)


def _tiles(x, window):
  """The k*k views of an image that windows tile, row-major.

  As `_shifts` with strides of the window, but their gradients are put together
  by concatenation, each pixel being in one of them, and not padded and added
  up, which takes longer.
  """
  batch, height, width, channels = x.shape
  rows, columns = height // window[0], width // window[1]
  x = x.reshape((batch, rows, window[0], columns, window[1], channels))
  for row in lax.split(x, [1] * window[0], axis=2):
    for tile in lax.split(row, [1] * window[1], axis=4):
      yield tile.reshape((batch, rows, columns, channels))


def _pooled(x, op, fill=0.0):
  """What `_shifts` gives for a pooling."""
  tiled = (
    op.window == op.strides
    and x.shape[1] % op.window[0] == x.shape[2] % op.window[1] == 0
    and not any(map(any, _pads(x, op.window, op.strides, op.padding)))
  )
  if tiled:
    return _tiles(x, op.window)
  return _shifts(x, op.window, op.strides, op.padding, fill)


def pool2d(x, op: specs.Pool) -> jax.Array:
  """Pooling of (batch, height, width, C); see `jaxnas.spec.Pool`."""
  if op.reduce == 'max':
    shifts = _pooled(x, op, fill=-jnp.inf)
    # Not `maximum`: its gradient compares the result with the operands, which
    # XLA may compute twice and round differently: 0 / 0, or no gradient.
    return functools.reduce(lambda a, b: jnp.where(b > a, b, a), shifts)
  total = sum(_pooled(x, op))
  inside = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
  return total / sum(_shifts(inside, op.window, op.strides, op.padding))


class Conv(nn.Module):
  """Convolution with `kernel` (rows, columns, in, features) and `bias`."""

  op: specs.Conv
  conv: str = 'auto'

  @nn.compact
  def __call__(self, x):
    shape = (*self.op.kernel, x.shape[-1], self.op.features)
    init = nn.initializers.he_normal()
    kernel = self.param('kernel', init, shape, jnp.float32)
    y = conv2d(x, kernel, self.op.strides, self.op.padding, form=self.conv)
    return _biased(self, y) if self.op.use_bias else y


class DepthwiseConv(nn.Module):
  """Depthwise convolution with `kernel` (rows, columns, 1, C) and `bias`."""

  op: specs.DepthwiseConv
  conv: str = 'auto'

  @nn.compact
  def __call__(self, x):
    shape = (*self.op.kernel, 1, x.shape[-1])
    init = nn.initializers.he_normal()
    kernel = self.param('kernel', init, shape, jnp.float32)
    y = conv2d(
      x,
      kernel,
      self.op.strides,
      self.op.padding,
      depthwise=True,
      dilation=self.op.dilation,
      form=self.conv,
    )
    return _biased(self, y) if self.op.use_bias else y


def along(x: jax.Array, channels: jax.Array) -> jax.Array:
  """(C,) numbers as (1, ..., 1, C), to meet the channels of x.

  Example:
    >>> along(jnp.ones((2, 3, 4)), jnp.arange(4)).shape
    (1, 1, 4)
  """
  return jnp.expand_dims(channels, range(x.ndim - 1))


def plus(x: jax.Array, channels: jax.Array) -> jax.Array:
  """x, (..., C), with (C,) numbers added to its channels."""
  return x + along(x, channels)


def _biased(module: nn.Module, y: jax.Array) -> jax.Array:
  zeros = nn.initializers.zeros
  return plus(y, module.param('bias', zeros, y.shape[-1:], jnp.float32))


class Gate(nn.Module):
  """A learned scalar `alpha` times the input."""

  op: specs.Gate

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.constant(self.op.init)
    return x * self.param('alpha', init, (), jnp.float32)


@functools.singledispatch
def layer(op: Any, name: str | None, conv: str) -> Callable[..., jax.Array]:
  """The layer of an op: `layer(op, name, conv)(*inputs, train, mask)`.

  Args:
    op: the operation.
    name: the Flax name of the layer, the node's name.
    conv: the form of convolutions (`conv2d`).

  Returns:
    A function of the inputs and the keywords `train` and `mask`, the latter
    a boolean vector of active channels or None.

  Raises:
    TypeError: for an op without a layer.
  """
  raise TypeError(
    f'there is no layer for {op!r}; register one with '
    'jaxnas.layers.layer.register and its axes with '
    'jaxnas.layers.axes.register.'
  )


def _plain(f):
  """A layer that needs neither `train` nor `mask`."""
  return lambda *xs, train, mask: f(*xs)


@layer.register
def _(op: specs.Dense, name, conv):
  del conv
  return _plain(nn.Dense(op.features, use_bias=op.use_bias, name=name))


@layer.register
def _(op: specs.Conv, name, conv):
  return _plain(Conv(op, conv, name=name))


@layer.register
def _(op: specs.DepthwiseConv, name, conv):
  return _plain(DepthwiseConv(op, conv, name=name))


@layer.register
def _(op: specs.Gate, name, conv):
  del conv
  return _plain(Gate(op, name=name))


@layer.register
def _(op: specs.BatchNorm, name, conv):
  del conv
  norm = nn.BatchNorm(momentum=op.momentum, epsilon=op.epsilon, name=name)
  return lambda x, train, mask: norm(x, use_running_average=not train)


@layer.register
def _(op: specs.LayerNorm, name, conv):
  del conv
  norm = nn.LayerNorm(epsilon=op.epsilon, use_fast_variance=False, name=name)

  def apply(x, train, mask):
    if mask is not None:
      mask = jnp.broadcast_to(along(x, mask), x.shape)
    return norm(x, mask=mask)

  return apply


@layer.register
def _(op: specs.Dropout, name, conv):
  del conv
  dropout = nn.Dropout(op.rate, name=name)
  return lambda x, train, mask: dropout(x, deterministic=not train)


@layer.register
def _(op: specs.Activation, name, conv):
  del name, conv
  return _plain(ACTIVATIONS[op.fn])


@layer.register
def _(op: specs.Pool, name, conv):
  del name, conv
  return _plain(functools.partial(pool2d, op=op))


@layer.register
def _(op: specs.GlobalPool, name, conv):
  del op, name, conv
  return _plain(lambda x: x.mean(axis=(1, 2)))


@layer.register
def _(op: specs.Add, name, conv):
  del op, name, conv
  return _plain(lambda *xs: functools.reduce(jnp.add, xs))


@layer.register
def _(op: specs.Concat, name, conv):
  del op, name, conv
  return _plain(lambda *xs: jnp.concatenate(xs, axis=-1))


@layer.register
def _(op: specs.Zero, name, conv):
  del name, conv
  rows, columns = op.strides
  return _plain(lambda x: jnp.zeros_like(x[:, ::rows, ::columns]))


@layer.register
def _(op: specs.Trim, name, conv):
  del name, conv
  return _plain(lambda x: x[:, op.rows :, op.columns :])


@layer.register
def _(op: specs.ZeroPad, name, conv):
  del name, conv
  before = ((0, 0, 0), (op.rows, 0, 0), (op.columns, 0, 0), (0, 0, 0))
  return _plain(lambda x: lax.pad(x, jnp.zeros((), x.dtype), before))


@layer.register
def _(op: specs.Narrow, name, conv):
  del name, conv
  return _plain(lambda x: x[..., : op.features])


@layer.register
def _(op: specs.Flatten, name, conv):
  del op, name, conv
  return _plain(lambda x: x.reshape((x.shape[0], -1)))


@functools.singledispatch
def axes(op: Any) -> Axes:
  """The variables of an op's layer, each with the role of its axes.

  Returns:
    `{(collection, variable): roles}`, a role for every axis: `'in'` for the
    input's channels, `'out'` for the output's, None for anything else. Ops
    without variables have none.

  Example:
    >>> from jaxnas import spec
    >>> axes(spec.Conv(8, use_bias=False))
    {('params', 'kernel'): (None, None, 'in', 'out')}
  """
  del op
  return {}


@axes.register
def _(op: specs.Dense):
  return {('params', 'kernel'): ('in', 'out'), **_bias_axes(op)}


@axes.register
def _(op: specs.Conv):
  kernel = {('params', 'kernel'): (None, None, 'in', 'out')}
  return {**kernel, **_bias_axes(op)}


@axes.register
def _(op: specs.DepthwiseConv):
  kernel = {('params', 'kernel'): (None, None, None, 'out')}
  return {**kernel, **_bias_axes(op)}


def _bias_axes(op: Any) -> Axes:
  return {('params', 'bias'): ('out',)} if op.use_bias else {}


@axes.register
def _(op: specs.BatchNorm):
  del op
  return {
    ('params', 'scale'): ('out',),
    ('params', 'bias'): ('out',),
    ('batch_stats', 'mean'): ('out',),
    ('batch_stats', 'var'): ('out',),
  }


@axes.register
def _(op: specs.LayerNorm):
  del op
  return {('params', 'scale'): ('out',), ('params', 'bias'): ('out',)}


@axes.register
def _(op: specs.Gate):
  del op
  return {('params', 'alpha'): ()}
