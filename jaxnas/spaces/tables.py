"""Tables of measurements, read from `.npz` files.

A file is known by the arrays it holds, whatever it is called. Its rows may be
in any order: they are put in that of the space's index. A kind of file is a
`Schema`, plain data; `load` takes others than those known here.
"""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import ArraySpace, Table
from jaxnas.spaces import (
  cell,
  nas_bench_101,
  nas_bench_201,
  tabular,
  transnas_bench,
)

# The folder of tables that are loaded by name.
FOLDER = 'JAXNAS_DATA_DIR'

Arrays = Mapping[str, np.ndarray]


class Column(NamedTuple):
  """Values of some rows of a file, or of those of the file before it.

  Attributes:
    values: (n, ...).
    rows: (n,) the rows that they are of; None for all rows in their order.
  """

  values: np.ndarray
  rows: np.ndarray | None = None


class Schema(NamedTuple):
  """A kind of file.

  Attributes:
    name: for messages.
    of: the name of the space.
    needs: arrays that tell it from other kinds, for messages too.
    fits: `fits(arrays) -> bool`, whether a file that has them is of this kind.
    columns: `columns(arrays) -> {name: Column}`.
    space: `space(arrays) -> ArraySpace`; None for a file that numbers its
      measurements by the rows of another.
    genotypes: `genotypes(arrays) -> (n, L)` of the file's rows; None where the
      space is numbered by them.
  """

  name: str
  of: str
  needs: tuple[str, ...]
  fits: Callable[[Arrays], bool]
  columns: Callable[[Arrays], Mapping[str, Column]]
  space: Callable[[Arrays], ArraySpace] | None = None
  genotypes: Callable[[Arrays], np.ndarray] | None = None


def _ops(arrays: Arrays) -> np.ndarray:
  return arrays['ops']


def _rest(arrays: Arrays, without: Iterable[str] = ('ops',)) -> dict:
  """All other arrays as columns of their own names."""
  return {
    name: Column(values)
    for name, values in arrays.items()
    if name not in set(without)
  }


def _cells(arrays: Arrays, edges: int = 6, most: int = 4) -> bool:
  ops = arrays['ops']
  return ops.ndim == 2 and ops.shape[1] == edges and ops.max(initial=0) <= most


def _hardware(arrays: Arrays) -> dict[str, Column]:
  """`<metric>_<data set>` of HW-NAS-Bench."""
  return {
    f'{metric}_{data}': Column(arrays[data][:, place])
    for place, metric in enumerate(arrays['metrics'].tolist())
    for data in arrays
    if data not in ('ops', 'metrics')
  }


def _extra(arrays: Arrays) -> dict[str, Column]:
  """`<task>_val` and `<task>_<proxy>` of some cells."""
  found = {}
  for key, rows in arrays.items():
    task = key.removesuffix('_index')
    if task == key:
      continue
    found[f'{task}_val'] = Column(arrays[f'{task}_val'], rows)
    for place, proxy in enumerate(arrays['proxy_names'].tolist()):
      values = arrays[f'{task}_proxies'][:, place]
      found[f'{task}_{proxy}'] = Column(values, rows)
  return found


def _transnas(arrays: Arrays) -> dict[str, Column]:
  """`<task>`, `<task>_zen`, ..., and `<task>_sub_<proxy>` of some networks."""
  found = {}
  tasks, proxies = arrays['tasks'].tolist(), arrays['proxy_names'].tolist()
  for t, task in enumerate(tasks):
    found[task] = Column(arrays['values'][:, t])
    for name in ('zen', 'synflow', 'epe_nas'):
      found[f'{task}_{name}'] = Column(arrays[name][:, t])
    rows = arrays['sub_index']
    found[f'{task}_sub_best_epoch'] = Column(
      arrays['sub_values_best_epoch'][:, t], rows
    )
    for p, proxy in enumerate(proxies):
      values = arrays['sub_proxies'][:, t, p]
      found[f'{task}_sub_{proxy}'] = Column(values, rows)
    if f'{task}_proxies' in arrays:
      for p, proxy in enumerate(proxies):
        found[f'{task}_all_{proxy}'] = Column(arrays[f'{task}_proxies'][:, p])
  return found


def _transnas_micro(arrays: Arrays) -> dict[str, Column]:
  """As `_transnas`, and `params` of the cells."""
  counted = np.asarray(transnas_bench.micro_params(arrays['ops']))
  return {'params': Column(counted), **_transnas(arrays)}


def _macro(arrays: Arrays) -> dict[str, Column]:
  mean = arrays['test_acc_seeds'].mean(axis=1)
  return {'test_acc': Column(mean), **_rest(arrays)}


