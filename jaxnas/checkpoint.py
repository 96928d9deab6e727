"""Whole searches on disk: structure as JSON, arrays through Orbax.

`describe` splits any search state into a JSON *manifest* and a flat dict of
arrays; `rebuild` is its inverse. `save` writes both as one atomic Orbax step,
and `restore` gives a value back only if manifest, Orbax's own metadata and
the bytes read agree: Orbax alone loads a tree of other leaves without a word.

A state is made of NamedTuples (populations, candidates, optax states), dicts
with string keys, lists, tuples, None, bool, int, float, str, NumPy and JAX
arrays, typed PRNG keys, dataclasses registered with JAX (`flax.struct`:
static fields by `spec.encode`) and frozen dataclasses of plain values (specs,
moves: by `spec.encode`). Functions and classes are not state.
"""

import contextlib
import dataclasses
import importlib
import json
import math
import operator
import os
import reprlib
import shutil
import sys
import textwrap
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import spec

VERSION = 1

# What Orbax writes bit for bit; tests/test_checkpoint.py tries each of them.
DTYPES = (
  *('bool', 'int4', 'int8', 'int16', 'int32', 'int64'),
  *('uint8', 'uint16', 'uint32', 'uint64', 'complex64', 'complex128'),
  *('float16', 'float32', 'float64', 'bfloat16'),
  *('float8_e3m4', 'float8_e4m3b11fnuz', 'float8_e4m3fn', 'float8_e5m2'),
)

# Old steps are renamed into this folder before they are deleted, so that a
# kill in between leaves no half-deleted step that looks like a whole one.
_TRASH = 'deleted'


class _Tables(NamedTuple):
  """What `describe` collects on its walk; each is filled in place."""

  classes: list[dict]
  data: dict[str, int]  # JSON text of a frozen dataclass: its index
  leaves: dict[str, dict]  # what the manifest says of each array
  arrays: dict[str, Any]
  seen: dict[int, Any]  # id of an object or class met before: key or index


def describe(value: Any) -> tuple[dict, dict[str, np.ndarray | jax.Array]]:
  """Splits a search state into plain JSON and arrays.

  An object that occurs many times (parameters shared by candidates, a spec)
  is written once and comes back as one object.

  Args:
    value: the state; see the module's docstring for what it may hold.

  Returns:
    A pair `(manifest, arrays)`. The manifest names for every array its key,
    path inside `value`, kind (`'numpy'`, `'jax'` or `'key'`), shape, dtype
    and checksum. The arrays are NumPy arrays, or JAX arrays where other
    processes hold parts of them.

  Raises:
    TypeError: for a value that cannot be written; the message names its path.

  Example:
    >>> import numpy as np
    >>> from jaxnas import checkpoint
    >>> manifest, arrays = checkpoint.describe({'w': np.ones(2), 'lr': 0.1})
    >>> manifest['value']
    {'dict': {'w': {'array': '00000'}, 'lr': 0.1}}
    >>> manifest['arrays']['00000']['path'], arrays['00000'].shape
    ("value['w']", (2,))
  """
  tables = _Tables([], {}, {}, {}, {})
  root = _encode(value, 'value', tables)
  manifest = {
    'version': VERSION,
    'value': root,
    'classes': tables.classes,
    'data': [json.loads(text) for text in tables.data],
    'arrays': tables.leaves,
  }
  return manifest, tables.arrays


