"""Layers: both forms of convolution, pools, norms, and their axes as data."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import strategies

from jaxnas import layers, morphisms, network, testing
from jaxnas import spec as specs
from jaxnas.spaces import seeds


def random(*shape):
  return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize('depthwise', [False, True])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize(
  ('image', 'window', 'strides'),
  [
    ((6, 6), (3, 3), (1, 1)),
    ((7, 6), (3, 3), (2, 2)),
    ((6, 7), (2, 2), (2, 2)),
    ((5, 4), (1, 1), (2, 3)),
    ((8, 5), (4, 3), (3, 1)),
    ((7, 7), (5, 2), (3, 3)),
    ((4, 9), (1, 4), (1, 4)),
    ((4, 4), (2, 3), (4, 5)),
  ],
)
def test_patches_equal_native(image, window, strides, padding, depthwise, x64):
  x = random(2, *image, 3)
  kernel = random(*window, 1, 3) if depthwise else random(*window, 3, 4)

  @functools.partial(jax.jit, static_argnums=2)
  def values_and_gradients(x, kernel, form):
    def conv(x, kernel):
      return layers.conv2d(
        x, kernel, strides, padding, depthwise=depthwise, form=form
      )

    y, pull = jax.vjp(conv, x, kernel)
    return y, pull(jnp.sin(jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)))

  native, patches = (
    values_and_gradients(x, kernel, form) for form in ('native', 'patches')
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
    patches,
    native,
  )
  op = specs.Conv(4, window, strides, padding=padding)
  assert native[0].shape[1:3] == op.shape(x.shape[1:])[:2]


@pytest.mark.parametrize('reduce', ['max', 'mean'])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize(
  ('image', 'window', 'strides'),
  [
    ((6, 4), (2, 2), (2, 2)),
    ((7, 6), (2, 2), (2, 2)),
    ((6, 6), (3, 3), (3, 3)),
    ((6, 7), (3, 2), (1, 2)),
    ((5, 5), (3, 3), (2, 2)),
    ((5, 8), (2, 1), (3, 3)),
  ],
)
def test_pools_equal_those_of_flax(
  image, window, strides, padding, reduce, x64
):
  x = random(2, *image, 3) - 5  # Padding with zero would win the maximum.
  x[x < -5.5] = -5.5  # As a ReLU does, for ties.
  op = specs.Pool(reduce, window, strides, padding)
  pool = {
    'max': nn.max_pool,
    'mean': functools.partial(nn.avg_pool, count_include_pad=False),
  }[reduce]

  def value_and_gradient(pool):
    y, pull = jax.vjp(pool, jnp.asarray(x))
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

  expected = value_and_gradient(lambda x: pool(x, window, strides, padding))
  got = value_and_gradient(functools.partial(layers.pool2d, op=op))
  for a, b in zip(got, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
  assert got[0].shape[1:] == op.shape(x.shape[1:])


def test_conv_form_is_one_of_three(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  assert layers.conv_form() == 'patches'
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert layers.conv_form() == 'native'
  assert layers.conv_form('patches') == 'patches'
  with pytest.raises(ValueError, match="'patches' or 'images', got"):
    layers.conv_form('winograd')


def test_activations_are_those_that_specs_name():
  assert set(layers.ACTIVATIONS) == set(specs.ACTIVATIONS)


@pytest.mark.parametrize('fn', specs.ACTIVATIONS)
def test_activations_have_the_properties_that_moves_rely_on(fn, x64):
  s = layers.ACTIVATIONS[fn]
  x = jnp.linspace(-6, 6, 241)
  gain = {'leaky_relu': 1.1}.get(fn, 1.0)
  odd_part = np.abs((s(x) - s(-x)) / gain - x).max()
  pairs = ('relu', 'gelu', 'silu', 'hard_swish', 'softplus', 'leaky_relu')
  assert (odd_part < 1e-12) == (fn in pairs)
  idempotent = np.abs(s(jax.nn.relu(x)) - jax.nn.relu(x)).max() < 1e-12
  assert idempotent == (fn in ('relu', 'leaky_relu', 'elu'))


@hypothesis.settings(max_examples=50, derandomize=True, database=None)
@hypothesis.given(strategies.specs_of_all_ops())
def test_axes_describe_the_variables_of_every_layer(spec):
  variables = network.shapes(spec).variables
  found = {
    (collection, node, name): leaf.shape
    for collection, nodes in variables.items()
    for node, held in nodes.items()
    for name, leaf in held.items()
  }
  described = set()
  for node in spec.nodes:
    for (collection, name), roles in layers.axes(node.op).items():
      described.add((collection, node.name, name))
      shape = found[collection, node.name, name]
      assert len(shape) == len(roles)
      widths = {'out': spec.shapes[node.name][-1]}
      if node.inputs:
        widths['in'] = spec.shapes[node.inputs[0]][-1]
      for role, size in zip(roles, shape):
        assert role is None or widths[role] == size
  assert described == set(found)


def test_batch_norm_uses_running_statistics_in_evaluation_only():
  module = seeds.sequential((3,), [('bn', specs.BatchNorm(momentum=0.9))])
  module = module.module()
  x = random(16, 3).astype('float32') * 2 + 1
  variables = module.init(jax.random.key(0), x)
  np.testing.assert_allclose(module.apply(variables, x), x, rtol=1e-4)
  y, held = module.apply(variables, x, train=True, mutable=['batch_stats'])
  np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(y.std(0), 1, atol=1e-3)
  mean = held['batch_stats']['bn']['mean']
  np.testing.assert_allclose(mean, 0.1 * x.mean(0), rtol=1e-4)


def test_a_masked_layer_norm_counts_active_channels_only():
  spec = seeds.sequential(
    (4,),
    [('a', specs.Dense(3)), ('ln', specs.LayerNorm()), ('b', specs.Dense(2))],
  )
  net = strategies.random_network(spec, np.float32)
  padded = morphisms.pad({'a': 8})(net, ())
  x = random(5, 4).astype('float32')
  np.testing.assert_allclose(
    network.apply(padded, x), network.apply(net, x), rtol=1e-4
  )


# An operation of a user's own.


@dataclasses.dataclass(frozen=True)
class PRelu:
  """A leaky ReLU with a learned slope for each channel (He et al., 2015)."""

  init: float = 0.25
  kind: ClassVar[str] = 'channelwise'

  def shape(self, x):
    return x


class PReluLayer(nn.Module):
  """The layer of `PRelu`."""

  op: PRelu

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.constant(self.op.init)
    slope = self.param('slope', init, x.shape[-1:])
    return jnp.where(x > 0, x, x * slope[(None,) * (x.ndim - 1)])


@layers.layer.register
def _(op: PRelu, name, conv):
  del conv
  layer = PReluLayer(op, name=name)
  return lambda x, train, mask: layer(x)


@layers.axes.register
def _(op: PRelu):
  del op
  return {('params', 'slope'): ('out',)}


@dataclasses.dataclass(frozen=True)
class Shift:
  """Adds a constant, and so fills channels that were zero."""

  by: float = 1.0
  kind: ClassVar[str] = 'channelwise'

  def shape(self, x):
    return x


@layers.layer.register
def _(op: Shift, name, conv):
  del name, conv
  return lambda x, train, mask: x + op.by


OWN_OPS = seeds.sequential(
  (5, 5, 1),
  [
    ('stem', specs.Conv(3)),
    ('prelu', PRelu()),
    ('shift', Shift()),
    ('ln', specs.LayerNorm()),
    ('point', specs.Conv(2, (1, 1))),
    ('pool', specs.GlobalPool()),
    ('logits', specs.Dense(2)),
  ],
)


@pytest.mark.parametrize(
  'move',
  [
    morphisms.widen({'stem': 6, 'point': 3}),
    morphisms.split({'stem': [0, 1, 2]}),
    morphisms.insert('prelu', form='residual'),
    morphisms.pad({'stem': 5, 'point': 4}),
  ],
)
def test_moves_hold_their_laws_on_operations_of_a_users_own(move, x64):
  assert specs.from_json(specs.to_json(OWN_OPS)) == OWN_OPS
  testing.check_morphism(move, strategies.random_network(OWN_OPS))


def test_channels_filled_by_an_op_of_a_users_own_stay_masked(x64):
  net = strategies.random_network(OWN_OPS)
  padded = morphisms.pad({'stem': 5})(net, ())
  call = network.caller(padded.spec, padded.variables)
  values = network.walk(padded.spec, call, jnp.asarray(random(2, 5, 5, 1)))
  assert (values['shift'][..., 3:] == 0).all()
  assert (values['shift'][..., :3] != 0).all()


def test_an_op_without_a_layer_is_refused():
  @dataclasses.dataclass(frozen=True)
  class Unknown:
    """Has a shape and no layer."""

    kind: ClassVar[str] = 'channelwise'

    def shape(self, x):
      return x

  spec = seeds.sequential((3,), [('what', Unknown())])
  with pytest.raises(TypeError, match=r'no layer for .*Unknown.*register'):
    network.shapes(spec)


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('window', [(2, 2), (3, 1)])
def test_gradients_of_pooling_go_to_the_first_of_the_largest(window, padding):
  """Of equal ones in the order of rows; windows that tile and that do not."""
  rng = np.random.default_rng(0)
  tiled, odd = ((2, 6, 4, 3), (2, 7, 5, 3))
  for shape in (tiled, odd):
    x = rng.integers(0, 3, shape).astype(np.float32)
    op = specs.Pool('max', window, window, padding)
    y, back = jax.vjp(functools.partial(layers.pool2d, op=op), x)
    dy = rng.normal(size=y.shape).astype(np.float32)
    (dx,) = back(dy)
    expected = np.zeros(shape, np.float32)
    pads = layers.lax.padtype_to_pads(shape[1:3], window, window, padding)
    for i, j in np.ndindex(y.shape[1:3]):
      top, left = (
        max(0, n * w - p[0]) for n, w, p in zip((i, j), window, pads)
      )
      bottom, right = (
        (n + 1) * w - p[0] for n, w, p in zip((i, j), window, pads)
      )
      part = x[:, top:bottom, left:right]
      flat = part.reshape((shape[0], -1, shape[3]))
      np.testing.assert_array_equal(y[:, i, j], flat.max(axis=1))
      first = np.eye(flat.shape[1])[flat.argmax(axis=1)].swapaxes(1, 2)
      expected[:, top:bottom, left:right] = (
        first * dy[:, i, j][:, None]
      ).reshape(part.shape)
    np.testing.assert_allclose(dx, expected, rtol=1e-6)
