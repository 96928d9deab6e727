"""Moves of whole blocks in a chain: a layer with all that acts on its output.

A *block* is a mixing layer and the per-channel operations behind it, up to the
next layer that mixes or flattens. The edits of ECToNAS (arXiv 2403.05123) that
cross between convolutional and dense networks add and remove blocks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import network
from jaxnas import spec as specs
from jaxnas.morphisms import base, depth, width

_TAIL = specs.Activation | specs.BatchNorm | specs.Dropout | specs.Pool
_LINEAR = specs.Flatten | specs.GlobalPool | specs.Dropout


@dataclasses.dataclass(frozen=True)
class Labelled:
  """A move that says what kind of edit it is; build it with `label`."""

  kind: str
  move: Any

  @property
  def preserves(self) -> bool:
    return self.move.preserves

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    return self.move.init(net, key)

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    return self.move(net, theta)

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    return base.carry(self.move, spec, tree, power)


def label(kind: str, move: base.Morphism) -> Labelled:
  """The same move with the name of its kind, which lineages then tell.

  Args:
    kind: such as `'add units'`.
    move: any move.

  Example:
    >>> from jaxnas import morphisms
    >>> label('add units', morphisms.widen({'dense1': 9})).kind
    'add units'
  """
  return Labelled(kind, move)


def chained(move: Any, spec: specs.Spec) -> tuple[specs.Node, ...]:
  """The nodes of a spec in which each reads the one before it, in order.

  Raises:
    ValueError: where the spec branches.
  """
  order = spec.order
  for before, node in zip(order, order[1:]):
    if node.inputs != (before.name,):
      raise base.refuse(
        move,
        f'node {node.name!r} reads {list(node.inputs)}, so the network is no '
        'chain of layers',
        'use moves of channel groups, insert or remove',
      )
  return order


def blocks(spec: specs.Spec) -> tuple[tuple[specs.Node, ...], ...]:
  """The blocks of a chain: mixing layers with what acts on their outputs.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> found = blocks(seeds.mlp((8, 8, 1), (4,), 3))
    >>> [[node.name for node in block] for block in found]
    [['dense1', 'act1'], ['logits']]
  """
  found: list[list[specs.Node]] = []
  inside = False
  for node in chained('blocks', spec):
    if node.op.kind == 'mixing':
      found.append([node])
      inside = True
    elif inside and isinstance(node.op, _TAIL):
      found[-1].append(node)
    else:
      inside = False
  return tuple(map(tuple, found))


def _nearest(old: int, new: int) -> np.ndarray:
  """For each of the finer grid's positions, its position on the coarser."""
  fine, coarse = max(old, new), min(old, new)
  return np.arange(fine) * coarse // fine


def resampled(kernel: Any, old: specs.Shape, new: specs.Shape) -> Any:
  """A dense kernel behind a flattened image, for an image of another size.

  The grown image is taken to repeat each position, the shrunk one to hold the
  mean of positions: rows are shared among positions, or added up.

  Args:
    kernel: (old height * old width * channels, outputs).
    old: (height, width, ...) of the image.
    new: the same for the new image, of as many channels.

  Returns:
    (new height * new width * channels, outputs).
  """
  outputs = kernel.shape[-1]
  kernel = kernel.reshape((*old[:2], -1, outputs))
  for axis in (0, 1):
    before, after = old[axis], new[axis]
    near = _nearest(before, after)
    if after >= before:
      kernel = kernel.take(near, axis=axis)
      share = (1 / np.bincount(near, minlength=before))[near]
      shape = [1] * 4
      shape[axis] = after
      kernel = kernel * share.reshape(shape).astype(kernel.dtype)
    else:
      sums = np.equal.outer(np.arange(after), near).astype(kernel.dtype)
      kernel = _numpy(kernel).tensordot(sums, kernel, axes=(1, axis))
      kernel = _numpy(kernel).moveaxis(kernel, 0, axis)
  return kernel.reshape((-1, outputs))


