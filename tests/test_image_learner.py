"""Image classifiers as members: the space of slots, and how they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import learners, stages, tasks
from jaxnas.base import Data, Genes, Member
from jaxnas.learners import images
from jaxnas.mixing import Prior
from jaxnas.run import count_compilations, run
from jaxnas.spaces.conv_slots import (
  ACTIVATIONS,
  OPS,
  Network,
  conv_slots,
  normalised,
  pinned,
)

KEY = jax.random.key(0)
WIDTHS, SLOTS = (4, 6), 2
CONV3, RELU = list(OPS).index('conv3'), list(ACTIVATIONS).index('relu')


@functools.cache
def space(form='auto'):
  return conv_slots((8, 8, 1), 10, widths=WIDTHS, slots=SLOTS, form=form)


@functools.cache
def applied(form='auto'):
  return jax.jit(space(form).apply)


@functools.cache
def fresh():
  return jax.jit(space().init)


@functools.cache
def digits():
  return tasks.digits(shift=0)


def filled():
  """Layers without a zero, so that every option has something to read."""
  held = fresh()(KEY, jnp.full(8, CONV3))
  leaves, structure = jax.tree.flatten(held)
  rng = np.random.default_rng(0)
  drawn = [rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  return structure.unflatten([x / np.sqrt(x[..., 0].size) for x in drawn])


def pictures(count=3):
  return jax.random.normal(jax.random.fold_in(KEY, 1), (count, 8, 8, 1))


def mlp(width=16):
  """A network of a user's own: one hidden layer, its activation a gene."""
  genes = Genes((2,), {'hidden': 0, 'head': -1}, ('activation',))

  def init(key, own):
    del own
    one, two = jax.random.split(key)
    return {
      'hidden': jax.random.normal(one, (64, width)) / 8,
      'head': jax.random.normal(two, (width, 10)) / np.sqrt(width),
    }

  def apply(layers, own, x):
    z = x.reshape((len(x), -1)) @ layers['hidden']
    return jnp.where(own[0] == 0, jnp.tanh(z), jax.nn.relu(z)) @ layers['head']

  return Network(genes, init, apply)


@functools.cache
def learner(**settings):
  return learners.classifier(digits(), mlp(), **{'steps': 30, **settings})


@functools.cache
def compiled(call):
  return jax.jit(call)


def trained_by(given):
  return compiled(given.train)


def member(given, key=KEY, genes=(0,), **hyper):
  genes = jnp.array(genes)
  body = given.init(key, genes, {}, given.data)
  return Member(body, genes, {n: jnp.float32(v) for n, v in hyper.items()})


