"""The laws: contract tests that every implementation here passes.

They are for moves, stages, rules and estimators of your own too. Each check
returns nothing where the law holds and raises an `AssertionError` that says
what differs, where, and what the likely cause is.

Example:
  >>> import jax
  >>> from jaxnas import morphisms, network
  >>> from jaxnas.spaces import seeds
  >>> net = network.init(seeds.mlp((4,), (5, 5), 3), jax.random.key(0))
  >>> check_morphism(morphisms.widen({'dense1': 8}), net)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import base, groups, layers, morphisms, network, programs
from jaxnas import spec as specs

# Exactness asked for, relative to the largest output.
RTOL = {'float64': 1e-10, 'float32': 1e-4, 'bfloat16': 0.1, 'float16': 0.02}


def randomized(
  net: network.Network, key: jax.Array | None = None
) -> network.Network:
  """The network with random variables of every kind, as NumPy arrays.

  A network fresh from `init` hides mistakes: its biases and gates are zero and
  its batch statistics those of standard inputs. Here parameters and running
  means move by noise, running variances lie between 1/2 and 2. Inactive
  channels of padded groups stay zero.

  Args:
    net: a network; only its shapes and parameters' whereabouts matter.
    key: for the noise.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.chain((4, 4, 1), (2,), 3), jax.random.key(0))
    >>> stats = randomized(net).variables['batch_stats']['conv1_bn']
    >>> bool((stats['var'] != 1).all())
    True
  """
  rng = base.rng(jax.random.key(0) if key is None else key)
  net = _host(net)
  tight = morphisms.extract(net)(net, ())
  active = tight.variables.get('arch', {}).get('active', {})
  tight = morphisms.uncapped(tight)(tight, ())

  def noisy(path: Any, leaf: np.ndarray) -> np.ndarray:
    collection, name = path[0].key, path[-1].key
    if collection not in ('params', 'batch_stats') or not _floating(leaf):
      return leaf
    if collection == 'batch_stats' and name == 'var':
      return rng.uniform(0.5, 2, leaf.shape).astype(leaf.dtype)
    fan_in = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 4
    noise = rng.normal(size=leaf.shape) / np.sqrt(fan_in)
    return np.asarray(leaf + noise, leaf.dtype)

  shaken = jax.tree_util.tree_map_with_path(noisy, tight.variables)
  tight = network.Network(shaken, tight.spec)
  table = groups.table(net.spec).groups
  if active:
    back = morphisms.pad({group: table[group].size for group in active})
    tight = _host(back(tight, ()))
  return morphisms.embed(net.spec)(tight, ()) if net.spec.optional else tight


def check_morphism(
  move: morphisms.Morphism,
  net: network.Network,
  *,
  key: jax.Array | None = None,
  inputs: Any = None,
  rtol: float | None = None,
  train_steps: int = 20,
) -> None:
  """Holds a move to the laws of morphisms, on one network.

  1. It is a value: a frozen dataclass that a round trip through JSON
     returns, equal and with equal hash.
  2. `jax.eval_shape` of it tells the result's architecture, shapes and
     dtypes, and these are what a fresh network of that architecture has.
  3. `init` reads shapes only and is a function of the key.
  4. It leaves its input as it is.
  5. Where it says `preserves`, at theta zero the moved network computes what
     the network did, in evaluation mode: on `net` and on `randomized(net)`.
  6. Under `jax.jit` it gives what it gives eagerly on NumPy leaves, traces
     once for one (move, spec), and has finite gradients in the network's
     variables and in theta.
  7. `morphisms.carry_state` makes of an Adam state one of the moved network,
     finite, with second moments that are nowhere negative, nor zero where
     old ones were not, unless it is stored with room for more.
  8. New units can learn: at theta zero, channels that the move made equal
     part when the moved network is trained, and no new channel and no new
     gate is stuck between two zeros. (Trained by plain gradient steps on
     random data, without dropout, and with smooth activations in the place
     of those that can die, so that a dead unit is not taken for a twin.)

  The dtype of the network's parameters is the dtype of the check. Cast them
  to float64 (under `jax.enable_x64(True)`) for the sharpest.

  Args:
    move: the move.
    net: a network on which it is legal.
    key: for random variables, inputs and `move.init`.
    inputs: (batch, *input shape); None for eight of standard normal numbers.
    rtol: largest change of the output that counts as none, relative to the
      largest output; None for 1e-10 in float64 and 1e-4 in float32.
    train_steps: gradient steps after which twins must have parted.

  Raises:
    AssertionError: naming the move, the law, what differs and where.
    ValueError: if the move is illegal on this network.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (5, 5), 3), jax.random.key(0))
    >>> check_morphism(morphisms.split({'dense1': [2]}), net)
    >>> check_morphism(morphisms.split({'dense1': [2]}, mass=0.5), net)
    Traceback (most recent call last):
    ...
    AssertionError: Split(channels=(('dense1', (2,)),), mass=0.5): new units \
can learn: channels 2 and 5 of group 'dense1' (written by 'dense1') are twins \
that stay equal after 20 gradient steps: share the outgoing weight unequally \
or add noise.
  """
  key = jax.random.key(0) if key is None else key
  net = _host(net)
  dtype = _dtype(net)
  shaken = randomized(net, jax.random.fold_in(key, 1))
  if inputs is None:
    shape = net.spec.shapes[net.spec.input]
    rng = base.rng(jax.random.fold_in(key, 2))
    inputs = rng.normal(size=(8, *shape)).astype(dtype)
  rtol = RTOL[dtype.name] if rtol is None else rtol

  copy = _check_value(move)
  theta = _check_init(move, net, shaken, jax.random.fold_in(key, 3))
  zero = jax.tree.map(np.zeros_like, theta)
  moved = _check_shapes(move, net, zero, dtype)
  _check_untouched(move, shaken, zero)
  if move.preserves:
    for before, kind in ((net, ''), (shaken, ' with random variables')):
      _check_preserves(move, before, zero, inputs, rtol, kind)
  _check_jit(move, copy, shaken, theta, dtype)
  _check_state(move, net, moved, key)
  _check_learning(move, _host(move(shaken, zero)), inputs, key, train_steps)


def check_illegal(move: morphisms.Morphism, spec: specs.Spec) -> str:
  """Asserts that a move is refused on a spec, in time and by name.

  Args:
    move: the move.
    spec: a spec on which it is illegal.

  Returns:
    The message of the `ValueError` that it raises under `jax.eval_shape`.

  Raises:
    AssertionError: if it does not raise, raises something else, or the
      message does not name the move.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> spec = seeds.mlp((4,), (8,), 3)
    >>> check_illegal(morphisms.widen({'dense1': 5}), spec).split('; ')[1]
    'give a width of 8 or more, or prune.'
  """

  def made(net: network.Network, key: jax.Array) -> network.Network:
    return move(net, move.init(net, key))

  try:
    jax.eval_shape(made, network.shapes(spec), jax.random.key(0))
  except ValueError as error:
    message = str(error)
  except Exception as error:
    raise AssertionError(
      f'{move}: an illegal move must raise a ValueError under jax.eval_shape, '
      f'and this raises {error!r}.'
    ) from error
  else:
    raise AssertionError(
      f'{move}: the move is illegal here and must raise a ValueError under '
      'jax.eval_shape; it raises nothing.'
    )
  parts = [type(part).__name__ for part in getattr(move, 'moves', (move,))]
  if not any(part.lower() in message.lower() for part in parts):
    raise AssertionError(
      f'{move}: the message must name the move ({" or ".join(parts)}): '
      f'{message!r}.'
    )
  return message


def _fail(move: Any, law: str, text: str) -> None:
  raise AssertionError(f'{move}: {law}: {text}')


def _host(tree: Any) -> Any:
  """The tree with NumPy leaves of its own, writable."""
  return jax.tree.map(np.array, jax.device_get(tree))


def _dtype(net: network.Network) -> np.dtype:
  kinds = {
    leaf.dtype
    for leaf in jax.tree.leaves(net.variables.get('params', {}))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  if len(kinds) > 1:
    raise ValueError(f'the parameters are of several dtypes: {kinds}.')
  dtype = kinds.pop() if kinds else np.dtype('float32')
  if dtype.name == 'float64' and not jax.config.jax_enable_x64:
    raise ValueError(
      'the network is float64 and JAX is not; check it under '
      'jax.enable_x64(True).'
    )
  return dtype


def _floating(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jnp.floating)


def _leaves(tree: Any) -> dict[str, Any]:
  """The leaves of a tree by their paths, written 'params/conv1/kernel'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def _layout(tree: Any) -> dict[str, str]:
  found = {}
  for path, leaf in _leaves(tree).items():
    if not hasattr(leaf, 'dtype'):  # A Python number is a leaf too.
      leaf = np.asarray(leaf)
    found[path] = f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
  return found


