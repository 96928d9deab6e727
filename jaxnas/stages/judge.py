"""Stages that judge: moves by an estimator, networks by measurement."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from jaxnas import combine, network, plans, training
from jaxnas.base import (
  Candidate,
  Estimator,
  Key,
  Population,
  Scores,
  Stage,
  Task,
)


def by_parent(
  members: Sequence[Candidate],
) -> Iterator[tuple[int, list[int]]]:
  """Numbers the parents, each with the positions of its candidates.

  A member that no `expand` made is its own parent. Two expands, as in two
  groups of a `group_by`, may number alike, so the networks must agree too.
  """
  found: list[list[int]] = []
  for i, member in enumerate(members):
    rows = next((r for r in found if _siblings(members[r[0]], member)), None)
    if rows is None:
      found.append([i])
    else:
      rows.append(i)
  yield from enumerate(found)


def _siblings(one: Candidate, two: Candidate) -> bool:
  """Whether two candidates are of one parent, by number and by network."""
  if one.parent is None or one.parent != two.parent:
    return False
  if one.net is two.net:
    return True
  if one.net.spec != two.net.spec:
    return False
  leaves = jax.tree.leaves(one.net), jax.tree.leaves(two.net)
  return all(map(np.array_equal, *leaves))


def learn(estimator: Estimator, task: Task, *, examples: int) -> Stage:
  """Learns the pending moves' parameters, all moves of a network at once.

  Args:
    estimator: its `fit` learns.
    task: gives training examples (its even rows), augmented as in training.
    examples: how many are drawn for each network, to learn from again and
      again.
  """

  def update(key: Key, population: Population) -> Population:
    members, spent = list(population.members), population.spent
    for number, rows in by_parent(members):
      rows = [i for i in rows if members[i].move is not None]
      if not rows:
        continue
      data_key, fit_key = jax.random.split(jax.random.fold_in(key, number))
      data = training.draw(data_key, task, examples, fold=0)
      net = members[rows[0]].net
      learned = estimator.fit(
        fit_key,
        net,
        [members[i].move for i in rows],
        [members[i].theta for i in rows],
        data,
        estimator.init(net),
      )
      for i, theta in zip(rows, learned.thetas, strict=True):
        members[i] = members[i]._replace(theta=theta)
      spent = spent.add(examples=learned.examples)
    return population._replace(members=tuple(members), spent=spent)

  return combine.stage(update, 'learn')


def judge(estimator: Estimator, task: Task, *, examples: int) -> Stage:
  """Scores the pending moves, all moves of a network in one pass.

  Adds to each candidate's metrics `predicted` (the loss change alone, in nats
  where `nats` is true), and for joint choice `linear`, `error` and
  `coefficients` (`jaxnas.base.Scores`). Examples come from the odd rows of the
  training split;
  `learn` uses the even ones, so moves are judged on others than they were
  learned from.

  Args:
    estimator: its `score` judges.
    task: gives training examples, augmented as in training.
    examples: how many are drawn for each network.
  """

  def update(key: Key, population: Population) -> Population:
    members, spent = list(population.members), population.spent
    for number, rows in by_parent(members):
      rows = [i for i in rows if members[i].move is not None]
      if not rows:
        continue
      data_key, score_key = jax.random.split(jax.random.fold_in(key, number))
      data = training.draw(data_key, task, examples, fold=1)
      net = members[rows[0]].net
      scores = estimator.score(
        score_key,
        net,
        [members[i].move for i in rows],
        [members[i].theta for i in rows],
        data,
        estimator.init(net),
      )
      for column, i in enumerate(rows):
        members[i] = scored(members[i], scores, column)
      spent = spent.add(examples=scores.examples)
    return population._replace(members=tuple(members), spent=spent)

  return combine.stage(update, 'judge')


def scored(member: Candidate, scores: Scores, column: int) -> Candidate:
  """The candidate with its column of the scores among its metrics."""
  coefficients = scores.coefficients[:, column]
  linear = float(scores.linear[column])
  metrics = {
    **member.metrics,
    'linear': linear,
    'error': float(scores.error[column]),
    'coefficients': coefficients,
    'predicted': linear + float(np.square(coefficients).mean()) / 2,
    'nats': scores.nats,
  }
  return member._replace(metrics=metrics)


def measure(
  task: Task,
  split: str = 'valid',
  *,
  plan: plans.Plan | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Stage:
  """Measures every network on a split, all of them on all devices.

  Adds `{split}_loss`, `{split}_metric`, `params` and `flops` to the metrics
  of every member.

  Args:
    task: the task.
    split: `'train'` or `'valid'`; the test split is for reports and is not
      to be had in a search.
    plan: which members are measured together, see `plans.strategy`.
    mesh: the devices, see `jaxnas.mesh`; None for all there are.

  Raises:
    ValueError: for any other split.
  """
  if split not in ('train', 'valid'):
    raise ValueError(
      "measure: split must be 'train' or 'valid' (the test split decides "
      f'nothing), got {split!r}.'
    )

  def update(key: Key, population: Population) -> Population:
    del key
    nets = [member.net for member in population.members]
    measured = training.evaluate_all(
      nets, task, getattr(task, split), plan=plan, mesh=mesh
    )
    members = []
    for member, found in zip(population.members, measured):
      metrics = {
        **member.metrics,
        f'{split}_loss': found.loss,
        f'{split}_metric': found.metric,
        'params': network.param_count(member.net),
        'flops': network.flops(member.net),
      }
      members.append(member._replace(metrics=metrics))
    spent = population.spent.add(evaluations=len(members))
    return population._replace(members=tuple(members), spent=spent)

  return combine.stage(update, 'measure')
