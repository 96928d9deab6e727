"""Progressive search: its ladder, its predictor, and what it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import algorithms, estimators, spaces, stages
from jaxnas.base import Table
from jaxnas.run import rounds
from jaxnas.spaces import nas_bench_201, tabular
from jaxnas.stages import trials

KEY = jax.random.key(0)
SKIP = (1,) * 6
SIGNAL, REPORT = 'val_ep12', 'test_ep200_robot'


@pytest.fixture(scope='session')
def table(tables_with):
  """NAS-Bench-201 on CIFAR-10; skips where there is no file."""
  name = 'nb201_cifar10.npz'
  return spaces.load(tables_with(name) / name)


def searched(table, base, seeds=60, signal=SIGNAL, **options):
  """The trials of searches of 49 networks, and what they found at last."""
  stage = algorithms.pnas(
    table.space, trials.query(table, signal), base, **options
  )
  start = trials.start(table.space, 49)

  def one(key):
    last, _ = rounds(key, stage, start, 6)
    return last.genotypes, last.index, trials.incumbents(last).index[-1]

  return jax.tree.map(
    np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, seeds))
  )


def reported(table, found):
  return np.asarray(table.columns[REPORT])[found[2]]


@pytest.fixture(scope='module')
def progressive(table):
  return searched(table, SKIP)


def test_levels_are_asked_one_after_another_each_network_once():
  space = nas_bench_201.space()
  worth = (nas_bench_201.genotypes() * 1.0).sum(axis=1)
  table = Table(space, {'worth': jnp.asarray(worth, jnp.float32)})
  genotypes, index, best = searched(table, SKIP, 4, 'worth')
  level = (genotypes != 1).sum(axis=2)
  wanted = np.repeat(np.arange(1, 7), [24] + [5] * 5)
  np.testing.assert_array_equal(level, np.tile(wanted, (4, 1)))
  assert all(len(set(row.tolist())) == 49 for row in index)
  first = {tuple(cell) for cell in genotypes[0, :24].tolist()}
  assert len(first) == 24
  # A network extends one that was asked before it.
  for cell in genotypes[0, 29:].tolist():
    below = (genotypes[0] != np.array(cell)).sum(axis=1)
    assert (below == 1).any()
  # What adds up is climbed to its top.
  assert (genotypes.sum(axis=2).max(axis=1) == 24).all() and (best >= 0).all()


@pytest.mark.slow
def test_a_beam_that_is_drawn_is_no_search():
  space = tabular.independent('adds', (5,) * 6)
  rng = np.random.default_rng(0)
  cells = np.stack(np.unravel_index(np.arange(5**6), (5,) * 6), axis=1)
  worth = sum(rng.normal(size=5)[cells[:, place]] for place in range(6))
  table = Table(space, {'worth': jnp.asarray(worth, jnp.float32)})
  found = [
    np.asarray(worth)[searched(table, SKIP, 20, 'worth', **options)[2]].mean()
    for options in ({}, {'judge': stages.by_chance()})
  ]
  assert found[0] > found[1] + 1 and found[0] > np.quantile(worth, 0.999)


def test_what_is_refused():
  space = tabular.transnas_micro()
  table = Table(space, {'worth': jnp.zeros(4096)})
  query = trials.query(table, 'worth')
  with pytest.raises(ValueError, match=r'below each of .*got \(1, 2\)'):
    algorithms.pnas(space, query, (1, 2))
  with pytest.raises(ValueError, match=r'got \(1, 1, 1, 1, 1, 4\)'):
    algorithms.pnas(space, query, (1, 1, 1, 1, 1, 4))
  with pytest.raises(ValueError, match='keep must be a whole number'):
    algorithms.pnas(space, query, (1,) * 6, beam=0)


def test_acceptance_from_all_skip(table, progressive):
  """The paper's direction, on a prior that flatters it (see `pnas`)."""
  assert reported(table, progressive).mean() >= 94.2
  drawn = searched(table, SKIP, judge=stages.by_chance())
  assert reported(table, drawn).mean() <= 93.2


@pytest.mark.slow
def test_the_ladder_from_no_edges_fails(table):
  """Its extensions are dangling, and its first level says nothing."""
  found = searched(table, (0,) * 6)
  assert reported(table, found).mean() <= 93.5


def ranks(values):
  return np.argsort(np.argsort(values))


def test_the_next_level_is_ranked_before_it_is_seen(table, progressive):
  """Spearman above 0.3 at levels 2 to 5; below where labels are shuffled."""
  genotypes, index, _ = (part[:20] for part in progressive)
  every = nas_bench_201.genotypes()
  values = np.asarray(table.columns[SIGNAL])[
    np.asarray(jax.vmap(table.space.index)(jnp.asarray(every)))
  ]
  model = estimators.ridge(members=5, share=0.8)
  code = jax.jit(jax.vmap(table.space.encode))
  x = code(jnp.asarray(every))

  @jax.jit
  def fitted(key, cells, y, use):
    start = model.init(key, x.shape[1])
    return model.fit(key, start, jax.vmap(table.space.encode)(cells), y, use)

  level = (every != 1).sum(axis=1)
  agreed = {}
  rng = np.random.default_rng(0)
  for rung, asked in zip(range(2, 6), (24, 29, 34, 39)):
    there = np.flatnonzero(level == rung)
    for shuffled in (False, True):
      found = []
      for cells, rows in zip(genotypes, index):
        told = np.asarray(table.columns[SIGNAL])[rows]
        if shuffled:
          told = rng.permutation(told)
        y = (told - told[:asked].mean()) / told[:asked].std()
        params = fitted(
          KEY,
          jnp.asarray(cells),
          jnp.asarray(y, jnp.float32),
          jnp.arange(49) < asked,
        )
        said = np.asarray(model.predict(params, x[there]).mean)
        found.append(np.corrcoef(ranks(said), ranks(values[there]))[0, 1])
      agreed[rung, shuffled] = np.mean(found)
  assert min(agreed[rung, False] for rung in range(2, 6)) > 0.3, agreed
  assert max(abs(agreed[rung, True]) for rung in range(2, 6)) < 0.25, agreed
