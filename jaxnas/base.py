"""The protocol: candidates, populations, stages, estimators, tasks.

A search is a `Stage`, an `(init, update)` pair over populations, as an
optimizer in optax is an `(init, update)` pair over gradients. Everything here
is a value; nothing is changed in place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnas import network
from jaxnas.spec import Spec

Key = jax.Array
State = Any
Theta = Any


class Cost(NamedTuple):
  """What has been spent; it never decreases.

  Attributes:
    examples: training examples seen by any candidate's optimizer, with the
      examples used to learn or score moves counted too.
    evaluations: networks measured on a split.
    compilations: programs compiled by XLA in the processes that ran it.
    seconds: wall time of the stages.
    compiling: the part of `seconds` in which JAX traced, lowered or compiled.
  """

  examples: int = 0
  evaluations: int = 0
  compilations: int = 0
  seconds: float = 0.0
  compiling: float = 0.0

  def add(self, **amounts: float) -> 'Cost':
    """This cost with the given amounts added."""
    return self._replace(
      **{name: getattr(self, name) + by for name, by in amounts.items()}
    )


class Event(NamedTuple):
  """One entry of a candidate's lineage.

  Attributes:
    generation: the generation in which it happened.
    kind: `'move'`, `'rejected'` (a move undone on the second fold) or
      `'diverged'`.
    move: the move, or None.
    predicted: the loss change an estimator predicted, in nats, or None.
    measured: the loss change measured on the built network, or None.
  """

  generation: int
  kind: str
  move: Any = None
  predicted: float | None = None
  measured: float | None = None


class Candidate(NamedTuple):
  """A network with at most one pending move, and what is known of it.

  Attributes:
    net: the network.
    move: a pending move, not yet made; None for none.
    theta: the pending move's parameters; None if not yet drawn.
    opt_state: the optimizer's state, or None before training.
    metrics: measurements by name.
    steps: optimizer steps taken.
    born: the generation in which this candidate arose.
    lineage: what happened to its ancestors and itself, oldest first.
    parent: for a candidate with a pending move, the number of the member it
      was expanded from, so that all moves of one network are judged together.
  """

  net: network.Network
  move: Any = None
  theta: Theta = ()
  opt_state: Any = None
  metrics: Mapping[str, Any] = {}
  steps: int = 0
  born: int = 0
  lineage: tuple[Event, ...] = ()
  parent: int | None = None


class Population(NamedTuple):
  """Candidates, the generation they are in, and what they have cost.

  Attributes:
    members: the candidates that stages work on.
    generation: how many generations are complete.
    spent: what they have cost, those that are gone included.
    archive: candidates kept for the answer, whether members or not: the best
      of a search's history, or its Pareto front (`jaxnas.stages.remember`).
      They are trained and moved no more.
  """

  members: tuple[Candidate, ...]
  generation: int = 0
  spent: Cost = Cost()
  archive: tuple[Candidate, ...] = ()


class Stage(NamedTuple):
  """A step of a search.

  Attributes:
    init: `init(population) -> state`.
    update: `update(key, population, state) -> (population, state)`; leaves
      its arguments as they are, and spends what it says.
    name: folded into the key by `chain`, so that the same stage draws the
      same numbers wherever it stands.
  """

  init: Callable[[Population], State]
  update: Callable[[Key, Population, State], tuple[Population, State]]
  name: str


class Genes(NamedTuple):
  """What a genotype of integers stands for, and which weights a gene owns.

  Attributes:
    options: how many values each of the G genes may take.
    owner: for each layer of a body the number of the gene that owns it, or
      -1: an integer, or (S,) of them for a layer whose arrays have a leading
      axis of S slots. A gene may own several layers (a width and both its
      sides) or none (an activation).
    names: of the genes, for people.
    values: for each gene the names of its options, for people; or ().
  """

  options: tuple[int, ...]
  owner: Mapping[str, Any]
  names: tuple[str, ...]
  values: tuple[tuple[str, ...], ...] = ()


class Body(NamedTuple):
  """What a member of an array population learns.

  Attributes:
    layers: the parameters, by layer; the unit that members exchange.
    moments: the optimizer's state of each layer, see `mixing.layered`.
    average: a running average of some of the layers, or {}.
    rest: all else that is learned or remembered: batch statistics, replay,
      the state of environments. It never leaves its member.
  """

  layers: Mapping[str, Any]
  moments: Mapping[str, Any] = {}
  average: Mapping[str, Any] = {}
  rest: Any = ()


class Member(NamedTuple):
  """A body with its genotype, (G,) integers, and its hyper-parameters."""

  body: Body
  genes: jax.Array
  hyper: Mapping[str, jax.Array] = {}


class Learner(NamedTuple):
  """How one member of an array population learns, as pure functions.

  Architecture and hyper-parameters are data, so that members which differ in
  both are one program. `data` is passed to every function rather than
  captured, where it would be a constant of the program.

  Attributes:
    genes: the genotype.
    init: `init(key, genes, hyper, data) -> Body`, of fresh weights.
    train: `train(key, member, data) -> Body`, one round of learning.
    measure: `measure(key, member, data) -> metrics`, a dict of arrays with the
      scalar `fitness`, of which more is better: what is selected by.
    test: as `measure`, on what nothing is selected by.
    data: a pytree of arrays.
    examples: training examples (or environment steps) of a member's round.
  """

  genes: Genes
  init: Callable[..., Body]
  train: Callable[..., Body]
  measure: Callable[..., Mapping[str, jax.Array]]
  test: Callable[..., Mapping[str, jax.Array]]
  data: Any = ()
  examples: int = 0


class Members(NamedTuple):
  """A population of equal shapes as arrays with a leading axis of N members.

  Combinators and `run` work on it as on a `Population`; its stages are in
  `jaxnas.stages.arrays`, and run under `jit`, `vmap` and `scan` too.

  Attributes:
    member: a `Member` whose leaves are stacked.
    metrics: what the members were last measured at; a child that is not yet
      measured has NaN there.
    parents: (N, 2) who each member came from in its last generation, base and
      donor; its own number where it stayed.
    generation: how many generations are complete.
    spent: what they have cost.
  """

  member: Member
  metrics: Mapping[str, jax.Array]
  parents: jax.Array
  generation: int = 0
  spent: Cost = Cost()


class Space(NamedTuple):
  """Where architectures come from, as two functions.

  `jaxnas.testing.check_space` holds it to its laws.

  Attributes:
    sample: `sample(key) -> spec`, a random architecture.
    moves: `moves(spec) -> list of moves`, the steps to its neighbours, each
      legal for the spec and to a spec of the space.
  """

  sample: Callable[[Key], Spec]
  moves: Callable[[Spec], Sequence[Any]]


class ArraySpace(NamedTuple):
  """A space whose genotypes are integer arrays of one length L.

  All are pure functions of one genotype, for `jit` and `vmap`.

  Attributes:
    name: of the space.
    options: how many values each of the L positions may take; not every
      combination need be legal.
    size: how many different networks there are, 0 if they are not numbered.
    sample: `sample(key) -> (L,) int32`, uniform over what the benchmark's own
      random search draws from.
    mutate: `mutate(key, genotype) -> (L,) int32`, one edit, to a different
      legal genotype.
    crossover: `crossover(key, a, b) -> (L,) int32`, legal.
    neighbours: `neighbours(genotype) -> ((N, L) int32, (N,) bool)`, all single
      edits; False for those that leave the space.
    encode: `encode(genotype) -> (F,) float32`, features for predictors.
    index: `index(genotype) -> () int32`, the row of the network it stands for,
      in 0..size-1; isomorphic genotypes share one, illegal ones have -1.
  """

  name: str
  options: tuple[int, ...]
  size: int
  sample: Callable[[Key], jax.Array]
  mutate: Callable[[Key, jax.Array], jax.Array]
  crossover: Callable[[Key, jax.Array, jax.Array], jax.Array]
  neighbours: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
  encode: Callable[[jax.Array], jax.Array]
  index: Callable[[jax.Array], jax.Array]


class Table(NamedTuple):
  """Measurements of every network of a space.

  Attributes:
    space: whose networks they are.
    columns: by name, (size, ...) in the order of `space.index`; NaN where
      something was not measured.
  """

  space: ArraySpace
  columns: Mapping[str, Any]


class Trials(NamedTuple):
  """The population of an array search: all it has asked, in order.

  Combinators and `run` work on it as on a `Population`; its stages are in
  `jaxnas.stages.trials`. What a search calls its population (the youngest P,
  the best m) is a view of the trials.

  Attributes:
    genotypes: (Q, L) integers, Q slots for questions.
    index: (Q,) integers, the network of each question; -1 where a slot is
      empty, or what was proposed for it was illegal or not wanted.
    metrics: (Q,) by name, NaN where the index is -1: `fitness`, of which more
      is better, `cost` (of tables in seconds, of training in examples), and
      what else was asked for.
    count: slots used. It depends on nothing random, so that under `vmap` all
      searches write to one place.
    pending: (K, L) proposed and not yet asked; (0, L) between generations.
    wanted: (K,) which of them to ask.
    generation: how many generations are complete.
    spent: what they have cost; an evaluation is one question that was asked.
    source: (K,) the slot of the earlier question that a pending one goes on
      from, where networks are trained a rung at a time, and -1 for one that
      begins anew; None if all of them do.
    memory: the states of trained networks by slot, which others go on from;
      see `jaxnas.stages.teach`.
  """

  genotypes: jax.Array
  index: jax.Array
  metrics: Mapping[str, jax.Array]
  count: Any
  pending: jax.Array
  wanted: jax.Array
  generation: int = 0
  spent: Cost = Cost()
  source: jax.Array | None = None
  memory: Mapping[str, Any] = {}


class Taught(NamedTuple):
  """A network that a `Trainer` has trained for a rung.

  Attributes:
    state: what it can go on from, a pytree of NumPy arrays or a `Network`;
      never changed in place.
    fitness: of which more is better, on what it was not trained on; NaN where
      training diverged.
    examples: training examples seen in this rung.
  """

  state: Any
  fitness: float
  examples: int


class Trainer(NamedTuple):
  """How networks of genotypes are trained, a rung at a time.

  `jaxnas.learners` has them; `jaxnas.stages.teach` asks them.

  Attributes:
    train: `train(keys, genotypes, states) -> list of Taught` of K genotypes,
      (K, L), each with a key of its own, and a state to go on from, or None to
      begin from fresh weights. What becomes of one depends on nobody beside it.
    heir: `heir(state, mother, child) -> state` of a child, given the state of
      its mother and both genotypes: her weights, with a fresh optimizer.
  """

  train: Callable[..., Sequence[Taught]]
  heir: Callable[[Any, Any, Any], Any]


class Estimator(NamedTuple):
  """Scores moves of a network without making them.

  Attributes:
    init: `init(net) -> state`.
    score: `score(key, net, moves, thetas, data, state) -> Scores`.
    fit: `fit(key, net, moves, thetas, data, state) -> Learned`: learns the
      moves' parameters from data; thetas that are None are drawn.
  """

  init: Callable[[network.Network], State]
  score: Callable[..., 'Scores']
  fit: Callable[..., 'Learned']


class Learned(NamedTuple):
  """What an estimator's `fit` found.

  Attributes:
    thetas: the moves' parameters, in the order of the moves.
    state: the estimator's state.
    examples: examples it processed, repetitions counted.
  """

  thetas: Sequence[Theta]
  state: State
  examples: int


class Scores(NamedTuple):
  """Estimates for C moves from N examples, as NumPy arrays.

  The loss change of making the moves of a set S together is estimated by
  `sum(linear[S]) + sum(gram[S, S]) / 2` with `gram = rho.T @ rho / len(rho)`,
  `rho` being `coefficients` (growth specification, 1.3.6).

  Attributes:
    linear: (C,) first-order loss change of each move, in nats.
    coefficients: (draws * N, C) per-example curvature coefficients.
    error: (C,) standard error of the linear part.
    examples: N.
    nats: whether these are loss changes; if not, their order alone means
      something, and no prediction is recorded.
  """

  linear: np.ndarray
  coefficients: np.ndarray
  error: np.ndarray
  examples: int
  nats: bool = True

  def single(self) -> np.ndarray:
    """(C,) estimated loss change of each move made alone."""
    curvature = np.square(self.coefficients).mean(axis=0)
    return self.linear + curvature / 2


class Data(NamedTuple):
  """A split: inputs (N, ...) as stored, and targets (N,)."""

  inputs: jax.Array
  targets: jax.Array


class Task(NamedTuple):
  """The only door to data.

  Attributes:
    name: what it is called in results.
    shape: the shape of one prepared input, without the batch axis.
    outputs: the width of the network's output (classes).
    train: the split to fit.
    valid: the split for every decision of a search.
    test: the split for reports only.
    loss: `loss(outputs, targets) -> (batch,)`, in nats, of each example by
      itself: batches are filled up in measuring and may be split in training.
    metric: `metric(outputs, targets) -> (batch,)`, larger is better; of each
      example by itself.
    prepare: stored inputs to what the network reads.
    augment: `augment(key, prepared) -> prepared`, in training only.
  """

  name: str
  shape: tuple[int, ...]
  outputs: int
  train: Data
  valid: Data
  test: Data
  loss: Callable[[jax.Array, jax.Array], jax.Array]
  metric: Callable[[jax.Array, jax.Array], jax.Array]
  prepare: Callable[[jax.Array], jax.Array]
  augment: Callable[[Key, jax.Array], jax.Array]


def check_counts(name: str, **counts: int) -> None:
  """Refuses counts that are not whole numbers of at least 1.

  Args:
    name: of the function that was given them, for the message.
    **counts: what was given, by name.

  Raises:
    ValueError: naming the first that is not.

  Example:
    >>> check_counts('mlp', members=0)
    Traceback (most recent call last):
      ...
    ValueError: mlp: members must be a whole number of at least 1, got 0.
  """
  for field, count in counts.items():
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
      raise ValueError(
        f'{name}: {field} must be a whole number of at least 1, got {count!r}.'
      )


def rng(key: Key) -> np.random.Generator:
  """A NumPy generator for host decisions, a function of the key alone."""
  return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
