"""Union slots: their ops, their genes, and growth that keeps the function."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import mixing
from jaxnas.base import Body, Genes, Member
from jaxnas.spaces import slots

WIDTH = 6


def key(seed=0):
  return jax.random.key(seed)


def inputs(seed=9, dtype=jnp.float32):
  return jax.random.normal(key(seed), (5, WIDTH), dtype)


def normalised(x):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize('activation', range(len(slots.ACTIVATIONS)))
@pytest.mark.parametrize('op', range(len(slots.OPS)))
def test_each_op_is_its_formula(op, activation):
  layer = slots.init(key(), jnp.array([op]), WIDTH)
  layer = layer | {'a': layer['a'] + 0.3, 'b': layer['b'] - 0.2}
  x = inputs()
  found = slots.apply(layer, jnp.array([op]), jnp.array([activation]), x)
  act = list(slots.ACTIVATIONS.values())[activation]
  hidden = {'identity': 0, 'dense': 6, 'half': 3, 'double': 12}[slots.OPS[op]]
  u, a = layer['u'][0][:, :hidden], layer['a'][0][:hidden]
  v, b = layer['v'][0][:hidden], layer['b'][0]
  expected = {
    'identity': lambda: x,
    'dense': lambda: act(x @ u + a[None]),
    'half': lambda: x + act(normalised(x) @ u + a[None]) @ v + b[None],
    'double': lambda: x + act(normalised(x) @ u + a[None]) @ v + b[None],
  }[slots.OPS[op]]()
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fresh_weights_have_the_scale_of_their_op():
  ops = jnp.arange(4)
  layer = slots.init(key(), ops, 64)
  for op, hidden in enumerate((0, 64, 32, 128)):
    u, v = layer['u'][op], layer['v'][op]
    assert not u[:, hidden:].any() and not v[hidden:].any()
    if hidden:
      np.testing.assert_allclose(u[:, :hidden].std() * 8, 1, rtol=0.1)
    if op >= 2:
      scale = v[:hidden].std() * np.sqrt(hidden)
      np.testing.assert_allclose(scale, 1, rtol=0.1)
    else:
      assert not v.any()


@pytest.mark.parametrize('op', range(len(slots.OPS)))
def test_units_out_of_use_have_no_gradient(op):
  # All entries are non-zero, so what is out of use is so by its mask alone.
  full = slots.init(key(), jnp.array([3]), WIDTH)
  genes = jnp.array([op]), jnp.array([3])
  grads = jax.grad(
    lambda layer: jnp.square(slots.apply(layer, *genes, inputs())).sum()
  )(full)
  hidden = (0, 6, 3, 12)[op]
  assert not grads['u'][0][:, hidden:].any()
  assert not grads['v'][0][hidden:].any()
  assert bool(grads['u'][0][:, :hidden].all()) == (hidden > 0) or not hidden
  assert bool(grads['v'].any()) == (op >= 2)
  assert bool(grads['b'].any()) == (op >= 2)


def test_every_gene_changes_the_output():
  ops, activations = jnp.array([2, 1, 3]), jnp.array([1, 2, 3])
  layer = slots.init(key(), jnp.array([3, 3, 3]), WIDTH)
  start = slots.apply(layer, ops, activations, inputs())
  for slot in range(3):
    for step in (1, 2, 3):
      other = ops.at[slot].set((ops[slot] + step) % 4)
      found = slots.apply(layer, other, activations, inputs())
      assert jnp.abs(found - start).max() > 1e-3
      other = activations.at[slot].set((activations[slot] + step) % 4)
      found = slots.apply(layer, ops, other, inputs())
      assert jnp.abs(found - start).max() > 1e-3


def test_genotypes_are_one_program():
  traces = []

  @jax.jit
  def run(ops, activations):
    traces.append(1)
    layer = slots.init(key(), ops, WIDTH)
    return slots.apply(layer, ops, activations, inputs())

  for seed in range(3):
    own = jax.random.randint(key(seed), (2, 4), 0, 4)
    run(own[0], own[1])
  assert len(traces) == 1


def test_join_and_cut_are_inverse():
  pieces = (
    slots.genes(2, 'actor'),
    slots.fixed('head'),
    slots.group('width', (8, 16), ('trunk', 'policy')),
    slots.genes(3, 'critic'),
  )
  joint = slots.join(*pieces)
  assert joint.options == (4,) * 4 + (2,) + (4,) * 6
  assert joint.owner['trunk'] == joint.owner['policy'] == 4
  assert joint.owner['head'] == -1
  np.testing.assert_array_equal(joint.owner['critic'], [5, 6, 7])
  parts = slots.cut(pieces, jnp.arange(11))
  assert [len(part) for part in parts] == [4, 0, 1, 6]
  np.testing.assert_array_equal(jnp.concatenate(parts), jnp.arange(11))
  assert [len(names) for names in joint.values] == list(joint.options)


def test_join_refuses_a_layer_twice():
  with pytest.raises(ValueError, match=r'have actor'):
    slots.join(slots.genes(1, 'actor'), slots.fixed('actor'))


@pytest.mark.parametrize('widths', [(), (8, 4), (0, 4), (4, 4)])
def test_group_refuses_widths(widths):
  with pytest.raises(ValueError, match='ascending'):
    slots.group('width', widths, ('a',))


def test_a_group_gene_masks_both_sides():
  widths = (2, 4, 8)
  for gene, live in enumerate(widths):
    mask = slots.mask(widths, jnp.array(gene))
    trunk = slots.dense(key(1), 3, 8, writes=mask)
    head = slots.dense(key(2), 8, 100, reads=mask)

    def out(held, mask=mask):
      x = slots.linear(held[0], jnp.ones((1, 3))) * mask[None]
      return slots.linear(held[1], jnp.tanh(x)).sum()

    grads = jax.grad(out)((trunk, head))
    assert int((grads[0]['w'] != 0).any(0).sum()) == live
    assert int((grads[1]['w'] != 0).any(1).sum()) == live
    scale = head['w'][:live].std() * np.sqrt(live)
    np.testing.assert_allclose(scale, 1, rtol=0.25)


def test_a_group_gene_moves_both_sides():
  space = slots.join(
    slots.group('width', (2, 4), ('trunk', 'head')), slots.fixed('other')
  )
  taken = mixing.taken(space, jnp.array([True]))
  assert {n: bool(t) for n, t in taken.items()} == {
    'trunk': True,
    'head': True,
    'other': False,
  }


PIECES = (slots.genes(6, 'one'), slots.fixed('head'), slots.genes(6, 'two'))
SPACE = slots.join(*PIECES)


def body(key, own, hyper):
  del hyper
  one, _, two = slots.cut(PIECES, own)
  keys = jax.random.split(key, 5)
  layers = {
    'one': slots.init(keys[0], one[:6], WIDTH),
    'head': slots.dense(keys[1], WIDTH, WIDTH),
    'two': slots.init(keys[2], two[:6], WIDTH),
  }
  # As if trained: no offset is zero that learning would move.
  tx = mixing.layered(optax.adam(1e-3), SPACE)
  return Body(layers, tx.init(layers), {'one': layers['one']}, jnp.ones(3))


def function(layers, own, x):
  one, _, two = slots.cut(PIECES, own)
  x = slots.apply(layers['one'], one[:6], one[6:], x)
  if 'two' in layers:
    x = slots.linear(layers['head'], x)
    x = slots.apply(layers['two'], two[:6], two[6:], x)
  return x


def trained(seed):
  """A member all of whose used weights have moved, moments too."""
  own = (jnp.arange(24) + seed) % 4  # Every op is there, and every activation.
  made = body(key(seed + 1), own, {})
  tx = mixing.layered(optax.adam(0.05), SPACE)
  layers, moments = made.layers, made.moments
  x = inputs(dtype=layers['head']['w'].dtype)
  grads = jax.jit(
    jax.grad(lambda held: jnp.square(function(held, own, x)).sum())
  )
  for _ in range(3):
    updates, moments = tx.update(grads(layers), moments, layers)
    layers = optax.apply_updates(layers, updates)
  average = {'one': jax.tree.map(lambda w: 0.9 * w, layers['one'])}
  return Member(
    made._replace(layers=layers, moments=moments, average=average), own
  )


def grown(layers, probability):
  """`morph` as one program of a key and a base."""
  child = slots.morph(SPACE, layers, probability=probability)
  return jax.jit(lambda key, base: child(key, base, base, body))


@pytest.mark.slow
def test_morph_keeps_the_function_in_float64():
  with jax.enable_x64(True):
    base = trained(0)
    x = inputs(3, jnp.float64)
    before = function(base.body.layers, base.genes, x)
    averaged = function(base.body.average, base.genes, x)
    grow = grown(('one', 'two'), 1.0)
    for seed in range(3):
      child = grow(key(seed), base)
      assert child.body.layers['one']['u'].dtype == jnp.float64
      grew = np.flatnonzero(child.genes != base.genes)
      assert len(grew) == 6
      after = function(child.body.layers, child.genes, x)
      np.testing.assert_allclose(after, before, rtol=0, atol=1e-12)
      after = function(child.body.average, child.genes, x)
      np.testing.assert_allclose(after, averaged, rtol=0, atol=1e-12)
      # Failing control: the same genes with the fresh weights of an op.
      other = base._replace(
        body=base.body._replace(layers=body(key(seed), child.genes, {}).layers)
      )
      assert (
        jnp.abs(function(other.body.layers, child.genes, x) - before).max()
        > 0.1
      )
      # And what grew does something once its new weights are not zero.
      moved = jax.tree.map(
        lambda new, old: new + 0.1 * (new == 0),
        child.body.layers,
        base.body.layers,
      )
      assert jnp.abs(function(moved, child.genes, x) - before).max() > 1e-3


@pytest.mark.slow
def test_morph_grows_only_what_can_grow():
  base = trained(5)
  child = grown(('one',), 1.0)(key(0), base)
  old, new = np.asarray(base.genes), np.asarray(child.genes)
  ops = np.asarray(SPACE.owner['one'])
  assert set(new[ops][old[ops] == 0]) <= {2, 3}
  assert (new[ops][old[ops] == 2] == 3).all()
  stay = np.isin(old[ops], (1, 3))
  assert stay.any() and (new[ops][stay] == old[ops][stay]).all()
  others = np.setdiff1d(np.arange(24), ops)
  np.testing.assert_array_equal(new[others], old[others])
  for layer in ('head', 'two'):
    for a, b in zip(
      jax.tree.leaves(child.body.layers[layer]),
      jax.tree.leaves(base.body.layers[layer]),
    ):
      np.testing.assert_array_equal(a, b)
  count = child.body.moments['one'][0].count
  np.testing.assert_array_equal(count, np.where(stay, 3, 0))


@pytest.mark.slow
def test_morph_of_nothing_is_the_base_itself():
  base = trained(7)
  child = grown(('one', 'two'), 0.0)(key(0), base)
  for a, b in zip(jax.tree.leaves(child), jax.tree.leaves(base)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_new_units_learn_after_a_morph():
  base = Member(body(key(), jnp.zeros(24, int), {}), jnp.zeros(24, int))
  child = grown(('one',), 1.0)(key(1), base)
  own = child.genes.at[6:12].set(1)
  grads = jax.grad(
    lambda held: jnp.square(function(held, own, inputs())).sum()
  )(child.body.layers)
  assert grads['one']['v'].any(axis=(1, 2)).all()


def test_morph_refuses_layers_without_slots():
  with pytest.raises(ValueError, match="'head' holds no slots"):
    slots.morph(SPACE, ('head',))
  # Stacked layers whose genes choose something else.
  other = Genes((2, 2), {'a': np.arange(2)}, ('x', 'y'), (('n', 'm'),) * 2)
  assert slots.held(SPACE) == ('one', 'two')
  assert slots.held(other) == slots.held(other._replace(values=())) == ()
  with pytest.raises(ValueError, match="'a' holds no slots"):
    slots.morph(other, ('a',))
