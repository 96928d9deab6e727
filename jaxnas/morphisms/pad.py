"""Capacity: groups stored wider than they are, the active count as data.

A padded network computes what the unpadded one does, with inactive channels
masked after every layer that could fill them. Networks of different width
padded to the same capacities share one compiled program.
"""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from jaxnas import groups, network
from jaxnas import spec as specs
from jaxnas.morphisms import base, width


@dataclasses.dataclass(frozen=True)
class Pad:
  """Groups stored at a capacity; build it with `pad`."""

  capacities: tuple[tuple[str, int], ...]
  preserves = True

  def maps(self, spec: specs.Spec):
    """The index map, and which of the new channels are active."""
    base.unpadded(self, spec)
    index, alive = {}, {}
    for name, capacity in self.capacities:
      group = width.growable(self, spec, name)
      if capacity < group.size:
        raise base.refuse(
          self,
          f'group {name!r} has {group.size} channels',
          f'give a capacity of {group.size} or more',
        )
      position = np.arange(capacity)
      alive[name] = (position < group.size).astype(float)
      index[name] = np.where(position < group.size, position, 0)
    return index, alive

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del net, key
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    index, alive = self.maps(net.spec)
    variables = width.reindex(
      net.variables, net.spec, index, write=alive, read=alive
    )
    spec = groups.resized(net.spec, dict(self.capacities))
    sizes = groups.table(net.spec).groups
    active = {g: np.int32(sizes[g].size) for g, _ in self.capacities}
    padded = tuple(sorted(active))
    return network.Network(
      {**variables, 'arch': {'active': active}},
      dataclasses.replace(spec, padded=padded),
    )

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del power
    index, alive = self.maps(spec)
    return width.reindex(
      {'params': tree}, spec, index, write=alive, read=alive
    )['params']


def pad(capacities: Mapping[str, int]) -> base.Morphism:
  """Stores groups at a capacity; nothing else changes.

  Args:
    capacities: for each group the number of channels to store.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (5,), 3), jax.random.key(0))
    >>> padded = pad({'dense1': 8})(net, ())
    >>> padded.spec.shapes['dense1'], padded.variables['arch']['active']
    ((8,), {'dense1': np.int32(5)})
  """
  return Pad(
    tuple(sorted((name, int(size)) for name, size in capacities.items()))
  )


@dataclasses.dataclass(frozen=True)
class Crop:
  """Padding taken away; build it with `crop`."""

  widths: tuple[tuple[str, int], ...]
  preserves = True

  def maps(self, spec: specs.Spec):
    """The channels that stay, of every group."""
    for name, size in self.widths:
      if name not in spec.padded:
        raise base.refuse(
          self,
          f'group {name!r} is not padded',
          f'padded groups are {list(spec.padded)}; to remove active '
          'channels, prune',
        )
      capacity = groups.table(spec).groups[name].size
      if not 1 <= size <= capacity:
        raise base.refuse(
          self,
          f'group {name!r} is stored at {capacity} channels, got {size}',
          f'give its number of active channels, 1 to {capacity}',
        )
    return {name: np.arange(size) for name, size in self.widths}

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del net, key
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    index = self.maps(net.spec)
    active = dict(net.variables['arch']['active'])
    for name, size in self.widths:
      count = active.pop(name)
      concrete = not isinstance(count, jax.core.Tracer | jax.ShapeDtypeStruct)
      if concrete and int(count) != size:
        raise base.refuse(
          self,
          f'group {name!r} has {int(count)} active channels, got {size}',
          'crop to exactly those',
        )
    held = {c: tree for c, tree in net.variables.items() if c != 'arch'}
    variables = width.reindex(held, net.spec, index)
    if active:
      variables['arch'] = {'active': active}
    spec = groups.resized(net.spec, dict(self.widths))
    return network.Network(
      variables, dataclasses.replace(spec, padded=tuple(sorted(active)))
    )

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del power
    return width.reindex({'params': tree}, spec, self.maps(spec))['params']


def crop(widths: Mapping[str, int]) -> base.Morphism:
  """Takes the padding of groups away, down to their active channels.

  Args:
    widths: for each padded group its number of active channels; checked
      against the data, except under a trace, where it is the caller's word.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (5,), 3), jax.random.key(0))
    >>> cropped = crop({'dense1': 5})(pad({'dense1': 8})(net, ()), ())
    >>> cropped.spec == net.spec
    True
  """
  return Crop(tuple(sorted((name, int(size)) for name, size in widths.items())))


def uncapped(net: network.Network) -> base.Morphism:
  """The crop that takes all padding of a network away (identity if none)."""
  active = net.variables.get('arch', {}).get('active', {})
  if not active:
    return base.identity()
  return crop({group: int(count) for group, count in active.items()})
