"""Gauss-Newton estimates of what a move does to the loss.

A move is, exactly, a difference Delta injected into the *unchanged* network
(`jaxnas.estimators.injection`), so every candidate of every layer is scored
from one forward pass and few reverse passes: `linear = mean <g, Delta>` with
the loss gradient g, and the curvature `mean <v, Delta>^2` with v the pulled
back vectors of a factor of the output Hessian: all of them (route B of the
growth specification, 1.3.3) or random ones (route C). `tangents.py` pushes
candidates forward instead (route A).

This implements the idea of Lawton, Galstyan and Ver Steeg, "Learning
Morphisms with Gauss-Newton Approximation for Growing Networks" (2024), from
its published abstract; the formulas are those of this project's own
derivation and no claim is made to reproduce that paper's numbers.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import groups, network, programs, tasks, training
from jaxnas.base import Estimator, Key, Learned, Scores, rng
from jaxnas.estimators import curvature
from jaxnas.estimators.injection import (
  Block,
  Laid,
  Loss,
  columns,
  differences,
  forward,
  inject,
  mixed,
  over_axis,
  sites,
)
from jaxnas.estimators.layout import (
  Capacity,
  at_a_time,
  at_capacity,
  batches,
  check_directions,
  lay_out,
  pick,
  take,
)
from jaxnas.morphisms import depth, several
from jaxnas.spec import Spec


class Statistics(NamedTuple):
  """What examples say of the unchanged network and the directions.

  Attributes:
    centres: `{source: (channels,)}` mean activations.
    covariances: `{group: (channels, channels)}` of activations as read, summed
      over the places where the group is read; only where moves merge.
    lengths: `{writer: (channels,)}` standard deviation of the change of the
      pre-activation along the direction, over the pre-activation's.
  """

  centres: Any
  covariances: Any
  lengths: Any


class _Moments(NamedTuple):
  """Means over images and positions, which add up over parts of a batch.

  Attributes:
    centres: of activations, `{source: (channels,)}`.
    products: of products of activations, `{source: {group: (C, C)}}`.
    changes: of changes of pre-activations and their squares.
    values: of pre-activations and their squares.
  """

  centres: Any
  products: Any
  changes: Any
  values: Any


def _moments(spec, values, laid: Laid, changes) -> _Moments:
  def flat(value):
    return value.reshape((-1, value.shape[-1]))

  def two(value):
    return flat(value).mean(axis=0), jnp.square(flat(value)).mean(axis=0)

  products = {
    source: {
      name: row.T @ row / len(row)
      for name, row in _by_group(spec, source, values[source])
      if name in laid.shares
    }
    for source in sites(spec).sources
  }
  return _Moments(
    {s: flat(values[s]).mean(axis=0) for s in sites(spec).sources},
    products,
    {name: two(change) for name, change in changes.items()},
    {name: two(values[name]) for name in changes},
  )


def _by_group(spec, source, value):
  """(rows, channels) of every group that a source's channels belong to."""
  axis, offset = groups.table(spec).axes[source], 0
  rows = value.reshape((-1, sum(axis.sizes)))
  for name, size in zip(axis.groups, axis.sizes):
    yield name, rows[:, offset : offset + size]
    offset += size


def _statistics(spec, found: _Moments) -> Statistics:
  covariances: dict[str, Any] = {}
  for source, products in found.products.items():
    for name, row in _by_group(spec, source, found.centres[source]):
      if name in products:
        mean = row.mean(axis=0)
        own = products[name] - mean[:, None] * mean[None]
        covariances[name] = covariances.get(name, 0) + own

  def deviation(pair):
    mean, square = pair
    return jnp.sqrt(jnp.maximum(square - jnp.square(mean), 0.0))

  lengths = {
    name: deviation(change) / (deviation(found.values[name]) + 1e-12)
    for name, change in found.changes.items()
  }
  return Statistics(found.centres, covariances, lengths)


_ADAM = optax.scale_by_adam()


