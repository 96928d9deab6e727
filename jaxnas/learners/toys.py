"""Toys on which schedules of hyper-parameters win and lose.

Weights theta are to maximise `Q(theta) = 1.2 - sum(theta^2)`, but learn from a
surrogate that hyper-parameters h distort. Nothing is random, and a thousand
steps take a moment, so that what a member gains is the doing of its schedule
of h alone, and of whom it was copied from.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxnas.base import Body, Genes, Learner
from jaxnas.mixing import Prior

# What h is drawn from at first, and the range it is explored in.
START = {'h': Prior(0.9, 1.1, log=False)}
RANGE = {'h': Prior(1e-4, 1.1, log=False)}

_BEST = 1.2  # Q of theta = 0.


def reversed_weight(h: ArrayLike) -> jax.Array:
  """2 - h, the weight of the surrogate in PBT-Zoo's toys."""
  return 2 - jnp.asarray(h)


def _learner(train, dimensions: int, theta: float, steps: int, rest) -> Learner:
  """What both toys have in common: all but how they learn."""

  def init(key, genes, hyper, data):
    del key, genes, hyper, data
    return Body({'theta': jnp.full(dimensions, theta)}, {}, {}, rest)

  def measure(key, member, data):
    del key, data
    fitness = _BEST - jnp.square(member.body.layers['theta']).sum()
    return {'fitness': fitness}

  genes = Genes((), {'theta': -1}, ())
  return Learner(genes, init, train, measure, measure, (), steps)


def _check(name: str, **counts: int) -> None:
  for field, count in counts.items():
    if count < 1:
      raise ValueError(f'{name}: {field} must be at least 1, got {count!r}.')


def plain(
  *,
  dimensions: int = 1,
  weight: Callable[[jax.Array], jax.Array] = reversed_weight,
  steps: int = 20,
  rate: float = 1e-3,
  theta: float = 0.9,
) -> Learner:
  """The toy in which the greedy schedule of h is the best.

  Of the surrogate `S(theta, h) = 1.2 - sum_i w(h_i) theta_i^2` each step climbs
  the gradient,

      theta_i <- theta_i - 2 rate w(h_i) theta_i,

  so that after k steps theta_i is theta_i (1 - 2 rate w(h_i))^k, and the
  larger w, the better. With w(h) = h this is the example of Jaderberg et al.
  (2017), arXiv 1711.09846, Figure 2; with w(h) = 2 - h, the default, it is that
  of PBT-Zoo (the code of "To Be Greedy, or Not to Be", TMLR 2025), where h is
  best dropped to 0 at once. The figure's two workers and their values of h are
  the caller's.

  Args:
    dimensions: D, of theta and of h.
    weight: w, of (D,) values of `hyper['h']`; a scalar h is that of all.
    steps: of a round; T = 1000 steps are 50 rounds of 20.
    rate: step size.
    theta: where all coordinates start.

  Returns:
    A learner with the metric `fitness`, which is Q. Q is exact, so `test` is
    the same.

  Raises:
    ValueError: for steps or dimensions below one.

  Example:
    >>> from jaxnas.base import Member
    >>> learner = plain(steps=20)
    >>> body = learner.init(jax.random.key(0), jnp.zeros(0), {}, ())
    >>> member = Member(body, jnp.zeros(0), {'h': jnp.array(0.0)})
    >>> body = learner.train(jax.random.key(1), member, ())
    >>> bool(jnp.isclose(body.layers['theta'][0], 0.9 * 0.996**20))
    True
  """
  _check('plain', steps=steps, dimensions=dimensions)

  def train(key, member, data):
    del key, data
    by = 1 - 2 * rate * weight(member.hyper['h'])

    def step(i, theta):
      del i
      return theta * by

    found = jax.lax.fori_loop(0, steps, step, member.body.layers['theta'])
    return member.body._replace(layers={'theta': found})

  return _learner(train, dimensions, theta, steps, ())


def deceptive(
  *,
  total: int = 1000,
  steps: int = 20,
  period: int = 20,
  penalty: float = 0.2,
  rate: float = 1e-3,
  theta: float = 0.9,
) -> Learner:
  """The toy in which the greedy schedule of h is punished later.

  As `plain` with w(h) = 2 - h and one coordinate, but the member remembers how
  far its values of h were from the schedule that falls linearly from 1 to 0
  over all T steps. At the start of each period, of p steps, with t the steps
  taken, the value of h is entered,

      P <- P + penalty |h - (1 - t / T)|,

  and until the next one each step is

      theta <- theta - 2 rate max(2 - h - P, 0) theta.

  Dropping h at once makes the next steps longer, which a greedy search sees,
  and all later ones shorter, until theta stands still; along the linear
  schedule P stays 0. P and t are in `body.rest` and go with the weights to
  whoever copies them. The equations are those of PBT-Zoo's code, whose period
  is its round. Here they are two numbers, so that a round can be cut into
  pieces, at the ends of which a curve is measured.

  Args:
    total: T, steps of the whole search.
    steps: of a round, or of a piece of one; a divisor or a multiple of the
      period, lest h be entered in the middle of a round.
    period: p, after how many steps h is entered.
    penalty: how much a distance weighs.
    rate: step size.
    theta: where it starts.

  Returns:
    A learner with the metrics `fitness`, which is Q, and `penalty`, P. They are
    exact, so `test` is the same.

  Raises:
    ValueError: for numbers of steps below one, or steps and period of which
      neither divides the other.

  Example:
    >>> from jaxnas.base import Member
    >>> learner = deceptive()
    >>> body = learner.init(jax.random.key(0), jnp.zeros(0), {}, ())
    >>> member = Member(body, jnp.zeros(0), {'h': jnp.array(0.5)})
    >>> body = learner.train(jax.random.key(1), member, ())
    >>> round(float(body.rest['penalty']), 3), int(body.rest['step'])
    (0.1, 20)
  """
  _check('deceptive', total=total, steps=steps, period=period)
  if steps % period and period % steps:
    raise ValueError(
      f'deceptive: steps={steps} and period={period}; one must divide the '
      'other.'
    )

  def train(key, member, data):
    del key, data
    h = jnp.asarray(member.hyper['h'])

    def step(i, held):
      del i
      theta, rest = held
      away = jnp.abs(h - (1 - rest['step'] / total))
      due = rest['step'] % period == 0
      paid = rest['penalty'] + jnp.where(due, penalty * away, 0.0)
      theta = theta * (1 - 2 * rate * jnp.maximum(2 - h - paid, 0))
      return theta, {'penalty': paid, 'step': rest['step'] + 1}

    start = (member.body.layers['theta'], member.body.rest)
    found, rest = jax.lax.fori_loop(0, steps, step, start)
    return member.body._replace(layers={'theta': found}, rest=rest)

  rest = {'penalty': jnp.zeros(()), 'step': jnp.zeros((), jnp.int32)}
  learner = _learner(train, 1, theta, steps, rest)

  def measure(key, member, data):
    found = learner.measure(key, member, data)
    return {**found, 'penalty': member.body.rest['penalty']}

  return learner._replace(measure=measure, test=measure)
