"""Children of array populations: mixed, copied, mutated, explored.

Networks of one space have the same layers; which option a layer holds is a
gene, and a layer's weights move with the gene that owns it (`base.Genes`). A
child is made by a function

    child(key, base, donor, init) -> Member

of two members and of `init(key, genes, hyper) -> Body`, which draws a fresh
body. `mix` is PBT-NAS (Chebykin, Dushatskiy, Alderliesten and Bosman 2023,
arXiv 2307.15621); `copy`, `mutate` and `explore` are the others that
population based training knows. All run under `jit` and `vmap`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas.base import Body, Genes, Key, Member

Init = Callable[..., Body]
Child = Callable[[Key, Member, Member, Init], Member]


def stratified(key: Key, options: Sequence[int], members: int) -> jax.Array:
  """Genotypes in which every option of every gene is as frequent as another.

  Each option of a gene appears floor(N / options) times; what is left is drawn
  uniformly, and genes are shuffled independently (the initial population of
  PBT-NAS' official code).

  Args:
    key: for the draws.
    options: how many values each of the G genes may take.
    members: N.

  Returns:
    (N, G) integers.

  Example:
    >>> drawn = stratified(jax.random.key(0), (2, 3), 6)
    >>> [np.bincount(column).tolist() for column in np.asarray(drawn).T]
    [[3, 3], [2, 2, 2]]
  """

  def column(key, count):
    own, rest = jax.random.split(key)
    whole = jnp.tile(jnp.arange(count), members // count)
    left = jax.random.randint(rest, (members - len(whole),), 0, count)
    return jax.random.permutation(own, jnp.concatenate([whole, left]))

  if not options:
    return jnp.zeros((members, 0), jnp.int32)
  keys = jax.random.split(key, len(options))
  drawn = [column(own, count) for own, count in zip(keys, options)]
  return jnp.stack(drawn, axis=1).astype(jnp.int32)


def taken(genes: Genes, took: jax.Array) -> dict[str, jax.Array]:
  """For each layer, whether the gene that owns it is among those taken.

  Args:
    genes: of the space.
    took: (G,) booleans.

  Returns:
    For each layer of `genes.owner` a boolean, or (S,) of them.

  Example:
    >>> genes = Genes((2, 2), {'a': 0, 'b': np.array([1, 0]), 'c': -1}, ())
    >>> found = taken(genes, jnp.array([True, False]))
    >>> {name: np.asarray(mask).tolist() for name, mask in found.items()}
    {'a': True, 'b': [False, True], 'c': False}
  """

  def mask(owner):
    owner = jnp.asarray(owner)
    return (owner >= 0) & took[jnp.maximum(owner, 0)]

  if not genes.options:
    return {
      name: jnp.zeros(np.shape(o), bool) for name, o in genes.owner.items()
    }
  return {name: mask(owner) for name, owner in genes.owner.items()}


def pick(mask: jax.Array, yes: Any, no: Any) -> Any:
  """Of two trees of arrays the entries that a mask of leading axes says.

  Args:
    mask: booleans over the first axes of every leaf, or one for all.
    yes: a tree, taken where the mask is true.
    no: a tree of the same structure and shapes.

  Example:
    >>> pick(jnp.array([True, False]), jnp.ones((2, 2)), jnp.zeros((2, 2)))
    Array([[1., 1.],
           [0., 0.]], dtype=float32)
  """

  def one(a, b):
    return jnp.where(
      mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b
    )

  return jax.tree.map(one, yes, no)


def chosen(masks: Mapping[str, jax.Array], yes: Any, no: Any) -> dict[str, Any]:
  """Layers, or parts of layers, from one of two bodies.

  Args:
    masks: of `taken`; layers without one come from `no`.
    yes: trees by layer, taken where the mask is true.
    no: trees of the same structure.

  Example:
    >>> found = chosen({'a': jnp.array([True, False])},
    ...                {'a': jnp.ones((2, 2))}, {'a': jnp.zeros((2, 2))})
    >>> found['a'].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
  """

  return {
    name: pick(masks[name], yes[name], no[name]) if name in masks else no[name]
    for name in no
  }


def shrink_perturb(old: Any, fresh: Any, keep: float, noise: float) -> Any:
  """`keep * old + noise * fresh` (Ash and Adams 2020, arXiv 1910.08475).

  Args:
    old: weights.
    fresh: freshly initialised weights of the same shapes, so that the noise has
      the scale of each layer's own initialiser.
    keep: PBT-NAS' lambda, which multiplies the old weights.
    noise: its gamma.

  Example:
    >>> shrink_perturb(1.0, 2.0, keep=0.5, noise=0.25)
    1.0
  """
  return jax.tree.map(lambda w, f: keep * w + noise * f, old, fresh)


def layered(
  tx: optax.GradientTransformation, genes: Genes
) -> optax.GradientTransformation:
  """An optimizer that keeps an own state for every layer and every slot.

  Adam keeps one count for all its parameters; zero moments under an old count
  make steps three times too long. With a count for each slot, the state of a
  layer can be zeroed, or taken from another member, by itself. What an
  optimizer does over all layers, such as clipping by a global norm, it would do
  layer by layer here: chain that in front.

  Args:
    tx: the optimizer of one layer.
    genes: say which layers are stacked.

  Returns:
    A transformation of dicts by layer, with states by layer.

  Example:
    >>> genes = Genes((2, 2), {'a': np.array([0, 1])}, ())
    >>> state = layered(optax.adam(0.1), genes).init({'a': jnp.ones((2, 3))})
    >>> state['a'][0].count.shape
    (2,)
  """

  def stacked(name):
    return np.ndim(genes.owner.get(name, -1)) > 0

  def init(params):
    return {
      name: (jax.vmap(tx.init) if stacked(name) else tx.init)(layer)
      for name, layer in params.items()
    }

  def update(updates, state, params=None):
    found = {}
    for name, layer in updates.items():
      step = jax.vmap(tx.update) if stacked(name) else tx.update
      own = () if params is None else (params[name],)
      found[name] = step(layer, state[name], *own)
    return (
      {name: pair[0] for name, pair in found.items()},
      {name: pair[1] for name, pair in found.items()},
    )

  return optax.GradientTransformation(init, update)


# What becomes of the optimizer's state of the layers a child takes over.
MOMENTS = ('zero', 'keep_base', 'take_donor')


def _settled(
  masks: Any, base: Body, donor: Body, fresh: Body, layers: Any, moments: str
) -> Body:
  """A base's body with the masked layers replaced.

  The average of those is the donor's, as it is: shrinking it would have the
  child judged on damaged weights. The rest stays the base's.
  """
  source = {'zero': fresh, 'take_donor': donor, 'keep_base': base}[moments]
  average = {name: masks[name] for name in base.average if name in masks}
  return Body(
    chosen(masks, layers, base.layers),
    chosen(masks, source.moments, base.moments),
    chosen(average, donor.average, base.average),
    base.rest,
  )


def mix(
  genes: Genes,
  *,
  probability: float = 0.25,
  keep: float = 0.4,
  noise: float = 0.1,
  moments: str = 'zero',
) -> Child:
  """PBT-NAS' child: the base, each gene of which may come from the donor.

  Section 1.2 of the specification, with faults of the official code mended:
  buffers and statistics are not perturbed, and all that is no layer (replay,
  environments) comes from the base, which gave most of the weights. A gene
  that is taken brings the weights of the layers it owns, shrunk and perturbed;
  the average of those weights comes as it is.

  Args:
    genes: of the space.
    probability: of each gene to be the donor's.
    keep: what remains of the donor's weights. With (keep, noise) = (1, 0) they
      are copied exactly, with (0, 1) the layer starts afresh.
    noise: of fresh weights, of the child's genotype.
    moments: of layers taken over: `'zero'`, `'keep_base'` or `'take_donor'`.

  Raises:
    ValueError: for a probability outside [0, 1] or unknown `moments`.

  Example:
    >>> genes = Genes((2,), {'a': 0}, ('gene',))
    >>> def init(key, g, hyper):
    ...   return Body({'a': jnp.full(2, 10.0)}, {'a': ()})
    >>> base, donor = (Member(Body({'a': jnp.full(2, w)}, {'a': ()}),
    ...                       jnp.array([n])) for n, w in ((0, 1.0), (1, 2.0)))
    >>> make = mix(genes, probability=1.0)
    >>> child = make(jax.random.key(0), base, donor, init)
    >>> child.genes.tolist(), child.body.layers['a'].tolist()
    ([1], [1.7999999523162842, 1.7999999523162842])
  """
  check_probability('mix', probability)
  _check_moments('mix', moments)

  def child(key, base, donor, init):
    gene_key, fresh_key = jax.random.split(key)
    took = jax.random.bernoulli(gene_key, probability, base.genes.shape)
    found = jnp.where(took, donor.genes, base.genes)
    fresh = init(fresh_key, found, base.hyper)
    layers = shrink_perturb(donor.body.layers, fresh.layers, keep, noise)
    body = _settled(
      taken(genes, took), base.body, donor.body, fresh, layers, moments
    )
    return Member(body, found, base.hyper)

  return child


def check_probability(name: str, probability: float) -> None:
  """Refuses what is no probability, in the name of a function.

  Raises:
    ValueError: for a number outside [0, 1].
  """
  if not 0 <= probability <= 1:
    raise ValueError(
      f'{name}: probability must be in [0, 1], got {probability!r}.'
    )


def check_hyper(name: str, hyper: Iterable[str], *read: str) -> None:
  """Refuses hyper-parameters that nothing reads, in the name of a learner.

  Args:
    name: of the learner.
    hyper: the names that a member has.
    *read: those that the learner reads.

  Raises:
    ValueError: if there are others, saying which are read.

  Example:
    >>> check_hyper('ppo', {'rates': 0.1}, 'rate', 'entropy')
    Traceback (most recent call last):
      ...
    ValueError: ppo: it reads the hyper-parameters rate, entropy; got rates.
  """
  others = ', '.join(sorted(set(hyper) - {*read}))
  if others:
    names = f'the hyper-parameters {", ".join(read)}' if read else ''
    raise ValueError(
      f'{name}: it reads {names or "no hyper-parameters"}; got {others}.'
    )


def _check_moments(name: str, moments: str) -> None:
  if moments not in MOMENTS:
    raise ValueError(
      f'{name}: moments must be one of {", ".join(MOMENTS)}, got {moments!r}.'
    )


def itself(child: Child) -> Child:
  """The control without mixing: the base is its own donor.

  With `mix`, a quarter of the child's own layers are shrunk and perturbed, and
  the architecture stays.
  """
  return lambda key, base, donor, init: child(key, base, base, init)


def copy() -> Child:
  """A clone of the base with all it has: population based training's exploit.

  Jaderberg et al. (2017), arXiv 1711.09846.
  """
  return lambda key, base, donor, init: base


def mutate(
  genes: Genes,
  *,
  fraction: float = 0.05,
  scale: float = 0.1,
  moments: str = 'zero',
) -> Child:
  """The base, of which with a third each nothing, weights or a gene change.

  The mutation-only baseline of PBT-NAS, after SEARL (Franke et al. 2021). It
  departs from SEARL's weight mutation in having no large and no resetting
  perturbations: each weight, with probability `fraction`, gets relative
  Gaussian noise. A gene that changes gets another of its options, and fresh
  weights for the layers it owns, in their average too.

  Args:
    genes: of the space.
    fraction: of weights that are perturbed.
    scale: standard deviation of the relative noise.
    moments: as of `mix`, of the layers of a gene that changes; there is no
      donor to take from.

  Raises:
    ValueError: for unknown `moments`.
  """
  _check_moments('mutate', moments)
  options = jnp.asarray(genes.options)

  def noisy(key, layers):
    leaves, structure = jax.tree.flatten(layers)
    keys = jax.random.split(key, len(leaves))

    def one(key, leaf):
      which, how = jax.random.split(key)
      hit = jax.random.bernoulli(which, fraction, leaf.shape)
      by = 1 + scale * jax.random.normal(how, leaf.shape, leaf.dtype)
      return jnp.where(hit, leaf * by, leaf)

    return structure.unflatten([one(k, x) for k, x in zip(keys, leaves)])

  def child(key, base, donor, init):
    del donor
    keys = jax.random.split(key, 5)
    kind = jax.random.randint(keys[0], (), 0, 3)
    took, found = jnp.zeros(base.genes.shape, bool), base.genes
    if genes.options:
      gene = jax.random.randint(keys[1], (), 0, len(genes.options))
      # Uniform over the other options of the gene.
      step = jax.random.randint(keys[2], (), 1, jnp.maximum(options[gene], 2))
      other = (base.genes[gene] + step) % options[gene]
      took = (jnp.arange(len(genes.options)) == gene) & (kind == 2)
      found = jnp.where(took, other.astype(base.genes.dtype), base.genes)
    fresh = init(keys[3], found, base.hyper)
    fresh = fresh._replace(
      average={name: fresh.layers[name] for name in base.body.average}
    )
    layers = jax.tree.map(
      lambda a, b: jnp.where(kind == 1, a, b),
      noisy(keys[4], base.body.layers),
      base.body.layers,
    )
    body = base.body._replace(layers=layers)
    body = _settled(
      taken(genes, took), body, fresh, fresh, fresh.layers, moments
    )
    return Member(body, found, base.hyper)

  return child


class Prior(NamedTuple):
  """The values of a hyper-parameter: log-uniform or uniform in [low, high]."""

  low: float
  high: float
  log: bool = True

  def sample(self, key: Key, shape: tuple[int, ...] = ()) -> jax.Array:
    """Values drawn from it."""
    if not self.log:
      return jax.random.uniform(key, shape, minval=self.low, maxval=self.high)
    low, high = np.log(self.low), np.log(self.high)
    return jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))


def _keys(key: Key, names: Iterable[str]) -> dict[str, Key]:
  """A key for each name, in their alphabetical order."""
  names = sorted(names)
  return dict(zip(names, jax.random.split(key, max(len(names), 1))))


def explore(
  priors: Mapping[str, Prior],
  *,
  factors: tuple[float, float] = (0.8, 1.2),
  resample: float = 0.0,
) -> Child:
  """The base with other hyper-parameters: perturbed, or drawn anew.

  Population based training's explore (Jaderberg et al. 2017): each is
  multiplied by one of two factors, and kept within its range; with probability
  `resample` it is drawn from its prior instead. Everything else is the base's,
  whose clone the child is.

  Args:
    priors: of the hyper-parameters; others are inherited.
    factors: one of which is drawn for each.
    resample: probability of a fresh draw.

  Example:
    >>> member = Member(Body({}), jnp.zeros(0), {'rate': jnp.array(1.0)})
    >>> child = explore({'rate': Prior(0.5, 2.0)}, factors=(2.0, 2.0))
    >>> float(child(jax.random.key(0), member, member, None).hyper['rate'])
    2.0
  """

  def child(key, base, donor, init):
    del donor, init
    hyper = dict(base.hyper)
    for name, own in _keys(key, priors).items():
      prior = priors[name]
      which, anew, fresh = jax.random.split(own, 3)
      factor = jax.random.choice(which, jnp.asarray(factors))
      value = jnp.clip(hyper[name] * factor, prior.low, prior.high)
      if resample:
        drawn = prior.sample(fresh, jnp.shape(value))
        again = jax.random.bernoulli(anew, resample, jnp.shape(value))
        value = jnp.where(again, drawn, value)
      hyper[name] = value
    return base._replace(hyper=hyper)

  return child


def jitter(
  priors: Mapping[str, Prior], *, scale: float = 0.1, probability: float = 1.0
) -> Child:
  """The base with Gaussian noise on its hyper-parameters.

  For those that may be zero or change sign, such as the coefficients of a loss,
  which no factor of `explore` can bring there.

  Args:
    priors: of the hyper-parameters, the ranges they are kept in; others are
      inherited.
    scale: standard deviation of the noise, in lengths of the prior's range, of
      logarithms where the prior is of them.
    probability: of each to change.

  Example:
    >>> member = Member(Body({}), jnp.zeros(0), {'c': jnp.array(0.0)})
    >>> child = jitter({'c': Prior(-1.0, 1.0, log=False)})
    >>> float(child(jax.random.key(0), member, member, None).hyper['c']) != 0
    True
  """

  def child(key, base, donor, init):
    del donor, init
    hyper = dict(base.hyper)
    for name, own in _keys(key, priors).items():
      which, how = jax.random.split(own)
      low, high, log = priors[name]
      noise = scale * jax.random.normal(how, jnp.shape(hyper[name]))
      if log:
        moved = hyper[name] * jnp.exp(noise * np.log(high / low))
      else:
        moved = hyper[name] + noise * (high - low)
      changes = jax.random.bernoulli(which, probability, jnp.shape(moved))
      moved = jnp.clip(moved, low, high)
      hyper[name] = jnp.where(changes, moved, hyper[name])
    return base._replace(hyper=hyper)

  return child


def crossover(probability: float = 0.5) -> Child:
  """The base with some hyper-parameters of the donor.

  Uniform crossover; weights, genes and all else are the base's.

  Args:
    probability: of each hyper-parameter to come from the donor.

  Raises:
    ValueError: for a probability outside [0, 1].

  Example:
    >>> base, donor = (Member(Body({}), jnp.zeros(0), {'rate': jnp.array(r)})
    ...                for r in (1.0, 2.0))
    >>> child = crossover(1.0)(jax.random.key(0), base, donor, None)
    >>> float(child.hyper['rate'])
    2.0
  """
  check_probability('crossover', probability)

  def child(key, base, donor, init):
    del init
    hyper = {
      name: jnp.where(
        jax.random.bernoulli(own, probability, jnp.shape(base.hyper[name])),
        donor.hyper[name],
        base.hyper[name],
      )
      for name, own in _keys(key, base.hyper).items()
    }
    return base._replace(hyper=hyper)

  return child


def following(first: Child, second: Child) -> Child:
  """A child made by one function, and then by another from that child alone.

  Example:
    >>> both = following(copy(), explore({'rate': Prior(0.1, 10.0)},
    ...                                  factors=(0.5, 0.5)))
    >>> one, two = (Member(Body({}), jnp.zeros(0), {'rate': jnp.array(r)})
    ...             for r in (1.0, 4.0))
    >>> float(both(jax.random.key(0), one, two, None).hyper['rate'])
    0.5
  """

  def child(key, base, donor, init):
    one, two = jax.random.split(key)
    made = first(one, base, donor, init)
    return second(two, made, made, init)

  return child
