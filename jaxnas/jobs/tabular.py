"""Searches of a table beside each other, hundreds of each as one program.

A search is made from plain settings and a table; each may ask as much as the
others. Beside them stands the ranking by parameters, which no search is better
than because it searched.
"""

import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.table

from jaxnas import (
  algorithms,
  draw,
  estimators,
  network,
  report,
  spaces,
  stages,
  workdir,
)
from jaxnas.algorithms.array_nsga import front, hypervolume
from jaxnas.algorithms.local_search import slots as local_slots
from jaxnas.base import Stage, Table, Trials
from jaxnas.jobs.evolution import numbers
from jaxnas.jobs.job import write_results
from jaxnas.jobs.settings import (
  Settings,
  check,
  check_ladder,
  naming,
  one_of,
  resolve,
  several_of,
)
from jaxnas.stages import trials

# (low, high) of each setting.
RULES = {
  'seed': (0, 2**32 - 1),  # JAX's keys hold no more.
  'generations': (1, None),
  'tabular.searches': (1, None),
  'tabular.queries': (1, None),
  'tabular.classes': (2, None),
  'tabular.size': (1, None),
  'tabular.entrants': (1, None),
  'tabular.population': (2, None),
  'tabular.learning_rate': (0, None),
  'tabular.below': (0, None),
}
UNITS = {'seconds': 'cost', 'queries': 'queries'}
REPEATS = {'paid': False, 'free': True}
# Of searches by predictors, where a config has no section `predicted`:
# questions at random, and in a generation; columns that predictors read or
# RoBoT weighs, joined by ','; the column that some learn before, and of how
# many genotypes; questions without a better one after which some begin anew;
# and the genotype that PNAS starts from, joined by '-'.
PREDICTED = {
  'first': 20,
  'keep': 5,
  'columns': '',
  'target': '',
  'examples': 500,
  'patience': 20,
  'base': '1-1-1-1-1-1',
}
# The quantile below which what predictors learn is taken to be alike, and the
# trials whose edits are proposed, as of `algorithms.delta_nas`.
_CLIP, _OF = 0.6, 5
# Of ladders, where a config has no section `ladder`: the columns of the rungs
# and of what it takes to get there from the start, joined by ','; random
# genotypes in the beginning, how many go on from each rung but the last and
# have a child on each, joined by '-'.
LADDER = {
  'signals': 'val_ep12,val_ep200',
  'costs': 'train_time_ep12_s,train_time_ep200_s',
  'first': 16,
  'promote': '2',
  'mothers': '8-8',
}
# Of columns that say after how many epochs they were measured.
_EPOCHS = re.compile(r'(?<![a-z])ep(\d+)')
# Points of a curve.
_GRID = 200
# Genotypes that are listed at most.
_LISTED = 2**20
# Of the two objectives of fronts: no accuracy at all, and half as much again as
# the largest network costs.
_MARGIN = 1.5


class Arm(NamedTuple):
  """A search that is ready to run.

  Attributes:
    stage: one generation of one search.
    generations: in which it asks as much as `tabular.queries`.
    slots: of the trials, that a generation takes.
    metrics: that its trials know, beside those of all.
  """

  stage: Stage
  generations: int
  slots: int = 1
  metrics: tuple[str, ...] = ()


class Found(NamedTuple):
  """What the searches of an arm had found when the budget was spent.

  Attributes:
    index: (S,) the networks, -1 for none.
    queries: (S,) asked until then.
    seconds: (S,) what they cost.
    reached: how many searches had the budget spent.
    curve: {`x`, `mean`, `low`, `high`} of the reported column.
  """

  index: np.ndarray
  queries: np.ndarray
  seconds: np.ndarray
  reached: int
  curve: dict[str, np.ndarray]


def query(settings: Settings, table: Table) -> Stage:
  """The stage that answers questions as the settings say."""
  held = settings['tabular']
  return trials.query(
    table,
    held['signal'],
    cost=held['cost'] or None,
    also={name: name for name in less(settings)},
  )


def less(settings: Settings) -> tuple[str, ...]:
  """The columns of which less is better, in their order."""
  return _each(settings['tabular']['less'], '-')


def _random(settings: Settings, table: Table) -> Arm:
  held = settings['tabular']
  stage = algorithms.array_random(table.space, query(settings, table))
  return Arm(stage, held['queries'])


