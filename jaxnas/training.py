"""Fitting and measuring networks: whole epochs as one compiled program.

Every network is padded to buckets before it meets a compiled program, and
cropped after, so a network that grows inside its buckets compiles nothing new.
Authors of algorithms see neither.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import groups, morphisms, network
from jaxnas.base import Data, Key, Task
from jaxnas.morphisms import Morphism
from jaxnas.spec import Spec


def bucket(width: int) -> int:
  """The capacity a width is stored at: 4, 8, 16, 32, 48, 64, 96, 128, ...

  Less than twice the width from 3 on; a search's programs grow with the
  logarithm of its widths. Which ladder: growth of six convolutions from 8 to
  64 channels, a tenth at a time, meets 9.5 structures (mean of 30 draws) and
  does 1.32 times the operations of exact widths. With 24 on the ladder it is
  12.0 and 1.26, with all multiples of 8 15.1 and 1.15, with powers of two
  alone 6.9 and 1.57.

  Example:
    >>> [bucket(n) for n in (3, 5, 9, 17, 33, 49, 65)]
    [4, 8, 16, 32, 48, 64, 96]
  """
  power = 4
  while True:
    if width <= power:
      return power
    if power >= 32 and width <= power * 3 // 2:
      return power * 3 // 2
    power *= 2


@functools.lru_cache(maxsize=1024)
def padding(spec: Spec) -> Morphism:
  """The move that pads every group of free width to its bucket.

  A network that is padded already keeps its capacities.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> padding(seeds.mlp((4,), (9,), 3))
    Pad(capacities=(('dense1', 16),))
  """
  if spec.padded:
    return morphisms.identity()
  buckets = {g.name: bucket(g.size) for g in groups.growable(spec)}
  return morphisms.pad(buckets) if buckets else morphisms.identity()


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

  Data stay on the device; an epoch is one compiled program, shared by all
  networks of the same buckets, and the only one that a fit compiles: the
  optimizer's fresh state is made in it. Each epoch is a fresh permutation, of
  which an incomplete last batch is left out.

  Args:
    key: draws the order, augmentation and dropout.
    net: a network; it comes back unpadded.
    task: gives data, loss, preparation and augmentation.
    tx: the optimizer.
    epochs: passes over the training split; of the last, a fraction q is the
      first int(q * batches) batches.
    batch: examples in a step; all of them if there are fewer.
    opt_state: the optimizer's state; None for a fresh one, which no epochs
      leave None.

  Raises:
    ValueError: for a batch below one, and for an optimizer whose state cannot
      follow a network (`jaxnas.morphisms.carry_state`).

  Returns:
    A `Fit` with NumPy leaves. Losses that are not finite are returned as they
    are; what follows is the caller's decision.

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
  if batch < 1 or epochs < 0:
    raise ValueError(
      f'fit: batch must be at least 1 and epochs at least 0, got batch={batch}'
      f' and epochs={epochs}.'
    )
  batch = min(batch, len(task.train.targets))
  move = padding(net.spec)
  start = network.to_host(net)
  fresh = opt_state is None
  if fresh:
    padded = move(start, ())
    state = blank(tx, padded.variables['params'])
    # Refuses, before anything is trained, what could not follow a move.
    morphisms.carry_state(morphisms.identity(), padded.spec, state)
  else:
    padded, state = morphisms.morph(
      move, start, theta=(), opt_state=network.to_host(opt_state)
    )
  batches = len(task.train.targets) // batch
  counts = _counts(epochs, batches)
  if not counts:
    return Fit(start, None if fresh else network.to_host(opt_state), (), 0, 0)
  epoch = _epoch(padded.spec, tx, task.loss, task.prepare, task.augment, batch)
  variables, state = jax.device_put((padded.variables, state))
  losses = []
  for i, count in enumerate(counts):
    variables, state, loss = epoch(
      *(variables, state, np.bool_(fresh and not i)),
      *(task.train, key, np.int32(i), np.int32(count)),
    )
    losses.append(loss)
  padded = network.to_host(network.Network(variables, padded.spec))
  net, state = morphisms.morph(
    morphisms.uncapped(padded),
    padded,
    theta=(),
    opt_state=network.to_host(state),
  )
  steps = sum(counts)
  return Fit(net, state, tuple(map(float, losses)), steps, steps * batch)


def _counts(epochs: float, batches: int) -> list[int]:
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


@functools.lru_cache(maxsize=256)
def _epoch(spec, tx, loss, prepare, augment, batch):
  """The compiled epoch of one structure, optimizer and task."""
  # With XLA's own options. Six convolutions with batch norm on digits compile
  # in 2.5 s on two cores; `xla_backend_optimization_level=0` halves that and
  # makes epochs 2.5 to 3.4 times as long. Levels 1 and 2,
  # `xla_llvm_disable_expensive_passes`, `xla_cpu_parallel_codegen_split_count`
  # and the CPU's fast-compile preset save nothing beyond the noise.
  module = spec.module()

  def step(i, carry):
    params, held, state, data, key, order, total = carry
    rows = jax.lax.dynamic_index_in_dim(order, i, keepdims=False)
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, i))
    inputs = augment(augment_key, prepare(data.inputs[rows]))
    gradient = jax.value_and_grad(
      functools.partial(objective, module, loss), has_aux=True
    )
    (value, changed), grads = gradient(
      params, held, inputs, data.targets[rows], dropout_key
    )
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    held = {**held, **changed}
    return params, held, state, data, key, order, total + value

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def epoch(variables, state, fresh, data: Data, key, number, count):
    key = jax.random.fold_in(key, number)
    params = variables['params']
    state = jax.lax.cond(fresh, lambda: tx.init(params), lambda: state)
    order_key, step_key = jax.random.split(key)
    steps = data.targets.shape[0] // batch
    order = jax.random.permutation(order_key, data.targets.shape[0])
    rows = order[: steps * batch].reshape((steps, batch))
    held = {c: tree for c, tree in variables.items() if c != 'params'}
    carry = (params, held, state, data, step_key, rows, jnp.zeros(()))
    # The number of steps is data, so parts of epochs are the same program.
    carry = jax.lax.fori_loop(0, count, step, carry)
    params, held, state, *_, total = carry
    return {**held, 'params': params}, state, total / count

  return epoch


class Measured(NamedTuple):
  """Mean loss (nats) and metric over a split, in evaluation mode."""

  loss: float
  metric: float
  examples: int


def evaluate(
  net: network.Network, task: Task, data: Data, *, batch: int = 256
) -> Measured:
  """Measures a network on every example of a split.

  The program that is compiled is shared by all networks of the same buckets
  and by all splits of the task, whatever their size: it takes a fixed number
  of examples, of which it reads as many batches as hold any of the split.

  Args:
    net: a network.
    task: gives loss, metric and preparation.
    data: the split, such as `task.valid`.
    batch: examples at a time; those of the largest split if that has fewer.

  Returns:
    A `Measured`.

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
  splits = (task.train, task.valid, task.test, data)
  most = max(len(split.targets) for split in splits)
  batch = min(batch, most)
  room = batch * min(-(-most // batch), _BATCHES)
  padded = padding(net.spec)(network.to_host(net), ())
  measure = _measure(padded.spec, task.loss, task.metric, task.prepare, batch)
  variables = jax.device_put(padded.variables)
  # On the host: to slice arrays on the device compiles for each split.
  inputs, targets = map(np.asarray, data)
  count = len(targets)
  sums = []
  for start in range(0, count, room):
    rows = np.minimum(np.arange(start, start + room), count - 1)
    part = Data(inputs[rows], targets[rows])
    sums.append(measure(variables, part, np.int32(min(room, count - start))))
  total = np.sum(jax.device_get(sums), axis=0, dtype=float)
  return Measured(*map(float, total / count), count)


# The most batches that `evaluate` hands to the device at a time. They are run
# in a loop there: a program for each batch takes 1.7 times as long on CPU,
# where it gets the memory for its intermediate values anew each time.
_BATCHES = 16


@functools.lru_cache(maxsize=256)
def _measure(spec, loss, metric, prepare, batch):
  """The compiled sums of loss and metric over the first `count` examples."""
  module = spec.module()

  @jax.jit
  def measure(variables, data: Data, count):
    def one(i, total):
      inputs, targets = (
        jax.lax.dynamic_slice_in_dim(x, i * batch, batch) for x in data
      )
      outputs = module.apply(variables, prepare(inputs))
      values = jnp.stack([loss(outputs, targets), metric(outputs, targets)])
      inside = i * batch + jnp.arange(batch) < count
      return total + jnp.where(inside[None], values, 0.0).sum(axis=1)

    batches = (count + batch - 1) // batch
    return jax.lax.fori_loop(0, batches, one, jnp.zeros(2))

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
