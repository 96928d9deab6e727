"""Delta-NAS, BANANAS and the stages they are made of."""

import io
import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import rich.console

from configs import delta_nas_nb201, pnas_nb201, robot_nb201
from jaxnas import algorithms, estimators, jobs, spaces, stages
from jaxnas.base import Table
from jaxnas.jobs.tabular import read
from jaxnas.run import rounds, run
from jaxnas.spaces import tabular
from jaxnas.stages import trials
from launch.bench import delta_nas as bench

KEY = jax.random.key(0)


@pytest.fixture(scope='session')
def data(tables_with):
  """The folder of real tables; skips where there is none."""
  return tables_with('nb201_cifar10.npz')


def synthetic(seed=0, options=(3,) * 6, broken=0.2):
  """A table of effects that add up, some pairs, and broken networks."""
  rng = np.random.default_rng(seed)
  space = tabular.independent('synthetic', options)
  cells = np.stack(np.unravel_index(np.arange(space.size), options), axis=1)
  worth = sum(rng.normal(size=n)[cells[:, i]] for i, n in enumerate(options))
  worth += rng.normal(size=(3, 3))[cells[:, 0], cells[:, 1]]
  worth = 90 + worth
  free = worth + rng.normal(size=space.size)
  worth[rng.random(space.size) < broken] = 10.0
  columns = {'worth': worth, 'free': free}
  columns = {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}
  return Table(space, columns)


def listed(table):
  """All genotypes of a synthetic table, and what they are worth."""
  space = table.space
  grid = np.unravel_index(np.arange(space.size), space.options)
  return np.stack(grid, axis=1), np.asarray(table.columns['worth'])


def search(table, signal='worth', queries=40, seeds=40, **options):
  """(seeds, Q) what searches of equal size asked of, and its fitness."""
  make = options.pop('make', algorithms.delta_nas)
  first, keep = options.setdefault('first', 10), options.setdefault('keep', 5)
  stage = make(table.space, trials.query(table, signal), **options)
  start = trials.start(table.space, queries)
  generations = 1 + (queries - first) // keep

  def one(key):
    last, _ = rounds(key, stage, start, generations)
    return last.index, last.metrics['fitness']

  return jax.tree.map(
    np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds))
  )


def mean_best(found):
  return np.nanmax(found[1], axis=1).mean()


@pytest.fixture(scope='module')
def toy():
  return synthetic()


@pytest.fixture(scope='module')
def differences(toy):
  return search(toy)


def test_it_asks_of_each_network_once_and_finds_better_than_chance(
  toy, differences
):
  index, fitness = differences
  assert (index >= 0).mean() > 0.95
  for row in index:
    known = row[row >= 0]
    assert len(set(known.tolist())) == len(known)
  np.testing.assert_array_equal(
    fitness[index >= 0], np.asarray(toy.columns['worth'])[index[index >= 0]]
  )
  blind = search(toy, judge=stages.by_chance())
  assert mean_best(differences) > mean_best(blind) + 0.3
  # All begin with the same questions.
  np.testing.assert_array_equal(blind[0][:, :10], index[:, :10])


@pytest.mark.slow
def test_broken_networks_spoil_what_is_learned_unless_they_are_clipped(
  toy, differences
):
  spoilt = search(toy, clip=0.0)
  assert mean_best(differences) > mean_best(spoilt)


@pytest.mark.slow
def test_free_columns_are_features_or_are_learned_before(toy):
  """Both help where there are few questions; a wrong sign does not."""
  judge = stages.by_difference(estimators.ridge_difference())
  few = {'queries': 20, 'judge': judge}
  alone = mean_best(search(toy, **few))
  read = stages.features(toy, ['free'])
  assert mean_best(search(toy, read=read, **few)) > alone
  prior = stages.pretrained(judge, toy, 'free', key=KEY, examples=200)
  assert mean_best(search(toy, prior=prior, **few)) > alone
  wrong = toy._replace(columns={'free': -toy.columns['free']})
  prior = stages.pretrained(judge, wrong, 'free', key=KEY, examples=200)
  assert mean_best(search(toy, prior=prior, **few)) < alone


