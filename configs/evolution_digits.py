"""Regularized evolution on scikit-learn's digits, fresh and inherited weights.

    python launch/train.py --config=configs/evolution_digits.py \\
        --workdir=runs/evolution --config.quick=true

Three searches of one space of small chains, each of which makes and trains
equally many networks for equally long: evolution with fresh weights, evolution
whose children are function-preserving morphs that inherit their parents'
weights, and random search. `--config.evolution.arms` names others, such as
`nsga`.

Hardware: 2 cores of a CPU. Time, with `--config.quick=true`: 5 minutes of
processor time, nearly all of it compiling. Expected: after 18 networks of two
epochs each, 41,472 examples an arm, a test accuracy of about 0.73 with
inherited weights, against 0.47 with fresh ones and 0.54 by random search (means
of three seeds, 2026-11-28, RESULTS.md). The full form makes 64 networks of ten
epochs an arm; it has not been run, and no accuracy is promised.
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
        'epochs': 2,
        'generations': 5,
        'evolution': {'size': 6, 'entrants': 3, 'children': 3},
      },
    }
  )
