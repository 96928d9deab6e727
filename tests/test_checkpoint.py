"""A search state comes back bit for bit, or `restore` says why not.

What must never happen is tried here: a step half written or half deleted by a
kill, bytes or leaves of another state, a class or setting that has changed.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import Any, NamedTuple

import flax
import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import strategies as st

from jaxnas import base, checkpoint, network, spec


class Pair(NamedTuple):
  left: Any
  right: Any = None


class Moved(NamedTuple):
  left: Any


@flax.struct.dataclass
class Box:
  content: Any
  label: Any = flax.struct.field(pytree_node=False, default='')


@dataclasses.dataclass(frozen=True)
class Widen:
  node: str
  by: int = 1
  ratio: float = 0.5
  shape: tuple[int, ...] = (3, 3)


@dataclasses.dataclass
class Mutable:
  by: int = 1


NET = spec.Spec(
  (
    spec.Node('image', spec.Input((4,))),
    spec.Node('hidden', spec.Dense(3), ('image',)),
    spec.Node('logits', spec.Dense(2), ('hidden',)),
  ),
  output='logits',
)


def a_network(scale: float = 1.0) -> network.Network:
  params = {
    'hidden': {'kernel': scale * jnp.ones((4, 3)), 'bias': jnp.zeros(3)},
    'logits': {'kernel': scale * jnp.ones((3, 2)), 'bias': jnp.zeros(2)},
  }
  return network.Network(variables={'params': params}, spec=NET)


def a_population() -> base.Population:
  net = a_network()
  params = net.variables['params']
  event = base.Event(1, 'move', Widen('hidden'), predicted=-0.1)
  first = base.Candidate(
    net,
    opt_state=optax.adam(1e-3).init(params),
    metrics={'loss': jnp.asarray(0.3), 'accuracy': float('nan')},
    lineage=(event,),
  )
  second = base.Candidate(net, Widen('logits', 2), (), born=1, lineage=(event,))
  cost = base.Cost(examples=10**12, seconds=0.1)
  return base.Population((first, second), generation=3, spent=cost)


def same(a: Any, b: Any) -> bool:
  """Equality of types and bits."""
  if type(a) is not type(b):
    return False
  if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
    a, b = jax.random.key_data(a), jax.random.key_data(b)
  if isinstance(a, jax.Array) and a.weak_type != b.weak_type:
    return False
  if isinstance(a, jax.Array | np.ndarray | np.generic):
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
  if isinstance(a, float):
    return struct.pack('d', a) == struct.pack('d', b)
  if isinstance(a, list | tuple):
    return len(a) == len(b) and all(map(same, a, b))
  if isinstance(a, dict):
    return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
  if isinstance(a, Box | network.Network):
    fields = [f.name for f in dataclasses.fields(a)]
    return all(same(getattr(a, f), getattr(b, f)) for f in fields)
  return a == b


def through_disk(directory: pathlib.Path, value: Any) -> Any:
  checkpoint.save(directory, 0, value)
  return checkpoint.restore(directory)[1]


def through_json(value: Any) -> Any:
  manifest, arrays = checkpoint.describe(value)
  text = json.dumps(manifest, allow_nan=False)  # Plain JSON for any reader.
  return checkpoint.rebuild(json.loads(text), arrays)


# Round trips.


def test_population_comes_back_bit_for_bit(tmp_path):
  population = a_population()
  restored = through_disk(tmp_path, population)
  assert same(restored, population)
  assert jax.tree.structure(restored) == jax.tree.structure(population)


def test_every_kind_of_value_comes_back_with_its_type(tmp_path):
  value = {
    'none': None,
    'plain': [True, False, 0, -(10**30), '', 'snow \u2603 \ud800', 0.1, -0.0],
    'extreme': (math.inf, -math.inf, math.nan, 5e-324, 1.7976931348623157e308),
    'empty': ((), [], {}, Pair((), [])),
    'keys like the manifest': {'tuple': [1], 'array': '00000', 'float': 'nan'},
    'order': {'b': 1, 'a': 2},
    'numpy scalars': [np.float64(0.1), np.int8(-3), np.bool_(True)],
    'bfloat16 scalar': ml_dtypes.bfloat16(1.5),
    'numpy': np.arange(6.0).reshape(2, 3),
    'views': [np.arange(6).reshape(2, 3).T, np.arange(9)[::-2]],
    'jax': jnp.arange(3),
    'weak': [jnp.asarray(2.5), jnp.asarray(7), jnp.full((2, 1), 3.0)],
    'no elements': [np.zeros((0, 3), np.int16), jnp.zeros((2, 0))],
    'box': Box({'w': jnp.ones(2)}, label=('relu', (1, None), math.inf)),
    'moves': (Widen('a'), Widen('b', ratio=math.nan), NET, NET.nodes[1].op),
    'optax': (optax.EmptyState(), optax.MaskedNode()),
  }
  restored = through_disk(tmp_path, value)
  # A nan field is unequal to itself, even within an equal dataclass.
  assert math.isnan(restored['moves'][1].ratio)
  same_nan = {**value, 'moves': None}
  assert same({**restored, 'moves': None}, same_nan)
  assert restored['moves'][0::2] == value['moves'][0::2]


def test_every_supported_dtype_keeps_its_bits(tmp_path):
  rng = np.random.default_rng(0)
  value = {}
  for name in checkpoint.DTYPES:
    bits = rng.integers(0, 256, (5, 3, 16), np.uint8)  # With odd nans.
    dtype = jnp.dtype(name)
    if name in ('bool', 'int4'):
      array = (bits % 2).astype(dtype)
    else:
      array = bits.view(dtype)
    value[name] = [array, array[0, 0, 0].reshape(()), np.zeros(3, dtype)]
  value['negative zero'] = np.full((4,), -0.0, np.float32)
  restored = through_disk(tmp_path, value)
  assert same(restored, value)
  assert restored['float32'][0].flags.writeable


def test_typed_keys_come_back_with_their_implementation(tmp_path):
  value = {
    'one': jax.random.key(7),
    'many': jax.random.split(jax.random.key(7), 3),
    'rbg': jax.random.key(7, impl='rbg'),
    'raw': jax.random.PRNGKey(7),
  }
  restored = through_disk(tmp_path, value)
  assert same(restored, value)
  for name, key in value.items():
    assert restored[name].dtype == key.dtype
  draw = jax.random.normal(restored['rbg'], (3,))
  np.testing.assert_array_equal(draw, jax.random.normal(value['rbg'], (3,)))


PARAMS = {'w': np.float32([[1, 2], [3, 4]]), 'b': np.zeros(2, np.float32)}
OPTIMIZERS = {
  'adam': optax.adam(1e-2),
  'momentum': optax.sgd(0.1, momentum=0.9, nesterov=True),
  'masked': optax.masked(optax.adam(1e-2), {'w': True, 'b': False}),
  'hyperparams': optax.inject_hyperparams(optax.adamw)(
    optax.cosine_decay_schedule(0.1, 10)
  ),
  'chain': optax.MultiSteps(
    optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.scale_by_rms(),
      optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, 10)),
      optax.add_noise(0.1, 0.5, 0),
    ),
    every_k_schedule=2,
  ),
  'partition': optax.partition(
    {'fast': optax.sgd(0.1, momentum=0.9), 'none': optax.set_to_zero()},
    {'w': 'fast', 'b': 'none'},
  ),
  'lbfgs': optax.lbfgs(memory_size=2, linesearch=None),
}


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimizer_goes_on_from_its_restored_state(name):
  optimizer = OPTIMIZERS[name]
  traces = []

  @jax.jit
  def step(params, state):
    traces.append(0)
    gradients = jax.tree.map(jnp.cos, params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state

  now = (jax.tree.map(jnp.asarray, PARAMS), optimizer.init(PARAMS))
  for _ in range(2):
    now = step(*now)
  restored = through_json(now)
  assert same(restored, now)
  assert jax.tree.structure(restored) == jax.tree.structure(now)
  before = len(traces)
  assert same(step(*restored), step(*now))
  assert len(traces) == before  # The same avals, weak types and all.


def plain_values():
  numbers = st.floats() | st.integers() | st.booleans()
  leaves = st.none() | numbers | st.text(max_size=3)
  shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
  arrays = shapes.map(lambda shape: np.ones(shape, np.int16))
  moves = st.builds(Widen, st.text(max_size=3), st.integers(), st.floats())
  return st.recursive(
    leaves | arrays | arrays.map(jnp.asarray) | moves,
    lambda inner: (
      st.lists(inner, max_size=3)
      | st.lists(inner, max_size=3).map(tuple)
      | st.dictionaries(st.text(max_size=3), inner, max_size=3)
      | st.builds(Pair, inner, inner)
      | st.builds(Box, inner, st.text(max_size=2))
    ),
    max_leaves=8,
  )


@hypothesis.settings(max_examples=60)
@hypothesis.given(plain_values())
def test_nested_values_round_trip_through_plain_json(value):
  first = checkpoint.describe(value)
  again = checkpoint.describe(through_json(value))
  assert first[0] == again[0]
  assert same(first[1], again[1])
  assert repr(through_json(value)) == repr(value)


def test_what_candidates_share_is_stored_once_and_shared_again():
  population = a_population()
  manifest, arrays = checkpoint.describe(population)
  ours = jax.tree.leaves(population)
  assert len(arrays) == len({id(x) for x in ours if isinstance(x, jax.Array)})
  assert len(arrays) < len(ours)
  assert sum(d['dict']['type'] == 'Spec' for d in manifest['data']) == 1
  first, second = checkpoint.rebuild(manifest, arrays).members
  kernels = [
    c.net.variables['params']['hidden']['kernel'] for c in (first, second)
  ]
  assert kernels[0] is kernels[1]
  assert first.net.spec is second.net.spec


def test_describe_names_path_shape_and_dtype_of_every_array():
  manifest, arrays = checkpoint.describe(a_population())
  leaf = manifest['arrays']['00001']
  assert leaf['path'] == (
    "value.members[0].net.variables['params']['hidden']['bias']"
  )
  for key, leaf in manifest['arrays'].items():
    assert tuple(leaf['shape']) == arrays[key].shape
    assert leaf['dtype'] == arrays[key].dtype.name
  names = {entry['name'] for entry in manifest['classes']}
  assert {'jaxnas.base:Population', 'jaxnas.network:Network'} <= names


def test_arrays_of_several_devices_and_of_float64_come_back_whole(tmp_path):
  script = """if True:
    import sys
    import jax
    import jax.numpy as jnp
    from jaxnas import checkpoint
    mesh = jax.make_mesh((4,), ('x',), (jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P('x'))
    x = jax.device_put(jnp.arange(8, dtype='int32'), sharding)
    wide = jnp.asarray(0.1)
    checkpoint.save(sys.argv[1] + '/narrow', 0, {'x': x})
    checkpoint.save(sys.argv[1] + '/wide', 0, {'x': x, 'wide': wide})
    _, value = checkpoint.restore(sys.argv[1] + '/wide')
    assert value['wide'].dtype == 'float64' and value['wide'].weak_type
    assert len(x.devices()) == 4 and len(value['x'].devices()) == 1
    """
  flags = '--xla_force_host_platform_device_count=4'
  env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_ENABLE_X64': '1'}
  env['JAX_PLATFORMS'] = 'cpu'
  command = [sys.executable, '-c', script, str(tmp_path)]
  subprocess.run(command, check=True, env=env)
  _, value = checkpoint.restore(tmp_path / 'narrow')
  assert same(value, {'x': jnp.arange(8, dtype=jnp.int32)})
  with pytest.raises(ValueError, match=r"leaf value\['wide'\].*float64.*x64"):
    checkpoint.restore(tmp_path / 'wide')


TWO_PROCESSES = """if True:
  import sys
  import jax
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[3]))
  import jax.numpy as jnp
  import numpy as np
  from jaxnas import checkpoint
  mesh = jax.make_mesh((2,), ('x',), (jax.sharding.AxisType.Auto,))
  x = np.arange(8, dtype=np.float32).reshape(4, 2)
  place = lambda p: jax.make_array_from_callback(
      x.shape, jax.NamedSharding(mesh, p), lambda index: x[index])
  value = {'sharded': place(jax.P('x')), 'replicated': place(jax.P()),
           'local': jnp.asarray(x), 'numpy': x}
  for step in range(3):
    checkpoint.save(sys.argv[1], step, value, keep=2)
  step, restored = checkpoint.restore(sys.argv[1])
  for name, array in restored.items():
    np.testing.assert_array_equal(array, x, err_msg=name)
    assert isinstance(array, jax.Array) == (name != 'numpy')
  """


def test_two_processes_save_and_restore_one_state(tmp_path):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  command = [sys.executable, '-c', TWO_PROCESSES, str(tmp_path), str(port)]
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  processes = [
    subprocess.Popen([*command, str(index)], env=env) for index in range(2)
  ]
  try:
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
  finally:
    for process in processes:
      process.kill()
  assert sorted(os.listdir(tmp_path)) == ['1', '2']


# What cannot be written.


class Outer:
  class Inner(NamedTuple):
    x: int = 0


def local_class():
  class Local(NamedTuple):
    x: int = 0

  return Local()


REFUSED = {
  'function': ({'a': [1, len]}, r"value\['a'\]\[1\]: .*builtin"),
  'class': (Pair(1, int), r'value\.right: .*type'),
  'lambda in chain': ((lambda: 0,), r'value\[0\]: .*function'),
  'set': (Pair({1}), r'value\.left: .*set'),
  'integer key': ({'a': {1: 2}}, r"value\['a'\]: the key 1 is no string"),
  'object array': ([np.array([None])], r'value\[0\]: .*dtype object'),
  'string array': ([np.array(['a'])], r'value\[0\]: .*dtype <U1'),
  'foreign bytes': ([np.zeros(2, '>f4')], r'value\[0\]: .*native'),
  'string scalar': ([np.str_('a')], r'value\[0\]: .*dtype <U1'),
  'masked array': ([np.ma.zeros(2)], r'value\[0\]: .*MaskedArray'),
  'mutable dataclass': ([Mutable()], r'value\[0\]: .*Mutable'),
  'list in a move': ([Widen('a', shape=[3])], r'value\[0\]: .*tuples'),
  'array in a move': ([Widen('a', by=np.ones(2))], r'value\[0\]: '),
  'static list': (Box(1, ['relu']), r'value\.label: .*tuples'),
  'static function': (Box(1, len), r'value\.label: .*builtin'),
  'local class': ([local_class()], r'value\[0\]: .*Local.*top level'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_written_is_refused_by_path(name):
  value, message = REFUSED[name]
  with pytest.raises(TypeError, match=message):
    checkpoint.describe(value)


def test_class_nested_in_a_class_is_found_again():
  assert same(through_json(Outer.Inner(3)), Outer.Inner(3))


def test_refused_value_leaves_no_step(tmp_path):
  with pytest.raises(TypeError):
    checkpoint.save(tmp_path, 0, {'f': len})
  assert checkpoint.latest(tmp_path) is None


# What cannot be rebuilt.


def test_classes_that_are_gone_or_changed_are_named():
  manifest, arrays = checkpoint.describe(Pair(1, Box(2)))
  text = json.dumps(manifest)

  def rebuild(old, new):
    assert old in text
    return checkpoint.rebuild(json.loads(text.replace(old, new)), arrays)

  with pytest.raises(ValueError, match=r':Gone .*cannot be imported.*install'):
    rebuild(':Pair', ':Gone')
  with pytest.raises(ValueError, match=r'no_such_module.*cannot be imported'):
    rebuild(f'{__name__}:Pair', 'no_such_module:Pair')
  fields = (
    r"Moved had the fields \['left', 'right'\].*has the fields \['left'\]"
  )
  with pytest.raises(ValueError, match=fields):
    rebuild(':Pair', ':Moved')
  with pytest.raises(ValueError, match='is no NamedTuple or dataclass'):
    rebuild(':Pair', ':local_class')


def test_moves_that_no_longer_fit_their_class_are_named():
  manifest, arrays = checkpoint.describe([Widen('a')])
  text = json.dumps(manifest).replace('"ratio"', '"share"')
  with pytest.raises(ValueError, match="spec or move .*'share'.*install"):
    checkpoint.rebuild(json.loads(text), arrays)


def test_rebuild_refuses_other_arrays():
  manifest, arrays = checkpoint.describe({'w': np.ones(2), 'b': np.zeros(3)})
  narrow = {**arrays, '00000': np.ones(2, np.float32)}
  said = r"leaf value\['w'\] \(array 00000\): the manifest says float64\(2,\)"
  with pytest.raises(ValueError, match=said + r', found float32\(2,\)'):
    checkpoint.rebuild(manifest, narrow)
  with pytest.raises(ValueError, match=said + ', found nothing'):
    checkpoint.rebuild(manifest, {'00001': arrays['00001']})
  with pytest.raises(ValueError, match='array 00002: the manifest has no such'):
    checkpoint.rebuild(manifest, {**arrays, '00002': np.ones(1)})
  with pytest.raises(ValueError, match='checksum'):
    checkpoint.rebuild(manifest, {**arrays, '00000': np.zeros(2)})


def edit_document(folder, edit):
  """Rewrites what is in the manifest's file, with a fitting checksum."""
  path = folder / 'manifest' / 'metadata'
  document = json.loads(path.read_text())
  edit(document)
  document['crc32'] = checkpoint._checksum(document)
  path.write_text(json.dumps(document))


