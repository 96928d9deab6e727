"""Selection rules: their laws, exact Pareto pieces, host and device alike."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxnas import base, selection, testing
from jaxnas.run import count_compilations

KEY = jax.random.key(0)

SINGLE = {
  'top': selection.top(3),
  'top all': selection.top(20),
  'truncation': selection.truncation(0.4),
  'who stays': selection.others(selection.bottom(3)),
  'uniform': selection.tournament(1),
  'tournament': selection.tournament(3),
  'tournaments': selection.tournament(2, count=4),
}
SEVERAL = {
  'front': selection.front(),
  'nsga2': selection.nsga2(3),
  'crowded tournament': selection.crowded_tournament(2),
  'crowded tournaments': selection.crowded_tournament(3, count=4),
}

# Few values, so that equals, and infinities and NaN, come up in all places.
VALUES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, 3.0, np.inf, np.nan])


def clouds(elements=VALUES):
  shape = st.tuples(st.integers(1, 9), st.integers(1, 3))
  return shape.flatmap(
    lambda shape: arrays.arrays(float, shape, elements=elements)
  )


@pytest.mark.parametrize('rule', SINGLE.values(), ids=SINGLE)
def test_rules_of_one_score_keep_the_laws(rule):
  testing.check_rule(rule, KEY)


@pytest.mark.parametrize('objectives', [1, 2, 3])
@pytest.mark.parametrize('rule', SEVERAL.values(), ids=SEVERAL)
def test_rules_of_several_objectives_keep_the_laws(rule, objectives):
  testing.check_rule(rule, KEY, objectives=objectives)


def nsga2_of_the_first(key, scores):
  """Blind to all objectives but one: a NaN in another wins."""
  return selection.nsga2(3)(key, scores[:, 0])


def tournament_of_all(key, scores):
  """The textbook's, in which entrants that all diverged have a winner."""
  drawn = base.rng(key).integers(8, size=2)
  return drawn[[np.nan_to_num(scores, nan=-np.inf)[drawn].argmax()]]


@pytest.mark.parametrize(
  ('rule', 'objectives', 'law'),
  [
    (nsga2_of_the_first, 2, 'NaN never wins'),
    (tournament_of_all, None, 'NaN never wins'),
    (selection.bottom(3), None, 'NaN never wins'),
    (lambda key, s: np.argsort(-s[:, 0])[:3], 2, 'NaN never wins'),
    (lambda key, s: selection.top(3)(key, -s), None, 'better score never'),
    (lambda key, s: selection.nsga2(3)(key, -s), 2, 'better score never'),
  ],
)
def test_rules_that_break_a_law_are_told_which(rule, objectives, law):
  with pytest.raises(AssertionError, match=law):
    testing.check_rule(rule, KEY, objectives=objectives)


@given(scores=arrays.arrays(float, st.integers(1, 12), elements=VALUES))
def test_bottom_and_top_part_the_members(scores):
  stay = selection.top(max(len(scores) - 3, 1))(None, scores)
  go = selection.bottom(3)(None, scores)
  if len(scores) > 3:
    assert sorted([*stay, *go]) == list(range(len(scores)))
  assert len(set(go)) == min(3, len(scores))


