"""Stages in which a predictor chooses what an array search asks next.

A `Judge` learns from a search's trials and scores what is pending;
`surrogate` keeps the best of it. Judges differ in what they learn: what a
genotype is worth (`by_value`), what it is worth more than those nearby
(`by_difference`), or nothing (`by_chance`), so that a method and its controls
are one chain with another judge in one place. What it chooses among are
proposals, as of `jaxnas.stages.trials`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnas import combine
from jaxnas.base import ArraySpace, Key, Stage, Table, Trials, check_counts
from jaxnas.estimators import differences, predictors
from jaxnas.estimators.predictors import Params, Prediction
from jaxnas.spaces import tables, tabular
from jaxnas.stages import trials

Features = Callable[[jax.Array], jax.Array]
Acquisition = Callable[[Key, Prediction], jax.Array]


def wanderers(
  space: ArraySpace, *, of: int, count: int, steps: int = 2
) -> trials.Proposal:
  """What several random edits make of the best trials, (count, L).

  Two edits lead out of a local optimum, all of whose neighbours are known.

  Args:
    space: what is searched.
    of: how many of the best, of which one is drawn for each.
    count: how many.
    steps: edits of each.

  Raises:
    ValueError: for a number below one.

  Example:
    >>> space = tabular.transnas_micro()
    >>> held = trials.start(space, 4)
    >>> around = wanderers(space, of=1, count=3)(jax.random.key(0), held)
    >>> (around != 0).sum(axis=1).max() <= 2
    Array(True, dtype=bool)
  """
  check_counts('wanderers', of=of, count=count, steps=steps)

  def propose(key: Key, held: Trials) -> jax.Array:
    parents, _ = trials.best(held, of)

    def one(key):
      drawn = jax.random.split(key, steps + 1)
      genotype = parents[tabular.below(jax.random.bits(drawn[0]), of)]
      for own in drawn[1:]:
        genotype = space.mutate(own, genotype)
      return genotype

    return jax.vmap(one)(jax.random.split(key, count))

  return propose


def restarting(
  space: ArraySpace,
  propose: trials.Proposal,
  *,
  patience: int,
  least: int = 5,
) -> trials.Proposal:
  """Begins anew where the best has not become better for so many questions.

  A search among the neighbours of its best ends in a local optimum. Here its
  questions fall into episodes: one ends with the question that is `patience`
  questions after its best, and of earlier ones the proposal sees nothing. An
  episode begins with random genotypes, as many as the proposal would make,
  until `least` of its questions are answered. What was asked is never asked
  again (`trials.unseen`), and a judge learns from all of it.

  Args:
    space: what is searched.
    propose: of the trials of an episode, such as `trials.neighbours(space, 5)`.
    patience: questions, counted in slots.
    least: as many as the proposal needs to see, such as the 5 above.

  Returns:
    A proposal of as many.

  Raises:
    ValueError: for a number below one.

  Example:
    >>> space = tabular.independent('pair', (9, 9))
    >>> again = restarting(space, trials.neighbours(space), patience=2, least=1)
    >>> held = trials.start(space, 9)._replace(count=jnp.array(3))
    >>> def known(*fitness):
    ...   padded = jnp.full(9, jnp.nan).at[:3].set(jnp.array(fitness))
    ...   return held._replace(metrics={'fitness': padded})
    >>> def far(held):
    ...   return int((again(jax.random.key(0), held) > 0).all(axis=1).sum())
    >>> far(known(1.0, 2.0, 3.0)), far(known(3.0, 2.0, 1.0)) > 8
    (0, True)
  """
  check_counts('restarting', patience=patience, least=least)

  def again(key: Key, held: Trials) -> jax.Array:
    near_key, far_key = jax.random.split(key)
    fitness = held.metrics['fitness']
    own = jnp.arange(fitness.shape[0]) >= _begun(held, patience)
    seen = jnp.where(own, fitness, jnp.nan)
    view = held._replace(metrics={**held.metrics, 'fitness': seen})
    near = propose(near_key, view)
    far = trials.sampled(space, len(near))(far_key, held)
    enough = jnp.isfinite(seen).sum() >= least
    return jnp.where(enough, near, far.reshape(near.shape))

  return again


def _begun(held: Trials, patience: int) -> jax.Array:
  """The slot in which the episode began that the next question belongs to."""

  def step(carry, each):
    begun, best, at = carry
    slot, fitness = each
    better = fitness > best
    best, at = jnp.where(better, fitness, best), jnp.where(better, slot, at)
    over = (slot - at >= patience) & (slot < held.count)
    begun = jnp.where(over, slot + 1, begun)
    best, at = jnp.where(over, -jnp.inf, best), jnp.where(over, slot + 1, at)
    return (begun, best, at), None

  fitness = held.metrics['fitness']
  slots = jnp.arange(fitness.shape[0], dtype=jnp.int32)
  zero = jnp.zeros((), jnp.int32)
  start = (zero, jnp.asarray(-jnp.inf, fitness.dtype), zero)
  return jax.lax.scan(step, start, (slots, fitness))[0][0]


def extensions(
  space: ArraySpace, base: Sequence[int], parents: int
) -> trials.Proposal:
  """The youngest trials with one more position that differs from a base.

  The ladder of a progressive search: complexity is the number of positions in
  which a genotype is not the base. Where an edit is no step up the base stands,
  to be struck out by `trials.only(differs(base))`.

  Args:
    space: what is searched.
    base: (L,) where the ladder stands.
    parents: how many of the youngest; 0 for the base alone.

  Returns:
    A proposal of (N max(parents, 1), L).

  Raises:
    ValueError: for a base that is not a genotype of the space.

  Example:
    >>> space = tabular.transnas_micro()
    >>> first = extensions(space, (1,) * 6, 0)
    >>> first(jax.random.key(0), trials.start(space, 4)).shape
    (18, 6)
  """
  ground = jnp.asarray(base, jnp.int32)
  fits = len(base) == len(space.options) and all(
    0 <= value < count for value, count in zip(base, space.options)
  )
  if not fits:
    raise ValueError(
      f'extensions: base must have a value below each of {space.options}, got '
      f'{tuple(base)}.'
    )

  def propose(key: Key, held: Trials) -> jax.Array:
    del key
    from_ = trials.youngest(held, parents)[0] if parents else ground[None]

    def up(parent):
      near, legal = space.neighbours(parent)
      more = (near != ground[None]).sum(axis=1) > (parent != ground).sum()
      return jnp.where((legal & more)[:, None], near, ground[None])

    return jax.vmap(up)(from_).reshape(-1, len(base))

  return propose


def differs(base: Sequence[int]) -> Callable[[jax.Array], jax.Array]:
  """Whether a genotype is not the base, for `trials.only`.

  Example:
    >>> bool(differs((1, 1))(jnp.array([1, 0])))
    True
  """
  ground = jnp.asarray(base, jnp.int32)
  return lambda genotype: (genotype != ground).any()


class Known(NamedTuple):
  """What a judge learns from.

  Attributes:
    genotypes: (N, L).
    x: (N, F) their features.
    y: (N,) what they are worth, standardised; 0 where not known.
    use: (N,) whether it is known.
  """

  genotypes: jax.Array
  x: jax.Array
  y: jax.Array
  use: jax.Array


class Judge(NamedTuple):
  """Learns what is worth asking, as pure functions for `jit` and `vmap`.

  Attributes:
    init: `init(key, features) -> params`, of F features, knowing nothing.
    fit: `fit(key, params, known) -> params`, going on from the given ones.
    score: `score(key, params, known, x, genotypes) -> (M,)` of features (M, F)
      and genotypes (M, L); the largest are asked.
  """

  init: Callable[[Key, int], Params]
  fit: Callable[..., Params]
  score: Callable[..., jax.Array]


def expected() -> Acquisition:
  """The mean of the prediction.

  Example:
    >>> said = Prediction(jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0]))
    >>> expected()(jax.random.key(0), said).tolist()
    [1.0, 2.0]
  """
  return lambda key, said: said.mean


def upper(deviations: float) -> Acquisition:
  """The mean and so many deviations: the upper confidence bound.

  Example:
    >>> said = Prediction(jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0]))
    >>> upper(1.0)(jax.random.key(0), said).tolist()
    [4.0, 2.0]
  """
  return lambda key, said: said.mean + deviations * said.deviation


def thompson() -> Acquisition:
  """A draw for each genotype by itself, normal about the mean.

  Independent Thompson sampling, as of BANANAS (White, Neiswanger and Savani
  2019, arXiv 1910.11858).

  Example:
    >>> said = Prediction(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0]))
    >>> thompson()(jax.random.key(0), said).tolist()
    [1.0, 2.0]
  """

  def draw(key: Key, said: Prediction) -> jax.Array:
    normal = jax.random.normal(key, said.mean.shape)
    return said.mean + said.deviation * normal

  return draw


def by_value(
  predictor: predictors.Predictor, acquire: Acquisition | None = None
) -> Judge:
  """Scores by what a genotype is worth.

  Args:
    predictor: such as `jaxnas.estimators.ridge()`.
    acquire: what of its prediction is the score; None for `expected()`.

  Example:
    >>> judge = by_value(predictors.ridge(penalty=1e-3))
    >>> cells, x = jnp.eye(3, dtype=int), jnp.eye(3)
    >>> use = jnp.array([True, True, False])
    >>> known = Known(cells, x, jnp.array([1.0, 2.0, 0.0]), use)
    >>> params = judge.init(jax.random.key(0), 3)
    >>> params = judge.fit(jax.random.key(1), params, known)
    >>> said = judge.score(jax.random.key(2), params, known, x, cells)
    >>> said.argsort().tolist()
    [2, 0, 1]
  """
  acquire = expected() if acquire is None else acquire

  def fit(key: Key, params: Params, known: Known) -> Params:
    return predictor.fit(key, params, known.x, known.y, known.use)

  def score(key: Key, params: Params, known: Known, x: Any, genotypes: Any):
    del known, genotypes
    return acquire(key, predictor.predict(params, x))

  return Judge(predictor.init, fit, score)


def by_difference(
  difference: differences.Difference,
  *,
  reach: int = 3,
  over: str = 'mean',
) -> Judge:
  """Scores by differences from known genotypes nearby.

  The predictor learns from all pairs of known genotypes that differ in 1 to
  `reach` positions. The score of a genotype is that of a known one within
  reach and the difference predicted between the two, the mean over all such or
  the most. Where none is within reach the nearest ones count.

  Args:
    difference: such as `jaxnas.estimators.ridge_difference()`.
    reach: the most positions in which a pair differs.
    over: 'mean' or 'max'.

  Raises:
    ValueError: for a reach below one, or an unknown `over`.

  Example:
    >>> model = differences.ridge_difference(penalty=1e-3, context='none')
    >>> judge = by_difference(model, reach=1)
    >>> cells = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> x = jax.nn.one_hot(cells, 2).reshape((4, 4))
    >>> use = jnp.array([True, True, True, False])
    >>> known = Known(cells, x, jnp.array([0.0, 1.0, 2.0, 0.0]), use)
    >>> params = judge.init(jax.random.key(0), 4)
    >>> params = judge.fit(jax.random.key(1), params, known)
    >>> said = judge.score(jax.random.key(2), params, known, x, cells)
    >>> round(float(said[3]), 1)
    3.0
  """
  check_counts('by_difference', reach=reach)
  if over not in ('mean', 'max'):
    raise ValueError(
      f"by_difference: over must be 'mean' or 'max', got {over!r}."
    )

  def fit(key: Key, params: Params, known: Known) -> Params:
    apart = differences.edits(known.genotypes, known.genotypes)
    pairs = (apart >= 1) & (apart <= reach)
    pairs = pairs & known.use[:, None] & known.use[None, :]
    return difference.fit(
      key, params, known.x, known.y, pairs.astype(jnp.float32)
    )

  def score(key: Key, params: Params, known: Known, x: Any, genotypes: Any):
    del key
    said = difference.predict(params, known.x, x) + known.y[:, None]
    apart = differences.edits(known.genotypes, genotypes)
    apart = jnp.where(known.use[:, None], apart, genotypes.shape[1] + 1)
    near = apart <= jnp.maximum(apart.min(axis=0), reach)[None, :]
    near = near & known.use[:, None]
    if over == 'max':
      return jnp.where(near, said, -jnp.inf).max(axis=0)
    total = jnp.where(near, said, 0.0).sum(axis=0)
    return total / jnp.maximum(near.sum(axis=0), 1)

  return Judge(difference.init, fit, score)


def by_chance() -> Judge:
  """The control that knows nothing: scores are drawn uniformly.

  Example:
    >>> cells = jnp.zeros((4, 2), int)
    >>> said = by_chance().score(jax.random.key(0), (), None, cells, cells)
    >>> said.shape
    (4,)
  """

  def score(key: Key, params: Params, known: Known, x: Any, genotypes: Any):
    del params, known, x
    return jax.random.uniform(key, (len(genotypes),))

  return Judge(
    lambda key, features: (), lambda key, params, known: params, score
  )


def settled(judge: Judge, prior: Callable[[], Params]) -> Judge:
  """The judge that knows what it knew before, and learns nothing more.

  Offline: pairs of an earlier sample, of another data set or of a proxy teach
  it (`pretrained`), and the answers of the search do not. Judges of differences
  still add up what they know and what close genotypes are worth.

  Args:
    judge: such as `by_difference(...)`.
    prior: what it knows, such as `pretrained(judge, table, column, key=key)`.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.independent('small', (2, 2))
    >>> table = Table(space, {'other': jnp.array([0.0, 1.0, 2.0, 3.0])})
    >>> judge = by_value(predictors.ridge())
    >>> prior = pretrained(judge, table, 'other', key=jax.random.key(0))
    >>> knows = settled(judge, prior)
    >>> knows.fit(jax.random.key(1), prior(), None) is prior()
    True
  """
  return Judge(
    lambda key, features: prior(),
    lambda key, params, known: params,
    judge.score,
  )


def features(table: Table, columns: Sequence[str] = ()) -> Features:
  """What judges read of a genotype: its code, and columns of a table.

  Columns that cost nothing to know, such as zero-cost proxies and parameter
  counts, are standardised over the table, outliers clipped at 3 deviations;
  what is not finite there is 0, the mean.

  Args:
    table: gives the space and the columns.
    columns: their names.

  Returns:
    A function of one genotype, (L,), to (F + columns,).

  Raises:
    KeyError: for a column that the table has not.

  Example:
    >>> from jaxnas import spaces
    >>> space = spaces.tabular.independent('small', (2, 2))
    >>> table = Table(space, {'size': jnp.array([1.0, 2.0, 2.0, 3.0])})
    >>> [round(float(f), 2) for f in features(table, ['size'])(
    ...     jnp.array([1, 1]))]
    [0.0, 1.0, 0.0, 1.0, 1.41]
  """
  space = table.space
  if not columns:
    return space.encode
  held = [standardised(tables.column(table, name)) for name in columns]
  held = jnp.stack(held, axis=1)

  def read(genotype: jax.Array) -> jax.Array:
    row = space.index(genotype)
    free = jnp.where(row >= 0, held[row], 0.0)
    return jnp.concatenate([space.encode(genotype), free])

  return read


def standardised(column: jax.Array) -> jax.Array:
  """A column in deviations from its mean, within -3..3; 0 where not finite.

  Example:
    >>> standardised(jnp.array([1.0, 3.0, jnp.nan])).tolist()
    [-1.0, 1.0, 0.0]
  """
  number = jnp.isfinite(column)
  kept = jnp.where(number, column, jnp.nan)
  off = column - jnp.nanmean(kept)
  spread = jnp.maximum(jnp.nanstd(kept), 1e-12)
  return jnp.where(number, jnp.clip(off / spread, -3, 3), 0.0)


def targets(fitness: jax.Array, clip: float = 0.0) -> jax.Array:
  """Fitness as predictors learn it: the low tail clipped, standardised.

  Broken networks, at chance, would otherwise be most of a squared loss.

  Args:
    fitness: (N,), NaN where not known.
    clip: the quantile below which all is taken to be alike, in [0, 1).

  Returns:
    (N,), 0 where not known.

  Example:
    >>> found = targets(jnp.array([10.0, 90.0, 92.0, jnp.nan]), clip=0.5)
    >>> [round(float(value), 2) for value in found]
    [-0.71, -0.71, 1.41, 0.0]
  """
  known = jnp.isfinite(fitness)
  held = jnp.where(known, fitness, jnp.nan)
  held = jnp.maximum(held, jnp.nanquantile(held, clip))
  off = held - jnp.nanmean(held)
  spread = jnp.nanstd(held)
  return jnp.where(known, off / jnp.where(spread > 0, spread, 1.0), 0.0)


def surrogate(
  space: ArraySpace,
  judge: Judge,
  *,
  keep: int,
  read: Features | None = None,
  clip: float = 0.6,
  prior: Callable[[], Params] | None = None,
  refit: bool = True,
) -> Stage:
  """Of what is pending and wanted, keeps what a judge scores best.

  Args:
    space: of the genotypes.
    judge: learns the trials' fitness, and scores.
    keep: how many stay pending, the best first; those of them that are not
      wanted, because too few were, are not asked.
    read: features of a genotype; None for `space.encode`.
    clip: see `targets`.
    prior: `prior() -> params`, from which every fit goes on, such as
      `pretrained(...)`; None for the judge's own, which know nothing.
    refit: whether to fit anew in every generation, or once and never again:
      offline.

  Returns:
    A stage. Its state is what was learned.

  Raises:
    ValueError: for a `keep` below one or a clip outside [0, 1); when run, for
      fewer pending than `keep`.
  """
  check_counts('surrogate', keep=keep)
  if not 0 <= clip < 1:
    raise ValueError(f'surrogate: clip must be in [0, 1), got {clip!r}.')
  read = space.encode if read is None else read

  def learn(key: Key, held: Trials) -> tuple[Params, Known]:
    init_key, fit_key = jax.random.split(key)
    known = _known(held, read, clip)
    start = judge.init(init_key, known.x.shape[1]) if prior is None else prior()
    return judge.fit(fit_key, start, known), known

  def init(held: Trials):
    params, _ = jax.eval_shape(learn, jax.random.key(0), held)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    return empty, jnp.zeros((), bool)

  def update(key: Key, held: Trials, state):
    fit_key, score_key = jax.random.split(key)
    if refit:
      params, known = learn(fit_key, held)
    else:
      params, done = state
      known = _known(held, read, clip)
      params = jax.lax.cond(
        done, lambda: params, lambda: learn(fit_key, held)[0]
      )
    x = jax.vmap(read)(held.pending)
    scores = judge.score(score_key, params, known, x, held.pending)
    kept = trials.keep(keep, lambda key, held: scores)
    held, _ = kept.update(score_key, held, ())
    return held, (params, jnp.ones((), bool))

  return Stage(init, update, 'surrogate')


def guided(
  space: ArraySpace,
  query: Stage,
  judge: Judge,
  propose: trials.Proposal,
  *,
  first: int,
  keep: int,
  name: str,
  **how: Any,
) -> Stage:
  """One generation of a search in which a judge chooses among proposals.

  Generation 0 asks random genotypes; each later one strikes out of what is
  proposed all that was asked before, and asks what the judge scores best.

  Args:
    space: what is searched.
    query: answers questions, such as `trials.query(table, 'val_ep200')`.
    judge: learns from the trials, and scores.
    propose: what it chooses among.
    first: random genotypes.
    keep: asked in a generation.
    name: of the stage.
    **how: more arguments of `surrogate`.

  Returns:
    A stage; g generations use `first + (g - 1) * keep` slots of trials.

  Raises:
    ValueError: for numbers below one, and as `surrogate`.
  """
  founding = combine.chain(
    trials.ask(trials.sampled(space, first)), trials.unseen(space), query
  )
  later = combine.chain(
    trials.ask(propose),
    trials.unseen(space),
    surrogate(space, judge, keep=keep, **how),
    query,
  )
  return combine.chain(
    combine.when(lambda held: held.generation == 0, founding),
    combine.when(lambda held: held.generation > 0, later),
    name=name,
  )


def _known(held: Trials, read: Features, clip: float) -> Known:
  fitness = held.metrics['fitness']
  x = jax.vmap(read)(held.genotypes)
  return Known(held.genotypes, x, targets(fitness, clip), jnp.isfinite(fitness))


def pretrained(
  judge: Judge,
  table: Table,
  column: str,
  *,
  key: Key,
  examples: int = 500,
  read: Features | None = None,
  scale: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[], Params]:
  """Params that know another column, to go on from.

  Reading (a) of zero-cost proxies in Delta-NAS: a judge learns a proxy, such as
  `naswot`, of genotypes drawn from the space before it learns what they are
  worth. The column may as well be the accuracies of another data set, which
  cost as many trainings as there are examples. It is computed once, here. What
  goes on from it still learns (`surrogate(prior=...)`) or does not (`settled`).

  Args:
    judge: what learns.
    table: gives the space and the column.
    column: the proxy's name.
    key: for draws.
    examples: genotypes drawn.
    read: features of a genotype, as of the stage that goes on from here; None
      for `space.encode`.
    scale: `scale((size,) column) -> (size,)` as the judge learns it; None for
      `standardised`, or `targets` with a clip, as a search clips its answers.

  Returns:
    A `prior` of `surrogate`.

  Raises:
    KeyError: for a column that the table has not.
    ValueError: for no example.
  """
  check_counts('pretrained', examples=examples)
  space = table.space
  told = tables.column(table, column)
  values = (standardised if scale is None else scale)(told)
  measured = jnp.isfinite(told)
  read = space.encode if read is None else read

  def learn(key: Key) -> Params:
    draw_key, init_key, fit_key = jax.random.split(key, 3)
    cells = jax.vmap(space.sample)(jax.random.split(draw_key, examples))
    rows = jax.vmap(space.index)(cells)
    x = jax.vmap(read)(cells)
    use = (rows >= 0) & measured[rows]
    known = Known(cells, x, jnp.where(use, values[rows], 0.0), use)
    return judge.fit(fit_key, judge.init(init_key, x.shape[1]), known)

  params = jax.jit(learn)(key)
  return lambda: params
