"""Array populations: what children inherit, who is replaced, in which order.

The exact properties of PBT-NAS (pbt_nas specification, 5.2), each with what
would break it.
"""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import source_tree

from jaxnas import (
  algorithms,
  checkpoint,
  combine,
  forms,
  learners,
  mixing,
  selection,
  stages,
)
from jaxnas import mesh as meshes
from jaxnas.base import Body, Genes, Learner, Member
from jaxnas.run import rounds, run, watch_compiler

# Gene 0 owns two layers, gene 1 a slot of the stack, gene 2 none, gene 3 the
# other slot.
GENES = Genes(
  (3, 3, 4, 3),
  {'wide': 0, 'narrow': 0, 'stack': np.array([1, 3]), 'head': -1},
  ('width', 'first', 'activation', 'second'),
)
SHAPES = {'wide': (2, 3), 'narrow': (3,), 'stack': (2, 4), 'head': (5,)}
TX = mixing.layered(optax.adam(0.1), GENES)


def fresh(key, genes, hyper):
  del genes, hyper
  keys = jax.random.split(key, len(SHAPES))
  layers = {
    name: {'w': jax.random.normal(own, shape)}
    for own, (name, shape) in zip(keys, SHAPES.items())
  }
  average = {name: layers[name] for name in ('wide', 'stack', 'head')}
  return Body(layers, TX.init(layers), average, {'steps': jnp.zeros(())})


def member(seed: int, genes: tuple[int, ...]) -> Member:
  """A member that has learned: moments, averages and rest are its own."""
  body = fresh(jax.random.key(seed), None, None)
  noise = jax.random.normal(jax.random.key(seed + 100), (3,))
  moments = jax.tree.map(
    lambda leaf: leaf + (seed if leaf.dtype == jnp.int32 else noise[0]),
    body.moments,
  )
  average = jax.tree.map(lambda leaf: leaf + noise[1], body.average)
  body = body._replace(
    moments=moments, average=average, rest={'steps': jnp.float32(seed)}
  )
  return Member(body, jnp.asarray(genes, jnp.int32), {'rate': noise[2]})


BASE, DONOR = member(1, (0, 0, 0, 0)), member(2, (1, 1, 1, 1))


def same(one, other) -> bool:
  return jax.tree.structure(one) == jax.tree.structure(other) and all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other))
  )


def child(**settings) -> Member:
  make = mixing.mix(GENES, **settings)
  return make(jax.random.key(7), BASE, DONOR, fresh)


def test_a_child_that_takes_nothing_is_the_base_bit_for_bit():
  for moments in mixing.MOMENTS:
    assert same(child(probability=0.0, moments=moments), BASE)
  assert not same(child(probability=1.0), BASE)


def test_a_child_that_takes_all_exactly_is_the_donor_where_genes_own_layers():
  found = child(probability=1.0, keep=1.0, noise=0.0, moments='take_donor')
  assert same(found.genes, DONOR.genes)
  for name in ('wide', 'narrow', 'stack'):
    assert same(found.body.layers[name], DONOR.body.layers[name])
    assert same(found.body.moments[name], DONOR.body.moments[name])
  for name in ('wide', 'stack'):
    assert same(found.body.average[name], DONOR.body.average[name])
  # What no gene owns, and what is no layer, is the base's.
  assert same(found.body.layers['head'], BASE.body.layers['head'])
  assert same(found.body.average['head'], BASE.body.average['head'])
  assert same(found.body.rest, BASE.body.rest)
  assert same(found.hyper, BASE.hyper)


def took_of(found: Member) -> np.ndarray:
  return np.asarray(found.genes) == 1


def test_weights_follow_their_genes_shrunk_and_perturbed():
  make = mixing.mix(GENES, probability=0.5, keep=0.4, noise=0.1)
  seen, drawn = set(), []

  def init(key, genes, hyper):
    drawn.append((fresh(key, genes, hyper), np.asarray(genes)))
    return drawn[-1][0]

  for seed in range(12):
    drawn.clear()
    found = make(jax.random.key(seed), BASE, DONOR, init)
    took = took_of(found)
    seen.add(tuple(took.tolist()))
    ((new, genes),) = drawn
    # The noise is that of a network with the child's whole genotype.
    assert np.array_equal(genes, found.genes)
    layers = [body.layers for body in (BASE.body, DONOR.body, new, found.body)]
    for name in ('wide', 'narrow', 'stack'):
      base, donor, noise, got = (held[name]['w'] for held in layers)
      mask = took[np.asarray(GENES.owner[name])]
      mask = np.broadcast_to(
        mask.reshape(mask.shape + (1,) * (got.ndim - mask.ndim)), got.shape
      )
      expected = np.where(mask, 0.4 * donor + 0.1 * noise, base)
      assert np.allclose(got, expected, rtol=1e-6)
  # Independent genes: a group gene moves both its layers, one without weights
  # moves none, and slots of one array move apart.
  assert len(seen) > 6


