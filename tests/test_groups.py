"""Channel groups, against groups worked out by hand."""

import hypothesis
import numpy as np
import pytest
import strategies

from jaxnas import groups
from jaxnas import spec as specs
from jaxnas.spaces import seeds


def graph(*nodes):
  """A spec of (name, op, inputs...) with the last node as its output."""
  made = tuple(specs.Node(name, op, tuple(ins)) for name, op, *ins in nodes)
  return specs.Spec(made, made[-1].name)


def roles(group):
  return group.size, group.writers, group.channelwise, group.readers


IMAGE = ('x', specs.Input((4, 4, 2)))
CONV, DENSE = specs.Conv(3), specs.Dense(2)


def test_a_residual_group_has_all_its_writers_and_readers():
  spec = graph(
    IMAGE,
    ('stem', CONV, 'x'),
    ('act', specs.Activation(), 'stem'),
    ('inner', specs.Conv(5), 'act'),
    ('bn', specs.BatchNorm(), 'inner'),
    ('outer', CONV, 'bn'),
    ('gate', specs.Gate(), 'outer'),
    ('total', specs.Add(), 'act', 'gate'),
    ('pool', specs.GlobalPool(), 'total'),
    ('logits', DENSE, 'pool'),
  )
  found = groups.table(spec).groups
  assert list(found) == ['x', 'stem', 'inner', 'logits']
  assert roles(found['stem']) == (
    3,
    ('stem', 'outer'),
    ('act', 'gate', 'total', 'pool'),
    ('inner', 'logits'),
  )
  assert roles(found['inner']) == (5, ('inner',), ('bn',), ('outer',))
  assert found['x'].frozen == "it is the network's input"
  assert found['logits'].frozen == "it is the network's output"
  assert [g.name for g in groups.growable(spec)] == ['stem', 'inner']


def test_a_depthwise_convolution_belongs_to_its_inputs_group():
  spec = graph(
    IMAGE,
    ('point1', CONV, 'x'),
    ('depth', specs.DepthwiseConv(), 'point1'),
    ('point2', specs.Conv(4, (1, 1)), 'depth'),
    ('pool', specs.GlobalPool(), 'point2'),
    ('logits', DENSE, 'pool'),
  )
  found = groups.table(spec).groups
  assert roles(found['point1']) == (3, ('point1',), ('depth',), ('point2',))


def test_a_concat_lays_groups_side_by_side():
  spec = graph(
    IMAGE,
    ('a', CONV, 'x'),
    ('b', specs.Conv(2), 'x'),
    ('both', specs.Concat(), 'b', 'a', 'b'),
    ('bn', specs.BatchNorm(), 'both'),
    ('out', DENSE, 'bn'),
  )
  table = groups.table(spec)
  assert table.axes['bn'] == groups.Axis(('b', 'a', 'b'), (2, 3, 2))
  assert roles(table.groups['b']) == (2, ('b',), ('both', 'bn'), ('out',))
  assert roles(table.groups['a']) == (3, ('a',), ('both', 'bn'), ('out',))


def test_an_add_across_a_concat_cuts_its_writer_into_slices():
  spec = graph(
    IMAGE,
    ('a', CONV, 'x'),
    ('b', specs.Conv(2), 'x'),
    ('both', specs.Concat(), 'a', 'b'),
    ('wide', specs.Conv(5), 'x'),
    ('total', specs.Add(), 'wide', 'both'),
    ('out', DENSE, 'total'),
  )
  table = groups.table(spec)
  assert table.axes['wide'] == groups.Axis(('a', 'b'), (3, 2))
  assert roles(table.groups['a']) == (
    3,
    ('a', 'wide'),
    ('both', 'total'),
    ('out',),
  )
  wider = groups.resized(spec, {'a': 7})
  assert wider.shapes['a'] == (4, 4, 7)
  assert wider.shapes['wide'] == (4, 4, 9)
  assert groups.table(wider).axes['total'].sizes == (7, 2)


def test_slices_that_overlap_are_cut_again():
  # 3 + 2 against 2 + 3: channels 0-1, 2, 3-4.
  spec = graph(
    IMAGE,
    ('a', specs.Conv(3), 'x'),
    ('b', specs.Conv(2), 'x'),
    ('c', specs.Conv(2), 'x'),
    ('d', specs.Conv(3), 'x'),
    ('ab', specs.Concat(), 'a', 'b'),
    ('cd', specs.Concat(), 'c', 'd'),
    ('total', specs.Add(), 'ab', 'cd'),
    ('out', DENSE, 'total'),
  )
  table = groups.table(spec)
  assert table.axes['total'].sizes == (2, 1, 2)
  names = table.axes['total'].groups
  assert table.axes['a'].groups == names[:2]
  assert table.axes['d'].groups == names[1:]
  assert table.groups[names[1]].writers == ('a', 'd')
  assert len(set(names)) == 3


