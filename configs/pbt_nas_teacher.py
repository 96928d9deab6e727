"""PBT-NAS on the separable teacher, beside what it is compared with.

    python launch/train.py --config=configs/pbt_nas_teacher.py \\
        --workdir=runs/pbt_nas --config.quick=true

Populations of 24 students with 40 genes learn a teacher that is drawn from the
seed: PBT-NAS, mutation-only, and random search, from the same members and for
as many steps. `--config.members.arms` names others: copy, fresh (weights drawn
anew) and no_mixing; where slots can grow, preserving, whose children compute
what their one parent does; and where there are hyper-parameters, pbt. The
task is made so that recombination helps: it shows that the machinery works
(docs/pbt_nas.md).

Hardware: 2 cores of a CPU. Time, with `--config.quick=true`: under 1 minute.
Expected (seed 0, 2026-11-28): a squared error of about 0.28 by all three after
4 rounds of 50 steps, which is too early for differences; the full form has 12
rounds of 100 steps, takes about 2 minutes, and is what RESULTS.md reports over
many seeds.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  return ml_collections.ConfigDict(
    {
      'job': 'members',
      'seed': 0,
      'quick': False,
      'dataset': 'digits',
      'data_dir': '',
      'examples': {'train': 0, 'test': 0},
      'generations': 12,
      'members': {
        'learner': 'teacher',
        'arms': 'pbt_nas-mutation-random',
        'size': 24,
        'steps': 100,
        'environment': 'pendulum',
        'fraction': 0.25,
        'probability': 0.25,
        'keep': 0.4,
        'noise': 0.1,
        'cycle': 5,
      },
      'when_quick': {'generations': 4, 'members': {'steps': 50}},
    }
  )
