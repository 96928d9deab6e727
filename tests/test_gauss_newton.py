"""Gauss-Newton estimates: the identity they rest on, their algebra, and how
well they tell what a move does to the loss of a trained network.

Specification: growth, sections 1.3 and 4.2. Identities hold in float64.
"""

import functools
import itertools
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxnas import (
  groups,
  morphisms,
  network,
  plans,
  stages,
  tasks,
  testing,
  training,
)
from jaxnas import spec as specs
from jaxnas.base import Candidate, Data, rng
from jaxnas.estimators import (
  first_order,
  flat,
  gauss_newton,
  linearised,
  softmax_exact,
  softmax_labels,
  softmax_sketch,
  squares_exact,
  tangents,
)
from jaxnas.estimators.injection import deltas, injected_loss, twins
from jaxnas.morphisms import base, depth, outgoing, several, width
from jaxnas.run import count_compilations
from jaxnas.spaces import seeds

LOSS = optax.softmax_cross_entropy_with_integer_labels
SHAPE = (6, 6, 2)
CLASSES = 3


# Networks in which a split goes through one thing each.


def _nodes(*rows):
  nodes = [specs.Node('x', specs.Input(SHAPE))]
  for name, op, *inputs in rows:
    nodes.append(specs.Node(name, op, tuple(inputs) or (nodes[-1].name,)))
  return specs.Spec(tuple(nodes), nodes[-1].name)


def _head():
  return ('gap', specs.GlobalPool()), ('logits', specs.Dense(CLASSES))


def _max_pool(act):
  return _nodes(
    ('conv1', specs.Conv(4)),
    ('act1', act),
    ('pool', specs.Pool('max')),
    ('conv2', specs.Conv(3)),
    ('act2', act),
    *_head(),
  )


def _depthwise(act):
  return _nodes(
    ('conv1', specs.Conv(4, use_bias=False)),
    ('bn1', specs.BatchNorm()),
    ('act1', act),
    ('depth', specs.DepthwiseConv(use_bias=False)),
    ('bn2', specs.BatchNorm()),
    ('act2', act),
    ('conv2', specs.Conv(3, (1, 1))),
    ('act3', act),
    *_head(),
  )


def _batch_norm(act):
  return _nodes(
    ('conv1', specs.Conv(4, use_bias=False)),
    ('bn1', specs.BatchNorm()),
    ('act1', act),
    ('conv2', specs.Conv(3, use_bias=False)),
    ('bn2', specs.BatchNorm()),
    ('act2', act),
    *_head(),
  )


def _dropout(act):
  return _nodes(
    ('conv1', specs.Conv(4)),
    ('act1', act),
    ('drop1', specs.Dropout(0.5)),
    ('conv2', specs.Conv(3)),
    ('act2', act),
    ('drop2', specs.Dropout(0.5)),
    *_head(),
  )


def _residual(act):
  return _nodes(
    ('conv1', specs.Conv(4)),
    ('bn1', specs.BatchNorm()),
    ('act1', act),
    ('conv2', specs.Conv(3)),
    ('act2', act),
    ('conv3', specs.Conv(4)),
    ('bn3', specs.BatchNorm()),
    ('add', specs.Add(), 'act1', 'bn3'),
    ('act3', act),
    *_head(),
  )


def _concat(act):
  return _nodes(
    ('conv1', specs.Conv(4)),
    ('act1', act),
    ('conv2', specs.Conv(3)),
    ('act2', act),
    ('both', specs.Concat(), 'act1', 'act2', 'act1'),
    ('bn', specs.BatchNorm()),
    ('conv3', specs.Conv(2)),
    ('act3', act),
    *_head(),
  )


def _flatten(act):
  return _nodes(
    ('conv1', specs.Conv(4, strides=(2, 2))),
    ('act1', act),
    ('flat', specs.Flatten()),
    ('dense', specs.Dense(3)),
    ('act2', act),
    ('logits', specs.Dense(CLASSES)),
  )


def _everything(act):
  """A spec in which a split goes through all of these."""
  return _nodes(
    ('conv1', specs.Conv(3, strides=(2, 2), use_bias=False)),
    ('bn1', specs.BatchNorm()),
    ('act1', act),
    ('depth', specs.DepthwiseConv()),
    ('conv2', specs.Conv(3)),
    ('add', specs.Add(), 'act1', 'conv2'),
    ('both', specs.Concat(), 'add', 'depth', 'add'),
    ('act2', act),
    ('conv3', specs.Conv(5, (1, 1), use_bias=False)),
    ('act3', act),
    ('drop', specs.Dropout(0.5)),
    ('flat', specs.Flatten()),
    ('dense', specs.Dense(3)),
    ('act4', act),
    ('logits', specs.Dense(CLASSES)),
  )


KINDS = {
  'max pool': _max_pool,
  'depthwise and batch norm': _depthwise,
  'batch norm': _batch_norm,
  'dropout': _dropout,
  'residual group': _residual,
  'concat': _concat,
  'flatten to dense': _flatten,
  'everything': _everything,
}


# Of the kinds, 'everything' has them all in one network; those that fail alone
# are told apart by the slow ones.
EACH_KIND = pytest.mark.parametrize(
  'kind',
  [
    kind
    if kind in ('everything', 'max pool', 'residual group')
    else pytest.param(kind, marks=pytest.mark.slow)
    for kind in sorted(KINDS)
  ],
)


def _random_net(spec, seed=0):
  """A float64 network with random biases and batch statistics."""

  def start(path, leaf):
    return np.full(leaf.shape, float(path[-1].key == 'scale'))

  net = jax.tree_util.tree_map_with_path(start, network.shapes(spec))
  return testing.randomized(net, jax.random.key(seed))


def _batch(count=5, seed=0, shape=SHAPE, classes=CLASSES):
  rng = np.random.default_rng(seed)
  inputs = rng.normal(size=(count, *shape))
  targets = rng.integers(classes, size=count).astype(np.int32)
  return Data(jnp.asarray(inputs), jnp.asarray(targets))


def _directions(net, move, rng, scale=0.5):
  """A random theta of a split."""
  shapes = jax.eval_shape(move.init, net, jax.random.key(0))
  return jax.tree.map(lambda s: scale * rng.normal(size=s.shape), shapes)


def _everywhere(net, moves, thetas):
  """Directions of all channels, as `injected_loss` takes them."""
  return several.scatter(net, moves, thetas).directions


def _losses(net, data):
  return LOSS(network.apply(net, data.inputs), data.targets)


# The identity: the injected loss is the loss of the built network.


def _assert_identity(net, channels, mass, seed, make=morphisms.split):
  move = make(channels, mass=mass)
  theta = _directions(net, move, np.random.default_rng(seed))
  data = _batch(seed=seed)
  built = _losses(move(net, theta), data)
  spread = several.scatter(net, [move], [theta])
  rows = spread.outgoing if make is morphisms.free_split else None
  injected = injected_loss(net, spread.directions, mass, LOSS, *data, rows)
  np.testing.assert_allclose(injected, built, rtol=0, atol=1e-10)
  return built - _losses(net, data)


SPLITS = {'split': morphisms.split, 'free split': morphisms.free_split}


@pytest.mark.slow
@given(
  make=st.sampled_from(sorted(SPLITS)),
  kind=st.sampled_from(sorted(KINDS)),
  fn=st.sampled_from(['relu', 'gelu', 'silu']),
  mass=st.sampled_from([0.3, 0.5, 0.7]),
  seed=st.integers(0, 2**16),
  data=st.data(),
)
@settings(max_examples=32)
def test_injected_loss_is_the_loss_of_the_built_network(
  x64, make, kind, fn, mass, seed, data
):
  """For one channel, several of a layer, and any number of layers at once."""
  del x64
  spec = KINDS[kind](specs.Activation(fn))
  channels = {}
  for group in groups.growable(spec):
    some = st.sets(st.integers(0, group.size - 1))
    if chosen := data.draw(some, label=group.name):
      channels[group.name] = sorted(chosen)
  if channels:
    _assert_identity(
      _random_net(spec, seed), channels, mass, seed, SPLITS[make]
    )