@programs.kept
def _program(
  spec: Spec,
  blocks: tuple[Block, ...],
  loss: Loss,
  factor: curvature.Factor,
  mass: float,
  radius: float,
  few: int,
):
  """The compiled step of one structure: it scores a batch, and may learn.

  One program for both, so that a structure is compiled once. With `rate` zero
  nothing is learned, there are no statistics, and neither is paid for. `few`
  examples at a time pass through all of it, and stay in cache; every example
  has a key of its own, so how many they are changes rounding alone.
  """
  width = columns(spec, blocks)

  def pulled(variables, laid, centres, inputs, targets, keys):
    """Some examples' parts, as a function of what is learned."""
    call = network.caller(spec, variables)
    values = network.walk(spec, call, inputs)
    shape = jax.ShapeDtypeStruct((few, width), inputs.dtype)

    def found(laid):
      seen = differences(spec, variables, values, laid, mass, blocks)
      return seen, functools.partial(
        inject, spec, variables, laid, seen, blocks
      )

    like = jax.eval_shape(lambda m: found(laid)[1](m), shape)

    def outputs(injected):
      return forward(spec, call, inputs, injected)[spec.output]

    logits, pull = jax.vjp(outputs, _zeros(like))
    slope = jax.grad(lambda out: loss(out, targets).sum())(logits)
    vectors = jax.vmap(factor, out_axes=1)(keys, logits[:, None])[:, :, 0]
    adjoints = jax.vmap(pull)(jnp.concatenate([slope[None], vectors]))[0]

    def parts(held):
      own = laid._replace(**held)
      means = {
        r: own.means[r] + _stand_in(spec, r, centres, own.shares)
        for r in own.means
      }
      seen, injecting = found(own._replace(means=means))
      collect = jax.linear_transpose(injecting, shape)
      collected = jax.vmap(collect)(adjoints)[0]
      return (collected[0], collected[1:]), seen.deltas

    return parts, values

  def step(variables, laid, state, free, centres, inputs, targets, key, rate):
    held, examples = _held(laid), len(inputs)
    turns = examples // few
    rows = inputs, targets, jax.random.split(key, examples)

    def turn(i):
      own = jax.tree.map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i * few, few), rows
      )
      return pulled(variables, laid, centres, *own)

    def filled(scores, i, parts):
      linear, rho = (
        jax.lax.dynamic_update_slice_in_dim(whole, part, i * few, axis)
        for whole, part, axis in zip(scores, parts, (0, 1))
      )
      return linear, rho

    def score(i, scores):
      parts, _ = turn(i)
      return filled(scores, i, parts(held)[0])

    def learn(i, found):
      scores, grads, moments = found
      parts, values = turn(i)
      (linear, rho), back, seen = jax.vjp(parts, held, has_aux=True)
      ones = jnp.full_like(linear, 1 / examples)
      own = back((ones, rho / max(len(rho) * examples, 1)))[0]
      more = _moments(spec, values, laid, seen)
      return (
        filled(scores, i, (linear, rho)),
        jax.tree.map(jnp.add, grads, own),
        jax.tree.map(lambda a, b: a + b / turns, moments, more),
      )

    def first():
      parts, values = turn(0)
      (linear, rho), seen = parts(held)
      whole = jnp.zeros((examples, width), linear.dtype)
      scores = whole, jnp.zeros((len(rho), *whole.shape), rho.dtype)
      return scores, held, _moments(spec, values, laid, seen)

    scores, grads, moments = _zeros(jax.eval_shape(first))
    learning = jnp.where(rate > 0, turns, 0)
    # Loops without turns, and not branches: XLA on CPU spreads what is in a
    # loop over cores, and runs what is in a branch on one.
    scores = jax.lax.fori_loop(0, turns - learning, score, scores)
    scores, grads, moments = jax.lax.fori_loop(
      0, learning, learn, (scores, grads, moments)
    )
    statistics = _statistics(spec, moments)
    moved, after = _updated(
      spec,
      variables,
      held,
      _only(spec, free, grads),
      state,
      statistics.lengths,
      rate,
      radius,
    )
    return laid._replace(**moved), after, *scores, statistics

  return programs.jit(step)


def _zeros(shapes: Any) -> Any:
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _held(laid: Laid) -> dict[str, Any]:
  """What is learned by gradients."""
  return {
    'directions': laid.directions,
    'outgoing': laid.outgoing,
    'shares': laid.shares,
  }