def test_a_node_concatenated_with_itself_and_added_ties_halves():
  spec = graph(
    IMAGE,
    ('a', CONV, 'x'),
    ('twice', specs.Concat(), 'a', 'a'),
    ('wide', specs.Conv(6), 'x'),
    ('total', specs.Add(), 'wide', 'twice'),
    ('out', DENSE, 'total'),
  )
  table = groups.table(spec)
  assert table.axes['wide'] == groups.Axis(('a', 'a'), (3, 3))
  assert table.groups['a'].writers == ('a', 'wide')
  assert groups.resized(spec, {'a': 4}).shapes['wide'] == (4, 4, 8)


def test_a_flattened_axis_repeats_its_groups():
  spec = graph(
    IMAGE,
    ('a', CONV, 'x'),
    ('flat', specs.Flatten(), 'a'),
    ('bn', specs.BatchNorm(), 'flat'),
    ('logits', DENSE, 'bn'),
  )
  table = groups.table(spec)
  assert table.axes['bn'] == groups.Axis(('a',), (3,), repeat=16)
  assert roles(table.groups['a']) == (3, ('a',), ('flat', 'bn'), ('logits',))


@pytest.mark.parametrize(
  'join',
  [
    [('flat2', specs.Flatten(), 'a'), ('out', specs.Concat(), 'flat', 'flat2')],
    [('wide', specs.Dense(48), 'flat'), ('out', specs.Add(), 'flat', 'wide')],
  ],
  ids=['concat', 'add'],
)
def test_axes_of_different_layout_are_frozen(join):
  spec = graph(
    IMAGE,
    ('a', CONV, 'x'),
    ('flat', specs.Flatten(), 'a'),
    *join,
    ('logits', DENSE, 'out'),
  )
  found = groups.table(spec).groups
  assert 'out' in found['a'].frozen
  assert 'layout' in found['a'].frozen
  assert not groups.growable(spec)


def test_spread_lays_vectors_over_an_axis():
  axis = groups.Axis(('a', 'b', 'a'), (2, 1, 2), repeat=2)
  index = axis.spread({'a': np.array([0, 1, 0])}, 'index')
  np.testing.assert_array_equal(
    index, [0, 1, 0, 2, 3, 4, 3, 5, 6, 5, 7, 8, 9, 8]
  )
  halves = axis.spread({'a': np.array([0.5, 1, 0.5])}, 'ones')
  np.testing.assert_array_equal(halves, [0.5, 1, 0.5, 1, 0.5, 1, 0.5] * 2)
  flags = axis.spread({'b': np.array([1.0])}, 'zeros')
  np.testing.assert_array_equal(flags, [0, 0, 1, 0, 0] * 2)


def test_masks_follow_the_active_counts():
  spec = graph(
    IMAGE,
    ('a', CONV, 'x'),
    ('b', specs.Conv(2), 'x'),
    ('both', specs.Concat(), 'a', 'b'),
    ('flat', specs.Flatten(), 'both'),
    ('logits', DENSE, 'flat'),
  )
  padded = specs.Spec(spec.nodes, spec.output, padded=('a',))
  found = groups.masks(padded, {'a': 1})
  assert set(found) == {'a', 'both', 'flat'}
  both = [True, False, False, True, True]
  np.testing.assert_array_equal(np.concatenate(found['both']), both)
  np.testing.assert_array_equal(np.concatenate(found['flat']), both * 16)


@hypothesis.settings(derandomize=True, database=None)
@hypothesis.given(strategies.specs_of_all_ops(blocks=4))
def test_groups_of_any_spec_account_for_every_channel(spec):
  table = groups.table(spec)
  for name, axis in table.axes.items():
    assert axis.repeat * sum(axis.sizes) == spec.shapes[name][-1]
    for group, size in zip(axis.groups, axis.sizes):
      assert table.groups[group].size == size
  for group in table.groups.values():
    for writer in group.writers:
      assert spec.by_name[writer].op.kind in ('mixing', 'input')
    for reader in group.readers:
      assert spec.by_name[reader].op.kind == 'mixing'


@hypothesis.settings(derandomize=True, database=None)
@hypothesis.given(strategies.specs_of_all_ops(blocks=4))
def test_growth_keeps_names_and_makes_the_sizes(spec):
  sizes = {g.name: g.size + i for i, g in enumerate(groups.growable(spec), 1)}
  before, after = (
    groups.table(s).groups for s in (spec, groups.resized(spec, sizes))
  )
  assert list(before) == list(after)
  for name, group in before.items():
    assert after[name].size == sizes.get(name, group.size)
    assert after[name].writers == group.writers
    assert after[name].readers == group.readers


def test_seeds_have_the_groups_of_their_papers():
  resnet = groups.growable(seeds.resnet(10))
  # One residual stream per stage, and the inside of each of nine blocks.
  assert len(resnet) == 3 + 9
  mobilenet = groups.growable(seeds.mobilenet_v1((32, 32, 3), 10))
  assert [g.name for g in mobilenet] == [
    'stem',
    *(f'point{i}' for i in range(1, 14)),
  ]
  assert mobilenet[0].channelwise == (
    'stem_bn',
    'stem_act',
    'depth1',
    'depth1_bn',
    'depth1_act',
  )
