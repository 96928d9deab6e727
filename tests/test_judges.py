"""The other judges: rules of thumb, chance, and building every move.

Each keeps the laws of an estimator and works in the same stages; their scores
are computed by hand, and on a trained network they are held against what the
moves do.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxnas import (
  combine,
  morphisms,
  network,
  plans,
  stages,
  tasks,
  testing,
  training,
)
from jaxnas import spec as specs
from jaxnas.base import Candidate, Data, Population
from jaxnas.estimators.brute_force import brute_force
from jaxnas.estimators.gauss_newton import gauss_newton
from jaxnas.estimators.heuristics import (
  batch_norm_scale,
  magnitude,
  mean_activation,
  random,
)
from jaxnas.run import count_compilations
from jaxnas.spaces import seeds

KEY = jax.random.key(0)
LOSS = optax.softmax_cross_entropy_with_integer_labels
SHAPE = (6, 6, 2)
CLASSES = 3

FREE = {  # These need no data.
  'magnitude': magnitude(),
  'batch_norm_scale': batch_norm_scale(),
  'random': random(),
}
JUDGES = {
  **FREE,
  'mean_activation': mean_activation(batch=4),
  'brute_force': brute_force(loss=LOSS, batch=4),
}
by_judge = pytest.mark.parametrize('name', JUDGES)


def _network(shape, *rows):
  """A network with random variables, of nodes one behind the other."""
  nodes = [specs.Node('x', specs.Input(shape))]
  for name, op, *inputs in rows:
    nodes.append(specs.Node(name, op, tuple(inputs) or (nodes[-1].name,)))
  spec = specs.Spec(tuple(nodes), nodes[-1].name)
  return testing.randomized(_fresh(spec))


def _fresh(spec):
  """Variables without compiling `init`; the kernels are zeros, scales ones."""

  def start(path, leaf):
    dtype = jnp.zeros(()).dtype
    return np.full(leaf.shape, float(path[-1].key == 'scale'), dtype)

  return jax.tree_util.tree_map_with_path(start, network.shapes(spec))


def _residual():
  """Every group has batch norms; two have two writers; 14 channels."""
  spec = seeds.resnet(CLASSES, shape=SHAPE, blocks=1, widths=(3, 4))
  return testing.randomized(_fresh(spec))


def _batch(count=7, seed=0, shape=SHAPE):
  rng = np.random.default_rng(seed)
  dtype = jnp.zeros(()).dtype
  inputs = rng.normal(size=(count, *shape)).astype(dtype)
  targets = rng.integers(CLASSES, size=count).astype(np.int32)
  return Data(jnp.asarray(inputs), jnp.asarray(targets))


def _moves(net):
  return [*stages.splits()(net), *stages.prunes()(net)]


def _fitted(net, moves, estimator=FREE['random']):
  nothing = [None] * len(moves)
  return estimator.fit(KEY, net, moves, nothing, None, ()).thetas


def _score(estimator, net, moves, data=None, thetas=None):
  if thetas is None:
    thetas = [None] * len(moves)
  return estimator.score(KEY, net, moves, thetas, data, estimator.init(net))


# What all of them promise.


@by_judge
def test_judges_keep_the_contract_of_estimators(name):
  net = _residual()
  moves = _moves(net)
  thetas = _fitted(net, moves)
  scores = testing.check_estimator(
    JUDGES[name], KEY, net, moves, _batch(), thetas=thetas
  )
  assert scores.coefficients.shape == (1, len(moves))
  assert scores.coefficients.dtype == np.float32
  assert not scores.coefficients.any()
  np.testing.assert_array_equal(scores.single(), scores.linear)
  assert len(set(scores.linear)) > len(moves) / 2
  cost = {'mean_activation': 7, 'brute_force': 7 * (len(moves) + 1)}
  assert scores.examples == cost.get(name, 0)
  assert scores.error.any() == (name in cost)


@by_judge
def test_fit_draws_what_is_not_given_and_keeps_what_is(name):
  net = _residual()
  moves = _moves(net)
  fit = JUDGES[name].fit
  found = fit(KEY, net, moves, [None] * len(moves), _batch(), 'state')
  assert found.examples == 0 and found.state == 'state'
  for move, theta in zip(moves, found.thetas, strict=True):
    move(net, theta)
    like = jax.eval_shape(move.init, net, KEY)
    assert jax.tree.map(np.shape, theta) == jax.tree.map(np.shape, like)
    values = jax.tree.leaves(theta)
    assert all(isinstance(leaf, np.ndarray) for leaf in values)
    assert all(leaf.any() for leaf in values) == move.preserves
  given = [jax.tree.map(lambda leaf: leaf + 1, t) for t in found.thetas]
  given[0] = None
  again = fit(KEY, net, moves, given, _batch(), ())
  same = jax.tree.map(np.array_equal, again.thetas[1:], given[1:])
  assert all(jax.tree.leaves(same))
  # By content: neither the order nor the company of the moves matters.
  (alone,) = fit(KEY, net, moves[3:4], [None], None, ()).thetas
  same = jax.tree.map(np.array_equal, alone, found.thetas[3])
  assert all(jax.tree.leaves(same))
  other = fit(jax.random.key(1), net, moves[3:4], [None], None, ()).thetas
  same = jax.tree.map(np.array_equal, other[0], found.thetas[3])
  assert not any(jax.tree.leaves(same))


@by_judge
def test_rules_choose_by_any_judge(name):
  """The same stages as for Gauss-Newton estimates, from end to end."""
  task = tasks.digits()
  spec = seeds.chain(task.shape, (3, 4), task.outputs)
  net = testing.randomized(_fresh(spec))
  judge = JUDGES[name]
  if name == 'brute_force':
    judge = brute_force(batch=32)
  start = combine.chain(
    stages.expand(stages.splits(), stages.prunes()),
    stages.learn(judge, task, examples=32),
    stages.judge(judge, task, examples=32),
  )
  alone = Population((Candidate(net),))
  judged, _ = start.update(KEY, alone, start.init(alone))
  assert len(judged.members) == 14
  cost = {'mean_activation': 32, 'brute_force': 32 * 15}
  assert judged.spent.examples == cost.get(name, 0)
  best = _best(judged.members, 2)
  linear = [judged.members[i].metrics['linear'] for i in best]
  for rule in (
    stages.independently(price=0.0, limit=2),
    stages.jointly(price=0.0, z=0.0, limit=2),
  ):
    choice = rule(judged.members)
    assert choice.indices == best
    assert choice.predicted == pytest.approx(sum(linear))
    stage = stages.choose(rule)
    chosen, _ = stage.update(KEY, judged, stage.init(judged))
    (member,) = chosen.members
    assert member.metrics['chosen'] == 2
    member.move(net, member.theta)
    realise = stages.realise()
    made, _ = realise.update(KEY, chosen, realise.init(chosen))
    (event,) = made.members[0].lineage
    # Importances are in no unit, so no loss change is said to be predicted.
    foretold = choice.predicted if name == 'brute_force' else None
    assert event.predicted == foretold
    assert not {'predicted', 'nats', 'chosen'} & set(made.members[0].metrics)


def _best(members, count):
  """The moves of least score, no channel twice."""
  found, seen = [], set()
  for i in np.argsort([m.metrics['linear'] for m in members]):
    if members[i].move.channels not in seen:
      found.append(int(i))
    seen.add(members[i].move.channels)
  return tuple(found[:count])


# Importances by hand.


def _dense():
  net = _network(
    (2,), ('dense', specs.Dense(3)), ('act', specs.Activation()),
    ('logits', specs.Dense(CLASSES)),
  )  # fmt: skip
  net.variables['params']['dense'] = {
    'kernel': np.array([[1, -2, 0], [3, 4, -5]], np.float32),
    'bias': np.array([1, -9, 7], np.float32),
  }
  return net


def _channels(group, *chosen):
  return [
    morphisms.prune({group: [c] if isinstance(c, int) else c}) for c in chosen
  ]


def test_magnitude_is_the_l1_norm_of_the_weights_that_make_a_channel():
  net = _dense()
  moves = [
    *_channels('dense', 0, 1, 2, [0, 2]),
    morphisms.split({'dense': [1]}),
    morphisms.split({'dense': [2, 0]}),
    morphisms.split({'dense': [1]}, mass=0.5),
  ]
  found = _score(magnitude(), net, moves)
  np.testing.assert_array_equal(found.linear, [4, 6, 5, 9, -6, -9, -6])
  # By signed sums or by squares, channel 2 would not be between the others.
  assert list(np.argsort(found.linear[:3])) == [0, 2, 1]


def test_magnitude_adds_up_the_writers_of_a_group_and_no_others():
  net = _network(
    (2,),
    ('one', specs.Dense(2)),
    ('two', specs.Dense(2), 'x'),
    ('add', specs.Add(), 'one', 'two'),
    ('next', specs.Dense(2)),
    ('logits', specs.Dense(CLASSES)),
  )
  params = net.variables['params']
  for name, kernel in (
    ('one', [[1, 0], [0, 1]]),
    ('two', [[-2, 8], [3, 0]]),
    ('next', [[-7, 0], [0, 0.5]]),
  ):
    params[name]['kernel'] = np.array(kernel, np.float32)
  moves = [*_channels('one', 0, 1), *_channels('next', 0, 1)]
  moves.append(morphisms.prune({'one': [0], 'next': [1]}))
  found = _score(magnitude(), net, moves)
  np.testing.assert_array_equal(found.linear, [6, 9, 7, 0.5, 6.5])


def test_magnitude_of_a_group_inside_a_longer_axis():
  """A layer's output that an add ties in part is several groups."""
  net = _network(
    (2,),
    ('wide', specs.Dense(5)),
    ('one', specs.Dense(2), 'x'),
    ('two', specs.Dense(3), 'x'),
    ('both', specs.Concat(), 'one', 'two'),
    ('add', specs.Add(), 'wide', 'both'),
    ('logits', specs.Dense(CLASSES)),
  )
  params = net.variables['params']
  norms = {n: np.abs(p['kernel']).sum(axis=0) for n, p in params.items()}
  moves = list(stages.prunes()(net))
  assert [m.channels[0][0] for m in moves] == ['wide.0'] * 2 + ['wide.1'] * 3
  np.testing.assert_allclose(
    _score(magnitude(), net, moves).linear,
    norms['wide'] + np.concatenate([norms['one'], norms['two']]),
    rtol=1e-6,
  )


