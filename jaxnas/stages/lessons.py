"""Training with a record: scores by epoch, fractions, and a budget."""

import functools
import math
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import (
  combine,
  network,
  programs,
  training,
)
from jaxnas import spec as specs
from jaxnas.base import Candidate, Key, Population, Stage, Task
from jaxnas.morphisms import base, blocks, width
from jaxnas.stages.bracket import Fitness, fittest, rolling
from jaxnas.stages.fit import realise, train
from jaxnas.stages.judge import by_parent, measure
from jaxnas.stages.likeness import Room, alike, stored
from jaxnas.stages.propose import refuse_pending

Epochs = float | Callable[[Candidate], float]
Lessons = Callable[[Epochs], Stage]


def per_epoch(task: Task, batch: int) -> int:
  """Training examples in an epoch: whole batches only.

  Example:
    >>> from jaxnas import tasks
    >>> per_epoch(tasks.digits(), 32)
    1152
  """
  count = len(task.train.targets)
  return count // min(batch, count) * min(batch, count)


def lessons(
  task: Task,
  tx: optax.GradientTransformation,
  *,
  batch: int,
  split: str = 'valid',
  budget: float = math.inf,
  room: Room = Room(),
) -> Lessons:
  """Training that measures and records every member after every epoch.

  `lessons(...)(epochs)` is a stage that trains every member for `epochs`, a
  number or `epochs(member)`; of a fraction q of an epoch the first int(q *
  batches) batches. After each epoch, or part of one, the metric on `split` is
  appended to the candidate's metric `history`, and what it trained to `epochs`;
  so both are data of the candidate, inherited by its children. One
  candidate comes out for each that goes in.

  The budget is hard: a member whose lesson would overshoot it is left as it
  is, and what is spent on others never exceeds it.

  Args:
    task: the task.
    tx: the optimizer; its state moves with each candidate.
    batch: examples in a step.
    split: whose metric is the score: `'valid'`, or `'train'` as the official
      code of ECToNAS has it.
    budget: of the whole search, in epochs (of `per_epoch` examples).
    room: what networks are stored with room for, see `alike`.

  Returns:
    `lesson(epochs) -> Stage`.

  Raises:
    ValueError: for another split or a budget below zero.

  Example:
    >>> import jax
    >>> from jaxnas import tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(seeds.mlp(task.shape, (4,), 10), jax.random.key(0))
    >>> stage = lessons(task, optax.adam(1e-2), batch=64, budget=1.0)(1.5)
    >>> start = Population((Candidate(net),))
    >>> last, _ = stage.update(jax.random.key(1), start, stage.init(start))
    >>> last.spent.examples, last.members[0].metrics  # It would overshoot.
    (0, {})
  """
  if not budget >= 0:
    raise ValueError(f'lessons: budget must not be negative, got {budget!r}.')
  look, size = measure(task, split), per_epoch(task, batch)

  def trained(epochs: float) -> Stage:
    learn = train(task, tx, epochs=epochs, batch=batch)
    noted = record(f'{split}_metric', epochs)
    return combine.chain(learn, look, noted)

  def lesson(epochs: Epochs) -> Stage:
    def update(key: Key, population: Population) -> Population:
      refuse_pending('lessons', population)
      needs = [
        epochs(m) if callable(epochs) else epochs for m in population.members
      ]
      room = budget - population.spent.examples / size
      parts = _parts(affordable(needs, room))
      for number, (part, who) in enumerate(parts):
        some = tuple(population.members[i] for i in who)
        own = jax.random.fold_in(key, number)
        stage = trained(part)
        chosen = population._replace(members=some)
        after, _ = stage.update(own, chosen, stage.init(chosen))
        members = list(population.members)
        for i, member in zip(who, after.members, strict=True):
          members[i] = member
        population = after._replace(members=tuple(members))
      return population

    return alike(combine.stage(update, 'lessons'), room=room)

  return lesson


