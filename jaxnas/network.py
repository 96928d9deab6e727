"""Networks: a spec and its variables, as one pytree.

`net.spec.module()` is an ordinary Linen module and `net.variables` are its
variables; the functions here are short-hands. Walking the nodes of a spec is
written once, in `walk`: the module walks with Flax layers, the estimators walk
with `apply_node` and edits of their own.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, layers, programs
from jaxnas import spec as specs

Variables = dict[str, Any]


@flax.struct.dataclass
class Network:
  """A network: variables (a pytree) and spec (static, in the treedef).

  Attributes:
    variables: Flax collections `params`, `batch_stats` and `arch`, each a
      dict keyed by node name; `arch` holds `{'active': {group: count}}` where
      groups are stored at a capacity, and `{'present': {first node: bool}}`
      where stretches of nodes are optional.
    spec: the architecture.
  """

  variables: Variables
  spec: specs.Spec = flax.struct.field(pytree_node=False)


def walk(
  spec: specs.Spec,
  call: Callable[..., jax.Array],
  x: Any,
  read: Callable[[str, Any], Any] | None = None,
  optional: Callable[..., jax.Array] | None = None,
) -> dict[str, Any]:
  """Evaluates the nodes of a spec in order.

  Args:
    spec: the spec.
    call: `call(node, *inputs) -> value`, for every node but the input.
    x: the value of the input node.
    read: `read(source, value) -> value`, applied to what a *mixing* node reads
      from node `source`; None leaves it as it is.
    optional: `optional(nodes, value) -> value`, evaluates an optional stretch
      of nodes as a whole, of which only the last gets a value; None evaluates
      its nodes as all others.

  Returns:
    The value of every node by name.
  """
  values = {spec.input: x}
  stretches = {} if optional is None else {s[0]: s for s in spec.optional}
  within = {name for stretch in stretches.values() for name in stretch}
  for node in spec.order:
    if node.op.kind == 'input':
      continue
    if node.name in stretches:
      names = stretches[node.name]
      nodes = tuple(map(spec.by_name.get, names))
      values[names[-1]] = optional(nodes, values[node.inputs[0]])
    if node.name in within:
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
  specs.ZeroPad,
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

    present = {}
    if self.spec.optional:
      present = self.variable(
        'arch',
        'present',
        lambda: {s[0]: jnp.bool_(True) for s in self.spec.optional},
      ).value

    def call(node, *inputs):
      mask = masks.get(node.name)
      layer = layers.layer(node.op, node.name, self.conv)
      return _masked(node, layer(*inputs, train=train, mask=mask), mask)

    def optional(nodes, value):
      def made(module, value):
        del module
        for node in nodes:
          value = call(node, value)
        return value

      if self.is_initializing():
        return made(self, value)
      # What is absent is not computed, unless members run side by side.
      here = present[nodes[0].name]
      return nn.cond(here, made, lambda module, value: value, self, value)

    return walk(self.spec, call, x, optional=optional)[self.spec.output]


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

  Raises:
    ValueError: for a spec of optional stretches that make images smaller, of
      which no node can be left out alone.
  """
  if any(map(spec.frame, spec.optional)):
    raise ValueError(
      'an optional stretch of nodes that makes images smaller cannot be walked '
      'node by node; extract the network first (jaxnas.morphisms.extract).'
    )
  arch = variables.get('arch', {})
  masks = _mask_arrays(spec, arch.get('active', {}))
  present = {
    name: arch['present'][stretch[0]]
    for stretch in spec.optional
    for name in stretch
  }

  def call(node: specs.Node, *inputs):
    mask = masks.get(node.name)
    held = {
      collection: {node.name: tree[node.name]}
      for collection, tree in variables.items()
      if node.name in tree
    }
    value = _NodeModule(node, conv).apply(held, *inputs, mask=mask)
    value = _masked(node, value, mask)
    if node.name in present:
      value = jnp.where(present[node.name], value, inputs[0])
    return value

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
  del backend
  # On CPU compiling takes 0.5 s for six convolutions, with optimizations 2.9 s.
  return jax.jit(_fresh, static_argnums=0, compiler_options=programs.once())