def _differences(got: dict[str, Any], expected: dict[str, Any]) -> str:
  """Where two dicts differ, in words; `''` where they do not."""
  found = []
  for path in {**expected, **got}:
    if path not in got:
      found.append(f'{path} is missing')
    elif path not in expected:
      found.append(f'{path} should not be there')
    elif got[path] != expected[path]:
      found.append(f'{path} is {got[path]}, expected {expected[path]}')
  more = f', and {len(found) - 4} more' if len(found) > 4 else ''
  return '; '.join(found[:4]) + more


def _unlike(got: Any, expected: Any) -> str:
  """Where two trees differ in structure, shapes or dtypes."""
  if differ := _differences(_layout(got), _layout(expected)):
    return differ
  structures = jax.tree.structure(got), jax.tree.structure(expected)
  if structures[0] != structures[1]:
    return f'the structure is {structures[0]}, expected {structures[1]}'
  return ''


def _far(got: Any, expected: Any, rtol: float) -> str:
  """Where the leaves of two trees of one layout differ; `''` if nowhere."""
  found, others = [], _leaves(expected)
  for path, leaf in _leaves(got).items():
    a, b = np.asarray(leaf, float), np.asarray(others[path], float)
    difference = np.abs(a - b).max(initial=0)
    if not difference <= rtol * np.abs(b).max(initial=0):
      found.append(f'{path} by {difference:.3g}')
  return ', '.join(found[:4])


def _check_value(move: Any) -> Any:
  """Law 1; returns the copy that came back from JSON."""
  law = 'a move is a value'
  if not (
    dataclasses.is_dataclass(move) and type(move).__dataclass_params__.frozen
  ):
    _fail(move, law, 'decorate its class with @dataclass(frozen=True).')
  if not isinstance(getattr(move, 'preserves', None), bool):
    _fail(move, law, f'`preserves` must be True or False of {type(move)}.')
  try:
    hash(move)
  except TypeError as error:
    _fail(move, law, f'it cannot be hashed ({error}); use tuples for lists.')
  try:
    copy = specs.from_json(specs.to_json(move))
  except (ImportError, TypeError, ValueError) as error:
    _fail(
      move,
      law,
      f'it does not survive JSON: {error} Its class must be found at the top '
      'of its module.',
    )
  if copy != move or hash(copy) != hash(move):
    _fail(
      move, law, f'its copy through JSON differs from it or its hash: {copy}.'
    )
  return copy


def _check_init(
  move: Any,
  net: network.Network,
  shaken: network.Network,
  key: jax.Array,
) -> Any:
  """Law 3; returns theta."""
  theta = _host(move.init(net, key))
  again = _host(move.init(shaken, key))
  law = '`init` reads shapes and the key only'
  if differ := _unlike(again, theta):
    _fail(move, law, f'on another network of this spec, theta: {differ}.')
  if differ := _far(again, theta, 0.0):
    _fail(move, law, f'theta differs on a network of other values: {differ}.')
  return theta


def _check_shapes(
  move: Any, net: network.Network, theta: Any, dtype: np.dtype
) -> network.Network:
  """Law 2; returns the moved network."""
  try:
    planned = jax.eval_shape(move, net, theta)
  except ValueError:  # An illegal move.
    raise
  except Exception as error:
    raise AssertionError(
      f'{move}: it fails under jax.eval_shape: {error!r}.'
    ) from error
  try:
    moved = move(_host(net), theta)
  except Exception as error:
    raise AssertionError(
      f'{move}: it runs under jax.eval_shape and fails on NumPy leaves, on '
      f'which moves run on the host: {error!r}.'
    ) from error
  law = 'jax.eval_shape tells the result'
  if planned.spec != moved.spec:
    _fail(move, law, 'its spec differs from that of the result.')
  if differ := _unlike(moved.variables, planned.variables):
    _fail(move, law, f'in the result, {differ}.')

  def cast(leaf: Any) -> jax.ShapeDtypeStruct:
    kind = dtype if _floating(leaf) else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, kind)

  fresh = jax.tree.map(cast, network.shapes(moved.spec).variables)
  if differ := _unlike(moved.variables, fresh):
    _fail(
      move,
      'the result is a network of its spec',
      f'against fresh variables of the new spec, {differ}.',
    )
  return moved


def _check_untouched(move: Any, net: network.Network, theta: Any) -> None:
  """Law 4."""
  given, kept = _host(net), _host(net)
  move(given, theta)
  law = 'a move leaves its input as it is'
  if differ := _unlike(given, kept):
    _fail(move, law, f'afterwards, of the input, {differ}.')
  if differ := _far(given, kept, 0.0):
    _fail(move, law, f'it changed values of the input: {differ}; copy first.')


def _jit(f: Callable[..., Any], static: tuple[int, ...] = ()) -> Any:
  """`jax.jit` for programs that run a few times: compiled fast, where known."""
  return jax.jit(f, static_argnums=static, compiler_options=programs.once())


_jitted = functools.cache(_jit)


def _apply(net: network.Network, x: jax.Array) -> jax.Array:
  return network.apply(net, x, conv='native')


def _values(net: network.Network, x: jax.Array) -> dict[str, jax.Array]:
  call = network.caller(net.spec, net.variables, 'native')
  return network.walk(net.spec, call, x)


def _check_preserves(
  move: Any,
  net: network.Network,
  theta: Any,
  inputs: Any,
  rtol: float,
  kind: str,
) -> None:
  """Law 5."""
  law = f'it preserves the function{kind}'
  moved = _host(move(net, theta))
  before = np.asarray(_jitted(_apply)(net, inputs))
  after = np.asarray(_jitted(_apply)(moved, inputs))
  if before.shape != after.shape:
    _fail(move, law, f'outputs of {before.shape} became {after.shape}.')
  change, scale = np.abs(after - before).max(), np.abs(before).max()
  if not np.isfinite(scale):
    raise ValueError('the network itself has outputs that are not finite.')
  if change <= rtol * scale:
    return
  text = (
    f'the output changes by up to {change:.3g}, {change / scale:.3g} of the '
    f'largest (allowed: {rtol:.0e}).'
  )
  text += _first_difference(net, moved, inputs, rtol) + _hints(moved)
  _fail(move, law, text)


