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

What the paper leaves open, each beside the control that predicts accuracies:

    python launch/train.py --config=configs/delta_nas_nb201.py \\
        --workdir=runs/delta_nas_options --config.table=nb201_cifar10.npz \\
        --config.more=nb201_proxies_cifar10.npz \\
        --config.predicted.target=logsynflow \\
        --config.tabular.arms=taught_delta-taught_value-settled_delta-settled_value

`taught_...` learns the column `predicted.target` of 500 networks before, of a
proxy or the accuracies of another data set, and then all answers;
`settled_...` learns it and no answer; `once_...` is fitted to the first 20
answers alone; `restarted_...` proposes neighbours alone, and begins anew where
20 questions brought nothing better, beside `narrow_delta`, which does not.

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
100 networks of most parameters hold it in 67 %. Of the options: 21 % by
`once_delta`, 14 % by `once_value`, 76 % by `restarted_delta`, 80 % by
`narrow_delta`; with the target logsynflow 81 % by `taught_delta`, 88 % by
`taught_value`, and 100 % by `settled_...` and by the proxy's own ranking.
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
  # The column that taught_... and settled_... learn before, of how many
  # networks; and questions after which restarted_... begin anew.
  config.predicted.target = ''
  config.predicted.examples = 500
  config.predicted.patience = 20
  config.when_quick = ml_collections.ConfigDict(
    {'tabular': {'searches': 50, 'queries': 50, 'budget': 50.0}}
  )
  return config
