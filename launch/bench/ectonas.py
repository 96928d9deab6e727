"""ECToNAS beside its official code and beside plain training, on digits.

    python launch/bench/ectonas.py --seeds=3

The settings of the specification's side-by-side experiment: a start network of
686 parameters (convolutions 3 and 6, dense 10 and 10), 8 epochs of warm-up, 1
epoch a round, one generation, 69.45 epochs for all candidates together. Of the
17 children the four with the best score after their recovery enter the
brackets, and what is left of the budget trains the winner, at a rate that falls
to zero. In the same process the start network is trained alone for as many
epochs, at a rate that falls as well and at a constant one, and the search is
run with matches decided by chance, with edits ranked by a Gauss-Newton judge
(`ranked`), and as officially: all 17 children compete, for the whole budget
(`unscreened`).

Accuracies are means over seeds, on the validation split, by which the search
selects; those on the test split, by which nothing does, stand beside them. The
validation accuracy of the official code, 0.878, is from the specification's
table of the official run (section 8.2: one seed, another split of the same
images, 100 to 190 s) and is not measured here. All arms have Adam; there it is
plain gradient descent.

`seconds` is the wall time of a search, compiling and all, as a mean over seeds
like the accuracies; `first_seconds` is that of the first, and
`first_cpu_seconds` its processor time. Training all candidates takes three
seconds, and most of the rest of the first search is compiling. So all children
share one structure, whose programs are compiled before the first is needed
(`stages.prepare`), and the rate falls as data; later seeds reuse the programs
(`further_seconds`). With `--cache=DIR` compiled programs are kept there, as
`launch/train.py` keeps them, and those of an earlier process are found.
Prints one JSON line last.
"""

import json
import statistics
import time
from typing import Any, NamedTuple

import jax
import optax
from absl import app, flags

from jaxnas import (
  Candidate,
  Population,
  Stage,
  Task,
  algorithms,
  chain,
  estimators,
  network,
  run,
  stages,
  tasks,
  training,
)
from jaxnas.spaces import seeds

_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many.', lower_bound=1)
_ALPHA = flags.DEFINE_float('alpha', 1.0, 'Greediness; 0.5 favours small.')
_RATE = flags.DEFINE_float('learning_rate', 0.01, 'Of Adam, in all arms.')
_CONTROL = flags.DEFINE_bool('control', True, 'Whether to run random matches.')

_CACHE = flags.DEFINE_string('cache', '', 'Where compiled programs are kept.')

OFFICIAL = {1.0: 0.878, 0.5: 0.825}
BUDGET = 69.45
BATCH = 32


class Arm(NamedTuple):
  """What came of one arm and seed."""

  valid: float
  test: float
  params: int
  epochs: float
  seconds: float
  cpu_seconds: float
  edit: str = ''


def start(task: Task, seed: int) -> network.Network:
  """The start network of the official run."""
  spec = seeds.cells(task.shape, (3, 6), (10, 10), task.outputs)
  return network.to_host(network.init(spec, jax.random.key(seed)))


def searching() -> optax.GradientTransformation:
  """Adam whose rate is data, so that it can fall in the same program.

  On one vector, for small layers are more to compile than to compute.
  """
  others = ('b1', 'b2', 'eps', 'eps_root')
  adam = optax.inject_hyperparams(optax.adam, static_args=others)
  return optax.flatten(adam(learning_rate=_RATE.value))


def annealed(task: Task, epochs: float) -> optax.GradientTransformation:
  """Adam at a rate that falls to zero within so many epochs, by a cosine."""
  steps = int(epochs * stages.per_epoch(task, BATCH) / BATCH)
  return optax.adam(optax.cosine_decay_schedule(_RATE.value, steps))


def search(
  task: Task, tx: optax.GradientTransformation, **settings: Any
) -> Stage:
  """A generation of ECToNAS of few children, and the winner's training."""
  fitness = stages.relative(_ALPHA.value)
  falling = optax.cosine_decay_schedule(_RATE.value, 1)
  last_lesson = stages.annealed(stages.lessons(task, tx, batch=BATCH), falling)
  return chain(
    stages.prepare(task, tx, batch=BATCH, propose=every(task)),
    tournament(task, tx, screen=stages.top(4, stages.rolling), **settings),
    stages.finish(last_lesson, fitness, task=task, batch=BATCH, budget=BUDGET),
  )