def test_newer_version_is_refused(tmp_path):
  checkpoint.save(tmp_path, 4, {'w': np.ones(2)})

  def newer(document):
    document['manifest']['version'] = checkpoint.VERSION + 1

  edit_document(tmp_path / '4', newer)
  message = rf'{tmp_path}/4 has version 2, .*up to 1; install the newer jaxnas'
  with pytest.raises(ValueError, match=message):
    checkpoint.restore(tmp_path)


# Settings.

SETTINGS = {
  'seed': 1,
  'optimizer': {'lr': 0.1, 'clip': None, 'betas': (0.9, 0.999)},
  'bound': math.nan,
  'empty': {},
}


def test_equal_settings_are_accepted(tmp_path):
  checkpoint.save(tmp_path, 0, 'state', settings=SETTINGS)
  # Lists for tuples, 1.0 for 1 and another order are no difference.
  equal = {
    **dict(reversed(SETTINGS.items())),
    'seed': 1.0,
    'optimizer': {'betas': [0.9, 0.999], 'clip': None, 'lr': 0.1},
  }
  assert checkpoint.restore(tmp_path, settings=equal) == (0, 'state')
  assert checkpoint.restore(tmp_path) == (0, 'state')


def test_each_differing_setting_is_named_with_both_values(tmp_path):
  checkpoint.save(tmp_path, 0, 'state', settings=SETTINGS)
  other = {
    'seed': True,
    'optimizer': {'lr': 0.2, 'betas': (0.9, 0.999)},
    'bound': math.nan,
    'empty': {},
    'width': 8,
  }
  with pytest.raises(ValueError) as caught:
    checkpoint.restore(tmp_path, settings=other)
  assert str(caught.value) == (
    f'the checkpoint {tmp_path}/0 was written with other settings: '
    'optimizer.clip: stored null, received nothing; '
    'optimizer.lr: stored 0.1, received 0.2; '
    'seed: stored 1, received true; '
    'width: stored nothing, received 8. '
    'Start in a fresh working directory, or set these back to the stored '
    'values.'
  )


