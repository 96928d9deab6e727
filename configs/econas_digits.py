"""EcoNAS on scikit-learn's digits, over the cells of NAS-Bench-201."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  return ml_collections.ConfigDict(
    {
      'job': 'econas',
      'seed': 0,
      'quick': False,
      'dataset': 'digits',
      'data_dir': '',
      'examples': {'train': 0, 'test': 0},
      # nas_bench_201, one program for all cells; or econas, the cells of the
      # paper, of which each compiles, and `repeats` counts them all.
      'space': 'nas_bench_201',
      # Of the first stage, and cells in each of three, before any reduction.
      'cells': {'channels': 4, 'repeats': 1},
      # Channels, resolution, samples, and the epochs of the whole ladder.
      'fidelity': 'c2r0s2e12',
      'batch': 64,
      'generations': 11,
      'optimizer': {
        'learning_rate': 0.1,
        'weight_decay': 3e-4,
        'clip': 5.0,
      },
      'ladder': {
        'arms': 'econas-flat-halving-random',
        'first': 4,
        'promote': '2-1',
        'mothers': '2-1-1',
        'share': 0.25,
        'life': 9,
        # Of the arm `screened`.
        'brood': 4,
        'proxy': 'naswot',
      },
      'retrain': {
        'fidelity': 'c0r0s0e12',
        'best': 3,
        'learning_rate': 0.1,
      },
      'when_quick': {
        'fidelity': 'c2r0s0e3',
        'generations': 6,
        'ladder': {
          'arms': 'econas-halving-random',
        },
        'retrain': {'fidelity': 'c0r0s0e5', 'best': 1},
      },
    }
  )
