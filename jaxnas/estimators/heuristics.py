"""Judges by rules of thumb: what a better estimate has to beat.

Each gives every channel an importance, never negative. Pruning channels
scores the sum of their importances, so the least important go first;
splitting them scores the negative of it, so the most important are split
first. The sources only prune. The sign for splits is this project's convention
(what is worth most may be short of room), and a weak one: on the trained
network of tests/test_judges.py its Spearman correlation with the measured
change of splits is 0.2 by magnitude, 0.1 by batch norm scale and -0.3 by
activations, about what chance gives or worse.

Scores are not in nats. Where a rule weighs them against a price, the price is
in units of importance; without one, `jointly` splits whatever its limits allow
and, at its default tolerance, prunes nothing. Directions of splits and means
of prunes are not read. There is no curvature, so sets of moves count as the
sum of theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, network, plans, programs
from jaxnas import spec as specs
from jaxnas.base import Data, Estimator, Key, Learned, Scores, rng
from jaxnas.morphisms import Morphism, base, width

Rows = dict[str, np.ndarray]


def scored(changes: np.ndarray, examples: int) -> Scores:
  """Scores without curvature: means over rows, and their standard errors.

  Args:
    changes: (rows, C), one row for each example, or one row in all.
    examples: how many examples were processed.

  Example:
    >>> found = scored(np.array([[1.0, 2.0], [3.0, 2.0]]), 2)
    >>> found.linear, found.error, found.coefficients.shape
    (array([2., 2.]), array([0.70710678, 0.        ]), (1, 2))
  """
  changes = np.asarray(changes, np.float64)
  return Scores(
    linear=changes.mean(axis=0),
    coefficients=np.zeros((1, changes.shape[1]), np.float32),
    error=changes.std(axis=0) / np.sqrt(len(changes)),
    examples=examples,
  )


def drawn(
  key: Key,
  net: network.Network,
  moves: Sequence[Morphism],
  thetas: Sequence[Any],
  data: Any,
  state: Any,
) -> Learned:
  """The `fit` of estimators that learn nothing: draws thetas that are None.

  Each by the move's own `init`, from the key folded with the move's content,
  so that the order of the moves does not matter. Given thetas stay.

  Example:
    >>> import jax
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> move = morphisms.split({'dense1': [2]})
    >>> found = drawn(jax.random.key(1), net, [move], [None], None, ())
    >>> found.thetas[0]['dense1']['dense1'].shape, found.examples
    ((4, 1), 0)
  """
  del data
  found = [
    move.init(net, network.named_key(key, repr(move)))
    if given is None
    else given
    for move, given in zip(moves, thetas, strict=True)
  ]
  return Learned(network.to_host(found), state, 0)


def by_batches(one: Callable[[jax.Array], Any], count: int, batch: int) -> Any:
  """`one(rows)` for the rows 0 to `count - 1`, some at a time, under `jit`.

  Args:
    one: a function of row numbers (batch,) to a tree of (batch, ...).
    count: how many rows there are.
    batch: how many at a time; the last batch repeats the last row.

  Returns:
    The tree of (count, ...).

  Example:
    >>> by_batches(lambda rows: rows * 2, 5, 2)
    Array([0, 2, 4, 6, 8], dtype=int32)
  """
  batch = min(batch, count)
  rows = jnp.arange(-(-count // batch) * batch).reshape((-1, batch))
  found = jax.lax.map(lambda row: one(jnp.minimum(row, count - 1)), rows)
  return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:]))[:count], found)


def _by_group(spec: specs.Spec, rows: Mapping[str, Any]) -> Rows:
  """(examples, axis) rows at nodes as (examples, channels) rows of groups.

  What several nodes say of a channel adds up, and so does what one node says
  of a channel that it holds twice; over positions (`Flatten`) it is averaged.
  """
  table, found = groups.table(spec).axes, {}
  for node, row in rows.items():
    axis = table[node]
    row = np.asarray(row, np.float64).reshape(
      (len(row), axis.repeat, sum(axis.sizes))
    )
    parts = np.split(row.mean(axis=1), np.cumsum(axis.sizes)[:-1], axis=1)
    for name, part in zip(axis.groups, parts):
      found[name] = found.get(name, 0) + part
  free = {g.name for g in groups.growable(spec)}
  return {name: row for name, row in found.items() if name in free}


def _judge(
  importance: Callable[[network.Network, Data], tuple[Rows, int]],
  lacking: str,
) -> Estimator:
  """The estimator of an importance of channels.

  Args:
    importance: of a network and data to `{group: (rows, channels)}` and the
      number of examples processed.
    lacking: what is wrong with groups of free width that have none.
  """

  def score(key, net, moves, thetas, data, state):
    del key, thetas, state
    for move in moves:
      if not isinstance(move, width.Split | width.Prune):
        raise base.refuse(
          move,
          'importances of channels judge splits and prunes only',
          'judge other moves by brute_force()',
        )
      move.maps(net.spec)
    rows, examples = importance(net, data)
    columns = [_signed(move, rows, lacking) for move in moves]
    return scored(np.stack(columns, axis=1), examples)._replace(nats=False)

  return Estimator(lambda net: (), score, drawn)


def _signed(
  move: width.Split | width.Prune, rows: Rows, lacking: str
) -> np.ndarray:
  """(rows,) sums over a move's channels, negative for splits."""
  total = 0.0
  for name, chosen in move.channels:
    if name not in rows:
      raise base.refuse(
        move,
        f'group {name!r} {lacking}',
        f'groups that can be judged are {sorted(rows)}',
      )
    total = total + rows[name][:, list(chosen)].sum(axis=1)
  return total if isinstance(move, width.Prune) else -total