def test_settings_are_not_compared_with_none_stored(tmp_path):
  checkpoint.save(tmp_path, 0, 'state')
  with pytest.raises(ValueError, match='seed: stored nothing, received 1'):
    checkpoint.restore(tmp_path, settings={'seed': 1})


def test_settings_that_are_no_json_are_refused(tmp_path):
  with pytest.raises(TypeError, match='settings must be .*plain JSON'):
    checkpoint.save(tmp_path, 0, 'state', settings={'f': len})
  assert checkpoint.latest(tmp_path) is None


# Trust.


def test_orbax_alone_loads_a_smaller_checkpoint_into_a_bigger_tree(tmp_path):
  """The control: what this module is there to refuse (orbax#2972)."""
  small, big = {'w': np.ones((2, 3))}, {'w': np.zeros((4, 3))}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'small', small)
    checkpointer.wait_until_finished()
    loaded = checkpointer.restore(tmp_path / 'small', big)
  assert loaded['w'].shape == (2, 3)


OTHER_STATES = {
  'smaller leaf': (
    {'w': np.ones((2, 3)), 'b': np.ones(3)},
    r"in Orbax's metadata: leaf value\['w'\] .*says float64\(4, 3\), "
    r'found float64\(2, 3\)',
  ),
  'other dtype': (
    {'w': np.ones((4, 3), np.float32), 'b': np.ones(3)},
    r"leaf value\['w'\] .*says float64\(4, 3\), found float32\(4, 3\)",
  ),
  'fewer leaves': (
    {'w': np.zeros((4, 3))},
    r"leaf value\['b'\] .*says float64\(3,\), found nothing",
  ),
  'no leaves': ({}, r"leaf value\['w'\] .*found nothing"),
  'more leaves': (
    {'w': np.zeros((4, 3)), 'b': np.ones(3), 'c': np.ones(1)},
    'array 00002: the manifest has no such leaf',
  ),
  'other values': (
    {'w': np.ones((4, 3)), 'b': np.ones(3)},
    r"in the arrays read: leaf value\['w'\] .*says checksum",
  ),
}