def _first_difference(
  net: network.Network, moved: network.Network, inputs: Any, rtol: float
) -> str:
  """Which node of one shape in both networks is the first to differ."""
  before, after = (_jitted(_values)(n, inputs) for n in (net, moved))
  for node in net.spec.order:
    a, b = before[node.name], after.get(node.name)
    if b is None or a.shape != b.shape:
      continue
    change = np.abs(a - b).max()
    if not change <= rtol * np.abs(a).max():
      return (
        f' The first node whose value differs is {node.name!r} '
        f'({type(node.op).__name__}), by {change:.3g}.'
      )
  return ''


def _hints(moved: network.Network) -> str:
  """Likely causes of a changed function."""
  for node, held in moved.variables.get('batch_stats', {}).items():
    if isinstance(moved.spec.by_name[node].op, specs.BatchNorm):
      fresh = (held['mean'] == 0) & (held['var'] == 1)
      if 0 < fresh.sum() < fresh.size:
        return (
          f' It forgot the batch statistics: {fresh.sum()} of '
          f'{fresh.size} channels of BatchNorm {node!r} have mean 0 and '
          'variance 1, as if fresh; give copied channels the statistics of '
          'their parent.'
        )
  return ''


def _check_jit(
  move: Any, copy: Any, net: network.Network, theta: Any, dtype: np.dtype
) -> None:
  """Law 6."""
  traces = []

  def moved_and_gradients(move, net, theta):
    traces.append(move)
    leaves, tree = jax.tree.flatten((net, theta))
    where = [i for i, leaf in enumerate(leaves) if _floating(leaf)]

    def floats(values):
      full = list(leaves)
      for i, value in zip(where, values):
        full[i] = value
      moved = move(*jax.tree.unflatten(tree, full))
      return [x for x in jax.tree.leaves(moved) if _floating(x)], moved

    out, pull, moved = jax.vjp(floats, [leaves[i] for i in where], has_aux=True)
    (gradients,) = pull([jnp.ones_like(x) for x in out])
    full = [np.zeros(())] * len(leaves)
    for i, value in zip(where, gradients):
      full[i] = value
    return moved, jax.tree.unflatten(tree, full)

  traced = _jit(moved_and_gradients, (0,))
  try:
    moved, gradients = traced(move, net, theta)
  except Exception as error:
    raise AssertionError(
      f'{move}: under jax.jit it fails, though not eagerly: {error!r}.'
    ) from error
  eager = move(net, theta)
  if differ := _unlike(moved, eager):
    _fail(move, 'jit equals eager', f'under jit, {differ}.')
  tolerance = 100 * jnp.finfo(dtype).eps
  if differ := _far(moved, eager, float(tolerance)):
    _fail(move, 'jit equals eager', f'jit and NumPy leaves differ in {differ}.')
  other = jax.tree.map(
    lambda x: (x * 2).astype(x.dtype), (net.variables, theta)
  )
  traced(copy, network.Network(other[0], net.spec), other[1])
  if len(traces) > 1:
    _fail(
      move,
      'one trace per move and spec',
      f'an equal move on other values was traced again, {len(traces)} times.',
    )
  for path, gradient in _leaves(gradients).items():
    if not np.isfinite(gradient).all():
      _fail(move, 'gradients are finite', f'the one of {path} is not.')