def different(a, b):
  """The largest difference of two trees."""
  return max(
    float(jnp.abs(x - y).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


# The space.


def test_every_option_of_every_gene_changes_the_output():
  held, x = filled(), pictures()
  for gene, count in enumerate(space().genes.options):
    seen = []
    for option in range(count):
      # The other slots hand on what they get.
      own = np.zeros(8, np.int32)
      own[gene // 2 * 2 :][:2] = [CONV3, RELU]
      own[gene] = option
      seen.append(applied()(held, own, x))
    assert different(seen[-1], applied()(held, own, x)) == 0  # The control.
    for i in range(count):
      for j in range(i):
        assert different(seen[i], seen[j]) > 1e-3, (gene, i, j)


def at(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


def reference(held, own, x):
  """The network by XLA's own convolutions, one slot after another."""

  def conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )

  def settled(weights, x):
    x = x + weights['bias'].reshape(1, 1, 1, -1)
    mean = x.mean((1, 2, 3), keepdims=True)
    x = (x - mean) / jnp.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-5)
    scale, shift = (
      weights[name].reshape(1, 1, 1, -1) for name in ('scale', 'shift')
    )
    return x * scale + shift

  def slot(weights, op, activation, x):
    middle = weights['kernel'][1:2, 1:2]
    act = list(ACTIVATIONS.values())[activation]
    match list(OPS)[op]:
      case 'identity':
        return act(x)
      case 'conv1':
        return act(settled(weights, conv(x, middle)))
      case 'conv3':
        return act(settled(weights, conv(x, weights['kernel'])))
      case 'residual3':
        return x + act(settled(weights, conv(x, weights['kernel'])))
      case 'separable3':
        deep = conv(x, weights['depth'], x.shape[-1])
        return act(settled(weights, conv(deep, middle)))

  x = settled(held['stem'], conv(x, held['stem']['kernel']))
  for i in range(len(WIDTHS)):
    if i:
      x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1)
      x = x.mean(axis=(2, 4))
      joint = held[f'widen{i}']
      x = settled(joint, conv(x, joint['kernel']))
    for j in range(SLOTS):
      weights = at(held[f'stage{i}'], j)
      place = 2 * (i * SLOTS + j)
      x = slot(weights, own[place], own[place + 1], x)
  head = held['head']
  return x.mean((1, 2)) @ head['w'] + head['b'].reshape(1, -1)


@pytest.mark.parametrize('form', ['auto', 'native'])
def test_networks_are_what_their_genes_say(form):
  held, x = filled(), pictures()
  for own in ([0, 1, 1, 0, 2, 2, 3, 3], [4, 3, 3, 2, 0, 0, 4, 1]):
    found = applied(form)(held, jnp.array(own), x)
    wanted = reference(held, own, x)
    np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-5)
    other = [(gene + 1) % 4 for gene in own]  # The control.
    assert different(found, reference(held, other, x)) > 1e-2


@pytest.mark.slow
def test_members_side_by_side_are_members_one_by_one():
  keys = jax.random.split(KEY, 2)
  own = jnp.array([[0, 1, 2, 3, 4, 0, 3, 1], [4, 0, 1, 1, 2, 2, 0, 3]])
  held = jax.vmap(space().init)(keys, own)
  x = pictures()
  both = jax.vmap(space().apply, in_axes=(0, 0, None))(held, own, x)
  for i in range(2):
    one = at(held, i)
    np.testing.assert_allclose(
      both[i], applied()(one, own[i], x), rtol=1e-4, atol=1e-5
    )


def test_fresh_slots_have_the_scale_of_their_op_and_nothing_else():
  wide = conv_slots((8, 8, 1), 10, widths=(48,), slots=len(OPS))
  own = np.stack([np.arange(len(OPS)), np.zeros(len(OPS), int)], 1).ravel()
  stage = jax.jit(wide.init)(KEY, jnp.array(own))['stage0']
  kernel = dict(zip(OPS, np.asarray(stage['kernel'])))
  depth = dict(zip(OPS, np.asarray(stage['depth'])))
  he = functools.partial(pytest.approx, rel=0.1)
  for name in ('conv3', 'residual3'):
    assert kernel[name].std() == he(np.sqrt(2 / (9 * 48)))
  for name in ('conv1', 'separable3'):
    assert kernel[name][1, 1].std() == he(np.sqrt(2 / 48))
    assert np.count_nonzero(kernel[name]) == 48**2
  assert depth['separable3'].std() == he(np.sqrt(2 / 9))
  assert not any(depth[name].any() for name in OPS if name != 'separable3')
  assert not kernel['identity'].any()
  assert stage['scale'].sum(axis=1).tolist() == [0, 48, 48, 48, 48]


def test_the_op_gene_owns_its_slot_and_no_other_gene_owns_anything():
  owner = space().genes.owner
  assert owner['stage0'].tolist() == [0, 2]
  assert owner['stage1'].tolist() == [4, 6]
  names = [space().genes.names[i] for i in (0, 2, 4, 6)]
  assert all('/op' in name for name in names)
  assert all(owner[name] == -1 for name in ('stem', 'widen1', 'head'))
  assert {*owner} == {*fresh()(KEY, jnp.zeros(8, int))}