@pytest.mark.parametrize('name', OTHER_STATES)
def test_arrays_of_another_state_are_refused_by_leaf(tmp_path, name):
  other, message = OTHER_STATES[name]
  value = {'w': np.zeros((4, 3)), 'b': np.ones(3)}
  checkpoint.save(tmp_path / 'run', 2, value)
  checkpoint.save(tmp_path / 'run', 5, value)
  checkpoint.save(tmp_path / 'other', 5, other)
  shutil.rmtree(tmp_path / 'run' / '5' / 'arrays')
  if other:
    source = tmp_path / 'other' / '5' / 'arrays'
    shutil.copytree(source, tmp_path / 'run' / '5' / 'arrays')
  with pytest.raises(ValueError, match=message) as caught:
    checkpoint.restore(tmp_path / 'run')
  assert str(caught.value).startswith(
    f'the checkpoint {tmp_path}/run/5 cannot be trusted: '
  )
  assert str(caught.value).endswith(
    f'; delete it to resume from the previous one, {tmp_path}/run/2.'
  )
  shutil.rmtree(tmp_path / 'run' / '5')  # As the message says.
  assert same(checkpoint.restore(tmp_path / 'run'), (2, value))
  checkpoint.save(tmp_path / 'run', 5, value)


def flip_a_bit(data):
  half = len(data) // 2
  return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


