"""EcoNAS on CIFAR-10, over the cells of NAS-Bench-201.

    python launch/train.py --config=configs/econas_cifar10.py \\
        --workdir=runs/econas_cifar10 --config.data_dir=DIR --config.quick=true

The paper's ladder at its own fidelity, `c4r4s0e60`, and its own numbers, of
which the whole takes 55,940 epochs an arm: meant for an accelerator, and not
run. The quick form is a small one: half the channels and half the resolution,
1,800 training images, rungs of four epochs, 12 to 24 networks begun.

Hardware: 2 cores of a CPU for the quick form. Time: 15 minutes on a busy
machine. Expected of it (seeds 0 to 2, 2026-11-28): a test accuracy of about
0.34 by EcoNAS, and 0.35 and 0.36 by successive halving and random search, with
deviations of 0.04 and 0.01 between seeds; what it finds is trained for eight
epochs only, and it shows that the parts work, not which search is better.
"""

import ml_collections

from configs import econas_digits


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = econas_digits.get_config()
  config.dataset = 'cifar10'
  config.cells.channels, config.cells.repeats = 16, 5
  # Of channels and resolution a quarter, and three rungs of 20 epochs.
  config.fidelity = 'c4r4s0e60'
  config.batch = 128
  config.generations = 101
  config.ladder.first = 16
  config.ladder.promote = '8-4'
  config.ladder.mothers = '6-5-5'
  config.retrain.fidelity = 'c0r0s0e200'
  config.when_quick = ml_collections.ConfigDict(
    {
      'examples': {'train': 2000, 'test': 2000},
      'cells': {'channels': 8, 'repeats': 1},
      'fidelity': 'c2r2s0e12',
      'batch': 64,
      'generations': 6,
      'ladder': {
        'arms': 'econas-halving-random',
        'first': 4,
        'promote': '2-1',
        'mothers': '2-1-1',
      },
      'retrain': {'fidelity': 'c0r0s0e8', 'best': 1},
    }
  )
  return config