@pytest.mark.slow
def test_offline_fits_once_and_knows_less(toy, differences):
  once = search(toy, offline=True)
  np.testing.assert_array_equal(once[0][:, :15], differences[0][:, :15])
  assert (once[0] != differences[0]).any()
  assert mean_best(once) < mean_best(differences)


def test_a_restart_begins_where_nothing_was_better_for_long():
  """Slot by slot: the best is in slot 1, and the third after it is the last."""
  space = tabular.independent('trap', (5,) * 4)
  near = trials.neighbours(space, 1)
  again = stages.restarting(space, near, patience=3, least=1)
  propose = jax.jit(lambda held: (again(KEY, held), near(KEY, held)))
  empty = jax.tree.map(np.asarray, trials.start(space, 8))

  def told(*fitness):
    """Of genotypes 0001, 0002, ... in turn."""
    cells, worth = np.zeros((8, 4), np.int32), np.full(8, np.nan, np.float32)
    cells[:, 3], cells[:, 2] = np.arange(8) % 5, np.arange(8) // 5
    worth[: len(fitness)] = fitness
    held = empty._replace(
      genotypes=cells,
      metrics={**empty.metrics, 'fitness': worth},
      count=np.int32(len(fitness)),
    )
    return [np.asarray(made) for made in propose(held)]

  made, plain = told(1, 2, 0, 0)
  np.testing.assert_array_equal(made, plain)
  # All of it is random, though the best of all is where it was.
  made, control = told(1, 2, 0, 0, 0)
  assert made.shape == plain.shape and (control == plain).all()
  assert (made != 0).sum(axis=1).max() == 4
  # The next episode is about its own best, and the control is not.
  made, control = told(1, 2, 0, 0, 0, 0.5)
  fifth = space.neighbours(jnp.array([0, 0, 1, 0]))[0]
  np.testing.assert_array_equal(made, fifth)
  assert (control == plain).all()
  # A better one puts the end off, and what is not known does not.
  made, control = told(1, 2, 0, 3, 0)
  np.testing.assert_array_equal(made, control)
  made, control = told(1, 2, np.nan, np.nan, np.nan)
  assert (made != 0).sum(axis=1).max() == 4
  with pytest.raises(ValueError, match='patience must be'):
    stages.restarting(space, near, patience=0)


@pytest.mark.slow
def test_restarts_leave_an_optimum_that_neighbours_cannot():
  """Two hills: from the lower one no edit leads up."""
  space = tabular.independent('hills', (3,) * 4)
  cells = np.stack(np.unravel_index(np.arange(81), (3,) * 4), axis=1)
  low, high = (cells != 0).sum(axis=1), (cells != 2).sum(axis=1)
  worth = np.maximum(5.0 - low, np.where(high < 2, 8.0 - high, 0.0))
  table = Table(space, {'worth': jnp.asarray(worth, jnp.float32)})
  near = trials.neighbours(space, 1)
  again = stages.restarting(space, near, patience=5, least=1)
  found = {
    name: search(
      table,
      queries=45,
      seeds=60,
      first=5,
      keep=2,
      judge=stages.by_chance(),
      propose=propose,
    )
    for name, propose in {'again': again, 'near': near}.items()
  }
  solved = {
    name: (np.nanmax(fitness, axis=1) == 8.0).mean()
    for name, (_, fitness) in found.items()
  }
  assert solved['again'] > solved['near'] + 0.15
  index = found['again'][0]
  for row in index:
    asked = row[row >= 0]
    assert len(set(asked.tolist())) == len(asked)


def test_a_settled_judge_knows_what_it_learned_before_and_no_more(toy):
  """The same judge that goes on learning does not."""
  judge = stages.by_value(estimators.ridge())
  cells, worth = listed(toy)
  x = jax.jit(jax.vmap(toy.space.encode))(cells)
  prior = stages.pretrained(judge, toy, 'free', key=KEY, examples=100)
  settled = stages.settled(judge, prior)
  rows = slice(0, 700, 35)
  wrong = stages.Known(cells[rows], x[rows], -worth[rows], np.ones(20, bool))

  def agrees(judge, start):
    said = judge.score(KEY, judge.fit(KEY, start, wrong), wrong, x, cells)
    return np.corrcoef(said, toy.columns['free'])[0, 1]

  assert agrees(settled, settled.init(KEY, 18)) > 0.5
  assert agrees(judge, prior()) < 0.3


