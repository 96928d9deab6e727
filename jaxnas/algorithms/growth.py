"""Gauss-Newton growth of a network while it trains."""

import math
from collections.abc import Sequence

import optax

from jaxnas import combine, stages
from jaxnas.base import Estimator, Population, Stage, Task


def growth(
  task: Task,
  tx: optax.GradientTransformation,
  estimator: Estimator,
  rule: stages.Rule,
  *,
  moves: Sequence[stages.Moves] = (stages.splits(), stages.prunes()),
  epochs: int,
  batch: int,
  rounds: int,
  learn_examples: int = 4096,
  score_examples: int = 2048,
  tolerance: float = math.inf,
) -> Stage:
  """Grows a network where Gauss-Newton says that it pays.

  The idea of "Learning Morphisms with Gauss-Newton Approximation for Growing
  Networks" (Lawton, Galstyan, Ver Steeg, 2024): training alternates with
  growth. One generation

  1. trains the network for `epochs`;
  2. in the first `rounds` generations, proposes moves (to split and to prune
     every channel), learns the parameters of all of them at once on the
     estimator's own estimate, scores them on other examples, chooses a set by
     the rule (by its *joint* estimate under one price), makes it, and
     measures it on the validation split;
  3. measures the network.

  Departs from the paper in what is not public of it: the protocol (epochs,
  examples, joint choice by the Gram matrix, the price's unit) is this
  project's, see docs/design.md.

  Args:
    task: the task.
    tx: the optimizer; its state follows every move.
    estimator: such as `jaxnas.estimators.gauss_newton(steps=60)`; the judges
      beside it are controls.
    rule: such as `jaxnas.stages.jointly(price=1e-6)`, under which a split must
      gain what its parameters cost, and a prune may cost what it saves.
    moves: what is proposed, see `jaxnas.stages.splits`.
    epochs: of training in a generation.
    batch: training examples in a step.
    rounds: generations that grow; later ones only train.
    learn_examples: training examples to learn directions from, a round.
    score_examples: training examples to score moves on, a round.
    tolerance: nats that the validation loss may rise by a round's moves
      before they are undone.

  Returns:
    A stage, one generation of growth for every member of a population.

  Example:
    >>> import jax, optax
    >>> from jaxnas import base, estimators, network, run, tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> seed = seeds.chain(task.shape, (4, 'M', 4), task.outputs)
    >>> net = network.init(seed, jax.random.key(0))
    >>> stage = growth(task, optax.adam(1e-2), estimators.gauss_newton(),
    ...                stages.jointly(price=1e-6, limit=4),
    ...                epochs=1, batch=64, rounds=1)
    >>> start = base.Population((base.Candidate(net),))
    >>> grown, _ = run(jax.random.key(1), stage, start, until=1)
    >>> grown.generation, [e.kind for e in grown.members[0].lineage]
    (1, ['move'])
  """

  def growing(population: Population) -> bool:
    return population.generation < rounds

  grow = combine.chain(
    stages.expand(*moves),
    stages.learn(estimator, task, examples=learn_examples),
    stages.judge(estimator, task, examples=score_examples),
    stages.choose(rule),
    stages.realise(task, tolerance=tolerance),
    name='grow',
  )
  return combine.chain(
    stages.train(task, tx, epochs=epochs, batch=batch),
    combine.when(growing, grow),
    stages.measure(task),
    name='growth',
  )