def _numpy(leaf: Any) -> Any:
  """The module that keeps NumPy leaves NumPy, so that nothing compiles."""
  return np if isinstance(leaf, np.ndarray | np.generic) else jnp


def _refit(params: base.Tree, old: specs.Spec, new: specs.Spec, skip: str):
  """Fits the dense layers behind a `Flatten` to images of another size."""
  params = dict(params)
  for node in new.nodes:
    if node.op.kind != 'mixing' or node.name == skip:
      continue
    source = new.by_name[node.inputs[0]]
    if not isinstance(source.op, specs.Flatten) or node.name not in params:
      continue
    before = old.shapes[old.by_name[source.name].inputs[0]]
    after = new.shapes[source.inputs[0]]
    if len(before) == 3 and before[:2] != after[:2]:
      kernel = resampled(params[node.name]['kernel'], before, after)
      params[node.name] = {**params[node.name], 'kernel': kernel}
  return params


@dataclasses.dataclass(frozen=True)
class AddBlock:
  """A new block of a convolution; build it with `add_block`."""

  after: str
  kernel: tuple[int, int] = (3, 3)
  pool: str = ''
  name: str = 'block'

  @property
  def preserves(self) -> bool:
    return not self.pool

  def signed(self, spec: specs.Spec) -> bool:
    """Whether the block keeps both signs, on twice the channels."""
    return not depth.nonnegative(spec, self.after)

  def reader(self, spec: specs.Spec) -> str:
    """The layer that reads the block; refuses what cannot be done."""
    base.unpadded(self, spec)
    spec.node(self.after, asker=self)
    order = chained(self, spec)
    shape = spec.shapes[self.after]
    if len(shape) != 3:
      raise base.refuse(
        self,
        f'node {self.after!r} has shape {shape}',
        'add convolutions behind (height, width, channels)',
      )
    if self.pool and min(shape[:2]) < 2:
      raise base.refuse(
        self,
        f'node {self.after!r} has {shape[0]} x {shape[1]} positions, too few '
        'to pool',
        'add a block without pooling',
      )
    names = [node.name for node in order]
    rest = order[names.index(self.after) + 1 :]
    linear = self.signed(spec) or self.pool
    for node in rest:
      if node.op.kind == 'mixing':
        return node.name
      if linear and not isinstance(node.op, _LINEAR):
        raise base.refuse(
          self,
          f'node {node.name!r} stands between {self.after!r}, which may be '
          'negative, and the layer that reads it',
          'add the block right before a layer, or behind a ReLU',
        )
    raise base.refuse(
      self,
      f'no layer reads node {self.after!r}',
      'add the block before a layer',
    )

  def names(self, spec: specs.Spec) -> dict[str, str]:
    """The names of the new nodes by their part in the block."""
    parts = ('', '_bn', '_act', *(['_pool'] if self.pool else []))
    return {part: spec.fresh(f'{self.name}{part}') for part in parts}

  def _spec(self, spec: specs.Spec) -> specs.Spec:
    self.reader(spec)
    names, channels = self.names(spec), spec.shapes[self.after][-1]
    ops = {
      '': specs.Conv(channels * (1 + self.signed(spec)), self.kernel),
      '_bn': specs.BatchNorm(),
      '_act': specs.Activation('relu'),
    }
    if self.pool:
      ops['_pool'] = specs.Pool(self.pool)
    added, source = [], self.after
    for part, op in ops.items():
      added.append(specs.Node(names[part], op, (source,)))
      source = names[part]
    nodes = [
      dataclasses.replace(
        node,
        inputs=tuple(source if s == self.after else s for s in node.inputs),
      )
      for node in spec.nodes
    ]
    at = [node.name for node in nodes].index(self.after) + 1
    return specs.Spec((*nodes[:at], *added, *nodes[at:]), spec.output)

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """`{'mean', 'var'}`, (channels,): what the block reads, beside 0 and 1.

    The batch norm's statistics, and its scale and bias undo them; so the
    function is the same for any, and with true ones training starts from it.
    """
    del key
    self._spec(net.spec)
    dtype = jnp.result_type(*jax.tree.leaves(net.variables['params']))
    channels = net.spec.shapes[self.after][-1]
    return {name: jnp.zeros((channels,), dtype) for name in ('mean', 'var')}

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    old, spec = net.spec, self._spec(net.spec)
    names, channels = self.names(old), old.shapes[self.after][-1]
    variables = {c: dict(held) for c, held in net.variables.items()}
    mean, var = theta['mean'], 1 + theta['var']
    matrix, group = np.eye(channels), self._groups(old)
    if self.signed(old):
      matrix = np.concatenate([matrix, -matrix], axis=1)
      mean = _numpy(mean).concatenate([mean, -mean])
      var = _numpy(var).concatenate([var, var])
      variables = self._both_signs(variables, old, group)
    dtype = mean.dtype
    params, stats = variables['params'], variables.get('batch_stats', {})
    shape = (*self.kernel, *matrix.shape)
    kernel = depth.centred(matrix, shape).astype(dtype)
    bias = np.zeros(matrix.shape[1], dtype)
    params[names['']] = {'kernel': kernel, 'bias': bias}
    norm = spec.by_name[names['_bn']].op
    scale = _numpy(var).sqrt(var + np.asarray(norm.epsilon, dtype))
    params[names['_bn']] = {'scale': scale, 'bias': mean}
    variables['batch_stats'] = {
      **stats,
      names['_bn']: {'mean': mean, 'var': var},
    }
    variables['params'] = _refit(params, old, spec, '')
    return network.Network(variables, spec)

  def _groups(self, spec: specs.Spec) -> tuple[str, ...]:
    return width.groups.table(spec).axes[self.after].groups

  def _both_signs(self, variables, spec, names) -> dict[str, Any]:
    """Readers of x read relu(x) and relu(-x), whose difference is x."""
    table = width.groups.table(spec).groups
    index = {n: np.tile(np.arange(table[n].size), 2) for n in names}
    read = {n: np.repeat([1.0, -1.0], table[n].size) for n in names}
    return width.reindex_readers(variables, spec, index, read)


