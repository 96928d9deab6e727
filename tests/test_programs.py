"""Compiled programs make room for others before the process has none left."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxnas import programs


def _maps():
  return programs._MAPS.read_bytes().count(b'\n')


def _adder(amount):
  return jax.jit(lambda x: jnp.sin(x) * amount + (x @ x.T).sum())


@pytest.mark.skipif(not programs._MAPS.exists(), reason='Linux counts maps.')
@pytest.mark.parametrize('bounded', [True, False])
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
