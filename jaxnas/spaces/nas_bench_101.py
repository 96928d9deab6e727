"""NAS-Bench-101: cells that are labelled graphs, up to isomorphism.

Ying, Klein, Christiansen, Real, Murphy and Hutter 2019 (arXiv 1902.09635). A
cell is a directed acyclic graph of at most seven vertices and nine edges from
an input to an output, with one of three operations at each inner vertex. A
genotype always has seven vertices, 0 for the input and 6 for the output:

    21 bits     the edges x -> y, x < y, at x + y (y - 1) / 2
    5 integers  the operations of vertices 1 to 5, see `OPS`

Vertices that are not on a path from input to output do not count, as in the
benchmark: genotypes that differ in them alone are one network. Which networks
are the same is found by trying all 120 orders of the inner vertices at once,
so `index` runs under `jit` and `vmap` like everything else here.
"""

import functools
import hashlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import ArraySpace, Key
from jaxnas.spaces import tabular

# What a vertex does, in the order of the official hash.
OPS = ('conv3x3', 'conv1x1', 'maxpool3x3')

VERTICES, EDGES, NETWORKS = 7, 9, 423_624
OPTIONS = (2,) * 21 + (len(OPS),) * 5

# The edges x -> y in the order of their bits.
_PAIRS = tuple((x, y) for y in range(VERTICES) for x in range(y))
_SOURCES, _TARGETS = (np.array(side) for side in zip(*_PAIRS))
_INNER = VERTICES - 2
_ABSENT = len(OPS)  # The operation, in codes, of a vertex that is not there.
_ILLEGAL = np.iinfo(np.int32).max


def matrix(genotype: jax.Array) -> jax.Array:
  """The edges of a genotype as a matrix, (7, 7) booleans, from row to column.

  Example:
    >>> [tuple(map(int, edge)) for edge in np.argwhere(matrix(cell('0-6')))]
    [(0, 6)]
  """
  edges = jnp.zeros((VERTICES, VERTICES), bool)
  return edges.at[_SOURCES, _TARGETS].set(genotype[: len(_PAIRS)] > 0)


def cell(edges: str, ops: str = '') -> jax.Array:
  """The genotype of a cell written down.

  Args:
    edges: `'0-1 1-6 ...'`, source and target; 0 is the input and 6 the output,
      however many vertices there are between.
    ops: the operations of vertices 1, 2, ..., of `OPS`.

  Raises:
    ValueError: for edges that do not point up, and operations that there are
      not.

  Example:
    >>> int(param_count(cell('0-1 1-6', 'conv3x3')))
    10177674
  """
  pairs = [tuple(map(int, edge.split('-'))) for edge in edges.split()]
  wrong = [pair for pair in pairs if pair not in _PAIRS]
  if wrong or len(ops.split()) > _INNER or not {*ops.split()} <= {*OPS}:
    raise ValueError(
      f'cell: edges must be source-target with 0 <= source < target <= 6 and '
      f'ops at most {_INNER} of {", ".join(OPS)}; got {edges!r}, {ops!r}.'
    )
  bits = [int(pair in pairs) for pair in _PAIRS]
  codes = [OPS.index(op) for op in ops.split()]
  return jnp.array(bits + codes + [0] * (_INNER - len(codes)), jnp.int32)


def _alive(edges: jax.Array) -> jax.Array:
  """(7,) which vertices lie on a path from the input to the output."""

  def step(_, reached):
    ahead, behind = reached
    ahead |= (edges & ahead[:, None]).any(axis=0)
    behind |= (edges & behind[None]).any(axis=1)
    return ahead, behind

  vertices = jnp.arange(VERTICES)
  start = vertices == 0, vertices == VERTICES - 1
  # A loop, because unrolled it takes XLA seconds to compile.
  ahead, behind = jax.lax.fori_loop(0, VERTICES - 1, step, start)
  return ahead & behind


def _pruned(edges, ops):
  """Edges between living vertices, and the operations, absent for the dead."""
  alive = _alive(edges)
  kept = edges & alive[:, None] & alive[None]
  return kept, jnp.where(alive[1:-1], ops, _ABSENT)


def _parts(genotype):
  return _pruned(matrix(genotype), genotype[len(_PAIRS) :])


