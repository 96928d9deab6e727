"""Bayesian optimisation with an ensemble: mutants chosen by Thompson draws."""

from jaxnas import estimators, stages
from jaxnas.base import ArraySpace, Stage
from jaxnas.stages import trials


def bananas(
  space: ArraySpace,
  query: Stage,
  *,
  judge: stages.Judge | None = None,
  first: int = 20,
  keep: int = 5,
  of: int = 5,
  mutants: int = 100,
  read: stages.Features | None = None,
) -> Stage:
  """One generation of a search like BANANAS.

  White, Neiswanger and Savani (2019), arXiv 1910.11858: an ensemble of
  perceptrons predicts accuracies, the acquisition is independent Thompson
  sampling, and is optimised over mutants of the best so far. Generation 0 asks
  random genotypes; each later one asks the `keep` mutants of the highest draws.

  Departs from the paper in the encoding, which is that of the space and not by
  paths; in the ensemble, five of 2 x 64 units where the official code has 10
  layers of 20; and in Huber's loss of standardised accuracies.

  Args:
    space: what is searched.
    query: answers questions, such as `stages.trials.query(table, 'val_ep200')`.
    judge: None for `stages.by_value` of the ensemble and `stages.thompson()`.
    first: random genotypes.
    keep: asked in a generation.
    of: best trials, whose mutants are proposed.
    mutants: proposed in a generation, half of them of one edit and half of two.
    read: features of a genotype; None for the space's code.

  Returns:
    A stage; g generations use `first + (g - 1) * keep` slots of trials.

  Raises:
    ValueError: for numbers below one, and for fewer than two mutants.

  Example:
    >>> import jax
    >>> from jaxnas import base, spaces
    >>> from jaxnas.run import rounds
    >>> space = spaces.tabular.independent('sum', (3,) * 4)
    >>> table = base.Table(space, {'score': jax.numpy.arange(81.0)})
    >>> query = trials.query(table, 'score')
    >>> small = estimators.mlp(widths=(8,), members=2, steps=20)
    >>> judge = stages.by_value(small, stages.thompson())
    >>> stage = bananas(
    ...     space, query, judge=judge, first=5, keep=5, mutants=20)
    >>> start = trials.start(space, 20)
    >>> last, _ = rounds(jax.random.key(0), stage, start, 4)
    >>> float(jax.numpy.nanmax(last.metrics['fitness']))
    80.0
  """
  if mutants < 2:
    raise ValueError(f'bananas: mutants must be at least 2, got {mutants!r}.')
  if judge is None:
    ensemble = estimators.mlp(widths=(64, 64), members=5)
    judge = stages.by_value(ensemble, stages.thompson())
  two = mutants // 2
  edited = trials.both(
    stages.wanderers(space, of=of, count=mutants - two, steps=1),
    stages.wanderers(space, of=of, count=two, steps=2),
  )
  return stages.guided(
    space,
    query,
    judge,
    edited,
    first=first,
    keep=keep,
    name='bananas',
    read=read,
  )