def _encode(value: Any, path: str, tables: _Tables) -> Any:
  """The JSON of one value; arrays, classes and data go to the tables."""
  kind = type(value)
  if value is None or kind in (bool, int, str):
    return value
  if kind is float:
    return value if math.isfinite(value) else {'float': repr(value)}
  if kind in (list, tuple):
    items = [_encode(v, f'{path}[{i}]', tables) for i, v in enumerate(value)]
    return items if kind is list else {'tuple': items}
  if kind is dict:
    return {'dict': _encode_dict(value, path, tables)}
  if kind is np.ndarray or isinstance(value, jax.Array):
    return {'array': _encode_array(value, path, tables)}
  if isinstance(value, np.generic):
    return {'scalar': _dtype(value, path), 'hex': value.tobytes().hex()}
  if issubclass(kind, tuple) and _fields(kind) is not None:
    return _encode_fields(value, path, tables, static=())
  if dataclasses.is_dataclass(kind):
    if not jax.tree_util.all_leaves([value]):
      static = [f.name for f in dataclasses.fields(kind) if _is_static(f)]
      return _encode_fields(value, path, tables, static=static)
    if kind.__dataclass_params__.frozen:
      return {'data': _encode_data(value, path, tables)}
  raise TypeError(
    f'{path}: cannot write {reprlib.repr(value)} of type '
    f'{kind.__qualname__}; a search state holds NamedTuples, dicts, lists, '
    'tuples, numbers, strings, arrays, flax.struct dataclasses and frozen '
    'dataclasses of plain values. Keep functions and classes in the stages '
    'that use them.'
  )


def _is_static(field: dataclasses.Field) -> bool:
  """Whether JAX sees the field of a registered dataclass as static."""
  pytree_node = field.metadata.get('pytree_node', True)
  return not pytree_node or field.metadata.get('static', False)


def _encode_dict(value: dict, path: str, tables: _Tables) -> dict:
  for key in value:
    if type(key) is not str:
      raise TypeError(
        f'{path}: the key {key!r} is no string; use string keys, or a list '
        'of pairs.'
      )
  return {k: _encode(v, f'{path}[{k!r}]', tables) for k, v in value.items()}


def _encode_fields(
  value: Any, path: str, tables: _Tables, static: Any
) -> dict[str, Any]:
  """A NamedTuple or registered dataclass: its class and its fields' JSON."""
  cls = type(value)
  if id(cls) not in tables.seen:
    entry = _class_entry(cls, path)
    tables.seen[id(cls)] = len(tables.classes)
    tables.classes.append(entry)
  items = []
  for field in _fields(cls):
    item, where = getattr(value, field), f'{path}.{field}'
    if field in static:
      items.append({'data': _encode_data(item, where, tables)})
    else:
      items.append(_encode(item, where, tables))
  return {'class': tables.seen[id(cls)], 'items': items}


def _class_entry(cls: type, path: str) -> dict[str, Any]:
  """What the manifest says of a class, if it can be found again by name."""
  entry = {
    'name': f'{cls.__module__}:{cls.__qualname__}',
    'fields': list(_fields(cls)),
  }
  try:
    found = _find(entry)
  except ValueError:
    found = None
  if found is not cls:
    raise TypeError(
      f'{path}: the class {entry["name"]} cannot be imported by this name, '
      'so it could not be restored; define it at the top level of a module.'
    )
  return entry


def _encode_data(value: Any, path: str, tables: _Tables) -> int:
  """The index, in the manifest's data, of a value of plain values."""
  if id(value) not in tables.seen:
    try:
      encoded = spec.encode(value)
      same = spec.decode(encoded) == value
    except (ImportError, TypeError, ValueError) as error:
      raise TypeError(f'{path}: {error}') from None
    if not same:
      raise TypeError(
        f'{path}: {value!r} comes back from JSON as '
        f'{spec.decode(encoded)!r}; use tuples instead of lists.'
      )
    text = json.dumps(_encode(encoded, path, tables))
    index = tables.data.setdefault(text, len(tables.data))
    tables.seen[id(value)] = index
  return tables.seen[id(value)]


def _encode_array(value: Any, path: str, tables: _Tables) -> str:
  """The key of an array, which is stored at its first occurrence."""
  if id(value) not in tables.seen:
    key = f'{len(tables.leaves):05d}'
    leaf, array = _leaf(value, path)
    tables.leaves[key] = leaf
    tables.arrays[key] = array
    tables.seen[id(value)] = key
  return tables.seen[id(value)]


