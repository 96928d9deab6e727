"""Moves that change the width of channel groups: widen, split, prune.

One rule serves them all (growth specification, section 3.2): an index map
with weights. Writers gather their output channels, per-channel operations
gather theirs, readers gather their input channels and scale them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, layers, network
from jaxnas import spec as specs
from jaxnas.morphisms import base

Vectors = Mapping[str, np.ndarray]


def _named(values: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
  return tuple(sorted(values.items()))


def growable(move: Any, spec: specs.Spec, name: str) -> groups.Group:
  """The group of that name, if its width may change; else `ValueError`."""
  found = groups.table(spec).groups.get(name)
  legal = [g.name for g in groups.growable(spec)]
  if found is None:
    raise base.refuse(
      move, f'there is no channel group {name!r}', f'the groups are {legal}'
    )
  if found.frozen:
    raise base.refuse(
      move,
      f'group {name!r} has fixed width {found.size}: {found.frozen}',
      f'groups of free width are {legal}',
    )
  return found


def _untied_norm(move: Any, spec: specs.Spec, group: groups.Group) -> None:
  """Refuses layer norms over several groups: their statistics would change."""
  for name in group.channelwise:
    several = set(groups.table(spec).axes[name].groups) != {group.name}
    if several and getattr(spec.by_name[name].op, 'normalises', False):
      raise base.refuse(
        move,
        f'the layer norm {name!r} normalises group {group.name!r} together '
        'with others',
        'widen groups that no such norm reads',
      )


def layer_normed(spec: specs.Spec, group: groups.Group) -> bool:
  """Whether a layer norm mixes the channels of the group."""
  return any(
    getattr(spec.by_name[name].op, 'normalises', False)
    for name in group.channelwise
  )


def _scaled(leaf, factors: np.ndarray, axis: int):
  if np.all(factors == 1):
    return leaf
  shape = [1] * leaf.ndim
  shape[axis] = len(factors)
  return leaf * factors.astype(leaf.dtype).reshape(shape)


def _along(
  tree: Mapping[str, Any],
  spec: specs.Spec,
  role: str,
  change: Callable[[Any, int, groups.Axis], Any],
) -> dict[str, Any]:
  """Applies `change(leaf, dimension, axis)` to every axis of one role."""
  table = groups.table(spec).axes
  out = {c: dict(held) for c, held in tree.items()}
  for node in spec.nodes:
    for (collection, leaf), roles in layers.axes(node.op).items():
      held = out.get(collection, {}).get(node.name, {})
      if role not in roles or not hasattr(held.get(leaf), 'ndim'):
        continue
      axis = table[node.name if role == 'out' else node.inputs[0]]
      changed = change(held[leaf], roles.index(role), axis)
      out[collection][node.name] = {**held, leaf: changed}
  return out


def reindex_writers(
  tree: Mapping[str, Any],
  spec: specs.Spec,
  index: Vectors,
  write: Vectors | None = None,
) -> dict[str, Any]:
  """The half of `reindex` that acts on writers and per-channel operations."""

  def gather(factors):
    return functools.partial(_gather, index=index, factors=factors)

  stats = {c: held for c, held in tree.items() if c != 'params'}
  params = {c: held for c, held in tree.items() if c == 'params'}
  out = _along(stats, spec, 'out', gather(None))
  return out | _along(params, spec, 'out', gather(write))


def reindex_readers(
  tree: Mapping[str, Any],
  spec: specs.Spec,
  index: Vectors,
  read: Vectors | None = None,
) -> dict[str, Any]:
  """The half of `reindex` that acts on readers."""
  gather = functools.partial(_gather, index=index, factors=read)
  return _along(tree, spec, 'in', gather)


def _gather(leaf, dimension, axis, *, index, factors):
  if not set(axis.groups) & set(index):
    return leaf
  leaf = leaf.take(axis.spread(index, 'index'), axis=dimension)
  if factors is None:
    return leaf
  return _scaled(leaf, axis.spread(factors, 'ones'), dimension)


def reindex(
  tree: Mapping[str, Any],
  spec: specs.Spec,
  index: Vectors,
  *,
  write: Vectors | None = None,
  read: Vectors | None = None,
) -> dict[str, Any]:
  """Applies an index map with weights to groups of channels.

  Args:
    tree: collections of variables of a network of `spec`, or of anything
      laid out like them (`{'params': moments}`).
    spec: the spec before the change.
    index: for each changed group, the old channel each new one copies.
    write: for each group, factors of the new channels in the parameters of
      writers and per-channel operations (statistics are never scaled).
    read: for each group, factors of the new channels in the readers.

  Returns:
    The changed collections. NumPy leaves stay NumPy and compile nothing.
  """
  written = reindex_writers(tree, spec, index, write)
  return reindex_readers(written, spec, index, read)


def _resize(
  net: network.Network, index: Vectors, read: Vectors
) -> network.Network:
  sizes = {group: len(channels) for group, channels in index.items()}
  return network.Network(
    reindex(net.variables, net.spec, index, read=read),
    groups.resized(net.spec, sizes),
  )


def _duplicated_moments(spec, tree, index, mass, power):
  """Moments of duplicated channels: writers see `mass` of the gradient."""
  write = {g: m**power for g, m in mass.items()}
  return reindex({'params': tree}, spec, index, write=write)['params']


@dataclasses.dataclass(frozen=True)
class Widen:
  """Wider groups by duplication; build it with `widen`."""

  widths: tuple[tuple[str, int], ...]
  preserves = True

  def maps(self, spec: specs.Spec) -> tuple[Vectors, Vectors]:
    """The index map and the masses of every widened group."""
    base.unpadded(self, spec)
    index, mass = {}, {}
    for name, width in self.widths:
      group = growable(self, spec, name)
      if width < group.size:
        raise base.refuse(
          self,
          f'group {name!r} has {group.size} channels already',
          f'give a width of {group.size} or more, or prune',
        )
      _untied_norm(self, spec, group)
      if layer_normed(spec, group) and width % group.size:
        raise base.refuse(
          self,
          f'a layer norm reads group {name!r}, whose {group.size} channels '
          'must therefore all be repeated equally often',
          f'give a multiple of {group.size}',
        )
      index[name] = np.arange(width) % group.size
      # The position's part keeps shares unequal when one widens again: with
      # ranks alone, 1/3 of 2/3 and 2/3 of 1/3 would be twins.
      position = np.arange(width)
      share = position // group.size + 1 + position / width
      mass[name] = share / np.bincount(index[name], share)[index[name]]
    return index, mass

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del net, key
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    return _resize(net, *self.maps(net.spec))

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    index, mass = self.maps(spec)
    return _duplicated_moments(spec, tree, index, mass, power)


def widen(widths: Mapping[str, int]) -> Widen:
  """Widens groups by duplicating their channels in turn (Net2Wider).

  Chen et al. (2016), with one change: the copies of a channel share its
  outgoing weight unequally, about as 1 : 2 : ..., so that they part under
  training without any noise; equal shares never part.

  Args:
    widths: for each group its new number of channels. Where a layer norm
      reads the group, a multiple of the old number.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> widen({'dense1': 10})(net, ()).spec.shapes['dense1']
    (10,)
  """
  return Widen(_named({name: int(width) for name, width in widths.items()}))


def _channels(move: Any, group: groups.Group, chosen: Sequence[int]) -> None:
  """Refuses channels that are none, twice there, or out of range."""
  wrong = [c for c in chosen if not 0 <= c < group.size]
  if wrong or not chosen or len(set(chosen)) < len(chosen):
    raise base.refuse(
      move,
      f'group {group.name!r} has channels 0 to {group.size - 1}, got '
      f'{tuple(chosen)}',
      'give each channel once, at least one',
    )


def _by_group(channels: Mapping[str, Sequence[int]]):
  return _named(
    {name: tuple(int(c) for c in chosen) for name, chosen in channels.items()}
  )


@dataclasses.dataclass(frozen=True)
class Split:
  """Channels split in two; build it with `split`."""

  channels: tuple[tuple[str, tuple[int, ...]], ...]
  mass: float = 0.3
  preserves = True

  def maps(self, spec: specs.Spec) -> tuple[Vectors, Vectors]:
    """The index map and the masses of every group."""
    base.unpadded(self, spec)
    index, mass = {}, {}
    for name, chosen in self.channels:
      group = growable(self, spec, name)
      _channels(self, group, chosen)
      _untied_norm(self, spec, group)
      if layer_normed(spec, group) and len(chosen) != group.size:
        raise base.refuse(
          self,
          f'a layer norm reads group {name!r}, and splitting '
          f'{len(chosen)} of its {group.size} channels would change its '
          'statistics',
          f'split all {group.size}',
        )
      index[name] = np.concatenate([np.arange(group.size), chosen])
      share = np.ones(group.size)
      share[list(chosen)] = 1 - self.mass
      mass[name] = np.concatenate([share, np.full(len(chosen), self.mass)])
    return index, mass

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """Random directions `{group: {writer: kernel[..., chosen channels]}}`.

    A tenth of the scale of a fresh kernel.
    """
    self.maps(net.spec)
    table, theta = groups.table(net.spec), {}
    for name, chosen in self.channels:
      theta[name] = {}
      for writer in table.groups[name].writers:
        kernel = net.variables['params'][writer]['kernel']
        copies = table.axes[writer].groups.count(name)
        shape = (*kernel.shape[:-1], copies * len(chosen))
        draw = network.named_key(key, f'{name}/{writer}')
        scale = 0.1 / math.sqrt(math.prod(shape[:-1]))
        theta[name][writer] = scale * jax.random.normal(
          draw, shape, kernel.dtype
        )
    return theta

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    index, mass = self.maps(net.spec)
    written = reindex_writers(net.variables, net.spec, index)
    params = dict(written['params'])
    for writer, shift in self._shifts(net.spec, theta).items():
      kernel = params[writer]['kernel'] + shift
      params[writer] = {**params[writer], 'kernel': kernel}
    read = reindex_readers({**written, 'params': params}, net.spec, index, mass)
    sizes = {group: len(channels) for group, channels in index.items()}
    return network.Network(read, groups.resized(net.spec, sizes))

  def _shifts(self, spec: specs.Spec, theta: base.Theta) -> dict[str, Any]:
    """What is added to the writers' kernels, (..., new output channels)."""
    table, chosen, shifts = groups.table(spec), dict(self.channels), {}
    for writer in dict.fromkeys(w for held in theta.values() for w in held):
      axis, parts, used = table.axes[writer], [], dict.fromkeys(theta, 0)
      some = next(held[writer] for held in theta.values() if writer in held)
      for group, size in zip(axis.groups, axis.sizes):
        picked = chosen.get(group, ())
        take, factors = _twin_rows(size, picked, self.mass)
        if not picked or writer not in theta.get(group, {}):
          parts.append(_scaled(some.take(take * 0, axis=-1), 0 * factors, -1))
          continue
        rows = theta[group][writer].take(take + used[group], axis=-1)
        used[group] += len(picked)
        parts.append(_scaled(rows, factors, -1))
      stack = (
        np.concatenate if isinstance(some, np.ndarray) else jnp.concatenate
      )
      shifts[writer] = stack(parts, axis=-1).astype(some.dtype)
    return shifts

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    index, mass = self.maps(spec)
    return _duplicated_moments(spec, tree, index, mass, power)


