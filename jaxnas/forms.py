"""How members run: in turn or side by side, on every device its own."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxnas import mesh as meshes
from jaxnas import programs


def form() -> Callable[..., Any]:
  """How members run where no plan says it: `in_turn` on CPU, else `at_once`.

  `jaxnas.plans.strategy` has the figures.
  """
  return in_turn if jax.default_backend() == 'cpu' else at_once


def in_turn(f: Callable[..., Any]) -> Callable[..., Any]:
  """Members one after another in one program; a form for `Batch.over`.

  Args:
    f: `f(carry, read, shared) -> (carry, out)` of one member.

  Returns:
    `each(carry, read, count, shared) -> (carry, out)` of stacked members, of
    which it runs the first `count` and leaves the others as they are, their
    `out` zero. The memory for intermediate values is that of one member.

  Example:
    >>> each = in_turn(lambda carry, read, shared: (carry + read, carry))
    >>> carry, out = each(jnp.ones(4), jnp.arange(4.0), 2, ())
    >>> carry.tolist(), out.tolist()
    ([1.0, 2.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0])
  """

  def each(carry, read, count, shared):
    def body(i, held):
      own = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False),
        (held[0], read),
      )
      return jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, i, 0),
        held,
        f(*own, shared),
      )

    first = jax.tree.map(lambda leaf: leaf[0], (carry, read))
    slots = len(jax.tree.leaves(read)[0])
    out = jax.tree.map(
      lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype),
      jax.eval_shape(f, *first, shared)[1],
    )
    return jax.lax.fori_loop(0, count, body, (carry, out))

  return each


def at_once(f: Callable[..., Any]) -> Callable[..., Any]:
  """Members side by side, by `jax.vmap`; a form for `Batch.over`.

  Args and returns as of `in_turn`, but all slots are run, and the memory for
  intermediate values is that of all of them.
  """

  def each(carry, read, count, shared):
    del count
    return jax.vmap(f, in_axes=(0, 0, None))(carry, read, shared)

  return each


def on_mesh(each, mesh):
  """Runs `each` on every device's own members: no device waits for another.

  Args:
    each: as `in_turn` and `at_once` make it.
    mesh: the devices; the members are dealt out over its `population` axis.

  Returns:
    `all(carry, read, counts, shared)`, as `each` but with (devices,) counts.
  """
  dealt = PartitionSpec(meshes.POPULATION)
  return jax.shard_map(
    lambda carry, read, counts, shared: each(carry, read, counts[0], shared),
    mesh=mesh,
    in_specs=(dealt, dealt, dealt, PartitionSpec()),
    out_specs=dealt,
    # The compiler spreads what is computed over the `data` axis.
    axis_names={meshes.POPULATION},
    check_vma=False,
  )


def compiler_options(mesh) -> dict[str, Any] | None:
  """XLA's options for a program on a mesh.

  Several CPU devices of a process share its threads: each device's matrix
  products keep to one, or all of them wait for each other's.
  """
  shared = len(mesh.local_devices) > 1
  more = {'xla_cpu_multi_thread_eigen': False} if shared else {}
  return programs.options(**more)
