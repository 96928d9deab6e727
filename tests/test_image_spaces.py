"""Spaces of networks for images, as jobs see them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import network
from jaxnas.jobs import image_spaces
from jaxnas.run import count_compilations
from jaxnas.spaces import cell, cell_networks, seeds, supernet

KEY = jax.random.key(0)
SIZE = {'channels': 2, 'classes': 3, 'shape': (4, 4, 1)}


@pytest.mark.parametrize('name', image_spaces.SPACES)
def test_children_are_other_genotypes_that_have_networks(name):
  own = image_spaces.SPACES[name]
  keys = jax.random.split(KEY, 8)
  mothers = jax.vmap(own.space.sample)(keys)
  children = np.asarray(jax.jit(own.mutate)(keys, mothers))
  assert (children != np.asarray(mothers)).any(axis=1).all()
  nets = own.networks(layers=3, **SIZE)
  for child in children:
    assert nets.spec(child).shapes['logits'] == (3,)
    assert own.text(child)


def test_layers_are_of_all_stages():
  genotype = [3] * 6
  nets = image_spaces.SPACES['nas_bench_201'].networks(layers=6, **SIZE)
  assert nets.spec(genotype) == cell_networks.nas_bench_201(
    genotype, repeats=2, **SIZE
  )
  with pytest.raises(ValueError, match='a multiple of 3, got 4'):
    image_spaces.SPACES['nas_bench_201'].networks(layers=4, **SIZE)
  own = image_spaces.SPACES['econas']
  genotype = np.asarray(own.space.sample(KEY))
  assert own.networks(layers=4, **SIZE).spec(genotype) == cell_networks.darts(
    cell.ECONAS, genotype, layers=4, **SIZE
  )


def test_networks_of_one_size_are_the_same():
  for own in image_spaces.SPACES.values():
    assert own.networks(layers=3, **SIZE) is own.networks(layers=3, **SIZE)


def test_what_was_taught_as_data_is_a_network():
  nets = image_spaces.SPACES['nas_bench_201'].networks(layers=3, **SIZE)
  variables, genotype = nets.supernet.init(KEY), [0, 3, 1, 4, 2, 0]
  net = nets.alone(variables, genotype)
  assert net.spec == nets.spec(genotype)
  want = supernet.unrolled(nets.supernet, variables, genotype)
  assert network.param_count(net) == network.param_count(want)


@pytest.mark.parametrize('kind', ['as_data', 'unrolled'])
def test_a_score_is_compiled_before_it_is_run(kind):
  if kind == 'as_data':
    nets = image_spaces.SPACES['nas_bench_201'].networks(layers=3, **SIZE)
    shape, genotypes, calls = (4, 4, 1), np.array([[3] * 6, [0] * 6]), 1
    params = [network.param_count(nets.spec(row)) for row in genotypes]
  else:
    nets = image_spaces.unrolled(
      lambda genes: seeds.mlp((2,), genes.tolist(), 3)
    )
    shape, genotypes, calls = (2,), np.array([[4], [5]]), 2
    params = [27, 33]
  x = jnp.ones((2, *shape))
  given = KEY, genotypes, x, jnp.arange(2)
  scores = []
  for number, score in enumerate(nets.scoring('params', *given)):
    with count_compilations() as compiled:
      scores += score().tolist()
    assert not compiled and number < calls
  assert scores == params


def test_cells_that_zeroes_cut_off_are_not_connected():
  own = image_spaces.SPACES['econas']
  genotype = np.array([0, cell.ECONAS.ops.index('skip')] * 16)
  assert own.connected(genotype)
  genotype[1::2] = cell.ECONAS.ops.index('none')
  assert not own.connected(genotype)
