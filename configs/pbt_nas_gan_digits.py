"""PBT-NAS of generators and discriminators on scikit-learn's digits.

    python launch/train.py --config=configs/pbt_nas_gan_digits.py \\
        --workdir=runs/gan --config.quick=true

Small adversarial networks with 12 genes; fitness is the negated Frechet
distance of 2,000 samples, in the features of a classifier trained on the same
images, and the report that of 20,000 fresh ones. `--config.dataset=cifar10`
with `--config.data_dir=DIR` trains convolutional ones of 21 genes, for a GPU,
where that has not been run; two rounds of small ones were, on a CPU.

Hardware: 2 cores of a CPU. Time, with `--config.quick=true`: about 1 minute.
Expected (seed 0, 2026-11-28): a distance of about 3.5 by all three, an early
stage at which methods cannot be told apart. The full form, 12 members for 14
rounds of 250 steps, is measured in RESULTS.md, times 100.
"""

import ml_collections

from configs import pbt_nas_teacher


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = pbt_nas_teacher.get_config()
  config.generations = 14
  config.members.learner = 'gan'
  config.members.size = 12
  config.members.steps = 250
  config.when_quick = ml_collections.ConfigDict(
    {'generations': 4, 'members': {'size': 8, 'steps': 60}}
  )
  return config