def _twin_rows(size, chosen, mass):
  """For each new channel its row of theta and the factor to add it with."""
  take = np.zeros(size + len(chosen), int)
  factors = np.zeros(size + len(chosen))
  take[list(chosen)] = np.arange(len(chosen))
  factors[list(chosen)] = 2 * mass
  take[size:] = np.arange(len(chosen))
  factors[size:] = -2 * (1 - mass)
  return take, factors


def split(channels: Mapping[str, Sequence[int]], *, mass: float = 0.3) -> Split:
  """Splits channels in two, along a direction that may be learned.

  Channel c with incoming weights w becomes w + 2 m d, with 1 - m of the
  outgoing weight, and at the group's end a twin w - 2 (1 - m) d with m of it,
  so that the twins' mean is w (growth specification, 1.3.1). At d = 0 nothing
  changes; with m other than 1/2 the twins part even then. Composed splits of
  both twins need another m: the shares (1 - m) m and m (1 - m) are equal.

  Args:
    channels: for each group the channels to split.
    mass: m, the share of the outgoing weight that the twin takes, in (0, 1).

  Raises:
    ValueError: for a mass outside (0, 1).

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> move = split({'dense1': [0, 5]})
    >>> theta = move.init(net, jax.random.key(1))
    >>> theta['dense1']['dense1'].shape, move(net, theta).spec.shapes['dense1']
    ((4, 2), (10,))
  """
  if not 0 < mass < 1:
    raise ValueError(f'split: mass must be in (0, 1), got {mass!r}.')
  return Split(_by_group(channels), float(mass))


