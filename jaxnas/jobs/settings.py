"""Settings of a run: what they may be, and what they name."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optax

from jaxnas import tasks
from jaxnas.base import Task
from jaxnas.spaces import seeds
from jaxnas.spec import Spec

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


@contextlib.contextmanager
def naming(flag: str) -> Iterator[None]:
  """Puts the flag before the message of a ValueError.

  Example:
    >>> with naming('--config.fidelity'):
    ...   raise ValueError('no epochs.')
    Traceback (most recent call last):
      ...
    ValueError: --config.fidelity: no epochs.
  """
  try:
    yield
  except ValueError as error:
    raise ValueError(f'{flag}: {error}') from None


def check_ladder(promote: Sequence[int], mothers: Sequence[int]) -> None:
  """Refuses a ladder on which more are to go on than come to a rung.

  In the long run no more go on from a rung than came to it, children to the
  first; the places of others would stay empty, and arms cost unlike.

  Args:
    promote: how many are to go on from rung 1, 2, ...
    mothers: of each rung, with a child each.

  Raises:
    ValueError: naming the flag, what it is and what is legal.

  Example:
    >>> check_ladder((8, 4), (6, 5, 5))
    >>> check_ladder((8, 4), (2, 1, 1))
    Traceback (most recent call last):
      ...
    ValueError: --config.ladder.promote must not grow from rung to rung, nor \
exceed the 4 children of --config.ladder.mothers; got (8, 4).
  """
  counts = [sum(mothers), *promote]
  if counts != sorted(counts, reverse=True):
    raise ValueError(
      '--config.ladder.promote must not grow from rung to rung, nor exceed the '
      f'{counts[0]} children of --config.ladder.mothers; got {promote}.'
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
  check_net(settings)
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


def check_net(settings: Settings) -> None:
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


def several_of(
  name: str, value: str, legal: Mapping[str, Any]
) -> tuple[str, ...]:
  """The names that a setting joins by '-', each once.

  Raises:
    ValueError: if one of them is not legal, saying what is.

  Example:
    >>> several_of('fruits', 'pear-apple-pear', {'apple': 1, 'pear': 2})
    ('pear', 'apple')
  """
  names = tuple(dict.fromkeys(value.split('-')))
  if not all(name in legal for name in names):
    raise ValueError(
      f"--config.{name} must be of {', '.join(legal)}, joined by '-', got "
      f'{value!r}.'
    )
  return names


def one_of(name: str, value: str, legal: Mapping[str, Any]) -> None:
  """Refuses a setting that is not among the legal names.

  Raises:
    ValueError: saying what is legal.

  Example:
    >>> one_of('fruit', 'pear', {'apple': 1, 'pear': 2})
  """
  if value not in legal:
    raise ValueError(
      f'--config.{name} must be one of {", ".join(legal)}, got {value!r}.'
    )
