"""Array populations in several ways beside each other, at equal examples."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console

from jaxnas import (
  algorithms,
  combine,
  learners,
  mixing,
  network,
  programs,
  report,
  selection,
  stages,
  tasks,
  workdir,
)
from jaxnas.base import Key, Learner, Members, Stage
from jaxnas.jobs.job import write_results
from jaxnas.jobs.settings import (
  Settings,
  check,
  make_task,
  one_of,
  resolve,
  several_of,
)
from jaxnas.spaces import slots

Priors = Mapping[str, mixing.Prior]

# (low, high) of each setting.
RULES = {
  'seed': (0, 2**32 - 1),
  'generations': (1, None),
  'members.size': (2, None),
  'members.steps': (1, None),
  'members.probability': (0, 1),
  'members.keep': (0, None),
  'members.noise': (0, None),
  'members.cycle': (1, None),
}


class Subject(NamedTuple):
  """What learns.

  Attributes:
    make: `make(steps) -> learner`, one whose round has so many steps.
    start: hyper-parameters of the first members of all arms. Where there are
      none, arms that change some draw them from `ranges`, and members of the
      others have those of the learner.
    ranges: in which they are kept.
  """

  make: Callable[[int], Learner]
  start: Priors = {}
  ranges: Priors = {}


def _teacher(settings: Settings, key: Key) -> Subject:
  del settings
  return Subject(lambda steps: learners.teacher(key, steps=steps))


def _gan(settings: Settings, key: Key) -> Subject:
  task = make_task(settings)
  make = learners.gan if task.name == 'digits' else learners.conv_gan
  ranges = {
    'generator_rate': mixing.Prior(5e-5, 5e-3),
    'discriminator_rate': mixing.Prior(5e-5, 5e-3),
  }
  return Subject(lambda steps: make(key, task, steps=steps), ranges=ranges)


def _control(settings: Settings, key: Key) -> Subject:
  del key
  make = tasks.control.ENVIRONMENTS[settings['members']['environment']]
  ranges = {
    'rate': mixing.Prior(2e-4, 2e-2),
    'entropy': mixing.Prior(1e-3, 1e-1),
  }
  return Subject(
    lambda steps: learners.ppo(make(), updates=steps), ranges=ranges
  )


_RATE = {'learning_rate': mixing.Prior(1e-4, 3e-2)}


def _classifier(settings: Settings, key: Key) -> Subject:
  del key
  task = make_task(settings)

  def make(steps):
    return learners.classifier(task, steps=steps)

  return Subject(make, _RATE, _RATE)


def _taylor(settings: Settings, key: Key) -> Subject:
  del key
  task, ranges = make_task(settings), {**_RATE, **learners.TAYLOR_PRIORS}

  def make(steps):
    return learners.classifier(task, steps=steps, objective=learners.by_taylor)

  return Subject(make, ranges, ranges)


def _toy(make: Callable[..., Learner]) -> Callable[..., Subject]:
  start, ranges = learners.toys.START, learners.toys.RANGE
  return lambda settings, key: Subject(
    lambda steps: make(steps=steps), start, ranges
  )


SUBJECTS: dict[str, Callable[[Settings, Key], Subject]] = {
  'teacher': _teacher,
  'gan': _gan,
  'control': _control,
  'classifier': _classifier,
  'taylor_classifier': _taylor,
  'plain_toy': _toy(learners.plain),
  'deceptive_toy': _toy(learners.deceptive),
}


# Points of the curve that FIRE PBT draws of a generation.
_POINTS = 10


def _mixing(settings: Settings, learner: Learner, **changes: Any) -> Stage:
  held = settings['members']
  names = ('fraction', 'probability', 'keep', 'noise')
  chosen = {name: held[name] for name in names} | changes
  return algorithms.pbt_nas(learner, **chosen)


def _fire(settings: Settings, subject: Subject) -> Stage:
  held = settings['members']
  greedy, later, evaluators = _parts(held['size'])
  return algorithms.fire_pbt(
    subject.make(held['steps'] // _POINTS),
    subject.ranges,
    sizes=(greedy, later),
    evaluators=evaluators,
    fraction=held['fraction'],
    points=_POINTS,
  )


def _parts(size: int) -> tuple[int, int, int]:
  """Greedy, long-term and evaluating members: 8, 8 and 6 of 22."""
  greedy = later = round(size * 8 / 22)
  return greedy, later, size - greedy - later


# Of the settings, what learns, and its learner.
ARMS: dict[str, Callable[[Settings, Subject, Learner], Stage]] = {
  'pbt_nas': lambda s, subject, learner: _mixing(s, learner),
  'copy': lambda s, subject, learner: _mixing(s, learner, keep=1.0, noise=0.0),
  'fresh': lambda s, subject, learner: _mixing(s, learner, keep=0.0, noise=1.0),
  'no_mixing': lambda s, subject, learner: _mixing(s, learner, mixed=False),
  'soup': lambda s, subject, learner: combine.chain(
    _mixing(s, learner),
    combine.when(
      lambda members: members.generation == s['generations'] - 1,
      stages.soup(learner),
    ),
  ),
  'mutation': lambda s, subject, learner: algorithms.mutation_only(
    learner, fraction=s['members']['fraction']
  ),
  'preserving': lambda s, subject, learner: algorithms.mutation_only(
    learner,
    fraction=s['members']['fraction'],
    child=slots.morph(learner.genes, slots.held(learner.genes)),
  ),
  'random': lambda s, subject, learner: algorithms.train_only(learner),
  'pbt': lambda s, subject, learner: algorithms.pbt(
    learner,
    subject.ranges,
    pairing=selection.copies(s['members']['fraction']),
  ),
  'fire': lambda s, subject, learner: _fire(s, subject),
  'epbt': lambda s, subject, learner: algorithms.epbt(
    learner, subject.ranges, by=algorithms.pulsation(s['members']['cycle'])
  ),
}
_NEED_GENES = ('pbt_nas', 'copy', 'fresh', 'no_mixing', 'soup', 'mutation')
_NEED_SLOTS = ('preserving',)
_NEED_HYPER = ('pbt', 'fire', 'epbt')


def refuse(settings: Settings) -> None:
  """Refuses what can be refused before anything is computed.

  Raises:
    ValueError: naming the flag, what it is and what is legal.
  """
  check(settings, RULES)
  held = settings['members']
  one_of('members.learner', held['learner'], SUBJECTS)
  one_of('members.environment', held['environment'], tasks.control.ENVIRONMENTS)
  if not 0 < held['fraction'] <= 0.5:
    raise ValueError(
      '--config.members.fraction must be above 0 and at most 0.5, got '
      f'{held["fraction"]!r}.'
    )
  if 'fire' in _arms(settings):
    _refuse_fire(held)
  least = int(np.ceil(2 / held['fraction']))
  if held['size'] < least:
    raise ValueError(
      f'--config.members.size must be at least {least}, so that a part of '
      f'--config.members.fraction={held["fraction"]} has two parents; got '
      f'{held["size"]}.'
    )


def _refuse_fire(held: Settings) -> None:
  if held['steps'] % _POINTS:
    raise ValueError(
      f'--config.members.steps must be a multiple of {_POINTS} for the arm '
      f'fire, which measures as often in a generation; got {held["steps"]}.'
    )
  if min(_parts(held['size'])[:2]) < 2:
    raise ValueError(
      '--config.members.size must be at least 5 for the arm fire, whose '
      f'populations have two members or more; got {held["size"]}.'
    )


def _arms(settings: Settings) -> tuple[str, ...]:
  return several_of('members.arms', settings['members']['arms'], ARMS)


def _suited(settings: Settings, subject: Subject, learner: Learner) -> None:
  """Refuses arms that have nothing to change."""
  held = settings['members']
  for arm in _arms(settings):
    lacks = {
      'genes': arm in _NEED_GENES and not learner.genes.options,
      'slots that can grow': arm in _NEED_SLOTS
      and not slots.held(learner.genes),
      'hyper-parameters': arm in _NEED_HYPER and not subject.ranges,
    }
    for what, lacking in lacks.items():
      if lacking:
        raise ValueError(
          f'--config.members.arms: {arm} changes {what}, of which the learner '
          f'{held["learner"]!r} has none.'
        )
    if arm == 'epbt' and 'behaviour' not in _metrics(learner):
      raise ValueError(
        '--config.members.arms: epbt selects by the metric behaviour, which '
        f'the learner {held["learner"]!r} does not measure.'
      )


def _metrics(learner: Learner) -> tuple[str, ...]:
  """The names of what a learner measures; nothing is computed."""
  found = jax.eval_shape(
    lambda key: stages.members(key, learner, 1).metrics, jax.random.key(0)
  )
  return tuple(found)


def _started(
  settings: Settings, subject: Subject, learner: Learner, arm: str
) -> Members:
  """The first population, the same for all arms but for hyper-parameters."""
  key = network.named_key(jax.random.key(settings['seed']), 'members')
  own = subject.ranges if arm in _NEED_HYPER else {}
  size = settings['members']['size']
  return stages.members(key, learner, size, subject.start or own)


def members(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Trains array populations by the arms that `members.arms` names.

  All start from the same members, as far as their genes and weights go (see
  `Subject.start`), and see as many examples. Resumes wherever `folder` says the
  job is.

  Args:
    config: settings, as `configs/pbt_nas_teacher.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: for each arm under `arms` what its best
    member by fitness measures in the learner's `test`, `valid_fitness`, the
    fitness it was chosen by, the population's median fitness, and what it
    spent; and `best`, the arm of the most `valid_fitness`, whose member is in
    the folder `best`.

  Raises:
    ValueError: for illegal settings, before anything is computed, and for a
      folder that holds another run.
  """
  console = console or rich.console.Console()
  settings = resolve(config)
  refuse(settings)
  key = jax.random.key(settings['seed'])
  held = settings['members']
  subject = SUBJECTS[held['learner']](
    settings, network.named_key(key, 'learner')
  )
  learner = subject.make(held['steps'])
  _suited(settings, subject, learner)
  path = workdir.claim(folder, settings)
  console.print(
    f'{held["learner"]}: {held["size"]} members of '
    f'{len(learner.genes.options)} genes, {learner.examples:,} examples each '
    f'a generation; {jax.device_count()} {jax.default_backend()} device(s); '
    f'{path}',
    highlight=False,
  )
  rows, found = {}, {}
  with report.progress(console) as show:
    for arm in _arms(settings):
      search = workdir.Search(
        arm,
        network.named_key(key, 'search'),
        ARMS[arm](settings, subject, learner),
        _started(settings, subject, learner, arm),
        settings['generations'],
      )
      last = workdir.conduct(path, search, settings=settings, report=show)
      greedy = _parts(held['size'])[0] if arm == 'fire' else None
      place = stages.champion(last, first=greedy)
      found[arm] = _member(last, place)
      rows[arm] = _row(learner, key, last, place, found[arm])
  valid = np.array([row['valid_fitness'] for row in rows.values()])
  best = list(rows)[selection.order(valid)[0]]
  workdir.save_member(path / 'best', found[best], learner.genes)
  summary = {'arms': rows, 'best': best}
  write_results(path, summary)
  console.print(report.members_results(rows))
  console.print(f'best: {best}; everything is in {path}', highlight=False)
  return summary


def _member(population: Members, place: int):
  return jax.tree.map(lambda leaf: np.asarray(leaf[place]), population.member)


def _row(
  learner: Learner, key: Key, population: Members, place: int, best
) -> dict:
  """What the best member measures where nothing is selected, and the cost."""
  own = network.named_key(key, 'test')
  tested = programs.jit(learner.test)(own, best, learner.data)
  spent = population.spent
  return {
    **{name: float(value) for name, value in tested.items() if not value.ndim},
    'valid_fitness': float(population.metrics['fitness'][place]),
    'median_fitness': float(np.nanmedian(population.metrics['fitness'])),
    'examples': spent.examples,
    'compilations': spent.compilations,
    'compiling': spent.compiling,
    'seconds': spent.seconds,
  }
