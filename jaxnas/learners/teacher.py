"""A separable teacher: a test of the machinery that mixes networks.

Every slot of the student reads its own part of the input and is added to the
output, so credit is additive and recombination helps by construction. That a
method wins here says that it works, and nothing about real tasks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnas import mixing
from jaxnas.base import Body, Genes, Key, Learner

# The options of a gene, in this order.
ACTIVATIONS = {
  'zero': jnp.zeros_like,
  'identity': lambda z: z,
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  'sine': lambda z: jnp.sin(3 * z),
  'square': lambda z: z**2 - 1,
  'bump': lambda z: jnp.exp(-(z**2)),
}

_SCALE = 0.8  # Standard deviation of incoming weights, teacher's and student's.


def _activated(genes: jax.Array, z: jax.Array) -> jax.Array:
  """(..., S, H) pre-activations through the activation of each slot."""
  which = [genes[None, :, None] == i for i in range(len(ACTIVATIONS))]
  which = [jnp.broadcast_to(mask, z.shape) for mask in which]
  return jnp.select(which, [f(z) for f in ACTIVATIONS.values()])


def _read(x: jax.Array, u: jax.Array) -> jax.Array:
  """(B, S, H) products of each slot's few inputs, fused into what follows."""
  return sum(x[:, :, i, None] * u[None, :, i] for i in range(x.shape[-1]))


def teacher(
  key: Key,
  *,
  slots: int = 40,
  inputs: int = 2,
  hidden: int = 8,
  teacher_hidden: int = 4,
  steps: int = 100,
  batch: int = 48,
  rate: float = 1e-2,
  points: tuple[int, int] = (1000, 4000),
) -> Learner:
  """A regression task whose teacher is drawn from the key.

  The specification's section 5.3, setting A; setting B is slots=12, inputs=3,
  hidden=12, teacher_hidden=6, steps=30, batch=64. Slot s of the teacher gives
  `o_s = v_s . a_s(x_s U_s)` with an activation `a_s` other than zero; each is
  standardised over 8,000 inputs, and the target is their sum over sqrt(slots),
  of variance 1. The student has the same form with biases; a slot's activation
  is a gene, which owns the slot's weights. It learns by Adam on the squared
  error of a fresh batch in each step. It reads no hyper-parameters, and its
  `init` refuses members that have some.

  Args:
    key: draws the teacher, and the points of fitness and of the test.
    slots: S, also the number of genes.
    inputs: coordinates of a slot's part of the input.
    hidden: units in a student's slot.
    teacher_hidden: units in a teacher's slot.
    steps: of a round.
    batch: inputs in a step.
    rate: of Adam.
    points: how many for the fitness, and for the test.

  Returns:
    A learner with the metrics `fitness`, the negated mean squared error,
    `error`, and `right`, the share of slots with the teacher's activation.

  Example:
    >>> from jaxnas import base
    >>> learner = teacher(jax.random.key(0), slots=3, steps=2)
    >>> genes = jnp.array([0, 1, 2])
    >>> body = learner.init(jax.random.key(1), genes, {}, learner.data)
    >>> member = base.Member(body, genes)
    >>> found = learner.measure(jax.random.key(2), member, learner.data)
    >>> sorted(found)
    ['error', 'fitness', 'right']
  """
  genes = Genes(
    (len(ACTIVATIONS),) * slots,
    {'slots': np.arange(slots)},
    tuple(f'slot{i}' for i in range(slots)),
    (tuple(ACTIVATIONS),) * slots,
  )
  tx = mixing.layered(optax.adam(rate), genes)

  def init(key, own, hyper, data):
    del own, data
    mixing.check_hyper('teacher', hyper)
    u, v = jax.random.split(key)
    layers = {
      'slots': {
        'u': _SCALE * jax.random.normal(u, (slots, inputs, hidden)),
        'b': jnp.zeros((slots, hidden)),
        'v': 0.1 * jax.random.normal(v, (slots, hidden)),
        'c': jnp.zeros(slots),
      }
    }
    return Body(layers, tx.init(layers))

  def outputs(layers, own, x):
    held = layers['slots']
    z = _read(x, held['u']) + held['b'][None]
    each = (_activated(own, z) * held['v'][None]).sum(axis=2)
    return (each + held['c'][None]).sum(axis=1)

  def answers(data, x):
    z = _read(x, data['u'])
    return (_activated(data['genes'], z) * data['v'][None]).sum(axis=2)

  def targets(data, x):
    each = answers(data, x) - data['mean'][None]
    return (each / data['deviation'][None]).sum(axis=1) / np.sqrt(slots)

  def error(layers, own, x, y):
    return jnp.square(outputs(layers, own, x) - y).mean()

  def train(key, member, data):
    def step(held, key):
      layers, moments = held
      x = jax.random.normal(key, (batch, slots, inputs))
      y = targets(data, x)
      grads = jax.grad(error)(layers, member.genes, x, y)
      updates, moments = tx.update(grads, moments, layers)
      return (optax.apply_updates(layers, updates), moments), None

    start = (member.body.layers, member.body.moments)
    keys = jax.random.split(key, steps)
    (layers, moments), _ = jax.lax.scan(step, start, keys)
    return member.body._replace(layers=layers, moments=moments)

  def measured(split):
    def measure(key, member, data):
      del key
      x, y = data[split]
      found = error(member.body.layers, member.genes, x, y)
      right = (member.genes == data['genes']).mean()
      return {'fitness': -found, 'error': found, 'right': right}

    return measure

  keys = jax.random.split(key, 6)
  data = {
    'genes': jax.random.randint(keys[0], (slots,), 1, len(ACTIVATIONS)),
    'u': _SCALE * jax.random.normal(keys[1], (slots, inputs, teacher_hidden)),
    'v': jax.random.normal(keys[2], (slots, teacher_hidden))
    / np.sqrt(teacher_hidden),
  }
  x = jax.random.normal(keys[3], (8000, slots, inputs))
  each = answers(data, x)
  data |= {'mean': each.mean(axis=0), 'deviation': each.std(axis=0)}
  for split, own, count in zip(('valid', 'test'), keys[4:], points):
    x = jax.random.normal(own, (count, slots, inputs))
    data[split] = (x, targets(data, x))
  return Learner(
    genes, init, train, measured('valid'), measured('test'), data, steps * batch
  )