@EACH_KIND
def test_splits_of_all_channels_of_all_layers_inject_exactly(x64, kind):
  """The free outgoing weights change what plain splits would do."""
  del x64
  spec = KINDS[kind](specs.Activation('gelu'))
  channels = {g.name: range(g.size) for g in groups.growable(spec)}
  assert len(channels) > 1
  changes = [
    _assert_identity(_random_net(spec), channels, 0.3, 1, make)
    for make in SPLITS.values()
  ]
  plain, free = changes
  assert np.abs(plain).max() > 1e-2
  assert np.abs(plain - free).max() > 1e-2


def test_free_outgoing_weights_of_silent_twins_change_nothing(x64):
  """With no direction the twins are equal, and what one gains one loses."""
  del x64
  net = _random_net(_everything(specs.Activation('relu')))
  move, data = morphisms.free_split({'conv1': [0, 2]}), _batch()
  theta = _directions(net, move, np.random.default_rng(0))
  still = {**theta, 'incoming': base.zeros(theta['incoming'])}
  unchanged = _losses(net, data)
  np.testing.assert_allclose(
    _losses(move(net, still), data), unchanged, rtol=0, atol=1e-12
  )
  assert np.abs(_losses(move(net, theta), data) - unchanged).max() > 1e-2


@pytest.mark.parametrize(
  'kind, site', [('max pool', 'act1'), ('depthwise and batch norm', 'act1')]
)
def test_injecting_before_pool_or_depthwise_is_wrong(x64, kind, site):
  """The twins' mean must be taken where the readers read, not earlier."""
  del x64
  net = _random_net(KINDS[kind](specs.Activation('silu')))
  move = morphisms.split({'conv1': range(4)})
  theta = _directions(net, move, np.random.default_rng(0))
  data = _batch()
  call = network.caller(net.spec, net.variables)
  everywhere = _everywhere(net, [move], [theta])
  linear = deltas(net.spec, net.variables, everywhere)
  means = twins(net.spec, call, linear, 0.3, data.inputs).means

  def early(node, *inputs):
    return means[site] if node.name == site else call(node, *inputs)

  values = network.walk(net.spec, early, data.inputs)
  wrong = LOSS(values[net.spec.output], data.targets)
  built = _losses(move(net, theta), data)
  change = np.abs(built - _losses(net, data)).max()
  assert np.abs(wrong - built).max() > 0.1 * change
  assert change > 1e-2


# The algebra of the estimates.


@pytest.mark.parametrize('classes', [2, 3, 5])
def test_factor_has_the_hessian_as_mean_outer_product(
  x64, monkeypatch, classes
):
  """Over all Rademacher signs, so exactly."""
  del x64
  signs = np.array(list(itertools.product([-1.0, 1.0], repeat=classes)))
  monkeypatch.setattr(
    jax.random,
    'rademacher',
    lambda key, shape, dtype: signs[None].astype(dtype),
  )
  logits = np.random.default_rng(0).normal(size=classes)
  tiled = jnp.asarray(np.tile(logits, (len(signs), 1)))
  (vectors,) = softmax_sketch()(jax.random.key(0), tiled)
  p = jax.nn.softmax(logits)
  hessian = np.diag(p) - np.outer(p, p)
  np.testing.assert_allclose(
    vectors.T @ vectors / len(signs), hessian, rtol=0, atol=1e-15
  )


def _split_path(net, move, theta, inputs):
  """Logits as a function of t, the split's difference injected t times."""
  spec = net.spec
  call = network.caller(spec, net.variables)
  spread = several.scatter(net, [move], [theta])
  linear = deltas(spec, net.variables, spread.directions)
  free = deltas(spec, net.variables, spread.outgoing)
  values = network.walk(spec, call, inputs)
  found = twins(spec, call, linear, move.mass, inputs, values)

  def read(t, source, value):
    if source not in found.means:
      return value
    return value + t * (found.means[source] - values[source])

  def write(t, node, *inputs):
    value = call(node, *inputs)
    if node.op.kind != 'mixing' or node.inputs[0] not in found.held:
      return value
    first, second = found.held[node.inputs[0]]
    return value + t * free(node, first - second)

  def logits(t):
    at_t = functools.partial(write, t), inputs, functools.partial(read, t)
    return network.walk(spec, *at_t)[spec.output]

  return logits


def _stand_ins(net, move, theta, source):
  """A matrix on a source's channels: what stands in for those that go."""
  axis = groups.table(net.spec).axes[source]
  matrix = np.eye(sum(axis.sizes) * axis.repeat)
  for name, chosen in move.channels:
    if name not in axis.groups:
      continue
    size = groups.table(net.spec).groups[name].size
    places = width.positions(net.spec, source, name, range(size))
    for copy in places.reshape((-1, size)):
      matrix[:, copy[list(chosen)]] = 0
      if isinstance(move, outgoing.Merge):
        for row, c in zip(theta['shares'][name], chosen):
          others = np.arange(size) != c
          matrix[copy[others], copy[c]] = row[others]
  return matrix


def _prune_path(net, move, theta, inputs):
  """Logits as a function of t: unchanged at 0, and at 1 those of the pruned
  or merged network; in between readers read 1 - t of the channels that go and
  t of their mixture, and t of the means is added to what they write.
  """
  spec = net.spec
  call = network.caller(spec, net.variables)
  means = theta['means'] if isinstance(move, outgoing.Merge) else theta

  def read(t, source, value):
    return value + t * (value @ _stand_ins(net, move, theta, source) - value)

  def write(t, node, *inputs):
    value = call(node, *inputs)
    if node.name not in means:
      return value
    kernel = net.variables['params'][node.name]['kernel']
    taps = kernel.reshape((-1, *kernel.shape[-2:])).sum(axis=0)
    lost = taps[move.dropped(spec, node.name)]
    constant = means[node.name] @ lost
    return value + t * jnp.expand_dims(constant, range(value.ndim - 1))

  def logits(t):
    at_t = functools.partial(write, t), inputs, functools.partial(read, t)
    return network.walk(spec, *at_t)[spec.output]

  return logits


def _insert_path(net, move, theta, inputs):
  """Logits of the network with the block, its gate at t times its opening."""
  moved, gate = move(net, theta), move.names(net.spec)['_gate']
  params = moved.variables['params']
  opening = params[gate]['alpha']

  def logits(t):
    held = {**params, gate: {'alpha': t * opening}}
    variables = {**moved.variables, 'params': held}
    return network.apply(network.Network(variables, moved.spec), inputs)

  return logits


def _path(net, move, theta, inputs):
  if isinstance(move, depth.Insert):
    return _insert_path(net, move, theta, inputs)
  kind = isinstance(move, width.Split)
  return (_split_path if kind else _prune_path)(net, move, theta, inputs)


def _along(net, move, theta, data):
  """Exact (batch,) directional derivative of the loss, `q^T H q`, and the
  change of the loss of the linearised network."""
  logits = _path(net, move, theta, data.inputs)
  f, q = jax.jvp(logits, (0.0,), (1.0,))
  p = jax.nn.softmax(f)
  one_hot = jax.nn.one_hot(data.targets, p.shape[-1], dtype=p.dtype)
  curvature = (p * q * q).sum(-1) - jnp.square((p * q).sum(-1))
  linearised = LOSS(f + q, data.targets) - LOSS(f, data.targets)
  return ((p - one_hot) * q).sum(-1), curvature, linearised


def _all_moves(net, mass=0.3, seed=0):
  """Moves of every kind, with random parameters and open gates.

  Every channel is split and removed, in turn plainly and freely, plainly and
  by a merge.
  """
  rng = np.random.default_rng(seed)
  moves = list(stages.splits(mass=mass)(net))[::2]
  moves += list(stages.splits(morphisms.free_split, mass=mass)(net))[1::2]
  moves += list(stages.prunes()(net))[::2]
  moves += list(stages.prunes(morphisms.merge)(net))[1::2]
  moves += stages.inserts(activation='silu', kernel=(1, 3))(net)
  moves += list(stages.inserts(activation='relu', norm=True)(net))[:1]
  return moves, [_directions(net, move, rng) for move in moves]


