"""How well, and how cheaply, Gauss-Newton scores tell what moves do.

    python launch/bench/gn.py --seed=0

Trains six convolutions (16-16-32-32-64-64, batch norm, ReLU, two max pools)
and scores the split and the prune of every channel: with the exact
Gauss-Newton matrix, with random vectors in its place, and by the first order
alone. All are compared with the loss of every such network, built with the
real move and measured on the same examples.

Then moves are learned on the even rows of the training split and scored on odd
ones, as growth does, sets of 1, 5, 20 and 60 are chosen jointly, and every set
is built and measured on the examples that it was scored on; `_random` stands
for splits along random directions. `joint`, `joint_with_prunes` and
`joint_random` hold for each size [by the parabola, by the linearised
network, measured]; `independent`, the control that takes the individually best,
[predicted, measured].

Costs are ratios of times measured in this run, compiling excluded;
`score_all_over_eighth` is the time of scoring all moves over that of an eighth
of them, and `error_over_score` the median standard error over the score.

Uses CIFAR-10 where it is prepared (`--data_dir` or TFDS_DATA_DIR), and
scikit-learn's digits elsewhere. Prints one JSON line last. On two idle cores,
about eleven minutes for CIFAR-10.
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
_EPOCHS = flags.DEFINE_integer('epochs', 8, 'Epochs of training before.')
_EXAMPLES = flags.DEFINE_integer('examples', 256, 'Examples to score on.')
_STEPS = flags.DEFINE_integer('steps', 100, 'Learning steps, for joint sets.')
_LEARN = flags.DEFINE_integer('learn', 4096, 'Examples to learn on, for sets.')
_JUDGE = flags.DEFINE_integer('judge', 1024, 'Examples to score sets on.')
_SCALE = flags.DEFINE_integer('scale', 1, 'Widths are multiplied by it.')

BATCH = 128


def load(
  dataset: str | None, data_dir: str | None, examples: int = 20000
) -> Task:
  """CIFAR-10 (so many training images) where it is prepared, or digits."""
  folder = data_dir or os.environ.get('TFDS_DATA_DIR')
  if dataset is None:
    dataset = 'cifar10' if folder else 'digits'
  if dataset == 'digits':
    return tasks.digits()
  return tasks.tfds_images(dataset, data_dir=folder, train_examples=examples)


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
    network.to_host(fitted.net), task, plain(task, seed, examples, 1), loss
  )


def plain(task: Task, seed: int, examples: int, fold: int) -> Data:
  """Random training examples of a fold, without augmentation."""
  as_it_is = task._replace(augment=tasks.unchanged)
  return training.draw(jax.random.key(seed), as_it_is, examples, fold)


def candidates(net: network.Network) -> tuple[list, list]:
  """The split and the prune of every channel."""
  return list(stages.splits()(net)), list(stages.prunes()(net))


def spearman(a: Any, b: Any) -> float:
  """Spearman's rank correlation."""
  return round(float(stats.spearmanr(a, b).statistic), 4)


def members(net, moves, thetas, scores) -> list[Candidate]:
  """Candidates as `judge` leaves them."""
  return [
    scored(Candidate(net, move, theta), scores, i)
    for i, (move, theta) in enumerate(zip(moves, thetas))
  ]


def change(found: Trained, pending: list[Candidate], indices) -> float:
  """The true loss change of a set of moves, built."""
  picked = [pending[i] for i in indices]
  move, theta = morphisms.unite(
    found.net, [m.move for m in picked], [m.theta for m in picked]
  )
  task = found.task._replace(train=found.data, prepare=as_is)
  built = training.evaluate(move(found.net, theta), task, found.data).loss
  return built - training.evaluate(found.net, task, found.data).loss


def as_is(inputs):
  """Prepares what is prepared already."""
  return inputs