def test_the_best_of_a_tournament_is_drawn_as_often_as_it_should_be():
  """Of n = 5 and S = 2 with replacement: 1 - (4 / 5) ** 2 for the best."""
  rule = selection.tournament(2, count=20_000)
  won = rule(KEY, np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
  shares = np.bincount(won, minlength=5) / len(won)
  np.testing.assert_allclose(
    shares, [1 / 25, 3 / 25, 5 / 25, 7 / 25, 9 / 25], atol=0.015
  )


def test_equals_win_a_tournament_equally_often():
  won = selection.tournament(3, count=20_000)(KEY, np.zeros(4))
  np.testing.assert_allclose(np.bincount(won) / len(won), 0.25, atol=0.015)


def dominates(a, b):
  """By the definition, with NaN below every number."""
  if np.isnan(a).any() or np.isnan(b).any():
    return not np.isnan(a).any() and bool(np.isnan(b).any())
  return bool((a >= b).all() and (a > b).any())


def peeled(scores):
  """Fronts by removing the Pareto set again and again."""
  left, found, rank = set(range(len(scores))), np.zeros(len(scores), int), 0
  while left:
    best = {
      i for i in left if not any(dominates(scores[j], scores[i]) for j in left)
    }
    found[list(best)] = rank
    left, rank = left - best, rank + 1
  return found


@given(scores=clouds())
def test_fronts_are_the_pareto_sets_of_what_is_left(scores):
  np.testing.assert_array_equal(selection.fronts(scores), peeled(scores))


@given(scores=clouds())
def test_the_front_is_the_pareto_set_by_brute_force(scores):
  wanted = [
    i
    for i, point in enumerate(scores)
    if not np.isnan(point).any()
    and not any(dominates(other, point) for other in scores)
  ]
  assert selection.front()(None, scores).tolist() == wanted


def looped(scores, front):
  """Crowding distances as Deb et al. (2002) write them, front by front."""
  distance = np.zeros(len(scores))
  for rank in set(front.tolist()):
    rows = np.flatnonzero(front == rank)
    if np.isnan(scores[rows]).any():
      continue
    if len(rows) == 1:
      distance[rows] = np.inf
    for values in scores.T:
      rows = np.flatnonzero(front == rank)  # Ties stand as they came.
      rows = rows[np.argsort(values[rows], kind='stable')]
      width = values[rows[-1]] - values[rows[0]]
      if not width > 0:
        continue
      distance[rows[0]] = distance[rows[-1]] = np.inf
      for before, row, after in zip(rows, rows[1:], rows[2:]):
        distance[row] += (values[after] - values[before]) / width
  return distance


@given(scores=clouds(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0, np.nan])))
def test_crowding_equals_the_loop(scores):
  front = selection.fronts(scores)
  np.testing.assert_allclose(
    selection.crowding(scores, front), looped(scores, front), rtol=1e-12
  )


@given(scores=clouds(st.floats(-10, 10, width=32)))
def test_nsga2_takes_whole_fronts_and_then_the_least_crowded(scores):
  front = selection.fronts(scores)
  crowd = selection.crowding(scores, front)
  for k in range(1, len(scores) + 1):
    chosen = selection.nsga2(k)(None, scores)
    assert len(set(chosen.tolist())) == k
    out = np.setdiff1d(np.arange(len(scores)), chosen)
    for i in chosen:
      for j in out:
        assert (front[i], -crowd[i]) <= (front[j], -crowd[j])


def test_crowding_of_a_front_without_range_in_an_objective():
  """Hand-computed: the second objective is the same everywhere."""
  scores = np.array([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0], [4.0, 1.0]])
  got = selection.crowding(scores, np.zeros(4, int))
  assert got.tolist() == [np.inf, 0.75, 0.75, np.inf]


def few(rows, columns):
  return arrays.arrays(
    float,
    (rows, columns),
    elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 3.0, np.nan]),
  )


@jax.jit
def on_device(scores):
  front = selection.fronts(scores)
  chosen = [selection.top(k)(None, scores[:, 0]) for k in (1, 3)]
  chosen.append(selection.nsga2(3)(None, scores))
  return front, selection.crowding(scores, front), chosen


@given(scores=few(7, 2))
def test_rules_rank_alike_on_host_and_device(scores):
  """To the bit where values are few, in float32 as in float64."""
  front, crowd, (first, three, survivors) = on_device(scores)
  wanted = selection.fronts(scores)
  np.testing.assert_array_equal(front, wanted)
  distance = selection.crowding(scores, wanted)
  np.testing.assert_allclose(crowd, distance, rtol=1e-6)
  for got, rule, held in (
    (first, selection.top(1), scores[:, 0]),
    (three, selection.top(3), scores[:, 0]),
  ):
    np.testing.assert_array_equal(got, rule(None, held))
  np.testing.assert_array_equal(
    wanted[survivors], wanted[selection.nsga2(3)(None, scores)]
  )