@pytest.mark.slow
def test_along_its_path_every_move_comes_to_the_network_it_builds(x64):
  """Of every kind, so derivatives at the start of the path are the move's."""
  del x64
  net, data = _random_net(_everything(specs.Activation('silu'))), _batch()
  moves, thetas = _all_moves(net)
  kinds = {type(move).__name__ for move in moves}
  assert kinds == {'Split', 'FreeSplit', 'Prune', 'Merge', 'Insert'}
  before = network.apply(net, data.inputs)
  for move, theta in zip(moves, thetas):
    path = _path(net, move, theta, data.inputs)
    built = network.apply(move(net, theta), data.inputs)
    np.testing.assert_allclose(path(0.0), before, rtol=0, atol=1e-12)
    assert np.abs(built - before).max() > 1e-4
    if isinstance(move, width.Split) and move.channels[0][0] == 'conv1':
      continue  # Of two writers, of which one reads what the other wrote.
    np.testing.assert_allclose(path(1.0), built, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['everything', 'residual group'])
def test_all_adjoints_give_what_each_moves_own_tangent_gives(x64, kind):
  """Routes B and A: linear parts, curvature, and every entry of the Gram
  matrix between moves of all kinds; and both are derivatives along a path."""
  del x64
  net = _random_net(KINDS[kind](specs.Activation('silu')))
  moves, thetas = _all_moves(net)
  data = _batch()
  adjoint, tangent = (
    make(factor=softmax_exact()).score(
      jax.random.key(0), net, moves, thetas, data, ()
    )
    for make in (gauss_newton, tangents)
  )
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(adjoint.coefficients, tangent.coefficients)
  gram = [s.coefficients.T @ s.coefficients for s in (adjoint, tangent)]
  close(*gram)
  kinds = np.array([type(move).__name__ for move in moves])
  for one, two in itertools.combinations(sorted(set(kinds)), 2):
    block = gram[0][kinds == one][:, kinds == two]
    assert np.abs(block).max() > 1e-4, (one, two)
  for i, (move, theta) in enumerate(zip(moves, thetas)):
    slope, curvature, linearised = _along(net, move, theta, data)
    close(adjoint.linear[i], slope.mean())
    squares = np.square(adjoint.coefficients[:, i]).mean()
    close(squares, curvature.mean())
    close(tangent.single()[i], linearised.mean())
  assert np.abs(tangent.single() - adjoint.single()).max() > 1e-4


@pytest.mark.slow
def test_for_squared_errors_the_linearised_network_is_the_parabola(x64):
  """For cross-entropy it is not, see above."""
  del x64
  net = _random_net(_flatten(specs.Activation('silu')))
  moves, thetas = _all_moves(net)
  inputs, _ = _batch()
  targets = np.random.default_rng(1).normal(size=(len(inputs), CLASSES))
  arguments = (
    jax.random.key(0), net, moves, thetas, Data(inputs, targets), ()
  )  # fmt: skip
  loss = tasks.squared_error
  linearised = tangents(loss=loss).score(*arguments)
  adjoint = gauss_newton(loss=loss, factor=squares_exact()).score(*arguments)
  residual = network.apply(net, inputs) - targets
  for i, (move, theta) in enumerate(zip(moves, thetas)):
    path = _path(net, move, theta, inputs)
    _, q = jax.jvp(path, (0.0,), (1.0,))
    linear = (residual * q).sum(axis=-1).mean()
    parabola = linear + jnp.square(q).sum(axis=-1).mean() / 2
    for scores in (linearised, adjoint):
      np.testing.assert_allclose(scores.linear[i], linear, atol=1e-10)
      np.testing.assert_allclose(scores.single()[i], parabola, atol=1e-10)


@pytest.mark.parametrize('loss', [LOSS, tasks.squared_error])
def test_the_linearised_change_of_a_set_is_that_of_its_summed_tangent(
  x64, loss
):
  """Of single moves it is `tangents`; of sets, for squared errors, the
  parabola with its interactions, which the sum of single changes is not."""
  del x64
  net = _random_net(_flatten(specs.Activation('silu')))
  moves, thetas = _all_moves(net)
  data = _batch()
  if loss is tasks.squared_error:
    targets = np.random.default_rng(1).normal(size=(len(data.inputs), CLASSES))
    data = Data(data.inputs, targets)
  sets = [[i] for i in range(len(moves))] + [[0, len(moves) - 1], [], [1, 2, 5]]
  found = linearised(net, moves, thetas, sets, data, loss=loss)
  scores = tangents(loss=loss).score(
    jax.random.key(0), net, moves, thetas, data, ()
  )
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-10)
  close(found[: len(moves)], scores.single())
  assert found[-2] == 0
  for chosen, change in zip(sets, found):
    rho = scores.coefficients[:, chosen].sum(axis=1)
    parabola = scores.linear[chosen].sum() + np.square(rho).mean() / 2
    if loss is tasks.squared_error:
      close(change, parabola)
  alone = scores.single()[sets[-1]].sum()
  assert abs(found[-1] - alone) > 1e-4


def test_sets_of_moves_that_are_not_there_are_refused():
  net = _random_net(_flatten(specs.Activation('relu')))
  moves, thetas = _all_moves(net)
  with pytest.raises(ValueError, match=r'from 0, got \[-1, 99\]'):
    linearised(net, moves, thetas, [[0, -1], [99]], _batch())


@pytest.mark.slow
def test_label_smoothing_changes_the_linear_part_only(x64):
  del x64
  net = _random_net(_flatten(specs.Activation('silu')))
  moves, thetas = _all_moves(net)
  arguments = jax.random.key(0), net, moves, thetas, _batch(), ()
  hard, smooth = (
    gauss_newton(loss=loss).score(*arguments)
    for loss in (tasks.cross_entropy, tasks.SmoothedCrossEntropy(0.2))
  )
  np.testing.assert_array_equal(hard.coefficients, smooth.coefficients)
  assert np.abs(hard.linear - smooth.linear).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('factor', [softmax_sketch, softmax_labels])
def test_scores_are_unbiased_for_the_exact_parts_of_every_move(x64, factor):
  """Linear parts exactly; 512 draws of each example's curvature to 4 SE."""
  del x64
  net = _random_net(_everything(specs.Activation('silu')))
  moves, thetas = _all_moves(net)
  data, repeats, draws = _batch(3), 256, 2
  tiled = jax.tree.map(lambda leaf: jnp.concatenate([leaf] * repeats), data)
  scores = gauss_newton(factor=factor(draws)).score(
    jax.random.key(0), net, moves, thetas, tiled, ()
  )
  exact = [_along(net, *pair, data) for pair in zip(moves, thetas)]
  slope, curvature, _ = (np.stack(part, axis=1) for part in zip(*exact))
  np.testing.assert_allclose(scores.linear, slope.mean(axis=0), atol=1e-12)
  squares = np.square(scores.coefficients).reshape((-1, *curvature.shape))
  assert len(squares) == repeats * draws == 512
  error = squares.std(axis=0) / np.sqrt(len(squares))
  off = np.abs(squares.mean(axis=0) - curvature)
  assert (off <= 4 * error + 1e-12).all()
  assert curvature.max() > 1e-3


@pytest.mark.slow
def test_gauss_newton_is_the_full_hessian_of_a_relu_network(x64):
  """Piecewise linear downstream, so the second derivative is `q^T H q`;
  with SiLU it is not."""
  del x64
  gaps = {}
  for fn in ('relu', 'silu'):
    net = _random_net(KINDS['batch norm'](specs.Activation(fn)))
    data, worst = _batch(4), 0.0
    moves, thetas = _all_moves(net)
    for move, theta in zip(moves[::4], thetas[::4]):
      logits = _path(net, move, theta, data.inputs)

      def loss(t, logits=logits, targets=data.targets):
        return LOSS(logits(t), targets)

      def slope(t, loss=loss):
        return jax.jvp(loss, (t,), (1.0,))[1]

      _, second = jax.jvp(slope, (0.0,), (1.0,))
      _, curvature, _ = _along(net, move, theta, data)
      worst = max(worst, np.abs(second - curvature).max())
    gaps[fn] = worst
  assert gaps['relu'] <= 1e-8 < 1e-3 < gaps['silu']


