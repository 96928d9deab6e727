"""The job that searches tables: what it leaves, refuses and survives."""

import io
import json

import ml_collections
import numpy as np
import pytest
import rich.console

from configs import econas_nb201, evolution_nb201, nsga_nb201, robot_nb201
from jaxnas import jobs, workdir
from jaxnas.base import Table
from jaxnas.jobs.tabular import SEARCHES, read, results
from jaxnas.spaces import nas_bench_101, nas_bench_201

TIMED = ('compilations', 'seconds', 'compiling')


@pytest.fixture(scope='module')
def table(tmp_path_factory):
  """A table of made-up figures in an order of its own."""
  rng = np.random.default_rng(0)
  cells = rng.permutation(nas_bench_201.genotypes()).astype(np.uint8)
  size = np.asarray(nas_bench_201.params(cells)) / 1e6
  path = tmp_path_factory.mktemp('tables') / 'made_up.npz'
  np.savez(
    path,
    ops=cells,
    val_ep12=60 + 10 * size + rng.normal(size=15_625),
    val_ep200=70 + 10 * size,
    test_ep200=70 + 10 * size,
    train_time_ep12_s=np.full(15_625, 100.0),
    train_time_ep200_s=np.full(15_625, 1500.0),
    short=np.full(15_625, 1.0),
    long=np.full(15_625, 24.0),
    several=np.zeros((15_625, 3)),
    nothing=np.full(15_625, np.nan),
    good=size + rng.normal(scale=0.1, size=15_625),
    odd=np.where(rng.random(15_625) < 0.1, np.nan, rng.random(15_625)),
  )
  return path


def config(path, module=evolution_nb201, **changes):
  """A config of seconds, with the changes, `__` in place of dots."""
  settings = module.get_config()
  settings.table = str(path)
  settings.generations = 2
  settings.tabular.searches = 3
  settings.tabular.queries = 12
  settings.tabular.budget = 8.0
  settings.tabular.unit = 'queries'
  settings.tabular.population = 4
  settings.tabular.arms = 'random-evolution'
  settings.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return settings


def ladder(path, arms='halving', **changes):
  """A ladder of two rungs, with the changes."""
  settings = config(path, econas_nb201, tabular__arms=arms)
  settings.tabular.signal = 'val_ep200'
  settings.tabular.cost = 'train_time_ep200_s'
  settings.ladder.update(changes)
  return settings


def ran(settings: ml_collections.ConfigDict, folder) -> tuple[dict, str]:
  text = io.StringIO()
  console = rich.console.Console(file=text, width=120)
  return jobs.run(settings, folder, console=console), text.getvalue()


def timeless(tree):
  """Nested dicts and lists without what depends on clock and caches."""
  if isinstance(tree, dict):
    return {k: timeless(v) for k, v in tree.items() if k not in TIMED}
  return [timeless(v) for v in tree] if isinstance(tree, list) else tree


@pytest.fixture(scope='module')
def whole(table, tmp_path_factory):
  folder = tmp_path_factory.mktemp('job') / 'run'
  return folder, *ran(config(table), folder)


def test_a_job_leaves_everything_it_promises(whole):
  folder, summary, text = whole
  assert json.loads((folder / 'summary.json').read_text()) == summary
  for name in ('config.json', 'metrics.jsonl', 'curves.png', 'report.html'):
    assert (folder / name).stat().st_size > 100
  assert (folder / 'curves.png').read_bytes()[:4] == b'\x89PNG'
  assert set(summary['arms']) == {'random', 'evolution'}
  assert set(summary['baselines']) == {'most_parameters'}
  for row in (*summary['arms'].values(), *summary['baselines'].values()):
    assert row['queries'] == 8 and row['seconds_charged'] == 800
    assert row['searches'] == row['spent_budget'] == 3
    assert row['interval'][0] <= row['test'] <= row['interval'][1]
    assert 0 <= row['optimum'] <= 1
    # With all searches at the optimum the rank is 1, and it grows with each.
    assert (row['rank'] == 1) == (row['optimum'] == 1) and row['rank'] < 15_626
  found = summary['arms']['random']['found']
  assert nas_bench_201.parse(found['text']).tolist() == found['genotype']
  # The larger the better here, so nothing beats the ranking.
  best = summary['baselines']['most_parameters']['test']
  assert best > summary['arms']['evolution']['test']
  for word in ('random', 'evolution', 'most parameters', 'test_ep200 at 8 que'):
    assert word in text
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [(r['search'], r['generation']) for r in rows] == [
    *(('random', 1), ('random', 2), ('evolution', 1), ('evolution', 2))
  ]
  assert rows[1]['queries'] == 12 and rows[1]['evaluations'] == 36
  assert rows[0]['fitness'] <= rows[1]['fitness']