def test_averages_come_as_they_are_and_never_perturbed():
  found = child(probability=1.0, keep=0.4, noise=0.1)
  for name in ('wide', 'stack'):
    assert same(found.body.average[name], DONOR.body.average[name])
    assert not same(found.body.layers[name], DONOR.body.layers[name])


def counts(body: Body, name: str) -> list[float]:
  return np.asarray(body.moments[name][0].count).ravel().tolist()


@pytest.mark.parametrize(
  ('moments', 'expected'),
  [('zero', [0, 0]), ('keep_base', [1, 1]), ('take_donor', [2, 2])],
)
def test_moments_and_their_count_follow_one_policy(moments, expected):
  found = child(probability=1.0, moments=moments)
  assert counts(found.body, 'stack') == expected
  assert counts(found.body, 'head') == [1]
  source = {'keep_base': BASE, 'take_donor': DONOR}.get(moments)
  mu = found.body.moments['stack'][0].mu
  if source is None:
    assert not np.any(mu['w'])
  else:
    assert same(mu, source.body.moments['stack'][0].mu)


def first_step(count: int) -> float:
  """The size of Adam's first step on a zeroed slot, beside one that is old."""
  genes = Genes((2, 2), {'a': np.array([0, 1])}, ('x', 'y'))
  tx = mixing.layered(optax.adam(1.0), genes)
  state = tx.init({'a': jnp.zeros((2, 1))})
  old = state['a'][0]
  old = old._replace(
    count=jnp.asarray([count, 1000], old.count.dtype),
    mu=jnp.array([[0.0], [1.0]]),
    nu=jnp.array([[0.0], [1.0]]),
  )
  state = {'a': (old, *state['a'][1:])}
  updates, _ = tx.update({'a': jnp.ones((2, 1))}, state)
  return float(jnp.abs(updates['a'][0, 0]))


def test_a_zeroed_slot_takes_steps_of_the_usual_size():
  assert first_step(0) == pytest.approx(1.0, rel=1e-3)
  # The trap: the same zeros under the count of a trained optimizer.
  assert first_step(1000) > 2.5


@functools.cache
def small(**settings):
  settings = {'slots': 6, 'steps': 4, 'points': (64, 64), **settings}
  return learners.teacher(jax.random.key(0), **settings)


def test_the_first_genotypes_are_stratified():
  found = mixing.stratified(jax.random.key(0), (7, 3, 5), 24)
  for column, options in zip(np.asarray(found).T, (7, 3, 5)):
    count = np.bincount(column, minlength=options)
    assert count.min() >= 24 // options
  columns = np.asarray(mixing.stratified(jax.random.key(1), (4, 4), 64)).T
  assert not np.array_equal(*columns)  # Shuffled apart.


def test_the_worst_make_way_for_pairs_of_the_best():
  scores = jnp.array([5.0, jnp.nan, 7.0, 1.0, 6.0, 0.0, 8.0, 4.0])
  ranked = [6, 2, 4, 0, 7, 3, 5, 1]
  for seed in range(20):
    found = selection.pairs(0.25, best=0.5)(jax.random.key(seed), scores)
    assert set(found.slot.tolist()) == {1, 5}
    for base, donor in zip(found.base.tolist(), found.donor.tolist()):
      assert ranked.index(base) < ranked.index(donor) < 4
  with pytest.raises(ValueError, match='two parents; take 8 members'):
    selection.pairs(0.25)(jax.random.key(0), jnp.arange(7.0))


def test_pairings_keep_survivors_and_prefer_the_better():
  scores = jnp.array([3.0, jnp.nan, 1.0, 2.0, 5.0, 4.0])
  for seed in range(20):
    key = jax.random.key(seed)
    found = selection.copies(1 / 3)(key, scores)
    assert set(found.slot.tolist()) == {1, 2}
    assert set(found.base.tolist()) <= {4, 5}
    found = selection.duels()(key, scores)
    for slot, base in zip(found.slot.tolist(), found.base.tolist()):
      assert base == slot or not scores[base] <= scores[slot]
    assert found.base.tolist()[4] == 4  # The best loses to nobody.


