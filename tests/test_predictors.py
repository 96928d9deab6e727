"""Predictors and differences: what they learn, and what they must not see."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas import estimators, morphisms, network, spaces, stages, testing
from jaxnas.estimators import differences, predictors
from jaxnas.spaces import tabular

KEY = jax.random.key(0)
# Small and fast; what differs is the form.
PREDICTORS = {
  'ridge': lambda: estimators.ridge(),
  'bags': lambda: estimators.ridge(members=3, share=0.8),
  'mlp': lambda: estimators.mlp(widths=(8,), members=2, steps=30),
  'gp': lambda: estimators.gaussian_process(length=2.0, noise=1e-2),
}
DIFFERENCES = {
  'ridge none': lambda: estimators.ridge_difference(context='none'),
  'ridge parent': lambda: estimators.ridge_difference(),
  'mlp none': lambda: estimators.mlp_difference(
    widths=(8, 8), members=2, steps=30, batch=32
  ),
  'mlp parent': lambda: estimators.mlp_difference(
    context='parent', widths=(8, 8), members=2, steps=30, batch=32
  ),
}


ONE, TWO = np.triu_indices(12, 1)


def written(x):
  """The columns of products, in float64."""
  x = np.asarray(x, np.float64)
  return np.concatenate([x, x[:, ONE] * x[:, TWO]], axis=1)


def cells(count, seed=0):
  """Different genotypes, their codes, and what they are worth."""
  rng = np.random.default_rng(seed)
  every = np.array(list(itertools.product(range(3), repeat=4)))
  chosen = rng.choice(len(every), count, replace=False)
  genotypes = every[chosen].astype(np.int32)
  x = (genotypes[:, :, None] == np.arange(3)).reshape(count, 12)
  x = x.astype(np.float32)
  worth = x @ rng.normal(size=12) + x[:, 0] * x[:, 4]
  y = ((worth - worth.mean()) / worth.std()).astype(np.float32)
  return genotypes, jnp.asarray(x), jnp.asarray(y)


@pytest.mark.parametrize('name', PREDICTORS)
def test_predictors_fit_what_counts_and_do_not_see_the_rest(name):
  """For several searches at once, by `vmap`."""
  model = PREDICTORS[name]()
  _, x, y = cells(30)

  @jax.jit
  @jax.vmap
  def said(key, y, use):
    params = model.fit(key, model.init(key, x.shape[1]), x, y, use)
    return model.predict(params, x)

  some, every = jnp.arange(30) < 20, jnp.ones(30, bool)
  told = jnp.stack([y, jnp.where(some, y, jnp.nan), y, -y])
  keys = jnp.stack([KEY] * 4)
  found = said(keys, told, jnp.stack([some, some, every, every]))
  assert np.isfinite(found.mean).all() and (found.deviation >= 0).all()
  np.testing.assert_array_equal(found.mean[0], found.mean[1])
  np.testing.assert_array_equal(found.deviation[0], found.deviation[1])
  assert not np.allclose(found.mean[0], found.mean[2])
  for mean, wanted in zip(found.mean[2:], told[2:]):
    assert np.corrcoef(mean, wanted)[0, 1] > 0.8
  spread = found.deviation[0].max()
  assert (spread > 0) == (name != 'ridge')


def test_ridge_is_the_textbooks_and_goes_on_from_what_it_knew():
  _, x, y = cells(25)
  columns = written(x)
  use = np.arange(25) < 20
  kept, told = columns[use], np.asarray(y, np.float64)[use]
  rng = np.random.default_rng(1)
  fit = jax.jit(estimators.ridge(penalty=0.5).fit)
  for prior in (np.zeros(columns.shape[1]), rng.normal(size=columns.shape[1])):
    gram = kept.T @ kept + 0.5 * np.eye(columns.shape[1])
    wanted = prior + np.linalg.solve(gram, kept.T @ (told - kept @ prior))
    pairs = np.zeros((12, 12))
    pairs[ONE, TWO] = prior[12:]
    start = [jnp.asarray(w[None], jnp.float32) for w in (prior[:12], pairs)]
    single, pairs = fit(KEY, tuple(start), x, y, jnp.asarray(use))
    found = np.concatenate([single[0], np.asarray(pairs[0])[ONE, TWO]])
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert not np.tril(pairs[0]).any()


def test_a_basis_is_its_columns_whatever_the_features():
  rng = np.random.default_rng(0)
  x, z = rng.normal(size=(2, 9, 12)).astype(np.float32)
  a = rng.normal(size=9).astype(np.float32)
  for basis, columns in (
    (estimators.products(), written),
    (estimators.plain(), lambda x: np.asarray(x, np.float64)),
  ):
    np.testing.assert_allclose(
      basis.kernel(x, z), columns(x) @ columns(z).T, rtol=1e-3, atol=1e-3
    )
    weights = basis.gather(x, a)
    np.testing.assert_allclose(
      basis.apply(weights, z),
      columns(z) @ (columns(x).T @ a),
      rtol=1e-3,
      atol=1e-3,
    )
    shapes = jax.tree.map(jnp.shape, (weights, basis.zeros(12)))
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize('features', [12, 30, 33])
def test_constant_weights_read_no_memory_that_nobody_wrote(features):
  """Under `vmap`, where a fusion of XLA's CPU backend does (JAX 0.10.2)."""
  basis = estimators.products()
  x = np.ones((3, 100, features), np.float32)
  apply = jax.jit(jax.vmap(lambda x: basis.apply(basis.zeros(features), x)))
  for _ in range(3):
    left = [jnp.full(size, 1e30) for size in (100, 3000, 10_000, 40_000)]
    jax.block_until_ready(left)
    del left
    np.testing.assert_array_equal(apply(x), 0)


