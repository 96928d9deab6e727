"""Keys that draw what JAX's own draw, by programs that are faster on CPU.

Where a search of a table is compiled, its draws are most of it: on CPU JAX
computes Threefry as a loop of five steps, which compiles little, and which
cannot be fused with what is drawn for. Unrolled, a search of many seeds takes
two thirds of the time, and half of the time to compile. On other devices JAX
unrolls too.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random as extend

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
_UINTS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32, 64: jnp.uint64}


def _block(key: Any, high: Any, low: Any) -> tuple[Any, Any]:
  """Threefry 2x32 with 20 rounds (Salmon et al. 2011) of counters."""
  words = key[0], key[1], key[0] ^ key[1] ^ _PARITY
  high, low = high + words[0], low + words[1]
  for group in range(5):
    for by in _ROTATIONS[group % 2]:
      high = high + low
      low = (low << np.uint32(by)) | (low >> np.uint32(32 - by))
      low = low ^ high
    high = high + words[(group + 1) % 3]
    low = low + words[(group + 2) % 3] + np.uint32(group + 1)
  return high, low


def _counted(key: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
  counters = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
  return _block(key, jnp.zeros_like(counters), counters)


def _seed(seed: Any) -> jax.Array:
  return jax.random.key_data(jax.random.key(seed, impl='threefry2x32'))


def _split(key: Any, shape: tuple[int, ...]) -> jax.Array:
  return jnp.stack(_counted(key, shape), axis=-1)


def _bits(key: Any, width: int, shape: tuple[int, ...]) -> jax.Array:
  high, low = _counted(key, shape)
  if width == 64:
    return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
  return (high ^ low).astype(_UINTS[width])


def _fold_in(key: Any, data: Any) -> jax.Array:
  data = jnp.asarray(data, jnp.uint32)
  return jnp.stack(_block(key, jnp.zeros_like(data), data))


@functools.cache
def _unrolled() -> Any:
  return extend.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name='unrolled_threefry',
    tag='uft',
  )


def quick(key: jax.Array) -> jax.Array:
  """The same key, or keys, with faster programs for what is drawn from it.

  Args:
    key: of `jax.random.key`, or an array of them.

  Returns:
    Keys from which the same is drawn; those of other generators as they are,
    and all where `jax_threefry_partitionable` is off.

  Example:
    >>> key = jax.random.key(3)
    >>> one, two = jax.random.bits(key), jax.random.bits(quick(key))
    >>> bool(one == two)
    True
  """
  plain = jax.random.key(0, impl='threefry2x32').dtype
  if key.dtype != plain or not jax.config.jax_threefry_partitionable:
    return key
  data = jax.random.key_data(key)
  return jax.random.wrap_key_data(data, impl=_unrolled())