def prepare(
  task: Task,
  tx: optax.GradientTransformation,
  *,
  batch: int,
  propose: Stage | None = None,
  room: Room = Room(),
) -> Stage:
  """Compiles what lessons of members and of their children will need.

  As many programs at a time as there are cores, and before the first is needed;
  where a search compiles for longer than it trains, it ends sooner by as much.
  The children are proposed while the programs of the members compile. For
  networks that `jaxnas.stages.alike` has room for, eight at a time; what others
  will be stored like is not known before. Nothing changes in the population,
  and nothing is spent.

  Args:
    task: as of `lessons`, as are `tx` and `batch`.
    propose: a stage that makes of parents children with pending moves, such as
      `stages.expand(stages.edits())`, to compile for these too; None for the
      members alone.
    room: as of `lessons`.

  Example:
    >>> import jax
    >>> from jaxnas import count_compilations, tasks
    >>> from jaxnas.spaces import seeds
    >>> task, tx = tasks.digits(), optax.adam(1e-2)
    >>> net = network.init(seeds.mlp(task.shape, (4,), 10), jax.random.key(0))
    >>> start = Population((Candidate(net),))
    >>> ready = combine.chain(prepare(task, tx, batch=64), note_parents())
    >>> start, _ = ready.update(jax.random.key(1), start, ready.init(start))
    >>> stage = lessons(task, tx, batch=64)(1)
    >>> with count_compilations() as compiled:
    ...   last, _ = stage.update(jax.random.key(2), start, stage.init(start))
    >>> last.spent.examples, len(compiled)
    (1152, 0)
  """

  def update(key: Key, population: Population) -> Population:
    def calls():
      done = set()
      for make in (lambda: population, lambda: children(key, population)):
        # Others share programs with whom they are trained beside.
        nets = {
          net.spec: net
          for net in stored(make(), room=room)
          if net.spec.optional and net.spec not in done
        }
        done |= set(nets)
        yield from training.calls([*nets.values()], task, tx, batch=batch)

    programs.compile_all(calls())
    return population

  def children(key: Key, population: Population) -> Population:
    if propose is None:
      return population._replace(members=())
    made = combine.chain(propose, realise())
    return made.update(key, population, made.init(population))[0]

  return combine.stage(update, 'prepare')


def annealed(
  lesson: Lessons, rate: Callable[[float], float], *, room: Room = Room()
) -> Lessons:
  """Lessons at a learning rate that changes with every epoch.

  The rate is data of the optimizer's state, so that no program is compiled for
  it but the one that the lessons before were trained by.

  Args:
    lesson: lessons with an optimizer of `optax.inject_hyperparams` that has a
      `learning_rate`.
    rate: the learning rate by the part of the lesson that is done, in [0, 1),
      such as `optax.cosine_decay_schedule(0.01, 1)`.
    room: as of the lessons.

  Returns:
    `lesson(epochs) -> Stage`, for a number of epochs.

  Raises:
    ValueError: by the stage, for a member whose optimizer's state has no
      learning rate, as that of one that was not trained yet.

  Example:
    >>> import jax
    >>> from jaxnas import tasks
    >>> from jaxnas.spaces import seeds
    >>> task = tasks.digits()
    >>> net = network.init(seeds.mlp(task.shape, (4,), 10), jax.random.key(0))
    >>> tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    >>> lesson = lessons(task, tx, batch=64)
    >>> rate = optax.cosine_decay_schedule(0.1, 1)
    >>> stage = combine.chain(lesson(1), annealed(lesson, rate)(2))
    >>> start = Population((Candidate(net),))
    >>> last, _ = stage.update(jax.random.key(1), start, stage.init(start))
    >>> state = last.members[0].opt_state
    >>> round(float(optax.tree.get(state, 'learning_rate')), 6)
    0.05
  """

  def by_epoch(epochs: float) -> Stage:
    parts = [
      part
      for number in range(math.ceil(epochs))
      for part in (
        _at_rate(float(rate(number / epochs))),
        lesson(min(1.0, epochs - number)),
      )
    ]
    return alike(combine.chain(*parts, name='annealed'), room=room)

  return by_epoch


def _at_rate(rate: float) -> Stage:
  """Sets every member's learning rate."""

  def one(member: Candidate) -> Candidate:
    if optax.tree.get(member.opt_state, 'learning_rate') is None:
      raise ValueError(
        'annealed: an optimizer state has no learning rate to set; train '
        'before, by an optimizer of optax.inject_hyperparams, such as '
        'optax.inject_hyperparams(optax.adam)(learning_rate=0.01).'
      )
    state = optax.tree.set(member.opt_state, learning_rate=np.float32(rate))
    return member._replace(opt_state=state)

  def update(key: Key, population: Population) -> Population:
    del key
    return population._replace(members=tuple(map(one, population.members)))

  return combine.stage(update, 'at_rate')


