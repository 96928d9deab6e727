"""Which cheap score of a network can be trusted: the study of EcoNAS.

Zhou et al., "EcoNAS: Finding Proxies for Economical Neural Architecture
Search" (CVPR 2020, arXiv 2001.01233), sections 2 and 3. Networks are drawn from
a space and trained at a reference setting, and again, from weights of their
own, at cheaper ones (`jaxnas.fidelity`). How well a cheap setting keeps their
order is its consistency. Scores that need no training
(`jaxnas.estimators.zero_cost`) stand beside them.

Departs from the paper in the number of networks, in the intervals, which it
does not give, and in that all settings are compared by the seconds that they
take, not by their operations alone.
"""

import contextlib
import itertools
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import rich.console
import rich.table

from jaxnas import (
  base,
  draw,
  fidelity,
  network,
  tasks,
  workdir,
)
from jaxnas.base import Data, Key, Task, Trainer
from jaxnas.estimators import zero_cost
from jaxnas.fidelity import Fidelity
from jaxnas.jobs.image_spaces import SIDES, SPACES, ImageSpace, Networks
from jaxnas.jobs.settings import Settings
from jaxnas.run import covered, watch_compiler

# How many images there are of digits.
_DIGITS = 1797
# What `study` takes, and what it takes where nothing is given.
DEFAULTS: dict[str, Any] = {
  'dataset': 'digits',
  'data_dir': '',
  'examples': 256,
  'valid': 600,
  'space': 'nas_bench_201',
  'channels': 8,
  'repeats': 1,
  'networks': 12,
  'unconnected': False,
  'reference': 'c0r0s0e12',
  'fidelities': ['c2r0s0e12', 'c0r2s0e12', 'c0r0s2e12', 'c0r0s0e6'],
  'zero_cost': ['params', 'synflow', 'naswot'],
  'again': False,
  'batch': 32,
  'learning_rate': 0.1,
  'weight_decay': 3e-4,
  'clip': 5.0,
  'chunk': 4,
  'seed': 0,
  'threshold': 0.5,
  'resamples': 2000,
}
# The least that is legal; of others nothing is asked but that they be there.
_LEAST = {
  'examples': 0,
  'valid': 0,
  'channels': 1,
  'repeats': 1,
  'networks': 4,
  'batch': 1,
  'weight_decay': 0,
  'chunk': 1,
  'seed': 0,
  'resamples': 100,
}
# Two trainings have equally many steps where they differ by no more than this.
_EQUAL = 0.05
# The reference again, from other weights: what no proxy need be better than.
AGAIN = 'again'
CHANNELS = 'channels against resolution'
SAMPLES = 'samples against epochs'
_UNITS = {'processor': 'processor time', 'seconds': 'wall time'}
# What it means that the first of a pair is better, or the second.
_ANSWERS = {
  CHANNELS: ('cutting channels is better', 'cutting resolution is better'),
  SAMPLES: ('more samples is better', 'more epochs is better'),
}


class Size(NamedTuple):
  """What a fidelity comes to.

  Attributes:
    channels: of the networks.
    shape: of the images.
    samples: to train on.
    epochs: of training.
    steps: of the optimizer in all of them.
    examples: that are seen in these.
  """

  channels: int
  shape: tuple[int, ...]
  samples: int
  epochs: int
  steps: int
  examples: int


class Column(NamedTuple):
  """The scores of one proxy, as far as they are known.

  Attributes:
    scores: (N,), NaN where unknown or diverged.
    done: networks scored.
    examples: seen for one network, a batch for scores without training.
    seconds: wall time for all that are done, without compiling.
    compiling: seconds of tracing and compiling.
    processor: seconds of the processor in calls that compiled nothing.
    counted: networks in these calls; 0 on other devices than CPU.
  """

  scores: np.ndarray
  done: int = 0
  examples: int = 0
  seconds: float = 0.0
  compiling: float = 0.0
  processor: float = 0.0
  counted: int = 0

  def plus(self, spent: '_Spent', networks: int) -> 'Column':
    """This column with what a call for so many networks has spent."""
    counts = spent.programs == 0 and jax.default_backend() == 'cpu'
    return self._replace(
      seconds=self.seconds + spent.seconds,
      compiling=self.compiling + spent.compiling,
      processor=self.processor + counts * spent.processor,
      counted=self.counted + counts * networks,
    )


class _Spent(NamedTuple):
  """What a call took: see `Column`; and how many programs it compiled."""

  seconds: float
  compiling: float
  processor: float
  programs: int


class Pair(NamedTuple):
  """Two proxies that answer a question of the paper: is the first better?"""

  question: str
  first: str
  second: str


class _Job(NamedTuple):
  """A study under way.

  Attributes:
    settings: of the study.
    own: the space.
    task: at full size.
    trained: the fidelities by the names of their columns, the reference first.
    sizes: what they come to.
    genotypes: (N, L).
    key: of all randomness.
    path: the workdir.
    console: where to write.
  """

  settings: Settings
  own: ImageSpace
  task: Task
  trained: dict[str, Fidelity]
  sizes: dict[str, Size]
  genotypes: np.ndarray
  key: Key
  path: pathlib.Path
  console: rich.console.Console