def _leaf(value: Any, path: str) -> tuple[dict, Any]:
  """What the manifest says of an array, and the array on the host."""
  leaf: dict[str, Any] = {'path': path, 'kind': 'numpy'}
  if isinstance(value, jax.Array):
    leaf['kind'] = 'jax'
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
      leaf['kind'], leaf['impl'] = 'key', jax.random.key_impl(value)
      if not isinstance(leaf['impl'], str):
        raise TypeError(
          f'{path}: a key of the implementation {leaf["impl"]!r}, which has '
          'no name; use one of JAX (threefry2x32, rbg, unsafe_rbg).'
        )
      value = jax.random.key_data(value)
    elif value.weak_type:
      leaf['weak'] = True
    # Other processes hold parts of the rest: those stay for Orbax to gather.
    if value.is_fully_addressable or value.is_fully_replicated:
      value = np.asarray(value)
  leaf['shape'] = list(value.shape)
  leaf['dtype'] = _dtype(value, path)
  if isinstance(value, np.ndarray):
    leaf['crc32'] = zlib.crc32(value.tobytes())
  return leaf, value


def _dtype(value: Any, path: str) -> str:
  dtype = value.dtype
  if dtype.name not in DTYPES or not dtype.isnative:
    raise TypeError(
      f'{path}: cannot write an array of dtype {dtype}; convert it to one '
      f'of {", ".join(DTYPES)}, in native byte order.'
    )
  return dtype.name


def _fields(cls: Any) -> tuple[str, ...] | None:
  """The field names of a NamedTuple class or dataclass; None for others."""
  if isinstance(cls, type) and issubclass(cls, tuple):
    return getattr(cls, '_fields', None)
  if isinstance(cls, type) and dataclasses.is_dataclass(cls):
    return tuple(field.name for field in dataclasses.fields(cls))
  return None


def _find(entry: Mapping[str, Any]) -> type:
  """Imports a class of the manifest; refuses what has other fields."""
  module, _, qualname = entry['name'].partition(':')
  try:
    cls = operator.attrgetter(qualname)(importlib.import_module(module))
  except (ImportError, AttributeError) as error:
    raise ValueError(
      f'the class {entry["name"]} of the checkpoint cannot be imported: '
      f'{error}; install the library versions that wrote it.'
    ) from error
  fields = _fields(cls)
  if fields is None or list(fields) != entry['fields']:
    now = 'is no NamedTuple or dataclass'
    if fields is not None:
      now = f'has the fields {list(fields)}'
    raise ValueError(
      f'the class {entry["name"]} had the fields {entry["fields"]} in the '
      f'checkpoint and {now} now; install the library versions that wrote '
      'it.'
    )
  return cls


