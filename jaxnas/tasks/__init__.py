"""Tasks: data with train, valid and test splits, a loss and a metric."""

from jaxnas.tasks import control, generation
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
  TAYLOR,
  SmoothedCrossEntropy,
  accuracy,
  cross_entropy,
  squared_error,
  taylor,
)

__all__ = [
  'CROSS_ENTROPIES',
  'SmoothedCrossEntropy',
  'TAYLOR',
  'accuracy',
  'control',
  'cross_entropy',
  'digits',
  'from_arrays',
  'generation',
  'normalise',
  'random_shift',
  'squared_error',
  'taylor',
  'tfds_images',
  'unchanged',
]
