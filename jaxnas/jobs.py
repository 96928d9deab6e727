"""Whole jobs from plain settings: what `launch/train.py` runs."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
import rich.console

from jaxnas import (
  algorithms,
  combine,
  estimators,
  network,
  report,
  stages,
  tasks,
  training,
  workdir,
)
from jaxnas.base import Candidate, Population, Stage, Task
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


SEEDS = ('chain', 'mlp', 'resnet', 'vgg19', 'mobilenet_v1')


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
  _widths(net)


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
  'growth.mass': (0.01, 0.99),
  'growth.tolerance': (0, None),
  'growth.steps': (0, None),
  'growth.batch': (1, None),
  'growth.learn_examples': (1, None),
  'growth.score_examples': (1, None),
  'optimizer.learning_rate': (0, None),
  'optimizer.weight_decay': (0, None),
}


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
  settings = resolve(config)
  check(settings, _GROWTH_RULES)
  _check_net(settings)
  make_optimizer(settings, 1)  # Refuses a name that it does not know.
  task = make_task(settings)
  spec = make_seed(settings, task)
  key = jax.random.key(settings['seed'])
  path = workdir.claim(folder, settings)
  workdir.write_atomically(path / 'seed.json', to_json(spec, indent=1))
  epochs, batch = settings['epochs'], settings['batch']
  batch = min(batch, len(task.train.targets))
  per_epoch = len(task.train.targets) // batch
  grow = settings['growth']

  def conduct(name: str, stage: Stage, spec: Spec, generations: int):
    net = network.init(spec, network.named_key(key, f'{name}/init'))
    search = workdir.Search(
      name,
      network.named_key(key, name),
      stage,
      Population((Candidate(network.to_host(net)),)),
      generations,
    )
    return workdir.conduct(path, search, settings=settings, report=show)

  def baseline(name: str, spec: Spec, examples: int) -> dict[str, Any]:
    total = math.ceil(examples / (per_epoch * batch))
    tx = make_optimizer(settings, total * per_epoch)
    whole, rest = divmod(total, epochs)
    stage = combine.chain(
      combine.when(
        lambda population: population.generation < whole,
        stages.train(task, tx, epochs=epochs, batch=batch),
      ),
      combine.when(
        lambda population: population.generation >= whole,
        stages.train(task, tx, epochs=rest, batch=batch),
      ),
      stages.measure(task),
    )
    last = conduct(name, stage, spec, whole + (rest > 0))
    return _row(last, task)

  console.print(
    f'{task.name}: {len(task.train.targets):,} training, '
    f'{len(task.valid.targets):,} validation and {len(task.test.targets):,} '
    f'test examples; seed {settings["net"]["name"]} {report.widths(spec)} '
    f'with {network.param_count(spec):,} parameters; {jax.device_count()} '
    f'{jax.default_backend()} device(s); {path}',
    highlight=False,
  )
  with report.progress(console) as show:
    stage = algorithms.growth(
      task,
      make_optimizer(settings, settings['generations'] * epochs * per_epoch),
      estimators.gauss_newton(
        loss=task.loss, steps=grow['steps'], batch=grow['batch']
      ),
      epochs=epochs,
      batch=batch,
      rounds=grow['rounds'],
      price=grow['price'],
      z=grow['z'],
      limit=grow['limit'] or None,
      mass=grow['mass'],
      learn_examples=grow['learn_examples'],
      score_examples=grow['score_examples'],
      tolerance=grow['tolerance'],
    )
    last = conduct('growth', stage, spec, settings['generations'])
    grown = workdir.leader(last)
    workdir.save_network(path / 'best', grown.net)
    summary = _row(last, task)
    names = ('seed_same_examples', 'final_from_scratch')
    summary['baselines'] = {
      name: baseline(name, start, summary['examples'])
      for name, start in zip(names, (spec, grown.net.spec))
    }
  workdir.write_atomically(
    path / 'summary.json', json.dumps(summary, indent=2) + '\n'
  )
  report.html(path)
  console.print(
    report.results(
      {
        'grown': summary,
        'seed, same examples': summary['baselines']['seed_same_examples'],
        'final from scratch': summary['baselines']['final_from_scratch'],
      }
    )
  )
  console.print(
    f'grown widths {report.widths(grown.net.spec)}; everything is in {path}',
    highlight=False,
  )
  return summary


def _row(population: Population, task: Task) -> dict[str, Any]:
  best = workdir.leader(population)
  return {
    'test_accuracy': training.evaluate(best.net, task, task.test).metric,
    'params': network.param_count(best.net),
    'examples': population.spent.examples,
    'compilations': population.spent.compilations,
    'seconds': population.spent.seconds,
  }


JOBS = {'growth': growth}


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
  if config['job'] not in JOBS:
    raise ValueError(
      f'--config.job must be one of {", ".join(JOBS)}, got {config["job"]!r}.'
    )
  return JOBS[config['job']](config, folder, console=console)