def magnitude() -> Estimator:
  """Scores channels by the L1 norm of the weights that make them.

  Li et al., "Pruning Filters for Efficient ConvNets" (2017), section 3.1: the
  sum of a filter's absolute weights, biases not counted. Needs no data.

  Departs from the paper in groups with several writers (a residual stream):
  the norms of all their filters add up, where the paper takes the shortcut's
  alone. Norms are as the paper takes them, not divided by the number of
  weights, and the paper compares them within a layer only: across groups,
  those of small fan-in go first, and behind a batch norm the scale of a
  filter means nothing.

  Returns:
    An `Estimator` of splits and prunes; `score` raises `ValueError` for other
    moves and for illegal ones.

  Example:
    >>> import jax
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> channel = {'dense1': [2]}
    >>> moves = morphisms.prune(channel), morphisms.split(channel)
    >>> found = magnitude().score(
    ...     jax.random.key(1), net, moves, [None] * 2, None, ())
    >>> norm = abs(net.variables['params']['dense1']['kernel'][:, 2]).sum()
    >>> bool(abs(found.linear - [norm, -norm]).max() < 1e-6), found.examples
    (True, 0)
  """

  def importance(net, data):
    del data
    params = network.to_host(net.variables['params'])
    writers = dict.fromkeys(
      w for g in groups.growable(net.spec) for w in g.writers
    )
    rows = {}
    for writer in writers:
      kernel = np.abs(params[writer]['kernel'].astype(np.float64))
      rows[writer] = kernel.reshape((-1, kernel.shape[-1])).sum(axis=0)[None]
    return _by_group(net.spec, rows), 0

  return _judge(importance, 'is written by no layer')


def batch_norm_scale() -> Estimator:
  """Scores channels by the size of their batch norm's scale, |gamma|.

  Liu et al., "Learning Efficient Convolutional Networks through Network
  Slimming" (2017), section 3. Needs no data. Departs from the paper in what
  comes before: the L1 penalty on the scales, which makes small ones tell
  something, is training's business. Where several batch norms act on a group
  (a residual stream, a depthwise layer), their mean counts, so that one
  threshold serves all groups, as in the paper.

  Returns:
    An `Estimator` of splits and prunes; `score` raises `ValueError` for other
    moves, for illegal ones, and for groups without a batch norm.

  Example:
    >>> import jax
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> spec = seeds.chain((4, 4, 1), (2, 2), 3)
    >>> net = network.init(spec, jax.random.key(0))
    >>> moves = morphisms.prune({'conv1': [0]}), morphisms.split({'conv2': [1]})
    >>> batch_norm_scale().score(
    ...     jax.random.key(1), net, moves, [None] * 2, None, ()).linear
    array([ 1., -1.])
  """

  def importance(net, data):
    del data
    params = network.to_host(net.variables['params'])
    scales = {
      n.name: np.abs(params[n.name]['scale'])[None]
      for n in net.spec.nodes
      if isinstance(n.op, specs.BatchNorm)
    }
    ones = {name: np.ones_like(scale) for name, scale in scales.items()}
    total, count = _by_group(net.spec, scales), _by_group(net.spec, ones)
    return {name: total[name] / count[name] for name in total}, 0

  return _judge(importance, 'has no batch norm')


