"""Where the Gauss-Newton estimates hold, and where they do not.

    python launch/bench/calibration.py --seed=0 --stages=1,8,40

What an expert would ask of the scores (growth specification, 4.4), at several
stages of training: the correlation on the examples scored, on other examples,
and after training every network for another epoch; per layer; over relative
steps; for learned directions and merges too; and in training mode, where batch
norm uses the statistics of the batch. Prints a table and, last, one JSON line
for the whole. `--picture=FILE.png` draws predicted against measured changes of
the last stage but one.

The network is that of `launch/bench/gn.py`; it is trained on 6,000 images
(5,400 without the validation split) without augmentation, so that the last
stage comes near interpolation. About ten minutes a stage on two cores for
CIFAR-10, two for `--dataset=digits`.
"""

import functools
import json
from typing import Any

import jax
import numpy as np
import optax
from absl import app, flags
from scipy import stats

from jaxnas import (
  Data,
  estimators,
  groups,
  morphisms,
  tasks,
  training,
)
from jaxnas.morphisms import width
from launch.bench import gn

_STAGES = flags.DEFINE_list('stages', ['1', '8', '40'], 'Epochs of training.')
_RELATIVES = (0.1, 0.3, 1.0, 2.0)
_IMAGES = flags.DEFINE_integer('images', 6000, 'Training images, from TFDS.')
_TRAINED = flags.DEFINE_integer('trained', 24, 'Candidates trained on.')
_EPOCH = flags.DEFINE_integer('epoch', 3000, 'Examples of that training.')
_PICTURE = flags.DEFINE_string('picture', None, 'Where to draw to.')


@functools.lru_cache(maxsize=64)
def _in_training(spec, loss):
  module = spec.module()

  @jax.jit
  def run(variables, inputs, targets):
    outputs, _ = module.apply(
      variables, inputs, train=True, mutable=['batch_stats']
    )
    return loss(outputs, targets).mean()

  return run


def changes(found: gn.Trained, moves, thetas, data: Data):
  """True loss changes of moves made one at a time, in evaluation mode."""
  judge = estimators.brute_force(batch=gn.BATCH, loss=found.task.loss)
  key = jax.random.key(0)
  return judge.score(key, found.net, moves, thetas, data, ()).linear


def training_mode_changes(found: gn.Trained, moves, thetas, data: Data):
  """True loss changes where batch norm uses the batch's own statistics."""
  room = {g.name: g.size + 1 for g in groups.growable(found.net.spec)}

  def loss(net):
    held = morphisms.pad(room)(net, ())
    run = _in_training(held.spec, found.task.loss)
    return float(run(held.variables, *data))

  before = loss(found.net)
  built = (m(found.net, t) for m, t in zip(moves, thetas, strict=True))
  return np.array([loss(net) for net in built]) - before


def after_training(found: gn.Trained, moves, thetas, data: Data):
  """Loss changes that are left when every network trains for an epoch."""
  tx, key = optax.sgd(0.01, momentum=0.9), jax.random.key(5)
  rows = jax.tree.map(lambda leaf: leaf[: _EPOCH.value], found.task.train)
  task = found.task._replace(train=rows)
  as_is = task._replace(prepare=gn.as_is)

  def loss(net):
    fitted = training.fit(key, net, task, tx, epochs=1, batch=100)
    return training.evaluate(fitted.net, as_is, data).loss

  before = loss(found.net)
  built = (m(found.net, t) for m, t in zip(moves, thetas, strict=True))
  return np.array([loss(net) for net in built]) - before


def layer(move) -> str:
  """The group a move acts on."""
  return move.channels[0][0]


def rank(one, two) -> float:
  """Spearman's rank correlation."""
  return stats.spearmanr(one, two).statistic