def add_block(
  after: str,
  *,
  kernel: tuple[int, int] = (3, 3),
  pool: str = '',
  name: str = 'block',
) -> AddBlock:
  """Adds a convolution with batch norm and ReLU, perhaps pooling, in a chain.

  Without pooling the function stays: the convolution is an identity, the
  batch norm's scale and bias undo its statistics, and ReLU meets what is not
  negative. Where the input may be negative (the network's own, or behind a
  batch norm), the block has twice the channels, x and -x, and the layer that
  reads it subtracts them. Before a `Flatten` of a network without
  convolutions it is the crossing from dense to convolutional.

  With pooling it cannot stay; the dense layer behind a `Flatten` adds up the
  weights of the positions pooled. ECToNAS pools always, and the official code
  sums all channels (arXiv 2403.05123; specification, B1 and B6).

  Args:
    after: the node behind which the block is put, of an image's shape.
    kernel: rows and columns of the convolution.
    pool: `'max'` or `'mean'` for 2 x 2 pooling behind it; `''` for none.
    name: of the convolution; numbered if taken.

  Raises:
    ValueError: for an unknown pooling.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4, 4, 1), (8,), 3), jax.random.key(0))
    >>> move = add_block('input')
    >>> move(net, move.init(net, jax.random.key(1))).spec.shapes['block_act']
    (4, 4, 2)
  """
  if pool not in ('', 'max', 'mean'):
    raise ValueError(
      f"add_block: pool must be '', 'max' or 'mean', got {pool!r}."
    )
  specs.Conv(1, tuple(kernel))
  return AddBlock(after, tuple(kernel), pool, name)


