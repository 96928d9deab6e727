"""Compiled programs, kept for as long as there is room for them."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

_MAPS = pathlib.Path('/proc/self/maps')
_MOST = pathlib.Path('/proc/sys/vm/max_map_count')


def crowded(part: float = 0.75) -> bool:
  """Whether the process has used so much of the memory maps it may have.

  Linux grants a process 65,530 of them by default, and on CPU the training
  program of three small layers takes 430. Beyond the limit LLVM cannot allocate
  memory, and XLA ends by a segmentation fault. False on other systems.

  Example:
    >>> crowded(part=1.0)
    False
  """
  if not (_MAPS.exists() and _MOST.exists()):
    return False
  return _MAPS.read_bytes().count(b'\n') > part * int(_MOST.read_text())


def kept(build: Callable[..., Any]) -> Callable[..., Any]:
  """Keeps the 256 programs used last of those that a function builds.

  Before it builds another in a crowded process, all programs of the process
  are dropped; those still needed are compiled again, or read from JAX's
  persistent compilation cache. So a search may meet any number of structures.

  Args:
    build: makes a jitted function from hashable arguments.

  Example:
    >>> @kept
    ... def adder(amount):
    ...   return jax.jit(lambda x: x + amount)
    >>> float(adder(2)(1.0)), adder(2) is adder(2)
    (3.0, True)
  """

  @functools.lru_cache(maxsize=256)
  @functools.wraps(build)
  def built(*arguments):
    if crowded():
      jax.clear_caches()
    return build(*arguments)

  return built
