"""ECToNAS beside its controls."""

import functools
import math
from typing import Any

import optax
import rich.console

from jaxnas import (
  algorithms,
  combine,
  estimators,
  network,
  report,
  stages,
  training,
  workdir,
)
from jaxnas.base import Candidate, Population, Stage, Task
from jaxnas.jobs.job import Job, baseline, begin, conduct, finish, row
from jaxnas.jobs.settings import Settings, check, check_net, one_of

_ECTONAS_RULES = {
  'seed': (0, 2**32 - 1),
  'batch': (1, None),
  'epochs': (1, None),
  'generations': (1, None),
  'ectonas.alpha': (0, None),
  'ectonas.warmup': (0, None),
  'ectonas.rounds': (1, None),
  'ectonas.parents': (1, None),
  'ectonas.screen': (0, None),
  'ectonas.budget': (1, None),
  'ectonas.channels': (1, None),
  'ectonas.units': (0, None),
  'ectonas.filters': (1, None),
  'ectonas.calibrate': (1, None),
  'optimizer.learning_rate': (0, None),
}
STEADY = {
  'adam': optax.adam,
  'sgd': functools.partial(optax.sgd, momentum=0.9),
}
POOLS = {'none': '', 'max': 'max', 'mean': 'mean'}
COMPATIBLE = dict.fromkeys(('fixed', 'official'))
CHILDREN = dict.fromkeys(('all', 'ranked'))

# Steps that the directions of a parent's splits are learned for, and at most
# how many examples ranking its children takes: these, those scored on, and
# those that the other children are calibrated on.
_RANKING_STEPS = 60
_RANKING = 256 * _RANKING_STEPS + 512 + 24 * 128


def check_ectonas(settings: Settings) -> None:
  """What can be refused of an ectonas job before the data are read."""
  check(settings, _ECTONAS_RULES)
  check_net(settings)
  if settings['net']['name'] not in ('chain', 'cells', 'mlp'):
    raise ValueError(
      '--config.net.name must be chain, cells or mlp, whose layers are a '
      f'chain, got {settings["net"]["name"]!r}.'
    )
  held = settings['ectonas']
  least = held['warmup'] + settings['epochs']
  if held['budget'] < least:
    raise ValueError(
      '--config.ectonas.budget must be at least ectonas.warmup and epochs '
      f'together, {least}, for anything to be searched; got {held["budget"]}.'
    )
  one_of('optimizer.name', settings['optimizer']['name'], STEADY)
  one_of('ectonas.pool', held['pool'], POOLS)
  one_of('ectonas.compat', held['compat'], COMPATIBLE)
  one_of('ectonas.children', held['children'], CHILDREN)
  ranked = held['children'] == 'ranked'
  if ranked and (held['compat'], held['pool']) != ('fixed', 'none'):
    raise ValueError(
      "--config.ectonas.children='ranked' goes with ectonas.compat='fixed' and "
      f"ectonas.pool='none', got {held['compat']!r} and {held['pool']!r}."
    )


def _ectonas_stage(
  job: Job,
  tx: optax.GradientTransformation,
  match: stages.Match,
  fitness: stages.Fitness,
) -> Stage:
  """A generation, as the settings say; the last trains the winner out."""
  held, task = job.settings['ectonas'], job.task
  knobs = {
    'alpha': held['alpha'],
    'warmup': held['warmup'],
    'epochs': job.settings['epochs'],
    'rounds': held['rounds'],
    'parents': held['parents'],
    'match': match,
  }
  paid = {'batch': job.batch, 'budget': held['budget']}
  if held['compat'] == 'official':
    return algorithms.official(task, tx, **paid, **knobs)
  best = stages.top(held['screen'], stages.rolling) if held['screen'] else None
  generation = algorithms.ectonas(
    stages.lessons(task, tx, **paid),
    screen=best,
    propose=_children(held, task),
    **knobs,
  )
  ranking = (
    (held['children'] == 'ranked') * _RANKING / (job.per_epoch * job.batch)
  )
  # Without a match, nothing is decided.
  least = job.settings['epochs'] + ranking
  if held['budget'] < held['warmup'] + least:
    raise ValueError(
      '--config.ectonas.budget must be at least ectonas.warmup, epochs and the '
      f'{ranking:.1f} epochs that ranking costs a parent together, '
      f'{held["warmup"] + least:.1f}, for anything to be searched; got '
      f'{held["budget"]}.'
    )

  def need(population: Population) -> float:
    return least + ranking * (len(population.members) - 1)

  last = job.settings['generations'] - 1

  rate = job.settings['optimizer']['learning_rate']
  lesson = stages.annealed(
    stages.lessons(task, tx, batch=job.batch),
    optax.cosine_decay_schedule(rate, 1),
  )
  edits = None if held['children'] == 'ranked' else _children(held, task)
  return combine.chain(
    combine.when(
      lambda p: p.generation == 0,
      stages.prepare(task, tx, batch=job.batch, propose=edits),
    ),
    combine.when(stages.unspent(task, **paid, least=need), generation),
    combine.when(
      lambda p: p.generation == last,
      stages.finish(lesson, fitness, task=task, **paid),
    ),
  )


