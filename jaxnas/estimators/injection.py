"""Moves as differences injected into the unchanged network.

A split, prune, merge or gated insertion is a difference added to what the
readers of a channel group read, or to what they write (growth specification,
1.3.1). Here are the places, the differences, and the exact loss of a network
with splits that is never built.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, network
from jaxnas.morphisms import width
from jaxnas.spec import Spec

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Arrays = dict[str, jax.Array]


class Sites(NamedTuple):
  """Where a spec's groups meet their readers.

  Attributes:
    sources: nodes with scored groups that mixing nodes read.
    readers: those mixing nodes.
    writers: mixing nodes that write scored groups.
    columns: names of the scored groups, in order, and their sizes.
  """

  sources: tuple[str, ...]
  readers: tuple[str, ...]
  writers: tuple[str, ...]
  columns: tuple[tuple[str, int], ...]

  @property
  def count(self) -> int:
    """The number of channels that can be scored."""
    return sum(size for _, size in self.columns)


@functools.lru_cache(maxsize=1024)
def sites(spec: Spec) -> Sites:
  """The injection sites of a spec, and the groups that can be scored.

  Groups whose channels a layer norm mixes are left out: there a change of one
  channel is no difference of that channel alone.
  """
  scored = [g for g in groups.growable(spec) if not width.layer_normed(spec, g)]
  names = {g.name for g in scored}
  axes = groups.table(spec).axes
  readers = [
    n
    for n in spec.order
    if n.op.kind == 'mixing' and names & set(axes[n.inputs[0]].groups)
  ]
  return Sites(
    tuple(dict.fromkeys(n.inputs[0] for n in readers)),
    tuple(n.name for n in readers),
    tuple(dict.fromkeys(w for g in scored for w in g.writers)),
    tuple((g.name, g.size) for g in scored),
  )


class Injected(NamedTuple):
  """What is added to a network's values, or the adjoints of that.

  Attributes:
    read: `{source: like the source's value}`, added to what is read there.
    written: `{node: like the node's value}`, or of size one at every position
      where all positions get the same; added to what the node makes.
  """

  read: Arrays
  written: Arrays


def forward(
  spec: Spec,
  call: Callable[..., jax.Array],
  x: jax.Array,
  injected: Injected,
) -> Arrays:
  """All values of the network with something injected."""

  def read(source, value):
    return value + injected.read[source] if source in injected.read else value

  def write(node, *inputs):
    value = call(node, *inputs)
    if node.name in injected.written:
      value = value + injected.written[node.name]
    return value

  if spec.input in injected.written:
    x = x + injected.written[spec.input]
  return network.walk(spec, write, x, read)


class Twins(NamedTuple):
  """Both twins of every channel.

  Attributes:
    held: at every node that has twins, the first and the second.
    means: there, their weighted mean, which is what readers read.
    values: all values of the network as readers read them.
  """

  held: dict[str, tuple[jax.Array, jax.Array]]
  means: Arrays
  values: Arrays


def _no_rows(node, x):
  del node, x


def twins(
  spec: Spec,
  call: Callable[..., jax.Array],
  linear: Callable[..., jax.Array],
  mass: float,
  x: jax.Array,
  values: Arrays | None = None,
  outgoing: Callable[..., jax.Array | None] = _no_rows,
) -> Twins:
  """Both twins of every channel, and what their readers read instead.

  The twins of a writer's pre-activation a are `a + 2 m delta` and
  `a - 2 (1 - m) delta`; per-channel operations act on each; a reader reads
  their mean, weighted 1 - m and m.

  Args:
    spec: the spec.
    call: `call(node, *inputs)`, the node in evaluation mode.
    linear: `linear(node, x)`, delta: the direction applied to the input; None
      for nodes without one.
    mass: m, the share of the second twin.
    x: the network's input.
    values: the values of the unchanged network, for differences scored one by
      one; None for all at once, so that every reader reads the changed
      values: then the output is exactly that of the network with every
      direction's split built.
    outgoing: `outgoing(node, x)`, free outgoing weights applied to the
      difference of the twins that the node reads; only for all at once.
  """
  held: dict[str, tuple[jax.Array, jax.Array]] = {}
  mixed: Arrays = {spec.input: x}
  base: Arrays = {spec.input: x}
  for node in spec.order:
    if node.op.kind == 'input':
      continue
    if node.op.kind == 'mixing':
      source = node.inputs[0]
      incoming = mixed[source] if values is None else values[source]
      value = call(node, incoming) if values is None else values[node.name]
      if values is None and source in held:
        shift = outgoing(node, held[source][0] - held[source][1])
        value = value if shift is None else value + shift
      delta = linear(node, incoming)
      if delta is not None:
        held[node.name] = (
          value + 2 * mass * delta,
          value - 2 * (1 - mass) * delta,
        )
    else:
      inputs = [base[s] for s in node.inputs]
      value = call(node, *inputs) if values is None else values[node.name]
      if any(s in held for s in node.inputs):
        pairs = [held.get(s, (base[s], base[s])) for s in node.inputs]
        held[node.name] = tuple(call(node, *side) for side in zip(*pairs))
    base[node.name] = mixed[node.name] = value
    if node.name in held:
      first, second = held[node.name]
      mixed[node.name] = (1 - mass) * first + mass * second
  return Twins(held, {name: mixed[name] for name in held}, mixed)


def deltas(
  spec: Spec, variables: Any, kernels: Arrays
) -> Callable[..., jax.Array | None]:
  """`linear` for `twins`: layers with other kernels and no bias."""

  def apply(node, x):
    if node.name not in kernels:
      return None
    own = variables['params'][node.name]
    params = {leaf: jnp.zeros_like(value) for leaf, value in own.items()}
    params['kernel'] = kernels[node.name]
    call = network.caller(spec, {'params': {node.name: params}})
    return call(node, x)

  return apply


def injected_loss(
  net: network.Network,
  directions: Arrays,
  mass: float,
  loss: Loss,
  inputs: jax.Array,
  targets: jax.Array,
  outgoing: Arrays | None = None,
) -> jax.Array:
  """The loss of a network with splits, without building it.

  Equal to the loss of `split(...)(net, theta)` up to rounding, for any set of
  splits in any layers and of any size, in evaluation mode, where no layer norm
  reads the groups: the identity on which the estimates rest.

  Args:
    net: an unpadded network.
    directions: `{writer: kernel-shaped}` directions of all channels; zero for
      channels that are not split.
    mass: the splits' mass.
    loss: `loss(outputs, targets) -> (batch,)`.
    inputs: (batch, *input shape), prepared.
    targets: (batch,).
    outgoing: `{reader: kernel-shaped}` free outgoing weights; None for none.

  Returns:
    (batch,) losses.
  """
  call = network.caller(net.spec, net.variables)
  apply = functools.partial(deltas, net.spec, net.variables)
  free = _no_rows if outgoing is None else apply(outgoing)
  linear = apply(directions)
  found = twins(net.spec, call, linear, mass, inputs, outgoing=free)
  return loss(found.values[net.spec.output], targets)


class Laid(NamedTuple):
  """Moves laid out over all channels of a network; {} for what is not there.

  Attributes:
    directions: `{writer: kernel-shaped}` of splits.
    outgoing: `{reader: kernel-shaped}` free outgoing weights of splits.
    means: `{reader: (input axis,)}` what stands in for pruned channels.
    shares: `{group: (channels, channels)}` of merges.
    blocks: for each insertion the variables of its new nodes.
  """

  directions: Any
  outgoing: Any
  means: Any
  shares: Any
  blocks: Any = ()


class Block(NamedTuple):
  """An insertion, as the unchanged network sees it; hashable.

  Attributes:
    after: the node behind which it is.
    spec: the spec with it.
    nodes: its new nodes but the add, in order; the last is the gate.
  """

  after: str
  spec: Spec
  nodes: tuple[str, ...]


class Differences(NamedTuple):
  """What every column would inject, by itself.

  Attributes:
    split: `{source: difference of the mean}`.
    gap: `{source: first twin minus second}`, for free outgoing weights.
    prune: `{source: what stands in, minus the value}`.
    blocks: what each insertion adds.
    deltas: `{writer: change of the pre-activation along the direction}`.
  """

  split: Arrays
  gap: Arrays
  prune: Arrays
  blocks: tuple[jax.Array, ...]
  deltas: Arrays


def mixed(spec: Spec, node: str, value: jax.Array, shares: Arrays) -> jax.Array:
  """What merges put in the place of every channel of a node's value."""
  axis = groups.table(spec).axes[node]
  xp = (
    np if isinstance(value, np.ndarray) else jnp
  )  # The host compiles nothing.
  rows = value.reshape((*value.shape[:-1], axis.repeat, sum(axis.sizes)))
  parts, offset = [], 0
  for name, size in zip(axis.groups, axis.sizes):
    row = rows[..., offset : offset + size]
    if name in shares:
      own = shares[name] * (1 - xp.eye(size, dtype=value.dtype))
      parts.append(row @ own.T)
    else:
      parts.append(xp.zeros_like(row))
    offset += size
  return xp.concatenate(parts, axis=-1).reshape(value.shape)


