"""The edits of ECToNAS as proposals: an exhaustive list of labelled moves."""

from collections.abc import Iterator

import numpy as np

from jaxnas import groups, morphisms, network
from jaxnas import spec as specs
from jaxnas.base import Candidate
from jaxnas.morphisms import Morphism, blocks
from jaxnas.stages.propose import Moves

KINDS = (
  'identity',
  'add channels',
  'remove channels',
  'add units',
  'remove units',
  'add dense',
  'remove dense',
  'add block',
  'remove block',
)


def edits(
  *,
  channels: int = 3,
  units: float = 0.1,
  least: int = 2,
  pool: str = '',
  filters: int = 1,
) -> Moves:
  """Every legal edit of a chain, one step each, and the identity.

  ECToNAS' list (arXiv 2403.05123; official `ectonas.py`): a convolution may
  gain or lose channels, be removed with its pooling, or have a block put
  before it; a hidden dense layer may gain or lose units, be removed, or have a
  layer put before it unless it is the first; the output layer may have one put
  before it, and so may the flattening a block. A network without hidden dense
  layers or convolutions can thus become one with, and the reverse.

  Where it can be, the edit leaves the function as it is (all four additions
  without pooling). What is removed is chosen by the product of the norms of a
  channel's incoming and outgoing weights. Departs from the official code in
  that: copies share outgoing weights unequally, so that they part (there they
  never do); blocks do not pool unless asked to, for pooling cannot preserve;
  removals are no truncated SVD, and compensate for means (`calibrate`).

  Args:
    channels: that an edit adds to or takes from a convolution.
    units: that an edit adds to or takes from a dense layer, as a fraction.
    least: units at least.
    pool: `'max'` or `'mean'` for pooling in added blocks, `''` for none.
    filters: channels of an added block at least; officially it has as many as
      its input, a single one for a grey image. What is beyond them is copies.

  Returns:
    `moves(net)`; each is a `jaxnas.morphisms.label`, with one of `KINDS` as its
    kind.

  Raises:
    ValueError: for steps below one; and of `moves`, for a network that is no
      chain of layers.

  Example:
    >>> import collections, jax
    >>> from jaxnas.spaces import seeds
    >>> spec = seeds.cells((8, 8, 1), (3, 6), (10, 10), 10)
    >>> net = network.init(spec, jax.random.key(0))
    >>> counts = collections.Counter(move.kind for move in edits()(net))
    >>> counts['add block'], counts['remove channels'], counts.total()
    (3, 1, 17)
  """
  if min(channels, least, filters) < 1 or units < 0:
    raise ValueError(
      'edits: channels, least and filters must be at least 1 and units not '
      f'negative, got channels={channels}, least={least}, filters={filters} '
      f'and units={units}.'
    )

  def moves(net: network.Network) -> Iterator[Morphism]:
    yield morphisms.label('identity', morphisms.identity())
    layers = [block[0] for block in blocks.blocks(net.spec)]
    for before, layer, after in zip(
      [None, *layers], layers, [*layers[1:], None]
    ):
      if isinstance(layer.op, specs.Conv):
        yield from _resizing(net, layer, 'channels', channels)
        yield from _block_before(net.spec, layer.inputs[0], pool, filters)
        if after is not None:
          move = morphisms.remove_block(layer.name)
          yield from _legal(net.spec, 'remove block', move)
        continue
      yield from _block_before_flat(net.spec, layer, pool, filters)
      if before is not None and isinstance(before.op, specs.Dense):
        move = morphisms.insert(layer.inputs[0], name='dense')
        yield from _legal(net.spec, 'add dense', move)
      if after is not None:
        by = max(least, int(units * layer.op.features))
        yield from _resizing(net, layer, 'units', by)
        move = morphisms.remove_block(layer.name)
        yield from _legal(net.spec, 'remove dense', move)

  return moves


def kind(member: Candidate) -> str:
  """The kind of the last edit of a candidate, as its lineage has it.

  Example:
    >>> kind(Candidate(None))
    'none'
  """
  made = [event.move for event in member.lineage if event.kind == 'move']
  return getattr(made[-1], 'kind', type(made[-1]).__name__) if made else 'none'


def _legal(spec, kind: str, move: Morphism) -> Iterator[Morphism]:
  """The labelled move, if it can be made."""
  try:
    morphisms.respec(move, spec)
  except ValueError:
    return
  yield morphisms.label(kind, move)


def _block_before(
  spec, source: str, pool: str, filters: int
) -> Iterator[Morphism]:
  move = morphisms.add_block(source, pool=pool)
  try:
    conv = move.names(spec)['']
    channels = morphisms.respec(move, spec).shapes[conv][-1]
  except ValueError:
    return
  if channels < filters:
    move = morphisms.compose(move, morphisms.widen({conv: filters}))
  yield from _legal(spec, 'add block', move)


def _block_before_flat(
  spec, layer, pool: str, filters: int
) -> Iterator[Morphism]:
  """A block before the flattening or global pooling that a layer reads."""
  source = spec.by_name[layer.inputs[0]]
  if isinstance(source.op, specs.Flatten | specs.GlobalPool):
    yield from _block_before(spec, source.inputs[0], pool, filters)


def _resizing(net, layer, what: str, by: int) -> Iterator[Morphism]:
  group = groups.table(net.spec).groups[layer.name]
  if group.frozen:
    return
  wider = morphisms.widen({group.name: group.size + by})
  yield from _legal(net.spec, f'add {what}', wider)
  if group.size > by:
    least = np.argsort(_importance(net, group), kind='stable')[:by]
    move = morphisms.prune({group.name: sorted(least.tolist())})
    yield from _legal(net.spec, f'remove {what}', move)


def _importance(net: network.Network, group: groups.Group) -> np.ndarray:
  """(channels,): the norm of incoming weights times that of outgoing ones."""
  axes, held = groups.table(net.spec).axes, net.variables['params']
  incoming = outgoing = 0.0
  for writer in group.writers:
    kernel = np.asarray(held[writer]['kernel'], float)
    squares = np.square(kernel).reshape((-1, kernel.shape[-1])).sum(axis=0)
    incoming += squares * _norms(net, group)
  for reader in group.readers:
    kernel = np.asarray(held[reader]['kernel'], float)
    axis = axes[net.spec.by_name[reader].inputs[0]]
    rows = np.square(kernel).sum(axis=(*range(kernel.ndim - 2), -1))
    outgoing += rows.reshape((axis.repeat, group.size)).sum(axis=0)
  return incoming * outgoing


def _norms(net: network.Network, group: groups.Group) -> np.ndarray:
  """(channels,): the squared gain of the batch norms on a group."""
  gain = np.ones(group.size)
  for name in group.channelwise:
    op = net.spec.by_name[name].op
    if isinstance(op, specs.BatchNorm):
      scale = np.asarray(net.variables['params'][name]['scale'], float)
      var = np.asarray(net.variables['batch_stats'][name]['var'], float)
      gain = gain * np.square(scale) / (var + op.epsilon)
  return gain