def test_batch_norm_scale_is_the_mean_size_of_all_scales_of_a_channel():
  net = _network(
    (4, 4, 1),
    ('conv1', specs.Conv(2, use_bias=False)),
    ('bn1', specs.BatchNorm()),
    ('depth', specs.DepthwiseConv()),
    ('bn2', specs.BatchNorm()),
    ('twice', specs.Concat(), 'bn2', 'bn2'),
    ('bn3', specs.BatchNorm()),
    ('conv2', specs.Conv(2)),
    ('bn4', specs.BatchNorm()),
    ('flat', specs.Flatten()),
    ('logits', specs.Dense(CLASSES)),
  )
  params = net.variables['params']
  for name, scale in (
    ('bn1', [1, -2]),
    ('bn2', [3, 0]),
    ('bn3', [-1, 1, 7, 5]),
    ('bn4', [-3, 0.5]),
  ):
    params[name]['scale'] = np.array(scale, np.float32)
  moves = [
    *_channels('conv1', 0, 1),
    *_channels('conv2', 0, 1),
    morphisms.split({'conv2': [0, 1]}),
  ]
  found = _score(batch_norm_scale(), net, moves)
  np.testing.assert_array_equal(found.linear, [3, 2, 3, 0.5, -3.5])


def test_groups_without_batch_norm_are_refused_with_those_that_have_one():
  net = _network(
    (4, 4, 1),
    ('conv1', specs.Conv(2)),
    ('bn1', specs.BatchNorm()),
    ('conv2', specs.Conv(2)),
    ('gap', specs.GlobalPool()),
    ('logits', specs.Dense(CLASSES)),
  )
  _score(batch_norm_scale(), net, _channels('conv1', 0))
  with pytest.raises(ValueError) as caught:
    _score(batch_norm_scale(), net, _channels('conv2', 1))
  assert str(caught.value) == (
    "Prune(channels=(('conv2', (1,)),)): group 'conv2' has no batch norm; "
    "groups that can be judged are ['conv1']."
  )