def test_the_norm_lets_no_example_see_another():
  x = pictures(4) + 3
  scale, shift = jnp.ones(1), jnp.zeros(1)
  whole = normalised(x, scale, shift)
  np.testing.assert_allclose(whole[:1], normalised(x[:1], scale, shift), 1e-5)
  assert different(whole, x - 3) > 1e-2


def test_pinned_is_one_architecture():
  own = (0, 1, 1, 0, 2, 2, 3, 3)
  one = pinned(space(), own)
  held, x = filled(), pictures()
  none = jnp.zeros(0, int)
  wanted = applied()(held, jnp.array(own), x)
  assert different(jax.jit(one.apply)(held, none, x), wanted) < 1e-5
  assert {*one.genes.owner.values()} == {-1}
  with pytest.raises(ValueError, match='8 genes below'):
    pinned(space(), (5, *own[1:]))


@pytest.mark.parametrize(
  ('shape', 'settings', 'message'),
  [
    ((8, 8), {}, 'rows, columns, channels'),
    ((8, 8, 1), {'widths': ()}, 'a width'),
    ((8, 8, 1), {'slots': 0}, 'a slot'),
    ((3, 8, 1), {'widths': (1, 1, 1)}, 'too small'),
  ],
)
def test_spaces_that_cannot_be_are_refused(shape, settings, message):
  with pytest.raises(ValueError, match=message):
    conv_slots(shape, 10, **settings)


# The learner.


@pytest.fixture(scope='module')
def convolutional():
  """A population of slots on digits, and what became of it in a few rounds.

  The first two are of one architecture, and so are the others; of each two the
  second has the learning rate 0.
  """
  small = conv_slots((8, 8, 1), 10, widths=(8, 16), slots=1)
  given = learners.classifier(digits(), small, steps=50, batch=32)
  start = stages.members(KEY, given, 4)
  point, separable = (list(OPS).index(op) for op in ('conv1', 'separable3'))
  two = [[CONV3, RELU, CONV3, RELU], [point, RELU, separable, RELU]]
  genes = jnp.repeat(jnp.array(two, start.member.genes.dtype), 2, axis=0)
  bodies = [
    given.init(jax.random.fold_in(KEY, i), own, {}, given.data)
    for i, own in enumerate(genes)
  ]
  body = jax.tree.map(lambda *leaves: jnp.stack(leaves), *bodies)
  start = start._replace(member=Member(body, genes))
  rates = jnp.array([1e-2, 0.0, 1e-2, 0.0])
  hyper = {'learning_rate': rates, 'smoothing': jnp.full(4, 0.05)}
  start = start._replace(member=start.member._replace(hyper=hyper))
  learn, look = stages.advance(given), stages.assess(given)
  with count_compilations() as first:
    begin, _ = look.update(KEY, learn.update(KEY, start, ())[0], ())
  last = begin
  # Other genes and hyper-parameters from here on.
  with count_compilations() as later:
    for i in range(2):
      own = jax.random.fold_in(KEY, i)
      last, _ = look.update(own, learn.update(own, last, ())[0], ())
    other = start._replace(
      member=start.member._replace(
        genes=(start.member.genes + 1) % 4,
        hyper={name: values * 2 for name, values in hyper.items()},
      )
    )
    look.update(KEY, learn.update(KEY, other, ())[0], ())
  return start, last, len(first), later


@pytest.mark.slow
def test_it_learns_digits_and_not_at_the_rate_zero(convolutional):
  start, last, _, _ = convolutional
  accuracy = last.metrics['accuracy']
  assert accuracy[0] > 0.75
  assert accuracy[1] < 0.3
  assert accuracy[2] > accuracy[3] + 0.1
  layers = [
    jax.tree.map(lambda leaf: leaf[1::2], members.member.body.layers)
    for members in (start, last)
  ]
  assert different(*layers) == 0