def test_a_job_stopped_on_the_way_ends_as_one_never_stopped(
  whole, table, tmp_path, monkeypatch
):
  folder, summary, _ = whole
  real, calls = workdir.summary_row, iter(range(100))

  class Stopped(Exception):
    pass

  def row(population):
    if next(calls) in (1, 3):
      raise Stopped
    return real(population)

  monkeypatch.setattr(workdir, 'summary_row', row)
  stopped = 0
  for _ in range(9):
    try:
      again, _ = ran(config(table), tmp_path / 'run')
      break
    except Stopped:
      stopped += 1
  assert stopped == 2
  assert timeless(again) == timeless(summary)
  with pytest.raises(ValueError, match='seed'):
    ran(config(table, seed=1), tmp_path / 'run')


@pytest.mark.slow
def test_fronts_have_their_hypervolume_and_picture(table, tmp_path):
  settings = config(table, nsga_nb201, tabular__arms='eeea-random')
  settings.tabular.less = 'flops'
  summary, _ = ran(settings, tmp_path / 'run')
  assert (tmp_path / 'run' / 'fronts.png').read_bytes()[:4] == b'\x89PNG'
  for row in summary['arms'].values():
    assert 0.5 < row['hypervolume'] <= 1
  assert summary['baselines']['most_parameters']['hypervolume'] < 0.9


def test_searches_that_do_not_spend_the_budget_are_named():
  settings = config('any', tabular__unit='seconds', tabular__budget=12000.0)
  row = {'test': 9.0, 'std': None, 'interval': None, 'optimum': 0.0}
  row |= {'queries': 12.0, 'seconds': 1.0, 'searches': 3}
  rows = {
    'some_arm': row | {'spent_budget': 0},
    'it': row | {'spent_budget': 3},
  }
  caption = results(rows, settings).caption
  assert caption.startswith('not all searches spent the budget: some arm (0 of')
  assert '; --config.tabular.queries' in caption and 'it (' not in caption
  assert results({'it': rows['it']}, settings).caption is None


def test_every_search_runs_and_repeats_may_be_free(table, tmp_path):
  settings = config(
    table,
    tabular__arms='local-reinforce',
    tabular__searches=1,
    tabular__repeats='free',
  )
  summary, _ = ran(settings, tmp_path / 'run')
  for row in summary['arms'].values():
    assert row['std'] is None and row['interval'] is None
    assert row['queries'] >= 7


@pytest.mark.parametrize(
  'arm',
  ['robot_published', pytest.param('robot_extremes', marks=pytest.mark.slow)],
)
def test_robot_stands_beside_each_of_its_metrics_alone(table, tmp_path, arm):
  settings = config(
    table,
    robot_nb201,
    tabular__arms=arm,
    predicted__columns='good,odd',
  )
  settings.more = ''
  summary, text = ran(settings, tmp_path / 'run')
  rows = summary['baselines']
  assert set(rows) == {'most_parameters', 'most_good', 'most_odd'}
  assert rows['most_good']['test'] > rows['most_odd']['test']
  assert summary['arms'][arm]['test'] > rows['most_odd']['test']
  assert 'most good' in text


