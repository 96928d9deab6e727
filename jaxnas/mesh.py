"""Devices and processes: one mesh, and what lies where on it.

A mesh has the axes `population`, over which members are dealt out, and
`data`, over which the examples of a step are. It is made here and nowhere
else. With several processes every process holds the same values on its host,
makes the same calls in the same order, and gets the same results back; what
the world outside sees, files and messages, comes of the first one (`by_first`).
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

POPULATION, DATA = 'population', 'data'

_CHOSEN: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar(
  'mesh', default=None
)


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


@contextlib.contextmanager
def using(mesh: Mesh) -> Iterator[Mesh]:
  """Networks are trained on this mesh within, where no other is given.

  Where a search runs is not part of the search, as with `jax.default_device`.
  (`jax.set_mesh` says more: it spreads every array that is made within.)

  Example:
    >>> with using(make(jax.devices()[:1])) as mesh:
    ...   current() is mesh
    True
  """
  token = _CHOSEN.set(mesh)
  try:
    yield mesh
  finally:
    _CHOSEN.reset(token)


def current() -> Mesh:
  """The mesh of the innermost `using`; `make()` outside of any."""
  chosen = _CHOSEN.get()
  return make() if chosen is None else chosen


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


def is_first() -> bool:
  """Whether this is the process that writes and speaks for all."""
  return jax.process_index() == 0


def by_first(call: Callable[..., Any]) -> Callable[..., None]:
  """A function, such as one that writes a file, for the first process alone.

  The others go on without waiting.

  Example:
    >>> by_first(print)('once')
    once
  """

  @functools.wraps(call)
  def called(*args, **named) -> None:
    if is_first():
      call(*args, **named)

  return called


def first_then_all(call: Callable[[], Any]) -> Any:
  """Calls a function in the first process and then in all the others.

  Raises:
    ValueError: in the others, if it raises in the first.

  Example:
    >>> first_then_all(lambda: 'done')
    'done'
  """
  if jax.process_count() == 1:
    return call()
  from jax.experimental import multihost_utils

  failure, found = None, None
  if is_first():
    try:
      found = call()
    except Exception as error:  # Else the others would wait for ever.
      failure = error
  failed = multihost_utils.broadcast_one_to_all(np.bool_(failure is not None))
  if failure is not None:
    raise failure
  if failed:
    raise ValueError('the first process has failed; its message says why.')
  return found if is_first() else call()


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
  if sharding.is_fully_addressable:
    # All leaves at once take half the time of one after another.
    return jax.device_put(tree, sharding)

  def put(leaf):
    if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
      return leaf
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
