"""Compiled programs, kept for as long as there is room for them."""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
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


def options(**more: Any) -> dict[str, Any] | None:
  """XLA's options for the programs of this library; None for none.

  On CPU: without the newer emitters of fused loops, where there is a choice (up
  to JAX 0.11), and with LLVM's first level of optimization. Programs compile in
  about 60 % of the time and run as fast (docs/performance.md). Leaving out
  LLVM's expensive passes too compiles a tenth faster, and makes small dense
  networks a third slower. Where `jax_disable_most_optimizations` is on, they
  are optimized as little as that, and train 5 to 10 times slower.

  Args:
    **more: options for CPU besides.

  Example:
    >>> program = jax.jit(lambda x: x + 1, compiler_options=options())
    >>> float(program(1.0))
    2.0
  """
  if jax.default_backend() != 'cpu':
    return None
  quick: dict[str, Any] = {'xla_cpu_use_fusion_emitters': False}
  if not jax.config.values.get('jax_disable_most_optimizations', False):
    quick['xla_backend_optimization_level'] = 1
  return {n: v for n, v in (quick | more).items() if _has(n, v)}


def once() -> dict[str, Any] | None:
  """XLA's options for a program that runs once or twice; None for none.

  On CPU it is not optimized: it compiles in 40 % of the time, and is 5 to 10
  times slower.

  Example:
    >>> program = jax.jit(lambda x: x + 1, compiler_options=once())
    >>> float(program(1.0))
    2.0
  """
  if jax.default_backend() != 'cpu':
    return None
  return {'xla_backend_optimization_level': 0}


@functools.cache
def _has(option: str, value: Any) -> bool:
  """Whether this XLA has an option: later ones than JAX 0.11's lack some."""
  if jax.__version_info__ < (0, 12):
    return True
  try:
    jax.jit(lambda: 0).lower().compile(compiler_options={option: value})
  except jax.errors.JaxRuntimeError:
    return False
  return True


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
  """`jax.jit` with `options()`, for programs that may stand in another.

  XLA's options are those of a whole program, so within another one, such as a
  search under `jaxnas.run.rounds`, they are the user's own. It has `lower` as
  what `jax.jit` returns does.

  Example:
    >>> double = jit(lambda x: x * 2)
    >>> float(double(2.0)), float(jax.vmap(double)(jax.numpy.ones(3)).sum())
    (4.0, 6.0)
    >>> float(double.lower(2.0).compile()(2.0))
    4.0
  """
  alone = jax.jit(function, compiler_options=options())
  within = jax.jit(function)

  @functools.wraps(function)
  def call(*arguments):
    leaves = jax.tree.leaves(arguments)
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    return (within if traced else alone)(*arguments)

  call.lower = alone.lower
  return call


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


def ahead(
  calls: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]],
) -> Iterator[Callable[..., Any]]:
  """Jitted functions, compiled while those before them run.

  Compiling a small program keeps one core busy, so as many are compiled at a
  time as there are cores; of one function alone its call takes care.

  Args:
    calls: jitted functions, each with the arguments it will be called with:
      arrays, or `jax.ShapeDtypeStruct`s in their places. They are asked for
      as there is room, so that they may be made by a `kept` function.

  Yields:
    The functions in their order, ready to be called.

  Example:
    >>> import numpy as np
    >>> x = np.float32(2)
    >>> add, double = jax.jit(lambda x: x + 1), jax.jit(lambda x: x * 2)
    >>> [float(f(x)) for f in ahead([(add, (x,)), (double, (x,))])]
    [3.0, 4.0]
  """
  calls = iter(calls)
  first = list(itertools.islice(calls, 2))
  if len(first) < 2:
    yield from (function for function, _ in first)
    return
  cores = os.cpu_count() or 1
  waiting: collections.deque[Any] = collections.deque()
  with futures.ThreadPoolExecutor(cores) as pool:
    for function, arguments in itertools.chain(first, calls):
      # Traced here: what a thread has set for itself, as `jax.enable_x64`
      # does, counts in tracing.
      lowered = function.lower(*arguments)
      waiting.append((function, pool.submit(lowered.compile)))
      if len(waiting) > cores:
        yield _ready(*waiting.popleft())
    while waiting:
      yield _ready(*waiting.popleft())


def _ready(function, compiling):
  compiling.result()
  return function


def compile_all(
  calls: Iterable[tuple[Callable[..., Any], tuple[Any, ...]]],
) -> None:
  """Compiles jitted functions, as many at a time as there are cores.

  Args:
    calls: as of `ahead`. Each is asked for while those before compile, so what
      it takes to know the next ones costs no time of its own.

  Example:
    >>> import numpy as np
    >>> add = jax.jit(lambda x: x + 1)
    >>> compile_all([(add, (np.float32(2),))])
    >>> float(add(np.float32(2)))
    3.0
  """
  pool = futures.ThreadPoolExecutor(os.cpu_count() or 1)
  try:
    # Traced here, as in `ahead`.
    waiting = [
      pool.submit(function.lower(*arguments).compile)
      for function, arguments in calls
    ]
    for compiling in waiting:
      compiling.result()
  finally:  # Of an error or an interrupt, those that wait are not compiled.
    pool.shutdown(cancel_futures=True)
