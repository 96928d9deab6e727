"""Regularized evolution and its baselines on NAS-Bench-201, 500 of each.

    python launch/train.py --config=configs/evolution_nb201.py \\
        --workdir=runs/evolution_nb201 --config.table=nb201_cifar10.npz

    python launch/train.py --config=configs/evolution_nb201.py \\
        --workdir=runs/evolution_nb201_quick --config.table=nb201_cifar10.npz \\
        --config.quick=true

What the same searches find on CIFAR-100, in the way of the published tables:

    python launch/train.py --config=configs/evolution_nb201.py \\
        --workdir=runs/evolution_nb201_cifar100 \\
        --config.table=nb201_cifar10.npz \\
        --config.more=cifar100_=nb201_cifar100.npz \\
        --config.tabular.report=cifar100_test_ep200

The protocol of the benchmark: 12,000 s of training for 12 epochs, by whose
validation accuracy is searched; what is reported is the test accuracy after 200
epochs. The table is a file, or a name in the folder JAXNAS_DATA_DIR.

Hardware: 2 cores of a CPU. Time: under 1 minute, in the quick form (100
searches) and in the full one. Expected of the full form (seed 0, 2026-11-28): a
test accuracy of about 93.78 by random search, 93.92 by evolution, 94.02 by
local search, 93.79 by REINFORCE, and 94.37 by asking of the largest. The time
is that of CIFAR-10 on both data sets; CIFAR-100 by its own validation accuracy
and time is `--config.table=nb201_cifar100.npz`, with half as many questions.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = ml_collections.ConfigDict()
  config.job = 'tabular'
  config.seed = 0
  config.quick = False
  # An .npz file, or its name in the folder that JAXNAS_DATA_DIR names.
  config.table = 'nb201_cifar10'
  # Further files of the same space, joined by ','; of one with other values for
  # the same columns PREFIX=FILE, after which they are called PREFIXcolumn.
  config.more = ''
  # Times that an arm is saved.
  config.generations = 10
  config.tabular = ml_collections.ConfigDict()
  # random, evolution, local, reinforce, nsga, eeea, joined by '-'.
  config.tabular.arms = 'random-evolution-local-reinforce'
  config.tabular.searches = 500
  # Columns: searched by, charged by ('' for nothing), reported; of one seed by
  # its place, such as val_ep200_seeds:0.
  config.tabular.signal = 'val_ep12'
  config.tabular.cost = 'train_time_ep12_s'
  config.tabular.report = 'test_ep200'
  # In seconds or queries; repeated questions are paid or free.
  config.tabular.budget = 12000.0
  config.tabular.unit = 'seconds'
  config.tabular.repeats = 'paid'
  # How many questions a search asks at least.
  config.tabular.queries = 250
  # Columns of which less is better, joined by '-', for nsga and eeea.
  config.tabular.less = ''
  config.tabular.classes = 10
  # Of evolution.
  config.tabular.size = 10
  config.tabular.entrants = 3
  config.tabular.unique = False
  # Of REINFORCE.
  config.tabular.learning_rate = 0.01
  # Of nsga and eeea; million parameters of eeea's first population.
  config.tabular.population = 20
  config.tabular.below = 0.4
  config.when_quick = ml_collections.ConfigDict({'tabular': {'searches': 100}})
  return config
