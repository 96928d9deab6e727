"""Compiled programs make room for others before the process has none left."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import programs
from jaxnas.run import count_compilations


def _maps():
  return programs._MAPS.read_bytes().count(b'\n')


def _adder(amount):
  return jax.jit(lambda x: jnp.sin(x) * amount + (x @ x.T).sum())


@pytest.mark.skipif(not programs._MAPS.exists(), reason='Linux counts maps.')
@pytest.mark.parametrize(
  'bounded', [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_maps_of_programs_are_bounded(bounded, monkeypatch, tmp_path):
  """With a plain cache, the control, they are not."""
  jax.clear_caches()
  limit = tmp_path / 'most'
  limit.write_text(str(round((_maps() + 200) / 0.75)))
  monkeypatch.setattr(programs, '_MOST', limit)
  kept = programs.kept if bounded else functools.lru_cache
  build, x = kept(_adder), jnp.ones((3, 3))
  found = []
  for amount in range(120):
    build(amount)(x)
    found.append(_maps())
  assert (max(found) <= int(limit.read_text())) == bounded
  # One that was dropped is compiled again, and right.
  assert float(build(1)(x)[0, 0]) == float(_adder(1)(x)[0, 0])


def test_systems_that_count_no_maps_are_never_crowded(monkeypatch, tmp_path):
  monkeypatch.setattr(programs, '_MAPS', tmp_path / 'none')
  assert not programs.crowded(0.0)


@pytest.mark.parametrize('wide', [False, True])
def test_functions_compiled_ahead_compile_nothing_when_called(wide):
  """Also where the thread computes in float64, as compiling threads do not."""
  x = np.arange(3.0)
  with jax.enable_x64(wide), count_compilations() as compiled:
    functions = [_adder(amount) for amount in range(3, 9)]
    calls = [(function, (x,)) for function in functions]
    ready = list(programs.ahead(calls))
    assert ready == functions and len(compiled) == 6
    found = [function(x) for function in ready]
    assert len(compiled) == 6
    assert found[0].dtype == (jnp.float64 if wide else jnp.float32)
  assert [float(y[0]) for y in found] == [5.0] * 6


def test_one_function_is_left_to_its_call():
  with count_compilations() as compiled:
    (function,) = programs.ahead([(_adder(2), (np.arange(3.0),))])
    assert not compiled
    function(np.arange(3.0))
    assert len(compiled) == 1
  assert list(programs.ahead([])) == []


def test_what_cannot_be_compiled_says_so_in_its_turn():
  def wrong(x):
    raise ValueError('no such network')

  calls = ((jax.jit(f), (np.arange(3.0),)) for f in (jnp.sin, jnp.cos, wrong))
  with pytest.raises(ValueError, match='no such network'):
    list(programs.ahead(calls))


@pytest.mark.usefixtures('optimized')
def test_options_that_this_xla_lacks_are_left_out(monkeypatch):
  monkeypatch.setattr(jax, '__version_info__', (99, 0))
  programs._has.cache_clear()
  found = programs.options(xla_no_such_option=True)
  programs._has.cache_clear()
  assert 'xla_no_such_option' not in found
  assert found['xla_backend_optimization_level'] == 1


def test_the_users_wish_to_compile_faster_still_is_kept():
  # As all tests are compiled.
  assert 'xla_backend_optimization_level' not in programs.options()
