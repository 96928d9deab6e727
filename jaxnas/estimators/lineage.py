"""An estimator of moves that learned from networks that were measured.

It predicts what a move changes from the difference of what the architectures
before and after it are, as Delta-NAS does of genotypes
(`jaxnas.estimators.differences`), and so scores the moves of a real network
without making them, and without data.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import morphisms
from jaxnas.base import Estimator, Key
from jaxnas.estimators import differences, heuristics
from jaxnas.spec import Spec

Encoding = Callable[[Spec], np.ndarray]


def contents(specs: Sequence[Spec]) -> Encoding:
  """Counts of ops and their sizes, as features of any spec.

  For each kind of op in the given specs how many nodes have it, and the sum of
  the binary logarithms of their numbers: `features`, windows, strides. What
  another spec has beyond that is not seen.

  Args:
    specs: that say which kinds of ops there are.

  Returns:
    A function of a spec to (F,) floats.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> small, large = (seeds.mlp((4,), (width,), 3) for width in (4, 16))
    >>> encode = contents([small])
    >>> sorted((encode(large) - encode(small)).tolist())[-1]
    2.0
  """
  seen = sorted({key for spec in specs for key in _sizes(spec)})

  def encode(spec: Spec) -> np.ndarray:
    sizes = _sizes(spec)
    return np.array([sizes.get(key, 0.0) for key in seen])

  return encode


def _sizes(spec: Spec) -> dict[tuple[str, str], float]:
  """By op and field, the number of nodes and the sum of logarithms."""
  found: dict[tuple[str, str], float] = {}
  for node in spec.nodes:
    op = type(node.op).__name__
    values = {'': 1.0}
    for field, value in vars(node.op).items():
      flat = np.ravel(value)
      if flat.dtype.kind in 'iu' and flat.size and flat.min() > 0:
        values[field] = float(np.log2(flat).sum())
    for field, value in values.items():
      found[op, field] = found.get((op, field), 0.0) + value
  return found


def by_lineage(
  measured: Sequence[tuple[Spec, float]],
  *,
  key: Key,
  encode: Encoding | None = None,
  difference: differences.Difference | None = None,
  nats: bool = True,
) -> Estimator:
  """Scores moves by the losses of networks measured before.

  It learns from all pairs of them; what it predicts of a move is odd, so a move
  and the one that takes it back have opposite scores. Moves that change nothing
  that the encoding sees score 0.

  Args:
    measured: specs and their losses, such as those of a search's history.
    key: for the predictor's draws.
    encode: a spec to (F,) features; None for `contents` of the measured specs.
    difference: None for a `ridge_difference` without context.
    nats: whether the losses are in nats; else only the order of scores means
      something.

  Returns:
    An `Estimator`. Its `linear` is the predicted change of the loss; there is
    no curvature and no error, and it reads no examples.

  Raises:
    ValueError: for fewer than two measured networks, or a loss that is not
      finite.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> specs = [seeds.mlp((4,), (width,), 3) for width in (2, 4, 8)]
    >>> judge = by_lineage(
    ...     list(zip(specs, (1.5, 1.0, 0.5))), key=jax.random.key(0))
    >>> net = network.init(specs[1], jax.random.key(1))
    >>> moves = [morphisms.split({'dense1': [0]}),
    ...          morphisms.prune({'dense1': [0]})]
    >>> found = judge.score(None, net, moves, [None] * 2, None, ())
    >>> bool(found.linear[0] < 0 < found.linear[1])
    True
  """
  losses = np.array([loss for _, loss in measured], np.float64)
  if len(measured) < 2 or not np.isfinite(losses).all():
    raise ValueError(
      'by_lineage: it learns from two measured networks or more, with finite '
      f'losses, got {losses.tolist()}.'
    )
  specs = [spec for spec, _ in measured]
  encode = contents(specs) if encode is None else encode
  if difference is None:
    difference = differences.ridge_difference(context='none', penalty=1e-1)
  x = np.stack([encode(spec) for spec in specs])
  spread = np.maximum(x.std(axis=0), 1e-6) + (x.std(axis=0) == 0)
  scale = float(losses.std()) or 1.0
  rows = jnp.asarray(x / spread, jnp.float32)
  targets = jnp.asarray((losses - losses.mean()) / scale, jnp.float32)
  pairs = 1.0 - jnp.eye(len(specs))
  init_key, fit_key = jax.random.split(key)
  params = difference.init(init_key, rows.shape[1])
  params = difference.fit(fit_key, params, rows, targets, pairs)

  def read(spec: Spec) -> jax.Array:
    return jnp.asarray(encode(spec) / spread, jnp.float32)

  def score(key, net, moves, thetas, data, state):
    del key, thetas, data, state
    after = jnp.stack([read(morphisms.respec(m, net.spec)) for m in moves])
    said = difference.predict(params, read(net.spec)[None], after)[0]
    changes: Any = scale * np.asarray(said, np.float64)
    return heuristics.scored(changes[None], 0)._replace(nats=nats)

  return Estimator(lambda net: (), score, heuristics.drawn)
