"""Spaces of networks for images, as jobs that train them see one.

What a job asks of a space: genotypes, what makes children of them, and of any
genotype the network at a width, depth and image size, trained and scored;
whether all networks are one program (`nas_bench_201`) or each compiles
(`of_cells`).
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import learners, network, programs
from jaxnas.base import ArraySpace, Key, Trainer
from jaxnas.estimators import zero_cost
from jaxnas.network import Network
from jaxnas.spaces import cell, cell_networks
from jaxnas.spaces import nas_bench_201 as bench201
from jaxnas.spaces import supernet as supernets
from jaxnas.spec import Spec, Zero

# The halvings of an image in every skeleton here leave sides that are whole.
SIDES = 4


class Networks(NamedTuple):
  """The networks of a space at one size.

  Attributes:
    spec: `spec(genotype) -> Spec`.
    trainer: `trainer(task, tx, epochs=, batch=, slots=) -> Trainer`; `slots`
      may be left out.
    alone: `alone(net, genotype) -> Network`: what a trainer has taught, as an
      ordinary network on the host.
    scoring: `scoring(name, key, genotypes, inputs, targets)` of a zero-cost
      proxy yields, for some of the networks after others, a function of nothing
      that gives their scores, (n,), once: it is compiled before. Each network
      has weights of its own.
    supernet: all of them as one program; None where each compiles.
  """

  spec: Callable[[Any], Spec]
  trainer: Callable[..., Trainer]
  alone: Callable[[Any, Any], Network]
  scoring: Callable[..., Iterator[Callable[[], np.ndarray]]]
  supernet: supernets.Supernet | None = None


class ImageSpace(NamedTuple):
  """A space whose networks jobs train.

  Attributes:
    space: its genotypes.
    networks: `networks(channels=, layers=, classes=, shape=) -> Networks`, of
      so many cells in all; equal arguments give the same networks, so that
      what trains and scores them shares its programs.
    widths: of what number channels must be multiples,
    depths: and of what number layers.
    connected: `connected(genotype)`, whether the output of its network depends
      on the input.
    mutate: `mutate(keys, genotypes)`, children of (N, L) mothers.
    text: a genotype for people.
    data: whether its networks are one program.
  """

  space: ArraySpace
  networks: Callable[..., Networks]
  widths: int
  depths: int
  connected: Callable[[np.ndarray], bool]
  mutate: Callable[[jax.Array, jax.Array], jax.Array]
  text: Callable[[np.ndarray], str]
  data: bool


def as_data(net: supernets.Supernet) -> Networks:
  """Networks that are data of one program.

  Example:
    >>> nets = as_data(
    ...   supernets.nas_bench_201(channels=2, repeats=1, shape=(4, 4, 1)))
    >>> genotypes = np.array([[3] * 6, [1] * 6])
    >>> x, y = np.ones((2, 4, 4, 1), np.float32), np.array([0, 1])
    >>> given = jax.random.key(0), genotypes, x, y
    >>> [run().tolist() for run in nets.scoring('params', *given)]
    [[6000.0, 1296.0]]
  """

  def alone(variables: Any, genotype: Any) -> Network:
    return network.to_host(supernets.unrolled(net, variables, genotype))

  def scoring(name: str, *given: Any) -> Iterator[Callable[[], np.ndarray]]:
    score = functools.partial(zero_cost.score_genotypes, net, names=(name,))
    program = jax.jit(score, compiler_options=programs.options())
    program = program.lower(*given).compile()
    yield lambda: np.asarray(program(*given)[name])

  trainer = functools.partial(learners.as_data, net)
  return Networks(net.spec, trainer, alone, scoring, net)


def unrolled(spec: Callable[[Any], Spec]) -> Networks:
  """Networks of their own, of which each structure is compiled.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> nets = unrolled(lambda genes: seeds.mlp((2,), tuple(genes.tolist()), 3))
    >>> genotypes = np.array([[4], [5]])
    >>> x, y = np.ones((2, 2), np.float32), np.array([0, 1])
    >>> given = jax.random.key(0), genotypes, x, y
    >>> [run().tolist() for run in nets.scoring('params', *given)]
    [[27.0], [33.0]]
  """

  def trainer(*given: Any, slots: int | None = None, **how: Any) -> Trainer:
    del slots  # The plan of `training.fit_all` says how many there are.
    return learners.unrolled(spec, *given, **how)

  def alone(net: Network, genotype: Any) -> Network:
    del genotype  # It is in the network.
    return net

  def scoring(
    name: str, key: Key, genotypes: Any, inputs: Any, targets: Any
  ) -> Iterator[Callable[[], np.ndarray]]:
    for number, genotype in enumerate(genotypes):
      weights, own = jax.random.split(jax.random.fold_in(key, number))
      net = network.init(spec(genotype), weights)
      batch = zero_cost.Batch(inputs, targets, own)
      run = zero_cost.prepared(net, batch, name)
      yield lambda run=run: np.asarray(run())[None]

  return Networks(spec, trainer, alone, scoring)


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


def nas_bench_201() -> ImageSpace:
  """Cells of NAS-Bench-201, a third of them before each halving and the end.

  Its networks raise `ValueError` for layers that are no multiple of three.

  Example:
    >>> own = nas_bench_201()
    >>> nets = own.networks(channels=2, layers=3, classes=3, shape=(4, 4, 1))
    >>> nets.spec([3] * 6).shapes['logits'], own.text(np.array([0] * 5 + [3]))
    ((3,), '|none~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|')
  """
  stages, space = 3, bench201.space()

  @functools.lru_cache(maxsize=16)
  def networks(*, layers: int, **size: Any) -> Networks:
    repeats, rest = divmod(layers, stages)
    if rest:
      raise ValueError(
        f'nas_bench_201: layers must be a multiple of {stages}, got {layers}.'
      )
    return as_data(supernets.nas_bench_201(repeats=repeats, **size))

  return ImageSpace(
    space,
    networks,
    widths=1,
    depths=stages,
    connected=lambda g: bench201.canonical(g, strict=True) != '#',
    mutate=jax.vmap(space.mutate),
    text=bench201.text,
    data=True,
  )


def of_cells(grammar: cell.Grammar) -> ImageSpace:
  """Cells of DARTS and its kin, of which two halve the image.

  Children differ in one edge, or by an edit of the space where edges cannot be
  changed one by one.

  Example:
    >>> own = of_cells(cell.ECONAS)
    >>> genotype = own.space.sample(jax.random.key(0))
    >>> nets = own.networks(channels=2, layers=3, classes=3, shape=(4, 4, 1))
    >>> nets.spec(genotype).shapes['logits']
    (3,)
  """
  space = cell.space(grammar)

  @functools.lru_cache(maxsize=16)
  def networks(**size: Any) -> Networks:
    def spec(genotype: Any) -> Spec:
      return cell_networks.darts(grammar, genotype, **size)

    return unrolled(spec)

  free = not grammar.distinct and not grammar.combine
  smallest = networks(channels=2, layers=3, classes=2, shape=(4, 4, 1))
  return ImageSpace(
    space,
    networks,
    widths=2,
    depths=1,
    connected=lambda genotype: connected(smallest.spec(genotype)),
    mutate=jax.vmap(cell.edge_mutation(grammar) if free else space.mutate),
    text=lambda genotype: '-'.join(map(str, genotype)),
    data=False,
  )


SPACES: dict[str, ImageSpace] = {
  'nas_bench_201': nas_bench_201(),
  'econas': of_cells(cell.ECONAS),
  'darts': of_cells(cell.DARTS),
}
