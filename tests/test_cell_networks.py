"""Networks of cells: exact parameters, the right arithmetic, one program."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import layers, network
from jaxnas import spec as specs
from jaxnas.spaces import cell, cell_networks, supernet
from jaxnas.spaces import nas_bench_101 as bench101
from jaxnas.spaces import nas_bench_201 as bench201

# One cell of each of the 28 cost classes of NAS-Bench-201.
CLASSES = [
  [3] * wide + [2] * narrow + [(0, 1, 4)[i % 3] for i in range(rest)]
  for wide, narrow in itertools.product(range(7), repeat=2)
  if (rest := 6 - wide - narrow) >= 0
]

INCEPTION = bench101.cell(
  '0-1 0-2 0-3 0-5 1-6 2-6 3-4 4-6 5-6',
  'conv1x1 conv3x3 conv3x3 conv3x3 maxpool3x3',
)
NARROW = bench101.cell(
  '0-1 1-2 1-3 1-4 2-6 3-6 4-6 0-6', 'conv1x1 conv3x3 maxpool3x3 conv1x1'
)


# A family with two blocks and an operation of every kind.
SMALL = cell.Grammar(
  'small', ('max3', 'avg3', 'skip', 'sep3', 'dil5', '7x1_1x7'), blocks=2
)


def test_parameters_of_every_class_of_nas_bench_201():
  assert len(CLASSES) == 28
  for genotype in CLASSES:
    wide, narrow = genotype.count(3), genotype.count(2)
    spec = cell_networks.nas_bench_201(genotype, repeats=1)
    want = 72_656 + 650 + (243_040 * wide + 28_000 * narrow) // 5
    assert network.param_count(spec) == want


@pytest.mark.slow
def test_parameters_of_every_class_with_the_official_skeleton():
  for genotype in CLASSES:
    spec = cell_networks.nas_bench_201(genotype)
    assert network.param_count(spec) == int(bench201.params(genotype))
    # Those count the bias of the last layer.
    assert network.flops(spec) // 2 + 10 == int(bench201.flops(genotype))


@pytest.mark.parametrize(
  ('genotype', 'classes', 'params'),
  [([3, 0, 3, 1, 0, 1], 10, 559_386), ([3, 3, 3, 1, 3, 3], 100, 1_294_356)],
)
def test_named_cells_of_nas_bench_201(genotype, classes, params):
  spec = cell_networks.nas_bench_201(genotype, classes=classes)
  assert network.param_count(spec) == params
  assert spec.shapes['last_relu'] == (8, 8, 64)


@pytest.mark.parametrize('genotype', [INCEPTION, NARROW, bench101.cell('0-6')])
def test_parameters_of_nas_bench_101(genotype):
  how = {'channels': 7, 'stacks': 2, 'modules': 2, 'classes': 5}
  spec = cell_networks.nas_bench_101(genotype, shape=(4, 4, 3), **how)
  assert network.param_count(spec) == int(bench101.param_count(genotype, **how))


@pytest.mark.slow
def test_published_parameters_of_nas_bench_101():
  spec = cell_networks.nas_bench_101(INCEPTION)
  assert network.param_count(spec) == 2_694_282


@pytest.mark.parametrize('name', ['darts_v2', 'nasnet_a', 'amoebanet_a'])
def test_parameters_of_darts(name):
  grammar, genotype = cell.named(name)
  how = {'channels': 4, 'layers': 3, 'classes': 5}
  spec = cell_networks.darts(grammar, genotype, shape=(8, 8, 3), **how)
  assert network.param_count(spec) == cell.params(grammar, genotype, **how)


@pytest.mark.slow
@pytest.mark.parametrize('name', list(cell.NAMED))
def test_published_parameters_of_darts(name):
  grammar, genotype = cell.named(name)
  spec = cell_networks.darts(grammar, genotype)
  assert network.param_count(spec) == cell.params(grammar, genotype)
  if name == 'darts_v2':  # With the bias of the last layer.
    assert network.flops(spec) // 2 + 10 == 528_359_050


def test_an_input_that_no_block_reads_keeps_its_parameters():
  grammar = cell.ECONAS
  genotype = cell.parse(grammar, *['none:0 skip:0 ' * 4] * 2)
  how = {'channels': 2, 'layers': 3, 'classes': 5}
  spec = cell_networks.darts(grammar, genotype, shape=(8, 8, 3), **how)
  assert network.param_count(spec) == cell.params(grammar, genotype, **how)


@pytest.mark.parametrize(
  'spec',
  [
    cell_networks.nas_bench_101(
      NARROW, channels=7, stacks=1, modules=1, shape=(4, 4, 3)
    ),
    cell_networks.darts(
      SMALL,
      cell.parse(
        SMALL, 'sep3:0 skip:1 dil5:2 max3:0', 'skip:0 avg3:1 7x1_1x7:2 sep3:1'
      ),
      channels=2,
      layers=3,
      shape=(8, 8, 3),
    ),
  ],
  ids=['nas_bench_101', 'darts'],
)
def test_networks_run(spec):
  assert specs.from_json(specs.to_json(spec)) == spec
  shape = spec.shapes[spec.input]
  draw = np.random.default_rng(0).normal
  variables = jax.tree.map(
    lambda leaf: draw(size=leaf.shape).astype(np.float32),
    network.shapes(spec).variables,
  )

  @jax.jit
  def run(variables, x):
    return spec.module().apply(variables, x, True, mutable=['batch_stats'])[0]

  logits = run(variables, draw(size=(2, *shape)).astype(np.float32))
  assert logits.shape == (2, 10) and jnp.isfinite(logits).all()
  assert not jnp.allclose(*logits)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('dilation', [1, 2])
def test_even_padding_is_the_same_on_both_sides(stride, dilation):
  x = np.random.default_rng(0).normal(size=(1, 6, 6, 2)).astype(np.float32)
  kernel = np.random.default_rng(1).normal(size=(3, 3, 1, 2)).astype(np.float32)
  how = {'depthwise': True, 'dilation': (dilation,) * 2}
  found = [
    layers.conv2d(x, kernel, (stride,) * 2, 'EVEN', form=form, **how)
    for form in ('native', 'patches')
  ]
  np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)
  op = specs.DepthwiseConv(
    (3, 3), (stride,) * 2, False, 'EVEN', (dilation,) * 2
  )
  assert found[0].shape[1:] == op.shape((6, 6, 2))
  # The first output reads from `dilation` before the image on.
  taps = kernel[1:, 1:, 0] * x[0, [0, dilation]][:, [0, dilation]]
  np.testing.assert_allclose(found[0][0, 0, 0], taps.sum((0, 1)), rtol=1e-4)
  same = layers.conv2d(x, kernel, (stride,) * 2, 'SAME', form='patches', **how)
  assert np.allclose(found[0], same, atol=1e-4) == (stride == 1)


def test_edges_that_carry_nothing():
  spec = specs.Spec(
    (
      specs.Node('image', specs.Input((4, 4, 3))),
      specs.Node('trim', specs.Trim(), ('image',)),
      specs.Node('narrow', specs.Narrow(2), ('trim',)),
      specs.Node('back', specs.ZeroPad(1, 1), ('narrow',)),
      specs.Node('zero', specs.Zero((2, 2)), ('back',)),
    ),
    'zero',
  )
  assert spec.shapes['trim'] == (3, 3, 3)
  assert spec.shapes['zero'] == (2, 2, 2)
  x = jnp.arange(48.0).reshape(1, 4, 4, 3)
  values = network.walk(spec, network.caller(spec, {}), x)
  np.testing.assert_array_equal(values['narrow'], x[:, 1:, 1:, :2])
  assert spec.shapes['back'] == values['back'].shape[1:] == (4, 4, 2)
  np.testing.assert_array_equal(values['back'][:, 1:, 1:], values['narrow'])
  assert not values['back'][:, 0].any() and not values['back'][:, :, 0].any()
  assert not values['zero'].any()


GENOTYPES = ([3, 0, 3, 1, 0, 1], [2, 3, 4, 1, 3, 2], [0] * 6)


@pytest.fixture(scope='module')
def nets():
  how = {'channels': 2, 'repeats': 2, 'shape': (8, 8, 3), 'classes': 4}
  # Of the initialisers the fastest to compile.
  how['kernel_init'] = nn.initializers.variance_scaling(2, 'fan_in', 'uniform')
  made = {
    select: supernet.nas_bench_201(select=select, **how)
    for select in ('switch', 'mask')
  }
  return made, jax.jit(made['mask'].init)(jax.random.key(0))


@pytest.mark.parametrize(
  'select', ['switch', pytest.param('mask', marks=pytest.mark.slow)]
)
def test_one_program_is_every_network(nets, select):
  net, variables = nets[0][select], nets[1]
  x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
  traces = []

  @jax.jit
  def loss(params, genotype, x):
    traces.append(genotype)

    def value(params):
      own = {**variables, 'params': params}
      found = net.apply(own, genotype, x, train=True)
      return jnp.square(found.logits).mean(), found

    if select == 'switch':  # Its gradients take twice as long to compile.
      return None, value(params)[1]
    return jax.grad(value, has_aux=True)(params)

  for genotype in (*GENOTYPES[::2], GENOTYPES[1]):
    slopes, found = loss(variables['params'], jnp.array(genotype), x)
    # What the genotype does not have does not learn.
    if slopes is not None:
      unused = jax.tree.map(
        lambda slope, used: abs(slope * (1 - used)).max(),
        slopes,
        net.used(genotype),
      )
      assert max(map(float, jax.tree.leaves(unused))) == 0
    if genotype is not GENOTYPES[1]:  # One has all operations.
      continue
    single = supernet.unrolled(net, variables, genotype)
    module = single.spec.module()
    logits, state = jax.jit(
      lambda v, x, module=module: module.apply(
        v, x, True, mutable=['batch_stats']
      )
    )(single.variables, x)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    moved = {**variables, 'batch_stats': found.batch_stats}
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      supernet.unrolled(net, moved, genotype).variables['batch_stats'],
      dict(state['batch_stats']),
    )
  assert len(traces) == 1
  # Another cell with these weights is another function.
  first = loss(variables['params'], jnp.array(GENOTYPES[0]), x)[1].logits
  assert not np.allclose(first, found.logits, atol=1e-3)


def test_parameters_in_use_are_those_of_the_network(nets):
  net, variables = nets[0]['mask'], nets[1]
  for genotype in GENOTYPES[1:]:
    used = jax.tree.map(
      lambda leaf, used: jnp.broadcast_to(used, leaf.shape).sum(),
      variables['params'],
      net.used(genotype),
    )
    assert sum(jax.tree.leaves(used)) == network.param_count(net.spec(genotype))


def test_without_norms_a_network_is_homogeneous(nets):
  net, variables = nets[0]['mask'], nets[1]
  genotype = jnp.array(GENOTYPES[0])
  x = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))
  run = jax.jit(lambda x: net.apply(variables, genotype, x, norm=False).logits)
  np.testing.assert_allclose(run(2 * x), 2 * run(x), rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused(nets):
  with pytest.raises(ValueError, match=r'in 0..4, got \[5, 5, 5'):
    cell_networks.nas_bench_201([5] * 6)
  for name in ('used', 'flops'):
    with pytest.raises(ValueError, match=rf'{name}: .* in 0..4, got \[9, 9'):
      getattr(nets[0]['mask'], name)([9] * 6)
  with pytest.raises(ValueError, match=r'apply: .* in 0..4, got \[9, 9'):
    nets[0]['mask'].apply(nets[1], [9] * 6, jnp.zeros((1, 8, 8, 3)))
  for place, op in ((21, 7), (25, -1)):
    wrong = np.asarray(INCEPTION).copy()
    wrong[place] = op
    with pytest.raises(ValueError, match=f'nas_bench_101: .* got .*{op}'):
      cell_networks.nas_bench_101(wrong)
  with pytest.raises(ValueError, match=r'26 whole .* got shape \(20,\)'):
    cell_networks.nas_bench_101(wrong[:20])
  with pytest.raises(ValueError, match=r'darts: .* got shape \(31,\)'):
    cell_networks.darts(cell.DARTS, cell.named('darts_v2')[1][:31])
  with pytest.raises(ValueError, match='not legal'):
    cell_networks.nas_bench_101(bench101.cell('0-1'))
  with pytest.raises(ValueError, match='even'):
    cell_networks.darts(*cell.named('darts_v2'), channels=3)
  with pytest.raises(ValueError, match="'mask'"):
    supernet.nas_bench_201(select='best')
  with pytest.raises(ValueError, match='multiples of 4'):
    supernet.nas_bench_201(shape=(6, 6, 3))
  with pytest.raises(ValueError, match='images must have shape'):
    nets[0]['mask'].apply(nets[1], [0] * 6, jnp.zeros((1, 4, 4, 3)))
  with pytest.raises(ValueError, match='no 4 channels'):
    specs.Narrow(4).shape((2, 2, 3))
  with pytest.raises(ValueError, match='leave nothing'):
    specs.Trim(2, 2).shape((2, 2, 3))