def _evolution(settings: Settings, table: Table) -> Arm:
  held = settings['tabular']
  stage = algorithms.array_evolution(
    table.space,
    query(settings, table),
    size=held['size'],
    entrants=held['entrants'],
    unique=held['unique'],
  )
  return Arm(stage, held['queries'])


def _local(settings: Settings, table: Table) -> Arm:
  stage = algorithms.local_search(table.space, query(settings, table))
  slots = local_slots(table.space)
  # Near an optimum most neighbours were asked before.
  generations = 1 + math.ceil(3 * settings['tabular']['queries'] / slots)
  return Arm(stage, generations, slots)


def _reinforce(settings: Settings, table: Table) -> Arm:
  held = settings['tabular']
  stage = algorithms.reinforce(
    table.space, query(settings, table), learning_rate=held['learning_rate']
  )
  return Arm(stage, held['queries'])


def _fronted(settings: Settings, stage: Stage) -> Arm:
  held = settings['tabular']
  size = held['population']
  return Arm(stage, math.ceil(held['queries'] / size), size)


def _nsga(settings: Settings, table: Table) -> Arm:
  stage = algorithms.array_nsga(
    table.space,
    query(settings, table),
    size=settings['tabular']['population'],
    less=less(settings),
  )
  return _fronted(settings, stage)


def _eeea(settings: Settings, table: Table) -> Arm:
  held = settings['tabular']
  params, most = spaces.tables.column(table, 'params'), 1e6 * held['below']
  stage = algorithms.eeea(
    table.space,
    query(settings, table),
    lambda genotype: params[table.space.index(genotype)] < most,
    size=held['population'],
    less=less(settings),
  )
  return _fronted(settings, stage)


def _predicted(settings: Settings) -> dict[str, Any]:
  return PREDICTED | dict(settings.get('predicted', {}))


def _columns(settings: Settings) -> tuple[str, ...]:
  """The free columns, in their order."""
  return _each(_predicted(settings)['columns'], ',')


def _weighing(arms: Iterable[str]) -> list[str]:
  """The arms that weigh metrics."""
  return [arm for arm in arms if arm.startswith('robot')]


def _each(text: str, joint: str) -> tuple[str, ...]:
  """The names that a text joins, each once."""
  return tuple(dict.fromkeys(name for name in text.split(joint) if name))


def _delta(
  judge: Callable[[], stages.Judge],
  vary: Callable[..., dict[str, Any]] | None = None,
) -> Callable[..., Arm]:
  """Delta-NAS and its controls, which differ in the judge.

  Args:
    judge: makes it.
    vary: `vary(settings, table, judge) -> more arguments` of the algorithm,
      such as another judge in place of the one given.
  """

  def arm(settings: Settings, table: Table) -> Arm:
    held, own = _predicted(settings), judge()
    more = {'judge': own}
    if vary is not None:
      more |= vary(settings, table, own)
    stage = algorithms.delta_nas(
      table.space,
      query(settings, table),
      first=held['first'],
      keep=held['keep'],
      read=stages.features(table, _columns(settings)),
      clip=_CLIP,
      of=_OF,
      **more,
    )
    return _guided(settings, stage)

  return arm


def _by_difference() -> stages.Judge:
  return stages.by_difference(estimators.ridge_difference())


def _by_value() -> stages.Judge:
  return stages.by_value(estimators.ridge())


def _once(settings: Settings, table: Table, judge: stages.Judge) -> dict:
  """Fitted to the first questions alone."""
  del settings, table, judge
  return {'offline': True}


def _taught(settings: Settings, table: Table, judge: stages.Judge) -> dict:
  """Fitted to another column before, and then to all answers."""
  held = _predicted(settings)
  return {
    'prior': stages.pretrained(
      judge,
      table,
      held['target'],
      key=network.named_key(jax.random.key(settings['seed']), 'target'),
      examples=held['examples'],
      read=stages.features(table, _columns(settings)),
      scale=functools.partial(stages.targets, clip=_CLIP),
    )
  }


def _settled(settings: Settings, table: Table, judge: stages.Judge) -> dict:
  """Fitted to another column alone."""
  prior = _taught(settings, table, judge)['prior']
  return {'judge': stages.settled(judge, prior)}


def _narrow(settings: Settings, table: Table, judge: stages.Judge) -> dict:
  """Neighbours alone, which end in a local optimum."""
  del settings, judge
  return {'propose': trials.neighbours(table.space, _OF)}


