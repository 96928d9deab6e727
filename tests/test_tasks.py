"""Tasks: splits that do not overlap, augmentation, doors, TFDS sets on disk.

TFDS is tested on small sets written by the tests themselves (no TensorFlow,
no network), and on real CIFAR-10 where it is prepared.
"""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from jaxnas import tasks

ROOT = pathlib.Path(__file__).resolve().parents[1]
SPLITS = ('train', 'valid', 'test')


def _rows(images):
  """Each image as bytes, to compare as a set or a multiset."""
  return [image.tobytes() for image in np.asarray(images)]


def _equal(ours, theirs):
  return all(
    np.array_equal(a, b)
    for split in SPLITS
    for a, b in zip(getattr(ours, split), getattr(theirs, split), strict=True)
  )


def _moved(image, down, right, fill):
  """The image moved by whole pixels, in plain loops."""
  height, width, _ = image.shape
  result = np.empty_like(image)
  for row in range(height):
    for column in range(width):
      inside = 0 <= row - down < height and 0 <= column - right < width
      result[row, column] = (
        image[row - down, column - right] if inside else fill
      )
  return result


def _shifts_seen(augment, image, pixels, fill=0.0, draws=256):
  """(down, right, mirrored) of each augmented copy; fails if it is no copy."""
  known = {}
  for mirrored in (False, True):
    source = image[:, ::-1] if mirrored else image
    for down in range(-pixels, pixels + 1):
      for right in range(-pixels, pixels + 1):
        copy = _moved(source, down, right, fill)
        known[copy.tobytes()] = (down, right, mirrored)
  batch = jnp.asarray(np.stack([image] * draws))
  out = np.asarray(jax.jit(augment)(jax.random.key(0), batch))
  return [known[copy] for copy in _rows(out)]


def _image(height=6, width=6, channels=1):
  """An image in which all values differ, none of them 0."""
  values = np.arange(1, height * width * channels + 1, dtype=np.float32)
  return values.reshape(height, width, channels)


# Losses and metrics.


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
  logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
  losses = tasks.cross_entropy(logits, jnp.array([0, 2]))
  np.testing.assert_allclose(losses, -np.log([0.5, 0.7]), rtol=1e-6)


def test_cross_entropy_has_the_gradient_of_the_look_up_and_no_scatter():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(9, 4)), jnp.float32)
  labels = jnp.asarray(rng.integers(0, 4, 9))
  ours, theirs = (
    jax.value_and_grad(lambda x, loss=loss: loss(x, labels).sum())
    for loss in (
      tasks.cross_entropy,
      optax.softmax_cross_entropy_with_integer_labels,
    )
  )
  for one, two in zip(ours(logits), theirs(logits)):
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)
  assert 'scatter' not in str(jax.make_jaxpr(ours)(logits))
  assert 'scatter' in str(jax.make_jaxpr(theirs)(logits))


def test_cross_entropy_of_bfloat16_logits_is_float32():
  logits = jnp.zeros((2, 4), jnp.bfloat16)
  losses = tasks.cross_entropy(logits, jnp.array([0, 1]))
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, np.log(4), rtol=1e-6)


def test_accuracy_is_one_where_the_largest_logit_is_the_label():
  logits = jnp.array([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [9.0, 2.0, 0.0]])
  scores = tasks.accuracy(logits, jnp.array([1, 2, 0]))
  assert scores.dtype == jnp.float32
  assert scores.tolist() == [1.0, 0.0, 1.0]


# Normalisation.


def test_normalise_subtracts_mean_and_divides_by_std_per_channel():
  prepare = tasks.normalise((10.0, 20.0), (2.0, 5.0))
  images = np.array([[[[10, 20], [12, 30]]]], np.uint8)
  prepared = prepare(images)
  assert prepared.dtype == jnp.float32
  np.testing.assert_allclose(prepared, [[[[0, 0], [1, 2]]]], atol=1e-6)


