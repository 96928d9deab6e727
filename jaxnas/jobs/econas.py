"""Ladders of real training beside each other, at equal cost a generation.

An arm is made from plain settings; each trains genotypes of one space at a low
fidelity, and its best are trained again at a high one.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import rich.console

from jaxnas import (
  algorithms,
  combine,
  draw,
  fidelity,
  network,
  report,
  stages,
  training,
  workdir,
)
from jaxnas.base import ArraySpace, Key, Stage, Task, Trainer, Trials
from jaxnas.estimators import zero_cost
from jaxnas.jobs.evolution import numbers
from jaxnas.jobs.image_spaces import SIDES, SPACES, ImageSpace, Networks
from jaxnas.jobs.job import write_results
from jaxnas.jobs.settings import (
  Settings,
  check,
  check_ladder,
  make_task,
  naming,
  one_of,
  resolve,
  several_of,
)
from jaxnas.stages import trials

# (low, high) of each setting.
RULES = {
  'seed': (0, 2**32 - 1),  # JAX's keys hold no more.
  'batch': (1, None),
  'generations': (2, None),
  'cells.channels': (1, None),
  'cells.repeats': (1, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.weight_decay': (0, None),
  'optimizer.clip': (0, None),
  'ladder.first': (1, None),
  'ladder.share': (0, 1),
  'ladder.life': (1, None),
  'ladder.brood': (1, None),
  'retrain.best': (1, None),
  'retrain.learning_rate': (0, None),
}


class Ladder(NamedTuple):
  """The numbers of a ladder, as settings say them.

  Attributes:
    first: random genotypes at the start.
    promote: how many go on from each rung but the last.
    mothers: how many come from each rung.
    epochs: of a rung.
  """

  first: int
  promote: tuple[int, ...]
  mothers: tuple[int, ...]
  epochs: int

  @property
  def rungs(self) -> int:
    return len(self.mothers)

  @property
  def segments(self) -> int:
    """Trainings of one rung in a generation."""
    return sum(self.promote) + sum(self.mothers)


class Arm(NamedTuple):
  """A search that is ready to run."""

  stage: Stage
  slots: int
  generations: int
  metrics: tuple[str, ...] = ()


def ladder(settings: Settings) -> Ladder:
  """The ladder of the settings.

  Raises:
    ValueError: for one that cannot be climbed, naming the flag.
  """
  held = settings['ladder']
  promote = numbers(settings, 'ladder.promote')
  mothers = numbers(settings, 'ladder.mothers')
  if len(promote) != len(mothers) - 1:
    raise ValueError(
      f'--config.ladder.promote has {len(promote)} numbers and '
      f'--config.ladder.mothers {len(mothers)}; the first needs one for each '
      'rung but the last, the second one for each rung.'
    )
  if not sum(mothers) or 0 in promote:
    raise ValueError(
      '--config.ladder.promote must be above 0, and some of '
      f'--config.ladder.mothers, got {promote} and {mothers}.'
    )
  check_ladder(promote, mothers)
  whole = fidelity.parse(settings['fidelity']).epochs
  epochs, rest = divmod(whole, len(mothers))
  if rest:
    raise ValueError(
      f'--config.fidelity={settings["fidelity"]} has {whole} epochs, which '
      f'{len(mothers)} rungs do not divide.'
    )
  return Ladder(held['first'], promote, mothers, epochs)


def make_networks(settings: Settings, task: Task, setting: str) -> Networks:
  """The networks of a space for a task, as wide as a fidelity says."""
  own = SPACES[settings['space']]
  return own.networks(
    channels=_channels(settings, setting),
    # Cells in each of the stages of a space that has them, or in all.
    layers=own.depths * settings['cells']['repeats'],
    classes=task.outputs,
    shape=task.shape,
  )


def _channels(settings: Settings, setting: str) -> int:
  own, held = SPACES[settings['space']], settings['cells']
  return fidelity.left(
    fidelity.parse(setting), 'channels', held['channels'], own.widths
  )


@functools.lru_cache(maxsize=16)
def _optimizer(rate, decay, clip, steps) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(clip),
    optax.add_decayed_weights(decay),
    optax.sgd(optax.cosine_decay_schedule(rate, max(steps, 1)), momentum=0.9),
  )


def make_trainer(
  settings: Settings, task: Task, setting: str, rate: float, rungs: int
) -> Trainer:
  """Trains for a rung of which so many make the epochs of a fidelity."""
  epochs, held = fidelity.parse(setting).epochs, settings['optimizer']
  batch = min(settings['batch'], len(task.train.targets))
  steps = epochs * (len(task.train.targets) // batch)
  tx = _optimizer(rate, held['weight_decay'], held['clip'], steps)
  nets = make_networks(settings, task, setting)
  return nets.trainer(task, tx, epochs=epochs // rungs, batch=batch)


class Setting(NamedTuple):
  """What the arms of a job share."""

  settings: Settings
  task: Task
  own: ImageSpace
  key: Key

  @property
  def space(self) -> ArraySpace:
    return self.own.space

  def answer(self, epochs: int, rungs: int, remember: int, inherit=False):
    """A stage that trains a rung of which `rungs` make `epochs` epochs."""
    held = fidelity.parse(self.settings['fidelity'])
    held = dataclasses.replace(held, epochs=epochs)
    rate = self.settings['optimizer']['learning_rate']
    trainer = make_trainer(self.settings, self.task, str(held), rate, rungs)
    heir = {'heir': trainer.heir} if inherit else {}
    return stages.teach(self.space, trainer, remember=remember, **heir)


def _climbing(setting: Setting, inherit=False, mutation=None) -> Arm:
  held, own = ladder(setting.settings), setting.settings['ladder']
  remember = algorithms.econas_memory(
    held.first, held.promote, held.mothers, own['life']
  )
  answer = setting.answer(
    held.rungs * held.epochs, held.rungs, remember, inherit
  )
  stage = algorithms.econas(
    setting.space,
    answer,
    first=held.first,
    promote=held.promote,
    mothers=held.mothers,
    share=own['share'],
    life=own['life'],
    mutate=mutation or setting.own.mutate,
  )
  count = setting.settings['generations']
  slots = held.first + (count - 1) * held.segments
  return Arm(stage, slots, count, stages.RUNGS)


def _econas(setting: Setting) -> Arm:
  return _climbing(setting)


def _inherited(setting: Setting) -> Arm:
  return _climbing(setting, inherit=True)


def _screened(setting: Setting) -> Arm:
  """Each child is the best of a brood by a zero-cost proxy."""
  task, own = setting.task, setting.settings['ladder']
  nets = make_networks(setting.settings, task, setting.settings['fidelity'])
  seen = training.draw(
    network.named_key(setting.key, 'proxy'), task, setting.settings['batch']
  )

  def score(key: Key, genotypes: jax.Array) -> jax.Array:
    found = zero_cost.score_genotypes(
      nets.supernet, key, genotypes, *seen, names=[own['proxy']]
    )
    return found[own['proxy']]

  mutation = stages.best_of(setting.space.mutate, own['brood'], score)
  return _climbing(setting, mutation=mutation)


def flat_epochs(held: Ladder) -> int:
  """Epochs of a network without a ladder, at the cost of one with it.

  Raises:
    ValueError: where that is no whole number.

  Example:
    >>> flat_epochs(Ladder(16, (8, 4), (6, 5, 5), 20))
    35
  """
  epochs, rest = divmod(held.segments * held.epochs, sum(held.mothers))
  if rest:
    raise ValueError(
      f'--config.ladder: {held.segments} rungs of {held.epochs} epochs in a '
      f'generation cannot be dealt to {sum(held.mothers)} children in whole '
      'epochs, as the arm flat needs.'
    )
  return epochs


def _flat(setting: Setting) -> Arm:
  """The reliable proxy alone: every network is trained for equally long."""
  held, own = ladder(setting.settings), setting.settings['ladder']
  children = sum(held.mothers)
  answer = setting.answer(flat_epochs(held), 1, 0)
  stage = algorithms.econas(
    setting.space,
    answer,
    first=held.first,
    promote=(),
    mothers=(children,),
    share=own['share'],
    life=own['life'],
    mutate=setting.own.mutate,
  )
  count = setting.settings['generations']
  slots = held.first + (count - 1) * children
  return Arm(stage, slots, count, stages.RUNGS)


def _halving(setting: Setting) -> Arm:
  held = ladder(setting.settings)
  children = sum(held.mothers)
  answer = setting.answer(
    held.rungs * held.epochs, held.rungs, held.segments + children
  )
  stage = algorithms.halving(
    setting.space, answer, first=children, keep=held.promote
  )
  count = setting.settings['generations']
  return Arm(stage, count * held.segments, count, stages.RUNGS)


def _random(setting: Setting) -> Arm:
  """Random networks, each trained to the top of the ladder."""
  held, count = ladder(setting.settings), setting.settings['generations']
  each = sum(held.mothers)
  total = held.first + (count - 1) * held.segments
  rounds = max(1, total // (held.rungs * each))
  answer = setting.answer(held.rungs * held.epochs, 1, 0)
  stage = algorithms.array_random(setting.space, answer, count=each)
  return Arm(stage, rounds * each, rounds)


ARMS: dict[str, Callable[[Setting], Arm]] = {
  'econas': _econas,
  'flat': _flat,
  'halving': _halving,
  'random': _random,
  'inherited': _inherited,
  'screened': _screened,
}


def refuse(settings: Settings) -> None:
  """Refuses what can be refused before the data are read.

  Raises:
    ValueError: naming the flag, what it is and what is legal.
  """
  check(settings, RULES)
  arms = several_of('ladder.arms', settings['ladder']['arms'], ARMS)
  one_of('space', settings['space'], SPACES)
  own = SPACES[settings['space']]
  if 'screened' in arms and not own.data:
    raise ValueError(
      '--config.ladder.arms: screened needs a space whose networks are one '
      f'program, nas_bench_201, and --config.space={settings["space"]!r} has '
      'one for each.'
    )
  channels, multiple = settings['cells']['channels'], own.widths
  if channels % multiple:
    raise ValueError(
      f'--config.cells.channels must be a multiple of {multiple} for '
      f'--config.space={settings["space"]!r}, got {channels}.'
    )
  for flag, text in _fidelities(settings).items():
    with naming(f'--config.{flag}'):
      _channels(settings, text)
  held = ladder(settings)
  if 'flat' in arms:
    flat_epochs(held)
  proxy = settings['ladder']['proxy']
  if 'screened' in arms and proxy not in zero_cost.PROXIES:
    raise ValueError(
      f'--config.ladder.proxy must be one of {", ".join(zero_cost.PROXIES)}, '
      f'got {proxy!r}.'
    )


def econas(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Climbs ladders of real training, and trains what is found again.

  The arms that `ladder.arms` names search the cells of `space` on one task at
  `fidelity`, at equal training examples a generation (`random` in all, and a
  ladder has fewer in its first ones): `econas`; `flat`, the same evolution
  without a ladder; `halving`; `random`; `inherited`, whose children begin with
  their mothers' weights; `screened`, whose children are the best of a brood by
  a zero-cost proxy. The `retrain.best` of each by its own scores are trained
  from fresh weights at `retrain.fidelity`, of which the best on the validation
  split is the arm's answer. Resumes wherever `folder` says the job is.

  Args:
    config: settings, as `configs/econas_digits.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: under `arms` for each `test_accuracy` and
    `valid_accuracy` of its answer, `searched`, the accuracy by which it was
    found, `params`, `networks` that were begun, `topped` that reached the last
    rung, and what the search spent; and `best`, the arm whose network is in the
    folder `best`. `curves.png` lies beside it.

  Raises:
    ValueError: for illegal settings, before anything is computed, and for a
      folder that holds another run.
  """
  console = console or rich.console.Console()
  settings = resolve(config)
  refuse(settings)
  whole = make_task(settings)
  key = jax.random.key(settings['seed'])
  small, large = (
    _reduced(whole, flag, text, key)
    for flag, text in _fidelities(settings).items()
  )
  path = workdir.claim(folder, settings)
  console.print(
    f'{small.name}, {small.shape}: {len(small.train.targets):,} training, '
    f'{len(small.valid.targets):,} validation images; {jax.device_count()} '
    f'{jax.default_backend()} device(s); {path}',
    highlight=False,
  )
  setting = Setting(settings, small, SPACES[settings['space']], key)
  arms = several_of('ladder.arms', settings['ladder']['arms'], ARMS)
  rows, lines, best = {}, {}, {}
  with report.progress(console) as show:
    for name in arms:
      last = _searched(setting, name, path, show)
      again = _retrained(setting, name, last, large, path, show)
      rows[name], best[name] = _row(setting, last, again, large)
      lines[name] = _line(last)
  found = max(rows, key=lambda name: rows[name]['valid_accuracy'])
  workdir.save_network(path / 'best', best[found])
  summary = {'arms': rows, 'best': found}
  figure = draw.curves(
    lines,
    x='training examples of the search',
    y='best on the highest rung so far',
  )
  workdir.save_figure(path / 'curves.png', figure)
  write_results(path, summary)
  console.print(report.results(rows))
  console.print(f'everything is in {path}', highlight=False)
  return summary


