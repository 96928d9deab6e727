"""Networks: the Linen module of a spec, and what is counted of it."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import strategies

from jaxnas import groups, morphisms, network
from jaxnas import spec as specs
from jaxnas.spaces import seeds

CONVNET = seeds.sequential(
  (6, 6, 2),
  [
    ('conv', specs.Conv(3, use_bias=False)),
    ('bn', specs.BatchNorm()),
    ('act', specs.Activation()),
    ('drop', specs.Dropout(0.5)),
    ('pool', specs.GlobalPool()),
    ('logits', specs.Dense(4)),
  ],
)


def images(batch=3):
  rng = np.random.default_rng(0)
  return rng.normal(size=(batch, 6, 6, 2)).astype('float32')


def test_module_is_an_ordinary_linen_module():
  module = CONVNET.module()
  table = module.tabulate(jax.random.key(0), images())
  for name in ('conv', 'bn', 'drop', 'logits', 'batch_stats'):
    assert name in table
  variables = module.init(jax.random.key(0), images())
  assert variables['params']['conv']['kernel'].shape == (3, 3, 2, 3)
  assert set(variables['batch_stats']) == {'bn'}
  out, state = module.apply(
    variables, images(), capture_intermediates=True, mutable=['intermediates']
  )
  assert out.shape == (3, 4)
  assert 'logits' in state['intermediates']


def test_training_updates_statistics_and_needs_a_key_for_dropout():
  module = CONVNET.module()
  variables = module.init(jax.random.key(0), images())
  with pytest.raises(Exception, match='dropout'):
    module.apply(variables, images(), train=True, mutable=['batch_stats'])

  def trained(seed):
    return module.apply(
      variables,
      images(),
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(seed)},
    )

  (one, state), (two, _) = trained(1), trained(2)
  assert not np.allclose(one, two)
  before, after = variables['batch_stats']['bn'], state['batch_stats']['bn']
  assert not np.allclose(before['mean'], after['mean'])
  plain = module.apply(variables, images())
  np.testing.assert_array_equal(plain, module.apply(variables, images()))


def test_a_network_trains_with_optax():
  net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
  x = np.random.default_rng(0).normal(size=(32, 4)).astype('float32')
  y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0)
  optimizer = optax.adam(0.05)

  @jax.jit
  def step(params, state):
    def loss(params):
      out = net.spec.module().apply({'params': params}, x)
      return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    value, gradients = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, value

  params = net.variables['params']
  state, losses = optimizer.init(params), []
  for _ in range(60):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert losses[-1] < 0.3 * losses[0]


@hypothesis.settings(max_examples=12, derandomize=True, database=None)
@hypothesis.given(strategies.specs_of_all_ops())
def test_module_and_walk_compute_the_same_in_both_forms(x64, spec):
  net = strategies.random_network(spec)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *spec.shapes[spec.input]))

  @jax.jit
  def outputs(net, x):
    call = network.caller(net.spec, net.variables, 'native')
    walked = network.walk(net.spec, call, x)
    forms = [network.apply(net, x, conv=f) for f in ('native', 'patches')]
    return walked, forms

  values, forms = outputs(net, x)
  assert {n: v.shape[1:] for n, v in values.items()} == spec.shapes
  for form in forms:
    np.testing.assert_allclose(values[spec.output], form, 1e-10, 1e-10)


def test_walk_reads_what_it_is_told_to():
  net = strategies.random_network(seeds.mlp((2,), (3,), 1), np.float32)
  call = network.caller(net.spec, net.variables)
  read_from = []

  def silent(source, value):
    read_from.append(source)
    return value * 0

  values = network.walk(net.spec, call, jnp.ones((1, 2)), silent)
  assert read_from == ['input', 'act1']  # Not what channelwise nodes read.
  for node in ('dense1', 'logits'):
    bias = net.variables['params'][node]['bias']
    np.testing.assert_allclose(values[node][0], bias, rtol=1e-6)


def test_init_is_a_function_of_the_key_and_of_names():
  spec = seeds.mlp((4,), (8,), 3)
  one, two = (network.init(spec, jax.random.key(1)) for _ in range(2))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  other = network.init(spec, jax.random.key(2))
  assert not np.allclose(
    one.variables['params']['dense1']['kernel'],
    other.variables['params']['dense1']['kernel'],
  )
  key = jax.random.key(0)
  a, b = (
    jax.random.key_data(network.named_key(key, name)) for name in ('a', 'b')
  )
  assert (a != b).any()


def test_shapes_allocate_nothing_and_equal_those_of_init():
  planned = network.shapes(CONVNET)
  built = network.init(CONVNET, jax.random.key(0))
  assert all(
    isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(planned)
  )
  assert planned == jax.eval_shape(lambda: built)


def test_apply_refuses_inputs_of_another_shape():
  net = network.init(CONVNET, jax.random.key(0))
  with pytest.raises(
    ValueError, match=r'\(batch, .*6, 6, 2.*got \(3, 5, 6, 2\)'
  ):
    network.apply(net, images()[:, 1:])


def conv_bn(window, inputs, outputs):
  """Parameters of a convolution without bias and a batch norm."""
  return window * window * inputs * outputs + 2 * outputs


def vgg19_params():
  widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
  convs = zip([3, *widths], widths)
  return sum(conv_bn(3, i, o) for i, o in convs) + 512 * 10 + 10


def resnet20_params():
  total, width = conv_bn(3, 3, 16), 16
  for stage in (16, 32, 64):
    for _ in range(3):
      total += conv_bn(3, width, stage) + conv_bn(3, stage, stage)
      total += conv_bn(1, width, stage) if width != stage else 0
      width = stage
  return total + 64 * 10 + 10


def mobilenet_params():
  widths = [32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024]
  total = conv_bn(3, 3, 32)
  for i, o in zip(widths, widths[1:]):
    total += 9 * i + 2 * i + conv_bn(1, i, o)
  return total + 1024 * 10 + 10


@pytest.mark.parametrize(
  ('spec', 'by_formula', 'published'),
  [
    (seeds.vgg19((32, 32, 3), 10), vgg19_params(), 20_035_018),
    (seeds.resnet(10), resnet20_params(), 272_474),
    (seeds.mobilenet_v1((32, 32, 3), 10), mobilenet_params(), 3_217_226),
  ],
  ids=['vgg19', 'resnet20', 'mobilenet_v1'],
)
def test_parameter_counts_of_published_networks(spec, by_formula, published):
  assert network.param_count(spec) == by_formula == published


def test_seeds_of_one_width():
  for spec in (
    seeds.vgg19((32, 32, 3), 10, width=16),
    seeds.mobilenet_v1((32, 32, 3), 10, width=16),
    seeds.resnet(10, widths=(16, 16, 16)),
  ):
    assert {g.size for g in groups.growable(spec)} == {16}


def test_flops_count_multiply_adds_twice():
  # 36 positions of 3 x 3 x 2 x 3, and 3 x 4.
  assert network.flops(CONVNET) == 2 * (36 * 54 + 12)
  depthwise = seeds.sequential((6, 6, 2), [('d', specs.DepthwiseConv())])
  assert network.flops(depthwise) == 2 * 36 * 9 * 2


def test_padding_does_not_count():
  net = network.init(CONVNET, jax.random.key(0))
  padded = morphisms.pad({'conv': 8})(net, ())
  assert padded.spec.shapes['conv'] == (6, 6, 8)
  assert network.active_spec(padded) == CONVNET
  assert network.param_count(padded) == network.param_count(CONVNET)
  assert network.flops(padded) == network.flops(CONVNET)


def test_a_fresh_padded_network_has_all_channels_active():
  padded = specs.Spec(CONVNET.nodes, CONVNET.output, padded=('conv',))
  net = network.init(padded, jax.random.key(0))
  assert net.variables['arch']['active'] == {'conv': 3}
  plain = {c: v for c, v in net.variables.items() if c != 'arch'}
  np.testing.assert_allclose(
    network.apply(net, images()),
    network.apply(network.Network(plain, CONVNET), images()),
    rtol=1e-6,
  )


def test_the_active_count_is_data():
  net = network.init(CONVNET, jax.random.key(0))
  padded = morphisms.pad({'conv': 8})(net, ())
  traces = []

  @jax.jit
  def outputs(net, x):
    traces.append(net.spec)
    return network.apply(net, x)

  outputs(padded, images())
  wider = network.init(
    CONVNET.update({'conv': specs.Conv(5, use_bias=False)}), jax.random.key(1)
  )
  outputs(morphisms.pad({'conv': 8})(wider, ()), images())
  assert len(traces) == 1


def test_to_host_copies_to_numpy():
  net = network.to_host(network.init(CONVNET, jax.random.key(0)))
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(net))
  assert net.spec == CONVNET