def test_what_is_learned_before_is_scaled_as_asked(toy):
  """Clipped, the broken networks are no longer most of the loss."""
  judge = stages.by_value(estimators.ridge(basis=estimators.plain()))
  cells, worth = listed(toy)
  x = jax.jit(jax.vmap(toy.space.encode))(cells)
  intact = worth > 50
  fits = []
  for scale in (None, lambda column: stages.targets(column, 0.6)):
    prior = stages.pretrained(
      judge, toy, 'worth', key=KEY, examples=100, scale=scale
    )
    said = judge.score(KEY, prior(), None, x, cells)
    fits.append(np.corrcoef(np.asarray(said)[intact], worth[intact])[0, 1])
  assert fits[1] > fits[0] + 0.03


@pytest.mark.slow
def test_the_loop_of_the_host_and_the_scan_are_one_search(toy):
  stage = algorithms.delta_nas(
    toy.space, trials.query(toy, 'worth'), first=10, keep=5, offline=True
  )
  start = trials.start(toy.space, 25)
  one, _ = run(KEY, stage, start, 4)
  two, _ = jax.jit(lambda key: rounds(key, stage, start, 4))(KEY)
  np.testing.assert_array_equal(one.index, two.index)
  assert int(one.spent.evaluations) == int((one.index >= 0).sum()) > 20


@pytest.mark.slow
def test_wanderers_leave_an_optimum_that_neighbours_cannot():
  """All neighbours of the best are asked; what is two edits away is better."""
  space = tabular.independent('trap', (2,) * 4)
  worth = jnp.zeros(16).at[0].set(1.0).at[0b1100].set(2.0)
  table = Table(space, {'worth': worth})
  parent = jnp.zeros((1, 4), jnp.int32)
  near = space.neighbours(parent[0])[0]
  start = trials.start(space, 9)._replace(
    pending=jnp.concatenate([parent, near]), wanted=jnp.ones(5, bool)
  )
  asked, _ = trials.query(table, 'worth').update(KEY, start, ())
  around = trials.neighbours(space, 1)(KEY, asked)
  assert (
    not trials.unseen(space)
    .update(KEY, asked._replace(pending=around, wanted=jnp.ones(4, bool)), ())[
      0
    ]
    .wanted.any()
  )
  far = stages.wanderers(space, of=1, count=60)(KEY, asked)
  assert [1, 1, 0, 0] in far.tolist()
  assert (far != parent).sum(axis=1).max() == 2


def test_scores_are_those_of_the_nearest_known_where_none_is_within_reach():
  cells = jnp.array([[0, 0, 0, 0], [1, 1, 1, 1]])
  known = stages.Known(
    cells, jnp.zeros((2, 3)), jnp.array([5.0, -5.0]), jnp.ones(2, bool)
  )
  model = estimators.ridge_difference()
  judge = stages.by_difference(model, reach=1)
  params = judge.init(KEY, 3)
  new = jnp.array([[0, 0, 2, 2], [1, 1, 1, 2]])
  said = judge.score(KEY, params, known, jnp.zeros((2, 3)), new)
  np.testing.assert_allclose(said, [5.0, -5.0])
  nobody = known._replace(use=jnp.zeros(2, bool))
  said = judge.score(KEY, params, nobody, jnp.zeros((2, 3)), new)
  assert np.isfinite(said).all()


@pytest.mark.slow
def test_bananas_learns(toy):
  judge = stages.by_value(
    estimators.mlp(widths=(16,), members=3, steps=60), stages.thompson()
  )
  few = {'make': algorithms.bananas, 'seeds': 10, 'queries': 30}
  blind = search(toy, judge=stages.by_chance(), **few)
  assert mean_best(search(toy, judge=judge, **few)) > mean_best(blind)


