"""Fitting and measuring networks: whole epochs as one compiled program.

Every network is padded to buckets before it meets a compiled program, and
cropped after, so a network that grows inside its buckets compiles nothing new.
Authors of algorithms see neither.
"""

import functools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from jaxnas import (
  forms,
  layers,
  morphisms,
  network,
  packing,
  plans,
  programs,
)
from jaxnas import mesh as meshes
from jaxnas.base import Data, Key, Task
from jaxnas.spec import Spec


class Fit(NamedTuple):
  """A fitted network, its optimizer state and its mean loss in each epoch."""

  net: network.Network
  opt_state: Any
  losses: tuple[float, ...]
  steps: int
  examples: int


def fit(
  key: Key,
  net: network.Network,
  task: Task,
  tx: optax.GradientTransformation,
  *,
  epochs: float,
  batch: int,
  opt_state: Any = None,
) -> Fit:
  """Trains a network for epochs over `task.train`, the last perhaps in part.

  It is `fit_all` of one network; see there.

  Example:
    >>> import jax, optax
    >>> from jaxnas import tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> spec = seeds.chain(task.shape, (4,), task.outputs)
    >>> net = network.init(spec, jax.random.key(0))
    >>> fitted = fit(jax.random.key(1), net, task, optax.adam(1e-2),
    ...              epochs=2, batch=128)
    >>> fitted.losses[1] < fitted.losses[0]
    True
  """
  (fitted,) = fit_all(
    *([key], [net], task, tx),
    epochs=epochs,
    batch=batch,
    opt_states=[opt_state],
  )
  return fitted


