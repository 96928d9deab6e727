"""What growth compiles: programs for each bucket, and none inside them.

    python launch/bench/growth_compiles.py --seed=0

Grows a chain of six convolutions with batch norm from width 8 to 64. In each
round it trains for some epochs, measures on the validation split, learns and
scores the split of every channel, and then splits random channels of every
group: about a tenth of them, so that a group takes several rounds from one
bucket to the next. `--share=0.25` is growth in larger steps, which crosses
buckets in nearly every round.

Prints a line for each round, and one JSON line last:

    compilations               all programs, those of the start included
    buckets_crossed            (group, bucket) pairs entered after the start
    compilations_per_crossing  the quotient of the two
    structures                 distinct specs after padding
    growth_events              rounds that followed a growth
    events_inside_buckets      those in which no group entered a bucket
    recompiles_inside_buckets  programs compiled in these; to be 0
    compile_share              compile_seconds / seconds
    flops_overhead             operations with padding / without, all rounds

Seconds are wall time, and those of compiling the time in which JAX traced,
lowered or compiled (`jaxnas.run.watch_compiler`). The programs of digits take
longer to compile than to run; for the share in a real training give
`--dataset=cifar10` and `--data_dir` or TFDS_DATA_DIR, some minutes.

On one core of a CPU, seed 0: 41 compilations for 24 buckets crossed, none in
the 12 of 24 events inside buckets, in 5 minutes.
"""

import itertools
import json
import time
from collections.abc import Sequence

import jax
import numpy as np
import optax
from absl import app, flags

from jaxnas import (
  estimators,
  groups,
  morphisms,
  network,
  plans,
  stages,
  tasks,
  training,
)
from jaxnas.run import covered, watch_compiler
from jaxnas.spaces import seeds

_SEED = flags.DEFINE_integer('seed', 0, 'Of weights, batches and channels.')
_EPOCHS = flags.DEFINE_integer('epochs', 10, 'Epochs of training a round.')
_SHARE = flags.DEFINE_float('share', 0.1, 'Of the channels split in a round.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Steps of learning the splits.')
_DATASET = flags.DEFINE_string('dataset', 'digits', 'Or a TFDS image set.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where TFDS sets lie.')
_EXAMPLES = flags.DEFINE_integer('examples', 6000, 'To train on, from TFDS.')

FIRST, LAST = 8, 64


def drawn(
  net: network.Network, moves: Sequence, share: float, rng: np.random.Generator
) -> list[int]:
  """Which splits to make: of random channels of every group.

  Args:
    net: the network.
    moves: a split of each channel.
    share: the mean share of a group's channels; each group draws its own, up
      to a fifth above or below. No group grows beyond its end.
    rng: draws shares and channels.

  Returns:
    Numbers of moves; none if every group is at its end.
  """
  chosen = set()
  for group in groups.growable(net.spec):
    count = max(1, round(group.size * share * rng.uniform(0.8, 1.2)))
    count = min(count, LAST - group.size)
    channels = rng.permutation(group.size)[:count]
    chosen |= {((group.name, (int(channel),)),) for channel in channels}
  return [i for i, move in enumerate(moves) if move.channels in chosen]


def capacities(spec) -> dict[str, int]:
  """The bucket of every group."""
  padded = morphisms.respec(plans.padding(spec), spec)
  sizes = groups.table(padded).groups
  return {group.name: sizes[group.name].size for group in groups.growable(spec)}


def grow(key, net, task, *, epochs, share, steps, rng):
  """Grows a network to the end; yields the rows of `main`, and specs."""
  tx, state = optax.adamw(3e-3), None
  judge = estimators.gauss_newton(steps=steps)
  made, held = [], capacities(net.spec)
  for number in itertools.count():
    own = jax.random.fold_in(key, number)
    started = time.monotonic()
    with watch_compiler() as seen:
      if made:
        move, theta = morphisms.unite(net, *zip(*made))
        net, state = morphisms.morph(move, net, theta=theta, opt_state=state)
      net, state, *_ = training.fit(
        own, net, task, tx, epochs=epochs, batch=64, opt_state=state
      )
      valid = training.evaluate(net, task, task.valid)
      moves = list(stages.splits()(net))
      data = training.draw(own, task, 1024)
      fitted = judge.fit(own, net, moves, [None] * len(moves), data, ())
      judge.score(own, net, moves, fitted.thetas, data, ())
    before, held = held, capacities(net.spec)
    padded = morphisms.respec(plans.padding(net.spec), net.spec)
    yield (
      padded,
      {
        'widths': [group.size for group in groups.growable(net.spec)],
        'crossed': sum(held[name] != before[name] for name in held),
        'compilations': len(seen.programs),
        'seconds': time.monotonic() - started,
        'compile_seconds': covered(seen.spans),
        'flops': network.flops(net.spec),
        'padded_flops': network.flops(padded),
        'valid_metric': valid.metric,
      },
    )
    made = [(moves[i], fitted.thetas[i]) for i in drawn(net, moves, share, rng)]
    if not made:
      return


def main(argv: list[str]) -> None:
  del argv
  key = jax.random.key(_SEED.value)
  if _DATASET.value == 'digits':
    task = tasks.digits()
  else:
    task = tasks.tfds_images(
      _DATASET.value,
      data_dir=_DATA_DIR.value,
      train_examples=_EXAMPLES.value,
    )
  widths = (FIRST, FIRST, 'M', FIRST, FIRST, 'M', FIRST, FIRST)
  spec = seeds.chain(task.shape, widths, task.outputs)
  rows, structures = [], set()
  for padded, row in grow(
    key,
    network.to_host(network.init(spec, key)),
    task,
    epochs=_EPOCHS.value,
    share=_SHARE.value,
    steps=_STEPS.value,
    rng=np.random.default_rng(_SEED.value),
  ):
    structures.add(padded)
    rows.append(row)
    print(_line(row), flush=True)

  def total(name):
    return sum(row[name] for row in rows)

  inside = [row for row in rows[1:] if not row['crossed']]
  summary = {
    'compilations': total('compilations'),
    'buckets_crossed': total('crossed'),
    'compilations_per_crossing': total('compilations') / total('crossed'),
    'structures': len(structures),
    'growth_events': len(rows) - 1,
    'events_inside_buckets': len(inside),
    'recompiles_inside_buckets': sum(row['compilations'] for row in inside),
    'compile_share': total('compile_seconds') / total('seconds'),
    'compile_seconds': total('compile_seconds'),
    'seconds': total('seconds'),
    'flops_overhead': total('padded_flops') / total('flops'),
    'valid_metric': rows[-1]['valid_metric'],
  }
  print(_line(summary))


def _line(row) -> str:
  return json.dumps(
    {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
  )


if __name__ == '__main__':
  app.run(main)
