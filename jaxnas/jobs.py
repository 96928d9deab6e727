"""Whole jobs from plain settings: what `launch/train.py` runs."""

import functools
import json
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import optax
import rich.console

from jaxnas import (
  algorithms,
  combine,
  contest,
  estimators,
  groups,
  morphisms,
  network,
  report,
  stages,
  tasks,
  training,
  workdir,
)
from jaxnas.base import Candidate, Estimator, Key, Population, Stage, Task
from jaxnas.spaces import seeds
from jaxnas.spec import Spec, to_json

Settings = Mapping[str, Any]


def resolve(config: Settings) -> dict[str, Any]:
  """The settings of a run as plain values: `quick` is put into effect.

  With `config.quick`, the values in `config.when_quick`, nested like the
  settings, replace the settings.

  Raises:
    ValueError: if `when_quick` names a setting that does not exist.

  Example:
    >>> resolve({'a': {'b': 1}, 'quick': True, 'when_quick': {'a': {'b': 2}}})
    {'a': {'b': 2}, 'quick': True}
  """
  settings = json.loads(json.dumps(_plain(config)))
  overrides = settings.pop('when_quick', {})
  return _replaced(settings, overrides) if settings.get('quick') else settings


def _replaced(settings: Settings, overrides: Settings) -> dict[str, Any]:
  unknown = sorted(set(overrides) - set(settings))
  if unknown:
    raise ValueError(f'when_quick: there are no settings {unknown}.')
  merged = dict(settings)
  for name, value in overrides.items():
    nested = isinstance(value, Mapping)
    merged[name] = _replaced(settings[name], value) if nested else value
  return merged


def _plain(value: Any) -> Any:
  if hasattr(value, 'to_dict'):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {key: _plain(v) for key, v in value.items()}
  return list(value) if isinstance(value, tuple) else value


def check(settings: Settings, rules: Mapping[str, Any]) -> None:
  """Refuses settings outside their range, before anything is computed.

  Args:
    settings: nested settings.
    rules: for each dotted name `(low, high)`, inclusive; None for no bound.

  Raises:
    ValueError: naming the flag, what it is and what is legal.

  Example:
    >>> check({'batch': 0}, {'batch': (1, None)})
    Traceback (most recent call last):
      ...
    ValueError: --config.batch must be at least 1, got 0.
  """
  for name, (low, high) in rules.items():
    value = settings
    for part in name.split('.'):
      value = value[part]
    if low is not None and not value >= low:
      raise ValueError(
        f'--config.{name} must be at least {low}, got {value!r}.'
      )
    if high is not None and not value <= high:
      raise ValueError(
        f'--config.{name} must be at most {high}, got {value!r}.'
      )


def make_task(settings: Settings) -> Task:
  """The task that `dataset`, `data_dir` and `examples` name."""
  if settings['dataset'] == 'digits':
    return tasks.digits()
  limits = settings['examples']
  return tasks.tfds_images(
    settings['dataset'],
    data_dir=settings['data_dir'] or None,
    train_examples=limits['train'] or None,
    test_examples=limits['test'] or None,
  )


SEEDS = ('chain', 'cells', 'mlp', 'resnet', 'vgg19', 'mobilenet_v1')


def make_seed(settings: Settings, task: Task) -> Spec:
  """The seed network that `net` names, at the width that it says.

  Raises:
    ValueError: for an unknown name or an illegal width.
  """
  net = settings['net']
  width = net['width']
  _check_net(settings)
  shape, classes = task.shape, task.outputs
  if net['name'] == 'chain':
    return seeds.chain(shape, _widths(net), classes)
  if net['name'] == 'cells':
    channels, units = _cells(net)
    return seeds.cells(shape, channels, units, classes)
  if net['name'] == 'mlp':
    widths = [width for width in _widths(net) if width != 'M']
    return seeds.mlp(shape, widths, classes)
  if net['name'] == 'resnet':
    return seeds.resnet(
      classes, shape=shape, blocks=net['blocks'], widths=(width,) * 3
    )
  if net['name'] == 'vgg19':
    return seeds.vgg19(shape, classes, width=width)
  return seeds.mobilenet_v1(shape, classes, width=width)


