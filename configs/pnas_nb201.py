"""Progressive NAS on NAS-Bench-201, from all edges `skip_connect`.

    python launch/train.py --config=configs/pnas_nb201.py \\
        --workdir=runs/pnas_nb201 --config.table=nb201_cifar10.npz

    python launch/train.py --config=configs/pnas_nb201.py \\
        --workdir=runs/pnas_nb201_quick --config.table=nb201_cifar10.npz \\
        --config.quick=true

A level is an edge more that is not `skip_connect`: 24 networks of level 1, then
5 of each of 5 levels, 49 in all, by validation accuracy after 12 epochs. The
ladder is a flattering prior, around which accuracies add up, so this tests the
controller and its predictor (`random_beam` is the control) and is no fair
comparison with `evolution` and `random`, which ask as many. With
`--config.predicted.base=0-0-0-0-0-0` the ladder starts from no edges, and it
fails.

Hardware: 2 cores of a CPU. Time: under 1 minute, in the quick form (20
searches) and in the full one. Expected of the full form (seed 0, 2026-11-28): a
test accuracy of about 94.28 by `pnas`, 92.50 by `random_beam`, 93.65 by
evolution and 93.53 at random; the 49 networks of most parameters hold one of
94.36.
"""

import ml_collections

from configs import delta_nas_nb201


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = delta_nas_nb201.get_config()
  config.generations = 6
  config.tabular.arms = 'pnas-random_beam-evolution-random'
  config.tabular.searches = 100
  config.tabular.signal = 'val_ep12'
  config.tabular.cost = 'train_time_ep12_s'
  config.tabular.budget = 49.0
  config.tabular.queries = 49
  # Of PNAS: the genotype of level 0.
  config.predicted.base = '1-1-1-1-1-1'
  config.when_quick = ml_collections.ConfigDict({'tabular': {'searches': 20}})
  return config