def test_equal_constants_give_the_same_functions_so_programs_are_reused():
  assert tasks.normalise([1, 2], [3, 4]) is tasks.normalise((1.0, 2.0), (3, 4))
  assert tasks.random_shift(2) is tasks.random_shift(pixels=2, fill=[0.0])
  assert tasks.random_shift(2) is not tasks.random_shift(3)
  assert tasks.digits(seed=0).prepare is tasks.digits(seed=1).prepare
  assert tasks.digits(seed=0).augment is tasks.digits(seed=1).augment


@pytest.mark.parametrize('std', [(1.0,), (1.0, 0.0), (1.0, float('nan'))])
def test_normalise_refuses_constants_it_cannot_use(std):
  with pytest.raises(ValueError, match='positive'):
    tasks.normalise((0.0, 0.0), std)


# Augmentation.


def test_each_augmented_image_is_a_shifted_copy_and_all_shifts_occur():
  seen = _shifts_seen(tasks.random_shift(1), _image(), 1)
  assert {(down, right) for down, right, _ in seen} == {
    (down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)
  }
  assert not any(mirrored for _, _, mirrored in seen)


def test_flip_mirrors_about_half_of_the_images():
  seen = _shifts_seen(tasks.random_shift(1, flip=True), _image(), 1)
  # 256 fair coins: five standard deviations are 40.
  assert abs(sum(mirrored for _, _, mirrored in seen) - 128) < 40


def test_what_moves_in_has_the_fill_of_its_channel():
  fill = (-1.0, -2.0, -3.0)
  augment = tasks.random_shift(2, fill=fill)
  seen = _shifts_seen(augment, _image(5, 4, 3), 2, fill)
  assert len(set(seen)) == 25


def test_images_of_a_batch_move_independently():
  seen = _shifts_seen(tasks.random_shift(3), _image(), 3, draws=64)
  assert len(set(seen)) > 16
  assert len({down for down, _, _ in seen}) == 7
  assert {down == right for down, right, _ in seen} == {True, False}


def test_augmentation_is_a_function_of_the_key_alone():
  augment = tasks.random_shift(2, flip=True)
  images = jnp.asarray(np.stack([_image()] * 16))
  first, other = jax.random.key(1), jax.random.key(2)
  assert np.array_equal(augment(first, images), augment(first, images))
  assert not np.array_equal(augment(first, images), augment(other, images))


def test_augmentation_is_the_same_under_jit_vmap_and_scan():
  augment = tasks.random_shift(2, flip=True)
  images = jnp.asarray(np.stack([_image()] * 8))
  keys = jax.random.split(jax.random.key(0), 3)
  expected = np.stack([augment(key, images) for key in keys])
  assert np.array_equal(jax.jit(augment)(keys[0], images), expected[0])
  vmapped = jax.vmap(augment, (0, None))(keys, images)
  assert np.array_equal(vmapped, expected)
  _, scanned = lax.scan(lambda c, key: (c, augment(key, images)), 0, keys)
  assert np.array_equal(scanned, expected)


def test_no_shift_and_no_flip_leaves_images_as_they_are():
  images = jnp.asarray(np.stack([_image()] * 4))
  key = jax.random.key(0)
  assert np.array_equal(tasks.random_shift(0)(key, images), images)
  assert np.array_equal(tasks.unchanged(key, images), images)


def test_augmentation_keeps_the_dtype():
  augment = tasks.random_shift(1, fill=0.5)
  for dtype in (jnp.bfloat16, jnp.float32):
    images = jnp.ones((2, 4, 4, 1), dtype)
    assert augment(jax.random.key(0), images).dtype == dtype


def test_prepare_augment_and_loss_promote_neither_dtype_nor_rank():
  task = tasks.digits()
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    images = task.prepare(task.train.inputs[:4])
    images = task.augment(jax.random.key(0), images)
    labels = task.train.targets[:4]
    assert task.loss(jnp.zeros((4, 10)), labels).shape == (4,)
    assert task.metric(jnp.zeros((4, 10)), labels).shape == (4,)


@pytest.mark.parametrize('pixels', [-1, 1.5, 'four', True])
def test_random_shift_refuses_pixels_that_are_no_count(pixels):
  with pytest.raises(ValueError, match='whole number, 0 or more; received'):
    tasks.random_shift(pixels)