def mean_activation(
  *,
  of: Callable[[jax.Array], jax.Array] = jnp.square,
  batch: int = 256,
) -> Estimator:
  """Scores channels by how large they are where they are read, on average.

  The activation criterion of Molchanov et al., "Pruning Convolutional Neural
  Networks for Resource Efficient Inference" (2017), section 2.2: one forward
  pass, averaged over examples and positions. What is read at several places
  adds up.

  Departs from the paper in averaging squares, since not every activation is
  of one sign, and in leaving out its normalisation within each layer.

  Networks are padded to buckets, so growth inside them compiles nothing.

  Args:
    of: what is averaged, element by element; `jax.numpy.abs` for the mean
      absolute value.
    batch: examples at a time.

  Returns:
    An `Estimator` of splits and prunes, whose data are `(inputs, targets)`,
    prepared; `error` is the standard error over examples. `score` raises
    `ValueError` for other moves and for illegal ones.

  Raises:
    ValueError: for a batch below one.

  Example:
    >>> import jax
    >>> from jaxnas import Data, morphisms
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((2,), (3,), 2), jax.random.key(0))
    >>> data = Data(jnp.ones((5, 2)), jnp.zeros(5, int))
    >>> moves = [morphisms.prune({'dense1': [c]}) for c in range(3)]
    >>> found = mean_activation().score(
    ...     jax.random.key(1), net, moves, [None] * 3, data, ())
    >>> read = jax.nn.relu(net.variables['params']['dense1']['kernel'].sum(0))
    >>> bool(abs(found.linear - read**2).max() < 1e-6), found.examples
    (True, 5)
  """
  if batch < 1:
    raise ValueError(
      f'mean_activation: batch must be at least 1, got batch={batch}.'
    )

  def importance(net, data):
    padded = plans.padding(net.spec)(network.to_host(net), ())
    found = _reader(padded.spec, of, batch)(padded.variables, data.inputs)
    # Padding comes last in every group, where no move points.
    rows = _by_group(padded.spec, network.to_host(found))
    return rows, len(data.inputs)

  return _judge(importance, 'is read by no layer')


@programs.kept
def _reader(spec, of, batch):
  """The compiled (examples, axis) means of what mixing layers read."""
  sources = dict.fromkeys(
    n.inputs[0] for n in spec.order if n.op.kind == 'mixing'
  )

  @programs.jit
  def means(variables, inputs):
    call = network.caller(spec, variables)

    def one(rows):
      values = network.walk(spec, call, inputs[rows])
      return {
        source: of(values[source]).mean(
          axis=tuple(range(1, values[source].ndim - 1))
        )
        for source in sources
      }

    return by_batches(one, inputs.shape[0], batch)

  return means


def random() -> Estimator:
  """Scores moves of any kind by chance: the control of every other judge.

  Uniform in [-1, 1), from the key and the move's content, so a move's score
  depends neither on the order nor on the company of the moves.

  Returns:
    An `Estimator`.

  Example:
    >>> import jax
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> moves = morphisms.prune({'dense1': [0]}), morphisms.widen({'dense1': 9})
    >>> score = random().score
    >>> one = score(jax.random.key(1), net, moves, [None] * 2, None, ())
    >>> two = score(jax.random.key(1), net, moves[1:], [None], None, ())
    >>> bool(one.linear[1] == two.linear[0])
    True
  """

  def score(key, net, moves, thetas, data, state):
    del net, thetas, data, state
    draws = [
      rng(network.named_key(key, repr(move))).uniform(-1, 1) for move in moves
    ]
    return scored(np.array([draws]), 0)._replace(nats=False)

  return Estimator(lambda net: (), score, drawn)
