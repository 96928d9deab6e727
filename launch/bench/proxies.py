"""Zero-cost proxies of NAS-Bench-201 against published values, and their speed.

  python -m launch.bench.proxies --out=proxies.npz

scores cells of the tables in the folder JAXNAS_DATA_DIR, on the benchmark's own
networks and one batch of CIFAR-10 (`$TFDS_DATA_DIR`), by one compiled program
for each source of proxies. With `--out` it goes on where a run was stopped.
Cells are drawn from those that NAS-Bench-Suite-Zero measured, the same for all
seeds. Prints a JSON line for each proxy,

  spearman                 with the table's values of it
  accuracy                 Spearman correlation with test accuracy; both with
                           95 % bootstrap intervals over the cells
  published_accuracy       that of the table's values, over all of its cells
  published_accuracy_here  and over those drawn
  params_accuracy          that of the parameter count, over those drawn
  cells_per_second         compiled before
  compile_seconds          for all cells, tracing included
  compilations             programs compiled for it; the proxies of one source
                           share the last three

then one for each proxy that has a plain loop in PyTorch, if that is installed
(`--torch_cells=0` to leave it out), on the same cores and cells, in turns,

  over_torch               our cells per second over the loop's, and
  cpu_over_torch           by CPU time, which other programs disturb less
  torch_spearman           of their scores and ours, of weights of their own
  same_weights             largest relative difference of the two with the same
                           weights, of a few cells

and a last one of these by proxy: `spearman_<proxy>`, `accuracy_<proxy>`, ...,
`<proxy>_over_torch`, `<proxy>_cpu_over_torch`. Weights are drawn as PyTorch
does by default, which is how the tables' were.
"""

import functools
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import stats

from jaxnas import programs, spaces, tasks
from jaxnas.base import Table
from jaxnas.estimators import zero_cost
from jaxnas.run import covered, watch_compiler
from jaxnas.spaces import nas_bench_201 as bench201
from jaxnas.spaces import supernet

_CELLS = flags.DEFINE_integer('cells', 500, 'How many.')
_CHANNELS = flags.DEFINE_integer('channels', 16, 'Of the first stage.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Cells in each stage.')
_BATCH = flags.DEFINE_integer('batch', 64, 'Images.')
_NAMES = flags.DEFINE_list(
  'names',
  ['naswot', 'synflow', 'grad_norm'],
  'Proxies; all for those with a column in the table.',
)
_SEED = flags.DEFINE_integer('seed', 0, 'Of the weights and the images.')
_INIT = flags.DEFINE_enum(
  'init', 'torch', ['torch', 'he'], 'How weights are drawn.'
)
_CONV = flags.DEFINE_string('conv', 'auto', 'The form of convolutions.')
_TABLE = flags.DEFINE_string(
  'table', 'nb201_proxies_cifar10', 'Published values.'
)
_ACCURACIES = flags.DEFINE_string(
  'accuracies', 'nb201_cifar10', 'The table of accuracies.'
)
_CHUNK = flags.DEFINE_integer('chunk', 10, 'Cells of one call.')
_TORCH_CELLS = flags.DEFINE_integer('torch_cells', 20, 'Cells of the loop.')
_OUT = flags.DEFINE_string('out', '', 'Where scores are kept; .npz.')

REPORT, CLASSES = 'test_ep200', 10
# The columns `nbsuite_*` that are not called as our proxies are.
COLUMNS = {'naswot': 'nwot', 'jacob_cov': 'jacov'}
# PyTorch draws from +-1 / sqrt(inputs), which the tables' networks did.
INITS = {
  'torch': nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform'),
  'he': nn.initializers.he_normal(),
}
_CONVS = {
  bench201.OPS.index('nor_conv_1x1'): 'conv1',
  bench201.OPS.index('nor_conv_3x3'): 'conv3',
}
# By name, because it is no dependency of this project and in no BUILD file.
_PYTORCH = 'torch'


