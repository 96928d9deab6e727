"""What the commands in `launch/` share: the machine, the folder, the errors."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import rich.console
from absl import flags, logging

from jaxnas import mesh as meshes

_CACHE = pathlib.Path.home() / '.cache' / 'jaxnas' / 'xla'


def define() -> None:
  """Defines the flags of a command; to be called before flags are read."""
  flags.DEFINE_string(
    'workdir', None, 'The folder of the run; give it again to resume.'
  )
  flags.mark_flag_as_required('workdir')
  flags.DEFINE_string(
    'compilation_cache',
    str(_CACHE),
    'Where compiled programs are kept between runs; empty for nowhere.',
  )
  flags.DEFINE_bool(
    'distributed',
    False,
    'Join the processes of this run, one a host, which JAX finds by itself on '
    'Cloud TPU, Slurm and Open MPI. All are started by the same command.',
  )
  flags.DEFINE_string(
    'coordinator',
    None,
    'Elsewhere: host:port of the first process; it goes with the next two.',
  )
  flags.DEFINE_integer('processes', None, 'How many they are.', lower_bound=1)
  flags.DEFINE_integer('process', None, 'Which this is, from 0.', lower_bound=0)
  flags.DEFINE_integer(
    'data_devices',
    1,
    'Devices that share the images of each training step; networks are dealt '
    'out over the rest. Array populations (job members) do not read it.',
    lower_bound=1,
  )
  flags.DEFINE_bool('debug', False, 'Show where an error came from.')


def run(job: Callable[[str, rich.console.Console], Any]) -> None:
  """Runs a job on the machine that the flags describe.

  Only the first of several processes prints. What the user can mend ends the
  command with one line.

  Args:
    job: `job(workdir, console)`.
  """
  held = flags.FLAGS
  if not held['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  if held.compilation_cache:
    os.makedirs(held.compilation_cache, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', held.compilation_cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  try:
    with _machine(held):
      console = rich.console.Console(quiet=not meshes.is_first())
      job(held.workdir, console)
  except (ValueError, OSError, ImportError) as error:
    if held.debug:
      raise
    sys.exit(f'error: {error}')


@contextlib.contextmanager
def _machine(held: flags.FlagValues) -> Iterator[None]:
  """Joins the processes, and chooses the devices."""
  named = (held.coordinator, held.processes, held.process)
  some = any(value is not None for value in named)
  if some and (None in named or not held.process < held.processes):
    raise ValueError(
      '--coordinator=HOST:PORT, --processes=N and --process=I, from 0 to N - 1,'
      ' go together; got {}, {} and {}.'.format(*named)
    )
  if some or held.distributed:
    try:
      meshes.connect(*named)
    except (RuntimeError, ValueError) as error:
      raise ValueError(
        f'the processes of the run could not be joined: {error} Where JAX does '
        'not find them, name them by --coordinator, --processes and --process.'
      ) from error
  if held.data_devices == 1:
    yield
    return
  if jax.device_count() % held.data_devices:
    raise ValueError(
      f'--data_devices must divide the number of devices, '
      f'{jax.device_count()}, got {held.data_devices}.'
    )
  with meshes.using(meshes.make(data=held.data_devices)):
    yield
