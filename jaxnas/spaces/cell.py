"""Cells of DARTS and NASNet and their kin, as arrays of integers.

A cell has two inputs, the outputs of the two cells before it, and blocks in a
row; a block adds up two edges, each an operation on an input or on an earlier
block. States are numbered 0 for the cell before the last, 1 for the last, and
2, 3, ... for the blocks. What the families differ in, the operations, the
number of blocks, which states the output joins, is a `Grammar`; everything
else here is written once for all of them.

A genotype is, for each cell (normal, then reduction) and each block, two pairs
(state, operation), and in NASNet the way that the block joins them. Such
spaces are too large to number: they have no size and no index (-1), and
`count` says how many genotypes there are.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import ArraySpace, Key
from jaxnas.spaces import tabular

# The operations there are, with how many channels squared, channels times taps
# and normalised channels they have: c^2, c k^2 and 2 c parameters each.
_COSTS = {
  'none': (0, 0, 0),
  'skip': (0, 0, 0),
  'max3': (0, 0, 0),
  'max5': (0, 0, 0),
  'max7': (0, 0, 0),
  'avg3': (0, 0, 0),
  'conv1': (1, 0, 1),
  'conv3': (9, 0, 1),
  'sep3': (2, 2 * 9, 2),
  'sep5': (2, 2 * 25, 2),
  'sep7': (2, 2 * 49, 2),
  'dil3': (1, 9, 1),
  'dil5': (1, 25, 1),
  '3x1_1x3': (6, 0, 1),
  '7x1_1x7': (14, 0, 1),
}
OPS = tuple(_COSTS)


@dataclasses.dataclass(frozen=True)
class Grammar:
  """A family of cells.

  Attributes:
    name: of the family.
    ops: operations of an edge, of `OPS`, in the order of their codes.
    blocks: in a cell.
    cells: 2 for a normal and a reduction cell, 1 where they are the same.
    join: which blocks the output joins, `'all'` or those that are `'unused'`.
    distinct: whether the two edges of a block must read different states.
    combine: whether a gene says that a block joins its edges by adding (0) or
      side by side (1).
  """

  name: str
  ops: tuple[str, ...]
  blocks: int
  cells: int = 2
  join: str = 'unused'
  distinct: bool = False
  combine: bool = False

  def __post_init__(self):
    unknown = [op for op in self.ops if op not in OPS]
    if unknown or not self.ops or len({*self.ops}) < len(self.ops):
      raise ValueError(
        f'Grammar: ops must be different ones of {", ".join(OPS)}, got '
        f'{self.ops!r}.'
      )
    legal = self.blocks >= 1 and self.cells in (1, 2)
    if not legal or self.join not in ('all', 'unused'):
      raise ValueError(
        "Grammar: blocks must be at least 1, cells 1 or 2 and join 'all' or "
        f"'unused', got {self.blocks}, {self.cells} and {self.join!r}."
      )

  @property
  def width(self) -> int:
    """Genes of a block."""
    return 5 if self.combine else 4

  @property
  def options(self) -> tuple[int, ...]:
    """How many values each of the L genes may take."""
    joins = (2,) if self.combine else ()
    cell = [
      (b + 2, len(self.ops)) * 2 + joins for b in range(self.blocks)
    ] * self.cells
    return tuple(count for block in cell for count in block)


# Liu, Simonyan and Yang (2019), after derivation: without `none`, and in the
# order of the operations of NAS-Bench-301's genotypes.
DARTS = Grammar(
  'darts',
  ('max3', 'avg3', 'skip', 'sep3', 'sep5', 'dil3', 'dil5'),
  blocks=4,
  join='all',
  distinct=True,
)
# Zoph, Vasudevan, Shlens and Le (2018).
NASNET = Grammar(
  'nasnet',
  (
    ('skip', '3x1_1x3', '7x1_1x7', 'dil3', 'avg3', 'max3', 'max5', 'max7')
    + ('conv1', 'conv3', 'sep3', 'sep5', 'sep7')
  ),
  blocks=5,
  combine=True,
)
# Real, Aggarwal, Huang and Le (2019).
AMOEBANET = Grammar(
  'amoebanet',
  ('skip', 'sep3', 'sep5', 'sep7', 'avg3', 'max3', 'dil3', '7x1_1x7'),
  blocks=5,
)
# Liu, Zoph, Neumann et al. (2018): one cell, and its output joins all blocks.
PNAS = Grammar(
  'pnas',
  ('skip', 'sep3', 'sep5', 'sep7', '7x1_1x7', 'dil3', 'max3', 'avg3'),
  blocks=5,
  cells=1,
  join='all',
)
# Lu et al. (2019), the micro space of NSGA-Net.
NSGA = Grammar(
  'nsga',
  (
    ('max3', 'avg3', 'skip', 'sep3', 'sep5', 'dil3', 'dil5', 'sep7')
    + ('7x1_1x7',)
  ),
  blocks=5,
)
# Zhou et al. (2020).
ECONAS = Grammar(
  'econas',
  ('none', 'max3', 'avg3', 'skip', 'sep3', 'sep5', 'dil3', 'dil5'),
  blocks=4,
)

_IMAGENET = 'unnas_imagenet_'

# Published cells: grammar, normal cell, reduction cell.
NAMED: dict[str, tuple[Grammar, str, str]] = {
  'darts_v1': (
    DARTS,
    'sep3:1 sep3:0 skip:0 sep3:1 skip:0 sep3:1 sep3:0 skip:2',
    'max3:0 max3:1 skip:2 max3:0 max3:0 skip:2 skip:2 avg3:0',
  ),
  'darts_v2': (
    DARTS,
    'sep3:0 sep3:1 sep3:0 sep3:1 sep3:1 skip:0 skip:0 dil3:2',
    'max3:0 max3:1 skip:2 max3:1 max3:0 skip:2 skip:2 max3:1',
  ),
  'p_darts': (
    DARTS,
    'skip:0 dil3:1 skip:0 sep3:1 sep3:1 sep3:3 sep3:0 dil5:4',
    'avg3:0 sep5:1 sep3:0 dil5:2 max3:0 dil3:1 dil3:1 dil5:3',
  ),
  'pc_darts_cifar10': (
    DARTS,
    'sep3:1 skip:0 sep3:0 dil3:1 sep5:0 sep3:1 avg3:0 dil3:1',
    'sep5:1 max3:0 sep5:1 sep5:2 sep3:0 sep3:3 sep3:1 sep3:2',
  ),
  'pc_darts_imagenet': (
    DARTS,
    'skip:1 sep3:0 sep3:0 skip:1 sep3:1 sep3:3 sep3:1 dil5:4',
    'sep3:0 skip:1 dil5:2 max3:1 sep3:2 sep3:1 sep5:0 sep3:3',
  ),
  'nasnet_a': (
    NASNET,
    'sep5:1 sep3:0 sep5:0 sep3:0 avg3:1 skip:0 avg3:0 avg3:0 sep3:1 skip:1',
    'sep5:1 sep7:0 max3:1 sep7:0 avg3:1 sep5:0 skip:3 avg3:2 sep3:2 max3:1',
  ),
  'amoebanet_a': (
    AMOEBANET,
    'avg3:0 max3:1 sep3:0 sep5:2 sep3:0 avg3:3 sep3:1 skip:1 skip:0 avg3:1',
    'avg3:0 sep3:1 max3:0 sep7:2 sep7:0 avg3:1 max3:0 max3:1 7x1_1x7:0 sep3:5',
  ),
  'pnasnet': (
    PNAS,
    'sep5:0 max3:0 sep7:1 max3:1 sep5:1 sep3:1 sep3:4 max3:1 sep3:0 skip:1',
    '',
  ),
  f'{_IMAGENET}classes': (
    DARTS,
    'sep3:1 sep3:0 sep3:1 sep3:0 sep3:0 sep3:2 sep5:1 sep3:0',
    'max3:0 skip:1 max3:0 dil5:2 max3:0 sep3:2 sep3:4 dil5:3',
  ),
  f'{_IMAGENET}rotation': (
    DARTS,
    'sep3:0 sep3:1 sep3:0 sep3:1 sep3:1 sep3:0 sep3:0 sep3:1',
    'sep3:1 sep3:0 sep3:2 sep3:1 sep3:1 sep3:2 sep3:4 sep5:2',
  ),
  f'{_IMAGENET}colour': (
    DARTS,
    'skip:0 sep3:1 sep3:1 skip:0 sep3:0 sep3:3 sep3:0 sep3:2',
    'max3:0 sep3:1 max3:0 sep3:1 max3:0 sep5:3 max3:0 sep3:4',
  ),
  f'{_IMAGENET}jigsaw': (
    DARTS,
    'sep3:0 sep3:1 sep3:0 sep3:1 sep3:0 sep3:3 sep3:1 sep5:0',
    'sep5:0 sep3:1 sep3:0 sep3:1 sep3:0 sep3:1 sep5:0 sep3:1',
  ),
}


def named(name: str) -> tuple[Grammar, np.ndarray]:
  """The grammar and genotype of a published cell.

  Args:
    name: of `NAMED`.

  Raises:
    KeyError: for a name that is not there, with those that are.

  Example:
    >>> grammar, genotype = named('darts_v2')
    >>> grammar.name, genotype.shape
    ('darts', (32,))
  """
  if name not in NAMED:
    raise KeyError(f'named: {name!r} is not one of {", ".join(NAMED)}.')
  grammar, normal, reduction = NAMED[name]
  return grammar, parse(grammar, normal, reduction)


def parse(grammar: Grammar, normal: str, reduction: str = '') -> np.ndarray:
  """The genotype of cells written down; blocks add.

  Args:
    grammar: the family.
    normal: `'operation:state ...'`, two for every block.
    reduction: the same, or `''` where there is one cell.

  Returns:
    (L,) int32.

  Raises:
    ValueError: for another number of edges, operations that are not of the
      grammar, and states that are not there.

  Example:
    >>> small = Grammar('small', ('skip', 'sep3'), blocks=1, cells=1)
    >>> parse(small, 'sep3:0 skip:1').tolist()
    [0, 1, 1, 0]
  """
  texts = (normal, reduction)[: grammar.cells]
  edges = [text.split() for text in texts]
  if any(len(cell) != 2 * grammar.blocks for cell in edges):
    raise ValueError(
      f'parse: a cell of {grammar.name} has {2 * grammar.blocks} edges, got '
      f'{[len(cell) for cell in edges]}.'
    )
  if reduction and grammar.cells == 1:
    raise ValueError(f'parse: {grammar.name} has no reduction cell.')
  rows = []
  for cell in edges:
    for number, edge in enumerate(cell):
      op, _, state = edge.rpartition(':')
      states = grammar_states(number // 2)
      if op not in grammar.ops or state not in map(str, range(states)):
        raise ValueError(
          f'parse: {edge!r} is no edge of block {number // 2} of '
          f'{grammar.name}; one is operation:state with a state below {states} '
          f'and an operation of {", ".join(grammar.ops)}.'
        )
      rows += [int(state), grammar.ops.index(op)]
      if grammar.combine and number % 2:
        rows.append(0)
  genotype = np.array(rows, np.int32)
  if not bool(_legal(grammar, genotype)):
    raise ValueError(
      f'parse: the edges of a block of {grammar.name} read different states, '
      f'which those of {texts!r} do not.'
    )
  return genotype


def grammar_states(block: int) -> int:
  """How many states a block may read: the inputs and the blocks before it."""
  return block + 2


def blocks(grammar: Grammar, genotype: Any) -> Any:
  """A genotype as (cells, blocks, genes of a block).

  Raises:
    ValueError: for a genotype of another length.
  """
  shape = (grammar.cells, grammar.blocks, grammar.width)
  if np.shape(genotype) != (math.prod(shape),):
    raise ValueError(
      f'blocks: a genotype of {grammar.name} has shape ({math.prod(shape)},), '
      f'got {np.shape(genotype)}.'
    )
  return genotype.reshape(shape)


def count(grammar: Grammar) -> int:
  """How many genotypes there are, in the way of the literature.

  Pairs of edges are ordered, but for grammars with `distinct` states, where
  the two states are not.

  Example:
    >>> count(DARTS), count(PNAS)
    (1076746950455072400, 556627761561600)
  """
  ops = len(grammar.ops) ** 2 * (2 if grammar.combine else 1)
  states = map(grammar_states, range(grammar.blocks))
  pairs = [math.comb(n, 2) if grammar.distinct else n * n for n in states]
  return math.prod(ops * pair for pair in pairs) ** grammar.cells


def check(name: str, grammar: Grammar, genotype: Any) -> None:
  """Refuses what is no genotype of a grammar.

  Args:
    name: of the function that was given it, for the message.
    grammar: the family.
    genotype: (L,).

  Raises:
    ValueError: saying what was given and what is legal.

  Example:
    >>> check('params', Grammar('small', ('skip',), 1, 1), [0, 0, 1])
    Traceback (most recent call last):
      ...
    ValueError: params: a genotype is 4 whole numbers of 0 or more, each below \