class Cells(NamedTuple):
  """What was drawn of the tables.

  Attributes:
    genotypes: (cells, 6).
    published: for each proxy (cells,), the table's values.
    params: (cells,) numbers of parameters.
    accuracy: (cells,) test accuracies.
    everywhere: for each proxy the Spearman correlation of published values with
      accuracies, over all cells of the table.
  """

  genotypes: np.ndarray
  published: dict[str, np.ndarray]
  params: np.ndarray
  accuracy: np.ndarray
  everywhere: dict[str, float]


def column(name: str) -> str:
  """The table's column of a proxy."""
  return f'nbsuite_{COLUMNS.get(name, name)}'


def proxies(table: Table, names: list[str]) -> list[str]:
  """The names of `--names`, which the table must have."""
  there = [name for name in zero_cost.PROXIES if column(name) in table.columns]
  if names == ['all']:
    return there
  unknown = sorted(set(names) - set(there))
  if unknown:
    raise app.UsageError(f'--names: no {unknown} in {there}.')
  return names


def drawn(table: Table, names: list[str], count: int) -> Cells:
  """Random cells that have values of all proxies, the first of one order."""
  columns = {
    name: np.asarray(table.columns[column(name)], np.float64) for name in names
  }
  accuracy = np.asarray(table.columns[REPORT], np.float64)
  legal = np.asarray(table.columns['nbsuite_mask'])
  # Of NASWOT too, so that the same cells are drawn whatever the proxies.
  known = np.asarray(table.columns[column('naswot')])
  for values in (known, *columns.values()):
    legal = legal & np.isfinite(values)
  order = np.random.default_rng(0).permutation(len(legal))
  rows = order[legal[order]][:count]
  return Cells(
    bench201.genotypes()[rows],
    {name: values[rows] for name, values in columns.items()},
    np.asarray(bench201.params(bench201.genotypes()[rows])),
    accuracy[rows],
    {
      name: spearman(values[legal], accuracy[legal])
      for name, values in columns.items()
    },
  )


def images(count: int, seed: int) -> tuple[jax.Array, jax.Array]:
  """A batch of CIFAR-10, prepared, and its labels."""
  task = tasks.tfds_images('cifar10', train_examples=5000, test_examples=1000)
  rng = np.random.default_rng(seed)
  rows = rng.choice(len(task.train.targets), count, replace=False)
  inputs = task.prepare(jnp.asarray(task.train.inputs)[rows])
  return inputs, jnp.asarray(task.train.targets)[rows]


def spearman(one: np.ndarray, other: np.ndarray) -> float:
  """The rank correlation; -inf is the lowest rank."""
  return float(stats.spearmanr(one, other).statistic)


def interval(one: np.ndarray, other: np.ndarray) -> list[float]:
  """The bootstrap's 95 % interval of the rank correlation."""
  rng = np.random.default_rng(0)
  rows = rng.integers(len(one), size=(1000, len(one)))
  found = [spearman(one[row], other[row]) for row in rows]
  return [round(end, 3) for end in np.quantile(found, (0.025, 0.975))]


class Work(NamedTuple):
  """What scoring took.

  Attributes:
    seconds: for all calls, without compiling.
    compiling: seconds of compiling and tracing.
    compilations: programs compiled.
    cells: how many were scored.
  """

  seconds: float = 0.0
  compiling: float = 0.0
  compilations: int = 0
  cells: int = 0

  def plus(self, other: 'Work') -> 'Work':
    return Work(*(a + b for a, b in zip(self, other)))


Program = Callable[..., dict[str, jax.Array]]


def by_source(
  net: supernet.Supernet, names: list[str]
) -> dict[str, tuple[list[str], Program]]:
  """For each source of proxies the proxies, and what scores genotypes."""
  groups: dict[str, list[str]] = {}
  for name in names:
    groups.setdefault(zero_cost.PROXIES[name].source, []).append(name)
  score = functools.partial(zero_cost.score_genotypes, net)
  return {
    source: (group, programs.jit(functools.partial(score, names=group)))
    for source, group in groups.items()
  }