def affordable(needs: Iterable[float], room: float) -> list[float]:
  """The needs, in order, with zero for each that no room is left for.

  Example:
    >>> affordable([1.0, 5.0, 2.0], 3.5)
    [1.0, 0.0, 2.0]
  """
  granted = []
  for need in needs:
    given = need if need <= room + 1e-9 else 0.0
    granted.append(given)
    room -= given
  return granted


def _parts(needs: list[float]) -> list[tuple[float, list[int]]]:
  """Who trains how long, one epoch at most at a time, all at once."""
  parts = []
  for number in range(math.ceil(max(needs, default=0.0))):
    left = [min(need - number, 1.0) for need in needs]
    for part in sorted({x for x in left if x > 0}, reverse=True):
      parts.append((part, [i for i, x in enumerate(left) if x == part]))
  return parts


def record(metric: str, epochs: float) -> Stage:
  """Appends a metric to every member's `history`, and adds to its `epochs`.

  Args:
    metric: the score, such as `'valid_metric'`.
    epochs: what the member was trained before.

  Example:
    >>> stage = record('valid_metric', 1.0)
    >>> start = Population((Candidate(None, metrics={'valid_metric': 0.5}),))
    >>> last, _ = stage.update(None, start, ())
    >>> last.members[0].metrics['history'], last.members[0].metrics['epochs']
    ((0.5,), 1.0)
  """

  def one(member: Candidate) -> Candidate:
    held = member.metrics
    more = {
      'history': (*held.get('history', ()), float(held[metric])),
      'epochs': held.get('epochs', 0.0) + epochs,
    }
    return member._replace(metrics={**held, **more})

  def update(key, population: Population) -> Population:
    del key
    return population._replace(members=tuple(map(one, population.members)))

  return combine.stage(update, 'record')


def note_parents(*, last: int = 3) -> Stage:
  """Notes what children will be compared with, before they are proposed.

  Sets the metrics `parent_score`, `parent_params` and `parent_epochs` of every
  member to its own; children inherit them (see `relative` and `retrained`).

  Args:
    last: how many scores of the history count.
  """

  def one(member: Candidate) -> Candidate:
    noted = {
      'parent_score': rolling(member, last=last),
      'parent_params': network.param_count(member.net),
      'parent_epochs': member.metrics.get('epochs', 0.0),
    }
    return member._replace(metrics={**member.metrics, **noted})

  def update(key, population: Population) -> Population:
    del key
    return population._replace(members=tuple(map(one, population.members)))

  return combine.stage(update, 'note_parents')


def rehearsals(size: int, act: Callable[[Candidate], float]) -> Lessons:
  """Lessons that train nothing, for dry runs: they only pay and record.

  Args:
    size: examples that an epoch costs.
    act: the score that a member gets for a lesson.

  Example:
    >>> stage = rehearsals(1000, lambda member: 0.5)(0.25)
    >>> start = Population((Candidate(None),))
    >>> last, _ = stage.update(None, start, ())
    >>> last.spent.examples, last.members[0].metrics['history']
    (250, (0.5,))
  """

  def lesson(epochs: Epochs) -> Stage:
    def update(key, population: Population) -> Population:
      del key
      members, spent = [], population.spent
      for member in population.members:
        need = epochs(member) if callable(epochs) else epochs
        metrics = {**member.metrics, 'acted': act(member)}
        if member.net is not None:
          metrics['params'] = network.param_count(member.net)
        acted = Population((member._replace(metrics=metrics),))
        after, _ = record('acted', need).update(None, acted, ())
        members.extend(after.members)
        spent = spent.add(examples=round(need * size))
      return population._replace(members=tuple(members), spent=spent)

    return combine.stage(update, 'lessons')

  return lesson


