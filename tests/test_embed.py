"""Depth as data: networks stored within deeper ones compute what they did."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas import (
  Candidate,
  Population,
  combine,
  count_compilations,
  forms,
  morphisms,
  network,
  plans,
  stages,
  tasks,
  testing,
  training,
)
from jaxnas import spec as specs
from jaxnas.morphisms.embed import Extract
from jaxnas.spaces import seeds
from jaxnas.stages.likeness import Room, alike

CLASSES = 3


def blocks(convs, hidden, *, shape=(8, 8, 2), widths=(2, 3), pool='max'):
  """Runs of convolutions with a pooling between, and hidden dense layers."""
  nodes, before = [specs.Node('image', specs.Input(shape))], 'image'

  def add(name, op):
    nonlocal before
    nodes.append(specs.Node(name, op, (before,)))
    before = name

  for i, count in enumerate(convs):
    for j in range(count):
      add(f'c{i}_{j}', specs.Conv(widths[j % len(widths)]))
      add(f'n{i}_{j}', specs.BatchNorm())
      add(f'r{i}_{j}', specs.Activation('relu'))
    if i < len(convs) - 1:
      add(f'p{i}', specs.Pool(pool, (2, 2), (2, 2)))
  add('flat', specs.Flatten())
  for j in range(hidden):
    add(f'd{j}', specs.Dense(widths[j % len(widths)] + 1))
    add(f'a{j}', specs.Activation('tanh'))
  add('out', specs.Dense(CLASSES))
  return specs.Spec(tuple(nodes), 'out')


SPECS = st.builds(
  blocks,
  st.lists(st.integers(0, 3), min_size=1, max_size=3).filter(lambda c: c[0]),
  st.integers(0, 3),
)


def dressed(nets, room=Room(channels=4)):
  """Networks as `alike` stores them."""
  seen = []

  def look(population):
    seen.extend(member.net for member in population.members)

  start = Population(tuple(map(Candidate, nets)))
  alike(combine.observe(look), room=room).update(None, start, ())
  return seen


@functools.partial(jax.jit, static_argnums=0)
def _outputs(spec, variables, x):
  return network.apply(network.Network(variables, spec), x)


def outputs(net, x):
  """`network.apply`, compiled as a whole: node by node takes far longer."""
  return _outputs(net.spec, net.variables, x)


def inputs(spec, count=5, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(count, *spec.shapes[spec.input]))


def assert_close(one, two, tolerance=1e-9):
  jax.tree.map(
    functools.partial(
      np.testing.assert_allclose, rtol=tolerance, atol=tolerance
    ),
    one,
    two,
  )


def assert_equal(one, two):
  assert jax.tree.structure(one) == jax.tree.structure(two)
  jax.tree.map(np.testing.assert_array_equal, one, two)


@given(SPECS)
@settings(max_examples=3, deadline=None)
def test_a_network_within_a_deeper_one_computes_what_it_did(spec):
  with jax.enable_x64(True):
    net = strategies.random_network(spec)
    (held,) = dressed([net])
    x = inputs(spec)
    expected = outputs(net, x)
    assert_close(outputs(held, x), expected)
    if not any(map(held.spec.frame, held.spec.optional)):
      # Node by node, as estimators walk.
      values = network.walk(
        held.spec, network.caller(held.spec, held.variables), x
      )
      assert_close(values[held.spec.output], expected)
    assert network.active_spec(held).shapes == {
      new: spec.shapes[old] for old, new in names(spec, held.spec).items()
    }
    for count in (network.param_count, network.flops):
      assert count(held) == count(net)


def names(spec, into):
  """Where in the deeper spec the nodes are: both are chains."""
  left = [
    node.name for node in network.without(into, absent_of(spec, into)).order
  ]
  return dict(zip([node.name for node in spec.order], left, strict=True))


def absent_of(spec, into):
  """The stretches that are not among the first of each run."""
  net = network.to_host(network.init(spec, jax.random.key(0)))
  return network.absent(dressed([net])[0])


def test_it_must_be_known_what_is_absent():
  """The control: with all of the deeper network it is another function."""
  net = strategies.random_network(blocks((1, 1), 1))
  (held,) = dressed([net])
  assert network.absent(held)
  arch = held.variables['arch']
  here = {name: np.bool_(True) for name in arch['present']}
  variables = {**held.variables, 'arch': {**arch, 'present': here}}
  whole = network.Network(variables, held.spec)
  x = inputs(net.spec)
  difference = outputs(whole, x) - outputs(net, x)
  assert float(jnp.abs(difference).max()) > 1e-2


def own_task(spec, count=24):
  rng = np.random.default_rng(1)
  shape = spec.shapes[spec.input]

  def split(n):
    images = rng.normal(size=(n, *shape)).astype(np.float32)
    return images, rng.integers(0, CLASSES, n)

  return tasks.from_arrays(
    'own', train=split(count), valid=split(9), test=split(8), classes=CLASSES
  )


OPTIMIZERS = {
  'adam': optax.adam(1e-2),
  'flattened': optax.flatten(optax.adam(1e-2)),
  'momentum': optax.sgd(0.05, momentum=0.9),
}


@pytest.mark.parametrize(
  ('optimizer', 'form'),
  [
    ('flattened', forms.in_turn),
    pytest.param('adam', forms.in_turn, marks=pytest.mark.slow),
    pytest.param('flattened', forms.at_once, marks=pytest.mark.slow),
    pytest.param('momentum', forms.in_turn, marks=pytest.mark.slow),
    pytest.param('adam', forms.at_once, marks=pytest.mark.slow),
  ],
)
def test_it_trains_as_it_would_alone(x64, optimizer, form):
  """Weights, statistics, moments and losses, over two fits."""
  del x64
  tx, spec = OPTIMIZERS[optimizer], blocks((2, 1), 1)
  task = own_task(spec)
  net = strategies.random_network(spec)
  (held,) = dressed([net])

  def plan(given, **_):
    return [plans.Batch((0,), given[0], form, 1)]

  ends = []
  for start in (net, held):
    state, losses = None, ()
    for i in range(2):
      (fitted,) = training.fit_all(
        *([jax.random.key(i)], [start], task, tx),
        epochs=2,
        batch=8,
        opt_states=[state],
        plan=plan,
      )
      assert fitted.net.spec == start.spec
      start, state = fitted.net, fitted.opt_state
      losses += fitted.losses
    measured = training.evaluate(start, task, task.valid)
    for move in (morphisms.extract, morphisms.uncapped):
      start, state = morphisms.morph(move(start), start, opt_state=state)
    ends.append((start, state, losses, measured))
  back = {new: old for old, new in names(spec, held.spec).items()}
  renamed = morphisms.morph(
    morphisms.rename(back), ends[1][0], opt_state=ends[1][1]
  )
  assert renamed[0].spec == spec
  assert_close((*renamed, *ends[1][2:]), ends[0], 1e-7)


@given(SPECS)
@settings(max_examples=10, deadline=None)
def test_extract_undoes_embed(spec):
  net = strategies.random_network(spec)
  state = optax.adam(1.0).init(net.variables['params'])
  start = Population((Candidate(net, opt_state=network.to_host(state)),))
  same = alike(combine.observe(lambda population: None), room=Room(4))
  last, _ = same.update(None, start, ())
  assert_equal(last.members[0].net, net)
  assert_equal(last.members[0].opt_state, start.members[0].opt_state)


def test_moves_between_depths_are_lawful(x64):
  del x64
  spec = blocks((1, 1), 1)
  net = strategies.random_network(spec)
  (held,) = dressed([net])
  out = morphisms.extract(held)
  testing.check_morphism(out, held)
  within = network.to_host(out(held, ()))
  testing.check_morphism(morphisms.embed(held.spec), within)


def test_a_depth_inside_its_room_is_one_structure():
  depths = [(1, 1), (2, 1), (1, 2), (2, 2)]
  nets = [
    strategies.random_network(blocks(convs, hidden))
    for convs in depths
    for hidden in (1, 2, 3)
  ]
  assert len({net.spec for net in dressed(nets)}) == 1
  assert len(
    {net.spec for net in dressed(nets, Room(4, images=0, vectors=0))}
  ) == len(nets)
  assert len({net.spec for net in dressed(nets, Room(5))}) == 1  # No bucket.
  # More than there is room for, and other networks than chains of one block.
  deeper, wider = blocks((3, 1), 1), blocks((1, 1), 1, widths=(5,))
  other = blocks((1, 1), 1, pool='mean')
  found = dressed(list(map(strategies.random_network, (deeper, wider, other))))
  assert len({nets[0].spec, *(net.spec for net in found)}) == 4
  assert not found[1].spec.optional


def test_numbers_of_poolings_inside_the_room_are_one_structure():
  """By twos: one and two, three and four; without room one for each."""
  counts = [(1, 1), (2,), (1, 1, 1), (1, 0, 1), (2, 1, 1, 1), (1, 1, 1, 1, 0)]
  nets = [
    strategies.random_network(blocks(convs, 1, shape=(16, 16, 2)))
    for convs in counts
  ]
  specs_ = [net.spec for net in dressed(nets)]
  one, none, two, gap, three, four = specs_
  assert one == two == gap and three == four and len(set(specs_)) == 3
  shifted = [net.spec for net in dressed(nets, Room(4, poolings=1))]
  assert shifted[2] == shifted[3] == shifted[4] != shifted[5]
  without = [net.spec for net in dressed(nets, Room(4, poolings=0))]
  assert len(set(without)) == 5  # `gap` lacks a block of `two`.
  # Nothing is left to pool, and a mean over all positions would tell zeros.
  small = strategies.random_network(blocks((1, 1), 1, shape=(2, 2, 2)))
  (held,) = dressed([small])
  assert not any(map(held.spec.frame, held.spec.optional))


def framed():
  """A spec whose pooling may be absent, and a layer behind it."""
  nodes = (
    specs.Node('image', specs.Input((4, 4, 2))),
    specs.Node('pool', specs.Pool(), ('image',)),
    specs.Node('frame', specs.ZeroPad(2, 2), ('pool',)),
    specs.Node('cut', specs.Trim(2, 2), ('frame',)),
    specs.Node('conv', specs.Conv(2), ('cut',)),
    specs.Node('again', specs.ZeroPad(2, 2), ('conv',)),
    specs.Node('flat', specs.Flatten(), ('again',)),
    specs.Node('out', specs.Dense(3), ('flat',)),
  )
  optional = (('pool', 'frame'), ('cut', 'conv', 'again'))
  return specs.Spec(nodes, 'out', optional=optional)


@pytest.mark.parametrize('absent', [(), ('cut',), ('pool', 'cut')])
def test_smaller_images_lie_in_a_corner(x64, absent):
  del x64
  into = framed()
  spec = network.without(into, absent)
  assert not {'frame', 'cut', 'again'} & set(spec.by_name)
  assert network.param_count(spec) < network.param_count(into) or absent
  net = strategies.random_network(spec)
  held = morphisms.embed(into)(net, ())
  assert network.absent(held) == tuple(sorted(absent))
  assert network.param_count(held) == network.param_count(net)
  x = inputs(spec)
  assert_close(outputs(held, x), outputs(net, x))
  assert_equal(morphisms.extract(held)(held, ()), net)
  testing.check_morphism(morphisms.embed(into), net)
  testing.check_morphism(morphisms.extract(held), network.to_host(held))


def test_what_reads_a_frame_is_refused():
  """A convolution would see its zeros, a mean would count them."""
  into = framed()

  def changed(ops, output='out', gone=(), optional=into.optional):
    nodes = [node for node in into.update(ops).nodes if node.name not in gone]
    return specs.Spec(tuple(nodes), output, optional=optional)

  outer = into.optional[:1]
  with raises("ends with a ZeroPad.*'flat' is none"):
    changed({'flat': specs.GlobalPool()})
  with raises("'cut' is none"):
    changed({}, optional=outer)
  with raises("'frame' is none"):
    changed({}, 'frame', {'cut', 'conv', 'again', 'flat', 'out'}, outer)
  with raises("'flat' is none"):
    changed({'out': specs.BatchNorm()})
  with raises("reads 'frame', which is not the end of a stretch"):
    changed({}, optional=into.optional[1:])
  # A block that reads the smaller image, of which there is none.
  with raises('is present and cuts'):
    network.without(into, ['pool'])
  net = strategies.random_network(network.without(into, ['cut']))
  held = morphisms.embed(into)(net, ())
  arch = {'present': {'pool': np.bool_(False), 'cut': np.bool_(True)}}
  odd = network.Network({**held.variables, 'arch': arch}, into)
  for of in (network.param_count, morphisms.extract(odd).spec):
    with raises('is present and cuts'):
      of(odd if of is network.param_count else into)
  with raises('cannot be walked node by node; extract'):
    network.caller(into, held.variables)


def test_what_is_absent_is_not_computed():
  """In turn, on one device: the branch is a `cond`, not a `select`."""
  (held,) = dressed([strategies.random_network(blocks((1, 1), 1))])
  traced = jax.make_jaxpr(held.spec.module().apply)(
    held.variables, jnp.zeros((1, 8, 8, 2))
  )
  conds = [e for e in traced.eqns if e.primitive.name == 'cond']
  assert len(conds) == len(held.spec.optional) > 1


def optional_mlp():
  deep = seeds.mlp((4,), (8, 8), 3)
  return dataclasses.replace(deep, optional=(('dense2', 'act2'),))


def test_specs_with_optional_nodes_are_json():
  spec = optional_mlp()
  assert specs.from_json(specs.to_json(spec)) == spec


def raises(message):
  return pytest.raises(ValueError, match=message)


def test_what_cannot_be_left_out_is_refused():
  spec = seeds.mlp((4,), (8, 8), 3)
  replaced = functools.partial(dataclasses.replace, spec)
  with raises(r'reads \(4,\) and makes \(8,\), so it cannot be left out'):
    replaced(optional=(('dense1', 'act1'),))
  with raises('no chain of nodes'):
    replaced(optional=(('act2', 'dense2'),))
  with raises('no chain of nodes'):
    replaced(optional=((),))
  with raises("optional: there is no node 'dense9'"):
    replaced(optional=(('dense9',),))


def test_moves_refuse_what_is_not_theirs():
  into = optional_mlp()
  held = network.to_host(network.init(into, jax.random.key(0)))
  with raises('optional.*extract the network first'):
    morphisms.respec(morphisms.widen({'dense1': 9}), into)
  other = strategies.random_network(seeds.mlp((4,), (7,), 3))
  with raises('rename and pad the network'):
    morphisms.embed(into)(other, ())
  with raises('has optional nodes already'):
    morphisms.embed(into)(held, ())
  with raises('are present; take away exactly those that are absent'):
    Extract(('dense2',))(held, ())
  with raises("no optional stretches begin with \\['act1'\\]"):
    Extract(('act1',))(held, ())


@given(strategies.specs_of_all_ops())
@settings(max_examples=25, deadline=None)
def test_shapes_by_node_are_those_of_the_module(spec):
  expected = jax.eval_shape(
    lambda key: network.init(spec, key), jax.random.key(0)
  )
  found = network.shapes(spec)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  assert jax.tree.leaves(found) == jax.tree.leaves(expected)


@pytest.mark.parametrize('padded', [False, True])
def test_shapes_of_what_is_stored_are_those_of_the_module(padded):
  (held,) = dressed([strategies.random_network(blocks((1, 1), 1))])
  spec = held.spec if padded else optional_mlp()
  expected = jax.eval_shape(
    lambda key: network.init(spec, key), jax.random.key(0)
  )
  found = network.shapes(spec)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  assert jax.tree.leaves(found) == jax.tree.leaves(expected)


# A learning rate that falls.


def test_annealed_lessons_fall_in_the_program_of_those_before():
  spec = blocks((1,), 1)
  task = own_task(spec)
  tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
  lesson = stages.lessons(task, tx, batch=8)
  rates = []

  def rate(done):
    rates.append(done)
    return 0.1 * (1 - done)

  start = Population((Candidate(strategies.random_network(spec)),))
  warm, _ = lesson(1).update(jax.random.key(0), start, lesson(1).init(start))
  falling = stages.annealed(lesson, rate)(2.5)
  assert rates == [0, 0.4, 0.8]
  with count_compilations() as compiled:
    last, _ = falling.update(jax.random.key(1), warm, falling.init(warm))
  assert not compiled
  (member,) = last.members
  found = optax.tree.get(member.opt_state, 'learning_rate')
  assert float(found) == pytest.approx(0.02)
  assert member.metrics['epochs'] == 3.5
  still = stages.annealed(lesson, lambda done: 0.0)(2)
  same, _ = still.update(jax.random.key(1), warm, still.init(warm))
  assert_equal(
    same.members[0].net.variables['params'],
    warm.members[0].net.variables['params'],
  )


def test_annealed_lessons_need_a_rate_to_set():
  spec = blocks((1,), 1)
  task = own_task(spec)
  start = Population((Candidate(strategies.random_network(spec)),))
  lesson = stages.lessons(task, optax.sgd(0.1), batch=8)
  stage = stages.annealed(lesson, lambda done: 0.1)(1)
  with raises('optax.inject_hyperparams'):
    stage.update(jax.random.key(0), start, stage.init(start))