def test_bags_hold_their_share_and_differ():
  use = jnp.arange(20) < 10
  bags = jax.vmap(lambda key: predictors._bag(key, use, 0.75))(
    jax.random.split(KEY, 8)
  )
  assert (bags.sum(axis=1) == 8).all()
  assert not bags[:, 10:].any() and (bags[:, :10].sum(axis=0) < 8).any()


def smooth(distance):
  return np.exp(-(distance**2) / 2)


def rougher(distance):
  far = np.sqrt(5) * distance
  return (1 + far + far**2 / 3) * np.exp(-far)


def of_rows(covariance, a, b, length):
  square = np.square(a[:, None] - b[None]).sum(axis=2)
  return covariance(np.sqrt(square) / length)


COVARIANCES = {
  'rbf': (smooth, estimators.rbf),
  'matern': (rougher, estimators.matern),
}


@pytest.mark.parametrize('name', COVARIANCES)
def test_gaussian_process_is_the_textbooks(name):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(8, 3)), rng.normal(size=8)
  new = rng.normal(size=(5, 3))
  plain, ours = COVARIANCES[name]
  within = of_rows(plain, x, x, 1.5) + 1e-2 * np.eye(8)
  across = of_rows(plain, new, x, 1.5)
  mean = across @ np.linalg.solve(within, y)
  variance = 1 - (across * np.linalg.solve(within, across.T).T).sum(axis=1)
  model = estimators.gaussian_process(length=1.5, noise=1e-2, covariance=ours)
  padded = np.concatenate([x, x[:2] + 0.1]).astype(np.float32)
  told = np.concatenate([y, [9.0, 9.0]]).astype(np.float32)
  use = np.arange(10) < 8
  said = jax.jit(
    lambda x, y, new: model.predict(model.fit(KEY, (), x, y, use), new)
  )(padded, told, jnp.asarray(new, jnp.float32))
  np.testing.assert_allclose(said.mean, mean, atol=1e-4)
  np.testing.assert_allclose(said.deviation, np.sqrt(variance), atol=1e-3)


