"""A run's folder: settings, metrics, checkpoints, and the network it found.

```
config.json      the run's settings; another run with others is refused
seed.json        the spec of the network that growth starts from
metrics.jsonl    one line for every generation of every search
tensorboard/     the same as TensorBoard events, a folder for each search
checkpoints/     one folder for each search (jaxnas.checkpoint)
best/            spec.json and weights.msgpack of the network found; of
                 members genotype.json instead of the spec
summary.json     the table of results
report.html      all of it for reading (jaxnas.report.html), made at the end
```

Nothing depends on when a run was killed: a search goes on from its last
complete generation, and lines of later ones are dropped before they are
written again. Where a run has several processes they all see the same folder,
and the first writes to it.
"""

import contextlib
import functools
import io
import json
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np

from jaxnas import checkpoint, groups, network, selection
from jaxnas import mesh as meshes
from jaxnas import spec as specs
from jaxnas.base import (
  Candidate,
  Genes,
  Key,
  Member,
  Members,
  Population,
  Stage,
  Trials,
)
from jaxnas.run import run

Folder = str | os.PathLike


class Search(NamedTuple):
  """A search that is ready to run.

  Attributes:
    name: of its lines in `metrics.jsonl` and its folder of checkpoints.
    key: of all its randomness.
    stage: one generation.
    population: the first one, a `Population`, `Members` or `Trials`.
    generations: the total number of generations.
  """

  name: str
  key: Key
  stage: Stage
  population: Population | Members | Trials
  generations: int


@meshes.by_first
def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
  """Writes a file that is there whole or not at all, in the first process."""
  partial = path.with_name(path.name + '.partial')
  if isinstance(content, str):
    partial.write_text(content)
  else:
    partial.write_bytes(content)
  os.replace(partial, path)


def claim(folder: Folder, settings: Mapping[str, Any]) -> pathlib.Path:
  """Makes a run's folder, or takes up the one that has these settings.

  Args:
    folder: the workdir.
    settings: the run's settings, plain JSON values.

  Returns:
    The folder's path.

  Raises:
    ValueError: if the folder belongs to a run with other settings (each is
      named, with both values), is not a run's folder and not empty, or is
      not one that the processes of the run share.

  Example:
    >>> import tempfile
    >>> place = claim(tempfile.mkdtemp(), {'seed': 0})
    >>> claim(place, {'seed': 1})
    Traceback (most recent call last):
      ...
    ValueError: ... seed: stored 0, received 1...
  """
  if '://' in os.fspath(folder):
    raise ValueError(
      f'--workdir must be a folder of a file system, got {os.fspath(folder)!r};'
      ' mount the bucket (gcsfuse), where every process of the run sees it.'
    )
  return meshes.first_then_all(
    functools.partial(_claim, pathlib.Path(folder), settings)
  )


def _claim(path: pathlib.Path, settings: Mapping[str, Any]) -> pathlib.Path:
  path.mkdir(parents=True, exist_ok=True)
  config = path / 'config.json'
  if not config.exists():
    others = [p.name for p in path.iterdir() if p.name != 'config.json.partial']
    if others:
      raise ValueError(
        f'{path} holds {sorted(others)[:5]} but no config.json, so it is no '
        'run to resume; give an empty or new --workdir.'
      )
    write_atomically(config, json.dumps(settings, indent=2, sort_keys=True))
  if not config.exists():
    raise ValueError(
      f'{path} is not the folder of the first process, which has put '
      'config.json there; give all processes one that they share.'
    )
  try:
    stored = json.loads(config.read_text())
  except ValueError as error:
    raise ValueError(
      f'{config} cannot be read ({error}); the checkpoints hold a copy of the '
      'settings: write them back, or give a new --workdir.'
    ) from None
  checkpoint.compare_settings(str(path), stored, settings)
  return path


def conduct(
  folder: Folder,
  search: Search,
  *,
  settings: Mapping[str, Any],
  report: Callable[[Search, Population], None] | None = None,
  keep: int = 3,
) -> Population:
  """Runs a search to its end, from wherever its folder says it is.

  Every generation is written to `metrics.jsonl` and TensorBoard and then
  saved. Killed at any moment and called again with the same arguments, it
  ends with the same population.

  Args:
    folder: the run's folder, see `claim`.
    search: the search.
    settings: stored with each checkpoint and compared on resume.
    report: called with the search and the population before the first and
      after each generation; None for silence.
    keep: checkpoints to keep.

  Returns:
    The last population.

  Raises:
    ValueError: for a checkpoint that cannot be trusted, or that was written
      with other settings.
  """
  path = pathlib.Path(folder)
  saved = path / 'checkpoints' / search.name
  found = checkpoint.restore(saved, settings=settings)
  population, state = search.population, None
  if found is not None:
    population, state = found[1]
  _forget(path / 'metrics.jsonl', search.name, population.generation)
  if population.generation >= search.generations:  # No empty file of events.
    if report is not None:
      report(search, population)
    return population
  with _log(path, search.name, population.generation) as log:

    def after(population: Population, state: Any) -> None:
      log(population.generation, summary_row(population))
      checkpoint.save(
        saved,
        population.generation,
        (population, state),
        settings=settings,
        keep=keep,
      )
      if report is not None:
        report(search, population)

    if report is not None:
      report(search, population)
    population, _ = run(
      search.key,
      search.stage,
      population,
      search.generations,
      state=state,
      after=after,
    )
  return population