def _only(spec, free, grads):
  """Gradients of outgoing rows and shares, of free splits and merges only.

  Those of plain splits and prunes start at zero and so stay there.
  """
  count, start, shares = sites(spec).count, sites(spec).count, {}
  for name, size in sites(spec).columns:
    if name in grads['shares']:
      mask = free[start : start + size, None]
      shares[name] = grads['shares'][name] * mask
    start += size
  rows = {}
  for name, grad in grads['outgoing'].items():
    source = spec.by_name[name].inputs[0]
    mask = over_axis(spec, source, free[None, :count])[0]
    rows[name] = grad * mask[(*(None,) * (grad.ndim - 2), slice(None), None)]
  return {**grads, 'outgoing': rows, 'shares': shares}


def _stand_in(spec, reader, centres, shares):
  """What is left of the mean activation once merges have their share."""
  source = spec.by_name[reader].inputs[0]
  return centres[source] - mixed(spec, source, centres[source], shares)


def _updated(spec, variables, held, grads, state, lengths, rate, radius):
  """One step of Adam, relative to the scale of each channel's parameters."""
  updates, state = _ADAM.update(grads, state)

  def rms(x, axis):
    return jnp.sqrt(jnp.square(x).mean(axis=axis, keepdims=True))

  def direction(name, d, u):
    axes = tuple(range(d.ndim - 1))
    shrink = jnp.minimum(1.0, radius / jnp.maximum(lengths[name], 1e-12))
    d = d * shrink[(None,) * (d.ndim - 1)]
    return d - rate * rms(d, axes) * u

  def row(name, e, u):
    kernel = variables['params'][name]['kernel']
    axes = (*range(e.ndim - 2), e.ndim - 1)
    return e - rate * rms(kernel, axes) * u

  def share(s, u):
    return s - rate * jnp.maximum(rms(s, -1), 1 / s.shape[-1]) * u

  return {
    'directions': {
      n: direction(n, d, updates['directions'][n])
      for n, d in held['directions'].items()
    },
    'outgoing': {
      n: row(n, e, updates['outgoing'][n]) for n, e in held['outgoing'].items()
    },
    'shares': {
      n: share(s, updates['shares'][n]) for n, s in held['shares'].items()
    },
  }, state


class _Scored(NamedTuple):
  """Scores of all columns of all batches, and the mean statistics."""

  linear: np.ndarray
  rho: np.ndarray
  statistics: Statistics


def _scored(
  program, capacity: Capacity, laid, centres, data, key, batch, rate=0.0
):
  """Runs a program over whole batches, and keeps no step that it takes."""
  state, found = training.blank(_ADAM, _held(laid)), []
  free = capacity.wide(np.zeros(len(capacity.columns), np.float32))
  for i, rows in enumerate(batches(data, batch)):
    own = jax.random.fold_in(key, i)
    *_, linear, rho, statistics = program(
      capacity.net.variables,
      laid,
      state,
      free,
      centres,
      *rows,
      own,
      np.float32(rate),
    )
    found.append((linear, rho, statistics))
  linear, rho, statistics = zip(*jax.device_get(found))
  return _Scored(
    np.concatenate(linear)[:, capacity.columns],
    np.concatenate(rho, axis=1)[..., capacity.columns],
    jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *statistics),
  )


def _no_centres(net: network.Network) -> dict[str, np.ndarray]:
  axes = groups.table(net.spec).axes
  dtype = jnp.result_type(*jax.tree.leaves(net.variables['params']))
  return {
    s: np.zeros(sum(axes[s].sizes) * axes[s].repeat, dtype)
    for s in sites(net.spec).sources
  }