def _children(held: Settings, task: Task) -> Stage:
  """Proposes children: every edit, or those that a judge ranks first."""
  by = {name: held[name] for name in ('channels', 'units')}
  pool = POOLS[held['pool']]
  if held['children'] == 'ranked':
    judge = estimators.gauss_newton(steps=_RANKING_STEPS, batch=256)
    return stages.ranked(judge, task, **by)
  return combine.chain(
    stages.expand(stages.edits(**by, pool=pool, filters=held['filters'])),
    stages.calibrate(task, examples=held['calibrate']),
  )


def _steady(settings: Settings) -> optax.GradientTransformation:
  """The optimizer of a search: its rate is data, for the lesson in which it
  falls, and its state one vector, which is quicker to compile."""

  def at(learning_rate):
    return STEADY[settings['name']](learning_rate)

  injected = optax.inject_hyperparams(at)
  return optax.flatten(injected(learning_rate=settings['learning_rate']))


def _falling(job: Job, steps: int) -> optax.GradientTransformation:
  """The optimizer of an ectonas job, at a rate that falls to zero."""
  held = job.settings['optimizer']
  return STEADY[held['name']](
    optax.cosine_decay_schedule(held['learning_rate'], max(steps, 1))
  )


def ectonas(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Searches by ECToNAS, and compares at equal total epochs.

  The network found is compared with the start network trained for as many
  examples as the whole search (all candidates together), with the architecture
  found trained from scratch for as many, and with the same search whose matches
  are decided by chance. While candidates compete their learning rate is
  constant, since how long one will live is not known. What the last generation
  leaves of the budget trains the winner, at a rate that falls to zero, as the
  baselines' does. (With `compat` of `official` nothing is left.)

  Args:
    config: settings, as `configs/ectonas_digits.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: of the network found `edits` (their
    kinds), `valid_accuracy`, `test_accuracy`, `params`, `start_params`,
    `epochs` (all candidates'), `own_epochs`, `examples`, `compilations`,
    `seconds`, and under `baselines` the same of `start_same_epochs`,
    `final_from_scratch` and `random_matches`.

  Raises:
    ValueError: as `growth`.
  """
  console = console or rich.console.Console()
  job = begin(config, folder, console, check_ectonas)
  tx = _steady(job.settings['optimizer'])
  fitness = stages.relative(job.settings['ectonas']['alpha'])
  with report.progress(console) as show:
    job = job._replace(show=show)

    def search(name: str, match: stages.Match) -> tuple[dict, Candidate]:
      stage = _ectonas_stage(job, tx, match, fitness)
      last = conduct(job, name, stage, job.spec, job.settings['generations'])
      best = stages.fittest(last, fitness)
      return _found(job, last, best), best

    summary, best = search('ectonas', stages.strongest)
    workdir.save_network(job.path / 'best', best.net)
    examples = summary['examples']
    alone = _falling(job, math.ceil(examples / job.batch))
    summary['baselines'] = {
      name: baseline(job, name, spec, examples, alone)
      for name, spec in (
        ('start_same_epochs', job.spec),
        ('final_from_scratch', best.net.spec),
      )
    }
    summary['baselines'] |= {
      'random_matches': search('random_matches', stages.anyone)[0],
    }
  rows = {'found': summary} | {
    name.replace('_', ' '): row for name, row in summary['baselines'].items()
  }
  finish(job.path, summary, console, rows, best.net.spec)
  return summary


def _found(job: Job, last: Population, best: Candidate) -> dict[str, Any]:
  """The row of a network that a search found."""
  made = [event.move for event in best.lineage if event.kind == 'move']
  return {
    **row(last, job.task, best),
    'valid_accuracy': training.evaluate(
      best.net, job.task, job.task.valid
    ).metric,
    'edits': [move.kind for move in made],
    'start_params': network.param_count(job.spec),
    'epochs': last.spent.examples / (job.per_epoch * job.batch),
    'own_epochs': best.metrics['epochs'],
  }