def _check_state(
  move: Any, net: network.Network, moved: network.Network, key: jax.Array
) -> None:
  """Law 7."""
  law = 'the optimizer state is carried'
  optimizer = optax.adam(1e-3)
  rng = base.rng(key)

  def filled(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    drawn = np.abs(rng.normal(size=leaf.shape)) + 0.1
    return np.asarray(drawn * 10, leaf.dtype)

  before, expected = (
    jax.eval_shape(optimizer.init, n.variables.get('params', {}))
    for n in (net, moved)
  )
  state = _host(
    morphisms.carry_state(move, net.spec, jax.tree.map(filled, before))
  )
  if differ := _unlike(state, expected):
    _fail(
      move,
      law,
      f'against a fresh Adam state of the moved network, {differ}; give the '
      'move a method `moments(spec, tree, power)`.',
    )
  inactive, unused = _inactive(moved), _unused(moved)
  for path, leaf in _leaves(state).items():
    second = '/nu/' in f'/{path}/'
    if not np.isfinite(leaf).all() or (second and (leaf < 0).any()):
      _fail(move, law, f'{path} is not finite, or negative: {leaf}.')
    used = not inactive and not unused & set(path.split('/'))
    if second and used and (leaf == 0).any():
      _fail(
        move,
        law,
        f'{path} is zero in places where no old one was: under an old step '
        'count the first Adam steps there are several times too long; fill '
        'new second moments with the mean of the old.',
      )


def _unused(net: network.Network) -> set[str]:
  """Nodes with variables that stand for nothing: absent, or beside an image."""
  spec, absent = net.spec, network.absent(net)
  found = {n for s in spec.optional if s[0] in absent for n in s}
  if any(map(spec.frame, spec.optional)):
    flat = [node.name for node in spec.nodes if node.op.kind == 'flatten']
    found |= {reader for name in flat for reader in spec.consumers[name]}
  return found


def _inactive(net: network.Network) -> dict[str, np.ndarray]:
  """For each padded group, which channels are inactive."""
  active = net.variables.get('arch', {}).get('active', {})
  return {
    g: np.arange(groups.table(net.spec).groups[g].size) >= int(count)
    for g, count in active.items()
  }


def _by_channel(
  spec: specs.Spec, params: dict[str, Any], role: str, mixing: bool
) -> dict[str, np.ndarray]:
  """Parameters that belong to each channel of each group.

  Args:
    spec: the spec.
    params: its parameters.
    role: `'out'` for what makes a channel, `'in'` for what reads it.
    mixing: linear maps' kernels only; else biases, norms and so on too.

  Returns:
    `{group: (channels, parameters)}`.
  """
  table, found = groups.table(spec), {}
  for node in spec.nodes:
    for (collection, name), roles in layers.axes(node.op).items():
      if collection != 'params' or role not in roles:
        continue
      if mixing and not {'in', 'out'} <= set(roles):
        continue
      leaf = np.moveaxis(params[node.name][name], roles.index(role), 0)
      leaf = leaf.reshape((leaf.shape[0], -1))
      axis = table.axes[node.name if role == 'out' else node.inputs[0]]
      stop = 0
      for group, size in axis.repeat * list(zip(axis.groups, axis.sizes)):
        start, stop = stop, stop + size
        found.setdefault(group, []).append(leaf[start:stop])
  return {g: np.concatenate(rows, axis=1) for g, rows in found.items()}


def _twins(net: network.Network) -> Iterator[tuple[str, int, int]]:
  """Channels of a group whose incoming parameters are equal, not zero."""
  params = net.variables.get('params', {})
  kernels = _by_channel(net.spec, params, 'out', mixing=True)
  every = _by_channel(net.spec, params, 'out', mixing=False)
  for group, rows in every.items():
    size = np.abs(kernels.get(group, rows)).max(axis=1, initial=0)
    for i, row in enumerate(rows):
      if size[i] == 0:
        continue
      apart = np.abs(rows[i + 1 :] - row).max(axis=1, initial=0)
      same = np.flatnonzero(apart <= 4 * jnp.finfo(rows.dtype).eps * size[i])
      yield from ((group, i, i + 1 + int(j)) for j in same)


def _saddles(net: network.Network) -> Iterator[tuple[str, int]]:
  """Active channels whose incoming and outgoing kernels are zero."""
  params = net.variables.get('params', {})
  into, out = (
    _by_channel(net.spec, params, role, mixing=True) for role in ('out', 'in')
  )
  inactive = _inactive(net)
  for group in into.keys() & out.keys():
    dead = ~(into[group].any(axis=1) | out[group].any(axis=1))
    dead &= ~inactive.get(group, np.zeros_like(dead))
    yield from ((group, int(channel)) for channel in np.flatnonzero(dead))


def _shut(net: network.Network, inputs: jax.Array) -> Iterator[tuple[str, str]]:
  """Gates at zero that read zeros, from a linear map that is zero."""
  params = net.variables.get('params', {})
  for node in net.spec.nodes:
    if not isinstance(node.op, specs.Gate) or params[node.name]['alpha'] != 0:
      continue
    source = net.spec.by_name[node.inputs[0]]
    while source.op.kind == 'channelwise' and len(source.inputs) == 1:
      source = net.spec.by_name[source.inputs[0]]
    held = jax.tree.leaves(params.get(source.name, {}))
    if held and not any(np.any(leaf) for leaf in held):
      if not np.any(_jitted(_values)(net, inputs)[node.inputs[0]]):
        yield node.name, source.name


_SMOOTH = {'relu': 'elu', 'hard_swish': 'silu'}


def _trainable(spec: specs.Spec) -> specs.Spec:
  """The spec without dropout, and without units that can die."""
  ops = {}
  for node in spec.nodes:
    if isinstance(node.op, specs.Dropout):
      ops[node.name] = specs.Dropout(0.0)
    elif isinstance(node.op, specs.Activation):
      ops[node.name] = specs.Activation(_SMOOTH.get(node.op.fn, node.op.fn))
  return spec.update(ops)


def _step(net: network.Network, x: jax.Array, y: jax.Array) -> Any:
  """One gradient step of 2 % of the parameters' norm, on squared error."""

  def loss(params):
    out, _ = net.spec.module('native').apply(
      {**net.variables, 'params': params},
      x,
      train=True,
      mutable=['batch_stats'],
    )
    return jnp.mean(jnp.square(out - y))

  params = net.variables['params']
  gradients = jax.grad(loss)(params)
  norm = jnp.maximum(optax.tree.norm(gradients), jnp.finfo(x.dtype).tiny)
  rate = 0.02 * optax.tree.norm(params) / norm
  params = jax.tree.map(lambda p, g: p - rate * g, params, gradients)
  return net.replace(variables={**net.variables, 'params': params})


def _check_learning(
  move: Any, moved: network.Network, inputs: Any, key: jax.Array, steps: int
) -> None:
  """Law 8, on a moved network whose old channels all differ."""
  law = 'new units can learn'
  moved = _host(morphisms.extract(moved)(moved, ()))  # The absent need not.
  for gate, source in _shut(moved, inputs):
    _fail(
      move,
      law,
      f'gate {gate!r} is zero and so is all of {source!r} behind it: no '
      'gradient reaches either; let exactly one of them be zero.',
    )
  twins, saddles = list(_twins(moved)), list(_saddles(moved))
  if not twins and not saddles:
    return
  rng = base.rng(jax.random.fold_in(key, 4))
  outputs = (len(inputs), *moved.spec.shapes[moved.spec.output])
  targets = rng.normal(size=outputs).astype(inputs.dtype)
  trained = moved.replace(spec=_trainable(moved.spec))
  for _ in range(steps):
    trained = _jitted(_step)(trained, inputs, targets)
  trained = _host(trained.replace(spec=moved.spec))
  for path, leaf in _leaves(trained.variables).items():
    if not np.isfinite(leaf).all():
      _fail(move, law, f'{path} is not finite after {steps} gradient steps.')
  stuck = set(saddles) & set(_saddles(trained))
  for group, channel in sorted(stuck):
    _fail(
      move,
      law,
      f'channel {channel} of group {group!r} has incoming and outgoing weights '
      f'of zero, and no gradient moved them in {steps} steps: let only one '
      'side be zero.',
    )
  for group, i, j in _together(moved, trained, twins):
    writers = groups.table(moved.spec).groups[group].writers
    names = ', '.join(repr(name) for name in writers)
    _fail(
      move,
      law,
      f'channels {i} and {j} of group {group!r} (written by {names}) are twins '
      f'that stay equal after {steps} gradient steps: share the outgoing '
      'weight unequally or add noise.',
    )


def _together(
  before: network.Network,
  after: network.Network,
  twins: Sequence[tuple[str, int, int]],
) -> Iterator[tuple[str, int, int]]:
  """The twins that moved, but not apart.

  Rounding alone separates twins a little, in float32 by a visible part of the
  way if that is short. So both are measured against the way.
  """
  old, new = (
    _by_channel(n.spec, n.variables['params'], 'out', mixing=False)
    for n in (before, after)
  )
  for group, i, j in twins:
    wide = new[group].dtype.itemsize == 8
    enough, little = (1e-9, 1e-6) if wide else (1e-3, 1e-3)
    way = np.linalg.norm(new[group][i] - old[group][i])
    apart = np.linalg.norm(new[group][i] - new[group][j])
    if way > enough * np.linalg.norm(old[group][i]) and apart <= little * way:
      yield group, i, j


def _same(a: Any, b: Any) -> bool:
  """Whether two leaves are equal, bit for bit; two NaN are."""
  if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
    a, b = jax.random.key_data(a), jax.random.key_data(b)
  numbers = (np.ndarray, np.generic, jax.Array, int, float)
  if isinstance(a, numbers) and isinstance(b, numbers):
    a, b = np.asarray(a), np.asarray(b)
    nan = a.dtype.kind in 'fc' and b.dtype.kind in 'fc'
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=nan)
  return type(a) is type(b) and bool(a == b)


def _unequal(got: Any, expected: Any) -> str:
  """Where two trees of anything differ, bit for bit; `''` if nowhere."""
  if any(
    isinstance(leaf, jax.Array) and leaf.is_deleted()
    for leaf in jax.tree.leaves((got, expected))
  ):
    return 'arrays were donated and are gone'
  shape = jax.tree.structure(got), jax.tree.structure(expected)
  if shape[0] != shape[1]:
    return f'the structure is {shape[0]}, expected {shape[1]}'
  others = _leaves(expected)
  found = [k for k, v in _leaves(got).items() if not _same(v, others[k])]
  return ', '.join(found[:4])


def _snapshot(tree: Any) -> Any:
  """A copy that shares no array with the tree."""

  def copied(leaf: Any) -> Any:
    return leaf.copy() if isinstance(leaf, np.ndarray | jax.Array) else leaf

  return jax.tree.map(copied, tree)


def _accountable(population: base.Population) -> base.Population:
  """The population without what two equal runs need not share."""
  spent = population.spent
  counted = base.Cost(spent.examples, spent.evaluations)
  return population._replace(spent=counted)


