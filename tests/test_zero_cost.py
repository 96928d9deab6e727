"""Zero-cost proxies: their formulas, on networks where they are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import morphisms, network, programs
from jaxnas import spec as specs
from jaxnas.base import Data
from jaxnas.estimators import zero_cost
from jaxnas.run import count_compilations
from jaxnas.spaces import seeds, supernet


@pytest.fixture(scope='module')
def mlp():
  """A network of three dense layers, and a batch of eight examples."""
  net = network.init(seeds.mlp((5,), (7, 6), 3), jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (8, 5))
  return net, zero_cost.Batch(x, jnp.arange(8) % 3, jax.random.key(2))


def measured(net, batch, *names):
  @jax.jit
  def scores(net, batch):
    return zero_cost.measure(zero_cost.of_network(net), batch, names)

  return {name: float(score) for name, score in scores(net, batch).items()}


def forward(params, x):
  for name in ('dense1', 'dense2'):
    own = params[name]
    x = jax.nn.relu(jnp.dot(x, own['kernel']) + own['bias'][None])
  own = params['logits']
  return jnp.dot(x, own['kernel']) + own['bias'][None]


def loss(params, batch):
  logs = jax.nn.log_softmax(forward(params, batch.inputs))
  return -logs[jnp.arange(8), batch.targets].mean()


def kernels(tree):
  return [np.asarray(own['kernel'], np.float64) for own in tree.values()]


def test_proxies_of_gradients(mlp):
  net, batch = mlp
  params = net.variables['params']
  slopes = jax.jit(jax.grad(loss))(params, batch)
  found = measured(net, batch, 'grad_norm', 'snip', 'plain', 'l2_norm')
  pairs = list(zip(kernels(params), kernels(slopes)))
  want = {
    'grad_norm': sum(np.linalg.norm(g) for _, g in pairs),
    'snip': sum(abs(w * g).sum() for w, g in pairs),
    'plain': sum((w * g).sum() for w, g in pairs),
    'l2_norm': sum(np.linalg.norm(w) for w, _ in pairs),
  }
  for name, value in want.items():
    assert found[name] == pytest.approx(value, rel=1e-4), name


def test_grasp_is_the_curvature_along_the_gradient(mlp):
  net, batch = mlp
  params = net.variables['params']
  weights = {name: own['kernel'] for name, own in params.items()}

  def of(weights):
    full = {n: {**params[n], 'kernel': w} for n, w in weights.items()}
    return loss(full, batch)

  slope = jax.grad(of)
  _, bent = jax.jit(lambda w: jax.jvp(slope, (w,), (slope(w),)))(weights)
  want = -sum(float((weights[n] * bent[n]).sum()) for n in weights)
  found = measured(net, batch, 'grasp')['grasp']
  assert found == pytest.approx(want, rel=1e-3)


def test_fisher_is_of_every_layers_output(mlp):
  net, batch = mlp
  params = net.variables['params']

  def shifted(shifts):
    x = batch.inputs
    kept = []
    for name in ('dense1', 'dense2', 'logits'):
      own = params[name]
      x = jnp.dot(x, own['kernel']) + own['bias'][None] + shifts[name]
      kept.append(x)
      x = jax.nn.relu(x) if name != 'logits' else x
    logs = jax.nn.log_softmax(x)
    return -logs[jnp.arange(8), batch.targets].mean(), kept

  zeros = {'dense1': (8, 7), 'dense2': (8, 6), 'logits': (8, 3)}
  zeros = {name: jnp.zeros(shape) for name, shape in zeros.items()}
  slopes, outputs = jax.jit(jax.grad(shifted, has_aux=True))(zeros)
  want = sum(
    float(jnp.square(z * slope).mean(axis=0).sum()) / 2
    for z, slope in zip(outputs, slopes.values())
  )
  found = measured(net, batch, 'fisher')['fisher']
  assert found == pytest.approx(want, rel=1e-4)


def test_fisher_is_of_depthwise_convolutions_too():
  nodes = (
    specs.Node('x', specs.Input((4, 4, 2))),
    specs.Node('own', specs.DepthwiseConv(use_bias=False), ('x',)),
    specs.Node('pool', specs.GlobalPool(), ('own',)),
    specs.Node('logits', specs.Dense(3), ('pool',)),
  )
  net = network.init(specs.Spec(nodes, 'logits'), jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (8, 4, 4, 2))
  batch = zero_cost.Batch(x, jnp.arange(8) % 3, jax.random.key(2))
  params = net.variables['params']
  outer = params['logits']
  own = jax.lax.conv_general_dilated(
    x,
    params['own']['kernel'],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=2,
  )
  pooled = np.asarray(own.mean((1, 2)))
  logits = pooled @ np.asarray(outer['kernel']) + np.asarray(outer['bias'])
  slope = np.asarray(jax.nn.softmax(logits)) - np.eye(3)[batch.targets]
  slope = slope / 8
  # The pool hands a slope to all positions alike, a sixteenth to each.
  inner = pooled * (slope @ np.asarray(outer['kernel']).T)
  want = sum(
    np.square(each).mean(axis=0).sum() / 2 for each in (inner, logits * slope)
  )
  found = measured(net, batch, 'fisher')['fisher']
  assert found == pytest.approx(want, rel=1e-3)


def test_synflow_is_the_flow_through_each_layer(mlp):
  net, batch = mlp
  x = np.ones((1, 5))
  for kernel in kernels(net.variables['params']):
    x = x @ abs(kernel)
  # All of it flows through each of the three layers.
  want = np.log(3 * x.sum())
  found = measured(net, batch, 'synflow')['synflow']
  assert found == pytest.approx(want, rel=1e-4)


def test_proxies_of_input_gradients(mlp):
  net, batch = mlp
  slopes = jax.grad(lambda x: forward(net.variables['params'], x).sum())(
    batch.inputs
  )
  slopes = np.asarray(slopes, np.float64)
  values = np.linalg.eigvalsh(np.corrcoef(slopes))
  found = measured(net, batch, 'jacob_cov', 'epe_nas')
  want = -(np.log(values + 1e-5) + 1 / (values + 1e-5)).sum()
  assert found['jacob_cov'] == pytest.approx(want, rel=0.02)
  each = [
    abs(np.log(abs(np.corrcoef(slopes[batch.targets == c])) + 1e-5).sum())
    for c in range(3)
  ]
  assert found['epe_nas'] == pytest.approx(sum(each), rel=1e-3)


def test_correlations_of_one_rank_have_a_score():
  # Of a network that is linear all examples have the same input gradient.
  net = network.init(seeds.mlp((5,), (), 3), jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (64, 5))
  batch = zero_cost.Batch(x, jnp.arange(64) % 3, jax.random.key(2))
  found = measured(net, batch, 'jacob_cov')['jacob_cov']
  # One eigenvalue is 64, and the other 63 are 0.
  want = -63 * (np.log(1e-5) + 1e5) - np.log(64) - 1 / 64
  assert found == pytest.approx(want, rel=0.2)


def test_naswot_tells_examples_apart(mlp):
  net, batch = mlp
  codes, x = [], batch.inputs
  for name in ('dense1', 'dense2'):
    own = net.variables['params'][name]
    x = jnp.dot(x, own['kernel']) + own['bias'][None]
    codes.append(np.asarray(x > 0, np.float64))
    x = jax.nn.relu(x)
  code = np.concatenate(codes, axis=1)
  want = np.linalg.slogdet(code @ code.T + (1 - code) @ (1 - code).T)[1]
  found = measured(net, batch, 'naswot')['naswot']
  assert found == pytest.approx(want, abs=0.05)
  # Examples that are the same are told apart by nothing.
  same = batch._replace(inputs=jnp.ones((8, 5)))
  assert measured(net, same, 'naswot')['naswot'] < want - 20


# Of the initialisers the fastest to compile.
UNIFORM = nn.initializers.variance_scaling(2, 'fan_in', 'uniform')
GENOTYPE = [2, 3, 4, 1, 3, 2]


@pytest.fixture(scope='module')
def cells():
  net = supernet.nas_bench_201(
    channels=2,
    repeats=1,
    shape=(8, 8, 3),
    classes=4,
    select='mask',
    kernel_init=UNIFORM,
  )
  variables = jax.jit(net.init)(jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (8, 8, 8, 3))
  return (
    net,
    variables,
    zero_cost.Batch(x, jnp.arange(8) % 4, jax.random.key(2)),
  )


def both(cells, names):
  """The proxies of a cell in the supernet, of it unrolled, and of `none`."""
  net, variables, batch = cells
  single = supernet.unrolled(net, variables, GENOTYPE)
  of = jax.jit(
    lambda genotype: zero_cost.measure(
      zero_cost.of_genotype(net, variables, genotype), batch, names
    )
  )
  alone = jax.jit(
    lambda variables: zero_cost.measure(
      zero_cost.of_network(network.Network(variables, single.spec)),
      batch,
      names,
    )
  )
  return of(jnp.array(GENOTYPE)), alone(single.variables), of(jnp.zeros(6, int))


@pytest.mark.slow
@pytest.mark.parametrize(
  'names',
  [
    ('params', 'naswot'),
    ('grad_norm', 'snip', 'plain', 'l2_norm'),
    ('fisher',),
    ('synflow',),
    ('jacob_cov', 'epe_nas'),
    ('grasp',),
  ],
  ids='-'.join,
)
def test_a_cell_of_the_supernet_is_the_network_it_stands_for(cells, names):
  found, alone, nothing = both(cells, names)
  for name in names:
    # The control: a cell of no operation scores otherwise.
    assert abs(nothing[name] - found[name]) > 0.1 * abs(found[name])
    np.testing.assert_allclose(found[name], alone[name], rtol=1e-3)
  if 'naswot' in names:
    assert nothing['naswot'] == -jnp.inf


def test_one_program_scores_every_cell():
  net = supernet.nas_bench_201(
    channels=2, repeats=1, shape=(4, 4, 3), kernel_init=UNIFORM
  )
  x = jax.random.normal(jax.random.key(1), (4, 4, 4, 3))
  of_all = [[[op] * 6 for op in ops] for ops in ((0, 1, 2), (4, 3, 2))]
  score = programs.jit(
    lambda cells: zero_cost.score_genotypes(
      net, jax.random.key(0), cells, x, jnp.arange(4), ['params', 'naswot']
    )
  )
  first, then = map(jnp.array, of_all)
  with count_compilations() as compiled:
    score(first)
  assert len(compiled) == 1
  with count_compilations() as compiled:
    found = score(then)
  assert not compiled
  assert found['params'][0] < found['params'][2] < found['params'][1]


@pytest.mark.slow
def test_zen_grows_with_a_network(cells):
  net, _, batch = cells
  genotypes = jnp.array([[0, 0, 0, 3, 0, 0], [3] * 6])
  found = jax.jit(
    lambda: zero_cost.score_genotypes(
      net, jax.random.key(0), genotypes, batch.inputs, batch.targets, ['zen']
    )
  )()['zen']
  assert jnp.isfinite(found).all() and found[1] > found[0]


def test_moves_are_judged_by_what_they_make(mlp):
  net, batch = mlp
  moves = [morphisms.prune({'dense1': [0]}), morphisms.prune({'dense2': [1]})]
  data = Data(batch.inputs, batch.targets)
  judge = zero_cost.by_proxy('params')
  found = judge.score(jax.random.key(0), net, moves, [None] * 2, data, ())
  # A unit of the first layer has 5 + 1 + 6 parameters, one of the second 7 + 1
  # + 3; fewer is worse, and worse is positive as of losses.
  assert found.linear.tolist() == [12, 11] and not found.nats
  judge = zero_cost.by_proxy('l2_norm')
  found = judge.score(jax.random.key(0), net, moves, [None] * 2, data, ())
  after = measured(
    moves[0](net, moves[0].init(net, batch.key)), batch, 'l2_norm'
  )['l2_norm']
  before = measured(net, batch, 'l2_norm')['l2_norm']
  assert found.linear[0] == pytest.approx(before - after, rel=1e-4)


@pytest.mark.parametrize(
  ('name', 'widths', 'says'),
  [('naswot', (), 'reads Activation'), ('bn_gamma', (4,), 'reads BatchNorm')],
)
def test_a_proxy_of_ops_that_are_not_there_is_no_judge(name, widths, says):
  net = network.init(seeds.mlp((5,), widths, 3), jax.random.key(0))
  data = Data(jnp.ones((2, 5)), jnp.arange(2))
  with pytest.raises(ValueError, match=says):
    zero_cost.by_proxy(name).score(jax.random.key(0), net, [], [], data, ())


def test_bad_input_is_refused(mlp):
  with pytest.raises(KeyError, match='naswot'):
    zero_cost.by_proxy('swot')
  with pytest.raises(KeyError, match='give a list'):
    zero_cost.measure(zero_cost.of_network(mlp[0]), mlp[1], 'synflow')


def test_the_flow_through_deep_networks_is_a_number(mlp):
  """Where its factors overflow float32; half of the weights in each layer."""
  net, batch = mlp
  small = measured(net, batch, 'synflow')['synflow']
  params = jax.tree.map(lambda leaf: leaf * 1e20, net.variables['params'])
  large = network.Network({**net.variables, 'params': params}, net.spec)
  found = measured(large, batch, 'synflow')['synflow']
  assert found == pytest.approx(small + 3 * np.log(1e20), rel=1e-5)


def test_what_overflows_ranks_last(mlp):
  net, batch = mlp
  params = jax.tree.map(lambda leaf: leaf * 1e30, net.variables['params'])
  large = network.Network({**net.variables, 'params': params}, net.spec)
  assert measured(large, batch, 'l2_norm')['l2_norm'] == -np.inf


@pytest.mark.slow
def test_operations_and_scales_of_a_cell_are_those_of_its_network():
  net = supernet.nas_bench_201(channels=2, repeats=2, shape=(8, 8, 3))
  variables = net.init(jax.random.key(0))
  params = jax.tree.map(lambda leaf: leaf * 1.5, variables['params'])
  variables = {**variables, 'params': params}
  batch = zero_cost.Batch(jnp.ones((2, 8, 8, 3)), jnp.arange(2), None)
  names = ['params', 'flops', 'bn_gamma']

  @jax.jit
  def of_cell(cell):
    subject = zero_cost.of_genotype(net, variables, cell)
    return zero_cost.measure(subject, batch, names)

  for cell in ([3, 0, 2, 1, 4, 3], [0] * 6):
    found = of_cell(jnp.array(cell))
    alone = supernet.unrolled(net, variables, cell)
    want = zero_cost.measure(zero_cost.of_network(alone), batch, names)
    for name in names:
      assert float(found[name]) == pytest.approx(float(want[name])), name
    assert float(found['flops']) == network.flops(alone)
    norms = sum('_bn' in name for name in alone.variables['params'])
    assert float(found['bn_gamma']) == pytest.approx(1.5 * norms)
