"""Regularized evolution on scikit-learn's digits, fresh and inherited weights.

    python launch/train.py --config=configs/evolution_digits.py \\
        --workdir=runs/evolution
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  return ml_collections.ConfigDict(
    {
      'job': 'evolution',
      'seed': 0,
      'quick': False,
      'dataset': 'digits',
      'data_dir': '',
      'examples': {'train': 0, 'test': 0},
      'space': {
        'stages': 2,
        'depth': '1-2',
        'hidden': '0-1',
        'widths': '4-8-16',
        'windows': '1-3',
      },
      'batch': 64,
      'epochs': 10,
      'generations': 13,
      'optimizer': {
        'name': 'adamw',
        'learning_rate': 1e-2,
        'weight_decay': 1e-4,
      },
      'evolution': {
        'arms': 'fresh-inherited-random',
        'size': 16,
        'entrants': 4,
        'children': 4,
        'against': 'params',
      },
      'when_quick': {
        'epochs': 8,
        'generations': 5,
        'evolution': {'size': 4, 'entrants': 2, 'children': 2},
      },
    }
  )
