"""Runs a job: `python launch/train.py --config=configs/growth_digits.py`.

Settings are changed by flags, `--config.seed=1`; the same command resumes a
run that was stopped. The work is in `jaxnas.jobs`.
"""

import os
import pathlib
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxnas import jobs

_CONFIG = config_flags.DEFINE_config_file(
  'config', 'configs/growth_digits.py', 'The settings of the run.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'The folder of the run; give it again to resume.'
)
_CACHE = flags.DEFINE_string(
  'compilation_cache',
  str(pathlib.Path.home() / '.cache' / 'jaxnas' / 'xla'),
  'Where compiled programs are kept between runs; empty for nowhere.',
)


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
    jobs.run(_CONFIG.value, _WORKDIR.value)
  except (ValueError, FileNotFoundError, ImportError) as error:
    if flags.FLAGS.debug:
      raise
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  flags.DEFINE_bool('debug', False, 'Show where an error came from.')
  flags.mark_flag_as_required('workdir')
  app.run(main)
