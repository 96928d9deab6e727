"""Gauss-Newton growth on scikit-learn's digits: the default job.

    python launch/train.py --config=configs/growth_digits.py \\
        --workdir=runs/digits

Hardware: 2 cores of a CPU. Time: 2 to 4 minutes the first time (most of it
compiling), with `--config.quick=true` half of that. Expected: a test accuracy
of 0.97 or more from a seed of 1,362 parameters, see RESULTS.md (2026-11-22).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  return ml_collections.ConfigDict(
    {
      'job': 'growth',
      'seed': 0,
      'quick': False,
      'dataset': 'digits',
      'data_dir': '',
      'examples': {'train': 0, 'test': 0},
      'net': {'name': 'chain', 'widths': '8-M-8-8', 'width': 8, 'blocks': 1},
      'batch': 64,
      'epochs': 3,
      'generations': 40,
      'optimizer': {
        'name': 'adamw',
        'learning_rate': 1e-2,
        'weight_decay': 1e-4,
      },
      'growth': {
        'rounds': 5,
        'judge': 'gauss_newton',
        'rule': 'jointly',
        'moves': 'split-prune',
        'price': 1e-6,
        'z': 0.0,
        'limit': 0,
        'ratio': 0.0,
        'gain': 1e-5,
        'confirm': False,
        'draws': 1,
        'mass': 0.3,
        'tolerance': 0.05,
        'steps': 16,
        'batch': 64,
        'learn_examples': 512,
        'score_examples': 512,
      },
      'when_quick': {'generations': 12, 'growth': {'rounds': 2}},
    }
  )