def once(run) -> float:
  """Seconds of one call."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def costs(found: Trained, moves, key, rounds: int = 7) -> dict[str, float]:
  """Scoring, learning and brute force, in times.

  Every round times all of them one after another, and a ratio is the median of
  the rounds': a machine that slows down for a while slows all of a round.
  """
  data = jax.tree.map(lambda leaf: leaf[: 2 * BATCH], found.data)
  # As many examples as one would score on, so that the host's part is as there.
  many = jax.tree.map(lambda leaf: jax.numpy.concatenate([leaf] * 8), data)
  net, batches = found.net, len(many.targets) // BATCH
  rows = jax.tree.map(lambda leaf: leaf[: 8 * BATCH], found.task.train)
  task = found.task._replace(train=rows, augment=tasks.unchanged)
  tx = optax.sgd(0.1, momentum=0.9)
  judge = estimators.gauss_newton(batch=BATCH)
  none = [None] * len(moves)
  thetas = judge.fit(key, net, moves, none, data, ()).thetas

  def train(epochs):
    training.fit(key, net, task, tx, epochs=epochs, batch=BATCH)

  def score(every):
    judge.score(key, net, moves[::every], thetas[::every], many, ())

  def learn(steps):
    learner = estimators.gauss_newton(batch=BATCH, steps=steps)
    learner.fit(key, net, moves, none, data, ())

  timed = {
    **{('train', n): functools.partial(train, n) for n in (1, 4)},
    **{('score', n): functools.partial(score, n) for n in (1, 8)},
    **{('learn', n): functools.partial(learn, n) for n in (4, 24)},
  }
  for run in timed.values():  # Compiles.
    run()
  steps, scores, few, learns = [], [], [], []
  for _ in range(rounds):
    took = {name: once(run) for name, run in timed.items()}
    steps.append((took['train', 4] - took['train', 1]) / 24)
    scores.append(took['score', 1] / batches)
    few.append(took['score', 8] / batches)
    learns.append((took['learn', 24] - took['learn', 4]) / 20)
  brute = estimators.brute_force(batch=BATCH)
  forced = once(  # Compiled already, for the truth.
    lambda: brute.score(key, net, moves, thetas, data, ())
  )

  def ratio(above, below):
    return round(float(np.median(np.divide(above, below))), 3)

  return {
    'score_over_step': ratio(scores, steps),
    'score_all_over_eighth': ratio(scores, few),
    'learn_over_step': ratio(learns, steps),
    'brute_force_over_score': round(
      forced / len(data.targets) * BATCH / statistics.median(scores), 2
    ),
    'step_seconds': round(statistics.median(steps), 5),
  }


def sets(
  found: Trained,
  split,
  prune,
  key,
  *,
  seed: int,
  steps: int,
  learn: int,
  judge: int,
) -> dict[str, Any]:
  """Sets of learned moves: what is predicted of them, and what they do.

  Args:
    found: the network.
    split: splits.
    prune: prunes.
    key: of directions.
    seed: of examples.
    steps: of learning.
    learn: examples to learn on.
    judge: examples to score on.
  """
  learned = plain(found.task, seed, learn, 0)
  judged = plain(found.task, seed, judge, 1)
  found = found._replace(data=judged)
  learner = estimators.gauss_newton(batch=BATCH, steps=steps)
  exact = estimators.gauss_newton(
    batch=BATCH, factor=estimators.softmax_exact()
  )
  row: dict[str, Any] = {}
  for name, moves in (('', split), ('_with_prunes', split + prune)):
    none = [None] * len(moves)
    thetas = learner.fit(key, found.net, moves, none, learned, ()).thetas
    scores = exact.score(key, found.net, moves, thetas, judged, ())
    pending, found_sets = jointly_chosen(found, moves, thetas, scores)
    row |= {f'{kind}{name}': value for kind, value in found_sets.items()}
    if name:
      continue
    alone = _chosen(stages.independently(price=0.0, limit=60)(pending))
    pairs = [(c.predicted, change(found, pending, c.indices)) for c in alone]
    row['independent'] = {
      len(c.indices): [round(x, 5) for x in pair]
      for c, pair in zip(alone, pairs)
    }
    row['independent_sign_wrong'] = sum(p * t < 0 for p, t in pairs)
    row['error_over_score'] = uncertainty(found, moves, thetas, key, seed)
  return row


def jointly_chosen(found: Trained, moves, thetas, scores):
  """Candidates, and what sets of them chosen jointly promise and do."""
  pending = members(found.net, moves, thetas, scores)
  joint = _chosen(stages.jointly(price=0.0, z=0.0, limit=60)(pending))
  true = [change(found, pending, c.indices) for c in joint]
  straight = estimators.linearised(
    *(found.net, moves, thetas, [c.indices for c in joint], found.data),
    batch=BATCH,
  )
  predicted = np.array([c.predicted for c in joint])
  columns = zip(predicted, straight, true)
  return pending, {
    'gram_relative_error': _off(predicted, true),
    'linearised_relative_error': _off(straight, true),
    'joint': {
      len(c.indices): [round(float(x), 5) for x in column]
      for c, column in zip(joint, columns)
    },
  }


def random_sets(found: Trained, split, key) -> dict[str, Any]:
  """Sets of splits along random directions, at half the weights' size.

  Chosen, scored and built on the same examples, as in the specification's
  trial (4.1 E).
  """
  estimator = estimators.gauss_newton(
    batch=BATCH, relative=0.5, factor=estimators.softmax_exact()
  )
  arguments = key, found.net, split
  none = [None] * len(split)
  thetas = estimator.fit(*arguments, none, found.data, ()).thetas
  scores = estimator.score(*arguments, thetas, found.data, ())
  _, row = jointly_chosen(found, split, thetas, scores)
  return {f'{name}_random': value for name, value in row.items()}


def uncertainty(found: Trained, moves, thetas, key, seed) -> dict[int, float]:
  """Median standard error over score, for numbers of examples."""
  judge, medians = estimators.gauss_newton(batch=BATCH), {}
  for count in (256, 1024, 4096):
    data = plain(found.task, seed, count, 1)
    scores = judge.score(key, found.net, moves, thetas, data, ())
    ratio = np.median(scores.error / np.abs(scores.single()))
    medians[len(data.targets)] = round(float(ratio), 3)
  return medians


def _chosen(choice: stages.Choice) -> list[stages.Choice]:
  """The first 1, 5, 20 and 60 moves of a choice, or all that there are."""
  sizes = {min(size, len(choice.indices)) for size in (1, 5, 20, 60)}
  return [choice.first(size) for size in sorted(sizes)]


def _off(predicted, true) -> float:
  """The largest error relative to the truth."""
  true = np.asarray(true)
  return round(float(np.max(np.abs(predicted - true) / np.abs(true))), 3)


def rankings(found: Trained, split, prune, key) -> dict[str, Any]:
  """How estimates of moves made one at a time agree with what these do."""
  row: dict[str, Any] = {}
  data = found.data
  for name, relative, moves in (
    ('split_0.3', 0.3, split),
    ('split_1.0', 1.0, split),
    ('prune', 1.0, prune),
  ):
    judges = {
      '': estimators.softmax_exact(),
      **{f'_sketch_{m}': estimators.softmax_sketch(m) for m in (1, 4, 16)},
    }
    judges = {
      kind: estimators.gauss_newton(
        batch=BATCH, relative=relative, factor=factor
      )
      for kind, factor in judges.items()
    }
    none = [None] * len(moves)
    thetas = judges[''].fit(key, found.net, moves, none, data, ()).thetas
    arguments = key, found.net, moves, thetas, data, ()
    true = estimators.brute_force(batch=BATCH).score(*arguments).linear
    scores = {kind: judge.score(*arguments) for kind, judge in judges.items()}
    for kind, score in scores.items():
      row[f'spearman_{name}{kind}'] = spearman(score.single(), true)
    linear, single = scores[''].linear, scores[''].single()
    row[f'first_order_spearman_{name}'] = spearman(linear, true)
    error = np.linalg.norm(single - true) / np.linalg.norm(true)
    row[f'error_{name}'] = round(float(error), 3)
  controls = (
    estimators.magnitude(),
    estimators.batch_norm_scale(),
    estimators.mean_activation(),
  )
  guesses = [control.score(*arguments).linear for control in controls]
  row['best_heuristic_spearman_prune'] = max(
    spearman(guess, true) for guess in guesses
  )
  return row


def main(argv: list[str]) -> None:
  del argv
  seed = _SEED.value
  found = trained(
    load(_DATASET.value, _DATA_DIR.value),
    seed=seed,
    epochs=_EPOCHS.value,
    examples=_EXAMPLES.value,
    scale=_SCALE.value,
  )
  key = jax.random.key(seed + 1)
  split, prune = candidates(found.net)
  row = {
    'task': found.task.name,
    'candidates': len(split + prune),
    'examples': len(found.data.targets),
    'train_loss': round(found.loss, 4),
    'device': jax.devices()[0].device_kind,
    **rankings(found, split, prune, key),
    **random_sets(found, split, key),
    **sets(
      *(found, split, prune, key),
      seed=seed,
      steps=_STEPS.value,
      learn=_LEARN.value,
      judge=_JUDGE.value,
    ),
    **costs(found, split + prune, key),
  }
  print(json.dumps(row))


if __name__ == '__main__':
  app.run(main)
