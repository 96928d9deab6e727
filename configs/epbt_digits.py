"""EPBT, which evolves the loss while networks learn, on scikit-learn's digits.

    python launch/train.py --config=configs/epbt_digits.py \\
        --workdir=runs/epbt --config.quick=true

Convolutional networks whose architecture is drawn and stays; the coefficients
of a Taylor loss and the learning rate evolve (EPBT), are copied and perturbed
(PBT) or stay as they were drawn (`random`). EPBT's elite is chosen by novelty
too in every `--config.members.cycle`-th generation, 5, or 2 in the quick form.

Hardware: 2 cores of a CPU. Time, with `--config.quick=true`: 1 to 3 minutes.
Expected (seed 0, 2026-11-28): a test accuracy of about 0.70 by EPBT, 0.83 by
PBT and 0.76 with settings as they were drawn, an early stage from which
nothing follows.
"""

import ml_collections

from configs import pbt_nas_teacher


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = pbt_nas_teacher.get_config()
  config.generations = 12
  config.members.learner = 'taylor_classifier'
  config.members.arms = 'epbt-pbt-random'
  config.members.size = 16
  config.members.steps = 50
  config.when_quick = ml_collections.ConfigDict(
    {'generations': 4, 'members': {'size': 8, 'steps': 20, 'cycle': 2}}
  )
  return config