def _graphs(arrays: Arrays) -> ArraySpace:
  names = ('num_vertices', 'edge_bits', 'ops')
  count = len(arrays['edge_bits'])
  if count != nas_bench_101.NETWORKS:
    raise ValueError(
      f'NAS-Bench-101 has {nas_bench_101.NETWORKS} networks, the file has '
      f'{count} rows.'
    )
  cells = nas_bench_101.genotypes(*(arrays[name] for name in names))
  return nas_bench_101.space(nas_bench_101.codes(cells))


def _first_rows(arrays: Arrays) -> dict[str, Column]:
  """Columns of as many of the first rows as there are values."""
  return {
    name: Column(values, np.arange(len(values)))
    for name, values in arrays.items()
  }


def _graph_proxies(arrays: Arrays) -> dict[str, Column]:
  """`sub_val_acc` and `sub_<proxy>` of some cells, and `zen` of others."""
  rows = arrays['index']
  found = {
    f'sub_{proxy}': Column(arrays['proxies'][:, place], rows)
    for place, proxy in enumerate(arrays['proxy_names'].tolist())
  }
  found['sub_val_acc'] = Column(arrays['val_acc'], rows)
  return found | {'zen': Column(arrays['zen'], arrays['zen_index'])}


def _darts_cells(arrays: Arrays) -> np.ndarray:
  return arrays['arch'].reshape(len(arrays['arch']), -1)


def _sampled_cells(arrays: Arrays) -> ArraySpace:
  """The measured cells of DARTS, of which there are too many to measure all."""
  cells = _darts_cells(arrays)
  for row, genotype in enumerate(cells):
    cell.check(f'row {row}', cell.DARTS, genotype)
  return tabular.among(cell.space(cell.DARTS), 'nas_bench_301', cells)


def _cell_proxies(arrays: Arrays) -> dict[str, Column]:
  """`val_acc` and `<proxy>`; cells without an accuracy are left out."""
  found = {'val_acc': Column(arrays['val_acc'])}
  for place, proxy in enumerate(arrays['proxy_names'].tolist()):
    found[proxy] = Column(arrays['proxies'][:, place])
  return found


SCHEMAS: tuple[Schema, ...] = (
  Schema(
    'TransNAS-Bench-101 micro',
    'transnas_micro',
    ('ops', 'tasks', 'values'),
    lambda arrays: _cells(arrays, most=3),
    _transnas_micro,
    lambda arrays: tabular.transnas_micro(),
    _ops,
  ),
  Schema(
    'TransNAS-Bench-101 macro',
    'transnas_macro',
    ('ops', 'tasks', 'values'),
    _cells,
    _transnas,
    lambda arrays: tabular.transnas_macro(),
    _ops,
  ),
  Schema(
    'NAS-Bench-201 on hardware',
    'nas_bench_201',
    ('ops', 'metrics'),
    _cells,
    _hardware,
    lambda arrays: nas_bench_201.space(),
    _ops,
  ),
  Schema(
    'NAS-Bench-201',
    'nas_bench_201',
    ('ops',),
    _cells,
    _rest,
    lambda arrays: nas_bench_201.space(),
    _ops,
  ),
  Schema(
    'NAS-Bench-201 on more tasks',
    'nas_bench_201',
    ('proxy_names', 'svhn_index', 'svhn_val'),
    lambda arrays: True,
    _extra,
  ),
  Schema(
    'NAS-Bench-Macro',
    'nas_bench_macro',
    ('ops', 'test_acc_seeds'),
    lambda arrays: _cells(arrays, edges=8, most=2),
    _macro,
    lambda arrays: tabular.nas_bench_macro(),
    _ops,
  ),
  Schema(
    'NAS-Bench-101',
    'nb101',
    ('num_vertices', 'edge_bits', 'ops'),
    lambda arrays: True,
    lambda arrays: _rest(arrays, ('num_vertices', 'edge_bits', 'ops')),
    _graphs,
  ),
  Schema(
    'NAS-Bench-101 after fewer epochs',
    'nb101',
    ('val_acc_ep4', 'val_acc_ep12'),
    lambda arrays: True,
    _first_rows,
  ),
  Schema(
    'NAS-Bench-101 by proxies',
    'nb101',
    ('index', 'val_acc', 'zen_index'),
    lambda arrays: True,
    _graph_proxies,
  ),
  Schema(
    'NAS-Bench-301 by proxies',
    'nas_bench_301',
    ('arch', 'val_acc', 'proxies', 'proxy_names'),
    lambda arrays: arrays['arch'].shape[1:] == (2, 8, 2),
    _cell_proxies,
    _sampled_cells,
    _darts_cells,
  ),
)