def test_a_significant_duel_needs_more_than_a_better_mean():
  noise = jnp.array([-1.0, 0.0, 1.0, 0.5, -0.5])
  near = jnp.stack([noise, noise + 0.1])
  far = jnp.stack([noise, noise + 5.0])
  duel = selection.significant_duels()
  assert duel(jax.random.key(0), near).base.tolist() == [0, 1]
  assert duel(jax.random.key(0), far).base.tolist() == [1, 1]
  # The control: a mere duel takes the nearer one's mean for better.
  mean = near.mean(axis=1)
  assert selection.duels()(jax.random.key(0), mean).base.tolist() == [1, 1]
  with pytest.raises(ValueError, match='K >= 2'):
    duel(jax.random.key(0), mean)


def test_welchs_test_agrees_with_scipy():
  stats = pytest.importorskip('scipy.stats')
  rng = np.random.default_rng(0)
  for shift in (0.3, 0.9, 1.5, 2.5):
    scores = rng.normal(size=(2, 6)) * [[1.0], [2.0]] + [[0.0], [shift]]
    p = stats.ttest_ind(
      scores[1], scores[0], equal_var=False, alternative='greater'
    ).pvalue
    for level in (p * 0.9, min(p * 1.1, 0.99)):
      found = selection.significant_duels(level)(
        jax.random.key(0), jnp.asarray(scores, jnp.float32)
      )
      assert (found.base[0] == 1) == (p < level and scores[1].mean() > 0)


def start(size: int = 8, **settings):
  return stages.members(jax.random.key(1), small(**settings), size)


def searched(stage, population=None, count: int = 3, seed: int = 2):
  population = start() if population is None else population
  return run(jax.random.key(seed), stage, population, count)[0]


def held(population):
  return population.member, population.metrics, population.parents


def test_survivors_are_untouched_and_the_worst_replaced():
  learner = small()
  measured = searched(algorithms.train_only(learner), count=1)
  stage = stages.replace(
    learner, selection.pairs(0.25), mixing.mix(learner.genes)
  )
  changed, _ = stage.update(jax.random.key(3), measured, ())
  order = np.argsort(np.asarray(measured.metrics['fitness']))
  gone, kept = order[:2], order[2:]

  def rows(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)

  assert same(rows(held(changed), kept), rows(held(measured), kept))
  assert np.isnan(np.asarray(changed.metrics['fitness'])[gone]).all()
  parents = np.asarray(changed.parents)[gone]
  assert set(parents.ravel()) <= set(order[-2:])
  for slot in gone:
    assert not same(rows(changed.member, slot), rows(measured.member, slot))


def test_replacement_is_due_every_so_many_rounds():
  learner = learners.plain(steps=1)
  first = stages.members(jax.random.key(1), learner, 8, learners.toys.START)
  stage = algorithms.pbt_nas(learner, every=2)
  for count, due in ((2, False), (3, True)):
    parents = np.asarray(searched(stage, first, count).parents[:, 0])
    assert (parents != np.arange(8)).any() == due
  with pytest.raises(ValueError, match='every must be at least 1, got 0'):
    algorithms.pbt_nas(learner, every=0)


def test_children_of_the_same_parents_are_no_twins():
  learner = small()
  measured = searched(algorithms.train_only(learner), start(12), count=1)
  stage = stages.replace(
    learner, selection.pairs(0.5, best=0.25), mixing.mix(learner.genes)
  )
  changed, _ = stage.update(jax.random.key(3), measured, ())
  gone = np.argsort(np.asarray(measured.metrics['fitness']))[:6]
  bodies = {
    np.asarray(changed.member.body.layers['slots']['u'][slot]).tobytes()
    + np.asarray(changed.member.genes[slot]).tobytes()
    for slot in gone
  }
  assert len(bodies) == 6


def test_a_whole_search_under_scan_is_the_search_on_the_host():
  stage = algorithms.pbt_nas(small())
  host = searched(stage, count=4)
  traced, seen = jax.jit(
    lambda key, population: rounds(
      key, stage, population, 4, lambda p: (p.member.genes, p.parents)
    )
  )(jax.random.key(2), start())
  assert same(traced.member.genes, host.member.genes)
  assert np.allclose(
    traced.metrics['fitness'], host.metrics['fitness'], rtol=1e-4
  )
  assert int(traced.spent.examples) == host.spent.examples
  assert seen[0].shape == (4, 8, 6)


