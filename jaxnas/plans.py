"""Which members share a program: buckets of widths, and places on a mesh.

Every network is padded to buckets before it meets a compiled program, so that
one that grows inside its buckets compiles nothing new.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import forms, groups, morphisms, network
from jaxnas import mesh as meshes
from jaxnas.morphisms import Morphism
from jaxnas.spec import Dropout, Spec


def bucket(width: int) -> int:
  """The capacity a width is stored at: 4, 8, 16, 32, 48, 64, 96, 128, ...

  Less than twice the width from 3 on; a search's programs grow with the
  logarithm of its widths. Which ladder: growth of six convolutions from 8 to
  64 channels, a tenth at a time, meets 9.5 structures (mean of 30 draws) and
  does 1.32 times the operations of exact widths. With 24 on the ladder it is
  12.0 and 1.26, with all multiples of 8 15.1 and 1.15, with powers of two
  alone 6.9 and 1.57.

  Example:
    >>> [bucket(n) for n in (3, 5, 9, 17, 33, 49, 65)]
    [4, 8, 16, 32, 48, 64, 96]
  """
  power = 4
  while True:
    if width <= power:
      return power
    if power >= 32 and width <= power * 3 // 2:
      return power * 3 // 2
    power *= 2


@functools.lru_cache(maxsize=1024)
def padding(spec: Spec) -> Morphism:
  """The move that pads every group of free width to its bucket.

  A network that is padded already keeps its capacities.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> padding(seeds.mlp((4,), (9,), 3))
    Pad(capacities=(('dense1', 16),))
  """
  if spec.padded:
    return morphisms.identity()
  buckets = {g.name: bucket(g.size) for g in groups.growable(spec)}
  return morphisms.pad(buckets) if buckets else morphisms.identity()


def capacity(spec: Spec, padded: Spec) -> Morphism:
  """The move that pads the groups of `spec` to their sizes in `padded`.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> spec, wider = (seeds.mlp((4,), (n,), 3) for n in (9, 20))
    >>> capacity(spec, morphisms.respec(padding(wider), wider))
    Pad(capacities=(('dense1', 32),))
  """
  if spec == padded:
    return morphisms.identity()
  sizes, own = groups.table(padded).groups, groups.table(spec).groups
  return morphisms.pad(
    {name: sizes[name].size for name in padded.padded if name in own}
  )


class Batch(NamedTuple):
  """Members that are trained or measured by one program.

  Attributes:
    members: their numbers.
    spec: the padded spec at which all of them are stored.
    over: the form, of `jaxnas.forms`: lifts a function of one member to
      one of stacked members.
    slots: places for members on each device; the program is compiled for
      their number, so few different ones should occur.
  """

  members: tuple[int, ...]
  spec: Spec
  over: Callable[..., Any]
  slots: int


# `plan(specs, devices=..., batch=..., passes=...) -> batches`: `strategy`.
Plan = Callable[..., Sequence[Batch]]

# Seconds to compile a program, and operations a second, of small networks on
# two cores; the members in one call, the weights for which there may be slots
# that stay empty, and the bytes of activations that members side by side need.
_COMPILING = 2.0
_SPEED = 5e10

# Programs' compilations that padding must cost before exact widths get their
# own: they are likely to change, and then compile again.
_WORTH = 10
_SLOTS = 64
_SPARE = 1 << 18
_ACTIVATIONS = 4 << 30


def strategy(
  specs: Sequence[Spec], *, devices: int, batch: int, passes: int
) -> list[Batch]:
  """Which members are trained together, stored how, and in which form.

  Members of equal buckets share a program. Members of one graph whose buckets
  differ are stored at the larger ones of both where the operations that this
  adds take less time than compiling another program; what is computed is the
  same but for rounding. Members with dropout are not, because what it draws
  depends on the capacity. Where padding to buckets would cost more than 20
  seconds, a training of hours, members are stored at their exact widths.

  On CPU the members run `forms.in_turn`, elsewhere `at_once`. Milliseconds of
  CPU time for a member's training step (Adam, batch 64, one core of an EPYC
  that other programs used as well):

  | network                          | P  | in_turn | at_once | PyTorch |
  |----------------------------------|----|---------|---------|---------|
  | MLP 32-64-64-10                  | 16 | 0.043   | 0.041   | 0.30    |
  | convolutions 3-16-32-32, 32 x 32 | 1  | 85      |         | 50-70   |

  Side by side, members need the memory of all of them, and a first call of
  four such convolutional networks took 38 s where in turn it took 10; in
  turn, a member is computed by the same instructions however many there are.
  Of `at_once` on a GPU nothing is measured: it is a guess that vectorising
  wins there. `docs/performance.md` has the rest.

  Args:
    specs: of the members.
    devices: over how many devices members are dealt out.
    batch: examples at a time.
    passes: examples that pass forward through each member; one that is
      trained on counts three times.

  Returns:
    Batches that have every member once.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> specs = [seeds.mlp((4,), (n,), 3) for n in (3, 9, 4)]
    >>> work = dict(devices=1, batch=64, passes=1000)
    >>> [b.members for b in strategy(specs, **work)]
    [(0, 1, 2)]
    >>> [b.members for b in apart(specs, **work)]
    [(0, 2), (1,)]
    >>> [len(b.spec.padded) for b in strategy(specs[1:2], **work)]
    [1]
    >>> work['passes'] = 10**12
    >>> [len(b.spec.padded) for b in strategy(specs[1:2], **work)]
    [0]
  """
  held = _exact(_structures(specs), specs, passes)
  shared: dict[Spec, list[int]] = {}
  # The largest first: what is smaller may find room in it.
  for spec in sorted(held, key=_operations, reverse=True):
    members = held[spec]
    room = [(_united(spec, other), other) for other in shared]
    added = {
      (both, other): _operations(both) * (len(members) + len(shared[other]))
      - _operations(spec) * len(members)
      - _operations(other) * len(shared[other])
      for both, other in room
      if both is not None
    }
    best = min(added, key=added.get, default=None)
    if best is None or added[best] * passes / _SPEED > _COMPILING:
      shared[spec] = members
      continue
    both, other = best
    members = sorted(members + shared.pop(other))
    shared[both] = sorted(members + shared.get(both, []))
  return _batches(shared, devices, batch)


def apart(
  specs: Sequence[Spec], *, devices: int, batch: int, passes: int
) -> list[Batch]:
  """The plan that never shares a program between different buckets.

  What becomes of a member is then, `in_turn`, the same to the last bit with
  whatever others. Arguments and example as of `strategy`.
  """
  del passes
  return _batches(_structures(specs), devices, batch)


def _structures(specs: Sequence[Spec]) -> dict[Spec, list[int]]:
  """The members of each padded spec."""
  held: dict[Spec, list[int]] = {}
  for i, spec in enumerate(specs):
    held.setdefault(morphisms.respec(padding(spec), spec), []).append(i)
  return held


def _exact(held, specs, passes) -> dict[Spec, list[int]]:
  """Structures of which those that are padded at great cost are not padded."""
  found: dict[Spec, list[int]] = {}
  for padded, members in held.items():
    alike: dict[Spec, list[int]] = {}
    for i in members:
      alike.setdefault(specs[i], []).append(i)
    for spec, own in alike.items():
      added = (_operations(padded) - _operations(spec)) * len(own)
      dear = added * passes / _SPEED > _WORTH * _COMPILING
      found.setdefault(spec if dear else padded, []).extend(own)
  return {spec: sorted(members) for spec, members in found.items()}


def _batches(held, devices: int, batch: int) -> list[Batch]:
  """Batches of members of the same padded spec, as large as memory allows."""
  over = forms.form()
  found = []
  for spec, members in sorted(held.items(), key=lambda item: item[1]):
    most = _SLOTS
    if over is forms.at_once:
      # Activations of both directions; weights are small beside them.
      needed = 8 * batch * sum(math.prod(s) for s in spec.shapes.values())
      most = max(1, min(most, _ACTIVATIONS // needed))
    # A power of two, so that few programs differ in their number only.
    most = 1 << (most.bit_length() - 1)
    for start in range(0, len(members), most * devices):
      part = tuple(members[start : start + most * devices])
      each = -(-len(part) // devices)
      slots = max(1 << (each - 1).bit_length(), _least(spec, over))
      found.append(Batch(part, spec, over, slots))
  return found


def _least(spec: Spec, over: Callable[..., Any]) -> int:
  """Slots at least: those that stay empty in turn are not run.

  As many as hold few weights, up to eight, so that small networks, which take
  far longer to compile than to train, are compiled once for one and for eight.
  """
  if over is not forms.in_turn:
    return 1
  room = _SPARE // max(1, network.param_count(spec))
  return 1 << (min(max(room, 1), 8).bit_length() - 1)


@functools.lru_cache(maxsize=4096)
def _operations(spec: Spec) -> int:
  """Floating-point operations of a forward pass, padding counted."""
  return sum(
    2
    * math.prod(spec.shapes[node.name])
    * math.prod(getattr(node.op, 'kernel', ()))
    * spec.shapes[node.inputs[0]][-1]
    for node in spec.nodes
    if node.op.kind == 'mixing'
  )


@functools.lru_cache(maxsize=4096)
def _united(one: Spec, two: Spec) -> Spec | None:
  """The padded spec with room for both; None for what must stay apart."""
  if one.padded != two.padded or not one.padded:
    return None
  if one.optional or two.optional:
    return None  # Both sides of what may be absent have one width.
  if any(isinstance(node.op, Dropout) for node in one.nodes):
    return None
  sizes = [groups.table(spec).groups for spec in (one, two)]
  if any(name not in sizes[1] for name in one.padded):
    return None
  most = {n: max(sizes[0][n].size, sizes[1][n].size) for n in one.padded}
  both = groups.resized(one, most)
  return both if both == groups.resized(two, most) else None


def places(group: Batch, mesh) -> tuple[np.ndarray, np.ndarray]:
  """The member in every slot of the mesh, and how many each device has.

  Slots beyond a device's share repeat the first member, which is a network
  that can be computed; what comes of them is not read.
  """
  shares = meshes.deal(len(group.members), mesh)
  where = np.zeros((len(shares), group.slots), int)
  for row, share in zip(where, shares):
    if len(share) > group.slots:
      raise ValueError(
        f'{len(group.members)} members on {len(shares)} devices do not fit '
        f'into slots={group.slots}.'
      )
    row[: len(share)] = share
  return where.ravel(), np.asarray([len(share) for share in shares], np.int32)


def firsts(where: np.ndarray) -> list[int]:
  """The slot of each member."""
  return list(np.unique(where, return_index=True)[1])


def stack(trees: Sequence[Any], where: np.ndarray) -> Any:
  """Equal pytrees as one with a leading axis of slots, on the host."""
  return jax.tree.map(
    lambda *leaves: np.stack([leaves[i] for i in where]), *trees
  )


def shapes(member: Any, group: Batch, mesh) -> tuple[Any, ...]:
  """Shapes of `stack` of members like this one, and of their counts."""
  devices = mesh.shape[meshes.POPULATION]
  return meshes.spread_shapes(
    (
      *jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
          (devices * group.slots, *leaf.shape), leaf.dtype
        ),
        member,
      ),
      jax.ShapeDtypeStruct((devices,), np.int32),
    ),
    mesh,
  )