def find(name: str | os.PathLike) -> pathlib.Path:
  """The file of a path, or of a name in the folder JAXNAS_DATA_DIR.

  Raises:
    FileNotFoundError: if there is none, saying where it was looked for.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  folder = os.environ.get(FOLDER)
  if not folder:
    raise FileNotFoundError(
      f'no table {str(path)!r}. Give the path of an .npz file, or set {FOLDER} '
      'to the folder where they lie.'
    )
  held = pathlib.Path(folder) / path
  for found in (held, held.with_name(f'{held.name}.npz')):
    if found.is_file():
      return found
  there = sorted(p.stem for p in pathlib.Path(folder).glob('*.npz'))
  raise FileNotFoundError(
    f'no table {str(path)!r}, neither as a path nor in {FOLDER}={folder}, '
    f'which has {", ".join(there) or "no .npz file"}.'
  )


def _read(path: pathlib.Path) -> Arrays:
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  except (ValueError, OSError, AttributeError) as error:
    raise ValueError(
      f'{path}: not an .npz file of plain arrays ({error}).'
    ) from None


def _schema(path: Any, arrays: Arrays, schemas: Sequence[Schema]) -> Schema:
  for schema in schemas:
    if set(schema.needs) <= set(arrays) and schema.fits(arrays):
      return schema
  shapes = {name: values.shape for name, values in arrays.items()}
  known = '; '.join(
    f'{schema.name} has {", ".join(schema.needs)}' for schema in schemas
  )
  raise ValueError(f'{path}: of no known kind, it has {shapes}. {known}.')


def _order(path: Any, space: ArraySpace, genotypes: np.ndarray) -> np.ndarray:
  """The index of each row of a file that has every network once."""
  if len(genotypes) != space.size:
    raise ValueError(
      f'{path}: {space.name} has {space.size} networks, the file has '
      f'{len(genotypes)} rows.'
    )
  index = np.asarray(jax.jit(jax.vmap(space.index))(genotypes.astype(np.int32)))
  strange = np.flatnonzero(index < 0)
  if strange.size:
    raise ValueError(
      f'{path}: row {strange[0]} is {genotypes[strange[0]].tolist()}, which is '
      f'not in {space.name}.'
    )
  rows, counts = np.unique(index, return_counts=True)
  if len(rows) != space.size:
    twice = np.flatnonzero(index == rows[counts > 1][0])
    raise ValueError(
      f'{path}: rows {twice[0]} and {twice[1]} are the same network of '
      f'{space.name}.'
    )
  return index


def _placed(path: Any, name: str, column: Column, order: np.ndarray) -> Any:
  """A column in the order of the index, NaN where it has no row."""
  values = np.asarray(column.values)
  index = order if column.rows is None else order[column.rows]
  if len(values) != len(index):
    raise ValueError(
      f'{path}: {name!r} has {len(values)} values for {len(index)} rows.'
    )
  if values.dtype.kind not in 'fiub':
    raise ValueError(f'{path}: {name!r} holds {values.dtype}, not numbers.')
  if column.rows is None:
    placed = np.empty_like(values)
  else:
    shape = (len(order), *values.shape[1:])
    placed = np.full(shape, np.nan, np.float32)
  placed[index] = values
  if placed.dtype.kind == 'f':
    return jnp.asarray(placed, jnp.float32)
  return jnp.asarray(placed, bool if placed.dtype == bool else jnp.int32)


def load(
  name: str | os.PathLike,
  *more: str | os.PathLike | tuple[str, str | os.PathLike],
  schemas: Sequence[Schema] = SCHEMAS,
) -> Table:
  """The table of a file, with the columns of other files of its space.

  Rows are put in the order of the space's index. Several columns of one array
  have names of their own, such as `edgegpu_latency_cifar10` or `jigsaw_zen`.

  Args:
    name: the path of an `.npz` file, or its name in the folder that the
      environment variable JAXNAS_DATA_DIR names.
    *more: further files of the same space, or `(prefix, file)` for a prefix to
      the names of its columns. One that has no genotypes numbers its
      measurements by the rows of the first.
    schemas: the kinds of files to know.

  Returns:
    The table; its columns are JAX arrays, (size, ...).

  Raises:
    FileNotFoundError: for a file that is not there.
    ValueError: for a file of no known kind, of another space than the first,
      that lacks networks or has others, or a column that two files have with
      different values.

  Example:
    >>> import tempfile
    >>> cells = nas_bench_201.genotypes()[::-1]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   np.savez(f'{folder}/mine.npz', ops=cells, score=np.arange(15625.0))
    ...   table = load(f'{folder}/mine.npz')
    >>> table.space.name, float(table.columns['score'][0])
    ('nas_bench_201', 15624.0)
  """
  space, order = None, None
  columns: dict[str, jax.Array] = {}
  for each in (name, *more):
    prefix, file = each if isinstance(each, tuple) else ('', each)
    path = find(file)
    arrays = _read(path)
    schema = _schema(path, arrays, schemas)
    if space is not None and schema.of != space.name:
      raise ValueError(
        f'{path}: its networks are those of {schema.of}, and those of the '
        f'files before it of {space.name}; load it by itself.'
      )
    if schema.space is None:
      if order is None:
        raise ValueError(
          f'{path}: {schema.name} numbers networks by the rows of another '
          f'file, one of the genotypes of {schema.of}; load that first and '
          f'this after it, load(OTHER, {path.name!r}), in a job '
          f'--config.table=OTHER --config.more={path.name}.'
        )
      rows = order
    else:
      try:
        space = schema.space(arrays) if space is None else space
      except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
      rows = np.arange(space.size)
      if schema.genotypes is not None:
        rows = _order(path, space, schema.genotypes(arrays))
      order = rows if order is None else order
    for plain, column in schema.columns(arrays).items():
      key = prefix + plain
      placed = _placed(path, key, column, rows)
      if key in columns and not _same(columns[key], placed):
        raise ValueError(
          f'{path}: column {key!r} differs from that of a file before it; give '
          f"its columns a prefix, load(..., ('other_', {path.name!r})), in a "
          f'job --config.more=other_={path.name}.'
        )
      columns[key] = placed
  return Table(space, columns)


def _same(one: jax.Array, two: jax.Array) -> bool:
  one, two = np.asarray(one), np.asarray(two)
  if one.shape != two.shape:
    return False
  return bool(np.allclose(one, two, rtol=1e-6, atol=0, equal_nan=True))


def prefixed(table: Table, prefix: str) -> Table:
  """The table with a prefix to all names of its columns.

  Example:
    >>> table = Table(nas_bench_201.space(), {'val': jnp.zeros(15625)})
    >>> list(prefixed(table, 'cifar100_').columns)
    ['cifar100_val']
  """
  columns = {prefix + name: held for name, held in table.columns.items()}
  return table._replace(columns=columns)


def join(one: Table, *others: Table) -> Table:
  """One table with the columns of several of the same space.

  Raises:
    ValueError: for tables of different spaces, or a column that two of them
      have.

  Example:
    >>> one = Table(nas_bench_201.space(), {'val': jnp.zeros(15625)})
    >>> sorted(join(one, prefixed(one, 'other_')).columns)
    ['other_val', 'val']
  """
  columns = dict(one.columns)
  for other in others:
    if other.space.name != one.space.name:
      raise ValueError(
        f'join: tables are of {one.space.name} and {other.space.name}.'
      )
    both = sorted(set(columns) & set(other.columns))
    if both:
      raise ValueError(
        f'join: more than one table has {", ".join(both)}; give them names of '
        'their own by `prefixed`.'
      )
    columns |= other.columns
  return one._replace(columns=columns)


def column(table: Table, name: str) -> jax.Array:
  """A column of one number for each network.

  Args:
    table: the table.
    name: of the column; of one that has numbers of several seeds for each
      network `'name:place'`, the place of a seed from 0 on.

  Returns:
    (size,) float32, NaN where a network was not trained with the seed.

  Raises:
    KeyError: for a name that the table has not, saying what it has.
    ValueError: for a column of several numbers for each network, or a place
      that it has not.

  Example:
    >>> table = Table(nas_bench_201.space(), {'val': jnp.zeros(15625)})
    >>> column(table, 'val').shape
    (15625,)
    >>> column(table, 'test')
    Traceback (most recent call last):
      ...
    KeyError: "the table of nas_bench_201 has no column 'test', it has val"
    >>> runs = jnp.arange(2 * 15625).reshape(-1, 2)
    >>> column(Table(table.space, {'runs': runs}), 'runs:1')[:3].tolist()
    [1.0, 3.0, 5.0]
  """
  whole, _, place = name.rpartition(':')
  if name not in table.columns and whole in table.columns:
    return _of_seed(table, whole, place)
  if name not in table.columns:
    raise KeyError(
      f'the table of {table.space.name} has no column {name!r}, it has '
      f'{", ".join(sorted(table.columns))}'
    )
  values = jnp.asarray(table.columns[name])
  if values.shape != (table.space.size,):
    raise ValueError(
      f'column {name!r} is {values.shape}, of which a search needs one number '
      f'for each of the {table.space.size} networks of {table.space.name}; '
      f'take a mean, or one of them by {name + ":0"!r}.'
    )
  return values.astype(jnp.float32)


def _of_seed(table: Table, name: str, place: str) -> jax.Array:
  values = jnp.asarray(table.columns[name])
  seeds = values.shape[1] if values.ndim == 2 else 0
  if not place.isdecimal() or int(place) >= seeds:
    has = f'its seeds are 0 to {seeds - 1}' if seeds else 'it is of no seeds'
    raise ValueError(f'column {name!r} has no seed {place!r}, {has}')
  return values[:, int(place)].astype(jnp.float32)
