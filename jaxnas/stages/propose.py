"""Stages that propose: candidates with a pending move each."""

from collections.abc import Callable, Iterable

from jaxnas import combine, morphisms, network
from jaxnas.base import Population, Stage
from jaxnas.estimators.injection import sites
from jaxnas.morphisms import Morphism

Moves = Callable[[network.Network], Iterable[Morphism]]


def splits(*, mass: float = 0.3) -> Moves:
  """The split of every channel whose group can be scored.

  Args:
    mass: see `jaxnas.morphisms.split`.
  """

  def moves(net):
    for name, size in sites(net.spec).columns:
      for channel in range(size):
        yield morphisms.split({name: [channel]}, mass=mass)

  return moves


def prunes() -> Moves:
  """The prune of every channel whose group can be scored and has others."""

  def moves(net):
    for name, size in sites(net.spec).columns:
      for channel in range(size if size > 1 else 0):
        yield morphisms.prune({name: [channel]})

  return moves


def expand(*moves: Moves) -> Stage:
  """Replaces every member by a candidate for each move it can make.

  The network is not copied, and theta is left to be drawn by whoever needs
  it. Members without any move stay as they are.

  Args:
    *moves: `moves(net)`, the moves to propose.

  Raises:
    ValueError: for a member with a pending move.
  """

  def update(key, population: Population) -> Population:
    del key
    refuse_pending('expand', population)
    members = []
    for number, parent in enumerate(population.members):
      found = [move for propose in moves for move in propose(parent.net)]
      children = [
        parent._replace(move=move, theta=None, parent=number) for move in found
      ]
      members.extend(children or [parent])
    return population._replace(members=tuple(members))

  return combine.stage(update, 'expand')


def refuse_pending(stage: str, population: Population) -> None:
  """Refuses members with a pending move, saying what to add."""
  for i, member in enumerate(population.members):
    if member.move is not None:
      raise ValueError(
        f'{stage}: member {i} has a pending move, {member.move}; add '
        f'realise() before {stage}().'
      )
