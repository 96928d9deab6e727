"""Training in buckets: the same arithmetic, every example, few programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxnas import groups, morphisms, network, tasks, training
from jaxnas import spec as specs
from jaxnas.base import Data
from jaxnas.run import count_compilations
from jaxnas.spaces import seeds

SHAPE, CLASSES = (6, 6, 2), 3
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope='module')
def quick_compiler():
  """Compiling would take most of the time: programs run a few times only."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


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
  held = training.bucket(width)
  assert held >= width and training.bucket(held) == held
  assert training.bucket(width + 1) >= held
  assert held < 2 * width or held == 4
  assert held <= 1.5 * width or width < 17
  ladder = {training.bucket(w) for w in range(1, width + 1)}
  assert len(ladder) <= 2 * np.log2(held)


def test_padding_stores_every_free_group_at_its_bucket():
  spec = seeds.resnet(CLASSES, shape=SHAPE, blocks=1, widths=(3, 5, 17))
  padded = morphisms.respec(training.padding(spec), spec)
  before, after = groups.table(spec).groups, groups.table(padded).groups
  for name, group in before.items():
    width = group.size if group.frozen else training.bucket(group.size)
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


@pytest.mark.parametrize('kind', sorted(SPECS))
def test_padding_changes_nothing_but_rounding(x64, monkeypatch, kind):
  """Weights, batch statistics, moments and losses, over two fits."""
  del x64
  tx, task, fits = OPTIMIZERS[kind](), _task(), []
  for padding in (training.padding, lambda spec: morphisms.identity()):
    monkeypatch.setattr(training, 'padding', padding)
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


def test_growth_inside_a_bucket_compiles_nothing():
  """Widths 9 to 16 share the programs of fit and evaluate."""
  tx, task = optax.adam(1e-2), _task()

  def compiled(width, state=None):
    net = _net(_chain(width, 'M', width))
    with count_compilations() as programs:
      training.fit(KEY, net, task, tx, epochs=1, batch=8, opt_state=state)
      training.evaluate(net, task, task.valid)
    return len(programs)

  assert compiled(9) > 0
  assert [compiled(width) for width in range(10, 17)] == [0] * 7


def test_a_split_inside_a_bucket_compiles_nothing():
  """The network and its optimizer state grow between two fits."""
  tx, task = optax.adam(1e-2), _task()
  fit = functools.partial(training.fit, task=task, tx=tx, epochs=1, batch=8)
  fitted = fit(KEY, _net(_chain(9, 'M', 9)))
  with count_compilations() as programs:
    for channel in range(7):
      move = morphisms.split({'conv1': [channel], 'conv2': [channel]})
      net, state = morphisms.morph(
        move, fitted.net, theta={}, opt_state=fitted.opt_state
      )
      fitted = fit(KEY, net, opt_state=state)
  assert fitted.net.spec.shapes['conv2'][-1] == 16
  assert len(programs) == 0


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


def test_fresh_members_inside_a_bucket_compile_no_optimizer_state():
  tx, task = optax.adam(1e-2), _task()
  training.fit(KEY, _net(_chain(5)), task, tx, epochs=0, batch=8)
  net = _net(_chain(6))
  with count_compilations() as programs:
    training.fit(KEY, net, task, tx, epochs=0, batch=8)
  assert len(programs) == 0


def test_no_epochs_change_nothing():
  net = _net(_chain(3))
  fitted = training.fit(KEY, net, _task(), optax.adam(0.1), epochs=0, batch=8)
  _assert_equal(fitted.net, net)
  assert (fitted.losses, fitted.steps, fitted.examples) == ((), 0, 0)


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


@pytest.mark.parametrize('batch', [1, 4, 13, 64])
@pytest.mark.parametrize('split', ['valid', 'test'])
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