@contextlib.contextmanager
def _log(
  path: pathlib.Path, name: str, generation: int
) -> Iterator[Callable[[int, Mapping[str, Any]], None]]:
  """Writes rows to `metrics.jsonl` and TensorBoard, in the first process."""
  if not meshes.is_first():
    yield lambda generation, row: None
    return
  from tensorboardX import SummaryWriter

  events = SummaryWriter(
    str(path / 'tensorboard' / name), purge_step=generation + 1
  )

  def log(generation: int, row: Mapping[str, Any]) -> None:
    line = json.dumps({'search': name, **row})
    with open(path / 'metrics.jsonl', 'a') as file:
      file.write(line + '\n')
    for metric, value in row.items():
      if isinstance(value, int | float) and math.isfinite(value):
        events.add_scalar(metric, value, generation)
    events.flush()

  with contextlib.closing(events):
    yield log


@meshes.by_first
def _forget(metrics: pathlib.Path, name: str, generation: int) -> None:
  """Drops a search's lines of generations after the given one."""
  if not metrics.exists():
    return
  kept = []
  for line in metrics.read_text().splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue  # The last line of a killed run may be half written.
    if row['search'] != name or row['generation'] <= generation:
      kept.append(line)
  write_atomically(metrics, ''.join(line + '\n' for line in kept))


def leader(population: Population) -> Candidate:
  """The best by the validation metric, of the archive and the members.

  The first among equals, the archive before the members. Candidates whose
  metric is missing or NaN come last.

  Raises:
    ValueError: for an empty population.
  """
  candidates = (*population.archive, *population.members)
  if not candidates:
    raise ValueError('an empty population has no best member.')

  def value(member: Candidate) -> float:
    metric = member.metrics.get('valid_metric', -math.inf)
    return -math.inf if math.isnan(metric) else metric

  return max(candidates, key=value)


def standing(members: Members) -> dict[str, float | None]:
  """The fitness of the best member and the median; None where none has one.

  Example:
    >>> metrics = {'fitness': np.array([1.0, np.nan, 3.0])}
    >>> standing(Members(None, metrics, None))
    {'fitness': 3.0, 'median_fitness': 2.0}
  """
  fitness = np.asarray(members.metrics['fitness'], float)
  found = fitness[np.isfinite(fitness)]
  return {
    'fitness': float(found.max()) if len(found) else None,
    'median_fitness': float(np.median(found)) if len(found) else None,
  }


def reached(trials: Trials) -> dict[str, float | None]:
  """The best fitness of the searches so far: mean and quartiles.

  Args:
    trials: of one search, or of many with a leading axis.

  Example:
    >>> metrics = {'fitness': np.array([[1.0, np.nan], [2.0, 3.0]])}
    >>> reached(Trials(None, None, metrics, 2, None, None))
    {'fitness': 2.0, 'low': 1.5, 'high': 2.5}
  """
  fitness = np.atleast_2d(np.asarray(trials.metrics['fitness'], float))
  best = np.where(np.isnan(fitness), -np.inf, fitness).max(axis=1)
  best = best[np.isfinite(best)]
  if not len(best):
    return dict.fromkeys(('fitness', 'low', 'high'))
  low, high = np.quantile(best, [0.25, 0.75])
  found = {'fitness': best.mean(), 'low': low, 'high': high}
  return {name: round(float(value), 6) for name, value in found.items()}


@functools.singledispatch
def summary_row(population: Any) -> dict[str, Any]:
  """A generation as one record of its best member and its cost.

  Of `Members` also what every one of them is: under `population` its fitness,
  genes, hyper-parameters and parents, in the order of places.

  Args:
    population: a `Population`, `Members` or `Trials`.

  Raises:
    TypeError: for anything else.
  """
  raise TypeError(
    'a search has a Population, Members or Trials, got '
    f'{type(population).__name__}.'
  )


@summary_row.register
def _(population: Trials) -> dict[str, Any]:
  index = np.atleast_2d(np.asarray(population.index))
  return {
    'generation': int(population.generation),
    'searches': len(index),
    'queries': float((index >= 0).sum(axis=1).mean()),
    **reached(population),
    **{
      name: value.item() if hasattr(value, 'item') else value
      for name, value in population.spent._asdict().items()
    },
  }


@summary_row.register
def _(population: Members) -> dict[str, Any]:
  best = int(selection.order(np.asarray(population.metrics['fitness']))[0])

  def number(value):
    return None if np.isnan(value) else float(value)

  def listed(values):
    values = np.asarray(values)
    return [number(v) for v in values] if values.ndim == 1 else values.tolist()

  return {
    'generation': population.generation,
    'members': len(population.parents),
    **{
      name: number(values[best])
      for name, values in population.metrics.items()
      if np.ndim(values) == 1
    },
    **standing(population),
    **population.spent._asdict(),
    'population': {
      'fitness': listed(population.metrics['fitness']),
      'genes': listed(population.member.genes),
      'parents': listed(population.parents),
      **{
        f'hyper/{name}': listed(values)
        for name, values in population.member.hyper.items()
      },
    },
  }


