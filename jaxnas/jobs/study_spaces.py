"""The spaces whose proxies `jaxnas.jobs.proxies` studies.

What the study asks of a space: genotypes, and of these the networks at any
width and image size, trained and scored.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import learners, network, programs
from jaxnas.base import ArraySpace, Key, Trainer
from jaxnas.estimators import zero_cost
from jaxnas.spaces import cell, cell_networks, nas_bench_201, supernet
from jaxnas.spec import Spec, Zero


class Networks(NamedTuple):
  """The networks of a space at one size.

  Attributes:
    spec: `spec(genotype) -> Spec`.
    trainer: `trainer(task, tx, epochs=, batch=, slots=) -> Trainer`.
    scorer: `scorer(name)` of a zero-cost proxy gives
      `score(key, genotypes, inputs, targets) -> (N,)`, each network with
      weights of its own; what it compiles it keeps.
  """

  spec: Callable[[Any], Spec]
  trainer: Callable[..., Trainer]
  scorer: Callable[[str], Callable[..., np.ndarray]]


class Choice(NamedTuple):
  """A space that can be studied.

  Attributes:
    space: its genotypes.
    networks: `networks(channels=, repeats=, classes=, shape=) -> Networks`.
    sides: of what number the sides of its images must be multiples,
    widths: and of what number its channels.
    connected: `connected(genotype)`, whether the output of its network depends
      on the input.
  """

  space: ArraySpace
  networks: Callable[..., Networks]
  sides: int
  widths: int
  connected: Callable[[np.ndarray], bool]


def _as_data(**size: Any) -> Networks:
  """Cells of NAS-Bench-201, which are data of one program."""
  net = supernet.nas_bench_201(**size)

  def scorer(name: str) -> Callable[..., np.ndarray]:
    score = functools.partial(zero_cost.score_genotypes, net, names=(name,))
    program = programs.jit(score)
    return lambda *given: np.asarray(program(*given)[name])

  return Networks(net.spec, functools.partial(learners.as_data, net), scorer)


def unrolled(spec: Callable[[Any], Spec]) -> Networks:
  """Networks of their own, of which each structure is compiled.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> nets = unrolled(lambda genes: seeds.mlp((2,), tuple(genes.tolist()), 3))
    >>> genotypes = np.array([[4], [5]])
    >>> x, y = np.ones((2, 2), np.float32), np.array([0, 1])
    >>> nets.scorer('params')(jax.random.key(0), genotypes, x, y).tolist()
    [27.0, 33.0]
  """

  def trainer(*given: Any, slots: int, **how: Any) -> Trainer:
    del slots  # The plan of `training.fit_all` says how many there are.
    return learners.unrolled(spec, *given, **how)

  def scorer(name: str) -> Callable[..., np.ndarray]:
    def score(key: Key, genotypes: Any, inputs: Any, targets: Any):
      def one(number: int, genotype: Any) -> float:
        weights, own = jax.random.split(jax.random.fold_in(key, number))
        net = network.init(spec(genotype), weights)
        batch = zero_cost.Batch(inputs, targets, own)
        return float(zero_cost.score_network(net, batch, name))

      return np.array([one(i, row) for i, row in enumerate(genotypes)])

    return score

  return Networks(spec, trainer, scorer)


def connected(spec: Spec) -> bool:
  """Whether the output of a network depends on its input.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> connected(seeds.mlp((2,), (4,), 3))
    True
  """
  reached = {spec.input}
  for node in spec.order:
    if reached.intersection(node.inputs) and not isinstance(node.op, Zero):
      reached.add(node.name)
  return spec.output in reached


def cells(grammar: cell.Grammar) -> Choice:
  """Cells of DARTS and its kin, `repeats` before, between and behind halvings.

  Example:
    >>> choice = cells(cell.ECONAS)
    >>> genotype = choice.space.sample(jax.random.key(0))
    >>> nets = choice.networks(
    ...     channels=2, repeats=1, classes=3, shape=(4, 4, 1))
    >>> nets.spec(genotype).shapes['logits']
    (3,)
  """

  def networks(*, repeats: int, **size: Any) -> Networks:
    def spec(genotype: Any) -> Spec:
      return cell_networks.darts(grammar, genotype, layers=3 * repeats, **size)

    return unrolled(spec)

  smallest = networks(channels=2, repeats=1, classes=2, shape=(4, 4, 1))
  return Choice(
    cell.space(grammar),
    networks,
    sides=4,
    widths=2,
    connected=lambda genotype: connected(smallest.spec(genotype)),
  )


SPACES: dict[str, Choice] = {
  'nas_bench_201': Choice(
    nas_bench_201.space(),
    _as_data,
    sides=4,
    widths=1,
    connected=lambda g: nas_bench_201.canonical(g, strict=True) != '#',
  ),
  'econas': cells(cell.ECONAS),
  'darts': cells(cell.DARTS),
}


def draw_networks(
  key: Key, choice: Choice, count: int, *, unconnected: bool = False
) -> np.ndarray:
  """Different networks of a space, uniformly as the space draws them.

  Args:
    key: of the draws.
    choice: the space.
    count: how many.
    unconnected: whether those may be among them whose output does not depend
      on the input.

  Returns:
    (count, L) genotypes.

  Raises:
    ValueError: if there are not so many.

  Example:
    >>> found = draw_networks(jax.random.key(0), SPACES['nas_bench_201'], 5)
    >>> found.shape, len(np.unique(found, axis=0))
    ((5, 6), 5)
  """
  found: dict[Any, np.ndarray] = {}
  drawn = jax.jit(jax.vmap(choice.space.sample))
  indices = jax.jit(jax.vmap(choice.space.index))
  for number in range(100):
    own = jax.random.split(jax.random.fold_in(key, number), 4 * count)
    genotypes = np.asarray(drawn(own))
    numbers = np.asarray(indices(genotypes)) if choice.space.size else None
    for place, genotype in enumerate(genotypes):
      name = tuple(genotype) if numbers is None else int(numbers[place])
      if name not in found and (unconnected or choice.connected(genotype)):
        found[name] = genotype
      if len(found) == count:
        return np.stack(list(found.values()))
  raise ValueError(
    f'--networks is {count}, and {choice.space.name} has hardly so many that '
    'differ and are connected.'
  )
