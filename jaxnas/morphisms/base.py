"""What a morphism is, how moves compose, and how optimizer state follows.

A morphism is one pure function from network to network. Its architecture half
runs under `jax.eval_shape`, its weight half under `jax.jit`; on NumPy leaves
it runs on the host and compiles nothing.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import network
from jaxnas import spec as specs

Theta = Any
Tree = dict[str, Any]


class Morphism(Protocol):
  """A move: a frozen, hashable dataclass of plain values.

  Attributes:
    preserves: whether the move, at `theta = 0`, leaves the function of the
      network as it is in evaluation mode. `jaxnas.testing.check_morphism`
      holds a move to it.

  A move may also have `moments(spec, tree, power) -> tree`, which carries the
  first (`power` 1) or second (2) moments of an optimizer; see `carry`.
  """

  preserves: bool

  def init(self, net: network.Network, key: jax.Array) -> Theta:
    """Parameters of the move; may read shapes only. Zero is 'as inherited'."""
    ...

  def __call__(self, net: network.Network, theta: Theta) -> network.Network:
    """The moved network: pure, differentiable in variables and theta.

    Raises:
      ValueError: if the move is illegal for `net.spec`; under
        `jax.eval_shape` too, before anything is computed.
    """
    ...


def refuse(move: Any, problem: str, remedy: str) -> ValueError:
  """The error of an illegal move: what is wrong and what would be legal."""
  return ValueError(f'{move}: {problem}; {remedy}.')


def unpadded(move: Any, spec: specs.Spec) -> None:
  """Refuses what is stored at a capacity, on which most moves do not act."""
  if spec.optional:
    raise refuse(
      move,
      f'the nodes {list(spec.optional)} are optional',
      'extract the network first (jaxnas.morphisms.extract)',
    )
  if spec.padded:
    raise refuse(
      move,
      f'groups {list(spec.padded)} are stored at a capacity',
      'crop them to their active channels first (jaxnas.morphisms.crop)',
    )


def zeros(theta: Theta) -> Theta:
  """The parameters that leave everything as inherited."""
  return jax.tree.map(lambda leaf: leaf * 0, theta)


@dataclasses.dataclass(frozen=True)
class Identity:
  """The move that changes nothing."""

  preserves = True

  def init(self, net: network.Network, key: jax.Array) -> Theta:
    del net, key
    return ()

  def __call__(self, net: network.Network, theta: Theta) -> network.Network:
    del theta
    return net

  def moments(self, spec: specs.Spec, tree: Tree, power: int) -> Tree:
    del spec, power
    return tree


def identity() -> Identity:
  """The move that changes nothing; the neutral element of `compose`."""
  return Identity()


@dataclasses.dataclass(frozen=True)
class Composed:
  """Moves made one after another; build it with `compose`."""

  moves: tuple[Any, ...]

  @property
  def preserves(self) -> bool:
    return all(move.preserves for move in self.moves)

  def init(self, net: network.Network, key: jax.Array) -> Theta:
    thetas = []
    for i, move in enumerate(self.moves):
      thetas.append(move.init(net, jax.random.fold_in(key, i)))
      net = jax.eval_shape(move, net, thetas[-1])
    return tuple(thetas)

  def __call__(self, net: network.Network, theta: Theta) -> network.Network:
    for move, part in zip(self.moves, theta, strict=True):
      net = move(net, part)
    return net

  def moments(self, spec: specs.Spec, tree: Tree, power: int) -> Tree:
    for move in self.moves:
      tree = carry(move, spec, tree, power)
      spec = respec(move, spec)
    return tree


def compose(*moves: Morphism) -> Morphism:
  """The move that makes `moves` in order; theta is the tuple of theirs.

  Nested compositions are flattened, so composing is associative, and
  identities drop out.

  Example:
    >>> from jaxnas import morphisms
    >>> a, b = morphisms.widen({'dense1': 12}), morphisms.widen({'dense2': 9})
    >>> c = morphisms.identity()
    >>> compose(a, compose(b, c)) == compose(compose(a, b), c)
    True
  """
  flat = []
  for move in moves:
    flat += move.moves if isinstance(move, Composed) else [move]
  flat = [move for move in flat if not isinstance(move, Identity)]
  if not flat:
    return Identity()
  return flat[0] if len(flat) == 1 else Composed(tuple(flat))


@functools.lru_cache(maxsize=1024)
def respec(move: Morphism, spec: specs.Spec) -> specs.Spec:
  """The architecture half of a move: the spec it makes of `spec`.

  Raises:
    ValueError: if the move is illegal there.
  """
  net = network.shapes(spec)
  theta = jax.eval_shape(move.init, net, jax.random.key(0))
  return jax.eval_shape(move, net, theta).spec


def carry(move: Morphism, spec: specs.Spec, tree: Tree, power: int) -> Tree:
  """An optimizer's moments of the parameters, after the move.

  A move's own `moments` is used where it has one. Otherwise leaves that keep
  their place and shape keep their moments; new first moments are zero, and
  new second moments are the mean of the old ones: zero moments under an old
  step count would make the first Adam steps several times too long.

  Args:
    move: the move.
    spec: the spec before the move.
    tree: moments, a dict of nodes like `variables['params']`; leaves that
      are no arrays (`optax.MaskedNode`) stay.
    power: 1 for first moments, 2 for second.

  Returns:
    The moments, like the moved network's `variables['params']`.
  """
  if hasattr(move, 'moments'):
    return move.moments(spec, tree, power)
  after = network.shapes(respec(move, spec)).variables.get('params', {})
  return moved_moments(tree, after, power)


def moved_moments(tree: Tree, after: Tree, power: int) -> Tree:
  """Moments for the parameters `after`, kept where place and shape agree."""
  leaves = [x for x in jax.tree.leaves(tree) if np.size(x)]
  masked = [
    isinstance(leaf, optax.MaskedNode)
    for held in tree.values()
    for leaf in held.values()
  ]
  added = sorted(set(after) - set(tree))
  if any(masked) and added:
    raise ValueError(
      'the state of optax.masked or optax.multi_transform does not say '
      f'whether the new layers {added} belong to it; start it afresh with '
      "the optimizer's init."
    )
  dtype = jnp.result_type(*leaves) if leaves else np.dtype('float32')
  mean = 0.0
  if power == 2 and leaves:
    mean = sum(np.sum(x) for x in leaves) / sum(np.size(x) for x in leaves)

  def place(node: str, name: str, shape: jax.ShapeDtypeStruct) -> Any:
    old = tree.get(node, {}).get(name)
    kept = isinstance(old, optax.MaskedNode) or np.shape(old) == shape.shape
    if old is not None and kept:
      return old
    return np.full(shape.shape, mean, dtype)

  return {
    node: {name: place(node, name, leaf) for name, leaf in held.items()}
    for node, held in after.items()
  }


# The power of the gradient that optax's states hold, by class and field.
_POWERS = {
  ('EmaState', 'ema'): 1,
  ('MultiStepsState', 'acc_grads'): 1,
  ('ScaleByAdamState', 'mu'): 1,
  ('ScaleByAdamState', 'nu'): 2,
  ('ScaleByAmsgradState', 'mu'): 1,
  ('ScaleByAmsgradState', 'nu'): 2,
  ('ScaleByAmsgradState', 'nu_max'): 2,
  ('ScaleByBeliefState', 'mu'): 1,
  ('ScaleByBeliefState', 'nu'): 2,
  ('ScaleByLionState', 'mu'): 1,
  ('ScaleByOptimisticGradientState', 'trace'): 1,
  ('ScaleByRStdDevState', 'mu'): 1,
  ('ScaleByRStdDevState', 'nu'): 2,
  ('ScaleByRStdDevWithCountState', 'mu'): 1,
  ('ScaleByRStdDevWithCountState', 'nu'): 2,
  ('ScaleByRmsState', 'nu'): 2,
  ('ScaleByRmsWithCountState', 'nu'): 2,
  ('ScaleByRssState', 'sum_of_squares'): 2,
  ('TraceState', 'trace'): 1,
}


def carry_state(move: Morphism, spec: specs.Spec, opt_state: Any) -> Any:
  """An optax state after a move (growth specification, section 3.4).

  Momentum, Adam and its relatives, RMSProp, AdaGrad, Lion and accumulated
  gradients follow the move, also inside `optax.masked`, `multi_transform` and
  `inject_hyperparams`, and as the single vectors that `optax.flatten` makes of
  them; counts and hyper-parameters stay. Adamax keeps a norm where Adam keeps
  squares and cannot be told from it: its `nu` is carried as squares.

  Args:
    move: the move.
    spec: the spec before the move.
    opt_state: an optax state of the network's parameters.

  Returns:
    The state for the moved network's parameters.

  Raises:
    ValueError: for a state laid out like the parameters whose meaning is not
      known, or whose leaves have other shapes (factored moments).
  """
  params = network.shapes(spec).variables.get('params', {})
  size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))

  def carried(part: Any, owner: str, field: str) -> Any:
    if (owner, field) in _POWERS and np.shape(part) == (size,):
      power = _POWERS[owner, field]
      return _flat(carry(move, spec, _unflat(part, params), power))
    if isinstance(part, dict) and part and set(part) == set(params):
      power = _POWERS.get((owner, field))
      if power is None or not _fits(part, params):
        raise ValueError(
          f'{move}: the optimizer state {owner}.{field} cannot be carried '
          'through a move; use an optimizer made of '
          f'{sorted({name for name, _ in _POWERS})}, or start the state '
          "afresh with the optimizer's init."
        )
      return carry(move, spec, part, power)
    if isinstance(part, tuple) and hasattr(part, '_fields'):
      name = type(part).__name__
      return type(part)(
        *(carried(v, name, f) for v, f in zip(part, part._fields))
      )
    if isinstance(part, tuple | list):
      return type(part)(carried(v, owner, field) for v in part)
    if isinstance(part, dict):
      return {k: carried(v, owner, field) for k, v in part.items()}
    return part

  return carried(opt_state, '', '')


def _flat(tree: Tree) -> Any:
  """All numbers of a tree as one vector, in the order of `optax.flatten`."""
  leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(tree)]
  host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
  return (np if host else jnp).concatenate(leaves)


def _unflat(vector: Any, like: Tree) -> Tree:
  """The tree, of shapes `like`, whose numbers a vector has."""
  leaves, structure = jax.tree.flatten(like)
  stops = np.cumsum([math.prod(leaf.shape) for leaf in leaves])
  parts = (
    vector[stop - math.prod(leaf.shape) : stop].reshape(leaf.shape)
    for leaf, stop in zip(leaves, stops)
  )
  return jax.tree.unflatten(structure, parts)


def _fits(tree: Tree, params: Tree) -> bool:
  """Whether all leaves that are arrays have their parameter's shape."""
  return all(
    not hasattr(leaf, 'shape') or leaf.shape == params[node][name].shape
    for node, held in tree.items()
    if isinstance(held, dict)
    for name, leaf in held.items()
  )


def morph(
  move: Morphism,
  net: network.Network,
  key: jax.Array | None = None,
  *,
  theta: Theta = None,
  opt_state: Any = None,
) -> tuple[network.Network, Any]:
  """Makes a move on a network and its optimizer state.

  Args:
    move: the move.
    net: the network.
    key: for `move.init`, where `theta` is not given; without either, theta
      is zero.
    theta: the move's parameters.
    opt_state: the optax state of the network's parameters, or None.

  Returns:
    The moved network, and its optimizer state or None.

  Raises:
    ValueError: if the move is illegal for the network.

  Example:
    >>> import jax, optax
    >>> from jaxnas import morphisms, network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> state = optax.adam(1e-3).init(net.variables['params'])
    >>> net, state = morph(
    ...     morphisms.widen({'dense1': 12}), net, opt_state=state)
    >>> state[0].mu['logits']['kernel'].shape
    (12, 3)
  """
  if theta is None:
    start = jax.random.key(0) if key is None else key
    theta = move.init(net, start)
    theta = zeros(theta) if key is None else theta
  moved = move(net, theta)
  if opt_state is not None:
    opt_state = carry_state(move, net.spec, opt_state)
  return moved, opt_state
