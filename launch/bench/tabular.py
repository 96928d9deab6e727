"""How fast searches of a table are, against loops on the host.

  python -m launch.bench.tabular --table=nb201_cifar10.npz

runs regularized evolution (10 members, tournaments of 3) on NAS-Bench-201 for
300 queries, by `jaxnas.algorithms.array_evolution` for many seeds as one
compiled call, and by two NumPy loops of the same algorithm, one seed after
another. None pays for anything but the search; the table is in memory. One loop
draws its numbers as it needs them, which is how such loops are written; the
other draws all of a search in one call, and asks little more of NumPy than the
sums. Prints a JSON line:

  re_seeds                         seeds of the compiled call
  re_queries_per_second            of it, compiled before; the best of 30 calls
  numpy_queries_per_second         of the first loop, and
  drawn_before_queries_per_second  of the second: the best of 30 stretches,
                                   taken in turn with those calls
  re_queries_per_second_over_numpy the quotient by the first loop,
  re_over_drawn_before             and by the second
  re_over_numpy_with_compile       with compiling, for 10 times as many seeds
  re_mean, numpy_mean, drawn_before_mean
                                   mean best validation accuracy of each

and, of each that is installed, the seconds of one search of 300 queries of the
same space by Optuna (its random sampler), Syne Tune (its regularized evolution)
and NNI (its evolution tuner), the least of three after one that imports the
library: `<name>_seconds`, or `<name>_skipped` with the reason; and
`re_over_<name>`, our queries per second over theirs.
"""

import collections
import importlib
import importlib.util
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxnas import algorithms, spaces
from jaxnas.base import Table
from jaxnas.run import rounds
from jaxnas.stages import quick, trials
from launch.bench import delta_nas

_TABLE = flags.DEFINE_string('table', 'nb201_cifar10', 'The table.')
_SEEDS = flags.DEFINE_integer('seeds', 1000, 'Seeds of the compiled call.')
_WITHOUT = flags.DEFINE_bool('only_speed', False, 'Leave out other searches.')

QUERIES, SIZE, ENTRANTS = 300, 10, 3
SIGNAL = 'val_ep12'
_RADIX = 5 ** np.arange(5, -1, -1)


def numpy_evolution(
  rng: np.random.Generator, values: np.ndarray, queries: int = QUERIES
) -> float:
  """One search by a loop on the host; the best that it found.

  Args:
    rng: for its draws.
    values: (15625,) what is searched by, in the order of the index.
    queries: asked.
  """
  members, fitness, best = collections.deque(), collections.deque(), -np.inf
  for query in range(queries):
    if query < SIZE:
      child = rng.integers(5, size=6)
    else:
      entrants = rng.integers(SIZE, size=ENTRANTS)
      winner = max(entrants, key=fitness.__getitem__)
      child = members[winner].copy()
      place = rng.integers(6)
      child[place] = (child[place] + rng.integers(1, 5)) % 5
      members.popleft()
      fitness.popleft()
    value = values[child @ _RADIX]
    members.append(child)
    fitness.append(value)
    best = max(best, value)
  return float(best)


def drawn_before(
  rng: np.random.Generator, values: np.ndarray, queries: int = QUERIES
) -> float:
  """As `numpy_evolution`, with all draws made in one call before.

  Args:
    rng: for its draws.
    values: (15625,) what is searched by, in the order of the index.
    queries: asked.
  """
  first = rng.integers(5, size=(SIZE, 6))
  entrants = rng.integers(SIZE, size=(queries, ENTRANTS)).tolist()
  places = rng.integers(6, size=queries).tolist()
  shifts = rng.integers(1, 5, size=queries).tolist()
  members = list(first)
  fitness = values[first @ _RADIX].tolist()
  best = max(fitness)
  for query in range(queries - SIZE):
    winner = max(entrants[query], key=fitness.__getitem__)
    child = members[winner].copy()
    place = places[query]
    child[place] = (child[place] + shifts[query]) % 5
    value = float(values[child @ _RADIX])
    members.pop(0)
    fitness.pop(0)
    members.append(child)
    fitness.append(value)
    best = max(best, value)
  return best


LOOPS = {'numpy': numpy_evolution, 'drawn_before': drawn_before}


def compiled_evolution(table: Table) -> Callable[[jax.Array], jax.Array]:
  """A function of (seeds,) keys to the best that each search found."""
  query = trials.query(table, SIGNAL)
  stage = algorithms.array_evolution(
    table.space, query, size=SIZE, entrants=ENTRANTS
  )
  start = trials.start(table.space, QUERIES)

  def search(key: jax.Array) -> jax.Array:
    last, _ = rounds(quick(key), stage, start, QUERIES)
    return jnp.max(last.metrics['fitness'])

  return jax.jit(jax.vmap(search))


