"""Spaces whose networks are numbered, so that a table can hold them all.

A genotype is an integer array, and everything asked of a space is a pure
function of one, which runs under `jit` and `vmap` (`base.ArraySpace`). Here are
the spaces of fixed length: choices that are independent of each other
(`independent`), listed ones (`listed`), and a list of networks of a space that
cannot be numbered (`among`). `jaxnas.spaces.tables` reads what was measured of
them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import ArraySpace, Key, check_counts

# How many children a crossover draws where not all of them are legal.
_TRIES = 8


def below(bits: Any, bound: Any) -> jax.Array:
  """Integers in 0..bound-1 from 32 random bits each.

  `floor(bits * bound / 2**32)`, so that a value is more likely than another by
  at most bound / 2**32. `jax.random.randint` takes twice the bits, and drawing
  them is much of the time of a search of a table.

  Args:
    bits: uint32 of any shape.
    bound: in 1..2**16, of a shape that broadcasts.

  Returns:
    int32, of the shape of both.

  Example:
    >>> bits = jax.random.bits(jax.random.key(0), (1000,))
    >>> drawn = below(bits, 3)
    >>> int(drawn.min()), int(drawn.max())
    (0, 2)
  """
  bits = jnp.asarray(bits, jnp.uint32)
  bound = jnp.asarray(bound, jnp.uint32)
  low = ((bits & 0xFFFF) * bound) >> 16
  return (((bits >> 16) * bound + low) >> 16).astype(jnp.int32)


def check_genotypes(name: str, options: Sequence[int], genotypes: Any) -> None:
  """Refuses arrays that hold something else than genotypes.

  Traced arrays have no values, so of these only the shape is looked at.

  Args:
    name: of the function that was given them, for the message.
    options: how many values each of the L positions may take.
    genotypes: (..., L).

  Raises:
    ValueError: saying what was given and what is legal.

  Example:
    >>> check_genotypes('params', (5, 5), [[2, 1], [2, 9]])
    Traceback (most recent call last):
      ...
    ValueError: params: a genotype is 2 whole numbers in 0..4, got [2, 9].
  """
  shape = np.shape(genotypes)
  if shape[-1:] != (len(options),):
    raise _no_genotype(name, options, f'shape {shape}')
  if isinstance(genotypes, jax.core.Tracer):
    return
  rows = np.asarray(genotypes).reshape(-1, len(options))
  whole = rows.dtype.kind in 'biu'
  wrong = ((rows < 0) | (rows >= np.array(options))).any(axis=1) | (not whole)
  if wrong.any():
    raise _no_genotype(name, options, rows[wrong][0].tolist())


def check_genotype(name: str, options: Sequence[int], genotype: Any) -> None:
  """`check_genotypes` of a single one, (L,).

  Example:
    >>> check_genotype('text', (5, 5), [0])
    Traceback (most recent call last):
      ...
    ValueError: text: a genotype is 2 whole numbers in 0..4, got shape (1,).
  """
  if np.ndim(genotype) != 1:
    raise _no_genotype(name, options, f'shape {np.shape(genotype)}')
  check_genotypes(name, options, genotype)


def _no_genotype(name: str, options: Sequence[int], got: Any) -> ValueError:
  if len(set(options)) == 1:
    legal = f'in 0..{options[0] - 1}'
  else:
    legal = f'of 0 or more, each below its place in {tuple(options)}'
  return ValueError(
    f'{name}: a genotype is {len(options)} whole numbers {legal}, got {got}.'
  )


def _checked(name: str, options: Sequence[int]) -> tuple[int, ...]:
  options = tuple(options)
  whole = all(isinstance(n, int) and n >= 1 for n in options)
  if not options or not whole or sum(options) == len(options):
    raise ValueError(
      f'{name}: options must be one whole number or more, each at least 1 and '
      f'one of them at least 2, got {options!r}.'
    )
  if sum(options) >= 2**16:
    raise ValueError(
      f'{name}: options add up to {sum(options)}, of 65535 at most.'
    )
  return options


def _edits(options: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
  """(N,) position and (N,) shift of every single edit."""
  edits = [
    (place, shift)
    for place, count in enumerate(options)
    for shift in range(1, count)
  ]
  places, shifts = np.array(edits, np.int32).T
  return places, shifts


def edited(options: Sequence[int]) -> Callable[[Any], jax.Array]:
  """All single edits of a genotype: one position has another of its values.

  Args:
    options: how many values each of the L positions may take.

  Returns:
    A function of one genotype, (L,), to (N, L) int32, N = sum(options) - L.

  Example:
    >>> edited((3, 2))(jnp.array([2, 0])).tolist()
    [[0, 0], [1, 0], [2, 1]]
  """
  places, shifts = _edits(options)
  by = np.zeros((len(places), len(options)), np.int32)
  by[np.arange(len(places)), places] = shifts
  counts = np.array(options, np.int32)[None]

  def neighbours(genotype: Any) -> jax.Array:
    return (jnp.asarray(genotype, jnp.int32)[None] + by) % counts

  return neighbours


def one_of(key: Key, genotypes: jax.Array, legal: jax.Array) -> jax.Array:
  """One of the legal genotypes, (N, L) and (N,), each as likely as another.

  Example:
    >>> some, legal = jnp.eye(3, dtype=int), jnp.array([False, True, False])
    >>> one_of(jax.random.key(0), some, legal).tolist()
    [0, 1, 0]
  """
  return genotypes[jax.random.categorical(key, jnp.where(legal, 0.0, -jnp.inf))]


def one_hot(options: Sequence[int]) -> Callable[[Any], jax.Array]:
  """The one-hot code of every position, one after another.

  Args:
    options: how many values each of the L positions may take.

  Returns:
    A function of one genotype, (L,), to (sum(options),) float32.

  Example:
    >>> one_hot((3, 2))(jnp.array([2, 0])).tolist()
    [0.0, 0.0, 1.0, 1.0, 0.0]
  """
  places = np.repeat(np.arange(len(options)), options)
  values = np.concatenate([np.arange(count) for count in options])

  def encode(genotype: Any) -> jax.Array:
    return (jnp.asarray(genotype)[places] == values).astype(jnp.float32)

  return encode


def _uniform(options: tuple[int, ...]) -> Callable[[Key], jax.Array]:
  counts = np.array(options, np.uint32)

  def sample(key: Key) -> jax.Array:
    return below(jax.random.bits(key, counts.shape), counts)

  return sample


def _crossed(bits: Any, one: Any, two: Any) -> jax.Array:
  """Each position of one parent or the other, by a bit of its own."""
  return jnp.where(bits >> 31 == 0, one, two)


def half_way(key: Key, one: Any, two: Any) -> jax.Array:
  """The first genotype with a random half of what the second has otherwise.

  Half of the positions in which they differ, rounded up, but not all of them:
  genotypes one edit apart have nothing in between, and the first is returned.
  It does not ask whether the child is legal.

  Example:
    >>> half_way(jax.random.key(0), jnp.zeros(6), jnp.ones(6)).sum()
    Array(3., dtype=float32)
  """
  one, two = jnp.asarray(one), jnp.asarray(two)
  differ = one != two
  apart = differ.sum()
  half = jnp.minimum((apart + 1) // 2, jnp.maximum(apart - 1, 0))
  luck = jnp.where(differ, jax.random.uniform(key, differ.shape), jnp.inf)
  takes = jnp.argsort(jnp.argsort(luck)) < half
  return jnp.where(takes, two, one)


def shortest_path_crossover(
  space: ArraySpace,
) -> Callable[[Key, Any, Any], jax.Array]:
  """A child half way on a shortest path of edits from one parent to the other.

  SEPX (Qiu and Miikkulainen, ICML 2023) where positions need no matching: a
  random half of those in which the parents differ are taken from the second
  (`half_way`). It is the first parent where none of eight such children is
  legal. For NAS-Bench-101, whose vertices have to be matched, see
  `nas_bench_101.shortest_path_crossover`, and for cells of two inputs
  `cell.shortest_path_crossover`.

  Args:
    space: which numbers its networks.

  Returns:
    A function of key and two (L,) genotypes, for `space._replace(crossover=)`.

  Raises:
    ValueError: for a space that does not number its networks.

  Example:
    >>> cross = shortest_path_crossover(transnas_micro())
    >>> cross(jax.random.key(0), jnp.zeros(6, int), jnp.arange(6) % 2).tolist()
    [0, 1, 0, 1, 0, 0]
  """
  if not space.size:
    raise ValueError(
      f'shortest_path_crossover: {space.name} does not number its networks; '
      'take `cell.shortest_path_crossover`.'
    )

  def cross(key: Key, one: Any, two: Any) -> jax.Array:
    keys = jax.random.split(key, _TRIES)
    children = jax.vmap(half_way, (0, None, None))(keys, one, two)
    legal = jax.vmap(space.index)(children) >= 0
    return jnp.where(legal.any(), children[jnp.argmax(legal)], one)

  return cross


def _number(options: tuple[int, ...]) -> Callable[[Any], jax.Array]:
  """The number that a genotype is in mixed radix, the first digit greatest."""
  radix = np.array(
    [math.prod(options[place + 1 :]) for place in range(len(options))],
    np.int32,
  )
  counts = np.array(options, np.int32)

  def number(genotype: Any) -> jax.Array:
    genotype = jnp.asarray(genotype, jnp.int32)
    legal = ((genotype >= 0) & (genotype < counts)).all()
    return jnp.where(legal, (genotype * radix).sum(), -1)

  return number


def independent(name: str, options: Sequence[int]) -> ArraySpace:
  """The space of all combinations of choices.

  The index of a genotype is the number that it is in mixed radix. An edit gives
  one position another value, each of the sum(options) - L edits being as
  likely; crossover takes each position from either parent.

  Args:
    name: of the space.
    options: how many values each of the L positions may take.

  Raises:
    ValueError: for options that leave no choice, or of which there are more
      than an index can tell apart.

  Example:
    >>> space = independent('small', (3, 2))
    >>> space.size, int(space.index(jnp.array([2, 1])))
    (6, 5)
    >>> around, legal = space.neighbours(jnp.array([0, 0]))
    >>> around.tolist(), bool(legal.all())
    ([[1, 0], [2, 0], [0, 1]], True)
  """
  options = _checked(name, options)
  size = math.prod(options)
  if size >= 2**31:
    raise ValueError(
      f'{name}: {size} networks cannot be numbered by 32 bits; this is for '
      'spaces with tables.'
    )
  places, shifts = _edits(options)
  counts = np.array(options, np.int32)
  positions = np.arange(len(options))
  around = edited(options)

  def mutate(key: Key, genotype: Any) -> jax.Array:
    edit = below(jax.random.bits(key), len(places))
    if len(set(options)) == 1:  # As looked up, and faster.
      place, shift = edit // (options[0] - 1), edit % (options[0] - 1) + 1
    else:
      place, shift = jnp.asarray(places)[edit], jnp.asarray(shifts)[edit]
    genotype = jnp.asarray(genotype, jnp.int32)
    return (genotype + jnp.where(positions == place, shift, 0)) % counts

  def crossover(key: Key, one: Any, two: Any) -> jax.Array:
    return _crossed(jax.random.bits(key, counts.shape), one, two)

  def neighbours(genotype: Any) -> tuple[jax.Array, jax.Array]:
    return around(genotype), jnp.ones(len(places), bool)

  return ArraySpace(
    name,
    options,
    size,
    _uniform(options),
    mutate,
    crossover,
    neighbours,
    one_hot(options),
    _number(options),
  )


def listed(
  name: str, options: Sequence[int], genotypes: np.ndarray
) -> ArraySpace:
  """The space of the given genotypes.

  The index of a genotype is its place in the list. An edit gives one position
  another value such that the result is listed, each such edit being as likely;
  crossover takes each position from either parent, and is the first parent
  where none of eight such children is listed.

  Args:
    name: of the space.
    options: how many values each of the L positions may take.
    genotypes: (size, L) integers, all different.

  Raises:
    ValueError: for genotypes that are not (size, L), not of the options, or
      not different.

  Example:
    >>> space = listed('diagonal', (2, 2), np.array([[0, 0], [0, 1], [1, 1]]))
    >>> int(space.index(jnp.array([1, 1]))), int(space.index(jnp.array([1, 0])))
    (2, -1)
    >>> space.mutate(jax.random.key(0), jnp.array([0, 0])).tolist()
    [0, 1]
  """
  options = _checked(name, options)
  genotypes = np.asarray(genotypes)
  total, size = math.prod(options), len(genotypes)
  if genotypes.ndim != 2 or genotypes.shape[1] != len(options):
    raise ValueError(
      f'{name}: genotypes must be (size, {len(options)}), got shape '
      f'{genotypes.shape}.'
    )
  if total > 2**24 or not 1 <= size < 2**16:
    raise ValueError(
      f'{name}: lists are of 1 to {2**16 - 1} genotypes, of {2**24} '
      f'combinations at most, got {size} of {total}.'
    )
  if (genotypes < 0).any() or (genotypes >= np.array(options)).any():
    raise ValueError(f'{name}: some genotypes are not of the options.')
  rows = np.full(total, -1, np.int32)
  rows[np.ravel_multi_index(genotypes.T, options)] = np.arange(size)
  if (rows >= 0).sum() != size:
    raise ValueError(f'{name}: some genotypes are listed twice.')
  all_ = genotypes.astype(np.int32)
  number, around = _number(options), edited(options)

  def index(genotype: Any) -> jax.Array:
    found = number(genotype)
    return jnp.where(found < 0, -1, jnp.asarray(rows)[found])

  def neighbours(genotype: Any) -> tuple[jax.Array, jax.Array]:
    near = around(genotype)
    return near, jax.vmap(index)(near) >= 0

  def sample(key: Key) -> jax.Array:
    return jnp.asarray(all_)[below(jax.random.bits(key), size)]

  def mutate(key: Key, genotype: Any) -> jax.Array:
    near, legal = neighbours(genotype)
    drawn = below(jax.random.bits(key), jnp.maximum(legal.sum(), 1))
    return near[jnp.argmax(jnp.cumsum(legal) > drawn)]

  def crossover(key: Key, one: Any, two: Any) -> jax.Array:
    bits = jax.random.bits(key, (_TRIES, len(options)))
    children = jax.vmap(_crossed, (0, None, None))(bits, one, two)
    legal = jax.vmap(index)(children) >= 0
    return jnp.where(legal.any(), children[jnp.argmax(legal)], one)

  return ArraySpace(
    name,
    options,
    size,
    sample,
    mutate,
    crossover,
    neighbours,
    one_hot(options),
    index,
  )


def among(
  space: ArraySpace, name: str, genotypes: np.ndarray, *, near: int = 24
) -> ArraySpace:
  """The listed networks of a space that is too large to be numbered.

  Of such a space a benchmark measures a sample, in which hardly any two
  networks are one edit apart. So an edit here leads to one of the `near` listed
  networks whose codes (`space.encode`) are closest, each as likely, ties drawn
  once; and a child is the listed network closest to what the space's crossover
  makes, its parents excepted. The index of a network is its place in the list.

  Args:
    space: of the networks; its codes tell them apart.
    name: of the listed ones.
    genotypes: (size, L), all different networks.
    near: how many neighbours each has; all others where there are fewer.

  Raises:
    ValueError: for genotypes that are not (size, L), not of the options, fewer
      than three or more than 65,535, of which two have one code, and for a
      `near` below one.

  Example:
    >>> few = np.array([[0, 0, 0], [2, 2, 2], [0, 0, 1]])
    >>> space = among(independent('cube', (3,) * 3), 'few', few, near=1)
    >>> int(space.index(few[1])), int(space.index(few[1] - 1))
    (1, -1)
    >>> space.mutate(jax.random.key(0), few[0]).tolist()
    [0, 0, 1]
  """
  check_counts('among', near=near)
  genotypes = np.asarray(genotypes)
  size = len(genotypes) if genotypes.ndim == 2 else 0
  if not 3 <= size < 2**16:
    raise ValueError(
      f'{name}: lists are of 3 to {2**16 - 1} genotypes (size, '
      f'{len(space.options)}), got shape {genotypes.shape}.'
    )
  check_genotypes(name, space.options, genotypes)
  all_ = genotypes.astype(np.int32)
  codes = np.asarray(jax.jit(jax.vmap(space.encode))(all_))
  _, first, which = np.unique(
    codes, axis=0, return_index=True, return_inverse=True
  )
  twice = np.flatnonzero(first[which.ravel()] != np.arange(size))
  if twice.size:
    raise ValueError(
      f'{name}: rows {first[which.ravel()][twice[0]]} and {twice[0]} are the '
      f'same network of {space.name}.'
    )
  closest = _closest(codes, min(near, size - 1))
  lengths, options = (codes**2).sum(axis=1), np.array(space.options)

  def apart(genotype: Any) -> jax.Array:
    """Squared distances of codes, but for what is common to all."""
    return lengths - 2 * (codes @ space.encode(genotype))

  def index(genotype: Any) -> jax.Array:
    genotype = jnp.asarray(genotype, jnp.int32)
    row = jnp.argmin(apart(genotype)).astype(jnp.int32)
    legal = ((genotype >= 0) & (genotype < options)).all()
    same = (jnp.asarray(codes)[row] == space.encode(genotype)).all()
    return jnp.where(legal & same, row, -1)

  def neighbours(genotype: Any) -> tuple[jax.Array, jax.Array]:
    rows = jnp.asarray(closest)[jnp.argmin(apart(genotype))]
    return jnp.asarray(all_)[rows], jnp.ones(rows.shape, bool)

  def sample(key: Key) -> jax.Array:
    return jnp.asarray(all_)[below(jax.random.bits(key), size)]

  def mutate(key: Key, genotype: Any) -> jax.Array:
    around, _ = neighbours(genotype)
    return around[below(jax.random.bits(key), len(around))]

  def crossover(key: Key, one: Any, two: Any) -> jax.Array:
    distance = apart(space.crossover(key, jnp.asarray(one), jnp.asarray(two)))
    parents = jnp.stack([jnp.argmin(apart(one)), jnp.argmin(apart(two))])
    distance = distance.at[parents].set(jnp.inf)
    return jnp.asarray(all_)[jnp.argmin(distance)]

  return ArraySpace(
    name,
    space.options,
    size,
    sample,
    mutate,
    crossover,
    neighbours,
    space.encode,
    index,
  )


def _closest(codes: np.ndarray, near: int) -> np.ndarray:
  """(size, near) rows of the closest codes to each, other than itself."""
  luck, lengths = np.random.default_rng(0), (codes**2).sum(axis=1)
  found = []
  for row, code in enumerate(codes):
    apart = lengths - 2 * (codes @ code)
    order = np.lexsort((luck.random(len(codes)), apart))
    found.append(order[order != row][:near])
  return np.stack(found).astype(np.int32)


@functools.cache
def transnas_micro() -> ArraySpace:
  """The cells of TransNAS-Bench-101 micro, 4,096 of them.

  Duan et al. (2021). The graph and the order of edges of NAS-Bench-201
  (`nas_bench_201.space`), with four ops: 0 none, 1 skip, 2 convolution 1x1,
  3 convolution 3x3. What they cost is in `jaxnas.spaces.transnas_bench`.

  Example:
    >>> transnas_micro().size
    4096
  """
  return independent('transnas_micro', (4,) * 6)


@functools.cache
def transnas_macro() -> ArraySpace:
  """The skeletons of TransNAS-Bench-101 macro, 3,256 of them.

  Duan et al. (2021). Four to six modules: 1 plain, 2 doubles the channels, 3
  halves the resolution, 4 does both; one to three of them double the channels
  and one to four halve the resolution. Shorter ones are filled up by 0 at the
  end. An edit changes a module, adds one at the end or removes the last.

  Example:
    >>> space = transnas_macro()
    >>> space.size, int(space.index(jnp.array([1, 1, 1, 4, 0, 0]))) >= 0
    (3256, True)
    >>> int(space.index(jnp.array([1, 1, 1, 0, 4, 0])))  # A gap.
    -1
  """
  modules = [
    filled + (0,) * (6 - len(filled))
    for length in (4, 5, 6)
    for filled in itertools.product(range(1, 5), repeat=length)
    if 1 <= sum(module in (3, 4) for module in filled) <= 4
    and 1 <= sum(module in (2, 4) for module in filled) <= 3
  ]
  return listed('transnas_macro', (5,) * 6, np.array(sorted(modules)))


@functools.cache
def nas_bench_macro() -> ArraySpace:
  """The networks of NAS-Bench-Macro, 6,561 of them.

  Su et al. (2021, arXiv 2103.11922): 8 layers, each 0 identity, 1 an inverted
  residual of kernel 3 and expansion 3, or 2 one of kernel 5 and expansion 6.
  What they cost is in `jaxnas.spaces.nas_bench_macro`.

  Example:
    >>> nas_bench_macro().size
    6561
  """
  return independent('nas_bench_macro', (3,) * 8)