def test_random_shift_refuses_images_it_cannot_shift():
  key = jax.random.key(0)
  with pytest.raises(ValueError, match=r'shape \(4, 4, 1\)'):
    tasks.random_shift(1)(key, jnp.ones((4, 4, 1)))
  with pytest.raises(ValueError, match='one fill for all channels or for each'):
    tasks.random_shift(1, fill=(0.0, 0.0))(key, jnp.ones((1, 4, 4, 3)))


# Digits.


def test_digits_are_stored_small_and_prepared_to_unit_scale():
  task = tasks.digits()
  assert (task.name, task.shape, task.outputs) == ('digits', (8, 8, 1), 10)
  for split in (task.train, task.valid, task.test):
    assert isinstance(split.inputs, jax.Array)
    assert split.inputs.dtype == jnp.uint8
    assert split.targets.dtype == jnp.int32
    assert split.inputs.shape == (*split.targets.shape, 8, 8, 1)
  assert int(task.train.inputs.max()) == 16
  prepared = task.prepare(task.train.inputs)
  assert prepared.dtype == jnp.float32
  assert float(prepared.min()) == 0.0
  assert 0.9 < float(jnp.sqrt(jnp.mean(prepared**2))) < 1.1


def test_digits_sizes_do_not_depend_on_the_seed():
  for seed in (0, 1):
    task = tasks.digits(seed=seed)
    sizes = [len(getattr(task, split).targets) for split in SPLITS]
    assert sizes == [1168, 270, 359]
  task = tasks.digits(valid=0.5, test=0.25)
  sizes = [len(getattr(task, split).targets) for split in SPLITS]
  assert sizes == [450, 898, 449]


def test_digits_splits_partition_the_source():
  datasets = pytest.importorskip('sklearn.datasets')
  source = datasets.load_digits()
  task = tasks.digits(seed=3)
  found = [
    (row, int(label))
    for split in SPLITS
    for row, label in zip(
      _rows(getattr(task, split).inputs),
      np.asarray(getattr(task, split).targets),
      strict=True,
    )
  ]
  expected = zip(
    _rows(source.images.astype(np.uint8)), source.target.tolist(), strict=True
  )
  assert sorted(found) == sorted(expected)


def test_digits_splits_have_each_class_in_its_proportion():
  task = tasks.digits(seed=5)
  counts = {
    split: np.bincount(getattr(task, split).targets, minlength=10)
    for split in SPLITS
  }
  everything = sum(counts.values())
  for count in counts.values():
    share = everything * count.sum() / everything.sum()
    assert np.abs(count - share).max() < 2


def test_digits_are_a_function_of_the_seed():
  assert _equal(tasks.digits(seed=1), tasks.digits(seed=1))
  assert not _equal(tasks.digits(seed=1), tasks.digits(seed=2))


def test_digits_are_augmented_by_shifts_of_at_most_the_given_pixels():
  seen = _shifts_seen(tasks.digits(shift=2).augment, _image(8, 8), 2)
  assert {abs(down) for down, _, _ in seen} == {0, 1, 2}
  assert not any(mirrored for _, _, mirrored in seen)
  images = jnp.ones((2, 8, 8, 1))
  augment = tasks.digits(shift=0).augment
  assert np.array_equal(augment(jax.random.key(0), images), images)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'valid': 0.0}, 'valid is the fraction'),
    ({'test': 1.5}, 'test is the fraction'),
    ({'valid': 0.6, 'test': 0.4}, 'every split needs at least one image'),
    ({'valid': 1e-5}, 'every split needs at least one image'),
    ({'shift': 8}, '0 to 7; received 8'),
    ({'seed': None}, 'seed must be a whole number'),
  ],
)
def test_digits_refuse_arguments_out_of_range(arguments, message):
  with pytest.raises(ValueError, match=message):
    tasks.digits(**arguments)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
  with pytest.raises(ImportError, match='pip install scikit-learn'):
    tasks.digits()


# A user's own arrays.


def _arrays(count, shape=(6, 5, 1), classes=7, dtype=np.uint8, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, *shape)).astype(dtype)
  return images, np.arange(count) % classes


