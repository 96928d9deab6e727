"""Image classifiers as members of an array population."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import mixing
from jaxnas.base import Body, Key, Learner, Member, Task
from jaxnas.spaces.conv_slots import Network, conv_slots
from jaxnas.tasks import losses

Objective = Callable[[jax.Array, jax.Array, Mapping[str, Any]], jax.Array]

# The loss coefficients that `by_taylor` reads, with the values that it takes
# for those a member does not have: half the squared distance of predictions
# and targets.
_COEFFICIENTS = dict(
  zip(
    (f'taylor_{name}' for name in losses.TAYLOR),
    (0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0),
  )
)

# Where to draw them from: a box about the half squared distance in which
# training works. 48 of 48 draws brought a multi-layer perceptron to 0.963 or
# more on the digits' validation split in 300 steps, where cross-entropy brought
# it to 0.981; of 48 draws with all coefficients in [-5, 5], and a and b in
# [-1, 1], two thirds failed to learn. `taylor_c1` changes nothing here.
TAYLOR_PRIORS: Mapping[str, mixing.Prior] = {
  'taylor_a': mixing.Prior(0.0, 0.5, log=False),
  'taylor_b': mixing.Prior(0.5, 1.0, log=False),
  'taylor_c2': mixing.Prior(0.5, 2.0, log=False),
  'taylor_c3': mixing.Prior(-1.0, 1.0, log=False),
  'taylor_c4': mixing.Prior(-3.0, -1.0, log=False),
  'taylor_c5': mixing.Prior(-1.0, 1.0, log=False),
  'taylor_c6': mixing.Prior(-1.0, 1.0, log=False),
}


class Teacher(NamedTuple):
  """A network whose predictions are targets, and how fit it was measured.

  Attributes:
    layers: its weights.
    genes: (G,) its genotype.
    fitness: not finite for none: then nothing is learned from it.
  """

  layers: Mapping[str, Any]
  genes: jax.Array
  fitness: jax.Array


def by_cross_entropy(
  logits: jax.Array, targets: jax.Array, hyper: Mapping[str, Any]
) -> jax.Array:
  """Softmax cross-entropy with (batch, classes) target probabilities.

  Example:
    >>> found = by_cross_entropy(jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]]), {})
    >>> round(float(found[0]), 4)
    0.6931
  """
  del hyper
  return optax.softmax_cross_entropy(logits, targets)


def by_taylor(
  logits: jax.Array, targets: jax.Array, hyper: Mapping[str, Any]
) -> jax.Array:
  """`tasks.taylor` with a member's own coefficients.

  They are hyper-parameters named `taylor_a` to `taylor_c6`, of which
  `TAYLOR_PRIORS` are priors. One that a member does not have is that of half
  the squared distance.

  Example:
    >>> y = jnp.array([[0.0, 1.0]])
    >>> float(by_taylor(jnp.zeros((1, 2)), y, {})[0])
    -0.25
  """
  found = [hyper.get(name, value) for name, value in _COEFFICIENTS.items()]
  coefficients = jnp.stack([jnp.asarray(value) for value in found])
  return losses.taylor(coefficients, logits, targets)


def classifier(
  task: Task,
  network: Network | None = None,
  *,
  steps: int = 100,
  batch: int = 64,
  objective: Objective = by_cross_entropy,
  tx: optax.GradientTransformation | None = None,
  measured: int = 256,
  **hyper: float,
) -> Learner:
  """Networks that learn to classify images.

  A round is so many steps on batches from one random order of the training
  images after another, prepared and augmented. A step is

      layers - learning_rate * (direction + weight_decay * layers)

  with the optimizer's direction of the mean objective. Targets are one-hot
  labels, of which `smoothing` is spread over all classes. Where `data` has a
  `Teacher` as `data['teacher']`, `distillation` of the targets are its
  predictions on the same images. These four are read from a member's
  hyper-parameters, or from `hyper`, or else are 1e-3, 0, 0 and 0.5; what the
  objective reads comes from there too.

  The teacher's predictions are no examples of an optimizer and so not counted
  by `examples`; they cost a forward pass in every step.

  Args:
    task: images with integer labels.
    network: a space as functions, such as `spaces.conv_slots(...)`, which is
      also the default, for the task's shape and classes.
    steps: of a round; `len(task.train.targets) // batch` are an epoch.
    batch: images in a step.
    objective: `objective(logits, targets, hyper) -> (batch,)` of (batch,
      classes) target probabilities: `by_cross_entropy`, `by_taylor` or another.
    tx: gives the direction, which is descended; None for
      `optax.scale_by_adam()`. It has no learning rate of its own.
    measured: images at a time in measuring.
    **hyper: settings of members that do not have their own.

  Returns:
    A learner with `data` a dict of the task's splits `train`, `valid` and
    `test`, and with the metrics `accuracy` and `loss`, the means of the task's
    metric and loss; `behaviour`, the metric of each image by itself; and
    `fitness`, the accuracy, in which equals are told apart by their loss. A
    member whose loss is not finite has no fitness (NaN).

  Raises:
    ValueError: for fewer than one step or image.

  Example:
    >>> from jaxnas import tasks
    >>> task = tasks.digits()
    >>> learner = classifier(task, steps=2, learning_rate=0.01)
    >>> len(learner.genes.options), learner.examples
    (12, 128)
    >>> genes = jnp.zeros(12, int)
    >>> body = jax.eval_shape(
    ...   learner.init, jax.random.key(0), genes, {}, learner.data)
    >>> found = jax.eval_shape(
    ...   learner.measure, jax.random.key(1), Member(body, genes), learner.data)
    >>> sorted(found), found['behaviour'].shape
    (['accuracy', 'behaviour', 'fitness', 'loss'], (270,))
  """
  for name, value in {'steps': steps, 'batch': batch}.items():
    if value < 1:
      raise ValueError(f'classifier: {name} must be at least 1, got {value}.')
  if network is None:
    network = conv_slots(task.shape, task.outputs)
  defaults = {
    'learning_rate': 1e-3,
    'weight_decay': 0.0,
    'smoothing': 0.0,
    'distillation': 0.5,
    **hyper,
  }
  tx = optax.scale_by_adam() if tx is None else tx
  tx = mixing.layered(tx, network.genes)
  data = {'train': task.train, 'valid': task.valid, 'test': task.test}

  def init(key, own, hyper, data):
    del hyper, data
    layers = network.init(key, own)
    return Body(layers, tx.init(layers))

  def targets(labels, inputs, settings, teacher):
    hot = jax.nn.one_hot(labels, task.outputs)
    found = optax.smooth_labels(hot, settings['smoothing'])
    if teacher is None:
      return found
    soft = jax.nn.softmax(network.apply(teacher.layers, teacher.genes, inputs))
    share = settings['distillation']
    mixed = (1 - share) * found + share * soft
    return jnp.where(jnp.isfinite(teacher.fitness), mixed, found)

  def train(key, member, data):
    settings = {**defaults, **member.hyper}
    teacher = data.get('teacher')
    order_key, step_key = jax.random.split(key)
    rows = _rows(order_key, len(data['train'].targets), steps, batch)

    def loss(layers, inputs, wanted):
      logits = network.apply(layers, member.genes, inputs)
      return objective(logits, wanted, settings).mean()

    def step(held, read):
      layers, moments = held
      rows, key = read
      images, labels = (x[rows] for x in data['train'])
      inputs = task.augment(key, task.prepare(images))
      wanted = targets(labels, inputs, settings, teacher)
      grads = jax.grad(loss)(layers, inputs, wanted)
      directions, moments = tx.update(grads, moments, layers)
      rate, decay = settings['learning_rate'], settings['weight_decay']
      layers = jax.tree.map(
        lambda w, d: w - rate * (d + decay * w), layers, directions
      )
      return (layers, moments), None

    start = (member.body.layers, member.body.moments)
    read = (rows, jax.random.split(step_key, steps))
    (layers, moments), _ = jax.lax.scan(step, start, read)
    return member.body._replace(layers=layers, moments=moments)

  def measurement(split):
    def measure(key, member, data):
      del key
      return _measured(task, network, member, data[split], measured)

    return measure

  return Learner(
    network.genes,
    init,
    train,
    measurement('valid'),
    measurement('test'),
    data,
    steps * batch,
  )


def _rows(key: Key, count: int, steps: int, batch: int) -> jax.Array:
  """(steps, batch) rows of `count`, one random order after another."""
  orders = -(-steps * batch // count)
  keys = jax.random.split(key, orders)
  rows = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
  return rows.ravel()[: steps * batch].reshape((steps, batch))


def _measured(task, network, member: Member, data, most: int):
  """Metrics of all examples of a split, so many at a time."""
  count = len(data.targets)
  size = min(most, count)
  # The last batch is filled up with the last example, and cut off after.
  rows = np.minimum(np.arange(-(-count // size) * size), count - 1)

  def part(rows):
    inputs = task.prepare(data.inputs[rows])
    logits = network.apply(member.body.layers, member.genes, inputs)
    wanted = data.targets[rows]
    return task.loss(logits, wanted), task.metric(logits, wanted)

  parts = jax.lax.map(part, rows.reshape((-1, size)))
  each, right = (values.ravel()[:count] for values in parts)
  loss, accuracy = each.mean(), right.mean()
  # Less than one example more or less; decides between equals alone.
  fitness = accuracy + jax.nn.sigmoid(-loss) / count
  return {
    'fitness': jnp.where(jnp.isfinite(loss), fitness, jnp.nan),
    'accuracy': accuracy,
    'loss': loss,
    'behaviour': right,
  }
