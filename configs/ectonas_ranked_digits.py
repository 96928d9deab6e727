"""ECToNAS whose children a Gauss-Newton judge has ranked first, on digits.

    python launch/train.py --config=configs/ectonas_ranked_digits.py \\
        --workdir=runs/ectonas_ranked --config.quick=true

As `ectonas_digits.py`, but edits that change widths are not one for each
layer: every channel's split and prune is scored in one pass, along learned
directions, and of each kind of edit the best is made (`jaxnas.stages.ranked`).
This is no paper's method.

Hardware: 2 cores of a CPU. Time: about 4 minutes in the quick form, nearly all
of it compiling. Expected (2026-11-27): a validation accuracy as in RESULTS.md;
it is not promised to be better than trying all edits.
"""

import ml_collections

from configs import ectonas_digits


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = ectonas_digits.get_config()
  config.ectonas.children = 'ranked'
  return config
