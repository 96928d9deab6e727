"""EPBT and PBT-NAS on image classifiers, beside what they must be better than.

    python launch/bench/epbt.py --seeds=3

Two comparisons, of populations that learn for equally many examples. With one
architecture, hyper-parameters are searched for:

  static       cross-entropy, one learning rate for all; members differ in
               their first weights
  random       cross-entropy, learning rates drawn once and never changed
  pbt          cross-entropy, population based training of the learning rate
  epbt         EPBT of the learning rate and seven coefficients of the loss,
               with novelty pulsation and distillation
  epbt_plain   the same without novelty and without distillation

With architectures of a space of slots, and the static setting for all:

  train_only, mutation_only, pbt_nas

Members of a seed start with the same architectures and weights, and those that
are not replaced see the same images, whatever the method. A row is printed for
each method and seed: the test accuracy and loss of the member that is best on
the validation split in the last generation, and the population's median test
accuracy. The teacher of `epbt` costs a forward pass in every step that is not
in `examples`; `seconds` has it. The last line is JSON: for each method mean and
standard deviation over seeds, and the mean difference to `static`, or to
`train_only`, seed by seed.
"""

import json
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from jaxnas import algorithms, learners, mixing, stages
from jaxnas import tasks as all_tasks
from jaxnas.base import Learner, Stage, Task
from jaxnas.run import run
from jaxnas.spaces.conv_slots import OPS, conv_slots, pinned

_TASK = flags.DEFINE_enum('task', 'digits', ['digits', 'cifar10'], 'Images.')
_SEEDS = flags.DEFINE_integer('seeds', 3, 'How many.', lower_bound=1)
_FIRST = flags.DEFINE_integer('first_seed', 0, 'The first of them.')
_MEMBERS = flags.DEFINE_integer('members', 8, 'Of a population.', lower_bound=8)
_ROUNDS = flags.DEFINE_integer('rounds', 10, 'Generations.', lower_bound=2)
_STEPS = flags.DEFINE_integer('steps', 30, 'Of a member in a generation.')
_BATCH = flags.DEFINE_integer('batch', 32, 'Images in a step.')
_WIDTHS = flags.DEFINE_list('widths', ['8', '16'], 'Channels of each stage.')
_SLOTS = flags.DEFINE_integer('slots', 2, 'In each stage.')
_RATE = flags.DEFINE_float('learning_rate', 3e-3, 'Where it is not searched.')
_CYCLE = flags.DEFINE_integer('cycle', 3, 'Generations from pulse to pulse.')
_METHODS = flags.DEFINE_list(
  'methods',
  [
    *('static', 'random', 'pbt', 'epbt', 'epbt_plain'),
    *('train_only', 'mutation_only', 'pbt_nas'),
  ],
  'Which to run.',
)

RATES = {'learning_rate': mixing.Prior(1e-4, 3e-2)}
LOSSES = {**RATES, **learners.TAYLOR_PRIORS}


class Method(NamedTuple):
  """A search: what its members are, what they draw, and what a round does."""

  learner: Learner
  priors: dict[str, mixing.Prior]
  stage: Stage
  rival: str


def methods(task: Task) -> dict[str, Method]:
  """All that can be compared, by name."""
  widths = tuple(map(int, _WIDTHS.value))
  space = conv_slots(
    task.shape, task.outputs, widths=widths, slots=_SLOTS.value
  )
  relu = (list(OPS).index('conv3'), 2)
  one = pinned(space, relu * (len(space.genes.options) // 2))
  how: dict[str, Any] = {
    'steps': _STEPS.value,
    'batch': _BATCH.value,
    'learning_rate': _RATE.value,
  }
  plain = learners.classifier(task, one, **how)
  taylor = learners.classifier(task, one, objective=learners.by_taylor, **how)
  various = learners.classifier(task, space, **how)
  rest = algorithms.train_only(plain)
  return {
    'static': Method(plain, {}, rest, 'static'),
    'random': Method(plain, RATES, rest, 'static'),
    'pbt': Method(plain, RATES, algorithms.pbt(plain, RATES), 'static'),
    'epbt': Method(
      taylor,
      LOSSES,
      algorithms.epbt(taylor, LOSSES, by=algorithms.pulsation(_CYCLE.value)),
      'static',
    ),
    'epbt_plain': Method(
      taylor,
      LOSSES,
      algorithms.epbt(
        taylor, LOSSES, by='fitness', learn=stages.advance(taylor)
      ),
      'static',
    ),
    'train_only': Method(
      various, {}, algorithms.train_only(various), 'train_only'
    ),
    'mutation_only': Method(
      various, {}, algorithms.mutation_only(various), 'train_only'
    ),
    'pbt_nas': Method(various, {}, algorithms.pbt_nas(various), 'train_only'),
  }


def searched(method: Method, seed: int) -> dict[str, float]:
  """What a search finds, on what nothing was selected by."""
  started, cpu = time.monotonic(), time.process_time()
  keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(2)]
  start = stages.members(keys[0], method.learner, _MEMBERS.value, method.priors)
  last, _ = run(keys[1], method.stage, start, _ROUNDS.value)
  best = stages.champion(last)
  report = stages.assess(method.learner, measure=method.learner.test)
  found, _ = report.update(keys[1], last, ())
  accuracy = np.asarray(found.metrics['accuracy'])
  return {
    'test_accuracy': float(accuracy[best]),
    'test_loss': float(found.metrics['loss'][best]),
    'valid_accuracy': float(last.metrics['accuracy'][best]),
    'median_test_accuracy': float(np.median(accuracy)),
    'examples': int(last.spent.examples),
    'seconds': time.monotonic() - started,
    'cpu_seconds': time.process_time() - cpu,
  }


def summary(
  rows: dict[str, list[dict[str, float]]], rivals: dict[str, str]
) -> dict[str, Any]:
  """Means over seeds, and differences to the rival seed by seed."""
  found: dict[str, Any] = {}
  for name, runs in rows.items():
    for metric in ('test_accuracy', 'median_test_accuracy', 'test_loss'):
      values = [row[metric] for row in runs]
      found[f'{name}_{metric}'] = statistics.fmean(values)
      if len(values) > 1:
        found[f'{name}_{metric}_sd'] = statistics.stdev(values)
    rival = rivals[name]
    if rival in rows and rival != name:
      found[f'{name}_over_{rival}'] = [
        row['test_accuracy'] - other['test_accuracy']
        for row, other in zip(runs, rows[rival], strict=True)
      ]
  return found


def _rounded(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _rounded(held) for name, held in value.items()}
  if isinstance(value, list):
    return [_rounded(held) for held in value]
  return round(value, 4) if isinstance(value, float) else value


def main(argv: list[str]) -> None:
  del argv
  digits = _TASK.value == 'digits'
  task = all_tasks.digits() if digits else all_tasks.tfds_images('cifar10')
  every = methods(task)
  unknown = sorted({*_METHODS.value} - {*every})
  if unknown:
    raise app.UsageError(f'--methods: {unknown} are none of {list(every)}.')
  rows: dict[str, list[dict[str, float]]] = {}
  for i in range(_SEEDS.value):
    for name in _METHODS.value:
      row = searched(every[name], _FIRST.value + i)
      rows.setdefault(name, []).append(row)
      printed = {'method': name, 'seed': _FIRST.value + i, **_rounded(row)}
      print(json.dumps(printed), flush=True)
  rivals = {name: every[name].rival for name in rows}
  device = jax.devices()[0].device_kind
  print(json.dumps(_rounded({**summary(rows, rivals), 'device': device})))


if __name__ == '__main__':
  app.run(main)
