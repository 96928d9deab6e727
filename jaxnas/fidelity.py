"""Fidelities: how much a proxy task saves, and by which of four ways.

A fidelity such as `c4r4s0e60` reduces channels, resolution and samples by their
index, each step by the square root of two, so that 2 halves and 4 quarters, and
trains for so many epochs (EcoNAS, arXiv 2001.01233). That 4 quarters is what
the official code does; what other indices mean is inferred from it.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Data, Key, Task

_PATTERN = re.compile(r'c(\d+)r(\d+)s(\d+)e(\d+)')
_MOST = 12
# By what factor a size may differ from what its index says: half a step.
_OFF = 2**0.25
_UNITS = {
  'channels': 'channels',
  'resolution': 'pixels',
  'samples': 'images to train on',
}


@dataclasses.dataclass(frozen=True)
class Fidelity:
  """A reduced setting; `str()` prints and `parse` reads it.

  Attributes:
    channels: index c; the first layer's channels shrink by `2 ** (c / 2)`.
    resolution: index r, of the sides of images.
    samples: index s, of the training images.
    epochs: e, of training.

  Raises:
    ValueError: for indices outside 0 to 12, and for no epochs.

  Example:
    >>> str(Fidelity(channels=4, resolution=4, epochs=60))
    'c4r4s0e60'
  """

  channels: int = 0
  resolution: int = 0
  samples: int = 0
  epochs: int = 1

  def __post_init__(self):
    indices = (self.channels, self.resolution, self.samples)
    if not all(0 <= index <= _MOST for index in indices) or self.epochs < 1:
      raise ValueError(
        f"the fidelity '{self}' must have indices of 0 to {_MOST} and at least "
        'one epoch.'
      )

  def __str__(self) -> str:
    return f'c{self.channels}r{self.resolution}s{self.samples}e{self.epochs}'


def parse(text: str) -> Fidelity:
  """Reads a fidelity.

  Args:
    text: such as `'c4r4s0e60'`.

  Raises:
    ValueError: for anything else, indices above 12 and no epochs.

  Example:
    >>> parse('c2r0s1e10')
    Fidelity(channels=2, resolution=0, samples=1, epochs=10)
  """
  match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
  if match is None:
    raise ValueError(
      f'a fidelity is written c4r4s0e60, the indices of channels, resolution '
      f'and samples and the number of epochs; got {text!r}.'
    )
  return Fidelity(*map(int, match.groups()))


def reduced(full: int, index: int, multiple: int = 1) -> int:
  """What is left of a size: the nearest multiple to `full / 2 ** (index / 2)`.

  Args:
    full: the whole size.
    index: of the reduction.
    multiple: of what the result must be a multiple; it is at least that.

  Example:
    >>> [reduced(32, index, multiple=4) for index in range(5)]
    [32, 24, 16, 12, 8]
  """
  exact = full / 2 ** (index / 2)
  return max(multiple, multiple * int(exact / multiple + 0.5))


def left(own: Fidelity, what: str, full: int, multiple: int = 1) -> int:
  """What a fidelity leaves of a size, if that is about what it says.

  Args:
    own: the fidelity.
    what: `'channels'`, `'resolution'` or `'samples'`.
    full: the whole size, which index 0 leaves as it is.
    multiple: of what the result must be a multiple, if it is reduced.

  Raises:
    ValueError: where the nearest multiple is more than half a step away.

  Example:
    >>> left(parse('c0r2s0e1'), 'resolution', 8, multiple=4)
    4
    >>> left(parse('c0r8s0e1'), 'resolution', 8, multiple=4)
    Traceback (most recent call last):
      ...
    ValueError: c0r8s0e1: 8 pixels cut by index 8 would be 0.5, and the \
nearest that there can be is 4; take another index.
  """
  index = getattr(own, what)
  if not index:
    return full
  exact, found = full / 2 ** (index / 2), reduced(full, index, multiple)
  if not 1 / _OFF <= found / exact <= _OFF:
    raise ValueError(
      f'{own}: {full} {_UNITS[what]} cut by index {index} would be '
      f'{exact:.3g}, and the nearest that there can be is {found}; take '
      'another index.'
    )
  return found


def reduce(
  task: Task, fidelity: Fidelity, key: Key, *, multiple: int = 1
) -> Task:
  """An image task at a lower fidelity, but for channels and epochs.

  Images of all splits are reduced (linearly, against aliasing), and stored so.
  Augmentation does to them what it did to the whole images: they are blown up
  for it and reduced again. The training split is a random subset, the same for
  the same key; the others stay whole.

  Args:
    task: of images, (height, width, channels) stored as they are read.
    fidelity: what is left.
    key: draws the subset.
    multiple: of what sides must be multiples, such as 4 for NAS-Bench-201.

  Returns:
    A task, named after its fidelity.

  Raises:
    ValueError: for a task whose inputs are no images, and for a size that
      `left` refuses.

  Example:
    >>> from jaxnas import tasks
    >>> small = reduce(tasks.digits(), parse('c0r2s2e1'), jax.random.key(0))
    >>> small.shape, len(small.train.targets)
    ((4, 4, 1), 584)
  """
  if len(task.shape) != 3:
    raise ValueError(
      f'reduce: {task.name} has inputs of shape {task.shape}, and a fidelity '
      'is of images: (height, width, channels).'
    )
  rows, columns, depth = task.shape
  sides = (left(fidelity, 'resolution', n, multiple) for n in (rows, columns))
  small = (*sides, depth)
  splits = {'train': task.train, 'valid': task.valid, 'test': task.test}
  if fidelity.samples:
    count = left(fidelity, 'samples', len(task.train.targets))
    drawn = jax.random.permutation(key, len(task.train.targets))[:count]
    splits['train'] = jax.tree.map(lambda leaf: leaf[drawn], task.train)
  augment = task.augment
  if small != task.shape:
    splits = {
      name: Data(_shrunk(split.inputs, small), split.targets)
      for name, split in splits.items()
    }
    augment = _blown_up(augment, task.shape, small)
  return task._replace(
    name=f'{task.name} at c{fidelity.channels}r{fidelity.resolution}'
    f's{fidelity.samples}',
    shape=small,
    augment=augment,
    **splits,
  )


def _resized(images: jax.Array, shape) -> jax.Array:
  sizes = (len(images), *shape)
  return jax.image.resize(images, sizes, 'linear', antialias=True)


def _shrunk(images: jax.Array, shape, chunk: int = 1000) -> jax.Array:
  """Images of a smaller size, of the type they have."""
  parts = []
  for start in range(0, len(images), chunk):
    part = jnp.asarray(images[start : start + chunk])
    small = _resized(part.astype(jnp.float32), shape)
    if jnp.issubdtype(images.dtype, jnp.integer):
      small = jnp.clip(jnp.round(small), 0, np.iinfo(images.dtype).max)
    parts.append(small.astype(images.dtype))
  return jnp.concatenate(parts)


@functools.lru_cache(maxsize=64)  # One function for a task, so one program.
def _blown_up(augment, whole, small):
  def augmented(key: Key, images: jax.Array) -> jax.Array:
    large = jax.image.resize(images, (len(images), *whole), 'nearest')
    return _resized(augment(key, large), small)

  return augmented
