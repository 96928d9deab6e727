"""The cells of NAS-Bench-201: strings, cost and equal cells.

Dong and Yang (2020), the topology space of NATS-Bench (Dong et al. 2021). A
cell has 4 nodes, of which the first is its input and the last its output, and
an op on each of the 6 edges between them; a node is the sum of what its edges
bring. A genotype is the ops of the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import ArraySpace, Table
from jaxnas.spaces import tabular

OPS = ('none', 'skip_connect', 'nor_conv_1x1', 'nor_conv_3x3', 'avg_pool_3x3')
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
_NONE, _SKIP, _CONV1, _CONV3, _POOL = range(5)
# Multiply-adds of the skeleton and of one convolution of an edge in all cells,
# by the side of the image.
_FLOPS = {
  32: (7_782_400, 35_389_440, 3_932_160),
  16: (1_945_600, 8_847_360, 983_040),
}


@functools.cache
def space() -> ArraySpace:
  """The 15,625 cells.

  The index of a cell is the number its ops are in base 5. The official index,
  in whose order tables come, is arbitrary; `jaxnas.spaces.load` reorders them.

  Example:
    >>> space().size
    15625
  """
  return tabular.independent('nas_bench_201', (len(OPS),) * len(EDGES))


def text(genotype: Sequence[int]) -> str:
  """The official string of a cell.

  Args:
    genotype: (6,) ops.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> text([3, 0, 3, 1, 0, 1])[:38]
    '|nor_conv_3x3~0|+|none~0|nor_conv_3x3~'
  """
  tabular.check_genotype('text', space().options, genotype)
  nodes = [
    '|'.join(
      f'{OPS[op]}~{source}'
      for op, (source, to) in zip(genotype, EDGES, strict=True)
      if to == node
    )
    for node in (1, 2, 3)
  ]
  return '+'.join(f'|{node}|' for node in nodes)


def parse(cell: str) -> np.ndarray:
  """The genotype of an official string.

  Args:
    cell: such as `text` gives.

  Returns:
    (6,) int32.

  Raises:
    ValueError: for what is not such a string.

  Example:
    >>> parse('|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|'
    ...       '+|skip_connect~0|none~1|skip_connect~2|').tolist()
    [3, 0, 3, 1, 0, 1]
  """
  found = [edge.split('~')[0] for edge in cell.replace('+', '|').split('|')]
  ops = [OPS.index(name) for name in found if name in OPS]
  if len(ops) != len(EDGES) or text(ops) != cell:
    raise ValueError(
      f'parse: {cell!r} is no cell; one is |op~0|+|op~0|op~1|+|op~0|op~1|op~2| '
      f'with ops of {", ".join(OPS)}.'
    )
  return np.array(ops, np.int32)


def params(genotype: Any, classes: int = 10) -> jax.Array:
  """Trainable parameters of the network of a cell, exactly.

  Convolutions count whether or not the input reaches them, as in the
  benchmark's records.

  Args:
    genotype: (..., 6) ops.
    classes: outputs.

  Returns:
    (...) int32.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> int(params(np.array([3, 0, 3, 1, 0, 1])))
    559386
  """
  narrow, wide = _convolutions('params', genotype)
  return 72_656 + 65 * classes + 243_040 * wide + 28_000 * narrow


def flops(genotype: Any, classes: int = 10, side: int = 32) -> jax.Array:
  """Multiply-adds of the network of a cell on one image, exactly.

  Those of convolutions and of the last layer with its bias; all else counts
  nothing, as in the benchmark's records.

  Args:
    genotype: (..., 6) ops.
    classes: outputs.
    side: of the image, 32 or 16.

  Returns:
    (...) int32.

  Raises:
    ValueError: for another side, and for what is no genotype.

  Example:
    >>> int(flops(np.array([3, 0, 3, 1, 0, 1])))
    78561930
  """
  if side not in _FLOPS:
    raise ValueError(f'flops: side must be 32 or 16, got {side!r}.')
  skeleton, one3, one1 = _FLOPS[side]
  narrow, wide = _convolutions('flops', genotype)
  return skeleton + 65 * classes + one3 * wide + one1 * narrow


def _convolutions(name: str, genotype: Any) -> tuple[jax.Array, jax.Array]:
  """How many edges have a convolution of 1x1, and of 3x3."""
  tabular.check_genotypes(name, space().options, genotype)
  ops = jnp.asarray(genotype)
  return (ops == _CONV1).sum(axis=-1), (ops == _CONV3).sum(axis=-1)


def genotypes() -> np.ndarray:
  """(15625, 6) all cells, in the order of the index.

  Example:
    >>> genotypes()[7].tolist()
    [0, 0, 0, 0, 1, 2]
  """
  grid = np.indices((len(OPS),) * len(EDGES), np.int32)
  return grid.reshape(len(EDGES), -1).T


def priced(table: Table, classes: int = 10) -> Table:
  """The table with the exact columns `params` and `flops`.

  Args:
    table: of this space.
    classes: of the data set.

  Raises:
    ValueError: for a table of another space.
  """
  if table.space.name != space().name:
    raise ValueError(
      f'priced: this is for cells of {space().name}, got a table of '
      f'{table.space.name}.'
    )
  cells = genotypes()
  exact = {'params': params(cells, classes), 'flops': flops(cells, classes)}
  return table._replace(columns={**table.columns, **exact})


def canonical(genotype: Sequence[int], *, strict: bool = False) -> str:
  """A string that equal cells share.

  The official form goes node by node: a node is the sorted list of what its
  edges bring, a skip bringing its source itself, and a `none`, or a source that
  is nothing, bringing "#". It tells 6,466 cells apart, and not all that it
  tells apart are different functions, since it keeps "#" in sums and sums in
  sums. The strict form does not: it leaves 4,930, of which one, '#', is that of
  the 341 cells whose input does not reach their output. That an average pool
  is linear is used by neither.

  Args:
    genotype: (6,) ops.
    strict: the strict form.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> one, two = [3, 0, 0, 1, 0, 0], [3, 0, 3, 1, 0, 0]
    >>> canonical(one, strict=True) == canonical(two, strict=True)
    True
    >>> canonical(one) == canonical([3, 4, 0, 0, 0, 1])
    False
  """
  tabular.check_genotype('canonical', space().options, genotype)
  ops = [int(op) for op in genotype]
  return (_strict if strict else _official)(ops)


def _official(ops: Sequence[int]) -> str:
  nodes = {0: '0'}
  for node in (1, 2, 3):
    terms = []
    for op, (source, to) in zip(ops, EDGES, strict=True):
      if to != node:
        continue
      if op == _NONE or nodes[source] == '#':
        terms.append('#')
      elif op == _SKIP:
        terms.append(nodes[source])
      else:
        terms.append(f'({nodes[source]})@{OPS[op]}')
    nodes[node] = '+'.join(sorted(terms))
  return nodes[3]


def _strict(ops: Sequence[int]) -> str:
  """As `_official`, with a node the flat sorted tuple of its terms."""
  nodes: dict[int, tuple[str, ...]] = {0: ('0',)}
  for node in (1, 2, 3):
    terms: list[str] = []
    for op, (source, to) in zip(ops, EDGES, strict=True):
      if to != node or op == _NONE or not nodes[source]:
        continue
      if op == _SKIP:
        terms.extend(nodes[source])
      else:
        terms.append(f'({"+".join(nodes[source])})@{OPS[op]}')
    nodes[node] = tuple(sorted(terms))
  return '+'.join(nodes[3]) or '#'


@functools.cache
def classes(*, strict: bool = False) -> np.ndarray:
  """For each cell the number of its class of equal ones.

  Args:
    strict: by which form, see `canonical`.

  Returns:
    (15625,) integers in the order of the index; a class has the number of its
    first cell.

  Example:
    >>> len(np.unique(classes())), len(np.unique(classes(strict=True)))
    (6466, 4930)
  """
  first: dict[str, int] = {}
  return np.array(
    [
      first.setdefault(canonical(cell, strict=strict), place)
      for place, cell in enumerate(genotypes().tolist())
    ],
    np.int32,
  )
