"""How well, and how cheaply, Gauss-Newton scores tell what moves do.

    python launch/bench/gn.py --seed=0

Trains six convolutions (16-16-32-32-64-64, batch norm, ReLU, two max pools)
and scores the split and the prune of every channel: with the exact
Gauss-Newton matrix, with random vectors in its place, and by the first order
alone. All are compared with the loss of every such network, built with the
real move and measured on the same examples. Sets chosen jointly are built
whole. Costs are ratios of times measured in this run, compiling excluded.

Uses CIFAR-10 where it is prepared (`--data_dir` or TFDS_DATA_DIR), and
scikit-learn's digits elsewhere. Prints one JSON line last.
"""

import functools
import json
import os
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags
from scipy import stats

from jaxnas import (
  Candidate,
  Data,
  Task,
  estimators,
  morphisms,
  network,
  stages,
  tasks,
  training,
)
from jaxnas.spaces import seeds
from jaxnas.stages.judge import scored

_SEED = flags.DEFINE_integer('seed', 0, 'Of weights, data and directions.')
_DATASET = flags.DEFINE_string(
  'dataset', None, 'digits or cifar10; by default cifar10 where prepared.'
)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where TFDS sets lie.')
_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Epochs of training before.')
_EXAMPLES = flags.DEFINE_integer('examples', 256, 'Examples to score on.')
_STEPS = flags.DEFINE_integer('steps', 100, 'Learning steps, for joint sets.')
_SCALE = flags.DEFINE_integer('scale', 1, 'Widths are multiplied by it.')

BATCH = 128


def load(dataset: str | None, data_dir: str | None) -> Task:
  """CIFAR-10 (20,000 training images) where it is prepared, or digits."""
  folder = data_dir or os.environ.get('TFDS_DATA_DIR')
  if dataset is None:
    dataset = 'cifar10' if folder else 'digits'
  if dataset == 'digits':
    return tasks.digits()
  return tasks.tfds_images(dataset, data_dir=folder, train_examples=20000)


class Trained(NamedTuple):
  """A trained network, and examples from the training split, not augmented."""

  net: network.Network
  task: Task
  data: Data
  loss: float