def check_stage(
  stage: base.Stage,
  population: base.Population,
  key: jax.Array,
) -> base.Population:
  """Holds a stage to the laws of stages, on one population.

  The same key and population give the same result, bit for bit, but for
  compilations and seconds; the arguments stay as they are; nothing spent is
  taken back; an empty population stays empty.

  Args:
    stage: the stage.
    population: what it works on.
    key: what it draws from.

  Returns:
    The population that comes out, for checks of your own.

  Raises:
    AssertionError: naming the stage, the law and what differs.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> def update(key, population, state):
    ...   members = population.members[:1]
    ...   return population._replace(members=members), state
    >>> stage = base.Stage(lambda population: (), update, 'first')
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> population = base.Population((base.Candidate(net),) * 2)
    >>> len(check_stage(stage, population, jax.random.key(1)).members)
    1
  """
  name = f'stage {stage.name!r}'
  kept = _snapshot(population)
  state = stage.init(population)
  state_kept = _snapshot(state)
  after, state_after = stage.update(key, population, state)
  for what, now, then in (
    ('population', population, kept),
    ('state', state, state_kept),
  ):
    if differ := _unequal(now, then):
      _fail(name, 'arguments stay as they are', f'its {what}: {differ}.')
  again, state_again = stage.update(key, kept, state_kept)
  for what, now, then in (
    ('population', _accountable(again), _accountable(after)),
    ('state', state_again, state_after),
  ):
    if differ := _unequal(now, then):
      _fail(name, 'same in, same out', f'in the {what}: {differ}.')
  for field, amount in population.spent._asdict().items():
    if getattr(after.spent, field) < amount:
      _fail(
        name,
        'spent never decreases',
        f'{field} fell from {amount} to {getattr(after.spent, field)}.',
      )
  empty = population._replace(members=())
  nothing, _ = stage.update(key, empty, stage.init(empty))
  if len(nothing.members):
    _fail(name, 'empty in, empty out', f'got {len(nothing.members)} members.')
  return after


def check_rule(
  rule: Callable[[jax.Array, np.ndarray], Any],
  key: jax.Array,
  *,
  size: int = 8,
  trials: int = 256,
  objectives: int | None = None,
) -> None:
  """Holds a selection rule `(key, scores) -> indices` to its laws.

  Indices are integers in range and a function of the key and the scores; a
  strictly better (larger) score never hurts: over the trials it costs a
  member its place no more often than it wins it one (by four standard
  deviations, so that rules may draw); a NaN is never chosen where there are
  as many numbers as are chosen. Of several objectives, better is better in
  all, and a NaN in one is a NaN.

  Args:
    rule: the rule.
    key: what trials draw from.
    size: how many scores there are to choose from.
    trials: how many draws of scores and keys.
    objectives: None for scores of shape (size,), else (size, objectives).

  Raises:
    AssertionError: naming the rule, the law and a counterexample.

  Example:
    >>> import jax, numpy as np
    >>> def best(key, scores):
    ...   return np.argsort(-scores)[:3]
    >>> check_rule(best, jax.random.key(0))
    >>> from jaxnas import selection
    >>> check_rule(selection.nsga2(3), jax.random.key(0), objectives=2)
  """
  rng, lost, gained = base.rng(key), 0, 0
  shape = (size,) if objectives is None else (size, objectives)
  for trial in range(trials):
    draw = jax.random.fold_in(key, trial)
    scores = rng.normal(size=shape)
    chosen = _chosen(rule, draw, scores)
    if not np.array_equal(chosen, _chosen(rule, draw, scores)):
      _fail(rule, 'same in, same out', f'{scores} gave two results.')
    member = int(rng.integers(size))
    better = scores.copy()
    better[member] += 1
    was, will = (member in c for c in (chosen, _chosen(rule, draw, better)))
    lost, gained = lost + (was and not will), gained + (will and not was)
    holes = _holed(rng, scores)
    taken = set(_chosen(rule, draw, holes).tolist())
    whole = np.isfinite(holes).reshape((size, -1)).all(axis=1)
    numbers = set(np.flatnonzero(whole).tolist())
    if len(taken) <= len(numbers) and not taken <= numbers:
      _fail(rule, 'NaN never wins', f'of {holes} it chose {sorted(taken)}.')
  if lost - gained > 4 * np.sqrt(lost + gained):
    _fail(
      rule,
      'a better score never hurts',
      f'raising one score cost its member the place in {lost} of {trials} '
      f'trials and won it in {gained}.',
    )


def _holed(rng: np.random.Generator, scores: np.ndarray) -> np.ndarray:
  """The scores with a NaN for some members, in one of their objectives."""
  holes = rng.random(len(scores)) < 0.4
  if scores.ndim == 1:
    return np.where(holes, np.nan, scores)
  where = rng.integers(scores.shape[1], size=len(scores))
  found = scores.copy()
  found[holes, where[holes]] = np.nan
  return found


def _chosen(rule: Any, key: jax.Array, scores: np.ndarray) -> np.ndarray:
  """What a rule chooses; in range, with the scores left as they were."""
  given = scores.copy()
  chosen = np.asarray(rule(key, given))
  if not np.array_equal(given, scores, equal_nan=True):
    _fail(rule, 'arguments stay as they are', 'it changed the scores.')
  if chosen.ndim != 1 or not np.issubdtype(chosen.dtype, np.integer):
    _fail(
      rule,
      'indices',
      f'it must return a vector of integers, got {chosen!r} of {chosen.dtype}.',
    )
  if ((chosen < 0) | (chosen >= len(scores))).any():
    _fail(rule, 'indices', f'{chosen} are not all in [0, {len(scores)}).')
  return chosen


def check_space(
  space: base.Space,
  key: jax.Array,
  *,
  samples: int = 4,
  steps: int = 2,
) -> None:
  """Holds a space to its laws, on random walks from sampled specs.

  `sample` is a function of the key, and not a constant; all specs of
  one space read the same input and give the same output; specs and moves
  round-trip through JSON; each move offered is legal under `jax.eval_shape`,
  changes the spec, and is offered for an equal spec again; and where a move
  leads, the same holds.

  Args:
    space: the space.
    key: what is sampled, and which way walks go.
    samples: how many walks.
    steps: moves in a walk.

  Raises:
    AssertionError: naming the law, the move and the spec.

  Example:
    >>> import jax
    >>> from jaxnas import spaces
    >>> space = spaces.chain((8, 8, 1), 10, stages=1, depth=(1, 2))
    >>> check_space(space, jax.random.key(0), samples=2, steps=1)
  """
  first = space.sample(key)
  if space.sample(key) != first:
    _fail('space', 'sample', 'one key gave two specs.')
  drawn = [space.sample(jax.random.fold_in(key, i)) for i in range(16)]
  if all(spec == first for spec in drawn):
    _fail('space', 'sample', 'all keys give one spec.')
  ends = _ends(first)
  for i, spec in enumerate(drawn[:samples]):
    for step in range(steps + 1):
      _check_spec(spec, ends)
      following = _check_moves(space, spec)
      if step == steps or not following:
        break
      rng = base.rng(jax.random.fold_in(jax.random.fold_in(key, i), step))
      spec = following[rng.integers(len(following))]


