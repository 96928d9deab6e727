"""EcoNAS: its published counts, its ladder, and what it is better than."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import algorithms, run, spaces, stages
from jaxnas.base import Table
from jaxnas.run import rounds
from jaxnas.stages import trials

KEY = jax.random.key(0)
SPACE = spaces.nas_bench_201.space()
WORTH = np.random.default_rng(0).normal(size=SPACE.size).astype(np.float32)


def answer(noise=0.0, epochs=20):
  """A rung of epochs: the worth of a network and noise that falls with them."""
  worth = jnp.asarray(WORTH)

  def score(key, genotype, index, rung):
    spread = noise / jnp.sqrt(rung * epochs / 20)
    return worth[index] + spread * jax.random.normal(key), epochs

  return stages.climb(SPACE, score)


def start(slots):
  return trials.start(SPACE, slots, metrics=stages.RUNGS)


def searched(stage, generations, slots, seeds=None, key=KEY):
  """The trials of one search, or of many side by side."""

  def one(key):
    return rounds(key, stage, start(slots), generations)[0]

  if seeds is None:
    return jax.jit(one)(key)
  found = jax.jit(jax.vmap(lambda key: (one(key).metrics, one(key).index)))(
    jax.random.split(key, seeds)
  )
  return jax.tree.map(np.asarray, found)


def on_rungs(metrics):
  return [int((metrics['rung'] == rung).sum()) for rung in (1, 2, 3)]


@pytest.fixture(scope='module')
def published():
  """A whole search of the official size."""
  stage = algorithms.econas(SPACE, answer(noise=1.0))
  return searched(stage, 101, 16 + 100 * 28)


def test_the_published_counts(published):
  rung = np.asarray(published.metrics['rung'])
  assert on_rungs(published.metrics) == [1601, 800, 396]
  assert np.nansum(published.metrics['cost']) == 55_940
  assert int(published.spent.evaluations) == 1601 + 800 + 396
  # Cycle 0, 1 and 2: those that go on, and children.
  for cycle, (onward, children) in enumerate([(8, 6), (12, 11), (12, 16)]):
    held = rung[16 + 28 * cycle :][:28]
    assert ((held > 1).sum(), (held == 1).sum()) == (onward, children)


def test_the_control_costs_the_same():
  stage = algorithms.econas(SPACE, answer(epochs=35), promote=(), mothers=(16,))
  last = searched(stage, 101, 16 * 101)
  cost = np.nansum(last.metrics['cost'])
  assert on_rungs(last.metrics) == [16 * 101, 0, 0]
  assert abs(cost / 55_940 - 1) <= 0.0112


def test_who_goes_on_is_the_best_of_its_rung_and_young(published):
  metrics = {k: np.asarray(v) for k, v in published.metrics.items()}
  genotypes = np.asarray(published.genotypes)
  fitness, rung, source = (metrics[k] for k in ('fitness', 'rung', 'source'))
  begins = [0, *range(16, len(rung), 28)]
  for cycle in (0, 1, 5, 12, 40):
    begin = begins[cycle + 1]
    oldest = begins[max(0, cycle + 1 - 9)]
    before = np.arange(oldest, begin)
    gone = {int(s) for s, r in zip(source[:begin], rung[:begin]) if r > 1}
    for level, count in ((1, 8), (2, 4)):
      live = [s for s in before if rung[s] == level and s not in gone]
      best = sorted(live, key=lambda s: -fitness[s])[:count]
      went = np.arange(begin, begin + 28)[rung[begin : begin + 28] == level + 1]
      assert sorted(source[went].astype(int)) == sorted(best)
    # What goes on is the same cell, and a child one edit of a live mother's.
    for slot in range(begin, min(begin + 28, len(rung))):
      if np.isnan(rung[slot]):
        continue
      mother = int(source[slot])
      assert oldest <= mother < begin and mother not in gone
      edits = (genotypes[slot] != genotypes[mother]).sum()
      assert edits == (1 if rung[slot] == 1 else 0)


@pytest.mark.parametrize('first', [16, 50])
def test_founders_are_as_old_as_their_founding(first):
  # In generation 9 they are in view, all of them, and in 10 none; of what came
  # after them what is nine generations old.
  slots, life, room = 28, 9, 400
  held = start(room)._replace(
    index=jnp.zeros(room, jnp.int32),
    metrics={
      'fitness': jnp.zeros(room),
      'rung': jnp.ones(room),
      'source': -jnp.ones(room),
    },
  )
  look = jax.jit(
    lambda count: stages.live(held._replace(count=count), life * slots, first)
  )
  for generation in (1, 8, 9, 10, 11):
    count = first + (generation - 1) * slots
    seen = look(count)
    found = np.asarray(seen.slot)[np.asarray(seen.rung) > 0]
    after = first + (generation - 1 - life) * slots
    oldest = 0 if generation <= life else after
    np.testing.assert_array_equal(found, np.arange(oldest, count))
    memory = algorithms.econas_memory(first, (8, 4), (6, 5, 5), life)
    assert count - found[0] <= memory


def test_many_founders_are_ranked_as_long_as_their_children():
  stage = algorithms.econas(
    SPACE, answer(), first=20, promote=(2,), mothers=(1, 1), life=2
  )
  last = searched(stage, 4, 20 + 3 * 4)
  source = np.asarray(last.metrics['source'])
  rung = np.asarray(last.metrics['rung'])
  fitness = np.asarray(last.metrics['fitness'])
  # The best two founders go on, then the next two, unless a child is better;
  # in generation 3 none is in view.
  assert sorted(source[20:22]) == sorted(np.argsort(-fitness[:20])[:2])
  held = [s for s in range(24) if rung[s] == 1 and s not in source[20:22]]
  best = sorted(held, key=lambda s: -fitness[s])[:2]
  assert sorted(source[24:26].astype(int)) == sorted(best)
  assert (source[28:32][rung[28:32] > 0] >= 20).all()


def test_mothers_are_winners_of_tournaments_of_a_quarter():
  count, draws = 40, 20_000
  held = start(count)._replace(
    index=jnp.arange(count),
    count=count,
    genotypes=jnp.zeros((count, 6), int).at[:, 0].set(jnp.arange(count)),
    metrics={
      'fitness': jnp.arange(count) * 1.0,
      'cost': jnp.zeros(count),
      'rung': jnp.ones(count),
      'source': -jnp.ones(count),
    },
  )
  breed = stages.breed(lambda keys, mothers: mothers, (draws,), count)
  made, _ = breed.update(KEY, held, ())
  place = count - np.asarray(made.source)  # 1 is the best.
  # The best of 11 of 40 with replacement: P(place <= k) = 1 - (1 - k / 40)^11.
  for k in (1, 2, 4, 8, 16):
    want = 1 - (1 - k / count) ** 11
    error = 4 * np.sqrt(want * (1 - want) / draws)
    assert abs((place <= k).mean() - want) <= error
  np.testing.assert_array_equal(made.pending[:, 0], made.source)
  # A control: with no share of the set, any of it is the mother.
  lone = stages.breed(lambda keys, mothers: mothers, (draws,), count, share=0)
  made, _ = lone.update(KEY, held, ())
  assert abs((count - np.asarray(made.source) <= 1).mean() - 1 / count) < 0.01


def test_what_diverged_neither_goes_on_nor_has_children():
  fitness = jnp.array([jnp.nan, 3.0, jnp.nan, 1.0])
  held = start(4)._replace(
    index=jnp.arange(4),
    count=4,
    metrics={
      'fitness': fitness,
      'cost': jnp.zeros(4),
      'rung': jnp.ones(4),
      'source': -jnp.ones(4),
    },
  )
  for stage in (
    stages.onward((4,), 4),
    stages.breed(jax.vmap(SPACE.mutate), (50,), 4),
  ):
    made, _ = stage.update(KEY, held, ())
    kept = np.asarray(made.source)[np.asarray(made.wanted)]
    assert set(kept.tolist()) == {1, 3}
  # Where all did, nobody goes on and nobody is born.
  lost = held._replace(metrics={**held.metrics, 'fitness': fitness * jnp.nan})
  for stage in (
    stages.onward((4,), 4),
    stages.breed(jax.vmap(SPACE.mutate), (5,), 4),
  ):
    assert not stage.update(KEY, lost, ())[0].wanted.any()


def test_leaders_are_sorted_and_of_the_highest_rung(published):
  rung = np.asarray(published.metrics['rung'])
  fitness = np.asarray(published.metrics['fitness'])
  slots = np.asarray(stages.leaders(published, 20))
  assert (rung[slots] == 3).all()
  assert (np.diff(fitness[slots]) <= 0).all()
  assert fitness[slots[0]] == fitness[rung == 3].max()
  # What is read off as the answer is the first of them, though others, which
  # were trained for less and are noisier, look better.
  assert np.nanmax(fitness) > fitness[slots[0]]
  found = trials.incumbents(published)
  assert found.index[-1] == published.index[slots[0]]
  assert found.fitness[-1] == fitness[slots[0]]


@pytest.mark.slow
def test_hierarchy_finds_better_networks_than_its_control():
  # Scores are noisy, less so the longer a network was trained; 50 searches of
  # each at equal cost. What is found is judged by its true worth.
  noise, cycles, seeds = 1.5, 30, 50

  def worths(stage, slots):
    metrics, index = searched(stage, cycles + 1, slots, seeds)
    rung = np.where(index >= 0, metrics['rung'], 0)
    top = rung == rung.max(axis=1, keepdims=True)
    fitness = np.where(top, metrics['fitness'], -np.inf)
    best = np.take_along_axis(index, fitness.argmax(axis=1)[:, None], axis=1)
    return WORTH[best[:, 0]], np.nansum(metrics['cost'], axis=1)

  ladder, paid = worths(
    algorithms.econas(SPACE, answer(noise)), 16 + cycles * 28
  )
  flat, spent = worths(
    algorithms.econas(
      SPACE, answer(noise, epochs=35), promote=(), mothers=(16,)
    ),
    16 * (cycles + 1),
  )
  assert np.abs(paid / spent - 1).max() < 0.05
  gain = ladder - flat
  assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(seeds)


def test_halving_keeps_the_best_and_learns_nothing():
  stage = algorithms.halving(SPACE, answer(), first=8, keep=(4, 2))
  last = searched(stage, 5, 5 * 14)
  metrics = {k: np.asarray(v).reshape(5, 14) for k, v in last.metrics.items()}
  for fitness, rung in zip(metrics['fitness'], metrics['rung']):
    np.testing.assert_array_equal(rung, [1] * 8 + [2] * 4 + [3] * 2)
    first = np.sort(fitness[:8])[::-1]
    np.testing.assert_array_equal(fitness[8:12], first[:4])
    np.testing.assert_array_equal(fitness[12:], first[:2])


@pytest.mark.slow
def test_the_host_loop_and_one_program_are_the_same_search():
  stage = algorithms.econas(
    SPACE, answer(1.0), first=4, promote=(2, 1), mothers=(2, 1, 1)
  )
  slots = 4 + 5 * 7
  together = searched(stage, 6, slots)
  alone, _ = run(KEY, stage, start(slots), 6)
  np.testing.assert_array_equal(together.genotypes, alone.genotypes)
  for name, values in together.metrics.items():
    np.testing.assert_allclose(values, alone.metrics[name], rtol=1e-6)


def test_a_proxy_may_choose_among_a_brood():
  keys = jax.random.split(KEY, 3)
  mothers = jnp.zeros((3, 6), jnp.int32)
  mutate = stages.best_of(SPACE.mutate, 40, lambda key, made: made.sum(axis=1))
  assert mutate(keys, mothers).sum(axis=1).tolist() == [4, 4, 4]
  # What has no number is taken last.
  odd = stages.best_of(
    SPACE.mutate,
    40,
    lambda key, made: jnp.where(made.sum(axis=1) == 4, jnp.nan, 0.0),
  )
  assert (odd(keys, mothers).sum(axis=1) < 4).all()


def test_a_table_is_climbed_and_paid_rung_by_rung():
  columns = {'short': WORTH, 'long': 10 + WORTH}
  times = {'hour': np.full(SPACE.size, 1.0), 'day': np.full(SPACE.size, 24.0)}
  table = Table(
    SPACE, {k: jnp.asarray(v) for k, v in (columns | times).items()}
  )
  climb = stages.climb(
    SPACE, stages.by_rung(table, ['short', 'long'], ['hour', 'day'])
  )
  stage = algorithms.econas(SPACE, climb, promote=(8,), mothers=(8, 8))
  last = searched(stage, 4, 16 + 3 * 24)
  rung = np.asarray(last.metrics['rung'])
  for level, cost, plus in ((1, 1.0, 0.0), (2, 23.0, 10.0)):
    held = rung == level
    assert (np.asarray(last.metrics['cost'])[held] == cost).all()
    np.testing.assert_array_equal(
      np.asarray(last.metrics['fitness'])[held],
      plus + WORTH[np.asarray(last.index)[held]],
    )


def test_a_rung_that_would_be_paid_back_is_refused():
  columns = {'short': WORTH, 'long': WORTH, 'hour': 0 * WORTH + 1}
  columns['day'] = columns['hour'].copy()
  table = Table(SPACE, {k: jnp.asarray(v) for k, v in columns.items()})
  stages.by_rung(table, ['short', 'long'], ['hour', 'day'])
  columns['day'][7] = 0.5
  table = Table(SPACE, {k: jnp.asarray(v) for k, v in columns.items()})
  with pytest.raises(ValueError, match='those of 1 networks do'):
    stages.by_rung(table, ['short', 'long'], ['hour', 'day'])


@pytest.mark.parametrize(
  ('make', 'says'),
  [
    (lambda: algorithms.econas(SPACE, answer(), promote=(8,)), '3 rungs have'),
    (lambda: algorithms.econas(SPACE, answer(), mothers=()), '0 rungs have'),
    (lambda: algorithms.econas(SPACE, answer(), first=0), 'first must be'),
    (lambda: algorithms.econas(SPACE, answer(), share=2), 'share must be in'),
    (
      lambda: algorithms.halving(SPACE, answer(), first=4, keep=(5,)),
      'do not grow',
    ),
    (lambda: stages.onward((0,), 4), 'some of them above 0'),
    (lambda: stages.onward((1,), 0), 'within must be'),
    (lambda: stages.by_rung(Table(SPACE, {}), []), 'a signal for each rung'),
  ],
)
def test_ladders_that_cannot_be_climbed_are_refused(make, says):
  with pytest.raises(ValueError, match=says):
    make()


def test_trials_that_know_no_rungs_are_refused():
  stage = algorithms.econas(SPACE, answer())
  with pytest.raises(ValueError, match='metrics=stages.RUNGS'):
    run(KEY, stages.onward((1,), 4), trials.start(SPACE, 50), 1)
  with pytest.raises(ValueError, match='give both the same names'):
    run(KEY, stage, trials.start(SPACE, 50), 1)


def test_a_table_of_one_rung_does_not_answer_what_goes_on():
  table = Table(SPACE, {'worth': jnp.asarray(WORTH)})
  query = trials.query(table, 'worth')
  held = start(4)._replace(index=jnp.arange(4), count=4)
  pending, _ = stages.breed(jax.vmap(SPACE.mutate), (2,), 4).update(
    KEY, held, ()
  )
  with pytest.raises(ValueError, match='climb'):
    query.update(KEY, pending, ())