@pytest.mark.parametrize('name', COVARIANCES)
@pytest.mark.parametrize('drawn', [0.3, 2.0])
def test_of_several_lengths_the_likeliest_is_taken(name, drawn):
  """Found by the density of a normal, of targets drawn at a length."""
  rng = np.random.default_rng(1)
  plain, ours = COVARIANCES[name]
  x, lengths = rng.uniform(-1, 1, size=(30, 2)), (0.1, 0.3, 1.0, 2.0, 8.0)

  def within(length):
    return of_rows(plain, x, x, length) + 1e-2 * np.eye(30)

  y = np.linalg.cholesky(within(drawn)) @ rng.normal(size=30)
  said = []
  for length in lengths:
    _, logdet = np.linalg.slogdet(within(length))
    said.append(-(y @ np.linalg.solve(within(length), y) + logdet) / 2)
  model = estimators.gaussian_process(
    length=lengths, noise=1e-2, covariance=ours
  )
  padded = np.concatenate([x, x[:3]]).astype(np.float32)
  told = np.concatenate([y, [9.0] * 3]).astype(np.float32)
  *_, found = model.fit(KEY, (), padded, told, np.arange(33) < 30)
  assert np.isclose(found, lengths[np.argmax(said)])
  # A control: other targets have another one.
  assert (lengths[np.argmax(said)] < 1) == (drawn < 1)


def told(model, x, y):
  """(N, N) what is predicted of all pairs after fitting to them."""
  pairs = 1.0 - np.eye(len(x), dtype=np.float32)

  @jax.jit
  def said(x, y):
    params = model.fit(KEY, model.init(KEY, x.shape[1]), x, y, pairs)
    return model.predict(params, x, x)

  return said(x, y)


@pytest.mark.parametrize('name', PREDICTORS)
def test_predictors_keep_the_laws(name):
  testing.check_predictor(PREDICTORS[name]())


@pytest.mark.parametrize('name', DIFFERENCES)
def test_differences_keep_the_laws(name):
  testing.check_difference(DIFFERENCES[name]())


# 0 to 1 and 2 to 3 are one edit, in two contexts.
CORNERS = [[0, 0, 0, 0], [1, 0, 0, 0], [0, 2, 1, 0], [1, 2, 1, 0]]


@pytest.mark.parametrize('name', DIFFERENCES)
def test_differences_are_odd_to_the_last_bit_and_may_know_their_context(name):
  """Without context an edit is worth the same wherever it is made."""
  _, x, y = cells(24)
  corners = np.array(CORNERS)[:, :, None] == np.arange(3)
  x = jnp.concatenate([corners.reshape(4, 12).astype(np.float32), x])
  y = jnp.concatenate([jnp.array([0.0, 1.0, 0.0, -1.0]), y])
  there = np.asarray(told(DIFFERENCES[name](), x, y))
  np.testing.assert_array_equal(there, -there.T)
  assert np.abs(there).max() > 0.5
  assert np.corrcoef(there.ravel(), (y[None] - y[:, None]).ravel())[0, 1] > 0.5
  alike = np.allclose(there[0, 1], there[2, 3], atol=1e-5)
  assert alike == name.endswith('none')


def by_pairs(columns, worth, weights):
  """The ridge of pairs, each of them a row."""
  one, two = np.nonzero(np.triu(weights))
  rows, told = columns[two] - columns[one], worth[two] - worth[one]
  gram = rows.T @ rows + np.eye(columns.shape[1])
  return np.linalg.solve(gram, rows.T @ told)


@pytest.fixture(scope='module')
def fitted():
  """A ridge of differences, compiled for 15 genotypes."""
  model = estimators.ridge_difference()
  return jax.jit(
    lambda x, y, pairs: model.fit(KEY, model.init(KEY, 12), x, y, pairs)
  )


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(0, 15), st.integers(0, 100))
def test_the_laplacian_is_all_pairs(fitted, reach, count, seed):
  """What enumerates no pairs is the ridge of them all."""
  genotypes, x, y = cells(15, seed)
  genotypes = np.asarray(genotypes)
  apart = (genotypes[:, None] != genotypes[None]).sum(axis=2)
  weights = ((apart >= 1) & (apart <= reach)).astype(np.float32)
  weights[count:], weights[:, count:] = 0, 0
  columns = written(x)
  wanted = by_pairs(columns, np.asarray(y, np.float64), weights)
  single, pairs = fitted(x, y, weights)
  found = np.concatenate([single, np.asarray(pairs)[ONE, TWO]])
  np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize('options', [(5,) * 6, (4,) * 6, (3, 2, 4)])
