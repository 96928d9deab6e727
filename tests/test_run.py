"""The loop: totals, resumption, and the count of compilations."""

import jax
import jax.numpy as jnp

from jaxnas import base, combine
from jaxnas.run import count_compilations, run

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
