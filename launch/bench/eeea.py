"""What the early exit of EEEA-Net's first population saves, by thresholds.

  python -m launch.bench.eeea --table=nb201_cifar10.npz

runs NSGA-II on NAS-Bench-201, by validation accuracy after 12 epochs against
operations, with 20 members for 5 generations, the first of which is drawn until
each network has fewer parameters than a threshold. Prints a JSON line for each
threshold, of means over the seeds:

  below          million parameters; null for NSGA-II without a threshold
  passes         share of the space that has fewer
  first_params   million parameters of the first population
  first_seconds  of training it for 12 epochs, and
  seconds        of training all that was asked
  saved          the share of the first line's seconds that this saves
  test           test accuracy of the best by validation accuracy
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from jaxnas import algorithms, spaces
from jaxnas.base import Table
from jaxnas.run import rounds
from jaxnas.spaces import nas_bench_201
from jaxnas.stages import trials

_TABLE = flags.DEFINE_string('table', 'nb201_cifar10', 'The table.')
_SEEDS = flags.DEFINE_integer('seeds', 300, 'Searches.', lower_bound=1)

SIZE, GENERATIONS = 20, 5
BELOW = (None, 1.0, 0.6, 0.4, 0.35, 0.25)


def measured(table: Table, below: float | None, seeds: int) -> dict[str, float]:
  """The means over searches with one threshold.

  Args:
    table: with `params`, `flops`, `val_ep12`, `train_time_ep12_s` and
      `test_ep200`.
    below: million parameters; None for all.
    seeds: searches, the same keys for every threshold.
  """
  space = table.space
  params, seconds, value, test = (
    spaces.tables.column(table, name)
    for name in ('params', 'train_time_ep12_s', 'val_ep12', 'test_ep200')
  )
  most = np.inf if below is None else 1e6 * below
  stage = algorithms.eeea(
    space,
    trials.query(table, 'val_ep12', also={'flops': 'flops'}),
    lambda genotype: params[space.index(genotype)] < most,
    size=SIZE,
  )
  start = trials.start(space, SIZE * GENERATIONS, metrics=('flops',))

  @jax.jit
  @jax.vmap
  def search(key):
    index = rounds(key, stage, start, GENERATIONS)[0].index
    asked = index >= 0
    cost = jnp.where(asked, seconds[index], 0.0)
    best = index[jnp.argmax(jnp.where(asked, value[index], -jnp.inf))]
    return {
      'first_params': params[index[:SIZE]].mean() / 1e6,
      'first_seconds': cost[:SIZE].sum(),
      'seconds': cost.sum(),
      'test': test[best],
    }

  found = search(jax.random.split(jax.random.key(0), seeds))
  means = {name: float(values.mean()) for name, values in found.items()}
  return {'below': below, 'passes': float((params < most).mean()), **means}


def main(argv: list[str]) -> None:
  del argv
  table = nas_bench_201.priced(spaces.load(_TABLE.value))
  whole = None
  for below in BELOW:
    row = measured(table, below, _SEEDS.value)
    whole = row['seconds'] if whole is None else whole
    row['saved'] = 1 - row['seconds'] / whole
    print(json.dumps({k: v and round(v, 4) for k, v in row.items()}))


if __name__ == '__main__':
  app.run(main)