# Prunes and what stands in for the pruned.

READERS = {
  'conv with bias': (('conv2', specs.Conv(3)),),
  'strided conv with bias': (('conv2', specs.Conv(3, strides=(2, 2))),),
  'batch norm behind': (
    ('conv2', specs.Conv(3, use_bias=False)),
    ('bn2', specs.BatchNorm()),
  ),
  'neither': (('conv2', specs.Conv(3, use_bias=False)),),
}


@pytest.mark.parametrize(
  'reader',
  [
    'batch norm behind',
    'strided conv with bias',
    pytest.param('conv with bias', marks=pytest.mark.slow),
    pytest.param('neither', marks=pytest.mark.slow),
  ],
)
def test_prune_scores_the_move_that_prune_makes(x64, reader):
  """Next to zero padding too, where the means compensate too much."""
  del x64
  act = specs.Activation('relu')
  spec = _nodes(
    ('conv1', specs.Conv(4)), ('act1', act), *READERS[reader], ('act2', act),
    *_head(),
  )  # fmt: skip
  net, data = _random_net(spec), _batch()
  moves = [
    *(morphisms.prune({'conv1': [c]}) for c in range(4)),
    *(morphisms.prune({'conv2': [c]}) for c in range(3)),
  ]
  estimator = gauss_newton()
  fitted = estimator.fit(
    jax.random.key(0), net, moves, [None] * len(moves), data, ()
  )
  judged = estimator.score(
    jax.random.key(1), net, moves, fitted.thetas, data, ()
  )
  values = network.walk(spec, network.caller(spec, net.variables), data.inputs)
  for move, theta, linear in zip(moves, fitted.thetas, judged.linear):
    (group, (channel,)) = move.channels[0]
    mean = values[{'conv1': 'act1', 'conv2': 'gap'}[group]].mean(
      axis=(0, 1, 2) if group == 'conv1' else 0
    )
    reads = {'conv1': 'conv2', 'conv2': 'logits'}[group]
    if reads == 'conv2' and reader == 'neither':
      assert theta == {}
    else:
      np.testing.assert_allclose(theta[reads], mean[channel], rtol=1e-12)
    slope, *_ = _along(net, move, theta, data)
    np.testing.assert_allclose(linear, slope.mean(), rtol=1e-10)
    built = network.apply(move(net, theta), data.inputs)
    path = _path(net, move, theta, data.inputs)
    np.testing.assert_allclose(path(1.0), built, atol=1e-12)


def test_means_compensate_most_of_what_a_prune_loses(x64):
  del x64
  net, data = _random_net(_batch_norm(specs.Activation('relu'))), _batch(64)
  moves = list(stages.prunes()(net))
  thetas = (
    gauss_newton()
    .fit(jax.random.key(0), net, moves, [None] * len(moves), data, ())
    .thetas
  )
  before = _losses(net, data)

  def change(move, theta):
    return np.abs(_losses(move(net, theta), data) - before).mean()

  with_means = sum(map(change, moves, thetas))
  without = sum(map(change, moves, map(base.zeros, thetas)))
  assert with_means < 0.7 * without


def test_prunes_are_scored_where_nothing_absorbs_their_means(x64):
  del x64
  spec = _nodes(
    ('conv1', specs.Conv(4)),
    ('act1', specs.Activation('relu')),
    ('gap', specs.GlobalPool()),
    ('logits', specs.Dense(CLASSES, use_bias=False)),
  )
  net, data = _random_net(spec), _batch()
  moves = list(stages.prunes()(net))
  assert all(m.init(net, jax.random.key(0)) == {} for m in moves)
  judged = gauss_newton().score(
    jax.random.key(0), net, moves, [{}] * len(moves), data, ()
  )
  for move, linear in zip(moves, judged.linear, strict=True):
    slope, *_ = _along(net, move, {}, data)
    np.testing.assert_allclose(linear, slope.mean(), rtol=1e-10)
    assert abs(linear) > 1e-4


@pytest.mark.slow
def test_what_is_learned_for_some_moves_is_not_learned_for_others(x64):
  """Free splits among splits, and merges among prunes: the plain ones end as
  they do alone."""
  del x64
  net, data = _random_net(_batch_norm(specs.Activation('gelu'))), _batch(16)

  def fit(moves):
    found = gauss_newton(steps=5, factor=softmax_exact()).fit(
      jax.random.key(0), net, moves, [None] * len(moves), data, ()
    )
    return dict(zip(moves, found.thetas, strict=True))

  def alternate(plain, other):
    return [*plain[::2], *other[1::2]]

  splits, prunes = list(stages.splits()(net)), list(stages.prunes()(net))
  free = list(stages.splits(morphisms.free_split)(net))
  merges = list(stages.prunes(morphisms.merge)(net))
  plain = fit(splits + prunes)
  found = fit(alternate(splits, free) + alternate(prunes, merges))
  for move in splits[::2] + prunes[::2]:
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12),
      found[move],
      plain[move],
    )
  for move in free[1::2]:
    assert all(r.any() for r in jax.tree.leaves(found[move]['outgoing']))
  for move in merges[1::2]:
    assert all(r.any() for r in jax.tree.leaves(found[move]['shares']))


# Merges: what a channel can be made of, it can be replaced by.


def _merged_change(net, move, theta, data):
  return np.abs(_losses(move(net, theta), data) - _losses(net, data)).max()


@EACH_KIND
def test_a_duplicate_is_merged_at_no_loss(x64, kind):
  """Of two and of three equal channels, whatever is read and how often."""
  del x64
  net, data = _random_net(KINDS[kind](specs.Activation('gelu'))), _batch()
  for group in groups.growable(net.spec):
    size = group.size
    one = morphisms.split({group.name: [1]}, mass=0.3)
    two = morphisms.split({group.name: [size]}, mass=0.4)
    three = morphisms.compose(one, two)
    theta = base.zeros(three.init(net, jax.random.key(0)))
    wide = jax.tree.map(np.asarray, three(net, theta))
    # Channels 1, size and size + 1 are one; the middle one leans on both.
    for chosen, rows in (
      ([size + 1], {0: {1: 1.0}}),
      ([1], {0: {size: 0.25, size + 1: 0.75}}),
      ([size, 1], {0: {1: 0.5, size + 1: 0.5}, 1: {size: 1.0}}),
    ):
      move = morphisms.merge({group.name: chosen})
      shares = move.init(wide, jax.random.key(0))
      shares = jax.tree.map(np.array, shares)
      for row, parts in rows.items():
        for channel, share in parts.items():
          shares['shares'][group.name][row, channel] = share
      assert _merged_change(wide, move, shares, data) <= 1e-9
      plain = morphisms.prune({group.name: chosen})
      zero = plain.init(wide, jax.random.key(0))
      assert _merged_change(wide, plain, zero, data) > 1e-4, (group, chosen)


def test_channels_that_lean_on_each_other_and_on_a_constant_are_merged(x64):
  """Five affine channels of three inputs: any two are made of the others."""
  del x64
  net = _random_net(
    specs.Spec(
      (
        specs.Node('x', specs.Input((3,))),
        specs.Node('dense1', specs.Dense(5), ('x',)),
        specs.Node('logits', specs.Dense(CLASSES), ('dense1',)),
      ),
      'logits',
    )
  )
  data = _batch(16, shape=(3,))
  held = net.variables['params']['dense1']
  values = np.asarray(data.inputs) @ held['kernel'] + held['bias']
  others = np.concatenate([values[:, :3], np.ones((16, 1))], axis=1)
  move = morphisms.merge({'dense1': [3, 4]})
  theta = jax.tree.map(np.array, move.init(net, jax.random.key(0)))
  leans = {3: 0.4, 4: -0.7}  # Of each on the other.
  for row, channel in enumerate((3, 4)):
    rest = values[:, channel] - leans[channel] * values[:, 7 - channel]
    found, *_ = np.linalg.lstsq(others, rest, rcond=None)
    theta['shares']['dense1'][row, [0, 1, 2, 7 - channel]] = [
      *found[:3],
      leans[channel],
    ]
    theta['means']['logits'][row] = found[3]
  assert _merged_change(net, move, theta, data) <= 1e-9
  ignoring = jax.tree.map(np.copy, theta)
  ignoring['shares']['dense1'][:, 3:] = 0
  assert _merged_change(net, move, ignoring, data) > 1e-2
  theta['shares']['dense1'][0, 3] = 9.0  # Of a channel on itself: nothing.
  assert _merged_change(net, move, theta, data) <= 1e-9


