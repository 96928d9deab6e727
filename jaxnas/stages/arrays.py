"""Stages of array populations: members that learn, are measured and replaced.

Their populations are `base.Members`: equal shapes, architecture as data. All
run under `jit`, `vmap` and `scan` as well as by themselves, where each is one
compiled program; `jaxnas.run.rounds` is the loop for the former.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import combine, forms, mixing, network, programs, selection
from jaxnas import mesh as meshes
from jaxnas.base import Cost, Key, Learner, Member, Members, Stage


def members(
  key: Key,
  learner: Learner,
  size: int,
  priors: Mapping[str, mixing.Prior] | None = None,
) -> Members:
  """A first population: stratified genotypes, fresh bodies, drawn settings.

  Args:
    key: for all draws.
    learner: what the members are.
    size: N members.
    priors: of hyper-parameters that the learner reads, by name.

  Raises:
    ValueError: for a size below one.

  Example:
    >>> from jaxnas import learners
    >>> learner = learners.teacher(jax.random.key(1))
    >>> start = members(jax.random.key(0), learner, 4)
    >>> start.member.genes.shape
    (4, 40)
  """
  if size < 1:
    raise ValueError(f'members: size must be at least 1, got {size}.')
  names = ('genes', 'hyper', 'bodies')
  keys = {name: network.named_key(key, name) for name in names}
  genes = mixing.stratified(keys['genes'], learner.genes.options, size)
  hyper = {
    name: prior.sample(network.named_key(keys['hyper'], name), (size,))
    for name, prior in (priors or {}).items()
  }
  bodies = _born(learner.init)(
    keys_of(keys['bodies'], size), genes, hyper, learner.data
  )
  member = Member(bodies, genes, hyper)
  shapes = jax.eval_shape(
    learner.measure, key, jax.tree.map(lambda x: x[0], member), learner.data
  )
  metrics = {
    name: jnp.full((size, *leaf.shape), jnp.nan)
    for name, leaf in shapes.items()
  }
  return Members(member, metrics, _themselves(size), 0, Cost())


@functools.partial(jax.jit, static_argnums=1)
def keys_of(key: Key, size: int) -> Key:
  """A key for each place in a population, (size,), whoever stands there."""
  return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(size))


def _themselves(size: int) -> jax.Array:
  return jnp.tile(jnp.arange(size)[:, None], (1, 2))


def _size(members: Members) -> int:
  return len(members.parents)


@programs.kept
def _born(init):
  return programs.jit(jax.vmap(init, in_axes=(0, 0, 0, None)))


def _mesh(mesh: Any, size: int) -> jax.sharding.Mesh:
  """The given mesh, or one of as many devices as deal the members evenly."""
  if mesh is None:
    devices = jax.devices()
    if jax.process_count() == 1:
      devices = devices[: math.gcd(len(devices), size)]
    mesh = meshes.make(devices)
  if size % mesh.shape[meshes.POPULATION]:
    raise ValueError(
      f'{size} members cannot be dealt evenly to '
      f'{mesh.shape[meshes.POPULATION]} devices; take a multiple, or give a '
      'smaller mesh (jaxnas.mesh.make).'
    )
  return mesh


@programs.kept
def _program(call, over, mesh, impl):
  """The program that calls a learner's function on every member."""

  def one(carry, read, shared):
    del carry
    raw, member = read
    return (), call(jax.random.wrap_key_data(raw, impl=impl), member, shared)

  each = over(one)
  if mesh.size > 1:
    each = forms.on_mesh(each, mesh)

  def run(keys, member, data, counts):
    counts = counts if mesh.size > 1 else counts[0]
    return each((), (keys, member), counts, data)[1]

  return programs.jit(run)


def _called(call, key: Key, members: Members, data, over, mesh) -> Any:
  """What a learner's function gives for every member, on all devices."""
  size = _size(members)
  mesh = _mesh(mesh, size)
  impl = str(jax.random.key_impl(key))
  program = _program(call, over or forms.form(), mesh, impl)
  devices = mesh.shape[meshes.POPULATION]
  counts = np.full(devices, size // devices, np.int32)
  given = (jax.random.key_data(keys_of(key, size)), members.member)
  if mesh.size > 1 and not _traced(given):
    given = meshes.spread(given, mesh)
    data = meshes.replicate(data, mesh)
  found = program(*given, data, counts)
  # What other processes hold a part of, only programs of all can read.
  return found if jax.process_count() == 1 else meshes.fetch(found)


def _traced(tree: Any) -> bool:
  return any(
    isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)
  )


