"""Image classification: scikit-learn's digits, TFDS sets, a user's own arrays.

Images are stored as they come (uint8 where possible) and stay so on the
device; `task.prepare` turns a batch of them into what the network reads, and
`task.augment` distorts prepared images in training. Both are made by the
factories `normalise` and `random_shift`, which give the *same* function for
the same constants: equal tasks share compiled programs.

scikit-learn and TFDS are imported when a task asks for them, never before.
"""

import difflib
import functools
import hashlib
import importlib
import itertools
import operator
import os
import pathlib
import types
import uuid
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import base
from jaxnas.tasks.losses import accuracy, cross_entropy

Arrays = tuple[np.ndarray, np.ndarray]
Augment = Callable[[base.Key, jax.Array], jax.Array]
Prepare = Callable[[jax.Array], jax.Array]

# Sets in colour in which a mirror image may be another class, or none; and
# sets in one channel in which it is the same. `augment='auto'` reads them.
_UPRIGHT = ('cmaterdb', 'omniglot', 'svhn_cropped')
_MIRRORED_GREY = ('fashion_mnist',)

# Images read from a TFDS source, or turned to float64, at a time.
_CHUNK = 512


def normalise(mean: Sequence[float], std: Sequence[float]) -> Prepare:
  """Makes `prepare(images) = (images - mean) / std`, in float32.

  Args:
    mean: one number per channel, in units of the stored images.
    std: one positive number per channel, in the same units.

  Returns:
    `prepare(images)` for images (..., channels) of any dtype; the same
    function for the same numbers, so that programs compiled with it are
    re-used.

  Raises:
    ValueError: if the lengths differ or a `std` is not positive.

  Example:
    >>> import numpy as np
    >>> prepare = normalise([127.5], [127.5])
    >>> prepare(np.array([[0], [255]], np.uint8)).tolist()
    [[-1.0], [1.0]]
  """
  if len(mean) != len(std) or not all(s > 0 for s in std):
    raise ValueError(
      f'normalise: mean={mean} and std={std} must give one number per '
      'channel each, and every std must be positive'
    )
  return _normalise(tuple(map(float, mean)), tuple(map(float, std)))


@functools.cache
def _normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> Prepare:
  # As scale and offset, so that a stored 0 becomes `_black` to the last bit.
  scale = np.asarray([1 / s for s in std], np.float32)
  offset = np.asarray(_black(mean, std), np.float32)

  def prepare(images: jax.Array) -> jax.Array:
    images = jnp.asarray(images).astype(jnp.float32)
    channels = (1,) * (images.ndim - 1) + (-1,)
    return images * scale.reshape(channels) + offset.reshape(channels)

  return prepare


def random_shift(
  pixels: int, *, flip: bool = False, fill: float | Sequence[float] = 0.0
) -> Augment:
  """Makes an augmentation: shift each image, and mirror half of them.

  This is "pad, random crop, horizontal flip": an image is moved by whole
  pixels, uniformly in `-pixels..pixels` along each axis, and what moves in
  has the value `fill`. With `pixels=4, flip=True` it is the standard
  augmentation of CIFAR-10 (He et al., 2016, section 4.2).

  Args:
    pixels: the largest shift along an axis, in pixels.
    flip: whether to mirror each image left to right with probability 1/2.
    fill: the value of what moves in, for all channels or for each; in units
      of the *prepared* images.

  Returns:
    `augment(key, images)` for images (batch, height, width, channels), pure
    in the key; the same function for the same arguments, so that programs
    compiled with it are re-used.

  Raises:
    ValueError: if `pixels` is negative or not an integer; when called, if the
      images do not have four axes, or `fill` another number of channels.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> augment = random_shift(1)
    >>> images = jnp.ones((1, 3, 3, 1))
    >>> augment(jax.random.key(0), images).shape
    (1, 3, 3, 1)
    >>> random_shift(1) is augment
    True
  """
  pixels = _whole('random_shift', 'pixels', pixels, least=0)
  return _random_shift(pixels, bool(flip), tuple(map(float, np.ravel(fill))))


