"""Depth: networks stored within deeper ones, what is present as data.

As `pad` stores channels at a capacity. What a network lacks of the deeper one
is optional there, and absent; so networks of different depth share one
compiled program. Images that an optional stretch makes smaller are stored in
the lower right corner of ones as large as before it (`Spec.frame`), and dense
layers behind a `Flatten` have rows for all of their positions.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, layers, network
from jaxnas import spec as specs
from jaxnas.morphisms import base


@dataclasses.dataclass(frozen=True)
class Embed:
  """Absent nodes put around those of a network; build it with `embed`."""

  into: specs.Spec
  preserves = True

  @functools.lru_cache(maxsize=1024)
  def lacking(self, spec: specs.Spec) -> tuple[str, ...]:
    """The first nodes of the stretches that a network of `spec` is without."""
    if spec.optional:
      raise base.refuse(
        self,
        f'the network has optional nodes already, {list(spec.optional)}',
        'extract it first (jaxnas.morphisms.extract)',
      )
    found = tuple(
      stretch[0]
      for stretch in self.into.optional
      if not set(stretch) & set(spec.by_name)
    )
    rest = network.without(self.into, found)
    same = (
      rest.output == spec.output
      and rest.by_name == spec.by_name
      and set(spec.padded) <= set(self.into.padded)
    )
    if not same:
      raise base.refuse(
        self,
        f'the nodes {list(spec.by_name)} are not what it leaves when optional '
        'ones are taken away',
        'rename and pad the network so that they are',
      )
    return found

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del key
    self.lacking(net.spec)
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    absent = self.lacking(net.spec)
    whole = network.shapes(self.into).variables
    held = {
      collection: _filled(net.variables.get(collection, {}), tree)
      for collection, tree in whole.items()
      if collection != 'arch'
    }
    if 'params' in held:
      held['params'] = _placed(held['params'], net.spec, self.into)
    active = dict(net.variables.get('arch', {}).get('active', {}))
    table = groups.table(self.into)
    # What is absent hands on its input: as many channels, in other groups.
    for stretch in self.into.optional:
      before = table.axes[self.into.by_name[stretch[0]].inputs[0]].groups
      for name in stretch if stretch[0] in absent else ():
        for group, source in zip(table.axes[name].groups, before):
          if group in self.into.padded and group not in active:
            size = table.groups[source].size
            active[group] = active.get(source, np.int32(size))
    lost = sorted(set(self.into.padded) - set(active))
    if lost:
      raise base.refuse(
        self,
        f'the groups {lost} have no number of active channels',
        'pad the same groups of the network',
      )
    present = {s[0]: np.bool_(s[0] not in absent) for s in self.into.optional}
    arch = {'present': present} | ({'active': active} if active else {})
    return network.Network({**held, 'arch': arch}, self.into)

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del power
    self.lacking(spec)
    whole = network.shapes(self.into).variables['params']
    return _placed(_filled(tree, whole), spec, self.into)


def _filled(tree: base.Tree, whole: base.Tree) -> base.Tree:
  """The tree, and zeros of its precision for the nodes that it lacks."""
  leaves = jax.tree.leaves(tree)
  host = all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
  dtype = leaves[0].dtype if leaves else np.dtype('float32')
  zeros = np.zeros if host else jnp.zeros
  return {
    name: tree[name]
    if name in tree
    else jax.tree.map(lambda leaf: zeros(leaf.shape, dtype), held)
    for name, held in whole.items()
  }


def _placed(tree: base.Tree, old: specs.Spec, new: specs.Spec) -> base.Tree:
  """The tree with rows for the positions of another spec's images.

  Of layers behind a `Flatten`. The smaller of two images is the lower right
  corner of the larger one.
  """
  tree = dict(tree)
  for node in old.nodes:
    if node.op.kind != 'mixing' or node.name not in tree:
      continue
    source = node.inputs[0]
    if old.by_name[source].op.kind != 'flatten':
      continue
    before, after = (
      spec.shapes[spec.by_name[source].inputs[0]] for spec in (old, new)
    )
    if before == after:
      continue
    roles = layers.axes(node.op)
    tree[node.name] = {
      name: _rows(leaf, roles.get(('params', name), ()), before, after)
      for name, leaf in tree[node.name].items()
    }
  return tree


def _rows(
  leaf: Any,
  roles: tuple[str | None, ...],
  before: specs.Shape,
  after: specs.Shape,
) -> Any:
  """A leaf with its input's axis for another image."""
  if 'in' not in roles or not hasattr(leaf, 'ndim'):  # As `optax.MaskedNode`.
    return leaf
  axis = roles.index('in')
  ahead, behind = leaf.shape[:axis], leaf.shape[axis + 1 :]
  leaf = leaf.reshape((*ahead, *before, *behind))
  more = [(max(0, b - a), 0) for a, b in zip(before, after)]
  less = [slice(max(0, a - b), None) for a, b in zip(before, after)]
  pad = np.pad if isinstance(leaf, np.ndarray) else jnp.pad
  leaf = pad(leaf, [*[(0, 0)] * len(ahead), *more, *[(0, 0)] * len(behind)])
  leaf = leaf[(*[slice(None)] * len(ahead), *less)]
  return leaf.reshape((*ahead, math.prod(after), *behind))


