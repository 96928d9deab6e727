"""Fidelities: how they are written, and what they leave of a task."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import fidelity, tasks
from jaxnas.fidelity import Fidelity

KEY = jax.random.key(0)


@hypothesis.given(*[st.integers(0, 12)] * 3, st.integers(1, 999))
def test_what_is_printed_is_read(c, r, s, e):
  held = Fidelity(c, r, s, e)
  assert fidelity.parse(str(held)) == held


@pytest.mark.parametrize(
  'text',
  [
    '',
    'c4r4s0',
    'c4r4s0e',
    'r4c4s0e1',
    'c-1r0s0e1',
    'c4r4s0e60 ',
    4,
    'c½r0s0e1',
  ],
)
def test_what_is_no_fidelity_is_refused(text):
  with pytest.raises(ValueError, match='c4r4s0e60'):
    fidelity.parse(text)


@pytest.mark.parametrize(
  'make',
  [
    lambda: fidelity.parse('c13r0s0e1'),
    lambda: fidelity.parse('c0r0s0e0'),
    lambda: Fidelity(channels=-3),
    lambda: Fidelity(samples=13),
    lambda: dataclasses.replace(Fidelity(), epochs=0),
  ],
)
def test_what_is_out_of_range_is_refused(make):
  with pytest.raises(ValueError, match='0 to 12 and at least one epoch'):
    make()


def test_four_quarters_as_in_the_official_code():
  assert fidelity.reduced(36, 4) == 9
  assert fidelity.reduced(32, 4) == 8
  assert [fidelity.reduced(5, index, multiple=4) for index in (0, 9)] == [4, 4]


def coloured(count=12, side=8):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (count, side, side, 3), np.uint8)
  return images, np.arange(count) % 3


def of(images, **more):
  """A task whose three splits hold equal images."""
  pairs = [(images.copy(), coloured()[1]) for _ in range(3)]
  return tasks.from_arrays('noise', *pairs, classes=3, **more)


def task(side=8):
  return of(coloured(side=side)[0])


def test_pixels_are_averages_of_what_lies_under_them():
  images = np.repeat(np.repeat(coloured(side=2)[0], 16, axis=1), 16, axis=2)
  small = fidelity.reduce(of(images), fidelity.parse('c0r4s0e1'), KEY)
  assert small.shape == (8, 8, 3) and small.train.inputs.dtype == jnp.uint8
  inner = np.asarray(small.train.inputs)[:, 1::4, 1::4]
  np.testing.assert_array_equal(inner, coloured(side=2)[0])


def test_nothing_reduced_is_the_task_itself():
  whole = task()
  same = fidelity.reduce(whole, fidelity.parse('c2r0s0e9'), KEY)
  for split in ('train', 'valid', 'test'):
    for a, b in zip(getattr(whole, split), getattr(same, split)):
      np.testing.assert_array_equal(a, b)
  assert same.augment is whole.augment and same.shape == whole.shape


def test_a_subset_is_of_the_training_split_alone_and_repeats():
  held = fidelity.parse('c0r0s2e1')
  first, again = (fidelity.reduce(task(), held, KEY) for _ in range(2))
  other = fidelity.reduce(task(), held, jax.random.key(1))
  assert len(first.train.targets) == 6 and len(first.valid.targets) == 12
  np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
  assert (np.asarray(first.train.inputs) != other.train.inputs).any()
  whole = {image.tobytes() for image in np.asarray(task().train.inputs)}
  kept = {image.tobytes() for image in np.asarray(first.train.inputs)}
  assert len(kept) == 6 and kept < whole


def test_augmentation_shifts_by_what_it_shifts_whole_images():
  shift = tasks.random_shift(4, flip=False)
  whole = of(coloured(side=32)[0], augment=shift)
  small = fidelity.reduce(whole, fidelity.parse('c0r4s0e1'), KEY)
  images = small.prepare(small.train.inputs)
  moved = small.augment(KEY, images)
  assert moved.shape == images.shape
  # By one of these pixels at most: far from the edge values stay near.
  inner = np.asarray(images)[:, 3:5, 3:5].mean()
  assert abs(np.asarray(moved)[:, 2:6, 2:6].mean() - inner) < 0.5
  # One function for equal reductions, so that their programs are shared.
  twin = fidelity.reduce(whole, fidelity.parse('c2r4s1e3'), KEY)
  assert twin.augment is small.augment


def test_what_cannot_be_reached_is_refused():
  with pytest.raises(ValueError, match='8 pixels cut by index 3'):
    fidelity.reduce(task(), Fidelity(resolution=3), KEY, multiple=4)
  with pytest.raises(ValueError, match='12 images .* index 9 would be 0.53'):
    fidelity.reduce(task(), Fidelity(samples=9), KEY)
  with pytest.raises(ValueError, match='4 channels cut by index 9'):
    fidelity.left(Fidelity(channels=9), 'channels', 4)
  # The nearest even number is within half a step.
  assert fidelity.left(Fidelity(channels=4), 'channels', 36, multiple=2) == 10


def test_a_task_without_images_is_refused():
  held = task()._replace(shape=(8,))
  with pytest.raises(ValueError, match='a fidelity is of images'):
    fidelity.reduce(held, fidelity.parse('c0r2s0e1'), KEY)
