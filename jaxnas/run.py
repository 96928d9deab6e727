"""The only loop: generations of a stage, counted, saved and watched."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxnas.base import Key, Population, Stage


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
  compiled: list[float] = []

  def listen(event: str, seconds: float, **details: Any) -> None:
    del details
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(seconds)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield compiled
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


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
    until: the total number of generations, or `until(population) -> bool`.
    state: the stage's saved state; None for `stage.init(population)`.
    after: called with population and state after each generation, to save
      and to report.

  Returns:
    The last population, and the stage's state.

  Example:
    >>> from jaxnas import base, combine
    >>> nothing = combine.stage(lambda key, population: population, 'nothing')
    >>> last, _ = run(jax.random.key(0), nothing, base.Population(()), 3)
    >>> last.generation
    3
  """
  if not callable(until):
    total = until

    def until(population):
      return population.generation >= total

  state = stage.init(population) if state is None else state
  while not until(population):
    started = time.monotonic()
    with count_compilations() as compiled:
      own = jax.random.fold_in(key, population.generation)
      population, state = stage.update(own, population, state)
    spent = population.spent.add(
      compilations=len(compiled), seconds=time.monotonic() - started
    )
    population = population._replace(
      generation=population.generation + 1, spent=spent
    )
    if after is not None:
      after(population, state)
  return population, state