def check_array_space(
  space: base.ArraySpace, key: jax.Array, *, samples: int = 50
) -> None:
  """Holds a space of arrays to its laws.

  `sample` is a function of the key, and not a constant; samples, edits and
  children are (L,) int32 within the options, and networks of the space if it
  numbers them; `neighbours` are different genotypes, all unlike the one they
  are of, and legal where, and only where, they have an index; an edit is one of
  the legal ones; `encode` gives finite numbers. All of it under `jit` and
  `vmap`.

  Args:
    space: the space.
    key: what is sampled.
    samples: how many genotypes.

  Raises:
    AssertionError: naming the law and a genotype that breaks it.

  Example:
    >>> from jaxnas import spaces
    >>> check_array_space(spaces.tabular.transnas_micro(), jax.random.key(0))
  """

  @jax.jit
  @jax.vmap
  def drawn(key):
    keys = jax.random.split(key, 4)
    one, two = space.sample(keys[0]), space.sample(keys[1])
    made = {
      'sample': one,
      'mutate': space.mutate(keys[2], one),
      'crossover': space.crossover(keys[3], one, two),
    }
    near, legal = space.neighbours(one)
    index = {name: space.index(genotype) for name, genotype in made.items()}
    return (
      made,
      index,
      near,
      legal,
      jax.vmap(space.index)(near),
      one,
      (space.encode(one)),
    )

  keys = jax.random.split(key, samples)
  found = jax.tree.map(np.asarray, drawn(keys))
  made, index, near, legal, near_index, one, code = found
  again = np.asarray(
    jax.vmap(lambda k: space.sample(jax.random.split(k, 4)[0]))(keys)
  )
  if not np.array_equal(again, one):
    _fail('array space', 'sample', 'one key gave two genotypes.')
  if samples > 1 and (one == one[0]).all():
    _fail('array space', 'sample', 'all keys give one genotype.')
  length, options = len(space.options), np.array(space.options)
  for name in ('sample', 'mutate', 'crossover'):
    genotypes = made[name]
    if genotypes.shape != (samples, length) or genotypes.dtype != np.int32:
      _fail(
        'array space',
        name,
        f'gave {genotypes.dtype}{genotypes.shape[1:]}, not int32({length},).',
      )
    outside = ((genotypes < 0) | (genotypes >= options)).any(axis=1)
    if space.size:
      outside |= (index[name] < 0) | (index[name] >= space.size)
    if outside.any():
      bad = genotypes[outside][0].tolist()
      _fail('array space', name, f'gave {bad}, which is not of the space.')
  for row, own, allowed, of_near, edited in zip(
    one, near, legal, near_index, made['mutate'], strict=True
  ):
    several = {tuple(other) for other in own.tolist()}
    if len(several) < len(own) or tuple(row.tolist()) in several:
      _fail(
        'array space', 'neighbours', f'of {row.tolist()} are not all different.'
      )
    if space.size and not np.array_equal(allowed, of_near >= 0):
      _fail(
        'array space',
        'neighbours',
        f'of {row.tolist()}: legal is not what has an index.',
      )
    if tuple(edited.tolist()) not in {tuple(g) for g in own[allowed].tolist()}:
      _fail(
        'array space',
        'mutate',
        f'made {edited.tolist()} of {row.tolist()}, which is no neighbour.',
      )
  if code.ndim != 2 or not np.isfinite(code).all():
    _fail('array space', 'encode', 'gave no vector of finite numbers.')


def _ends(spec: specs.Spec) -> tuple[specs.Shape, specs.Shape]:
  return spec.shapes[spec.input], spec.shapes[spec.output]


def _check_spec(spec: specs.Spec, ends: Any) -> None:
  if specs.from_json(specs.to_json(spec)) != spec:
    _fail('space', 'specs round-trip through JSON', f'{spec} does not.')
  if _ends(spec) != ends:
    _fail(
      'space',
      'one input and one output',
      f'{spec} maps {_ends(spec)}, another spec maps {ends}.',
    )


def _check_moves(space: base.Space, spec: specs.Spec) -> list[specs.Spec]:
  """Holds the moves offered to their laws; returns where they lead."""
  found, moves = [], list(space.moves(spec))
  copy = specs.from_json(specs.to_json(spec))
  if list(space.moves(copy)) != moves:
    _fail('space', 'moves', f'an equal spec is offered others: {spec}.')
  for move in moves:
    _check_value(move)
    try:
      found.append(morphisms.respec(move, spec))
    except ValueError as error:
      raise AssertionError(
        f'space: each move offered is legal: {move} is not: {error} The spec '
        f'is {spec}.'
      ) from error
    if found[-1] == spec:
      _fail('space', 'moves', f'{move} changes nothing of {spec}.')
  return found


def check_estimator(
  estimator: base.Estimator,
  key: jax.Array,
  net: network.Network,
  moves: Sequence[morphisms.Morphism],
  data: Any,
  *,
  thetas: Sequence[Any] | None = None,
  rtol: float = 1e-5,
) -> base.Scores:
  """Holds an estimator to its laws, on one network and its moves.

  Scores are finite, of the shapes that `jaxnas.base.Scores` promises, a
  function of the arguments, and do not depend on the order of the moves;
  what `fit` learns is finite, of the shapes of the given parameters, a function
  of the arguments, and not for nothing; the network stays as it is.

  Args:
    estimator: the estimator; its `fit` may be None, and is then not held.
    key: what it draws from.
    net: the network.
    moves: C legal moves, at least two for the order to matter.
    data: what `estimator.score` reads.
    thetas: their parameters; None for `move.init` of each.
    rtol: difference allowed between orders, relative to the largest score.

  Returns:
    The scores.

  Raises:
    AssertionError: naming the law and what differs.

  Example:
    >>> import jax, numpy as np
    >>> from jaxnas.spaces import seeds
    >>> def score(key, net, moves, thetas, data, state):
    ...   cost = np.array([float(move.preserves) for move in moves])
    ...   return base.Scores(cost, np.ones((4, len(moves))), cost, 4)
    >>> estimator = base.Estimator(lambda net: (), score, None)
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> moves = morphisms.widen({'dense1': 9}), morphisms.prune({'dense1': [0]})
    >>> scores = check_estimator(estimator, jax.random.key(0), net, moves, None)
    >>> scores.linear
    array([1., 0.])
  """
  name = 'estimator'
  if thetas is None:
    thetas = [move.init(net, key) for move in moves]
  kept = _snapshot(net)

  def score(order: Sequence[int]) -> base.Scores:
    return estimator.score(
      key,
      net,
      [moves[i] for i in order],
      [thetas[i] for i in order],
      data,
      estimator.init(net),
    )

  forward = list(range(len(moves)))
  scores = score(forward)
  rows = np.shape(scores.coefficients)[0]
  expected = {'linear': (len(moves),), 'error': (len(moves),)}
  expected['coefficients'] = (rows, len(moves))
  shapes = {field: np.shape(getattr(scores, field)) for field in expected}
  if differ := _differences(shapes, expected):
    _fail(name, 'shapes', f'{differ}.')
  alone = rows == 1 and not np.any(scores.coefficients)
  if scores.examples < 0 or not (
    alone or (scores.examples and rows % scores.examples == 0)
  ):
    _fail(
      name,
      'shapes',
      f'{rows} rows of coefficients are no multiple of {scores.examples} '
      'examples; an estimator without curvature returns one row of zeros.',
    )
  for field in expected:
    if not np.isfinite(getattr(scores, field)).all():
      _fail(name, 'scores are finite', f'{field} is not.')
  if differ := _unequal(score(forward), scores):
    _fail(name, 'same in, same out', f'in {differ}.')
  if differ := _unequal(net, kept):
    _fail(name, 'arguments stay as they are', f'the network: {differ}.')
  back = score(forward[::-1])
  flipped = {field: getattr(scores, field)[..., ::-1] for field in expected}
  turned = {field: getattr(back, field) for field in expected}
  if differ := _far(turned, flipped, rtol):
    _fail(name, 'the order of the moves does not matter', f'in {differ}.')
  if estimator.fit is not None:
    _check_fit(estimator, key, net, moves, thetas, data)
  return scores