def speed(table: Table, seeds: int) -> dict[str, Any]:
  """The keys `re_*` and `numpy_*`."""
  values = np.asarray(table.columns[SIGNAL])
  many = jax.random.split(jax.random.key(0), 10 * seeds)
  started = time.perf_counter()
  jax.block_until_ready(compiled_evolution(table)(many))
  with_compile = 10 * seeds * QUERIES / (time.perf_counter() - started)
  search = compiled_evolution(table)
  keys = many[:seeds]
  best = jax.block_until_ready(search(keys))
  rng = np.random.default_rng(0)
  stretch, ours, found = 10, [], {}
  rates: dict[str, list[float]] = {}
  for _ in range(30):  # In turn, so that all see the same machine.
    started = time.perf_counter()
    jax.block_until_ready(search(keys))
    ours.append(seeds * QUERIES / (time.perf_counter() - started))
    for name, loop in LOOPS.items():
      started = time.perf_counter()
      found.setdefault(name, []).extend(
        loop(rng, values) for _ in range(stretch)
      )
      seconds = time.perf_counter() - started
      rates.setdefault(name, []).append(stretch * QUERIES / seconds)
  most = {name: max(rate) for name, rate in rates.items()}
  return {
    're_seeds': seeds,
    're_queries_per_second': round(max(ours)),
    **{f'{name}_queries_per_second': round(m) for name, m in most.items()},
    're_queries_per_second_over_numpy': round(max(ours) / most['numpy'], 1),
    're_over_drawn_before': round(max(ours) / most['drawn_before'], 1),
    're_over_numpy_with_compile': round(with_compile / most['numpy'], 1),
    're_mean': round(float(best.mean()), 3),
    **{f'{name}_mean': round(np.mean(f), 3) for name, f in found.items()},
  }


def _module(name: str) -> Any:
  """A module of a library that need not be installed."""
  return importlib.import_module(name)


def _optuna(values: np.ndarray) -> None:
  optuna = _module('optuna')
  optuna.logging.set_verbosity(optuna.logging.ERROR)

  def objective(trial: Any) -> float:
    ops = [trial.suggest_int(f'edge{edge}', 0, 4) for edge in range(6)]
    return float(values[np.array(ops) @ _RADIX])

  sampler = optuna.samplers.RandomSampler(seed=0)
  study = optuna.create_study(direction='maximize', sampler=sampler)
  study.optimize(objective, n_trials=QUERIES)


def _syne_tune(values: np.ndarray) -> None:
  # Imported first: its parts import each other in a circle.
  _module('syne_tune.optimizer.schedulers.single_objective_scheduler')
  space = _module('syne_tune.config_space')
  choices = {f'edge{edge}': space.randint(0, 4) for edge in range(6)}
  found = _module(
    'syne_tune.optimizer.schedulers.searchers.regularized_evolution'
  )
  searcher = found.RegularizedEvolution(
    choices, population_size=SIZE, sample_size=ENTRANTS, random_seed=0
  )
  for number in range(QUERIES):
    config = searcher.suggest()
    ops = np.array([config[f'edge{edge}'] for edge in range(6)])
    searcher.on_trial_complete(number, config, -float(values[ops @ _RADIX]))


def _nni(values: np.ndarray) -> None:
  found = _module('nni.algorithms.hpo.evolution_tuner')
  tuner = found.EvolutionTuner(optimize_mode='maximize', population_size=SIZE)
  edge = {'_type': 'choice', '_value': list(range(5))}
  tuner.update_search_space({f'edge{i}': edge for i in range(6)})
  for number in range(QUERIES):
    config = tuner.generate_parameters(number)
    ops = np.array([config[f'edge{i}'] for i in range(6)])
    tuner.receive_trial_result(number, config, float(values[ops @ _RADIX]))


OTHERS = {'optuna': _optuna, 'syne_tune': _syne_tune, 'nni': _nni}


def others(table: Table, rate: float) -> dict[str, Any]:
  """The keys of other libraries, beside our queries a second."""
  values = np.asarray(table.columns[SIGNAL])
  measured: dict[str, Any] = {}
  for name, search in OTHERS.items():
    if importlib.util.find_spec(name) is None:
      measured[f'{name}_skipped'] = 'not installed'
      continue
    try:
      seconds = []
      for _ in range(4):
        started = time.perf_counter()
        search(values)
        seconds.append(time.perf_counter() - started)
      measured[f'{name}_seconds'] = round(min(seconds[1:]), 3)
      measured[f're_over_{name}'] = round(rate * min(seconds[1:]) / QUERIES)
    except Exception as error:  # Of another version than was tried.
      measured[f'{name}_skipped'] = f'{type(error).__name__}: {error}'[:200]
  return measured


def main(argv: list[str]) -> None:
  del argv
  table = spaces.load(_TABLE.value)
  measured = speed(table, _SEEDS.value)
  if not _WITHOUT.value:
    rate = measured['re_queries_per_second']
    measured |= {**others(table, rate), **delta_nas.measure()}
  print(json.dumps(measured))


if __name__ == '__main__':
  app.run(main)