def trained(
  task: Task, *, seed: int, epochs: int, examples: int, scale: int = 1
) -> Trained:
  """The network of the benchmark after some epochs."""
  key = jax.random.key(seed)
  widths = [w if w == 'M' else w * scale for w in (16, 16, 'M', 32, 32)]
  widths += ['M', 64 * scale, 64 * scale]
  net = network.init(seeds.chain(task.shape, widths, task.outputs), key)
  steps = max(1, epochs * (len(task.train.targets) // 100))
  tx = optax.chain(
    optax.add_decayed_weights(1e-4),
    optax.sgd(
      optax.cosine_decay_schedule(0.1, steps), momentum=0.9, nesterov=True
    ),
  )
  fitted = training.fit(key, net, task, tx, epochs=epochs, batch=100)
  loss = fitted.losses[-1] if fitted.losses else float('nan')
  return Trained(
    network.to_host(fitted.net), task, plain(task, seed, examples), loss
  )


def plain(task: Task, seed: int, examples: int) -> Data:
  """Random training examples without augmentation."""
  rows = np.random.default_rng(seed).permutation(len(task.train.targets))
  rows = np.sort(rows[:examples])
  inputs = task.prepare(jax.numpy.asarray(task.train.inputs)[rows])
  return Data(inputs, jax.numpy.asarray(task.train.targets)[rows])


def spearman(a: Any, b: Any) -> float:
  """Spearman's rank correlation."""
  return round(float(stats.spearmanr(a, b).statistic), 4)


def members(net, moves, thetas, scores) -> list[Candidate]:
  """Candidates as `judge` leaves them."""
  return [
    scored(Candidate(net, move, theta), scores, i)
    for i, (move, theta) in enumerate(zip(moves, thetas))
  ]


def change(found: Trained, candidates: list[Candidate], indices) -> float:
  """The true loss change of a set of moves, built."""
  picked = [candidates[i] for i in indices]
  move, theta = morphisms.unite(
    found.net, [m.move for m in picked], [m.theta for m in picked]
  )
  task = found.task._replace(train=found.data, prepare=_as_is)
  built = training.evaluate(move(found.net, theta), task, found.data).loss
  return built - training.evaluate(found.net, task, found.data).loss


def _as_is(inputs):
  return inputs


def seconds(run, repeats: int = 10, warm: int = 2) -> float:
  """Median seconds of a call, after some that compile and warm up."""
  for _ in range(warm):
    run()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    run()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def step_seconds(found: Trained) -> float:
  """Seconds of a training step: train-mode loss, gradient, SGD update."""
  module = found.net.spec.module()
  tx = optax.sgd(0.1, momentum=0.9)
  rows = jax.tree.map(lambda leaf: leaf[:BATCH], found.data)

  @jax.jit
  def step(variables, state):
    held = {c: t for c, t in variables.items() if c != 'params'}
    objective = functools.partial(training.objective, module, found.task.loss)
    (_, changed), grads = jax.value_and_grad(objective, has_aux=True)(
      variables['params'], held, *rows, jax.random.key(0)
    )
    updates, state = tx.update(grads, state)
    params = optax.apply_updates(variables['params'], updates)
    return {**changed, 'params': params}, state

  variables = jax.device_put(found.net.variables)
  state = tx.init(variables['params'])
  return seconds(lambda: jax.block_until_ready(step(variables, state)))


def costs(found: Trained, moves, thetas) -> dict[str, float]:
  """Scoring, learning and brute force, in times."""
  data = jax.tree.map(lambda leaf: leaf[: 2 * BATCH], found.data)
  # As many examples as one would score on, so that the host's part is as there.
  many = jax.tree.map(lambda leaf: jax.numpy.concatenate([leaf] * 8), data)
  key, net = jax.random.key(0), found.net
  judge = estimators.gauss_newton(batch=BATCH)
  step = step_seconds(found)
  score = seconds(
    lambda: judge.score(key, net, moves, thetas, many, ()), repeats=5
  )

  def fit(steps):
    learner = estimators.gauss_newton(batch=BATCH, steps=steps)
    none = [None] * len(moves)
    return seconds(
      lambda: learner.fit(key, net, moves, none, data, ()), repeats=3
    )

  learn = (fit(24) - fit(4)) / 20
  brute = estimators.brute_force(batch=BATCH)
  forced = seconds(  # Compiled already, for the truth.
    lambda: brute.score(key, net, moves, thetas, data, ()), repeats=1, warm=0
  )
  batches, every = len(many.targets) // BATCH, len(data.targets)
  return {
    'score_over_step': round(score / batches / step, 3),
    'learn_over_step': round(learn / step, 3),
    'brute_force_over_score': round(
      forced / every / (score / len(many.targets)), 2
    ),
    'step_seconds': round(step, 5),
  }


def main(argv: list[str]) -> None:
  del argv
  task = load(_DATASET.value, _DATA_DIR.value)
  found = trained(
    task,
    seed=_SEED.value,
    epochs=_EPOCHS.value,
    examples=_EXAMPLES.value,
    scale=_SCALE.value,
  )
  key, net, data = jax.random.key(_SEED.value + 1), found.net, found.data
  split, prune = list(stages.splits()(net)), list(stages.prunes()(net))
  moves = split + prune
  none = [None] * len(moves)
  row: dict[str, Any] = {
    'task': task.name,
    'candidates': len(moves),
    'examples': len(data.targets),
    'train_loss': round(found.loss, 4),
    'device': jax.devices()[0].device_kind,
  }
  brute = estimators.brute_force(batch=BATCH)
  exact = estimators.softmax_exact()
  for relative in (0.3, 1.0):
    judge = estimators.gauss_newton(
      batch=BATCH, relative=relative, factor=exact
    )
    thetas = judge.fit(key, net, moves, none, data, ()).thetas
    arguments = key, net, moves, thetas, data, ()
    scores = judge.score(*arguments)
    true = brute.score(*arguments).linear
    parts = {f'split_{relative}': slice(0, len(split))}
    if relative == 1.0:
      parts['prune'] = slice(len(split), None)
    sketches = {
      m: estimators.gauss_newton(
        batch=BATCH, factor=estimators.softmax_sketch(m)
      ).score(*arguments)
      for m in (1, 4, 16)
    }
    for name, part in parts.items():
      single = scores.single()[part]
      row[f'spearman_{name}'] = spearman(single, true[part])
      row[f'first_order_spearman_{name}'] = spearman(
        scores.linear[part], true[part]
      )
      error = np.linalg.norm(single - true[part])
      row[f'error_{name}'] = round(error / np.linalg.norm(true[part]), 3)
      for m, sketch in sketches.items():
        row[f'spearman_{name}_sketch_{m}'] = spearman(
          sketch.single()[part], true[part]
        )
    for control in (
      estimators.magnitude(),
      estimators.batch_norm_scale(),
      estimators.mean_activation(),
    ):
      if relative == 1.0:
        guess = control.score(key, net, prune, thetas[len(split) :], data, ())
        best = row.get('best_heuristic_spearman_prune', -1.0)
        own = spearman(guess.linear, true[len(split) :])
        row['best_heuristic_spearman_prune'] = max(best, own)

  learner = estimators.gauss_newton(batch=BATCH, steps=_STEPS.value)
  thetas = learner.fit(key, net, moves, none, data, ()).thetas
  judge = estimators.gauss_newton(
    batch=BATCH, factor=estimators.softmax_sketch(8)
  )
  scores = judge.score(key, net, moves, thetas, data, ())
  candidates = members(net, moves, thetas, scores)
  joint, alone = {}, {}
  for size in (1, 5, 20, 60):
    chosen = stages.jointly(price=0.0, z=0.0, limit=size)(candidates)
    joint[len(chosen.indices)] = (
      chosen.predicted,
      change(found, candidates, chosen.indices),
    )
    control = stages.independently(price=0.0, limit=size)(candidates)
    alone[size] = (
      control.predicted,
      change(found, candidates, control.indices),
    )
  row['joint'] = {k: [round(x, 5) for x in v] for k, v in joint.items()}
  row['independent'] = {k: [round(x, 5) for x in v] for k, v in alone.items()}
  row['gram_relative_error'] = round(
    max(abs(p - t) / abs(t) for p, t in joint.values()), 3
  )
  row['independent_sign_wrong'] = sum(p * t < 0 for p, t in alone.values())
  row.update(costs(found, moves, thetas))
  print(json.dumps(row))


if __name__ == '__main__':
  app.run(main)