DAMAGES = {
  'missing': None,
  'empty': lambda data: b'',
  'truncated': lambda data: data[: len(data) // 2],
  'garbage': lambda data: b'\x00garbage' * 8,
  'one bit': flip_a_bit,
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_file_is_refused_unless_it_does_not_matter(tmp_path, damage):
  # One array: where one of many cannot be read, Orbax closes its event loop
  # under the others, and each complains on stderr from a thread.
  value = {'w': jnp.arange(6.0), 'move': Widen('a'), 'i': 3}
  checkpoint.save(tmp_path / 'run', 1, value, settings={'seed': 1})
  step = tmp_path / 'run' / '1'
  files = [p.relative_to(step) for p in step.rglob('*') if p.is_file()]
  refused = set()
  for file in files:
    shutil.rmtree(tmp_path / 'copy', ignore_errors=True)
    shutil.copytree(tmp_path / 'run', tmp_path / 'copy')
    path = tmp_path / 'copy' / '1' / file
    if DAMAGES[damage] is None:
      path.unlink()
    else:
      path.write_bytes(DAMAGES[damage](path.read_bytes()))
    try:
      assert same(checkpoint.restore(tmp_path / 'copy'), (1, value))
    except ValueError as error:
      refused.add(str(file.parent))
      assert str(error).startswith(f'the checkpoint {tmp_path}/copy/1 cannot')
      assert str(error).endswith('no earlier one: delete it to start afresh.')
  # The manifest, Orbax's metadata of the arrays, and their bytes.
  assert {'manifest', 'arrays', 'arrays/d'} <= refused


def test_step_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'no step 3; there are \[\]'):
    checkpoint.restore(tmp_path / 'nothing', step=3)
  checkpoint.save(tmp_path, 1, 'state')
  checkpoint.save(tmp_path, 2, 'state')
  with pytest.raises(ValueError, match=r'no step 3; there are \[1, 2\]'):
    checkpoint.restore(tmp_path, step=3)


# Steps.


def test_nothing_saved_is_none(tmp_path):
  for directory in (tmp_path, tmp_path / 'nothing'):
    assert checkpoint.latest(directory) is None
    assert checkpoint.restore(directory) is None
  assert not os.listdir(tmp_path)


def test_the_last_steps_are_kept(tmp_path):
  for step in (0, 3, 7, 10):
    checkpoint.save(tmp_path, step, {'w': np.full(2, step)}, keep=2)
  assert sorted(os.listdir(tmp_path)) == ['10', '7']
  assert checkpoint.latest(tmp_path) == 10
  assert same(checkpoint.restore(tmp_path)[1], {'w': np.full(2, 10)})
  assert same(checkpoint.restore(tmp_path, step=7)[1], {'w': np.full(2, 7)})
  checkpoint.save(tmp_path, 11, {}, keep=1)
  assert os.listdir(tmp_path) == ['11']


def test_relative_directory_and_existing_files_are_left_alone(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'notes.txt').write_text('mine')
  for step in range(3):
    checkpoint.save('run', step, 'state', keep=1)
  assert sorted(os.listdir('run')) == ['2', 'notes.txt']


def test_a_step_is_never_overwritten(tmp_path):
  checkpoint.save(tmp_path, 5, 'state')
  for step in (5, 4):
    with pytest.raises(ValueError, match=f'step {step} is not after step 5'):
      checkpoint.save(tmp_path, step, 'other')
  assert checkpoint.restore(tmp_path) == (5, 'state')


def test_bad_numbers_are_refused(tmp_path):
  with pytest.raises(ValueError, match='keep must be at least 1, got 0'):
    checkpoint.save(tmp_path, 0, 'state', keep=0)
  for step in (-1, 1.0, True):
    with pytest.raises(ValueError, match='step must be a non-negative integer'):
      checkpoint.save(tmp_path, step, 'state')


def test_no_threads_are_left_behind(tmp_path):
  through_disk(tmp_path / 'first', a_population())
  before = threading.active_count()
  for step in range(3):
    checkpoint.save(tmp_path, step, a_population(), keep=1)
    checkpoint.restore(tmp_path)
  deadline = time.monotonic() + 20  # Orbax's threads take a while to end.
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.05)
  assert threading.active_count() <= before