def test_a_file_of_the_same_columns_is_joined_by_a_prefix(table, tmp_path):
  with np.load(table) as file:
    held = dict(file)
  other = tmp_path / 'other.npz'
  np.savez(other, ops=held['ops'], test_ep200=held['test_ep200'] - 20)
  settings = config(table, more=str(other))
  with pytest.raises(
    ValueError, match='test_ep200.*differs.*more=other_=other'
  ):
    read(jobs.resolve(settings))
  settings.more = f'its_={other}'
  settings.tabular.report = 'its_test_ep200'
  columns = read(jobs.resolve(settings)).columns
  first, second = columns['test_ep200'], columns['its_test_ep200']
  np.testing.assert_allclose(second, first - 20, rtol=1e-5)


def test_a_file_that_has_only_rows_is_joined_by_a_prefix(table, tmp_path):
  rows = tmp_path / 'rows.npz'
  np.savez(
    rows,
    proxy_names=np.array(['zen']),
    svhn_index=np.array([3]),
    svhn_val=np.array([90.0]),
    svhn_proxies=np.array([[1.0]]),
  )
  settings = config(table, more=f'its_={rows}')
  columns = read(jobs.resolve(settings)).columns
  with np.load(table) as file:
    index = nas_bench_201.space().index(file['ops'][3].astype(np.int32))
  assert float(columns['its_svhn_val'][int(index)]) == 90
  settings.table, settings.more = str(rows), str(table)
  with pytest.raises(ValueError, match='--config.table=OTHER --config.more='):
    read(jobs.resolve(settings))


def test_a_seed_of_a_column_is_searched_by(table):
  settings = config(table, tabular__signal='several:2')
  assert 'several' in read(jobs.resolve(settings)).columns
  settings.tabular.signal = 'several:3'
  with pytest.raises(
    ValueError, match="signal: .*no seed '3', its seeds are 0"
  ):
    read(jobs.resolve(settings))