@functools.cache
def _random_shift(pixels: int, flip: bool, fill: tuple[float, ...]) -> Augment:
  def augment(key: base.Key, images: jax.Array) -> jax.Array:
    if images.ndim != 4 or len(fill) not in (1, images.shape[-1]):
      raise ValueError(
        f'random_shift: received images of shape {images.shape} and fill '
        f'{fill}; give (batch, height, width, channels), and one fill for '
        'all channels or for each'
      )
    batch, height, width, _ = images.shape
    shift_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(
      shift_key, (2, batch, 1), -pixels, pixels + 1, jnp.int32
    )
    # Where each pixel comes from. A gather along one axis after the other is
    # the fastest form on CPU, alone and inside scan and vmap: measured against
    # dynamic slices, one-hot matmuls and a select of static shifts.
    rows = jnp.arange(height, dtype=jnp.int32)[None] + offsets[0]
    columns = jnp.arange(width, dtype=jnp.int32)[None] + offsets[1]
    if flip:
      mirrored = jax.random.bernoulli(flip_key, 0.5, (batch, 1))
      columns = jnp.where(mirrored, columns[:, ::-1], columns)
    rows = rows[:, :, None, None]
    columns = columns[:, None, :, None]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved = jnp.take_along_axis(images, jnp.clip(rows, 0, height - 1), axis=1)
    moved = jnp.take_along_axis(moved, jnp.clip(columns, 0, width - 1), axis=2)
    border = jnp.asarray(fill, images.dtype).reshape((1, 1, 1, -1))
    return jnp.where(inside, moved, border)

  return augment


def unchanged(key: base.Key, images: jax.Array) -> jax.Array:
  """No augmentation: gives the images back.

  Args:
    key: not used.
    images: prepared images.

  Returns:
    The images.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> unchanged(jax.random.key(0), jnp.ones((1, 2, 2, 1))).shape
    (1, 2, 2, 1)
  """
  del key
  return images


def from_arrays(
  name: str,
  train: Arrays,
  valid: Arrays,
  test: Arrays,
  *,
  classes: int,
  augment: Augment | None = None,
) -> base.Task:
  """A task from a user's own images and labels.

  `prepare` subtracts the mean of the training images and divides by their
  standard deviation, channel by channel. The arrays are copied.

  Args:
    name: what the task is called in results.
    train: `(images, labels)`, to fit; images (N, height, width, channels) in
      uint8 or floating point, labels (N,) integers in `0..classes-1`.
    valid: the same, for every decision of a search.
    test: the same, for reports only.
    classes: the number of classes.
    augment: `augment(key, prepared) -> prepared`, in training only, such as
      `random_shift(4, flip=True)`; None for none.

  Returns:
    A task with loss `cross_entropy` and metric `accuracy`. Images in floating
    point are stored as float32.

  Raises:
    ValueError: if a split is not what is asked for, if splits do not agree in
      the shape or dtype of images, or if two splits are the same array.

  Example:
    >>> import numpy as np
    >>> images = np.arange(6 * 5 * 5).reshape(6, 5, 5, 1).astype(np.uint8)
    >>> labels = np.array([0, 1, 2, 0, 1, 2])
    >>> task = from_arrays(
    ...   'mine',
    ...   train=(images[:3], labels[:3]),
    ...   valid=(images[3:5], labels[3:5]),
    ...   test=(images[5:], labels[5:]),
    ...   classes=3,
    ... )
    >>> task.shape, task.outputs, task.prepare(task.train.inputs).shape
    ((5, 5, 1), 3, (3, 5, 5, 1))
  """
  if not isinstance(name, str) or not name:
    raise ValueError(f'from_arrays: name must be a text, received {name!r}')
  where = f'from_arrays({name!r})'
  classes = _whole(where, 'classes', classes, least=2)
  if augment is not None and not callable(augment):
    raise ValueError(
      f'{where}: augment must be a function (key, images) -> images, or '
      f'None; received {augment!r}'
    )
  given = {'train': train, 'valid': valid, 'test': test}
  splits = {
    split: _checked(f'{where}, {split}', pair, classes)
    for split, pair in given.items()
  }
  for other, split in itertools.combinations(splits, 2):
    ours, theirs = splits[split][0], splits[other][0]
    if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
      raise ValueError(
        f'{where}: {split} has images of {ours.dtype}{ours.shape[1:]} and '
        f'{other} of {theirs.dtype}{theirs.shape[1:]}; make them the same'
      )
    if given[split][0] is given[other][0]:
      raise ValueError(
        f'{where}: {split} and {other} are the same images; a score on '
        f'{split} would mean nothing. Divide them first'
      )
  return _task(
    name,
    splits,
    classes,
    normalise(*_moments(splits['train'][0])),
    augment or unchanged,
  )