def _fidelities(settings: Settings) -> dict[str, str]:
  """That of the search and that of retraining, by their flags."""
  return {
    'fidelity': settings['fidelity'],
    'retrain.fidelity': settings['retrain']['fidelity'],
  }


def _reduced(task: Task, flag: str, text: str, key: Key) -> Task:
  own, subset = fidelity.parse(text), network.named_key(key, 'subset')
  with naming(f'--config.{flag}'):
    return fidelity.reduce(task, own, subset, multiple=SIDES)


def _searched(setting: Setting, name: str, path, show) -> Trials:
  arm = ARMS[name](setting)
  start = trials.start(setting.space, arm.slots, metrics=arm.metrics)
  own = network.named_key(setting.key, name)
  search = workdir.Search(name, own, arm.stage, start, arm.generations)
  return workdir.conduct(
    path, search, settings=setting.settings, report=show, keep=1
  )


def _leaders(last: Trials, count: int) -> np.ndarray:
  """(count, L) different genotypes, the best by the search's own scores."""
  if 'rung' in last.metrics:
    order = np.asarray(stages.leaders(last, last.index.shape[0]))
  else:
    fitness = np.asarray(last.metrics['fitness'])
    order = np.argsort(-np.where(np.isnan(fitness), -np.inf, fitness))
  order = order[np.asarray(last.index)[order] >= 0]
  found = np.asarray(last.genotypes)[order]
  _, first = np.unique(found, axis=0, return_index=True)
  return found[np.sort(first)[:count]]


