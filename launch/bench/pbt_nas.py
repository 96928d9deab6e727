"""Networks that mix while they train, on the separable teacher.

  python -m launch.bench.pbt_nas

trains populations of 24 on `jaxnas.learners.teacher` (setting A: 40 genes, 12
rounds of 100 steps; `--setting=B`: 12 genes, 25 rounds of 30) by PBT-NAS and by
what it is compared with, all at the same number of steps. A seed fixes the
teacher, the first genotypes and weights, and the order of all draws, for every
method; all seeds of a method are one compiled program. Setting A was chosen
before this project because setting B failed against mutation: it shows that
the machinery works, and nothing about real tasks.

It prints a JSON line for every method, the squared error of the fittest member
of the last round on 4,000 points that nothing selects by; and last

  p_random              one-sided Wilcoxon signed-rank p, PBT-NAS below random
  median_gain_random    the median of the relative gains over random search
  p_mutation, median_gain_mutation   the same over mutation-only
  seeds                 how many

With `--grid=FILE.png` it trains PBT-NAS by every pair of (keep, noise) instead
and draws the medians over seeds of the two errors as a picture. A JSON line for
every pair; then one for each error that differs from that of the method's own
pair, (0.4, 0.1), by the 95 % bootstrap interval of the median difference over
seeds, as is framed in the picture. `--out=FILE` keeps rows, so that what was
stopped goes on.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxnas import algorithms, draw, forms, learners, mixing, selection, stages
from jaxnas.base import Stage
from jaxnas.run import rounds
from launch.bench import paired

_SEEDS = flags.DEFINE_integer('seeds', 20, 'How many seeds.')
_FIRST = flags.DEFINE_integer('first', 100, 'The first seed.')
_SETTING = flags.DEFINE_enum('setting', 'A', ['A', 'B'], 'Of the task.')
_METHODS = flags.DEFINE_list(
  'methods', ['random', 'mutation', 'pbt_nas'], 'Which methods.'
)
_GRID = flags.DEFINE_string(
  'grid', None, 'A picture of errors by (keep, noise), to be written.'
)
_OUT = flags.DEFINE_string(
  'out', '', "The grid's rows as JSON lines: those in it are not run again."
)
_SIZE = 24
KEEP = (0.0, 0.2, 0.4, 0.7, 1.0)
NOISE = (0.0, 0.1, 0.3, 1.0)

SETTINGS = {
  'A': ({}, 12),
  'B': (
    {
      'slots': 12,
      'inputs': 3,
      'hidden': 12,
      'teacher_hidden': 6,
      'steps': 30,
      'batch': 64,
    },
    25,
  ),
}

METHODS = {
  'random': algorithms.train_only,
  'mutation': algorithms.mutation_only,
  'pbt_nas': algorithms.pbt_nas,
  'copy': lambda learner, **w: algorithms.pbt_nas(
    learner, keep=1.0, noise=0.0, **w
  ),
  'fresh': lambda learner, **w: algorithms.pbt_nas(
    learner, keep=0.0, noise=1.0, **w
  ),
  'no_mixing': lambda learner, **w: algorithms.pbt_nas(
    learner, mixed=False, **w
  ),
  'clone': lambda learner, **w: algorithms.evolving(
    learner,
    stages.replace(learner, selection.copies(0.25), mixing.copy()),
    **w,
  ),
}


def outcome(make: Callable[..., Stage]):
  """A function of a seed: error and right slots of its last fittest."""
  settings, count = SETTINGS[_SETTING.value]

  def one(seed):
    teacher, start, search = jax.random.split(jax.random.key(seed), 3)
    learner = learners.teacher(teacher, **settings)
    population = stages.members(start, learner, _SIZE)
    stage = make(learner, over=forms.at_once)
    last, _ = rounds(search, stage, population, count)
    best = selection.order(last.metrics['fitness'])[0]
    member = jax.tree.map(lambda leaf: leaf[best], last.member)
    found = learner.test(search, member, learner.data)
    middle = jnp.median(-last.metrics['fitness'])
    return found['error'], found['right'], middle

  return one


def grid(seeds: jax.Array, path: str) -> None:
  """PBT-NAS by every (keep, noise): one program, rows, and a picture."""

  @jax.jit
  def search(keep, noise):
    make = functools.partial(algorithms.pbt_nas, keep=keep, noise=noise)
    return jax.vmap(outcome(make))(seeds)

  def measured(keep: float, noise: float) -> dict[str, list[float]]:
    error, _, middle = search(keep, noise)
    return {'errors': error.tolist(), 'medians': middle.tolist()}

  settings = {
    'setting': _SETTING.value,
    'first': _FIRST.value,
    'seeds': _SEEDS.value,
  }
  pairs = list(itertools.product(KEEP, NOISE))
  found = []
  for keep, noise in pairs:
    pair = {'keep': keep, 'noise': noise}
    measure = functools.partial(measured, keep, noise)
    row = paired.kept(_OUT.value, pair | settings, measure)
    found.append((row['errors'], row['medians']))
    error, middle = np.median(found[-1], axis=1).tolist()
    print(json.dumps({**pair, 'error': error, 'median': middle}), flush=True)
  shape = (len(KEEP), len(NOISE))
  titles = 'error of the fittest', "the population's median"
  tables, marked = {}, {}
  for title, held in zip(titles, zip(*found)):
    own, resolved = held[pairs.index((0.4, 0.1))], []
    for pair, errors in zip(pairs, held):
      row = paired.compared(errors, own, better='less')
      low, high = row['interval']
      resolved.append(low > 0 or high < 0)
      if resolved[-1]:
        print(json.dumps(_rounded({'of': title, 'pair': pair, **row})))
    tables[title] = np.median(held, axis=1).reshape(shape)
    marked[title] = np.reshape(resolved, shape)
  figure = draw.heat(
    tables,
    rows=KEEP,
    columns=NOISE,
    x='noise, of fresh weights',
    y="keep, of the donor's",
    marked=marked,
  )
  figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
  del argv
  seeds = jnp.arange(_FIRST.value, _FIRST.value + _SEEDS.value)
  if _GRID.value is not None:
    grid(seeds, _GRID.value)
    return
  found = {}
  for method in _METHODS.value:
    started = time.monotonic()
    search = jax.jit(jax.vmap(outcome(METHODS[method])))
    error, right, middle = map(np.asarray, search(seeds))
    found[method] = error
    row = {
      'method': method,
      'mean': float(error.mean()),
      'sd': float(error.std(ddof=1)),
      'median': float(np.median(error)),
      'right': float(right.mean()),
      'population_median': float(np.median(middle)),
      'seconds': time.monotonic() - started,
      'errors': [round(float(e), 4) for e in error],
    }
    print(json.dumps(_rounded(row)), flush=True)
  summary = {}
  for method in found:
    if method != 'pbt_nas' and 'pbt_nas' in found:
      ours, theirs = found['pbt_nas'], found[method]
      row = paired.compared(ours, theirs, better='less')
      summary |= {
        f'p_{method}': row['p'],
        f'wins_{method}': row['wins'],
        f'median_gain_{method}': float(np.median(1 - ours / theirs)),
        f'median_difference_{method}': row['difference'],
        f'interval_{method}': [round(end, 4) for end in row['interval']],
      }
  summary |= {'setting': _SETTING.value, 'seeds': _SEEDS.value}
  print(json.dumps(_rounded(summary)))


def _rounded(row):
  return {
    k: float(f'{v:.4g}') if isinstance(v, float) else v for k, v in row.items()
  }


if __name__ == '__main__':
  app.run(main)
