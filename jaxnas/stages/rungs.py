"""Stages of ladders: some networks are trained further, others are dropped.

A network that is trained a rung at a time is a sequence of trials of one
genotype: each knows its `rung`, from 1 on, and its `source`, the slot of the
trial that it goes on from. A child has its mother as source, and is on rung 1,
since its genotype is another. A *live* trial is one of the last `within` slots
from which none went on; so ageing and promotion are views, as all populations
of array searches are. `onward` and `breed` say what is asked, `climb` or
`stages.teach` answer.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnas import combine, programs
from jaxnas.base import (
  ArraySpace,
  Cost,
  Key,
  Stage,
  Table,
  Trials,
  check_counts,
)
from jaxnas.spaces import tables
from jaxnas.stages import trials

# What trials with rungs know beside fitness and cost: `trials.start`'s metrics.
RUNGS = ('rung', 'source')

# `score(key, genotype, index, rung) -> (fitness, cost)` of one network.
Score = Callable[..., tuple[jax.Array, jax.Array]]

# `mutate(keys, genotypes) -> genotypes`, (N,) and (N, L) to (N, L).
Mutation = Callable[[jax.Array, jax.Array], jax.Array]


class Live(NamedTuple):
  """The live trials among the last W slots.

  Attributes:
    genotypes: (W, L).
    fitness: (W,) -inf for those without a number, which are not promoted.
    rung: (W,) 0 for slots that are empty or have been gone on from.
    slot: (W,) where they are in the trials.
  """

  genotypes: jax.Array
  fitness: jax.Array
  rung: jax.Array
  slot: jax.Array


def live(held: Trials, within: int, founders: int = 0) -> Live:
  """The trials of the last slots from which none has gone on.

  Args:
    held: trials with the metrics `RUNGS`.
    within: how many of the last slots; all, if there are fewer.
    founders: the first slots, which are of one age: all of them are seen where
      any is. With these W is at most `within + founders`.

  Raises:
    ValueError: for trials without these metrics.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> first = trials.start(space, 4, metrics=RUNGS)
    >>> live(first, 3).rung.tolist()
    [0, 0, 0]
  """
  missing = [name for name in RUNGS if name not in held.metrics]
  if missing:
    raise ValueError(
      f'the trials do not know their {", ".join(missing)}; begin with '
      'trials.start(..., metrics=stages.RUNGS).'
    )
  width = min(within + founders, held.index.shape[0])
  oldest = jnp.asarray(held.count) - within
  oldest = jnp.where(oldest < founders, 0, oldest)
  at = jnp.maximum(jnp.asarray(held.count) - width, 0)

  def last(values):
    return jax.lax.dynamic_slice_in_dim(values, at, width)

  slot = at + jnp.arange(width)
  asked = (last(held.index) >= 0) & (slot < held.count) & (slot >= oldest)
  rung = last(held.metrics['rung'])
  source = jnp.where(asked & (rung > 1), last(held.metrics['source']), -1)
  gone = (source[None] == slot[:, None]).any(axis=1)
  fitness = last(held.metrics['fitness'])
  return Live(
    last(held.genotypes),
    jnp.where(asked & ~jnp.isnan(fitness), fitness, -jnp.inf),
    jnp.where(asked & ~gone, rung, 0).astype(jnp.int32),
    slot,
  )


def onward(counts: Sequence[int], within: int, *, founders: int = 0) -> Stage:
  """Puts the best of each rung in `pending`, to go on from where they are.

  Those that are not there, and those without a number, leave their places
  struck out. What is pending already stays.

  Args:
    counts: how many of rung 1, 2, ...
    within: of how many of the last slots.
    founders: the first slots, of one age, see `live`.

  Raises:
    ValueError: for negative counts, and for none.
  """
  counts = _places('onward', counts, within)

  def update(key: Key, held: Trials) -> Trials:
    del key
    seen = live(held, within, founders)
    for rung, count in enumerate(counts, start=1):
      if not count:
        continue
      fitness = jnp.where(seen.rung == rung, seen.fitness, -jnp.inf)
      value, at = jax.lax.top_k(fitness, min(count, fitness.shape[0]))
      held = _added(held, seen.genotypes[at], value > -jnp.inf, seen.slot[at])
    return held

  return combine.stage(_compiled(update), 'onward')


def breed(
  mutate: Mutation,
  counts: Sequence[int],
  within: int,
  *,
  founders: int = 0,
  share: float = 0.25,
) -> Stage:
  """Puts children of the winners of tournaments on each rung in `pending`.

  The n live trials of a rung that have a number are ranked; a mother is the
  best of floor(share n) + 1 of them, drawn with replacement, and the source of
  her child. A rung without any leaves its places struck out. What is pending
  already stays.

  Args:
    mutate: makes a child of each mother, such as `jax.vmap(space.mutate)`.
    counts: mothers of rung 1, 2, ..., each of a tournament and one child.
    within: of how many of the last slots.
    founders: the first slots, of one age, see `live`.
    share: of a rung that enters a tournament, beyond the first.

  Raises:
    ValueError: for negative counts, none, and a share outside [0, 1].
  """
  counts = _places('breed', counts, within)
  if not 0 <= share <= 1:
    raise ValueError(f'breed: share must be in [0, 1], got {share!r}.')

  def update(key: Key, held: Trials) -> Trials:
    seen = live(held, within, founders)
    most = math.floor(share * seen.slot.shape[0]) + 1
    for rung, count in enumerate(counts, start=1):
      if not count:
        continue
      fitness = jnp.where(seen.rung == rung, seen.fitness, -jnp.inf)
      n = (fitness > -jnp.inf).sum()
      entrants = jnp.floor(share * n) + 1
      order = jnp.argsort(-fitness)
      of_draws, of_edits = jax.random.split(jax.random.fold_in(key, rung))
      drawn = jax.random.randint(of_draws, (count, most), 0, jnp.maximum(n, 1))
      drawn = jnp.where(jnp.arange(most)[None] < entrants, drawn, n)
      drawn = jnp.minimum(drawn.min(axis=1), order.shape[0] - 1)
      mothers = order[drawn]
      keys = jax.random.split(of_edits, count)
      children = mutate(keys, seen.genotypes[mothers])
      held = _added(held, children, jnp.full(count, n > 0), seen.slot[mothers])
    return held

  return combine.stage(_compiled(update), 'breed')


def best_of(
  mutate: Callable[[Key, jax.Array], jax.Array],
  brood: int,
  score: Callable[[Key, jax.Array], jax.Array],
) -> Mutation:
  """Several mutants of each mother, of which the best by a score is her child.

  With a zero-cost proxy as the score this is a rung before the first.

  Args:
    mutate: `mutate(key, genotype) -> genotype`, such as `space.mutate`.
    brood: mutants of each mother.
    score: `score(key, genotypes) -> (N,)`, more is better, NaN last.

  Raises:
    ValueError: for a brood below one.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> largest = best_of(space.mutate, 50, lambda key, made: made.sum(axis=1))
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> largest(keys, jnp.zeros((2, 6), int)).sum(axis=1).tolist()
    [3, 3]
  """
  check_counts('best_of', brood=brood)

  def mutation(keys: jax.Array, genotypes: jax.Array) -> jax.Array:
    own = jax.vmap(lambda key: jax.random.split(key, brood + 1))(keys)
    drawn = jax.vmap(jax.vmap(mutate, (0, None)))(own[:, :brood], genotypes)
    flat = drawn.reshape(-1, drawn.shape[-1])
    value = score(own[0, brood], flat).reshape(drawn.shape[:2])
    best = jnp.argmax(jnp.where(jnp.isnan(value), -jnp.inf, value), axis=1)
    return jnp.take_along_axis(drawn, best[:, None, None], axis=1)[:, 0]

  return mutation


def _compiled(update: Callable[[Key, Trials], Trials]):
  """The update as one program, also where a search is run on the host."""
  inner = programs.jit(update)

  def call(key: Key, held: Trials) -> Trials:
    # The networks stay where they are.
    bare = held._replace(memory={}, spent=Cost(), generation=0)
    return inner(key, bare)._replace(
      memory=held.memory, spent=held.spent, generation=held.generation
    )

  return call


def _places(name: str, counts: Sequence[int], within: int) -> tuple[int, ...]:
  """The counts, checked."""
  check_counts(name, within=within)
  counts = tuple(counts)
  if not all(isinstance(n, int) and n >= 0 for n in counts) or not any(counts):
    raise ValueError(
      f'{name}: counts must be whole numbers for rung 1, 2, ..., some of them '
      f'above 0, got {counts}.'
    )
  return counts


def _added(held: Trials, genotypes, wanted, source) -> Trials:
  """The trials with more in `pending`."""
  before = held.source
  if before is None:
    before = jnp.full(held.pending.shape[0], -1)
  return held._replace(
    pending=jnp.concatenate([held.pending, genotypes]),
    wanted=jnp.concatenate([held.wanted, wanted]),
    source=jnp.concatenate([before, source]),
  )


def rung(held: Trials) -> jax.Array:
  """(K,) the rung to which an answer brings what is pending.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> asked = trials.ask(trials.sampled(space, 2))
    >>> first = trials.start(space, 4, metrics=RUNGS)
    >>> rung(asked.update(jax.random.key(0), first, ())[0]).tolist()
    [1, 1]
  """
  if held.source is None:
    return jnp.ones(held.pending.shape[0], jnp.int32)
  source = jnp.maximum(held.source, 0)
  same = (held.pending == held.genotypes[source]).all(axis=1)
  above = held.metrics['rung'][source].astype(jnp.int32) + 1
  return jnp.where((held.source >= 0) & same, above, 1)


def climb(space: ArraySpace, score: Score) -> Stage:
  """Answers what is pending by a function of network and rung.

  A table's is `by_rung`; others serve to plan a search and to test it.

  Args:
    space: of the genotypes.
    score: `score(key, genotype, index, rung) -> (fitness, cost)`, of scalars;
      the cost is that of this rung alone.

  Returns:
    A stage, for trials with the metrics `RUNGS`.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> answer = climb(space, lambda key, genotype, index, rung: (index, rung))
    >>> held = trials.start(space, 4, metrics=RUNGS)
    >>> asked = trials.ask(trials.sampled(space, 2))
    >>> for stage in (asked, answer, onward((1,), 4), answer):
    ...   held, _ = stage.update(jax.random.key(0), held, ())
    >>> held.metrics['rung'].tolist()
    [1.0, 1.0, 2.0, nan]
  """

  def update(key: Key, held: Trials) -> Trials:
    index = trials.number(space, held)
    rungs = rung(held)
    keys = jax.random.split(key, rungs.shape[0])
    fitness, cost = jax.vmap(score)(keys, held.pending, index, rungs)
    source = jnp.full(rungs.shape, -1) if held.source is None else held.source
    found = {'fitness': fitness, 'cost': cost, 'rung': rungs, 'source': source}
    found = {name: values.astype(jnp.float32) for name, values in found.items()}
    return trials.answered(held, index, found)

  return combine.stage(update, 'climb')


def by_rung(
  table: Table, signals: Sequence[str], costs: Sequence[str] = ()
) -> Score:
  """The score of a table that knows networks after several trainings.

  Args:
    table: the measurements.
    signals: the column of each rung, the cheapest first, of which more is
      better. Nothing is said above the last: NaN.
    costs: the columns of what it takes to get there from the start, which do
      not fall from rung to rung; () for none.

  Raises:
    KeyError, ValueError: for columns that cannot be used.
    ValueError: for no signals, other numbers of costs than of signals, and
      costs by which a rung would be paid back.

  Example:
    >>> from jaxnas import base, spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> columns = {'ep1': jnp.zeros(4096), 'ep2': jnp.ones(4096)}
    >>> score = by_rung(base.Table(space, columns), ['ep1', 'ep2'])
    >>> [float(score(None, None, 7, rung)[0]) for rung in (1, 2, 3)]
    [0.0, 1.0, nan]
  """
  if not signals or costs and len(costs) != len(signals):
    raise ValueError(
      'by_rung: give a signal for each rung, and a cost for each or none, got '
      f'{list(signals)} and {list(costs)}.'
    )
  values = jnp.stack([tables.column(table, name) for name in signals])
  paid = jnp.zeros_like(values)
  if costs:
    until = jnp.stack([tables.column(table, name) for name in costs])
    paid = jnp.diff(until, axis=0, prepend=0.0)
    fall = int((paid < 0).any(axis=0).sum())
    if fall:
      raise ValueError(
        f'by_rung: the costs {list(costs)} are from the start to each rung and '
        f'must not fall from one to the next, as those of {fall} networks do.'
      )

  def score(key, genotype, index, rung):
    del key, genotype
    there = rung <= len(signals)
    at = jnp.minimum(rung, len(signals)) - 1
    return jnp.where(there, values[at, index], jnp.nan), paid[at, index]

  return score


def leaders(held: Trials, count: int) -> jax.Array:
  """(count,) slots of the best on the highest rung there is, the best first.

  The same network may be among them more than once.

  Raises:
    ValueError: for trials of fewer slots.

  Example:
    >>> from jaxnas import spaces
    >>> first = trials.start(spaces.tabular.transnas_micro(), 4, metrics=RUNGS)
    >>> metrics = {**first.metrics, 'rung': jnp.array([1.0, 2, 2, jnp.nan]),
    ...            'fitness': jnp.array([9.0, 1, 2, jnp.nan])}
    >>> held = first._replace(metrics=metrics, index=jnp.array([0, 1, 2, -1]))
    >>> leaders(held, 2).tolist()
    [2, 1]
  """
  if count > held.index.shape[0]:
    raise ValueError(
      f'leaders: {count} of trials that have {held.index.shape[0]} slots.'
    )
  asked = held.index >= 0
  rungs = jnp.where(asked, held.metrics['rung'], 0)
  fitness = held.metrics['fitness']
  fitness = jnp.where(asked & ~jnp.isnan(fitness), fitness, -jnp.inf)
  return jnp.lexsort((-fitness, -rungs))[:count]