def _check_fit(
  estimator: base.Estimator,
  key: jax.Array,
  net: network.Network,
  moves: Sequence[morphisms.Morphism],
  thetas: Sequence[Any],
  data: Any,
) -> None:
  """The laws of what an estimator learns."""
  kept = _snapshot((net, thetas))

  def fit() -> base.Learned:
    state = estimator.init(net)
    return estimator.fit(key, net, moves, thetas, data, state)

  learned = fit()
  for move, old, new in zip(moves, thetas, learned.thetas, strict=True):
    name = f'estimator: fit: {move}'
    got, given = (
      {path: np.shape(leaf) for path, leaf in _leaves(theta).items()}
      for theta in (new, old)
    )
    if differ := _differences(got, given):
      _fail(name, 'learned parameters are of the given shapes', f'{differ}.')
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(new)):
      _fail(name, 'learned parameters are finite', f'{new}.')
  if differ := _unequal(fit(), learned):
    _fail('estimator: fit', 'same in, same out', f'in {differ}.')
  if differ := _unequal((net, thetas), kept):
    _fail('estimator: fit', 'arguments stay as they are', f'{differ}.')
  changed = any(
    old is not None and _unequal(new, old)
    for old, new in zip(thetas, learned.thetas, strict=True)
  )
  if changed and learned.examples < 1:
    _fail('estimator: fit', 'learning costs', 'it reports no examples.')


# Bytes of constants that a learner's program may have beside its data.
_CAPTURED = 1 << 12


def check_learner(
  learner: base.Learner,
  *,
  hyper: Any = None,
  key: jax.Array | None = None,
) -> None:
  """Holds a learner of array populations to its laws.

  Its layers are those of `genes.owner`, stacked where that says so, with a
  state of the optimizer each; a body has the same shapes for every genotype,
  before and after training; all is a function of the key; `measure` and `test`
  give a scalar `fitness` that is a number; and what it reads comes through
  `data`, not as constants of its programs.

  Args:
    learner: as short a round as possible, since it is run.
    hyper: values of the hyper-parameters it reads, by name.
    key: for all draws.

  Raises:
    AssertionError: saying which law is broken and how.

  Example:
    >>> from jaxnas import learners
    >>> make = learners.teacher
    >>> check_learner(make(jax.random.key(0), slots=3, steps=2, points=(8, 8)))
  """
  key = jax.random.key(0) if key is None else key
  options = np.asarray(learner.genes.options, int)
  hyper = {k: jnp.asarray(v) for k, v in (hyper or {}).items()}
  genotypes = [jnp.zeros(len(options), jnp.int32), jnp.asarray(options - 1)]
  genotypes = [own.astype(jnp.int32) for own in genotypes]

  bodies = [learner.init(key, own, hyper, learner.data) for own in genotypes]
  text = _differences(*(_layout(body) for body in bodies))
  if text:
    _fail('learner', 'init', f'bodies differ with the genotype: {text}')
  body, member = bodies[0], base.Member(bodies[0], genotypes[0], hyper)
  _check_body(learner, body)
  again = learner.init(key, genotypes[0], hyper, learner.data)
  if not _same_trees(body, again):
    _fail('learner', 'init', 'the same key gives another body.')

  for name in ('train', 'measure', 'test'):
    call = getattr(learner, name)
    closed = jax.make_jaxpr(call)(key, member, learner.data)
    large = [np.shape(x) for x in closed.consts if _bytes(x) > _CAPTURED]
    if large:
      _fail(
        'learner',
        name,
        f'it captures arrays of shapes {large}, which become constants of its '
        'program; put them into data.',
      )
    program = jax.jit(call)
    found = [program(key, member, learner.data) for _ in range(2)]
    if not _same_trees(*found):
      _fail('learner', name, 'the same key gives another result.')
    if name == 'train':
      text = _differences(_layout(found[0]), _layout(body))
      if text:
        _fail('learner', name, f'the body has changed its layout: {text}')
      continue
    fitness = found[0].get('fitness')
    if fitness is None or np.shape(fitness) or not np.isfinite(fitness):
      _fail('learner', name, f'fitness must be a number, got {fitness!r}.')


def _same_trees(one: Any, other: Any) -> bool:
  """Whether two pytrees are equal, bit for bit."""
  alike = jax.tree.structure(one) == jax.tree.structure(other)
  return alike and all(map(_same, *map(jax.tree.leaves, (one, other))))


def _bytes(x: Any) -> int:
  return int(np.size(x)) * getattr(getattr(x, 'dtype', None), 'itemsize', 8)


def _check_body(learner: base.Learner, body: base.Body) -> None:
  """Layers, moments and averages are by the layers of the genotype."""
  owner = learner.genes.owner
  if set(body.layers) != set(owner):
    _fail(
      'learner',
      'layers',
      f'the body has {sorted(body.layers)}, genes.owner {sorted(owner)}.',
    )
  if set(body.moments) - set(owner) or set(body.average) - set(owner):
    _fail('learner', 'layers', 'moments or average has what is no layer.')
  for name, layer in body.layers.items():
    numbers = np.asarray(owner[name])
    if numbers.size and numbers.max() >= len(learner.genes.options):
      _fail('learner', 'genes', f'{name} is owned by a gene that is not there.')
    for leaf in jax.tree.leaves(layer):
      if numbers.shape != np.shape(leaf)[: numbers.ndim]:
        _fail(
          learner,
          'layers',
          f'{name} has {numbers.size} slots by genes.owner, and an array of '
          f'shape {np.shape(leaf)}.',
        )


def check_child(
  child: Callable[..., base.Member],
  learner: base.Learner,
  *,
  hyper: Any = None,
  key: jax.Array | None = None,
) -> None:
  """Holds a function that makes children to its laws (`jaxnas.mixing`).

  A child has the layout of its parents; genes within their options; all that
  is no layer from the base; the same result for the same key, and another for
  another if it draws anything; and it runs under `jit`.

  Args:
    child: `child(key, base, donor, init) -> member`.
    learner: whose members it makes.
    hyper: hyper-parameters of the parents.
    key: for all draws.

  Raises:
    AssertionError: saying which law is broken and how.

  Example:
    >>> from jaxnas import learners, mixing
    >>> learner = learners.teacher(jax.random.key(0), slots=3, steps=2)
    >>> check_child(mixing.mix(learner.genes), learner)
  """
  key = jax.random.key(0) if key is None else key
  options = np.asarray(learner.genes.options, int)
  hyper = {k: jnp.asarray(v) for k, v in (hyper or {}).items()}

  def init(key, genes, hyper):
    return learner.init(key, genes, hyper, learner.data)

  def parent(number):
    own = jax.random.fold_in(key, number)
    genes = jax.random.randint(own, options.shape, 0, options)
    member = base.Member(init(own, genes, hyper), genes, hyper)
    return member._replace(
      body=member.body._replace(rest=(member.body.rest, jnp.float32(number)))
    )

  def fresh(key, genes, hyper):
    body = init(key, genes, hyper)
    return body._replace(rest=(body.rest, jnp.float32(-1)))

  first, second = parent(1), parent(2)
  make = jax.jit(lambda key, one, two: child(key, one, two, fresh))
  found = make(key, first, second)
  text = _differences(_layout(found), _layout(first))
  if text:
    _fail(child, 'layout', f'a child is unlike its parents: {text}')
  genes = np.asarray(found.genes)
  if ((genes < 0) | (genes >= options)).any():
    _fail(
      child, 'genes', f'{genes.tolist()} are not within {options.tolist()}.'
    )
  if not _same_trees(found.body.rest, first.body.rest):
    _fail(child, 'rest', "what is no layer is not the base's.")
  if not _same_trees(found, make(key, first, second)):
    _fail(child, 'key', 'the same key gives another child.')