def digits(
  *, seed: int = 0, valid: float = 0.15, test: float = 0.2, shift: int = 1
) -> base.Task:
  """scikit-learn's 1,797 handwritten digits, 8 x 8 x 1, in 10 classes.

  Real images that need no download: they come with scikit-learn. Every split
  has each class in its proportion, to within two images.

  Args:
    seed: which split; sizes do not depend on it.
    valid: the fraction of images held out for decisions.
    test: the fraction of images held out for reports.
    shift: the largest shift in training, in pixels, with zero fill; 0 for no
      augmentation.

  Returns:
    A task. Images are stored as uint8 in `0..16`; prepared they are float32
    in `0..2`, with a root mean square of about one, and 0 stays 0.

  Raises:
    ImportError: if scikit-learn is not installed.
    ValueError: if a fraction leaves a split empty, or `shift` is not in 0..7.

  Example:
    >>> task = digits()
    >>> task.shape, task.outputs
    ((8, 8, 1), 10)
    >>> [len(split.targets) for split in (task.train, task.valid, task.test)]
    [1168, 270, 359]
  """
  seed = _whole('digits', 'seed', seed, least=0)
  shift = _whole('digits', 'shift', shift, least=0, most=7)
  datasets = _imported('digits', 'sklearn.datasets', 'scikit-learn')
  source = datasets.load_digits()
  images = source.images.astype(np.uint8)[..., None]
  labels = source.target.astype(np.int32)
  count = len(labels)
  sizes = _held_out('digits', count, valid=valid, test=test)
  order = _stratified(labels, np.random.default_rng(seed))
  cuts = np.split(order, np.cumsum([sizes['test'], sizes['valid']]))
  splits = {
    split: (images[indices], labels[indices])
    for split, indices in zip(('test', 'valid', 'train'), cuts, strict=True)
  }
  augment = random_shift(shift) if shift else unchanged
  return _task('digits', splits, 10, normalise((0.0,), (8.0,)), augment)