def _restarted(settings: Settings, table: Table, judge: stages.Judge) -> dict:
  """Neighbours alone, begun anew where nothing is better for long."""
  near = _narrow(settings, table, judge)['propose']
  patience = _predicted(settings)['patience']
  again = stages.restarting(table.space, near, patience=patience, least=_OF)
  return {'propose': again}


def _guided(settings: Settings, stage: Stage) -> Arm:
  """An arm of a search by a predictor."""
  keep = _predicted(settings)['keep']
  # The first generation takes more slots, so the last find none.
  return Arm(stage, math.ceil(settings['tabular']['queries'] / keep), keep)


def _bananas(settings: Settings, table: Table) -> Arm:
  held = _predicted(settings)
  stage = algorithms.bananas(
    table.space,
    query(settings, table),
    first=held['first'],
    keep=held['keep'],
    read=stages.features(table, _columns(settings)),
  )
  return _guided(settings, stage)


def _pnas(judge: Callable[[], stages.Judge] | None) -> Callable[..., Arm]:
  """PNAS, and the control whose beam is drawn."""

  def arm(settings: Settings, table: Table) -> Arm:
    held = _predicted(settings)
    base = tuple(int(value) for value in held['base'].split('-'))
    stage = algorithms.pnas(
      table.space,
      query(settings, table),
      base,
      beam=held['keep'],
      judge=None if judge is None else judge(),
    )
    levels = len(table.space.options)
    width = local_slots(table.space) - 1
    slots = width + (levels - 1) * held['keep']
    return Arm(stage, levels, math.ceil(slots / levels))

  return arm


def _robot(
  scale: Callable[[Any], jax.Array], **search: Any
) -> Callable[..., Arm]:
  """RoBoT on all networks of which every metric is known."""

  def arm(settings: Settings, table: Table) -> Arm:
    names = _columns(settings)
    known = np.isfinite(np.stack([_column(table, name) for name in names]))
    if not known.all(axis=0).any():
      raise ValueError(
        f'--config.predicted.columns: no network has all of {", ".join(names)}.'
      )
    pool = _genotypes(table)[known.all(axis=0)]
    total = settings['tabular']['queries']
    stage = algorithms.robot(
      table,
      query(settings, table),
      names,
      pool,
      total=total,
      scale=scale,
      **search,
    )
    return Arm(stage, 2 * total)

  return arm


def _laddered(settings: Settings) -> dict[str, Any]:
  return {'ladder': LADDER | dict(settings.get('ladder', {}))}


def _rungs(settings: Settings, table: Table, rungs: slice) -> Stage:
  """The stage that answers by some of the ladder's rungs."""
  held = _laddered(settings)['ladder']
  signals, costs = (_each(held[name], ',') for name in ('signals', 'costs'))
  score = stages.by_rung(table, signals[rungs], costs[rungs])
  return stages.climb(table.space, score)


def _econas(settings: Settings, table: Table) -> Arm:
  held = _laddered(settings)
  promote, mothers = (
    numbers(held, f'ladder.{name}') for name in ('promote', 'mothers')
  )
  stage = algorithms.econas(
    table.space,
    _rungs(settings, table, slice(None)),
    first=held['ladder']['first'],
    promote=promote,
    mothers=mothers,
  )
  slots = algorithms.econas_slots(promote, mothers)
  return _on_rungs(settings, stage, max(slots, held['ladder']['first']))


def _on_rungs(settings: Settings, stage: Stage, slots: int) -> Arm:
  generations = math.ceil(settings['tabular']['queries'] / slots)
  return Arm(stage, generations, slots, stages.RUNGS)


def _halving(settings: Settings, table: Table) -> Arm:
  held = _laddered(settings)
  keep = numbers(held, 'ladder.promote')
  first = sum(numbers(held, 'ladder.mothers'))
  answer = _rungs(settings, table, slice(None))
  stage = algorithms.halving(table.space, answer, first=first, keep=keep)
  return _on_rungs(settings, stage, first + sum(keep))


def _flat(rungs: slice) -> Callable[..., Arm]:
  """The evolution of EcoNAS on one rung alone."""

  def arm(settings: Settings, table: Table) -> Arm:
    held = _laddered(settings)
    children = sum(numbers(held, 'ladder.mothers'))
    first = held['ladder']['first']
    stage = algorithms.econas(
      table.space,
      _rungs(settings, table, rungs),
      first=first,
      promote=(),
      mothers=(children,),
    )
    return _on_rungs(settings, stage, max(children, first))

  return arm