def differences(
  spec: Spec,
  variables: Any,
  values: Arrays,
  laid: Laid,
  mass: float,
  blocks: tuple[Block, ...],
) -> Differences:
  """The differences of every split, prune and insertion, each by itself."""
  call = network.caller(spec, variables)
  apply = deltas(spec, variables, laid.directions)
  changes: Arrays = {}

  def linear(node, x):
    delta = apply(node, x)
    if delta is not None:
      changes[node.name] = delta
    return delta

  split, gap = {}, {}
  if laid.directions:
    found = twins(spec, call, linear, mass, values[spec.input], values)
    for source in sites(spec).sources:
      if source in found.held:
        split[source] = found.means[source] - values[source]
        first, second = found.held[source]
        gap[source] = first - second
  prune = {}
  if laid.means or laid.shares:
    for source in sites(spec).sources:
      prune[source] = -values[source]
      if laid.shares:
        stand_in = mixed(spec, source, values[source], laid.shares)
        prune[source] = prune[source] + stand_in
  added = []
  for block, held in zip(blocks, laid.blocks, strict=True):
    inner, value = network.caller(block.spec, held), {}
    value[block.after] = values[block.after]
    for name in block.nodes:
      node = block.spec.by_name[name]
      value[name] = inner(node, *(value[s] for s in node.inputs))
    added.append(value[block.nodes[-1]])
  return Differences(split, gap, prune, tuple(added), changes)


