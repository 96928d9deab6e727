"""Populations against the same networks one after another in PyTorch.

  python -m launch.bench.population

trains populations of one architecture and of mixed ones, ours by
`jaxnas.training.fit_all`, theirs in PyTorch's eager mode, on the same cores
(those of the process: `taskset -c 0,1 python -m ...`), in turns, so that
whatever else the machine does meets both. How ours are trained together is
planned as for a training of `--planned` examples a network, of which a repeat
is an excerpt. Both shuffle, take batches of 64, and step by Adam. Compiling is
excluded, all other host work of ours is included. `--data=2` lets two devices
share the images of a step, which suits populations with fewer members of a
structure than there are devices. It prints a JSON line for each population:
member-steps a second of both, by wall time and by CPU time (`cpu_over_torch`,
which another program on the same cores disturbs less); and last the ratios of
the medians:

  same_p16_over_torch    16 networks of convolutions 3-16-32-32, 32 x 32
  mixed_p16_over_torch   16 of four such architectures
  mlp_p16_over_torch     16 multi-layer perceptrons 32-64-64-10
  mlp_p256_over_torch    256 of them
  morphing_share_p16     the part of a round of the first population, one repeat
                         long, in which members are chosen and morphed
"""

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import app, flags

from jaxnas import groups, morphisms, network, plans, tasks, training
from jaxnas import mesh as meshes
from jaxnas import spec as specs
from jaxnas.base import Data, Task
from jaxnas.spaces import seeds
from launch.bench import packages

_CASES = flags.DEFINE_list(
  'cases',
  [
    *('same:1', 'same:4', 'same:16', 'same:64'),
    *('mixed:4', 'mixed:16', 'mlp:1', 'mlp:16', 'mlp:256'),
  ],
  'Populations, kind:members.',
)
_FORMS = flags.DEFINE_list(
  'forms', ['strategy'], 'Of strategy, apart, in_turn and at_once.'
)
_CONV_STEPS = flags.DEFINE_integer('conv_steps', 4, 'Steps of an epoch.')
_MLP_STEPS = flags.DEFINE_integer('mlp_steps', 50, 'Steps of an epoch.')
_EPOCHS = flags.DEFINE_integer('epochs', 2, 'Epochs of a repeat.')
_PLANNED = flags.DEFINE_integer(
  'planned', 1_000_000, 'Examples for which the strategy plans.'
)
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Repeats, of which the median.')
_DEVICES = flags.DEFINE_integer(
  'devices', 0, 'CPU devices to deal members to; 0 for one for each core.'
)
_DATA = flags.DEFINE_integer(
  'data', 1, 'Over how many of the devices the images of a step are spread.'
)
_MORPHING = flags.DEFINE_boolean(
  'morphing', True, 'Also measure what choosing and morphing cost at P = 16.'
)

BATCH, CLASSES = 64, 10
MIXED = ((16, 32, 32), (12, 24, 24), (16, 32), (8, 16, 32, 32))


# By name, because it is no dependency of this project and in no BUILD file.
_PYTORCH = 'torch'


def _torch() -> Any:
  return packages.installed('launch.bench.population', _PYTORCH, _PYTORCH)


class Case(NamedTuple):
  """A population: for each member the widths of its hidden layers."""

  shape: tuple[int, ...]
  widths: tuple[tuple[int, ...], ...]
  steps: int

  @property
  def member_steps(self) -> int:
    return len(self.widths) * self.steps * _EPOCHS.value


def case(name: str) -> Case:
  """The population of `kind:members`."""
  kind, _, members = name.partition(':')
  count = int(members)
  if kind == 'mlp':
    return Case((32,), ((64, 64),) * count, _MLP_STEPS.value)
  kinds = {'same': MIXED[:1], 'mixed': MIXED}[kind]
  widths = tuple(kinds[i % len(kinds)] for i in range(count))
  return Case((32, 32, 3), widths, _CONV_STEPS.value)


def drawn(found: Case) -> tuple[np.ndarray, np.ndarray]:
  """Inputs and targets of one epoch."""
  rng = np.random.default_rng(0)
  size = BATCH * found.steps
  inputs = rng.standard_normal((size, *found.shape), dtype=np.float32)
  return inputs, rng.integers(0, CLASSES, size).astype(np.int32)


def spec_of(shape: tuple[int, ...], widths: tuple[int, ...]) -> specs.Spec:
  """3 x 3 convolutions, or dense layers, each with a ReLU."""
  if len(shape) == 1:
    return seeds.mlp(shape, widths, CLASSES)
  layers: list[tuple[str, Any]] = []
  for i, width in enumerate(widths, 1):
    layers.append((f'conv{i}', specs.Conv(width)))
    layers.append((f'act{i}', specs.Activation('relu')))
  layers += [('gap', specs.GlobalPool()), ('logits', specs.Dense(CLASSES))]
  return seeds.sequential(shape, layers)


def plan_of(form: str) -> plans.Plan:
  """`strategy`, `apart`, or the latter in a given form."""
  if form == 'strategy':
    # A training step is a forward and two backward passes.
    return lambda given, **work: plans.strategy(
      given, **{**work, 'passes': 3 * _PLANNED.value}
    )
  if form == 'apart':
    return plans.apart
  over = getattr(training, form)

  def plan(given, **work):
    return [b._replace(over=over) for b in plans.apart(given, **work)]

  return plan


