"""Cells of DARTS and its kin: laws of the spaces, sizes and parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import testing
from jaxnas.spaces import cell

GRAMMARS = {
  grammar.name: grammar
  for grammar in (
    cell.DARTS,
    cell.NASNET,
    cell.AMOEBANET,
    cell.PNAS,
    cell.NSGA,
    cell.ECONAS,
  )
}

# Of the networks with 36 channels, 20 cells and 10 classes.
PARAMS = {
  'darts_v1': 3_169_414,
  'darts_v2': 3_349_342,
  'p_darts': 3_433_798,
  'pc_darts_cifar10': 3_634_678,
  'pc_darts_imagenet': 3_721_510,
  'nasnet_a': 3_830_950,
  'amoebanet_a': 3_145_078,
  'pnasnet': 4_481_110,
  'unnas_imagenet_classes': 4_500_406,
  'unnas_imagenet_rotation': 4_708_630,
  'unnas_imagenet_colour': 3_762_550,
  'unnas_imagenet_jigsaw': 4_763_926,
}


def test_published_parameters():
  assert {name: cell.params(*cell.named(name)) for name in cell.NAMED} == PARAMS


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('darts', 1_037_664_180**2),
    ('pnas', 556_627_761_561_600),
    ('econas', (8**8 * 14_400) ** 2),
    ('nsga', (518_400 * 9**10) ** 2),
    ('nasnet', (518_400 * 13**10 * 2**5) ** 2),
  ],
)
def test_sizes(name, count):
  assert cell.count(GRAMMARS[name]) == count


def test_level_one_of_pnas():
  level = cell.Grammar('level', cell.PNAS.ops, blocks=1, cells=1, join='all')
  assert cell.count(level) == 256
  every = np.stack(np.meshgrid(*map(range, level.options)), -1).reshape(-1, 4)
  first = jax.vmap(lambda row: cell.canonical(level, row))(jnp.array(every))
  assert len(np.unique(np.asarray(first), axis=0)) == 136


def legal(grammar, rows):
  options = np.array(grammar.options)
  inside = ((rows >= 0) & (rows < options)).all(axis=-1)
  blocks = np.asarray(rows).reshape(
    len(rows), grammar.cells, grammar.blocks, grammar.width
  )
  apart = (blocks[..., 0] != blocks[..., 2]).all(axis=(1, 2))
  return inside & (apart | (not grammar.distinct))


@pytest.mark.parametrize('name', ['darts', 'nasnet'])
def test_laws_of_the_spaces(name):
  grammar = GRAMMARS[name]
  space = cell.space(grammar)
  keys = jax.random.split(jax.random.key(0), 128)
  some = np.asarray(jax.jit(jax.vmap(space.sample))(keys))
  assert legal(grammar, some).all()
  assert (some.max(axis=0) == np.array(space.options) - 1).mean() > 0.9
  changed = jax.jit(jax.vmap(space.mutate))(keys, some)
  assert legal(grammar, np.asarray(changed)).all()
  assert ((changed != some).sum(axis=1) == 1).all()
  other = np.roll(some, 1, axis=0)
  child = np.asarray(jax.jit(jax.vmap(space.crossover))(keys, some, other))
  assert legal(grammar, child).all()
  assert ((child == some) | (child == other)).all()
  around, good = jax.jit(space.neighbours)(some[0])
  assert len(np.unique(np.asarray(around), axis=0)) == len(around)
  np.testing.assert_array_equal(legal(grammar, np.asarray(around)), good)
  assert bool(good.all()) == (not grammar.distinct)
  assert int(space.index(some[0])) == -1 and space.size == 0
  testing.check_array_space(space, jax.random.key(1), samples=20)


@pytest.mark.parametrize('name', ['darts', 'nasnet'])
def test_crossover_on_a_shortest_path(name):
  grammar = GRAMMARS[name]
  cross = cell.shortest_path_crossover(grammar)
  space = cell.space(grammar)._replace(crossover=cross)
  testing.check_array_space(space, jax.random.key(1), samples=20)
  keys = jax.random.split(jax.random.key(0), 128)
  some = np.asarray(jax.jit(jax.vmap(space.sample))(keys))
  other = np.roll(some, 1, axis=0)
  child = np.asarray(jax.jit(jax.vmap(cross))(keys, some, other))
  assert legal(grammar, child).all()
  assert ((child == some) | (child == other)).all()
  half = ((some != other).sum(axis=1) + 1) // 2
  taken = (child != some).sum(axis=1)
  assert (taken <= half).all() and taken.mean() > 0.75 * half.mean()
  assert (taken == half).all() == (not grammar.distinct)


def test_samples_of_darts_are_uniform_over_pairs_of_states():
  keys = jax.random.split(jax.random.key(1), 4000)
  some = jax.jit(jax.vmap(cell.space(cell.DARTS).sample))(keys)
  # The last block reads two of five states: ten pairs, 400 times each.
  pairs = np.sort(np.asarray(some)[:, [28, 30]], axis=1)
  counts = np.unique(pairs, axis=0, return_counts=True)[1]
  assert len(counts) == 10
  assert abs(counts - 400).max() < 5 * 19


def test_the_order_of_edges_does_not_count():
  grammar, genotype = cell.named('darts_v2')
  blocks = genotype.reshape(2, 4, 2, 2)
  swapped = blocks[:, :, ::-1].reshape(-1)
  encode = jax.jit(cell.space(grammar).encode)
  assert (encode(genotype) == encode(swapped)).all()
  canonical = jax.jit(lambda genotype: cell.canonical(grammar, genotype))
  first = canonical(genotype)
  assert (first == canonical(swapped)).all()
  changed = genotype.copy()
  changed[1] = (changed[1] + 1) % 7
  assert (encode(genotype) != encode(changed)).sum() == 2


def test_unused_blocks_are_joined():
  grammar, genotype = cell.named('nasnet_a')
  normal, reduction = cell.blocks(grammar, genotype)
  assert cell.joined(grammar, normal) == [2, 3, 4, 5, 6]
  assert cell.joined(grammar, reduction) == [4, 5, 6]
  grammar, genotype = cell.named('amoebanet_a')
  assert [
    cell.joined(grammar, each) for each in cell.blocks(grammar, genotype)
  ] == [[4, 5, 6], [3, 4, 6]]
  grammar, genotype = cell.named('pnasnet')
  assert cell.joined(grammar, cell.blocks(grammar, genotype)[0]) == [
    2,
    3,
    4,
    5,
    6,
  ]


def test_genotypes_of_nas_bench_301(tables_with):
  name = 'nb301_proxies.npz'
  with np.load(tables_with(name) / name) as stored:
    cells = stored['arch'].reshape(len(stored['arch']), -1).astype(np.int32)
    params = stored['proxies'][:, list(stored['proxy_names']).index('params')]
  assert legal(cell.DARTS, cells).all()

  def correlated(some):
    # The stored counts are of 32 channels and 8 cells, without the scales and
    # biases of norms.
    own = [
      cell.params(cell.DARTS, each, channels=32, layers=8)
      for each in some[:100]
    ]
    return np.corrcoef(own, params[:100])[0, 1]

  assert correlated(cells) > 0.9999
  # The operations in another order do not fit.
  wrong = cells.copy()
  wrong[:, 1::2] = 6 - wrong[:, 1::2]
  assert correlated(wrong) < 0.5


def test_bad_input_is_refused():
  with pytest.raises(KeyError, match='darts_v2'):
    cell.named('darts_v3')
  with pytest.raises(ValueError, match='must be different ones'):
    cell.Grammar('mine', ('skip', 'swap'), blocks=2)
  with pytest.raises(ValueError, match="'all' or 'unused'"):
    cell.Grammar('mine', ('skip',), blocks=2, join='most')
  with pytest.raises(ValueError, match='no edge of block 0'):
    cell.parse(cell.PNAS, 'sep3:2 ' + 'skip:0 ' * 9)
  with pytest.raises(ValueError, match='10 edges'):
    cell.parse(cell.PNAS, 'sep3:0')
  with pytest.raises(ValueError, match='different states'):
    cell.parse(cell.DARTS, 'skip:0 ' * 8, 'skip:0 skip:1 ' * 4)
  with pytest.raises(ValueError, match='side by side'):
    cell.params(cell.NASNET, np.tile([0, 0, 0, 0, 1], 10))
  with pytest.raises(ValueError, match=r'params: .* got shape \(31,\)'):
    cell.params(cell.DARTS, np.zeros(31, int))
  grammar, genotype = cell.named('darts_v2')
  for place, value in ((1, 30), (1, -1), (0, 50)):
    wrong = genotype.copy()
    wrong[place] = value
    with pytest.raises(ValueError, match=rf'in \(2, 7, .* got \[.*{value}, '):
      cell.params(grammar, wrong)
  wrong = genotype.copy()
  wrong[2] = wrong[0]
  with pytest.raises(ValueError, match=r'read different states, got \[0, 3, 0'):
    cell.params(grammar, wrong)