@summary_row.register
def _(population: Population) -> dict[str, Any]:
  best = leader(population)
  row = {
    'generation': population.generation,
    'members': len(population.members),
    **{
      name: value
      for name, value in best.metrics.items()
      if isinstance(value, int | float | str)
    },
    **population.spent._asdict(),
    'widths': {
      group.name: group.size
      for group in groups.growable(network.active_spec(best.net))
    },
  }
  last = [e for e in best.lineage if e.generation == population.generation - 1]
  for event in last:
    row['event'] = event.kind
    if event.kind == 'diverged':
      row['diverged'] = True  # A move may follow in the same generation.
    if event.move is not None:
      row['move'] = specs.encode(event.move)
    row['predicted'] = event.predicted
    row['measured'] = event.measured
  return row


def save_member(folder: Folder, member: Member, genes: Genes) -> None:
  """Writes `genotype.json` and `weights.msgpack` of a member.

  The weights are its layers, and under `average` their running average; what
  only training needs is left out.

  Args:
    folder: is made, or replaced as a whole.
    member: one member, without an axis of members.
    genes: what its genotype stands for.
  """
  chosen = [int(gene) for gene in np.asarray(member.genes)]
  genotype = {
    'genes': chosen,
    'names': dict(zip(genes.names, chosen)),
    'values': {
      name: options[gene]
      for name, options, gene in zip(genes.names, genes.values, chosen)
    },
    'hyper': {name: float(value) for name, value in member.hyper.items()},
  }
  weights = {'layers': member.body.layers, 'average': member.body.average}
  weights = jax.tree.map(np.asarray, weights)

  def write(path: pathlib.Path) -> None:
    text = json.dumps(genotype, indent=1) + '\n'
    (path / 'genotype.json').write_text(text)
    (path / 'weights.msgpack').write_bytes(
      flax.serialization.msgpack_serialize(weights)
    )

  _replace_folder(folder, write)


@meshes.by_first
def _replace_folder(
  folder: Folder, write: Callable[[pathlib.Path], None]
) -> None:
  """Has a folder written, which is there whole or not at all."""
  path = pathlib.Path(folder)
  partial = path.with_name(path.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  write(partial)
  shutil.rmtree(path, ignore_errors=True)
  os.replace(partial, path)


def save_figure(path: pathlib.Path, figure: Any) -> None:
  """Writes a Matplotlib figure as a PNG of 150 dots an inch.

  The same figure gives the same bytes.
  """
  image = io.BytesIO()
  figure.savefig(image, format='png', dpi=150, metadata={'Software': None})
  write_atomically(path, image.getvalue())


def save_network(folder: Folder, net: network.Network) -> None:
  """Writes `spec.json` and `weights.msgpack` (Flax serialization).

  The same network gives the same bytes.

  Args:
    folder: is made, or replaced as a whole.
    net: the network.
  """
  weights = jax.tree.map(np.asarray, network.to_host(dict(net.variables)))

  def write(path: pathlib.Path) -> None:
    (path / 'spec.json').write_text(specs.to_json(net.spec, indent=1))
    (path / 'weights.msgpack').write_bytes(
      flax.serialization.msgpack_serialize(weights)
    )

  _replace_folder(folder, write)


def load_network(folder: Folder) -> network.Network:
  """Reads a network that `save_network` wrote.

  Args:
    folder: such as `workdir/best`.

  Returns:
    The network, with NumPy leaves.

  Raises:
    ValueError: if files are missing or damaged, or weights do not fit the
      spec; the message names the file and the first difference.

  Example:
    >>> import tempfile
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> place = tempfile.mkdtemp() + '/best'
    >>> save_network(place, net)
    >>> load_network(place).spec == net.spec
    True
  """
  path = pathlib.Path(folder)

  def flat(tree):
    leaves = jax.tree_util.tree_flatten_with_path(dict(tree))[0]
    return {jax.tree_util.keystr(k): np.shape(v) for k, v in leaves}

  try:
    spec = specs.from_json((path / 'spec.json').read_text())
    want = flat(network.shapes(spec).variables)
    weights = flax.serialization.msgpack_restore(
      (path / 'weights.msgpack').read_bytes()
    )
    got = flat(weights)
  except Exception as error:  # Damaged files raise many kinds.
    raise ValueError(f'{path} holds no readable network: {error}') from error
  differ = [name for name in {**want, **got} if want.get(name) != got.get(name)]
  if differ:
    name = sorted(differ)[0]
    raise ValueError(
      f'{path}: the weights do not fit spec.json: {name} should have shape '
      f'{want.get(name)} and has {got.get(name)}.'
    )
  return network.Network(weights, spec)