def test_mean_activation_by_hand():
  net = _dense()  # Reads relu of (x + 3y + 1, -2x + 4y - 9, -5y + 7).
  data = Data(jnp.array([[1.0, 0.0], [0.0, 3.0]]), jnp.zeros(2, int))
  moves = [
    *_channels('dense', 0, 1, 2, [0, 1]),
    morphisms.split({'dense': [0]}),
  ]
  found = _score(mean_activation(), net, moves, data)
  # Channel 0 is read as 2, 10; channel 1 as 0, 3; channel 2 as 7, 0.
  np.testing.assert_allclose(found.linear, [52, 4.5, 24.5, 56.5, -52])
  deviations = np.array([48, 4.5, 24.5, 52.5, 48])
  np.testing.assert_allclose(found.error, deviations / np.sqrt(2))
  assert found.examples == 2
  sizes = _score(mean_activation(of=jnp.abs), net, moves, data)
  np.testing.assert_allclose(sizes.linear, [6, 1.5, 3.5, 7.5, -6])


def test_mean_activation_averages_positions_and_adds_up_where_it_is_read():
  """Padded, in batches, behind pools, concats and flattening, to 1e-5."""
  net = _network(
    SHAPE,
    ('conv1', specs.Conv(3)),
    ('act1', specs.Activation('silu')),
    ('pool', specs.Pool()),
    ('conv2', specs.Conv(3)),
    ('add', specs.Add(), 'pool', 'conv2'),
    ('twice', specs.Concat(), 'add', 'add'),
    ('conv3', specs.Conv(5)),
    ('act3', specs.Activation('softplus')),
    ('flat', specs.Flatten()),
    ('dense', specs.Dense(2)),
    ('logits', specs.Dense(CLASSES)),
  )
  data = _batch()
  values = network.walk(
    net.spec, network.caller(net.spec, net.variables), data.inputs
  )
  squares = {n: np.square(np.asarray(v, float)) for n, v in values.items()}
  # conv2 reads the pool; conv3 reads the sum, twice; dense reads positions.
  conv1 = squares['pool'] + 2 * squares['add']
  expected = np.concatenate(
    [
      conv1.mean(axis=(0, 1, 2)),
      squares['act3'].mean(axis=(0, 1, 2)),
      squares['dense'].mean(axis=0),
    ]
  )
  moves = list(stages.prunes()(net))
  assert len(moves) == 10
  found = {
    batch: _score(mean_activation(batch=batch), net, moves, data).linear
    for batch in (3, 7, 100)
  }
  for linear in found.values():
    np.testing.assert_allclose(linear, expected, rtol=1e-5)
  assert plans.padding(net.spec) != morphisms.identity()


