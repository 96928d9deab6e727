"""The strictness under which every test runs, and the shared fixtures."""

import functools
import os
import pathlib

import hypothesis
import jax
import pytest

from jaxnas import programs

# Read when the first program is compiled, and handed to processes that tests
# start. Without these emitters, which the programs of this library do without
# as well, programs compile in three quarters of the time.
if jax.__version_info__ < (0, 12):
  os.environ['XLA_FLAGS'] = ' '.join(
    [os.environ.get('XLA_FLAGS', ''), '--xla_cpu_use_fusion_emitters=false']
  ).strip()

# A silent broadcast is how weight surgery goes wrong unseen.
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Most programs here run a few times, which takes less than compiling them. Slow
# tests may train for long: see `optimized`.
jax.config.update('jax_disable_most_optimizations', True)
# `jax_numpy_dtype_promotion='strict'` is off: optax's schedules and its Adam
# bias correction multiply Python floats by integer step counts, which strict
# promotion refuses.

# An example may compile, so time per example says nothing; and the fixtures
# used with `given` (`x64`) hold no state that one example could leave behind.
hypothesis.settings.register_profile(
  'jaxnas',
  deadline=None,
  suppress_health_check=[
    hypothesis.HealthCheck.function_scoped_fixture,
    hypothesis.HealthCheck.too_slow,
  ],
)
hypothesis.settings.load_profile('jaxnas')


class _ForgetsPrograms:
  """Drops compiled programs before a process has more than it can map.

  As `jaxnas.programs.kept` does for its own. Not within a file, whose tests may
  count what they compile.
  """

  @pytest.hookimpl(trylast=True)
  def pytest_runtest_teardown(self, item, nextitem):
    if nextitem is not None and nextitem.path == item.path:
      return
    if programs.crowded(0.3):
      jax.clear_caches()


def pytest_configure(config: pytest.Config) -> None:
  """Keeps compiled programs between runs, under `.pytest_cache`.

  `pytest --cache-clear` drops them. The environment variable hands the cache
  to the processes that tests start; one that is set already wins. Workers have
  one each: a program that one of them is still writing can end another. So the
  process that starts the workers, which would hand them its own, sets none.
  """
  config.pluginmanager.register(_ForgetsPrograms())
  cache = getattr(config, 'cache', None)
  if cache is None:  # -p no:cacheprovider
    return
  worker = os.environ.get('PYTEST_XDIST_WORKER')
  if worker is None and config.getoption('numprocesses', None):
    return
  worker = worker or 'alone'
  os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR',
    str(cache.mkdir('jax_compilation_cache') / worker),
  )
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  jax.config.update(
    'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
  )
  jax.config.update(
    'jax_persistent_cache_min_compile_time_secs',
    float(os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS']),
  )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
  """A worker runs whole files, whose fixtures and programs are made once."""
  from xdist import scheduler

  return scheduler.LoadFileScheduling(config, log)


@pytest.fixture
def x64():
  """Runs a test in float64, for identities that hold to 1e-10."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def optimized():
  """Compiles as for users."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(autouse=True)
def _slow_tests_are_optimized(request: pytest.FixtureRequest):
  if request.node.get_closest_marker('slow'):
    request.getfixturevalue('optimized')


def _beside(variable: str, folder: str, *files: str) -> pathlib.Path:
  """A folder that has some files; skips where there is none.

  The environment variable names it, or it lies beside the checkout, in shared.
  """
  given = os.environ.get(variable)
  folders = [pathlib.Path(given)] if given else []
  folders.append(pathlib.Path(__file__).parents[2] / 'shared' / folder)
  for found in folders:
    if all((found / file).exists() for file in files):
      return found
  wanted, there = ', '.join(files), ' or '.join(map(str, folders))
  pytest.skip(f'no {wanted} under {there}')


@pytest.fixture(scope='session')
def tables_with():
  """`tables_with(*files)`: the folder of real tables with them, or a skip."""
  return functools.partial(_beside, 'JAXNAS_DATA_DIR', 'data')


@pytest.fixture(scope='session')
def cifar10_folder():
  """The folder with CIFAR-10 as TFDS prepares it; skips where there is none.

  TFDS_DATA_DIR names it, or it lies beside the checkout, in shared/tfds.
  """
  folder = _beside('TFDS_DATA_DIR', 'tfds', 'cifar10')
  pytest.importorskip('tensorflow_datasets', reason='needs jaxnas[tfds]')
  return folder
