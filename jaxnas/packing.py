"""Pytrees as one vector for each type of number.

A program that takes a network apart leaf by leaf has a kernel for each of them,
and compiling kernels is what small programs take their time for.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Layout(NamedTuple):
  """What a pytree is but its numbers; hashable.

  Attributes:
    structure: the tree.
    leaves: of each leaf, its shape and the name of its dtype.
  """

  structure: Any
  leaves: tuple[tuple[tuple[int, ...], str], ...]


def layout(tree: Any) -> Layout:
  """The layout of a pytree of arrays, at the dtypes they have on devices.

  Example:
    >>> layout({'w': np.ones((2, 3)), 'n': np.int32(1)}).leaves
    (((), 'int32'), ((2, 3), 'float32'))
  """
  leaves, structure = jax.tree.flatten(tree)
  return Layout(structure, tuple((np.shape(x), _dtype(x)) for x in leaves))


def _dtype(leaf: Any) -> str:
  return _canonical(leaf.dtype, jax.config.jax_enable_x64)


@functools.lru_cache(maxsize=64)
def _canonical(dtype: Any, x64: bool) -> str:
  del x64  # On which the answer depends.
  return jax.dtypes.canonicalize_dtype(dtype).name


def pack(
  tree: Any, join: Callable[..., Any] = np.concatenate
) -> dict[str, Any]:
  """The numbers of a pytree, in its order: a vector for each dtype.

  Args:
    tree: arrays.
    join: `np.concatenate`, or `jnp.concatenate` for arrays that are traced.

  Example:
    >>> pack({'w': np.ones((2, 2)), 'n': np.int32(7)})
    {'int32': array([7], dtype=int32), 'float32': array([1., 1., 1., 1.],...
  """
  found: dict[str, list[Any]] = {}
  for leaf in jax.tree.leaves(tree):
    name = _dtype(leaf)
    found.setdefault(name, []).append(leaf.reshape(-1).astype(name))
  return {name: join(parts) for name, parts in found.items()}


def unpack(tree: Layout, vectors: Mapping[str, Any]) -> Any:
  """The pytree whose numbers `pack` has made vectors of.

  Args:
    tree: its layout.
    vectors: NumPy's or JAX's; leaves are views of the former.

  Example:
    >>> tree = {'w': np.ones((2, 3), np.float32), 'n': np.int32(7)}
    >>> unpack(layout(tree), pack(tree))['w'].shape
    (2, 3)
  """
  starts = dict.fromkeys(vectors, 0)
  leaves = []
  for shape, name in tree.leaves:
    start = starts[name]
    starts[name] = stop = start + math.prod(shape)
    leaves.append(vectors[name][start:stop].reshape(shape))
  return jax.tree.unflatten(tree.structure, leaves)