def unspent(
  task: Task, *, batch: int, budget: float, least: float | Callable = 0.0
) -> Callable[[Population], bool]:
  """`unspent(...)(population)`: whether the budget allows more.

  Args:
    task: the task.
    batch: examples in a step.
    budget: of the whole search, in epochs.
    least: epochs that must be left, or `least(population)`; zero for any, as
      the official code of ECToNAS has it, which then overshoots.
  """
  size = per_epoch(task, batch)

  def allowed(population: Population) -> bool:
    spent = population.spent.examples / size
    need = least(population) if callable(least) else least
    return spent < budget and spent + need <= budget

  return allowed


def or_parents(inner: Stage) -> Stage:
  """Runs a stage that may leave nobody, and has the parents back if it does.

  Example:
    >>> nobody = or_parents(keep(lambda member: False))
    >>> start = Population((Candidate(None), Candidate(None)))
    >>> len(nobody.update(None, start, nobody.init(start))[0].members)
    2
  """

  def update(key: Key, population: Population, state):
    after, state = inner.update(key, population, state)
    if not after.members:
      after = after._replace(members=population.members)
    return after, state

  return inner._replace(update=update)


def retrained(member: Candidate) -> bool:
  """Whether a child was trained since its edit, so that its score is its own.

  Example:
    >>> metrics = {'epochs': 2.5, 'parent_epochs': 2.0}
    >>> retrained(Candidate(None, metrics=metrics))
    True
  """
  held = member.metrics
  return held.get('epochs', 0.0) > held.get('parent_epochs', -math.inf)


def keep(predicate: Callable[[Candidate], bool], name: str = 'keep') -> Stage:
  """Keeps the members for which `predicate` is true.

  Example:
    >>> stage = keep(lambda member: member.steps > 0)
    >>> start = Population((Candidate(None), Candidate(None, steps=1)))
    >>> len(stage.update(None, start, ())[0].members)
    1
  """

  def update(key, population: Population) -> Population:
    del key
    members = tuple(m for m in population.members if predicate(m))
    return population._replace(members=members)

  return combine.stage(update, name)


def top(count: int, fitness: Fitness) -> Stage:
  """Keeps the `count` fittest members, in their order; NaN ranks last.

  Raises:
    ValueError: for a count below one.

  Example:
    >>> stage = top(2, lambda member: member.steps)
    >>> start = Population(tuple(Candidate(None, steps=s) for s in (3, 1, 2)))
    >>> [m.steps for m in stage.update(None, start, ())[0].members]
    [3, 2]
  """
  if count < 1:
    raise ValueError(f'top: count must be at least 1, got {count}.')

  def update(key, population: Population) -> Population:
    del key
    scores = np.array([fitness(m) for m in population.members], float)
    order = np.argsort(-np.nan_to_num(scores, nan=-math.inf), kind='stable')
    kept = tuple(population.members[i] for i in sorted(order[:count]))
    return population._replace(members=kept)

  return combine.stage(update, 'top')


def finish(
  lesson: Lessons, fitness: Fitness, *, task: Task, batch: int, budget: float
) -> Stage:
  """Keeps the fittest member, and trains it for what is left of the budget.

  Args:
    lesson: trains, see `lessons`.
    fitness: says who is the fittest.
    task: the task.
    batch: examples in a step.
    budget: of the whole search, in epochs; whole epochs are trained.
  """
  size = per_epoch(task, batch)

  def update(key: Key, population: Population) -> Population:
    if not population.members:
      return population
    room = max(0, math.floor(budget - population.spent.examples / size))
    alone = population._replace(members=(fittest(population, fitness),))
    stage = lesson(room)
    return stage.update(key, alone, stage.init(alone))[0]

  return combine.stage(update, 'finish')


def sound(
  *, params: int = 7_999_999, growth: float = 3.0
) -> Callable[[Candidate], bool]:
  """Whether a child is not degenerate (ECToNAS, official `main.py`).

  Its weights are finite and its training did not diverge since the edit, it has
  at most `params` parameters, and outgrew its parent by less than `growth`.
  (Growth is measured as the gain: the official log has a child of 3.5 times its
  parent's parameters pass a limit of 300 %.)

  Args:
    params: parameters at most.
    growth: the gain over the parent's parameters (`parent_params`, if noted)
      in multiples of them.
  """

  def fine(member: Candidate) -> bool:
    size = network.param_count(member.net)
    before = member.metrics.get('parent_params', math.inf)
    diverged = member.lineage and member.lineage[-1].kind == 'diverged'
    leaves = jax.tree.leaves(member.net.variables)
    return (
      size <= params
      and size - before < growth * before
      and not diverged
      and all(np.isfinite(leaf).all() for leaf in leaves)
    )

  return fine


