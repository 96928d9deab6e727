"""The stage that answers an array search by training what it asks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import combine, programs
from jaxnas.base import ArraySpace, Cost, Key, Stage, Trainer, Trials
from jaxnas.stages import rungs, trials


def _nothing(state: Any, mother: Any, child: Any) -> None:
  del state, mother, child


def teach(
  space: ArraySpace,
  trainer: Trainer,
  *,
  remember: int = 0,
  heir: Callable[[Any, Any, Any], Any] = _nothing,
) -> Stage:
  """Trains what is pending for a rung, and adds it to the trials.

  So every array search, written for tables, runs on real networks:
  `teach(space, trainer)` stands in the place of `query(table, ...)`. It works
  on the host, so the loop is `jaxnas.run.run`, with checkpoints between
  generations. What comes of a question depends on its key and its place in the
  generation, on nobody beside it.

  The cost of an answer is in training examples. Trials that know their `RUNGS`
  (`econas`, `halving`) let networks go on from where they were: their states
  are the trials' `memory`, and are saved with them.

  Args:
    space: of the genotypes.
    trainer: such as `learners.as_data(...)`.
    remember: the states of how many of the last slots are kept, for later
      questions to go on from; 0 where none does.
    heir: what a child begins with, `heir(state, mother, child)` of its
      mother's state and both genotypes; None, as by default, for fresh weights,
      `trainer.heir` to inherit hers.

  Returns:
    A stage.

  Raises:
    ValueError: when run, for a question that goes on from what was not
      remembered, and for other metrics than the trials hold.
  """

  answered = programs.jit(trials.answered)

  @programs.jit
  def asked(held: Trials):
    index = trials.number(space, held)
    return index, rungs.rung(held) if 'rung' in held.metrics else None

  def update(key: Key, held: Trials) -> Trials:
    if isinstance(held.pending, jax.core.Tracer):
      raise ValueError(
        'teach: networks are trained on the host; use jaxnas.run.run, and not '
        'rounds, jit or side_by_side.'
      )
    bare = held._replace(memory={}, spent=Cost(), generation=0)
    index, rung = jax.tree.map(np.asarray, asked(bare))
    first, room = int(held.count), held.index.shape[0]
    wanted = np.asarray(held.wanted) & (index >= 0)
    if first + len(wanted) > room:
      wanted = np.zeros_like(wanted)
    rows = np.flatnonzero(wanted)
    source = np.full(len(wanted), -1)
    if held.source is not None:
      source = np.asarray(held.source)
    taught = []
    if len(rows):
      keys = [jax.random.fold_in(key, int(row)) for row in rows]
      onward = np.zeros_like(wanted) if rung is None else rung > 1
      begin = [
        _begin(held, row, source[row], onward[row], heir) for row in rows
      ]
      taught = trainer.train(keys, np.asarray(held.pending)[rows], begin)
    found = {
      'fitness': np.full(len(wanted), np.nan, np.float32),
      'cost': np.zeros(len(wanted), np.float32),
    }
    found['fitness'][rows] = [each.fitness for each in taught]
    found['cost'][rows] = [each.examples for each in taught]
    if rung is not None:
      found |= {'rung': rung, 'source': source}
    found = {n: jnp.asarray(v, jnp.float32) for n, v in found.items()}
    made = answered(bare._replace(wanted=jnp.asarray(wanted)), index, found)
    spent = held.spent.add(
      examples=sum(each.examples for each in taught), evaluations=len(rows)
    )
    made = made._replace(spent=spent, generation=held.generation)
    kept = dict(held.memory)
    for row, each in zip(rows, taught):
      if rung is not None and rung[row] > 1:
        kept.pop(str(source[row]), None)
      kept[str(first + row)] = each.state
    oldest = int(made.count) - remember
    kept = {slot: own for slot, own in kept.items() if int(slot) >= oldest}
    return made._replace(memory=kept)

  return combine.stage(update, 'teach')


def _begin(held: Trials, row: int, source: int, onward: bool, heir) -> Any:
  """What a pending question begins with."""
  own = held.memory.get(str(source))
  if onward and own is None:
    raise ValueError(
      f'teach: a question goes on from slot {source}, whose network was not '
      f'remembered, only those of {sorted(map(int, held.memory))}; give a '
      'larger remember.'
    )
  if onward or own is None:
    return own
  mother, child = held.genotypes[int(source)], held.pending[row]
  return heir(own, np.asarray(mother), np.asarray(child))