def _retrained(setting, name, last, task: Task, path, show) -> Trials:
  """The best of a search, trained from fresh weights at the high fidelity."""
  held = setting.settings['retrain']
  found = _leaders(last, held['best'])
  trainer = make_trainer(
    setting.settings, task, held['fidelity'], held['learning_rate'], 1
  )
  stage = combine.chain(
    trials.ask(lambda key, seen: jax.numpy.asarray(found)),
    stages.teach(setting.space, trainer, remember=len(found)),
    name='retrain',
  )
  search = workdir.Search(
    f'{name}_retrained',
    network.named_key(setting.key, f'{name}/retrain'),
    stage,
    trials.start(setting.space, len(found)),
    1,
  )
  return workdir.conduct(
    path, search, settings=setting.settings, report=show, keep=1
  )


def _row(setting, last: Trials, again: Trials, task: Task):
  """The row of an arm, and its network."""
  settings, spent = setting.settings, last.spent
  fitness = np.asarray(again.metrics['fitness'])
  at = int(np.argmax(np.where(np.isnan(fitness), -np.inf, fitness)))
  genotype = np.asarray(again.genotypes)[at]
  nets = make_networks(settings, task, settings['retrain']['fidelity'])
  net = nets.alone(again.memory[str(at)].net, genotype)
  end = functools.partial(training.evaluate, net, task)
  rungs = np.asarray(last.metrics.get('rung', last.metrics['fitness'] * 0 + 1))
  found = trials.incumbents(last)
  row = {
    'test_accuracy': end(task.test).metric,
    'valid_accuracy': end(task.valid).metric,
    'searched': float(found.fitness[-1]),
    'params': network.param_count(net),
    'networks': int((rungs == 1).sum()),
    'topped': int((rungs == np.nanmax(rungs)).sum()),
    'examples': int(spent.examples),
    'compilations': spent.compilations,
    'compiling': spent.compiling,
    'seconds': spent.seconds,
    'cell': setting.own.text(genotype),
  }
  return row, net


def _line(last: Trials) -> dict[str, np.ndarray]:
  """A search's best against its examples, for `draw.curves`."""
  found = jax.tree.map(np.asarray, trials.incumbents(last))
  seen = ~np.isnan(found.fitness)
  best = found.fitness[seen]
  return {'x': found.cost[seen], 'mean': best, 'low': best, 'high': best}