@dataclasses.dataclass(frozen=True)
class RemoveBlock:
  """A block composed into its reader; build it with `remove_block`."""

  layer: str
  preserves = False

  def tail(self, spec: specs.Spec) -> tuple[specs.Node, ...]:
    """The block's nodes, the layer first."""
    base.unpadded(self, spec)
    op = spec.node(self.layer, asker=self).op
    chained(self, spec)
    found = next((b for b in blocks(spec) if b[0].name == self.layer), None)
    if found is None:
      raise base.refuse(
        self,
        f'node {self.layer!r} is no layer',
        'give a dense layer or a convolution',
      )
    if self.layer == blocks(spec)[-1][0].name:
      raise base.refuse(
        self,
        f'node {self.layer!r} is the last layer',
        'remove one that another layer reads',
      )
    strides = getattr(op, 'strides', (1, 1))
    plain = getattr(op, 'padding', 'SAME') == 'SAME' and strides == (1, 1)
    if not plain:
      raise base.refuse(
        self,
        f'node {self.layer!r} has strides {strides} and padding {op.padding}',
        'remove convolutions of stride one with SAME padding',
      )
    return found

  def reader(self, spec: specs.Spec) -> str:
    """The layer into which the block is composed."""
    names = [block[0].name for block in blocks(spec)]
    reader = names[names.index(self.layer) + 1]
    last = self.tail(spec)[-1].name
    between = spec.by_name[reader].inputs[0]
    while between != last:
      if not isinstance(spec.by_name[between].op, _LINEAR):
        raise base.refuse(
          self,
          f'node {between!r} stands between it and {reader!r}',
          'remove that node first',
        )
      between = spec.by_name[between].inputs[0]
    return reader

  def _spec(self, spec: specs.Spec) -> specs.Spec:
    tail = self.tail(spec)
    self.reader(spec)
    gone, source = {node.name for node in tail}, tail[0].inputs[0]
    nodes = [
      dataclasses.replace(
        node, inputs=tuple(source if s in gone else s for s in node.inputs)
      )
      for node in spec.nodes
      if node.name not in gone
    ]
    return specs.Spec(tuple(nodes), spec.output)

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """`{'slope', 'shift'}`, (features,): the line that stands in for the tail.

    Beside 1 and 0: zero drops the tail's non-linearities, as ECToNAS does.
    """
    del key
    self._spec(net.spec)
    dtype = jnp.result_type(*jax.tree.leaves(net.variables['params']))
    features = net.spec.by_name[self.layer].op.features
    return {name: jnp.zeros((features,), dtype) for name in ('slope', 'shift')}

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    old, spec = net.spec, self._spec(net.spec)
    kernel, bias = self._line(net, theta)
    params, stats = (
      net.variables['params'],
      net.variables.get('batch_stats', {}),
    )
    gone = {node.name for node in self.tail(old)}
    params = {n: held for n, held in params.items() if n not in gone}
    stats = {n: held for n, held in stats.items() if n not in gone}
    reader = self.reader(old)
    held = params[reader]
    composed, constant = self._composed(old, spec, kernel, bias, held)
    params[reader] = {**held, 'kernel': composed}
    variables = {**net.variables, 'params': params, 'batch_stats': stats}
    _absorb(variables, old, reader, constant)
    variables['params'] = _refit(params, old, spec, reader)
    kept = {c: held for c, held in variables.items() if held}
    return network.Network(kept, spec)

  def _line(self, net: network.Network, theta: base.Theta):
    """Kernel and bias of the layer with its tail as a line per channel."""
    held = net.variables['params'][self.layer]
    kernel, bias = held['kernel'], held.get('bias', 0 * theta['shift'])
    origin, unit = 0 * bias, 1 + 0 * bias
    for node in self.tail(net.spec):
      if isinstance(node.op, specs.BatchNorm):
        origin, unit, bias = (
          normalised(net, node, value) for value in (origin, unit, bias)
        )
    # The line of the non-linearities comes behind the batch norms.
    slope = (unit - origin) * (1 + theta['slope'])
    bias = bias * (1 + theta['slope']) + theta['shift']
    return kernel * slope.reshape((1,) * (kernel.ndim - 1) + (-1,)), bias

  def _composed(self, old, new, kernel, bias, held):
    """The reader's kernel behind the removed layer, and a constant."""
    reader = self.reader(old)
    after = held['kernel']
    if after.ndim == 4:
      matrix = kernel.sum(axis=(0, 1))
      constant = _numpy(after).einsum('c,hwco->o', bias, after)
      return _numpy(after).einsum('ic,hwco->hwio', matrix, after), constant
    features = old.by_name[self.layer].op.features
    source = old.by_name[reader].inputs[0]
    if not isinstance(old.by_name[source].op, specs.Flatten):
      matrix = kernel.sum(axis=(0, 1)) if kernel.ndim == 4 else kernel
      return matrix @ after, bias @ after
    image = old.shapes[self.tail(old)[-1].name]
    source = new.shapes[old.by_name[self.layer].inputs[0]]
    rows = resampled(after, image, source)
    rows = rows.reshape((*source[:2], features, -1))
    constant = _numpy(rows).einsum('c,hwco->o', bias, rows)
    return _transposed(kernel, rows), constant


