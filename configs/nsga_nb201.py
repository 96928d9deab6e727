"""Accuracy against operations on NAS-Bench-201: NSGA-II and EEEA-Net's start.

    python launch/train.py --config=configs/nsga_nb201.py \\
        --workdir=runs/nsga_nb201 --config.table=nb201_cifar10.npz

    python launch/train.py --config=configs/nsga_nb201.py \\
        --workdir=runs/nsga_nb201_quick --config.table=nb201_cifar10.npz \\
        --config.quick=true

Against the latency of a device, from a file that is joined:

    python launch/train.py --config=configs/nsga_nb201.py \\
        --workdir=runs/nsga_latency --config.table=nb201_cifar10.npz \\
        --config.more=nb201_hw.npz \\
        --config.tabular.less=edgegpu_latency_cifar10

A search asks of 400 networks, in populations of 40. The share of the
hypervolume is that of all it asked.

Hardware: 2 cores of a CPU. Time: under 2 minutes; the quick form (20 searches)
under 1 minute. Expected of the full form (seed 0, 2026-11-28): a share of the
hypervolume of 0.9955 by NSGA-II, 0.9944 with EEEA-Net's start and 0.9925 by
random search, and a test accuracy of about 94.06, 93.97 and 93.98.
"""

import ml_collections

from configs import evolution_nb201


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = evolution_nb201.get_config()
  config.tabular.arms = 'nsga-eeea-random'
  config.tabular.searches = 100
  config.tabular.unit = 'queries'
  config.tabular.budget = 400.0
  config.tabular.queries = 400
  config.tabular.population = 40
  config.tabular.less = 'flops'
  config.when_quick = ml_collections.ConfigDict({'tabular': {'searches': 20}})
  return config
