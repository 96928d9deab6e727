"""Building every move and measuring it: what estimates are estimates of."""

from collections.abc import Callable

import jax
import numpy as np

from jaxnas import groups, morphisms, network, programs, tasks
from jaxnas.base import Estimator
from jaxnas.estimators import heuristics
from jaxnas.morphisms import base


def brute_force(
  *,
  loss: Callable[[jax.Array, jax.Array], jax.Array] = tasks.cross_entropy,
  batch: int = 256,
) -> Estimator:
  """Scores moves of any kind by making each and measuring the loss.

  The oracle of Molchanov et al., "Pruning Convolutional Neural Networks for
  Resource Efficient Inference" (2017), section 2.1, which removes every
  filter in turn. Departs from it in keeping the sign of the change, and in
  moves that are not prunes.

  `linear` is the change of the mean loss, in evaluation mode, on the very
  examples given, and `error` its paired standard error over examples. There
  is no curvature: a set of moves counts as the sum of its single changes,
  which is not what the set does (growth specification, 1.3.6). C moves of N
  examples cost (C + 1) N examples.

  Networks are stored with room for one channel more in every group, up to the
  next multiple of eight, so all splits and prunes of one channel share one
  program, which networks that grow inside it share too. (The buckets of
  training are wider: one more than 64 is 96, twice the operations for every
  one of many networks.)

  Args:
    loss: `loss(outputs, targets) -> (batch,)`, in nats.
    batch: examples at a time.

  Returns:
    An `Estimator` whose data are `(inputs, targets)`, prepared. Its `fit`
    draws thetas that are None and learns nothing. `score` takes None where
    nothing would be drawn (prunes then count their channels as zero); it
    raises `ValueError` for None elsewhere, and for illegal moves before any
    is measured.

  Raises:
    ValueError: for a batch below one.

  Example:
    >>> import jax
    >>> from jaxnas import Data, tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(
    ...     seeds.chain(task.shape, (4,), task.outputs), jax.random.key(0))
    >>> moves = [morphisms.prune({'conv1': [1]}),
    ...          morphisms.insert('conv1_act')]
    >>> data = Data(task.prepare(task.valid.inputs), task.valid.targets)
    >>> judge = brute_force()
    >>> found = judge.score(
    ...     jax.random.key(1), net, moves, [None] * 2, data, judge.init(net))
    >>> bool(abs(found.linear[0]) > 1e-4 > abs(found.linear[1]))
    True
    >>> found.examples == 3 * len(data.targets)
    True
  """
  if batch < 1:
    raise ValueError(
      f'brute_force: batch must be at least 1, got batch={batch}.'
    )

  def score(key, net, moves, thetas, data, state):
    del state
    net, thetas = network.to_host(net), network.to_host(list(thetas))
    for i, (move, theta) in enumerate(zip(moves, thetas, strict=True)):
      morphisms.respec(move, net.spec)
      if theta is None:
        thetas[i] = _nothing(key, net, move)
    data = jax.device_put(data)
    room = {g.name: _eights(g.size + 1) for g in groups.growable(net.spec)}

    def losses(built):
      padded = _stored(built, room)
      return _losses(padded.spec, loss, batch)(padded.variables, data)

    # All are dispatched before any is read, so that surgery on the host and
    # measuring on a device overlap.
    before = losses(net)
    after = [losses(move(net, theta)) for move, theta in zip(moves, thetas)]
    before, *after = (
      np.asarray(x, np.float64) for x in jax.device_get([before, *after])
    )
    changes = np.stack([x - before for x in after], axis=1)
    examples = len(before) * (len(moves) + 1)
    return heuristics.scored(changes, examples)

  return Estimator(lambda net: (), score, heuristics.drawn)


def _eights(width: int) -> int:
  return -(-width // 8) * 8


def _nothing(key, net, move):
  """The theta of a move that draws none; else `ValueError`."""
  theta = network.to_host(move.init(net, key))
  if any(np.any(leaf) for leaf in jax.tree.leaves(theta)):
    raise base.refuse(
      move,
      'it has no parameters to be built with',
      'add learn() before judge()',
    )
  return theta


def _stored(built: network.Network, room: dict[str, int]) -> network.Network:
  """A network padded to the common room, or beyond where it is larger."""
  buckets = {
    g.name: max(_eights(g.size), room.get(g.name, 0))
    for g in groups.growable(built.spec)
  }
  return morphisms.pad(buckets)(built, ()) if buckets else built


@programs.kept
def _losses(spec, loss, batch):
  """The compiled losses (examples,) of one structure."""
  module = spec.module()

  @programs.jit
  def losses(variables, data):
    def one(rows):
      outputs = module.apply(variables, data.inputs[rows])
      return loss(outputs, data.targets[rows])

    return heuristics.by_batches(one, data.targets.shape[0], batch)

  return losses