def fit_all(
  keys: Sequence[Key],
  nets: Sequence[network.Network],
  task: Task,
  tx: optax.GradientTransformation,
  *,
  epochs: float,
  batch: int,
  opt_states: Sequence[Any] | None = None,
  plan: plans.Plan | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> list[Fit]:
  """Trains many networks, each for epochs over `task.train`.

  Data stay on the devices; an epoch of all members of a batch (see
  `plans.strategy`) is one compiled program, shared by all networks of the same
  buckets; the optimizer's fresh state is made in it. Beside it a fit compiles
  only the program that draws the order of examples, which all networks share.
  Each epoch is a fresh permutation, of which an incomplete last batch is left
  out. What becomes of a member depends on its own key, network and state, and
  not on who is trained beside it.

  Hyper-parameters that are data, such as those of `optax.inject_hyperparams`,
  may differ from member to member (`optax.tree.set(state, learning_rate=...)`)
  and share the program.

  Args:
    keys: for each member, draws the order, augmentation and dropout.
    nets: networks, of any architectures; each comes back as it was stored,
      padded or not.
    task: gives data, loss, preparation and augmentation.
    tx: the optimizer.
    epochs: passes over the training split; of the last, a fraction q is the
      first int(q * batches) batches.
    batch: examples in a step; all of them if there are fewer.
    opt_states: the optimizer's states; None, for all or in the place of one,
      for a fresh one, which no epochs leave None.
    plan: says which members are trained together and how; None for
      `plans.strategy`.
    mesh: the devices; None for `jaxnas.mesh.current()`: all there are, unless
      the caller chose others.

  Raises:
    ValueError: for a batch below one, one that the mesh's `data` axis does
      not divide, other numbers of keys or states than of networks, and an
      optimizer whose state cannot follow a network
      (`jaxnas.morphisms.carry_state`).

  Returns:
    A `Fit` with NumPy leaves for each network. Losses that are not finite are
    returned as they are; what follows is the caller's decision.

  Example:
    >>> import jax, optax
    >>> from jaxnas import tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> nets = [network.init(seeds.mlp(task.shape, (n,), 10), keys[0])
    ...         for n in (5, 8)]
    >>> fits = fit_all(keys, nets, task, optax.sgd(0.1), epochs=1, batch=128)
    >>> [f.net.spec == net.spec for f, net in zip(fits, nets)]
    [True, True]
  """
  mesh = meshes.current() if mesh is None else mesh
  opt_states = [None] * len(nets) if opt_states is None else opt_states
  batch = min(batch, len(task.train.targets))
  _check_counts(len(keys), len(nets), len(opt_states), epochs, batch, mesh)
  steps = len(task.train.targets) // batch
  starts = [network.to_host(net) for net in nets]
  states = [network.to_host(state) for state in opt_states]
  for start, state in zip(starts, states):
    # Refuses, before anything is trained, what could not follow a move.
    if state is None:
      state = blank(tx, start.variables['params'])
      morphisms.carry_state(morphisms.identity(), start.spec, state)
  lengths = _lengths(epochs, steps)
  if not lengths:
    return [Fit(net, state, (), 0, 0) for net, state in zip(starts, states)]
  fits: dict[int, Fit] = {}
  planned = _groups(
    *(plan, starts, mesh, batch), passes=3 * sum(lengths) * batch
  )

  def begun(i, group):
    return _begin(keys[i], starts[i], states[i], tx, group.spec)

  data = meshes.replicate(task.train, mesh)
  calls = (
    _training(
      *(group, begun(group.members[0], group), keys, task, tx, batch),
      *(data, mesh),
    )
    for group in planned
  )
  for group, train in zip(planned, programs.ahead(calls)):
    shuffle = _shuffle(
      *(_impl(keys, group), len(task.train.targets), batch, group.over, mesh)
    )
    members = [begun(i, group) for i in group.members]
    trained = _run_epochs(shuffle, train, members, data, lengths, group, mesh)
    for i, (variables, state, losses) in zip(group.members, trained):
      net, state = network.Network(variables, group.spec), state
      net, state = _stored(net, state, starts[i].spec)
      count = sum(lengths)
      fits[i] = Fit(net, state, losses, count, count * batch)
  return [fits[i] for i in range(len(nets))]


def _training(group, begun, keys, task, tx, batch, data, mesh):
  """The program that trains members, and arguments like those it will have."""
  carry, (raw, fresh) = begun
  train = _epoch(
    *(group.spec, tx, task.loss, task.prepare, task.augment, batch),
    *(_impl(keys, group), packing.layout(carry), group.over, mesh),
  )
  steps = len(task.train.targets) // batch
  rows = jax.ShapeDtypeStruct((steps, batch), np.int32)
  member = packing.pack(carry), (rows, raw, fresh)
  shapes = plans.shapes(member, group, mesh)
  return train, (*shapes, data, np.int32(0), np.int32(0))


def calls(
  nets: Sequence[network.Network],
  task: Task,
  tx: optax.GradientTransformation,
  *,
  batch: int,
  epochs: float = 1,
  plan: plans.Plan | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Iterator[tuple[Callable[..., Any], tuple[Any, ...]]]:
  """The programs that will train and measure networks, for `compile_all`.

  With `jaxnas.programs.compile_all` all of them are compiled before they are
  needed, side by side; `fit_all` and `evaluate_all` compile those of a call
  only, each when it is its turn.

  Args:
    nets: one of each architecture to come; their weights do not matter. For as
      many members at a time as small networks of one structure share a program
      at least, eight; more than that have another.
    task: as of `fit_all`, as are `tx`, `batch`, `epochs`, `plan` and `mesh`.

  Yields:
    Jitted functions, each with the shapes of what it will be called with; that
    which takes longest to compile first.

  Example:
    >>> import jax, optax
    >>> from jaxnas import count_compilations, programs, tasks
    >>> from jaxnas.spaces import seeds
    >>> task, tx = tasks.digits(), optax.sgd(0.1)
    >>> spec = seeds.mlp(task.shape, (5,), 10)
    >>> net = network.init(spec, jax.random.key(0))
    >>> programs.compile_all(calls([net], task, tx, batch=128))
    >>> with count_compilations() as compiled:
    ...   net = fit(jax.random.key(0), net, task, tx, epochs=1, batch=128).net
    ...   _ = evaluate(net, task, task.valid)
    >>> len(compiled)
    0
  """
  if not nets:
    return
  mesh = meshes.current() if mesh is None else mesh
  batch = min(batch, len(task.train.targets))
  count = len(nets)
  _check_counts(count, count, count, epochs, batch, mesh)
  starts = [network.to_host(net) for net in nets]
  key = jax.random.key(0)
  keys = [key] * count
  passes = 3 * round(epochs * len(task.train.targets))
  data = meshes.replicate(task.train, mesh)
  for group in _groups(plan, starts, mesh, batch, passes):
    begun = _begin(key, starts[group.members[0]], None, tx, group.spec)
    yield _training(group, begun, keys, task, tx, batch, data, mesh)
    impl = _impl(keys, group)
    examples = len(task.train.targets)
    shuffle = _shuffle(impl, examples, batch, group.over, mesh)
    raw = np.asarray(jax.random.key_data(key))
    _, raw, counts = plans.shapes(((), raw), group, mesh)
    yield shuffle, (raw, counts, np.int32(0))
  room, most = _measuring_batch(task, task.valid, _MEASURED, mesh)
  part = next(_parts(task.valid, most))
  for group in _groups(plan, starts, mesh, room, len(task.valid.targets)):
    yield _measuring(group, starts[group.members[0]], task, room, part, mesh)


def _impl(keys, group) -> str:
  """The name of the generator of the members' keys."""
  return str(jax.random.key_impl(keys[group.members[0]]))


def _groups(plan, nets, mesh, batch, passes) -> Sequence[plans.Batch]:
  """What the plan makes of networks, each of them once."""
  specs = [net.spec for net in nets]
  found = (plan or plans.strategy)(
    specs, devices=mesh.shape[meshes.POPULATION], batch=batch, passes=passes
  )
  planned = sorted(i for group in found for i in group.members)
  if planned != list(range(len(nets))):
    raise ValueError(
      f'a plan for {len(nets)} members must have each of them once, got '
      f'{planned}.'
    )
  return found


def _check_counts(keys, nets, states, epochs, batch, mesh) -> None:
  if batch < 1 or epochs < 0:
    raise ValueError(
      f'fit: batch must be at least 1 and epochs at least 0, got batch={batch}'
      f' and epochs={epochs}.'
    )
  if not keys == nets == states:
    raise ValueError(
      f'fit_all: {nets} networks need as many keys and optimizer states (or '
      f'None for all), got {keys} and {states}.'
    )
  _check_divides(batch, mesh)


def _check_divides(batch: int, mesh: jax.sharding.Mesh) -> None:
  over = mesh.shape[meshes.DATA]
  if batch % over:
    raise ValueError(
      f'the mesh spreads the examples of a step over {over} devices, which '
      f'does not divide batch={batch}; give a multiple of {over}, or a mesh '
      'with a smaller data axis (jaxnas.mesh.make).'
    )


def _begin(key, net, state, tx, spec) -> tuple[Any, Any]:
  """What an epoch changes of a member and what it reads, stored as in `spec`.

  The first are variables and state; the second key data, and whether the
  state is yet to be made.
  """
  fresh = state is None
  padded, state = _stored(net, state, spec)
  if fresh:
    state = blank(tx, padded.variables['params'])
  raw = np.asarray(jax.random.key_data(key))
  return (padded.variables, state), (raw, np.bool_(fresh))


def _stored(net, state, spec) -> tuple[network.Network, Any]:
  """The network and its state as in a spec: padded or not, whole or not."""
  if net.spec == spec:
    return net, state
  net, state = _end(net, state)
  moves = [plans.capacity(net.spec, spec)] if spec.padded else []
  moves += [morphisms.embed(spec)] if spec.optional else []
  for move in moves:
    net, state = morphisms.morph(move, net, theta=(), opt_state=state)
  return net, state


def _end(net, state) -> tuple[network.Network, Any]:
  """The network and its state without padding and what is absent."""
  for move in (morphisms.extract, morphisms.uncapped):
    net, state = morphisms.morph(move(net), net, theta=(), opt_state=state)
  return net, state


def _run_epochs(shuffle, train, members, data, lengths, group, mesh):
  """(variables, state, losses) of each member after the epochs."""
  where, counts = plans.places(group, mesh)
  layout = packing.layout(members[0][0])
  packed = [(packing.pack(carry), read) for carry, read in members]
  stacked = (*plans.stack(packed, where), counts)
  carry, (raw, fresh), counts = meshes.spread(stacked, mesh)
  losses = []
  for number, length in enumerate(map(np.int32, lengths)):
    drawn = shuffle(raw, counts, np.int32(number))
    read = (*drawn, fresh)
    carry, loss = train(carry, read, counts, data, np.int32(number), length)
    losses.append(loss)
  carry, losses = meshes.fetch((carry, losses))
  for place in plans.firsts(where):
    own = jax.tree.map(operator.itemgetter(place), (carry, losses))
    variables, state = packing.unpack(layout, jax.tree.map(np.array, own[0]))
    yield variables, state, tuple(map(float, own[1]))


def _lengths(epochs: float, batches: int) -> list[int]:
  """The number of batches in each epoch; none of them zero."""
  whole = int(epochs)
  # A rounding error must not cost a batch: 0.29 of 100 is 28.999...
  rest = int((epochs - whole) * batches + 1e-9)
  return [batches] * whole + [rest] * (rest > 0)


def blank(tx: optax.GradientTransformation, params: Any) -> Any:
  """Zeros in the place of an optimizer's state, on the host.

  Compiles nothing; it is the fresh state only of optimizers whose states start
  at zero, such as Adam.

  Example:
    >>> blank(optax.sgd(0.1, momentum=0.9), {'w': np.ones(2)})[0].trace
    {'w': array([0., 0.], dtype=float32)}
  """
  shapes = jax.eval_shape(tx.init, params)
  return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def objective(module, loss, params, held, inputs, targets, key):
  """Mean loss in training mode, and the changed collections."""
  outputs, changed = module.apply(
    {**held, 'params': params},
    inputs,
    train=True,
    mutable=['batch_stats'],
    rngs={'dropout': key},
  )
  return loss(outputs, targets).mean(), changed


def _over_data(mesh):
  """Spreads the examples of a step over the `data` axis."""
  if mesh.shape[meshes.DATA] == 1:
    return lambda tree: tree
  return lambda tree: jax.lax.with_sharding_constraint(
    tree, PartitionSpec(meshes.DATA)
  )


def _conv(mesh) -> str:
  """The form of convolutions of whole batches in programs on a mesh."""
  if layers.conv_form() == 'native' or mesh.shape[meshes.DATA] > 1:
    return 'auto'  # A loop over images would undo their spreading over `data`.
  return 'images'


def _images(spec: Spec, batch: int, mesh) -> int:
  """How many examples of a step a network is differentiated on at a time.

  Where convolutions are matrix products of patches, and examples do not see
  each other (no batch statistics), a few at a time pass through the whole
  network in cache. Every device of the `data` axis has as many of them.
  """
  native = layers.conv_form() == 'native'
  if native or 'batch_stats' in network.shapes(spec).variables:
    return batch
  few = layers.cached(batch, layers.patches(spec))
  if few == batch:
    return batch
  return layers.divisor(batch // mesh.shape[meshes.DATA], few)


def _by_data(added, mesh):
  """`added(shared, xs)`, a sum over `xs`, by all devices of the `data` axis."""
  if mesh.shape[meshes.DATA] == 1:
    return added
  return jax.shard_map(
    lambda shared, xs: jax.lax.psum(added(shared, xs), meshes.DATA),
    in_specs=(PartitionSpec(), PartitionSpec(meshes.DATA)),
    out_specs=PartitionSpec(),
    axis_names={meshes.DATA},
    check_vma=False,
  )


def _gradient(module, loss, few: int, mesh):
  """Gradient of `objective`, as a sum over `few` examples at a time."""
  gradient = jax.value_and_grad(
    functools.partial(objective, module, loss), has_aux=True
  )

  def summed(params, held, inputs, targets, key):
    count = len(inputs) // few
    if count == 1:
      return gradient(params, held, inputs, targets, key)

    def part(shared, xs):
      params, held, key = shared
      inputs, targets, i = xs
      own = jax.random.fold_in(key, i)
      (value, _), grads = gradient(params, held, inputs, targets, own)
      return value, grads

    def added(shared, xs):
      first = jax.tree.map(lambda leaf: leaf[0], xs)
      total, _ = jax.lax.scan(
        lambda total, xs: (
          jax.tree.map(jnp.add, total, part(shared, xs)),
          None,
        ),
        optax.tree.zeros_like(jax.eval_shape(part, shared, first)),
        xs,
      )
      return total

    parts = jax.tree.map(
      lambda leaf: leaf.reshape((count, few, *leaf.shape[1:])),
      (inputs, targets),
    )
    total = _by_data(added, mesh)(
      (params, held, key), (*parts, jnp.arange(count))
    )
    value, grads = jax.tree.map(lambda leaf: leaf / count, total)
    return (value, {}), grads

  return summed


@programs.kept
def _shuffle(impl, count, batch, over, mesh):
  """The compiled order of the examples in an epoch, of all members.

  Not a part of `_epoch`, of which there is one for each structure.
  """
  steps = count // batch

  def one(carry, raw, number):
    key = jax.random.wrap_key_data(raw, impl=impl)
    order_key, step_key = jax.random.split(jax.random.fold_in(key, number))
    order = jax.random.permutation(order_key, count)
    rows = order[: steps * batch].reshape((steps, batch))
    return carry, (rows, jax.random.key_data(step_key))

  each = forms.on_mesh(over(one), mesh)

  @functools.partial(jax.jit, compiler_options=forms.compiler_options(mesh))
  def shuffle(raw, counts, number):
    return each((), raw, counts, number)[1]

  return shuffle


@programs.kept
def _epoch(spec, tx, loss, prepare, augment, batch, impl, layout, over, mesh):
  """The compiled epoch of all members of one structure, optimizer and task."""
  few, spread = _images(spec, batch, mesh), _over_data(mesh)
  module = spec.module('images' if few < batch else _conv(mesh))
  gradient = _gradient(module, loss, few, mesh)

  def step(i, carry):
    params, held, state, data, key, order, total = carry
    rows = jax.lax.dynamic_index_in_dim(order, i, keepdims=False)
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, i))
    rows = spread(rows)
    inputs = augment(augment_key, prepare(data.inputs[rows]))
    (value, changed), grads = gradient(
      params, held, spread(inputs), data.targets[rows], dropout_key
    )
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    held = {**held, **changed}
    return params, held, state, data, key, order, total + value

  def one(carry, read, shared):
    (rows, raw, fresh), (data, number, length) = read, shared
    variables, state = packing.unpack(layout, carry)
    key = jax.random.wrap_key_data(raw, impl=impl)
    params = variables['params']
    state = jax.lax.cond(
      fresh & (number == 0), lambda: tx.init(params), lambda: state
    )
    held = {c: tree for c, tree in variables.items() if c != 'params'}
    start = (params, held, state, data, key, rows, jnp.zeros(()))
    # The number of steps is data, so parts of epochs are the same program.
    end = jax.lax.fori_loop(0, length, step, start)
    params, held, state, *_, total = end
    after = ({**held, 'params': params}, state)
    return packing.pack(after, jnp.concatenate), total / length

  each = forms.on_mesh(over(one), mesh)

  @functools.partial(
    jax.jit, donate_argnums=0, compiler_options=forms.compiler_options(mesh)
  )
  def epoch(carry, read, counts, data: Data, number, length):
    return each(carry, read, counts, (data, number, length))

  return epoch


# Examples that are measured at a time.
_MEASURED = 256


class Measured(NamedTuple):
  """Mean loss (nats) and metric over a split, in evaluation mode."""

  loss: float
  metric: float
  examples: int


def evaluate(
  net: network.Network, task: Task, data: Data, *, batch: int = _MEASURED
) -> Measured:
  """Measures a network on every example of a split.

  It is `evaluate_all` of one network; see there.

  Example:
    >>> import jax
    >>> from jaxnas import tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> spec = seeds.chain(task.shape, (4,), task.outputs)
    >>> net = network.init(spec, jax.random.key(0))
    >>> evaluate(net, task, task.test).examples == len(task.test.targets)
    True
  """
  (measured,) = evaluate_all([net], task, data, batch=batch)
  return measured


def evaluate_all(
  nets: Sequence[network.Network],
  task: Task,
  data: Data,
  *,
  batch: int = _MEASURED,
  plan: plans.Plan | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> list[Measured]:
  """Measures networks, each on every example of a split.

  The program that is compiled is shared by all networks of the same buckets
  and by all splits of the task, whatever their size: it takes a fixed number
  of examples, of which it reads as many batches as hold any of the split.

  Args:
    nets: networks, of any architectures.
    task: gives loss, metric and preparation.
    data: the split, such as `task.valid`.
    batch: examples at a time; those of the largest split if that has fewer.
      Rounded up to what the mesh's `data` axis divides.
    plan: as of `fit_all`.
    mesh: as of `fit_all`.

  Returns:
    A `Measured` for each network.

  Example:
    >>> import jax
    >>> from jaxnas import tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> nets = [network.init(seeds.mlp(task.shape, (n,), 10), jax.random.key(0))
    ...         for n in (5, 8)]
    >>> len(evaluate_all(nets, task, task.valid))
    2
  """
  mesh = meshes.current() if mesh is None else mesh
  batch, room = _measuring_batch(task, data, batch, mesh)
  parts = list(_parts(data, room))
  starts = [network.to_host(net) for net in nets]
  count = len(data.targets)
  found: dict[int, Measured] = {}
  planned = _groups(plan, starts, mesh, batch, passes=count)
  calls = (
    _measuring(group, starts[group.members[0]], task, batch, parts[0], mesh)
    for group in planned
  )
  for group, measure in zip(planned, programs.ahead(calls)):
    where, counts = plans.places(group, mesh)
    members = [
      packing.pack(_stored(starts[i], None, group.spec)[0].variables)
      for i in group.members
    ]
    packed, counts = meshes.spread((plans.stack(members, where), counts), mesh)
    sums = [measure(packed, counts, *part) for part in parts]
    total = np.sum(meshes.fetch(sums), axis=0, dtype=float)
    for i, place in zip(group.members, plans.firsts(where)):
      found[i] = Measured(*map(float, total[place] / count), count)
  return [found[i] for i in range(len(nets))]


def _measuring_batch(task, data, batch, mesh) -> tuple[int, int]:
  """Examples at a time, and how many of them a program is given."""
  splits = (task.train, task.valid, task.test, data)
  most = max(len(split.targets) for split in splits)
  batch = min(batch, most)
  batch += -batch % mesh.shape[meshes.DATA]
  return batch, batch * min(-(-most // batch), _BATCHES)


def _measuring(group, net, task, batch, part, mesh):
  """The program that measures members, and arguments as it will have."""
  variables = _stored(net, None, group.spec)[0].variables
  measure = _measure(
    *(group.spec, task.loss, task.metric, task.prepare, batch),
    *(packing.layout(variables), group.over, mesh),
  )
  shapes = plans.shapes((packing.pack(variables),), group, mesh)
  return measure, (*shapes, *part)


def _parts(data: Data, room: int):
  """A split as parts of `room` examples, and how many of each are its own."""
  # On the host: to slice arrays on the device compiles for each split.
  inputs, targets = map(np.asarray, data)
  count = len(targets)
  for start in range(0, count, room):
    rows = np.minimum(np.arange(start, start + room), count - 1)
    yield Data(inputs[rows], targets[rows]), np.int32(min(room, count - start))


# The most batches that `evaluate` hands to the device at a time. They are run
# in a loop there: a program for each batch takes 1.7 times as long on CPU,
# where it gets the memory for its intermediate values anew each time.
_BATCHES = 16


@programs.kept
def _measure(spec, loss, metric, prepare, batch, layout, over, mesh):
  """The compiled sums of loss and metric over the first `count` examples."""
  module, spread = spec.module(_conv(mesh)), _over_data(mesh)

  def one(carry, packed, shared):
    variables, (data, count) = packing.unpack(layout, packed), shared

    def add(i, total):
      inputs, targets = (
        spread(jax.lax.dynamic_slice_in_dim(x, i * batch, batch)) for x in data
      )
      outputs = module.apply(variables, prepare(inputs))
      values = jnp.stack([loss(outputs, targets), metric(outputs, targets)])
      inside = i * batch + jnp.arange(batch) < count
      return total + jnp.where(inside[None], values, 0.0).sum(axis=1)

    batches = (count + batch - 1) // batch
    return carry, jax.lax.fori_loop(0, batches, add, jnp.zeros(2))

  each = forms.on_mesh(over(one), mesh)

  @functools.partial(jax.jit, compiler_options=forms.compiler_options(mesh))
  def measure(packed, counts, data: Data, count):
    return each((), packed, counts, (data, count))[1]

  return measure


def draw(key: Key, task: Task, count: int, fold: int | None = None) -> Data:
  """Random training examples, prepared and augmented as in training.

  Args:
    key: draws the examples and the augmentation.
    task: the task.
    count: how many; all of them if there are fewer.
    fold: 0 or 1 for the even or the odd rows only, which are disjoint; None
      for all rows.

  Returns:
    `Data` of (count, *input shape) inputs, and targets.
  """
  size = len(task.train.targets)
  rows = (0, 1) if fold is None else (fold, 2)
  count = min(count, len(range(rows[0], size, rows[1])))
  return _draw(key, task.train, rows, count, task.prepare, task.augment)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _draw(key, data, fold, count, prepare, augment):
  rows_key, augment_key = jax.random.split(key)
  held = jnp.arange(fold[0], data.targets.shape[0], fold[1])
  rows = jax.random.choice(rows_key, held, (count,), replace=False)
  inputs = augment(augment_key, prepare(data.inputs[rows]))
  return Data(inputs, data.targets[rows])
