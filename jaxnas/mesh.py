"""Devices and processes: one mesh, and what lies where on it.

A mesh has the axes `population`, over which members are dealt out, and
`data`, over which the examples of a step are. It is made here and nowhere
else. With several processes every process holds the same values on its host,
makes the same calls in the same order, and gets the same results back.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

POPULATION, DATA = 'population', 'data'


def make(devices: Any = None, *, data: int = 1) -> Mesh:
  """A mesh of all devices of all processes.

  Args:
    devices: the devices; None for all there are.
    data: over how many devices to spread the examples of a step; the members
      are spread over the rest.

  Returns:
    A mesh of shape (devices / data, data) with the axes `population` and
    `data`, whose shardings the compiler propagates (`AxisType.Auto`).

  Raises:
    ValueError: if `data` does not divide the number of devices.

  Example:
    >>> make(jax.devices()[:1]).axis_names
    ('population', 'data')
  """
  devices = list(jax.devices() if devices is None else devices)
  if data < 1 or len(devices) % data:
    raise ValueError(
      f'mesh.make: data={data} must divide the number of devices, which is '
      f'{len(devices)}.'
    )
  return jax.make_mesh(
    (len(devices) // data, data),
    (POPULATION, DATA),
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def connect(
  address: str | None = None,
  processes: int | None = None,
  index: int | None = None,
) -> None:
  """Joins the processes of one run; before anything else is asked of JAX.

  Args:
    address: host and port of the first process; None where JAX finds all
      three out by itself (Cloud TPU, Slurm, Open MPI).
    processes: how many there are.
    index: which of them this is, from 0.
  """
  # Only the CPU reads it: its other implementation knows one process.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(address, processes, index)


def deal(members: int, mesh: Mesh) -> tuple[tuple[int, ...], ...]:
  """Which members each device along `population` gets: even shares.

  Example:
    >>> deal(3, make(jax.devices()[:1]))
    ((0, 1, 2),)
  """
  shares = np.array_split(np.arange(members), mesh.shape[POPULATION])
  return tuple(tuple(map(int, share)) for share in shares)


def spread(tree: Any, mesh: Mesh) -> Any:
  """Puts host arrays on the mesh, their leading axis over `population`.

  Args:
    tree: NumPy arrays with equal leading axes, a multiple of the mesh's; the
      same ones in every process.
    mesh: the mesh.
  """
  return _put(tree, NamedSharding(mesh, PartitionSpec(POPULATION)))


def spread_shapes(tree: Any, mesh: Mesh) -> Any:
  """The shapes, dtypes and shardings of what `spread` makes of a tree."""
  sharding = NamedSharding(mesh, PartitionSpec(POPULATION))
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype), sharding=sharding
    ),
    tree,
  )


def replicate(tree: Any, mesh: Mesh) -> Any:
  """Puts arrays on every device of the mesh; those that are there stay."""
  return _put(tree, NamedSharding(mesh, PartitionSpec()))


def _put(tree: Any, sharding: NamedSharding) -> Any:
  def put(leaf):
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
      return leaf
    if sharding.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    # Not `device_put`: with many processes it compares all values first.
    host = np.asarray(leaf)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
    return jax.make_array_from_callback(
      host.shape, sharding, lambda part: host[part]
    )

  return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
  """Arrays of a mesh as NumPy arrays, whole, in every process."""
  leaves = jax.tree.leaves(tree)
  if all(leaf.is_fully_addressable for leaf in leaves):
    return jax.device_get(tree)
  return jax.device_get(_gather(leaves[0].sharding.mesh)(tree))


@functools.lru_cache(maxsize=8)
def _gather(mesh: Mesh):
  return jax.jit(
    lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec())
  )
