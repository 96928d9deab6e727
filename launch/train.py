"""Runs a job: `python launch/train.py --config=configs/growth_digits.py`.

Settings are changed by flags, `--config.seed=1`; the same command resumes a
run that was stopped. The work is in `jaxnas.jobs`.
"""

import os
import pathlib
import sys
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxnas import jobs

_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The folder of the run; give it again to resume.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  str(pathlib.Path.home() / '.cache' / 'jaxnas' / 'xla'),
  'Where compiled programs are kept between runs; empty for nowhere.',
)


def parse(argv: list[str]) -> list[str]:
  """Reads the flags; says in a line what is wrong with them."""
  try:  # An unknown setting may be found by the definition already.
    config_flags.DEFINE_config_file(
      'config', 'configs/growth_digits.py', 'The settings of the run.'
    )
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError) as error:
    inner: Any = error
    while isinstance(inner, Exception) and inner.args:
      inner = inner.args[0]
    sys.exit(f'error: --config has no such setting: {inner}')
  except (SyntaxError, ValueError) as error:
    sys.exit(f'error: --config: {error}')


def settings() -> dict[str, Any]:
  """The config, with flags stronger than what `quick` puts in their place."""
  config = flags.FLAGS.config.to_dict()
  for name in config_flags.get_override_values(flags.FLAGS['config']):
    *path, last = name.split('.')
    held = config.get('when_quick', {})
    for part in path:
      held = held.get(part, {})
    held.pop(last, None)
  return config


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  if _CACHE.value:
    os.makedirs(_CACHE.value, exist_ok=True)
    jax.config.update('jax_compilation_cache_dir', _CACHE.value)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  try:
    jobs.run(settings(), _WORKDIR.value)
  except (ValueError, OSError, ImportError) as error:
    if flags.FLAGS.debug:
      raise
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  flags.DEFINE_bool('debug', False, 'Show where an error came from.')
  flags.mark_flag_as_required('workdir')
  app.run(main, flags_parser=parse)