def absorbers(spec: specs.Spec, reader: str) -> tuple[str, ...]:
  """Where a constant added to a reader's output can be folded in.

  The reader itself if it has a bias; else the batch norms that read it, if
  nothing else does; else nothing.
  """
  if ('params', 'bias') in layers.axes(spec.by_name[reader].op):
    return (reader,)
  norms = spec.consumers[reader]
  if all(isinstance(spec.by_name[n].op, specs.BatchNorm) for n in norms):
    return norms
  return ()


@dataclasses.dataclass(frozen=True)
class Prune:
  """Channels removed; build it with `prune`."""

  channels: tuple[tuple[str, tuple[int, ...]], ...]
  preserves = False

  def maps(self, spec: specs.Spec) -> Vectors:
    """For every group the channels that stay."""
    base.unpadded(self, spec)
    index = {}
    for name, chosen in self.channels:
      group = growable(self, spec, name)
      _channels(self, group, chosen)
      if len(chosen) == group.size:
        raise base.refuse(
          self,
          f'all {group.size} channels of group {name!r} would go',
          'leave at least one',
        )
      index[name] = np.setdiff1d(np.arange(group.size), chosen)
    return index

  def dropped(self, spec: specs.Spec, reader: str) -> np.ndarray:
    """Positions in the reader's input axis that are removed."""
    table = groups.table(spec)
    axis = table.axes[spec.by_name[reader].inputs[0]]
    flags = {}
    for name, chosen in self.channels:
      flags[name] = np.isin(np.arange(table.groups[name].size), chosen)
    return np.flatnonzero(axis.spread(flags, 'zeros'))

  def compensated(self, spec: specs.Spec) -> tuple[str, ...]:
    """The readers into which means can be folded."""
    table = groups.table(spec).groups
    readers = [r for name, _ in self.channels for r in table[name].readers]
    return tuple(r for r in dict.fromkeys(readers) if absorbers(spec, r))

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """Zero means `{reader: (removed inputs,)}`, where they can be folded in."""
    del key
    self.maps(net.spec)
    theta = {}
    for reader in self.compensated(net.spec):
      kernel = net.variables['params'][reader]['kernel']
      dropped = len(self.dropped(net.spec, reader))
      theta[reader] = jnp.zeros((dropped,), kernel.dtype)
    return theta

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    index = self.maps(net.spec)
    variables = {c: dict(held) for c, held in net.variables.items()}
    for reader, means in theta.items():
      kernel = variables['params'][reader]['kernel']
      columns = kernel.sum(axis=tuple(range(kernel.ndim - 2)))
      constant = means @ columns.take(self.dropped(net.spec, reader), axis=0)
      for node in absorbers(net.spec, reader):
        collection, leaf, sign = (
          ('params', 'bias', 1)
          if node == reader
          else ('batch_stats', 'mean', -1)
        )
        held = variables[collection][node]
        changed = (held[leaf] + sign * constant).astype(held[leaf].dtype)
        variables[collection][node] = {**held, leaf: changed}
    return _resize(network.Network(variables, net.spec), index, {})

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del power
    return reindex({'params': tree}, spec, self.maps(spec))['params']


def prune(channels: Mapping[str, Sequence[int]]) -> Prune:
  """Removes channels; theta holds the means that stand in for them.

  With theta zero the channels count as zero from now on. With the means of
  the removed inputs of each reader, their mean contribution moves into the
  reader's bias, or into the running mean of the batch norm behind it
  (growth specification, table 3.3); next to zero padding the compensation
  is not exact, and readers with neither get none.

  Args:
    channels: for each group the channels to remove.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> move = prune({'dense1': [2]})
    >>> move(net, move.init(net, jax.random.key(1))).spec.shapes['dense1']
    (7,)
  """
  return Prune(_by_group(channels))


def positions(
  spec: specs.Spec, node: str, group: str, chosen: Sequence[int]
) -> np.ndarray:
  """Where channels lie in a node's axis, in the order given, copy by copy."""
  axis = groups.table(spec).axes[node]
  size = axis.sizes[axis.groups.index(group)]
  flags = np.isin(np.arange(size), chosen)
  found = np.flatnonzero(axis.spread({group: flags}, 'zeros'))
  rank = np.argsort(np.argsort(chosen))
  copies = len(found) // len(chosen)
  return np.concatenate(
    [found[rank + copy * len(chosen)] for copy in range(copies)]
  )