def columns(spec: Spec, blocks: tuple[Block, ...]) -> int:
  """Splits of all channels, then prunes of all, then insertions."""
  return 2 * sites(spec).count + len(blocks)


def inject(
  spec: Spec,
  variables: Any,
  laid: Laid,
  found: Differences,
  blocks: tuple[Block, ...],
  weights: jax.Array,
) -> Injected:
  """The differences of columns, weighted; linear in the weights.

  Args:
    spec: the spec.
    variables: its variables.
    laid: the moves.
    found: their differences.
    blocks: the insertions.
    weights: (batch, columns).

  Returns:
    What is injected in each example.
  """
  count = sites(spec).count
  splits, prunes = weights[:, :count], weights[:, count : 2 * count]
  read = {}
  for source in sites(spec).sources:
    parts = []
    for held, chosen in ((found.split, splits), (found.prune, prunes)):
      if source in held:
        factor = over_axis(spec, source, chosen)
        parts.append(held[source] * _at_positions(factor, held[source]))
    if parts:
      read[source] = sum(parts)
  written = {}
  apply = deltas(spec, variables, laid.outgoing)
  for reader in sites(spec).readers:
    node = spec.by_name[reader]
    source, parts = node.inputs[0], []
    if reader in laid.outgoing and source in found.gap:
      factor = over_axis(spec, source, splits)
      gap = found.gap[source]
      parts.append(apply(node, gap * _at_positions(factor, gap)))
    if reader in laid.means:
      kernel = variables['params'][reader]['kernel']
      taps = kernel.sum(axis=tuple(range(kernel.ndim - 2)))
      lost = (over_axis(spec, source, prunes) * laid.means[reader][None]) @ taps
      like = found.prune[source]
      parts.append(lost.reshape((len(lost), *(1,) * (like.ndim - 2), -1)))
    if parts:
      written[reader] = sum(parts)
  for i, (block, value) in enumerate(zip(blocks, found.blocks)):
    factor = weights[:, 2 * count + i]
    factor = factor.reshape((-1, *(1,) * (value.ndim - 1)))
    more = value * factor
    written[block.after] = written.get(block.after, 0) + more
  return Injected(read, written)


def _at_positions(rows: jax.Array, like: jax.Array) -> jax.Array:
  """(batch, channels) to (batch, 1, ..., channels)."""
  return rows.reshape((rows.shape[0], *(1,) * (like.ndim - 2), -1))


def over_axis(spec: Spec, node: str, weights: jax.Array) -> jax.Array:
  """(batch, scored channels) laid out over a node's axis, else zero."""
  axis, start, total = groups.table(spec).axes[node], {}, 0
  for name, size in sites(spec).columns:
    start[name] = total
    total += size
  parts = [
    weights[:, start[g] : start[g] + size]
    if g in start
    else jnp.zeros((weights.shape[0], size), weights.dtype)
    for g, size in zip(axis.groups, axis.sizes)
  ]
  return jnp.tile(jnp.concatenate(parts, axis=1), (1, axis.repeat))