@pytest.mark.slow
def test_a_population_is_one_program_for_each_function(convolutional):
  _, _, first, later = convolutional
  assert first > 0
  # Small eager operations of the test itself apart, nothing is compiled anew.
  assert not [seconds for seconds in later if seconds > 0.5]


@pytest.mark.slow
def test_what_an_op_does_not_read_stays_zero(convolutional):
  start, last, _, _ = convolutional
  kernel = last.member.body.layers['stage0']['kernel']
  none = start.member.body.layers['stage0']['kernel'] == 0
  assert none.any()
  assert not kernel[none].any()
  # The control: what it reads, in members that learn, does not.
  moved = kernel != start.member.body.layers['stage0']['kernel']
  assert moved[::2][~none[::2]].mean() > 0.9


HYPER = ['learning_rate', 'weight_decay', 'smoothing', *images._COEFFICIENTS]


@pytest.mark.parametrize('name', [*HYPER, 'distillation'])
def test_members_own_settings_decide_how_they_learn(name):
  given = learner(objective=images.by_taylor)
  data = given.data
  if name == 'distillation':
    teacher = member(given, jax.random.key(7))
    teacher = images.Teacher(teacher.body.layers, teacher.genes, jnp.array(0.5))
    data = {**data, 'teacher': teacher}
  values = {'learning_rate': (1e-3, 5e-3), 'weight_decay': (0.0, 1.0)}
  # Away from zero: with c5 = c6 = 0 it does not matter where y is expanded.
  about = {'taylor_c5': 0.5, 'taylor_c6': 0.5}
  low, high = values.get(name, (0.1, 0.4))
  low, high = (
    trained_by(given)(KEY, member(given, **{**about, name: v}), data).layers
    for v in (low, high)
  )
  if name == 'taylor_c1':  # Predictions sum to one: no more than rounding.
    assert different(low, high) < 1e-2
    return
  assert different(low, high) > 2e-3


def test_a_setting_that_nothing_reads_changes_nothing():
  given = learner()
  one, two = (
    trained_by(given)(KEY, member(given, unread=v), given.data).layers
    for v in (0.1, 0.4)
  )
  assert different(one, two) == 0


def test_defaults_are_given_to_members_without_their_own():
  given = learner(learning_rate=0.02)
  default = trained_by(given)(KEY, member(given), given.data)
  own = trained_by(given)(KEY, member(given, learning_rate=0.02), given.data)
  slow = trained_by(given)(KEY, member(given, learning_rate=0.01), given.data)
  assert different(default.layers, own.layers) < 1e-5
  assert different(default.layers, slow.layers) > 1e-3


def test_a_teacher_pulls_the_student_to_its_predictions():
  given = learner()
  best = trained_by(given)(KEY, member(given, learning_rate=1e-2), given.data)
  wrong = {**best.layers, 'head': best.layers['head'][:, ::-1]}
  student = member(given, distillation=1.0, learning_rate=1e-2)

  def accuracy(layers, fitness):
    teacher = images.Teacher(layers, jnp.array([0]), jnp.array(fitness))
    data = {**given.data, 'teacher': teacher}
    body = trained_by(given)(KEY, student, data)
    for _ in range(3):
      body = trained_by(given)(KEY, student._replace(body=body), data)
    own = student._replace(body=body)
    return float(given.measure(KEY, own, data)['accuracy'])

  assert accuracy(best.layers, 0.9) > 0.7
  # It is the teacher that is learned from, and one without fitness is not.
  assert accuracy(wrong, 0.9) < 0.3
  assert accuracy(wrong, -np.inf) > 0.7