def _shares(net, move, rows):
  """A theta of a merge of one channel, by hand."""
  theta = jax.tree.map(np.array, move.init(net, jax.random.key(0)))
  ((name, _),) = move.channels
  for channel, share in rows.items():
    theta['shares'][name][0, channel] = share
  return theta


def test_of_two_duplicates_that_lean_on_each_other_one_is_removed(
  x64, monkeypatch
):
  """Either goes at no loss, so both would seem to; without the rule they do,
  and the loss rises."""
  del x64
  net = _random_net(_batch_norm(specs.Activation('gelu')))
  twice = morphisms.split({'conv1': [1]})
  theta = base.zeros(twice.init(net, jax.random.key(0)))
  net = jax.tree.map(np.asarray, twice(net, theta))
  data = _batch(16)
  moves = [morphisms.merge({'conv1': [c]}) for c in (1, 4)]
  thetas = [
    _shares(net, move, {other: 1 - 1e-3}) for move, other in zip(moves, (4, 1))
  ]
  scores = gauss_newton(factor=softmax_exact()).score(
    jax.random.key(0), net, moves, thetas, data, ()
  )
  members = _candidates(net, moves, thetas, scores)
  rule = stages.jointly(price=1e-4, z=0.0)

  def measured(choice):
    picked = [members[i] for i in choice.indices]
    move, theta = morphisms.unite(
      net, [m.move for m in picked], [m.theta for m in picked]
    )
    return float((_losses(move(net, theta), data) - _losses(net, data)).mean())

  one = rule(members)
  assert len(one.indices) == 1
  assert abs(measured(one)) <= 1e-3 and abs(one.predicted) <= 1e-3
  monkeypatch.setattr(sys.modules['jaxnas.stages.choose'], '_LEANS', np.inf)
  both = rule(members)
  assert len(both.indices) == 2 and abs(both.predicted) <= 1e-3
  print('Loss change of removing one and both:', measured(one), measured(both))
  assert abs(measured(both)) > 0.01


def _one_after_another(net, moves, thetas):
  """Insertions, splits from the last group on (so that directions fit what
  they read), then prunes and merges from the last channel on."""
  names = [group.name for group in groups.growable(net.spec)]

  def last_first(pair):
    move, _ = pair
    if isinstance(move, depth.Insert):
      return 0, 0, 0
    ((name, (channel,)),) = move.channels
    kind = 1 if isinstance(move, width.Split) else 2
    return kind, -names.index(name), -channel

  twins = {}
  for move, theta in sorted(zip(moves, thetas, strict=True), key=last_first):
    if isinstance(move, width.Split):
      ((name, (channel,)),) = move.channels
      twins.setdefault(name, []).append((channel, move.mass))
    if isinstance(move, outgoing.Merge):
      ((name, _),) = move.channels
      share = theta['shares'][name]
      # A split has halved what it leans on, other removals have taken columns.
      more = [share[:, c] * mass for c, mass in twins.get(name, [])]
      share = share.copy()
      for c, mass in twins.get(name, []):
        share[:, c] *= 1 - mass
      share = np.concatenate([share, *(m[:, None] for m in more)], axis=1)
      gone = [
        m.channels[0][1][0]
        for m in moves
        if isinstance(m, width.Prune)
        and m.channels[0][0] == name
        and m.channels[0][1][0] > move.channels[0][1][0]
      ]
      share = np.delete(share, gone, axis=1)
      theta = {**theta, 'shares': {name: share}}
    net = jax.tree.map(np.asarray, move(net, theta))
  return net


def test_moves_of_all_kinds_together_are_the_moves_one_after_another(x64):
  """Where no merge leans on what another move removes; each of them counts."""
  del x64
  net, data = _random_net(_everything(specs.Activation('silu'))), _batch()
  rng = np.random.default_rng(0)
  moves = [
    morphisms.merge({'conv3': [1]}),
    morphisms.split({'conv3': [3]}),
    morphisms.insert('act3', form='residual', activation='tanh', name='new'),
    morphisms.free_split({'dense': [2]}),
    morphisms.prune({'conv3': [4]}),
    morphisms.insert('act1', form='residual', name='other'),
    morphisms.merge({'dense': [0]}),
    morphisms.split({'conv1': [2]}),
  ]
  thetas = [_directions(net, move, rng) for move in moves]
  thetas[0]['shares']['conv3'][0, 4] = 0
  move, theta = morphisms.unite(net, moves, thetas)
  together = jax.tree.map(np.asarray, move(net, theta))
  single = _one_after_another(net, moves, thetas)
  assert together.spec == single.spec
  out = network.apply(together, data.inputs)
  np.testing.assert_allclose(
    out, network.apply(single, data.inputs), rtol=0, atol=1e-10
  )
  for left_out in range(len(moves)):
    rest = [i for i in range(len(moves)) if i != left_out]
    fewer, theta = morphisms.unite(
      net, [moves[i] for i in rest], [thetas[i] for i in rest]
    )
    other = network.apply(fewer(net, theta), data.inputs)
    assert np.abs(other - out).max() > 1e-4, moves[left_out]


# What scores may not depend on.


def _exact_padding(spec):
  return morphisms.pad({g.name: g.size for g in groups.growable(spec)})


@pytest.mark.slow
def test_scores_do_not_see_padding(x64, monkeypatch):
  del x64
  net = _random_net(_everything(specs.Activation('silu')))
  moves, thetas = _all_moves(net)
  arguments = jax.random.key(0), net, moves, thetas, _batch(), ()
  padded = gauss_newton(factor=softmax_sketch(2)).score(*arguments)
  assert plans.padding(net.spec) != _exact_padding(net.spec)
  monkeypatch.setattr(plans, 'padding', _exact_padding)
  plain = gauss_newton(factor=softmax_sketch(2)).score(*arguments)
  np.testing.assert_allclose(padded.linear, plain.linear, atol=1e-12)
  np.testing.assert_allclose(
    padded.coefficients, plain.coefficients, atol=1e-12
  )


def test_estimator_keeps_its_contract():
  """Finite, a function of the key, and of no order of the moves."""
  net = network.init(_everything(specs.Activation('relu')), jax.random.key(0))
  # Every third move: each is a program to trace.
  moves, thetas = (held[::3] for held in _all_moves(net))
  estimator = gauss_newton(factor=softmax_sketch(2))
  scores = testing.check_estimator(
    estimator, jax.random.key(1), net, moves, _batch(8), thetas=thetas
  )
  other = estimator.score(jax.random.key(2), net, moves, thetas, _batch(8), ())
  np.testing.assert_array_equal(scores.linear, other.linear)
  assert (scores.coefficients != other.coefficients).any()


def test_a_move_of_several_channels_is_the_sum_of_its_channels(x64):
  """Within a layer differences add."""
  del x64
  net = _random_net(_batch_norm(specs.Activation('gelu')))
  rng = np.random.default_rng(0)
  for make in (morphisms.split, morphisms.prune):
    whole = make({'conv1': [0, 2]})
    theta = _directions(net, whole, rng)
    spread = several.scatter(net, [whole], [theta])
    parts = [make({'conv1': [c]}) for c in (0, 2)]
    thetas = [several.gather(net, part, spread) for part in parts]
    score = functools.partial(gauss_newton().score, jax.random.key(0), net)
    one = score([whole], [theta], _batch(), ())
    two = score(parts, thetas, _batch(), ())
    np.testing.assert_allclose(one.linear[0], two.linear.sum(), atol=1e-12)
    np.testing.assert_allclose(
      one.coefficients[:, 0], two.coefficients.sum(axis=1), atol=1e-12
    )