def test_chance_depends_on_the_key_and_on_the_move_alone():
  net = _residual()
  moves = _moves(net)
  found = _score(random(), net, moves).linear
  assert len(set(found)) == len(moves)
  assert found.min() < -0.3 and found.max() > 0.3 and abs(found).max() <= 1
  alone = [_score(random(), net, [move]).linear[0] for move in moves]
  np.testing.assert_array_equal(alone, found)
  nothing = [None] * len(moves)
  other = random().score(jax.random.key(1), net, moves, nothing, None, ())
  assert not set(other.linear) & set(found)
  lighter = morphisms.split({'stem': [0]}, mass=0.2)
  assert _score(random(), net, [lighter]).linear != found[0]


# What cannot be judged is refused.


@pytest.mark.parametrize(
  'name', [n for n in JUDGES if n not in ('random', 'brute_force')]
)
def test_importances_refuse_other_moves_and_illegal_ones(name):
  net, data = _residual(), _batch()
  judge = JUDGES[name]
  with pytest.raises(ValueError, match=r'^Widen\(.*splits and prunes only'):
    _score(judge, net, [morphisms.widen({'stem': 6})], data)
  with pytest.raises(ValueError, match='channels 0 to 2, got'):
    _score(judge, net, _channels('stem', 0, 3), data)
  with pytest.raises(ValueError, match="no channel group 'stam'"):
    _score(judge, net, _channels('stam', 0), data)