def test_measuring_is_of_all_examples_whatever_the_batch():
  given = learner()
  own = member(given, genes=(1,))
  found = given.measure(KEY, own, given.data)
  logits = mlp().apply(
    own.body.layers, own.genes, digits().prepare(digits().valid.inputs)
  )
  right = logits.argmax(axis=-1) == digits().valid.targets
  assert found['behaviour'].tolist() == right.astype(float).tolist()
  assert float(found['accuracy']) == pytest.approx(float(right.mean()))
  loss = digits().loss(logits, digits().valid.targets).mean()
  assert float(found['loss']) == pytest.approx(float(loss), rel=1e-5)
  for measured in (1000, 64, 1):
    other = learner(measured=measured).measure(KEY, own, given.data)
    for name in found:
      np.testing.assert_allclose(other[name], found[name], rtol=1e-5)


def test_fitness_is_accuracy_and_then_loss():
  given = learner()
  best = member(given)._replace(
    body=trained_by(given)(KEY, member(given), given.data)
  )
  layers = best.body.layers
  surer = {**layers, 'head': layers['head'] * 1.2}
  found = [
    given.measure(
      KEY, best._replace(body=best.body._replace(layers=held)), given.data
    )
    for held in (layers, surer)
  ]
  accuracy, loss, fitness = (
    [float(one[name]) for one in found]
    for name in ('accuracy', 'loss', 'fitness')
  )
  assert accuracy[0] == accuracy[1]
  assert loss[0] != loss[1]
  assert (fitness[0] > fitness[1]) == (loss[0] < loss[1])
  assert all(0 < f - a < 1 / 270 for f, a in zip(fitness, accuracy))


def test_a_member_that_diverged_has_no_fitness_though_an_accuracy():
  given = learner()
  own = member(given)
  layers = jax.tree.map(lambda w: w * jnp.nan, own.body.layers)
  found = given.measure(
    KEY, own._replace(body=own.body._replace(layers=layers)), given.data
  )
  assert jnp.isnan(found['fitness'])
  assert jnp.isfinite(found['accuracy'])
  assert jnp.isfinite(given.measure(KEY, own, given.data)['fitness'])


def test_only_the_test_reads_the_test_split():
  given = learner()
  own = member(given)
  split = given.data['test']
  other = {**given.data, 'test': Data(split.inputs[:50], split.targets[:50])}
  for name in ('fitness', 'loss'):
    assert (
      given.measure(KEY, own, other)[name]
      == given.measure(KEY, own, given.data)[name]
    )
  assert len(given.test(KEY, own, other)['behaviour']) == 50
  assert len(given.test(KEY, own, given.data)['behaviour']) == 359


@pytest.mark.parametrize('name', ['prepare', 'augment'])
def test_training_sees_images_prepared_and_augmented(name):
  black = {'prepare': lambda x: x * 0.0, 'augment': lambda key, x: x * 0.0}
  given = learners.classifier(
    digits()._replace(**{name: black[name]}), mlp(), steps=3
  )
  start = member(given)
  blind = trained_by(given)(KEY, start, given.data)
  assert different(blind.layers, start.body.layers) == 0
  seeing = trained_by(learner())(KEY, start, given.data)
  assert different(seeing.layers, start.body.layers) > 1e-3


def test_batches_are_epochs_one_after_another():
  rows = np.asarray(images._rows(KEY, 10, 7, 4)).ravel()
  assert len(rows) == 28
  for epoch in (rows[:10], rows[10:20]):
    assert sorted(epoch) == list(range(10))
  assert len({*rows[20:]}) == 8
  assert rows[:10].tolist() != rows[10:20].tolist()


def test_a_round_counts_its_examples():
  given = learner()
  start = stages.members(KEY, given, 2, {'learning_rate': Prior(1e-3, 1e-2)})
  last, _ = run(KEY, stages.advance(given), start, 3)
  assert last.spent.examples == 3 * 2 * 30 * 64


def test_nothing_to_do_is_refused():
  for name in ('steps', 'batch'):
    with pytest.raises(ValueError, match=f'{name} must be at least 1'):
      learners.classifier(digits(), mlp(), **{name: 0})
