"""PBT-NAS against random search, copying and mutation, on images of digits.

  python -m launch.bench.gan --picture=digits.png

trains 12 pairs of generator and discriminator (`jaxnas.learners.gan`) for 14
rounds of 250 steps by each method. A seed fixes the first genotypes and weights
and the keys of all rounds for all methods. It prints a JSON line for each run,
of Frechet's distance x 100 on features of a digit classifier: `best`, of 20,000
images of the fittest member of the last round, from noise that nothing was
selected by; `held_out`, of the same from the test images; and `median`, over
the members as last measured, which is far less noisy. `cpu_seconds` has
compiling in it, which the first run of each method pays for. Last is a JSON
line of medians over seeds and of paired comparisons:

  {best,held_out,median}_{method}      median over seeds
  {best,held_out,median}_{a}_over_{b}  wins of a, the seeds, the median
                                       difference a - b with its 95 % bootstrap
                                       interval, and the one-sided exact p of
                                       Wilcoxon's signed ranks for a being lower

With fewer than five seeds, of which no outcome is significant, p is null.
`--out=FILE` keeps rows, so that what was stopped goes on; `--picture` is then
of the best network that was trained since.
"""

import functools
import json
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags

from jaxnas import algorithms, learners, stages, tasks
from jaxnas.base import Learner, Member, Stage
from jaxnas.run import run
from jaxnas.spaces import gan as spaces
from jaxnas.spaces import slots
from launch.bench import paired

_SEEDS = flags.DEFINE_integer('seeds', 10, 'How many.')
_FIRST = flags.DEFINE_integer('first', 100, 'The first seed.')
_ROUNDS = flags.DEFINE_integer('rounds', 14, 'Of learning and replacement.')
_STEPS = flags.DEFINE_integer('steps', 250, 'Updates in a round.')
_MEMBERS = flags.DEFINE_integer('members', 12, 'Networks in a population.')
_METHODS = flags.DEFINE_list(
  'methods',
  ['pbt_nas', 'copy', 'random', 'mutation'],
  'Of these, and preserving.',
)
_SPECTRAL = flags.DEFINE_boolean(
  'spectral', False, 'Spectrally normalise the discriminator.'
)
_OUT = flags.DEFINE_string(
  'out', '', 'Rows as JSON lines: those in the file are not measured again.'
)
_PICTURE = flags.DEFINE_string(
  'picture', '', 'Where to save images of the best network of all; PNG.'
)

PAIRS = (
  *(('pbt_nas', 'random'), ('pbt_nas', 'mutation'), ('pbt_nas', 'copy')),
  *(('pbt_nas', 'preserving'), ('preserving', 'random')),
  *(('copy', 'random'), ('copy', 'mutation'), ('mutation', 'random')),
)


def methods(learner: Learner) -> dict[str, Stage]:
  """The searches that are compared.

  The children of `preserving` compute what their one parent does, with slots
  grown: PBT-NAS with function-preserving morphs, which is no paper's method.
  """
  return {
    'pbt_nas': algorithms.pbt_nas(learner),
    'copy': algorithms.pbt_nas(learner, keep=1.0, noise=0.0),
    'random': algorithms.train_only(learner),
    'mutation': algorithms.mutation_only(learner),
    'preserving': algorithms.mutation_only(
      learner, child=slots.morph(learner.genes, slots.held(learner.genes))
    ),
  }


def member(members: Any, number: int) -> Member:
  """One of them."""
  return jax.tree.map(lambda leaf: leaf[number], members.member)


def searched(
  learner: Learner, test: Any, stage: Stage, seed: int, champions: list[Any]
) -> dict[str, float]:
  """What a search came to; its final best is added to `champions`."""
  started, used = time.monotonic(), time.process_time()
  first, key, last = jax.random.split(jax.random.key(seed), 3)
  members = stages.members(first, learner, _MEMBERS.value)
  members, _ = run(key, stage, members, _ROUNDS.value)
  best = member(members, stages.champion(members))
  found = test(last, best, learner.data)
  row = {
    'best': 100 * float(found['frechet']),
    'held_out': 100 * float(found['held_out']),
    'median': 100 * float(np.nanmedian(members.metrics['frechet'])),
    'selected_at': 100 * float(np.nanmin(members.metrics['frechet'])),
    'seconds': time.monotonic() - started,
    'cpu_seconds': time.process_time() - used,
    'compiling': members.spent.compiling,
  }
  champions.append((row['best'], best))
  return {name: round(value, 2) for name, value in row.items()}


def picture(networks: spaces.Networks, best: Member, path: str) -> None:
  """Saves 10 x 10 images of a network's averaged generator."""
  from matplotlib import pyplot

  z = jax.random.normal(jax.random.key(0), (100, networks.latent))
  images = networks.generate(best.body.average, best.genes, z, None)
  side = images.shape[1]
  grid = np.asarray(images).reshape((10, 10, side, side))
  grid = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=1.0)
  grid = grid.transpose((0, 2, 1, 3)).reshape((10 * (side + 2), -1))
  figure, axes = pyplot.subplots(figsize=(5, 5))
  axes.imshow(-grid, cmap='gray', vmin=-1, vmax=1)
  axes.axis('off')
  figure.savefig(path, dpi=120, bbox_inches='tight')
  pyplot.close(figure)


def main(argv: list[str]) -> None:
  """Runs every method with every seed."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  task = tasks.digits()
  learner = learners.gan(
    jax.random.key(0), task, steps=_STEPS.value, spectral=_SPECTRAL.value
  )
  test = jax.jit(learner.test)
  every = methods(learner)
  unknown = set(_METHODS.value) - set(every)
  if unknown:
    raise app.UsageError(f'--methods: no {sorted(unknown)} in {list(every)}.')
  rows: dict[str, list[dict[str, float]]] = {n: [] for n in _METHODS.value}
  settings = {
    'members': _MEMBERS.value,
    'rounds': _ROUNDS.value,
    'steps': _STEPS.value,
    'spectral': _SPECTRAL.value,
  }
  champions: list[tuple[float, Member]] = []
  for seed in range(_FIRST.value, _FIRST.value + _SEEDS.value):
    for name, found in rows.items():
      stage = every[name]
      row = paired.kept(
        _OUT.value,
        {'seed': seed, 'method': name, **settings},
        functools.partial(searched, learner, test, stage, seed, champions),
      )
      found.append(row)
      print(json.dumps(row), flush=True)
  if _PICTURE.value and champions:
    _, best = min(champions, key=lambda pair: pair[0])
    picture(spaces.dense(task.shape), best, _PICTURE.value)
  last = {
    'best_of_all': min(row['best'] for own in rows.values() for row in own),
    **paired.summarised(rows, ('best', 'held_out', 'median'), PAIRS),
  }
  print(json.dumps(last))


if __name__ == '__main__':
  app.run(main)