def test_host_rules_compile_nothing(monkeypatch):
  def refuse(*arguments, **options):
    raise AssertionError('drew on the device')

  monkeypatch.setattr(jax.random, 'randint', refuse)
  monkeypatch.setattr(jnp, 'argsort', refuse)
  scores = np.random.default_rng(0).normal(size=(6, 2))
  with count_compilations() as compiled:
    for rule in SEVERAL.values():
      rule(KEY, scores)
    for rule in SINGLE.values():
      rule(KEY, scores[:, 0])
  assert not compiled


COMPILED = {
  'top': (selection.top(3), ()),
  'bottom': (selection.bottom(3), ()),
  'truncation': (selection.truncation(0.5), ()),
  'tournament': (selection.tournament(3, count=4), ()),
  'nsga2': (selection.nsga2(3), (2,)),
  'crowded': (selection.crowded_tournament(2, count=4), (2,)),
}


@pytest.mark.parametrize(('rule', 'extra'), COMPILED.values(), ids=COMPILED)
def test_rules_of_fixed_count_run_under_jit_and_vmap(rule, extra):
  scores = np.random.default_rng(1).normal(size=(5, 8, *extra))
  scores[:, 1] = np.nan
  keys = jax.random.split(KEY, 5)
  batched = jax.jit(jax.vmap(rule))(keys, jnp.asarray(scores))
  for key, one, chosen in zip(keys, scores, batched):
    alone = rule(key, jnp.asarray(one))
    np.testing.assert_array_equal(chosen, alone)
    assert rule is COMPILED['bottom'][0] or 1 not in chosen


@pytest.mark.parametrize(
  ('make', 'says'),
  [
    (lambda: selection.top(0), 'top: k must be .* at least 1, got 0'),
    (lambda: selection.top(1.5), 'top: k must be a whole number .* got 1.5'),
    (lambda: selection.bottom(-1), 'bottom: k must be .* got -1'),
    (lambda: selection.tournament(0), 'tournament: size must be .* got 0'),
    (lambda: selection.tournament(2, count=0), 'count must be .* got 0'),
    (lambda: selection.nsga2(True), 'nsga2: k must be .* got True'),
    (lambda: selection.truncation(0.0), r'in \(0, 1\], got 0.0'),
    (lambda: selection.truncation(np.nan), r'in \(0, 1\], got nan'),
  ],
)
def test_illegal_rules_are_refused_when_made(make, says):
  with pytest.raises(ValueError, match=says):
    make()


@pytest.mark.parametrize(
  ('rule', 'shape', 'says'),
  [
    (selection.top(1), (3, 2), r'got scores of shape \(3, 2\); for several'),
    (selection.tournament(2), (0,), r'got scores of shape \(0,\)'),
    (selection.nsga2(1), (3, 2, 2), r'must be \(n, objectives\)'),
    (selection.nsga2(1), (0, 2), r'must be \(n, objectives\)'),
    (selection.front(), (3, 0), r'must be \(n, objectives\)'),
  ],
)
def test_scores_that_cannot_be_ranked_are_refused(rule, shape, says):
  for make in (np.zeros, lambda shape: jnp.asarray(np.zeros(shape))):
    with pytest.raises(ValueError, match=says):
      rule(KEY, make(shape))


def test_a_thousand_sorts_are_one_program():
  scores = jax.random.normal(KEY, (1000, 20, 2))
  sort = jax.jit(jax.vmap(functools.partial(selection.nsga2(10), None)))
  assert sort(scores).shape == (1000, 10)
  assert sort._cache_size() == 1
