"""PBT-NAS of actors and critics on a small control task.

    python launch/train.py --config=configs/pbt_nas_control.py \\
        --workdir=runs/control --config.quick=true

Proximal policy optimization of actors and critics whose slots are genes;
`--config.members.environment` names the task, `--config.members.steps` the
updates of a round. Fitness is the mean return of episodes, the report that of
fresh ones.

Hardware: 2 cores of a CPU. Time, with `--config.quick=true`: 1 to 2 minutes.
Expected (seed 0, 2026-11-28): a return of about 25 by PBT-NAS, 30 by
mutation-only and 26 by random search, an early stage at which methods cannot
be told apart.
"""

import ml_collections

from configs import pbt_nas_teacher


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = pbt_nas_teacher.get_config()
  config.generations = 20
  config.members.learner = 'control'
  config.members.size = 12
  config.members.steps = 8
  config.when_quick = ml_collections.ConfigDict(
    {'generations': 4, 'members': {'size': 8}}
  )
  return config