def agreement(estimate, true, moves, generator) -> dict[str, float]:
  """How an estimate agrees with the truth, in several senses."""
  layers = np.array([layer(move) for move in moves])
  inside = {
    str(n): rank(estimate[layers == n], true[layers == n])
    for n in dict.fromkeys(layers)
  }
  top = max(1, len(true) // 10)
  best = set(np.argsort(true)[:top]) & set(np.argsort(estimate)[:top])
  draws = [generator.integers(len(true), size=len(true)) for _ in range(200)]
  boot = [rank(estimate[d], true[d]) for d in draws]
  return {
    'spearman': rank(estimate, true),
    'low': np.quantile(boot, 0.025),
    'high': np.quantile(boot, 0.975),
    **inside,
    'pearson': np.corrcoef(estimate, true)[0, 1],
    'slope': estimate @ true / (estimate @ estimate),
    'error': np.linalg.norm(estimate - true) / np.linalg.norm(true),
    'top_tenth': len(best) / top,
    'signs': np.mean(np.sign(estimate) == np.sign(true)),
  }


def stage_rows(seed: int, epochs: int) -> tuple[dict[str, Any], Any]:
  """All figures at one stage of training, and points to draw."""
  task = gn.load(gn._DATASET.value, gn._DATA_DIR.value, _IMAGES.value)
  task = task._replace(augment=tasks.unchanged)
  count = gn._EXAMPLES.value
  found = gn.trained(task, seed=seed, epochs=epochs, examples=count)
  one, other = found.data, gn.plain(task, seed, count, 0)
  generator = np.random.default_rng(seed)
  net, key = found.net, jax.random.key(seed + 1)
  split, prune = gn.candidates(net)
  merge = [morphisms.merge(dict(move.channels)) for move in prune]
  exact, rows, points = estimators.softmax_exact(), {}, {}

  def judged(name, moves, learner, closely=False):
    thetas = learner.fit(key, net, moves, [None] * len(moves), one, ()).thetas
    judge = estimators.gauss_newton(batch=gn.BATCH, factor=exact)
    scores = judge.score(key, net, moves, thetas, one, ())
    true, single = changes(found, moves, thetas, one), scores.single()
    rows[name] = agreement(single, true, moves, generator)
    first = agreement(scores.linear, true, moves, generator)
    rows[name]['first_order'] = first['spearman']
    rows[name]['first_order_error'] = first['error']
    points[name] = (single, scores.linear, true)
    if closely:
      elsewhere = changes(found, moves, thetas, other)
      rows[name]['other_data'] = rank(single, elsewhere)
      rows[name]['truth_on_other_data'] = rank(true, elsewhere)
      some = slice(None, None, 3)
      in_training = training_mode_changes(found, moves[some], thetas[some], one)
      rows[name]['train_mode'] = rank(single[some], in_training)
      rows[name]['truth_in_train_mode'] = rank(true[some], in_training)
    return thetas, single

  gauss_newton = functools.partial(estimators.gauss_newton, batch=gn.BATCH)
  for relative in _RELATIVES:
    judge = gauss_newton(relative=relative)
    judged(f'split {relative}', split, judge, relative == 0.3)
  learned, gains = judged('split learned', split, gauss_newton(steps=100), True)
  means, harms = judged('prune', prune, gauss_newton(), True)
  judged('merge', merge, gauss_newton(steps=100))

  some = max(2, _TRAINED.value // 2)
  moves, thetas, predicted = [], [], []
  for kind, theta, score in ((split, learned, gains), (prune, means, harms)):
    picked = np.argsort(score)[
      np.linspace(0, len(score) - 1, some).round().astype(int)
    ]
    moves += [kind[i] for i in picked]
    thetas += [theta[i] for i in picked]
    predicted += [score[i] for i in picked]
  left = after_training(found, moves, thetas, one)
  kinds = np.array([isinstance(move, width.Split) for move in moves])
  predicted = np.array(predicted)
  rows['after an epoch'] = {
    'both': rank(predicted, left),
    'splits': rank(predicted[kinds], left[kinds]),
    'prunes': rank(predicted[~kinds], left[~kinds]),
  }
  rows['train_loss'] = found.loss
  return rows, points


def draw(points, path: str) -> None:
  """Predicted against measured, Gauss-Newton and first order."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  names = ('split 0.3', 'split 1.0', 'split learned', 'prune')
  figure, axes = pyplot.subplots(
    1, len(names), figsize=(13, 3.6), layout='constrained'
  )
  for ax, name in zip(axes, names):
    single, linear, true = points[name]
    low, high = true.min(), true.max()
    pad = 0.08 * (high - low)
    ax.axline((0, 0), slope=1, color='0.7', linewidth=1)
    ax.plot(linear, true, '.', color='#D98C3F', markersize=4, alpha=0.7)
    ax.plot(single, true, '.', color='#2B6C9E', markersize=4)
    ax.set_xlim(min(single.min(), low) - pad, max(single.max(), high) + pad)
    ax.set_ylim(low - pad, high + pad)
    ax.xaxis.set_major_locator(pyplot.MaxNLocator(4))
    ax.set_title(name, fontsize=10)
    ax.set_xlabel('predicted loss change, nats', fontsize=8)
    ax.tick_params(labelsize=7)
    for side in ('top', 'right'):
      ax.spines[side].set_visible(False)
  axes[0].set_ylabel('measured loss change, nats', fontsize=8)
  handles = [
    pyplot.Line2D([], [], marker='.', linestyle='', color=colour, label=label)
    for colour, label in (
      ('#2B6C9E', 'Gauss-Newton'),
      ('#D98C3F', 'first order'),
    )
  ]
  axes[0].legend(handles=handles, fontsize=8, frameon=False)
  figure.savefig(path, dpi=110)


def main(argv: list[str]) -> None:
  del argv
  result, drawn = {}, []
  for epochs in map(int, _STAGES.value):
    rows, points = stage_rows(gn._SEED.value, epochs)
    drawn.append(points)
    loss = rows.pop('train_loss')
    print(f'after {epochs} epochs, training loss {loss:.4f}')
    for name, row in rows.items():
      figures = '  '.join(f'{k} {v:.3f}' for k, v in row.items())
      print(f'  {name:15}{figures}')
    result[str(epochs)] = {
      'train_loss': round(loss, 4),
      **{
        name: {k: round(float(v), 3) for k, v in row.items()}
        for name, row in rows.items()
      },
    }
  if _PICTURE.value:
    draw(drawn[-2:][0], _PICTURE.value)
  print(json.dumps({'seed': gn._SEED.value, 'stages': result}))


if __name__ == '__main__':
  app.run(main)
