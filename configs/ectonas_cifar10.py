"""ECToNAS on CIFAR-10, or any other TFDS image set.

    python launch/train.py --config=configs/ectonas_cifar10.py \\
        --config.data_dir=DIR --workdir=runs/ectonas_cifar10

`--config.dataset` names the set (`cifar100`, `svhn_cropped`,
`fashion_mnist`, ...).

With `--config.quick=true`: 2,500 training images, one generation of one epoch
a round, 69.45 epochs in all. Hardware: 2 cores of a CPU. Time: 4 to 6 minutes
with the baselines. Expected (seed 0, 2026-11-28): a test accuracy of about 0.55
from a third of the start network's parameters, which itself reaches 0.52. The
full form is meant for one GPU, and has not been run.
"""

import ml_collections

from configs import ectonas_digits


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = ectonas_digits.get_config()
  config.dataset = 'cifar10'
  config.batch = 128
  config.net.widths = '8-16:32'
  config.when_quick.examples = ml_collections.ConfigDict(
    {'train': 2500, 'test': 1000}
  )
  config.when_quick.batch = 64
  return config
