"""Gauss-Newton estimates of what a split or a prune does to the loss.

A split or prune is, exactly, a difference Delta added to what the readers of
a channel group read in the *unchanged* network (growth specification, 1.3.1),
so every candidate of every layer is scored from one forward pass and two
reverse passes: `linear = mean <g, Delta>` with the loss gradient g, and the
curvature `mean <v, Delta>^2` with v a random adjoint (route C, 1.3.3).

This implements the idea of Lawton, Galstyan and Ver Steeg, "Learning
Morphisms with Gauss-Newton Approximation for Growing Networks" (2024), from
its published abstract; the formulas are those of this project's own
derivation and no claim is made to reproduce that paper's numbers.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import groups, network, tasks, training
from jaxnas.base import Estimator, Key, Learned, Scores
from jaxnas.morphisms import Morphism, width
from jaxnas.spec import Spec

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Factor = Callable[[Key, jax.Array], jax.Array]


def softmax_factor(key: Key, logits: jax.Array) -> jax.Array:
  """A random factor of cross-entropy's output Hessian (route C).

  `A eps` with `A = diag(sqrt p) - p sqrt(p)^T`, `A A^T = diag(p) - p p^T` and
  eps Rademacher, so the mean of its outer product is that Hessian; targets
  (hard, soft or smoothed) do not enter.

  Args:
    key: draws eps, independently for every example.
    logits: (batch, classes).

  Example:
    >>> import jax
    >>> softmax_factor(jax.random.key(0), jnp.zeros((2, 4))).sum(axis=1)
    Array([0., 0.], dtype=float32)
  """
  root = jnp.sqrt(jax.nn.softmax(logits))
  eps = jax.random.rademacher(key, logits.shape, logits.dtype)
  inner = (root * eps).sum(axis=-1, keepdims=True)
  return root * eps - jnp.square(root) * inner


_CROSS_ENTROPIES = (
  optax.softmax_cross_entropy_with_integer_labels,
  optax.softmax_cross_entropy,
  tasks.cross_entropy,
)


class Sites(NamedTuple):
  """Where a spec's groups meet their readers.

  Attributes:
    sources: nodes with scored groups that mixing nodes read.
    readers: those mixing nodes.
    columns: names of the scored groups, in order, and their sizes.
  """

  sources: tuple[str, ...]
  readers: tuple[str, ...]
  columns: tuple[tuple[str, int], ...]


@functools.lru_cache(maxsize=1024)
def sites(spec: Spec) -> Sites:
  """The injection sites of a spec, and the groups that can be scored.

  Groups whose channels a layer norm mixes are left out: there a change of one
  channel is no difference of that channel alone.
  """
  scored = [g for g in groups.growable(spec) if not width.layer_normed(spec, g)]
  names = {g.name for g in scored}
  axes = groups.table(spec).axes
  readers = [
    n
    for n in spec.order
    if n.op.kind == 'mixing' and names & set(axes[n.inputs[0]].groups)
  ]
  return Sites(
    tuple(dict.fromkeys(n.inputs[0] for n in readers)),
    tuple(n.name for n in readers),
    tuple((g.name, g.size) for g in scored),
  )


class Injected(NamedTuple):
  """What is added to a network's values, or the adjoints of that.

  Attributes:
    read: `{source: like the source's value}`, added to what is read there.
    written: `{reader: (batch, [1, 1,] channels)}`, added to what the reader
      writes, at every position.
  """

  read: dict[str, jax.Array]
  written: dict[str, jax.Array]


def forward(
  spec: Spec,
  call: Callable[..., jax.Array],
  x: jax.Array,
  injected: Injected,
) -> dict[str, jax.Array]:
  """All values of the network with something injected."""

  def read(source, value):
    return value + injected.read[source] if source in injected.read else value

  def write(node, *inputs):
    value = call(node, *inputs)
    if node.name in injected.written:
      value = value + injected.written[node.name]
    return value

  return network.walk(spec, write, x, read)


def twins(
  spec: Spec,
  call: Callable[..., jax.Array],
  linear: Callable[..., jax.Array],
  mass: float,
  x: jax.Array,
  values: dict[str, jax.Array] | None = None,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  """Both twins of every channel, and what their readers read instead.

  The twins of a writer's pre-activation a are `a + 2 m delta` and
  `a - 2 (1 - m) delta`; per-channel operations act on each; a reader reads
  their mean, weighted 1 - m and m.

  Args:
    spec: the spec.
    call: `call(node, *inputs)`, the node in evaluation mode.
    linear: `linear(node, x)`, delta: the direction applied to the input; None
      for nodes without one.
    mass: m, the share of the second twin.
    x: the network's input.
    values: the values of the unchanged network, for differences scored one by
      one; None for all at once, so that every reader reads the changed
      values: then the output is exactly that of the network with every
      direction's split built.

  Returns:
    The weighted means at every node that has twins, and all values of the
    network as read by the readers.
  """
  held: dict[str, tuple[jax.Array, jax.Array]] = {}
  mixed: dict[str, jax.Array] = {spec.input: x}
  base: dict[str, jax.Array] = {spec.input: x}
  for node in spec.order:
    if node.op.kind == 'input':
      continue
    if node.op.kind == 'mixing':
      source = node.inputs[0]
      incoming = mixed[source] if values is None else values[source]
      value = call(node, incoming) if values is None else values[node.name]
      delta = linear(node, incoming)
      if delta is not None:
        held[node.name] = (
          value + 2 * mass * delta,
          value - 2 * (1 - mass) * delta,
        )
    else:
      inputs = [base[s] for s in node.inputs]
      value = call(node, *inputs) if values is None else values[node.name]
      if any(s in held for s in node.inputs):
        pairs = [held.get(s, (base[s], base[s])) for s in node.inputs]
        held[node.name] = tuple(call(node, *side) for side in zip(*pairs))
    base[node.name] = mixed[node.name] = value
    if node.name in held:
      first, second = held[node.name]
      mixed[node.name] = (1 - mass) * first + mass * second
  return {name: mixed[name] for name in held}, mixed


def deltas(
  spec: Spec, variables: Any, directions: dict[str, jax.Array]
) -> Callable[..., jax.Array | None]:
  """`linear` for `twins`: each writer with its kernel replaced by d."""

  def apply(node, x):
    if node.name not in directions:
      return None
    own = variables['params'][node.name]
    params = {leaf: jnp.zeros_like(value) for leaf, value in own.items()}
    params['kernel'] = directions[node.name]
    call = network.caller(spec, {'params': {node.name: params}})
    return call(node, x)

  return apply


def injected_loss(
  net: network.Network,
  theta: Any,
  mass: float,
  loss: Loss,
  inputs: jax.Array,
  targets: jax.Array,
) -> jax.Array:
  """The loss of a network with splits, without building it.

  Equal to the loss of `split(...)(net, theta)` up to rounding, for any set of
  splits in any layers and of any size, in evaluation mode, where no layer norm
  reads the groups: the identity on which the estimates rest.

  Args:
    net: an unpadded network.
    theta: directions of *all* channels of each group, `{group: {writer:
      kernel-shaped}}`; zero for channels that are not split.
    mass: the splits' mass.
    loss: `loss(outputs, targets) -> (batch,)`.
    inputs: (batch, *input shape), prepared.
    targets: (batch,).

  Returns:
    (batch,) losses.
  """
  directions: dict[str, jax.Array] = {}
  for held in theta.values():
    for writer, d in held.items():
      directions[writer] = directions.get(writer, 0) + d
  call = network.caller(net.spec, net.variables)
  linear = deltas(net.spec, net.variables, directions)
  _, mixed = twins(net.spec, call, linear, mass, inputs)
  return loss(mixed[net.spec.output], targets)


class Layout(NamedTuple):
  """Moves laid out over all channels of a network.

  Attributes:
    directions: `{writer: kernel-shaped}` sums of the splits' directions.
    means: `{reader: (input axis,)}` what stands in for pruned channels.
    members: for each move, the columns it consists of.
    mass: the splits' mass.
  """

  directions: dict[str, np.ndarray]
  means: dict[str, np.ndarray]
  members: tuple[tuple[int, ...], ...]
  mass: float


def lay_out(
  net: network.Network,
  moves: Sequence[Morphism],
  thetas: Sequence[Any],
) -> Layout:
  """Lays splits and prunes out over the channels of a network.

  Columns number the splits of all channels of all scored groups in order, and
  then their prunes.

  Raises:
    ValueError: for moves other than `split` and `prune`, for splits of
      different mass, for a channel split twice, and for groups that cannot be
      scored (a layer norm reads them).
  """
  start, total = {}, 0
  for name, size in sites(net.spec).columns:
    start[name] = total
    total += size
  members, seen = [], set()
  for move in moves:
    if not isinstance(move, width.Split | width.Prune):
      raise ValueError(
        f'gauss_newton scores moves made by split and prune, got {move}.'
      )
    shift = 0 if isinstance(move, width.Split) else total
    columns = []
    for name, chosen in move.channels:
      if name not in start:
        raise ValueError(
          f'{move}: group {name!r} cannot be scored; groups that can are '
          f'{sorted(start)}.'
        )
      columns += [shift + start[name] + c for c in chosen]
    if seen & set(columns):
      raise ValueError(f'{move} acts on a channel that another move acts on.')
    seen |= set(columns)
    members.append(tuple(columns))
  masses = {move.mass for move in moves if isinstance(move, width.Split)}
  if len(masses) > 1:
    raise ValueError(
      f'the splits scored together must have one mass, got {sorted(masses)}.'
    )
  spread = width.scatter(net, moves, thetas)
  means = {reader: spread.means[reader] for reader in sites(net.spec).readers}
  return Layout(
    spread.directions, means, tuple(members), next(iter(masses), 0.3)
  )


def _columns(spec: Spec, rows: Sequence[tuple[str, jax.Array]]) -> jax.Array:
  """(batch, columns) sums of per-channel rows (batch, axis) at nodes.

  Repetitions along an axis, and what a group's sites contribute, add up.
  """
  table, columns = groups.table(spec), sites(spec).columns
  parts = {name: 0.0 for name, _ in columns}
  for node, row in rows:
    axis = table.axes[node]
    row = row.reshape((row.shape[0], -1, sum(axis.sizes))).sum(axis=1)
    offset = 0
    for name, size in zip(axis.groups, axis.sizes):
      if name in parts:
        parts[name] = parts[name] + row[:, offset : offset + size]
      offset += size
  return jnp.concatenate([parts[name] for name, _ in columns], axis=1)


def _per_channel(x: jax.Array) -> jax.Array:
  """Sums over positions: (batch, ..., channels) to (batch, channels)."""
  return x.sum(axis=tuple(range(1, x.ndim - 1)))


class Parts(NamedTuple):
  """Per-example parts of the estimates, over columns.

  Attributes:
    linear: (batch, columns) first-order parts.
    coefficients: (draws, batch, columns) curvature coefficients.
  """

  linear: jax.Array
  coefficients: jax.Array


class Adjoints(NamedTuple):
  """Values of the unchanged network, and adjoints at its sites."""

  values: dict[str, jax.Array]
  gradient: Injected
  sketches: tuple[Injected, ...]


def adjoints(
  spec: Spec,
  variables: Any,
  inputs: jax.Array,
  targets: jax.Array,
  key: Key,
  *,
  loss: Loss,
  factor: Factor,
  draws: int,
) -> Adjoints:
  """One forward pass, one gradient and `draws` random adjoints.

  All are per example: evaluation mode mixes no examples.
  """
  call = network.caller(spec, variables)
  values = network.walk(spec, call, inputs)
  zero = Injected(
    {s: jnp.zeros_like(values[s]) for s in sites(spec).sources},
    {
      r: jnp.zeros_like(values[r], shape=_flat(values[r].shape))
      for r in sites(spec).readers
    },
  )

  def outputs(injected):
    return forward(spec, call, inputs, injected)[spec.output]

  logits, pull = jax.vjp(outputs, zero)
  slope = jax.grad(lambda out: loss(out, targets).sum())(logits)
  keys = jax.random.split(key, draws)
  sketches = tuple(pull(factor(k, logits))[0] for k in keys)
  return Adjoints(values, pull(slope)[0], sketches)


def _flat(shape: tuple[int, ...]) -> tuple[int, ...]:
  return (shape[0], *(1 for _ in shape[1:-1]), shape[-1])


def split_parts(
  spec: Spec, variables: Any, found: Adjoints, directions: Any, mass: float
) -> Parts:
  """The parts of a split of every channel, each by itself."""
  call = network.caller(spec, variables)
  linear = deltas(spec, variables, directions)
  x = found.values[spec.input]
  mean, _ = twins(spec, call, linear, mass, x, found.values)
  delta = {
    s: mean[s] - found.values[s] for s in sites(spec).sources if s in mean
  }

  def part(adjoint):
    return _columns(
      spec, [(s, _per_channel(adjoint.read[s] * d)) for s, d in delta.items()]
    )

  return Parts(part(found.gradient), jnp.stack([*map(part, found.sketches)]))


def prune_parts(
  spec: Spec, variables: Any, found: Adjoints, means: Any
) -> Parts:
  """The parts of a prune of every channel, each by itself.

  A pruned channel is read as zero, and its mean's contribution is added to
  what its readers write, at every position, as `prune` does it.
  """

  def part(adjoint):
    rows = [
      (source, _per_channel(-adjoint.read[source] * found.values[source]))
      for source in sites(spec).sources
    ]
    for reader, mean in means.items():
      kernel = variables['params'][reader]['kernel']
      taps = kernel.sum(axis=tuple(range(kernel.ndim - 2)))
      written = _per_channel(adjoint.written[reader])
      rows.append(
        (spec.by_name[reader].inputs[0], written @ taps.T * mean[None])
      )
    return _columns(spec, rows)

  return Parts(part(found.gradient), jnp.stack([*map(part, found.sketches)]))


@functools.lru_cache(maxsize=256)
def _scorer(spec, loss, factor, draws, mass):
  """The compiled scores of one batch: splits, then prunes."""

  @jax.jit
  def score(variables, directions, means, inputs, targets, key):
    found = adjoints(
      spec,
      variables,
      inputs,
      targets,
      key,
      loss=loss,
      factor=factor,
      draws=draws,
    )
    split = split_parts(spec, variables, found, directions, mass)
    prune = prune_parts(spec, variables, found, means)
    return jax.tree.map(
      lambda *both: jnp.concatenate(both, axis=-1), split, prune
    )

  return score


class _Padded(NamedTuple):
  """A network at its buckets, with what is laid out over it."""

  net: network.Network
  directions: dict[str, np.ndarray]
  means: dict[str, np.ndarray]
  columns: np.ndarray


def _padded(net: network.Network, table: Layout) -> _Padded:
  """Pads a network and a table to buckets, so that programs are shared."""
  spec = net.spec
  move = training.padding(spec)
  padded = move(network.to_host(net), ())
  directions = {
    writer: {'kernel': table.directions[writer]}
    for writer in _scored_writers(spec)
  }
  directions = move.moments(spec, directions, 1)
  index, alive = move.maps(spec)
  axes = groups.table(spec).axes
  means = {}
  for reader, mean in table.means.items():
    axis = axes[spec.by_name[reader].inputs[0]]
    wide = mean[axis.spread(index, 'index')] * axis.spread(alive, 'ones')
    means[reader] = wide.astype(net.variables['params'][reader]['kernel'].dtype)
  starts, position = [], 0
  for (_, size), (_, capacity) in zip(
    sites(spec).columns, sites(padded.spec).columns
  ):
    starts.append(position + np.arange(size))
    position += capacity
  columns = np.concatenate(starts)
  return _Padded(
    padded,
    {writer: held['kernel'] for writer, held in directions.items()},
    means,
    np.concatenate([columns, position + columns]),
  )


def _scored_writers(spec: Spec) -> tuple[str, ...]:
  """The layers that write scored groups."""
  names = {name for name, _ in sites(spec).columns}
  return tuple(
    dict.fromkeys(
      writer
      for name, group in groups.table(spec).groups.items()
      if name in names
      for writer in group.writers
    )
  )


def gauss_newton(
  *,
  loss: Loss = tasks.cross_entropy,
  factor: Factor | None = None,
  draws: int = 1,
  batch: int = 256,
  steps: int = 0,
  relative: float = 0.3,
  learning_rate: float = 0.05,
) -> Estimator:
  """Scores all splits and prunes of a network at once (route C).

  Thetas that are None are drawn by `fit`; `score` takes them for prunes only,
  as zero. It leaves out a last incomplete batch, if there is a whole one, and
  costs a forward pass, a pass through the per-channel operations and
  `1 + draws` reverse passes, whatever the number of moves. `fit` first scales
  each split's direction so that it changes its pre-activation by `relative`
  of that one's standard deviation, then learns all directions at once on the
  sum of their estimates, each the minimum of its own parabola-like estimate
  (growth specification, 1.3.4); and finds the mean activations that
  compensate prunes. Moves of groups that a layer norm reads cannot be scored.

  Networks are padded to buckets, so growth inside them compiles nothing.

  Args:
    loss: `loss(outputs, targets) -> (batch,)`, in nats.
    factor: `factor(key, outputs)`, a random vector whose mean outer product is
      the loss's Hessian in the outputs; None for that of cross-entropy.
    draws: random adjoints for each example.
    batch: examples at a time.
    steps: optimizer steps of `fit`; 0 leaves directions random, but scaled.
    relative: standard deviation of a starting direction's pre-activation
      change, relative to the pre-activation's.
    learning_rate: of Adam, relative to each direction's root mean square; it
      falls to zero by a cosine.

  Returns:
    An `Estimator` whose data are `(inputs, targets)`, prepared.

  Raises:
    ValueError: for fewer than one draw or example, or moves it cannot score.

  Example:
    >>> from jaxnas import Data, morphisms, tasks
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
    if loss not in _CROSS_ENTROPIES:
      raise ValueError(
        f'gauss_newton: the output Hessian of the loss {loss!r} is not known; '
        'give factor=, a random vector whose mean outer product is that '
        'Hessian (see softmax_factor).'
      )
    factor = softmax_factor
  if draws < 1 or batch < 1 or steps < 0:
    raise ValueError(
      'gauss_newton: draws and batch must be at least 1 and steps at least '
      f'0, got draws={draws}, batch={batch}, steps={steps}.'
    )

  def score(key, net, moves, thetas, data, state):
    del state
    table = lay_out(net, moves, thetas)
    for move, theta in zip(moves, thetas, strict=True):
      if theta is None and isinstance(move, width.Split):
        raise ValueError(
          f'{move} has no direction to score; add learn() before judge().'
        )
    padded = _padded(net, table)
    compiled = _scorer(padded.net.spec, loss, factor, draws, table.mass)
    count = min(batch, len(data.targets))
    parts = []
    for i in range(len(data.targets) // count):
      rows = slice(i * count, (i + 1) * count)
      parts.append(
        compiled(
          padded.net.variables,
          padded.directions,
          padded.means,
          data.inputs[rows],
          data.targets[rows],
          jax.random.fold_in(key, i),
        )
      )
    linear = np.concatenate([np.asarray(p.linear) for p in parts])
    rho = np.concatenate([np.asarray(p.coefficients) for p in parts], axis=1)
    pick = functools.partial(_pick, padded.columns, table.members)
    linear, rho = pick(linear), pick(rho)
    return Scores(
      linear=linear.mean(axis=0),
      coefficients=rho.reshape((-1, rho.shape[-1])),
      error=linear.std(axis=0) / np.sqrt(len(linear)),
      examples=len(linear),
    )

  def fit(key, net, moves, thetas, data, state):
    table = lay_out(net, moves, thetas)
    padded = _padded(net, table)
    count = min(batch, len(data.targets))
    learn = _learner(
      padded.net.spec,
      loss,
      factor,
      draws,
      table.mass,
      steps,
      count,
      relative,
      learning_rate,
    )
    learned, means = jax.device_get(
      learn(padded.net.variables, padded.directions, data, key)
    )
    found = _assign(net, padded.net.spec, moves, learned, means)
    whole = len(data.targets) // count * count
    return Learned(found, state, whole + count * steps)

  return Estimator(lambda net: (), score, fit)


def _pick(columns, members, parts: np.ndarray) -> np.ndarray:
  """Sums each move's columns out of the padded ones."""
  parts = parts[..., columns].astype(np.float64)
  if all(len(m) == 1 for m in members):
    return parts[..., [m[0] for m in members]]
  return np.stack([parts[..., list(m)].sum(axis=-1) for m in members], -1)


def _assign(net, padded_spec, moves, learned, means) -> list[Any]:
  """Directions and means over all channels, cut to each move's theta."""
  spec, table = net.spec, groups.table(net.spec)
  padded = groups.table(padded_spec).axes

  def unpadded(name):
    axis, wide = table.axes[name], padded[name]
    alive = {
      g: np.arange(capacity) < size
      for g, size, capacity in zip(axis.groups, axis.sizes, wide.sizes)
    }
    return np.flatnonzero(wide.spread(alive, 'ones'))

  cut = {}
  for writer, d in learned.items():
    rows = unpadded(spec.by_name[writer].inputs[0])
    cut[writer] = d.take(rows, axis=-2).take(unpadded(writer), axis=-1)
  centre = {s: mean[unpadded(s)] for s, mean in means.items()}
  means = {r: centre[spec.by_name[r].inputs[0]] for r in sites(spec).readers}
  spread = width.Spread(cut, means)
  return [width.gather(net, move, spread) for move in moves]


@functools.lru_cache(maxsize=256)
def _learner(
  spec, loss, factor, draws, mass, steps, batch, relative, learning_rate
):
  """The compiled `fit`: scales, then learns, all directions of a network."""
  schedule = optax.cosine_decay_schedule(learning_rate, max(steps, 1))
  adam = optax.scale_by_adam()

  def scaled(variables, directions, values):
    linear = deltas(spec, variables, directions)

    def one(name, d):
      node = spec.by_name[name]
      change = linear(node, values[node.inputs[0]])
      spatial = tuple(range(change.ndim - 1))
      ratio = values[name].std(axis=spatial) / (
        change.std(axis=spatial) + 1e-12
      )
      return d * (relative * ratio)[(None,) * (d.ndim - 1)]

    return {name: one(name, d) for name, d in directions.items()}

  def estimate(directions, variables, found):
    parts = split_parts(spec, variables, found, directions, mass)
    curvature = jnp.square(parts.coefficients).mean(axis=(0, 1))
    return (parts.linear.mean(axis=0) + curvature / 2).sum()

  def started(directions, key):
    """Random directions wherever none are given."""

    def one(name, d):
      given = jnp.abs(d).sum(axis=tuple(range(d.ndim - 1)), keepdims=True) > 0
      own = network.named_key(key, name)
      return jnp.where(given, d, jax.random.normal(own, d.shape, d.dtype))

    return {name: one(name, d) for name, d in directions.items()}

  @jax.jit
  def learn(variables, directions, data, key):
    directions = started(directions, key)
    find = functools.partial(
      adjoints, spec, variables, loss=loss, factor=factor, draws=draws
    )
    call = network.caller(spec, variables)
    values = network.walk(spec, call, data.inputs[:batch])
    directions = scaled(variables, directions, values)

    def centres(inputs):
      values = network.walk(spec, call, inputs)
      return {
        s: values[s].mean(axis=tuple(range(values[s].ndim - 1)))
        for s in sites(spec).sources
      }

    whole = data.inputs.shape[0] // batch
    batches = data.inputs[: whole * batch].reshape(
      (whole, batch, *data.inputs.shape[1:])
    )
    means = jax.tree.map(
      lambda mean: mean.mean(axis=0), jax.lax.map(centres, batches)
    )

    def step(carry, i):
      directions, state = carry
      rows_key, own = jax.random.split(jax.random.fold_in(key, i))
      rows = jax.random.choice(rows_key, data.targets.shape[0], (batch,))
      found = find(data.inputs[rows], data.targets[rows], own)
      grads = jax.grad(estimate)(directions, variables, found)
      updates, state = adam.update(grads, state)

      def moved(d, u):
        size = jnp.sqrt(
          jnp.square(d).mean(axis=tuple(range(d.ndim - 1)), keepdims=True)
        )
        return d - schedule(i) * size * u

      return (jax.tree.map(moved, directions, updates), state), None

    carry = (directions, adam.init(directions))
    if steps:
      carry, _ = jax.lax.scan(step, carry, jnp.arange(steps))
    return carry[0], means

  return learn
