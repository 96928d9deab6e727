"""Specs: what is refused and how, and the round trip through JSON."""

import dataclasses
import json

import hypothesis
import pytest
import strategies

from jaxnas import morphisms
from jaxnas import spec as specs
from jaxnas.spaces import seeds


def chain(*ops, dims=(4,)):
  return seeds.sequential(
    dims, [(f'node{i}', op) for i, op in enumerate(ops, 1)]
  )


def graph(*nodes, output='out'):
  return specs.Spec(tuple(specs.Node(*node) for node in nodes), output)


X = ('x', specs.Input((4,)))


@hypothesis.settings(derandomize=True, database=None)
@hypothesis.given(strategies.specs_of_all_ops(blocks=4))
def test_specs_survive_json(spec):
  text = specs.to_json(spec)
  again = specs.from_json(text)
  assert again == spec and hash(again) == hash(spec)
  assert specs.to_json(again) == text
  assert json.loads(text)['type'] == 'Spec'


@pytest.mark.parametrize('kind', strategies.MOVES)
def test_moves_survive_json(kind):
  @hypothesis.settings(max_examples=5, derandomize=True, database=None)
  @hypothesis.given(strategies.moves(kind))
  def check(found):
    move, _ = found
    again = specs.from_json(specs.to_json(move))
    assert again == move and hash(again) == hash(move)

  check()


@hypothesis.settings(derandomize=True, database=None)
@hypothesis.given(strategies.specs_of_all_ops(blocks=4))
def test_the_order_of_nodes_does_not_matter(spec):
  turned = dataclasses.replace(spec, nodes=spec.nodes[::-1])
  assert turned.shapes == spec.shapes
  seen = set()
  for node in turned.order:
    assert set(node.inputs) <= seen
    seen.add(node.name)
  assert seen == set(spec.by_name)
  for node in spec.nodes:
    for source in node.inputs:
      assert node.name in spec.consumers[source]


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    # Graphs.
    (
      lambda: graph(
        X,
        ('a', specs.Add(), ('x', 'b')),
        ('b', specs.Dense(4), ('a',)),
        ('out', specs.Dense(2), ('b',)),
      ),
      'cycle: (a -> b -> a|b -> a -> b); a network is acyclic',
    ),
    (
      lambda: graph(X, ('out', specs.Add(), ('out',))),
      'cycle: out -> out',
    ),
    (
      lambda: graph(X, X, ('out', specs.Dense(2), ('x',))),
      r"must be unique; used twice: \['x'\]",
    ),
    (
      lambda: graph(X, ('out', specs.Dense(2), ('y',))),
      r"'out' reads 'y', which is no node; the nodes are \['out', 'x'\]",
    ),
    (
      lambda: graph(X, ('out', specs.Dense(2), ('x',)), output='o'),
      r"output 'o' is no node; the nodes are \['out', 'x'\]",
    ),
    (
      lambda: graph(
        X,
        ('y', specs.Input((4,))),
        ('out', specs.Add(), ('x', 'y')),
      ),
      r"exactly one Input node, got \['x', 'y'\]",
    ),
    (
      lambda: graph(
        X, ('out', specs.Dense(2), ('x',)), ('a', specs.Dense(3), ('x',))
      ),
      r"do not reach the output 'out': \['a'\]; remove them",
    ),
    (
      lambda: specs.Spec([specs.Node(*X)], 'x'),
      'nodes must be a tuple',
    ),
    # Nodes.
    (lambda: specs.Node('a-b', specs.Dense(2)), "identifier, got 'a-b'"),
    (lambda: specs.Node(3, specs.Dense(2)), 'identifier, got 3'),
    (lambda: specs.Node('params', specs.Dense(2)), "give 'params' another"),
    (
      lambda: specs.Node('a', specs.Dense(2), 'x'),
      "'a': inputs must be a tuple of names, got 'x'",
    ),
    (
      lambda: specs.Node('a', specs.Dense(2), ['x']),
      r"'a': inputs must be a tuple of names, got \['x'\]",
    ),
    # Sizes.
    (lambda: specs.Dense(-3), 'Dense: features must be .* positive .* -3'),
    (lambda: specs.Dense(0), 'Dense: features .* got 0'),
    (lambda: specs.Dense(2.0), 'Dense: features .* integer .* got 2.0'),
    (lambda: specs.Dense(True), 'Dense: features .* got True'),
    (lambda: specs.Conv(-1), 'Conv: features .* got -1'),
    (lambda: specs.Conv(3, (3, 0)), r'Conv: kernel .* got \(3, 0\)'),
    (
      lambda: specs.Conv(3, (3,)),
      r'Conv: kernel must be \(rows, columns\), got \(3,\)',
    ),
    (lambda: specs.Conv(3, [3, 3]), r'Conv: kernel .* got \[3, 3\]'),
    (
      lambda: specs.Conv(3, strides=2),
      r'Conv: strides must be \(rows, columns\), got 2',
    ),
    (lambda: specs.DepthwiseConv((0, 1)), r'DepthwiseConv: kernel .* \(0, 1\)'),
    (lambda: specs.Pool(window=(2, -2)), r'Pool: window .* \(2, -2\)'),
    (lambda: specs.Pool('median'), "Pool: reduce must be .* got 'median'"),
    (lambda: specs.Conv(3, padding='same'), "padding must be .* got 'same'"),
    (lambda: specs.Activation('reul'), "one of relu, .* got 'reul'"),
    (lambda: specs.Dropout(1.0), r'Dropout: rate must be in \[0, 1\), got 1.0'),
    (lambda: specs.Input(()), r'Input: dims must be .* at least one, got \(\)'),
    (lambda: specs.Input((8, -8, 3)), r'Input: dims .* got \(8, -8, 3\)'),
    # Shapes that do not fit.
    (
      lambda: chain(specs.Conv(3)),
      r"'node1' cannot read \[\(4,\)\]: Conv reads \(height, width, channels\)",
    ),
    (
      lambda: chain(specs.GlobalPool()),
      "'node1' cannot read .* GlobalPool reads",
    ),
    (
      lambda: chain(specs.Conv(3, (5, 1), padding='VALID'), dims=(4, 4, 1)),
      "'node1' .* VALID window of 5 does not fit an extent of 4",
    ),
    (
      lambda: graph(
        X,
        ('a', specs.Dense(3), ('x',)),
        ('out', specs.Add(), ('x', 'a')),
      ),
      r"'out' cannot read \[\(4,\), \(3,\)\]: Add reads inputs of one shape",
    ),
    (
      lambda: graph(
        ('x', specs.Input((4, 4, 1))),
        ('a', specs.Pool(), ('x',)),
        ('out', specs.Concat(), ('x', 'a')),
      ),
      "'out' cannot read .* Concat reads inputs that differ in channels only",
    ),
    (
      lambda: graph(X, ('out', specs.Dense(2), ('x', 'x'))),
      r"'out' cannot read \[\(4,\), \(4,\)\]: Dense",
    ),
    (
      lambda: graph(X, ('out', specs.Add(), ())),
      r"'out' cannot read \[\]: Add",
    ),
  ],
)
def test_bad_specs_are_refused_by_name(make, said):
  with pytest.raises(ValueError, match=said):
    make()


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('{"features": 3}', 'an object with a "type"'),
    ('{"type": "Dents", "features": 3}', "'Dents' names no dataclass"),
    ('{"type": "math:pi"}', "'math:pi' names no dataclass"),
    ('{"type": 5}', '5 names no dataclass'),
    ('{"type": "Dense", "fetures": 3}', "cannot make a Dense: .*'fetures'"),
    ('{"type": "Dense"}', "cannot make a Dense: .*'features'"),
    ('{"type": "Dense", "features": -3}', 'Dense: features .* got -3'),
  ],
)
def test_bad_json_is_refused(text, said):
  with pytest.raises(ValueError, match=said):
    specs.from_json(text)


