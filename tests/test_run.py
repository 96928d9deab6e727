"""The loop: totals, resumption, and the count of compilations."""

import jax
import jax.numpy as jnp
import pytest

from jaxnas import base, combine
from jaxnas.run import (
  count_compilations,
  covered,
  rounds,
  run,
  watch_compiler,
)

KEY = jax.random.key(3)


def walk():
  """A random walk in `metrics`, with the number of steps as its state."""

  def update(key, population, state):
    step = float(base.rng(key).normal())
    members = tuple(member + step for member in population.members)
    return population._replace(members=members), state + 1

  return base.Stage(lambda population: 0, update, 'walk')


def test_until_is_a_total():
  population, state = run(KEY, walk(), base.Population((0.0,)), 3)
  again, held = run(KEY, walk(), population, 3, state=state)
  assert population.generation == state == 3
  assert again == population and held == state


def test_no_generations_are_none_and_fewer_are_refused():
  first = base.Population((0.0,))
  assert run(KEY, walk(), first, 0)[0] == first
  with pytest.raises(ValueError, match='run: until must be at least 0, got -1'):
    run(KEY, walk(), first, -1)
  with pytest.raises(ValueError, match='rounds: count must be .* 0, got -2'):
    rounds(KEY, walk(), first, -2)


def test_a_run_continued_is_the_run():
  whole, _ = run(KEY, walk(), base.Population((0.0,)), 5)
  half, state = run(KEY, walk(), base.Population((0.0,)), 2)
  rest, state = run(KEY, walk(), half, 5, state=state)
  assert rest.members == whole.members and state == 5


def test_until_may_look_at_the_population():
  stage = combine.stage(
    lambda key, p: p._replace(members=(p.members[0] + 1,)), 'add'
  )
  last, _ = run(KEY, stage, base.Population((0,)), lambda p: p.members[0] >= 4)
  assert last.members == (4,)


def test_after_sees_every_generation_and_the_seconds_add_up():
  seen = []
  last, _ = run(
    KEY,
    walk(),
    base.Population((0.0,)),
    3,
    after=lambda population, state: seen.append((population, state)),
  )
  assert [p.generation for p, _ in seen] == [state for _, state in seen]
  seconds = [p.spent.seconds for p, _ in seen]
  assert seconds == sorted(seconds) and seen[-1][0] == last


def test_compilations_are_counted_once_for_each_program():
  fresh = jax.jit(lambda x: x * 2.5 - 1)
  x = jnp.arange(5.0)
  y = jnp.arange(6.0)

  def update(key, population):
    fresh(x)
    if population.generation > 1:
      fresh(y)
    return population

  seen = []
  run(
    KEY,
    combine.stage(update, 'compile'),
    base.Population(()),
    4,
    after=lambda population, state: seen.append(population.spent.compilations),
  )
  assert seen == [1, 1, 2, 2]


def test_the_counter_stops_when_it_is_closed():
  with count_compilations() as compiled:
    jax.jit(lambda x: x + 7)(jnp.arange(3.0))
  closed = len(compiled)
  jax.jit(lambda x: x - 7)(jnp.arange(3.0))
  assert closed >= 1 and len(compiled) == closed


# The time that compiling takes.


@pytest.mark.parametrize(
  ('spans', 'length'),
  [
    ([], 0.0),
    ([(2.0, 5.0)], 3.0),
    ([(2.0, 5.0), (7.0, 8.0)], 4.0),
    # One within another, one that begins in another, twice the same one.
    ([(2.0, 5.0), (3.0, 4.0)], 3.0),
    ([(2.0, 5.0), (4.0, 6.0)], 4.0),
    ([(2.0, 5.0), (2.0, 5.0)], 3.0),
    ([(2.0, 9.0), (3.0, 4.0), (8.0, 10.0), (5.0, 6.0)], 8.0),
  ],
)
def test_time_in_two_spans_counts_once(spans, length):
  assert covered(spans) == covered(spans[::-1]) == length


def test_what_is_compiled_within_a_trace_counts_once():
  """An array made while tracing compiles a program inside the trace's span."""

  @jax.jit
  def outer(x):
    with jax.ensure_compile_time_eval():
      table = jnp.arange(11.0) * 2.5
    return x * table

  x = jnp.ones(11)
  with watch_compiler() as seen:
    outer(x)
  starts, ends = zip(*seen.spans)
  apart = sum(end - start for start, end in seen.spans)
  assert len(seen.programs) > 1
  assert 0 < covered(seen.spans) <= max(ends) - min(starts)
  assert covered(seen.spans) < apart  # What adding up would say.


def test_compiling_is_part_of_the_seconds_where_there_is_any():
  x = jnp.arange(5.0)

  def update(key, population):
    if population.generation == 1:
      jax.jit(lambda x: x * 4.5 - 2)(x)
    return population

  spent = []
  run(
    KEY,
    combine.stage(update, 'compile'),
    base.Population(()),
    3,
    after=lambda population, state: spent.append(population.spent),
  )
  first, second, third = spent
  assert first.compiling == first.compilations == 0
  assert 0 < second.compiling <= second.seconds - first.seconds
  assert (third.compiling, third.compilations) == (second.compiling, 1)
