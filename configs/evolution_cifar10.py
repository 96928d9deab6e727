"""Regularized evolution on CIFAR-10, or any other TFDS image set.

    python launch/train.py --config=configs/evolution_cifar10.py \\
        --config.data_dir=DIR --workdir=runs/evolution_cifar10

The arms of `configs/evolution_digits.py`, in a space of three stages. The full
form, of 120 networks of ten epochs an arm, is meant for one GPU and has not
been run. With `--config.quick=true`: 3,000 training images, 10 networks of
three epochs an arm; on one core of a CPU it takes about 12 minutes.

Expected of the quick form (seed 0, 2026-11-28): a test accuracy of about 0.46
with inherited weights, 0.37 with fresh ones and 0.35 at random, after 80,640
examples each.
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
