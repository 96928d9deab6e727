"""Moves and sets of moves by forward-mode derivatives: route A.

Exact, at a forward pass for each move or set (growth specification, 1.3.3).
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import network, programs, tasks
from jaxnas.base import Data, Estimator, Key
from jaxnas.estimators import curvature
from jaxnas.estimators.gauss_newton import gauss_newton, scores
from jaxnas.estimators.injection import (
  Injected,
  Loss,
  columns,
  differences,
  forward,
  inject,
)
from jaxnas.estimators.layout import (
  at_capacity,
  batches,
  check_directions,
  lay_out,
)
from jaxnas.morphisms import Morphism


@programs.kept
def _pusher(spec, blocks, loss, factor, mass):
  """The compiled tangents of one structure, some sets of columns at a time."""

  @programs.jit
  def push(variables, laid, inputs, targets, key, weights):
    call = network.caller(spec, variables)
    values = network.walk(spec, call, inputs)
    found = differences(spec, variables, values, laid, mass, blocks)

    def outputs(injected: Injected):
      return forward(spec, call, inputs, injected)[spec.output]

    def one(row):
      mask = jnp.broadcast_to(row[None], (inputs.shape[0], len(row)))
      tangent = inject(spec, variables, laid, found, blocks, mask)
      zero = jax.tree.map(jnp.zeros_like, tangent)
      return jax.jvp(outputs, (zero,), (tangent,))

    logits = values[spec.output]
    slope = jax.grad(lambda out: loss(out, targets).sum())(logits)
    vectors, before = factor(key, logits), loss(logits, targets)

    def parts(row):
      _, q = one(row)
      rho = (vectors * q[None]).sum(axis=-1)
      linearised = loss(logits + q, targets) - before
      return (slope * q).sum(axis=-1), rho, linearised

    return jax.vmap(parts)(weights)

  return push


def _pushed(
  key: Key,
  net: network.Network,
  moves: Sequence[Morphism],
  thetas: Sequence[Any],
  sets: Sequence[Sequence[int]],
  data: Data,
  loss: Loss,
  factor: curvature.Factor,
  batch: int,
  at_once: int,
) -> Iterator[tuple[np.ndarray, ...]]:
  """For each batch the linear parts (batch, S) of sets of moves, their
  curvature coefficients (m, batch, S) and linearised changes (batch, S)."""
  layout = lay_out(net, moves, thetas)
  check_directions(moves, thetas)
  capacity = at_capacity(net, layout.blocks)
  spec, laid = capacity.net.spec, capacity.up(layout.laid)
  push = _pusher(spec, layout.blocks, loss, factor, layout.mass)
  whole = -(-len(sets) // at_once) * at_once
  dtype = jnp.result_type(*jax.tree.leaves(net.variables['params']))
  masks = np.zeros((whole, columns(spec, layout.blocks)), dtype)
  for row, chosen in zip(masks, sets):
    for member in chosen:
      row[capacity.columns[list(layout.members[member])]] = 1
  for i, rows in enumerate(batches(data, batch)):
    own = jax.random.fold_in(key, i)
    run = functools.partial(push, capacity.net.variables, laid, *rows, own)
    chunks = [run(masks[j : j + at_once]) for j in range(0, whole, at_once)]
    linear, rho, linearised = (
      np.concatenate(part)[: len(sets)] for part in zip(*jax.device_get(chunks))
    )
    yield linear.T, rho.transpose((1, 2, 0)), linearised.T


def tangents(
  *,
  loss: Loss = tasks.cross_entropy,
  factor: curvature.Factor | None = None,
  batch: int = 256,
  at_once: int = 16,
) -> Estimator:
  """Scores each move by its own forward-mode derivative (route A).

  Exact where `gauss_newton` samples, at a forward pass for each move; and the
  estimate of a move alone is that of the *linearised* network,
  `mean loss(f + q) - loss(f)` with `q = J Delta` (growth specification,
  1.3.2), which follows the loss further than its parabola. Interactions are
  those of the parabola.

  Args:
    loss: `loss(outputs, targets) -> (batch,)`, in nats.
    factor: as of `gauss_newton`; None for the exact one, for the losses in
      `jaxnas.tasks`.
    batch: examples at a time.
    at_once: moves at a time; the number of moves is padded to a multiple.

  Returns:
    An `Estimator`; its `fit` is that of `gauss_newton(loss=loss)`.

  Raises:
    ValueError: as `gauss_newton`.

  Example:
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(
    ...     seeds.chain(task.shape, (4, 4), task.outputs), jax.random.key(0))
    >>> moves = [morphisms.prune({'conv1': [c]}) for c in range(4)]
    >>> data = Data(task.prepare(task.valid.inputs), task.valid.targets)
    >>> tangents().score(
    ...     jax.random.key(1), net, moves, [None] * 4, data, ()).single().shape
    (4,)
  """
  if batch < 1 or at_once < 1:
    raise ValueError(
      'tangents: batch and at_once must be at least 1, got '
      f'batch={batch}, at_once={at_once}.'
    )
  exact = curvature.exact_of(loss) if factor is None else factor

  def score(key, net, moves, thetas, data, state):
    del state
    alone = [[i] for i in range(len(moves))]
    found = _pushed(
      key, net, moves, thetas, alone, data, loss, exact, batch, at_once
    )
    _, rho, linearised = zip(*found)
    rho, linearised = np.concatenate(rho, axis=1), np.concatenate(linearised)
    return scores(linearised - np.square(rho).mean(axis=0) / 2, rho)

  return gauss_newton(loss=loss, factor=factor, batch=batch)._replace(
    score=score
  )


def linearised(
  net: network.Network,
  moves: Sequence[Morphism],
  thetas: Sequence[Any],
  sets: Sequence[Sequence[int]],
  data: Data,
  *,
  loss: Loss = tasks.cross_entropy,
  batch: int = 256,
) -> np.ndarray:
  """The loss change of sets of moves, each by one forward-mode derivative.

  That of the linearised network, `mean loss(f + q) - loss(f)` with
  `q = J sum of Delta` (growth specification, 1.3.2), whatever the number of
  moves in a set, and without drawing anything. It follows the loss further
  than the parabola that `jaxnas.stages.jointly` chooses by, which matters
  where a set gains much or has prunes in it. Left out is what moves of one
  layer change in the differences of moves behind it, and that shares of merges
  which lean on each other are eliminated when the set is built.

  Args:
    net: the network.
    moves: as of `gauss_newton`.
    thetas: their parameters.
    sets: S sets, of positions in `moves`.
    data: `(inputs, targets)`, prepared; a last incomplete batch is left out,
      if there is a whole one.
    loss: `loss(outputs, targets) -> (batch,)`, in nats.
    batch: examples at a time.

  Returns:
    (S,) loss changes in nats.

  Raises:
    ValueError: as `gauss_newton`, and for a position that is not there.

  Example:
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(
    ...     seeds.chain(task.shape, (4, 4), task.outputs), jax.random.key(0))
    >>> moves = [morphisms.prune({'conv1': [c]}) for c in range(4)]
    >>> data = Data(task.prepare(task.valid.inputs), task.valid.targets)
    >>> linearised(
    ...     net, moves, [None] * 4, [[0], [1, 3], []], data).shape
    (3,)
  """
  beyond = [i for row in sets for i in row if not 0 <= i < len(moves)]
  if beyond:
    raise ValueError(
      f'linearised: sets hold positions of {len(moves)} moves, from 0, got '
      f'{sorted(set(beyond))}.'
    )
  found = _pushed(
    jax.random.key(0),  # No vectors are drawn.
    net,
    moves,
    thetas,
    sets,
    data,
    loss,
    curvature.flat(),
    batch,
    min(len(sets), 16) or 1,
  )
  return np.concatenate([part for *_, part in found]).astype(float).mean(axis=0)
