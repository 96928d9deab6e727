"""Slots of dense networks that hold one of several layers, as masks.

A slot maps a feature vector to one of the same width. What it does is a gene,
and every option reads a part of the same two matrices, so that networks which
differ in their genes are one program, and a slot's weights can move from one
network to another as they are. Their activations are genes too, of no weights.

The genes of a learner's parts are described apart (`genes`, `group`, `fixed`),
put together by `join`, and a genotype is taken apart again by `cut`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import layers as convolutions
from jaxnas import mixing
from jaxnas.base import Genes, Key, Member

# What a slot does, in the order of its gene's values: `half` and `double` are
# residual, with half or twice as many hidden units as the slot is wide.
OPS = ('identity', 'dense', 'half', 'double')

# The options of an activation gene, in this order; each is zero at zero, so
# that masked units stay zero.
ACTIVATIONS = {
  'identity': lambda z: z,
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  'swish': jax.nn.swish,
}

_IDENTITY, _DENSE, _HALF, _DOUBLE = range(len(OPS))


def genes(count: int, layer: str) -> Genes:
  """The genes of a run of slots: their ops, and then their activations.

  Args:
    count: S slots.
    layer: the name of the layer that holds their weights.

  Returns:
    2 S genes; the op genes own the slots of the layer.

  Raises:
    ValueError: for a count below one.

  Example:
    >>> found = genes(2, 'actor')
    >>> found.names
    ('actor/op0', 'actor/op1', 'actor/activation0', 'actor/activation1')
    >>> found.owner['actor'].tolist()
    [0, 1]
  """
  if count < 1:
    raise ValueError(f'genes: count must be at least 1, got {count}.')
  kinds = {'op': OPS, 'activation': tuple(ACTIVATIONS)}
  return Genes(
    tuple(len(kind) for kind in kinds.values() for _ in range(count)),
    {layer: np.arange(count)},
    tuple(f'{layer}/{kind}{i}' for kind in kinds for i in range(count)),
    tuple(kind for kind in kinds.values() for _ in range(count)),
  )


def group(name: str, widths: Sequence[int], layers: Sequence[str]) -> Genes:
  """A gene for the width of a feature, which owns the layers on its sides.

  Args:
    name: of the gene.
    widths: its options.
    layers: those that write the feature and those that read it.

  Raises:
    ValueError: unless widths are positive, different and ascending.

  Example:
    >>> group('width', (8, 16), ('trunk', 'head')).owner
    {'trunk': 0, 'head': 0}
  """
  if not widths or list(widths) != sorted({w for w in widths if w > 0}):
    raise ValueError(
      'group: widths must be positive, different and ascending, got '
      f'{tuple(widths)}.'
    )
  return Genes(
    (len(widths),),
    {layer: 0 for layer in layers},
    (name,),
    (tuple(map(str, widths)),),
  )


def fixed(*layers: str) -> Genes:
  """No genes, and layers that no gene owns."""
  return Genes((), {layer: -1 for layer in layers}, ())


def join(*pieces: Genes) -> Genes:
  """The genes of several parts as those of one learner.

  Args:
    *pieces: of the parts, in the order that `cut` gives them back in.

  Raises:
    ValueError: if two pieces name the same layer or gene.

  Example:
    >>> both = join(genes(1, 'actor'), genes(2, 'critic'), fixed('head'))
    >>> {layer: np.asarray(own).tolist() for layer, own in both.owner.items()}
    {'actor': [0], 'critic': [2, 3], 'head': -1}
  """
  owner: dict[str, Any] = {}
  options, names, values = (), (), ()
  for piece in pieces:
    twice = sorted({*piece.owner} & {*owner}) + sorted(
      {*piece.names} & {*names}
    )
    if twice:
      raise ValueError(f'join: several pieces have {", ".join(twice)}.')
    for layer, own in piece.owner.items():
      moved = np.where(np.asarray(own) < 0, own, own + len(options))
      owner[layer] = moved if np.ndim(own) else int(moved)
    options, names = options + piece.options, names + piece.names
    values = values + piece.values
  return Genes(options, owner, names, values)


def cut(pieces: Sequence[Genes], genotype: jax.Array) -> list[jax.Array]:
  """A genotype of `join(*pieces)` as those of the pieces.

  Example:
    >>> parts = cut((genes(1, 'a'), genes(2, 'b')), jnp.arange(6))
    >>> [part.tolist() for part in parts]
    [[0, 1], [2, 3, 4, 5]]
  """
  ends = np.cumsum([len(piece.options) for piece in pieces])
  return jnp.split(genotype, ends[:-1])


def _hidden(width: int) -> np.ndarray:
  """Hidden units of each op that are in use."""
  return np.array([0, width, width // 2, 2 * width])


def _masks(width: int, ops: jax.Array) -> jax.Array:
  """(S, 2 width): which hidden units the slots use."""
  units = jnp.asarray(_hidden(width))[ops]
  return jnp.arange(2 * width)[None] < units[:, None]


def init(key: Key, ops: jax.Array, width: int) -> dict[str, jax.Array]:
  """Fresh weights of slots, each of the scale of its own op.

  Entries are Gaussian, of variance one over the number of units that are read;
  what an op does not read is zero, and learning leaves it so.

  Args:
    key: for the draws.
    ops: (S,) op genes.
    width: D features.

  Returns:
    The layer: matrices `u` (S, D, 2 D) and `v` (S, 2 D, D), with offsets `a`
    (S, 2 D) and `b` (S, D).

  Raises:
    ValueError: for an odd width, or one below 2.

  Example:
    >>> layer = init(jax.random.key(0), jnp.array([0, 1]), 4)
    >>> jnp.count_nonzero(layer['u'], axis=(1, 2)).tolist()
    [0, 16]
  """
  if width < 2 or width % 2:
    raise ValueError(f'init: width must be even and positive, got {width}.')
  ops = jnp.asarray(ops)
  count, most = ops.shape[0], 2 * width
  u_key, v_key = jax.random.split(key)
  live = _masks(width, ops)
  residual = (ops >= _HALF)[:, None, None]
  units = jnp.maximum(jnp.asarray(_hidden(width))[ops], 1)[:, None, None]
  u = jax.random.normal(u_key, (count, width, most)) / np.sqrt(width)
  v = jax.random.normal(v_key, (count, most, width)) / jnp.sqrt(units)
  return {
    'u': jnp.where(live[:, None, :], u, 0.0),
    'a': jnp.zeros((count, most), u.dtype),
    'v': jnp.where(live[:, :, None] & residual, v, 0.0).astype(u.dtype),
    'b': jnp.zeros((count, width), u.dtype),
  }


def _normalised(x: jax.Array) -> jax.Array:
  """Layer normalisation without weights: `u` would absorb a scale."""
  x = x - x.mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-5)


def activated(gene: jax.Array, z: jax.Array) -> jax.Array:
  """Pre-activations through the activation that a gene names.

  Example:
    >>> activated(jnp.array(2), jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]
  """
  return jnp.select(
    [gene == i for i in range(len(ACTIVATIONS))],
    [f(z) for f in ACTIVATIONS.values()],
  )


def apply(
  layer: dict[str, jax.Array],
  ops: jax.Array,
  activations: jax.Array,
  x: jax.Array,
) -> jax.Array:
  """Slots one after another.

  `identity` gives x; `dense` gives act(x U + a); a residual slot gives
  x + act(LN(x) U + a) V + b over the hidden units that it uses. All are one
  pair of matrix products, so the cost is that of the largest, whether members
  run one after another or side by side.

  Args:
    layer: of `init`.
    ops: (S,) op genes.
    activations: (S,) activation genes.
    x: (..., D) features.

  Returns:
    (..., D) features.

  Example:
    >>> ops, acts = jnp.array([0, 3]), jnp.array([1, 2])
    >>> layer = init(jax.random.key(0), ops, 4)
    >>> apply(layer, ops, acts, jnp.ones((5, 4))).shape
    (5, 4)
  """
  width = x.shape[-1]
  masks = _masks(width, ops)
  for i in range(layer['u'].shape[0]):
    own = {name: leaf[i] for name, leaf in layer.items()}
    dense = ops[i] == _DENSE
    read = jnp.where(dense, x, _normalised(x))
    z = convolutions.plus(read @ own['u'], own['a'])
    z = jnp.where(convolutions.along(z, masks[i]), z, 0.0)
    z = activated(activations[i], z)
    residual = convolutions.plus(x + z @ own['v'], own['b'])
    x = jnp.where(
      dense, z[..., :width], jnp.where(ops[i] == _IDENTITY, x, residual)
    )
  return x


def mask(widths: Sequence[int], gene: jax.Array) -> jax.Array:
  """Which units of a feature of the largest width a group gene leaves.

  Args:
    widths: the options, as given to `group`.
    gene: one of them, by number.

  Returns:
    (largest width,) booleans; multiply the feature by it.

  Example:
    >>> mask((1, 2, 4), jnp.array(1)).tolist()
    [True, True, False, False]
  """
  return jnp.arange(max(widths)) < jnp.asarray(widths)[gene]


def dense(
  key: Key,
  inputs: int,
  outputs: int,
  *,
  reads: jax.Array | None = None,
  writes: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Fresh weights of a dense layer that may use a part of its units.

  Args:
    key: for the draws.
    inputs: rows of the matrix.
    outputs: its columns.
    reads: (inputs,) booleans of `mask`, the inputs in use, which the scale is
      for; None for all.
    writes: (outputs,) booleans, the outputs in use; None for all.

  Returns:
    `w` (inputs, outputs), Gaussian of variance one over the inputs in use and
    zero where a unit is not in use, and `b` (outputs,) zeros.

  Example:
    >>> found = dense(jax.random.key(0), 4, 2, reads=mask((1, 4), 0))
    >>> jnp.count_nonzero(found['w']).item()
    2
  """
  reads = jnp.ones(inputs, bool) if reads is None else reads
  writes = jnp.ones(outputs, bool) if writes is None else writes
  w = jax.random.normal(key, (inputs, outputs)) / jnp.sqrt(reads.sum())
  live = reads[:, None] & writes[None, :]
  return {'w': jnp.where(live, w, 0.0), 'b': jnp.zeros(outputs, w.dtype)}


