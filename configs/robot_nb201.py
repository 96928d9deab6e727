"""RoBoT on NAS-Bench-201: free metrics weighed by 20 questions.

    python launch/train.py --config=configs/robot_nb201.py \\
        --workdir=runs/robot_nb201 --config.table=nb201_cifar10.npz \\
        --config.more=nb201_proxies_cifar10.npz

    python launch/train.py --config=configs/robot_nb201.py \\
        --workdir=runs/robot_nb201_quick --config.table=nb201_cifar10.npz \\
        --config.more=nb201_proxies_cifar10.npz --config.quick=true

The paper's six metrics, as ranks and, as published, scaled by their extremes
(`robot_published` with the Gaussian process of its code, too), on the 9,444
networks for which NAS-Bench-Suite-Zero has them all, of 9,445 without
unreachable operations. Beside them stand the 20 networks of most parameters,
and of most of each metric. `random` draws from the whole space. The search is
by validation accuracy after 12 epochs.

Hardware: 2 cores of a CPU. Time: under 1 minute, in the quick form (10
searches) and in the full one. Expected of the full form (seed 0, 2026-11-29): a
test accuracy of about 94.2 by RoBoT (ranks), 93.9 by RoBoT (extremes: 94.37 in
47 of 50 searches), 92.9 as published (41 of 50), 93.3 by evolution and 92.9 at
random.
"""

import ml_collections

from configs import delta_nas_nb201

SIX = ('grad_norm', 'snip', 'grasp', 'fisher', 'synflow', 'jacov')


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = delta_nas_nb201.get_config()
  config.more = 'nb201_proxies_cifar10'
  config.generations = 1
  config.tabular.arms = 'robot-robot_extremes-robot_published-evolution-random'
  config.tabular.searches = 50
  config.tabular.signal = 'val_ep12'
  config.tabular.cost = 'train_time_ep12_s'
  config.tabular.budget = 20.0
  config.tabular.queries = 20
  config.predicted.columns = ','.join(f'nbsuite_{name}' for name in SIX)
  config.when_quick = ml_collections.ConfigDict({'tabular': {'searches': 10}})
  return config
