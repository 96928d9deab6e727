"""Trainers of genotypes: what answers an array search with real training.

Both give the same networks. `as_data` trains them as one compiled program for
the whole space, `unrolled` each as a network of its own, which runs fastest
and compiles for seconds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import forms, network, plans, programs, training
from jaxnas import mesh as meshes
from jaxnas.base import Data, Key, Task, Taught, Trainer, check_counts
from jaxnas.spaces.supernet import Supernet
from jaxnas.spec import Spec


class Pupil(NamedTuple):
  """A network between two rungs.

  Attributes:
    net: its variables or, unrolled, its `Network`.
    opt_state: the optimizer's state; None for a fresh one.
    best: the best that was measured so far.
  """

  net: Any
  opt_state: Any
  best: Any


def _begun(net: Any) -> Pupil:
  return Pupil(net, None, np.float32(-np.inf))


def as_data(
  net: Supernet,
  task: Task,
  tx: optax.GradientTransformation,
  *,
  epochs: int,
  batch: int,
  slots: int = 8,
  over: Callable[..., Any] | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Trainer:
  """Trains cells of a supernet, all of them by one compiled program.

  A rung is `epochs` passes over the training split, an incomplete last batch
  left out; after each the accuracy on the validation split is measured, and the
  best of all passes so far is the fitness, as in the official code of EcoNAS.
  The state is kept whole: rungs, one after another, are one training, so that
  the optimizer's schedule should be as long as all of them. (That code starts
  momentum anew at each rung.)

  A genotype's network has weights of its own, drawn by its key; those of a
  supernet that it does not use are there, idle.

  Args:
    net: the networks, such as `spaces.supernet.nas_bench_201(...)`.
    task: images with integer labels.
    tx: the optimizer.
    epochs: of a rung.
    batch: examples in a step; all of them if there are fewer.
    slots: networks that a device trains in one call; the program is compiled
      for their number.
    over: how they run, `forms.in_turn` or `forms.at_once`; None for what
      is fastest where it runs.
    mesh: the devices; None for `jaxnas.mesh.current()`.

  Returns:
    A trainer. Its state is a `Pupil` with the supernet's variables.

  Raises:
    ValueError: for a number below one.
  """
  check_counts('as_data', epochs=epochs, batch=batch, slots=slots)
  batch = min(batch, len(task.train.targets))
  steps = len(task.train.targets) // batch

  def fresh(key: Key) -> tuple[Any, Any]:
    variables = net.init(key)
    return variables, tx.init(variables['params'])

  def train(
    keys: Sequence[Key], genotypes: Any, states: Sequence[Pupil | None]
  ) -> list[Taught]:
    there = meshes.current() if mesh is None else mesh
    shapes = jax.eval_shape(fresh, keys[0])
    blank = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    members = []
    for key, genotype, state in zip(keys, genotypes, states, strict=True):
      state = state or _begun(None)
      given = state.net, state.opt_state
      begun = np.array([part is not None for part in given])
      own = [
        empty if part is None else part for empty, part in zip(blank, given)
      ]
      raw = np.asarray(jax.random.key_data(key))
      members.append(
        ((*own, state.best), (raw, np.asarray(genotype, np.int32), begun))
      )
    held = over or forms.form()
    program = _rung(
      *(net, task.loss, task.metric, task.prepare, task.augment, tx),
      *(batch, str(jax.random.key_impl(keys[0])), held, there),
    )
    shared = (task.train, task.valid, jnp.int32(epochs))
    shared = meshes.replicate(shared, there)
    room = slots * there.shape[meshes.POPULATION]
    found = []
    for start in range(0, len(members), room):
      part = members[start : start + room]
      group = plans.Batch(tuple(range(len(part))), None, held, slots)
      where, counts = plans.places(group, there)
      stacked = plans.stack(part, where)
      (carry, read), counts = meshes.spread((stacked, counts), there)
      ends = meshes.fetch(program(carry, read, counts, shared))
      for place in plans.firsts(where):
        own, loss = jax.tree.map(
          lambda leaf, at=place: np.array(leaf[at]), ends
        )
        fitness = float(own[2]) if np.isfinite(loss) else float('nan')
        found.append(Taught(Pupil(*own), fitness, epochs * steps * batch))
    return found

  inherit = programs.jit(net.heir)

  def heir(state: Pupil, mother: Any, child: Any) -> Pupil:
    return _begun(network.to_host(inherit(state.net, mother, child)))

  return Trainer(train, heir)


@programs.kept
def _rung(net, loss, metric, prepare, augment, tx, batch, impl, over, mesh):
  """The compiled rung of stacked members of a supernet."""

  def objective(params, stats, genotype, inputs, targets):
    variables = {'params': params, 'batch_stats': stats}
    out = net.apply(variables, genotype, inputs, train=True)
    return loss(out.logits, targets).mean(), out.batch_stats

  gradient = jax.value_and_grad(objective, has_aux=True)

  def measured(variables, genotype, valid: Data):
    count = len(valid.targets)
    room = min(256, count)

    def add(i, total):
      at = i * room + jnp.arange(room)
      rows = jnp.minimum(at, count - 1)
      out = net.apply(variables, genotype, prepare(valid.inputs[rows]))
      values = metric(out.logits, valid.targets[rows])
      return total + jnp.where(at < count, values, 0.0).sum()

    return jax.lax.fori_loop(0, -(-count // room), add, 0.0) / count

  def one(carry, read, shared):
    (variables, state, best), (raw, genotype, begun) = carry, read
    train, valid, epochs = shared
    key = jax.random.wrap_key_data(raw, impl=impl)
    of_init, of_epochs = jax.random.split(key)
    variables = jax.lax.cond(
      begun[0], lambda: variables, lambda: net.init(of_init)
    )
    state = jax.lax.cond(
      begun[1], lambda: state, lambda: tx.init(variables['params'])
    )
    count = len(train.targets)
    steps = count // batch

    def epoch(number, carry):
      variables, state, best, _ = carry
      own = jax.random.fold_in(of_epochs, number)
      of_order, of_steps = jax.random.split(own)
      order = jax.random.permutation(of_order, count)

      def step(i, carry):
        params, stats, state, total = carry
        rows = jax.lax.dynamic_slice_in_dim(order, i * batch, batch)
        inputs = augment(
          jax.random.fold_in(of_steps, i), prepare(train.inputs[rows])
        )
        (value, stats), grads = gradient(
          params, stats, genotype, inputs, train.targets[rows]
        )
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, total + value

      begin = variables['params'], variables['batch_stats'], state, 0.0
      end = jax.lax.fori_loop(0, steps, step, begin)
      params, stats, state, total = end
      variables = {'params': params, 'batch_stats': stats}
      reached = measured(variables, genotype, valid)
      return variables, state, jnp.maximum(best, reached), total / steps

    start = variables, state, best, jnp.zeros(())
    *carry, value = jax.lax.fori_loop(0, epochs, epoch, start)
    return tuple(carry), value

  each = forms.on_mesh(over(one), mesh)
  options = forms.compiler_options(mesh)
  return jax.jit(each, donate_argnums=0, compiler_options=options)


def unrolled(
  spec: Callable[[Any], Spec],
  task: Task,
  tx: optax.GradientTransformation,
  *,
  epochs: int,
  batch: int,
  mesh: jax.sharding.Mesh | None = None,
) -> Trainer:
  """Trains each genotype as an ordinary network of its own.

  As `as_data`, for every space that builds networks; those of one structure
  share a program, the others compile. A child of another genotype inherits
  what its network has under the same names and shapes.

  Args:
    spec: `spec(genotype) -> Spec`, such as `supernet.spec` or a partial of
      `spaces.cell_networks.darts`.
    task: as of `jaxnas.training.fit_all`.
    tx: the optimizer.
    epochs: of a rung.
    batch: examples in a step.
    mesh: the devices; None for `jaxnas.mesh.current()`.

  Returns:
    A trainer. Its state is a `Pupil` with a `Network`.

  Raises:
    ValueError: for a number below one.
  """
  check_counts('unrolled', epochs=epochs, batch=batch)

  def start(key: Key, genotype: Any, state: Pupil | None) -> Pupil:
    built = spec(np.asarray(genotype))
    if state is not None and state.net.spec == built:
      return state
    net = network.to_host(network.init(built, key))
    if state is not None:
      net = net.replace(variables=_taken(net.variables, state.net.variables))
    return _begun(net)

  def train(
    keys: Sequence[Key], genotypes: Any, states: Sequence[Pupil | None]
  ) -> list[Taught]:
    pairs = [jax.random.split(key) for key in keys]
    pupils = [
      start(pair[0], *own)
      for pair, *own in zip(pairs, genotypes, states, strict=True)
    ]
    examples = [0] * len(pupils)
    for number in range(epochs):
      fits = training.fit_all(
        [jax.random.fold_in(pair[1], number) for pair in pairs],
        [pupil.net for pupil in pupils],
        *(task, tx),
        epochs=1,
        batch=batch,
        opt_states=[pupil.opt_state for pupil in pupils],
        mesh=mesh,
      )
      nets = [fit.net for fit in fits]
      reached = training.evaluate_all(nets, task, task.valid, mesh=mesh)
      pupils = [
        Pupil(fit.net, fit.opt_state, np.fmax(pupil.best, np.float32(m.metric)))
        for pupil, fit, m in zip(pupils, fits, reached)
      ]
      examples = [n + fit.examples for n, fit in zip(examples, fits)]
    finite = [np.isfinite(fit.losses).all() for fit in fits]
    return [
      Taught(pupil, float(pupil.best) if good else float('nan'), seen)
      for pupil, good, seen in zip(pupils, finite, examples)
    ]

  return Trainer(train, lambda state, mother, child: _begun(state.net))


def _taken(mine: Any, hers: Any) -> Any:
  """A tree with the leaves of another where names and shapes are the same."""
  if not isinstance(mine, dict):
    return hers if np.shape(hers) == np.shape(mine) else mine
  hers = hers if isinstance(hers, dict) else {}
  return {
    name: _taken(own, hers[name]) if name in hers else own
    for name, own in mine.items()
  }