its place in (2, 1, 2, 1), got shape (3,).
  """
  tabular.check_genotype(name, grammar.options, genotype)
  rows = blocks(grammar, np.asarray(genotype)).reshape(-1, grammar.width)
  same = rows[:, 0] == rows[:, 2]
  if grammar.distinct and same.any():
    raise ValueError(
      f'{name}: the two edges of a block of {grammar.name} read different '
      f'states, got {rows[same][0].tolist()}.'
    )


def _legal(grammar: Grammar, genotype: Any) -> Any:
  rows = blocks(grammar, genotype)
  return (rows[..., 0] != rows[..., 2]).all() | (not grammar.distinct)


def canonical(grammar: Grammar, genotype: jax.Array) -> jax.Array:
  """The genotype with the edges of every block in order.

  Example:
    >>> small = Grammar('small', ('skip', 'sep3'), blocks=1, cells=1)
    >>> canonical(small, jnp.array([1, 0, 0, 1])).tolist()
    [0, 1, 1, 0]
  """
  rows = blocks(grammar, jnp.asarray(genotype))
  pairs = rows[..., :4].reshape(*rows.shape[:2], 2, 2)
  numbers = pairs[..., 0] * len(grammar.ops) + pairs[..., 1]
  swap = numbers[..., 0] > numbers[..., 1]
  pairs = jnp.where(swap[..., None, None], pairs[..., ::-1, :], pairs)
  edges = pairs.reshape(*rows.shape[:2], 4)
  return jnp.concatenate([edges, rows[..., 4:]], axis=-1).reshape(-1)


def joined(grammar: Grammar, cell: Any) -> list[int]:
  """The states that the output of one cell joins, on the host.

  Args:
    grammar: the family.
    cell: (blocks, genes of a block).

  Example:
    >>> joined(NSGA, np.zeros((5, 4), int))
    [2, 3, 4, 5, 6]
  """
  states = range(2, grammar.blocks + 2)
  if grammar.join == 'all':
    return list(states)
  used = {int(state) for state in np.asarray(cell)[:, (0, 2)].ravel()}
  return [state for state in states if state not in used]


def _encoder(grammar: Grammar) -> Callable[[jax.Array], jax.Array]:
  """For every block and edge that it could have, how often it has it."""
  ops = len(grammar.ops)

  def encode(genotype):
    features = []
    for cell in blocks(grammar, jnp.asarray(genotype)):
      for number in range(grammar.blocks):
        row, edges = cell[number], grammar_states(number) * ops
        features += [
          sum(jax.nn.one_hot(row[i] * ops + row[i + 1], edges) for i in (0, 2)),
          row[4:].astype(jnp.float32),
        ]
    return jnp.concatenate(features)

  return encode


def space(grammar: Grammar) -> ArraySpace:
  """The cells of a family as an array space.

  Samples are uniform over legal genotypes; an edit gives one gene another
  value; crossover takes every gene from either parent, except that where the
  states of a block must differ and would not, they are both the first parent's.
  `encode` does not see the order of a block's edges.

  Args:
    grammar: the family.

  Returns:
    The space, of size 0: its networks are too many to number, and `index` is -1
    for all of them.

  Example:
    >>> darts = space(DARTS)
    >>> genotype = darts.sample(jax.random.key(0))
    >>> around, legal = darts.neighbours(genotype)
    >>> genotype.shape, around.shape, darts.encode(genotype).shape
    ((32,), (136, 32), (196,))
  """
  options = np.array(grammar.options)
  edited = tabular.edited(grammar.options)

  def sample(key: Key) -> jax.Array:
    drawn, other = jax.random.split(key)
    genotype = jax.random.randint(drawn, options.shape, 0, options)
    if not grammar.distinct:
      return genotype
    # The second state is one of the others, each as likely.
    rows = blocks(grammar, genotype)
    states = np.array([grammar_states(b) for b in range(grammar.blocks)])[None]
    by = jax.random.randint(other, rows.shape[:2], 1, states)
    second = (rows[..., 0] + by) % states
    return rows.at[..., 2].set(second).reshape(-1)

  def neighbours(genotype: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = edited(genotype)
    return rows, jax.vmap(lambda row: _legal(grammar, row))(rows)

  def mutate(key: Key, genotype: jax.Array) -> jax.Array:
    return tabular.one_of(key, *neighbours(genotype))

  def crossover(key: Key, a: jax.Array, b: jax.Array) -> jax.Array:
    child = jnp.where(jax.random.bernoulli(key, shape=a.shape), b, a)
    return _repaired(grammar, child, a)

  return ArraySpace(
    grammar.name,
    grammar.options,
    0,
    sample,
    mutate,
    crossover,
    neighbours,
    _encoder(grammar),
    lambda genotype: jnp.int32(-1),
  )


def _repaired(grammar: Grammar, child: jax.Array, a: jax.Array) -> jax.Array:
  """The child with the states of the first parent where they must differ."""
  if not grammar.distinct:
    return child
  rows, first = blocks(grammar, child), blocks(grammar, jnp.asarray(a))
  clash = rows[..., 0] == rows[..., 2]
  for gene in (0, 2):
    kept = jnp.where(clash, first[..., gene], rows[..., gene])
    rows = rows.at[..., gene].set(kept)
  return rows.reshape(-1)


def shortest_path_crossover(
  grammar: Grammar,
) -> Callable[[Key, jax.Array, jax.Array], jax.Array]:
  """A cell half way on a shortest path of edits from one parent to the other.

  A random half of the genes in which the parents differ are taken from the
  second (`tabular.half_way`), except that states that must differ and would not
  are both the first parent's. Edges and blocks are compared as they are
  written, not matched.

  Args:
    grammar: the family.

  Returns:
    A function of key and two (L,) genotypes, for `space._replace(crossover=)`.

  Example:
    >>> small = Grammar('small', ('skip', 'sep3'), blocks=2, cells=1)
    >>> cross = shortest_path_crossover(small)
    >>> int(cross(jax.random.key(0), jnp.zeros(8, int), jnp.ones(8, int)).sum())
    4
  """

  def cross(key: Key, a: jax.Array, b: jax.Array) -> jax.Array:
    return _repaired(grammar, tabular.half_way(key, a, b), a)

  return cross


def edge_mutation(
  grammar: Grammar,
) -> Callable[[Key, jax.Array], jax.Array]:
  """The mutation of EcoNAS: a random edge has another operation or input.

  Either with a probability of a half, where an edit of `space` is uniform over
  all edits, most of which are of operations.

  Args:
    grammar: a family in which every genotype is legal, such as `ECONAS`.

  Returns:
    `mutate(key, genotype) -> genotype`.

  Raises:
    ValueError: for a grammar with other genes, or illegal genotypes.

  Example:
    >>> mutate = edge_mutation(ECONAS)
    >>> genotype = space(ECONAS).sample(jax.random.key(0))
    >>> int((mutate(jax.random.key(1), genotype) != genotype).sum())
    1
  """
  if grammar.distinct or grammar.combine:
    raise ValueError(
      f'edge_mutation: the edges of {grammar.name} cannot be changed one by '
      'one; use the mutate of its space.'
    )
  options = np.array(grammar.options)

  def mutate(key: Key, genotype: jax.Array) -> jax.Array:
    of_place, of_shift = jax.random.split(key)
    # Genes are the input and the operation of one edge after another, so a gene
    # drawn uniformly is an edge and a coin.
    place = jax.random.randint(of_place, (), 0, len(options))
    count = jnp.asarray(options)[place]
    shift = jax.random.randint(of_shift, (), 1, count)
    value = (genotype[place] + shift) % count
    return jnp.asarray(genotype).at[place].set(value.astype(jnp.int32))

  return mutate


def reductions(layers: int) -> tuple[int, int]:
  """The cells that halve the resolution, a third and two thirds down.

  Example:
    >>> reductions(20)
    (6, 13)
  """
  return layers // 3, 2 * layers // 3


def params(
  grammar: Grammar,
  genotype: Any,
  *,
  channels: int = 36,
  layers: int = 20,
  classes: int = 10,
  inputs: int = 3,
) -> int:
  """Trainable parameters of the network of a genotype, in closed form.

  That of `jaxnas.spaces.cell_networks.darts`, without an auxiliary head.

  Args:
    grammar: the family.
    genotype: (L,).
    channels: of the first cells; each reduction doubles them.
    layers: cells.
    classes: width of the output.
    inputs: channels of the image.

  Raises:
    ValueError: for what is no genotype, and where blocks join their edges side
      by side, whose widths are not defined here.

  Example:
    >>> params(*named('darts_v2'))
    3349342
  """
  check('params', grammar, genotype)
  cells = blocks(grammar, np.asarray(genotype))
  refuse_combined(grammar, cells)
  stem = 3 * channels
  total = inputs * 9 * stem + 2 * stem
  older, newer, width = stem, stem, channels
  for layer in range(layers):
    reduces = layer in reductions(layers)
    width *= 2 if reduces else 1
    total += (older + newer) * width + 4 * width
    cell = cells[-1 if reduces else 0]
    for row in cell:
      for state, op in row[:4].reshape(2, 2):
        total += _edge_params(grammar.ops[op], width, reduces and state < 2)
    older, newer = newer, len(joined(grammar, cell)) * width
  return total + (newer + 1) * classes


def refuse_combined(grammar: Grammar, cells: Any) -> None:
  """Refuses cells with blocks that do not add, of which there are no networks.

  Raises:
    ValueError: if there are.
  """
  if np.asarray(cells)[..., 4:].any():
    raise ValueError(
      f'a block of this {grammar.name} genotype joins its edges side by side; '
      'only blocks that add have networks: set its last gene to 0.'
    )


def _edge_params(op: str, width: int, reduces: bool) -> int:
  square, taps, norms = _COSTS[op]
  if op == 'skip' and reduces:
    square, norms = 1, 1
  return square * width**2 + taps * width + norms * 2 * width