def test_import_does_not_import_orbax():
  script = (
    'import sys; from jaxnas import checkpoint; '
    'assert not any(m.startswith("orbax") for m in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', script], check=True)


# Kills. One process imports everything and forks a child per kill, before JAX
# has started any thread of its own; the child dies by SIGKILL in its `save`.

KILLER = """if True:
  import os, random, signal, sys, time, warnings
  import numpy as np
  import orbax.checkpoint
  from jaxnas import checkpoint

  def state(i):
    return {'w': np.full((2, 3), i), 'i': i, 'extra': [np.zeros(2)] * i}

  def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

  def at_event(root, n):
    '''Dies before its n-th change under root, if there are so many.'''
    count = 0
    def hook(name, args):
      nonlocal count
      if name == 'open' and not str(args[1]).startswith('w'):
        return
      if name in ('open', 'os.mkdir', 'os.rename', 'os.rmdir', 'os.remove'):
        within = isinstance(args[-1], int) and args[-1] >= 0  # A folder's fd.
        count += within or os.fsdecode(args[0]).startswith(root)
        if count == n:
          kill()
    sys.addaudithook(hook)
    checkpoint.save(root, 2, state(2), keep=2)

  def after(root, seconds):
    '''Saves on and on; dies at some time after the first step.'''
    step = 2
    while True:
      if step == 3:
        signal.signal(signal.SIGALRM, kill)
        signal.setitimer(signal.ITIMER_REAL, seconds)
      checkpoint.save(root, step, state(step % 5), keep=2)
      step += 1

  def died(function, *args):
    pid = os.fork()
    if not pid:
      os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
      function(*args)
      os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

  warnings.simplefilter('ignore')  # That we fork.
  kind, draw = sys.argv[1], random.Random(0)
  for root in sys.argv[2:]:
    if kind == 'event':
      if not died(at_event, root, 1 + 2 * int(os.path.basename(root))):
        break
      print(root)
    else:
      assert died(after, root, draw.uniform(0.0, 0.3))
      print(root)
  """