def test_impossible_batches_are_refused():
  for judge in (mean_activation, brute_force):
    with pytest.raises(ValueError, match=f'{judge.__name__}: .* got batch=0'):
      judge(batch=0)


# Brute force.


@pytest.mark.slow
def test_brute_force_is_the_difference_of_built_losses(x64):
  """Splits, prunes, and moves of other kinds, to 1e-10."""
  del x64
  net, data = _residual(), _batch()
  moves = [
    *_moves(net),
    morphisms.split({'stem': [0, 1, 2], 'stage2_block1_conv1': [3]}),
    morphisms.widen({'stem': 8}),
    morphisms.insert('stem_act'),
    morphisms.remove('stage1_block1_conv1_act'),
    morphisms.compose(
      morphisms.insert('stem_act'), morphisms.prune({'insert': [1]})
    ),
  ]
  rng = np.random.default_rng(0)
  thetas = [
    jax.tree.map(lambda leaf: rng.normal(size=leaf.shape) / 2, theta)
    for theta in _fitted(net, moves)
  ]

  def losses(net):
    return np.asarray(LOSS(network.apply(net, data.inputs), data.targets))

  changes = np.stack([losses(m(net, t)) for m, t in zip(moves, thetas)], 1)
  changes = changes - losses(net)[:, None]
  judge = brute_force(loss=LOSS, batch=3)  # Two whole batches, and a third.
  found = _score(judge, net, moves, data, thetas)
  np.testing.assert_allclose(found.linear, changes.mean(axis=0), atol=1e-10)
  np.testing.assert_allclose(
    found.error, changes.std(axis=0) / np.sqrt(7), atol=1e-10
  )
  # Other parameters, or other examples, are seen.
  zero = [jax.tree.map(np.zeros_like, theta) for theta in thetas]
  unmoved = _score(judge, net, moves, data, zero).linear
  assert np.abs(unmoved[:14]).max() < 1e-10  # Splits at zero change nothing.
  assert np.median(np.abs(found.linear - unmoved)[:14]) > 1e-6
  fewer = jax.tree.map(lambda leaf: leaf[:6], data)
  off = np.abs(_score(judge, net, moves, fewer, thetas).linear - found.linear)
  assert np.median(off) > 1e-6


def _counted(net, data, judge):
  moves = _moves(net)
  thetas = _fitted(net, moves)
  with count_compilations() as compiled:
    _score(judge, net, moves, data, thetas)
  return len(compiled)


@pytest.mark.slow
def test_one_program_measures_all_splits_and_prunes():
  data, judge = _batch(5), brute_force(loss=LOSS)

  def net(size):
    return testing.randomized(_fresh(seeds.chain(SHAPE, (size, size), CLASSES)))

  assert [_counted(net(size), data, judge) for size in (9, 12, 15)] == [1, 0, 0]
  assert _counted(net(16), data, judge) == 1  # 17 channels need another.
  # Each in its own buckets, they would need one for every group and another.
  full = net(16)
  built = [
    m(full, t) for m, t in zip(_moves(full), _fitted(full, _moves(full)))
  ]
  own = {plans.padding(moved.spec)(moved, ()).spec for moved in built}
  assert len(own) == 3