def ours(found: Case, form: str) -> Callable[[], Any]:
  """Trains the population for the epochs of a repeat."""
  data = Data(*map(jax.numpy.asarray, drawn(found)))
  task = Task(
    *('bench', found.shape, CLASSES, data, data, data),
    *(tasks.cross_entropy, tasks.accuracy),
    prepare=lambda inputs: inputs,
    augment=lambda key, inputs: inputs,
  )
  keys = list(jax.random.split(jax.random.key(0), len(found.widths)))
  nets = [
    network.to_host(network.init(spec_of(found.shape, widths), key))
    for widths, key in zip(found.widths, keys)
  ]
  tx, plan = optax.adam(1e-3), plan_of(form)
  mesh = meshes.make(data=_DATA.value)
  return lambda: training.fit_all(
    *(keys, nets, task, tx),
    epochs=_EPOCHS.value,
    batch=BATCH,
    plan=plan,
    mesh=mesh,
  )


def theirs(found: Case) -> Callable[[], Any]:
  """The same in PyTorch, one network after another."""
  torch = _torch()
  inputs, targets = map(torch.from_numpy, drawn(found))
  targets = targets.long()

  def built(widths):
    layers, before = [], found.shape[-1]
    for width in widths:
      layer = torch.nn.Linear(before, width)
      if len(found.shape) > 1:
        layer = torch.nn.Conv2d(before, width, 3, padding=1)
      layers += [layer, torch.nn.ReLU()]
      before = width
    if len(found.shape) > 1:
      layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(before, CLASSES))

  if len(found.shape) > 1:
    inputs = inputs.permute(0, 3, 1, 2).contiguous()
  members = [built(widths) for widths in found.widths]
  optimizers = [torch.optim.Adam(m.parameters(), 1e-3) for m in members]

  def train():
    for member, optimizer in zip(members, optimizers):
      for _ in range(_EPOCHS.value):
        for rows in torch.randperm(len(targets)).split(BATCH):
          optimizer.zero_grad()
          outputs = member(inputs[rows])
          torch.nn.functional.cross_entropy(outputs, targets[rows]).backward()
          optimizer.step()

  return train


def timed(call: Callable[[], Any]) -> tuple[float, float]:
  """Wall and CPU seconds of a call."""
  wall, cpu = time.perf_counter(), time.process_time()
  call()
  return time.perf_counter() - wall, time.process_time() - cpu


def compared(found: Case, form: str) -> dict[str, Any]:
  """Medians of ours and theirs, measured in turns."""
  pair = (ours(found, form), theirs(found))
  compiling, _ = timed(pair[0])
  pair[1]()  # Allocates.
  seconds = [[timed(call) for call in pair] for _ in range(_REPEATS.value)]
  wall, cpu = (
    [statistics.median(row[i][j] for row in seconds) for i in range(2)]
    for j in range(2)
  )
  return {
    'member_steps_per_second': found.member_steps / wall[0],
    'torch_member_steps_per_second': found.member_steps / wall[1],
    'over_torch': wall[1] / wall[0],
    'cpu_over_torch': cpu[1] / cpu[0],
    'first_call_seconds': compiling,
  }


def morphing_share(found: Case) -> float:
  """What choosing and morphing take of a round, the rest being training.

  A quarter of the members, with their Adam states, is replaced by children of
  the best quarter with one channel more in every layer.
  """
  train = ours(found, 'apart')
  train()
  training_seconds, _ = timed(train)
  fits = train()

  def replace():
    order = np.argsort([fitted.losses[-1] for fitted in fits], kind='stable')
    for i in order[: len(fits) // 4]:
      net, state = fits[i].net, fits[i].opt_state
      wider = {g.name: g.size + 1 for g in groups.growable(net.spec)}
      morphisms.morph(
        morphisms.widen(wider), net, jax.random.key(int(i)), opt_state=state
      )

  replace()  # Compiles what draws the new weights.
  seconds, _ = timed(replace)
  return seconds / (seconds + training_seconds)


def main(argv: list[str]) -> None:
  del argv
  torch = _torch()
  cores = len(os.sched_getaffinity(0))
  torch.set_num_threads(cores)
  jax.config.update('jax_num_cpu_devices', _DEVICES.value or cores)
  found = {}
  for name in _CASES.value:
    for form in _FORMS.value:
      found[name, form] = compared(case(name), form)
      row = {'case': name, 'form': form, **_rounded(found[name, form])}
      print(json.dumps(row), flush=True)
  summary: dict[str, Any] = {}
  for kind, members in (('same', 16), ('mixed', 16), ('mlp', 16), ('mlp', 256)):
    row = found.get((f'{kind}:{members}', _FORMS.value[0]), {})
    for name in ('over_torch', 'cpu_over_torch'):
      summary[f'{kind}_p{members}_{name}'] = row.get(name, math.nan)
  if _MORPHING.value:
    summary['morphing_share_p16'] = morphing_share(case('same:16'))
  device = jax.devices()[0].device_kind
  summary['device'] = f'{device}, {cores} cores, {jax.device_count()} devices'
  print(json.dumps(_rounded(summary)))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
  return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


if __name__ == '__main__':
  app.run(main)
