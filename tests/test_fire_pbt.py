"""FIRE PBT: what one change does, resuming, and what it wins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
from jaxnas.base import Body, Member, Members
from jaxnas.learners import toys
from jaxnas.run import rounds, run

KEY = jax.random.key(0)
CHILD = mixing.explore({'h': mixing.Prior(0.0, 99.0)}, factors=(0.5, 0.5))


def rising(start, end, points=10):
  return np.linspace(start, end, points)


def numbered(curve, fitness, generation):
  """Ten members, 4 of P1, 4 of P2 and 2 evaluators, that show who they are."""
  number = jnp.arange(10.0)
  body = Body({'theta': number[:, None]}, {'theta': number}, {}, (number,))
  member = Member(body, jnp.zeros((10, 0), jnp.int32), {'h': number + 100})
  metrics = {'fitness': jnp.asarray(fitness), 'curve': jnp.asarray(curve)}
  own = jnp.tile(jnp.arange(10)[:, None], (1, 2))
  return Members(member, metrics, own, generation)


def change(**settings):
  settings = {'sizes': (4, 4), 'evaluators': 2, **settings}
  return stages.fire(learners.plain(), CHILD, **settings)


def whose(members):
  """Whose weights each member has, having checked that it has all of them."""
  body = members.member.body
  found = np.asarray(body.layers['theta'][:, 0]).astype(int)
  for leaf in (body.moments['theta'], body.rest[0]):
    np.testing.assert_array_equal(leaf, found)
  return found.tolist()


FITNESS = [3.0, 0.0, 1.0, 2.0] + [9.0] * 6
FLAT = np.tile(rising(0, 1), (10, 1))


def started():
  """After the first change: both evaluators have just been given work."""
  stage = change()
  members = numbered(FLAT, FITNESS, 1)
  return stage, *stage.update(KEY, members, stage.init(members))


def test_first_change_is_greedy_and_gives_evaluators_work():
  _, members, state = started()
  # The worst of P1 copies the best; nobody of P2 is known; both evaluators take
  # the first of P2, and the settings of the best of P1.
  assert whose(members) == [0, 0, 2, 3, 4, 5, 6, 7, 4, 5]
  h = np.asarray(members.member.hyper['h'])
  np.testing.assert_array_equal(
    h, [100, 50, 102, 103, 104, 105, 106, 107, 100, 100]
  )
  assert state.evaluations == (
    stages.Evaluation(4, 0, 0),
    stages.Evaluation(5, 0, 0),
  )
  assert state.waits == {'4': 0, '5': 0, '6': 1, '7': 1}
  lengths = [len(curve) for curve in state.curves]
  assert lengths == [10, 0, 10, 10, 10, 10, 10, 10, 0, 0]
  gone = np.isnan(members.metrics['fitness'])
  assert gone.tolist() == [False, True] + [False] * 6 + [True, True]
  assert members.parents[8].tolist() == [4, 0]


def second(curves_of, fitness=FITNESS):
  """The change after another round, in which some had other curves."""
  stage, _, state = started()
  curve = FLAT.copy() + 1
  for i, points in curves_of.items():
    curve[i] = points
  members = numbered(curve, fitness, 2)
  return stage.update(KEY, members, state)


def test_an_evaluator_that_succeeds_overwrites_its_child():
  # P1's best has risen to 2 over two rounds; one evaluator, from its level of
  # the first round, gets further in one. P2's 4 is so better than 5, which
  # copies it; and with that the other evaluator loses its parent.
  members, state = second({8: rising(-0.1, 3), 9: rising(-0.1, 0.5)})
  assert whose(members) == [8, 0, 2, 3, 4, 4, 6, 7, 6, 7]
  assert float(members.member.hyper['h'][0]) == 100
  assert float(members.member.hyper['h'][5]) == 52
  np.testing.assert_allclose(state.curves[0], rising(-0.1, 3), atol=1e-6)
  assert state.outcomes == {'success': 1, 'stopped': 1}
  # Those that waited are next, with the settings of the best of P1.
  assert state.evaluations == (
    stages.Evaluation(6, 0, 0),
    stages.Evaluation(7, 0, 0),
  )
  assert state.waits == {'4': 0, '5': -1, '6': 0, '7': 0}
  assert len(state.curves[5]) == 0
  assert float(members.member.hyper['h'][8]) == 100


def test_an_evaluator_runs_on_while_it_may_catch_up():
  # Both are far below their child. P2's better is copied by the worse all the
  # same, whose evaluator so loses its parent.
  members, state = second({8: rising(-3, -2), 9: rising(-3.1, -2.9)})
  assert whose(members) == [0, 0, 2, 3, 4, 4, 6, 7, 8, 6]
  assert state.evaluations == (
    stages.Evaluation(4, 0, 1),
    stages.Evaluation(6, 0, 0),
  )
  assert state.outcomes == {'success': 0, 'stopped': 1}
  assert len(state.curves[8]) == 10 and len(state.curves[9]) == 0


def test_evaluators_stop_after_the_most_rounds_without_overlap():
  # Of P2 one alone is evaluated, and so none replaced.
  stage = change(sizes=(4, 5), evaluators=1)
  members = numbered(FLAT, FITNESS, 1)
  state, seen = stage.init(members), []
  for generation in range(1, 6):
    curve = FLAT + generation
    curve[9] = rising(-3, -2) + 0.1 * generation
    members = numbered(curve, FITNESS, generation)
    members, state = stage.update(KEY, members, state)
    seen.append(state.evaluations[0])
  assert [e.rounds for e in seen] == [0, 1, 2, 0, 1]
  assert [e.parent for e in seen] == [4, 4, 4, 5, 5]


def test_a_lost_child_stops_its_evaluators_whatever_they_reached():
  fitness = [0.0, 3.0, 1.0, 2.0] + [9.0] * 6
  members, state = second({8: rising(-0.1, 9), 9: rising(-0.1, 8)}, fitness)
  assert whose(members)[0] == 1
  assert state.outcomes == {'success': 0, 'stopped': 2}
  # The best of P1 is now another.
  assert {e.child for e in state.evaluations} == {1}


def test_two_that_succeed_at_once_are_compared_with_each_other():
  better, worse = rising(-0.2, 9), rising(-0.1, 3)
  members, state = second({8: worse, 9: better})
  assert whose(members)[0] == 9
  assert state.outcomes == {'success': 2, 'stopped': 0}
  members, state = second({8: better, 9: worse})
  assert whose(members)[0] == 8
  assert state.outcomes == {'success': 1, 'stopped': 1}


def test_of_a_small_population_one_is_replaced():
  # PBT-Zoo's sizes for eight members; a quarter of three would be nobody.
  stage = change(sizes=(3, 3), evaluators=4)
  members = numbered(FLAT, [3.0, 0.0, 1.0] + [9.0] * 7, 1)
  members, state = stage.update(KEY, members, stage.init(members))
  assert whose(members)[:6] == [0, 0, 2, 3, 4, 5]
  curve = FLAT + 1
  curve[6:9] = [rising(-0.1, end) for end in (3, 2, 1)]
  members = numbered(curve, [3.0, 0.0, 1.0] + [9.0] * 7, 2)
  members, _ = stage.update(KEY, members, state)
  # Of P2, all evaluated, the worst copies the best.
  assert whose(members)[3:6] == [3, 4, 3]


def test_nobody_is_evaluated_before_it_is_time():
  stage = change(after=3)
  members = numbered(FLAT, FITNESS, 2)
  _, state = stage.update(KEY, members, stage.init(members))
  assert state.evaluations == (None, None)


def test_diverged_members_never_win():
  fitness = [np.nan, 0.0, 1.0, 2.0] + [9.0] * 6
  stage = change()
  curve = FLAT.copy()
  curve[0, 3:] = np.nan
  members = numbered(curve, fitness, 1)
  found, state = stage.update(KEY, members, stage.init(members))
  assert whose(found)[:4] == [3, 1, 2, 3]
  assert {e.child for e in state.evaluations} == {3}
  assert all(np.isfinite(curve).all() for curve in state.curves)


def test_three_populations_are_a_chain():
  stage = change(sizes=(2, 2, 4), fraction=0.5)
  members = numbered(FLAT, FITNESS, 1)
  members, state = stage.update(KEY, members, stage.init(members))
  # P3's members wait: nobody of P2 has a fitness yet to lend settings.
  assert [e.parent for e in state.evaluations] == [2, 3]
  members = numbered(FLAT + 1, FITNESS, 2)
  _, state = stage.update(KEY, members, state)
  assert any(e.parent >= 4 and e.child in (2, 3) for e in state.evaluations)


FAULTS = {
  'one population': ({'sizes': (8,)}, 'two populations'),
  'a population of one': ({'sizes': (1, 4)}, 'of two members or more'),
  'no evaluator': ({'evaluators': 0}, 'an evaluator'),
  'all replaced': ({'fraction': 0.7}, 'fraction must be'),
  'no round': ({'most': 0}, 'most at least'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_settings_that_make_no_sense_are_refused(name):
  settings, message = FAULTS[name]
  with pytest.raises(ValueError, match=message):
    change(**settings)


def test_populations_of_other_sizes_or_without_a_curve_are_refused():
  members = numbered(FLAT, FITNESS, 1)
  with pytest.raises(ValueError, match='are 11 members, got 10'):
    change(evaluators=3).init(members)
  bare = members._replace(metrics={'fitness': members.metrics['fitness']})
  with pytest.raises(ValueError, match='pieces'):
    change().update(KEY, bare, change().init(bare))


def test_pieces_measure_on_the_way():
  learner = learners.plain(steps=2)
  inner = combine.chain(stages.advance(learner), stages.assess(learner))
  stage = stages.pieces(5, inner)
  start = stages.members(KEY, learner, 3, toys.START)
  last, _ = stage.update(KEY, start, stage.init(start))
  by = 1 - 2e-3 * (2 - np.asarray(start.member.hyper['h']))
  expected = 1.2 - (0.9 * by[:, None] ** np.arange(2, 12, 2)) ** 2
  np.testing.assert_allclose(last.metrics['curve'], expected, rtol=1e-5)
  np.testing.assert_array_equal(
    last.metrics['curve'][:, -1], last.metrics['fitness']
  )


def small():
  learner = learners.deceptive(total=200, steps=4)
  stage = algorithms.fire_pbt(
    *(learner, toys.RANGE), sizes=(4, 4), evaluators=2, points=5
  )
  return stage, stages.members(KEY, learner, 10, toys.START)


def same(one, two):
  """Whether two searches are equal bit for bit, their times excepted."""

  def stripped(found):
    population, state = found
    return population._replace(spent=population.spent[:2]), state

  one, two = jax.tree.leaves(stripped(one)), jax.tree.leaves(stripped(two))
  return len(one) == len(two) and all(
    np.array_equal(a, b, equal_nan=True) for a, b in zip(one, two)
  )


def test_a_killed_search_resumes_bit_for_bit(tmp_path):
  stage, start = small()
  whole = run(KEY, stage, start, 8)
  assert whole[1][0].outcomes['success'] + whole[1][0].outcomes['stopped'] > 0
  half = run(KEY, stage, start, 4)
  checkpoint.save(tmp_path, 4, half)
  _, (population, state) = checkpoint.restore(tmp_path)
  assert isinstance(state[0], stages.Fire)
  resumed = run(KEY, stage, population, 8, state=state)
  assert same(whole, resumed)
  # The state matters: without it the search is another.
  assert not same(whole, run(KEY, stage, population, 8))


def finals(seeds):
  """Final Q on the deceptive toy: of the best, and for FIRE PBT of P1's best.

  Each search has 22 members, 50 rounds of 20 steps, and PBT-Zoo's quarter and
  factor of two.
  """
  learner, where = learners.deceptive(), {'over': forms.at_once}
  rule = {'pairing': selection.copies(0.25), 'factors': (0.5, 2.0)}
  pbt = algorithms.pbt(learner, toys.RANGE, **rule, **where)
  static = algorithms.train_only(learner, **where)
  pieces = learners.deceptive(steps=2)
  fire = algorithms.fire_pbt(pieces, toys.RANGE, **where)

  def keys(seed):
    return jax.random.split(jax.random.key(seed))

  def best(seed):
    one, two = keys(seed)
    start = stages.members(one, learner, 22, toys.START)
    return [
      rounds(two, stage, start, 50)[0].metrics['fitness'].max()
      for stage in (pbt, static)
    ]

  def best_of_fire(seed):
    one, two = keys(seed)
    start = stages.members(one, pieces, 22, toys.START)
    last, _ = run(two, fire, start, 50)
    return float(last.metrics['fitness'][stages.champion(last, first=8)])

  found = jax.jit(jax.vmap(best))(jnp.arange(seeds))
  return {
    'pbt': np.asarray(found[0]),
    'static': np.asarray(found[1]),
    'fire': np.array([best_of_fire(seed) for seed in range(seeds)]),
  }


def check_greediness(found, seeds):
  """The signs: FIRE PBT above static settings, those above greedy PBT."""
  wins = int((found['fire'] > found['pbt']).sum())
  assert wins == seeds, found
  # In the benchmark's 20 seeds one is no better than static settings.
  wins = int((found['fire'] > found['static']).sum())
  assert wins >= 0.8 * seeds, found
  assert np.mean(found['fire'] - found['pbt']) > 0.1
  assert np.mean(found['static'] - found['pbt']) > 0


@pytest.mark.slow
def test_fire_beats_greedy_pbt_on_the_deceptive_toy():
  check_greediness(finals(1), 1)


@pytest.mark.slow
def test_fire_beats_greedy_pbt_on_the_deceptive_toy_with_more_seeds():
  check_greediness(finals(10), 10)