def gauss_newton(
  *,
  loss: Loss = tasks.cross_entropy,
  factor: curvature.Factor | None = None,
  batch: int = 256,
  steps: int = 0,
  relative: float = 0.3,
  learning_rate: float = 0.05,
  radius: float = 1.0,
) -> Estimator:
  """Scores all moves of a network at once (routes B and C).

  Splits, prunes, merges and gated insertions together, in one forward pass, a
  pass through the per-channel operations and one reverse pass for each vector
  of the factor and for the gradient, whatever the number of moves. Thetas that
  are None are drawn by `fit`; `score` takes them for prunes only, as zero. A
  last incomplete batch is left out, if there is a whole one.

  `fit` learns all parameters of all moves at once on the sum of their
  estimates (growth specification, 1.3.4). Directions of splits start at
  random, scaled to change their pre-activation by `relative` of its standard
  deviation, and are kept within `radius` of it; free outgoing weights start at
  zero; the shares of merges start at the regression of each channel's
  activation on the others of its group, and are then learned in the
  Gauss-Newton metric like the rest; prunes get the mean activation that stands
  in; insertions get random kernels and the best opening of their gate within
  [-1, 1] (`jaxnas.estimators.gated`). Moves of groups that a layer norm reads
  cannot be scored.

  Networks are padded to buckets, and one program per structure scores and
  learns, so growth inside buckets compiles nothing.

  Args:
    loss: `loss(outputs, targets) -> (batch,)`, in nats.
    factor: vectors whose mean outer product is the loss's Hessian in the
      outputs, `factor(key, outputs) -> (m, batch, outputs)`, see
      `jaxnas.estimators.softmax_exact`; None for one random vector, for the
      losses in `jaxnas.tasks`.
    batch: examples at a time.
    steps: optimizer steps of `fit`; 0 leaves directions random, but scaled.
    relative: standard deviation of a starting direction's pre-activation
      change, relative to the pre-activation's.
    learning_rate: of Adam, relative to each channel's root mean square; it
      falls to zero by a cosine.
    radius: the largest such ratio that learning may reach, the trust region;
      the curvature alone usually keeps directions well inside.

  Returns:
    An `Estimator` whose data are `(inputs, targets)`, prepared.

  Raises:
    ValueError: for fewer than one example, negative steps, a radius or
      starting length that is not positive, or moves it cannot score.

  Example:
    >>> from jaxnas import Data, morphisms
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(
    ...     seeds.chain(task.shape, (4, 4), task.outputs), jax.random.key(0))
    >>> moves = [morphisms.prune({'conv1': [c]}) for c in range(4)]
    >>> thetas = [move.init(net, jax.random.key(0)) for move in moves]
    >>> judge = gauss_newton()
    >>> data = Data(task.prepare(task.valid.inputs), task.valid.targets)
    >>> scores = judge.score(
    ...     jax.random.key(1), net, moves, thetas, data, judge.init(net))
    >>> scores.single().shape
    (4,)
  """
  if factor is None:
    factor = curvature.sketch_of(loss)
  if batch < 1 or steps < 0 or not relative > 0 or not radius > 0:
    raise ValueError(
      'gauss_newton: batch must be at least 1, steps at least 0, relative and '
      f'radius above 0, got batch={batch}, steps={steps}, '
      f'relative={relative}, radius={radius}.'
    )

  def program(capacity, layout, examples):
    spec = capacity.net.spec
    few = at_a_time(spec, min(batch, examples))
    return _program(spec, layout.blocks, loss, factor, layout.mass, radius, few)

  def score(key, net, moves, thetas, data, state):
    del state
    layout = lay_out(net, moves, thetas)
    check_directions(moves, thetas)
    capacity = at_capacity(net, layout.blocks)
    found = _scored(
      program(capacity, layout, len(data.targets)),
      capacity,
      capacity.up(layout.laid),
      _no_centres(capacity.net),
      data,
      key,
      batch,
    )
    return scores(
      pick(layout.members, found.linear), pick(layout.members, found.rho)
    )

  def fit(key, net, moves, thetas, data, state):
    thetas = _with_blocks(key, net, moves, thetas)
    layout = lay_out(net, moves, thetas)
    capacity = at_capacity(net, layout.blocks)
    run = program(capacity, layout, len(data.targets))
    laid = capacity.up(_started(key, net, layout.laid))
    nothing = _no_centres(capacity.net)
    looked = _scored(run, capacity, laid, nothing, data, key, batch, 1.0)
    seen = looked.statistics
    laid = _prepared(net, laid, seen, relative, layout.free)
    free = capacity.wide(layout.free)
    laid = laid._replace(means=jax.tree.map(np.zeros_like, laid.means))
    adam, learn_key = (
      training.blank(_ADAM, _held(laid)),
      jax.random.fold_in(key, 2**31),
    )
    generator = rng(learn_key)
    count = min(batch, len(data.targets))
    for i in range(steps):
      rate = learning_rate * (1 + math.cos(math.pi * i / steps)) / 2
      rows = generator.choice(len(data.targets), count)
      laid, adam, *_ = run(
        capacity.net.variables,
        laid,
        adam,
        free,
        seen.centres,
        *take(data, rows),
        jax.random.fold_in(learn_key, i),
        np.float32(rate),
      )
    laid = jax.device_get(laid)
    means = {
      r: np.asarray(_stand_in(capacity.net.spec, r, seen.centres, laid.shares))
      for r in laid.means
    }
    laid = capacity.down(laid._replace(means=means))
    alone = scores(looked.linear, looked.rho)
    squares = np.square(alone.coefficients).mean(axis=0)
    gates = curvature.gated(alone.linear, squares)
    found = [
      _theta(net, move, theta, member, laid, gates.step)
      for move, theta, member in zip(moves, thetas, layout.members)
    ]
    whole = len(data.targets) // count * count
    return Learned(found, state, whole + count * steps)

  return Estimator(lambda net: (), score, fit)


