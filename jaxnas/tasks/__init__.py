"""Tasks: data with train, valid and test splits, a loss and a metric."""

from jaxnas.tasks.images import (
  digits,
  from_arrays,
  normalise,
  random_shift,
  tfds_images,
  unchanged,
)
from jaxnas.tasks.losses import (
  CROSS_ENTROPIES,
  SmoothedCrossEntropy,
  accuracy,
  cross_entropy,
  squared_error,
)

__all__ = [
  'CROSS_ENTROPIES',
  'SmoothedCrossEntropy',
  'accuracy',
  'cross_entropy',
  'digits',
  'from_arrays',
  'normalise',
  'random_shift',
  'squared_error',
  'tfds_images',
  'unchanged',
]
