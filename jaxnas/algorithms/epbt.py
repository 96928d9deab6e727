"""EPBT: an evolution of hyper-parameters, among them those of the loss."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxnas import combine, mixing, selection, stages
from jaxnas.base import Learner, Members, Stage
from jaxnas.learners.images import Teacher


def pulsation(
  cycle: int = 5, *, elite: float = 0.5, multiple: float = 1.5
) -> Callable[[Members], jax.Array]:
  """Scores that are fitness, and in every `cycle`-th generation novelty too.

  Novelty pulsation (Shahrzad et al. 2019, arXiv 1906.04050). In a pulse the
  score is the place in `selection.novelty_order`, by the metric `behaviour`. A
  member that diverged has the score NaN in either.

  Args:
    cycle: generations from one pulse to the next; there is none in the first
      generation.
    elite: the part of members that are to stay.
    multiple: how many times as many to choose them from.

  Returns:
    A function of members to (N,) scores, for `by` of `stages.replace`.

  Raises:
    ValueError: for a cycle below one.

  Example:
    >>> metrics = {'fitness': jnp.array([4.0, 3.0, 2.0, 1.0]),
    ...            'behaviour': jnp.array([[0.0], [0.0], [1.0], [0.0]])}
    >>> score = pulsation(2)
    >>> [score(Members(None, metrics, None, generation)).tolist()
    ...  for generation in (1, 2)]
    [[4.0, 3.0, 2.0, 1.0], [0.0, -2.0, -1.0, -3.0]]
  """
  if cycle < 1:
    raise ValueError(f'pulsation: cycle must be at least 1, got {cycle!r}.')

  @jax.jit
  def score(fitness, behaviour, generation):
    stay = len(fitness) - int((1 - elite) * len(fitness))
    order = selection.novelty_order(fitness, behaviour, stay, multiple)
    place = (-jnp.argsort(order)).astype(fitness.dtype)
    place = jnp.where(jnp.isnan(fitness), jnp.nan, place)
    return jnp.where(generation % cycle == 0, place, fitness)

  def by(members: Members) -> jax.Array:
    missing = {'fitness', 'behaviour'} - {*members.metrics}
    if missing:
      raise ValueError(
        f'pulsation: members have no metric {", ".join(sorted(missing))}, they '
        f'have {sorted(members.metrics)}.'
      )
    return score(
      members.metrics['fitness'],
      members.metrics['behaviour'],
      members.generation,
    )

  return by


def distilled(learner: Learner, **where: Any) -> Stage:
  """Learning with the best member so far as a teacher.

  A stage in place of `stages.advance`, which keeps the fittest member ever
  measured in its state and gives it to the learner as `data['teacher']`;
  `learners.classifier` mixes its predictions with the labels. In the first
  round, when nothing is measured, there is no teacher.

  Args:
    learner: whose data are a dict.
    **where: `over` and `mesh`, see `stages.advance`.

  Raises:
    ValueError: for a learner whose data have no room for a teacher.
  """
  if not isinstance(learner.data, Mapping):
    raise ValueError(
      'distilled: the data of the learner must be a dict, to which a teacher '
      f'can be added, got {type(learner.data).__name__}.'
    )

  def place(members, index, fitness):
    layers, genes = jax.tree.map(
      lambda leaf: leaf[index],
      (members.member.body.layers, members.member.genes),
    )
    return Teacher(layers, genes, fitness)

  def init(members):
    return place(members, 0, jnp.array(-jnp.inf))

  def update(key, members, teacher):
    fitness = members.metrics['fitness']
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness)
    best = fitness.argmax()
    other = place(members, best, fitness[best])
    better = other.fitness > teacher.fitness
    teacher = jax.tree.map(
      lambda new, old: jnp.where(better, new, old), other, teacher
    )
    taught = learner._replace(data={**learner.data, 'teacher': teacher})
    members, _ = stages.advance(taught, **where).update(key, members, ())
    return members, teacher

  return Stage(init, update, 'advance')


def epbt(
  learner: Learner,
  priors: Mapping[str, mixing.Prior],
  *,
  pairing: selection.Pairing | None = None,
  child: mixing.Child | None = None,
  by: str | Callable[[Members], Any] | None = None,
  learn: Stage | None = None,
  **where: Any,
) -> Stage:
  """One generation of EPBT.

  Liang, Gonzalez, Shahrzad and Miikkulainen (2021), "Regularized Evolutionary
  Population-Based Training", arXiv 2002.04225. Members learn and are measured;
  then the better half stay as they are, and children of winners of tournaments
  take the other places: the winner's weights, and its hyper-parameters crossed
  with another's and mutated. With a learner whose loss is `by_taylor`, these
  are the loss. It is from the abstract and published code of others; rates of
  mutation and crossover, the cycle of pulses and the share of distillation are
  choices made here. The parts are arguments, and so are ablations:

      epbt(learner, priors, by='fitness')                  without novelty
      epbt(learner, priors, learn=stages.advance(learner)) without distillation
      epbt(learner, priors, child=mixing.jitter(priors))   without crossover

  Args:
    learner: what the members are, such as `learners.classifier(...)`.
    priors: of the hyper-parameters, the ranges they are kept in.
    pairing: who makes way for whom; None for `selection.tournaments()`.
    child: None for `crossover()` followed by `jitter(priors)`.
    by: the score; None for `pulsation()`.
    learn: how members learn; None for `distilled(learner)`.
    **where: `over` and `mesh`, see `stages.advance`.

  Example:
    >>> from jaxnas import learners
    >>> from jaxnas.run import run
    >>> learner, priors = learners.plain(steps=5), learners.toys.RANGE
    >>> start = stages.members(jax.random.key(0), learner, 4, priors)
    >>> stage = epbt(learner, priors, by='fitness',
    ...              learn=stages.advance(learner))
    >>> last, _ = run(jax.random.key(1), stage, start, 2)
    >>> last.spent.examples
    40
  """
  if pairing is None:
    pairing = selection.tournaments()
  if child is None:
    child = mixing.following(mixing.crossover(), mixing.jitter(priors))
  change = stages.replace(
    learner, pairing, child, by=pulsation() if by is None else by
  )
  return combine.chain(
    combine.when(lambda members: members.generation > 0, change),
    distilled(learner, **where) if learn is None else learn,
    stages.assess(learner, **where),
  )
