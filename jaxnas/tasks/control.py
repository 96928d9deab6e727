"""Small worlds to be controlled in, as pure functions.

An environment is a value: two functions and a few numbers. Its state is a
pytree of arrays, so that thousands run under `vmap`. `done` tells only of an
end by the environment's own rules; that an episode is also cut off after
`horizon` steps, and that another one begins, is the business of `proceed`,
because a value beyond the cut still counts and one beyond an end does not.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas.base import Key

State = Any

# By name, because it is no dependency of this project.
_GYMNAX = 'gymnax'


class Environment(NamedTuple):
  """A world, its actions and its rewards.

  Attributes:
    reset: `reset(key) -> (state, observation)`, the start of an episode.
    step: `step(key, state, action) -> (state, observation, reward, done)`,
      where an action is an integer, or (actions,) numbers, of which more than
      1 means no more than 1, and less than -1 no less.
    observation: the number of an observation's coordinates.
    actions: how many there are, or of how many coordinates.
    horizon: steps after which an episode is cut off.
    name: what it is called in results.
    continuous: whether an action is numbers.
  """

  reset: Callable[[Key], tuple[State, jax.Array]]
  step: Callable[..., tuple[State, jax.Array, jax.Array, jax.Array]]
  observation: int
  actions: int
  horizon: int
  name: str
  continuous: bool = False


class Running(NamedTuple):
  """An episode that goes on.

  Attributes:
    state: of the environment.
    observation: of that state.
    time: steps since the episode began.
  """

  state: State
  observation: jax.Array
  time: jax.Array


class Step(NamedTuple):
  """What came of an action.

  Attributes:
    observation: (observation,) that of the state it led to, which the next
      action does not see where the episode is over.
    reward: of the step.
    done: whether the episode ended by the environment's rules.
    over: whether it ended or was cut off.
  """

  observation: jax.Array
  reward: jax.Array
  done: jax.Array
  over: jax.Array


def begin(environment: Environment, key: Key) -> Running:
  """A new episode.

  Example:
    >>> begin(pendulum(), jax.random.key(0)).observation.shape
    (3,)
  """
  state, observation = environment.reset(key)
  return Running(state, observation, jnp.zeros((), jnp.int32))


def proceed(
  environment: Environment, key: Key, running: Running, action: jax.Array
) -> tuple[Running, Step]:
  """A step, after which another episode begins where this one is over.

  Args:
    environment: the world.
    key: for the step, and for the beginning of another episode.
    running: the episode.
    action: what is done.

  Returns:
    The same episode or the next one, and what came of the action.

  Example:
    >>> world = pendulum()._replace(horizon=1)
    >>> running = begin(world, jax.random.key(0))
    >>> running, step = proceed(world, jax.random.key(1), running, jnp.ones(1))
    >>> int(running.time), bool(step.over), bool(step.done)
    (0, True, False)
  """
  step_key, reset_key = jax.random.split(key)
  state, observation, reward, done = environment.step(
    step_key, running.state, action
  )
  going = Running(state, observation, running.time + 1)
  over = done | (going.time >= environment.horizon)
  anew = begin(environment, reset_key)
  after = jax.tree.map(lambda a, b: jnp.where(over, a, b), anew, going)
  return after, Step(observation, reward, done, over)


def episode_return(
  environment: Environment,
  key: Key,
  act: Callable[[Key, jax.Array], jax.Array],
) -> jax.Array:
  """The sum of the rewards of one episode.

  Args:
    environment: the world.
    key: of the episode.
    act: `act(key, observation) -> action`.

  Example:
    >>> still = lambda key, observation: jnp.zeros(1)
    >>> bool(episode_return(pendulum(), jax.random.key(0), still) < 5)
    True
  """
  first, rest = jax.random.split(key)

  def step(held, key):
    (state, observation), going = held
    act_key, step_key = jax.random.split(key)
    action = act(act_key, observation)
    state, observation, reward, done = environment.step(step_key, state, action)
    gained = jnp.where(going, reward, 0.0)
    return ((state, observation), going & ~done), gained

  keys = jax.random.split(rest, environment.horizon)
  start = (environment.reset(first), jnp.ones((), bool))
  return jax.lax.scan(step, start, keys)[1].sum()


def _moved(slope: Callable[..., jax.Array], y: jax.Array, by: float):
  """One step of the classical Runge-Kutta method of order four."""
  one = slope(y)
  two = slope(y + by / 2 * one)
  three = slope(y + by / 2 * two)
  four = slope(y + by * three)
  return y + by / 6 * (one + 2 * two + 2 * three + four)


def pendulum(
  *,
  gravity: float = 9.81,
  length: float = 1.0,
  mass: float = 1.0,
  torque: float = 3.0,
  seconds: float = 0.05,
  horizon: int = 200,
) -> Environment:
  """A pendulum that is to be swung up by a motor too weak to lift it.

  A point mass m on a rod of length l without weight or friction, its angle
  measured from the upright:

      m l^2 angle'' = m g l sin(angle) + u,   |u| <= torque,

  whose energy m l^2 angle'^2 / 2 + m g l cos(angle) changes by u angle' a
  second (Astrom and Furuta 2000, "Swinging up a pendulum by energy control").
  The state is (angle, speed) in rad and rad/s, advanced by a Runge-Kutta step
  of order four. It starts near the lowest point, at most 0.2 rad and rad/s
  from rest there. A step's reward is

      (1 + cos(angle)) / 2 * exp(-speed^2 / 8),

  from 0, hanging, to 1, at rest upright, and little while it spins. The
  observation is (cos, sin, speed / 8). An episode never ends by itself.

  Args:
    gravity: g, in m/s^2.
    length: l, in m.
    mass: m, in kg.
    torque: that of an action of one, in N m; it should be less than m g l.
    seconds: of a step.
    horizon: steps of an episode.

  Example:
    >>> world = pendulum()
    >>> state, _ = world.reset(jax.random.key(0))
    >>> float(world.step(None, jnp.zeros(2), jnp.zeros(1))[2])
    1.0
  """

  def look(state):
    angle, speed = state
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed / 8])

  def reset(key):
    state = jax.random.uniform(key, (2,), minval=-0.2, maxval=0.2)
    state += jnp.array([np.pi, 0.0])
    return state, look(state)

  def step(key, state, action):
    del key
    u = torque * jnp.clip(action[0], -1, 1)

    def slope(y):
      angle, speed = y
      turning = mass * gravity * length * jnp.sin(angle) + u
      return jnp.stack([speed, turning / (mass * length**2)])

    state = _moved(slope, state, seconds)
    angle, speed = state
    reward = (1 + jnp.cos(angle)) / 2 * jnp.exp(-(speed**2) / 8)
    return state, look(state), reward, jnp.zeros((), bool)

  return Environment(reset, step, 3, 1, horizon, 'pendulum', continuous=True)


def cart_pole(
  *,
  gravity: float = 9.8,
  cart: float = 1.0,
  pole: float = 0.1,
  half: float = 0.5,
  force: float = 10.0,
  track: float = 2.4,
  seconds: float = 0.04,
  horizon: int = 250,
) -> Environment:
  """A pole on a cart that is to be swung up and held, on a short track.

  The equations of Barto, Sutton and Anderson (1983), "Neuronlike adaptive
  elements that can solve difficult learning control problems", without
  friction; the pole is uniform, of mass m and length 2 l, the cart has mass M,
  and the angle is that from the upright:

      angle'' = (g sin - cos (F + m l angle'^2 sin) / (M + m))
                / (l (4/3 - m cos^2 / (M + m)))
      x'' = (F + m l (angle'^2 sin - angle'' cos)) / (M + m)

  Other than there the pole hangs at first, and is to be swung up. The actions
  push by -F, 0 and F. The state is (x, x', angle, angle') in SI units, advanced
  by a Runge-Kutta step of order four; it starts at most 0.1 from rest in the
  middle, hanging. A step's reward is

      (1 + cos(angle)) / 2 * exp(-angle'^2 / 8) * (1 - (x / track)^2 / 2),

  from 0 to 1. The observation is (x / track, x' / 4, cos, sin, angle' / 8). An
  episode ends, with a last reward of 0, beyond the track. Most random
  architectures learn it (RESULTS.md), so it tells few of them apart.

  Args:
    gravity: g, in m/s^2.
    cart: M, in kg.
    pole: m, in kg.
    half: l, half the length of the pole, in m.
    force: F, in N.
    track: from the middle to either end, in m.
    seconds: of a step.
    horizon: steps of an episode.

  Example:
    >>> world = cart_pole()
    >>> state, observation, reward, done = world.step(None, jnp.zeros(4), 1)
    >>> state.tolist(), float(reward), bool(done)
    ([0.0, 0.0, 0.0, 0.0], 1.0, False)
  """
  total = cart + pole

  def look(state):
    x, speed, angle, turn = state
    return jnp.stack(
      [x / track, speed / 4, jnp.cos(angle), jnp.sin(angle), turn / 8]
    )

  def reset(key):
    state = jax.random.uniform(key, (4,), minval=-0.1, maxval=0.1)
    state += jnp.array([0.0, 0.0, np.pi, 0.0])
    return state, look(state)

  def step(key, state, action):
    del key
    push = force * (action - 1)

    def slope(y):
      _, speed, angle, turn = y
      sin, cos = jnp.sin(angle), jnp.cos(angle)
      pushed = (push + pole * half * turn**2 * sin) / total
      turning = gravity * sin - cos * pushed
      turning /= half * (4 / 3 - pole * cos**2 / total)
      rushing = pushed - pole * half * turning * cos / total
      return jnp.stack([speed, rushing, turn, turning])

    state = _moved(slope, state, seconds)
    x, _, angle, turn = state
    done = jnp.abs(x) > track
    reward = (1 + jnp.cos(angle)) / 2 * jnp.exp(-(turn**2) / 8)
    reward *= 1 - (x / track) ** 2 / 2
    return state, look(state), jnp.where(done, 0.0, reward), done

  return Environment(reset, step, 5, 3, horizon, 'cart_pole')


class Breakout(NamedTuple):
  """The state of `breakout`.

  Attributes:
    ball: (2,) row and column.
    way: (2,) the ball's next step in each, -1 or 1.
    trail: (2,) where the ball was.
    paddle: its column; its row is the last.
    bricks: (10, 10) booleans.
  """

  ball: jax.Array
  way: jax.Array
  trail: jax.Array
  paddle: jax.Array
  bricks: jax.Array


def breakout(*, horizon: int = 300) -> Environment:
  """A wall of bricks, a ball and a paddle on a grid of 10 x 10.

  A game like Breakout of MinAtar (Young and Tian 2019, arXiv 1903.03176),
  after its description, with rules of its own where that leaves them open. The
  ball goes diagonally, one cell a step, and is thrown back by walls, ceiling,
  bricks and paddle. The actions move the paddle, one cell wide, left, not at
  all and right, before the ball moves. A brick that is hit is gone, and gives a
  reward of 1; when none is left, and the ball is next thrown back by the
  paddle, there is a new wall of three rows. A paddle throws back a ball that
  is above it, and one that comes to it from the side, that one to where it came
  from. The ball starts in row 4 in any column. The episode ends when the ball
  comes to the last row and is not thrown back.

  The observation is four images of 10 x 10 zeros and ones, flattened: paddle,
  ball, where the ball was, and bricks.

  Args:
    horizon: steps of an episode.

  Example:
    >>> world = breakout()
    >>> state, observation = world.reset(jax.random.key(0))
    >>> observation.shape, int(observation.sum())
    ((400,), 33)
  """
  size = 10
  rows = jnp.arange(size)[:, None]
  wall = jnp.broadcast_to((rows >= 1) & (rows <= 3), (size, size))

  def at(place):
    return (rows == place[0]) & (rows.T == place[1])

  def look(state):
    paddle = at((size - 1, state.paddle))
    images = [paddle, at(state.ball), at(state.trail), state.bricks]
    return jnp.stack(images).astype(jnp.float32).ravel()

  def reset(key):
    column_key, way_key = jax.random.split(key)
    column = jax.random.randint(column_key, (), 0, size)
    left = jax.random.bernoulli(way_key)
    ball = jnp.stack([jnp.full_like(column, 4), column])
    way = jnp.stack([jnp.ones_like(column), jnp.where(left, -1, 1)])
    state = Breakout(ball, way, ball, jnp.full_like(column, 4), wall)
    return state, look(state)

  def step(key, state, action):
    del key
    paddle = jnp.clip(state.paddle + action - 1, 0, size - 1)
    row, column = state.ball
    down, right = state.way
    right = jnp.where(
      (column + right < 0) | (column + right >= size), -right, right
    )
    to = jnp.clip(column + right, 0, size - 1)
    down = jnp.where(row + down < 0, -down, down)
    goal = row + down
    hit = state.bricks[goal, to]
    low = goal == size - 1
    # From above it is thrown on, from beside back to where it came from.
    above = low & (column == paddle)
    beside = low & ~above & (to == paddle)
    done = low & ~above & ~beside
    back = hit | above | beside
    ball = jnp.stack([jnp.where(back, row, goal), to])
    way = jnp.stack(
      [jnp.where(back, -down, down), jnp.where(beside, -right, right)]
    )
    bricks = state.bricks & ~(at((goal, to)) & hit)
    bricks = jnp.where((above | beside) & ~bricks.any(), wall, bricks)
    state = Breakout(ball, way, state.ball, paddle, bricks)
    return state, look(state), hit.astype(jnp.float32), done

  return Environment(reset, step, 4 * size**2, 3, horizon, 'breakout')


def gymnax_environment(name: str, **parameters: Any) -> Environment:
  """An environment of gymnax, which has to be installed.

  Its observations are flattened, and its bounds of continuous actions become
  -1 and 1. Its limit of steps is the horizon here, and set to never end an
  episode there, because gymnax does not tell it from an end.

  Args:
    name: by which gymnax knows it, such as 'Acrobot-v1'.
    **parameters: of the environment, in the places of gymnax' own.

  Raises:
    ImportError: without gymnax, saying how to install it.
  """
  try:
    gymnax = importlib.import_module(_GYMNAX)
  except ImportError as error:
    raise ImportError(
      f'gymnax_environment: {name!r} is of gymnax, which could not be imported '
      f'({error}): pip install gymnax six'
    ) from error
  made, given = gymnax.make(name)
  given = given.replace(**parameters)
  horizon = int(given.max_steps_in_episode)
  given = given.replace(max_steps_in_episode=horizon + 2)
  actions = made.action_space(given)
  continuous = not hasattr(actions, 'n')
  observed = made.observation_space(given)

  def look(observation):
    return jnp.asarray(observation, jnp.float32).ravel()

  def reset(key):
    observation, state = made.reset_env(key, given)
    # Python's numbers as arrays, which they are after a step.
    state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), state)
    return state, look(observation)

  def step(key, state, action):
    if continuous:
      part = (jnp.clip(action.reshape(actions.shape), -1, 1) + 1) / 2
      action = actions.low + part * (actions.high - actions.low)
    observation, state, reward, done, _ = made.step_env(
      key, state, action, given
    )
    return state, look(observation), jnp.asarray(reward, jnp.float32), done

  return Environment(
    *(reset, step, int(np.prod(observed.shape))),
    int(np.prod(actions.shape)) if continuous else int(actions.n),
    *(horizon, name, continuous),
  )


# The environments of this file, by name.
ENVIRONMENTS = {
  'pendulum': pendulum,
  'cart_pole': cart_pole,
  'breakout': breakout,
}