def study(
  settings: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Measures how well cheap scores keep the order of networks.

  Each of `networks` is trained at `reference` and at each of `fidelities`, from
  weights of its own each time, by SGD with momentum 0.9, weight decay, clipped
  gradients and a cosine over the whole of that training, as the official code
  of EcoNAS does it; its score is the best accuracy on the validation split
  after an epoch. Each of `zero_cost` is computed from one batch, of the
  networks at the size of the reference. How well a score agrees with the
  reference is told by Spearman's rho and Kendall's tau-b, each with the 95 %
  interval of a bootstrap over networks; a training that diverged ranks last.

  Networks are drawn as the space draws them, each once, and by default without
  those whose output does not depend on their input: every proxy knows these
  from the others, so that a few of them promise more than there is.

  All scores are on the same validation images, and share what is particular
  about them. What `again` adds says how much of the rest is noise: the
  reference once more, from other weights, is as consistent as a proxy can be
  expected to be.

  Killed at any moment and called again with the same settings it goes on.
  Fidelities and zero-cost scores may be added to those of a finished study, and
  `threshold` and `resamples` changed; everything else must stay.

  Args:
    settings: what differs from `DEFAULTS`:
      dataset: `'digits'`, or a name in TFDS with `data_dir`.
      examples, valid: images to train on and to score by; 0 for all there are
        to train on, and for what the data set holds out.
      space: of `SPACES`.
      channels, repeats: of its networks, at fidelity c0.
      networks: how many, 4 at least.
      unconnected: whether to draw those that are not connected, too.
      reference: a fidelity, such as `'c0r0s0e12'`.
      fidelities: cheaper ones.
      zero_cost: of `estimators.PROXIES`.
      again: whether to train the reference twice.
      batch, learning_rate, weight_decay, clip: of training.
      chunk: networks that are trained in one call, and saved after it.
      seed: of the data, the networks, their weights and the bootstrap.
      threshold: the rho that a proxy must have to be recommended.
      resamples: of the bootstrap.
    folder: the workdir. `columns/` has the scores of each proxy.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: `proxies`, for each name `rho`, `tau`,
    their intervals, and what a network cost, `examples`, and relative to the
    reference `flops` (None where nothing is trained), `seconds` of wall time
    without compiling, and `cost`: on CPU the seconds of the processor, which
    other programs disturb less, where it is known of all, and elsewhere wall
    time; `pairs`, the differences in rho of comparable proxies, and
    `questions`, their means; `recommended`, with the reason in words; and
    `reference`, what there was to agree with. `consistency.png` shows it.

  Raises:
    ValueError: for illegal settings, before anything is computed, and for a
      folder that holds another study.
    ImportError, FileNotFoundError: if the data cannot be read.
  """
  console = console or rich.console.Console()
  settings = check(settings)
  own = SPACES[settings['space']]
  task = read(settings)
  trained = _named(settings)
  sizes = {name: sized(settings, task, own) for name, own in trained.items()}
  key = jax.random.key(settings['seed'])
  genotypes = draw_networks(
    network.named_key(key, 'networks'),
    own,
    settings['networks'],
    unconnected=settings['unconnected'],
  )
  _refuse_dear(settings, task, sizes, genotypes)
  path = workdir.claim(folder, _claimed(settings))
  (path / 'columns').mkdir(exist_ok=True)
  console.print(
    f'{task.name}: {len(task.train.targets):,} training and '
    f'{len(task.valid.targets):,} validation images; {len(genotypes)} networks '
    f'of {own.space.name}; {len(sizes)} trainings of each; '
    f'{jax.device_count()} {jax.default_backend()} device(s); {path}',
    highlight=False,
  )
  job = _Job(
    *(settings, own, task, trained, sizes, genotypes, key, path, console)
  )
  summary = _summarised(job, {**_train(job), **_scored(job)})
  workdir.write_atomically(
    path / 'summary.json', json.dumps(summary, indent=2) + '\n'
  )
  figure = draw.consistency(
    points(summary),
    x=f"cost of a network, of the reference's ({_UNITS[summary['cost']]})",
    threshold=settings['threshold'],
  )
  figure.savefig(path / 'consistency.png', dpi=150)
  console.print(results(summary))
  again = summary['proxies'].get(AGAIN)
  if again is not None:
    low, high = again['rho_interval']
    console.print(
      'the reference agrees with itself, trained again, by rho '
      f'{again["rho"]:.2f} ({low:.2f} to {high:.2f})',
      highlight=False,
      soft_wrap=True,
    )
  several = [row for row in summary['questions'] if row['pairs'] > 1]
  for row in (*summary['pairs'], *several):
    console.print(_in_words(row), highlight=False, soft_wrap=True)
  console.print(
    summary['recommended']['reason'], highlight=False, soft_wrap=True
  )
  console.print(f'everything is in {path}', highlight=False)
  return summary


def check(settings: Settings) -> dict[str, Any]:
  """The settings of a study, whole, and refused where they cannot be.

  Args:
    settings: what differs from `DEFAULTS`.

  Returns:
    All of them, as plain values.

  Raises:
    ValueError: naming the flag, what it is and what is legal.

  Example:
    >>> check({'networks': 3})
    Traceback (most recent call last):
      ...
    ValueError: --networks must be at least 4, got 3.
  """
  unknown = sorted(set(settings) - set(DEFAULTS))
  if unknown:
    raise ValueError(
      f'a study has no settings {unknown}; there are {", ".join(DEFAULTS)}.'
    )
  held = DEFAULTS | dict(settings)
  for name in ('fidelities', 'zero_cost'):
    if isinstance(held[name], str):
      raise ValueError(f'--{name} must be a list, got {held[name]!r}.')
    held[name] = list(held[name])
  for name, low in _LEAST.items():
    if not held[name] >= low:
      raise ValueError(f'--{name} must be at least {low}, got {held[name]!r}.')
  for name in ('learning_rate', 'clip'):
    if not held[name] > 0:
      raise ValueError(f'--{name} must be above 0, got {held[name]!r}.')
  if not -1 <= held['threshold'] <= 1:
    raise ValueError(
      f'--threshold must be a rho, of -1 to 1, got {held["threshold"]!r}.'
    )
  own = SPACES.get(held['space'])
  if own is None:
    raise ValueError(
      f'--space must be one of {", ".join(SPACES)}, got {held["space"]!r}.'
    )
  if held['channels'] % own.widths:
    raise ValueError(
      f'--channels must be a multiple of {own.widths} in {held["space"]}, '
      f'got {held["channels"]}.'
    )
  if own.space.size and held['networks'] > own.space.size:
    raise ValueError(
      f'--networks must be at most {own.space.size}, all of '
      f'{held["space"]}, got {held["networks"]}.'
    )
  _refuse_names(held)
  return held


def _refuse_names(held: Settings) -> None:
  """Refuses fidelities and zero-cost scores by their names."""
  _parsed('reference', held['reference'])
  for text in held['fidelities']:
    _parsed('fidelities', text)
  for flag in ('fidelities', 'zero_cost'):
    twice = [name for name in held[flag] if held[flag].count(name) > 1]
    if twice:
      raise ValueError(f'--{flag} has {twice[0]} twice.')
  if held['reference'] in held['fidelities']:
    raise ValueError(
      f'--fidelities has the reference, {held["reference"]}, itself; --again '
      'trains it twice.'
    )
  if not held['fidelities'] and not held['zero_cost'] and not held['again']:
    raise ValueError('there is nothing to study: no --fidelities or such.')
  unknown = [n for n in held['zero_cost'] if n not in zero_cost.PROXIES]
  if unknown:
    raise ValueError(
      f'--zero_cost must be of {", ".join(zero_cost.PROXIES)}, got '
      f'{unknown[0]!r}.'
    )


def _parsed(flag: str, text: str) -> Fidelity:
  try:
    return fidelity.parse(text)
  except ValueError as error:
    raise ValueError(f'--{flag}: {error}') from None


def _named(settings: Settings) -> dict[str, Fidelity]:
  """The fidelities by the names of their columns, the reference first."""
  names = [settings['reference'], *settings['fidelities']]
  found = {name: fidelity.parse(name) for name in names}
  if settings['again']:
    found[AGAIN] = found[settings['reference']]
  return found


def _claimed(settings: Settings) -> dict[str, Any]:
  """The settings on which a column depends."""
  free = ('fidelities', 'zero_cost', 'again', 'threshold', 'resamples')
  return {n: value for n, value in settings.items() if n not in free}


def read(settings: Settings) -> Task:
  """The task that `dataset`, `examples` and `valid` name.

  Raises:
    ValueError: if there are not so many images, or they cannot be the input.

  Example:
    >>> task = read(DEFAULTS)
    >>> len(task.train.targets), len(task.valid.targets)
    (256, 600)
  """
  examples, valid, seed = (
    settings[name] for name in ('examples', 'valid', 'seed')
  )
  if settings['dataset'] == 'digits':
    held_out = {'valid': valid / _DIGITS} if valid else {}
    task = tasks.digits(seed=seed, **held_out)
  else:
    # A tenth is held out, as of the whole set, where nothing else is said.
    total = examples + (valid or round(examples / 9))
    task = tasks.tfds_images(
      settings['dataset'],
      data_dir=settings['data_dir'] or None,
      seed=seed,
      valid=valid / total if examples and valid else 0.1,
      train_examples=total if examples else None,
      test_examples=1,  # They are not read.
    )
  if any(side % SIDES for side in task.shape[:2]):
    raise ValueError(
      f'--dataset={settings["dataset"]} has images of {task.shape}, and '
      f'networks of {settings["space"]} take sides that are multiples of '
      f'{SIDES}.'
    )
  rng = np.random.default_rng(seed)
  return task._replace(
    train=_some(rng, 'examples', task.train, examples),
    valid=_some(rng, 'valid', task.valid, valid),
  )


def _some(rng: np.random.Generator, flag: str, split: Data, count: int) -> Data:
  """So many examples of a split, in a random order; all of them for 0."""
  there = len(split.targets)
  if count > there:
    raise ValueError(f'--{flag} must be at most {there} here, got {count}.')
  if not count or count == there:
    return split
  chosen = rng.permutation(there)[:count]
  return jax.tree.map(lambda leaf: leaf[chosen], split)


def sized(settings: Settings, task: Task, own: Fidelity) -> Size:
  """What a fidelity comes to.

  Args:
    settings: of the study, whole.
    task: at full size.
    own: the fidelity.

  Raises:
    ValueError: where nothing of about the size that an index says is possible,
      and where less than a batch would be left.

  Example:
    >>> sized(DEFAULTS, read(DEFAULTS), fidelity.parse('c2r2s2e3'))
    Size(channels=4, shape=(4, 4, 1), samples=128, epochs=3, steps=12, \
examples=384)
  """
  widths = SPACES[settings['space']].widths
  channels = fidelity.left(own, 'channels', settings['channels'], widths)
  *sides, depth = task.shape
  sides = (fidelity.left(own, 'resolution', n, SIDES) for n in sides)
  samples = fidelity.left(own, 'samples', len(task.train.targets))
  batch = settings['batch']
  if samples < batch:
    raise ValueError(
      f'{own}: there are {samples} images to train on, and --batch is {batch}.'
    )
  steps = own.epochs * (samples // batch)
  return Size(
    channels, (*sides, depth), samples, own.epochs, steps, steps * batch
  )


def _refuse_dear(
  settings: Settings,
  task: Task,
  sizes: Mapping[str, Size],
  genotypes: np.ndarray,
) -> None:
  """Refuses proxies that are the same, or cost as much as the reference."""
  fidelities = [n for n in sizes if n not in (settings['reference'], AGAIN)]
  for one, other in itertools.combinations(fidelities, 2):
    if sizes[one] == sizes[other]:
      raise ValueError(
        f'--fidelities: {one} and {other} are the same here, {sizes[one]}.'
      )
  first = genotypes[:1]
  whole = sizes[settings['reference']]
  flops = _flops(settings, task, whole, first)
  for name in fidelities:
    part = _flops(settings, task, sizes[name], first) / flops
    part *= sizes[name].examples / whole.examples
    if part >= 1:
      raise ValueError(
        f'--reference={settings["reference"]} is no dearer than {name}, which '
        f'has {part:.3g} times its multiply-adds; a proxy must be cheaper.'
      )


def _networks(settings: Settings, task: Task, size: Size) -> Networks:
  make = SPACES[settings['space']].networks
  return make(
    channels=size.channels,
    layers=3 * settings['repeats'],
    classes=task.outputs,
    shape=size.shape,
  )


def _flops(
  settings: Settings, task: Task, size: Size, genotypes: np.ndarray
) -> float:
  """Forward operations of all networks for an example."""
  net = _networks(settings, task, size)
  return float(sum(network.flops(net.spec(row)) for row in genotypes))


@contextlib.contextmanager
def _timed() -> Iterator[Callable[[], _Spent]]:
  """Yields a function for what was spent so far."""
  started, busy = time.monotonic(), time.process_time()
  with watch_compiler() as seen:

    def spent() -> _Spent:
      compiling = covered(seen.spans)
      seconds = time.monotonic() - started - compiling
      processor = time.process_time() - busy
      return _Spent(seconds, compiling, processor, len(seen.programs))

    yield spent


def _train(job: _Job) -> dict[str, Column]:
  """The columns of all trainings, as far as they are not there.

  Some networks at all settings, then some more: what else the machine does
  meanwhile disturbs all settings alike.
  """
  columns = {name: _stored(job, name) for name in job.trained}
  count, chunk = len(job.genotypes), job.settings['chunk']
  trainers = {
    name: _trainer(job, name)
    for name, column in columns.items()
    if column.done < count
  }
  for end in range(chunk, count + chunk, chunk):
    for name, trainer in trainers.items():
      rows = np.arange(columns[name].done, min(end, count))
      if len(rows):
        columns[name] = _further(job, name, trainer, columns[name], rows)
        _store(job, name, columns[name])
        _tell(job, name, columns)
  return columns


def _trainer(job: _Job, name: str) -> Trainer:
  size = job.sizes[name]
  return _networks(job.settings, job.task, size).trainer(
    _reduced(job, job.trained[name]),
    optimizer(job.settings, size.steps),
    epochs=size.epochs,
    batch=job.settings['batch'],
    slots=job.settings['chunk'],
  )


def _reduced(job: _Job, own: Fidelity) -> Task:
  key = network.named_key(job.key, 'subset')
  return fidelity.reduce(job.task, own, key, multiple=SIDES)


def _further(
  job: _Job, name: str, trainer: Trainer, column: Column, rows: np.ndarray
) -> Column:
  """A column with the scores of some more networks."""
  key = network.named_key(job.key, name)
  keys = [jax.random.fold_in(key, int(row)) for row in rows]
  with _timed() as spent:
    taught = trainer.train(keys, job.genotypes[rows], [None] * len(rows))
    took = spent()
  scores = column.scores.copy()
  scores[rows] = [one.fitness for one in taught]
  column = column._replace(
    scores=scores, done=int(rows[-1]) + 1, examples=taught[0].examples
  )
  return column.plus(took, len(rows))


def optimizer(settings: Settings, steps: int) -> optax.GradientTransformation:
  """SGD as in the official code of EcoNAS, with a cosine over so many steps."""
  schedule = optax.cosine_decay_schedule(settings['learning_rate'], steps)
  return optax.chain(
    optax.clip_by_global_norm(settings['clip']),
    optax.add_decayed_weights(settings['weight_decay']),
    optax.sgd(schedule, momentum=0.9),
  )


def _scored(job: _Job) -> dict[str, Column]:
  """The columns of all zero-cost scores."""
  return {name: _score(job, name) for name in job.settings['zero_cost']}


def _score(job: _Job, name: str) -> Column:
  column = _stored(job, name)
  if column.done:
    return column
  reference = job.settings['reference']
  task = _reduced(job, job.trained[reference])
  of_batch, of_scores = jax.random.split(network.named_key(job.key, name))
  order = jax.random.permutation(of_batch, len(task.train.targets))
  rows = np.asarray(order)[: job.settings['batch']]
  inputs, targets = task.prepare(task.train.inputs[rows]), task.train.targets
  score = _networks(job.settings, job.task, job.sizes[reference]).scorer(name)
  given = of_scores, job.genotypes, inputs, targets[rows]
  with _timed() as spent:
    score(*given)  # Compiles.
    column = column._replace(compiling=spent().compiling)
  with _timed() as spent:
    scores = np.asarray(score(*given), float)
    column = column.plus(spent(), len(scores))
  column = column._replace(scores=scores, done=len(scores), examples=len(rows))
  _store(job, name, column)
  job.console.print(
    f'{name:>12}: {len(scores)} networks in {column.seconds:.1f} s, compiled '
    f'in {column.compiling:.0f} s',
    highlight=False,
  )
  return column


def _tell(job: _Job, name: str, columns: Mapping[str, Column]) -> None:
  """One line of progress, with the time that is left for training."""
  column, count = columns[name], len(job.genotypes)
  seen = column.scores[: column.done]
  seen = seen[np.isfinite(seen)]
  spread = f'{seen.min():.3f} to {seen.max():.3f}' if len(seen) else 'none'
  # Those that were not begun take no longer for an example than these did.
  known = [c for c in columns.values() if c.done]
  rate = sum(c.seconds for c in known) / sum(c.examples * c.done for c in known)
  compiling = sum(c.compiling for c in known) / len(known)
  left = sum(
    (count - other.done) * other.seconds / other.done
    if other.done
    else count * job.sizes[own].examples * rate + compiling
    for own, other in columns.items()
  )
  job.console.print(
    f'{name:>12}: {column.done}/{count} networks, accuracy {spread}; '
    f'{column.seconds:.0f} s, {column.compiling:.0f} s compiling; about '
    f'{left / 60:.0f} min left',
    highlight=False,
    soft_wrap=True,
  )


def _place(job: _Job, name: str) -> pathlib.Path:
  return job.path / 'columns' / f'{name}.npz'


def _store(job: _Job, name: str, column: Column) -> None:
  """Writes a column, which is there whole or not at all."""
  path = _place(job, name)
  partial = path.with_name(path.name + '.partial')
  with open(partial, 'wb') as file:
    np.savez(file, **column._asdict())
  os.replace(partial, path)


def _stored(job: _Job, name: str) -> Column:
  """A column as far as it is there."""
  path = _place(job, name)
  count = len(job.genotypes)
  if not path.exists():
    return Column(np.full(count, np.nan))
  try:
    with np.load(path) as file:
      found = {field: file[field] for field in Column._fields}
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise ValueError(
      f'{path} cannot be read ({error}); delete it to measure it again.'
    ) from None
  scores = found.pop('scores')
  return Column(scores, **{n: value.item() for n, value in found.items()})


def draw_networks(
  key: Key, own: ImageSpace, count: int, *, unconnected: bool = False
) -> np.ndarray:
  """Different networks of a space, uniformly as the space draws them.

  Args:
    key: of the draws.
    own: the space.
    count: how many.
    unconnected: whether those may be among them whose output does not depend
      on the input.

  Returns:
    (count, L) genotypes.

  Raises:
    ValueError: if there are not so many.

  Example:
    >>> found = draw_networks(jax.random.key(0), SPACES['nas_bench_201'], 5)
    >>> found.shape, len(np.unique(found, axis=0))
    ((5, 6), 5)
  """
  found: dict[Any, np.ndarray] = {}
  drawn = jax.jit(jax.vmap(own.space.sample))
  indices = jax.jit(jax.vmap(own.space.index))
  for number in range(100):
    keys = jax.random.split(jax.random.fold_in(key, number), 4 * count)
    genotypes = np.asarray(drawn(keys))
    numbers = np.asarray(indices(genotypes)) if own.space.size else None
    for place, genotype in enumerate(genotypes):
      name = tuple(genotype) if numbers is None else int(numbers[place])
      if name not in found and (unconnected or own.connected(genotype)):
        found[name] = genotype
      if len(found) == count:
        return np.stack(list(found.values()))
  raise ValueError(
    f'--networks is {count}, and {own.space.name} has hardly so many that '
    'differ and are connected.'
  )


def resamples(
  rng: np.random.Generator, networks: int, count: int
) -> np.ndarray:
  """How often each network is in each sample: first all, each once.

  Args:
    rng: draws the samples.
    networks: how many there are, N.
    count: samples with replacement.

  Returns:
    (1 + count, N) of sum N.

  Example:
    >>> resamples(np.random.default_rng(0), 3, 2).sum(axis=1).tolist()
    [3.0, 3.0, 3.0]
  """
  drawn = rng.multinomial(networks, np.full(networks, 1 / networks), size=count)
  return np.concatenate([np.ones((1, networks)), drawn])


def agreement(
  reference: Any, scores: Any, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Spearman's rho and Kendall's tau-b of two scores, of many samples.

  Equal scores share a rank; what is NaN or -inf comes last. Where one of the
  two has no order, as in a sample of one network, both are 0.

  Args:
    reference: (N,) the scores to agree with.
    scores: (N,) others.
    counts: (B, N) how often each network is in each sample.

  Returns:
    (B,) rho and (B,) tau.

  Example:
    >>> rho, tau = agreement([1, 2, 3, 4], [1, 2, 4, 3], np.ones((1, 4)))
    >>> round(rho.item(), 3), round(tau.item(), 3)
    (0.8, 0.667)
  """
  a, b = _signs(reference), _signs(scores)
  # The mid-rank of a network is half of what is below less what is above it,
  # and a constant.
  ranks_a, ranks_b = counts @ a.T, counts @ b.T

  def inner(x, y):
    return (counts * x * y).sum(axis=1)

  def ordered(x, y):
    return inner(counts @ (x * y).T, 1.0)

  def ratio(above, one, other):
    below = np.sqrt(one * other)
    return np.where(below > 0, above / np.where(below > 0, below, 1), 0.0)

  rho = ratio(
    inner(ranks_a, ranks_b), inner(ranks_a, ranks_a), inner(ranks_b, ranks_b)
  )
  return rho, ratio(ordered(a, b), ordered(a, a), ordered(b, b))


def _signs(scores: Any) -> np.ndarray:
  """(N, N): 1 where the first is better than the second, -1 where worse."""
  scores = np.asarray(scores, float)
  scores = np.where(np.isnan(scores), -np.inf, scores)[:, None]
  return (scores > scores.T).astype(float) - (scores < scores.T)


def interval(draws: np.ndarray) -> list[float]:
  """The 95 % interval of a bootstrap: the percentiles of its draws.

  Of made-up scores of 12 to 50 networks it holds the true rho in 92 to 98 % of
  studies, more often for fewer networks and higher rho.
  """
  return [float(end) for end in np.quantile(draws, [0.025, 0.975])]


def comparable(
  trained: Mapping[str, Fidelity],
  sizes: Mapping[str, Size],
  reference: Fidelity = Fidelity(),
) -> list[Pair]:
  """The pairs of proxies that answer the two questions of the paper.

  Channels against resolution: two that differ in that one cuts channels by the
  steps by which the other cuts resolution, c4r2 and c2r4 too. Samples against
  epochs: two of equally many steps (to 5 %), of which one has more samples and
  fewer epochs.

  Args:
    trained: the fidelities by name, without the reference.
    sizes: what they come to, by name.
    reference: from which cuts of channels and resolution count.

  Returns:
    The pairs; first the one that cuts channels more, or has more samples.

  Example:
    >>> names = ['c2r0s0e4', 'c0r2s0e4', 'c0r0s2e4', 'c0r0s0e2']
    >>> trained = {name: fidelity.parse(name) for name in names}
    >>> sizes = {name: sized(DEFAULTS, read(DEFAULTS), own)
    ...          for name, own in trained.items()}
    >>> [pair[1:] for pair in comparable(trained, sizes)]
    [('c2r0s0e4', 'c0r2s0e4'), ('c0r0s0e2', 'c0r0s2e4')]
  """
  found = []
  for one, other in itertools.permutations(trained, 2):
    a, b = trained[one], trained[other]
    first, second = (
      (own.channels - reference.channels, own.resolution - reference.resolution)
      for own in (a, b)
    )
    swapped = first == second[::-1] and a.channels > b.channels
    rest = [(own.samples, own.epochs) for own in (a, b)]
    if swapped and rest[0] == rest[1]:
      found.append(Pair(CHANNELS, one, other))
    steps = sizes[one].steps, sizes[other].steps
    close = abs(steps[0] - steps[1]) <= _EQUAL * max(steps)
    if first == second and a.samples < b.samples and close:
      found.append(Pair(SAMPLES, one, other))
  return sorted(found, key=lambda pair: pair.question)


def recommend(
  proxies: Mapping[str, Mapping[str, Any]], threshold: float
) -> dict[str, str]:
  """The cheapest proxy that is good for certain, or else the best.

  Args:
    proxies: for each name `rho`, `rho_interval` and `cost`, relative to the
      reference.
    threshold: what the lower end of the interval must reach.

  Returns:
    `proxy`, `certain`, and `reason` in words.

  Example:
    >>> good = {'rho': 0.8, 'rho_interval': [0.6, 0.9], 'cost': 0.2}
    >>> cheap = {'rho': 0.7, 'rho_interval': [0.4, 0.9], 'cost': 0.1}
    >>> print(recommend({'c2r2s0e9': good, 'params': cheap}, 0.5)['reason'])
    Recommended: c2r2s0e9, the cheapest of 1 proxy (of 2) whose rho is at \
least 0.5 by the lower end of its interval: 0.80 (0.60 to 0.90), at 20 % of \
the reference's cost.
  """
  certain = [
    n for n, row in proxies.items() if row['rho_interval'][0] >= threshold
  ]
  if certain:
    name = min(certain, key=lambda name: proxies[name]['cost'])
    many = f'{len(certain)} prox{"y" if len(certain) == 1 else "ies"}'
    why = (
      f'Recommended: {name}, the cheapest of {many} (of {len(proxies)}) whose '
      f'rho is at least {threshold:g} by the lower end of its interval'
    )
  else:
    name = max(proxies, key=lambda name: proxies[name]['rho'])
    why = (
      f'Not certain: {name}, which has the highest rho, but no rho is at least '
      f'{threshold:g} by the lower end of its interval; more --networks, or a '
      'dearer proxy, would tell'
    )
  row = proxies[name]
  low, high = row['rho_interval']
  return {
    'proxy': name,
    'certain': bool(certain),
    'reason': (
      f'{why}: {row["rho"]:.2f} ({low:.2f} to {high:.2f}), at '
      f"{100 * row['cost']:.2g} % of the reference's cost."
    ),
  }


def _summarised(job: _Job, columns: Mapping[str, Column]) -> dict[str, Any]:
  settings, count = job.settings, len(job.genotypes)
  rng = base.rng(network.named_key(job.key, 'bootstrap'))
  counts = resamples(rng, count, settings['resamples'])
  whole = columns[settings['reference']]
  agreed = {
    name: agreement(whole.scores, column.scores, counts)
    for name, column in columns.items()
    if name != settings['reference']
  }
  rows = _rows(job, columns, agreed)
  pairs, questions = _compared(job, {n: rho for n, (rho, _) in agreed.items()})
  candidates = {n: row for n, row in rows.items() if n != AGAIN} or rows
  return {
    'reference': _described(settings['reference'], whole),
    'cost': 'processor' if _counted(columns) else 'seconds',
    'proxies': rows,
    'pairs': pairs,
    'questions': questions,
    'recommended': recommend(candidates, settings['threshold']),
    'sizes': {
      name: {**size._asdict(), 'shape': list(size.shape)}
      for name, size in job.sizes.items()
    },
    'networks': job.genotypes.tolist(),
    'scores': {
      name: [float(s) if np.isfinite(s) else None for s in column.scores]
      for name, column in columns.items()
    },
    'settings': dict(settings),
  }


def _counted(columns: Mapping[str, Column]) -> bool:
  """Whether the time of the processor is known of all."""
  return all(column.counted for column in columns.values())


def _cost(column: Column, counted: bool) -> float:
  """Seconds for a network, of the processor or on the wall."""
  if counted:
    return column.processor / column.counted
  return column.seconds / column.done


def _rows(job: _Job, columns, agreed) -> dict[str, dict[str, Any]]:
  """What is known of each proxy."""
  whole, counted = columns[job.settings['reference']], _counted(columns)
  # Networks and images of one size are counted once.
  once = {size[:2]: size for size in job.sizes.values()}
  flops = {
    key: _flops(job.settings, job.task, size, job.genotypes)
    for key, size in once.items()
  }
  work = {n: flops[size[:2]] * size.examples for n, size in job.sizes.items()}
  full = work[job.settings['reference']]
  return {
    name: {
      'rho': float(rho[0]),
      'rho_interval': interval(rho[1:]),
      'tau': float(tau[0]),
      'tau_interval': interval(tau[1:]),
      'examples': columns[name].examples,
      'flops': work[name] / full if name in work else None,
      'seconds': columns[name].seconds / whole.seconds,
      'compiling': columns[name].compiling,
      'cost': _cost(columns[name], counted) / _cost(whole, counted),
      'diverged': int(np.isnan(columns[name].scores).sum()),
    }
    for name, (rho, tau) in agreed.items()
  }


def _compared(job: _Job, rhos: Mapping[str, np.ndarray]) -> tuple[list, list]:
  """Comparable proxies, and the mean of all that answer one question."""
  reference = job.settings['reference']
  trained = {
    n: own for n, own in job.trained.items() if n not in (reference, AGAIN)
  }
  draws: dict[str, list[np.ndarray]] = {}
  pairs, questions = [], []
  for pair in comparable(trained, job.sizes, job.trained[reference]):
    less = rhos[pair.first] - rhos[pair.second]
    draws.setdefault(pair.question, []).append(less)
    pairs.append({**pair._asdict(), **_difference(pair.question, less)})
  for question, found in draws.items():
    mean = _difference(question, np.mean(found, axis=0))
    questions.append({'question': question, 'pairs': len(found), **mean})
  return pairs, questions


def _described(name: str, column: Column) -> dict[str, Any]:
  """What there is to agree with."""
  finite = column.scores[np.isfinite(column.scores)]
  known = len(finite) > 0
  return {
    'fidelity': name,
    'mean': float(finite.mean()) if known else None,
    'std': float(finite.std(ddof=1)) if len(finite) > 1 else None,
    'low': float(finite.min()) if known else None,
    'high': float(finite.max()) if known else None,
    'diverged': len(column.scores) - len(finite),
    'examples': column.examples,
    'seconds': column.seconds / column.done,
    'processor': _cost(column, True) if column.counted else None,
    'compiling': column.compiling,
  }


def _difference(question: str, draws: np.ndarray) -> dict[str, Any]:
  """What is known of a difference in rho, by its draws."""
  low, high = interval(draws[1:])
  first, second = _ANSWERS[question]
  verdict = first if low > 0 else second if high < 0 else 'undecided'
  return {
    'difference': float(draws[0]),
    'interval': [low, high],
    'verdict': verdict,
  }


def _in_words(row: Mapping[str, Any]) -> str:
  """A pair, or a question, in a line."""
  low, high = row['interval']
  what = (
    f'rho of {row["first"]} less {row["second"]}'
    if 'first' in row
    else f'the mean of {row["pairs"]}'
  )
  return (
    f'{row["question"]}: {what} is {row["difference"]:+.2f} '
    f'({low:+.2f} to {high:+.2f}), {row["verdict"]}'
  )


def kind(name: str, reference: Fidelity = Fidelity()) -> str:
  """What a proxy saves of a reference, in words.

  Example:
    >>> kind('c2r2s0e9'), kind('c0r0s0e3'), kind('synflow')
    ('channels and resolution', 'epochs', 'no training')
  """
  if name == AGAIN:
    return 'the reference again'
  try:
    own = fidelity.parse(name)
  except ValueError:
    return 'no training'
  fields = ('channels', 'resolution', 'samples')
  cut = [n for n in fields if getattr(own, n) != getattr(reference, n)]
  return ' and '.join(cut) or 'epochs'


def points(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """A study's proxies as `draw.consistency` takes them."""
  reference = fidelity.parse(summary['reference']['fidelity'])
  return {
    name: {
      'x': max(row['cost'], 1e-6),  # On a logarithmic axis.
      'y': row['rho'],
      'low': row['rho_interval'][0],
      'high': row['rho_interval'][1],
      'kind': kind(name, reference),
    }
    for name, row in summary['proxies'].items()
  }


def results(summary: Mapping[str, Any]) -> rich.table.Table:
  """The table of a study: one row for each proxy, the best first."""
  whole = summary['reference']
  table = rich.table.Table(
    title=(
      f'Agreement with {whole["fidelity"]} of {len(summary["networks"])} '
      f'networks ({whole["seconds"]:.3g} s each); cost: '
      f'{_UNITS[summary["cost"]]}'
    )
  )
  table.add_column('proxy', no_wrap=True)
  for title in ('rho', '95 %', 'tau', 'examples', 'flops', 'cost'):
    table.add_column(title, justify='right', no_wrap=True)

  def share(value: float | None) -> str:
    return '' if value is None else f'{100 * value:.2f} %'

  rows = summary['proxies']
  for name in sorted(rows, key=lambda name: -rows[name]['rho']):
    row = rows[name]
    low, high = row['rho_interval']
    table.add_row(
      name,
      f'{row["rho"]:.2f}',
      f'{low:.2f} to {high:.2f}',
      f'{row["tau"]:.2f}',
      f'{row["examples"]:,}',
      share(row['flops']),
      share(row['cost']),
    )
  return table