_jitted_parts = jax.jit(_parts)


def prune(genotype: jax.Array) -> jax.Array:
  """The genotype without the vertices that do nothing.

  Their edges go, and their operations become 0. The vertices that stay keep
  their places.

  Example:
    >>> whole = prune(cell('0-1 1-2 0-6', 'conv1x1 maxpool3x3'))
    >>> bool((whole == cell('0-6')).all())
    True
  """
  edges, ops = _parts(genotype)
  bits = edges[_SOURCES, _TARGETS].astype(jnp.int32)
  return jnp.concatenate([bits, jnp.where(ops == _ABSENT, 0, ops)])


def legal(genotype: jax.Array) -> jax.Array:
  """Whether input and output are connected, by at most nine edges.

  Edges that lead nowhere do not count. What is not of `OPTIONS` is not legal.

  Example:
    >>> bool(legal(cell('0-1 1-6'))), bool(legal(cell('0-1 2-6')))
    (True, False)
  """
  return _inside(genotype) & _connected(_parts(genotype)[0])


def _inside(genotype):
  return ((genotype >= 0) & (genotype < np.array(OPTIONS))).all()


def _connected(edges):
  count = edges.sum()
  return (count > 0) & (count <= EDGES)


@functools.cache
def _orders():
  """How each order of the inner vertices reads a graph, as linear maps.

  Returns:
    Weights (49, 120) of edges in the code, (49, 120) of edges that would point
    down, (5, 120) of operations, and (120, 7) the vertices' new numbers. All
    weights are powers of two, which any precision of a product keeps.
  """
  orders = np.array(list(itertools.permutations(range(_INNER))))
  places = np.pad(orders + 1, ((0, 0), (1, 1)))
  places[:, -1] = VERTICES - 1
  bits = np.zeros((VERTICES, VERTICES), np.float32)
  bits[_SOURCES, _TARGETS] = 2.0 ** np.arange(len(_PAIRS))
  read = bits[places[:, :, None], places[:, None, :]]
  down = (places[:, :, None] >= places[:, None, :]).astype(np.float32)
  ops = 4.0**orders
  flat = (len(orders), -1)
  return (
    read.reshape(flat).T,
    down.reshape(flat).T,
    ops.T.astype(np.float32),
    places,
  )


def _code(edges, ops):
  """The least number that any order of the inner vertices writes down."""
  read, down, weights, _ = _orders()
  flat = edges.reshape(-1).astype(jnp.float32)
  bits = (flat @ read).astype(jnp.int32)
  labels = (ops.astype(jnp.float32) @ weights).astype(jnp.int32)
  upward = (flat @ down) == 0
  codes = jnp.where(upward, bits * 4**_INNER + labels, _ILLEGAL)
  return codes.min()


def code(genotype: jax.Array) -> jax.Array:
  """A number that two genotypes share if and only if they are one network.

  It holds the edges (21 bits) and operations (2 bits each) of the pruned cell
  in the order of its inner vertices that makes it least. For an illegal
  genotype it is the largest int32.

  Example:
    >>> same = [cell('0-1 0-2 1-6 2-6', ops) for ops in
    ...         ('conv1x1 maxpool3x3', 'maxpool3x3 conv1x1')]
    >>> int(code(same[0])) == int(code(same[1]))
    True
  """
  edges, ops = _parts(genotype)
  good = _inside(genotype) & _connected(edges)
  return jnp.where(good, _code(edges, ops), _ILLEGAL)


def decode(number: jax.Array) -> jax.Array:
  """The genotype that a code writes down: of all isomorphic ones the first.

  Example:
    >>> whole = cell('0-3 3-6', 'conv3x3 conv3x3 maxpool3x3')
    >>> first = decode(code(whole))
    >>> int(code(first)) == int(code(whole)), int(first[:21].sum())
    (True, 2)
  """
  bits = (number >> (2 * _INNER + jnp.arange(len(_PAIRS)))) & 1
  ops = (number >> (2 * jnp.arange(_INNER))) & 3
  return jnp.concatenate([bits, jnp.where(ops == _ABSENT, 0, ops)])


_codes = jax.jit(jax.vmap(code))


