"""Splits and prunes that also learn outgoing weights.

A split may share a channel's outgoing weight between the twins as it likes
(`free_split`), a prune may hand it to the channels that stay (`merge`): growth
specification, 1.3.1.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import groups, network
from jaxnas.morphisms import base, width


def _numpy(leaf: Any) -> Any:
  """The module that keeps NumPy leaves NumPy, so that nothing compiles."""
  return np if isinstance(leaf, np.ndarray | np.generic) else jnp


def _placed(rows: Any, at: np.ndarray, size: int) -> Any:
  """Rows (..., n, out) laid out at positions of an axis of `size`, else 0."""
  take = np.full(size, len(at))
  take[at] = np.arange(len(at))
  xp = _numpy(rows)
  padded = xp.concatenate([rows, xp.zeros_like(rows[..., :1, :])], axis=-2)
  return padded.take(take, axis=-2)


@dataclasses.dataclass(frozen=True)
class FreeSplit(width.Split):
  """Splits with free outgoing weights; build it with `free_split`."""

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """`{'incoming': as of split, 'outgoing': {group: {reader: rows}}}`.

    Outgoing rows are `kernel[..., chosen inputs, :]`-shaped, and zero.
    """
    spec, table = net.spec, groups.table(net.spec)
    held = {}
    for name, chosen in self.channels:
      held[name] = {}
      for reader in table.groups[name].readers:
        kernel = net.variables['params'][reader]['kernel']
        source = spec.by_name[reader].inputs[0]
        rows = len(width.positions(spec, source, name, chosen))
        shape = (*kernel.shape[:-2], rows, kernel.shape[-1])
        held[name][reader] = jnp.zeros(shape, kernel.dtype)
    return {'incoming': super().init(net, key), 'outgoing': held}

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    index, _ = self.maps(net.spec)
    moved = super().__call__(net, theta['incoming'])
    params, axes = dict(moved.variables['params']), groups.table(net.spec).axes
    for name, chosen in self.channels:
      size = groups.table(net.spec).groups[name].size
      twins = range(size, size + len(chosen))
      for reader, rows in theta['outgoing'].get(name, {}).items():
        rows = rows.take(axes[reader].spread(index, 'index'), axis=-1)
        source = moved.spec.by_name[reader].inputs[0]
        at = functools.partial(width.positions, moved.spec, source, name)
        kernel = params[reader]['kernel']
        place = functools.partial(_placed, rows, size=kernel.shape[-2])
        shift = place(at=at(chosen)) - place(at=at(twins))
        kernel = (kernel + shift).astype(kernel.dtype)
        params[reader] = {**params[reader], 'kernel': kernel}
    return network.Network({**moved.variables, 'params': params}, moved.spec)


def free_split(
  channels: Mapping[str, Sequence[int]], *, mass: float = 0.3
) -> FreeSplit:
  """A split whose twins share the outgoing weight as theta says.

  As `jaxnas.morphisms.split`, and the outgoing weights become `(1 - m) u + e`
  and `m u - e`, with e in theta. With e free a descent direction exists even
  where the plain split has none, such as ReLU at small directions (growth
  specification, 1.3.1).

  Args:
    channels: for each group the channels to split.
    mass: m, the share of the outgoing weight that the twin takes, in (0, 1).

  Raises:
    ValueError: for a mass outside (0, 1).

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> move = free_split({'dense1': [0, 5]})
    >>> theta = move.init(net, jax.random.key(1))
    >>> theta['outgoing']['dense1']['logits'].shape
    (2, 3)
  """
  plain = width.split(channels, mass=mass)
  return FreeSplit(plain.channels, plain.mass)


@dataclasses.dataclass(frozen=True)
class Merge(width.Prune):
  """Channels merged into those that stay; build it with `merge`."""

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """`{'means': as of prune, 'shares': {group: (removed, channels)}}`."""
    table = groups.table(net.spec).groups
    dtype = jnp.result_type(*jax.tree.leaves(net.variables['params']))
    return {
      'means': super().init(net, key),
      'shares': {
        name: jnp.zeros((len(chosen), table[name].size), dtype)
        for name, chosen in self.channels
      },
    }

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    index, means = self.maps(net.spec), dict(theta['means'])
    params = dict(net.variables['params'])
    for name, chosen in self.channels:
      shares = theta['shares'][name]
      solve = functools.partial(_eliminated, shares, np.asarray(chosen))
      handed = solve(shares.take(index[name], axis=1))
      for reader in groups.table(net.spec).groups[name].readers:
        source = net.spec.by_name[reader].inputs[0]
        at = functools.partial(width.positions, net.spec, source, name)
        gone, kept = at(chosen), at(index[name])
        copies = len(gone) // len(chosen)
        kernel = params[reader]['kernel']
        rows = kernel.take(gone, axis=-2)
        *window, _, out = kernel.shape
        rows = rows.reshape((*window, copies, len(chosen), out))
        added = handed.T.astype(kernel.dtype) @ rows
        added = added.reshape((*window, len(kept), out))
        kernel = kernel + _placed(added, kept, kernel.shape[-2])
        params[reader] = {**params[reader], 'kernel': kernel}
        if reader in means:
          where = np.searchsorted(self.dropped(net.spec, reader), gone)
          own = means[reader].take(where).reshape((copies, len(chosen)))
          own = solve(own.T).T.reshape((-1, 1))
          others = np.setdiff1d(np.arange(len(means[reader])), where)
          rest = means[reader].take(others).reshape((-1, 1))
          size = len(means[reader])
          both = _placed(own, where, size) + (
            _placed(rest, others, size) if len(others) else 0
          )
          means[reader] = both.reshape(-1)
    changed = {**net.variables, 'params': params}
    return super().__call__(network.Network(changed, net.spec), means)


def _eliminated(shares: Any, chosen: np.ndarray, right: Any) -> Any:
  """What stands in for the removed channels in terms of those that stay.

  Removed channels may lean on each other: `h_r = S_rr h_r + S_rk h_k + mu`, so
  `h_r = (I - S_rr)^-1 (S_rk h_k + mu)`.
  """
  among = shares.take(chosen, axis=1)
  if len(chosen) == 1:  # Shares of a channel on itself mean nothing.
    return right
  xp = _numpy(shares)
  among = among * (1 - np.eye(len(chosen), dtype=among.dtype))
  return xp.linalg.solve(xp.eye(len(chosen), dtype=among.dtype) - among, right)


def merge(channels: Mapping[str, Sequence[int]]) -> Merge:
  """Removes channels, and hands their outgoing weights to those that stay.

  A learned prune: theta says how much of each removed channel is a mixture of
  the others of its group (`shares`, on `channels x channels` of the group,
  those of a channel on itself counting nothing), and the mean of what is left
  (`means`, as in `prune`). Every reader's `W[:, j]` grows by
  `share_j W[:, removed]` (growth specification, 1.3.1).

  Args:
    channels: for each group the channels to remove.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> move = merge({'dense1': [2]})
    >>> theta = move.init(net, jax.random.key(1))
    >>> theta['shares']['dense1'].shape, move(net, theta).spec.shapes['dense1']
    ((1, 8), (7,))
  """
  return Merge(width.prune(channels).channels)