def test_what_is_refused(toy):
  query = trials.query(toy, 'worth')
  with pytest.raises(ValueError, match='keep must be a whole number'):
    algorithms.delta_nas(toy.space, query, keep=0)
  with pytest.raises(ValueError, match=r'clip must be in \[0, 1\), got 1'):
    algorithms.delta_nas(toy.space, query, clip=1)
  with pytest.raises(ValueError, match='mutants must be at least 2, got 1'):
    algorithms.bananas(toy.space, query, mutants=1)
  with pytest.raises(KeyError, match="no column 'naswot', it has free, worth"):
    stages.features(toy, ['naswot'])
  judge = stages.by_chance()
  with pytest.raises(KeyError, match="no column 'naswot'"):
    stages.pretrained(judge, toy, 'naswot', key=KEY)
  few = trials.start(toy.space, 5)._replace(
    pending=jnp.zeros((2, 6), jnp.int32), wanted=jnp.ones(2, bool)
  )
  stage = stages.surrogate(toy.space, judge, keep=3)
  with pytest.raises(ValueError, match='3 of 2 pending'):
    stage.update(KEY, few, stage.init(few))


def optimum(table, found):
  """The share of searches that found the best of the signal."""
  best = float(table.columns['val_ep200'].max())
  return (np.nanmax(found[1], axis=1) == best).mean()


def on_nas_bench_201(table, seeds, **options):
  return optimum(
    table,
    search(
      table, 'val_ep200', queries=100, seeds=seeds, **{'first': 20, **options}
    ),
  )


@pytest.mark.slow
def test_it_finds_the_optimum_of_nas_bench_201(data):
  table = spaces.load(data / 'nb201_cifar10.npz')
  judge = stages.by_difference(estimators.ridge_difference(context='none'))
  assert on_nas_bench_201(table, 100, judge=judge) >= 0.65
  assert on_nas_bench_201(table, 100, judge=stages.by_chance()) <= 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'least'), [('nb201_cifar10', 0.75), ('nb201_cifar100', 0.85)]
)
def test_acceptance_on_nas_bench_201(data, name, least):
  """One set of settings; evolution and the blind search are far behind.

  Accuracies predicted from the same features are as good as differences.
  """
  table = spaces.load(data / f'{name}.npz')
  seeds = 400
  found = on_nas_bench_201(table, seeds)
  assert found >= least
  blind = on_nas_bench_201(table, seeds, judge=stages.by_chance())
  evolution = search(
    table,
    'val_ep200',
    queries=100,
    seeds=seeds,
    make=lambda space, query, **_: algorithms.array_evolution(
      space, query, size=10, entrants=3, unique=True
    ),
    first=0,
    keep=1,
  )
  assert max(blind, optimum(table, evolution)) < found - 0.3
  judges = (
    stages.by_value(estimators.ridge()),
    stages.by_difference(estimators.ridge_difference(context='none')),
  )
  for judge in judges:
    assert abs(on_nas_bench_201(table, seeds, judge=judge) - found) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize('name', ['cifar10', 'cifar100'])
def test_with_a_free_proxy_half_of_the_searches_need_50_questions(data, name):
  """SynFlow as a feature, or learned before; without it fewer do."""
  files = (f'nb201_{name}.npz', f'nb201_proxies_{name}.npz')
  table = spaces.load(*(data / file for file in files))
  judge = stages.by_difference(estimators.ridge_difference())
  prior = stages.pretrained(judge, table, 'logsynflow', key=KEY)
  found = [
    optimum(
      table,
      search(
        table, 'val_ep200', queries=50, seeds=200, first=20, judge=judge, **more
      ),
    )
    for more in ({'prior': prior}, {})
  ]
  assert found[0] >= 0.5
  assert found[1] < found[0] - 0.05


