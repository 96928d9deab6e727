"""What a study of proxies is of: settings, data, networks and their sizes.

Everything that `jaxnas.jobs.proxies` knows before it trains or scores a
network, and refuses where it cannot be.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import fidelity, network, tasks
from jaxnas.base import Data, Key, Task
from jaxnas.estimators import zero_cost
from jaxnas.fidelity import Fidelity
from jaxnas.jobs.image_spaces import SIDES, SPACES, ImageSpace, Networks
from jaxnas.jobs.settings import Settings, naming

# How many images there are of digits.
_DIGITS = 1797
# What `study` takes, and what it takes where nothing is given.
DEFAULTS: dict[str, Any] = {
  'dataset': 'digits',
  'data_dir': '',
  'examples': 256,
  'valid': 600,
  'space': 'nas_bench_201',
  'channels': 8,
  'repeats': 1,
  'networks': 12,
  'unconnected': False,
  'reference': 'c0r0s0e12',
  'fidelities': ['c2r0s0e12', 'c0r2s0e12', 'c0r0s2e12', 'c0r0s0e6'],
  'zero_cost': ['params', 'synflow', 'naswot'],
  'again': False,
  'batch': 32,
  'learning_rate': 0.1,
  'weight_decay': 3e-4,
  'clip': 5.0,
  'chunk': 4,
  'seed': 0,
  'threshold': 0.5,
  'resamples': 2000,
}
# The least that is legal; of others nothing is asked but that they be there.
_LEAST = {
  'examples': 0,
  'valid': 0,
  'channels': 1,
  'repeats': 1,
  'networks': 4,
  'batch': 1,
  'weight_decay': 0,
  'chunk': 1,
  'seed': 0,
  'resamples': 100,
}
# The reference again, from other weights: what no proxy need be better than.
AGAIN = 'again'


class Size(NamedTuple):
  """What a fidelity comes to.

  Attributes:
    channels: of the networks.
    shape: of the images.
    samples: to train on.
    epochs: of training.
    steps: of the optimizer in all of them.
    examples: that are seen in these.
  """

  channels: int
  shape: tuple[int, ...]
  samples: int
  epochs: int
  steps: int
  examples: int


def check(settings: Settings) -> dict[str, Any]:
  """The settings of a study, whole, and refused where they cannot be.

  Args:
    settings: what differs from `DEFAULTS`.

  Returns:
    All of them, as plain values.

  Raises:
    ValueError: naming the flag, what it is and what is legal.

  Example:
    >>> check({'networks': 3})
    Traceback (most recent call last):
      ...
    ValueError: --networks must be at least 4, got 3.
  """
  unknown = sorted(set(settings) - set(DEFAULTS))
  if unknown:
    raise ValueError(
      f'a study has no settings {unknown}; there are {", ".join(DEFAULTS)}.'
    )
  held = DEFAULTS | dict(settings)
  for name in ('fidelities', 'zero_cost'):
    if isinstance(held[name], str):
      raise ValueError(f'--{name} must be a list, got {held[name]!r}.')
    held[name] = list(held[name])
  for name, low in _LEAST.items():
    if not held[name] >= low:
      raise ValueError(f'--{name} must be at least {low}, got {held[name]!r}.')
  for name in ('learning_rate', 'clip'):
    if not held[name] > 0:
      raise ValueError(f'--{name} must be above 0, got {held[name]!r}.')
  if not -1 <= held['threshold'] <= 1:
    raise ValueError(
      f'--threshold must be a rho, of -1 to 1, got {held["threshold"]!r}.'
    )
  own = SPACES.get(held['space'])
  if own is None:
    raise ValueError(
      f'--space must be one of {", ".join(SPACES)}, got {held["space"]!r}.'
    )
  if held['channels'] % own.widths:
    raise ValueError(
      f'--channels must be a multiple of {own.widths} in {held["space"]}, '
      f'got {held["channels"]}.'
    )
  if own.space.size and held['networks'] > own.space.size:
    raise ValueError(
      f'--networks must be at most {own.space.size}, all of '
      f'{held["space"]}, got {held["networks"]}.'
    )
  _refuse_names(held)
  return held


def _refuse_names(held: Settings) -> None:
  """Refuses fidelities and zero-cost scores by their names."""
  for flag, texts in (
    ('--reference', [held['reference']]),
    ('--fidelities', held['fidelities']),
  ):
    with naming(flag):
      for text in texts:
        fidelity.parse(text)
  for flag in ('fidelities', 'zero_cost'):
    twice = [name for name in held[flag] if held[flag].count(name) > 1]
    if twice:
      raise ValueError(f'--{flag} has {twice[0]} twice.')
  if held['reference'] in held['fidelities']:
    raise ValueError(
      f'--fidelities has the reference, {held["reference"]}, itself; --again '
      'trains it twice.'
    )
  if not held['fidelities'] and not held['zero_cost'] and not held['again']:
    raise ValueError('there is nothing to study: no --fidelities or such.')
  unknown = [n for n in held['zero_cost'] if n not in zero_cost.PROXIES]
  if unknown:
    raise ValueError(
      f'--zero_cost must be of {", ".join(zero_cost.PROXIES)}, got '
      f'{unknown[0]!r}.'
    )


def named(settings: Settings) -> dict[str, Fidelity]:
  """The fidelities by the names of their columns, the reference first."""
  names = [settings['reference'], *settings['fidelities']]
  found = {name: fidelity.parse(name) for name in names}
  if settings['again']:
    found[AGAIN] = found[settings['reference']]
  return found


def claimed(settings: Settings) -> dict[str, Any]:
  """The settings on which a column depends."""
  free = ('fidelities', 'zero_cost', 'again', 'threshold', 'resamples')
  return {n: value for n, value in settings.items() if n not in free}


def read(settings: Settings) -> Task:
  """The task that `dataset`, `examples` and `valid` name.

  Raises:
    ValueError: if there are not so many images, or they cannot be the input.

  Example:
    >>> task = read(DEFAULTS)
    >>> len(task.train.targets), len(task.valid.targets)
    (256, 600)
  """
  examples, valid, seed = (
    settings[name] for name in ('examples', 'valid', 'seed')
  )
  if settings['dataset'] == 'digits':
    held_out = {'valid': valid / _DIGITS} if valid else {}
    task = tasks.digits(seed=seed, **held_out)
  else:
    # A tenth is held out, as of the whole set, where nothing else is said.
    total = examples + (valid or round(examples / 9))
    task = tasks.tfds_images(
      settings['dataset'],
      data_dir=settings['data_dir'] or None,
      seed=seed,
      valid=valid / total if examples and valid else 0.1,
      train_examples=total if examples else None,
      test_examples=1,  # They are not read.
    )
  if any(side % SIDES for side in task.shape[:2]):
    raise ValueError(
      f'--dataset={settings["dataset"]} has images of {task.shape}, and '
      f'networks of {settings["space"]} take sides that are multiples of '
      f'{SIDES}.'
    )
  rng = np.random.default_rng(seed)
  return task._replace(
    train=_some(rng, 'examples', task.train, examples),
    valid=_some(rng, 'valid', task.valid, valid),
  )


def _some(rng: np.random.Generator, flag: str, split: Data, count: int) -> Data:
  """So many examples of a split, in a random order; all of them for 0."""
  there = len(split.targets)
  if count > there:
    raise ValueError(f'--{flag} must be at most {there} here, got {count}.')
  if not count or count == there:
    return split
  chosen = rng.permutation(there)[:count]
  return jax.tree.map(lambda leaf: leaf[chosen], split)


def sized(settings: Settings, task: Task, own: Fidelity) -> Size:
  """What a fidelity comes to.

  Args:
    settings: of the study, whole.
    task: at full size.
    own: the fidelity.

  Raises:
    ValueError: where nothing of about the size that an index says is possible,
      and where less than a batch would be left.

  Example:
    >>> sized(DEFAULTS, read(DEFAULTS), fidelity.parse('c2r2s2e3'))
    Size(channels=4, shape=(4, 4, 1), samples=128, epochs=3, steps=12, \
examples=384)
  """
  widths = SPACES[settings['space']].widths
  channels = fidelity.left(own, 'channels', settings['channels'], widths)
  *sides, depth = task.shape
  sides = (fidelity.left(own, 'resolution', n, SIDES) for n in sides)
  samples = fidelity.left(own, 'samples', len(task.train.targets))
  batch = settings['batch']
  if samples < batch:
    raise ValueError(
      f'{own}: there are {samples} images to train on, and --batch is {batch}.'
    )
  steps = own.epochs * (samples // batch)
  return Size(
    channels, (*sides, depth), samples, own.epochs, steps, steps * batch
  )


def refuse_dear(
  settings: Settings,
  task: Task,
  sizes: Mapping[str, Size],
  genotypes: np.ndarray,
) -> None:
  """Refuses proxies that are the same, or cost as much as the reference.

  Args:
    settings: of the study, whole.
    task: at full size.
    sizes: what fidelities come to, by the names of their columns.
    genotypes: (N, L), of which the first tells the operations.

  Raises:
    ValueError: naming the two that are the same, or the one that is no
      cheaper.
  """
  fidelities = [n for n in sizes if n not in (settings['reference'], AGAIN)]
  for one, other in itertools.combinations(fidelities, 2):
    if sizes[one] == sizes[other]:
      raise ValueError(
        f'--fidelities: {one} and {other} are the same here, {sizes[one]}.'
      )
  first = genotypes[:1]
  whole = sizes[settings['reference']]
  full = flops(settings, task, whole, first)
  for name in fidelities:
    part = flops(settings, task, sizes[name], first) / full
    part *= sizes[name].examples / whole.examples
    if part >= 1:
      raise ValueError(
        f'--reference={settings["reference"]} is no dearer than {name}, which '
        f'has {part:.3g} times its multiply-adds; a proxy must be cheaper.'
      )


def networks(settings: Settings, task: Task, size: Size) -> Networks:
  """The networks of the space at a size."""
  make = SPACES[settings['space']].networks
  return make(
    channels=size.channels,
    layers=3 * settings['repeats'],
    classes=task.outputs,
    shape=size.shape,
  )


def flops(
  settings: Settings, task: Task, size: Size, genotypes: np.ndarray
) -> float:
  """Forward operations of all networks, (N, L) genotypes, for an example."""
  net = networks(settings, task, size)
  return float(sum(network.flops(net.spec(row)) for row in genotypes))


def draw_networks(
  key: Key, own: ImageSpace, count: int, *, unconnected: bool = False
) -> np.ndarray:
  """Different networks of a space, uniformly as the space draws them.

  Args:
    key: of the draws.
    own: the space.
    count: how many.
    unconnected: whether those may be among them whose output does not depend
      on the input.

  Returns:
    (count, L) genotypes.

  Raises:
    ValueError: if there are not so many.

  Example:
    >>> found = draw_networks(jax.random.key(0), SPACES['nas_bench_201'], 5)
    >>> found.shape, len(np.unique(found, axis=0))
    ((5, 6), 5)
  """
  found: dict[Any, np.ndarray] = {}
  drawn = jax.jit(jax.vmap(own.space.sample))
  indices = jax.jit(jax.vmap(own.space.index))
  for number in range(100):
    keys = jax.random.split(jax.random.fold_in(key, number), 4 * count)
    genotypes = np.asarray(drawn(keys))
    numbers = np.asarray(indices(genotypes)) if own.space.size else None
    for place, genotype in enumerate(genotypes):
      name = tuple(genotype) if numbers is None else int(numbers[place])
      if name not in found and (unconnected or own.connected(genotype)):
        found[name] = genotype
      if len(found) == count:
        return np.stack(list(found.values()))
  raise ValueError(
    f'--networks is {count}, and {own.space.name} has hardly so many that '
    'differ and are connected.'
  )