def normalised(net: network.Network, node: specs.Node, value: Any) -> Any:
  """What a batch norm makes of a value (channels,), in evaluation mode."""
  own = net.variables['params'][node.name]
  stats = net.variables['batch_stats'][node.name]
  spread = stats['var'] + np.asarray(node.op.epsilon, stats['var'].dtype)
  gain = own['scale'] / _numpy(spread).sqrt(spread)
  return (value - stats['mean']) * gain + own['bias']


def _transposed(kernel: Any, rows: Any) -> Any:
  """A dense layer behind a convolution, as one dense layer.

  Args:
    kernel: (rows, columns, inputs, channels) of a SAME convolution.
    rows: (height, width, channels, outputs) of the dense layer.

  Returns:
    (height * width * inputs, outputs).
  """
  xp, (high, wide) = _numpy(rows), kernel.shape[:2]
  top, left = (high - 1) // 2, (wide - 1) // 2
  pad = [(high - 1 - top, top), (wide - 1 - left, left), (0, 0), (0, 0)]
  padded = xp.pad(rows, pad)
  height, width_, total = *rows.shape[:2], 0
  for i in range(high):
    for j in range(wide):
      y, x = high - 1 - i, wide - 1 - j
      part = padded[y : y + height, x : x + width_]
      total = total + xp.einsum('ic,hwco->hwio', kernel[i, j], part)
  return total.reshape((-1, rows.shape[-1]))


def _absorb(variables, spec, reader, constant) -> None:
  """Adds a constant to what a layer puts out, where it can be folded in."""
  for node in width.absorbers(spec, reader):
    own = node == reader
    collection, leaf = ('params', 'bias') if own else ('batch_stats', 'mean')
    held = variables[collection][node]
    changed = held[leaf] + constant if own else held[leaf] - constant
    variables[collection][node] = {
      **held,
      leaf: changed.astype(held[leaf].dtype),
    }


def remove_block(layer: str) -> RemoveBlock:
  """Removes a layer and what acts on its output, in a chain.

  The layer, its batch norm and a line in the place of its activation and
  pooling are composed with the layer that reads them: dense matrices by their
  product, a convolution before a `Flatten` exactly, as the dense matrix that it
  is, a convolution before another by the sum over its window. What was pooled
  is so no longer: dense layers behind a `Flatten` share each row among the
  positions that one stood for. To remove the last convolution is the crossing
  from convolutional to dense.

  ECToNAS drops the ReLU (arXiv 2403.05123); here theta may hold a slope and a
  shift for each channel that stand in for it, zero being the drop.

  Args:
    layer: a dense layer or convolution that another layer reads.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8, 6), 3), jax.random.key(0))
    >>> move = remove_block('dense1')
    >>> moved = move(net, move.init(net, jax.random.key(1)))
    >>> moved.variables['params']['dense2']['kernel'].shape
    (4, 6)
  """
  return RemoveBlock(layer)