@pytest.fixture
def file(tmp_path):
  """A table of NAS-Bench-201 with made numbers, as a file."""
  ops = spaces.nas_bench_201.genotypes()
  rng = np.random.default_rng(0)
  worth = 80 + rng.normal(size=(6, 5))[np.arange(6), ops].sum(axis=1)
  columns = {'val_ep200': worth, 'test_ep200': worth + 1, 'val_ep12': worth - 9}
  seconds = np.full(len(ops), 100.0)
  np.savez(
    tmp_path / 'made.npz',
    ops=ops,
    train_time_ep12_s=seconds,
    good=worth + rng.normal(size=len(ops)),
    bad=rng.normal(size=len(ops)),
    **columns,
  )
  return tmp_path / 'made.npz'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('module', 'changes'),
  [
    (delta_nas_nb201, {'tabular.arms': 'delta-bananas-value-neighbour'}),
    (
      delta_nas_nb201,
      {
        'tabular.arms': (
          'taught_delta-settled_value-once_delta-restarted_value'
          '-narrow_delta-neighbour'
        ),
        'predicted.target': 'good',
        'tabular.queries': 40,
        'tabular.budget': 40.0,
      },
    ),
    (pnas_nb201, {'tabular.arms': 'pnas-random_beam'}),
    (robot_nb201, {'more': '', 'predicted.columns': 'good,bad'}),
  ],
)
def test_the_jobs_arms_run_from_a_config(file, tmp_path, module, changes):
  config = module.get_config()
  config.update_from_flattened_dict(
    {'table': str(file), 'quick': True, 'tabular.searches': 3, **changes}
  )
  config.when_quick = ml_collections.ConfigDict()
  console = rich.console.Console(file=io.StringIO())
  summary = jobs.run(config, tmp_path / 'run', console=console)
  budget = config.tabular.queries
  for name, row in summary['arms'].items():
    guided = re.search('delta|bananas|value|neighbour', name)
    least = 0.85 if guided else 1
    assert least * budget <= row['queries'] <= budget, name
  if config.predicted.target:
    assert 'most_good' in summary['baselines']
  arms = list(summary['arms'].values())
  assert arms[0]['test'] > arms[-1]['test']
  again = jobs.run(config, tmp_path / 'run', console=console)
  assert again['arms'].keys() == summary['arms'].keys()


def test_a_column_to_be_learned_before_must_be_there(file):
  config = delta_nas_nb201.get_config()
  config.update_from_flattened_dict(
    {
      'table': str(file),
      'tabular.arms': 'taught_delta',
      'predicted.target': 'synflow',
    }
  )
  with pytest.raises(
    ValueError, match='predicted.target: .*it has bad, .*good'
  ):
    read(jobs.resolve(config))


def test_arms_of_the_benchmark_are_named_or_refused(file):
  table = spaces.load(file)

  def more():
    columns = {
      'logsynflow': table.columns['good'],
      'other_val_ep200': table.columns['bad'],
    }
    return table._replace(columns={**table.columns, **columns})

  assert list(bench.chosen(table, [], more)) == [
    'delta',
    'plain_delta',
    'absolute',
    'plain_absolute',
    'neighbour',
    'evolution',
  ]
  few = bench.chosen(table, ['neighbour'], lambda: pytest.fail('loaded'))
  assert list(few) == ['neighbour']
  arms = ['restarted_delta', 'settled_absolute_other', 'evolution']
  assert list(bench.chosen(table, arms, more)) == arms
  with pytest.raises(ValueError, match="'fast' is not one of delta, .*once_"):
    bench.chosen(table, ['fast'], more)


@pytest.mark.parametrize(
  ('module', 'changes', 'says'),
  [
    (
      delta_nas_nb201,
      {'predicted.first': 101},
      'lets a search ask 100',
    ),
    (delta_nas_nb201, {'predicted.keep': 0}, r'keep must be at least 1, got 0'),
    (
      delta_nas_nb201,
      {'predicted.patience': 0},
      r'patience must be at least 1, got 0',
    ),
    (
      delta_nas_nb201,
      {'tabular.arms': 'delta-settled_value'},
      'predicted.target: settled_value needs the column that it learns',
    ),
    (robot_nb201, {'predicted.columns': ''}, 'robot needs metrics'),
    (pnas_nb201, {'predicted.base': '1-x'}, "joined by '-'.*got '1-x'"),
  ],
)
def test_settings_are_refused_before_a_table_is_read(module, changes, says):
  config = module.get_config()
  config.update_from_flattened_dict({'table': 'nowhere.npz', **changes})
  with pytest.raises(ValueError, match=says):
    jobs.CHECKS['tabular'](jobs.resolve(config))