def codes(genotypes, batch: int = 8192) -> np.ndarray:
  """`code` of many genotypes, (N, 26) to (N,), `batch` of them at a time.

  On the host's loop: on CPU a matrix product in a loop of XLA's is forty times
  slower.
  """
  rows = np.asarray(genotypes)
  padded = np.pad(rows, ((0, -len(rows) % batch), (0, 0)))
  parts = padded.reshape(-1, batch, len(OPTIONS))
  found = [np.asarray(_codes(part.astype(np.int32))) for part in parts]
  return np.concatenate([*found, np.zeros(0, np.int32)])[: len(rows)]


def enumerate_cells(vertices: int) -> np.ndarray:
  """Every labelled cell in which so many vertices all do something.

  Args:
    vertices: 2 to 7, with input and output.

  Returns:
    (N, 26) integers, N = 1, 6, 90, 3267, 125145, 1164699; many are isomorphic:
    1, 6, 84, 2441, 62010, 359082 are not.

  Raises:
    ValueError: for another number of vertices.

  Example:
    >>> len(enumerate_cells(4)), len(np.unique(codes(enumerate_cells(4))))
    (90, 84)
  """
  if not 2 <= vertices <= VERTICES:
    raise ValueError(
      f'enumerate_cells: vertices must be 2 to {VERTICES}, got {vertices}.'
    )
  inner = vertices - 2
  used = [*range(vertices - 1), VERTICES - 1]
  places = [i for i, (x, y) in enumerate(_PAIRS) if x in used and y in used]
  numbers = np.arange(1 << len(places), dtype=np.int32)
  bits = np.zeros((len(numbers), len(_PAIRS)), np.int8)
  for i, place in enumerate(places):
    bits[:, place] = (numbers >> i) & 1
  bits = bits[bits.sum(axis=1) <= EDGES]
  # Edges point up: a vertex with an edge from below and one to above, all the
  # way, is on a path.
  into = {y: bits[:, _TARGETS == y].any(axis=1) for y in used[1:]}
  out = {x: bits[:, _SOURCES == x].any(axis=1) for x in used[:-1]}
  bits = bits[np.all([*into.values(), *out.values()], axis=0)]
  labels = np.zeros((len(OPS) ** inner, _INNER), np.int8)
  labels[:, :inner] = list(itertools.product(range(len(OPS)), repeat=inner))
  return np.concatenate(
    [np.repeat(bits, len(labels), axis=0), np.tile(labels, (len(bits), 1))],
    axis=1,
  )