def test_prunes_without_means_count_them_as_zero(x64):
  del x64
  net = _random_net(_batch_norm(specs.Activation('relu')))
  move = morphisms.prune({'conv1': [1]})
  score = functools.partial(gauss_newton().score, jax.random.key(0), net)
  none = score([move], [None], _batch(), ())
  zero = score([move], [move.init(net, jax.random.key(0))], _batch(), ())
  np.testing.assert_array_equal(none.linear, zero.linear)
  np.testing.assert_array_equal(none.coefficients, zero.coefficients)


def test_losses_of_unknown_curvature_are_refused():
  with pytest.raises(ValueError, match='give factor='):
    gauss_newton(loss=lambda outputs, targets: outputs.sum(axis=-1))


# What cannot be scored is refused.


def _refusal(net, moves):
  estimator = gauss_newton()
  thetas = [{} for _ in moves]
  with pytest.raises(ValueError) as caught:
    estimator.score(jax.random.key(0), net, moves, thetas, _batch(), ())
  with pytest.raises(ValueError) as again:
    estimator.fit(jax.random.key(0), net, moves, thetas, _batch(), ())
  assert str(caught.value) == str(again.value)
  return str(caught.value)


def test_moves_that_cannot_be_scored_are_refused_by_name():
  act = specs.Activation('relu')
  net = network.init(_batch_norm(act), jax.random.key(0))
  split = morphisms.split
  assert "merge and insert(form='residual'), got Widen(" in _refusal(
    net, [morphisms.widen({'conv1': 8})]
  )
  both = _refusal(net, [split({'conv1': [0]}), split({'conv1': [0, 1]})])
  assert 'on a channel that another move acts on' in both
  masses = [split({'conv1': [0]}), split({'conv1': [1]}, mass=0.5)]
  assert 'must have one mass, got [0.3, 0.5]' in _refusal(net, masses)
  normed = _nodes(
    ('conv1', specs.Conv(4)), ('ln', specs.LayerNorm()), ('act1', act),
    ('conv2', specs.Conv(3)), ('act2', act), *_head(),
  )  # fmt: skip
  net = network.init(normed, jax.random.key(0))
  assert [m.channels for m in stages.splits()(net)] == [
    (('conv2', (c,)),) for c in range(3)
  ]
  refused = _refusal(net, [split({'conv1': [0]})])
  assert "'conv1' cannot be scored; groups that can are ['conv2']" in refused


def test_a_split_and_a_prune_of_one_channel_can_be_scored_together():
  net = network.init(_batch_norm(specs.Activation('relu')), jax.random.key(0))
  moves = [morphisms.split({'conv1': [0]}), morphisms.prune({'conv1': [0]})]
  thetas = [move.init(net, jax.random.key(1)) for move in moves]
  scores = gauss_newton().score(
    jax.random.key(0), net, moves, thetas, _batch(), ()
  )
  assert np.isfinite(scores.single()).all()


def test_a_split_without_a_direction_is_refused_with_the_remedy():
  net = network.init(_batch_norm(specs.Activation('relu')), jax.random.key(0))
  move = morphisms.split({'conv1': [0]})
  with pytest.raises(ValueError, match=r'add learn\(\) before judge\(\)'):
    gauss_newton().score(jax.random.key(0), net, [move], [None], _batch(), ())


@pytest.mark.parametrize('knobs', [{'radius': 0}, {'batch': 0}, {'steps': -1}])
def test_impossible_knobs_are_refused(knobs):
  with pytest.raises(ValueError, match=f'{next(iter(knobs))}=') as caught:
    gauss_newton(**knobs)
  assert 'gauss_newton: batch must be at least 1' in str(caught.value)


def test_growth_inside_buckets_compiles_no_scores():
  """The score and fit of widths 9 to 12 share one program each."""
  estimator = gauss_newton(steps=2)
  data = jax.tree.map(lambda leaf: leaf.astype(leaf.dtype), _batch(8))

  def all_of(size):
    spec = seeds.chain(SHAPE, (size, size), CLASSES)
    net = network.to_host(network.init(spec, jax.random.key(0)))
    moves = [*stages.splits()(net), *stages.prunes()(net)]
    nothing = [None] * len(moves)
    with count_compilations() as compiled:
      found = estimator.fit(jax.random.key(0), net, moves, nothing, data, ())
      estimator.score(jax.random.key(1), net, moves, found.thetas, data, ())
    return len(compiled)

  assert all_of(9) > 0
  assert [all_of(size) for size in (10, 11, 12)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize('kind', [morphisms.prune, morphisms.merge])
def test_how_many_examples_go_at_a_time_changes_rounding_only(
  kind, x64, monkeypatch
):
  """Scores, and what is learned, from one example at a time and from all."""
  spec = seeds.chain(SHAPE, (4, 'M', 3), CLASSES)
  net = network.to_host(network.init(spec, jax.random.key(0)))
  net = jax.tree.map(lambda leaf: leaf.astype(np.float64), net)
  moves = [*stages.splits()(net), *stages.prunes(kind)(net)]
  data = jax.tree.map(
    lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, _batch(12)
  )
  nothing, found = [None] * len(moves), []
  for few in (1, 4, 12):
    monkeypatch.setattr(
      sys.modules['jaxnas.estimators.gauss_newton'],
      'at_a_time',
      lambda spec, batch, few=few: few,
    )
    judge = gauss_newton(steps=3)
    thetas = judge.fit(jax.random.key(0), net, moves, nothing, data, ()).thetas
    scores = judge.score(jax.random.key(1), net, moves, thetas, data, ())
    found.append((thetas, scores.linear, scores.coefficients))
  for other in found[1:]:
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10),
      other,
      found[0],
    )


def _candidates(net, moves, thetas, scores):
  """Candidates as `judge` leaves them."""
  return [
    Candidate(
      net,
      move,
      theta,
      metrics={
        'linear': scores.linear[i],
        'error': scores.error[i],
        'coefficients': scores.coefficients[:, i],
        'predicted': scores.single()[i],
      },
    )
    for i, (move, theta) in enumerate(zip(moves, thetas, strict=True))
  ]


# A trained network: estimates against what moves do.


class _Trained:
  """A small network trained on digits, and examples to judge moves on."""

  def __init__(self):
    task = tasks.digits()
    spec = seeds.chain(task.shape, (12, 'M', 16, 24, 24), task.outputs)
    net = network.init(spec, jax.random.key(0))
    fitted = training.fit(
      jax.random.key(1), net, task, optax.adam(3e-3), epochs=4, batch=64
    )
    self.net = network.to_host(fitted.net)
    self.data = training.draw(jax.random.key(2), task, 512)
    self.splits = list(stages.splits()(self.net))
    self.prunes = list(stages.prunes()(self.net))
    self.merges = tuple(stages.prunes(morphisms.merge)(self.net))
    self.blocks = (
      *stages.inserts(kernel=(3, 3))(self.net),
      *stages.inserts(kernel=(1, 1), activation='silu')(self.net),
    )
    self.fit = functools.cache(self._fit)
    self.learned = functools.cache(self._learned)
    self._loss = functools.cache(self._program)
    self.before = self.built(morphisms.identity(), ())

  def _program(self, spec):
    module = spec.module()

    @jax.jit
    def loss(variables, data):
      return LOSS(module.apply(variables, data.inputs), data.targets).mean()

    return loss

  def built(self, move, theta):
    """The loss of the network after a move, on the same examples.

    One program measures all moves that add a channel at most.
    """
    moved = move(self.net, network.to_host(theta))
    least = {g.name: g.size + 1 for g in groups.growable(self.net.spec)}
    moved = morphisms.pad(
      {
        g.name: plans.bucket(max(g.size, least.get(g.name, 1)))
        for g in groups.growable(moved.spec)
      }
    )(moved, ())
    return float(self._loss(moved.spec)(moved.variables, self.data))

  def changes(self, moves, thetas):
    """Measured loss changes of moves made one at a time."""
    losses = [self.built(m, t) for m, t in zip(moves, thetas, strict=True)]
    return np.array(losses) - self.before

  def _fit(self, **knobs):
    found = self._learned(self.splits + self.prunes, **knobs)
    count = len(self.splits)
    return found[:count], found[count:]

  def _learned(self, moves, **knobs):
    """What `fit` finds for moves that have no parameters."""
    found = gauss_newton(batch=128, **knobs).fit(
      jax.random.key(3), self.net, moves, [None] * len(moves), self.data, ()
    )
    return found.thetas

  def score(self, moves, thetas, factor=None):
    """Scores with one random adjoint of each example, or with a factor."""
    judge, key = gauss_newton(factor=factor), jax.random.key(4)
    return judge.score(key, self.net, moves, thetas, self.data, ())