def test_growth_inside_buckets_compiles_no_activations_and_weights_never():
  data = _batch(6)
  counts = {'mean_activation': [], **{name: [] for name in FREE}}
  for size in (9, 10, 16, 17):
    net = testing.randomized(_fresh(seeds.chain(SHAPE, (size, size), CLASSES)))
    for name, found in counts.items():
      found.append(_counted(net, data, JUDGES[name]))
  assert counts.pop('mean_activation') == [1, 0, 0, 1]
  del counts['random']  # Folds its key, once compiled.
  assert list(counts.values()) == [[0] * 4] * 2, counts


def test_brute_force_takes_no_parameters_only_where_none_are_drawn():
  net, data = _residual(), _batch()
  judge = JUDGES['brute_force']
  prune, split = _channels('stem', 1)[0], morphisms.split({'stem': [1]})
  (theta,) = _fitted(net, [prune])
  np.testing.assert_array_equal(
    _score(judge, net, [prune], data).linear,
    _score(judge, net, [prune], data, [theta]).linear,
  )
  with pytest.raises(ValueError, match=r'Split.* add learn\(\) before judge'):
    _score(judge, net, [prune, split], data)


def test_brute_force_refuses_illegal_moves_before_it_measures():
  def loss(outputs, targets):
    raise AssertionError('measured')

  net, data = _residual(), _batch()
  good, bad = _channels('stem', 0, 3)
  with pytest.raises(AssertionError, match='measured'):
    _score(brute_force(loss=loss), net, [good], data)
  with pytest.raises(ValueError, match='channels 0 to 2, got'):
    thetas = _fitted(net, [good]) * 2
    _score(brute_force(loss=loss), net, [good, bad], data, thetas)


# A trained network: what the judges know of what prunes do.


@pytest.fixture(scope='module')
def trained():
  task = tasks.digits()
  spec = seeds.chain(task.shape, (12, 'M', 16, 24, 24), task.outputs)
  net = network.init(spec, jax.random.key(0))
  fitted = training.fit(
    jax.random.key(1), net, task, optax.adam(3e-3), epochs=4, batch=64
  )
  data = training.draw(jax.random.key(2), task, 512)
  return network.to_host(fitted.net), data


def _ranks(estimate, true, names):
  """Spearman correlations over all moves, and the mean of those by group."""
  parts = [np.ones(len(names), bool)]
  parts += [names == name for name in np.unique(names)]
  whole, *single = [
    stats.spearmanr(estimate[rows], true[rows]).statistic for rows in parts
  ]
  return round(float(whole), 3), round(float(np.mean(single)), 3)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['prune', 'split'])
def test_rules_of_thumb_rank_moves_worse_than_gauss_newton(trained, kind):
  """Growth specification, 4.1 C: .99, and .28 for squares, -.11 for gamma.

  Over all groups, and within each, where the papers compare. Splits go along
  random directions.
  """
  net, data = trained
  propose = {'prune': stages.prunes(), 'split': stages.splits()}[kind]
  moves = list(propose(net))
  thetas = _fitted(net, moves)
  names = np.array([move.channels[0][0] for move in moves])
  true = _score(brute_force(), net, moves, data, thetas).linear
  judges = {
    'gauss_newton': gauss_newton(batch=128),
    'magnitude': magnitude(),
    'batch_norm_scale': batch_norm_scale(),
    'mean_activation': mean_activation(),
    'random': random(),
  }
  ranks = {
    name: _ranks(_score(judge, net, moves, data, thetas).single(), true, names)
    for name, judge in judges.items()
  }
  print(f'Spearman over {len(moves)} moves ({kind}), within groups:', ranks)
  whole, within = ranks['gauss_newton']
  assert whole >= 0.95 and within >= 0.9, ranks
  others = [rank for name, rank in ranks.items() if name != 'gauss_newton']
  assert all(w < whole - 0.1 and i < within - 0.1 for w, i in others), ranks
  # Over 20 keys chance correlates with nothing, to three deviations.
  draws = [
    random().score(jax.random.key(seed), net, moves, thetas, data, ()).linear
    for seed in range(20)
  ]
  chance = np.mean([_ranks(draw, true, names)[0] for draw in draws])
  assert abs(chance) < 3 / np.sqrt(20 * (len(moves) - 1)), chance
