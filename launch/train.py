"""Runs a job: `python launch/train.py --config=configs/growth_digits.py`.

Settings are changed by flags, `--config.seed=1`; the same command resumes a
run that was stopped. On several hosts, such as those of a TPU pod, it is
started on each with `--distributed` and a `--workdir` that all of them see. The
work is in `jaxnas.jobs`.
"""

import sys
from typing import Any

from absl import app, flags
from ml_collections import config_flags

from jaxnas import jobs
from jaxnas.jobs import command


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
  command.run(
    lambda workdir, console: jobs.run(settings(), workdir, console=console)
  )


if __name__ == '__main__':
  command.define()
  app.run(main, flags_parser=parse)
