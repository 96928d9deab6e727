"""Delta-NAS and its controls on NAS-Bench-201, 200 searches of each.

    python launch/train.py --config=configs/delta_nas_nb201.py \\
        --workdir=runs/delta_nas_nb201 --config.table=nb201_cifar10.npz

    python launch/train.py --config=configs/delta_nas_nb201.py \\
        --workdir=runs/delta_nas_nb201_quick --config.table=nb201_cifar10.npz \\
        --config.quick=true

With zero-cost proxies as features of the predictors:

    python launch/train.py --config=configs/delta_nas_nb201.py \\
        --workdir=runs/delta_nas_proxies --config.table=nb201_cifar10.npz \\
        --config.more=nb201_proxies_cifar10.npz \\
        --config.predicted.columns=logsynflow,naswot

`delta` predicts differences, with what an edit meets in its parent, and
`plain_delta` from the difference of the codes alone; `value` and `plain_value`
predict accuracies from the same features; `neighbour` asks any neighbour. A
search asks of 100 networks by their validation accuracy after 200 epochs.

Hardware: 2 cores of a CPU. Time: under 2 minutes, and the quick form (50
searches, of 50 networks) under 1 minute; most of it compiling. Expected of the
full form (seed 0, 2026-11-28): the optimum is found in about 81 % of the
searches by `delta` and `plain_delta`, 79 % by `value`, 73 % by `plain_value`,
18 % by `neighbour`, 12 % by evolution and none at random, with a test accuracy
of about 94.25 by the first four, 94.10 by evolution and 93.79 at random. The
100 networks of most parameters hold it in 67 %.
"""

import ml_collections

from configs import evolution_nb201


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = evolution_nb201.get_config()
  config.tabular.arms = (
    'delta-plain_delta-value-plain_value-neighbour-evolution-random'
  )
  config.tabular.searches = 200
  config.tabular.signal = 'val_ep200'
  config.tabular.cost = ''
  config.tabular.budget = 100.0
  config.tabular.unit = 'queries'
  config.tabular.queries = 100
  config.tabular.unique = True
  config.predicted = ml_collections.ConfigDict()
  # Random questions, and questions in a generation.
  config.predicted.first = 20
  config.predicted.keep = 5
  # Columns that cost nothing to know, joined by ','.
  config.predicted.columns = ''
  config.when_quick = ml_collections.ConfigDict(
    {'tabular': {'searches': 50, 'queries': 50, 'budget': 50.0}}
  )
  return config