def test_robot_needs_a_pool_that_can_be_listed(table, tmp_path):
  settings = config(
    table,
    robot_nb201,
    tabular__arms='robot',
    predicted__columns='good,nothing',
  )
  settings.more = ''
  with pytest.raises(ValueError, match='no network has all of good, nothing'):
    ran(settings, tmp_path / 'run')
  space = nas_bench_101.space(
    nas_bench_101.codes(nas_bench_101.enumerate_cells(3))
  )
  settings.predicted.columns = 'good'
  small = Table(space, {name: np.ones(6) for name in ('good', 'val_ep12')})
  with pytest.raises(ValueError, match='nb101 are not listed: 509,607,936 gen'):
    SEARCHES['robot'](jobs.resolve(settings), small)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'error', 'says'),
  [
    ({'table': 'nowhere.npz'}, FileNotFoundError, "no table 'nowhere.npz'"),
    ({'tabular__signal': 'valid'}, ValueError, 'signal: .* has no column'),
    ({'tabular__report': 'several'}, ValueError, 'report: .*take a mean'),
    ({'tabular__cost': 'hours'}, ValueError, 'tabular.cost: .*no column'),
    ({'tabular__less': 'watts'}, ValueError, 'tabular.less: .*no column'),
    ({'tabular__budget': 0.0}, ValueError, 'budget must be above 0 queries'),
    ({'tabular__budget': 0.5}, ValueError, 'at least 1 queries, .*got 0.5'),
    (
      {'tabular__unit': 'seconds', 'tabular__budget': 60.0},
      ValueError,
      'budget must be at least 100 seconds, which one question may take, got 6',
    ),
    ({'tabular__budget': 13.0}, ValueError, 'budget is 13 queries, .*ask 12'),
    ({'tabular__unit': 'days'}, ValueError, 'unit must be one of seconds'),
    (
      {'tabular__unit': 'seconds', 'tabular__cost': ''},
      ValueError,
      "unit='seconds' needs --config.tabular.cost",
    ),
    ({'tabular__repeats': 'no'}, ValueError, 'repeats must be one of paid'),
    (
      {'tabular__arms': 'random-magic'},
      ValueError,
      "arms must be of .*'random",
    ),
    ({'tabular__arms': 'nsga'}, ValueError, 'nsga needs --config.tabular.less'),
    ({'tabular__searches': 0}, ValueError, 'searches must be at least 1'),
    ({'tabular__queries': 0}, ValueError, 'queries must be at least 1'),
    ({'tabular__entrants': 0}, ValueError, 'entrants must be at least 1'),
    ({'generations': 0}, ValueError, 'generations must be at least 1'),
    ({'seed': -1}, ValueError, 'seed must be at least 0'),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_made(
  table, tmp_path, changes, error, says
):
  with pytest.raises(error, match=says):
    ran(config(table, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'first': 0}, 'ladder.first must be at least 1'),
    ({'promote': '2-1'}, 'promote must be 1 numbers, .* the 2 rungs'),
    ({'promote': 'two'}, 'promote must be whole numbers'),
    ({'promote': '40'}, r'exceed the 16 children .*; got \(40,\)'),
    ({'mothers': '0-0'}, 'mothers must be 2 numbers, some above 0'),
    ({'mothers': '16'}, 'mothers must be 2 numbers'),
    ({'costs': 'train_time_ep12_s'}, 'costs must be 2 columns or none'),
    ({'signals': 'val_ep200,val_ep12'}, 'signals must be .*shortest training'),
    (
      {'costs': 'train_time_ep200_s,train_time_ep12_s'},
      'costs must be .*shortest training first',
    ),
    ({'costs': 'long,short'}, 'ladder.costs: .*those of 15625 networks do'),
    ({'signals': 'val_ep12,val_ep90'}, 'ladder.signals: .*no column'),
    ({'costs': 'train_time_ep12_s,watts'}, 'ladder.costs: .*no column'),
  ],
)
def test_ladders_that_cannot_be_climbed_are_refused(
  table, tmp_path, changes, says
):
  with pytest.raises(ValueError, match=says):
    ran(ladder(table, **changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_table_is_climbed_by_every_arm(table, tmp_path):
  arms = 'econas-halving-flat_first-flat_last'
  settings = ladder(table, arms, first=4, promote='2', mothers='2-2')
  settings.tabular.unit, settings.tabular.budget = 'seconds', 4000.0
  summary, text = ran(settings, tmp_path / 'run')
  rows = summary['arms']
  # What 4000 seconds pay: a whole training is 1500, its beginning 100, and the
  # rest 1400. Four generations of four are all that flat_first asks; two go on
  # after the first four, and then two have a child, or four more are begun.
  paid = {
    'econas': (8, 4 * 100 + 2 * 1400 + 2 * 100),
    'halving': (10, 4 * 100 + 2 * 1400 + 4 * 100),
    'flat_first': (16, 16 * 100),
    'flat_last': (2, 2 * 1500),
  }
  assert set(rows) == set(paid)
  for name, (queries, seconds) in paid.items():
    row = rows[name]
    assert (row['queries'], row['seconds_charged']) == (queries, seconds), name
    assert name.replace('_', ' ') in text


def test_the_configs_name_searches_that_there_are():
  for module in (evolution_nb201, nsga_nb201):
    settings = jobs.resolve(module.get_config())
    jobs.check_tabular(settings)


@pytest.mark.slow
def test_the_quick_config_keeps_its_promise(tmp_path, tables_with):
  name = 'nb201_cifar10.npz'
  path = tables_with(name) / name
  settings = evolution_nb201.get_config()
  settings.quick, settings.table = True, str(path)
  arms = ran(settings, tmp_path / 'run')[0]['arms']
  assert abs(arms['random']['test'] - 93.76) < 0.15
  assert abs(arms['evolution']['test'] - 93.93) < 0.15
