"""Packages to compare with, which are no dependencies of this project."""

import importlib
import sys
from typing import Any


def installed(asker: str, name: str, install: str) -> Any:
  """The module, or an exit that says what is missing.

  Args:
    asker: the benchmark.
    name: of the module.
    install: what to give to pip.

  Example:
    >>> installed('launch.bench.population', 'json', 'json').dumps(1)
    '1'
  """
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as error:
    sys.exit(
      f'{asker} compares with {name}, which jaxnas does not need and this '
      f'environment does not have ({error}): pip install {install}'
    )