def embed(into: specs.Spec) -> base.Morphism:
  """Stores a network within a deeper one; nothing else changes.

  Args:
    into: a spec with optional stretches. Without some of them it must be the
      network's, down to names and capacities; those are absent. Stretches that
      make images smaller are framed (`Spec.optional`).

  Raises:
    ValueError: by the move, for another network.

  Example:
    >>> import dataclasses, jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> deep, shallow = (seeds.mlp((4,), (8,) * n, 3) for n in (2, 1))
    >>> shallow == network.without(dataclasses.replace(
    ...     deep, optional=(('dense2', 'act2'),)), ['dense2'])
    True
    >>> into = dataclasses.replace(deep, optional=(('dense2', 'act2'),))
    >>> held = embed(into)(network.init(shallow, jax.random.key(0)), ())
    >>> held.variables['arch'], network.param_count(held)
    ({'present': {'dense2': np.False_}}, 67)
  """
  return Embed(into)


@dataclasses.dataclass(frozen=True)
class Extract:
  """Absent nodes taken away; build it with `extract`."""

  absent: tuple[str, ...]
  preserves = True

  @functools.lru_cache(maxsize=1024)
  def spec(self, spec: specs.Spec) -> specs.Spec:
    """The spec that is left."""
    firsts = [stretch[0] for stretch in spec.optional]
    unknown = sorted(set(self.absent) - set(firsts))
    if unknown:
      raise base.refuse(
        self,
        f'no optional stretches begin with {unknown}',
        f'those that are begin with {firsts}',
      )
    rest = network.without(spec, self.absent)
    known = groups.table(rest).groups
    return dataclasses.replace(
      rest, padded=tuple(g for g in spec.padded if g in known)
    )

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del net, key
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    spec = self.spec(net.spec)
    arch = net.variables.get('arch', {})
    for name, here in arch.get('present', {}).items():
      concrete = not isinstance(here, jax.core.Tracer | jax.ShapeDtypeStruct)
      if concrete and bool(here) == (name in self.absent):
        raise base.refuse(
          self,
          f'the nodes that {name!r} begins are '
          f'{"present" if here else "absent"}',
          'take away exactly those that are absent',
        )
    held = {
      collection: {n: v for n, v in tree.items() if n in spec.by_name}
      for collection, tree in net.variables.items()
      if collection != 'arch'
    }
    if 'params' in held:
      held['params'] = _placed(held['params'], net.spec, spec)
    active = arch.get('active', {})
    active = {g: n for g, n in active.items() if g in spec.padded}
    if active:
      held['arch'] = {'active': active}
    return network.Network(held, spec)

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del power
    left = self.spec(spec)
    kept = {name: held for name, held in tree.items() if name in left.by_name}
    return _placed(kept, spec, left)


def extract(net: network.Network) -> base.Morphism:
  """The move that takes a network out of what `embed` stored it in.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> extract(net)
    Identity()
  """
  if not net.spec.optional:
    return base.identity()
  return Extract(network.absent(net))