@pytest.mark.slow
def test_a_round_without_jit_is_the_round():
  tiny = {'slots': 2, 'steps': 1, 'points': (8, 8)}
  stage = algorithms.pbt_nas(small(**tiny))
  jitted = searched(stage, start(**tiny), count=2)
  with jax.disable_jit():
    eager = searched(stage, start(**tiny), count=2)
  assert same(jitted.member.genes, eager.member.genes)
  assert same(jitted.parents, eager.parents)
  for one, other in (
    (jitted.metrics, eager.metrics),
    (jitted.member.body, eager.member.body),
  ):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_many_searches_at_once_are_the_searches_one_by_one():
  stage = algorithms.pbt_nas(small(), over=forms.at_once)
  keys = jax.random.split(jax.random.key(5), 3)

  def search(key):
    return rounds(key, stage, start(), 3)[0]

  together = jax.jit(jax.vmap(search))(keys)
  for i, key in enumerate(keys):
    alone = jax.jit(search)(key)
    assert same(together.member.genes[i], alone.member.genes)


def write_search(path, devices):
  """In a process of its own: what a search on so many devices ends with."""
  mesh = meshes.make(jax.devices()[:devices])
  last = searched(algorithms.pbt_nas(small(), mesh=mesh))
  np.savez(path, *map(np.asarray, jax.tree.leaves(held(last))))
  uneven = meshes.make(jax.devices()[:3])
  with pytest.raises(ValueError, match='8 members cannot be dealt evenly to 3'):
    searched(algorithms.pbt_nas(small(), mesh=uneven))


@pytest.mark.slow
def test_four_devices_give_the_search_of_one(tmp_path):
  path = str(tmp_path / 'found.npz')
  root = source_tree.ROOT
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      f'import test_members as t; t.write_search({path!r}, 4)',
    ],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': os.pathsep.join([str(root), str(root / 'tests')]),
      'XLA_FLAGS': '--xla_force_host_platform_device_count=4',
    },
  )
  assert not done.returncode
  expected = jax.tree.leaves(held(searched(algorithms.pbt_nas(small()))))
  with np.load(path) as found:
    assert len(found.files) == len(expected)
    for name, leaf in zip(found.files, expected):
      if leaf.dtype == jnp.int32:  # Genes, parents and counts: all decisions.
        assert np.array_equal(found[name], leaf)
      np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-6)
  # The comparison can fail: another key gives other parents.
  other = searched(algorithms.pbt_nas(small()), seed=3)
  assert not same(other.parents, expected[-1])


def test_a_search_that_was_saved_goes_on_bit_for_bit(tmp_path):
  stage = algorithms.pbt_nas(small())
  whole = searched(stage, count=4)
  half, state = run(jax.random.key(2), stage, start(), 2)
  checkpoint.save(tmp_path, 2, (half, state), settings={})
  _, (half, state) = checkpoint.restore(tmp_path, settings={})
  rest, _ = run(jax.random.key(2), stage, half, 4, state=state)
  assert same(held(whole), held(rest))
  assert whole.spent.examples == rest.spent.examples


@pytest.mark.slow
def test_a_round_compiles_nothing_after_the_second():
  stage = algorithms.pbt_nas(small(slots=5))
  population, state = run(jax.random.key(2), stage, start(slots=5), 2)
  with watch_compiler() as seen:
    run(jax.random.key(2), stage, population, 5, state=state)
  assert not seen.programs


def test_a_member_that_diverged_ranks_last_and_never_spreads():
  learner = small()
  broken = learner._replace(
    train=lambda key, member, data: jax.tree.map(
      lambda leaf: (
        jnp.where(member.genes[0] == 0, jnp.nan, leaf)
        if leaf.dtype == jnp.float32
        else leaf
      ),
      learner.train(key, member, data),
    )
  )
  population = stages.members(jax.random.key(1), broken, 8)
  genes = population.member.genes.at[:, 0].set(jnp.arange(8) % 4 + 1)
  genes = genes.at[3, 0].set(0)
  population = population._replace(
    member=population.member._replace(genes=genes)
  )
  first = searched(algorithms.train_only(broken), population, count=1)
  assert np.isnan(first.metrics['fitness']).tolist() == [
    i == 3 for i in range(8)
  ]
  last = searched(algorithms.pbt_nas(broken), population, count=4)
  assert stages.champion(last) != 3 or np.isfinite(last.metrics['fitness'][3])
  finite = np.isfinite(np.asarray(last.metrics['fitness']))
  assert finite.all()
  assert 0 not in np.asarray(last.member.genes)[:, 0]


