"""RoBoT: metrics weighed by questions, then the ranking walked down."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import algorithms, spaces, stages
from jaxnas.base import Table
from jaxnas.run import rounds
from jaxnas.spaces import nas_bench_201, tabular
from jaxnas.stages import trials

KEY = jax.random.key(0)
SIX = ('grad_norm', 'snip', 'grasp', 'fisher', 'synflow', 'jacov')


@pytest.fixture(scope='module')
def toy():
  """A table whose best network a weighted sum of two metrics ranks first."""
  space = tabular.independent('toy', (4,) * 4)
  rng = np.random.default_rng(0)
  one, two, noise = rng.normal(size=(3, space.size))
  columns = {'worth': one - two, 'one': one, 'two': two, 'noise': noise}
  columns = {k: jnp.asarray(v, jnp.float32) for k, v in columns.items()}
  cells = np.stack(np.unravel_index(np.arange(space.size), space.options), 1)
  return Table(space, columns), cells


def searched(table, pool, names, signal='worth', total=15, seeds=20, **options):
  """The networks asked by each search in its order, -1 for none."""
  query = trials.query(table, signal)
  stage = algorithms.robot(table, query, names, pool, total=total, **options)
  start = trials.start(table.space, 2 * total)

  def one(key):
    last, _ = rounds(key, stage, start, 2 * total)
    return last.index

  return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds)))


def best(values, index):
  """For each search the network of the most worth that it asked of."""
  seen = np.where(index < 0, -np.inf, np.asarray(values)[index])
  return np.take_along_axis(index, seen.argmax(axis=1)[:, None], axis=1)[:, 0]


def test_it_asks_of_so_many_networks_each_once_and_repeats_are_free(toy):
  table, pool = toy
  index = searched(table, pool, ('one', 'two', 'noise'))
  for row in index:
    asked = row[row >= 0]
    assert len(asked) == 15 == len(set(asked.tolist()))
  # In exploration some weights choose what was asked before.
  explored = (index[:, :15] >= 0).sum(axis=1)
  assert explored.min() < 15 and explored.min() >= 2


def test_exploitation_walks_down_the_ranking_of_one_metric(toy):
  """With one metric there are two rankings, and the better one is walked."""
  table, pool = toy
  index = searched(table, pool, ('one',), signal='one', total=6)
  ranking = np.argsort(-np.asarray(table.columns['one']))
  for row in index:
    asked = row[row >= 0]
    assert set(asked.tolist()) == {*ranking[:5].tolist(), ranking[-1]}


def test_weights_are_found_signs_as_well(toy):
  """It beats each metric alone, and random search, at equal questions."""
  table, pool = toy
  worth = np.asarray(table.columns['worth'])
  found = worth[best(worth, searched(table, pool, ('one', 'two', 'noise')))]
  alone = []
  for name in ('one', 'two', 'noise'):
    ranked = np.argsort(-np.asarray(table.columns[name]))[:15]
    alone.append(worth[ranked].max())
  rng = np.random.default_rng(0)
  chance = [worth[rng.choice(len(worth), 15)].max() for _ in range(200)]
  assert found.mean() > max(np.mean(alone), np.mean(chance)) + 0.3
  # Metrics that say nothing leave it at chance.
  nothing = searched(table, pool, ('noise',))
  assert worth[best(worth, nothing)].mean() < found.mean() - 0.3


def test_missing_metrics_count_as_nothing():
  scaled = stages.scaled(jnp.array([[1.0, jnp.nan], [3.0, 7.0], [2.0, 7.0]]))
  np.testing.assert_allclose(scaled, [[0, 0], [1, 0], [0.5, 0]])
  heavy = jnp.array([[0.0], [1.0], [1e6], [2.0]])
  np.testing.assert_allclose(stages.places(heavy)[:, 0] * 4, [1, 2, 4, 3])
  assert stages.scaled(heavy)[3, 0] < 1e-5  # Why there are places.


def test_what_is_refused(toy):
  table, pool = toy
  query = trials.query(table, 'worth')
  with pytest.raises(ValueError, match='total must be at least 2'):
    algorithms.robot(table, query, ('one',), pool, total=1)
  with pytest.raises(ValueError, match='columns name a metric'):
    algorithms.robot(table, query, (), pool)
  with pytest.raises(KeyError, match="no column 'synflow'"):
    algorithms.robot(table, query, ('synflow',), pool)
  with pytest.raises(ValueError, match='the pool is empty'):
    algorithms.robot(table, query, ('one',), pool[:0])
  with pytest.raises(ValueError, match=r'\[9, 0, 0, 0\], which is not in toy'):
    algorithms.robot(table, query, ('one',), np.array([[9, 0, 0, 0]]))
  with pytest.raises(ValueError, match=r'and \(A, M\), got \(256, 4\)'):
    stages.weigh(pool, np.arange(3), np.zeros((3, 2)), explore=1, total=2)


@pytest.mark.slow
def test_acceptance_on_nas_bench_201(tables_with):
  """20 questions: above random search, and close to the best metric alone.

  On the 9,444 networks that have the paper's metrics, as ranks.
  """
  files = ('nb201_cifar10.npz', 'nb201_proxies_cifar10.npz')
  folder = tables_with(*files)
  table = spaces.load(*(folder / name for name in files))
  names = [f'nbsuite_{name}' for name in SIX]
  every = nas_bench_201.genotypes()
  order = np.asarray(jax.vmap(table.space.index)(jnp.asarray(every)))
  metrics = np.stack([np.asarray(table.columns[n])[order] for n in names])
  known = np.isfinite(metrics).all(axis=0)
  pool, rows = every[known], order[known]
  value = np.asarray(table.columns['val_ep12'])
  report = np.asarray(table.columns['test_ep200_robot'])
  index = searched(table, pool, names, 'val_ep12', 20, 40, scale=stages.places)
  found = report[best(value, index)].mean()
  alone = []
  for name in names:
    ranked = rows[np.argsort(-np.asarray(table.columns[name])[rows])[:20]]
    alone.append(report[ranked[value[ranked].argmax()]])
  rng = np.random.default_rng(0)
  drawn = np.stack([rng.choice(rows, 20, replace=False) for _ in range(500)])
  chance = report[best(value, drawn)].mean()
  assert found >= chance + 0.5
  assert found >= np.mean(alone) and found >= max(alone) - 0.5
