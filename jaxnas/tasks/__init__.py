"""Tasks: data with train, valid and test splits, a loss and a metric."""

from jaxnas.tasks.images import (
  accuracy,
  cross_entropy,
  digits,
  from_arrays,
  normalise,
  random_shift,
  tfds_images,
  unchanged,
)

__all__ = [
  'accuracy',
  'cross_entropy',
  'digits',
  'from_arrays',
  'normalise',
  'random_shift',
  'tfds_images',
  'unchanged',
]