def _genotypes(table: Table) -> np.ndarray:
  """One genotype of every network of a small space."""
  options, count = table.space.options, math.prod(table.space.options)
  if count > _LISTED:
    raise ValueError(
      '--config.tabular.arms: robot ranks all networks, and those of '
      f'{table.space.name} are not listed: {count:,} genotypes are more than '
      f'{_LISTED:,}; take `algorithms.robot` with a pool.'
    )
  every = np.stack(np.unravel_index(np.arange(count), options), 1)
  index = np.asarray(jax.jit(jax.vmap(table.space.index))(every))
  found = np.zeros((table.space.size, len(options)), np.int32)
  found[index[index >= 0]] = every[index >= 0]
  return found


SEARCHES: dict[str, Callable[[Settings, Table], Arm]] = {
  'random': _random,
  'evolution': _evolution,
  'local': _local,
  'reinforce': _reinforce,
  'nsga': _nsga,
  'eeea': _eeea,
  'delta': _delta(_by_difference),
  'plain_delta': _delta(
    lambda: stages.by_difference(estimators.ridge_difference(context='none'))
  ),
  'value': _delta(_by_value),
  'plain_value': _delta(
    lambda: stages.by_value(estimators.ridge(basis=estimators.plain()))
  ),
  'neighbour': _delta(stages.by_chance),
  # Offline, or having learned something else before, or begun anew.
  'once_delta': _delta(_by_difference, _once),
  'once_value': _delta(_by_value, _once),
  'taught_delta': _delta(_by_difference, _taught),
  'taught_value': _delta(_by_value, _taught),
  'settled_delta': _delta(_by_difference, _settled),
  'settled_value': _delta(_by_value, _settled),
  'narrow_delta': _delta(_by_difference, _narrow),
  'restarted_delta': _delta(_by_difference, _restarted),
  'restarted_value': _delta(_by_value, _restarted),
  'restarted_neighbour': _delta(stages.by_chance, _restarted),
  'bananas': _bananas,
  'pnas': _pnas(None),
  'random_beam': _pnas(stages.by_chance),
  # By ranks, and by extremes as published.
  'robot': _robot(stages.places),
  'robot_extremes': _robot(stages.scaled),
  'robot_published': _robot(
    stages.scaled, predictor=algorithms.likeliest_process()
  ),
  'econas': _econas,
  'halving': _halving,
  'flat_first': _flat(slice(0, 1)),
  'flat_last': _flat(slice(-1, None)),
}
# Those that need a second objective.
FRONTS = ('nsga', 'eeea')
# Those that begin with random questions.
PREDICTING = (
  'delta',
  'plain_delta',
  'value',
  'plain_value',
  'neighbour',
  'once_delta',
  'once_value',
  'taught_delta',
  'taught_value',
  'settled_delta',
  'settled_value',
  'narrow_delta',
  'restarted_delta',
  'restarted_value',
  'restarted_neighbour',
  'bananas',
)
# Those that learn a column before.
TAUGHT = ('taught_delta', 'taught_value', 'settled_delta', 'settled_value')


LADDERS = ('econas', 'halving', 'flat_first', 'flat_last')


def refuse(settings: Settings) -> None:
  """Refuses what can be refused before the table is read.

  Raises:
    ValueError: naming the flag, what it is and what is legal.
  """
  check(settings, RULES)
  held = settings['tabular']
  arms = several_of('tabular.arms', held['arms'], SEARCHES)
  one_of('tabular.unit', held['unit'], UNITS)
  one_of('tabular.repeats', held['repeats'], REPEATS)
  if not held['budget'] > 0:
    raise ValueError(
      f'--config.tabular.budget must be above 0 {held["unit"]}, got '
      f'{held["budget"]!r}.'
    )
  if held['unit'] == 'seconds' and not held['cost']:
    raise ValueError(
      "--config.tabular.unit='seconds' needs --config.tabular.cost, the column "
      "of seconds; or take 'queries'."
    )
  if held['unit'] == 'queries' and held['budget'] > held['queries']:
    raise ValueError(
      f'--config.tabular.budget is {held["budget"]:g} queries, and '
      f'--config.tabular.queries lets a search ask {held["queries"]}.'
    )
  _refuse_predicted(settings, arms)
  if set(arms) & set(LADDERS):
    _refuse_ladder(settings)
  for arm in arms:
    if arm in FRONTS and not less(settings):
      raise ValueError(
        f'--config.tabular.arms: {arm} needs --config.tabular.less, the '
        "columns of which less is better, joined by '-', such as flops."
      )


