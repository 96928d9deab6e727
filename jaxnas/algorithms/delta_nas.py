"""Delta-NAS: the neighbours of the best, by predicted differences."""

from collections.abc import Callable
from typing import Any

from jaxnas import estimators, stages
from jaxnas.base import ArraySpace, Stage
from jaxnas.stages import trials


def delta_nas(
  space: ArraySpace,
  query: Stage,
  *,
  judge: stages.Judge | None = None,
  first: int = 20,
  keep: int = 5,
  of: int = 5,
  wanderers: int = 60,
  propose: trials.Proposal | None = None,
  read: stages.Features | None = None,
  clip: float = 0.6,
  prior: Callable[[], Any] | None = None,
  offline: bool = False,
) -> Stage:
  """One generation of a search among close architectures.

  After the idea of Delta-NAS (Sridhar and Chen 2024, arXiv 2411.14498): what
  an edit of a good architecture changes is predicted from the difference of
  the encodings. The paper's code, predictor and budgets are not public, and
  this loop is the project's own. Generation 0 asks `first` random genotypes.
  Each later one

  1. proposes all single edits of the best `of` trials, and some of two random
     edits, which lead out of local optima;
  2. strikes out what was asked before;
  3. fits the judge to all trials, and asks the `keep` that it scores best.

  Controls are other judges: `stages.by_value(estimators.ridge())` predicts
  accuracies from the same features, `stages.by_chance()` asks any neighbour.
  What the paper leaves open are other parts: proxies are features (`read`) or
  are learned before (`prior`); a judge is fitted anew in every generation,
  once (`offline`), or never, having learned of another data set or a proxy
  (`stages.settled(judge, prior)`); out of local optima lead two edits at once
  (`wanderers`) or restarts (`propose=stages.restarting(...)`).

  Args:
    space: what is searched.
    query: answers questions, such as `stages.trials.query(table, 'val_ep200')`.
    judge: None for `stages.by_difference(estimators.ridge_difference())`.
    first: random genotypes.
    keep: asked in a generation.
    of: trials whose edits are proposed.
    wanderers: proposals of two edits.
    propose: what the judge chooses among, in place of step 1, `of` and
      `wanderers`.
    read: features of a genotype, such as `stages.features(table, proxies)`;
      None for the space's code.
    clip: quantile below which accuracies are taken to be alike.
    prior: what the judge knows before, such as `stages.pretrained(...)`.
    offline: fits once, to the first trials, and never again.

  Returns:
    A stage; g generations use `first + (g - 1) * keep` slots of trials.

  Raises:
    ValueError: for numbers below one, or a clip outside [0, 1).

  Example:
    >>> import jax
    >>> from jaxnas import base, spaces
    >>> from jaxnas.run import rounds
    >>> space = spaces.tabular.independent('sum', (3,) * 4)
    >>> table = base.Table(space, {'score': jax.numpy.arange(81.0) % 27})
    >>> query = trials.query(table, 'score')
    >>> stage = delta_nas(space, query, first=5, keep=5, wanderers=5)
    >>> start = trials.start(space, 20)
    >>> last, _ = rounds(jax.random.key(0), stage, start, 4)
    >>> float(jax.numpy.nanmax(last.metrics['fitness']))
    26.0
  """
  if judge is None:
    judge = stages.by_difference(estimators.ridge_difference())
  if propose is None:
    propose = trials.both(
      trials.neighbours(space, of),
      stages.wanderers(space, of=of, count=wanderers),
    )
  return stages.guided(
    space,
    query,
    judge,
    propose,
    first=first,
    keep=keep,
    name='delta_nas',
    read=read,
    clip=clip,
    prior=prior,
    refit=not offline,
  )