def state(i):
  return {'w': np.full((2, 3), i), 'i': i, 'extra': [np.zeros(2)] * i}


@pytest.mark.parametrize(
  ('kind', 'number'),
  [pytest.param('event', 30, marks=pytest.mark.slow), ('time', 5)],
)
def test_kill_while_saving_leaves_a_usable_checkpoint(tmp_path, kind, number):
  checkpoint.save(tmp_path / 'start', 0, state(0))
  checkpoint.save(tmp_path / 'start', 1, state(1))
  roots = [tmp_path / f'{i:02d}' for i in range(number)]
  for root in roots:
    shutil.copytree(tmp_path / 'start', root)
  output = subprocess.run(
    [sys.executable, '-c', KILLER, kind, *map(str, roots)],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  ).stdout
  killed = [pathlib.Path(line) for line in output.split()]
  left_over, steps = 0, set()
  for root in killed:
    left_over += any(not name.isdigit() for name in os.listdir(root))
    step, value = checkpoint.restore(root)
    steps.add(step)
    assert same(value, state(step % 5)), root
    if os.path.exists(root / '0'):  # What looks like a step is a whole one.
      assert checkpoint.restore(root, step=0), root
    checkpoint.save(root, step + 2, state(0), keep=2)  # Not the killed one.
    assert set(os.listdir(root)) == {str(step), str(step + 2)}
  if kind == 'event':  # Before every other change, from first to last.
    assert 12 < len(killed) < number and left_over and steps == {1, 2}
