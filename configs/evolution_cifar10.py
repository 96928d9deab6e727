"""Regularized evolution on CIFAR-10, or any other TFDS image set.

    python launch/train.py --config=configs/evolution_cifar10.py \\
        --config.data_dir=DIR --workdir=runs/evolution_cifar10
"""

import ml_collections

from configs import evolution_digits


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = evolution_digits.get_config()
  config.dataset = 'cifar10'
  config.space.stages = 3
  config.space.depth = '1-3'
  config.space.widths = '16-32-64-128'
  config.space.windows = '1-3-5'
  config.batch = 128
  config.epochs = 10
  config.generations = 21
  config.evolution.size = 20
  config.evolution.entrants = 5
  config.evolution.children = 5
  config.when_quick = ml_collections.ConfigDict(
    {
      'examples': {'train': 3000, 'test': 2000},
      'space': {'stages': 3, 'depth': '1-2', 'hidden': '0-0'},
      'batch': 64,
      'epochs': 3,
      'generations': 4,
      'evolution': {'size': 4, 'entrants': 2, 'children': 2},
    }
  )
  config.when_quick.space.widths = '8-16-32'
  config.when_quick.space.windows = '1-3'
  return config