@functools.lru_cache(maxsize=1024)
def shapes(spec: specs.Spec) -> Network:
  """The network of a spec as `jax.ShapeDtypeStruct`s; allocates nothing."""
  variables: Variables = {}
  for node in spec.nodes:
    inputs = tuple(spec.shapes[source] for source in node.inputs)
    for collection, held in _node_shapes(node.op, inputs).items():
      variables.setdefault(collection, {})[node.name] = held
  arch = {}
  if spec.padded:
    count = jax.ShapeDtypeStruct((), jnp.int32)
    arch['active'] = dict.fromkeys(spec.padded, count)
  if spec.optional:
    here = jax.ShapeDtypeStruct((), jnp.bool_)
    arch['present'] = {stretch[0]: here for stretch in spec.optional}
  return Network(variables | ({'arch': arch} if arch else {}), spec)


def _node_shapes(
  op: specs.Op, inputs: tuple[specs.Shape, ...]
) -> dict[str, Any]:
  """The shapes of a node's variables, by collection.

  By the node, and for ops of this library at any width, of which a search meets
  few kinds: to trace the network of each new spec takes 30 ms.
  """
  if type(op).__module__ != specs.__name__:
    return _traced_shapes(op, inputs)
  roles = layers.axes(op)
  if not roles:
    return {}
  sizes = {'in': inputs[0][-1], 'out': op.shape(*inputs)[-1]}
  if op.kind == 'mixing':
    op = dataclasses.replace(op, features=1)
  narrow = tuple((*shape[:-1], 1) for shape in inputs)
  return {
    collection: {
      name: jax.ShapeDtypeStruct(
        tuple(
          sizes.get(role, size)
          for role, size in zip(roles[collection, name], leaf.shape)
        ),
        leaf.dtype,
      )
      for name, leaf in held.items()
    }
    for collection, held in _traced_shapes(op, narrow).items()
  }


@functools.lru_cache(maxsize=4096)
def _traced_shapes(
  op: specs.Op, inputs: tuple[specs.Shape, ...]
) -> dict[str, Any]:
  xs = [jax.ShapeDtypeStruct((1, *shape), jnp.float32) for shape in inputs]
  module = _NodeModule(specs.Node('node', op), 'native')
  found = jax.eval_shape(module.init, jax.random.key(0), *xs)
  return {name: tree['node'] for name, tree in found.items() if 'node' in tree}


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
  """The spec without padding: every group at its number of active channels.

  Optional stretches are no longer optional, and those that are absent are gone.
  """
  if not net.spec.padded and not net.spec.optional:
    return net.spec
  spec = without(net.spec, absent(net))
  known = groups.table(spec).groups
  sizes = {g: n for g, n in _active_sizes(net).items() if g in known}
  return groups.resized(spec, sizes)


def absent(net: Network) -> tuple[str, ...]:
  """The first nodes of the optional stretches that a network is without."""
  present = net.variables.get('arch', {}).get('present', {})
  return tuple(name for name, here in sorted(present.items()) if not here)


def without(spec: specs.Spec, absent: Sequence[str]) -> specs.Spec:
  """The spec without some of its optional stretches, and with the others.

  Nothing of it is optional any more, and no group is said to be padded. The
  nodes by which a stretch keeps the shape as it is (`Spec.frame`) are gone.

  Args:
    spec: the spec.
    absent: the first nodes of the stretches that are left out.

  Raises:
    ValueError: for a stretch that is left and reads the smaller image of one
      that is left out.
  """
  return _without(spec, tuple(absent))


@functools.lru_cache(maxsize=1024)
def _without(spec: specs.Spec, absent: tuple[str, ...]) -> specs.Spec:
  gone = {
    name: spec.by_name[name].inputs[0]
    for stretch in spec.optional
    for name in (stretch if stretch[0] in absent else spec.frame(stretch))
  }

  def kept(name: str) -> str:
    while name in gone:
      name = gone[name]
    return name

  nodes = tuple(
    dataclasses.replace(node, inputs=tuple(map(kept, node.inputs)))
    for node in spec.nodes
    if node.name not in gone
  )
  rest = specs.Spec(nodes, kept(spec.output))
  for stretch in spec.optional:
    if stretch[0] not in absent and len(spec.frame(stretch)) == 2:
      here = rest.shapes[rest.by_name[stretch[1]].inputs[0]]
      if here != spec.shapes[stretch[0]]:
        raise ValueError(
          f'{stretch} is present and cuts {spec.shapes[stretch[0]]} out of its '
          f'input, but without {list(absent)} nothing makes that so small.'
        )
  return rest


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