def check_trainer(
  trainer: base.Trainer, genotypes: Any, key: jax.Array | None = None
) -> None:
  """Holds a trainer of genotypes to its laws.

  What becomes of a network is a function of its key, genotype and state, and of
  nobody beside it; states have one structure and stay as they are; a network
  that goes on is not begun anew; and the heir of another one can be trained.

  Args:
    trainer: with rungs as short as possible, since it is run four times.
    genotypes: (K, L) of at least two networks.
    key: for all draws.

  Raises:
    AssertionError: saying which law is broken and how.

  Example:
    >>> def train(keys, genotypes, states):
    ...   taught = [0.0 if s is None else s for s in states]
    ...   return [base.Taught(s + 1.0, float(g.sum()), 10)
    ...           for s, g in zip(taught, genotypes)]
    >>> check_trainer(base.Trainer(train, lambda s, mother, child: s),
    ...               np.eye(3, dtype=int))
  """
  key = jax.random.key(0) if key is None else key
  genotypes = np.asarray(genotypes)
  count = len(genotypes)
  keys = list(jax.random.split(key, count))
  first = trainer.train(keys, genotypes, [None] * count)
  if len(first) != count:
    _fail('trainer', 'train', f'{count} genotypes give {len(first)} networks.')
  for each in first:
    if not isinstance(each.fitness, float) or each.examples < 1:
      _fail(
        'trainer',
        'train',
        'fitness must be a float and examples at least 1, got '
        f'{each.fitness!r} and {each.examples!r}.',
      )
  (alone,) = trainer.train(keys[-1:], genotypes[-1:], [None])
  if not _same_taught(alone, first[-1]):
    _fail(
      'trainer',
      'train',
      'a network trained alone is another than beside others, or the same key '
      'gives another.',
    )
  before = jax.tree.map(np.copy, first[0].state)
  heir = trainer.heir(first[0].state, genotypes[0], genotypes[1])
  more = trainer.train(keys[:2], genotypes[[0, 1]], [first[0].state, heir])
  if not _same_trees(before, first[0].state):
    _fail('trainer', 'train', 'the state that a network goes on from changed.')
  text = _differences(_layout(first[0].state), _layout(more[0].state))
  if text:
    _fail('trainer', 'train', f'a rung changes the state: {text}')
  if _same_trees(more[0].state, first[0].state):
    _fail('trainer', 'train', 'a network that goes on is begun anew.')


def _same_taught(one: base.Taught, two: base.Taught) -> bool:
  same = (
    one.fitness == two.fitness or np.isnan([one.fitness, two.fitness]).all()
  )
  return bool(same) and _same_trees(one.state, two.state)


def _code(key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(24, 12) one-hot codes of four positions, and what they are worth."""
  of_cells, of_worth = jax.random.split(key)
  cells = jax.random.randint(of_cells, (24, 4), 0, 3)
  x = jax.nn.one_hot(cells, 3).reshape(24, 12)
  y = x @ jax.random.normal(of_worth, (12,))
  return x, (y - y.mean()) / y.std()


def _alike(said: Any, wanted: Any) -> bool:
  with np.errstate(invalid='ignore'):  # Of what says the same of all.
    return np.corrcoef(np.ravel(said), np.ravel(wanted))[0, 1] > 0.8


def check_predictor(model: Any, key: jax.Array | None = None) -> None:
  """Holds a predictor to its laws.

  Under `vmap`, as searches run it: rows that do not count may hold NaN and
  change nothing; predictions are numbers, with deviations that are not
  negative; the same key gives the same; and what adds up over positions is
  learned.

  Args:
    model: a `jaxnas.estimators.predictors.Predictor`.
    key: for all draws.

  Raises:
    AssertionError: saying which law is broken and how.

  Example:
    >>> from jaxnas import estimators
    >>> check_predictor(estimators.ridge())
  """
  key = jax.random.key(0) if key is None else key
  x, y = _code(key)
  some, every = jnp.arange(24) < 18, jnp.ones(24, bool)
  told = jnp.stack([y, jnp.where(some, y, jnp.nan), y, y])

  @jax.jit
  @jax.vmap
  def said(y, use):
    params = model.fit(key, model.init(key, x.shape[1]), x, y, use)
    return model.predict(params, x)

  found = said(told, jnp.stack([some, some, every, every]))
  mean, deviation = np.asarray(found.mean), np.asarray(found.deviation)
  if not np.isfinite(mean).all() or not (deviation >= 0).all():
    _fail(
      'predictor', 'predict', 'means must be finite and deviations at least 0.'
    )
  if not np.array_equal(mean[0], mean[1]):
    _fail(
      'predictor', 'fit', 'rows that do not count change what is predicted.'
    )
  if not np.array_equal(mean[2], mean[3]):
    _fail('predictor', 'fit', 'the same key and rows give another fit.')
  if not _alike(mean[2], y):
    _fail('predictor', 'fit', 'what adds up over positions is not learned.')


def check_difference(model: Any, key: jax.Array | None = None) -> None:
  """Holds a regression of differences to its laws.

  It is odd to the last bit, so that an edit and its reverse cancel; pairs
  without weight change nothing, also where targets are NaN; and differences of
  what adds up over positions are learned.

  Args:
    model: a `jaxnas.estimators.differences.Difference`.
    key: for all draws.

  Raises:
    AssertionError: saying which law is broken and how.

  Example:
    >>> from jaxnas import estimators
    >>> check_difference(estimators.ridge_difference())
  """
  key = jax.random.key(0) if key is None else key
  x, y = _code(key)
  some = jnp.arange(24) < 18
  held = (some[:, None] & some[None]).astype(jnp.float32) * (1 - jnp.eye(24))

  @jax.jit
  @jax.vmap
  def said(y, pairs):
    params = model.fit(key, model.init(key, x.shape[1]), x, y, pairs)
    return model.predict(params, x, x)

  told = jnp.stack([y, jnp.where(some, y, jnp.nan), y])
  every = jnp.ones((24, 24)) - jnp.eye(24)
  found = np.asarray(said(told, jnp.stack([held, held, every])))
  if not np.array_equal(found, -found.swapaxes(1, 2)):
    _fail('difference', 'predict', 'it is not odd: f(a, b) != -f(b, a).')
  if not np.array_equal(found[0], found[1]):
    _fail('difference', 'fit', 'rows of no pair change what is predicted.')
  wanted = np.asarray(y)[None] - np.asarray(y)[:, None]
  if not _alike(found[2], wanted):
    _fail('difference', 'fit', 'what adds up over positions is not learned.')
