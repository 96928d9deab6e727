"""All networks of NAS-Bench-201 as one program, with the cell as data.

The unrolled networks of `cell_networks` compile for seconds each. Here every
edge of every cell holds the weights of both its convolutions, and the genotype,
an array, says what it does, so that one compiled program serves all 15,625
cells, their gradients and Hessian-vector products, and `vmap` over genotypes.
With the same weights its function is that of the unrolled network
(`unrolled`), and weights that a cell does not use have gradients of zero.

What training-free estimators want to know of a network beyond its output they
get by functions that are called inside of it, see `Supernet`.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnas import layers, network
from jaxnas import spec as specs
from jaxnas.base import Key
from jaxnas.spaces import cell_networks, tabular
from jaxnas.spaces import nas_bench_201 as bench201

_STAGES = (1, 2, 3)
_SIZES = {'conv1': 1, 'conv3': 3}
_CODES = {
  'conv1': bench201.OPS.index('nor_conv_1x1'),
  'conv3': bench201.OPS.index('nor_conv_3x3'),
}
_MOMENTUM, _EPSILON = 0.9, 1e-5
_MEAN = specs.Pool('mean', (3, 3), (1, 1), 'EVEN')
_HALF = specs.Pool('mean', (2, 2), (2, 2), 'VALID')


class Outputs(NamedTuple):
  """What a pass through a supernet gives.

  Attributes:
    logits: (batch, classes).
    features: (batch, height, width, channels), before their mean over
      positions, which the last layer reads.
    batch_stats: as in the variables, moved on if in training.
    seen: the sums of what the functions of `see` returned, by kind.
  """

  logits: jax.Array
  features: jax.Array
  batch_stats: Any
  seen: Mapping[str, Any]


class Supernet(NamedTuple):
  """Networks that differ in a genotype alone, as pure functions.

  Attributes:
    init: `init(key) -> variables`, with `params` and `batch_stats`; the arrays
      of a stage's edges are (cells, 6 edges, ...).
    apply: `apply(variables, genotype, x, *, train=False, norm=True, see={},
      touch=None) -> Outputs`. Without `norm` there is no batch norm.
      `see['relu'](z)` is called with what every ReLU reads, `see['norm'](z)`
      with what every batch norm does; they return a pytree, of one shape for
      all layers, which is summed up over the layers that the genotype has.
      `touch(z)` replaces the output of every convolution and of the last layer.
    used: `used(genotype)`, a tree like `params` with one where the genotype has
      the parameter and zero elsewhere, of shapes that broadcast.
    spec: `spec(genotype)`, the same network unrolled.
    flops: `flops(genotype) -> ()`, operations of one image, see
      `jaxnas.network.flops`.
    heir: `heir(variables, mother, child) -> variables`, with which the network
      of the child begins as that of its mother where edges that did nothing now
      convolve: the scale and bias of their norms are zero. Other edges that
      the edit changed do what the supernet's weights make of them.
  """

  init: Callable[[Key], network.Variables]
  apply: Callable[..., Outputs]
  used: Callable[[Any], Any]
  spec: Callable[[Any], specs.Spec]
  flops: Callable[[Any], jax.Array]
  heir: Callable[..., network.Variables]


def nas_bench_201(
  *,
  channels: int = 16,
  repeats: int = 5,
  classes: int = 10,
  shape: specs.Shape = (32, 32, 3),
  select: str = 'auto',
  conv: str = 'auto',
  kernel_init: Callable = nn.initializers.he_normal(),
) -> Supernet:
  """The networks of all cells of NAS-Bench-201, as one.

  They have reverse-mode derivatives, also of each other, and no forward-mode
  ones.

  Args:
    channels: of the first stage; every stage has twice those before.
    repeats: cells in each stage.
    classes: width of the output.
    shape: (height, width, channels) of an image, of even sizes twice over.
    select: how an edge does one thing of five: `'switch'` does only that, but
      everything under a `vmap` over genotypes; `'mask'` does everything and
      selects; `'auto'` is `'switch'` on CPU and `'mask'`
      elsewhere.
    conv: the form of convolutions (`jaxnas.layers.conv2d`).
    kernel_init: of all kernels.

  Returns:
    The networks.

  Raises:
    ValueError: for another `select`, and images that cannot be halved twice.

  Example:
    >>> net = nas_bench_201(channels=2, repeats=1, shape=(4, 4, 3))
    >>> variables = jax.eval_shape(net.init, jax.random.key(0))
    >>> variables['params']['stage2']['conv3']['kernel'].shape
    (1, 6, 3, 3, 4, 4)
  """
  if select not in ('auto', 'switch', 'mask'):
    raise ValueError(
      f"nas_bench_201: select must be 'auto', 'switch' or 'mask', got "
      f'{select!r}.'
    )
  if shape[0] % 4 or shape[1] % 4:
    raise ValueError(
      f'nas_bench_201: height and width are halved twice, so they must be '
      f'multiples of 4, got {shape}.'
    )
  widths = {stage: channels * 2 ** (stage - 1) for stage in _STAGES}

  def init(key: Key) -> network.Variables:
    def kernel(name, *size, stack=()):
      own = network.named_key(key, name)
      count = math.prod(stack)
      draws = jax.vmap(lambda k: kernel_init(k, size, jnp.float32))
      drawn = draws(jax.random.split(own, count))
      return drawn.reshape(*stack, *size)

    def unit(name, k, reads, writes, stack=()):
      one = (*stack, writes)
      params = {
        'kernel': kernel(name, k, k, reads, writes, stack=stack),
        'scale': jnp.ones(one),
        'bias': jnp.zeros(one),
      }
      return params, {'mean': jnp.zeros(one), 'var': jnp.ones(one)}

    pairs: dict[str, Any] = {'stem': unit('stem', 3, shape[-1], channels)}
    for stage, width in widths.items():
      stack = (repeats, len(bench201.EDGES))
      pairs[f'stage{stage}'] = {
        op: unit(f'stage{stage}_{op}', k, width, width, stack)
        for op, k in _SIZES.items()
      }
      if stage > 1:
        name, half = f'reduce{stage}', width // 2
        shortcut = kernel(f'{name}_shortcut', 1, 1, half, width)
        pairs[name] = {
          'conv1': unit(f'{name}_conv1', 3, half, width),
          'conv2': unit(f'{name}_conv2', 3, width, width),
          'shortcut': ({'kernel': shortcut}, {}),
        }
    last = widths[_STAGES[-1]]
    pairs['last'] = (
      {'scale': jnp.ones(last), 'bias': jnp.zeros(last)},
      {'mean': jnp.zeros(last), 'var': jnp.ones(last)},
    )
    head = {
      'kernel': kernel('logits', last, classes),
      'bias': jnp.zeros(classes),
    }
    pairs['logits'] = (head, {})
    leaf = functools.partial(
      jax.tree.map, is_leaf=lambda node: isinstance(node, tuple)
    )
    return {
      'params': leaf(lambda pair: pair[0], pairs),
      'batch_stats': leaf(lambda pair: pair[1], pairs),
    }

  def apply(
    variables,
    genotype,
    x,
    *,
    train: bool = False,
    norm: bool = True,
    see: Mapping[str, Callable] | None = None,
    touch: Callable | None = None,
  ) -> Outputs:
    if x.shape[1:] != tuple(shape):
      raise ValueError(
        f'apply: images must have shape (batch, {shape}), got {x.shape}.'
      )
    params, stats = variables['params'], variables['batch_stats']
    form = layers.conv_form(conv)
    switch = select == 'switch' or select == 'auto' and form != 'native'
    choose = lax.switch if switch else _masked
    walk = _Pass(train, norm, dict(see or {}), touch or (lambda z: z), form)
    new = {'logits': {}}
    genotype = _checked('apply', genotype)

    x, new['stem'], seen = walk.unit(params['stem'], stats['stem'], x)
    for stage in _STAGES:
      name = f'reduce{stage}'
      if stage > 1:
        x, new[name], more = _residual(walk, params[name], stats[name], x)
        seen = _plus(seen, more)
      name = f'stage{stage}'

      def cell(x, own):
        x, state, seen = _cell(walk, choose, genotype, *own, x)
        return x, (state, seen)

      x, (new[name], more) = lax.scan(cell, x, (params[name], stats[name]))
      seen = _plus(seen, jax.tree.map(lambda leaf: leaf.sum(axis=0), more))
    x, new['last'], more = walk.batch_norm(params['last'], stats['last'], x)
    x, last = walk.relu(x)
    seen = _plus(_plus(seen, more), last)
    head = params['logits']
    logits = layers.plus(x.mean(axis=(1, 2)) @ head['kernel'], head['bias'])
    return Outputs(walk.touch(logits), x, new, seen)

  def used(genotype):
    genotype = _checked('used', genotype)

    def live(path, leaf):
      op = next((op for op in _CODES if f'.{op}.' in path), None)
      if op is None or '.stage' not in path:
        return jnp.ones((1,) * leaf.ndim)
      shape = (1, -1) + (1,) * (leaf.ndim - 2)
      return (genotype == _CODES[op]).astype(jnp.float32).reshape(shape)

    params = jax.eval_shape(init, jax.random.key(0))['params']
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: live(_dotted(path), leaf), params
    )

  def spec(genotype) -> specs.Spec:
    return cell_networks.nas_bench_201(
      genotype, channels=channels, repeats=repeats, classes=classes, shape=shape
    )

  @functools.cache
  def prices() -> tuple[int, ...]:
    """Operations of the skeleton, and of each op on one edge of all cells."""
    idle = network.flops(spec([0] * len(bench201.EDGES)))
    ones = (
      network.flops(spec([op] + [0] * (len(bench201.EDGES) - 1)))
      for op in range(len(bench201.OPS))
    )
    return (idle, *(one - idle for one in ones))

  def flops(genotype) -> jax.Array:
    idle, *each = prices()
    genotype = _checked('flops', genotype)
    return idle + jnp.asarray(each, jnp.float32)[genotype].sum()

  def heir(variables, mother, child) -> network.Variables:
    mother, child = _checked('heir', mother), _checked('heir', child)
    new = {
      op: (child == code) & (mother == bench201.OPS.index('none'))
      for op, code in _CODES.items()
    }
    params = dict(variables['params'])
    for stage in _STAGES:
      held = dict(params[f'stage{stage}'])
      for op, begun in new.items():
        held[op] = held[op] | {
          name: jnp.where(begun[None, :, None], 0.0, held[op][name])
          for name in ('scale', 'bias')
        }
      params[f'stage{stage}'] = held
    return {**variables, 'params': params}

  return Supernet(init, apply, used, spec, flops, heir)


def _checked(name: str, genotype: Any) -> jax.Array:
  tabular.check_genotype(name, bench201.space().options, genotype)
  return jnp.asarray(genotype)


def _dotted(path) -> str:
  return ''.join(f'.{entry.key}' for entry in path)


def _plus(a, b):
  return jax.tree.map(jnp.add, a, b)


def _at(tree, *place):
  return jax.tree.map(lambda leaf: leaf[place], tree)


def normalised(x, params, mean, var, epsilon=_EPSILON):
  """A batch norm of x, (..., channels), with the given statistics."""
  scale = params['scale'] * lax.rsqrt(var + epsilon)
  centred = x - layers.along(x, mean)
  return layers.plus(centred * layers.along(x, scale), params['bias'])


class _Pass(NamedTuple):
  """One way of passing through: what all layers have in common.

  Its functions return what `see` saw beside their values, zero where it sees
  nothing, so that sums have one structure.
  """

  train: bool
  norm: bool
  see: dict[str, Callable]
  touch: Callable
  form: str

  def seen(self, **values) -> dict[str, Any]:
    """What is seen of a layer; of kinds without a value, zeros."""
    found = {}
    for kind, look in self.see.items():
      # Every layer has a value of some kind, and `look` returns one shape.
      like = values.get(kind, next(iter(values.values())))
      one = jax.eval_shape(look, like)
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), one)
      found[kind] = look(values[kind]) if kind in values else zeros
    return found

  def relu(self, x):
    return jax.nn.relu(x), self.seen(relu=x)

  def conv(self, kernel, x, stride=1):
    strides = (stride, stride)
    y = layers.conv2d(x, kernel, strides, 'EVEN', form=self.form)
    return self.touch(y)

  def batch_norm(self, params, stats, x):
    """The normalised value, the statistics after it, and what is seen."""
    if not self.norm:
      return x, stats, self.seen(none=x)
    mean, var = stats['mean'], stats['var']
    if self.train:
      axes = (0, 1, 2)
      mean = x.mean(axes)
      var = jnp.square(x - layers.along(x, mean)).mean(axes)
      stats = jax.tree.map(
        lambda old, new: _MOMENTUM * old + (1 - _MOMENTUM) * new,
        stats,
        {'mean': mean, 'var': var},
      )
    return normalised(x, params, mean, var), stats, self.seen(norm=x)

  def unit(self, params, stats, x, stride=1):
    """A convolution and its norm."""
    y = self.conv(params['kernel'], x, stride)
    return self.batch_norm(params, stats, y)

  def active(self, params, stats, x, stride=1):
    """A ReLU, a convolution and its norm."""
    x, seen = self.relu(x)
    y, stats, more = self.unit(params, stats, x, stride)
    return y, stats, _plus(seen, more)


def _residual(walk, params, stats, x):
  new = {'shortcut': {}}
  y, new['conv1'], seen = walk.active(params['conv1'], stats['conv1'], x, 2)
  y, new['conv2'], more = walk.active(params['conv2'], stats['conv2'], y)
  shortcut = walk.conv(params['shortcut']['kernel'], layers.pool2d(x, _HALF))
  return y + shortcut, new, _plus(seen, more)


def _cell(walk, choose, genotype, params, stats, x):
  """One cell: its edges, one after another, in one loop.

  A loop compiles the body of one edge for each stage, which six of them would
  take six times as long for. Its gradient is another loop, backwards, in which
  the op of an edge computes its inner values again. It is written out: the one
  that JAX derives copies the values of all nodes at every edge, and keeps inner
  values for all that an edge could do.
  """
  sources, targets = np.array(bench201.EDGES).T
  # What ops read beside their arguments has a gradient too, as in `touch`.
  closed = [
    jax.closure_convert(op, *_at((params, stats), 0), x) for op in _ops(walk)
  ]
  held = tuple(more for _, more in closed)

  def forth(number):
    return lambda held, *own: closed[number][0](*own, *held[number])

  ops = [forth(number) for number in range(len(closed))]
  back = [
    lambda slopes, *own, op=op: jax.vjp(op, *own)[1](slopes) for op in ops
  ]

  def walked(genotype, held, params, stats, x):
    @jax.checkpoint  # For the gradient of the gradient.
    def step(nodes, own):
      code, source, target, *rest = own
      value, *seen = choose(code, ops, held, *rest, _row(nodes, source))
      return _added(nodes, target, value), seen

    nodes = jnp.zeros((4, *x.shape), x.dtype).at[0].set(x)
    edges = (genotype, sources, targets, params, stats)
    return lax.scan(step, nodes, edges)

  def forward(genotype, held, params, stats, x):
    found = walked(genotype, held, params, stats, x)
    return found, (genotype, held, params, stats, found[0])

  def backward(kept, slopes):
    genotype, held, params, stats, nodes = kept
    along_nodes, along_seen = slopes

    @jax.checkpoint
    def step(carry, own):
      along, of_held = carry
      code, source, target, more, *rest = own
      slopes = _row(along, target), *more
      more, *of_edge, of_x = choose(
        code, back, slopes, held, *rest, _row(nodes, source)
      )
      return (_added(along, source, of_x), _plus(of_held, more)), of_edge

    start = along_nodes, jax.tree.map(jnp.zeros_like, held)
    edges = (genotype, sources, targets, along_seen, params, stats)
    (along, of_held), of_edges = lax.scan(step, start, edges, reverse=True)
    return None, of_held, *of_edges, along[0]

  walk_back = jax.custom_vjp(walked)
  walk_back.defvjp(forward, backward)
  nodes, (new, seen) = walk_back(genotype, held, params, stats, x)
  return nodes[-1], new, jax.tree.map(lambda leaf: leaf.sum(axis=0), seen)


def _row(rows, number):
  return lax.dynamic_index_in_dim(rows, number, keepdims=False)


def _added(rows, number, more):
  return lax.dynamic_update_index_in_dim(
    rows, _row(rows, number) + more, number, 0
  )


def _ops(walk):
  """What an edge may do, in the order of codes: value, statistics, seen."""

  def convolved(name):
    def op(params, stats, x):
      y, new, seen = walk.active(params[name], stats[name], x)
      return y, stats | {name: new}, seen

    return op

  return (
    lambda params, stats, x: (jnp.zeros_like(x), stats, walk.seen(none=x)),
    lambda params, stats, x: (x, stats, walk.seen(none=x)),
    convolved('conv1'),
    convolved('conv3'),
    lambda params, stats, x: (
      *(layers.pool2d(x, _MEAN), stats, walk.seen(none=x)),
    ),
  )


def _masked(code, ops, *args):
  """One of several functions, by doing all of them: `lax.switch`."""
  found = [op(*args) for op in ops]
  return jax.tree.map(lambda *leaves: lax.select_n(code, *leaves), *found)


def unrolled(
  net: Supernet, variables: network.Variables, genotype: Any
) -> network.Network:
  """The network of one genotype, with its part of a supernet's weights.

  Args:
    net: the networks.
    variables: of the supernet.
    genotype: (6,) ops.

  Returns:
    A network of its own, to train, to save, to draw.

  Example:
    >>> net = nas_bench_201(channels=2, repeats=1, shape=(4, 4, 3))
    >>> shapes = jax.eval_shape(net.init, jax.random.key(0))
    >>> variables = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
    >>> single = unrolled(net, variables, [3, 0, 3, 1, 0, 1])
    >>> single.spec == net.spec([3, 0, 3, 1, 0, 1])
    True
  """
  params, stats = {}, {}

  def take(conv, bn, own):
    weights, state = own
    if conv:
      params[conv] = {'kernel': weights['kernel']}
    if bn:
      params[bn] = {name: weights[name] for name in ('scale', 'bias')}
      stats[bn] = dict(state)

  both = {
    name: (variables['params'][name], variables['batch_stats'][name])
    for name in variables['params']
  }
  take('stem_conv', 'stem_bn', both['stem'])
  take(None, 'last_bn', both['last'])
  params['logits'] = dict(variables['params']['logits'])
  for stage in _STAGES:
    weights, state = both[f'stage{stage}']
    if stage > 1:
      name, (inner, inner_state) = (
        f'stage{stage}_reduce',
        both[f'reduce{stage}'],
      )
      for i in (1, 2):
        own = inner[f'conv{i}'], inner_state[f'conv{i}']
        take(f'{name}_conv{i}', f'{name}_bn{i}', own)
      take(f'{name}_shortcut', None, (inner['shortcut'], {}))
    for op, code in _CODES.items():
      for number in range(weights[op]['kernel'].shape[0]):
        for edge, ends in enumerate(bench201.EDGES):
          if genotype[edge] == code:
            name = cell_networks.edge_name(stage, number + 1, *ends)
            own = _at((weights[op], state[op]), number, edge)
            take(f'{name}_conv', f'{name}_bn', own)
  return network.Network(
    {'params': params, 'batch_stats': stats}, net.spec(genotype)
  )
