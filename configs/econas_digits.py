"""EcoNAS on scikit-learn's digits, over the cells of NAS-Bench-201.

    python launch/train.py --config=configs/econas_digits.py \\
        --workdir=runs/econas --config.quick=true

Four searches at equal training examples a generation: the ladder of EcoNAS, of
three rungs; the same evolution without a ladder (`flat`); successive halving;
random search. Over the whole search `flat` and halving see 10 % more examples
than the ladder, which has nobody to let go on at first, and random search 3 %.
The best of each are trained again, wider and on all images.
`--config.ladder.arms` names others: `inherited`, whose children begin with
their mothers' weights, and `screened`, with a zero-cost proxy below the first
rung. `--config.space=econas` searches the paper's own cells, each of which
compiles.

Hardware: 2 cores of a CPU. Time: 4 minutes, and the quick form under 3 minutes,
half of which is compiling one program. Expected of the full form (means of
three seeds, 2026-11-28, RESULTS.md): a test accuracy of about 0.960 by EcoNAS,
0.958 by `flat`, 0.957 by halving and 0.948 at random, with a deviation of 0.01.
The quick form trains its three answers for five epochs only, to an accuracy of
about 0.7 to 0.85.
"""

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
      # paper, or darts, of which each compiles, and `repeats` counts them all.
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
