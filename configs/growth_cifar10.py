"""Gauss-Newton growth on CIFAR-10, or any other TFDS image set.

    python launch/train.py --config=configs/growth_cifar10.py \\
        --config.data_dir=DIR --workdir=runs/cifar10

`--config.dataset` names the set (`cifar100`, `svhn_cropped`,
`fashion_mnist`, ...); `--config.net.name` the seed: `chain`, `resnet`,
`vgg19` or `mobilenet_v1`.

With `--config.quick=true`: 6,000 training images, a chain of three
convolutions, 2 cores of a CPU, under 10 minutes; expected: a test accuracy of
about 0.55, see RESULTS.md (2026-11-22). The full form is meant for one GPU,
some hours; it has not been run, and no accuracy is promised.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  return ml_collections.ConfigDict(
    {
      'job': 'growth',
      'seed': 0,
      'quick': False,
      'dataset': 'cifar10',
      'data_dir': '',
      'examples': {'train': 0, 'test': 0},
      'net': {
        'name': 'vgg19',
        'widths': '8-M-16-M-16',
        'width': 16,
        'blocks': 1,
      },
      'batch': 128,
      'epochs': 10,
      'generations': 30,
      'optimizer': {
        'name': 'sgd',
        'learning_rate': 0.1,
        'weight_decay': 5e-4,
      },
      'growth': {
        'rounds': 12,
        'judge': 'gauss_newton',
        'rule': 'jointly',
        'moves': 'split-prune',
        'price': 3e-7,
        'z': 0.0,
        'limit': 0,
        'ratio': 0.0,
        'gain': 1e-5,
        'confirm': False,
        'draws': 1,
        'mass': 0.3,
        'tolerance': 0.05,
        'steps': 100,
        'batch': 256,
        'learn_examples': 16384,
        'score_examples': 4096,
      },
      'when_quick': {
        'examples': {'train': 6000, 'test': 2000},
        'net': {'name': 'chain'},
        'batch': 64,
        'epochs': 2,
        'generations': 8,
        'optimizer': {'learning_rate': 0.05},
        'growth': {
          'rounds': 4,
          'steps': 20,
          'batch': 128,
          'learn_examples': 2048,
          'score_examples': 1024,
        },
      },
    }
  )
