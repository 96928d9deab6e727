"""NAS-Bench-101: which cells are one network, how many, and what they cost."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import testing
from jaxnas.spaces import nas_bench_101 as bench
from jaxnas.spaces import tables

# Edges, ops, parameters, row of the table, mean test accuracy.
CELLS = {
  'inception': (
    '0-1 0-2 0-3 0-5 1-6 2-6 3-4 4-6 5-6',
    'conv1x1 conv3x3 conv3x3 conv3x3 maxpool3x3',
    2_694_282,
    67206,
    93.086,
  ),
  'conv3x3': ('0-1 1-6', 'conv3x3', 10_177_674, 298419, 93.046),
  'conv1x1': ('0-1 1-6', 'conv1x1', 1_920_138, 346019, 82.115),
  'maxpool': ('0-1 1-6', 'maxpool3x3', 882_570, 138614, 88.618),
  'direct': ('0-6', '', 882_570, 6992, 83.771),
  'skip': (
    '0-1 1-2 2-6 0-6',
    'conv3x3 conv3x3',
    20_346_506,
    300793,
    93.182,
  ),
  'best': (
    '0-1 0-2 0-5 0-6 1-5 2-3 3-4 4-5 5-6',
    'conv1x1 conv3x3 maxpool3x3 conv3x3 conv3x3',
    32_426_634,
    4789,
    94.318,
  ),
}


@pytest.fixture(scope='module')
def path(tables_with):
  return tables_with('nb101.npz') / 'nb101.npz'


@pytest.fixture(scope='module')
def table(path):
  return tables.load(path)


@pytest.fixture(scope='module')
def rows(path):
  with np.load(path) as stored:
    names = ('num_vertices', 'edge_bits', 'ops')
    return bench.genotypes(*(stored[name] for name in names))


@pytest.fixture(scope='module')
def drawn():
  """64 samples, under one program."""
  keys = jax.random.split(jax.random.key(0), 64)
  return keys, jax.jit(jax.vmap(bench.sample))(keys)


legal = jax.jit(jax.vmap(bench.legal))
param_count = jax.jit(bench.param_count)


@pytest.mark.parametrize(
  ('vertices', 'labelled', 'unique'),
  [(2, 1, 1), (3, 6, 6), (4, 90, 84), (5, 3267, 2441)],
)
def test_counts(vertices, labelled, unique):
  cells = bench.enumerate_cells(vertices)
  assert len(cells) == labelled
  assert len(np.unique(bench.codes(cells))) == unique


@pytest.mark.slow
def test_counts_of_the_whole_space(rows):
  numbers, labelled = [], 0
  for vertices, unique in zip(
    range(2, 8), (1, 6, 84, 2441, 62_010, 359_082), strict=True
  ):
    cells = bench.enumerate_cells(vertices)
    labelled += len(cells)
    numbers.append(np.unique(bench.codes(cells)))
    assert len(numbers[-1]) == unique
  assert labelled == 1_293_208
  found = np.sort(np.concatenate(numbers))
  assert len(found) == bench.NETWORKS
  np.testing.assert_array_equal(found, np.sort(bench.codes(rows)))


def relabelled(genotype, order):
  """The same cell with other numbers for its inner vertices, or None."""
  edges = np.asarray(bench.matrix(genotype))
  ops = np.asarray(genotype[21:])
  places = [0, *(np.array(order) + 1), 6]
  edges = edges[np.ix_(places, places)]
  if np.tril(edges).any():
    return None
  bits = [edges[x, y] for y in range(7) for x in range(y)]
  return np.array([*bits, *ops[list(order)]], np.int32)


@hypothesis.given(
  st.lists(st.integers(0, 1), min_size=21, max_size=21),
  st.lists(st.integers(0, 2), min_size=5, max_size=5),
  st.permutations(range(5)),
)
@hypothesis.settings(max_examples=15)
def test_codes_are_of_the_network(bits, ops, order):
  genotype = np.array(bits + ops, np.int32)
  other = relabelled(np.asarray(bench.prune(genotype)), order)
  pair = np.stack([genotype, genotype if other is None else other])
  one, two = bench.codes(pair, batch=2)
  assert one == two
  if one != np.iinfo(np.int32).max:
    again = np.stack([np.asarray(bench.decode(one))] * 2)
    assert bench.codes(again, batch=2)[0] == one
    hashes = {bench.graph_hash(row) for row in [*pair, again[0]]}
    assert len(hashes) == 1


def test_codes_tell_networks_apart():
  # As many codes as official hashes, and the same classes.
  cells = bench.enumerate_cells(4)
  pairs = zip(bench.codes(cells).tolist(), map(bench.graph_hash, cells))
  classes = {*pairs}
  assert len(classes) == len({code for code, _ in classes}) == 84
  assert len({name for _, name in classes}) == 84


def test_legality():
  whole = bench.cell('0-1 0-2 0-3 0-4 1-6 2-6 3-6 4-6 0-6')
  over = bench.cell('0-1 0-2 0-3 0-4 1-6 2-6 3-6 4-6 0-5 5-6')
  dangling = bench.cell('0-1 0-2 0-3 0-4 1-6 2-6 3-6 4-6 0-6 4-5')
  apart = bench.cell('0-1 1-2 3-6')
  found = legal(jnp.stack([whole, over, dangling, apart]))
  assert found.tolist() == [True, False, True, False]


@pytest.mark.parametrize('name', CELLS)
def test_named_cells(name, table):
  edges, ops, params, row, accuracy = CELLS[name]
  genotype = bench.cell(edges, ops)
  assert int(param_count(genotype)) == params
  assert int(jax.jit(table.space.index)(genotype)) == row
  assert int(table.columns['params'][row]) == params
  assert float(table.columns['test_acc_ep108'][row]) == pytest.approx(
    accuracy, abs=1e-3
  )


def test_rows_are_in_the_order_of_the_official_hash(table, rows):
  some = np.arange(0, bench.NETWORKS, 2003)
  hashes = [bench.graph_hash(row) for row in rows[some]]
  assert hashes == sorted(hashes)
  index = jax.jit(jax.vmap(table.space.index))
  np.testing.assert_array_equal(index(rows[some].astype(np.int32)), some)


def counted(table, rows):
  count = jax.jit(jax.vmap(bench.param_count))
  found = [
    count(rows[i : i + 4096].astype(np.int32))
    for i in range(0, len(rows), 4096)
  ]
  return np.concatenate(found)


def test_parameters_of_some_rows(table, rows):
  some = slice(0, bench.NETWORKS, 104)
  found = counted(table, rows[some][:4096])
  want = np.asarray(table.columns['params'])[some][:4096]
  np.testing.assert_array_equal(found, want)


@pytest.mark.slow
def test_parameters_of_every_row(table, rows):
  np.testing.assert_array_equal(counted(table, rows), table.columns['params'])


@pytest.mark.parametrize(
  ('edges', 'inputs', 'outputs', 'want'),
  [
    ('0-1 0-2 1-3 2-6 3-6', 8, 15, [8, 7, 8, 7, 0, 0, 15]),
    ('0-1 0-2 0-3 1-6 2-6 3-6', 8, 8, [8, 3, 3, 2, 0, 0, 8]),
    ('0-6', 8, 16, [8, 0, 0, 0, 0, 0, 16]),
  ],
)
def test_channels(edges, inputs, outputs, want):
  channels = jax.jit(bench.vertex_channels)
  found = channels(bench.cell(edges), inputs, outputs)
  assert found.tolist() == want


def test_samples_and_edits_are_legal(drawn):
  keys, some = drawn
  assert legal(some).all()
  changed = jax.jit(jax.vmap(bench.mutate))(keys, some)
  assert legal(changed).all()
  assert ((changed != some).sum(axis=1) == 1).all()
  many = jax.jit(jax.vmap(bench.resample))(keys, some)
  assert legal(many).all()
  assert 2 < float((many != some).sum(axis=1).mean()) < 6
  # Not everything is legal: a failing control of the assertion above.
  keys = jax.random.split(jax.random.key(1), 64)
  coins = jax.vmap(lambda key: jax.random.bernoulli(key, shape=(26,)))(keys)
  assert not legal(coins.astype(jnp.int32)).all()


def test_neighbours_are_all_single_edits(drawn):
  _, some = drawn
  around, good = jax.jit(jax.vmap(bench.neighbours))(some)
  assert around.shape == (64, 31, 26)
  assert ((around != some[:, None]).sum(axis=-1) == 1).all()
  distinct = {tuple(row) for row in np.asarray(around[0])}
  assert len(distinct) == 31
  np.testing.assert_array_equal(
    legal(around.reshape(-1, 26)), np.asarray(good).ravel()
  )
  assert not good.all()


def test_crossovers(drawn):
  keys, some = drawn
  other = jnp.roll(some, 1, axis=0)
  child = jax.jit(jax.vmap(bench.crossover))(keys, some, other)
  assert legal(child).all()
  assert ((child == some) | (child == other)).all()


def test_crossover_on_a_shortest_path(drawn):
  keys, some = (part[:16] for part in drawn)
  other = jnp.roll(some, 1, axis=0)
  distance = jax.jit(jax.vmap(bench.distance))
  child = jax.jit(jax.vmap(bench.shortest_path_crossover))(keys, some, other)
  assert legal(child).all()
  whole = distance(some, other)
  assert (distance(other, some) == whole).all()
  taken = distance(child, some) > 0  # Others found no child but the parent.
  assert float(taken.mean()) > 0.7
  # Half way: nearer to both than they are to each other.
  for parent in (some, other):
    near = distance(child, parent)[taken]
    assert float(near.mean()) < 0.8 * float(whole[taken].mean())


def test_encoding_sees_what_counts(drawn):
  _, some = drawn
  encode = jax.jit(jax.vmap(bench.encode))
  np.testing.assert_array_equal(
    encode(some), encode(jax.jit(jax.vmap(bench.prune))(some))
  )
  assert encode(some).shape == (64, 36)
  assert len(np.unique(np.asarray(encode(some)), axis=0)) > 50


def test_the_space_keeps_the_laws(table):
  testing.check_array_space(table.space, jax.random.key(0), samples=20)


def test_what_is_not_of_the_options_is_not_legal():
  whole = bench.cell('0-1 1-6', 'conv3x3')
  wrong = jnp.stack([whole.at[21].set(7), whole.at[22].set(-1)])
  assert not legal(wrong).any()
  assert (bench.codes(wrong) == np.iinfo(np.int32).max).all()
  # An operation of 7 would be read as one of the next vertex.
  small = bench.space(bench.codes(bench.enumerate_cells(3)))
  assert jax.vmap(small.index)(wrong).tolist() == [-1, -1]


def test_bad_input_is_refused():
  with pytest.raises(ValueError, match=r'param_count: .* got shape \(20,\)'):
    bench.param_count(jnp.zeros(20, int))
  with pytest.raises(ValueError, match='graph_hash: .* got .*7'):
    bench.graph_hash(bench.cell('0-6').at[21].set(7))
  with pytest.raises(ValueError, match='source < target'):
    bench.cell('3-1')
  with pytest.raises(ValueError, match='2 to 7'):
    bench.enumerate_cells(8)
  with pytest.raises(ValueError, match='different networks'):
    bench.space(np.array([3, 3]))
