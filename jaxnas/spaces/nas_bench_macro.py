"""What the networks of NAS-Bench-Macro cost, in closed form.

Su et al. (2021, arXiv 2103.11922); the space is `tabular.nas_bench_macro`.
Images of 32 x 32 x 3; a stem, 3 x 3 to 32 channels; 8 layers in stages of 64,
128 and 256 channels at 16 x 16, 8 x 8 and 4 x 4, whose first layers (0, 2 and
5) change width and halve the resolution; 1 x 1 to 1280 channels, the mean over
places, and a dense layer. Every convolution has a norm and no bias.

A layer is 0 the identity, and where it opens a stage a convolution of 1 x 1 and
stride 2 instead; 1 or 2 an inverted residual: 1 x 1 to m = e C channels, k x k
for each of these, 1 x 1 to D channels, with e, k = 3, 3 or 6, 5. So it has

    C m + k^2 m + m D      weights, and 2 (m + m + D) of its norms,

and the multiply-adds of the first before the resolution is halved, of the
others after it. The skeleton was not published with the table: it was found
from differences between rows (an inner layer of stage 1 adds 27,200 = 6 C^2 +
41 C at C = 64), and all rows of the table are met exactly.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.spaces import tabular

# Of each layer: channels that it reads and writes, and the side of its result.
LAYERS = (
  *((32, 64, 16), (64, 64, 16)),
  *((64, 128, 8), (128, 128, 8), (128, 128, 8)),
  *((128, 256, 4), (256, 256, 4), (256, 256, 4)),
)
# Expansion and kernel of choices 1 and 2.
_BLOCKS = ((3, 3), (6, 5))
_SIDE, _STEM, _HEAD = 32, 32, 1280


def _weights(read: int, wrote: int, expansion: int, kernel: int) -> list[int]:
  """Of the three convolutions of an inverted residual."""
  wide = expansion * read
  return [read * wide, kernel**2 * wide, wide * wrote]


def _params() -> np.ndarray:
  """(8, 3) of each choice of each layer."""
  rows = []
  for read, wrote, _ in LAYERS:
    opens = read != wrote
    row = [opens * (read * wrote + 2 * wrote)]
    for block in _BLOCKS:
      norms = 2 * (2 * block[0] * read + wrote)
      row.append(sum(_weights(read, wrote, *block)) + norms)
    rows.append(row)
  return np.array(rows, np.int32)


def _flops() -> np.ndarray:
  """(8, 3) of each choice of each layer."""
  rows = []
  for read, wrote, side in LAYERS:
    opens = read != wrote
    before = side * (2 if opens else 1)
    row = [opens * read * wrote * side**2]
    for block in _BLOCKS:
      first, *rest = _weights(read, wrote, *block)
      row.append(first * before**2 + sum(rest) * side**2)
    rows.append(row)
  return np.array(rows, np.int32)


def _summed(name: str, each: np.ndarray, genotype: Any) -> jax.Array:
  """What the choices of a genotype add up to."""
  options = tabular.nas_bench_macro().options
  tabular.check_genotypes(name, options, genotype)
  places = np.arange(len(options))
  return jnp.asarray(each)[places, jnp.asarray(genotype)].sum(axis=-1)


def params(genotype: Any, classes: int = 10) -> jax.Array:
  """Trainable parameters of a network, exactly; see the module.

  Args:
    genotype: (..., 8) choices.
    classes: outputs.

  Returns:
    (...) int32.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> int(params([0] * 8)), int(params([2, 2, 2, 1, 2, 2, 0, 2]))
    (387882, 1985514)
  """
  last = LAYERS[-1][1]
  stem = 9 * 3 * _STEM + 2 * _STEM
  head = last * _HEAD + 2 * _HEAD + (_HEAD + 1) * classes
  return stem + head + _summed('params', _params(), genotype)


def flops(genotype: Any, classes: int = 10) -> jax.Array:
  """Multiply-adds of a network on one image, exactly; see the module.

  Those of convolutions and of the dense layer, without its bias; all else
  counts nothing, as in the benchmark's records.

  Args:
    genotype: (..., 8) choices.
    classes: outputs.

  Returns:
    (...) int32.

  Raises:
    ValueError: for what is no genotype.

  Example:
    >>> int(flops([0] * 8)), int(flops([2, 2, 2, 1, 2, 2, 0, 2]))
    (7713280, 85164544)
  """
  last, side = LAYERS[-1][1:]
  stem = 9 * 3 * _STEM * _SIDE**2
  head = last * _HEAD * side**2 + _HEAD * classes
  return stem + head + _summed('flops', _flops(), genotype)
