"""Gauss-Newton growth against its controls on CIFAR-10, at equal cost.

    python launch/train.py --config=configs/race_cifar10.py \\
        --config.data_dir=DIR --workdir=runs/race --config.seed=SEED

Grows one seed by three judges to the same number of parameters, and trains
three baselines from scratch for as many examples (`jaxnas.jobs.race`).
Hardware: 2 cores of a CPU; about 5 minutes for each of the six arms, with other
work beside. Expected: a test accuracy of about 0.62 for the grown networks
and 0.66 for those trained from scratch, see RESULTS.md (2026-11-27).
"""

import ml_collections

from configs import growth_cifar10


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = growth_cifar10.get_config()
  config.job = 'race'
  config.net.name = 'chain'
  config.net.widths = '8-M-16-M-16'
  config.examples.train = 15000
  config.examples.test = 5000
  config.batch = 64
  config.epochs = 2
  config.generations = 12
  config.optimizer.learning_rate = 0.05
  config.growth.rounds = 4
  config.growth.ratio = 1.5
  config.growth.moves = 'split'
  config.growth.price = 0.0
  config.growth.tolerance = 1e9
  config.growth.steps = 30
  config.growth.batch = 128
  config.growth.learn_examples = 2048
  config.growth.score_examples = 2048
  config.when_quick = ml_collections.ConfigDict({})
  return config
