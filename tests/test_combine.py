"""Combinators: keys by name, costs threaded, members kept."""

import jax
import numpy as np
import pytest

from jaxnas import base, combine, testing

KEY = jax.random.key(0)


def draws(name='draw', seen=None):
  """A stage that appends a number drawn from its key to every member."""

  def update(key, population):
    number = int(base.rng(key).integers(1 << 30))
    if seen is not None:
      seen.append(number)
    members = tuple((*member, number) for member in population.members)
    spent = population.spent.add(evaluations=len(members))
    return population._replace(members=members, spent=spent)

  return combine.stage(update, name)


def counts():
  """A stage whose state counts its calls."""

  def update(key, population, state):
    del key
    return population, state + 1

  return base.Stage(lambda population: 0, update, 'count')


def run(stage, members=((), ()), state=None):
  start = base.Population(tuple(members))
  state = stage.init(start) if state is None else state
  return stage.update(KEY, start, state)


def test_observe_in_a_chain_changes_no_draw():
  plain, _ = run(combine.chain(draws('a'), draws('b')))
  watch = combine.observe(lambda population: None)
  watched, _ = run(combine.chain(watch, draws('a'), watch, draws('b'), watch))
  assert plain == watched


def test_order_of_other_stages_changes_no_draw():
  (first, *_), _ = run(combine.chain(draws('a'), draws('b')))
  (second, *_), _ = run(combine.chain(draws('b'), draws('a')))
  assert sorted(first[0]) == sorted(second[0])


def test_stages_of_one_name_draw_differently():
  population, _ = run(combine.chain(draws('a'), draws('a')))
  assert len(set(population.members[0])) == 2


def test_chain_keeps_a_state_for_each_stage():
  stage = combine.chain(counts(), combine.repeat(3, counts()))
  _, state = run(stage)
  _, state = run(stage, state=state)
  assert state == (2, 6)


def test_append_keeps_the_members_and_adds_the_made():
  population, _ = run(combine.append(draws()), members=[('x',)])
  assert population.members[0] == ('x',)
  assert len(population.members[1]) == 2
  assert population.spent.evaluations == 1


def test_group_by_splits_costs_add_up_and_labels_keep_their_state():
  stage = combine.group_by(len, combine.chain(draws(), counts()))
  population, state = run(stage, members=[('a',), (), ('b',)])
  assert population.spent.evaluations == 3
  assert [m[0] for m in population.members[:2]] == ['a', 'b']
  assert {label: held[1] for label, held in state.items()} == {'1': 1, '0': 1}


def test_group_by_draws_do_not_depend_on_other_groups():
  stage = combine.group_by(len, draws())
  both, _ = run(stage, members=[('a',), ()])
  alone, _ = run(stage, members=[()])
  assert both.members[1] == alone.members[0]


def test_when_runs_only_when_it_should():
  never = combine.when(lambda population: False, draws())
  always = combine.when(lambda population: True, draws())
  assert run(never)[0] == base.Population(((), ()))
  assert run(always)[0] == run(draws())[0]


def test_repeat_draws_anew_each_time_and_zero_times_is_nothing():
  population, _ = run(combine.repeat(2, draws()))
  assert len(set(population.members[0])) == 2
  assert run(combine.repeat(0, draws()))[0].members == ((), ())


@pytest.mark.parametrize('times', [-1, 1.5])
def test_repeat_refuses_what_is_no_count(times):
  with pytest.raises(ValueError, match='integer >= 0'):
    combine.repeat(times, draws())


@pytest.mark.parametrize(
  'stage',
  [
    combine.chain(draws('a'), draws('b')),
    combine.append(draws()),
    combine.group_by(lambda member: 0, draws()),
    combine.repeat(2, draws()),
    combine.when(lambda population: True, draws()),
    combine.observe(lambda population: None),
  ],
  ids=lambda stage: stage.name,
)
def test_combinators_keep_the_laws_of_stages(stage):
  members = ((1.0,), (np.float32(2),))
  testing.check_stage(stage, base.Population(members), KEY)