def _own(train=None, valid=None, test=None, classes=7, **more):
  return tasks.from_arrays(
    'own',
    train or _arrays(20, seed=0),
    valid or _arrays(8, seed=1),
    test or _arrays(9, seed=2),
    classes=classes,
    **more,
  )


def test_from_arrays_takes_one_channel_and_any_number_of_classes():
  task = _own()
  assert (task.name, task.shape, task.outputs) == ('own', (6, 5, 1), 7)
  assert task.train.inputs.dtype == jnp.uint8
  assert task.train.targets.dtype == jnp.int32
  for split, size in zip(SPLITS, (20, 8, 9), strict=True):
    images, labels = _arrays(size, seed=SPLITS.index(split))
    assert np.array_equal(getattr(task, split).inputs, images)
    assert np.array_equal(getattr(task, split).targets, labels)


@pytest.mark.parametrize('dtype', [np.uint8, np.float64])
def test_from_arrays_normalises_by_the_training_images(dtype):
  # More images than are summed at a time.
  train = _arrays(1100, (4, 3, 3), dtype=dtype)
  train[0][..., 1] //= 4
  other = _arrays(8, (4, 3, 3), dtype=dtype, seed=1)
  third = _arrays(8, (4, 3, 3), dtype=dtype, seed=2)
  task = _own(train, other, third)
  prepared = np.asarray(task.prepare(task.train.inputs))
  assert prepared.dtype == np.float32
  np.testing.assert_allclose(prepared.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(prepared.std((0, 1, 2)), 1, atol=1e-5)
  expected = (other[0] - train[0].mean((0, 1, 2))) / train[0].std((0, 1, 2))
  np.testing.assert_allclose(
    task.prepare(task.valid.inputs), expected, atol=1e-5
  )


@pytest.mark.parametrize('value', [0, 0.1, 200])
def test_a_constant_channel_is_prepared_to_zero(value):
  images, labels = _arrays(600, dtype=np.float32)
  images[:] = value
  others = (_arrays(8, dtype=np.float32) for _ in range(2))
  task = _own((images, labels), *others)
  np.testing.assert_allclose(task.prepare(task.train.inputs), 0, atol=1e-4)


def test_from_arrays_copies_so_that_later_writes_change_nothing():
  images, labels = _arrays(20)
  task = _own((images, labels))
  before = np.array(task.train.inputs), np.array(task.train.targets)
  images[:] = 0
  labels[:] = 0
  assert np.array_equal(task.train.inputs, before[0])
  assert np.array_equal(task.train.targets, before[1])


def test_from_arrays_augments_only_if_told_to():
  images = jnp.ones((2, 6, 5, 1))
  key = jax.random.key(0)
  assert np.array_equal(_own().augment(key, images), images)
  augment = tasks.random_shift(1)
  assert _own(augment=augment).augment is augment


def _with(images=None, labels=None):
  ours = _arrays(20)
  return (
    ours[0] if images is None else images(ours[0]),
    ours[1] if labels is None else labels(ours[1]),
  )


@pytest.mark.parametrize(
  ('train', 'message'),
  [
    (_with(images=lambda x: x[..., 0]), r'add one with images\[\.\.\., None\]'),
    (_with(images=lambda x: x[0, 0]), r'axes \(N, height, width, channels\)'),
    (_with(images=lambda x: x.astype(np.int64)), 'received int64; convert'),
    (_with(images=lambda x: x * np.nan), '600 values .* are NaN'),
    (_with(images=lambda x: np.where(x >= 0, 1e300, x)), '600 values'),
    (_with(images=lambda x: x[:19]), r'shape \(19,\); received shape \(20,\)'),
    (_with(labels=lambda y: np.eye(7)[y]), r'argmax\(axis=-1\)'),
    (_with(labels=lambda y: y * 1.0), 'must be integers, received float64'),
    (
      _with(labels=lambda y: y + 1),
      'from 1 to 7, .* numbered 0 to 6; subtract',
    ),
    (_with(labels=lambda y: y - 1), 'from -1 to 5, .* have no label'),
    (_with(labels=lambda y: y * 2), 'from 0 to 12, .* count the classes'),
    (_with(lambda x: x[:0], lambda y: y[:0]), 'needs at least one'),
    (_with(images=lambda x: x[:, :4]), r'valid has images of uint8\(6, 5, 1\)'),
    (_with(images=lambda x: x / 16), 'train of float32.*make them the same'),
    (np.zeros((2, 6, 5, 1)), 'give a pair'),
    (_arrays(20)[0], 'give a pair'),
  ],
)
def test_from_arrays_refuses_a_split_and_says_which_and_why(train, message):
  with pytest.raises(ValueError, match=message) as error:
    tasks.from_arrays(
      'own', train, _arrays(8), _arrays(9), classes=7, augment=None
    )
  assert "from_arrays('own')" in str(error.value)
  assert 'train' in str(error.value)


@pytest.mark.parametrize('classes', [1, 0, 2.5, None])
def test_from_arrays_refuses_a_count_of_classes_below_two(classes):
  with pytest.raises(ValueError, match='classes must be a whole number, 2 or'):
    _own(classes=classes)


def test_from_arrays_refuses_test_images_used_for_selection():
  ours = _arrays(20)
  with pytest.raises(ValueError, match='test and valid are the same images'):
    _own(valid=ours, test=ours)


def test_from_arrays_refuses_an_augmentation_that_is_no_function():
  with pytest.raises(ValueError, match="received 'flip'"):
    _own(augment='flip')


# TFDS sets, written here.


def _write_tfds(folder, splits, *, name='tiny', classes=5, **metadata):
  """Prepares a TFDS set on disk: PNG images in array_record.

  Args:
    folder: the data_dir.
    splits: `{split: (images, labels)}`.
    name: the name of the set.
    classes: the number of classes it declares.
    **metadata: `dimensions` (as declared), `label` (the name of the feature),
      `format` (as declared), `description`.
  """
  image = pytest.importorskip('PIL.Image', reason='needs jaxnas[tfds]')
  records = pytest.importorskip(
    'array_record.python.array_record_module', reason='needs jaxnas[tfds]'
  )
  pytest.importorskip('tensorflow_datasets', reason='needs jaxnas[tfds]')
  from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

  label = metadata.get('label', 'label')
  where = folder / name / '1.0.0'
  where.mkdir(parents=True)
  for split, (images, labels) in splits.items():
    path = where / f'{name}-{split}.array_record-00000-of-00001'
    writer = records.ArrayRecordWriter(str(path), 'group_size:1')
    for pixels, number in zip(images, labels, strict=True):
      png = io.BytesIO()
      image.fromarray(pixels.squeeze()).save(png, 'PNG')
      features = {
        'image': tf_feature_pb2.Feature(
          bytes_list=tf_feature_pb2.BytesList(value=[png.getvalue()])
        ),
        label: tf_feature_pb2.Feature(
          int64_list=tf_feature_pb2.Int64List(value=[number])
        ),
        'id': tf_feature_pb2.Feature(
          bytes_list=tf_feature_pb2.BytesList(value=[b'an_id_in_text'])
        ),
      }
      example = tf_example_pb2.Example(
        features=tf_feature_pb2.Features(feature=features)
      )
      writer.write(example.SerializeToString())
    writer.close()
  kind = 'tensorflow_datasets.core.features'
  shape = metadata.get('dimensions') or next(iter(splits.values()))[0].shape[1:]
  described = {
    'id': {'pythonClassName': f'{kind}.text_feature.Text', 'text': {}},
    'image': {
      'pythonClassName': f'{kind}.image_feature.Image',
      'image': {
        'dtype': 'uint8',
        'shape': {'dimensions': [str(size) for size in shape]},
      },
    },
    label: {
      'pythonClassName': f'{kind}.class_label_feature.ClassLabel',
      'classLabel': {'numClasses': str(classes)},
    },
  }
  (where / 'features.json').write_text(
    json.dumps(
      {
        'pythonClassName': f'{kind}.features_dict.FeaturesDict',
        'featuresDict': {'features': described},
      }
    )
  )
  (where / 'dataset_info.json').write_text(
    json.dumps(
      {
        'name': name,
        'version': '1.0.0',
        'description': metadata.get('description', ''),
        'fileFormat': metadata.get('format', 'array_record'),
        'moduleName': '__main__',
        'splits': [
          {
            'name': split,
            'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
            'numBytes': '1',
            'shardLengths': [str(len(labels))],
          }
          for split, (_, labels) in splits.items()
        ],
      }
    )
  )


def _numbered(count, offset=0, shape=(8, 8, 1), classes=5):
  """Images told apart by their first pixel, sorted by class."""
  images = np.random.default_rng(0).integers(
    0, 256, (count, *shape), dtype=np.uint8
  )
  images[:, 0, 0, 0] = np.arange(offset, offset + count)
  return images, np.arange(count) * classes // count


@pytest.fixture
def tiny(tmp_path, monkeypatch):
  """A set of 100 + 20 images on disk, and an empty cache beside it."""
  splits = {'train': _numbered(100), 'test': _numbered(20, offset=100)}
  _write_tfds(tmp_path, splits)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return splits


def _numbers(data):
  return np.asarray(data.inputs)[:, 0, 0, 0].tolist()


def test_a_tfds_set_is_read_whole_and_split_without_overlap(tiny):
  task = tasks.tfds_images('tiny')
  assert (task.name, task.shape, task.outputs) == ('tiny', (8, 8, 1), 5)
  assert task.train.inputs.dtype == jnp.uint8
  assert task.train.targets.dtype == jnp.int32
  train, valid, test = map(_numbers, (task.train, task.valid, task.test))
  assert (len(train), len(valid)) == (90, 10)
  assert sorted(train + valid) == list(range(100))
  assert test == list(range(100, 120))
  images, labels = tiny['train']
  assert np.array_equal(task.train.inputs, images[train])
  assert np.array_equal(task.train.targets, labels[train])
  assert np.array_equal(task.valid.targets, labels[valid])


def test_a_tfds_split_is_a_function_of_the_seed(tiny):
  first, again, other = (tasks.tfds_images('tiny', seed=s) for s in (1, 1, 2))
  assert _equal(first, again)
  assert first.prepare is again.prepare
  assert first.augment is again.augment
  assert sorted(_numbers(first.valid)) != sorted(_numbers(other.valid))


def test_a_part_of_a_tfds_set_is_random_and_its_test_images_are_fixed(tiny):
  first, other = (
    tasks.tfds_images('tiny', seed=seed, train_examples=40, test_examples=7)
    for seed in (0, 1)
  )
  numbers = _numbers(first.train) + _numbers(first.valid)
  assert (len(set(numbers)), len(first.valid.targets)) == (40, 4)
  # The set is sorted by class: the first 40 would be of two classes.
  assert set(np.asarray(first.train.targets).tolist()) == set(range(5))
  assert set(numbers) != set(_numbers(other.train) + _numbers(other.valid))
  assert len(_numbers(first.test)) == 7
  assert _numbers(first.test) == _numbers(other.test)


def test_tfds_images_are_normalised_by_the_training_images(tiny):
  task = tasks.tfds_images('tiny')
  prepared = task.prepare(task.train.inputs)
  np.testing.assert_allclose(prepared.mean(), 0, atol=1e-5)
  np.testing.assert_allclose(prepared.std(), 1, atol=1e-5)


def test_decoded_images_are_cached(tiny, tmp_path):
  first = tasks.tfds_images('tiny')
  assert len(list((tmp_path / 'cache' / 'jaxnas').iterdir())) == 2
  for path in tmp_path.glob('tiny/1.0.0/*array_record*'):
    path.unlink()
  assert _equal(tasks.tfds_images('tiny'), first)
  with pytest.raises(Exception, match='array_record'):
    tasks.tfds_images('tiny', cache_dir=tmp_path / 'elsewhere')


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty', 'other'])
def test_a_damaged_cache_is_decoded_again(tiny, tmp_path, damage):
  cache = tmp_path / 'here'
  first = tasks.tfds_images('tiny', cache_dir=cache)
  for path in list(cache.iterdir()):
    data = bytearray(path.read_bytes())
    if damage == 'cut':
      data = data[: len(data) // 2]
    elif damage == 'flipped':
      data[len(data) // 2] ^= 255
    elif damage == 'empty':
      data = b''
    path.write_bytes(data)
    if damage == 'other':
      with open(path, 'wb') as file:
        np.savez(file, images=np.zeros(3), labels=np.zeros(3))
  assert _equal(tasks.tfds_images('tiny', cache_dir=cache), first)
  for path in tmp_path.glob('tiny/1.0.0/*array_record*'):
    path.unlink()
  assert _equal(tasks.tfds_images('tiny', cache_dir=cache), first)
  assert not list(cache.glob('*.tmp'))


def test_two_preparations_of_a_version_do_not_share_a_cache(tiny, tmp_path):
  first = tasks.tfds_images('tiny')
  splits = {
    split: (255 - images, labels) for split, (images, labels) in tiny.items()
  }
  _write_tfds(tmp_path / 'two', splits, description='negatives')
  other = tasks.tfds_images('tiny', data_dir=tmp_path / 'two')
  assert np.array_equal(other.test.inputs, 255 - first.test.inputs)


def test_a_cache_that_cannot_be_written_is_only_a_warning(tiny, tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  with pytest.warns(UserWarning, match='could not be kept'):
    task = tasks.tfds_images('tiny', cache_dir=tmp_path / 'file')
  assert len(task.train.targets) == 90


def test_the_automatic_augmentation_shifts_by_an_eighth_with_black(tiny):
  task = tasks.tfds_images('tiny')
  image = np.asarray(task.prepare(task.train.inputs[:1]))[0]
  black = np.asarray(task.prepare(np.zeros((1, 1, 1, 1), np.uint8))).item()
  seen = _shifts_seen(task.augment, image, 1, np.float32(black))
  assert len(set(seen)) == 9
  assert not any(mirrored for _, _, mirrored in seen)


@pytest.mark.parametrize(
  ('name', 'shape', 'mirrors'),
  [
    ('own_photos', (16, 16, 3), True),
    ('own_letters', (16, 16, 1), False),
    ('cmaterdb', (16, 16, 3), False),
    ('fashion_mnist', (16, 16, 1), True),
  ],
)
def test_the_automatic_augmentation_mirrors_where_the_class_stays(
  tmp_path, name, shape, mirrors
):
  splits = {
    'train': _numbered(20, shape=shape),
    'test': _numbered(5, offset=20, shape=shape),
  }
  _write_tfds(tmp_path, splits, name=name)
  task = tasks.tfds_images(
    f'{name}:1.0.0', data_dir=tmp_path, cache_dir=tmp_path / 'cache'
  )
  image = np.asarray(task.prepare(task.train.inputs[:1]))[0]
  black = np.asarray(task.prepare(np.zeros((1, 1, shape[-1]), np.uint8)))
  seen = _shifts_seen(task.augment, image, 2, black[0, 0])
  assert any(mirrored for _, _, mirrored in seen) == mirrors
  assert max(down for down, _, _ in seen) == 2


def test_an_augmentation_can_be_given_or_left_out(tiny):
  augment = tasks.random_shift(3)
  assert tasks.tfds_images('tiny', augment=augment).augment is augment
  assert tasks.tfds_images('tiny', augment='none').augment is tasks.unchanged
  with pytest.raises(ValueError, match="'auto', 'none' or a function"):
    tasks.tfds_images('tiny', augment='flip')


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tiny, tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    tasks.tfds_images('mnist')
  message = str(error.value)
  for part in (
    str(tmp_path),
    "tfds.builder('mnist', file_format='array_record').download_and_prepare()",
    'TFDS_DATA_DIR',
    '--config.data_dir',
    'never downloads',
  ):
    assert part in message
  with pytest.raises(FileNotFoundError, match='it has cifar10'):
    tasks.tfds_images('cifar_10')
  # A folder of another version, config or nothing is not a set.
  (tmp_path / 'mnist' / '2.0.0').mkdir(parents=True)
  with pytest.raises(FileNotFoundError, match='download_and_prepare'):
    tasks.tfds_images('mnist')
  with pytest.raises((FileNotFoundError, ValueError), match='tiny:7.0.0'):
    tasks.tfds_images('tiny:7.0.0')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'train_examples': 101}, 'train_examples .* 1 to 100; received 101'),
    ({'train_examples': 0}, 'train_examples .* 1 to 100; received 0'),
    ({'test_examples': 2.5}, 'test_examples .* 1 to 20; received 2.5'),
    ({'valid': 0.001}, 'every split needs at least one image'),
    ({'train_examples': 1}, 'every split needs at least one image'),
    ({'valid': 1.0}, 'above 0 and below 1; received 1.0'),
    ({'seed': -1}, 'seed must be a whole number, 0 or more; received -1'),
  ],
)
def test_tfds_images_refuse_arguments_out_of_range(tiny, arguments, message):
  with pytest.raises(ValueError, match=message):
    tasks.tfds_images('tiny', **arguments)