def _refuse_predicted(settings: Settings, arms: tuple[str, ...]) -> None:
  held = _predicted(settings)
  counted = ('first', 'keep', 'examples', 'patience')
  counts = {f'predicted.{name}': (1, None) for name in counted}
  check({'predicted': held}, counts)
  if not all(value.isdigit() for value in held['base'].split('-')):
    raise ValueError(
      "--config.predicted.base must be whole numbers joined by '-', such as "
      f'1-1-1-1-1-1, got {held["base"]!r}.'
    )
  if set(arms) & set(PREDICTING):
    queries = settings['tabular']['queries']
    if held['first'] > queries:
      raise ValueError(
        f'--config.predicted.first is {held["first"]} random questions, and '
        f'--config.tabular.queries lets a search ask {queries}.'
      )
  taught = [arm for arm in arms if arm in TAUGHT]
  if taught and not held['target']:
    raise ValueError(
      f'--config.predicted.target: {taught[0]} needs the column that it learns '
      'before, such as logsynflow, or of another data set.'
    )
  weighing = _weighing(arms)
  if weighing and not _columns(settings):
    raise ValueError(
      f'--config.predicted.columns: {weighing[0]} needs metrics, joined by '
      "',', such as logsynflow,naswot."
    )
  if weighing and settings['tabular']['queries'] < 2:
    raise ValueError(
      f'--config.tabular.queries must be at least 2 for {weighing[0]}.'
    )


def _refuse_ladder(settings: Settings) -> None:
  held = _laddered(settings)
  check(held, {'ladder.first': (1, None)})
  rungs = len(_each(held['ladder']['signals'], ','))
  wanted = {'promote': rungs - 1, 'mothers': rungs}
  counts = {name: numbers(held, f'ladder.{name}') for name in wanted}
  for name, found in counts.items():
    if len(found) != wanted[name] or not sum(found):
      raise ValueError(
        f'--config.ladder.{name} must be {wanted[name]} numbers, some above 0, '
        f'for the {rungs} rungs of --config.ladder.signals; got {found}.'
      )
  check_ladder(**counts)
  for name in ('signals', 'costs'):
    columns = held['ladder'][name]
    epochs = [int(number) for number in _EPOCHS.findall(columns)]
    if epochs != sorted(epochs):
      raise ValueError(
        f'--config.ladder.{name} must be the columns of the rungs in their '
        f'order, the shortest training first, got {columns!r}.'
      )
  if len(_each(held['ladder']['costs'], ',')) not in (0, rungs):
    raise ValueError(
      f'--config.ladder.costs must be {rungs} columns or none, got '
      f'{held["ladder"]["costs"]!r}.'
    )


def read(settings: Settings) -> Table:
  """The table that the settings name, with all columns that they name.

  Raises:
    FileNotFoundError: for a missing file.
    ValueError: for a file that is no table, or lacks a column, and for a
      ladder whose rungs would be paid back.
  """
  held = settings['tabular']
  table = _loaded(settings)
  if table.space.name == spaces.nas_bench_201.space().name:
    table = spaces.nas_bench_201.priced(table, held['classes'])
  for name in ('signal', 'cost', 'report', *less(settings)):
    column = held.get(name, name)
    flag = name if name in held else 'less'
    if flag == 'cost' and not column:
      continue
    _refuse_column(table, f'tabular.{flag}', column)
  for column in _columns(settings):
    _refuse_column(table, 'predicted.columns', column)
  if set(held['arms'].split('-')) & set(TAUGHT):
    _refuse_column(table, 'predicted.target', _predicted(settings)['target'])
  if set(held['arms'].split('-')) & set(LADDERS):
    for name in ('signals', 'costs'):
      for column in _each(_laddered(settings)['ladder'][name], ','):
        _refuse_column(table, f'ladder.{name}', column)
    with naming('--config.ladder.costs'):
      _rungs(settings, table, slice(None))
  if 'eeea' in held['arms'].split('-') and 'params' not in table.columns:
    raise ValueError(
      '--config.tabular.arms: eeea needs the column params, which the table of '
      f'{table.space.name} has not.'
    )
  _refuse_budget(settings, table)
  return table