def chunk_key(start: int) -> jax.Array:
  """The key of the cells from the given place on."""
  return jax.random.fold_in(jax.random.key(_SEED.value), start)


def chunk(cells: Cells, start: int) -> tuple[jax.Array, jax.Array]:
  """The key and the genotypes of a call; the last cell is repeated."""
  rows = np.arange(start, start + _CHUNK.value)
  genotypes = cells.genotypes[rows.clip(max=len(cells.genotypes) - 1)]
  return chunk_key(start), jnp.asarray(genotypes)


def called(
  program: Program, *arguments: Any
) -> tuple[dict[str, np.ndarray], Work]:
  """What a program returns, and what it took."""
  jax.block_until_ready(arguments)
  with watch_compiler() as seen:
    started = time.monotonic()
    found = jax.block_until_ready(program(*arguments))
    seconds = time.monotonic() - started
  compiling = covered(seen.spans)
  work = Work(seconds - compiling, compiling, len(seen.programs))
  return jax.device_get(found), work


def kept(
  path: str, settings: str, names: list[str], count: int
) -> dict[str, np.ndarray]:
  """For each proxy (cells,) scores, of a run before; NaN if not there yet."""
  empty = {name: np.full(count, np.nan) for name in names}
  if not path or not pathlib.Path(path).exists():
    return empty
  with np.load(path) as file:
    if str(file['settings']) != settings:
      raise app.UsageError(
        f'--out: {path} is of a run with {file["settings"]}, not {settings}.'
      )
    found = {name: file[name][:count] for name in names if name in file.files}
  for name, scores in found.items():
    empty[name][: len(scores)] = scores
  return empty


def keep(path: str, settings: str, scores: dict[str, np.ndarray]) -> None:
  """Saves scores, and those of other proxies that are in the file."""
  if not path:
    return
  held = pathlib.Path(path)
  before: dict[str, np.ndarray] = {}
  if held.exists():
    with np.load(held) as file:
      before = {name: file[name] for name in file.files}
  partial = held.with_suffix('.partial.npz')
  np.savez(partial, **{**before, **scores, 'settings': np.array(settings)})
  os.replace(partial, held)


def scored(
  cells: Cells,
  batch: tuple[jax.Array, jax.Array],
  group: list[str],
  program: Program,
  scores: dict[str, np.ndarray],
) -> Iterator[tuple[int, Work]]:
  """Fills in what is missing, a chunk at a time.

  Yields:
    How many cells have their scores, and what those since took.
  """
  size, count = _CHUNK.value, len(cells.genotypes)
  for start in range(0, count, size):
    stop = min(start + size, count)
    if not any(np.isnan(scores[name][start:stop]).any() for name in group):
      continue
    found, work = called(program, *chunk(cells, start), *batch)
    for name in group:
      scores[name][start:stop] = found[name][: stop - start]
    yield stop, work._replace(cells=size)


def judged(
  name: str, scores: np.ndarray, cells: Cells, work: Work
) -> dict[str, Any]:
  """The line of a proxy."""
  published, accuracy = cells.published[name], cells.accuracy
  row = {
    'proxy': name,
    'cells': len(scores),
    'spearman': spearman(scores, published),
    'spearman_interval': interval(scores, published),
    'accuracy': spearman(scores, accuracy),
    'accuracy_interval': interval(scores, accuracy),
    'published_accuracy': cells.everywhere[name],
    'published_accuracy_here': spearman(published, accuracy),
    'params_accuracy': spearman(cells.params, accuracy),
    'params_accuracy_interval': interval(cells.params, accuracy),
  }
  if work.cells:
    row['cells_per_second'] = work.cells / work.seconds
  return row | compiled(work)


