"""EcoNAS' ladder on NAS-Bench-201, networks known after 12 and 200 epochs.

    python launch/train.py --config=configs/econas_nb201.py \\
        --workdir=runs/econas_nb201 --config.table=nb201_cifar10.npz

    python launch/train.py --config=configs/econas_nb201.py \\
        --workdir=runs/econas_nb201_quick --config.table=nb201_cifar10.npz \\
        --config.quick=true

`econas` trains 16 children a generation for 12 epochs and the best two so far
for 188 more; `flat_first` and `flat_last` are the same evolution on one of the
rungs alone; `halving`, `evolution` and `random` are what they are called. All
spend the same seconds of training, as the table has them, about 55 whole
trainings. On CIFAR-100 training takes twice as long:
`--config.tabular.budget=200000`.

Hardware: 2 cores of a CPU. Time: 1 minute, most of it compiling; the quick form
(50 searches) as well. Expected of the full form (seed 0, 2026-11-28): a test
accuracy of about 94.28 by `econas`, 94.31 by `flat_first`, 93.95 by `halving`,
93.83 by evolution, 93.78 by `flat_last` and 93.67 at random; the networks of
most parameters have 94.36.
"""

import ml_collections

from configs import evolution_nb201


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = evolution_nb201.get_config()
  config.tabular.arms = 'econas-halving-flat_first-flat_last-evolution-random'
  config.tabular.searches = 200
  config.tabular.signal = 'val_ep200'
  config.tabular.cost = 'train_time_ep200_s'
  # Of training, as the table says it took: about 55 whole trainings.
  config.tabular.budget = 100_000.0
  config.tabular.unit = 'seconds'
  config.tabular.queries = 800
  config.ladder = ml_collections.ConfigDict()
  # Columns of the rungs, and what it takes to get there, joined by ','.
  config.ladder.signals = 'val_ep12,val_ep200'
  config.ladder.costs = 'train_time_ep12_s,train_time_ep200_s'
  # Random genotypes, how many go on from rung 1, and children of each rung.
  config.ladder.first = 16
  config.ladder.promote = '2'
  config.ladder.mothers = '8-8'
  config.when_quick = ml_collections.ConfigDict({'tabular': {'searches': 50}})
  return config