def _loaded(settings: Settings) -> Table:
  """The files of `table` and `more`, prefixed where that says so."""
  more = []
  for each in _each(settings['more'], ','):
    prefix, equals, file = each.partition('=')
    named = equals and prefix.isidentifier()
    more.append((prefix, file) if named else each)
  return spaces.load(settings['table'], *more)


def _refuse_budget(settings: Settings, table: Table) -> None:
  """Refuses a budget that one question may exceed, which finds nothing."""
  held = settings['tabular']
  dearest = 1.0
  if held['unit'] == 'seconds':
    costs = {held['cost']}
    if set(held['arms'].split('-')) & set(LADDERS):
      costs |= {*_each(_laddered(settings)['ladder']['costs'], ',')}
    dearest = max(float(np.nanmax(_column(table, name))) for name in costs)
  if held['budget'] < dearest:
    raise ValueError(
      f'--config.tabular.budget must be at least {dearest:,g} {held["unit"]}, '
      f'which one question may take, got {held["budget"]:g}.'
    )


def _refuse_column(table: Table, flag: str, name: str) -> None:
  try:
    spaces.tables.column(table, name)
  except (KeyError, ValueError) as error:
    raise ValueError(f'--config.{flag}: {error.args[0]}.') from None


def tabular(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Searches a table by the arms that `tabular.arms` names.

  Each arm is `tabular.searches` searches side by side, each with a key of its
  own, the same in every arm. What they found is read off when the budget is
  spent: the best by the column `tabular.signal`, reported by the column
  `tabular.report`. Resumes wherever `folder` says the job is.

  Args:
    config: settings, as `configs/evolution_nb201.py` returns them.
    folder: the workdir.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: under `arms` for each arm `test`, the
    mean of the reported column over the searches, `std`, `interval` (95 % of
    the mean), `signal`, `optimum` (the share of searches that found the best
    there is by the signal), `rank` (1 for that one, the mean), `queries` and
    `seconds` spent at the budget, what running it took, and `found`, the
    genotype that most searches found; for fronts also `hypervolume`. Under
    `baselines` the same of rankings: by parameters, if the table has them, and
    beside the arm robot by each of its metrics alone, and beside arms that
    learn a column before by that column. `curves.png`, and
    `fronts.png` of the first search of each arm, lie beside it.

  Raises:
    ValueError: for illegal settings or a table that cannot be used, before
      anything is computed, and for a folder that holds another run.
    FileNotFoundError: for a missing table.
  """
  console = console or rich.console.Console()
  settings = resolve(config)
  refuse(settings)
  table = read(settings)
  arms = several_of('tabular.arms', settings['tabular']['arms'], SEARCHES)
  made = {arm: SEARCHES[arm](settings, table) for arm in arms}
  path = workdir.claim(folder, settings)
  held = settings['tabular']
  console.print(
    f'{table.space.name}: {table.space.size:,} networks; {held["searches"]:,} '
    f'searches of an arm, {held["budget"]:,g} {held["unit"]} each; '
    f'{jax.device_count()} {jax.default_backend()} device(s); {path}',
    highlight=False,
  )
  key = jax.random.key(settings['seed'])
  rows, lines, steps = {}, {}, {}
  with report.progress(console) as show:
    for arm, ready in made.items():
      last = _conducted(arm, ready, key, settings, table, path, show)
      found = _found(settings, table, last)
      rows[arm] = _row(settings, table, last, found)
      lines[arm] = found.curve
      if less(settings):
        best = front(_first(last), less(settings))
        steps[arm] = np.asarray(last.index)[0][best]
  summary = {'arms': rows}
  for name, column in _rankings(settings, table).items():
    ranked = _ranked(settings, table, column)
    found = _found(settings, table, ranked)
    if name == 'most_parameters':
      lines[name] = found.curve
    row = _row(settings, table, ranked, found)
    summary.setdefault('baselines', {})[name] = row
  _draw(settings, table, path, lines, steps)
  write_results(path, summary)
  console.print(results({**rows, **summary.get('baselines', {})}, settings))
  console.print(f'everything is in {path}', highlight=False)
  return summary


def _conducted(arm, ready: Arm, key, settings, table, path, show) -> Trials:
  """The trials of all searches of an arm, at their end."""
  chunks = min(settings['generations'], ready.generations)
  rounds = math.ceil(ready.generations / chunks)
  start = trials.start(
    table.space,
    chunks * rounds * ready.slots,
    metrics=(*less(settings), *ready.metrics),
  )
  search = workdir.Search(
    arm,
    network.named_key(key, 'search'),
    trials.side_by_side(ready.stage, rounds=rounds),
    trials.many(start, settings['tabular']['searches']),
    chunks,
  )
  return workdir.conduct(path, search, settings=settings, report=show, keep=1)


def _first(last: Trials) -> Trials:
  """The trials of the first search."""
  metrics = {name: values[0] for name, values in last.metrics.items()}
  return last._replace(index=last.index[0], metrics=metrics)


def _found(settings: Settings, table: Table, last: Trials) -> Found:
  held = settings['tabular']
  free = REPEATS[held['repeats']]
  read = jax.jit(
    jax.vmap(
      lambda index, metrics: trials.incumbents(
        last._replace(index=index, metrics=metrics), free_repeats=free
      )
    )
  )
  best = jax.tree.map(np.asarray, read(last.index, last.metrics))
  spent = getattr(best, UNITS[held['unit']])
  slot = np.asarray(trials.within(spent, held['budget']))
  at = np.arange(len(slot)), np.maximum(slot, 0)
  values = np.append(_column(table, held['report']), np.nan)
  grid = np.linspace(0, held['budget'], _GRID + 1)[1:]
  held_at = np.stack([np.searchsorted(row, grid, 'right') - 1 for row in spent])
  index = np.take_along_axis(best.index, np.maximum(held_at, 0), axis=1)
  seen = values[np.where(held_at < 0, -1, index)]
  low, high = np.quantile(seen, [0.25, 0.75], axis=0)
  return Found(
    np.where(slot < 0, -1, best.index[at]),
    np.where(slot < 0, 0, best.queries[at]),
    np.where(slot < 0, 0.0, best.cost[at]),
    int((spent[:, -1] >= held['budget']).sum()),
    {'x': grid, 'mean': seen.mean(axis=0), 'low': low, 'high': high},
  )


def _column(table: Table, name: str) -> np.ndarray:
  return np.asarray(spaces.tables.column(table, name), float)


def _row(
  settings: Settings, table: Table, last: Trials, found: Found
) -> dict[str, Any]:
  held = settings['tabular']
  tested = np.append(_column(table, held['report']), np.nan)[found.index]
  told = np.append(_column(table, held['signal']), np.nan)[found.index]
  count = len(tested)
  std = float(tested.std(ddof=1)) if count > 1 else None
  half = 1.96 * std / math.sqrt(count) if count > 1 else None
  mean = float(tested.mean())
  row = {
    'test': mean,
    'std': std,
    'interval': None if half is None else [mean - half, mean + half],
    'signal': float(told.mean()),
    'optimum': float(
      (told == np.nanmax(_column(table, held['signal']))).mean()
    ),
    'rank': float(1 + np.mean(_beaten(settings, table, told))),
    'queries': float(found.queries.mean()),
    'seconds_charged': float(found.seconds.mean()),
    'searches': count,
    'spent_budget': found.reached,
  }
  if less(settings):
    row['hypervolume'] = _hypervolume(settings, table, np.asarray(last.index))
  most = np.bincount(found.index[found.index >= 0]).argmax()
  at = np.argwhere(np.asarray(last.index) == most)[0]
  row['found'] = {
    'index': int(most),
    'share': float((found.index == most).mean()),
  }
  if last.genotypes is not None:
    genotype = np.asarray(last.genotypes)[tuple(at)]
    row['found']['genotype'] = genotype.tolist()
    if table.space.name == spaces.nas_bench_201.space().name:
      row['found']['text'] = spaces.nas_bench_201.text(genotype)
  spent = last.spent
  return row | {
    'compilations': spent.compilations,
    'compiling': spent.compiling,
    'seconds': spent.seconds,
  }


def _beaten(settings, table: Table, told: np.ndarray) -> np.ndarray:
  """(S,) how many networks are better by the signal than what was found."""
  values = _column(table, settings['tabular']['signal'])
  order = np.sort(values[np.isfinite(values)])
  return len(order) - np.searchsorted(order, told, side='right')


def _hypervolume(
  settings: Settings, table: Table, index: np.ndarray
) -> float | None:
  """The mean share of the hypervolume that all networks together have.

  Of fitness above nothing, and of the first cost below half as much again as
  the most there is.
  """
  cost = _column(table, less(settings)[0])
  value = _column(table, settings['tabular']['signal'])
  corner = (0.0, _MARGIN * np.nanmax(cost))
  whole = hypervolume(value, cost, corner)
  parts = [
    hypervolume(value[held], cost[held], corner)
    for held in (np.unique(row[row >= 0]) for row in index)
  ]
  return float(np.mean(parts) / whole)


def _rankings(settings: Settings, table: Table) -> dict[str, str]:
  """Columns by which networks are ranked, for comparison, by names of them."""
  found = {}
  names = [name for name in ('params', 'params_m') if name in table.columns]
  if names:
    found['most_parameters'] = names[0]
  if _weighing(settings['tabular']['arms'].split('-')):
    found |= {f'most_{name}': name for name in _columns(settings)}
  if set(settings['tabular']['arms'].split('-')) & set(TAUGHT):
    target = _predicted(settings)['target']
    found[f'most_{target}'] = target
  return found


def _ranked(settings: Settings, table: Table, column: str) -> Trials:
  """Trials that ask of the networks with most of a column, in their order.

  Equal ones in an order of its own for each search, those without a number
  last.
  """
  held = settings['tabular']
  rng = np.random.default_rng(settings['seed'])
  most = np.nan_to_num(_column(table, column), nan=-np.inf)
  count = min(held['queries'], table.space.size)
  ties = (rng.random(table.space.size) for _ in range(held['searches']))
  index = np.stack([np.lexsort((tie, -most))[:count] for tie in ties])
  names = {'fitness': held['signal'], 'cost': held['cost']}
  names |= {name: name for name in less(settings)}
  metrics = {
    name: _column(table, column)[index] if column else np.zeros(index.shape)
    for name, column in names.items()
  }
  metrics = {
    name: values.astype(np.float32) for name, values in metrics.items()
  }
  return Trials(None, index.astype(np.int32), metrics, count, None, None)


def _draw(settings, table, path: pathlib.Path, lines, steps) -> None:
  """Writes `curves.png` and `fronts.png`."""
  held = settings['tabular']
  of_all = np.append(_column(table, held['report']), np.nan)
  best = int(np.nanargmax(_column(table, held['signal'])))
  figure = draw.curves(
    lines,
    x=f'{held["unit"]} spent',
    y=f'{held["report"]} of the best by {held["signal"]}',
    goal=float(of_all[best]),
  )
  workdir.save_figure(path / 'curves.png', figure)
  if not steps:
    return
  cost = less(settings)[0]
  price, value = _column(table, cost), _column(table, held['signal'])
  whole = front(
    Trials(
      None,
      np.arange(table.space.size),
      {'fitness': value, cost: price},
      table.space.size,
      None,
      None,
    ),
    (cost,),
  )
  shown = {'the whole table': whole, **steps}
  figure = draw.fronts(
    {name: (price[index], value[index]) for name, index in shown.items()},
    x=cost,
    y=held['signal'],
  )
  workdir.save_figure(path / 'fronts.png', figure)


def results(rows: dict[str, Any], settings: Settings) -> rich.table.Table:
  """The table of results: a row for each arm, and which fell short."""
  held = settings['tabular']
  short = [
    f'{name.replace("_", " ")} ({row["spent_budget"]} of {row["searches"]})'
    for name, row in rows.items()
    if row['spent_budget'] < row['searches']
  ]
  table = rich.table.Table(
    title=f'{held["report"]} at {held["budget"]:,g} {held["unit"]}'
  )
  if short:
    table.caption = (
      f'not all searches spent the budget: {", ".join(short)}; '
      '--config.tabular.queries is what they may ask'
    )
  table.add_column('search')
  for title in ('mean', 'std', '95 % of mean', 'optimum', 'queries', 'seconds'):
    table.add_column(title, justify='right', no_wrap=True)
  for name, row in rows.items():
    std = '' if row['std'] is None else f'{row["std"]:.3f}'
    ends = row['interval']
    table.add_row(
      name.replace('_', ' '),
      f'{row["test"]:.3f}',
      std,
      '' if ends is None else f'{ends[0]:.3f} to {ends[1]:.3f}',
      f'{100 * row["optimum"]:.0f} %',
      f'{row["queries"]:.0f}',
      f'{row["seconds"]:.1f}',
    )
  return table
