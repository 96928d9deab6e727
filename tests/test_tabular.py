"""Spaces of arrays, tables of them, and the official files they come from."""

import bz2
import collections
import itertools
import os
import pickle

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxnas import spaces, testing
from jaxnas.base import Table
from jaxnas.spaces import (
  cell,
  convert,
  nas_bench_201,
  nas_bench_macro,
  tables,
  tabular,
  transnas_bench,
)

SPACES = {
  'nas_bench_201': nas_bench_201.space,
  'transnas_micro': tabular.transnas_micro,
  'transnas_macro': tabular.transnas_macro,
  'nas_bench_macro': tabular.nas_bench_macro,
}
RESNET = (
  '|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|'
  '+|skip_connect~0|none~1|skip_connect~2|'
)


@pytest.fixture(scope='session')
def data(tables_with):
  """The folder of real tables; skips where there is none."""
  return tables_with('nb201_cifar10.npz')


@pytest.fixture(scope='module', params=SPACES)
def space(request):
  return SPACES[request.param]()


def test_a_space_keeps_its_laws(space):
  testing.check_array_space(space, jax.random.key(0))


def test_an_edit_changes_one_position(space):
  """And a child has what its parents have; both of them."""

  @jax.jit
  @jax.vmap
  def drawn(key):
    keys = jax.random.split(key, 4)
    one, two = space.sample(keys[0]), space.sample(keys[1])
    edited = space.mutate(keys[2], one)
    child = space.crossover(keys[3], one, two)
    near, legal = space.neighbours(one)
    index = jax.vmap(space.index)
    every = index(jnp.stack([one, two, edited, child]))
    return one, two, edited, child, every, near, legal, index(near)

  one, two, edited, child, every, near, legal, of_near = map(
    np.asarray, drawn(jax.random.split(jax.random.key(0), 300))
  )
  assert one.dtype == edited.dtype == child.dtype == np.int32
  assert ((every >= 0) & (every < space.size)).all()
  assert ((edited != one).sum(axis=1) == 1).all()
  assert ((child == one) | (child == two)).all()
  assert (child != one).any() and (child != two).any()
  assert ((of_near >= 0) == legal).all()
  assert ((near != one[:, None]).sum(axis=2) == 1).all()
  for some, own, ok in zip(near[:20], edited[:20], legal[:20], strict=True):
    assert len({tuple(row) for row in some}) == len(some)
    assert tuple(own) in {tuple(row) for row in some[ok]}
  features = np.asarray(space.encode(one[0]))
  assert features.sum() == len(space.options)
  assert len(features) == sum(space.options)


