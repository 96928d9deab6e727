"""Regularized evolution on CIFAR-10, or any other TFDS image set.

    python launch/train.py --config=configs/evolution_cifar10.py \\
        --config.data_dir=DIR --workdir=runs/evolution_cifar10

The arms of `configs/evolution_digits.py`, in a space of three stages. The full
form, of 120 networks of ten epochs an arm, is meant for one GPU. With
`--config.quick=true`: 3,000 training images, 10 networks of three epochs an
arm, for 2 cores of a CPU, of the order of 10 minutes. Neither has been run to
its end (2026-11-27), and no accuracy is promised.
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