def _check_net(settings: Settings) -> None:
  """What can be refused before the data are read."""
  net = settings['net']
  if net['name'] not in SEEDS:
    raise ValueError(
      f'--config.net.name must be one of {", ".join(SEEDS)}, '
      f'got {net["name"]!r}.'
    )
  check(settings, {'net.width': (1, None), 'net.blocks': (1, None)})
  if net['name'] == 'cells':
    _cells(net)
  else:
    _widths(net)


def _cells(net: Settings) -> tuple[list[int], list[int]]:
  """Channels of cells and units of dense layers, as of '3-6:10-10'."""
  parts = (_widths({'widths': p}) for p in net['widths'].split(':') if p)
  channels, *units = ([w for w in part if w != 'M'] for part in parts)
  return channels, sum(units, [])


def _widths(net: Settings) -> list[int | str]:
  parts = str(net['widths']).split('-')
  numbers = [part for part in parts if part != 'M']
  if not numbers or not all(n.isdecimal() and int(n) > 0 for n in numbers):
    raise ValueError(
      '--config.net.widths must be whole numbers of at least 1, and M for '
      f"pooling, joined by '-', such as 4-M-8; got {net['widths']!r}."
    )
  return [part if part == 'M' else int(part) for part in parts]


def make_optimizer(
  settings: Settings, steps: int
) -> optax.GradientTransformation:
  """The optimizer that `optimizer` names, with a cosine over `steps` steps."""
  held = settings['optimizer']
  schedule = optax.cosine_decay_schedule(held['learning_rate'], max(steps, 1))
  if held['name'] == 'adamw':
    return optax.adamw(schedule, weight_decay=held['weight_decay'])
  if held['name'] == 'sgd':
    return optax.chain(
      optax.add_decayed_weights(held['weight_decay']),
      optax.sgd(schedule, momentum=0.9, nesterov=True),
    )
  raise ValueError(
    f"--config.optimizer.name must be 'adamw' or 'sgd', got {held['name']!r}."
  )


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