@pytest.mark.parametrize(
  ('splits', 'metadata', 'message'),
  [
    (('train',), {}, r"no split 'test', only \['train'\]"),
    (('test',), {}, r"no split 'train', only \['test'\]"),
    (('train', 'test'), {'dimensions': (-1, -1, 3)}, 'one fixed size'),
    (('train', 'test'), {'dimensions': (8, 8, 4)}, 'one channel or three'),
    (('train', 'test'), {'label': 'kind'}, "'kind': 'ClassLabel'"),
    (('train', 'test'), {'format': 'tfrecord'}, 'no random access'),
    (('train', 'test'), {'classes': 3}, 'labels run from 0 to 4, but 3'),
  ],
)
def test_a_set_of_another_kind_is_refused(tmp_path, splits, metadata, message):
  _write_tfds(tmp_path, dict.fromkeys(splits, _numbered(20)), **metadata)
  with pytest.raises(ValueError, match=message):
    tasks.tfds_images('tiny', data_dir=tmp_path, cache_dir=tmp_path / 'cache')


def test_tfds_images_without_tfds_say_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(ImportError, match=r'pip install .*jaxnas\[tfds\]'):
    tasks.tfds_images('cifar10')


def test_import_and_digits_load_no_data_library_and_tfds_no_tensorflow(
  tiny, tmp_path
):
  code = """
import sys
from jaxnas import tasks
heavy = ('sklearn', 'tensorflow_datasets', 'tensorflow')
assert not [name for name in heavy if name in sys.modules]
tasks.digits()
assert 'tensorflow_datasets' not in sys.modules
tasks.tfds_images('tiny')
assert 'tensorflow' not in sys.modules
"""
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=environment,
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


