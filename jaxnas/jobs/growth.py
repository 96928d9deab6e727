"""Growth of one network, and judges of moves raced against each other."""

import math
from collections.abc import Callable
from typing import Any

import rich.console

from jaxnas import (
  algorithms,
  estimators,
  groups,
  morphisms,
  report,
  stages,
  workdir,
)
from jaxnas.base import Estimator, Population, Task
from jaxnas.jobs.job import Job, baseline, begin, conduct, finish, row
from jaxnas.jobs.settings import (
  Settings,
  check,
  check_net,
  make_optimizer,
  one_of,
)
from jaxnas.spec import Spec

_GROWTH_RULES = {
  'seed': (0, 2**32 - 1),  # JAX's keys hold no more.
  'batch': (1, None),
  'epochs': (1, None),
  'generations': (1, None),
  'growth.rounds': (0, None),
  'growth.price': (0, None),
  'growth.z': (0, None),
  'growth.limit': (0, None),
  'growth.ratio': (0, None),
  'growth.gain': (0, None),
  'growth.mass': (0.01, 0.99),
  'growth.tolerance': (0, None),
  'growth.draws': (1, None),
  'growth.steps': (0, None),
  'growth.batch': (1, None),
  'growth.learn_examples': (1, None),
  'growth.score_examples': (1, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.weight_decay': (0, None),
}


def _gauss_newton(grow: Settings, task: Task) -> Estimator:
  return estimators.gauss_newton(
    loss=task.loss,
    factor=estimators.sketch_of(task.loss, grow['draws']),
    steps=grow['steps'],
    batch=grow['batch'],
  )


def _first_order(grow: Settings, task: Task) -> Estimator:
  return estimators.first_order(
    loss=task.loss, steps=grow['steps'], batch=grow['batch']
  )


def _proxy(name: str) -> Callable[[Settings, Task], Estimator]:
  return lambda grow, task: estimators.by_proxy(name)


JUDGES: dict[str, Callable[[Settings, Task], Estimator]] = {
  'gauss_newton': _gauss_newton,
  'first_order': _first_order,
  'magnitude': lambda grow, task: estimators.magnitude(),
  'batch_norm_scale': lambda grow, task: estimators.batch_norm_scale(),
  'mean_activation': lambda grow, task: estimators.mean_activation(),
  'random': lambda grow, task: estimators.random(),
  'brute_force': lambda grow, task: estimators.brute_force(loss=task.loss),
  **{name: _proxy(name) for name in estimators.PROXIES},
}

MOVES: dict[str, Callable[[Settings], stages.Moves]] = {
  'split': lambda grow: stages.splits(mass=grow['mass']),
  'free_split': lambda grow: stages.splits(
    morphisms.free_split, mass=grow['mass']
  ),
  'prune': lambda grow: stages.prunes(),
  'merge': lambda grow: stages.prunes(morphisms.merge),
  'insert': lambda grow: stages.inserts(),
}

RULES = {
  'jointly': stages.jointly,
  'independently': stages.independently,
}


def check_growth(settings: Settings) -> None:
  """What can be refused of a growth job before the data are read."""
  check(settings, _GROWTH_RULES)
  check_net(settings)
  make_optimizer(settings, 1)  # Refuses a name that it does not know.
  grow = settings['growth']
  if 0 < grow['ratio'] < 1:
    raise ValueError(
      '--config.growth.ratio must be 0 (no bound) or at least 1, got '
      f'{grow["ratio"]}.'
    )
  one_of('growth.judge', grow['judge'], JUDGES)
  if grow['judge'] == 'bn_gamma' and settings['net']['name'] == 'mlp':
    raise ValueError(
      "--config.growth.judge: 'bn_gamma' reads batch norms, of which "
      "--config.net.name='mlp' has none."
    )
  one_of('growth.rule', grow['rule'], RULES)
  for move in grow['moves'].split('-'):
    one_of('growth.moves', move, MOVES)


def _grow(
  job: Job, name: str, grow: Settings, generations: int, tolerance: float
) -> Population:
  """Grows the seed as the settings `grow` say."""
  settings, task = job.settings, job.task
  steps = generations * settings['epochs'] * job.per_epoch
  rule = RULES[grow['rule']](
    price=grow['price'],
    z=grow['z'],
    limit=grow['limit'] or None,
    ratio=grow['ratio'] or math.inf,
    tolerance=tolerance,
  )
  if grow['confirm']:
    rule = stages.confirmed(rule, task, price=grow['price'])
  stage = algorithms.growth(
    task,
    make_optimizer(settings, steps),
    JUDGES[grow['judge']](grow, task),
    rule,
    moves=[MOVES[move](grow) for move in grow['moves'].split('-')],
    epochs=settings['epochs'],
    batch=job.batch,
    rounds=grow['rounds'],
    learn_examples=grow['learn_examples'],
    score_examples=grow['score_examples'],
    tolerance=grow['tolerance'],
  )
  return conduct(job, name, stage, job.spec, generations)


def growth(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Grows a network, trains two baselines for as many examples, and compares.

  The grown network is compared with the seed trained for the same number of
  examples, and with the final architecture trained from scratch for the same
  number; what growth spent on learning and scoring moves is counted as
  examples too. The baselines use the same optimizer, with its schedule over
  their own training. Resumes wherever `folder` says the job is.

  Args:
    config: settings, as `configs/growth_digits.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: `test_accuracy`, `params`, `examples`,
    `compilations`, `seconds` of the grown network, and under `baselines` the
    same of `seed_same_examples` and `final_from_scratch`.

  Raises:
    ValueError: for settings that are illegal or differ from those the folder
      was made with, and for checkpoints that cannot be trusted.
  """
  console = console or rich.console.Console()
  job = begin(config, folder, console, check_growth)
  with report.progress(console) as show:
    job = job._replace(show=show)
    grow, generations = job.settings['growth'], job.settings['generations']
    last = _grow(job, 'growth', grow, generations, grow['gain'])
    grown = workdir.leader(last)
    workdir.save_network(job.path / 'best', grown.net)
    summary = row(last, job.task)
    names = ('seed_same_examples', 'final_from_scratch')
    summary['baselines'] = {
      name: baseline(job, name, start, summary['examples'])
      for name, start in zip(names, (job.spec, grown.net.spec))
    }
  rows = {
    'grown': summary,
    'seed, same examples': summary['baselines']['seed_same_examples'],
    'final from scratch': summary['baselines']['final_from_scratch'],
  }
  finish(job.path, summary, console, rows, grown.net.spec)
  return summary


def uniform(spec: Spec, params: int) -> Spec:
  """A spec with all groups wider by one factor: the width multiplier.

  Args:
    spec: the seed.
    params: how many parameters it is to have, about.

  Returns:
    The spec nearest in its number of parameters.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> report.widths(uniform(seeds.mlp((4,), (8, 4), 3), 400))
    '22-11'
  """
  sizes = {g.name: g.size for g in groups.growable(spec)}
  count = stages.parameters(spec)

  def wider(factor: float) -> dict[str, int]:
    return {n: max(1, round(size * factor)) for n, size in sizes.items()}

  steps = [1 + i / 200 for i in range(200 * 100)]
  factor = min(steps, key=lambda f: abs(count(wider(f)) - params))
  return groups.resized(spec, wider(factor))


def race(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Grows one seed by several judges, at equal parameters and examples.

  Every arm splits channels until the network has `growth.ratio` times its
  parameters, in each of `growth.rounds` rounds: by `gauss_newton` (directions
  learned and sets chosen jointly), by `first_order` (directions learned on the
  first order alone, moves chosen one by one), and by `random` (random
  directions of random channels). Beside them are trained from scratch: the
  seed widened uniformly to as many parameters, the architecture that
  Gauss-Newton found, and the seed. All see as many examples as the first arm,
  learning and scoring included, with the learning rate's schedule over all of
  them.

  Args:
    config: settings, as `configs/race_cifar10.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: for each arm under `arms`
    `test_accuracy`, `params`, `examples`, `compilations`, `seconds`.

  Raises:
    ValueError: as `growth`, and without a ratio.
  """
  console = console or rich.console.Console()
  job = begin(config, folder, console, check_growth)
  grow, generations = job.settings['growth'], job.settings['generations']
  if not grow['ratio']:
    raise ValueError(
      'a race needs --config.growth.ratio, by which parameters grow in a '
      'round, of at least 1; got 0.'
    )
  controls = {
    'first_order': {'judge': 'first_order', 'rule': 'independently'},
    'random': {'judge': 'random', 'rule': 'independently'},
  }
  with report.progress(console) as show:
    job = job._replace(show=show)
    last = _grow(job, 'gauss_newton', grow, generations, -math.inf)
    grown = workdir.leader(last)
    workdir.save_network(job.path / 'best', grown.net)
    arms = {'gauss_newton': row(last, job.task)}
    examples, params = (arms['gauss_newton'][k] for k in ('examples', 'params'))
    each = job.settings['epochs'] * job.per_epoch * job.batch
    for name, change in controls.items():
      learns = grow['rounds'] * _looks(grow, change['judge'], job)
      whole = math.ceil((examples - learns) / each)
      last = _grow(job, name, {**grow, **change}, whole, -math.inf)
      arms[name] = row(last, job.task)
    for name, spec in (
      ('uniform_from_scratch', uniform(job.spec, params)),
      ('final_from_scratch', grown.net.spec),
      ('seed_same_examples', job.spec),
    ):
      arms[name] = baseline(job, name, spec, examples)
  summary = {'arms': arms}
  rows = {name.replace('_', ' '): arm for name, arm in arms.items()}
  finish(job.path, summary, console, rows, grown.net.spec)
  return summary


def _looks(grow: Settings, judge: str, job: Job) -> int:
  """Examples that a judge learns from and scores on in a round, about."""
  if judge == 'random':
    return 0
  half = len(job.task.train.targets) // 2
  learn = min(grow['learn_examples'], half)
  score = min(grow['score_examples'], half)
  return learn + score + grow['steps'] * min(grow['batch'], learn)
