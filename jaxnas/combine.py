"""Combinators: stages made of stages."""

from collections.abc import Callable, Hashable
from typing import Any

import jax

from jaxnas import network
from jaxnas.base import Candidate, Population, Stage


def stage(update: Callable[..., Population], name: str | None = None) -> Stage:
  """A stage without state from `update(key, population) -> population`.

  Args:
    update: the function; its name names the stage if `name` is None.
    name: folded into the key, see `chain`.

  Example:
    >>> from jaxnas import base
    >>> oldest = stage(
    ...     lambda key, population: population._replace(
    ...         members=population.members[:1]), 'oldest')
    >>> state = oldest.init(base.Population(()))
    >>> oldest.update(None, base.Population((1, 2)), state)[0].members
    (1,)
  """

  def stateless(key, population, state):
    return update(key, population), state

  return Stage(lambda population: (), stateless, name or update.__name__)


def chain(*stages: Stage, name: str = 'chain') -> Stage:
  """Stages one after another.

  Each stage's key is folded with its *name* (and the how-manieth of that name
  it is), never with its position, so adding an `observe` changes no result.

  Example:
    >>> from jaxnas import base
    >>> add = lambda n: stage(lambda key, p: p._replace(
    ...     generation=p.generation + n), 'add')
    >>> both = chain(add(1), add(2))
    >>> start = base.Population(())
    >>> both.update(jax.random.key(0), start, both.init(start))[0].generation
    3
  """
  names = [s.name for s in stages]
  labels = [f'{s.name}/{names[:i].count(s.name)}' for i, s in enumerate(stages)]

  def init(population):
    return tuple(s.init(population) for s in stages)

  def update(key, population, state):
    states = []
    for label, inner, held in zip(labels, stages, state, strict=True):
      own = network.named_key(key, label)
      population, held = inner.update(own, population, held)
      states.append(held)
    return population, tuple(states)

  return Stage(init, update, name)


def append(inner: Stage) -> Stage:
  """Keeps the members and adds what `inner` makes of them.

  Example:
    >>> from jaxnas import base
    >>> twice = append(stage(lambda key, population: population, 'copy'))
    >>> start = base.Population(('a', 'b'))
    >>> twice.update(jax.random.key(0), start, ())[0].members
    ('a', 'b', 'a', 'b')
  """

  def update(key, population, state):
    made, state = inner.update(key, population, state)
    members = population.members + made.members
    return made._replace(members=members), state

  return Stage(inner.init, update, f'append({inner.name})')


def group_by(label: Callable[[Candidate], Hashable], inner: Stage) -> Stage:
  """Runs a stage on each group of members by itself.

  Groups are taken in the order of their first members, and keep a state each;
  a label's key does not depend on which other labels there are.

  Args:
    label: `label(candidate)`, a value with a stable `repr`.
    inner: the stage.

  Example:
    >>> from jaxnas import base
    >>> first = stage(lambda key, p: p._replace(members=p.members[:1]), 'first')
    >>> grouped = group_by(len, first)
    >>> start = base.Population(('aa', 'b', 'cc', 'd'))
    >>> grouped.update(jax.random.key(0), start, grouped.init(start))[0].members
    ('aa', 'b')
  """

  def init(population):
    del population
    return {}

  def update(key, population, state):
    parts: dict[str, list[Candidate]] = {}
    for member in population.members:
      parts.setdefault(repr(label(member)), []).append(member)
    made, states, part = [], dict(state), population
    for name, members in parts.items():
      part = part._replace(members=tuple(members))
      held = states[name] if name in states else inner.init(part)
      own = network.named_key(key, name)
      part, states[name] = inner.update(own, part, held)
      made.extend(part.members)
    made = population._replace(
      members=tuple(made), spent=part.spent, archive=part.archive
    )
    return made, states

  return Stage(init, update, f'group_by({inner.name})')


def repeat(times: int, inner: Stage) -> Stage:
  """Runs a stage `times` times in one generation.

  Raises:
    ValueError: for a negative or fractional number of times.

  Example:
    >>> from jaxnas import base
    >>> one = stage(lambda key, p: p._replace(
    ...     generation=p.generation + 1), 'one')
    >>> three = repeat(3, one)
    >>> start = base.Population(())
    >>> three.update(jax.random.key(0), start, three.init(start))[0].generation
    3
  """
  if not isinstance(times, int) or times < 0:
    raise ValueError(f'repeat: times must be an integer >= 0, got {times!r}.')

  def update(key, population, state):
    for i in range(times):
      own = jax.random.fold_in(key, i)
      population, state = inner.update(own, population, state)
    return population, state

  return Stage(inner.init, update, f'repeat({inner.name})')


def when(predicate: Callable[[Population], Any], inner: Stage) -> Stage:
  """Runs a stage only on populations for which `predicate` is true.

  Under `jit` and `scan`, where what it says of an array population may be
  traced, this is a `lax.cond`.

  Example:
    >>> from jaxnas import base
    >>> clear = stage(lambda key, p: p._replace(members=()), 'clear')
    >>> late = when(lambda p: p.generation > 3, clear)
    >>> start = base.Population(('a',), generation=2)
    >>> late.update(jax.random.key(0), start, late.init(start))[0].members
    ('a',)
  """

  def update(key, population, state):
    due = predicate(population)
    if isinstance(due, jax.core.Tracer):
      return jax.lax.cond(
        due,
        inner.update,
        lambda key, population, state: (population, state),
        *(key, population, state),
      )
    return inner.update(key, population, state) if due else (population, state)

  return Stage(inner.init, update, f'when({inner.name})')


def observe(look: Callable[[Population], None]) -> Stage:
  """Calls `look(population)` and changes nothing.

  Example:
    >>> from jaxnas import base
    >>> seen = []
    >>> watch = observe(lambda p: seen.append(p.generation))
    >>> _ = watch.update(None, base.Population((), generation=4), ())
    >>> seen
    [4]
  """

  def update(key, population):
    del key
    look(population)
    return population

  return stage(update, 'observe')