def test_values_that_json_does_not_hold_are_refused():
  with pytest.raises(TypeError, match='numbers, strings, tuples'):
    specs.to_json(specs.Node('a', specs.Dense(2), ({'x'},)))


@pytest.mark.parametrize(
  ('op', 'dims', 'shape'),
  [
    (specs.Conv(5), (7, 6, 2), (7, 6, 5)),
    (specs.Conv(5, strides=(2, 3)), (7, 6, 2), (4, 2, 5)),
    (specs.Conv(5, (3, 2), padding='VALID'), (7, 6, 2), (5, 5, 5)),
    (specs.Conv(5, (3, 3), (2, 2), padding='VALID'), (7, 6, 2), (3, 2, 5)),
    (specs.DepthwiseConv(strides=(2, 2)), (7, 6, 2), (4, 3, 2)),
    (specs.Pool(), (7, 6, 2), (4, 3, 2)),
    (specs.Pool('mean', (3, 3), (1, 1), 'VALID'), (7, 6, 2), (5, 4, 2)),
    (specs.GlobalPool(), (7, 6, 2), (2,)),
    (specs.Flatten(), (7, 6, 2), (84,)),
    (specs.Dense(5), (7, 6, 2), (7, 6, 5)),
    (specs.LayerNorm(), (7, 6, 2), (7, 6, 2)),
  ],
)
def test_shapes_of_ops(op, dims, shape):
  assert chain(op, dims=dims).shapes['node1'] == shape


def test_node_names_its_asker():
  spec = chain(specs.Dense(2))
  assert spec.node('node1').op == specs.Dense(2)
  with pytest.raises(ValueError, match=r"^prune: there is no node 'node2'"):
    spec.node('node2', asker='prune')


def test_fresh_names_are_free():
  spec = graph(
    X,
    ('a', specs.Dense(4), ('x',)),
    ('a_2', specs.Dense(4), ('a',)),
    ('out', specs.Dense(2), ('a_2',)),
  )
  assert (spec.fresh('b'), spec.fresh('a')) == ('b', 'a_3')


def test_update_replaces_ops_and_checks_shapes():
  spec = chain(specs.Dense(3), specs.Add(), specs.Dense(2))
  assert spec.update({'node1': specs.Dense(7)}).shapes['node2'] == (7,)
  with pytest.raises(ValueError, match="'node1' cannot read"):
    spec.update({'node1': specs.Conv(3)})


def test_a_composed_move_survives_json_with_its_parts():
  move = morphisms.compose(
    morphisms.widen({'a': 3}), morphisms.insert('b', kernel=(1, 3))
  )
  text = specs.to_json(move)
  assert '"jaxnas.morphisms.width:Widen"' in text
  assert specs.from_json(text) == move
