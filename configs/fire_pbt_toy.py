"""FIRE PBT, PBT and settings that stay, on the deceptive toy.

    python launch/train.py --config=configs/fire_pbt_toy.py \\
        --workdir=runs/fire_pbt --config.quick=true

The toy punishes later what pays at once, so greedy population based training
is led astray. `random` is the arm whose settings stay as they were drawn.

Hardware: 2 cores of a CPU. Time: under 1 minute, in the quick form and in the
full one. Expected (seed 0, 2026-11-28): an objective of about 1.14 by FIRE PBT
in the quick form and 1.17 in the full one, and in either 0.98 by PBT and 1.04
where settings stay; RESULTS.md has many seeds.
"""

import ml_collections

from configs import pbt_nas_teacher


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = pbt_nas_teacher.get_config()
  config.generations = 50
  config.members.learner = 'deceptive_toy'
  config.members.arms = 'fire-pbt-random'
  config.members.size = 22
  config.members.steps = 20
  config.when_quick = ml_collections.ConfigDict({'generations': 40})
  return config
