"""RoBoT beside the optimiser that its own code uses, on NAS-Bench-201.

  python -m launch.bench.robot \\
      --tables=nb201_cifar10.npz,nb201_proxies_cifar10.npz

searches the networks that have all six metrics, by validation accuracy after 12
epochs, 20 of them a search, metrics scaled by their extremes. In turns

  ours       `algorithms.robot` as it is by default
  published  with `algorithms.likeliest_process`
  package    the steps of the paper with the package bayesian-optimization,
             version 1, which its code (hzf1174/RoBoT, `search_nb201.py`) calls;
             its settings are that version's defaults

and prints a JSON line for each: `searches`, mean and deviation of the test
accuracy, and `found`, the share of searches that came to the network of the
best test accuracy that any of them found. The paper reports ten searches, of
seeds 10 to 19; these are the first of the package, which takes ten seconds for
each, and come last by themselves.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags

from jaxnas import algorithms, spaces, stages
from jaxnas.run import rounds
from jaxnas.spaces import nas_bench_201
from jaxnas.stages import trials
from launch.bench import packages

_TABLES = flags.DEFINE_list(
  'tables', ['nb201_cifar10', 'nb201_proxies_cifar10'], 'Files of the table.'
)
_SEARCHES = flags.DEFINE_integer('searches', 300, 'Of ours.', lower_bound=1)
_SEEDS = flags.DEFINE_integer(
  'seeds', 10, 'Of the package, from 10 on.', lower_bound=0
)

SIX = ('grad_norm', 'snip', 'grasp', 'fisher', 'synflow', 'jacov')
TOTAL = 20

# By name, because it is no dependency of this project and in no BUILD file.
_PACKAGE = 'bayes_opt'


def ours(table, columns, pool, **options: Any) -> np.ndarray:
  """The networks that each search asked of, (searches, slots), -1 for none."""
  query = trials.query(table, 'val_ep12')
  stage = algorithms.robot(table, query, columns, pool, total=TOTAL, **options)
  start = trials.start(table.space, 2 * TOTAL)

  def one(key):
    return rounds(key, stage, start, 2 * TOTAL)[0].index

  keys = jax.random.split(jax.random.key(0), _SEARCHES.value)
  return np.asarray(jax.jit(jax.vmap(one))(keys))


def theirs(
  package: Any, seed: int, metrics: np.ndarray, value: Callable[[int], float]
) -> list[int]:
  """The networks that a search by the package asks of."""
  asked: list[int] = []
  best = (-np.inf, np.zeros(len(SIX)))

  def worth(**given: float) -> float:
    nonlocal best
    weights = np.asarray([given[name] for name in SIX])
    first = int(np.argsort(metrics @ weights)[-1])
    if value(first) >= best[0]:
      best = value(first), weights
    asked.extend([first] * (first not in asked))
    return value(first)

  search = package.BayesianOptimization(
    worth, {name: (-1, 1) for name in SIX}, random_state=seed, verbose=0
  )
  bound = package.UtilityFunction(kind='ucb', kappa=2.576, xi=0)
  search.maximize(init_points=0, n_iter=TOTAL - 1, acquisition_function=bound)
  for row in map(int, np.argsort(metrics @ best[1])[::-1]):
    asked.extend([row] * (row not in asked and len(asked) < TOTAL))
  return asked


def main(argv: list[str]) -> None:
  del argv
  package = _SEEDS.value and packages.installed(
    'launch.bench.robot',
    _PACKAGE,
    "'bayesian-optimization<2', or --seeds=0 to leave it out",
  )
  table = spaces.load(*_TABLES.value)
  columns = [f'nbsuite_{name}' for name in SIX]
  cells = nas_bench_201.genotypes()
  order = np.asarray(jax.vmap(table.space.index)(cells))
  held = np.stack([np.asarray(table.columns[c])[order] for c in columns], 1)
  known = np.isfinite(held).all(axis=1)
  rows, pool = order[known], cells[known]
  value, test = (
    np.asarray(table.columns[name], float)
    for name in ('val_ep12', 'test_ep200')
  )
  metrics = np.asarray(stages.scaled(held[known]), float)

  def picked(asked: np.ndarray) -> np.ndarray:
    """Test accuracies of the best of each search by the signal."""
    seen = np.where(asked < 0, -np.inf, value[asked])
    best = np.take_along_axis(asked, seen.argmax(axis=1)[:, None], axis=1)
    return test[best[:, 0]]

  found = {
    'ours': picked(ours(table, columns, pool)),
    'published': picked(
      ours(table, columns, pool, predictor=algorithms.likeliest_process())
    ),
  }
  if _SEEDS.value:
    asked = [
      theirs(package, seed, metrics, lambda row: value[rows[row]])
      for seed in range(10, 10 + _SEEDS.value)
    ]
    found['package'] = picked(rows[np.asarray(asked)])
    found['package, first ten'] = found['package'][:10]
  most = max(accuracies.max() for accuracies in found.values())
  for name, accuracies in found.items():
    row = {
      'search': name,
      'searches': len(accuracies),
      'test': round(accuracies.mean(), 3),
      'std': round(accuracies.std(), 3),
      'found': round(float((accuracies == most).mean()), 3),
    }
    print(json.dumps(row), flush=True)


if __name__ == '__main__':
  app.run(main)
