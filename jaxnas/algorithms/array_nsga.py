"""NSGA-II on arrays, and EEEA-Net's start of it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import selection
from jaxnas.base import ArraySpace, Key, Stage, State, Trials
from jaxnas.stages import trials

# Children that are drawn for one that was not asked before.
_TRIES = 4


def two_point(chance: float = 0.9) -> Callable[..., jax.Array]:
  """Crossover of two genotypes at two points, of some pairs.

  Args:
    chance: that a pair is crossed; otherwise the child is the first parent.

  Returns:
    A function of key and two (L,) genotypes; a stretch of the second stands in
    the first. It does not ask whether that is legal.

  Example:
    >>> cross = two_point(1.0)
    >>> child = cross(jax.random.key(1), jnp.zeros(6), jnp.ones(6))
    >>> 0 < int(child.sum()) <= 6
    True
  """

  def cross(key: Key, one: jax.Array, two: jax.Array) -> jax.Array:
    length = one.shape[0]
    of_points, of_chance = jax.random.split(key)
    # The points lie between positions, and are different.
    first = jax.random.randint(of_points, (), 0, length + 1)
    step = jax.random.randint(
      jax.random.fold_in(of_points, 1), (), 1, length + 1
    )
    ends = jnp.sort(jnp.stack([first, (first + step) % (length + 1)]))
    places = np.arange(length)
    inside = (places >= ends[0]) & (places < ends[1])
    crossed = jnp.where(inside, two, one)
    return jnp.where(jax.random.bernoulli(of_chance, chance), crossed, one)

  return cross


def scattered(space: ArraySpace) -> Callable[..., jax.Array]:
  """Mutation that gives each position another value with chance 1 / L.

  Args:
    space: of independent positions.
  """
  counts = np.array(space.options, np.int32)

  def mutate(key: Key, genotype: jax.Array) -> jax.Array:
    of_places, of_values = jax.random.split(key)
    hit = jax.random.bernoulli(of_places, 1 / len(counts), counts.shape)
    shift = jax.random.randint(of_values, counts.shape, 1, counts)
    return jnp.where(hit, (genotype + shift) % counts, genotype)

  return mutate


def array_nsga(
  space: ArraySpace,
  query: Stage,
  *,
  size: int = 40,
  less: Sequence[str] = ('flops',),
  first: trials.Proposal | None = None,
  accept: Callable[[jax.Array], Any] | None = None,
) -> Stage:
  """Evolves genotypes toward the Pareto front of fitness and costs.

  NSGA-Net (Lu et al. 2019) by NSGA-II (Deb et al. 2002): `size` children in a
  generation, of parents that win binary crowded tournaments, by crossover at
  two points (nine in ten pairs) and mutation of each position with chance
  1 / L; a child that was asked before is drawn again, up to three times, and
  then at random; survivors by front and crowding among parents and children.
  Generation 0 asks of the first population.

  Departs from the released search in that mutation gives another value
  uniformly, where that has polynomial mutation of integers, under which close
  numbers are likelier, though the numbers of ops mean nothing; and in that
  fitness is whatever `query` says, where that reads the test split.

  Args:
    space: what is searched. In one whose combinations are not all legal,
      crossover and mutation are the space's own.
    query: answers questions; it looks up what `less` names.
    size: of the population, and children in a generation.
    less: metrics of which less is better, beside `fitness`.
    first: proposes the first population, (size, L); None for a random one.
    accept: `accept(genotype) -> bool`; children that it refuses are not asked
      and do not survive. None for all.

  Returns:
    A stage, one generation; it takes `size` slots. Its state is the (size,)
    slots of the population.

  Raises:
    ValueError: for a size below two or nothing in `less`.
  """
  if size < 2 or not less:
    raise ValueError(
      f'array_nsga: size must be at least 2 and less name a metric, got '
      f'{size!r} and {less!r}.'
    )
  free = space.size == math.prod(space.options)
  cross = two_point() if free else space.crossover
  mutate = scattered(space) if free else space.mutate
  parents = selection.crowded_tournament(2, count=2 * size)
  survive = selection.nsga2(size)
  first = trials.sampled(space, size) if first is None else first

  def objectives(held: Trials, members: jax.Array) -> jax.Array:
    scores = [held.metrics['fitness'][members]]
    scores += [-held.metrics[name][members] for name in less]
    return jnp.stack(scores, axis=1)

  def fresh(key: Key, held: Trials, members: jax.Array) -> jax.Array:
    genotypes = first(key, held)
    blank = jnp.zeros(((_TRIES - 1) * size, genotypes.shape[1]), jnp.int32)
    return jnp.concatenate([genotypes, blank])

  def children(key: Key, held: Trials, members: jax.Array) -> jax.Array:
    def batch(key):
      of_pairs, of_cross, of_edit = jax.random.split(key, 3)
      pairs = members[parents(of_pairs, objectives(held, members))]
      one, two = held.genotypes[pairs].reshape(2, size, -1)
      made = jax.vmap(cross)(jax.random.split(of_cross, size), one, two)
      return jax.vmap(mutate)(jax.random.split(of_edit, size), made)

    drawn = jax.vmap(batch)(jax.random.split(key, _TRIES - 1))
    more = trials.sampled(space, size)(jax.random.fold_in(key, 1), held)
    # Those of the first draw come first.
    return jnp.concatenate([drawn.reshape(-1, more.shape[1]), more])

  def init(held: Trials) -> State:
    del held
    return jnp.arange(size, dtype=jnp.int32)

  def update(key: Key, held: Trials, members: State) -> tuple[Trials, State]:
    of_draws, of_query = jax.random.split(key)
    begun = jnp.asarray(held.count) > 0
    pending = jax.lax.cond(begun, children, fresh, of_draws, held, members)
    # The first population is asked whole, repeats and all.
    wanted = begun | (np.arange(pending.shape[0]) < size)
    held = held._replace(pending=pending, wanted=wanted)
    struck = trials.unseen(space).update(of_query, held, ())[0].wanted
    held = held._replace(wanted=jnp.where(begun, struck, wanted))
    if accept is not None:
      held, _ = trials.only(accept).update(of_query, held, ())
    held, _ = trials.keep(size).update(of_query, held, ())
    held, _ = query.update(of_query, held, query.init(held))
    new = held.count - size + np.arange(size, dtype=np.int32)
    all_ = jnp.concatenate([members, new])
    stay = all_[survive(of_query, objectives(held, all_))]
    return held, jnp.where(begun, stay, new)

  return Stage(init, update, 'array_nsga')


def eeea(
  space: ArraySpace,
  query: Stage,
  accept: Callable[[jax.Array], Any],
  *,
  size: int = 20,
  less: Sequence[str] = ('flops',),
  drop: bool = False,
) -> Stage:
  """NSGA-II whose first population is drawn until it is small enough.

  The early-exit initialisation of EEEA-Net (Termritthikun et al. 2021, arXiv
  2108.06156): a genotype of the first population is drawn again until its
  network has fewer parameters than a bound.

  Departs from the released code in what looks like mistakes in it (all
  objectives are compared; crowding is that within a front); and its children
  come about as those of `array_nsga`.

  Args:
    space: what is searched.
    query: answers questions.
    accept: `accept(genotype) -> bool`, such as fewer than so many parameters.
    size: as of `array_nsga`.
    less: as of `array_nsga`.
    drop: whether children that are not accepted are dropped unasked, as in the
      paper's search with early exit.

  Returns:
    A stage, one generation.
  """
  return array_nsga(
    space,
    query,
    size=size,
    less=less,
    first=trials.accepted(space, accept, size),
    accept=accept if drop else None,
  )


def front(held: Trials, less: Sequence[str] = ('flops',)) -> np.ndarray:
  """The slots of the Pareto front of all that one search asked, on the host.

  Args:
    held: the trials of one search.
    less: as of `array_nsga`.

  Returns:
    Slots by growing cost, each network once.

  Example:
    >>> held = Trials(
    ...     None, np.array([3, 5, 3]),
    ...     {'fitness': np.array([2.0, 1.0, 2.0]),
    ...      'flops': np.array([9.0, 4.0, 9.0])}, 3, None, None)
    >>> front(held).tolist()
    [1, 0]
  """
  index = np.asarray(held.index)
  _, slots = np.unique(index, return_index=True)
  slots = slots[index[slots] >= 0]
  value = np.asarray(held.metrics['fitness'])[slots]
  costs = [np.asarray(held.metrics[name])[slots] for name in less]
  scores = np.stack([value, *(-cost for cost in costs)], axis=1)
  slots = slots[selection.front()(None, scores)]
  return slots[np.argsort(np.asarray(held.metrics[less[0]])[slots])]


def hypervolume(
  value: np.ndarray, cost: np.ndarray, corner: tuple[float, float]
) -> float:
  """The area that points dominate, of value above and of cost below a corner.

  Args:
    value: (n,) of which more is better.
    cost: (n,) of which less is better.
    corner: the value and the cost that are worth nothing.

  Example:
    >>> hypervolume(np.array([1.0, 3.0]), np.array([1.0, 2.0]), (0.0, 4.0))
    7.0
  """
  value, cost = np.asarray(value, float), np.asarray(cost, float)
  inside = (value > corner[0]) & (cost < corner[1])
  value, cost = value[inside], cost[inside]
  order = np.lexsort((-value, cost))
  best = np.maximum.accumulate(np.append(0.0, value[order] - corner[0]))
  ends = np.concatenate([cost[order][:1], cost[order], [corner[1]]])
  return float((best * np.diff(ends)).sum()) if len(value) else 0.0
