"""What `jaxnas.programs.options` is worth on CPU, against XLA's defaults.

    python -m launch.bench.options

trains three networks on images by both, in turns, and prints a JSON line of
processor seconds for each: `first`, an epoch with compiling, and `epoch`, the
median of later ones. The last line has the ratios, XLA's defaults over ours.
"""

import json
import statistics
import time
from unittest import mock

import jax
import numpy as np
import optax
from absl import app, flags

from jaxnas import network, programs, tasks, training
from jaxnas.base import Task
from jaxnas.spaces import seeds

_EPOCHS = flags.DEFINE_integer('epochs', 3, 'After the first.', lower_bound=1)

# Name: channels of convolutions, units, rows of the square images.
CASES = {
  'cells_3_6_on_8': ((3, 6), (10, 10), 8),
  'cells_16_32_on_16': ((16, 32), (32,), 16),
  'cells_32_64_64_on_32': ((32, 64, 64), (32,), 32),
}


def noise(rows: int) -> Task:
  """Images with labels; what is learned does not matter here."""
  rng = np.random.default_rng(0)

  def pair(count: int):
    images = rng.random((count, rows, rows, 3), np.float32)
    return images, rng.integers(0, 10, count)

  return tasks.from_arrays('noise', pair(1280), pair(64), pair(64), classes=10)


def measured(channels, units, rows: int, ours: bool) -> dict[str, float]:
  """Processor seconds of the first epoch and of a later one."""
  task, tx = noise(rows), optax.adam(1e-2)
  spec = seeds.cells(task.shape, channels, units, task.outputs)
  net = network.to_host(network.init(spec, jax.random.key(0)))
  options = programs.options if ours else lambda **more: more or None
  with mock.patch.object(programs, 'options', options):
    seconds = []
    for _ in range(1 + _EPOCHS.value):
      began = time.process_time()
      training.fit(jax.random.key(1), net, task, tx, epochs=1, batch=64)
      seconds.append(time.process_time() - began)
  return {'first': seconds[0], 'epoch': statistics.median(seconds[1:])}


def main(argv: list[str]) -> None:
  del argv
  jax.config.update('jax_enable_compilation_cache', False)
  measured((2,), (2,), 8, ours=True)  # What is compiled once, whatever follows.
  row = {'device': jax.devices()[0].device_kind}
  for name, case in CASES.items():
    theirs, ours = (measured(*case, ours=which) for which in (False, True))
    shown = {'defaults': theirs, 'ours': ours}
    print(json.dumps({'case': name, **shown}), flush=True)
    for what, seconds in ours.items():
      row[f'{name}_{what}_over_ours'] = round(theirs[what] / seconds, 2)
  print(json.dumps(row))


if __name__ == '__main__':
  app.run(main)