# Real CIFAR-10.


@pytest.fixture(scope='module')
def cifar10(cifar10_folder, tmp_path_factory):
  return tasks.tfds_images(
    'cifar10',
    data_dir=cifar10_folder,
    train_examples=600,
    test_examples=200,
    cache_dir=tmp_path_factory.mktemp('cache'),
  )


def test_cifar10_is_read(cifar10):
  assert (cifar10.shape, cifar10.outputs) == ((32, 32, 3), 10)
  sizes = [len(getattr(cifar10, split).targets) for split in SPLITS]
  assert sizes == [540, 60, 200]
  assert set(np.asarray(cifar10.train.targets).tolist()) == set(range(10))
  prepared = cifar10.prepare(cifar10.train.inputs)
  np.testing.assert_allclose(prepared.mean((0, 1, 2)), 0, atol=1e-4)
  np.testing.assert_allclose(prepared.std((0, 1, 2)), 1, atol=1e-4)


def test_cifar10_splits_do_not_overlap(cifar10):
  train, valid, test = (
    set(_rows(getattr(cifar10, split).inputs)) for split in SPLITS
  )
  assert not train & valid
  assert not train & test
  assert not valid & test


def test_cifar10_is_shifted_by_up_to_four_pixels_and_mirrored(cifar10):
  image = np.asarray(cifar10.prepare(cifar10.train.inputs[:1]))[0]
  black = np.asarray(cifar10.prepare(np.zeros((1, 1, 3), np.uint8)))[0, 0]
  seen = _shifts_seen(cifar10.augment, image, 4, black)
  assert {down for down, _, _ in seen} == set(range(-4, 5))
  assert {right for _, right, _ in seen} == set(range(-4, 5))
  assert {mirrored for _, _, mirrored in seen} == {True, False}