def scores(linear: np.ndarray, rho: np.ndarray) -> Scores:
  """Scores from the parts of every example.

  Args:
    linear: (N, C) first-order parts.
    rho: (m, N, C) curvature coefficients, m of zero for none.
  """
  squares = np.square(rho).mean(axis=0) if len(rho) else 0.0
  single = linear + squares / 2
  flat = rho.reshape((-1, rho.shape[-1])) if len(rho) else 0 * linear[:1]
  return Scores(
    linear=linear.astype(float).mean(axis=0),
    coefficients=flat,
    error=single.std(axis=0) / np.sqrt(len(linear)),
    examples=len(linear),
  )


def _with_blocks(key, net, moves, thetas) -> list[Any]:
  """Insertions get kernels where they have none, and an open gate."""
  found = []
  for move, theta in zip(moves, thetas, strict=True):
    if isinstance(move, depth.Insert):
      if theta is None:
        own = network.named_key(key, repr(move))
        theta = network.to_host(move.init(net, own))
      gate = move.names(net.spec)['_gate']
      if gate in theta:
        theta = {**theta, gate: np.ones_like(theta[gate])}
    found.append(theta)
  return found


def _started(key: Key, net: network.Network, laid: Laid) -> Laid:
  """Random directions wherever none are given."""

  def one(name, d):
    given = np.abs(d).sum(axis=tuple(range(d.ndim - 1)), keepdims=True) > 0
    own = rng(network.named_key(key, name))
    return np.where(given, d, own.normal(size=d.shape).astype(d.dtype))

  return laid._replace(
    directions={name: one(name, d) for name, d in laid.directions.items()}
  )


def _prepared(net, laid: Laid, seen: Statistics, relative, free) -> Laid:
  """Directions of the starting length, and shares of merges by regression."""

  def scaled(name, d):
    factor = relative / np.maximum(seen.lengths[name], 1e-12)
    factor = np.where(seen.lengths[name] > 0, factor, 0.0)
    return (d * factor).astype(d.dtype)

  directions = {name: scaled(name, d) for name, d in laid.directions.items()}
  shares, start = {}, sites(net.spec).count
  for name, size in sites(net.spec).columns:
    start += size
    if name not in laid.shares:
      continue
    covariance, dtype = seen.covariances[name], laid.shares[name].dtype
    own = covariance[:size, :size].astype(float)
    ridge = 1e-3 * np.trace(own) / size + 1e-12
    precision = np.linalg.inv(own + ridge * np.eye(size))
    found = -precision / np.diag(precision)[:, None]
    np.fill_diagonal(found, 0.0)
    shares[name] = np.zeros(laid.shares[name].shape, dtype)
    merged = free[start - size : start, None]
    shares[name][:size, :size] = found * merged
  return laid._replace(directions=directions, shares=shares)


def _theta(net, move, theta, member, laid: Laid, gates: np.ndarray) -> Any:
  """The parameters of one move out of what was learned."""
  if isinstance(move, depth.Insert):
    gate = move.names(net.spec)['_gate']
    opening = np.clip(gates[member[0]], -1, 1)
    return {**theta, gate: np.asarray(opening, theta[gate].dtype)}
  return several.gather(
    net,
    move,
    several.Spread(laid.directions, laid.means, laid.outgoing, laid.shares),
  )


def first_order(*, loss: Loss = tasks.cross_entropy, **knobs: Any) -> Estimator:
  """Scores moves by the gradient alone: the control of `gauss_newton`.

  Args:
    loss: `loss(outputs, targets) -> (batch,)`, in nats.
    **knobs: of `gauss_newton`, but for `factor`; with `steps`, directions run
      along the gradient until `radius` stops them.

  Returns:
    An `Estimator` whose moves do not interact.

  Example:
    >>> judge = first_order(batch=64)
  """
  return gauss_newton(loss=loss, factor=curvature.flat(), **knobs)
