"""The only loop: generations of a stage, counted, saved and watched."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxnas.base import Key, Population, Stage

# What JAX reports the duration of between a call and a program that can run.
_TRACE = '/jax/core/compile/jaxpr_trace_duration'
_LOWER = '/jax/core/compile/jaxpr_to_mlir_module_duration'
_COMPILE = '/jax/core/compile/backend_compile_duration'


class Compiled(NamedTuple):
  """What JAX compiled while it was watched; both lists grow meanwhile.

  Attributes:
    programs: the seconds XLA took for each program.
    spans: (start, end), by `time.monotonic`, of all tracing, lowering and
      compiling. Spans may lie within each other.
  """

  programs: list[float]
  spans: list[tuple[float, float]]


@contextlib.contextmanager
def watch_compiler() -> Iterator[Compiled]:
  """Watches JAX compile while it is open.

  Example:
    >>> import jax.numpy as jnp
    >>> with watch_compiler() as seen:
    ...   _ = jax.jit(lambda x: x * 3 + 1)(jnp.arange(7.0))
    >>> covered(seen.spans) > sum(seen.programs) > 0
    True
  """
  opened = time.monotonic()
  seen = Compiled([], [])

  def listen(event: str, seconds: float, **details: Any) -> None:
    del details
    if event in (_TRACE, _LOWER, _COMPILE):
      end = time.monotonic()
      # JAX times by a clock that may be set while it runs.
      start = min(max(end - seconds, opened), end)
      seen.spans.append((start, end))
    if event == _COMPILE:
      seen.programs.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield seen
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def covered(spans: Sequence[tuple[float, float]]) -> float:
  """The length of the union of spans: what lies in two of them counts once.

  A program traced or compiled while another is traced has its own event
  within the other's, so their durations cannot be added up.

  Args:
    spans: (start, end) pairs in any order.

  Returns:
    The length, in the unit of the spans.

  Example:
    >>> covered([(5.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.0, 4.0)])
    5.0
  """
  total, until = 0.0, -math.inf
  for start, end in sorted(spans):
    total += max(end - max(start, until), 0.0)
    until = max(until, end)
  return total


@contextlib.contextmanager
def count_compilations() -> Iterator[list[float]]:
  """Counts the programs XLA compiles while it is open.

  Yields a list of the seconds each took. A program that the persistent cache
  holds counts too (its seconds are those of loading it), so the count of a
  run does not depend on the state of the cache.

  Example:
    >>> import jax.numpy as jnp
    >>> with count_compilations() as compiled:
    ...   _ = jax.jit(lambda x: x * 3 + 1)(jnp.arange(7.0))
    >>> len(compiled) >= 1
    True
  """
  with watch_compiler() as seen:
    yield seen.programs


def run(
  key: Key,
  stage: Stage,
  population: Population,
  until: int | Callable[[Population], bool],
  *,
  state: Any = None,
  after: Callable[[Population, Any], None] | None = None,
) -> tuple[Population, Any]:
  """Runs a search: `stage.update` once a generation.

  Generation g uses the key folded with g, so a search continued from a saved
  population and state ends as one never stopped.

  Args:
    key: of the whole search.
    stage: what a generation does.
    population: the first population, or a saved one.
    until: the total number of generations, 0 for none, or
      `until(population) -> bool`.
    state: the stage's saved state; None for `stage.init(population)`.
    after: called with population and state after each generation, to save
      and to report.

  Returns:
    The last population, and the stage's state.

  Raises:
    ValueError: for a negative number of generations.

  Example:
    >>> from jaxnas import base, combine
    >>> nothing = combine.stage(lambda key, population: population, 'nothing')
    >>> last, _ = run(jax.random.key(0), nothing, base.Population(()), 3)
    >>> last.generation
    3
  """
  if not callable(until):
    total = until
    _refuse_negative('run: until', total)

    def until(population):
      return population.generation >= total

  state = stage.init(population) if state is None else state
  while not until(population):
    started = time.monotonic()
    with watch_compiler() as seen:
      own = jax.random.fold_in(key, population.generation)
      population, state = stage.update(own, population, state)
    spent = population.spent.add(
      compilations=len(seen.programs),
      seconds=time.monotonic() - started,
      compiling=covered(seen.spans),
    )
    population = population._replace(
      generation=population.generation + 1, spent=spent
    )
    if after is not None:
      after(population, state)
  return population, state


def _refuse_negative(name: str, count: int) -> None:
  if count < 0:
    raise ValueError(f'{name} must be at least 0, got {count!r}.')


def rounds(
  key: Key,
  stage: Stage,
  population: Any,
  count: int,
  look: Callable[[Any], Any] = lambda population: (),
) -> tuple[Any, Any]:
  """`run` as one `lax.scan`, for stages of array populations.

  It draws the same keys, and can be put under `jit`, and under `vmap` for many
  searches at once. The population's state must keep its shapes, and `spent`
  counts neither compilations nor seconds.

  Args:
    key: of the whole search.
    stage: what a generation does, all of it by `jax.numpy`.
    population: the first population, such as `base.Members`.
    count: generations.
    look: `look(population) -> pytree`, read after each generation.

  Returns:
    The last population, and what `look` saw, with a leading axis of
    generations.

  Raises:
    ValueError: for a negative count.

  Example:
    >>> from jaxnas import base, combine
    >>> nothing = combine.stage(lambda key, population: population, 'nothing')
    >>> start = base.Members((), {}, jax.numpy.zeros((2, 2)))
    >>> last, seen = rounds(jax.random.key(0), nothing, start, 3,
    ...                     lambda population: population.generation)
    >>> int(last.generation), seen.tolist()
    (3, [1, 2, 3])
  """

  population, _, seen = further(
    key, stage, population, stage.init(population), count, look
  )
  return population, seen


def further(
  key: Key,
  stage: Stage,
  population: Any,
  state: Any,
  count: int,
  look: Callable[[Any], Any] = lambda population: (),
) -> tuple[Any, Any, Any]:
  """`rounds` from a given state, such as that of rounds before.

  Args:
    key: of the whole search.
    stage: as of `rounds`.
    population: the population now.
    state: the stage's state now.
    count: generations.
    look: as of `rounds`.

  Returns:
    The last population, the stage's state, and what `look` saw.

  Raises:
    ValueError: for a negative count.
  """
  _refuse_negative('rounds: count', count)

  def step(carry, generation):
    population, state = carry
    own = jax.random.fold_in(key, generation)
    population, state = stage.update(own, population, state)
    population = population._replace(generation=generation + 1)
    return (population, state), look(population)

  # What is a Python number at first is an array later.
  start = jax.tree.map(jax.numpy.asarray, (population, state))
  generations = population.generation + jax.numpy.arange(count)
  (population, state), seen = jax.lax.scan(step, start, generations)
  return population, state, seen
