"""Population based training and FIRE PBT on the plain and the deceptive toy.

  python -m launch.bench.pbt_toys

runs each search for 1,000 steps in rounds of 20, with 22 members that start
with h in [0.9, 1.1] and stay in [0.0001, 1.1] (`jaxnas.learners.toys`). A
quarter is replaced, and factors are 1/2 and 2, as PBT-Zoo has them; `pbt` and
`explore` are also run with the factors 0.8 and 1.2 of Jaderberg et al. (2017).
FIRE PBT has populations of 8 and 8 and 6 evaluators, and its figures are those
of the best of its first population; the others' are of the best member. All
start from the same members. It prints a JSON line for each toy and search, of
the final objective (1.2 is the maximum); and last one of the mean objectives
and the paired wins:

  deceptive_fire, ...            mean over seeds
  deceptive_fire_over_pbt, ...   seeds in which the first is better
"""

import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxnas import algorithms, forms, learners, selection, stages
from jaxnas.base import Learner, Stage
from jaxnas.learners import toys
from jaxnas.run import rounds, run

_SEEDS = flags.DEFINE_integer('seeds', 20, 'Seeds, from 0 on.')
_FIRST = flags.DEFINE_integer('first', 0, 'The first seed.')
_TOYS = flags.DEFINE_list('toys', ['plain', 'deceptive'], 'Of these two.')

MEMBERS, ROUNDS, STEPS, POINTS, GREEDY = 22, 50, 20, 10, 8
MILD, STRONG = (0.8, 1.2), (0.5, 2.0)

PAIRS = {
  'plain': (
    *(('pbt', 'static'), ('pbt', 'exploit'), ('pbt', 'explore')),
    *(('pbt_mild', 'explore_mild'), ('pbt', 'fire')),
  ),
  'deceptive': (
    *(('fire', 'pbt'), ('fire', 'pbt_mild'), ('fire', 'static')),
    *(('static', 'pbt'), ('fire', 'explore'), ('fire', 'explore_mild')),
  ),
}


def toy(name: str, steps: int) -> Learner:
  """The toy with rounds of so many steps."""
  return {'plain': learners.plain, 'deceptive': learners.deceptive}[name](
    steps=steps
  )


def searches(learner: Learner) -> dict[str, Stage]:
  """All but FIRE PBT, which decides on the host."""
  where = {'over': forms.at_once}
  rule = {'pairing': selection.copies(0.25), **where}
  explore, pbt = algorithms.explore_only, algorithms.pbt
  return {
    'static': algorithms.train_only(learner, **where),
    'exploit': algorithms.exploit_only(learner, **rule),
    'explore': explore(learner, toys.RANGE, factors=STRONG, **where),
    'explore_mild': explore(learner, toys.RANGE, factors=MILD, **where),
    'pbt': pbt(learner, toys.RANGE, factors=STRONG, **rule),
    'pbt_mild': pbt(learner, toys.RANGE, factors=MILD, **rule),
  }


def started(seed: Any, learner: Learner) -> tuple[Any, Any]:
  """The search's key, and the members of a seed."""
  first, key = jax.random.split(jax.random.key(seed))
  return key, stages.members(first, learner, MEMBERS, toys.START)


def many(learner: Learner, stage: Stage, seeds: np.ndarray) -> np.ndarray:
  """The best objective of a search for each seed, in one program."""

  def one(seed):
    key, start = started(seed, learner)
    last, _ = rounds(key, stage, start, ROUNDS)
    return last.metrics['fitness'].max()

  return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(seeds)))


def fire(name: str, seeds: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
  """The objective of FIRE PBT's answers, and what its evaluators came to."""
  learner = toy(name, STEPS // POINTS)
  stage = algorithms.fire_pbt(
    learner, toys.RANGE, factors=STRONG, points=POINTS, over=forms.at_once
  )
  found, outcomes = [], {'success': 0, 'stopped': 0}
  for seed in seeds:
    key, start = started(int(seed), learner)
    last, state = run(key, stage, start, ROUNDS)
    best = stages.champion(last, first=GREEDY)
    found.append(float(last.metrics['fitness'][best]))
    for outcome, count in state[0].outcomes.items():
      outcomes[outcome] += count
  return np.array(found), outcomes


def row(values: np.ndarray, seconds: float) -> dict[str, Any]:
  """Mean, spread and extremes over seeds."""
  values = [float(value) for value in values]
  spread = statistics.stdev(values) if len(values) > 1 else 0.0
  return {
    'mean': round(statistics.mean(values), 5),
    'deviation': round(spread, 5),
    'least': round(min(values), 5),
    'most': round(max(values), 5),
    'seconds': round(seconds, 1),
  }


def main(argv: list[str]) -> None:
  del argv
  seeds = _FIRST.value + np.arange(_SEEDS.value)
  summary: dict[str, Any] = {'seeds': len(seeds)}
  for name in _TOYS.value:
    learner, found = toy(name, STEPS), {}
    for method, stage in searches(learner).items():
      began = time.monotonic()
      found[method] = many(learner, stage, seeds)
      shown = row(found[method], time.monotonic() - began)
      print(json.dumps({'toy': name, 'search': method, **shown}), flush=True)
    began = time.monotonic()
    found['fire'], outcomes = fire(name, seeds)
    shown = row(found['fire'], time.monotonic() - began)
    print(json.dumps({'toy': name, 'search': 'fire', **shown, **outcomes}))
    for method, values in found.items():
      summary[f'{name}_{method}'] = round(float(values.mean()), 5)
    for one, two in PAIRS[name]:
      wins = int((found[one] > found[two]).sum())
      summary[f'{name}_{one}_over_{two}'] = wins
  device = jax.devices()[0].device_kind
  print(json.dumps({**summary, 'device': device}))


if __name__ == '__main__':
  app.run(main)
