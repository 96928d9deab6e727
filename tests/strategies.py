"""Hypothesis strategies: specs of all operations, networks, legal moves.

Widths and images are small, and what is awkward is drawn often: odd and even
extents under every stride, adds across a concat, a node concatenated with
itself, norms of each kind on anything.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from hypothesis import strategies as st

from jaxnas import groups, morphisms, network, testing
from jaxnas import spec as specs
from jaxnas.morphisms import depth

_WINDOWS = st.tuples(st.integers(1, 3), st.integers(1, 3))
_WIDTHS = st.integers(1, 6)
_NARROW = st.integers(1, 3)


class _Draft:
  """A spec in the making: nodes, and how to add one with a fresh name."""

  def __init__(self, draw: Any, dims: specs.Shape):
    self.draw = draw
    self.nodes = [specs.Node('x', specs.Input(dims))]
    self.shapes = {'x': dims}

  def add(self, op: Any, *inputs: str) -> str:
    name = f'{type(op).__name__.lower()}{len(self.nodes)}'
    self.shapes[name] = op.shape(*(self.shapes[i] for i in inputs))
    self.nodes.append(specs.Node(name, op, inputs))
    return name


def _mixing(draft: _Draft, x: str, width: int | None = None) -> str:
  """A dense layer or a convolution, of the same extents if `width` is given."""
  draw, shape = draft.draw, draft.shapes[x]
  features = draw(_WIDTHS) if width is None else width
  bias = draw(st.booleans())
  if len(shape) == 1 or draw(st.integers(0, 7)) == 0:
    return draft.add(specs.Dense(features, bias), x)
  window, strides, padding = _window(draft, x, still=width is not None)
  return draft.add(specs.Conv(features, window, strides, bias, padding), x)


def _window(draft: _Draft, x: str, still: bool = False):
  """A window, strides and padding that fit; `still` keeps the extents."""
  draw, (rows, columns, _) = draft.draw, draft.shapes[x]
  window = draw(_WINDOWS)
  if still:
    return window, (1, 1), 'SAME'
  strides = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 3), (2, 1)]))
  fits = window[0] <= rows and window[1] <= columns
  padding = draw(st.sampled_from(['SAME', 'SAME', 'VALID'])) if fits else 'SAME'
  return window, strides, padding


def _channelwise(draft: _Draft, x: str) -> str:
  """One operation that keeps the channels."""
  draw = draft.draw
  kinds = ['act', 'act', 'act', 'bn', 'bn', 'ln', 'dropout', 'gate']
  if len(draft.shapes[x]) == 3:
    kinds += ['depthwise', 'depthwise', 'pool']
  kind = draw(st.sampled_from(kinds))
  if kind == 'act':
    fn = draw(st.sampled_from(('relu', 'relu', *specs.ACTIVATIONS)))
    return draft.add(specs.Activation(fn), x)
  if kind == 'depthwise':
    window, strides, padding = _window(draft, x)
    bias = draw(st.booleans())
    return draft.add(specs.DepthwiseConv(window, strides, bias, padding), x)
  if kind == 'pool':
    window, strides, padding = _window(draft, x)
    reduce = draw(st.sampled_from(['max', 'mean']))
    return draft.add(specs.Pool(reduce, window, strides, padding), x)
  ops = {
    'bn': specs.BatchNorm(),
    'ln': specs.LayerNorm(),
    'dropout': specs.Dropout(0.5),
    'gate': specs.Gate(),
  }
  return draft.add(ops[kind], x)


def _branch(draft: _Draft, x: str, width: int) -> str:
  """A linear map of the same extents, and perhaps one operation on it."""
  y = _mixing(draft, x, width)
  extras = (specs.BatchNorm(), specs.Activation('relu'), specs.Gate())
  op = draft.draw(st.sampled_from((None, None, *extras)))
  return y if op is None else draft.add(op, y)


def _joined(draft: _Draft, x: str) -> str:
  """An add or a concat; an add across a concat cuts groups into slices."""
  draw, width = draft.draw, draft.shapes[x][-1]
  kinds = ['residual', 'residual', 'concat', 'across', 'across', 'twice']
  kind = draw(st.sampled_from(kinds))
  if kind == 'residual':
    return draft.add(specs.Add(), x, _branch(draft, x, width))
  if kind == 'twice':
    join = draw(st.sampled_from([specs.Concat(), specs.Add()]))
    return draft.add(join, x, x)
  y = draft.add(specs.Concat(), x, _branch(draft, x, draw(_NARROW)))
  if kind == 'across':
    return draft.add(specs.Add(), y, _branch(draft, x, draft.shapes[y][-1]))
  return y


def _vector(draft: _Draft, x: str) -> str:
  if len(draft.shapes[x]) == 1:
    return x
  op = draft.draw(st.sampled_from([specs.Flatten(), specs.GlobalPool()]))
  if isinstance(op, specs.Flatten) and np.prod(draft.shapes[x]) > 100:
    op = specs.GlobalPool()
  return draft.add(op, x)


@st.composite
def specs_of_all_ops(
  draw: Callable[..., Any], blocks: int = 3, images: bool | None = None
) -> specs.Spec:
  """Specs with a hidden layer or more, over all operations.

  Args:
    draw: given by hypothesis.
    blocks: the most linear layers with company, not counting the last.
    images: whether the input is an image; None for either.
  """
  if draw(st.integers(0, 3)) > 0 if images is None else images:
    extents = st.integers(4, 9)
    dims = (draw(extents), draw(extents), draw(_NARROW))
  else:
    dims = (draw(st.integers(1, 5)),)
  draft = _Draft(draw, dims)
  x = 'x'
  if draw(st.integers(0, 4)) == 0:  # Ties what follows to the input.
    x = draw(st.sampled_from([_joined, _channelwise]))(draft, x)
  for _ in range(draw(st.integers(1, blocks))):
    x = _mixing(draft, x)
    for _ in range(draw(st.integers(0, 2))):
      x = _channelwise(draft, x)
    if draw(st.booleans()) and draft.shapes[x][-1] <= 6:
      x = _joined(draft, x)
  x = _vector(draft, x)
  if draw(st.integers(0, 3)) == 0:
    x = _channelwise(draft, x)
  if len(draft.nodes) < 3 or draw(st.integers(0, 7)) > 0:
    x = draft.add(specs.Dense(draw(_NARROW)), x)
  if draw(st.integers(0, 7)) == 0:
    x = draft.add(specs.Activation('tanh'), x)
  return specs.Spec(tuple(draft.nodes), x)


def random_network(
  spec: specs.Spec, dtype: Any = np.float64
) -> network.Network:
  """A network with random variables of every kind, NumPy arrays."""

  def zeros(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    floating = np.issubdtype(leaf.dtype, np.floating)
    return np.zeros(leaf.shape, dtype if floating else leaf.dtype)

  empty = jax.tree.map(zeros, network.shapes(spec))
  return testing.randomized(empty)


def _some(draw: Any, group: groups.Group, most: int) -> tuple[int, ...]:
  channels = st.lists(
    st.integers(0, group.size - 1), min_size=1, max_size=most, unique=True
  )
  return tuple(draw(channels))


def _resizable(spec: specs.Spec) -> list[groups.Group]:
  """Groups of free width that no layer norm ties to others."""
  found = []
  for group in groups.growable(spec):
    try:
      morphisms.widen({group.name: 2 * group.size}).maps(spec)
    except ValueError:
      continue
    found.append(group)
  return found


def _chosen_groups(draw: Any, spec: specs.Spec) -> list[groups.Group]:
  found = _resizable(spec)
  if not found:
    return []
  return draw(
    st.lists(
      st.sampled_from(found),
      min_size=1,
      max_size=2,
      unique_by=lambda group: group.name,
    )
  )


def _normed(spec: specs.Spec, group: groups.Group) -> bool:
  return any(
    isinstance(spec.by_name[name].op, specs.LayerNorm)
    for name in group.channelwise
  )


def _widen(draw: Any, spec: specs.Spec):
  widths = {}
  for group in _chosen_groups(draw, spec):
    more = draw(st.integers(1, 4))
    times = draw(st.integers(2, 3))
    normed = _normed(spec, group)
    widths[group.name] = group.size * times if normed else group.size + more
  return morphisms.widen(widths) if widths else None


def _split(draw: Any, spec: specs.Spec):
  channels = {
    group.name: tuple(range(group.size))
    if _normed(spec, group)
    else _some(draw, group, 3)
    for group in _chosen_groups(draw, spec)
  }
  mass = draw(st.sampled_from([0.3, 0.3, 0.1, 0.8]))
  return morphisms.split(channels, mass=mass) if channels else None


def _free_split(draw: Any, spec: specs.Spec):
  plain = _split(draw, spec)
  if plain is None:
    return None
  return morphisms.free_split(dict(plain.channels), mass=plain.mass)


def _prune(draw: Any, spec: specs.Spec, make: Any = morphisms.prune):
  wide = [group for group in groups.growable(spec) if group.size > 1]
  if not wide:
    return None
  group = draw(st.sampled_from(wide))
  return make({group.name: _some(draw, group, group.size - 1)})


def _insert(form: str) -> Callable[..., Any]:
  def drawn(draw: Any, spec: specs.Spec):
    nodes = [n.name for n in spec.nodes if n.name != spec.output]
    if form == 'identity':
      nodes = [name for name in nodes if depth.nonnegative(spec, name)]
    if not nodes:
      return None
    activations = {
      'identity': ['relu'],
      'pair': ['relu', 'gelu', 'silu', 'hard_swish', 'softplus', 'leaky_relu'],
    }.get(form, list(specs.ACTIVATIONS))
    return morphisms.insert(
      draw(st.sampled_from(nodes)),
      form=form,
      kernel=draw(_WINDOWS),
      activation=draw(st.sampled_from(activations)),
      norm=form != 'pair' and draw(st.booleans()),
    )

  return drawn


def _remove(draw: Any, spec: specs.Spec):
  legal = []
  for node in spec.nodes:
    for keep, source in enumerate(node.inputs):
      same = spec.shapes[source] == spec.shapes[node.name]
      if same and node.name != spec.output:
        legal.append(morphisms.remove(node.name, keep=keep))
  return draw(st.sampled_from(legal)) if legal else None


def _grow_kernel(draw: Any, spec: specs.Spec):
  legal = []
  for node in spec.nodes:
    if isinstance(node.op, specs.Conv | specs.DepthwiseConv):
      for by in ((0, 1), (1, 0), (2, 2), (1, 2), (3, 1)):
        window = tuple(k + more for k, more in zip(node.op.kernel, by))
        move = morphisms.grow_kernel(node.name, window)
        try:
          morphisms.respec(move, spec)
        except ValueError:
          continue
        legal.append(move)
  return draw(st.sampled_from(legal)) if legal else None


def _shrink_kernel(draw: Any, spec: specs.Spec):
  legal = [
    morphisms.shrink_kernel(node.name, tuple(map(draw, within)))
    for node in spec.nodes
    if isinstance(node.op, specs.Conv | specs.DepthwiseConv)
    for within in [[st.integers(1, k) for k in node.op.kernel]]
    if node.op.padding == 'SAME'
  ]
  return draw(st.sampled_from(legal)) if legal else None


def _pad(draw: Any, spec: specs.Spec):
  found = groups.growable(spec)
  if not found:
    return None
  chosen = draw(st.sets(st.sampled_from(found), min_size=1, max_size=3))
  return morphisms.pad(
    {
      group.name: group.size + draw(st.integers(0, 3))
      for group in sorted(chosen, key=lambda group: group.name)
    }
  )


def _composed(draw: Any, spec: specs.Spec):
  kinds = ('widen', 'widen', 'split', 'prune', 'insert', 'remove', 'pad')
  found = []
  for kind in draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=3)):
    move = None if spec.padded else MOVES[kind](draw, spec)
    if isinstance(move, morphisms.width.Split):
      # Another mass for each: see `split` on splitting both of two twins.
      move = dataclasses.replace(move, mass=(0.3, 0.1, 0.8)[len(found)])
    if move is not None:
      found.append(move)
      spec = morphisms.respec(move, spec)
  return morphisms.compose(*found) if len(found) > 1 else None


# A legal move of each kind on a spec, or None where there is none. `crop` and
# `uncapped` act on padded networks: see `moves_on_padded`.
MOVES: dict[str, Callable[..., Any]] = {
  'identity': lambda draw, spec: morphisms.identity(),
  'widen': _widen,
  'split': _split,
  'free_split': _free_split,
  'prune': _prune,
  'merge': functools.partial(_prune, make=morphisms.merge),
  'insert': _insert('auto'),
  'insert_identity': _insert('identity'),
  'insert_pair': _insert('pair'),
  'insert_residual': _insert('residual'),
  'remove': _remove,
  'grow_kernel': _grow_kernel,
  'shrink_kernel': _shrink_kernel,
  'pad': _pad,
  'crop': _pad,
  'uncapped': _pad,
  'compose': _composed,
}


@st.composite
def moves(
  draw: Callable[..., Any], kind: str, blocks: int = 2
) -> tuple[Any, network.Network]:
  """A move of a kind and a network of a generated spec on which it is legal.

  Args:
    draw: given by hypothesis.
    kind: a key of `MOVES`.
    blocks: of the spec, see `specs_of_all_ops`.
  """
  images = True if kind.endswith('_kernel') else None

  def offered(spec: specs.Spec):
    return spec, MOVES[kind](draw, spec)

  spec, move = draw(
    specs_of_all_ops(blocks, images)
    .map(offered)
    .filter(lambda found: found[1] is not None)
  )
  net = random_network(spec)
  if kind in ('crop', 'uncapped'):
    net = move(net, ())
    counts = net.variables['arch']['active']
    move = morphisms.uncapped(net)
    if kind == 'crop':
      some = draw(st.sets(st.sampled_from(sorted(counts)), min_size=1))
      move = morphisms.crop({group: int(counts[group]) for group in some})
  return move, net