def test_mutations_change_nothing_or_weights_or_one_gene():
  make = mixing.mutate(GENES, fraction=0.5)
  kinds = set()
  for seed in range(30):
    found = make(jax.random.key(seed), BASE, DONOR, fresh)
    changed = np.flatnonzero(np.asarray(found.genes) != 0)
    if same(found, BASE):
      kinds.add('nothing')
    elif len(changed):
      kinds.add('gene')
      (gene,) = changed
      for name, owner in GENES.owner.items():
        own = np.asarray(owner) == gene
        got, old = (m.body.layers[name]['w'] for m in (found, BASE))
        differs = np.asarray(got != old)
        differs = differs.reshape(*own.shape, -1).any(axis=-1)
        assert np.array_equal(differs, own)
        if name in found.body.average and own.any():
          new = found.body.average[name]['w']
          assert np.array_equal(np.asarray(new == got).all(), own.all())
    else:
      kinds.add('weights')
      ratio = found.body.layers['head']['w'] / BASE.body.layers['head']['w']
      assert np.all(np.abs(ratio - 1) < 0.6)
  assert kinds == {'nothing', 'gene', 'weights'}


def test_no_mixing_keeps_the_architecture_and_shakes_some_layers():
  make = mixing.itself(mixing.mix(GENES, probability=1.0))
  found = make(jax.random.key(0), BASE, DONOR, fresh)
  assert same(found.genes, BASE.genes)
  assert not same(found.body.layers['wide'], BASE.body.layers['wide'])
  assert same(found.body.layers['head'], BASE.body.layers['head'])


def test_hyper_parameters_are_perturbed_within_their_range_or_drawn_anew():
  priors = {'rate': mixing.Prior(0.1, 1.0)}
  parent = BASE._replace(hyper={'rate': jnp.float32(0.9), 'other': 3.0})
  make = mixing.explore(priors, factors=(0.5, 2.0))
  found = {
    float(make(jax.random.key(i), parent, parent, fresh).hyper['rate'])
    for i in range(20)
  }
  assert sorted(found) == pytest.approx([0.45, 1.0])
  anew = mixing.explore(priors, resample=1.0)
  drawn = [
    float(anew(jax.random.key(i), parent, parent, fresh).hyper['rate'])
    for i in range(20)
  ]
  assert len(set(drawn)) == 20
  assert all(0.1 <= value <= 1.0 for value in drawn)
  assert anew(jax.random.key(0), parent, parent, fresh).hyper['other'] == 3.0


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: mixing.mix(GENES, probability=1.5), r'\[0, 1\], got 1.5'),
    (lambda: mixing.mix(GENES, moments='none'), 'zero, keep_base, take_donor'),
    (lambda: selection.pairs(0.7), r'fraction must be in \(0, 1/2\], got 0.7'),
    (lambda: selection.significant_duels(0.0), 'level must be in'),
    (lambda: start(0), 'size must be at least 1, got 0'),
  ],
)
def test_illegal_settings_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_replacing_before_measuring_says_what_to_add():
  stage = stages.replace(
    small(), selection.pairs(), mixing.mix(small().genes), by='beauty'
  )
  with pytest.raises(ValueError, match="no metric 'beauty'.*add assess"):
    stage.update(jax.random.key(0), start(), ())


def test_a_condition_that_is_traced_is_a_branch():
  double = combine.stage(
    lambda key, p: p._replace(parents=p.parents * 2), 'double'
  )
  stage = combine.when(lambda p: p.generation == 1, double)
  last, seen = rounds(
    jax.random.key(0), stage, start(), 3, lambda p: p.parents[1, 0]
  )
  assert seen.tolist() == [1, 2, 2]
  assert same(last.parents, searched(stage).parents)