@pytest.fixture(scope='module')
def trained():
  return _Trained()


@pytest.mark.slow
def test_sketch_ranks_moves_as_their_measured_loss_changes(trained):
  """Acceptance: Spearman 0.95 over at least 200 candidates, with one draw.

  The first-order part of the very same scores is the control.
  """
  random, means = trained.fit()
  longer = [jax.tree.map(lambda d: d / 0.3, theta) for theta in random]
  found = {}
  for kind, moves, thetas in (
    ('split 0.3', trained.splits, random),
    ('split 1.0', trained.splits, longer),
    ('prune', trained.prunes, means),
  ):
    scores = trained.score(moves, thetas)
    found[kind] = np.stack(
      [scores.single(), scores.linear, trained.changes(moves, thetas)]
    )
  found['pooled'] = np.concatenate(list(found.values()), axis=1)
  assert found['pooled'].shape[1] >= 200
  ranks = {
    kind: tuple(
      round(float(stats.spearmanr(estimate, true).statistic), 3)
      for estimate in (sketch, first)
    )
    for kind, (sketch, first, true) in found.items()
  }
  print('Spearman of sketch and of first order:', ranks)
  assert all(sketch >= 0.95 for sketch, _ in ranks.values()), ranks
  assert all(sketch > first for sketch, first in ranks.values()), ranks
  assert all(ranks[kind][1] < 0.9 for kind in ranks if kind != 'split 0.3')


@pytest.mark.slow
def test_standard_errors_fall_as_the_root_of_the_examples(trained):
  """Growth specification, 4.2, test 7: four times the examples, half of it."""
  directions, _ = trained.fit()

  def relative(count):
    data = jax.tree.map(lambda leaf: leaf[:count], trained.data)
    scores = gauss_newton(batch=128).score(
      jax.random.key(4), trained.net, trained.splits, directions, data, ()
    )
    return scores.error, np.median(scores.error / np.abs(scores.single()))

  (few, one), (many, two) = relative(128), relative(512)
  print('Median standard error over score, 128 and 512 examples:', one, two)
  assert 1.4 < np.median(few / many) < 2.8
  assert two < one


@pytest.mark.slow
def test_learned_directions_lower_the_loss_and_first_order_ones_raise_it(
  trained,
):
  """Splits built and measured one by one, on the examples learned from."""

  def mean(**knobs):
    directions, _ = trained.fit(**knobs)
    return trained.changes(trained.splits[::3], directions[::3]).mean()

  learned, random = mean(steps=120), mean()
  runaway = mean(steps=60, factor=flat(), radius=np.inf)
  figures = {'learned': learned, 'random': random, 'runaway': runaway}
  print('Mean measured loss change:', figures)
  assert learned < -1e-3, figures
  assert learned < random, figures
  assert runaway > 0.01, figures


@pytest.mark.slow
def test_joint_choice_predicts_the_built_network_and_independent_does_not(
  trained,
):
  """Learned splits and prunes under one price; both sets built whole."""
  directions, means = trained.fit(steps=120)
  moves = trained.splits + trained.prunes
  scores = trained.score(moves, directions + means, softmax_exact())
  members = _candidates(trained.net, moves, directions + means, scores)

  def measured(choice):
    picked = [members[i] for i in choice.indices]
    move, theta = morphisms.unite(
      trained.net, [m.move for m in picked], [m.theta for m in picked]
    )
    return trained.built(move, theta) - trained.before

  joint = stages.jointly(price=1e-6, limit=20)(members)
  count, true = len(joint.indices), measured(joint)
  (straight,) = linearised(
    trained.net, moves, directions + means, [joint.indices], trained.data
  )
  alone = stages.independently(price=1e-6, limit=count)(members)
  figures = {
    'joint': (joint.predicted, true),
    'linearised': (straight, true),
    'independent': (alone.predicted, measured(alone)),
  }
  print('Predicted and measured loss change:', figures)
  assert count >= 5 and len(alone.indices) == count
  # Closer on CIFAR-10 (tests/test_calibration.py), and there the linearised
  # network is closer still. Here, learned and measured on the same few
  # examples, both follow less well, yet know the sign, as `alone` does not.
  assert true < 0 and abs(joint.predicted - true) <= 0.25 * abs(true), figures
  assert true > straight > 2 * true, figures
  assert alone.predicted < joint.predicted < 0 < measured(alone), figures


@pytest.mark.slow
def test_merges_cost_less_than_prunes_with_means(trained):
  """Shares by regression, and then learned; built one by one."""
  _, means = trained.fit()
  moves = trained.merges
  changes = {
    'zeros': trained.changes(trained.prunes, map(base.zeros, means)),
    'means': trained.changes(trained.prunes, means),
    'regressed': trained.changes(moves, trained.learned(moves)),
  }
  learned = trained.learned(moves, steps=60)
  changes['learned'] = trained.changes(moves, learned)
  figures = {name: float(found.mean()) for name, found in changes.items()}
  print('Mean measured loss change of removing a channel:', figures)
  assert figures['means'] < 0.7 * figures['zeros'], figures
  assert figures['regressed'] < 0.7 * figures['means'], figures
  assert figures['learned'] < 0.3 * figures['means'], figures
  scores = trained.score(moves, learned)
  rank = stats.spearmanr(scores.single(), changes['learned']).statistic
  print('Spearman of the sketch for learned merges:', rank)
  assert rank > 0.9


@pytest.mark.slow
def test_gates_open_as_far_as_the_loss_falls(trained):
  """Eight blocks: what is predicted at the learned opening, at a part of it
  and the other way, against the built networks."""
  moves = trained.blocks
  assert len(moves) == 8
  open_gates = trained.learned(moves)

  def opened(part):
    thetas = []
    for move, theta in zip(moves, open_gates, strict=True):
      gate = move.names(trained.net.spec)['_gate']
      alpha = np.asarray(part * theta[gate], theta[gate].dtype)
      thetas.append({**theta, gate: alpha})
    scores = gauss_newton(factor=softmax_exact()).score(
      jax.random.key(4), trained.net, moves, thetas, trained.data, ()
    )
    return scores, trained.changes(moves, thetas)

  def off(estimate, true):
    return float(np.linalg.norm(estimate - true) / np.linalg.norm(true))

  shut, unchanged = opened(0.0)
  np.testing.assert_array_equal(shut.single(), 0)
  np.testing.assert_allclose(unchanged, 0, atol=1e-5)
  figures = {}
  for part in (-1.0, 0.25, 0.5, 1.0):
    scores, true = opened(part)
    figures[part] = {
      'spearman': float(stats.spearmanr(scores.single(), true).statistic),
      'error': off(scores.single(), true),
      'error of first order': off(scores.linear, true),
      'mean': float(true.mean()),
    }
  print('Blocks opened to a part of the best gate:', figures)
  # At the best gate the parabola is half its first-order part, -b^2 / 2k.
  np.testing.assert_allclose(scores.single(), scores.linear / 2, rtol=0.35)
  assert figures[1.0]['mean'] < figures[0.5]['mean'] < 0, figures
  assert figures[-1.0]['mean'] > 0, figures
  assert figures[1.0]['spearman'] > 0.6, figures
  assert figures[0.5]['spearman'] > 0.85, figures
  assert figures[0.25]['error'] < 0.3, figures
  for found in figures.values():
    assert found['error'] < 0.8 * found['error of first order'], figures


