"""The scores of a study of proxies: one column for each way to get them.

Networks are trained at one fidelity after another, or scored without training,
and what that takes is counted. A column is saved as it grows, and gone on with.
"""

import contextlib
import io
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax
import rich.console

from jaxnas import fidelity, network, workdir
from jaxnas.base import Key, Task, Trainer
from jaxnas.fidelity import Fidelity
from jaxnas.jobs.image_spaces import SIDES, ImageSpace
from jaxnas.jobs.proxy_plan import Size, networks
from jaxnas.jobs.settings import Settings
from jaxnas.run import covered, watch_compiler


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

  def plus(self, spent: 'Spent', networks: int) -> 'Column':
    """This column with what a call for so many networks has spent."""
    counts = spent.programs == 0 and jax.default_backend() == 'cpu'
    return self._replace(
      seconds=self.seconds + spent.seconds,
      compiling=self.compiling + spent.compiling,
      processor=self.processor + counts * spent.processor,
      counted=self.counted + counts * networks,
    )


class Spent(NamedTuple):
  """What a call took: see `Column`; and how many programs it compiled."""

  seconds: float
  compiling: float
  processor: float
  programs: int


class Study(NamedTuple):
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


@contextlib.contextmanager
def _timed() -> Iterator[Callable[[], Spent]]:
  """Yields a function for what was spent so far."""
  started, busy = time.monotonic(), time.process_time()
  with watch_compiler() as seen:

    def spent() -> Spent:
      compiling = covered(seen.spans)
      seconds = time.monotonic() - started - compiling
      processor = time.process_time() - busy
      return Spent(seconds, compiling, processor, len(seen.programs))

    yield spent


def train(study: Study) -> dict[str, Column]:
  """The columns of all trainings, as far as they are not there.

  Some networks at all settings, then some more: what else the machine does
  meanwhile disturbs all settings alike.
  """
  columns = {name: _stored(study, name) for name in study.trained}
  count, chunk = len(study.genotypes), study.settings['chunk']
  trainers = {
    name: _trainer(study, name)
    for name, column in columns.items()
    if column.done < count
  }
  for end in range(chunk, count + chunk, chunk):
    for name, trainer in trainers.items():
      rows = np.arange(columns[name].done, min(end, count))
      if len(rows):
        columns[name] = _further(study, name, trainer, columns[name], rows)
        _store(study, name, columns[name])
        _tell(study, name, columns)
  return columns


def _trainer(study: Study, name: str) -> Trainer:
  size = study.sizes[name]
  return networks(study.settings, study.task, size).trainer(
    _reduced(study, study.trained[name]),
    optimizer(study.settings, size.steps),
    epochs=size.epochs,
    batch=study.settings['batch'],
    slots=study.settings['chunk'],
  )


def _reduced(study: Study, own: Fidelity) -> Task:
  key = network.named_key(study.key, 'subset')
  return fidelity.reduce(study.task, own, key, multiple=SIDES)


def _further(
  study: Study, name: str, trainer: Trainer, column: Column, rows: np.ndarray
) -> Column:
  """A column with the scores of some more networks."""
  key = network.named_key(study.key, name)
  keys = [jax.random.fold_in(key, int(row)) for row in rows]
  with _timed() as spent:
    taught = trainer.train(keys, study.genotypes[rows], [None] * len(rows))
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


def score(study: Study) -> dict[str, Column]:
  """The columns of all zero-cost scores."""
  return {name: _scored(study, name) for name in study.settings['zero_cost']}


def _scored(study: Study, name: str) -> Column:
  column = _stored(study, name)
  if column.done:
    return column
  reference = study.settings['reference']
  task = _reduced(study, study.trained[reference])
  of_batch, of_scores = jax.random.split(network.named_key(study.key, name))
  order = jax.random.permutation(of_batch, len(task.train.targets))
  rows = np.asarray(order)[: study.settings['batch']]
  inputs, targets = task.prepare(task.train.inputs[rows]), task.train.targets
  nets = networks(study.settings, study.task, study.sizes[reference])
  given = of_scores, study.genotypes, inputs, targets[rows]
  scores = []
  with _timed() as whole:
    for run in nets.scoring(name, *given):
      with _timed() as spent:
        scores.append(np.asarray(run(), float))
        column = column.plus(spent(), len(scores[-1]))
  scores = np.concatenate(scores)
  column = column._replace(
    scores=scores,
    done=len(scores),
    examples=len(rows),
    compiling=whole().compiling,
  )
  _store(study, name, column)
  study.console.print(
    f'{name:>12}: {len(scores)} networks in {column.seconds:.1f} s, compiled '
    f'in {column.compiling:.0f} s',
    highlight=False,
  )
  return column


def _tell(study: Study, name: str, columns: Mapping[str, Column]) -> None:
  """One line of progress, with the time that is left for training."""
  column, count = columns[name], len(study.genotypes)
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
    else count * study.sizes[own].examples * rate + compiling
    for own, other in columns.items()
  )
  study.console.print(
    f'{name:>12}: {column.done}/{count} networks, accuracy {spread}; '
    f'{column.seconds:.0f} s, {column.compiling:.0f} s compiling; about '
    f'{left / 60:.0f} min left',
    highlight=False,
    soft_wrap=True,
  )


def _place(study: Study, name: str) -> pathlib.Path:
  return study.path / 'columns' / f'{name}.npz'


def _store(study: Study, name: str, column: Column) -> None:
  """Writes a column, which is there whole or not at all."""
  content = io.BytesIO()
  np.savez(content, **column._asdict())
  workdir.write_atomically(_place(study, name), content.getvalue())


def _stored(study: Study, name: str) -> Column:
  """A column as far as it is there."""
  path = _place(study, name)
  count = len(study.genotypes)
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