def test_one_edit_inputs_are_few_and_all_of_them(options):
  """On NAS-Bench-201 120, of 375,000 pairs; linear in the edges."""
  space = tabular.independent('any', options)
  listed = differences.one_edit_differences(options)
  assert len(listed) == sum(k * (k - 1) for k in options)

  @jax.jit
  @jax.vmap
  def changes(key):
    genotype = space.sample(key)
    near, _ = space.neighbours(genotype)
    return jax.vmap(space.encode)(near) - space.encode(genotype)[None]

  change = changes(jax.random.split(KEY, 2000))
  seen = np.unique(np.asarray(change, int).reshape(-1, sum(options)), axis=0)
  np.testing.assert_array_equal(seen, np.unique(listed, axis=0))
  assert {tuple(row) for row in seen} == {tuple(-row) for row in seen}
  assert len(differences.one_edit_differences((5,) * 12)) == 240


def test_what_is_refused():
  with pytest.raises(ValueError, match=r'penalty must be above 0.*got 0'):
    estimators.ridge(penalty=0)
  with pytest.raises(ValueError, match='members must be a whole number'):
    estimators.mlp(members=0)
  with pytest.raises(ValueError, match='length and noise must be above 0'):
    estimators.gaussian_process(noise=0.0)
  with pytest.raises(ValueError, match='of which there must be one; got'):
    estimators.gaussian_process(length=())
  for make in (estimators.ridge_difference, estimators.mlp_difference):
    with pytest.raises(ValueError, match="one of .*'none'.*got 'both'"):
      make(context='both')
  with pytest.raises(ValueError, match="'mean' or 'max', got 'sum'"):
    stages.by_difference(estimators.ridge_difference(), over='sum')
  with pytest.raises(ValueError, match='two measured networks'):
    estimators.by_lineage([], key=KEY)


def size(spec):
  """What a wide and deep network is worth, as a loss."""
  return -float(np.log(network.param_count(network.shapes(spec))))


def test_moves_of_networks_are_scored_from_networks_that_were_measured():
  space = spaces.chain((8, 8, 1), 10, stages=1, depth=(1, 3), windows=(1, 3))
  keys = jax.random.split(KEY, 25)
  known = [space.sample(key) for key in keys[1:]]
  measured = [(spec, size(spec)) for spec in known]
  net = network.init(space.sample(keys[0]), KEY)
  moves = list(space.moves(net.spec))[:16]
  truth = [size(morphisms.respec(m, net.spec)) - size(net.spec) for m in moves]

  def agreement(measured):
    judge = estimators.by_lineage(measured, key=KEY)
    found = judge.score(KEY, net, moves, [None] * len(moves), None, ())
    assert found.linear.shape == (len(moves),) and found.examples == 0
    return np.corrcoef(found.linear, truth)[0, 1]

  assert agreement(measured) > 0.6
  shuffled = np.random.default_rng(0).permutation(
    [loss for _, loss in measured]
  )
  assert agreement(list(zip(known, shuffled))) < 0.5


def test_a_move_and_its_opposite_are_scored_oppositely():
  measured = [
    (spaces.seeds.mlp((4,), (width,), 3), loss)
    for width, loss in ((2, 1.5), (4, 1.0), (8, 0.7))
  ]
  judge = estimators.by_lineage(measured, key=KEY)
  small = network.init(measured[1][0], KEY)
  grow = morphisms.split({'dense1': [0]})
  large = network.init(morphisms.respec(grow, small.spec), KEY)
  shrink = morphisms.prune({'dense1': [0]})
  up = judge.score(KEY, small, [grow], [None], None, ()).linear[0]
  down = judge.score(KEY, large, [shrink], [None], None, ()).linear[0]
  assert up == -down < 0
  testing.check_estimator(judge, KEY, small, [grow, shrink], None)
