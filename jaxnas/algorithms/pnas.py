"""Progressive NAS: from simple to complex, a predictor choosing the beam."""

from collections.abc import Sequence

from jaxnas import combine, estimators, stages
from jaxnas.base import ArraySpace, Stage
from jaxnas.stages import trials


def pnas(
  space: ArraySpace,
  query: Stage,
  base: Sequence[int],
  *,
  beam: int = 5,
  judge: stages.Judge | None = None,
) -> Stage:
  """One level of a progressive search.

  Liu et al. (2018), "Progressive Neural Architecture Search", arXiv 1712.00559.
  A network's level is the number of positions in which it differs from a base.
  Generation 0 asks all N networks of level 1. Each later one extends those that
  were asked last (all of level 1, then the beam) by one more position in all
  ways, and asks the `beam` that the judge, fitted to all trials, scores best.

  Departs from the paper in the ladder: there a level is a block more in a cell,
  and spaces of fixed length have none. On NAS-Bench-201 the ladder that works
  starts from all edges `skip_connect`, and it is a flattering prior: accuracies
  add up around it. From all edges `none` most extensions are dangling, and the
  search fails. So a search by it tests controller and predictor, and is no fair
  comparison of searches. Departs also in the predictor, here a bagged ridge on
  the code and its products, which share what an op means between levels, where
  the paper has recurrent networks; and in that a network is proposed once.

  Args:
    space: what is searched.
    query: answers questions, such as `stages.trials.query(table, 'val_ep12')`.
    base: (L,) the genotype of level 0, which is not asked itself.
    beam: K, asked in each level from the second on.
    judge: None for `stages.by_value` of five ridges on 4/5 of the trials each.

  Returns:
    A stage; g generations, of L at most, use `N + (g - 1) * beam` slots, N
    being the neighbours of a genotype.

  Raises:
    ValueError: for a base that is not of the space, or a beam below one.

  Example:
    >>> import jax
    >>> from jaxnas import base, spaces
    >>> from jaxnas.run import rounds
    >>> space = spaces.tabular.independent('sum', (3,) * 4)
    >>> table = base.Table(space, {'score': jax.numpy.arange(81.0)})
    >>> query = trials.query(table, 'score')
    >>> stage = pnas(space, query, (0,) * 4, beam=3)
    >>> start = trials.start(space, 8 + 3 * 3)
    >>> last, _ = rounds(jax.random.key(0), stage, start, 4)
    >>> (last.genotypes != 0).sum(axis=1).tolist()
    [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
  """
  if judge is None:
    judge = stages.by_value(estimators.ridge(members=5, share=0.8))
  every = stages.extensions(space, base, 0)
  width = len(every(None, trials.start(space, 1)))

  def level(parents: int) -> Stage:
    return combine.chain(
      trials.ask(stages.extensions(space, base, parents)),
      trials.only(stages.differs(base)),
      trials.unseen(space),
      stages.surrogate(space, judge, keep=beam, clip=0.0),
      query,
    )

  first = combine.chain(
    trials.ask(every),
    trials.only(stages.differs(base)),
    trials.keep(width),
    query,
  )
  return combine.chain(
    combine.when(lambda held: held.generation == 0, first),
    combine.when(lambda held: held.generation == 1, level(width)),
    combine.when(lambda held: held.generation > 1, level(beam)),
    name='pnas',
  )
