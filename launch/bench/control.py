"""PBT-NAS beside random search and mutation, in learning to control.

    python -m launch.bench.control --seeds=10

The specification's section 5.5: twelve actors and critics of 22 genes learn by
proximal policy optimization for 20 rounds of 16,384 environment steps. A seed
fixes genotypes, weights, and the keys of learning and measuring for all three
methods:

  pbt_nas   children of two members, weights shrunk and perturbed
  mutation  children of one member, of which weights or a gene change
  random    nobody is replaced

Members are selected by the mean return of 32 episodes. A row for each seed and
method has the mean return of the last round's best, and the population's
median, in 64 other episodes; `seconds` of the first seed have compiling in
them. Prints one JSON line last: medians, and for each other method how many
seeds PBT-NAS wins, the median difference with a bootstrapped interval of 95 %,
and the p of an exact one-sided Wilcoxon test (None for less than five seeds, of
which no outcome is significant).

The default environment is the pendulum, by measurement: after 20 rounds of
twelve random architectures (seed 0) the best return is 109 and the median 47,
where a controller that pumps energy reaches 140. Of the pole on the cart, half
the architectures come to 174 or more of about 214, and the best of the sample
has it after ten rounds; in the game, the best has 15 and the median 12, in more
than twice the time.
"""

import functools
import json
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from jaxnas import algorithms, learners, stages
from jaxnas.base import Learner, Members, Stage
from jaxnas.run import run
from jaxnas.tasks import control
from launch.bench import paired

_SEEDS = flags.DEFINE_integer('seeds', 10, 'How many.', lower_bound=1)
_FIRST = flags.DEFINE_integer('first', 100, 'The first seed.')
_ROUNDS = flags.DEFINE_integer('rounds', 20, 'Of learning.', lower_bound=1)
_MEMBERS = flags.DEFINE_integer(
  'members', 12, 'In a population.', lower_bound=8
)
_OUT = flags.DEFINE_string(
  'out', '', 'Rows as JSON lines: those in the file are not measured again.'
)
_ENVIRONMENT = flags.DEFINE_enum(
  'environment', 'pendulum', sorted(control.ENVIRONMENTS), 'Where they learn.'
)


def methods(learner: Learner) -> dict[str, Stage]:
  """The stages that are compared; they share the programs of learning."""
  return {
    'pbt_nas': algorithms.pbt_nas(learner),
    'mutation': algorithms.mutation_only(learner),
    'random': algorithms.train_only(learner),
  }


def searched(
  seed: int, learner: Learner, stage: Stage, start: Members
) -> dict[str, Any]:
  """What a method has after all rounds, on episodes of no selection."""
  clock, cpu = time.monotonic(), time.process_time()
  key = jax.random.key(10_000 + seed)
  last, _ = run(key, stage, start, _ROUNDS.value)
  test = stages.assess(learner, measure=learner.test)
  tested, _ = test.update(jax.random.key(20_000 + seed), last, ())
  best = stages.champion(last)
  returns = np.asarray(tested.metrics['fitness'])
  return {
    'best': round(float(returns[best]), 2),
    'median': round(float(np.nanmedian(returns)), 2),
    'fitness': round(float(last.metrics['fitness'][best]), 2),
    'steps': int(last.spent.examples),
    'seconds': round(time.monotonic() - clock, 1),
    'cpu_seconds': round(time.process_time() - cpu, 1),
    'compiling': round(last.spent.compiling, 1),
  }


def compared(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
  """Paired returns of two methods; a positive difference is ours."""
  found = paired.compared(ours, theirs, better='greater')
  return {
    'wins': found['wins'],
    'median_difference': round(found['difference'], 2),
    'interval': [round(end, 2) for end in found['interval']],
    'p': found['p'] and round(found['p'], 5),
  }


def main(argv: list[str]) -> None:
  del argv
  learner = learners.ppo(control.ENVIRONMENTS[_ENVIRONMENT.value]())
  every = methods(learner)
  rows: dict[str, list[dict[str, Any]]] = {name: [] for name in every}
  settings = {
    'environment': _ENVIRONMENT.value,
    'members': _MEMBERS.value,
    'rounds': _ROUNDS.value,
  }
  for seed in range(_FIRST.value, _FIRST.value + _SEEDS.value):
    start = stages.members(jax.random.key(seed), learner, _MEMBERS.value)
    for name, stage in every.items():
      row = paired.kept(
        _OUT.value,
        {'seed': seed, 'method': name, **settings},
        functools.partial(searched, seed, learner, stage, start),
      )
      rows[name].append(row)
      print(json.dumps(row), flush=True)
  result: dict[str, Any] = {
    'seeds': _SEEDS.value,
    'first': _FIRST.value,
    **settings,
  }
  for score in ('best', 'median'):
    found = {n: np.array([r[score] for r in own]) for n, own in rows.items()}
    result[score] = {
      'medians': {n: round(float(np.median(x)), 2) for n, x in found.items()},
      **{
        f'over_{name}': compared(found['pbt_nas'], found[name])
        for name in every
        if name != 'pbt_nas'
      },
    }
  print(json.dumps(result))


if __name__ == '__main__':
  app.run(main)