@pytest.mark.slow
def test_the_teacher_separates_what_it_should():
  learner = small(slots=4, steps=150)
  right = learner.data['genes']
  wrong = jnp.zeros_like(right)
  genes = jnp.stack([right] * 2 + [wrong] * 2)
  population = stages.members(jax.random.key(1), learner, 4)
  population = population._replace(
    member=population.member._replace(genes=genes)
  )
  last = searched(algorithms.train_only(learner), population, count=4)
  error = np.asarray(last.metrics['error'])
  assert error[:2].max() < 0.5
  # Slots that are zero explain nothing of a target of variance one.
  assert 0.7 < error[2:].min()


def bowl(noise: float = 0.0):
  """A learner whose fitness is minus the squared distance of `w` from zero."""

  def init(key, genes, hyper, data):
    del genes, hyper, data
    layers = {'w': jax.random.normal(key, (2,))}
    return Body(layers, {}, dict(layers), {'own': layers['w']})

  def measure(key, member, data):
    del data
    luck = noise * jax.random.normal(key)
    return {'fitness': luck - (member.body.average['w'] ** 2).sum()}

  genes = Genes((2,), {'w': 0}, ('only',))
  return Learner(
    genes, init, lambda key, m, data: m.body, measure, measure, (), 1
  )


def poured(weights, genes, noise=0.0):
  """A population of given weights before and after the soup."""
  learner = bowl(noise)
  before = stages.members(jax.random.key(0), learner, len(weights))
  w = jnp.asarray(weights, jnp.float32)
  body = Body({'w': w}, {}, {'w': w}, {'own': w})
  member = before.member._replace(body=body, genes=jnp.array(genes)[:, None])
  before = before._replace(member=member)
  before, _ = stages.assess(learner).update(jax.random.key(1), before, ())
  after, _ = stages.soup(learner).update(jax.random.key(2), before, ())
  return before, after


def test_a_soup_takes_what_helps_of_its_own_genotype():
  weights = [[3.0, 0.0], [0.1, 0.2], [-0.3, -0.2], [-0.1, -0.2], [np.nan, 0.0]]
  genes = [1, 1, 1, 0, 1]  # The fourth would complete it, and is another.
  before, after = poured(weights, genes)
  body = jax.tree.map(lambda leaf: np.asarray(leaf)[1], after.member.body)
  expected = np.mean([weights[1], weights[2]], axis=0)
  np.testing.assert_allclose(body.layers['w'], expected, atol=1e-6)
  np.testing.assert_allclose(body.average['w'], expected, atol=1e-6)
  np.testing.assert_array_equal(body.rest['own'], np.float32(weights[1]))
  fitness = np.asarray(after.metrics['fitness'])
  assert fitness[1] > np.nanmax(before.metrics['fitness'])
  # All others are as they were, to the last bit.
  others = [0, 2, 3, 4]
  for one, two in zip(
    jax.tree.leaves((before.member, dict(before.metrics))),
    jax.tree.leaves((after.member, dict(after.metrics))),
    strict=True,
  ):
    np.testing.assert_array_equal(one[np.array(others)], two[np.array(others)])
  # A mean of all, which nothing tries, would be worse than the best alone.
  uniform = np.mean(np.array(weights)[:3], axis=0)
  assert -(uniform**2).sum() < np.nanmax(before.metrics['fitness'])


def test_a_soup_is_not_chosen_by_luck():
  """All soups meet the same noise, however large, so it decides nothing."""
  weights = [[0.5, 0.0], [0.1, 0.0], [0.4, 0.0], [0.6, 0.0]]
  found = {}
  for noise in (0.0, 100.0):
    before, after = poured(weights, [1] * 4, noise)
    best = int(selection.order(np.asarray(before.metrics['fitness']))[0])
    found[noise] = best, np.asarray(after.member.body.layers['w'])[best]
  assert found[0.0][0] == 1
  np.testing.assert_allclose(found[0.0][1], weights[1], atol=1e-7)
  lucky, soup = found[100.0]
  assert lucky != 1  # Here noise chose the best ...
  assert (soup**2).sum() <= np.square(weights[lucky]).sum()  # ... and no more.


def test_a_soup_runs_within_a_program_and_asks_for_a_measure():
  before, after = poured([[0.1, 0.0], [-0.2, 0.0]], [1, 1])
  stage = stages.soup(bowl())
  inside = jax.jit(lambda p: stage.update(jax.random.key(2), p, ())[0])(before)
  np.testing.assert_array_equal(
    inside.metrics['fitness'], after.metrics['fitness']
  )
  with pytest.raises(ValueError, match="no metric 'fitness'.*add assess"):
    stage.update(jax.random.key(0), before._replace(metrics={}), ())