def calibrate(task: Task, *, examples: int = 128) -> Stage:
  """Fills pending moves' parameters with what one forward pass tells.

  Means of pruned channels move to the layers that read them, the batch norm of
  a new block gets the statistics of its input, and the non-linearity of a
  removed block is replaced by its line of least squares. Other moves keep
  their parameters as inherited. Spends the examples.

  Args:
    task: gives training examples, augmented as in training.
    examples: how many for each network.
  """

  def update(key: Key, population: Population) -> Population:
    members, spent = list(population.members), population.spent
    count = min(examples, len(task.train.targets))
    for number, rows in by_parent(members):
      rows = [i for i in rows if members[i].move is not None]
      if not rows:
        continue
      draw = jax.random.fold_in(key, number)
      inputs = training.draw(draw, task, count).inputs
      net = members[rows[0]].net
      found = network.to_host(_moments(net.spec)(net.variables, inputs))
      for i in rows:
        theta = informed(members[i].move, net, found)
        members[i] = members[i]._replace(theta=theta)
      spent = spent.add(examples=count)
    return population._replace(members=tuple(members), spent=spent)

  return combine.stage(update, 'calibrate')


@programs.kept
def _moments(spec: specs.Spec):
  """The compiled statistics of every node's channels over examples."""

  @functools.partial(jax.jit, compiler_options=programs.once())
  def moments(variables, inputs):
    call = network.caller(spec, variables)
    values = network.walk(spec, call, inputs)
    flat = {n: v.reshape((-1, v.shape[-1])) for n, v in values.items()}
    mean = {name: value.mean(axis=0) for name, value in flat.items()}
    var = {name: value.var(axis=0) for name, value in flat.items()}
    slope = {}
    for node in spec.nodes:
      if isinstance(node.op, specs.Activation):
        source = node.inputs[0]
        product = (flat[source] * flat[node.name]).mean(axis=0)
        cov = product - mean[source] * mean[node.name]
        spread = var[source]
        least = jnp.finfo(spread.dtype).tiny
        slope[node.name] = jnp.where(
          spread > least, cov / jnp.maximum(spread, least), 1.0
        )
    return {'mean': mean, 'var': var, 'slope': slope}

  return moments


@functools.singledispatch
def informed(move, net: network.Network, found) -> object:
  """A move's parameters from the statistics of the network it is made on.

  Args:
    move: the move; kinds that statistics do not help return None, so that
      their parameters are drawn.
    net: the network, with NumPy leaves.
    found: `{'mean', 'var', 'slope'}`, each `{node: (channels,)}`.
  """
  del move, net, found


@informed.register
def _(move: blocks.Labelled, net, found):
  return informed(move.move, net, found)


@informed.register
def _(move: base.Composed, net, found):
  # Statistics are of the network as it is, which is what the first part meets.
  first = informed(move.moves[0], net, found)
  if first is None:
    return None
  key = network.named_key(jax.random.key(0), repr(move))
  return (first, *network.to_host(move.init(net, key))[1:])


@informed.register
def _(move: blocks.AddBlock, net, found):
  del net
  mean, var = found['mean'][move.after], found['var'][move.after]
  # A channel that never varies would divide by nothing in training.
  return {'mean': mean, 'var': np.where(var > 0, var - 1, 0 * var)}


@informed.register
def _(move: blocks.RemoveBlock, net, found):
  slope, centre = 1.0, found['mean'][move.layer]
  tail = move.tail(net.spec)
  for node in tail:
    if isinstance(node.op, specs.Activation):
      slope = slope * found['slope'][node.name]
    if isinstance(node.op, specs.BatchNorm):
      centre = blocks.normalised(net, node, centre)
  shift = found['mean'][tail[-1].name] - slope * centre
  return {'slope': np.asarray(slope - 1 + 0 * shift), 'shift': shift}


@informed.register
def _(move: width.Prune, net, found):
  theta = {}
  for reader in move.compensated(net.spec):
    source = net.spec.by_name[reader].inputs[0]
    theta[reader] = found['mean'][source][move.dropped(net.spec, reader)]
  return theta
