"""What the benchmark of proxies draws of a table, and what it keeps."""

import functools

import numpy as np
import pytest
from absl import app, flags

from jaxnas import spaces
from jaxnas.base import Table
from jaxnas.spaces import nas_bench_201

SPACE = spaces.nas_bench_201.space()
# As of tables that measured half of all cells.
KNOWN = np.arange(SPACE.size) % 2 == 0


@pytest.fixture(scope='module')
def bench():
  """The benchmark, with flags of its own: others have some of their names."""
  own = flags.FlagValues()
  with pytest.MonkeyPatch.context() as patch:
    for name in ('integer', 'string', 'list', 'enum'):
      define = getattr(flags, f'DEFINE_{name}')
      alone = functools.partial(define, flag_values=own)
      patch.setattr(flags, f'DEFINE_{name}', alone)
    from launch.bench import proxies
  return proxies


@pytest.fixture(scope='module')
def table():
  worth = np.random.default_rng(0).normal(size=SPACE.size)
  columns = {
    'nbsuite_mask': KNOWN,
    'nbsuite_nwot': np.where(KNOWN, worth, np.nan),
    'nbsuite_snip': np.where(np.arange(SPACE.size) == 2, np.inf, -worth),
    'nbsuite_params': worth,
    'test_ep200': worth,
  }
  return Table(SPACE, columns)


def test_columns_are_called_as_in_the_suite(bench, table):
  assert bench.column('naswot') == 'nbsuite_nwot'
  assert bench.column('snip') == 'nbsuite_snip'
  assert bench.proxies(table, ['all']) == ['params', 'snip', 'naswot']
  assert bench.proxies(table, ['snip']) == ['snip']
  with pytest.raises(app.UsageError, match=r"no \['zen'\]"):
    bench.proxies(table, ['snip', 'zen'])


def test_cells_are_those_with_values_and_the_same_for_all_proxies(bench, table):
  cells = bench.drawn(table, ['naswot', 'snip'], 50)
  rows = [
    int(np.flatnonzero((nas_bench_201.genotypes() == cell).all(axis=1))[0])
    for cell in cells.genotypes
  ]
  assert len(set(rows)) == 50 and KNOWN[rows].all() and 2 not in rows
  worth = table.columns['test_ep200'][rows]
  np.testing.assert_array_equal(cells.accuracy, worth)
  np.testing.assert_array_equal(cells.published['snip'], -worth)
  np.testing.assert_array_equal(
    cells.params, nas_bench_201.params(cells.genotypes)
  )
  assert cells.everywhere == pytest.approx({'naswot': 1, 'snip': -1})
  # Fewer are the first of these, and other proxies are of the same cells.
  fewer = bench.drawn(table, ['params'], 20)
  np.testing.assert_array_equal(fewer.genotypes, cells.genotypes[:20])


def test_scores_are_kept_for_the_run_that_goes_on(bench, tmp_path):
  path = str(tmp_path / 'scores.npz')
  assert np.isnan(bench.kept('', 'a', ['snip'], 3)['snip']).all()
  assert np.isnan(bench.kept(path, 'a', ['snip'], 3)['snip']).all()
  bench.keep(path, 'a', {'snip': np.array([1.0, np.nan, np.nan])})
  bench.keep(path, 'a', {'naswot': np.arange(3.0)})
  # More cells than before, or fewer; proxies that are not there yet.
  found = bench.kept(path, 'a', ['snip', 'naswot', 'zen'], 4)
  np.testing.assert_array_equal(found['snip'], [1] + [np.nan] * 3)
  np.testing.assert_array_equal(found['naswot'], [0, 1, 2, np.nan])
  assert np.isnan(found['zen']).all()
  assert bench.kept(path, 'a', ['naswot'], 2)['naswot'].tolist() == [0, 1]
  with pytest.raises(app.UsageError, match='is of a run with a, not b'):
    bench.kept(path, 'b', ['snip'], 3)
  assert [file.name for file in tmp_path.iterdir()] == ['scores.npz']
