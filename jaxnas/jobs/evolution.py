"""Searches of one space beside each other, at equal training examples.

An arm is made from plain settings; each makes and trains equally many networks
for equally long.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
import rich.console

from jaxnas import algorithms, network, report, spaces, stages, workdir
from jaxnas.base import Key, Population, Space, Stage, Task
from jaxnas.jobs.job import finish, row
from jaxnas.jobs.settings import (
  Settings,
  check,
  make_optimizer,
  make_task,
  resolve,
  several_of,
)
from jaxnas.spec import Shape

# (low, high) of each setting.
RULES = {
  'seed': (0, 2**32 - 1),  # JAX's keys hold no more.
  'batch': (1, None),
  'epochs': (1, None),
  'generations': (1, None),
  'evolution.size': (1, None),
  'evolution.entrants': (1, None),
  'evolution.children': (1, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.weight_decay': (0, None),
}


class Arm(NamedTuple):
  """A search that is ready to run: one generation, its start, how many."""

  stage: Stage
  population: Population
  generations: int


def numbers(settings: Settings, name: str) -> tuple[int, ...]:
  """A setting of whole numbers joined by '-'.

  Args:
    settings: nested settings.
    name: dotted, for the message too.

  Raises:
    ValueError: for anything else, naming the flag.

  Example:
    >>> numbers({'space': {'widths': '4-8'}}, 'space.widths')
    (4, 8)
  """
  value = settings
  for part in name.split('.'):
    value = value[part]
  parts = str(value).split('-')
  if not all(part.isdecimal() for part in parts):
    raise ValueError(
      f"--config.{name} must be whole numbers joined by '-', such as 1-3, got "
      f'{value!r}.'
    )
  return tuple(int(part) for part in parts)


def make_space(settings: Settings, shape: Shape, classes: int) -> Space:
  """The space of chains that the settings under `space` describe.

  Raises:
    ValueError: for choices of which no network can be made.
  """
  free = ('depth', 'hidden', 'widths', 'windows')
  found = {name: numbers(settings, f'space.{name}') for name in free}
  stages = settings['space']['stages']
  try:
    return spaces.chain(shape, classes, stages=stages, **found)
  except ValueError as error:
    raise ValueError(f'--config.space: {error}') from None


def _evolution(settings, task, tx, space, moves, weights) -> Stage:
  held = settings['evolution']
  return algorithms.regularized_evolution(
    task,
    tx,
    moves(stages.within(space)),
    size=held['size'],
    entrants=held['entrants'],
    children=held['children'],
    epochs=settings['epochs'],
    batch=settings['batch'],
    weights=weights,
  )


def _fresh(settings, task, tx, space) -> Stage:
  return _evolution(
    settings, task, tx, space, lambda moves: moves, stages.restart()
  )


def _inherited(settings, task, tx, space) -> Stage:
  return _evolution(
    settings, task, tx, space, stages.preserving, stages.inherit()
  )


def _nsga(settings, task, tx, space) -> Stage:
  held = settings['evolution']
  return algorithms.nsga(
    task,
    tx,
    stages.within(space),
    size=held['size'],
    children=held['children'],
    epochs=settings['epochs'],
    batch=settings['batch'],
    by=(stages.more('valid_metric'), stages.less(held['against'])),
  )


def _random(settings, task, tx, space) -> Stage:
  epochs, batch = settings['epochs'], settings['batch']
  return algorithms.random_search(task, tx, space, epochs=epochs, batch=batch)


ARMS: dict[str, Callable[..., Stage]] = {
  'fresh': _fresh,
  'inherited': _inherited,
  'nsga': _nsga,
  'random': _random,
}


def refuse(settings: Settings) -> None:
  """Refuses what can be refused before the data are read.

  Raises:
    ValueError: naming the flag, what it is and what is legal.
  """
  make_space(settings, (64, 64, 1), 2)
  held = settings['evolution']
  if held['size'] % held['children']:
    raise ValueError(
      '--config.evolution.size must be a multiple of '
      '--config.evolution.children, for random search to make as many networks '
      f'in whole generations; got {held["size"]} and {held["children"]}.'
    )
  if held['against'] not in ('params', 'flops'):
    raise ValueError(
      "--config.evolution.against must be 'params' or 'flops', got "
      f'{held["against"]!r}.'
    )
  several_of('evolution.arms', held['arms'], ARMS)


def arms(
  key: Key,
  settings: Settings,
  task: Task,
  tx: optax.GradientTransformation,
) -> dict[str, Callable[[], Arm]]:
  """The arms that `evolution.arms` names.

  Evolutions start from one and the same population, in their generation 0;
  random search makes `children` networks in each generation, and has as many
  more generations as it takes to train equally many.

  Args:
    key: draws the first populations.
    settings: of the job.
    task: the task.
    tx: the optimizer, for one network's training.

  Returns:
    For each name a function that makes the arm; it initialises networks, so
    arms are made when their turn comes.
  """
  held, generations = settings['evolution'], settings['generations']
  space = make_space(settings, task.shape, task.outputs)
  size, children = held['size'], held['children']
  start = network.named_key(key, 'founders')

  def make(name: str) -> Arm:
    stage = ARMS[name](settings, task, tx, space)
    if name == 'random':
      first = stages.founders(start, space, children)
      return Arm(stage, first, size // children + generations - 1)
    return Arm(stage, stages.founders(start, space, size), generations)

  names = several_of('evolution.arms', held['arms'], ARMS)
  return {name: (lambda name=name: make(name)) for name in names}


def evolution(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Searches one space in several ways, at equal training examples.

  The arms, of which `evolution.arms` names some: `fresh`, regularized
  evolution whose children start from fresh weights; `inherited`, the same
  with function-preserving moves and the parent's weights; `nsga`, accuracy
  against `evolution.against`; and `random` search. All train as many networks
  for as long. Resumes wherever `folder` says the job is.

  Args:
    config: settings, as `configs/evolution_digits.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: for each arm under `arms` of the best
    network by validation `valid_accuracy`, `test_accuracy`, `params` and
    `flops`, and what its search spent; and `best`, the arm whose network is
    in the folder `best`.

  Raises:
    ValueError: as `growth`.
  """
  console = console or rich.console.Console()
  settings = resolve(config)
  check_evolution(settings)
  task = make_task(settings)
  count = len(task.train.targets)
  per_epoch = count // min(settings['batch'], count)
  tx = make_optimizer(settings, settings['epochs'] * per_epoch)
  path = workdir.claim(folder, settings)
  key = jax.random.key(settings['seed'])
  found, rows = {}, {}
  with report.progress(console) as show:
    for name, make in arms(key, settings, task, tx).items():
      arm, own = make(), network.named_key(key, name)
      search = workdir.Search(name, own, *arm)
      last = workdir.conduct(path, search, settings=settings, report=show)
      found[name] = workdir.leader(last)
      rows[name] = _searched(last, task)
  best = max(rows, key=lambda name: rows[name]['valid_accuracy'])
  workdir.save_network(path / 'best', found[best].net)
  summary = {'arms': rows, 'best': best}
  finish(path, summary, console, rows, found[best].net.spec)
  return summary


def check_evolution(settings: Settings) -> None:
  """What can be refused of an evolution before the data are read."""
  check(settings, RULES)
  refuse(settings)
  make_optimizer(settings, 1)  # Refuses a name that it does not know.


def _searched(population: Population, task: Task) -> dict[str, Any]:
  """The row of a search: its best network, and what all of them cost."""
  best = workdir.leader(population)
  return {
    'valid_accuracy': best.metrics['valid_metric'],
    **row(population, task),
    'flops': network.flops(best.net),
    'evaluations': population.spent.evaluations,
  }
