"""A job under way: what its searches share, and how it begins and ends."""

import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import rich.console

from jaxnas import combine, network, report, stages, training, workdir
from jaxnas import mesh as meshes
from jaxnas.base import Candidate, Key, Population, Stage, Task
from jaxnas.jobs.settings import (
  Settings,
  make_optimizer,
  make_seed,
  make_task,
  resolve,
)
from jaxnas.spec import Spec, to_json


class Job(NamedTuple):
  """A job under way: what its searches share."""

  settings: Settings
  task: Task
  spec: Spec
  key: Key
  path: pathlib.Path
  show: Any

  @property
  def batch(self) -> int:
    return min(self.settings['batch'], len(self.task.train.targets))

  @property
  def per_epoch(self) -> int:
    """Optimizer steps in an epoch."""
    return len(self.task.train.targets) // self.batch


def begin(
  config: Settings,
  folder: workdir.Folder,
  console: rich.console.Console,
  refuse: Callable[[Settings], None],
) -> Job:
  """Reads data, claims the folder, and says what the job begins with.

  Args:
    config: settings, as a config returns them.
    folder: the workdir.
    console: where to say so.
    refuse: raises ValueError for settings that need no data to be refused.
  """
  settings = resolve(config)
  refuse(settings)
  task = make_task(settings)
  spec = make_seed(settings, task)
  path = workdir.claim(folder, settings)
  workdir.write_atomically(path / 'seed.json', to_json(spec, indent=1))
  console.print(
    f'{task.name}: {len(task.train.targets):,} training, '
    f'{len(task.valid.targets):,} validation and {len(task.test.targets):,} '
    f'test examples; seed {settings["net"]["name"]} {report.widths(spec)} '
    f'with {network.param_count(spec):,} parameters; {jax.device_count()} '
    f'{jax.default_backend()} device(s); {path}',
    highlight=False,
  )
  key = jax.random.key(settings['seed'])
  return Job(settings, task, spec, key, path, None)


def conduct(
  job: Job, name: str, stage: Stage, spec: Spec, generations: int
) -> Population:
  """Runs a search from a fresh network of `spec`, or resumes it."""
  net = network.init(spec, network.named_key(job.key, f'{name}/init'))
  search = workdir.Search(
    name,
    network.named_key(job.key, name),
    stage,
    Population((Candidate(network.to_host(net)),)),
    generations,
  )
  return workdir.conduct(
    job.path, search, settings=job.settings, report=job.show
  )


def baseline(
  job: Job,
  name: str,
  spec: Spec,
  examples: int,
  tx: optax.GradientTransformation | None = None,
) -> dict[str, Any]:
  """Trains a network from scratch for so many examples."""
  epochs = job.settings['epochs']
  total = math.ceil(examples / (job.per_epoch * job.batch))
  tx = tx or make_optimizer(job.settings, total * job.per_epoch)
  whole, rest = divmod(total, epochs)
  train = functools.partial(stages.train, job.task, tx, batch=job.batch)
  stage = combine.chain(
    combine.when(lambda p: p.generation < whole, train(epochs=epochs)),
    combine.when(lambda p: p.generation >= whole, train(epochs=rest)),
    stages.measure(job.task),
  )
  last = conduct(job, name, stage, spec, whole + (rest > 0))
  return row(last, job.task)


def finish(
  path: pathlib.Path, summary: dict[str, Any], console, rows, spec: Spec
) -> None:
  """Writes the summary and the report, and shows the rows."""
  write_results(path, summary)
  console.print(report.results(rows))
  console.print(
    f'found widths {report.widths(spec)}; everything is in {path}',
    highlight=False,
  )


@meshes.by_first
def write_results(path: pathlib.Path, summary: dict[str, Any]) -> None:
  """Writes `summary.json` and `report.html`, in the first process."""
  workdir.write_atomically(
    path / 'summary.json', json.dumps(summary, indent=2) + '\n'
  )
  report.html(path)


def row(
  population: Population, task: Task, best: Candidate | None = None
) -> dict[str, Any]:
  """What a search cost and what its best network reaches."""
  best = best or workdir.leader(population)
  spent = population.spent
  return {
    'test_accuracy': training.evaluate(best.net, task, task.test).metric,
    'params': network.param_count(best.net),
    'examples': spent.examples,
    'compilations': spent.compilations,
    'compiling': spent.compiling,
    'seconds': spent.seconds,
  }