def compiled(work: Work) -> dict[str, Any]:
  """What compiling took."""
  if not work.compilations:
    return {}
  return {
    'compile_seconds': work.compiling,
    'compilations': work.compilations,
  }


def torch_network(torch: Any, genotype: Any, channels: int, repeats: int):
  """A network of NAS-Bench-201 in PyTorch, with the genotype in its form."""
  layers = torch.nn

  def unit(reads, writes, size, stride=1):
    conv = layers.Conv2d(reads, writes, size, stride, size // 2, bias=False)
    return layers.Sequential(layers.ReLU(), conv, layers.BatchNorm2d(writes))

  def operation(op, width):
    return {
      'skip_connect': lambda: layers.Identity(),
      'nor_conv_1x1': lambda: unit(width, width, 1),
      'nor_conv_3x3': lambda: unit(width, width, 3),
      'avg_pool_3x3': lambda: layers.AvgPool2d(
        3, 1, 1, count_include_pad=False
      ),
    }[bench201.OPS[op]]()

  class Cell(layers.Module):
    def __init__(self, width):
      super().__init__()
      self.edges = layers.ModuleDict(
        {str(i): operation(op, width) for i, op in enumerate(genotype) if op}
      )

    def forward(self, x):
      nodes = [x] + [torch.zeros_like(x)] * 3
      for name, edge in self.edges.items():
        source, target = bench201.EDGES[int(name)]
        nodes[target] = nodes[target] + edge(nodes[source])
      return nodes[3]

  class Residual(layers.Module):
    def __init__(self, reads, writes):
      super().__init__()
      self.units = layers.Sequential(
        unit(reads, writes, 3, 2), unit(writes, writes, 3)
      )
      self.shortcut = layers.Sequential(
        layers.AvgPool2d(2), layers.Conv2d(reads, writes, 1, bias=False)
      )

    def forward(self, x):
      return self.units(x) + self.shortcut(x)

  stem = layers.Conv2d(3, channels, 3, 1, 1, bias=False)
  found, width = [stem, layers.BatchNorm2d(channels)], channels
  for stage in range(3):
    if stage:
      found.append(Residual(width, 2 * width))
      width *= 2
    found += [Cell(width) for _ in range(repeats)]
  found += [layers.BatchNorm2d(width), layers.ReLU()]
  found += [layers.AdaptiveAvgPool2d(1), layers.Flatten()]
  return layers.Sequential(*found, layers.Linear(width, CLASSES))


def weighted(torch: Any, net: Any) -> list[Any]:
  """The layers with weights, but for norms."""
  kinds = (torch.nn.Conv2d, torch.nn.Linear)
  return [layer for layer in net.modules() if isinstance(layer, kinds)]


def torch_grad_norm(torch: Any, net: Any, x: Any, y: Any) -> float:
  torch.nn.functional.cross_entropy(net(x), y).backward()
  slopes = [layer.weight.grad for layer in weighted(torch, net)]
  return sum(slope.norm() for slope in slopes if slope is not None).item()


def torch_synflow(torch: Any, net: Any, x: Any, y: Any) -> float:
  """In float64, as by its authors: float32 overflows."""
  del y
  net = net.double()
  for layer in net.modules():
    if isinstance(layer, torch.nn.BatchNorm2d):
      layer.forward = lambda z: z
  with torch.no_grad():
    for layer in weighted(torch, net):
      layer.weight.abs_()
      if layer.bias is not None:
        layer.bias.zero_()
  net(torch.ones((1, *x.shape[1:]), dtype=torch.float64)).sum().backward()
  flows = [
    (layer.weight * layer.weight.grad).abs().sum()
    for layer in weighted(torch, net)
    if layer.weight.grad is not None
  ]
  return sum(flows).log().item()


def torch_naswot(torch: Any, net: Any, x: Any, y: Any) -> float:
  del y
  agreed = []

  def look(layer, inputs, output):
    del layer, output
    on = (inputs[0] > 0).flatten(1).to(x.dtype)
    agreed.append(on @ on.T + (1 - on) @ (1 - on).T)

  for layer in net.modules():
    if isinstance(layer, torch.nn.ReLU):
      layer.register_forward_hook(look)
  with torch.no_grad():
    net(x)
  return torch.linalg.slogdet(sum(agreed).double())[1].item()


LOOPS = {
  'naswot': torch_naswot,
  'synflow': torch_synflow,
  'grad_norm': torch_grad_norm,
}


def kernels(params: Any, genotype: np.ndarray) -> Iterator[np.ndarray]:
  """A supernet's kernels that a cell has, in the order of PyTorch's layers."""
  yield params['stem']['kernel']
  for stage in (1, 2, 3):
    if stage > 1:
      residual = params[f'reduce{stage}']
      for name in ('conv1', 'conv2', 'shortcut'):
        yield residual[name]['kernel']
    own = params[f'stage{stage}']
    for cell in range(len(own['conv1']['kernel'])):
      for edge, op in enumerate(genotype):
        if op in _CONVS:
          yield own[_CONVS[op]]['kernel'][cell, edge]
  yield params['logits']['kernel']


def copied(torch: Any, net: Any, params: Any, genotype: np.ndarray) -> Any:
  """A network in PyTorch with the weights of a supernet."""
  found = list(kernels(jax.device_get(params), genotype))
  with torch.no_grad():
    for layer, kernel in zip(weighted(torch, net), found, strict=True):
      # (rows, columns, in, out) to (out, in, rows, columns).
      order = (1, 0) if kernel.ndim == 2 else (3, 2, 0, 1)
      layer.weight.copy_(torch.tensor(kernel.transpose(order)))
      if layer.bias is not None:
        layer.bias.zero_()
  return net


def same_weights(
  torch: Any,
  name: str,
  net: supernet.Supernet,
  cells: Cells,
  batch: tuple[Any, Any],
  scores: np.ndarray,
) -> float:
  """The largest relative difference of scores of the first few cells."""
  init = jax.jit(net.init)
  apart = []
  for number in range(min(3, _CHUNK.value)):
    own = jax.random.fold_in(chunk_key(0), number)
    params = init(jax.random.split(own)[0])['params']
    genotype = cells.genotypes[number]
    made = torch_network(torch, genotype, _CHANNELS.value, _REPEATS.value)
    made = copied(torch, made, params, genotype)
    theirs = LOOPS[name](torch, made, *batch)
    apart.append(abs(scores[number] - theirs) / abs(theirs))
  return float(max(apart))


def against_torch(
  torch: Any,
  name: str,
  net: supernet.Supernet,
  program: Program,
  cells: Cells,
  batch: tuple[jax.Array, jax.Array],
  scores: np.ndarray,
) -> dict[str, Any]:
  """The line of a proxy and its loop in PyTorch."""
  inputs, targets = map(np.asarray, batch)
  x = torch.tensor(inputs.transpose(0, 3, 1, 2).copy())
  y = torch.tensor(targets).long()
  torch.manual_seed(_SEED.value)

  def one(genotype):
    made = torch_network(torch, genotype, _CHANNELS.value, _REPEATS.value)
    return LOOPS[name](torch, made, x, y)

  def timed(call):
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    after = time.perf_counter(), time.process_time()
    return found, np.array([after[0] - wall, after[1] - cpu])

  size, count = _CHUNK.value, _TORCH_CELLS.value
  ours, theirs, values = np.zeros(2), np.zeros(2), []
  # Both once before: ours compiles, unless cells were scored, theirs allocates.
  _, before = called(program, *chunk(cells, 0), *batch)
  one(cells.genotypes[0])
  for start in range(0, count, size):  # In turns, on the same machine.
    arguments = jax.block_until_ready((*chunk(cells, start), *batch))
    call = functools.partial(program, *arguments)
    _, spent = timed(lambda call=call: jax.block_until_ready(call()))
    ours += spent
    own = cells.genotypes[start : start + size]
    found, spent = timed(lambda own=own: [one(genotype) for genotype in own])
    theirs += spent
    values += found
  return {
    'loop': name,
    'cells': count,
    'cells_per_second': count / ours[0],
    'torch_cells_per_second': count / theirs[0],
    'over_torch': theirs[0] / ours[0],
    'cpu_over_torch': theirs[1] / ours[1],
    'torch_spearman': spearman(np.array(values), scores[:count]),
    'same_weights': same_weights(torch, name, net, cells, (x, y), scores),
    **compiled(before),
  }


def shown(row: dict[str, Any]) -> None:
  """Prints a line of JSON, with four digits."""
  digits = {
    key: float(f'{value:.4g}') if isinstance(value, float) else value
    for key, value in row.items()
  }
  print(json.dumps(digits), flush=True)


def settings() -> str:
  """What scores depend on."""
  own = (_CHANNELS, _REPEATS, _BATCH, _SEED, _INIT, _CHUNK, _TABLE)
  return json.dumps({flag.name: flag.value for flag in own})


def main(argv: list[str]) -> None:
  del argv
  if _TORCH_CELLS.value % _CHUNK.value or _TORCH_CELLS.value > _CELLS.value:
    raise app.UsageError(
      f'--torch_cells={_TORCH_CELLS.value} must be a multiple of '
      f'--chunk={_CHUNK.value}, and at most --cells={_CELLS.value}.'
    )
  jax.config.update('jax_enable_compilation_cache', False)
  table = spaces.load(_TABLE.value, _ACCURACIES.value)
  names = proxies(table, _NAMES.value)
  cells = drawn(table, names, _CELLS.value)
  count = len(cells.genotypes)
  batch = images(_BATCH.value, _SEED.value)
  net = supernet.nas_bench_201(
    channels=_CHANNELS.value,
    repeats=_REPEATS.value,
    conv=_CONV.value,
    kernel_init=INITS[_INIT.value],
  )
  scores = kept(_OUT.value, settings(), names, count)
  sources = by_source(net, names)
  last: dict[str, Any] = {'device': jax.devices()[0].device_kind}
  for source, (group, program) in sources.items():
    work = Work()
    for done, more in scored(cells, batch, group, program, scores):
      work = work.plus(more)
      keep(_OUT.value, settings(), scores)
      far = f'{source}: {done} of {count} cells, {work.seconds:.0f} s'
      print(f'{far}, {work.compiling:.0f} s compiling', file=sys.stderr)
    for name in group:
      row = judged(name, scores[name], cells, work)
      shown(row)
      for key in ('spearman', 'accuracy', 'compile_seconds', 'compilations'):
        if key in row:
          last[f'{key}_{name}'] = row[key]
      last['accuracy_params'] = row['params_accuracy']
  last |= speeds(net, sources, cells, batch, scores)
  shown(last)


def speeds(
  net: supernet.Supernet,
  sources: dict[str, tuple[list[str], Program]],
  cells: Cells,
  batch: tuple[jax.Array, jax.Array],
  scores: dict[str, np.ndarray],
) -> dict[str, Any]:
  """Prints the lines of loops, and returns what the last line says of them."""
  if not _TORCH_CELLS.value:
    return {}
  try:
    torch = importlib.import_module(_PYTORCH)
  except ModuleNotFoundError as error:
    return {'over_torch_skipped': f'{error}: pip install {_PYTORCH}'}
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  last = {}
  for group, program in sources.values():
    for name in group:
      if name in LOOPS:
        own = scores[name]
        row = against_torch(torch, name, net, program, cells, batch, own)
        shown(row)
        for key in ('over_torch', 'cpu_over_torch'):
          last[f'{name}_{key}'] = row[key]
  return last


if __name__ == '__main__':
  app.run(main)
