"""Moves that change the window of a convolution."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import network
from jaxnas import spec as specs
from jaxnas.morphisms import base


def offset(size: int, old: int, new: int, stride: int) -> int:
  """Where a window of `old` lies in one of `new` under SAME padding.

  `pad_low(new) - pad_low(old)` of growth specification, table 3.3, with
  `pad_low(k) = floor(max((ceil(n/s) - 1) s + k - n, 0) / 2)`.

  Args:
    size: extent of the input, n.
    old: extent of the old window.
    new: extent of the new window.
    stride: s.

  Example:
    >>> [offset(8, 1, 3, 1), offset(8, 1, 3, 2), offset(7, 1, 3, 2)]
    [1, 0, 1]
  """

  def low(window: int) -> int:
    return max((-(-size // stride) - 1) * stride + window - size, 0) // 2

  return low(new) - low(old)


def _windowed(move: Any, spec: specs.Spec) -> Any:
  """The operation of a move's node; refuses one whose window is fixed."""
  op = spec.node(move.node, asker=move).op
  if not isinstance(op, specs.Conv | specs.DepthwiseConv):
    raise base.refuse(
      move,
      f'node {move.node!r} is {op}',
      'give a Conv or DepthwiseConv node',
    )
  if op.padding != 'SAME':
    raise base.refuse(
      move,
      f'node {move.node!r} has {op.padding} padding, so another window would '
      'change the size of its output',
      'only SAME windows can grow or shrink',
    )
  if getattr(op, 'dilation', (1, 1)) != (1, 1):
    raise base.refuse(
      move,
      f'the taps of node {move.node!r} are {op.dilation} apart',
      'only windows without dilation can grow or shrink',
    )
  return op


def _rewindowed(
  move: Any, net: network.Network, params: base.Tree
) -> network.Network:
  """The network with a move's window and the parameters that go with it."""
  op = net.spec.by_name[move.node].op
  changed = {move.node: dataclasses.replace(op, kernel=move.kernel)}
  return network.Network(
    {**net.variables, 'params': params}, net.spec.update(changed)
  )


@dataclasses.dataclass(frozen=True)
class GrowKernel:
  """A larger window; build it with `grow_kernel`."""

  node: str
  kernel: tuple[int, int]
  preserves = True

  def _offsets(self, spec: specs.Spec) -> tuple[int, int]:
    op = _windowed(self, spec)
    if any(new < old for new, old in zip(self.kernel, op.kernel)):
      raise base.refuse(
        self,
        f'node {self.node!r} has a window of {op.kernel}',
        'give one at least as large in both directions',
      )
    image = spec.shapes[spec.by_name[self.node].inputs[0]]
    return tuple(
      offset(size, old, new, stride)
      for size, old, new, stride in zip(
        image, op.kernel, self.kernel, op.strides
      )
    )

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del key
    self._offsets(net.spec)
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    params = net.variables['params']
    held = self._grown(net.spec, params[self.node], 0.0)
    return _rewindowed(self, net, {**params, self.node: held})

  def _grown(self, spec: specs.Spec, held, fill):
    rows, columns = self._offsets(spec)
    kernel = held['kernel']
    widths = [
      (at, new - old - at)
      for at, old, new in zip((rows, columns), kernel.shape, self.kernel)
    ]
    space = np if isinstance(kernel, np.ndarray) else jnp
    grown = space.pad(kernel, [*widths, (0, 0), (0, 0)], constant_values=fill)
    return {**held, 'kernel': grown}

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    held = tree[self.node]
    if not hasattr(held.get('kernel'), 'ndim'):
      return tree
    fill = held['kernel'].mean() if power == 2 else 0.0
    return {**tree, self.node: self._grown(spec, held, fill)}


def grow_kernel(node: str, kernel: tuple[int, int]) -> base.Morphism:
  """Enlarges the window of a convolution with zeros around the old one.

  The offset depends on XLA's SAME padding: with strides above one it is not
  always the centre, and it depends on the image's size.

  Args:
    node: a `Conv` or `DepthwiseConv` node with SAME padding.
    kernel: the new rows and columns.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.chain((8, 8, 1), (4,), 3), jax.random.key(0))
    >>> net = grow_kernel('conv1', (5, 5))(net, ())
    >>> net.variables['params']['conv1']['kernel'].shape
    (5, 5, 1, 4)
  """
  specs.Conv(1, tuple(kernel))
  return GrowKernel(node, tuple(kernel))


@dataclasses.dataclass(frozen=True)
class ShrinkKernel:
  """A smaller window; build it with `shrink_kernel`."""

  node: str
  kernel: tuple[int, int]
  preserves = False

  def _offsets(self, spec: specs.Spec) -> tuple[int, int]:
    op = _windowed(self, spec)
    if any(new > old for new, old in zip(self.kernel, op.kernel)):
      raise base.refuse(
        self,
        f'node {self.node!r} has a window of {op.kernel}',
        'give one at most as large in both directions, or grow_kernel',
      )
    image = spec.shapes[spec.by_name[self.node].inputs[0]]
    return tuple(
      offset(size, new, old, stride)
      for size, old, new, stride in zip(
        image, op.kernel, self.kernel, op.strides
      )
    )

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del key
    self._offsets(net.spec)
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    params = self.moments(net.spec, net.variables['params'], 1)
    return _rewindowed(self, net, params)

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del power
    held = tree[self.node]
    if not hasattr(held.get('kernel'), 'ndim'):
      return tree
    row, column = self._offsets(spec)
    rows, columns = self.kernel
    kept = held['kernel'][row : row + rows, column : column + columns]
    return {**tree, self.node: {**held, 'kernel': kept}}


def shrink_kernel(node: str, kernel: tuple[int, int]) -> base.Morphism:
  """Cuts the rim off the window of a convolution; undoes `grow_kernel`.

  The function changes, except where the rim was zero.

  Args:
    node: a `Conv` or `DepthwiseConv` node with SAME padding.
    kernel: the new rows and columns.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.chain((8, 8, 1), (4,), 3), jax.random.key(0))
    >>> net = shrink_kernel('conv1', (1, 1))(net, ())
    >>> net.variables['params']['conv1']['kernel'].shape
    (1, 1, 1, 4)
  """
  specs.Conv(1, tuple(kernel))
  return ShrinkKernel(node, tuple(kernel))
