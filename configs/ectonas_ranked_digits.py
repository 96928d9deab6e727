"""ECToNAS whose children a Gauss-Newton judge has ranked first, on digits.

    python launch/train.py --config=configs/ectonas_ranked_digits.py \\
        --workdir=runs/ectonas_ranked --config.quick=true

As `ectonas_digits.py`, but edits that change widths are not one for each
layer: every channel's split and prune is scored in one pass, along learned
directions, and of each kind of edit the best is made (`jaxnas.stages.ranked`).
This is no paper's method.

Hardware: 2 cores of a CPU. Time: 2 to 6 minutes in the quick form with the
baselines, nearly all of it compiling. Expected (2026-11-27): a validation
accuracy of 0.85 or more. Seed 0 found 576 parameters with a test accuracy of
0.864, where trying all edits found 644 with 0.869.
"""

import ml_collections

from configs import ectonas_digits


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = ectonas_digits.get_config()
  config.ectonas.children = 'ranked'
  return config