@pytest.mark.slow
def test_joint_prediction_covers_moves_of_all_kinds(trained):
  """A set of learned splits, merges and blocks, built whole."""
  kinds = {
    'split': (tuple(trained.splits), trained.fit(steps=60)[0]),
    'merge': (trained.merges, trained.learned(trained.merges, steps=60)),
    'block': (trained.blocks, trained.learned(trained.blocks)),
  }
  moves = sum((moves for moves, _ in kinds.values()), ())
  thetas = sum((list(thetas) for _, thetas in kinds.values()), [])
  scores = trained.score(moves, thetas, softmax_exact())
  members = _candidates(trained.net, moves, thetas, scores)
  choice = stages.jointly(price=1e-6, limit=12)(members)
  picked = [members[i] for i in choice.indices]
  move, theta = morphisms.unite(
    trained.net, [m.move for m in picked], [m.theta for m in picked]
  )
  true = trained.built(move, theta) - trained.before
  figures = {
    'predicted': choice.predicted,
    'measured': true,
    'first order': float(scores.linear[list(choice.indices)].sum()),
    'kinds': sorted({type(m.move).__name__ for m in picked}),
    'moves': len(picked),
  }
  print('A set of all kinds:', figures)
  assert figures['kinds'] == ['Insert', 'Merge', 'Split'], figures
  assert true < 0 and abs(choice.predicted - true) <= 0.25 * abs(true), figures
  control = abs(figures['first order'] - true)
  assert abs(choice.predicted - true) < 0.5 * control, figures


def _learned_on_the_loss(trained, group, chosen, start, steps):
  """Directions learned one candidate at a time on the loss itself: by the
  optimizer, from the start, and on the batches of `fit`."""
  size = trained.net.spec.shapes[group][-1]
  eye = jnp.eye(size)[jnp.array(chosen)]
  adam = optax.scale_by_adam()

  def loss(direction, place, data):
    everywhere = {group: direction[..., None] * place[None, None, None]}
    found = injected_loss(trained.net, everywhere, 0.3, LOSS, *data)
    return found.mean()

  def step(directions, state, data, rate):
    gradients = jax.vmap(jax.grad(loss), (0, 0, None))(directions, eye, data)
    updates, state = adam.update(gradients, state)
    axes = tuple(range(1, directions.ndim))
    size = jnp.sqrt(jnp.square(directions).mean(axis=axes, keepdims=True))
    return directions - rate * size * updates, state

  step = jax.jit(step)
  rows = rng(jax.random.fold_in(jax.random.key(3), 2**31))
  directions, state = jnp.asarray(start), adam.init(jnp.asarray(start))
  for i in range(steps):
    taken = rows.choice(len(trained.data.targets), 128)
    data = jax.tree.map(lambda leaf, taken=taken: leaf[taken], trained.data)
    rate = 0.05 * (1 + math.cos(math.pi * i / steps)) / 2
    directions, state = step(directions, state, data, rate)
  return np.asarray(directions)


@pytest.mark.slow
def test_gauss_newton_learns_what_the_loss_would_teach(trained):
  """Growth specification, 4.2, test 5: at least 95 % of the gain, though all
  candidates are learned at once and no network is run with any of them."""
  group, chosen, steps = 'conv3', range(0, 24, 3), 60
  moves = [morphisms.split({group: [c]}) for c in chosen]
  at = [trained.splits.index(move) for move in moves]

  def learned(**knobs):
    directions, _ = trained.fit(**knobs)
    return [directions[i] for i in at]

  start = np.stack([theta[group][group][..., 0] for theta in learned()])
  best = _learned_on_the_loss(trained, group, chosen, start, steps)
  best = [{group: {group: direction[..., None]}} for direction in best]
  free = dict(steps=steps, radius=np.inf)
  changes = {
    'start': learned(),
    'on the loss': best,
    'gauss newton': learned(**free),
    'within a radius of 1': learned(steps=steps),
    'first order': learned(factor=flat(), **free),
  }
  changes = {
    name: float(trained.changes(moves, thetas).mean())
    for name, thetas in changes.items()
  }
  print('Mean measured loss change of learned splits:', changes)
  assert changes['on the loss'] < -4e-3, changes
  assert changes['gauss newton'] <= 0.95 * changes['on the loss'], changes
  assert changes['start'] > 0.5 * changes['on the loss'], changes
  assert changes['first order'] > 0.01, changes


@pytest.mark.slow
def test_free_splits_gain_more_than_plain_ones(trained):
  """With outgoing weights free a descent direction nearly always exists."""
  plain, _ = trained.fit(steps=60)
  moves = tuple(stages.splits(morphisms.free_split)(trained.net))
  free = trained.learned(moves, steps=60)
  found = {
    'plain': trained.changes(trained.splits[::3], plain[::3]),
    'free': trained.changes(moves[::3], free[::3]),
  }
  figures = {name: float(change.mean()) for name, change in found.items()}
  falling = {name: float((change < 0).mean()) for name, change in found.items()}
  print(
    'Mean loss change of learned splits, share that gain:', figures, falling
  )
  assert figures['free'] < 3 * figures['plain'] < 0, figures
  assert falling['free'] > 0.9


def _lengths(trained, thetas):
  """Each direction's change of its pre-activation over that one's deviation."""
  net = trained.net
  directions = several.scatter(net, trained.splits, thetas).directions
  call = network.caller(net.spec, net.variables)
  values = network.walk(net.spec, call, trained.data.inputs)
  apply, found = deltas(net.spec, net.variables, directions), []
  for name in (w for g in groups.growable(net.spec) for w in g.writers):
    node = net.spec.by_name[name]
    change = apply(node, values[node.inputs[0]])
    axes = tuple(range(change.ndim - 1))
    found.append(change.std(axis=axes) / values[name].std(axis=axes))
  return np.concatenate(found)


@pytest.mark.slow
def test_directions_stay_within_the_trust_region(trained):
  """By the gradient alone they run along it for as long as they may."""
  knobs = dict(steps=40, batch=128)
  everything = trained.splits + trained.prunes

  def longest(make, radius):
    found = make(radius=radius, **knobs).fit(
      jax.random.key(3),
      trained.net,
      everything,
      [None] * len(everything),
      trained.data,
      (),
    )
    lengths = _lengths(trained, found.thetas[: len(trained.splits)])
    return float(lengths.max())

  figures = {
    'gauss newton, 0.3': longest(gauss_newton, 0.3),
    'first order, 0.3': longest(first_order, 0.3),
    'first order, none': longest(first_order, np.inf),
  }
  print('Longest direction:', figures)
  # A step is at most a twentieth; lengths are of batches, not of all examples.
  assert figures['gauss newton, 0.3'] <= 0.3 * 1.2, figures
  assert figures['first order, 0.3'] <= 0.3 * 1.2, figures
  assert figures['first order, none'] > 3 * 0.3, figures


@pytest.mark.slow
def test_a_second_fold_keeps_what_few_examples_would_lose(trained):
  """Growth specification, 4.2, test 7: on a third fold the loss does not rise
  in nine of ten repeats, where without confirming it rises more often."""
  task, net = tasks.digits(), trained.net
  moves = trained.splits + trained.prunes
  before = training.evaluate(net, task, task.test).loss
  rule = stages.jointly(price=0.0, z=0.0, limit=32)
  rules = {'plain': rule, 'confirmed': stages.confirmed(rule, task)}
  changes = {name: [] for name in rules}
  for seed in range(10):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(7), seed), 4)
    data = training.draw(keys[0], task, 64, fold=0)
    thetas = (
      gauss_newton(batch=64)
      .fit(keys[1], net, moves, [None] * len(moves), data, ())
      .thetas
    )
    data = training.draw(keys[2], task, 32, fold=1)
    scores = gauss_newton().score(keys[3], net, moves, thetas, data, ())
    members = _candidates(net, moves, thetas, scores)
    for name, choose in rules.items():
      choice = choose(members)
      picked = [members[i] for i in choice.indices]
      move, theta = morphisms.unite(
        net, [m.move for m in picked], [m.theta for m in picked]
      )
      grown = move(net, network.to_host(theta))
      after = training.evaluate(grown, task, task.test).loss
      changes[name].append(round(after - before, 4))
  rises = {n: sum(c > 0 for c in found) for n, found in changes.items()}
  print('Loss changes on a third fold:', changes)
  assert rises['confirmed'] <= 1, changes
  assert rises['plain'] > rises['confirmed'], changes
  assert sum(c < 0 for c in changes['confirmed']) >= 5, changes
