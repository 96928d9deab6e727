"""Stages that propose: candidates with a pending move each."""

from collections.abc import Callable, Iterable

from jaxnas import combine, morphisms, network
from jaxnas import spec as specs
from jaxnas.base import Population, Stage
from jaxnas.estimators.injection import sites
from jaxnas.morphisms import Morphism

Moves = Callable[[network.Network], Iterable[Morphism]]


def splits(
  make: Callable[..., Morphism] = morphisms.split, *, mass: float = 0.3
) -> Moves:
  """The split of every channel whose group can be scored.

  Args:
    make: `jaxnas.morphisms.split` or `free_split`.
    mass: see `jaxnas.morphisms.split`.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (2,), 3), jax.random.key(0))
    >>> len(list(splits()(net)))
    2
  """

  def moves(net):
    for name, size in sites(net.spec).columns:
      for channel in range(size):
        yield make({name: [channel]}, mass=mass)

  return moves


def prunes(make: Callable[..., Morphism] = morphisms.prune) -> Moves:
  """The prune of every channel whose group can be scored and has others.

  Args:
    make: `jaxnas.morphisms.prune` or `merge`.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (1,), 3), jax.random.key(0))
    >>> len(list(prunes(morphisms.merge)(net)))
    0
  """

  def moves(net):
    for name, size in sites(net.spec).columns:
      for channel in range(size if size > 1 else 0):
        yield make({name: [channel]})

  return moves


def inserts(
  *,
  kernel: tuple[int, int] = (3, 3),
  activation: str = 'relu',
  norm: bool = False,
) -> Moves:
  """A gated residual block behind every activation that one can follow.

  Args:
    kernel: of the new convolutions.
    activation: of the block.
    norm: whether a batch norm follows its first layer.

  Example:
    >>> import jax
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (2,), 3), jax.random.key(0))
    >>> [move.after for move in inserts()(net)]
    ['act1']
  """

  def moves(net):
    spec = net.spec
    for node in spec.nodes:
      shaped = len(spec.shapes[node.name]) in (1, 3)
      activated = isinstance(node.op, specs.Activation)
      if activated and shaped and node.name != spec.output:
        yield morphisms.insert(
          node.name,
          form='residual',
          kernel=kernel,
          activation=activation,
          norm=norm,
          name=f'{node.name}_block',
        )

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