def tfds_images(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  seed: int = 0,
  valid: float = 0.1,
  train_examples: int | None = None,
  test_examples: int | None = None,
  augment: str | Augment = 'auto',
  cache_dir: str | os.PathLike[str] | None = None,
) -> base.Task:
  """Any TFDS image classification set, by name; TensorFlow is not needed.

  The set must have images of one fixed size, in one channel or three, and
  must have been prepared on disk in a format with random access; nothing is
  ever downloaded. Decoded images are kept in a cache as uint8 arrays, so only
  the first call waits for decoding.

  `augment='auto'` shifts by up to an eighth of the shorter side (4 pixels for
  CIFAR) with black fill. It mirrors images in colour, but not where a mirror
  image may change the class (`svhn_cropped`, `omniglot`, `cmaterdb`); it does
  not mirror images in one channel (MNIST and its kind), but for
  `fashion_mnist`. Give a function where that guess is wrong.

  Args:
    name: the name in TFDS, also with a config or version:
      `'imagenet_resized/32x32'`, `'cifar10:3.0.2'`.
    data_dir: where it was prepared; None for `$TFDS_DATA_DIR`, else
      `~/tensorflow_datasets`.
    seed: which images are held out of train, and which `train_examples` are
      taken.
    valid: the fraction of the images taken from TFDS's train split that is
      held out for decisions.
    train_examples: how many images to take from TFDS's train split, for train
      and valid together, at random; None for all.
    test_examples: how many to take from TFDS's test split, at random but the
      same for every seed; None for all.
    augment: `'auto'`, `'none'` or `augment(key, prepared) -> prepared`.
    cache_dir: where decoded images are kept; None for
      `$XDG_CACHE_HOME/jaxnas`, else `~/.cache/jaxnas`.

  Returns:
    A task. `prepare` subtracts the mean of the training images and divides by
    their standard deviation, channel by channel.

  Raises:
    FileNotFoundError: if the set is not prepared; says how to prepare it.
    ImportError: if TFDS or array_record is not installed.
    ValueError: if the set is not of this kind, or an argument is out of range.

  Example:
    >>> task = tfds_images('cifar10', train_examples=5000)  # doctest: +SKIP
    >>> task.shape, task.outputs  # doctest: +SKIP
    ((32, 32, 3), 10)
  """
  where = f'tfds_images({name!r})'
  if not callable(augment) and augment not in ('auto', 'none'):
    raise ValueError(
      f"{where}: augment must be 'auto', 'none' or a function "
      f'(key, images) -> images; received {augment!r}'
    )
  seed = _whole(where, 'seed', seed, least=0)
  builder = _builder(where, name, data_dir)
  shape, classes = _image_features(where, builder)
  rng = np.random.default_rng(seed)
  # A generator of its own: scores of different seeds are on the same images.
  test_rng = np.random.default_rng(0)
  chosen = {
    'train': _chosen(where, builder, 'train', train_examples, rng),
    'test': _chosen(where, builder, 'test', test_examples, test_rng),
  }
  held = _held_out(where, len(chosen['train']), valid=valid)['valid']
  read = {}
  for split, indices in chosen.items():
    read[split] = _examples(
      where, builder, split, indices, shape, _cache_dir(cache_dir)
    )
    _check_labels(f'{where}, {split}', read[split][1], classes)
  images, labels = read['train']
  order = rng.permutation(len(labels))
  splits = {
    'train': (images[order[held:]], labels[order[held:]]),
    'valid': (images[order[:held]], labels[order[:held]]),
    'test': read['test'],
  }
  mean, std = _moments(splits['train'][0])
  if augment == 'auto':
    augment = _standard(builder.name, shape, _black(mean, std))
  elif augment == 'none':
    augment = unchanged
  return _task(name, splits, classes, normalise(mean, std), augment)


def _task(
  name: str,
  splits: dict[str, Arrays],
  classes: int,
  prepare: Prepare,
  augment: Augment,
) -> base.Task:
  """The task, its arrays copied to the device."""
  data = {
    split: base.Data(jnp.array(images), jnp.array(labels, jnp.int32))
    for split, (images, labels) in splits.items()
  }
  return base.Task(
    name=name,
    shape=data['train'].inputs.shape[1:],
    outputs=classes,
    loss=cross_entropy,
    metric=accuracy,
    prepare=prepare,
    augment=augment,
    **data,
  )


def _black(mean: Sequence[float], std: Sequence[float]) -> tuple[float, ...]:
  """What a stored 0 is after `normalise(mean, std)`."""
  return tuple(-m / s for m, s in zip(mean, std, strict=True))


