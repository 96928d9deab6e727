"""How well, and how cheaply, the Gauss-Newton sketch scores moves.

    python launch/bench/gn.py --seed=0

Trains a convolutional network on scikit-learn's digits for some epochs, scores
the split and the prune of every channel, and compares with the loss of every
such network, built with the real move and measured on the same examples.
Prints one JSON line last.
"""

import functools
import json

import jax
import numpy as np
import optax
from absl import app, flags

from jaxnas import Data, network, stages, tasks, training
from jaxnas.estimators.gauss_newton import gauss_newton, sites
from jaxnas.spaces import seeds

_SEED = flags.DEFINE_integer('seed', 0, 'Seed of weights and directions.')
_EPOCHS = flags.DEFINE_integer('epochs', 4, 'Epochs of training before.')
_DRAWS = flags.DEFINE_integer('draws', 1, 'Random adjoints for an example.')
_EXAMPLES = flags.DEFINE_integer('examples', 1024, 'Examples to score on.')


def measured(net, moves, thetas, data: Data) -> np.ndarray:
  """The true loss change of every move, by building and measuring it."""

  @functools.partial(jax.jit, static_argnums=0)
  def loss(spec, variables):
    outputs = network.apply(network.Network(variables, spec), data.inputs)
    return tasks.cross_entropy(outputs, data.targets).mean()

  host = network.to_host(net)
  before = float(loss(net.spec, net.variables))
  after = []
  for move, theta in zip(moves, thetas):
    grown = move(host, theta)
    after.append(float(loss(grown.spec, grown.variables)))
  return np.array(after) - before


def main(argv: list[str]) -> None:
  del argv
  key = jax.random.key(_SEED.value)
  task = tasks.digits()
  spec = seeds.chain(task.shape, (16, 16, 'M', 32, 32, 64, 64), task.outputs)
  net = network.init(spec, key)
  tx = optax.adamw(3e-3)
  fitted = training.fit(key, net, task, tx, epochs=_EPOCHS.value, batch=64)
  net = fitted.net
  data = training.draw(key, task, _EXAMPLES.value)
  split = list(stages.splits()(net))
  prune = list(stages.prunes()(net))
  moves = split + prune
  row = {
    'candidates': len(moves),
    'columns': sum(size for _, size in sites(spec).columns),
    'draws': _DRAWS.value,
    'train_loss': fitted.losses[-1],
  }
  pooled = {'predicted': [], 'first': [], 'true': []}
  for relative in (0.3, 1.0):
    judge = gauss_newton(draws=_DRAWS.value, relative=relative)
    none = [None] * len(moves)
    thetas = judge.fit(key, net, moves, none, data, ()).thetas
    scores = judge.score(key, net, moves, thetas, data, ())
    true = measured(net, moves, thetas, data)
    parts = {f'split_{relative}': slice(0, len(split))}
    if relative == 1.0:
      parts['prune'] = slice(len(split), None)
    for name, part in parts.items():
      predicted, first = scores.single()[part], scores.linear[part]
      row[f'spearman_{name}'] = _rank(predicted, true[part])
      row[f'first_order_spearman_{name}'] = _rank(first, true[part])
      pooled['predicted'] += list(predicted)
      pooled['first'] += list(first)
      pooled['true'] += list(true[part])
  row['spearman_all'] = _rank(pooled['predicted'], pooled['true'])
  row['first_order_spearman_all'] = _rank(pooled['first'], pooled['true'])
  row['measured_moves'] = len(pooled['true'])
  print(json.dumps(row))


def _rank(a, b) -> float:
  """Spearman's rank correlation (no ties among loss changes)."""
  ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
  return round(float(np.corrcoef(*ranks)[0, 1]), 4)


if __name__ == '__main__':
  app.run(main)
