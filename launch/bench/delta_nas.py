"""Delta-NAS and its controls on NAS-Bench-201, and their speed.

  python -m launch.bench.delta_nas

runs searches of 100 queries by the validation accuracy after 200 epochs on
CIFAR-10 and CIFAR-100 (`nb201_cifar10` and `nb201_cifar100` in the folder
JAXNAS_DATA_DIR), with the same settings for both: `jaxnas.algorithms.delta_nas`
by its default, the control that predicts accuracies from the same features, and
both without products of features; any neighbour; and regularized evolution.
Prints a JSON line:

  delta_optimum_c10, ...      share of the searches that found the optimum;
                              of delta, plain_delta, absolute, plain_absolute,
                              neighbour, evolution, or those of --delta_arms,
                              see `variants`
  delta_test_c10, ...         mean test accuracy of what they found
  delta_seeds                 searches of each
  delta_seconds               of all searches of delta, compiled before; the
                              best of 3 calls
  delta_over_numpy            queries per second over those of a NumPy loop of
                              the same search, one seed after another, taken in
                              turn
  delta_over_numpy_with_compile
  numpy_delta_optimum_c10     of the loop's searches
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from jaxnas import algorithms, estimators, spaces, stages
from jaxnas.base import Stage, Table
from jaxnas.run import rounds
from jaxnas.stages import trials

_SEEDS = flags.DEFINE_integer('delta_seeds', 200, 'Searches of each kind.')
_ARMS = flags.DEFINE_list('delta_arms', [], 'Searches; none for the first six.')

SIGNAL, REPORT = 'val_ep200', 'test_ep200'
QUERIES, FIRST, KEEP, BEST, FAR, CLIP, REACH = 100, 20, 5, 5, 60, 0.6, 3
TABLES = {'c10': 'nb201_cifar10', 'c100': 'nb201_cifar100'}
GENERATIONS = 1 + (QUERIES - FIRST) // KEEP
PROXY, PATIENCE = 'logsynflow', 20
_RADIX = 5 ** np.arange(5, -1, -1)


def searches(table: Table) -> dict[str, tuple[Stage, int]]:
  """For each kind of search a generation, and how many there are."""
  query = trials.query(table, SIGNAL)
  difference, ridge = estimators.ridge_difference, estimators.ridge
  judges = {
    'delta': stages.by_difference(difference()),
    'plain_delta': stages.by_difference(difference(context='none')),
    'absolute': stages.by_value(ridge()),
    'plain_absolute': stages.by_value(ridge(basis=estimators.plain())),
    'neighbour': stages.by_chance(),
  }
  found = {
    name: (algorithms.delta_nas(table.space, query, judge=judge), GENERATIONS)
    for name, judge in judges.items()
  }
  evolution = algorithms.array_evolution(
    table.space, query, size=10, entrants=3, unique=True
  )
  return {**found, 'evolution': (evolution, QUERIES)}


def variants(table: Table) -> dict[str, Callable[[], Stage]]:
  """What Delta-NAS leaves open, by differences and by values; each is made.

  `once` fits to the first questions alone. `taught` learns 500 values of a
  proxy, or of the other data set, before it learns all answers, and `settled`
  no answer. `restarted` proposes neighbours alone, and begins anew after 20
  questions without a better one, beside `narrow`, which does not.

  Args:
    table: of a data set, its proxies, and `other_...` of the other data set.
  """
  delta = functools.partial(
    algorithms.delta_nas, table.space, trials.query(table, SIGNAL)
  )
  near = trials.neighbours(table.space, BEST)
  again = stages.restarting(table.space, near, patience=PATIENCE, least=BEST)

  def before(judge: stages.Judge, column: str) -> Any:
    scale = functools.partial(stages.targets, clip=CLIP)
    key = jax.random.key(2)
    return stages.pretrained(judge, table, column, key=key, scale=scale)

  def taught(judge: stages.Judge, column: str) -> Stage:
    return delta(judge=judge, prior=before(judge, column))

  def settled(judge: stages.Judge, column: str) -> Stage:
    return delta(judge=stages.settled(judge, before(judge, column)))

  partial, made = functools.partial, {}
  for name, judge in {
    'delta': stages.by_difference(estimators.ridge_difference()),
    'absolute': stages.by_value(estimators.ridge()),
    'neighbour': stages.by_chance(),
  }.items():
    made |= {
      f'once_{name}': partial(delta, judge=judge, offline=True),
      f'narrow_{name}': partial(delta, judge=judge, propose=near),
      f'restarted_{name}': partial(delta, judge=judge, propose=again),
      f'taught_{name}_proxy': partial(taught, judge, PROXY),
      f'taught_{name}_other': partial(taught, judge, f'other_{SIGNAL}'),
      f'settled_{name}_proxy': partial(settled, judge, PROXY),
      f'settled_{name}_other': partial(settled, judge, f'other_{SIGNAL}'),
    }
  return made


def chosen(
  table: Table, arms: Sequence[str], more: Callable[[], Table]
) -> dict[str, tuple[Stage, int]]:
  """The searches that are named, or the first six if none is.

  Args:
    table: of a data set.
    arms: of `searches` and `variants`.
    more: loads the table that `variants` needs.

  Raises:
    ValueError: for a name that is not there.
  """
  found = searches(table)
  if set(arms) <= set(found):
    return {name: found[name] for name in arms or found}
  made = variants(more())
  unknown = [name for name in arms if name not in {*found, *made}]
  if unknown:
    raise ValueError(
      f'--delta_arms: {unknown[0]!r} is not one of '
      f'{", ".join([*found, *made])}.'
    )
  return {
    name: found[name] if name in found else (made[name](), GENERATIONS)
    for name in arms
  }


def program(table: Table, stage: Stage, generations: int) -> Any:
  """A compiled function of (seeds,) keys to what each search found."""
  start = trials.start(table.space, QUERIES)

  def search(key: jax.Array) -> jax.Array:
    last, _ = rounds(key, stage, start, generations)
    return trials.incumbents(last).index[-1]

  return jax.jit(jax.vmap(search))


def _features(cells: np.ndarray, pairs: tuple[np.ndarray, ...]) -> np.ndarray:
  code = (cells[:, :, None] == np.arange(5)).reshape(len(cells), 30)
  code = code.astype(np.float32)
  return np.concatenate([code, code[:, pairs[0]] * code[:, pairs[1]]], axis=1)


def _changed(rng: np.random.Generator, cells: np.ndarray) -> np.ndarray:
  """One edit of each of some genotypes."""
  made, rows = cells.copy(), np.arange(len(cells))
  places = rng.integers(6, size=len(cells))
  shifts = rng.integers(1, 5, size=len(cells))
  made[rows, places] = (made[rows, places] + shifts) % 5
  return made


def numpy_delta(rng: np.random.Generator, values: np.ndarray) -> int:
  """One search by a loop on the host; the network that it found.

  Args:
    rng: for its draws.
    values: (15625,) what is searched by, in the order of the index.
  """
  pairs = np.triu_indices(30, 1)
  edits = np.zeros((24, 6), int)
  edits[np.arange(24), np.repeat(np.arange(6), 4)] = np.tile([1, 2, 3, 4], 6)
  cells = np.unique(rng.integers(5, size=(FIRST, 6)), axis=0)
  while len(cells) < QUERIES:
    rows = cells @ _RADIX
    fitness = values[rows]
    clipped = np.maximum(fitness, np.quantile(fitness, CLIP))
    y = (clipped - clipped.mean()) / (clipped.std() or 1.0)
    leaders = cells[np.argsort(-fitness, kind='stable')[:BEST]]
    near = ((leaders[:, None] + edits[None]) % 5).reshape(-1, 6)
    far = leaders[rng.integers(len(leaders), size=FAR)]
    proposed = np.concatenate([near, _changed(rng, _changed(rng, far))])
    index, once = np.unique(proposed @ _RADIX, return_index=True)
    proposed = proposed[np.sort(once[~np.isin(index, rows)])]
    x, new = _features(cells, pairs), _features(proposed, pairs)
    apart = (cells[:, None] != cells[None]).sum(axis=2)
    weights = ((apart >= 1) & (apart <= REACH)).astype(np.float32)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    system = laplacian @ (x @ x.T) + np.eye(len(x))
    slope = x.T @ np.linalg.solve(system, laplacian @ y)
    apart = (cells[:, None] != proposed[None]).sum(axis=2)
    close = apart <= np.maximum(apart.min(axis=0), REACH)
    rest = ((y - x @ slope)[:, None] * close).sum(axis=0) / close.sum(axis=0)
    kept = np.argsort(-(new @ slope + rest), kind='stable')[:KEEP]
    cells = np.concatenate([cells, proposed[kept]])
  rows = cells[:QUERIES] @ _RADIX
  return int(rows[values[rows].argmax()])


def speed(table: Table, seeds: int) -> dict[str, Any]:
  """The keys of the loop on the host and of seconds."""
  values = np.asarray(table.columns[SIGNAL])
  keys = jax.random.split(jax.random.key(1), seeds)
  stage, generations = searches(table)['delta']
  started = time.perf_counter()
  search = program(table, stage, generations)
  jax.block_until_ready(search(keys))
  first = time.perf_counter() - started
  rng, stretch = np.random.default_rng(0), 10
  ours, theirs, found = [], [], []
  for _ in range(3):  # In turn, so that both see the same machine.
    started = time.perf_counter()
    jax.block_until_ready(search(keys))
    ours.append(time.perf_counter() - started)
    started = time.perf_counter()
    found += [numpy_delta(rng, values) for _ in range(stretch)]
    theirs.append((time.perf_counter() - started) / stretch * seeds)
  optimum = float((values[found] == values.max()).mean())
  return {
    'delta_seconds': round(min(ours), 2),
    'delta_over_numpy': round(min(theirs) / min(ours), 1),
    'delta_over_numpy_with_compile': round(min(theirs) / first, 2),
    'numpy_delta_optimum_c10': round(optimum, 3),
  }


def measure(seeds: int = 200, arms: Sequence[str] = ()) -> dict[str, Any]:
  """All keys, see the module.

  Args:
    seeds: searches of each kind.
    arms: those to measure, in place of the first six and of the speed.

  Raises:
    FileNotFoundError: where JAXNAS_DATA_DIR has no tables.
  """
  found: dict[str, Any] = {'delta_seeds': seeds}
  keys = jax.random.split(jax.random.key(0), seeds)
  for data, name in TABLES.items():
    table = spaces.load(name)
    values, tested = (np.asarray(table.columns[c]) for c in (SIGNAL, REPORT))
    (other,) = set(TABLES.values()) - {name}
    proxies = name.replace('nb201', 'nb201_proxies')
    more = functools.partial(spaces.load, name, proxies, ('other_', other))
    for kind, (stage, generations) in chosen(table, arms, more).items():
      index = np.asarray(program(table, stage, generations)(keys))
      optimum = float((values[index] == values.max()).mean())
      found[f'{kind}_optimum_{data}'] = round(optimum, 3)
      found[f'{kind}_test_{data}'] = round(float(tested[index].mean()), 3)
  return found if arms else found | speed(spaces.load(TABLES['c10']), seeds)


def main(argv: list[str]) -> None:
  del argv
  print(json.dumps(measure(_SEEDS.value, _ARMS.value)))


if __name__ == '__main__':
  app.run(main)