JUDGES: dict[str, Callable[[Settings, Task], Estimator]] = {
  'gauss_newton': _gauss_newton,
  'first_order': _first_order,
  'magnitude': lambda grow, task: estimators.magnitude(),
  'batch_norm_scale': lambda grow, task: estimators.batch_norm_scale(),
  'mean_activation': lambda grow, task: estimators.mean_activation(),
  'random': lambda grow, task: estimators.random(),
  'brute_force': lambda grow, task: estimators.brute_force(loss=task.loss),
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


def _one_of(name: str, value: str, legal: Mapping[str, Any]) -> None:
  if value not in legal:
    raise ValueError(
      f'--config.{name} must be one of {", ".join(legal)}, got {value!r}.'
    )


def _check_growth(settings: Settings) -> None:
  """What can be refused of a growth job before the data are read."""
  check(settings, _GROWTH_RULES)
  _check_net(settings)
  make_optimizer(settings, 1)  # Refuses a name that it does not know.
  grow = settings['growth']
  if 0 < grow['ratio'] < 1:
    raise ValueError(
      '--config.growth.ratio must be 0 (no bound) or at least 1, got '
      f'{grow["ratio"]}.'
    )
  _one_of('growth.judge', grow['judge'], JUDGES)
  _one_of('growth.rule', grow['rule'], RULES)
  for move in grow['moves'].split('-'):
    _one_of('growth.moves', move, MOVES)


class _Job(NamedTuple):
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


def _begin(config: Settings, folder: workdir.Folder, console) -> _Job:
  settings = resolve(config)
  CHECKS[settings['job']](settings)
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
  return _Job(settings, task, spec, key, path, None)


def _conduct(
  job: _Job, name: str, stage: Stage, spec: Spec, generations: int
) -> Population:
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


def _grow(
  job: _Job, name: str, grow: Settings, generations: int, tolerance: float
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
  return _conduct(job, name, stage, job.spec, generations)


def _baseline(
  job: _Job,
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
  last = _conduct(job, name, stage, spec, whole + (rest > 0))
  return _row(last, job.task)


def _finish(
  path: pathlib.Path, summary: dict[str, Any], console, rows, spec: Spec
) -> None:
  workdir.write_atomically(
    path / 'summary.json', json.dumps(summary, indent=2) + '\n'
  )
  report.html(path)
  console.print(report.results(rows))
  console.print(
    f'found widths {report.widths(spec)}; everything is in {path}',
    highlight=False,
  )


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
  job = _begin(config, folder, console)
  with report.progress(console) as show:
    job = job._replace(show=show)
    grow, generations = job.settings['growth'], job.settings['generations']
    last = _grow(job, 'growth', grow, generations, grow['gain'])
    grown = workdir.leader(last)
    workdir.save_network(job.path / 'best', grown.net)
    summary = _row(last, job.task)
    names = ('seed_same_examples', 'final_from_scratch')
    summary['baselines'] = {
      name: _baseline(job, name, start, summary['examples'])
      for name, start in zip(names, (job.spec, grown.net.spec))
    }
  rows = {
    'grown': summary,
    'seed, same examples': summary['baselines']['seed_same_examples'],
    'final from scratch': summary['baselines']['final_from_scratch'],
  }
  _finish(job.path, summary, console, rows, grown.net.spec)
  return summary


def uniform(spec: Spec, params: int) -> Spec:
  """A spec with all groups wider by one factor: the width multiplier.

  Args:
    spec: the seed.
    params: how many parameters it is to have, about.

  Returns:
    The spec nearest in its number of parameters.

  Example:
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
  job = _begin(config, folder, console)
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
    arms = {'gauss_newton': _row(last, job.task)}
    examples, params = (arms['gauss_newton'][k] for k in ('examples', 'params'))
    each = job.settings['epochs'] * job.per_epoch * job.batch
    for name, change in controls.items():
      learns = grow['rounds'] * _looks(grow, change['judge'], job)
      whole = math.ceil((examples - learns) / each)
      last = _grow(job, name, {**grow, **change}, whole, -math.inf)
      arms[name] = _row(last, job.task)
    for name, spec in (
      ('uniform_from_scratch', uniform(job.spec, params)),
      ('final_from_scratch', grown.net.spec),
      ('seed_same_examples', job.spec),
    ):
      arms[name] = _baseline(job, name, spec, examples)
  summary = {'arms': arms}
  rows = {name.replace('_', ' '): arm for name, arm in arms.items()}
  _finish(job.path, summary, console, rows, grown.net.spec)
  return summary


def _looks(grow: Settings, judge: str, job: _Job) -> int:
  """Examples that a judge learns from and scores on in a round, about."""
  if judge == 'random':
    return 0
  half = len(job.task.train.targets) // 2
  learn = min(grow['learn_examples'], half)
  score = min(grow['score_examples'], half)
  return learn + score + grow['steps'] * min(grow['batch'], learn)


def _row(
  population: Population, task: Task, best: Candidate | None = None
) -> dict[str, Any]:
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
  _check_evolution(settings)
  task = make_task(settings)
  count = len(task.train.targets)
  per_epoch = count // min(settings['batch'], count)
  tx = make_optimizer(settings, settings['epochs'] * per_epoch)
  path = workdir.claim(folder, settings)
  key = jax.random.key(settings['seed'])
  found, rows = {}, {}
  with report.progress(console) as show:
    for name, make in contest.arms(key, settings, task, tx).items():
      arm, own = make(), network.named_key(key, name)
      search = workdir.Search(name, own, *arm)
      last = workdir.conduct(path, search, settings=settings, report=show)
      found[name] = workdir.leader(last)
      rows[name] = _searched(last, task)
  best = max(rows, key=lambda name: rows[name]['valid_accuracy'])
  workdir.save_network(path / 'best', found[best].net)
  summary = {'arms': rows, 'best': best}
  _finish(path, summary, console, rows, found[best].net.spec)
  return summary


def _check_evolution(settings: Settings) -> None:
  """What can be refused of an evolution before the data are read."""
  check(settings, contest.RULES)
  contest.refuse(settings)
  make_optimizer(settings, 1)  # Refuses a name that it does not know.


def _searched(population: Population, task: Task) -> dict[str, Any]:
  """The row of a search: its best network, and what all of them cost."""
  best = workdir.leader(population)
  return {
    'valid_accuracy': best.metrics['valid_metric'],
    **_row(population, task),
    'flops': network.flops(best.net),
    'evaluations': population.spent.evaluations,
  }


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


def _check_ectonas(settings: Settings) -> None:
  """What can be refused of an ectonas job before the data are read."""
  check(settings, _ECTONAS_RULES)
  _check_net(settings)
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
  _one_of('optimizer.name', settings['optimizer']['name'], STEADY)
  _one_of('ectonas.pool', held['pool'], POOLS)
  _one_of('ectonas.compat', held['compat'], COMPATIBLE)
  _one_of('ectonas.children', held['children'], CHILDREN)
  ranked = held['children'] == 'ranked'
  if ranked and (held['compat'], held['pool']) != ('fixed', 'none'):
    raise ValueError(
      "--config.ectonas.children='ranked' goes with ectonas.compat='fixed' and "
      f"ectonas.pool='none', got {held['compat']!r} and {held['pool']!r}."
    )


def _ectonas_stage(
  job: _Job,
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
  first = job.settings['epochs']  # Without a match, nothing is decided.
  last = job.settings['generations'] - 1

  def lesson(epochs: float) -> Stage:
    falling = _falling(job, round(epochs * job.per_epoch))
    learn = stages.lessons(task, falling, batch=job.batch)
    return combine.chain(stages.inherit(), learn(epochs))

  return combine.chain(
    combine.when(stages.unspent(task, **paid, least=first), generation),
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
    return stages.ranked(estimators.gauss_newton(steps=60), task, **by)
  return combine.chain(
    stages.expand(stages.edits(**by, pool=pool)),
    stages.calibrate(task, examples=held['calibrate']),
  )


def _falling(job: _Job, steps: int) -> optax.GradientTransformation:
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
  job = _begin(config, folder, console)
  tx = STEADY[job.settings['optimizer']['name']](
    job.settings['optimizer']['learning_rate']
  )
  fitness = stages.relative(job.settings['ectonas']['alpha'])
  with report.progress(console) as show:
    job = job._replace(show=show)

    def search(name: str, match: stages.Match) -> tuple[dict, Candidate]:
      stage = _ectonas_stage(job, tx, match, fitness)
      last = _conduct(job, name, stage, job.spec, job.settings['generations'])
      best = stages.fittest(last, fitness)
      return _found(job, last, best), best

    summary, best = search('ectonas', stages.strongest)
    workdir.save_network(job.path / 'best', best.net)
    examples = summary['examples']
    alone = _falling(job, math.ceil(examples / job.batch))
    summary['baselines'] = {
      name: _baseline(job, name, spec, examples, alone)
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
  _finish(job.path, summary, console, rows, best.net.spec)
  return summary


def _found(job: _Job, last: Population, best: Candidate) -> dict[str, Any]:
  """The row of a network that a search found."""
  made = [event.move for event in best.lineage if event.kind == 'move']
  return {
    **_row(last, job.task, best),
    'valid_accuracy': training.evaluate(
      best.net, job.task, job.task.valid
    ).metric,
    'edits': [move.kind for move in made],
    'start_params': network.param_count(job.spec),
    'epochs': last.spent.examples / (job.per_epoch * job.batch),
    'own_epochs': best.metrics['epochs'],
  }


CHECKS = {
  'growth': _check_growth,
  'race': _check_growth,
  'evolution': _check_evolution,
  'ectonas': _check_ectonas,
}
JOBS = {
  'growth': growth,
  'race': race,
  'evolution': evolution,
  'ectonas': ectonas,
}


def run(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Runs the job that `config.job` names.

  Raises:
    ValueError: for an unknown job.
  """
  _one_of('job', config['job'], JOBS)
  return JOBS[config['job']](config, folder, console=console)
