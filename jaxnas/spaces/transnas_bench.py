"""What the cells of TransNAS-Bench-101 micro cost, in closed form.

Duan et al. (2021); the space is `tabular.transnas_micro`. A network is five
modules of two cells, of 128, 128, 256, 256 and 512 channels, behind a stem of
64. The first cell of modules 1, 3 and 5 doubles the channels on the edges that
leave its input, so that a convolution of k x k has k^2 C^2 / 2 weights there,
k^2 C^2 elsewhere, and 2 C of its norm; a skip that doubles them has as many
parameters as a convolution of 1 x 1.

The skeleton was not published with the table. It was found from the measured
parameters of 711 networks, which are linear in the ops of the edges: a
convolution of 3 x 3 adds 7,672,832 where it does not leave the input, one of
1 x 1 857,088, so that the squares of widths add up to 851,968 and the widths to
2,560. All 711 are met, but for a constant of each task.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.spaces import nas_bench_201, tabular

STEM, WIDTHS, CELLS = 64, (128, 128, 256, 256, 512), 2


def _costs() -> np.ndarray:
  """(6, 4) parameters of each op on each edge, in all cells together."""
  reads = (STEM, *WIDTHS[:-1])
  costs = np.zeros((len(nas_bench_201.EDGES), 4), np.int32)
  for edge, (source, _) in enumerate(nas_bench_201.EDGES):
    for read, width in zip(reads, WIDTHS, strict=True):
      for cell in range(CELLS):
        own = read if source == 0 and cell == 0 else width
        narrow, norm = own * width, 2 * width
        skip = narrow + norm if own != width else 0
        costs[edge] += np.array([0, skip, narrow + norm, 9 * narrow + norm])
  return costs


def micro_params(genotype: Any) -> jax.Array:
  """Trainable parameters of all cells of a network, exactly; see the module.

  Stem and head, which depend on the task alone, are not counted.

  Args:
    genotype: (..., 6) ops.

  Returns:
    (...) int32.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> micro_params([[0] * 6, [0, 0, 3, 0, 0, 0], [1, 0, 0, 0, 0, 2]]).tolist()
    [0, 7672832, 1030912]
  """
  options = tabular.transnas_micro().options
  tabular.check_genotypes('micro_params', options, genotype)
  places = np.arange(len(options))
  return jnp.asarray(_costs())[places, jnp.asarray(genotype)].sum(axis=-1)
