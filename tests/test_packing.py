"""Pytrees as vectors: nothing is lost, and nothing is promoted."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnas import packing

_LEAVES = st.builds(
  lambda shape, dtype: np.arange(np.prod(shape)).reshape(shape).astype(dtype),
  st.lists(st.integers(0, 3), max_size=3).map(tuple),
  st.sampled_from(['float32', 'int32', 'bool', 'uint32', 'bfloat16']),
)
_TREES = st.recursive(
  _LEAVES,
  lambda children: (
    st.lists(children, min_size=1, max_size=3)
    | st.dictionaries(st.sampled_from('abc'), children, min_size=1)
  ),
)


@given(_TREES)
@settings(deadline=None)
def test_unpack_undoes_pack(tree):
  layout = packing.layout(tree)
  assert hash(layout) == hash(packing.layout(tree))
  back = packing.unpack(layout, packing.pack(tree))
  assert jax.tree.structure(back) == jax.tree.structure(tree)
  for one, two in zip(jax.tree.leaves(back), jax.tree.leaves(tree)):
    assert one.dtype == two.dtype and one.shape == two.shape
    np.testing.assert_array_equal(one, two)


def test_each_type_of_number_has_a_vector_of_its_own():
  """One for all would promote: 2**24 + 1 is no float32."""
  tree = {'count': np.int32(2**24 + 1), 'w': np.ones((2, 2), np.float32)}
  packed = packing.pack(tree)
  assert {name: v.shape for name, v in packed.items()} == {
    'int32': (1,),
    'float32': (4,),
  }
  promoted = np.concatenate([tree['w'].reshape(-1), [np.float32(2**24 + 1)]])
  assert int(promoted[-1]) != tree['count'] == packed['int32'][0]


def test_traced_trees_pack_as_those_on_the_host():
  tree = {'w': np.arange(4.0, dtype=np.float32).reshape(2, 2)}
  layout = packing.layout(tree)

  @jax.jit
  def doubled(vectors):
    held = packing.unpack(layout, vectors)
    return packing.pack({'w': held['w'] * 2}, jnp.concatenate)

  found = packing.unpack(layout, doubled(packing.pack(tree)))
  np.testing.assert_array_equal(found['w'], tree['w'] * 2)
