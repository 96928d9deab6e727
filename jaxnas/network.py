"""Networks: a spec and its variables, as one pytree.

`net.spec.module()` is an ordinary Linen module and `net.variables` are its
variables; the functions here are short-hands. Walking the nodes of a spec is
written once, in `walk`: the module walks with Flax layers, the estimators walk
with `apply_node` and edits of their own.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, layers
from jaxnas import spec as specs

Variables = dict[str, Any]


@flax.struct.dataclass
class Network:
  """A network: variables (a pytree) and spec (static, in the treedef).

  Attributes:
    variables: Flax collections `params`, `batch_stats` and `arch`, each a
      dict keyed by node name; `arch` holds `{'active': {group: count}}` where
      groups are stored at a capacity.
    spec: the architecture.
  """

  variables: Variables
  spec: specs.Spec = flax.struct.field(pytree_node=False)


def walk(
  spec: specs.Spec,
  call: Callable[..., jax.Array],
  x: Any,
  read: Callable[[str, Any], Any] | None = None,
) -> dict[str, Any]:
  """Evaluates the nodes of a spec in order.

  Args:
    spec: the spec.
    call: `call(node, *inputs) -> value`, for every node but the input.
    x: the value of the input node.
    read: `read(source, value) -> value`, applied to what a *mixing* node reads
      from node `source`; None leaves it as it is.

  Returns:
    The value of every node by name.
  """
  values = {spec.input: x}
  for node in spec.order:
    if node.op.kind == 'input':
      continue
    inputs = [values[s] for s in node.inputs]
    if read is not None and node.op.kind == 'mixing':
      inputs = [read(s, v) for s, v in zip(node.inputs, inputs)]
    values[node.name] = call(node, *inputs)
  return values


# Ops that leave a channel of zeros zero; after all others it is masked again.
_KEEPS_ZEROS = (
  specs.Add,
  specs.Concat,
  specs.Dropout,
  specs.Flatten,
  specs.Gate,
  specs.GlobalPool,
  specs.Pool,
  specs.Trim,
  specs.Zero,
)


def _masked(node: specs.Node, value: jax.Array, mask) -> jax.Array:
  """Zeroes inactive channels after ops that may have filled them."""
  if mask is None or isinstance(node.op, _KEEPS_ZEROS):
    return value
  return value * jnp.expand_dims(mask, range(value.ndim - 1)).astype(
    value.dtype
  )


def _mask_arrays(spec: specs.Spec, active: dict) -> dict[str, jax.Array]:
  return {n: jnp.concatenate(r) for n, r in groups.masks(spec, active).items()}


class SpecModule(nn.Module):
  """The Linen module of a spec.

  Attributes:
    spec: the architecture.
    conv: the form of convolutions, see `jaxnas.layers.conv2d`.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> from jaxnas.spaces import seeds
    >>> module = seeds.mlp((4,), (8,), 3).module()
    >>> variables = module.init(jax.random.key(0), jnp.zeros((1, 4)))
    >>> module.apply(variables, jnp.zeros((5, 4))).shape
    (5, 3)
  """

  spec: specs.Spec
  conv: str = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """The output (batch, ...) for inputs `x` (batch, *input shape).

    Args:
      x: inputs.
      train: batch statistics and dropout as in training; then make
        `batch_stats` mutable and give a `dropout` key where the spec needs it.
    """
    masks = {}
    if self.spec.padded:
      sizes = groups.table(self.spec).groups
      active = self.variable(
        'arch',
        'active',
        lambda: {g: jnp.int32(sizes[g].size) for g in self.spec.padded},
      )
      masks = _mask_arrays(self.spec, active.value)

    def call(node, *inputs):
      mask = masks.get(node.name)
      layer = layers.layer(node.op, node.name, self.conv)
      return _masked(node, layer(*inputs, train=train, mask=mask), mask)

    return walk(self.spec, call, x)[self.spec.output]


class _NodeModule(nn.Module):
  """One node of a spec as a module, in evaluation mode."""

  node: specs.Node
  conv: str

  @nn.compact
  def __call__(self, *xs, mask=None):
    layer = layers.layer(self.node.op, self.node.name, self.conv)
    return layer(*xs, train=False, mask=mask)


def caller(
  spec: specs.Spec, variables: Variables, conv: str = 'auto'
) -> Callable[..., jax.Array]:
  """`call(node, *inputs)` for `walk`: the nodes in evaluation mode.

  Outside a module, so that a node can be applied to any input, or twice.
  """
  active = variables.get('arch', {}).get('active', {})
  masks = _mask_arrays(spec, active)

  def call(node: specs.Node, *inputs):
    mask = masks.get(node.name)
    held = {
      collection: {node.name: tree[node.name]}
      for collection, tree in variables.items()
      if node.name in tree
    }
    value = _NodeModule(node, conv).apply(held, *inputs, mask=mask)
    return _masked(node, value, mask)

  return call


def init(spec: specs.Spec, key: jax.Array) -> Network:
  """A network of the given spec with fresh variables.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> net = init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> net.variables['params']['dense1']['kernel'].shape
    (4, 8)
  """
  traced = isinstance(key, jax.core.Tracer)
  fresh = _fresh if traced else _initialiser(jax.default_backend())
  return Network(fresh(spec, key), spec)


def _fresh(spec: specs.Spec, key: jax.Array) -> Variables:
  x = jnp.zeros((1, *spec.shapes[spec.input]), jnp.float32)
  return spec.module('native').init(key, x)


@functools.lru_cache(maxsize=8)
def _initialiser(backend: str) -> Callable[[specs.Spec, jax.Array], Variables]:
  # It runs once: on CPU compiling takes 2.9 s for six convolutions, 0.5 s so.
  quick = {'xla_backend_optimization_level': 0} if backend == 'cpu' else None
  return jax.jit(_fresh, static_argnums=0, compiler_options=quick)


@functools.lru_cache(maxsize=1024)
def shapes(spec: specs.Spec) -> Network:
  """The network of a spec as `jax.ShapeDtypeStruct`s; allocates nothing."""
  return jax.eval_shape(lambda key: init(spec, key), jax.random.key(0))


def apply(net: Network, x: jax.Array, *, conv: str = 'auto') -> jax.Array:
  """The network's output in evaluation mode.

  Args:
    net: a network.
    x: (batch, *input shape).
    conv: the form of convolutions, see `jaxnas.layers.conv2d`.

  Returns:
    (batch, ...), the value of the spec's output node.

  Raises:
    ValueError: if `x` does not have the spec's input shape.
  """
  expected = net.spec.shapes[net.spec.input]
  if tuple(x.shape[1:]) != expected:
    raise ValueError(
      f'the network reads inputs of shape (batch, {expected}), got '
      f'{tuple(x.shape)}.'
    )
  return net.spec.module(conv).apply(net.variables, x)


def _active_sizes(net: Network) -> dict[str, int]:
  active = net.variables.get('arch', {}).get('active', {})
  return {group: int(count) for group, count in active.items()}


def active_spec(net: Network) -> specs.Spec:
  """The spec without padding: every group at its number of active channels."""
  if not net.spec.padded:
    return net.spec
  spec = groups.resized(net.spec, _active_sizes(net))
  return specs.Spec(spec.nodes, spec.output)


def param_count(net: Network | specs.Spec) -> int:
  """The number of trainable parameters; padding does not count.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> param_count(seeds.mlp((4,), (8,), 3))
    67
  """
  spec = active_spec(net) if isinstance(net, Network) else net
  params = shapes(spec).variables.get('params', {})
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def flops(net: Network | specs.Spec) -> int:
  """Floating-point operations of one forward pass of one example.

  Two for every multiply-add of dense and convolution layers; what other
  layers do is left out, as is usual. Padding does not count.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> flops(seeds.mlp((4,), (8,), 3))
    112
  """
  spec = active_spec(net) if isinstance(net, Network) else net
  params = shapes(spec).variables.get('params', {})
  total = 0
  for node in spec.nodes:
    if 'kernel' in params.get(node.name, {}):
      positions = math.prod(spec.shapes[node.name][:-1])
      total += 2 * positions * math.prod(params[node.name]['kernel'].shape)
  return total


def named_key(key: jax.Array, name: str) -> jax.Array:
  """The key folded with a name, so that order never matters."""
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


def to_host(tree: Any) -> Any:
  """The same pytree with NumPy leaves, for surgery without compilation."""
  return jax.tree.map(np.asarray, jax.device_get(tree))