def tournament(
  task: Task, tx: optax.GradientTransformation, **settings: Any
) -> Stage:
  """A generation of ECToNAS with the settings of the official run."""
  return algorithms.ectonas(
    stages.lessons(task, tx, batch=BATCH, budget=BUDGET),
    alpha=_ALPHA.value,
    warmup=8,
    epochs=1,
    **{'propose': every(task), **settings},
  )


def every(task: Task) -> Stage:
  """All edits as children, calibrated."""
  return chain(stages.expand(stages.edits()), stages.calibrate(task))


def searched(task: Task, seed: int, stage: Stage) -> Arm:
  """What a generation finds."""
  clock, cpu = time.monotonic(), time.process_time()
  begin = Population((Candidate(start(task, seed)),))
  last, _ = run(jax.random.key(1000 + seed), stage, begin, until=1)
  best = stages.fittest(last, stages.relative(_ALPHA.value))
  epochs = last.spent.examples / stages.per_epoch(task, BATCH)
  return arm(task, best.net, epochs, clock, cpu, stages.kind(best))


def trained(task: Task, tx: optax.GradientTransformation, seed: int) -> Arm:
  """The start network, trained for as many epochs as a whole search."""
  clock, cpu = time.monotonic(), time.process_time()
  fitted = training.fit(
    jax.random.key(2000 + seed),
    start(task, seed),
    task,
    tx,
    epochs=BUDGET,
    batch=BATCH,
  )
  epochs = fitted.examples / stages.per_epoch(task, BATCH)
  return arm(task, fitted.net, epochs, clock, cpu)


def arm(
  task: Task,
  net: network.Network,
  epochs: float,
  clock: float,
  cpu: float,
  edit: str = '',
) -> Arm:
  """Measures what an arm found; times are those since it began."""
  seconds, used = time.monotonic() - clock, time.process_time() - cpu
  valid = training.evaluate(net, task, task.valid).metric
  test = training.evaluate(net, task, task.test).metric
  count = network.param_count(net)
  return Arm(valid, test, count, epochs, seconds, used, edit)


def mean(arms: list[Arm], field: str) -> float:
  return round(statistics.mean(getattr(a, field) for a in arms), 4)


def main(argv: list[str]) -> None:
  del argv
  jax.config.update('jax_enable_compilation_cache', bool(_CACHE.value))
  if _CACHE.value:
    jax.config.update('jax_compilation_cache_dir', _CACHE.value)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  task, tx = tasks.digits(shift=0), searching()
  found, plain, steady, chance, whole, ranked = ([] for _ in range(6))
  judge = estimators.gauss_newton(steps=60)
  for seed in range(_SEEDS.value):
    found.append(searched(task, seed, search(task, tx)))
    plain.append(trained(task, annealed(task, BUDGET), seed))
    steady.append(trained(task, tx, seed))
    if _CONTROL.value:
      chance.append(searched(task, seed, search(task, tx, match=stages.anyone)))
      whole.append(searched(task, seed, tournament(task, tx)))
      first = search(task, tx, propose=stages.ranked(judge, task))
      ranked.append(searched(task, seed, first))
    print(f'seed {seed}: found {found[-1]}; plain {plain[-1]}', flush=True)
  row: dict[str, Any] = {
    'val_accuracy': mean(found, 'valid'),
    'official_val_accuracy': OFFICIAL.get(_ALPHA.value),
    'plain_val_accuracy': mean(plain, 'valid'),
    'plain_constant_val_accuracy': mean(steady, 'valid'),
    'epochs': round(max(a.epochs for a in found), 2),
    'seconds': round(mean(found, 'seconds'), 1),
    'first_seconds': round(found[0].seconds, 1),
    'first_cpu_seconds': round(found[0].cpu_seconds, 1),
    'further_seconds': [round(a.seconds, 1) for a in found[1:]],
    'test_accuracy': mean(found, 'test'),
    'plain_test_accuracy': mean(plain, 'test'),
    'params': mean(found, 'params'),
    'edits': [a.edit for a in found],
    'val_accuracies': [round(a.valid, 4) for a in found],
    'plain_val_accuracies': [round(a.valid, 4) for a in plain],
    'alpha': _ALPHA.value,
    'optimizer': f'adam {_RATE.value}',
    'device': jax.devices()[0].device_kind,
  }
  if chance:
    row['random_val_accuracy'] = mean(chance, 'valid')
    row['unscreened_val_accuracy'] = mean(whole, 'valid')
    row['ranked_val_accuracy'] = mean(ranked, 'valid')
    row['ranked_test_accuracy'] = mean(ranked, 'test')
  print(json.dumps(row))


if __name__ == '__main__':
  app.run(main)