def graph_hash(genotype) -> str:
  """The official hash of a cell, by which the benchmark orders its networks.

  Every vertex is named by its degrees and its operation, and then seven times
  (or as many as there are vertices) by its own name and those of the vertices
  before and behind it; the names together name the cell.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> graph_hash(cell('0-6'))[:8]
    '043721b9'
  """

  def digest(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

  tabular.check_genotype('graph_hash', OPTIONS, genotype)
  edges, ops = (np.asarray(part) for part in _jitted_parts(genotype))
  alive = [0, *(np.flatnonzero(ops != _ABSENT) + 1), VERTICES - 1]
  edges = edges[np.ix_(alive, alive)]
  labels = [-1, *(int(op) for op in ops if op != _ABSENT), -2]
  before = [np.flatnonzero(edges[:, v]) for v in range(len(alive))]
  behind = [np.flatnonzero(edges[v]) for v in range(len(alive))]
  names = [
    digest(str((len(out), len(into), label)))
    for out, into, label in zip(behind, before, labels)
  ]
  for _ in alive:
    joined = [
      [''.join(sorted(names[w] for w in side)) for side in sides]
      for sides in zip(before, behind)
    ]
    names = [
      digest('|'.join([*sides, name])) for sides, name in zip(joined, names)
    ]
  return digest(str(sorted(names)))


def vertex_channels(
  genotype: jax.Array, inputs: int, outputs: int
) -> jax.Array:
  """(7,) the channels of every vertex of a cell.

  The inner vertices that feed the output share its channels, as equal as can
  be, the first ones taking one more; every other vertex has the most that any
  vertex behind it has. Vertices that do nothing have 0.

  Args:
    genotype: of the cell.
    inputs: channels that the cell reads.
    outputs: channels that it writes.

  Example:
    >>> chain = cell('0-1 0-2 1-3 2-6 3-6')
    >>> vertex_channels(chain, 8, 15).tolist()
    [8, 7, 8, 7, 0, 0, 15]
  """
  edges, _ = _parts(genotype)
  feeds = edges[1:-1, -1]
  count = jnp.maximum(feeds.sum(), 1)
  extra = feeds & (jnp.cumsum(feeds) <= outputs % count)
  inner = jnp.where(feeds, outputs // count + extra, 0)
  for v in range(_INNER - 1, -1, -1):
    widest = jnp.where(edges[v + 1, 1:-1], inner, 0).max()
    inner = inner.at[v].set(jnp.where(feeds[v], inner[v], widest))
  ends = (jnp.array([size], inner.dtype) for size in (inputs, outputs))
  first, last = ends
  return jnp.concatenate([first, inner, last])


def param_count(
  genotype: jax.Array,
  *,
  channels: int = 128,
  stacks: int = 3,
  modules: int = 3,
  classes: int = 10,
  inputs: int = 3,
) -> jax.Array:
  """The trainable parameters of a cell's network, as the benchmark counts.

  It depends on the order of the vertices where channels cannot be shared
  equally, so isomorphic genotypes may differ a little; the benchmark has one
  of them in its table.

  Args:
    genotype: of the cell.
    channels: of the first stack; every other has twice those before.
    stacks: of cells, with halved resolution in between.
    modules: cells in each stack.
    classes: width of the output.
    inputs: channels of the image.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> int(param_count(cell('0-6')))
    882570
  """
  tabular.check_genotype('param_count', OPTIONS, genotype)
  edges, ops = _parts(genotype)
  kernels = jnp.array([9, 1, 0, 0])[ops]

  def units(kernel, a, b):
    """A convolution and the scale and bias of its norm."""
    return kernel * a * b + 2 * b * (kernel > 0)

  def module(reads, writes):
    wide = vertex_channels(genotype, reads, writes)
    inner = wide[1:-1]
    entry = jnp.where(edges[0, 1:], units(1, reads, wide[1:]), 0)
    return units(kernels, inner, inner).sum() + entry.sum()

  widths = channels * 2 ** np.repeat(np.arange(stacks), modules)
  cells = jax.vmap(module)(np.append(channels, widths[:-1]), widths)
  stem, head = units(9, inputs, channels), (widths[-1] + 1) * classes
  return cells.sum() + stem + head


def sample(key: Key) -> jax.Array:
  """A genotype as the benchmark's random search draws it.

  Edges by fair coins and operations uniformly, until the cell is legal.
  """

  def again(carry):
    key, _ = carry
    key, own = jax.random.split(key)
    bits, ops = jax.random.split(own)
    bits = jax.random.bernoulli(bits, shape=(len(_PAIRS),)).astype(jnp.int32)
    ops = jax.random.randint(ops, (_INNER,), 0, len(OPS), jnp.int32)
    return key, jnp.concatenate([bits, ops])

  start = key, jnp.zeros(len(OPTIONS), jnp.int32)
  return jax.lax.while_loop(lambda carry: ~legal(carry[1]), again, start)[1]


def _retried(propose, key, fallback, attempts):
  """The first accepted of some proposals, or the fallback.

  Args:
    propose: `propose(key) -> (genotype, accepted)`.
    key: split anew for every attempt.
    fallback: what to return where none is accepted.
    attempts: at most so many.
  """

  def again(carry):
    attempt, _, _ = carry
    found, good = propose(jax.random.fold_in(key, attempt))
    return attempt + 1, jnp.where(good, found, fallback), good

  return jax.lax.while_loop(
    lambda carry: ~carry[2] & (carry[0] < attempts),
    again,
    (0, fallback, jnp.bool_(False)),
  )[1]


_edited = tabular.edited(OPTIONS)


def neighbours(genotype: jax.Array) -> tuple[jax.Array, jax.Array]:
  """All single edits: 21 edges flipped and 10 operations changed.

  Args:
    genotype: (26,).

  Returns:
    (31, 26) genotypes, and which of them are legal. Some are the same network:
    edits of vertices that do nothing, without which no vertex could be added.
    An edit is of the genotype, one of its genes, and not of the graph: cells
    that are one edit of a graph apart may be several here, as vertices have an
    order; `distance` matches them.
  """
  rows = _edited(genotype)
  return rows, jax.vmap(legal)(rows)


def mutate(key: Key, genotype: jax.Array) -> jax.Array:
  """One of the legal single edits, each as likely as another."""
  return tabular.one_of(key, *neighbours(genotype))


def resample(key: Key, genotype: jax.Array, attempts: int = 100) -> jax.Array:
  """The mutation of the benchmark's own evolution: about four edits.

  Every edge flips with probability 1/7 and every operation changes to another
  with probability 1/5, again until the cell is legal. For a space that mutates
  so, `space._replace(mutate=resample)`.

  Args:
    key: for the draws.
    genotype: (26,), legal.
    attempts: after so many the genotype itself is returned.
  """
  rates = np.array([1 / VERTICES] * len(_PAIRS) + [1 / _INNER] * _INNER)

  def propose(key):
    flip, by = jax.random.split(key)
    changes = jax.random.uniform(flip, rates.shape) < rates
    step = jax.random.randint(by, rates.shape, 1, jnp.array(OPTIONS))
    found = (genotype + jnp.where(changes, step, 0)) % np.array(OPTIONS)
    return found.astype(jnp.int32), legal(found)

  return _retried(propose, key, genotype, attempts)


def crossover(
  key: Key, a: jax.Array, b: jax.Array, attempts: int = 50
) -> jax.Array:
  """Each edge and operation from either parent, again until it is legal.

  Args:
    key: for the coins.
    a: (26,), legal; returned where no attempt was.
    b: (26,), legal.
    attempts: to make.
  """

  def propose(key):
    child = jnp.where(jax.random.bernoulli(key, shape=a.shape), b, a)
    return child, legal(child)

  return _retried(propose, key, a, attempts)


def _matched(a, b):
  """The second graph with its inner vertices placed to differ least."""
  (edges_a, ops_a), (edges_b, ops_b) = a, b
  places = jnp.asarray(_orders()[-1])
  edges = jax.vmap(lambda p: edges_b[p][:, p])(places)
  ops = jax.vmap(lambda p: ops_b[p[1:-1] - 1])(places)
  apart = (edges != edges_a[None]).sum(axis=(1, 2)) + (ops != ops_a[None]).sum(
    axis=1
  )
  best = jnp.argmin(apart)
  return edges[best], ops[best], apart[best]


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
  """The edit distance of two cells: the fewest edges and labels that differ.

  Over all ways to match their inner vertices; a vertex that only one of them
  has counts as a label.

  Example:
    >>> int(distance(cell('0-1 1-6', 'conv3x3'), cell('0-2 2-6 0-6')))
    1
  """
  return _matched(_parts(a), _parts(b))[2]


def shortest_path_crossover(
  key: Key, a: jax.Array, b: jax.Array, attempts: int = 50
) -> jax.Array:
  """A cell half way on a shortest path of edits from one parent to the other.

  SEPX (Qiu and Miikkulainen, ICML 2023): the vertices of the parents are
  matched so that they differ least, and half of the differing edges and
  operations, drawn at random and rounded up, are taken from the second; again
  until the cell is legal and neither parent. Here a vertex that only one
  parent has brings its operation with it, and among equally good matchings
  the first is taken. The child is written in its first order (`decode`).

  Args:
    key: for the draws.
    a: (26,), legal; returned where no attempt was accepted, as when the parents
      are one edit apart.
    b: (26,), legal.
    attempts: to make.
  """
  edges_a, ops_a = _parts(a)
  edges_b, ops_b, _ = _matched((edges_a, ops_a), _parts(b))
  lone_a, lone_b = ops_b == _ABSENT, ops_a == _ABSENT
  label_a = jnp.where(lone_b, ops_b, ops_a)
  label_b = jnp.where(lone_a, ops_a, ops_b)
  first = jnp.concatenate([edges_a.reshape(-1).astype(jnp.int32), label_a])
  second = jnp.concatenate([edges_b.reshape(-1).astype(jnp.int32), label_b])
  differ = first != second
  half = (differ.sum() + 1) // 2
  parents = code(a), code(b)

  def propose(key):
    luck = jnp.where(differ, jax.random.uniform(key, differ.shape), jnp.inf)
    takes = jnp.argsort(jnp.argsort(luck)) < half
    child = jnp.where(takes & differ, second, first)
    edges = child[: VERTICES**2].reshape(VERTICES, VERTICES) > 0
    edges, ops = _pruned(edges, child[VERTICES**2 :])
    number = _code(edges, ops)
    new = (number != parents[0]) & (number != parents[1])
    good = _connected(edges) & (number != _ILLEGAL) & new
    return decode(number), good

  return _retried(propose, key, a, attempts)


def encode(genotype: jax.Array) -> jax.Array:
  """(36,) the pruned edges and, one-hot, the operations that do something."""
  edges, ops = _parts(genotype)
  bits = edges[_SOURCES, _TARGETS].astype(jnp.float32)
  return jnp.concatenate([bits, jax.nn.one_hot(ops, len(OPS)).reshape(-1)])


def space(numbers: np.ndarray) -> ArraySpace:
  """NAS-Bench-101 with its networks in a given order.

  Args:
    numbers: (N,) the `codes` of the networks, in the order of their rows.

  Returns:
    The space; `mutate` is one edit and `crossover` uniform. Others are put in
    with `_replace`: `resample`, `shortest_path_crossover`.

  Raises:
    ValueError: if two rows are one network.

  Example:
    >>> small = space(codes(enumerate_cells(3)))
    >>> small.size, int(small.index(cell('0-1 1-6', 'conv1x1')))
    (6, 1)
    >>> whole = cell('0-4 4-6', 'conv3x3 conv3x3 conv3x3 conv1x1')
    >>> int(small.index(whole)), int(small.index(cell('0-1 1-2 2-6')))
    (1, -1)
  """
  numbers = np.asarray(numbers, np.int32)
  order = np.argsort(numbers, kind='stable').astype(np.int32)
  ascending = numbers[order]
  if len(np.unique(ascending)) < len(ascending):
    raise ValueError(
      f'space: {len(ascending)} rows hold only {len(np.unique(ascending))} '
      'different networks; give each one row.'
    )

  def index(genotype):
    number = code(genotype)
    place = jnp.searchsorted(jnp.asarray(ascending), number)
    place = jnp.minimum(place, len(ascending) - 1)
    found = jnp.asarray(ascending)[place] == number
    return jnp.where(found, jnp.asarray(order)[place], -1)

  return ArraySpace(
    'nb101',
    OPTIONS,
    len(numbers),
    sample,
    mutate,
    crossover,
    neighbours,
    encode,
    index,
  )


def genotypes(num_vertices, edge_bits, ops) -> np.ndarray:
  """The genotypes of cells as the table stores them.

  The output becomes vertex 6 and all others keep their numbers, and with them
  the order on which channels depend.

  Args:
    num_vertices: (N,) V.
    edge_bits: (N,) with the edge x -> y at bit x + y (y - 1) / 2.
    ops: (N, 5) the operations of vertices 1 to V - 2; the rest is padding.

  Returns:
    (N, 26) int8.

  Example:
    >>> genotypes([3], [0b101], [[1, 255, 255, 255, 255]])[0].tolist()[15:]
    [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0]
  """
  last = np.asarray(num_vertices, np.int32) - 1
  bits, ops = np.asarray(edge_bits, np.uint32), np.asarray(ops)
  rows = np.zeros((len(bits), len(OPTIONS)), np.int8)
  for i, (x, y) in enumerate(_PAIRS[: -VERTICES + 1]):
    rows[:, i] = (bits >> i) & (y < last)
  for x in range(VERTICES - 1):
    place = (x + last * (last - 1) // 2).astype(np.uint32)
    rows[:, _PAIRS.index((x, VERTICES - 1))] = (bits >> place) & (x < last)
  used = np.arange(1, _INNER + 1)[None] < last[:, None]
  rows[:, len(_PAIRS) :] = np.where(used, ops, 0)
  return rows