def linear(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
  """`x w + b`, of the weights of `dense`."""
  return convolutions.plus(x @ layer['w'], layer['b'])


def held(space: Genes) -> tuple[str, ...]:
  """The layers of a space that hold slots of `OPS`, which `morph` can grow.

  Args:
    space: the genes of a learner.

  Example:
    >>> held(join(genes(2, 'actor'), fixed('head')))
    ('actor',)
  """

  def holds(owner):
    return np.ndim(owner) == 1 and all(
      gene >= 0 and space.values[gene : gene + 1] == (OPS,) for gene in owner
    )

  return tuple(name for name, owner in space.owner.items() if holds(owner))


def morph(
  space: Genes, layers: Sequence[str], *, probability: float = 0.25
) -> mixing.Child:
  """A child that computes what its base does, some of its slots grown.

  An `identity` slot becomes `half` or `double` with a zero second matrix; a
  `half` slot becomes `double` with zero weights out of its new hidden units
  (after Net2Net, Chen, Goodfellow and Shlens 2016, and network morphism). Fresh
  incoming weights come from `init` with the child's genes. Running averages are
  grown alike, so they too compute what they did. Slots with `dense` or `double`
  stay, and no activation changes. A slot that grows starts its optimizer anew.

  Args:
    space: the genes of the learner.
    layers: those that hold slots, or some of them, see `held`.
    probability: of each slot that can grow to do so.

  Returns:
    `child(key, base, donor, init)`, see `jaxnas.mixing`; it ignores the donor.

  Raises:
    ValueError: for a layer that holds no slots, or a probability outside
      [0, 1].

  Example:
    >>> from jaxnas.base import Body
    >>> space, own = genes(1, 'slots'), jnp.array([0, 2])
    >>> def fresh(key, own, hyper):
    ...   layer = init(key, own[:1], 4)
    ...   return Body({'slots': layer}, {'slots': ()})
    >>> base = Member(fresh(jax.random.key(0), own, {}), own)
    >>> grow = morph(space, ('slots',), probability=1.0)
    >>> child = grow(jax.random.key(1), base, base, fresh)
    >>> child.genes[0].item() in (2, 3)
    True
    >>> jnp.count_nonzero(child.body.layers['slots']['v']).item()
    0
  """
  mixing.check_probability('morph', probability)
  for layer in layers:
    if layer not in held(space):
      raise ValueError(
        f'morph: {layer!r} holds no slots; layers that do: {list(held(space))}.'
      )
  owners = {layer: np.asarray(space.owner[layer]) for layer in layers}

  def grown(old, fresh, took, live):
    """Slots that took a larger op, `live` being the units they had."""
    new = ~live & took[:, None]
    u = jnp.where(new[:, None, :], fresh['u'], old['u'])
    a = jnp.where(new, fresh['a'], old['a'])
    v = jnp.where(new[:, :, None], 0.0, old['v'])
    born = took & ~live.any(axis=1)
    b = jnp.where(born[:, None], 0.0, old['b'])
    return {'u': u, 'a': a, 'v': v, 'b': b}

  def child(key, base, donor, init):
    del donor
    took_key, size_key, fresh_key = jax.random.split(key, 3)
    shape = base.genes.shape
    took = jax.random.bernoulli(took_key, probability, shape)
    size = jax.random.randint(size_key, shape, _HALF, _DOUBLE + 1)
    slots = np.zeros(shape, bool)
    for own in owners.values():
      slots[own] = True
    grows = (base.genes == _IDENTITY) | (base.genes == _HALF)
    took = took & slots & grows
    found = jnp.where(base.genes == _IDENTITY, size, _DOUBLE)
    found = jnp.where(took, found, base.genes).astype(base.genes.dtype)
    fresh = init(fresh_key, found, base.hyper)
    body = base.body
    weights, average, moments = (
      dict(tree) for tree in (body.layers, body.average, body.moments)
    )
    for layer, own in owners.items():
      live = _masks(weights[layer]['b'].shape[-1], base.genes[own])
      new = fresh.layers[layer]
      weights[layer] = grown(weights[layer], new, took[own], live)
      if layer in average:
        average[layer] = grown(average[layer], new, took[own], live)
      moments[layer] = mixing.chosen(
        {layer: took[own]},
        {layer: fresh.moments[layer]},
        {layer: moments[layer]},
      )[layer]
    body = body._replace(layers=weights, average=average, moments=moments)
    return Member(body, found, base.hyper)

  return child