def rebuild(manifest: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
  """The inverse of `describe`.

  NumPy arrays come back as NumPy arrays, all others as JAX arrays on the
  default device (of each process, where there are several).

  Args:
    manifest: the manifest.
    arrays: the arrays by the manifest's keys.

  Returns:
    The value that was described.

  Raises:
    ValueError: for arrays that are not those of the manifest, a manifest of a
      newer version, and classes that are gone or have other fields now.

  Example:
    >>> import optax
    >>> from jaxnas import checkpoint
    >>> state = optax.sgd(0.1, momentum=0.9).init({'w': 1.0})
    >>> checkpoint.rebuild(*checkpoint.describe(state)) == state
    True
  """
  _check_version(manifest, 'the manifest')
  problems = _differences(manifest, arrays) + _damage(manifest, arrays)
  if problems:
    raise ValueError(_listing(problems))
  return _assemble(manifest, arrays)


def _check_version(manifest: Mapping[str, Any], where: str) -> None:
  if manifest['version'] > VERSION:
    raise ValueError(
      f'{where} has version {manifest["version"]}, and this jaxnas reads '
      f'versions up to {VERSION}; install the newer jaxnas that wrote it.'
    )


def _differences(
  manifest: Mapping[str, Any], found: Mapping[str, Any]
) -> list[str]:
  """Where arrays, or Orbax's metadata of them, are not the manifest's."""
  problems = []
  for key, leaf in manifest['arrays'].items():
    said = f'{leaf["dtype"]}{tuple(leaf["shape"])}'
    got = 'nothing'
    if key in found:
      dtype, shape = jnp.dtype(found[key].dtype), tuple(found[key].shape)
      got = f'{dtype.name}{shape}'
    if said != got and not _stays_in_manifest(leaf):
      problems.append(
        f'leaf {leaf["path"]} (array {key}): the manifest says {said}, '
        f'found {got}'
      )
  for key in sorted(set(found) - set(manifest['arrays'])):
    problems.append(f'array {key}: the manifest has no such leaf')
  return problems


def _damage(
  manifest: Mapping[str, Any], arrays: Mapping[str, Any]
) -> list[str]:
  """Where the bytes of arrays of the right shape are not those written."""
  problems = []
  for key, leaf in manifest['arrays'].items():
    array = arrays.get(key)
    if 'crc32' in leaf and isinstance(array, np.ndarray):
      crc = zlib.crc32(array.tobytes())
      if crc != leaf['crc32']:
        problems.append(
          f'leaf {leaf["path"]} (array {key}): the manifest says checksum '
          f'{leaf["crc32"]}, found {crc}'
        )
  return problems


def _listing(problems: list[str], most: int = 5) -> str:
  more = f'; and {len(problems) - most} more' if len(problems) > most else ''
  return '; '.join(problems[:most]) + more


def _stays_in_manifest(leaf: Mapping[str, Any]) -> bool:
  """Whether a leaf has no elements, which Orbax refuses to store."""
  return 0 in leaf['shape']


def _assemble(manifest: Mapping[str, Any], arrays: Mapping[str, Any]) -> Any:
  """`rebuild` of arrays that have been checked."""
  leaves = {
    key: _from_leaf(leaf, arrays.get(key))
    for key, leaf in manifest['arrays'].items()
  }
  classes = [_find(entry) for entry in manifest['classes']]
  try:
    data = [spec.decode(_decode(d, {}, [], [])) for d in manifest['data']]
  except (ImportError, TypeError, ValueError) as error:
    raise ValueError(
      f'a spec or move of the checkpoint cannot be rebuilt: {error}; '
      'install the library versions that wrote it.'
    ) from error
  return _decode(manifest['value'], leaves, classes, data)


def _from_leaf(leaf: Mapping[str, Any], array: np.ndarray | None) -> Any:
  """The array of a leaf as what it was: NumPy, JAX or a typed key."""
  dtype = jnp.dtype(leaf['dtype'])
  if _stays_in_manifest(leaf):
    array = np.zeros(leaf['shape'], dtype)
  if leaf['kind'] == 'numpy':
    return np.array(array)
  if jax.dtypes.canonicalize_dtype(dtype) != dtype:
    raise ValueError(
      f'leaf {leaf["path"]} is a JAX array of {dtype}, which this process '
      'would narrow; set jax_enable_x64 as in the process that saved it.'
    )
  if leaf.get('weak'):
    # Updating is the one public way to weakly typed elements of any value.
    zero = {'i': 0, 'f': 0.0, 'c': 0j}[dtype.kind]
    return jnp.full(leaf['shape'], zero).at[...].set(array)
  value = jnp.array(array)
  if leaf['kind'] == 'key':
    return jax.random.wrap_key_data(value, impl=leaf['impl'])
  return value


def _decode(node: Any, leaves: dict, classes: list, data: list) -> Any:
  """The inverse of `_encode`."""

  def decode(child: Any) -> Any:
    return _decode(child, leaves, classes, data)

  if isinstance(node, list):
    return [decode(child) for child in node]
  if not isinstance(node, dict):
    return node
  if 'float' in node:
    return float(node['float'])
  if 'tuple' in node:
    return tuple(decode(child) for child in node['tuple'])
  if 'dict' in node:
    return {key: decode(child) for key, child in node['dict'].items()}
  if 'array' in node:
    return leaves[node['array']]
  if 'scalar' in node:
    stored = bytes.fromhex(node['hex'])
    return np.frombuffer(stored, jnp.dtype(node['scalar']))[0]
  if 'data' in node:
    return data[node['data']]
  cls = classes[node['class']]
  items = [decode(child) for child in node['items']]
  if issubclass(cls, tuple):
    return cls._make(items)
  return cls(**dict(zip(_fields(cls), items)))


def _root(directory: str | os.PathLike) -> str:
  """An absolute path, as Orbax asks; addresses such as gs:// as they are."""
  path = os.fspath(directory)
  return path if '://' in path else os.path.abspath(path)


def _steps(root: str) -> list[int]:
  """The complete steps of a folder, in order."""
  import orbax.checkpoint as ocp

  try:
    found = list(ocp.path.step.standard_name_format().find_all(root))
  except FileNotFoundError:
    return []
  return sorted(entry.step for entry in found)


@contextlib.contextmanager
def _manager(root: str, keep: int | None = None) -> Iterator[Any]:
  """A synchronous Orbax manager of steps with a manifest and arrays.

  Args:
    root: the folder of the steps.
    keep: steps to keep when saving; None for a manager that only reads.
  """
  import orbax.checkpoint as ocp

  args, handlers = ocp.args, ocp.handlers
  registry = handlers.DefaultCheckpointHandlerRegistry()
  manifest = handlers.JsonCheckpointHandler()
  arrays = handlers.PyTreeCheckpointHandler()
  registry.add('manifest', args.JsonSave, manifest)
  registry.add('manifest', args.JsonRestore, manifest)
  registry.add('arrays', args.PyTreeSave, arrays)
  registry.add('arrays', args.PyTreeRestore, arrays)
  options = ocp.CheckpointManagerOptions(
    create=keep is not None,
    cleanup_tmp_directories=keep is not None,
    preservation_policy=ocp.checkpoint_managers.LatestN(keep),
    enable_async_checkpointing=False,
    lightweight_initialize=True,
    todelete_subdir=_TRASH,
  )
  with ocp.CheckpointManager(
    root, options=options, handler_registry=registry
  ) as manager:
    yield manager


def _empty_trash(root: str) -> None:
  """Deletes, in the first process, the steps Orbax has put aside."""
  trash = os.path.join(root, _TRASH)  # Local only: Orbax deletes on gs://.
  if jax.process_index() == 0 and os.path.isdir(trash):
    shutil.rmtree(trash)


def save(
  directory: str | os.PathLike,
  step: int,
  value: Any,
  *,
  settings: Mapping[str, Any] | None = None,
  keep: int = 3,
) -> None:
  """Writes a search state as one atomic step, and returns when it is on disk.

  Orbax writes manifest and arrays into a temporary folder and renames it when
  both are complete. A process killed at any moment leaves the earlier steps
  as they were; the next `save` removes what is left over. With several
  processes, all call `save` with the same arguments.

  Args:
    directory: the folder of this run's checkpoints, and of nothing else.
    step: a number larger than that of every step in the folder.
    value: the state; see `describe`.
    settings: the run's settings, plain JSON values, for `restore` to compare.
    keep: how many of the latest steps to keep.

  Raises:
    TypeError: for a value or settings that cannot be written.
    ValueError: for a step that is not after the latest one, or `keep < 1`.

  Example:
    >>> import tempfile
    >>> from jaxnas import checkpoint
    >>> directory = tempfile.mkdtemp()
    >>> for generation in range(3):
    ...   checkpoint.save(directory, generation, {'best': 0.5}, keep=2)
    >>> checkpoint.restore(directory, step=1)
    (1, {'best': 0.5})
  """
  if keep < 1:
    raise ValueError(f'keep must be at least 1, got {keep}.')
  if isinstance(step, bool) or not isinstance(step, int) or step < 0:
    raise ValueError(f'step must be a non-negative integer, got {step!r}.')
  root = _root(directory)
  newest = latest(root)
  if newest is not None and step <= newest:
    raise ValueError(
      f'{root}: step {step} is not after step {newest}, the latest one; '
      'save a later step, or delete the folders of the steps to replace.'
    )
  manifest, arrays = describe(value)
  stored = {
    key: array
    for key, array in arrays.items()
    if not _stays_in_manifest(manifest['arrays'][key])
  }
  document = {'manifest': manifest, 'settings': _plain(settings)}
  document['crc32'] = _checksum(document)
  import orbax.checkpoint as ocp

  items = {'manifest': ocp.args.JsonSave(document)}
  if stored:  # Orbax refuses an item without arrays.
    items['arrays'] = ocp.args.PyTreeSave(stored)
  _empty_trash(root)
  with _manager(root, keep) as manager:
    manager.save(step, args=ocp.args.Composite(**items), force=True)
  _empty_trash(root)


def latest(directory: str | os.PathLike) -> int | None:
  """The latest complete step in a folder.

  Args:
    directory: the folder given to `save`; it need not exist.

  Returns:
    The step, or None where there is none.

  Example:
    >>> from jaxnas import checkpoint
    >>> checkpoint.latest('no/such/folder') is None
    True
  """
  return max(_steps(_root(directory)), default=None)


def restore(
  directory: str | os.PathLike,
  *,
  step: int | None = None,
  settings: Mapping[str, Any] | None = None,
) -> tuple[int, Any] | None:
  """Reads a search state back, or says why it cannot be trusted.

  Changes nothing on disk, so it may be called while another process saves.

  Args:
    directory: the folder given to `save`.
    step: the step to read; None for the latest one.
    settings: the settings of the run that wants to go on; None compares
      nothing.

  Returns:
    A pair `(step, value)`, or None where the folder has no step and `step` is
    None.

  Raises:
    ValueError: for a step that is not there; settings that differ from the
      stored ones (each is named, with both values); a checkpoint of a newer
      version; and files that are missing or damaged or do not belong
      together. The message names the folder, the leaf and what to do.

  Example:
    >>> import tempfile
    >>> import jax
    >>> from jaxnas import checkpoint
    >>> directory = tempfile.mkdtemp()
    >>> state = {'key': jax.random.key(0), 'generation': 7}
    >>> checkpoint.save(directory, 7, state, settings={'seed': 0})
    >>> step, restored = checkpoint.restore(directory, settings={'seed': 0})
    >>> step, bool(restored['key'] == state['key'])
    (7, True)
  """
  root = _root(directory)
  steps = _steps(root)
  if step is None:
    if not steps:
      return None
    step = steps[-1]
  if step not in steps:
    raise ValueError(f'{root}: there is no step {step}; there are {steps}.')
  folder = os.path.join(root, str(step))
  with _manager(root) as manager:
    with _refusing_damage(root, step, steps):
      document = _read_document(manager, step)
    _check_version(document['manifest'], folder)
    compare_settings(folder, document['settings'], settings)
    with _refusing_damage(root, step, steps), _without_late_complaints():
      arrays = _read_arrays(manager, step, document['manifest'])
  return step, _assemble(document['manifest'], arrays)


@contextlib.contextmanager
def _refusing_damage(root: str, step: int, steps: list[int]) -> Iterator[None]:
  """Turns whatever reading a damaged step raises into one clear error."""
  try:
    yield
  except Exception as error:  # Orbax and TensorStore raise many kinds.
    folder = os.path.join(root, str(step))
    earlier = max((s for s in steps if s < step), default=None)
    advice = 'there is no earlier one: delete it to start afresh'
    if earlier is not None:
      advice = (
        f'delete it to resume from the previous one, '
        f'{os.path.join(root, str(earlier))}'
      )
    reason = str(error) if isinstance(error, ValueError) else repr(error)
    reason = textwrap.shorten(reason, 1000)
    raise ValueError(
      f'the checkpoint {folder} cannot be trusted: {reason}; {advice}.'
    ) from error


@contextlib.contextmanager
def _without_late_complaints() -> Iterator[None]:
  """Drops what reads say to an event loop that Orbax has closed.

  Where one of many arrays cannot be read, the reads of the others end later,
  in threads, and each would print a traceback beside the one clear error.
  """
  before = sys.unraisablehook

  def hook(unraisable: Any) -> None:
    if str(unraisable.exc_value) != 'Event loop is closed':
      before(unraisable)

  sys.unraisablehook = hook
  yield
  sys.unraisablehook = before  # Only after success: see above.


def _read_document(manager: Any, step: int) -> dict[str, Any]:
  """Reads manifest and settings; an exception where they are damaged."""
  import orbax.checkpoint as ocp

  args = ocp.args.Composite(manifest=ocp.args.JsonRestore())
  document = manager.restore(step, args=args)['manifest']
  parts = ('manifest', 'settings', 'crc32')
  if not (isinstance(document, dict) and all(p in document for p in parts)):
    raise ValueError(f'the manifest lacks one of {", ".join(parts)}')
  version = document['manifest']['version']
  # What a newer version sums up is not known here; `restore` refuses it.
  if version <= VERSION and _checksum(document) != document['crc32']:
    raise ValueError('the manifest does not match its checksum')
  return document


def _read_arrays(
  manager: Any, step: int, manifest: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Reads the arrays; `ValueError` where manifest and Orbax disagree."""
  import orbax.checkpoint as ocp

  metadata = manager.item_metadata(step).get('arrays')
  listed = {} if metadata is None else metadata.tree
  problems = _differences(manifest, listed)
  if problems:
    raise ValueError(f"in Orbax's metadata: {_listing(problems)}")
  if not listed:
    return {}
  host = ocp.RestoreArgs(restore_type=np.ndarray)
  request = ocp.args.PyTreeRestore(restore_args=dict.fromkeys(listed, host))
  args = ocp.args.Composite(arrays=request)
  arrays = manager.restore(step, args=args)['arrays']
  problems = _differences(manifest, arrays) + _damage(manifest, arrays)
  if problems:
    raise ValueError(f'in the arrays read: {_listing(problems)}')
  return arrays


def _checksum(document: Mapping[str, Any]) -> int:
  """A checksum of manifest and settings that JSON leaves as it is."""
  parts = [document['manifest'], document['settings']]
  return zlib.crc32(json.dumps(parts, sort_keys=True).encode())


def _plain(settings: Mapping[str, Any] | None) -> Any:
  """Settings as they look after JSON: tuples are lists, keys strings."""
  try:
    return json.loads(json.dumps(settings))
  except (TypeError, ValueError) as error:
    raise TypeError(
      f'settings must be a dict of plain JSON values: {error}.'
    ) from None


def _flat(settings: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts as one, with dots between the keys."""
  flat = {}
  for key, value in settings.items():
    if isinstance(value, dict) and value:
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def compare_settings(folder: str, stored: Any, received: Any) -> None:
  """Refuses settings that differ, naming each with both values."""
  if received is None:
    return
  old, new = _flat(stored or {}), _flat(_plain(received))
  problems = []
  for name in sorted(old.keys() | new.keys()):
    # Compared as text: nan is nan, and True is not 1. Numbers by value.
    before, after = json.dumps(old.get(name)), json.dumps(new.get(name))
    numbers = all(type(flat.get(name)) in (int, float) for flat in (old, new))
    same = before == after or (numbers and old[name] == new[name])
    if (name in old) != (name in new) or not same:
      before = before if name in old else 'nothing'
      after = after if name in new else 'nothing'
      problems.append(f'{name}: stored {before}, received {after}')
  if problems:
    raise ValueError(
      f'the checkpoint {folder} was written with other settings: '
      f'{"; ".join(problems)}. Start in a fresh working directory, or set '
      'these back to the stored values.'
    )
