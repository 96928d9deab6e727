"""Many moves of one network as one move."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, network
from jaxnas.morphisms import base, depth, outgoing, width


class Spread(NamedTuple):
  """Parameters of splits and prunes over all channels of a network.

  Attributes:
    directions: `{writer: kernel-shaped}`, zero where nothing is split.
    means: `{reader: (input axis,)}`, zero where nothing stands in.
    outgoing: `{reader: kernel-shaped}`, zero where no free split is.
    shares: `{group: (channels, channels)}`, zero where nothing is merged.
  """

  directions: dict[str, Any]
  means: dict[str, Any]
  outgoing: dict[str, Any]
  shares: dict[str, Any]


def scatter(
  net: network.Network, moves: Sequence[Any], thetas: Sequence[Any]
) -> Spread:
  """Lays parameters of splits and prunes out; None counts as zero."""
  spec, params = net.spec, net.variables['params']
  kernels = {
    n.name: np.asarray(params[n.name]['kernel'])
    for n in spec.nodes
    if n.op.kind == 'mixing'
  }
  directions = {writer: np.zeros_like(k) for writer, k in kernels.items()}
  rows = {reader: np.zeros_like(k) for reader, k in kernels.items()}
  means = {reader: np.zeros(k.shape[-2]) for reader, k in kernels.items()}
  shares = {g.name: np.zeros((g.size,) * 2) for g in groups.growable(spec)}
  for move, theta in zip(moves, thetas, strict=True):
    if theta is None:
      continue
    incoming, held = theta, theta
    if isinstance(move, outgoing.FreeSplit):
      incoming = theta['incoming']
      for name, chosen in move.channels:
        for reader, e in theta['outgoing'].get(name, {}).items():
          source = spec.by_name[reader].inputs[0]
          at = width.positions(spec, source, name, chosen)
          rows[reader][..., at, :] = e
    if isinstance(move, outgoing.Merge):
      held = theta['means']
      for name, chosen in move.channels:
        shares[name][list(chosen)] = theta['shares'][name]
    if isinstance(move, width.Prune):
      for reader, values in held.items():
        means[reader][move.dropped(spec, reader)] = values
      continue
    for name, chosen in move.channels:
      for writer, d in incoming.get(name, {}).items():
        at = width.positions(spec, writer, name, chosen)
        directions[writer][..., at] = d
  return Spread(directions, means, rows, shares)


def gather(net: network.Network, move: Any, spread: Spread) -> base.Theta:
  """The parameters of one split or prune out of those of all channels."""
  spec, table = net.spec, groups.table(net.spec)
  if isinstance(move, width.Prune):
    means = {
      reader: spread.means[reader][move.dropped(spec, reader)].astype(
        net.variables['params'][reader]['kernel'].dtype
      )
      for reader in move.compensated(spec)
    }
    if not isinstance(move, outgoing.Merge):
      return means
    dtype = jnp.result_type(*jax.tree.leaves(net.variables['params']))
    shares = {
      name: spread.shares[name][list(chosen)].astype(dtype)
      for name, chosen in move.channels
    }
    return {'means': means, 'shares': shares}
  incoming = {
    name: {
      writer: spread.directions[writer][
        ..., width.positions(spec, writer, name, chosen)
      ]
      for writer in table.groups[name].writers
    }
    for name, chosen in move.channels
  }
  if not isinstance(move, outgoing.FreeSplit):
    return incoming
  rows = {
    name: {
      reader: spread.outgoing[reader][
        ...,
        width.positions(spec, spec.by_name[reader].inputs[0], name, chosen),
        :,
      ]
      for reader in table.groups[name].readers
    }
    for name, chosen in move.channels
  }
  return {'incoming': incoming, 'outgoing': rows}


def unite(
  net: network.Network, moves: Sequence[Any], thetas: Sequence[Any]
) -> tuple[base.Morphism, base.Theta]:
  """One move that makes many splits, prunes and insertions together.

  Every given move refers to the channels of `net`. Insertions are made first;
  then splits, which put twins last, so that the prunes' channels stay where
  they are.

  Args:
    net: the network.
    moves: insertions, splits of one mass, and prunes; no channel twice. One
      free split makes all splits free, and one merge all prunes merges, with
      zeros for the others.
    thetas: their parameters.

  Returns:
    The move (the identity for no moves) and its theta.

  Raises:
    ValueError: for other moves, or splits of different mass.

  Example:
    >>> import jax
    >>> from jaxnas import morphisms
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> moves = [morphisms.split({'dense1': [0]}), morphisms.prune(
    ...     {'dense1': [4]}), morphisms.split({'dense1': [7]})]
    >>> thetas = [move.init(net, jax.random.key(0)) for move in moves]
    >>> move, theta = unite(net, moves, thetas)
    >>> move.moves[0].channels, move(net, theta).spec.shapes['dense1']
    ((('dense1', (0, 7)),), (9,))
  """
  known = width.Split | width.Prune | depth.Insert
  foreign = [m for m in moves if not isinstance(m, known)]
  splits = [m for m in moves if isinstance(m, width.Split)]
  masses = sorted({m.mass for m in splits})
  if foreign or len(masses) > 1:
    raise ValueError(
      'only insertions, splits of one mass and prunes can be made together, '
      f'got {foreign or f"masses {masses}"}; choose among moves of one kind.'
    )
  pairs = list(zip(moves, thetas, strict=True))
  inserts = [(m, t) for m, t in pairs if isinstance(m, depth.Insert)]
  others = [(m, t) for m, t in pairs if not isinstance(m, depth.Insert)]
  spread = scatter(net, [m for m, _ in others], [t for _, t in others])
  parts = [m for m, _ in inserts]
  held = [m_theta for _, m_theta in inserts]
  twins = _channels(splits)
  if twins:
    free = any(isinstance(m, outgoing.FreeSplit) for m in splits)
    kind = outgoing.FreeSplit if free else width.Split
    parts.append(kind(twins, masses[0]))
    held.append(gather(net, parts[-1], spread))
  prunes = [m for m in moves if isinstance(m, width.Prune)]
  if prunes:
    merged = any(isinstance(m, outgoing.Merge) for m in prunes)
    kind = outgoing.Merge if merged else width.Prune
    parts.append(kind(_channels(prunes)))
    theta = gather(net, parts[-1], spread)
    held.append(_on_twins(theta, twins, masses) if merged else theta)
  if len(parts) < 2:
    return base.compose(*parts), (held[0] if held else ())
  return base.compose(*parts), tuple(held)


def _channels(moves: Sequence[Any]) -> tuple[tuple[str, tuple[int, ...]], ...]:
  channels: dict[str, list[int]] = {}
  for move in moves:
    for name, chosen in move.channels:
      channels.setdefault(name, []).extend(chosen)
  return tuple(sorted((n, tuple(sorted(c))) for n, c in channels.items()))


def _on_twins(theta, twins, masses) -> base.Theta:
  """Shares on a channel that is split fall on both twins, by their mass."""
  shares = dict(theta['shares'])
  for name, chosen in twins:
    if name in shares:
      old, at = shares[name], list(chosen)
      scaled = old.copy()
      scaled[:, at] *= 1 - masses[0]
      shares[name] = np.concatenate([scaled, old[:, at] * masses[0]], axis=1)
  return {**theta, 'shares': shares}
