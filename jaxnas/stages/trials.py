"""Stages of array searches: genotypes are proposed, chosen among, and asked.

Their population is `base.Trials`, all that a search has asked. A generation
proposes genotypes (`ask`), may strike some out (`unseen`, `only`, `keep`), and
looks the rest up (`query`). What an algorithm calls its population is a view of
the trials, which a *proposal* takes, a function `propose(key, trials)` that
gives (K, L) genotypes. All of it runs under `jit`, `scan` and `vmap`:
`jaxnas.run.rounds` is the loop of one search as one program, and `side_by_side`
that of many.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import combine
from jaxnas.base import (
  ArraySpace,
  Cost,
  Key,
  Stage,
  State,
  Table,
  Trials,
  check_counts,
)
from jaxnas.run import further
from jaxnas.spaces import tables
from jaxnas.spaces.tabular import below
from jaxnas.stages.quick_keys import quick

Proposal = Callable[[Key, Trials], jax.Array]

# What every search knows of what it asked.
KNOWN = ('fitness', 'cost')


def start(
  space: ArraySpace, slots: int, *, metrics: Sequence[str] = ()
) -> Trials:
  """A first population: no question asked, and room for some.

  Args:
    space: what is searched.
    slots: Q, how many questions there is room for, those struck out counted
      too: generations times what each of them proposes at last.
    metrics: what else `query` is told to look up.

  Raises:
    ValueError: for no slots.

  Example:
    >>> from jaxnas import spaces
    >>> first = start(spaces.tabular.transnas_micro(), 10)
    >>> first.genotypes.shape, int(first.index.max()), sorted(first.metrics)
    ((10, 6), -1, ['cost', 'fitness'])
  """
  if slots < 1:
    raise ValueError(f'start: slots must be at least 1, got {slots!r}.')
  length = len(space.options)
  names = dict.fromkeys((*KNOWN, *metrics))
  return Trials(
    jnp.zeros((slots, length), jnp.int32),
    jnp.full(slots, -1, jnp.int32),
    {name: jnp.full(slots, jnp.nan) for name in names},
    jnp.zeros((), jnp.int32),
    jnp.zeros((0, length), jnp.int32),
    jnp.zeros(0, bool),
  )


def youngest(held: Trials, count: int) -> tuple[jax.Array, jax.Array]:
  """The last `count` questions, oldest first: genotypes and fitness.

  Raises:
    ValueError: for trials of fewer slots.

  Example:
    >>> from jaxnas import spaces
    >>> first = start(spaces.tabular.transnas_micro(), 10)
    >>> youngest(first._replace(count=4), 3)[0].shape
    (3, 6)
  """
  _roomy('youngest', held, count)
  # Where fewer were asked, the slots that are still empty make up for them.
  at = jnp.maximum(jnp.asarray(held.count) - count, 0)
  genotypes = jax.lax.dynamic_slice_in_dim(held.genotypes, at, count)
  fitness = jax.lax.dynamic_slice_in_dim(held.metrics['fitness'], at, count)
  return genotypes, fitness


def best(held: Trials, count: int) -> tuple[jax.Array, jax.Array]:
  """The best `count` questions, best first: genotypes and fitness.

  A network that was asked twice is among them twice; NaN ranks last.

  Raises:
    ValueError: for trials of fewer slots.
  """
  _roomy('best', held, count)
  fitness = _ranked(held.metrics['fitness'])
  value, at = jax.lax.top_k(fitness, count)
  return held.genotypes[at], jnp.where(jnp.isinf(value), jnp.nan, value)


def _roomy(name: str, held: Trials, count: int) -> None:
  slots = held.index.shape[0]
  if count > slots:
    raise ValueError(
      f'{name}: {count} of trials that have {slots} slots; start with as many '
      'or more.'
    )


def recall(held: Trials, index: jax.Array) -> jax.Array:
  """The fitness of networks that have been asked; NaN for the others.

  Args:
    held: the trials, Q slots.
    index: (K,) of networks.

  Returns:
    (K,) what was last heard of them, in O(K Q).
  """
  same = (index[:, None] == held.index[None]) & (index >= 0)[:, None]
  last = held.index.shape[0] - 1 - jnp.argmax(same[:, ::-1], axis=1)
  return jnp.where(same.any(axis=1), held.metrics['fitness'][last], jnp.nan)


def _ranked(fitness: jax.Array) -> jax.Array:
  return jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)


def sampled(space: ArraySpace, count: int = 1) -> Proposal:
  """Random genotypes of the space, (count, L).

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> sampled(space, 3)(jax.random.key(0), start(space, 4)).shape
    (3, 6)
  """
  check_counts('sampled', count=count)

  def propose(key: Key, held: Trials) -> jax.Array:
    del held
    if count == 1:
      return space.sample(key)[None]
    return jax.vmap(space.sample)(jax.random.split(key, count))

  return propose


def mutants(
  space: ArraySpace, *, size: int, entrants: int, count: int = 1
) -> Proposal:
  """Children of winners of tournaments among the youngest trials.

  Each is one edit of the best of `entrants` of the `size` youngest trials,
  drawn uniformly and with replacement; among equals the first drawn wins, and
  NaN loses.

  Args:
    space: what is searched.
    size: P, the population.
    entrants: S, of a tournament.
    count: children, each of a tournament of its own.

  Returns:
    A proposal of (count, L).

  Raises:
    ValueError: for a number below one.
  """
  check_counts('mutants', size=size, entrants=entrants, count=count)

  def propose(key: Key, held: Trials) -> jax.Array:
    genotypes, fitness = youngest(held, size)
    fitness = _ranked(fitness)

    def child(key):
      of_draws, of_edit = jax.random.split(key)
      drawn = below(jax.random.bits(of_draws, (entrants,)), size)
      winner = drawn[jnp.argmax(fitness[drawn])]
      return space.mutate(of_edit, genotypes[winner])

    if count == 1:
      return child(key)[None]
    return jax.vmap(child)(jax.random.split(key, count))

  return propose


def neighbours(space: ArraySpace, of: int = 1) -> Proposal:
  """All single edits of the best trials, (of * N, L).

  Args:
    space: what is searched; edits that leave it are struck out by `query`.
    of: how many of the best.

  Raises:
    ValueError: for a number below one.
  """
  check_counts('neighbours', of=of)

  def propose(key: Key, held: Trials) -> jax.Array:
    del key
    near, _ = jax.vmap(space.neighbours)(best(held, of)[0])
    return near.reshape(-1, near.shape[-1])

  return propose


def both(*proposals: Proposal) -> Proposal:
  """The genotypes of several proposals, one after another.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> two = both(sampled(space, 2), sampled(space, 3))
    >>> two(jax.random.key(0), start(space, 4)).shape
    (5, 6)
  """

  def propose(key: Key, held: Trials) -> jax.Array:
    made = [
      one(jax.random.fold_in(key, place), held)
      for place, one in enumerate(proposals)
    ]
    return jnp.concatenate(made)

  return propose


def until(count: int, first: Proposal, then: Proposal) -> Proposal:
  """One proposal until `count` slots are used, and another from there on.

  Both must propose equally many.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> evolve = until(10, sampled(space), mutants(space, size=10, entrants=3))
    >>> evolve(jax.random.key(0), start(space, 20)).shape
    (1, 6)
  """

  def propose(key: Key, held: Trials) -> jax.Array:
    return jax.lax.cond(jnp.asarray(held.count) < count, first, then, key, held)

  return propose


def accepted(
  space: ArraySpace,
  accept: Callable[[jax.Array], Any],
  count: int = 1,
  *,
  tries: int = 1000,
) -> Proposal:
  """Random genotypes, each drawn again until it is accepted.

  The rejection of EEEA-Net's first population. One that is not found in so many
  tries is the last that was drawn, accepted or not.

  Args:
    space: what is searched.
    accept: `accept(genotype) -> () bool`.
    count: how many.
    tries: at most.

  Returns:
    A proposal of (count, L).

  Raises:
    ValueError: for a number below one.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.transnas_micro()
    >>> draw = accepted(space, lambda genotype: genotype[0] == 3, 4)
    >>> draw(jax.random.key(0), start(space, 4))[:, 0].tolist()
    [3, 3, 3, 3]
  """
  check_counts('accepted', count=count, tries=tries)

  def one(key: Key) -> jax.Array:
    def draw(carry):
      tried, _ = carry
      return tried + 1, space.sample(jax.random.fold_in(key, tried))

    def again(carry):
      tried, genotype = carry
      return (tried < tries) & ~jnp.asarray(accept(genotype), bool)

    return jax.lax.while_loop(again, draw, draw((0, None)))[1]

  def propose(key: Key, held: Trials) -> jax.Array:
    del held
    return jax.vmap(one)(jax.random.split(key, count))

  return propose


def ask(propose: Proposal) -> Stage:
  """Puts what a proposal makes in `pending`, all of it wanted.

  Args:
    propose: such as `sampled(space)`.

  Raises:
    ValueError: when run, on trials that have questions pending.
  """

  def update(key: Key, held: Trials) -> Trials:
    if held.pending.shape[0]:
      raise ValueError(
        f'ask: {held.pending.shape[0]} genotypes are pending; add query() '
        'before the next ask(), or join the proposals by both().'
      )
    pending = propose(key, held)
    wanted = jnp.ones(pending.shape[0], bool)
    return held._replace(pending=pending, wanted=wanted)

  return combine.stage(update, 'ask')


def number(space: ArraySpace, held: Trials) -> jax.Array:
  """(K,) the network of each pending genotype, -1 for what is illegal.

  Where the networks of a space are too many to be numbered, it is the slot that
  the question will take: all are different, and taken to be legal.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.cell.space(spaces.cell.DARTS)
    >>> held, _ = ask(sampled(space, 2)).update(
    ...     jax.random.key(0), start(space, 4), ())
    >>> number(space, held).tolist()
    [0, 1]
  """
  if space.size:
    return jax.vmap(space.index)(held.pending)
  return jnp.asarray(held.count) + jnp.arange(held.pending.shape[0])


def unseen(space: ArraySpace) -> Stage:
  """Strikes out what was asked before, or is pending twice, or is illegal.

  Args:
    space: which tells equal networks; where they are not numbered, equal
      genotypes.
  """

  def update(key: Key, held: Trials) -> Trials:
    del key
    if space.size:
      index = jax.vmap(space.index)(held.pending)
      before, same = (
        index[:, None] == other[None] for other in (held.index, index)
      )
      wanted = held.wanted & (index >= 0)
    else:
      before, same = (
        (held.pending[:, None] == other[None]).all(axis=2)
        for other in (held.genotypes, held.pending)
      )
      before = before & (held.index >= 0)[None]
      wanted = held.wanted
    wanted = wanted & ~before.any(axis=1)
    places = np.arange(wanted.shape[0])
    earlier = (places[None] < places[:, None]) & wanted[None]
    return held._replace(wanted=wanted & ~(same & earlier).any(axis=1))

  return combine.stage(update, 'unseen')


def only(accept: Callable[[jax.Array], Any]) -> Stage:
  """Strikes out the genotypes that are not accepted.

  Args:
    accept: `accept(genotype) -> () bool`.
  """

  def update(key: Key, held: Trials) -> Trials:
    del key
    return held._replace(
      wanted=held.wanted & jax.vmap(accept)(held.pending).astype(bool)
    )

  return combine.stage(update, 'only')


def keep(
  count: int, score: Callable[[Key, Trials], jax.Array] | None = None
) -> Stage:
  """Leaves the first or the best of what is wanted pending.

  Args:
    count: how many; fewer of them are wanted if fewer were.
    score: `score(key, trials) -> (K,)` of the pending genotypes, more is
      better, NaN last; None for their order.

  Raises:
    ValueError: for a count below one, and when run for more than are pending.
  """
  check_counts('keep', count=count)

  def update(key: Key, held: Trials) -> Trials:
    pending = held.pending.shape[0]
    if pending < count:
      raise ValueError(
        f'keep: {count} of {pending} pending genotypes; propose more.'
      )
    if score is None:
      value = -jnp.arange(pending, dtype=jnp.float32)
    else:
      value = _ranked(score(key, held))
    # What is struck out comes after the worst that is wanted.
    order = jnp.lexsort((-value, ~held.wanted))[:count]
    return held._replace(
      pending=held.pending[order],
      wanted=held.wanted[order],
      source=None if held.source is None else held.source[order],
    )

  return combine.stage(update, 'keep')


def query(
  table: Table,
  signal: str,
  *,
  cost: str | None = None,
  also: Mapping[str, str] | None = None,
) -> Stage:
  """Looks up what is pending, and adds it to the trials.

  A slot is used for every pending genotype, and one that is struck out, or
  illegal, leaves its slot empty. A search whose slots are used up asks nothing
  more.

  Args:
    table: the measurements.
    signal: the column that is `fitness`, of which more is better: a validation
      column, such as `'val_ep12'`, or `'val_ep200_seeds:0'` of one seed. The
      test column is for reports, by the index of `incumbents`.
    cost: the column that is `cost`, in seconds; None for none.
    also: further metrics and their columns; `start` has to be told their
      names.

  Raises:
    KeyError: for a column that the table has not.
    ValueError: for a column of several numbers for each network; and, when
      run, if nothing is pending, what is pending has another length than the
      space's genotypes, or the trials lack a metric.
  """
  names = {'fitness': signal, **(also or {})}
  columns = {name: tables.column(table, held) for name, held in names.items()}
  if cost is not None:
    columns['cost'] = tables.column(table, cost)

  def update(key: Key, held: Trials) -> Trials:
    del key
    if held.source is not None:
      raise ValueError(
        'query: some of what is pending goes on from earlier questions; '
        'climb() looks up rungs.'
      )
    length, pending = len(table.space.options), held.pending.shape
    if pending[1:] != (length,):
      raise ValueError(
        f'query: a genotype of {table.space.name} is {length} whole numbers, '
        f'got shape {pending} pending.'
      )
    index = jax.vmap(table.space.index)(held.pending)
    values = {name: column[index] for name, column in columns.items()}
    return answered(held, index, values)

  return combine.stage(update, 'query')


def answered(
  held: Trials, index: jax.Array, metrics: Mapping[str, jax.Array]
) -> Trials:
  """The trials with answers to what is pending added to them.

  What every stage that answers does in the end. A slot is used for every
  pending genotype; where it is struck out, or its index is -1, or no slots are
  left, the answer is dropped.

  Args:
    held: trials with K genotypes pending.
    index: (K,) of their networks, -1 for what is illegal.
    metrics: (K,) by name; `cost` is zero if it is not among them.

  Returns:
    The trials, with nothing pending.

  Raises:
    ValueError: if nothing is pending, or more than there are slots, or for
      other metrics than the trials hold.
  """
  pending, slots = held.pending.shape[0], held.index.shape[0]
  if not pending:
    raise ValueError('query: nothing is pending; add ask() before query().')
  if pending > slots:
    raise ValueError(
      f'query: {pending} genotypes are pending, and there are {slots} slots.'
    )
  if {*metrics, 'cost'} != set(held.metrics):
    raise ValueError(
      f'query: it looks up {", ".join(sorted({*metrics, "cost"}))}, and the '
      f'trials hold {", ".join(sorted(held.metrics))}; give both the same '
      'names.'
    )
  room = jnp.asarray(held.count) + pending <= slots
  asked = held.wanted & (index >= 0) & room
  at = jnp.minimum(held.count, slots - pending)

  def write(into, values):
    old = jax.lax.dynamic_slice_in_dim(into, at, pending)
    values = jnp.where(room, values, old)
    return jax.lax.dynamic_update_slice_in_dim(into, values, at, 0)

  values = {'cost': jnp.zeros(pending), **metrics}
  return held._replace(
    genotypes=write(held.genotypes, held.pending),
    index=write(held.index, jnp.where(asked, index, -1)),
    metrics={
      name: write(into, jnp.where(asked, values[name], jnp.nan))
      for name, into in held.metrics.items()
    },
    count=jnp.where(room, held.count + pending, held.count),
    pending=held.pending[:0],
    wanted=held.wanted[:0],
    spent=held.spent.add(evaluations=asked.sum()),
    source=None,
  )


class Incumbents(NamedTuple):
  """The best so far after each slot of a search.

  Attributes:
    index: (Q,) the network, the first among equals; -1 before the first.
    fitness: (Q,) its fitness; NaN before the first.
    queries: (Q,) how many questions were asked until here.
    cost: (Q,) what they cost together, in seconds.
  """

  index: jax.Array
  fitness: jax.Array
  queries: jax.Array
  cost: jax.Array


def incumbents(held: Trials, *, free_repeats: bool = False) -> Incumbents:
  """The best so far, by fitness, after each slot of one search.

  A budget of time or questions is read off this, see `within`. Of trials with
  rungs (`stages.rungs`) only those of the highest rung reached so far count.

  Args:
    held: the trials of one search; `jax.vmap` this for many.
    free_repeats: whether a network that was asked before counts and costs
      nothing, as where a search remembers what it was told.

  Example:
    >>> from jaxnas import spaces
    >>> held = start(spaces.tabular.transnas_micro(), 4)
    >>> held = held._replace(
    ...     index=jnp.array([7, 5, 7, -1]),
    ...     metrics={'fitness': jnp.array([1.0, 2.0, 1.0, jnp.nan]),
    ...              'cost': jnp.array([3.0, 3.0, 3.0, jnp.nan])})
    >>> found = incumbents(held, free_repeats=True)
    >>> found.index.tolist(), found.queries.tolist(), found.cost.tolist()
    ([7, 5, 5, 5], [1, 2, 2, 2], [3.0, 6.0, 6.0, 6.0])
  """
  slots = jnp.arange(held.index.shape[0], dtype=jnp.int32)
  asked = held.index >= 0
  fitness = jnp.where(asked, _ranked(held.metrics['fitness']), -jnp.inf)
  value = fitness
  if 'rung' in held.metrics:
    # Only those of the highest rung so far can be compared with each other.
    rung = jnp.where(asked, held.metrics['rung'], 0)
    order = jnp.lexsort((-slots, fitness, rung))
    value = jnp.zeros_like(fitness).at[order].set(slots.astype(fitness.dtype))
    value = jnp.where(fitness > -jnp.inf, value, -jnp.inf)
  most = jax.lax.cummax(value)
  before = jnp.concatenate([jnp.full(1, -jnp.inf), most[:-1]])
  at = jax.lax.cummax(jnp.where(value > before, slots, -1))
  counted = asked & _first(held.index) if free_repeats else asked
  cost = jnp.where(counted, jnp.nan_to_num(held.metrics['cost']), 0.0)
  return Incumbents(
    jnp.where(at < 0, -1, held.index[at]),
    jnp.where(at < 0, jnp.nan, fitness[at]),
    jnp.cumsum(counted.astype(jnp.int32)),
    jnp.cumsum(cost),
  )


def _first(index: jax.Array) -> jax.Array:
  """(Q,) whether no slot before has the same network."""
  order = jnp.argsort(index, stable=True)
  held = index[order]
  new = jnp.concatenate([jnp.ones(1, bool), held[1:] != held[:-1]])
  return jnp.zeros(index.shape, bool).at[order].set(new)


def within(spent: jax.Array, budget: float) -> jax.Array:
  """The last slot at which a budget was not yet exceeded.

  Args:
    spent: (..., Q) growing, such as the `cost` or `queries` of `incumbents`.
    budget: in its unit.

  Returns:
    (...) the slot, -1 if the first one exceeds it.

  Example:
    >>> int(within(jnp.array([1.0, 2.0, 2.0, 3.0]), 2.5))
    2
  """
  return jnp.sum(spent <= budget, axis=-1) - 1


def side_by_side(stage: Stage, *, rounds: int = 1) -> Stage:
  """Many searches as one program, so many generations of each in one.

  Its population is trials with a leading axis of S searches (`many`); `count`,
  `generation` and `spent` are common to all. A search draws by a key of its
  own, whose numbers do not depend on how many there are.

  Args:
    stage: one generation of one search.
    rounds: generations of it in one of this.

  Returns:
    A stage of many searches, for `jaxnas.run.run`.

  Raises:
    ValueError: for rounds below one.
  """
  check_counts('side_by_side', rounds=rounds)
  axes = Trials(0, 0, 0, None, 0, 0, *(None,) * 4)

  def init(held: Trials) -> State:
    return jax.vmap(stage.init, in_axes=(axes,))(_bare(held, 0))

  def search(key: Key, held: Trials, state: State) -> tuple[Trials, State]:
    return further(key, stage, held, state, rounds)[:2]

  @jax.jit
  def program(key: Key, held: Trials, state: State):
    keys = quick(jax.random.split(key, held.index.shape[0]))
    spent = held._replace(spent=jax.tree.map(jnp.asarray, Cost()))
    out = axes._replace(spent=0)
    inner = jax.vmap(search, (0, axes, 0), (out, 0))
    held, state = inner(keys, spent, state)
    return held._replace(spent=jax.tree.map(jnp.sum, held.spent)), state

  def update(key: Key, held: Trials, state: State) -> tuple[Trials, State]:
    made, state = program(key, _bare(held, held.generation * rounds), state)
    spent = held.spent.add(evaluations=int(made.spent.evaluations))
    return made._replace(generation=held.generation, spent=spent), state

  return Stage(init, update, f'side_by_side({stage.name})')


def _bare(held: Trials, generation: Any) -> Trials:
  """Trials whose numbers are arrays, with nothing spent."""
  return held._replace(
    generation=jnp.asarray(generation, jnp.int32), spent=Cost()
  )


def many(held: Trials, searches: int) -> Trials:
  """The first population of many searches, see `side_by_side`.

  Args:
    held: that of one.
    searches: S.

  Raises:
    ValueError: for searches below one.

  Example:
    >>> from jaxnas import spaces
    >>> first = many(start(spaces.tabular.transnas_micro(), 10), 5)
    >>> first.genotypes.shape, first.count.shape
    ((5, 10, 6), ())
  """
  check_counts('many', searches=searches)

  def copied(leaf: jax.Array) -> jax.Array:
    return jnp.tile(leaf[None], (searches, *(1,) * leaf.ndim))

  return held._replace(
    genotypes=copied(held.genotypes),
    index=copied(held.index),
    metrics={name: copied(values) for name, values in held.metrics.items()},
    pending=copied(held.pending),
    wanted=copied(held.wanted),
  )