def advance(learner: Learner, *, over: Any = None, mesh: Any = None) -> Stage:
  """Every member learns for one round of the learner.

  Args:
    learner: whose `train` it is.
    over: the form, `forms.in_turn` or `at_once`; None for the first on CPU,
      where a loop takes real branches and stays in cache, else the second.
    mesh: the devices; None for as many as deal the members out evenly. How
      many there are changes the rounding of what is learned, and no draw.

  Raises:
    ValueError: when run, for members that a given mesh cannot deal evenly.
  """

  def update(key: Key, members: Members) -> Members:
    body = _called(learner.train, key, members, learner.data, over, mesh)
    spent = members.spent.add(examples=_size(members) * learner.examples)
    return members._replace(
      member=members.member._replace(body=body), spent=spent
    )

  return combine.stage(update, 'advance')


def assess(
  learner: Learner,
  *,
  measure: Callable[..., Mapping[str, jax.Array]] | None = None,
  over: Any = None,
  mesh: Any = None,
) -> Stage:
  """Measures every member, on what the search may select by.

  A metric that is not finite is NaN, which no rule of selection prefers.

  Args:
    learner: whose `measure` it is.
    measure: another function to measure by, such as `learner.test` for a
      report.
    over: as of `advance`.
    mesh: as of `advance`.
  """
  call = learner.measure if measure is None else measure

  def update(key: Key, members: Members) -> Members:
    metrics = _called(call, key, members, learner.data, over, mesh)
    metrics = {
      name: jnp.where(jnp.isfinite(values), values, jnp.nan)
      for name, values in metrics.items()
    }
    spent = members.spent.add(evaluations=_size(members))
    return members._replace(metrics=metrics, spent=spent)

  return combine.stage(update, 'assess')


def replace(
  learner: Learner,
  pairing: selection.Pairing,
  child: mixing.Child,
  *,
  by: str | Callable[[Members], Any] = 'fitness',
) -> Stage:
  """Members that a pairing gives up make way for children of others.

  A child has the place of the member it replaces, and no metrics until it is
  measured. Its key is that of its place, so that no two children are twins.

  Args:
    learner: draws fresh bodies.
    pairing: who makes way and who is a parent, a function of key and scores,
      such as `selection.pairs()`.
    child: makes a child, such as `mixing.mix(learner.genes)`.
    by: the metric that is the score, or a function of the members that gives
      what the pairing reads, such as `algorithms.pulsation(...)`.

  Raises:
    ValueError: when run, for members without that metric.
  """

  def update(key: Key, members: Members) -> Members:
    if not callable(by) and by not in members.metrics:
      raise ValueError(
        f'replace: members have no metric {by!r}, they have '
        f'{sorted(members.metrics)}; add assess() before replace().'
      )
    scores = by(members) if callable(by) else members.metrics[by]
    program = _replacing(learner.init, pairing, child)
    member, metrics, parents = program(
      key, members.member, dict(members.metrics), scores, learner.data
    )
    return members._replace(member=member, metrics=metrics, parents=parents)

  return combine.stage(update, 'replace')


@programs.kept
def _replacing(init, pairing, child):
  def run(key, member, metrics, scores, data):
    pair_key, child_key = jax.random.split(key)
    slot, base, donor = pairing(pair_key, scores)
    size = len(member.genes)

    def make(key, base, donor):
      return child(key, base, donor, lambda *drawn: init(*drawn, data))

    def gather(index):
      return jax.tree.map(lambda leaf: leaf[index], member)

    keys = keys_of(child_key, size)[slot]
    made = jax.vmap(make)(keys, gather(base), gather(donor))
    own = base == slot

    def scatter(all_, new):
      return all_.at[slot].set(mixing.pick(own, all_[slot], new))

    member = jax.tree.map(scatter, member, made)
    metrics = {
      name: scatter(values, jnp.full_like(values[slot], jnp.nan))
      for name, values in metrics.items()
    }
    parents = scatter(_themselves(size), jnp.stack([base, donor], axis=1))
    return member, metrics, parents

  return programs.jit(run)


def champion(
  population: Members, by: str = 'fitness', first: int | None = None
) -> int:
  """The number of the best member; the first among equals, NaN last.

  Args:
    population: measured members.
    by: the metric.
    first: of the first so many members only, such as the greedy population of
      FIRE PBT, which comes first; None for all.

  Example:
    >>> import numpy as np
    >>> found = Members(None, {'fitness': np.array([1.0, np.nan, 2.0])}, None)
    >>> champion(found), champion(found, first=2)
    (2, 0)
  """
  return int(selection.order(np.asarray(population.metrics[by])[:first])[0])