def _standard(
  name: str, shape: tuple[int, ...], black: tuple[float, ...]
) -> Augment:
  """The augmentation that `tfds_images` documents as `'auto'`."""
  height, width, channels = shape
  if channels == 1:
    flip = name in _MIRRORED_GREY
  else:
    flip = name not in _UPRIGHT
  return random_shift(max(1, min(height, width) // 8), flip=flip, fill=black)


def _moments(
  images: np.ndarray,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and standard deviation of each channel, a constant one's being 1."""
  count, channels = len(images), images.shape[-1]
  pixels = images[0].size // channels
  # A float64 copy of all images would be eight times their size, so they are
  # summed in chunks: per pixel first, which is ten times faster than per
  # channel, and about the first images' mean, so that nothing cancels.
  centre = images[:_CHUNK].mean(axis=(0, 1, 2), dtype=np.float64)
  everywhere = np.tile(centre, pixels)
  total = np.zeros(pixels * channels)
  squares = np.zeros(pixels * channels)
  for start in range(0, count, _CHUNK):
    chunk = images[start : start + _CHUNK]
    offsets = chunk.reshape(len(chunk), -1) - everywhere
    total += offsets.sum(axis=0)
    squares += np.einsum('nd,nd->d', offsets, offsets)
  shift = total.reshape(pixels, channels).sum(axis=0) / (count * pixels)
  square = squares.reshape(pixels, channels).sum(axis=0) / (count * pixels)
  std = np.sqrt(np.maximum(square - np.square(shift), 0))
  # Rounding must not make a constant channel's deviation a tiny number.
  mean = centre + shift
  constant = std <= 1e-9 * np.abs(mean)
  return tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist())


def _stratified(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """A random order in which any stretch has each class in its proportion.

  Each class is shuffled and spread evenly over `0..1`; sorting by that place
  gives every stretch each class's share, to within an example or two.
  """
  places = np.empty(len(labels))
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    places[members] = (np.arange(len(members)) + rng.uniform()) / len(members)
  return np.argsort(places, kind='stable')


def _whole(
  where: str, name: str, value: Any, *, least: int, most: int | None = None
) -> int:
  """The value as an int, or a ValueError naming the legal range."""
  legal = f'{least} or more' if most is None else f'{least} to {most}'
  try:
    number = operator.index(value)
  except TypeError:
    number = least - 1
  if (
    isinstance(value, bool)
    or number < least
    or (most is not None and number > most)
  ):
    raise ValueError(
      f'{where}: {name} must be a whole number, {legal}; received {value!r}'
    )
  return number


def _held_out(where: str, count: int, **fractions: float) -> dict[str, int]:
  """How many of `count` examples each fraction holds out."""
  sizes = {}
  for name, fraction in fractions.items():
    if not 0 < fraction < 1:
      raise ValueError(
        f'{where}: {name} is the fraction of images held out, above 0 and '
        f'below 1; received {fraction!r}'
      )
    sizes[name] = round(fraction * count)
  if not all(sizes.values()) or sum(sizes.values()) >= count:
    raise ValueError(
      f'{where}: of {count} images, {fractions} leaves {sizes} and '
      f'{count - sum(sizes.values())} to train on; every split needs at '
      'least one image. Change the fractions, or take more images'
    )
  return sizes


def _checked(where: str, pair: Arrays, classes: int) -> Arrays:
  """A user's split as arrays ready to store, or a ValueError."""
  if not isinstance(pair, tuple | list) or len(pair) != 2:
    raise ValueError(
      f'{where}: give a pair (images, labels); received {type(pair).__name__}'
    )
  images, labels = np.asarray(pair[0]), np.asarray(pair[1])
  if images.ndim != 4:
    advice = '; add one with images[..., None]' if images.ndim == 3 else ''
    raise ValueError(
      f'{where}: images must have axes (N, height, width, channels), '
      f'received shape {images.shape}{advice}'
    )
  if labels.ndim != 1 or len(labels) != len(images):
    advice = (
      '; turn one-hot labels into classes with labels.argmax(axis=-1)'
      if labels.ndim == 2
      else ''
    )
    raise ValueError(
      f'{where}: labels must be one class per image, of shape '
      f'({len(images)},); received shape {labels.shape}{advice}'
    )
  if not images.size:
    raise ValueError(
      f'{where}: there are no images (shape {images.shape}); every split '
      'needs at least one'
    )
  if jnp.issubdtype(images.dtype, jnp.floating):
    with np.errstate(over='ignore'):
      images = images.astype(np.float32)
    if not np.isfinite(images).all():
      raise ValueError(
        f'{where}: {np.count_nonzero(~np.isfinite(images))} values of the '
        'images are NaN or infinite as float32; remove or replace them'
      )
  elif images.dtype != np.uint8:
    raise ValueError(
      f'{where}: images must be uint8 or floating point, received '
      f'{images.dtype}; convert with images.astype(np.uint8) if the values '
      'are in 0..255, else with images.astype(np.float32)'
    )
  if not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f'{where}: labels must be integers, received {labels.dtype}; convert '
      'with labels.astype(np.int32)'
    )
  _check_labels(where, labels, classes)
  return images, labels


def _check_labels(where: str, labels: np.ndarray, classes: int) -> None:
  low, high = labels.min(), labels.max()
  if low < 0 or high >= classes:
    if low < 0:
      advice = 'leave out images that have no label'
    elif low == 1 and high == classes:
      advice = 'subtract 1'
    else:
      advice = 'count the classes again, or map the labels'
    raise ValueError(
      f'{where}: labels run from {low} to {high}, but {classes} classes are '
      f'numbered 0 to {classes - 1}; {advice}'
    )


def _imported(where: str, module: str, install: str) -> types.ModuleType:
  """Imports a dependency that few need, or says how to get it."""
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f'{where}: {module} could not be imported ({error}); '
      f'run: pip install {install}'
    ) from error


def _builder(
  where: str, name: str, data_dir: str | os.PathLike[str] | None
) -> Any:
  """The TFDS builder of a set that is prepared on disk."""
  tfds = _imported(where, 'tensorflow_datasets', "'jaxnas[tfds]'")
  epath = _imported(where, 'etils.epath', "'jaxnas[tfds]'")
  # TFDS reads the variable once, when it is imported; we read it every time.
  folder = epath.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()
  # TFDS may ask the network about a set it does not find; so look first.
  if not (folder / name.split('/')[0].split(':')[0]).is_dir():
    raise FileNotFoundError(_how_to_prepare(where, tfds, name, folder))
  try:
    builder = tfds.builder(name, data_dir=folder)
  except (AssertionError, ValueError) as error:
    raise ValueError(
      f'{where}: TFDS cannot load it from {folder}: '
      f'{str(error).strip().splitlines()[0]}'
    ) from error
  if not builder.info.splits:
    raise FileNotFoundError(_how_to_prepare(where, tfds, name, folder))
  return builder


def _how_to_prepare(where: str, tfds: Any, name: str, folder: Any) -> str:
  """The message for a set that is not on disk."""
  base_name = name.split('/')[0].split(':')[0]
  known = tfds.list_builders(with_community_datasets=False)
  close = difflib.get_close_matches(base_name, known, n=3)
  misspelt = (
    f' (TFDS has no set {base_name!r}; it has {", ".join(close)})'
    if close and base_name not in known
    else ''
  )
  return (
    f'{where}: not prepared under {folder}{misspelt}. jaxnas never downloads '
    'data. Prepare it once, on a machine with a network:\n\n'
    '  import tensorflow_datasets as tfds\n'
    f"  tfds.builder({name!r}, file_format='array_record')"
    '.download_and_prepare()\n\n'
    'which writes to ~/tensorflow_datasets, or to the folder in the variable '
    'TFDS_DATA_DIR (this step may need TensorFlow; reading does not). If it '
    'is prepared elsewhere, set TFDS_DATA_DIR to that folder, or give '
    'data_dir=..., or --config.data_dir=... to launch/train.py.'
  )


def _image_features(where: str, builder: Any) -> tuple[tuple[int, ...], int]:
  """The shape of an image and the number of classes of a TFDS set."""
  features = builder.info.features
  kinds = {
    key: type(feature).__name__
    for key, feature in getattr(features, 'items', dict)()
  }
  if kinds.get('image') != 'Image' or kinds.get('label') != 'ClassLabel':
    raise ValueError(
      f'{where}: needs an Image called image and a ClassLabel called label; '
      f'this set has {kinds}. Read it yourself and use from_arrays'
    )
  image, classes = features['image'], features['label'].num_classes
  # Not image.dtype, which imports TensorFlow.
  if (
    None in image.shape
    or image.shape[-1] not in (1, 3)
    or image.np_dtype != np.uint8
  ):
    raise ValueError(
      f'{where}: needs uint8 images of one fixed size in one channel or '
      f'three; these are {np.dtype(image.np_dtype)}{image.shape}, None '
      'standing for sizes that vary. Resize or convert them yourself and '
      'use from_arrays'
    )
  if not classes or classes < 2:
    raise ValueError(f'{where}: needs two classes or more, has {classes}')
  return tuple(image.shape), classes


def _chosen(
  where: str,
  builder: Any,
  split: str,
  limit: int | None,
  rng: np.random.Generator,
) -> np.ndarray:
  """The indices of the examples to take from a TFDS split, in rising order.

  A subset is random, not a prefix: some sets are stored class by class.
  """
  if split not in builder.info.splits:
    raise ValueError(
      f'{where}: has no split {split!r}, only '
      f'{sorted(builder.info.splits)}. Divide its images yourself and use '
      'from_arrays'
    )
  count = builder.info.splits[split].num_examples
  if limit is not None:
    limit = _whole(where, f'{split}_examples', limit, least=1, most=count)
  return np.sort(rng.permutation(count)[:limit])


def _examples(
  where: str,
  builder: Any,
  split: str,
  indices: np.ndarray,
  shape: tuple[int, ...],
  cache: pathlib.Path,
) -> Arrays:
  """Images and labels of the given examples, from the cache if it can."""
  path = cache / _cache_name(builder, split, indices)
  arrays = _from_cache(path, (len(indices), *shape))
  if arrays is None:
    arrays = _decoded(where, builder, split, indices, shape)
    _to_cache(path, arrays)
  return arrays


def _decoded(
  where: str,
  builder: Any,
  split: str,
  indices: np.ndarray,
  shape: tuple[int, ...],
) -> Arrays:
  """Reads and decodes the given examples of a split."""
  try:
    source = builder.as_data_source(split=split)
  except NotImplementedError as error:
    raise ValueError(
      f'{where}: prepared in {builder.data_path} as '
      f'{builder.info.file_format.value}, which has no random access. '
      'Prepare it into another folder with '
      f"tfds.builder({builder.name!r}, file_format='array_record', "
      'data_dir=...).download_and_prepare()'
    ) from error
  except ImportError as error:
    raise ImportError(
      f'{where}: the reader could not be imported ({error}); '
      "run: pip install 'jaxnas[tfds]'"
    ) from error
  images = np.empty((len(indices), *shape), np.uint8)
  labels = np.empty(len(indices), np.int32)
  # Reading in batches halves the time of reading one by one.
  for start in range(0, len(indices), _CHUNK):
    chunk = indices[start : start + _CHUNK].tolist()
    for place, example in enumerate(source.__getitems__(chunk), start):
      if example['image'].shape != shape:
        raise ValueError(
          f'{where}: an image of {split} has shape '
          f'{example["image"].shape}, not {shape} as the set declares'
        )
      images[place] = example['image']
      labels[place] = example['label']
  return images, labels


def _cache_dir(cache_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  if cache_dir is not None:
    return pathlib.Path(cache_dir).expanduser()
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'jaxnas'


def _cache_name(builder: Any, split: str, indices: np.ndarray) -> str:
  """A file name that is one's own for a set, split and choice of examples.

  Two preparations of one version need not hold the same images (re-encoded
  ones, say), so what TFDS wrote about the data counts too.
  """
  digest = hashlib.sha256()
  digest.update((builder.data_path / 'dataset_info.json').read_bytes())
  digest.update(indices.astype('<i8').tobytes())
  full_name = builder.info.full_name.replace('/', '-')
  return f'{full_name}-{split}-{digest.hexdigest()[:16]}.npz'


def _from_cache(path: pathlib.Path, shape: tuple[int, ...]) -> Arrays | None:
  """The arrays in a cache file; None if it is absent or not sound."""
  try:
    # NumPy does not close a damaged file that it opened itself.
    with open(path, 'rb') as file:
      stored = np.load(file, allow_pickle=False)
      images, labels = stored['images'], stored['labels']
  except Exception:  # Damage shows as any of ten errors; all mean "decode".
    return None
  sound = (
    images.shape == shape
    and images.dtype == np.uint8
    and labels.shape == shape[:1]
    and labels.dtype == np.int32
  )
  return (images, labels) if sound else None


def _to_cache(path: pathlib.Path, arrays: Arrays) -> None:
  """Writes a cache file whole or not at all; to fail is only a warning."""
  images, labels = arrays
  temporary = path.with_name(f'{path.stem}-{uuid.uuid4().hex}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(temporary, 'xb') as file:
        np.savez(file, images=images, labels=labels)
      os.replace(temporary, path)
    finally:
      temporary.unlink(missing_ok=True)
  except OSError as error:
    warnings.warn(
      f'decoded images could not be kept in {path} ({error}); they will be '
      'decoded again next time. Give cache_dir=... a folder with room',
      stacklevel=2,
    )
