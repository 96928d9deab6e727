"""ECToNAS whose children a Gauss-Newton judge has ranked first, on digits.

    python launch/train.py --config=configs/ectonas_ranked_digits.py \\
        --workdir=runs/ectonas_ranked --config.quick=true

As `ectonas_digits.py`, but edits that change widths are not one for each
layer: every channel's split and prune is scored in one pass, along learned
directions, and of each kind of edit the best is made (`jaxnas.stages.ranked`).
This is no paper's method.

Hardware: 2 cores of a CPU. Time: 1 to 2 minutes in the quick form with the
baselines, of which the search takes 15 to 20 seconds. Expected (2026-11-29): a
validation accuracy of 0.85 or more. Seeds 0 to 2 found test accuracies of
0.822, 0.883 and 0.875, the start network alone 0.855, 0.858 and 0.861.
"""

import ml_collections

from configs import ectonas_digits


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = ectonas_digits.get_config()
  config.ectonas.children = 'ranked'
  return config
