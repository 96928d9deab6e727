"""Training in buckets: the same arithmetic, every example, few programs."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnas import groups, morphisms, network, plans, tasks, training
from jaxnas import spec as specs
from jaxnas.base import Data
from jaxnas.run import count_compilations
from jaxnas.spaces import seeds

SHAPE, CLASSES = (6, 6, 2), 3
KEY = jax.random.key(0)


@functools.cache
def _task(count=26):
  """Images of noise; no augmentation."""
  rng = np.random.default_rng(0)

  def split(size):
    images = rng.integers(0, 256, (size, *SHAPE)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, size).astype(np.int32)

  return tasks.from_arrays(
    'noise', split(count), split(13), split(7), classes=CLASSES
  )


def _own_task():
  """A task with which no other test has compiled anything."""
  task = _task()
  return task._replace(metric=lambda *given: task.metric(*given))


def _net(spec, dtype=np.float32):
  net = network.to_host(network.init(spec, KEY))
  return jax.tree.map(lambda leaf: leaf.astype(dtype), net)


def _chain(*widths):
  return seeds.chain(SHAPE, widths, CLASSES)


def _copy(tree):
  return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _assert_equal(one, two):
  jax.tree.map(np.testing.assert_array_equal, one, two)


# Buckets.


@given(st.integers(1, 5000))
def test_buckets_hold_their_width_and_are_few(width):
  held = plans.bucket(width)
  assert held >= width and plans.bucket(held) == held
  assert plans.bucket(width + 1) >= held
  assert held < 2 * width or held == 4
  assert held <= 1.5 * width or width < 33
  ladder = {plans.bucket(w) for w in range(1, width + 1)}
  assert len(ladder) <= 2 * np.log2(held)


def test_padding_stores_every_free_group_at_its_bucket():
  spec = seeds.resnet(CLASSES, shape=SHAPE, blocks=1, widths=(3, 5, 17))
  padded = morphisms.respec(plans.padding(spec), spec)
  before, after = groups.table(spec).groups, groups.table(padded).groups
  for name, group in before.items():
    width = group.size if group.frozen else plans.bucket(group.size)
    assert after[name].size == width
  assert padded.shapes[padded.output] == (CLASSES,)


# Fitting.


def _layer_normed():
  return seeds.sequential(
    SHAPE,
    [
      ('conv1', specs.Conv(5)),
      ('ln', specs.LayerNorm()),
      ('act1', specs.Activation('gelu')),
      ('flat', specs.Flatten()),
      ('dense', specs.Dense(3)),
      ('act2', specs.Activation('silu')),
      ('logits', specs.Dense(CLASSES)),
    ],
  )


SPECS = {
  'residual': lambda: seeds.resnet(
    CLASSES, shape=SHAPE, blocks=1, widths=(3, 5)
  ),
  'depthwise': lambda: seeds.sequential(
    SHAPE,
    [
      ('conv1', specs.Conv(5, use_bias=False)),
      ('bn1', specs.BatchNorm()),
      ('act1', specs.Activation('softplus')),
      ('depth', specs.DepthwiseConv()),
      ('bn2', specs.BatchNorm()),
      ('pool', specs.Pool('max')),
      ('conv2', specs.Conv(3)),
      ('gap', specs.GlobalPool()),
      ('logits', specs.Dense(CLASSES)),
    ],
  ),
  'layer norm': _layer_normed,
}
OPTIMIZERS = {
  'residual': lambda: optax.adam(1e-2),
  'depthwise': lambda: optax.chain(
    optax.clip_by_global_norm(0.1), optax.adamw(1e-2, weight_decay=0.1)
  ),
  'layer norm': lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize(
  'kind',
  [
    'layer norm',
    'residual',
    pytest.param('depthwise', marks=pytest.mark.slow),
  ],
)
def test_padding_changes_nothing_but_rounding(x64, monkeypatch, kind):
  """Weights, batch statistics, moments and losses, over two fits."""
  del x64
  tx, task, fits = OPTIMIZERS[kind](), _task(), []
  for padding in (plans.padding, lambda spec: morphisms.identity()):
    monkeypatch.setattr(plans, 'padding', padding)
    net, state, losses = _net(SPECS[kind](), np.float64), None, ()
    for i in range(2):
      fitted = training.fit(
        jax.random.key(i), net, task, tx, epochs=2, batch=8, opt_state=state
      )
      net, state = fitted.net, fitted.opt_state
      losses += fitted.losses
    fits.append((net.variables, state, losses))
    assert not net.spec.padded
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), *fits
  )
  change = jax.tree.map(
    lambda a, b: np.abs(a - b).max(),
    fits[0][0]['params'],
    _net(SPECS[kind](), np.float64).variables['params'],
  )
  assert max(jax.tree.leaves(change)) > 0.01


def test_a_structure_is_two_programs():
  """An epoch and a measurement; no other for a state or for a split."""
  tx, task, net = optax.adam(1e-2), _own_task(), _net(_chain(5, 'M', 5))
  fit = functools.partial(training.fit, KEY, task=task, tx=tx, batch=8)
  fit(_net(_chain(1)), epochs=1)  # The order of examples, for all structures.
  with count_compilations() as programs:
    fitted = fit(net, epochs=2)
    fit(fitted.net, epochs=1, opt_state=fitted.opt_state)
    assert len(programs) == 1
    measured = [
      training.evaluate(fitted.net, task, data).examples
      for data in (task.valid, task.test, task.train)
    ]
  assert measured == [13, 7, 26]
  assert len(programs) == 2


@pytest.mark.slow
def test_widths_of_a_bucket_share_its_programs():
  tx, task = optax.adam(1e-2), _task()

  def compiled(width):
    net = _net(_chain(width, 'M', width))
    with count_compilations() as programs:
      training.fit(KEY, net, task, tx, epochs=1, batch=8)
      training.evaluate(net, task, task.valid)
    return len(programs)

  assert compiled(9) > 0
  assert [compiled(width) for width in range(10, 17)] == [0] * 7


def _compiled_in_growth(widths, events):
  """Programs compiled by a fit and a measurement, before and after events.

  Args:
    widths: of the convolutions at the start.
    events: for each, the groups of which the first channel is split; the
      optimizer's state grows with the network.
  """
  tx, task = optax.adam(1e-2), _own_task()
  # What any training needs may have been compiled by earlier tests, or not.
  fitted = training.fit(KEY, _net(_chain(1)), task, tx, epochs=1, batch=8)
  training.evaluate(fitted.net, task, task.valid)
  net, state, counts = _net(_chain(*widths)), None, []
  for names in ((), *events):
    move = morphisms.split({name: [0] for name in names})
    with count_compilations() as programs:
      if names:
        net, state = morphisms.morph(move, net, theta={}, opt_state=state)
      fitted = training.fit(
        KEY, net, task, tx, epochs=1, batch=8, opt_state=state
      )
      training.evaluate(fitted.net, task, task.valid)
    net, state = fitted.net, fitted.opt_state
    counts.append(len(programs))
  return counts


# From 17 to 24 channels, one at a time in one group: 21 events, one bucket.
_INSIDE = [(f'conv{1 + i % 3}',) for i in range(21)]


def test_twenty_growth_events_inside_buckets_compile_nothing():
  first, *counts = _compiled_in_growth((17, 'M', 17, 17), _INSIDE)
  # The third draws the order of examples, for all that have as many slots.
  assert first in (2, 3) and counts == [0] * 21


def test_a_bucket_crossed_is_two_programs():
  """However many groups cross; and going on inside it is none."""
  # Widths 15, 15; 16, 16; 17, 17; 18, 18.
  counts = _compiled_in_growth((15, 'M', 15), [('conv1', 'conv2')] * 3)
  assert counts == [2, 0, 2, 0]


@pytest.mark.slow
def test_without_padding_each_growth_event_compiles(monkeypatch):
  """What the buckets are for: the same events, at exact sizes."""
  monkeypatch.setattr(plans, 'padding', lambda spec: morphisms.identity())
  counts = _compiled_in_growth((17, 'M', 17, 17), _INSIDE[:2])
  assert counts == [2] * 3


def test_fit_is_a_function_of_its_key():
  net, task, tx = _net(_chain(4)), _task(), optax.adam(1e-2)
  fit = functools.partial(training.fit, net=net, task=task, tx=tx, batch=8)
  once, again = fit(KEY, epochs=2), fit(KEY, epochs=2)
  _assert_equal(once, again)
  other = fit(jax.random.key(1), epochs=2)
  assert other.losses != once.losses
  short = fit(KEY, epochs=1)
  assert short.losses == once.losses[:1]


def test_fits_leave_what_they_were_given_as_it_was():
  """Though programs reuse the memory of their arguments."""
  task, tx = _task(), optax.adam(1e-2)
  fit = functools.partial(training.fit, task=task, tx=tx, epochs=1, batch=8)
  on_device = network.init(_chain(4, 8), KEY)  # Buckets that add no padding.
  start = _copy(on_device)
  first = fit(KEY, on_device)
  _assert_equal(on_device, start)
  kept = _copy((first.net, first.opt_state))
  twice = [fit(KEY, first.net, opt_state=first.opt_state) for _ in range(2)]
  _assert_equal((first.net, first.opt_state), kept)
  _assert_equal(*twice)
  _assert_equal(on_device, start)


def test_an_epoch_sees_every_example_once():
  """With no learning, its loss is the loss over the split."""
  spec = seeds.sequential(
    SHAPE,
    [
      ('conv1', specs.Conv(3)),
      ('act1', specs.Activation('relu')),
      ('gap', specs.GlobalPool()),
      ('logits', specs.Dense(CLASSES)),
    ],
  )
  net, task, still = _net(spec), _task(), optax.sgd(0.0)
  expected = training.evaluate(net, task, task.train).loss
  for batch in (1, 2, 13, 26):
    fitted = training.fit(KEY, net, task, still, epochs=2, batch=batch)
    np.testing.assert_allclose(fitted.losses, expected, rtol=1e-5)
    assert (fitted.steps, fitted.examples) == (2 * 26 // batch, 2 * 26)


@pytest.mark.parametrize(
  'batch, steps, examples', [(8, 3, 24), (25, 1, 25), (100, 1, 26)]
)
def test_incomplete_batches_are_left_out_and_not_counted(
  batch, steps, examples
):
  fitted = training.fit(
    KEY, _net(_chain(4)), _task(), optax.sgd(0.1), epochs=3, batch=batch
  )
  assert (fitted.steps, fitted.examples) == (3 * steps, 3 * examples)
  assert len(fitted.losses) == 3


@pytest.mark.parametrize('wrong', [{'batch': 0}, {'epochs': -1}])
def test_fit_refuses_impossible_counts(wrong):
  counts = {'batch': 8, 'epochs': 1, **wrong}
  with pytest.raises(ValueError, match=f'got batch={counts["batch"]}'):
    training.fit(KEY, _net(_chain(3)), _task(), optax.sgd(0.1), **counts)


@pytest.mark.parametrize(
  ('tx', 'zero'),
  [
    (optax.adam(0.1), True),
    (optax.adagrad(0.1), False),
    (optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), False),
  ],
  ids=['adam', 'adagrad', 'injected'],
)
def test_a_fresh_state_is_the_optimizers_own(tx, zero):
  """It is made within the first epoch, and not again in the second."""
  net, task = _net(_chain(4, 8)), _task()  # Buckets that add no padding.
  own = network.to_host(tx.init(net.variables['params']))
  fit = functools.partial(training.fit, KEY, net, task, tx, epochs=2, batch=8)
  fresh = fit()
  _assert_equal(fresh, fit(opt_state=own))
  # What stands in its place until then is another start, if not by chance.
  blank = fit(opt_state=jax.tree.map(np.zeros_like, own))
  assert (blank.losses == fresh.losses) == zero


def test_no_epochs_change_nothing():
  net = _net(_chain(3))
  fitted = training.fit(KEY, net, _task(), optax.adam(0.1), epochs=0, batch=8)
  _assert_equal(fitted.net, net)
  assert (fitted.losses, fitted.steps, fitted.examples) == ((), 0, 0)
  assert fitted.opt_state is None
  state = optax.adam(0.1).init(net.variables['params'])
  fitted = training.fit(
    KEY, net, _task(), optax.adam(0.1), epochs=0, batch=8, opt_state=state
  )
  _assert_equal((fitted.net, fitted.opt_state), (net, state))


def test_augmentation_acts_in_training_only():
  def black(key, images):
    del key
    return images * 0

  net = _net(_chain(4))
  task = _task()._replace(augment=black)
  zeros = task._replace(prepare=lambda images: black(None, images * 1.0))
  still = optax.sgd(0.0)
  fit = functools.partial(training.fit, KEY, net, tx=still, epochs=1, batch=13)
  assert fit(task).losses == pytest.approx(fit(zeros).losses)
  measured = training.evaluate(net, task, task.valid)
  assert measured == training.evaluate(net, _task(), _task().valid)
  drawn = training.draw(KEY, task, 4)
  assert drawn.inputs.shape == (4, *SHAPE) and not drawn.inputs.any()


def test_dropout_acts_in_training_only():
  spec = seeds.sequential(
    SHAPE,
    [
      ('flat', specs.Flatten()),
      ('drop', specs.Dropout(0.5)),
      ('logits', specs.Dense(CLASSES)),
    ],
  )
  net, task, still = _net(spec), _task(), optax.sgd(0.0)
  fit = functools.partial(training.fit, epochs=2, batch=26)
  losses = fit(KEY, net, task, still).losses
  expected = training.evaluate(net, task, task.train).loss
  assert len({*losses, expected}) == 3


def test_losses_that_are_not_finite_are_returned():
  task = _task()
  fitted = training.fit(
    KEY, _net(_chain(4)), task, optax.sgd(1e30), epochs=2, batch=8
  )
  assert not np.isfinite(fitted.losses).all()
  assert fitted.examples == 48


# Measuring.


@pytest.mark.parametrize(
  'batch', [4, 13, 64, pytest.param(1, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_evaluate_measures_every_example_once(batch, split):
  task, net = _task(), _net(_chain(3, 'M', 5))
  data = getattr(task, split)
  measured = training.evaluate(net, task, data, batch=batch)
  outputs = network.apply(net, task.prepare(data.inputs))
  assert measured.examples == len(data.targets)
  assert measured.loss == pytest.approx(
    float(task.loss(outputs, data.targets).mean()), rel=1e-5
  )
  assert measured.metric == pytest.approx(
    float((outputs.argmax(axis=1) == data.targets).mean())
  )


def test_evaluate_ignores_what_fills_the_last_batch():
  """Even where the filling is no number."""
  task, net = _task(), _net(_chain(3))

  def loss(outputs, targets):
    return jnp.where(targets == 9, jnp.nan, 1.0)

  data = task.valid
  targets = np.zeros(13, np.int32)
  task = task._replace(loss=loss)
  measured = training.evaluate(net, task, Data(data.inputs, targets), batch=8)
  assert measured.loss == 1.0
  targets[-1] = 9  # The example that fills: counted once, where it stands.
  measured = training.evaluate(net, task, Data(data.inputs, targets), batch=8)
  assert np.isnan(measured.loss)


def test_draw_takes_different_examples_and_all_there_are_at_most():
  task = _task()
  rows = {image.tobytes() for image in np.asarray(task.train.inputs)}
  prepared = task.prepare(task.train.inputs)
  known = {image.tobytes() for image in np.asarray(prepared)}
  assert len(rows) == len(known) == 26
  for count in (5, 26, 100):
    drawn = training.draw(KEY, task, count)
    found = {image.tobytes() for image in np.asarray(drawn.inputs)}
    assert len(found) == len(drawn.targets) == min(count, 26)
    assert found <= known


def test_the_two_folds_share_no_example():
  task = _task(25)
  halves = [training.draw(KEY, task, 100, fold=fold) for fold in (0, 1)]
  even, odd = (
    {image.tobytes() for image in np.asarray(half.inputs)} for half in halves
  )
  assert (len(even), len(odd)) == (13, 12) and not even & odd
  assert len(training.draw(KEY, task, 5, fold=1).targets) == 5


def test_draw_is_a_function_of_its_key():
  task = _task()
  _assert_equal(training.draw(KEY, task, 5), training.draw(KEY, task, 5))
  other = training.draw(jax.random.key(1), task, 5)
  assert (other.inputs != training.draw(KEY, task, 5).inputs).any()


@pytest.mark.skipif(
  'PYTEST_XDIST_WORKER' not in os.environ, reason='Tests run in one process.'
)
def test_no_two_workers_share_their_compiled_programs():
  # One that reads a program which another is writing dies.
  folder = pathlib.Path(os.environ['JAX_COMPILATION_CACHE_DIR'])
  if '.pytest_cache' not in folder.parts:
    pytest.skip('JAX_COMPILATION_CACHE_DIR was set before.')
  assert folder.name == os.environ['PYTEST_XDIST_WORKER']
