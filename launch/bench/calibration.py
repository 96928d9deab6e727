"""Where the Gauss-Newton estimates hold, and where they do not.

    python launch/bench/calibration.py --seed=0 --stages=1,4,40

What an expert would ask of the scores (growth specification, 4.4), at several
stages of training: the correlation on the examples scored, on other examples,
and after training every network for another epoch; per layer; over relative
steps; for learned directions and merges too; and in training mode, where batch
norm uses the statistics of the batch. Prints a table and, last, one JSON line
for the whole. `--picture=FILE.png` draws predicted against measured changes of
the last stage.

The network is that of `launch/bench/gn.py`, and so is the choice of data.
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
  network,
  stages,
  training,
)
from jaxnas.morphisms import width
from launch.bench import gn

_STAGES = flags.DEFINE_list('stages', ['1', '4', '40'], 'Epochs of training.')
_RELATIVES = (0.1, 0.3, 1.0, 2.0)
_TRAINED = flags.DEFINE_integer('trained', 40, 'Candidates trained on.')
_PICTURE = flags.DEFINE_string('picture', None, 'Where to draw to.')


def room(net: network.Network):
  """`room(built)`: all built networks at one capacity."""
  sizes = {g.name: g.size + 1 for g in groups.growable(net.spec)}
  buckets = {name: training.bucket(size) for name, size in sizes.items()}
  return lambda built: morphisms.pad(buckets)(built, ())


@functools.lru_cache(maxsize=64)
def _mean_loss(spec, loss, train):
  module = spec.module()

  @jax.jit
  def run(variables, inputs, targets):
    outputs, _ = module.apply(
      variables, inputs, train=train, mutable=['batch_stats']
    )
    return loss(outputs, targets).mean()

  return run


def changes(found: gn.Trained, moves, thetas, data: Data, train: bool):
  """True loss changes of moves made one at a time."""
  padded = room(found.net)

  def loss(net):
    held = padded(net)
    run = _mean_loss(held.spec, found.task.loss, train)
    return float(run(held.variables, *data))

  before = loss(found.net)
  built = (m(found.net, t) for m, t in zip(moves, thetas, strict=True))
  return np.array([loss(net) for net in built]) - before


def after_training(found: gn.Trained, moves, thetas, data: Data):
  """Loss changes that are left when every network trains for an epoch."""
  tx, key = optax.sgd(0.01, momentum=0.9), jax.random.key(5)

  def loss(net):
    fitted = training.fit(key, net, found.task, tx, epochs=1, batch=100)
    run = _mean_loss(fitted.net.spec, found.task.loss, False)
    return float(run(fitted.net.variables, *data))

  before = loss(found.net)
  built = (m(found.net, t) for m, t in zip(moves, thetas, strict=True))
  return np.array([loss(net) for net in built]) - before


def layer(move) -> str:
  """The group a move acts on."""
  return move.channels[0][0]


def agreement(estimate, true, moves, generator) -> dict[str, float]:
  """How an estimate agrees with the truth, in several senses."""
  rank = stats.spearmanr(estimate, true).statistic
  layers = np.array([layer(move) for move in moves])
  inside = [
    stats.spearmanr(estimate[layers == n], true[layers == n]).statistic
    for n in dict.fromkeys(layers)
  ]
  top = max(1, len(true) // 10)
  best = set(np.argsort(true)[:top]) & set(np.argsort(estimate)[:top])
  draws = [generator.integers(len(true), size=len(true)) for _ in range(200)]
  boot = [stats.spearmanr(estimate[d], true[d]).statistic for d in draws]
  return {
    'spearman': rank,
    'low': np.quantile(boot, 0.025),
    'high': np.quantile(boot, 0.975),
    'worst_layer': min(inside),
    'pearson': np.corrcoef(estimate, true)[0, 1],
    'slope': estimate @ true / (estimate @ estimate),
    'error': np.linalg.norm(estimate - true) / np.linalg.norm(true),
    'top_tenth': len(best) / top,
    'signs': np.mean(np.sign(estimate) == np.sign(true)),
  }


def stage_rows(seed: int, epochs: int) -> tuple[dict[str, Any], Any]:
  """All figures at one stage of training, and points to draw."""
  task = gn.load(gn._DATASET.value, gn._DATA_DIR.value)
  found = gn.trained(
    task, seed=seed, epochs=epochs, examples=gn._EXAMPLES.value
  )
  both = gn.plain(task, seed, 2 * gn._EXAMPLES.value)
  generator = np.random.default_rng(seed)
  order = generator.permutation(len(both.targets))
  one, other = (
    jax.tree.map(lambda leaf, half=half: leaf[half], both)
    for half in np.split(order, 2)
  )
  net, key = found.net, jax.random.key(seed + 1)
  split, prune = list(stages.splits()(net)), list(stages.prunes()(net))
  merge = [morphisms.merge(dict(move.channels)) for move in prune]
  exact, rows, points = estimators.softmax_exact(), {}, {}

  def judged(name, moves, learner, cut=slice(None)):
    thetas = learner.fit(key, net, moves, [None] * len(moves), one, ()).thetas
    judge = estimators.gauss_newton(batch=gn.BATCH, factor=exact)
    scores = judge.score(key, net, moves, thetas, one, ())
    true = changes(found, moves, thetas, one, False)
    single = scores.single()
    rows[name] = agreement(single, true, moves, generator)
    first = agreement(scores.linear, true, moves, generator)
    rows[name]['first_order'] = first['spearman']
    rows[name]['first_order_error'] = first['error']
    elsewhere = changes(found, moves, thetas, other, False)
    rows[name]['other_data'] = stats.spearmanr(single, elsewhere).statistic
    rows[name]['truth_on_other_data'] = stats.spearmanr(
      true, elsewhere
    ).statistic
    in_training = changes(found, moves, thetas, one, True)
    rows[name]['train_mode'] = stats.spearmanr(single, in_training).statistic
    points[name] = (single, scores.linear, true)
    return thetas, single

  gauss_newton = functools.partial(estimators.gauss_newton, batch=gn.BATCH)
  for relative in _RELATIVES:
    judged(f'split {relative}', split, gauss_newton(relative=relative))
  learned, gains = judged('split learned', split, gauss_newton(steps=100))
  means, harms = judged('prune', prune, gauss_newton())
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
    'both': stats.spearmanr(predicted, left).statistic,
    'splits': stats.spearmanr(predicted[kinds], left[kinds]).statistic,
    'prunes': stats.spearmanr(predicted[~kinds], left[~kinds]).statistic,
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
    wide = max(-single.min(), single.max())
    ax.set_xlim(min(single.min(), low) - pad, max(wide, high) + pad)
    ax.set_ylim(low - pad, high + pad)
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
  result, points = {}, None
  for epochs in map(int, _STAGES.value):
    rows, points = stage_rows(gn._SEED.value, epochs)
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
    draw(points, _PICTURE.value)
  print(json.dumps({'seed': gn._SEED.value, 'stages': result}))


if __name__ == '__main__':
  app.run(main)
