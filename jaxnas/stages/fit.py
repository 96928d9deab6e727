"""Stages that change networks: training them, and making their moves."""

import math

import jax
import numpy as np
import optax

from jaxnas import combine, morphisms, network, plans, training
from jaxnas.base import Candidate, Event, Key, Population, Stage, Task
from jaxnas.stages import propose

# What is said of a pending move; in the lineage once it is made.
SAID = ('predicted', 'nats', 'chosen')


def train(
  task: Task,
  tx: optax.GradientTransformation,
  *,
  epochs: float,
  batch: int,
  plan: plans.Plan | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Stage:
  """Trains every member for epochs, all of them on all devices.

  A member whose loss or weights stop being finite goes back to the weights and
  the optimizer state it had; that is recorded in its lineage as `'diverged'`,
  and what it used is spent all the same. Sets the metric `train_loss`, the
  mean over the last epoch; NaN for a member that diverged.

  Args:
    task: gives data, loss and augmentation.
    tx: the optimizer; its state moves with each candidate.
    epochs: passes over the training split, the last perhaps in part.
    batch: examples in a step.
    plan: which members are trained together, see `plans.strategy`.
    mesh: the devices, see `jaxnas.mesh`; None for all there are.

  Raises:
    ValueError: for a member with a pending move.
  """

  def after(member: Candidate, fitted: training.Fit, generation: int):
    loss = fitted.losses[-1] if fitted.losses else math.nan
    metrics = {**member.metrics, 'train_loss': loss}
    if fitted.losses and not _finite(fitted):
      event = Event(generation, 'diverged')
      return member._replace(
        metrics={**metrics, 'train_loss': math.nan},
        lineage=(*member.lineage, event),
      )
    return member._replace(
      net=fitted.net,
      opt_state=fitted.opt_state,
      metrics=metrics,
      steps=member.steps + fitted.steps,
    )

  def update(key: Key, population: Population) -> Population:
    propose.refuse_pending('train', population)
    # A member's key is that of its place, whoever stands beside it.
    count = len(population.members)
    fits = training.fit_all(
      [jax.random.fold_in(key, i) for i in range(count)],
      [member.net for member in population.members],
      *(task, tx),
      epochs=epochs,
      batch=batch,
      opt_states=[member.opt_state for member in population.members],
      plan=plan,
      mesh=mesh,
    )
    members = tuple(
      after(member, fitted, population.generation)
      for member, fitted in zip(population.members, fits)
    )
    examples = sum(fitted.examples for fitted in fits)
    spent = population.spent.add(examples=examples)
    return population._replace(members=members, spent=spent)

  return combine.stage(update, 'train')


def _finite(fitted: training.Fit) -> bool:
  # The last step's weights are in no loss, and ReLU hides NaN on some devices.
  leaves = jax.tree.leaves(fitted.net.variables)
  return math.isfinite(sum(fitted.losses)) and all(
    np.isfinite(leaf).all() for leaf in leaves
  )


def realise(task: Task | None = None, *, tolerance: float = math.inf) -> Stage:
  """Makes the pending moves, and records what they did.

  With a task, the loss on its validation split is measured before and after;
  a move that raises it by more than `tolerance` is undone and recorded as
  `'rejected'`. The optimizer's state follows the move.

  Args:
    task: for measuring; None to make moves unmeasured.
    tolerance: nats that the validation loss may rise.
  """

  def one(key: Key, member: Candidate, generation: int) -> Candidate:
    host = network.to_host(member.net)
    theta = member.theta
    if theta is None:
      theta = network.to_host(member.move.init(host, key))
    net, state = morphisms.morph(
      member.move,
      host,
      theta=theta,
      opt_state=network.to_host(member.opt_state),
    )
    measured = None
    if task is not None:
      before = training.evaluate(member.net, task, task.valid).loss
      measured = training.evaluate(net, task, task.valid).loss - before
    accepted = measured is None or measured <= tolerance
    predicted = member.metrics.get('predicted')
    event = Event(
      generation,
      'move' if accepted else 'rejected',
      member.move,
      predicted if member.metrics.get('nats', True) else None,
      measured,
    )
    done = member._replace(
      move=None,
      theta=(),
      parent=None,
      metrics={k: v for k, v in member.metrics.items() if k not in SAID},
      lineage=(*member.lineage, event),
    )
    if not accepted:
      return done
    return done._replace(
      net=jax.tree.map(np.asarray, net), opt_state=state, born=generation
    )

  def update(key: Key, population: Population) -> Population:
    members, measured = [], 0
    for i, member in enumerate(population.members):
      if member.move is not None:
        own = jax.random.fold_in(key, i)
        member = one(own, member, population.generation)
        measured += 0 if task is None else 2
      members.append(member)
    spent = population.spent.add(evaluations=measured)
    return population._replace(members=tuple(members), spent=spent)

  return combine.stage(update, 'realise')