@pytest.mark.parametrize('name', ['transnas_micro', 'transnas_macro'])
def test_crossover_on_a_shortest_path_takes_half_of_what_differs(name):
  space = SPACES[name]()
  cross = tabular.shortest_path_crossover(space)
  testing.check_array_space(space._replace(crossover=cross), jax.random.key(0))

  @jax.jit
  @jax.vmap
  def drawn(key):
    keys = jax.random.split(key, 3)
    one, two = space.sample(keys[0]), space.sample(keys[1])
    return one, two, cross(keys[2], one, two), cross(keys[2], one, one)

  one, two, child, same = map(
    np.asarray, drawn(jax.random.split(jax.random.key(0), 300))
  )
  assert ((child == one) | (child == two)).all() and (same == one).all()
  apart, taken = (one != two).sum(axis=1), (child != one).sum(axis=1)
  half = np.where(apart < 2, 0, (apart + 1) // 2)
  if space.size == np.prod(space.options):
    assert (taken == half).all()
  else:  # Where no child is legal it is the first parent.
    assert ((taken == half) | (taken == 0)).all()
    assert (taken == half).mean() > 0.9
  # Every position may be the one that is taken.
  assert (child != one).any(axis=0).all()


def test_an_index_tells_all_networks_apart(space):
  every = np.array(list(itertools.product(*map(range, space.options))))
  index = np.asarray(jax.jit(jax.vmap(space.index))(every))
  assert sorted(index[index >= 0]) == list(range(space.size))
  # What no position may be is outside, and not another network.
  assert int(space.index(jnp.full(len(space.options), 7))) == -1
  assert int(space.index(jnp.full(len(space.options), -1))) == -1


def test_samples_are_uniform(space):
  keys = jax.random.split(jax.random.key(1), 20_000)
  index = jax.jit(jax.vmap(lambda key: space.index(space.sample(key))))(keys)
  parts = np.bincount(np.asarray(index) * 10 // space.size, minlength=10)
  expected = np.diff(np.ceil(np.arange(11) * space.size / 10)) / space.size
  # Ten standard deviations of the largest part.
  assert np.abs(parts / 20_000 - expected).max() < 10 * (0.1 / 20_000) ** 0.5


def test_edits_are_uniform_and_reach_all_of_the_macro_space():
  space = tabular.transnas_macro()
  start = jnp.array([1, 1, 1, 4, 0, 0])
  keys = jax.random.split(jax.random.key(0), 4000)
  near, legal = space.neighbours(start)
  made = jax.jit(jax.vmap(space.mutate, (0, None)))(keys, start)
  counts = collections.Counter(map(tuple, np.asarray(made).tolist()))
  assert set(counts) == set(map(tuple, np.asarray(near)[legal].tolist()))
  assert max(counts.values()) < 1.6 * min(counts.values())
  near = jax.jit(
    jax.vmap(lambda g: jax.vmap(space.index)(space.neighbours(g)[0]))
  )
  every = np.array(list(itertools.product(range(5), repeat=6)))
  index = np.asarray(jax.jit(jax.vmap(space.index))(every))
  legal_ones = every[index >= 0]
  beside = np.asarray(near(legal_ones))
  seen, front = {0}, [0]
  while front:
    found = set(beside[front].ravel().tolist()) - seen - {-1}
    seen |= found
    front = list(found)
  assert len(seen) == 3256


@hypothesis.given(
  bits=st.integers(0, 2**32 - 1), bound=st.integers(1, 2**16 - 1)
)
@hypothesis.settings(max_examples=50)
def test_below_is_exact(bits, bound):
  assert int(tabular.below(np.uint32(bits), bound)) == bits * bound >> 32


@pytest.mark.parametrize(
  ('make', 'says'),
  [
    (lambda: tabular.independent('x', ()), r'options must be .*got \(\)'),
    (lambda: tabular.independent('x', (1, 1)), 'one of them at least 2'),
    (lambda: tabular.independent('x', (2.0,)), 'whole number'),
    (lambda: tabular.independent('x', (4,) * 16), 'cannot be numbered'),
    (
      lambda: tabular.listed('x', (2, 2), np.array([[0, 0], [0, 0]])),
      'listed twice',
    ),
    (lambda: tabular.listed('x', (2, 2), np.array([[0, 2]])), 'not of the'),
    (
      lambda: tabular.listed('x', (2, 2), np.array([0])),
      r'must be \(size, 2\)',
    ),
    (lambda: nas_bench_201.text([0, 1, 2]), r'is 6 .* in 0..4, got shape \(3,'),
    (lambda: nas_bench_201.text([[1] * 6]), r'text: .* got shape \(1, 6\)'),
    (lambda: nas_bench_201.canonical([9] * 6), r'canonical: .* got \[9, 9'),
    (lambda: nas_bench_201.params([9] * 6), r'params: .* got \[9, 9'),
    (lambda: nas_bench_201.params([1] * 7), r'params: .* got shape \(7,\)'),
    (lambda: nas_bench_201.flops([[1] * 6, [-1] * 6]), r'flops: .*\[-1, -1'),
    (lambda: nas_bench_201.flops([0.5] * 6), r'whole numbers .* \[0.5, 0.5'),
    (lambda: nas_bench_201.parse('|none~0|'), 'is no cell'),
    (lambda: nas_bench_201.parse(RESNET.replace('~1', '~2')), 'is no cell'),
    (
      lambda: tabular.shortest_path_crossover(cell.space(cell.DARTS)),
      'darts does not number its networks; take `cell',
    ),
    (
      lambda: nas_bench_201.flops(np.zeros(6, int), side=24),
      'must be 32 or 16',
    ),
  ],
)
def test_illegal_spaces_and_cells_are_refused(make, says):
  with pytest.raises(ValueError, match=says):
    make()


@hypothesis.given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
@hypothesis.settings(max_examples=50)
def test_strings_go_both_ways(ops):
  assert nas_bench_201.parse(nas_bench_201.text(ops)).tolist() == ops


# Convolutions of 3x3 and 1x1: cells, parameters, FLOPs in M (10 classes).
CLASSES = {
  (0, 0): (729, 73_306, 7.78305),
  (0, 6): (1, 241_306, 31.37601),
  (1, 3): (540, 400_346, 54.96897),
  (2, 0): (1215, 559_386, 78.56193),
  (3, 2): (180, 858_426, 121.81569),
  (4, 1): (90, 1_073_466, 153.27297),
  (5, 0): (18, 1_288_506, 184.73025),
  (6, 0): (1, 1_531_546, 220.11969),
}


def test_the_closed_form_has_28_cost_classes():
  cells = nas_bench_201.genotypes()
  params = np.asarray(nas_bench_201.params(cells))
  flops = np.asarray(nas_bench_201.flops(cells))
  pairs = collections.Counter(zip(params.tolist(), flops.tolist(), strict=True))
  assert len(pairs) == 28 and sum(pairs.values()) == 15_625
  for (wide, narrow), (count, size, million) in CLASSES.items():
    ops = [3] * wide + [2] * narrow + [0] * (6 - wide - narrow)
    assert int(nas_bench_201.params(np.array(ops))) == size
    cost = int(nas_bench_201.flops(np.array(ops)))
    assert cost == round(million * 1e6)
    assert pairs[size, cost] == count


def test_the_closed_form_is_that_of_published_records():
  """Those of NATS-Bench's test files, other classes and sides too."""
  cell = nas_bench_201.parse(
    '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|'
    '+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|'
  )
  assert [int(nas_bench_201.params(cell, k)) for k in (10, 100, 120)] == [
    *(129_306, 135_156, 136_456)
  ]
  assert int(nas_bench_201.flops(cell)) == 15_647_370
  assert int(nas_bench_201.flops(cell, 100)) == 15_653_220
  assert int(nas_bench_201.flops(cell, 120, side=16)) == 3_919_480
  assert int(nas_bench_201.params(nas_bench_201.parse(RESNET))) == 559_386


def test_equal_cells_are_counted_as_published():
  """6,466 by NATS-Bench's own test; 4,930 and 341 by the stricter form."""
  assert len(np.unique(nas_bench_201.classes())) == 6466
  strict = nas_bench_201.classes(strict=True)
  assert len(np.unique(strict)) == 4930
  dead = nas_bench_201.canonical([0] * 6, strict=True)
  assert dead == '#'
  assert (strict == strict[0]).sum() == 341


def test_tables_are_put_in_the_order_of_the_index(data):
  table = spaces.load(data / 'nb201_cifar10.npz')
  with np.load(data / 'nb201_cifar10.npz') as file:
    for row in (0, 6111, 11472):
      index = int(table.space.index(file['ops'][row].astype(np.int32)))
      for name in ('val_ep12', 'test_ep200_seeds'):
        kept = np.asarray(table.columns[name][index])
        assert np.array_equal(kept, file[name][row], equal_nan=True)
  best = int(np.argmax(table.columns['val_ep200']))
  cell = nas_bench_201.genotypes()[best]
  assert nas_bench_201.text(cell) == (
    '|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|'
    '+|skip_connect~0|nor_conv_3x3~1|nor_conv_1x1~2|'
  )
  # Both closed forms against all rows.
  priced = nas_bench_201.priced(table).columns
  measured = np.asarray(table.columns['params_m'], float)
  assert (np.round(measured * 1e6) == np.asarray(priced['params'])).all()
  wide, narrow, pool = (
    (nas_bench_201.genotypes() == op).sum(axis=1) for op in (3, 2, 4)
  )
  other = 7.943872 + 35.81952 * wide + 4.36224 * narrow + 1.29024 * pool
  assert np.abs(other - np.asarray(table.columns['flops_m'])).max() < 2e-5
  # What the input does not reach is chance.
  strict = nas_bench_201.classes(strict=True)
  assert np.allclose(np.asarray(table.columns['test_ep200'])[strict == 0], 10)


def test_files_of_one_space_are_joined(data):
  names = ('cifar10', 'proxies_cifar10', 'hw', 'extra_tasks')
  table = spaces.load(*(data / f'nb201_{name}.npz' for name in names))
  columns = table.columns
  assert {'val_ep12', 'zen', 'edgegpu_latency_cifar10', 'svhn_val'} <= set(
    columns
  )
  assert int(jnp.isfinite(columns['svhn_val']).sum()) == 199
  assert int(columns['nbsuite_mask'].sum()) == 9445
  # The latency of a network grows with its operations.
  flops = np.asarray(nas_bench_201.priced(table).columns['flops'])
  slow = np.asarray(columns['edgegpu_latency_cifar10'])
  assert np.corrcoef(flops, slow)[0, 1] > 0.4


def test_other_spaces_have_their_maxima(data):
  micro = spaces.load(data / 'transnas_micro.npz').columns
  macro = spaces.load(data / 'transnas_macro.npz').columns
  assert round(float(micro['class_scene'].max()), 2) == 54.94
  assert round(float(macro['jigsaw'].max()), 2) == 97.02
  table = spaces.load(data / 'nbmacro.npz')
  best = int(jnp.argmax(table.columns['test_acc']))
  assert best == int(table.space.index(jnp.array([2, 2, 2, 1, 2, 2, 0, 2])))
  assert int(table.columns['params'][best]) == 1_985_514


def test_layers_of_nas_bench_macro_add_what_they_were_measured_to_add():
  """By hand: over the identity, of the first and of the inner layers."""
  none = np.zeros(8, int)
  one, two = (none + choice * np.eye(8, dtype=int) for choice in (1, 2))
  more = np.asarray(nas_bench_macro.params(one)) - 387_882
  assert more[[0, 1, 2]].tolist() == [8416, 27_200, 31_168]
  assert more[3:].tolist() == [103_552] * 2 + [119_680] + [403_712] * 2
  more = np.asarray(nas_bench_macro.params(two)) - 387_882
  assert more[[0, 1, 2, 3]].tolist() == [21_952, 60_416, 76_672, 219_136]
  more = np.asarray(nas_bench_macro.flops(one)) - 7_713_280
  assert more[[0, 1, 2]].tolist() == [4_415_488, 6_733_824, 4_304_896]
  assert int(nas_bench_macro.params(none, 100)) - 387_882 == 90 * 1281
  # One genotype or many, traced or not.
  both = jax.jit(jax.vmap(nas_bench_macro.flops))(two)
  assert both.tolist() == nas_bench_macro.flops(two).tolist()
  with pytest.raises(ValueError, match='params: a genotype is 8 whole numbers'):
    nas_bench_macro.params([0] * 6)
  with pytest.raises(ValueError, match=r'in 0..2, got .*3'):
    nas_bench_macro.flops([3] * 8)


def test_costs_of_nas_bench_macro_are_those_of_its_table(tables_with):
  table = spaces.load(tables_with('nbmacro.npz') / 'nbmacro.npz')
  grid = np.indices((3,) * 8).reshape(8, -1).T
  for name in ('params', 'flops'):
    counted = getattr(nas_bench_macro, name)(grid)
    np.testing.assert_array_equal(counted, table.columns[name])


def test_ops_of_transnas_micro_cost_what_they_add():
  """By hand, of the edges that leave the input and of the others."""
  squares = 2 * (2 * 128**2 + 2 * 256**2 + 512**2)
  doubled = (128**2 + 256**2 + 512**2) // 2  # Less, where channels double.
  norms = 2 * 2 * (2 * 128 + 2 * 256 + 512)
  skips = doubled + 2 * (128 + 256 + 512)
  inner, first = squares + norms, squares - doubled + norms
  one = np.eye(6, dtype=int)
  counted = np.asarray(transnas_bench.micro_params(2 * one))
  assert counted.tolist() == [first, first, inner, first, inner, inner]
  counted = np.asarray(transnas_bench.micro_params(one))
  assert counted.tolist() == [skips, skips, 0, skips, 0, 0]
  counted = int(transnas_bench.micro_params(3 * one[2]))
  assert counted == 9 * squares + norms
  with pytest.raises(ValueError, match='micro_params: .* in 0..3, got .*4'):
    transnas_bench.micro_params([4] * 6)


def test_costs_of_transnas_micro_are_those_that_were_measured(tables_with):
  name = 'transnas_micro.npz'
  columns = spaces.load(tables_with(name) / name).columns
  cells = np.asarray(columns['params'])
  assert len(np.unique(cells)) > 100
  for task in ('class_scene', 'jigsaw', 'segmentsemantic'):
    measured = 1e6 * np.asarray(columns[f'{task}_sub_params'], float)
    rest = (measured - cells)[np.isfinite(measured)]
    # A constant of the task, as far as float32 has digits.
    assert len(rest) == 711 and np.ptp(rest) < 5


@pytest.mark.slow
def test_nas_bench_101_is_a_table_too(data):
  names = ('', '_fidelity20k', '_proxies')
  table = spaces.load(*(data / f'nb101{name}.npz' for name in names))
  assert table.space.size == 423_624
  assert int(jnp.argmax(table.columns['test_acc_ep108'])) == 4789
  assert int(jnp.isfinite(table.columns['val_acc_ep12']).sum()) == 20_001
  assert int(jnp.isfinite(table.columns['zen']).sum()) == 10_250


def test_a_folder_may_be_named(data, monkeypatch, tmp_path):
  monkeypatch.setenv(tables.FOLDER, str(data))
  assert spaces.load('transnas_micro').space.size == 4096
  with pytest.raises(FileNotFoundError, match='which has .*nb201_cifar10'):
    spaces.load('nb202')
  monkeypatch.delenv(tables.FOLDER)
  with pytest.raises(FileNotFoundError, match="no table 'nb202'.*set JAXNAS"):
    spaces.load('nb202')


def saved(folder, name='table.npz', **arrays):
  np.savez(folder / name, **arrays)
  return folder / name


def test_tables_that_cannot_be_trusted_are_refused(tmp_path):
  cells = nas_bench_201.genotypes().astype(np.uint8)
  good = {'ops': cells, 'score': np.arange(15_625.0)}
  twice, strange = cells.copy(), cells.copy()
  twice[7] = twice[9]
  cases = {
    'NAS-Bench-101 has 423624 networks, the file has 2': {
      'num_vertices': np.array([3, 3]),
      'edge_bits': np.array([1, 3]),
      'ops': np.zeros((2, 5), int),
    },
    'has 15625 networks, the file has 10 rows': {
      'ops': cells[:10],
      'score': np.zeros(10),
    },
    'rows 7 and 9 are the same network': {**good, 'ops': twice},
    "'score' has 3 values for 15625 rows": {**good, 'score': np.zeros(3)},
    "'score' holds <U3, not numbers": {**good, 'score': np.full(15_625, 'abc')},
    r"of no known kind, it has \{'accuracy': \(5,\)\}": {
      'accuracy': np.zeros(5)
    },
  }
  strange[3] = 9
  cases['of no known kind'] = {**good, 'ops': strange}
  for says, arrays in cases.items():
    with pytest.raises(ValueError, match=says):
      spaces.load(saved(tmp_path, **arrays))
  (tmp_path / 'text.npz').write_text('not a table')
  with pytest.raises(ValueError, match='not an .npz file of plain arrays'):
    spaces.load(tmp_path / 'text.npz')
  one = saved(tmp_path, **good)
  other = saved(tmp_path, 'other.npz', **{**good, 'score': np.ones(15_625)})
  with pytest.raises(ValueError, match="column 'score' differs"):
    spaces.load(one, other)
  assert spaces.load(one, one).columns['score'].shape == (15_625,)
  macro = saved(
    tmp_path,
    'macro.npz',
    ops=np.array(list(itertools.product(range(3), repeat=8))),
    test_acc_seeds=np.zeros((6561, 3)),
  )
  with pytest.raises(ValueError, match='those of nas_bench_macro'):
    spaces.load(one, macro)
  extra = saved(
    tmp_path,
    'extra.npz',
    proxy_names=np.array(['zen']),
    svhn_index=np.array([3]),
    svhn_val=np.array([90.0]),
    svhn_proxies=np.array([[1.0]]),
  )
  with pytest.raises(ValueError, match='by the rows of another file'):
    spaces.load(extra)
  joined = spaces.load(one, extra).columns['svhn_val']
  assert float(joined[3]) == 90 and int(jnp.isnan(joined).sum()) == 15_624
  # A prefix is of the names alone: rows are still those of the first file.
  both = spaces.load(one, extra, ('again_', extra)).columns
  assert np.array_equal(both['again_svhn_val'], joined, equal_nan=True)
  told = spaces.load(one, ('other_', other)).columns
  assert float(told['score'][0]) == 0 and float(told['other_score'][0]) == 1
  with pytest.raises(ValueError, match='config.more=other_=other.npz'):
    spaces.load(one, other)
  with pytest.raises(
    ValueError, match='genotypes of nas_bench_201.*--config.more=extra.npz'
  ):
    spaces.load(extra, one)


def drawn_cells(grammar, count, seed=0):
  """(count, L) cells whose blocks read two different states."""
  rng = np.random.default_rng(seed)
  cells = rng.integers(grammar.options, size=(count, len(grammar.options)))
  rows = cells.reshape(count, grammar.cells, grammar.blocks, 4)
  states = np.arange(grammar.blocks) + 2
  by = 1 + rng.integers(states - 1, size=rows.shape[:3])
  rows[..., 2] = (rows[..., 0] + by) % states
  return cells


def sampled_cells(count=60, seed=0):
  """A file of as many cells of DARTS, all different."""
  cells = drawn_cells(cell.DARTS, count, seed)
  seps = np.isin(cells[:, 1::2], (3, 4)).sum(axis=1)
  return {
    'arch': cells.reshape(count, 2, 8, 2).astype(np.uint8),
    'val_acc': 90.0 + seps,
    'proxies': np.stack([seps, -seps], axis=1).astype(np.float32),
    'proxy_names': np.array(['params', 'plain']),
    'all_arch': np.zeros((5, 2, 8, 2), np.uint8),
    'all_zen': np.zeros(5),
  }


def test_a_sample_of_cells_is_a_table_too(tmp_path):
  arrays = sampled_cells()
  table = spaces.load(saved(tmp_path, **arrays))
  assert table.space.name == 'nas_bench_301' and table.space.size == 60
  assert set(table.columns) == {'val_acc', 'params', 'plain'}
  np.testing.assert_allclose(table.columns['val_acc'], arrays['val_acc'])
  np.testing.assert_allclose(
    table.columns['plain'], arrays['proxies'][:, 1], rtol=1e-6
  )
  cells = arrays['arch'].reshape(60, 32).astype(np.int32)
  # The two edges of a block in another order are the same network.
  turned = cells.reshape(60, 8, 2, 2)[:, :, ::-1].reshape(60, 32)
  index = jax.jit(jax.vmap(table.space.index))
  assert (turned != cells).any(axis=1).all()
  assert index(turned).tolist() == list(range(60))
  # One edit of a listed cell is not listed, nor is what is not legal.
  changed = cells.copy()
  changed[:, 1] = (changed[:, 1] + 1) % 7
  assert (np.asarray(index(changed)) == -1).all()
  changed[:, 1] = cells[:, 1] + 7
  assert (np.asarray(index(changed)) == -1).all()


def test_neighbours_of_a_listed_cell_are_the_closest():
  ops = ('skip', 'sep3', 'max3', 'dil3')
  small = cell.Grammar('small', ops, blocks=3, cells=1, distinct=True)
  cells, whole = drawn_cells(small, 60), cell.space(small)
  space = tabular.among(whole, 'few', cells, near=5)
  testing.check_array_space(space, jax.random.key(0))
  codes = np.asarray(jax.jit(jax.vmap(whole.encode))(cells))
  apart = ((codes[:, None] - codes[None]) ** 2).sum(axis=2)
  np.fill_diagonal(apart, np.inf)
  near, legal = jax.jit(jax.vmap(space.neighbours))(cells)
  rows = np.asarray(jax.jit(jax.vmap(jax.vmap(space.index)))(near))
  assert legal.all() and rows.shape == (60, 5)
  least = np.sort(apart, axis=1)[:, :5]
  np.testing.assert_array_equal(np.take_along_axis(apart, rows, 1), least)
  # A child of two is neither of them, and is closer to them than most are.
  keys = jax.random.split(jax.random.key(0), 60)
  two = np.roll(np.arange(60), 1)
  made = jax.jit(jax.vmap(space.crossover))(keys, cells, cells[two])
  child = np.asarray(jax.jit(jax.vmap(space.index))(made))
  assert ((child >= 0) & (child != np.arange(60)) & (child != two)).all()
  to_parents = apart[child, np.arange(60)] + apart[child, two]
  finite = np.where(np.isinf(apart), np.nan, apart)
  assert to_parents.mean() < 2 * np.nanmean(finite) - 1


def test_lists_of_cells_that_cannot_be_trusted_are_refused(tmp_path):
  arrays = sampled_cells(5)
  twice, strange = arrays['arch'].copy(), arrays['arch'].copy()
  twice[3] = twice[1, :, [1, 0, 3, 2, 5, 4, 7, 6]].swapaxes(0, 1)
  strange[2, 0, 0, 1] = 7
  same = arrays['arch'].copy()
  same[4, 1, :2, 0] = 1
  cases = {
    'rows 1 and 3 are the same network of darts': twice,
    'row 2: a genotype is 32 whole numbers': strange,
    'row 4: .* block of darts read different states': same,
    'of 3 to 65535 genotypes': arrays['arch'][:2],
    'of no known kind': arrays['arch'][:, :, :6],
  }
  for says, arch in cases.items():
    file = saved(tmp_path, **{**arrays, 'arch': arch})
    with pytest.raises(ValueError, match=says):
      spaces.load(file)
  with pytest.raises(ValueError, match='among: near'):
    tabular.among(
      cell.space(cell.DARTS), 'few', arrays['arch'].reshape(5, 32), near=0
    )


def test_every_stored_file_loads_or_says_what_to_load_before(data):
  """By its path alone, and those that have rows alone after their base."""
  bases = {
    'nb101_fidelity20k': 'nb101',
    'nb101_proxies': 'nb101',
    'nb201_extra_tasks': 'nb201_cifar10',
  }
  # NAS-Bench-101 takes seconds: see the slow test of it.
  files = [path for path in data.glob('*.npz') if path.stem != 'nb101']
  assert len(files) > 5
  for path in sorted(files):
    if path.stem in bases:
      with pytest.raises(ValueError, match=f'config.more={path.name}'):
        spaces.load(path)
    else:
      table = spaces.load(path)
      assert table.columns and all(
        len(values) == table.space.size for values in table.columns.values()
      )
  base = data / 'nb201_cifar10.npz'
  tasks = spaces.load(base, ('more_', data / 'nb201_extra_tasks.npz')).columns
  assert int(jnp.isfinite(tasks['more_svhn_val']).sum()) == 199


def test_nas_bench_301_is_a_table_of_the_cells_that_were_measured(tables_with):
  name = 'nb301_proxies.npz'
  table = spaces.load(tables_with(name) / name)
  assert table.space.size == 725
  accuracy = np.asarray(table.columns['val_acc'])
  assert round(float(accuracy.min()), 2) == 91.24
  assert round(float(accuracy.max()), 2) == 94.49
  cells = jax.vmap(table.space.sample)(jax.random.split(jax.random.key(0), 50))
  near, _ = jax.jit(jax.vmap(table.space.neighbours))(cells)
  every = jnp.concatenate([cells[:, None], near], axis=1).reshape(-1, 32)
  rows = np.asarray(jax.jit(jax.vmap(table.space.index))(every)).reshape(50, -1)
  own, rows = accuracy[rows[:, 0]], rows[:, 1:]
  # The closest cells say something of a cell's accuracy.
  assert np.corrcoef(own, accuracy[rows].mean(axis=1))[0, 1] > 0.4


def test_columns_are_told_apart():
  table = Table(
    nas_bench_201.space(),
    {'one': jnp.zeros(15_625), 'three': jnp.zeros((15_625, 3))},
  )
  with pytest.raises(KeyError, match='it has one, three'):
    tables.column(table, 'two')
  with pytest.raises(ValueError, match='one number for each'):
    tables.column(table, 'three')
  with pytest.raises(ValueError, match="or one of them by 'three:0'"):
    tables.column(table, 'three')
  with pytest.raises(ValueError, match="no seed '3', its seeds are 0 to 2"):
    tables.column(table, 'three:3')
  with pytest.raises(ValueError, match="no seed '-1', its seeds are 0 to 2"):
    tables.column(table, 'three:-1')
  with pytest.raises(ValueError, match="no seed '0', it is of no seeds"):
    tables.column(table, 'one:0')
  with pytest.raises(KeyError, match="no column 'two:0'"):
    tables.column(table, 'two:0')
  with pytest.raises(ValueError, match='more than one table has one, three'):
    tables.join(table, table)
  with pytest.raises(ValueError, match='tables are of nas_bench_201 and'):
    tables.join(table, Table(tabular.transnas_micro(), {}))
  with pytest.raises(ValueError, match='for cells of nas_bench_201'):
    nas_bench_201.priced(Table(tabular.transnas_micro(), {}))


def official(accuracy: float, epochs: int = 2) -> dict:
  """A run as the releases store it, with NumPy's numbers among them."""
  value = np.float64(accuracy)
  names = ('x-valid', 'x-test', 'ori-test')
  last = {f'{name}@{e}': value - 1 + e for name in names for e in range(epochs)}
  return {
    'epochs': epochs,
    'params': 0.559386,
    'flop': 78.56193,
    'train_times': {e: 3.0 for e in range(epochs)},
    'eval_acc1es': last,
    'eval_times': dict.fromkeys(last, 0.5),
    'net_state_dict': None,
  }


def release(cells) -> dict:
  """What all cells are in a release: two seeds, of which means are taken."""

  def record(base: float) -> dict:
    runs = {
      (name, seed): official(base + gain + step)
      for gain, name in enumerate(('cifar10-valid', 'cifar10', 'cifar100'))
      for step, seed in enumerate((777, 888))
    }
    seeds = {name: [777, 888] for name, _ in runs}
    return {'all_results': runs, 'dataset_seed': seeds, 'arch_str': '?'}

  return {
    number: {'12': record(50.0 + number), '200': record(70.0 + number)}
    for number in range(len(cells))
  }


def written(path, value):
  path.write_bytes(bz2.compress(pickle.dumps(value, protocol=4)))


@pytest.fixture
def cells():
  return [RESNET, nas_bench_201.text([4, 2, 1, 2, 1, 1])]


@pytest.mark.parametrize('kind', ['folder', 'one file', 'torch', 'old torch'])
def test_official_releases_are_converted(tmp_path, cells, kind):
  infos = release(cells)
  whole = {
    'meta_archs': cells,
    'arch2infos': infos,
    'evaluated_indexes': {0, 1},
  }
  path = tmp_path / 'NATS-tss-v1_0-3ffb9-simple'
  if kind == 'folder':
    path.mkdir()
    written(path / 'meta.pickle.pbz2', {'meta_archs': cells})
    for number, info in infos.items():
      written(path / f'{number:06d}.pickle.pbz2', info)
  elif kind == 'one file':
    path = tmp_path / 'NATS-tss-v1_0-3ffb9.pickle.pbz2'
    written(path, whole)
  elif kind == 'torch':
    import zipfile

    path = tmp_path / 'new.pth'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('archive/data.pkl', pickle.dumps(whole, protocol=2))
  else:
    path = tmp_path / 'NAS-Bench-201-v1_1-096897.pth'
    parts = (0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}, whole)
    path.write_bytes(b''.join(pickle.dumps(part, 2) for part in parts))
  table = convert.convert(str(path), 'cifar10')
  assert table['ops'].tolist() == [[3, 0, 3, 1, 0, 1], [4, 2, 1, 2, 1, 1]]
  # The last epoch's, the mean of two seeds that differ by one.
  assert table['val_ep12'].tolist() == [50.5, 51.5]
  assert table['val_ep200'].tolist() == [70.5, 71.5]
  assert table['test_ep200'].tolist() == [71.5, 72.5]  # Trained on all.
  assert table['train_time_ep12_s'].tolist() == [6.5, 6.5]
  assert np.allclose(table['params_m'], 0.559386)
  hundred = convert.convert(str(path), 'cifar100')
  assert hundred['val_ep200'].tolist() == [72.5, 73.5]


def test_latencies_are_converted(tmp_path, cells):
  """All cells in the layout of HW-NAS-Bench, to a table that can be loaded."""
  every = nas_bench_201.genotypes()[::-1]
  config = [{'arch_str': nas_bench_201.text(cell)} for cell in every]
  place = np.arange(15_625.0)

  def of(by):
    return {'a_latency': (place * by).tolist(), 'config': config}

  path, out = tmp_path / 'hw.pickle', tmp_path / 'hw.npz'
  held = {'nasbench201': {'cifar10': of(1.0), 'cifar100': of(2.0)}, 'fbnet': {}}
  path.write_bytes(pickle.dumps(held))
  convert.main([str(path), 'hardware', str(out)])
  columns = spaces.load(out).columns
  assert set(columns) == {'a_latency_cifar10', 'a_latency_cifar100'}
  # Cells were written from the last to the first.
  assert float(columns['a_latency_cifar100'][0]) == 2 * 15_624
  for wrong in ({'fbnet': {}}, {'nasbench201': {}}, [1], cells, Evil()):
    path.write_bytes(pickle.dumps(wrong))
    with pytest.raises(ValueError, match='not the file of HW-NAS-Bench'):
      convert.hardware(str(path))


class Evil:
  def __reduce__(self):
    return os.system, ('true',)


def test_a_release_that_would_run_a_program_is_refused(tmp_path, cells):
  path = tmp_path / 'bad.pickle.pbz2'
  written(path, {'meta_archs': cells, 'arch2infos': Evil()})
  with pytest.raises(ValueError, match=r'it asks for (posix|nt).system'):
    convert.convert(str(path))
  for wrong, says in (
    ({'meta_archs': cells}, 'no meta_archs and arch2infos'),
    ({'meta_archs': cells, 'arch2infos': {0: {'12': {}}}}, 'not laid out'),
    ({'meta_archs': cells, 'arch2infos': {}}, 'has no results of cifar10'),
  ):
    written(path, wrong)
    with pytest.raises(ValueError, match=says):
      convert.convert(str(path))
  with pytest.raises(ValueError, match="cifar100, ImageNet16-120, got 'svhn'"):
    convert.convert(str(path), 'svhn')
  with pytest.raises(FileNotFoundError):
    convert.convert(str(tmp_path / 'nowhere'))
