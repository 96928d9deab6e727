"""Environments, proximal policy optimization, and its members as a population.

Settings are small, and the learner of most tests is one, so that its programs
are compiled once.
"""

import functools
import importlib.util
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import learners, mixing, selection, stages
from jaxnas.base import Member
from jaxnas.learners import control as learning
from jaxnas.run import count_compilations
from jaxnas.tasks import control

KEY = jax.random.key(0)
NETS = ('actor', 'critic')

ENVIRONMENTS = {name: make() for name, make in control.ENVIRONMENTS.items()}


def at_random(world, key, observation):
  """A uniform action."""
  del observation
  if world.continuous:
    return jax.random.uniform(key, (world.actions,), minval=-1, maxval=1)
  return jax.random.randint(key, (), 0, world.actions)


def swing_up(key, observation):
  """Pumps energy into the pendulum, and holds it upright once it is there."""
  del key
  cos, sin, speed = observation * jnp.array([1, 1, 8])
  angle = jnp.arctan2(sin, cos)
  missing = 9.81 - (speed**2 / 2 + 9.81 * cos)
  pump = jnp.sign(speed) * missing
  hold = -(20 * angle + 6 * speed) / 3
  return jnp.where(jnp.abs(angle) < 0.25, hold, pump)[None]


def ride(key, observation):
  """Swings the pole up by the cart, which it keeps in the middle."""
  del key
  scale = jnp.array([2.4, 4, 1, 1, 8])
  x, speed, cos, sin, turn = observation * scale
  angle = jnp.arctan2(sin, cos)
  # Per unit of m g l, with the moment of inertia 4 m l^2 / 3.
  missing = 1 - (2 / 3 * 0.5 / 9.8 * turn**2 + cos)
  pump = -jnp.sign(turn * cos) * missing / 2 - 0.3 * x
  hold = 30 * angle + 6 * turn + x + 2 * speed
  push = jnp.where(jnp.abs(angle) < 0.5, hold, pump)
  return jnp.round(jnp.clip(push, -1, 1)).astype(jnp.int32) + 1


def follow(key, observation):
  """Keeps the paddle below the ball."""
  del key
  paddle, ball, _, _ = observation.reshape(4, 10, 10).any(axis=1)
  return jnp.sign(ball.argmax() - paddle.argmax()) + 1


GOOD = {'pendulum': swing_up, 'cart_pole': ride, 'breakout': follow}


def returns(world, act, count=32):
  """The returns of a policy in some episodes."""
  one = functools.partial(control.episode_return, world, act=act)
  return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, count)))


@pytest.mark.parametrize('name', ENVIRONMENTS)
def test_good_policy_scores_far_more_than_random(name):
  world = ENVIRONMENTS[name]
  chance = returns(world, functools.partial(at_random, world))
  good = returns(world, GOOD[name])
  assert np.median(good) > 5 * max(1, np.median(chance))
  assert np.quantile(good, 0.1) > np.quantile(chance, 0.9)


def energy_of_pendulum(state):
  angle, speed = state
  return speed**2 / 2 + 9.81 * jnp.cos(angle)


def energy_of_cart_pole(state):
  """Of cart, and of a uniform pole of length 1."""
  _, speed, angle, turn = state
  moving = 1.1 * speed**2 / 2 + 0.05 * speed * turn * jnp.cos(angle)
  turning = 4 / 3 * 0.1 * 0.5**2 * turn**2 / 2
  return moving + turning + 0.1 * 9.8 * 0.5 * jnp.cos(angle)


def momentum_of_cart_pole(state):
  """Along the track."""
  _, speed, angle, turn = state
  return 1.1 * speed + 0.05 * turn * jnp.cos(angle)


PENDULUM = functools.partial(control.pendulum, seconds=1e-3)
CART_POLE = functools.partial(control.cart_pole, seconds=1e-3, track=100.0)


@pytest.mark.parametrize(
  ('make', 'start', 'rest', 'conserved'),
  [
    (PENDULUM, [2.0, 1.0], jnp.zeros(1), energy_of_pendulum),
    (CART_POLE, [0.0, 0.5, 2.0, 1.0], 1, energy_of_cart_pole),
    (CART_POLE, [0.0, 0.5, 2.0, 1.0], 1, momentum_of_cart_pole),
  ],
)
def test_free_motion_conserves(x64, make, start, rest, conserved):
  def moved(world):
    def step(state, _):
      state = world.step(None, state, rest)[0]
      return state, (conserved(state), state[-1])

    return jax.lax.scan(step, jnp.array(start), length=3000)[1]

  # The motion is no small one, and another constant is not conserved.
  values, speeds = moved(make())
  np.testing.assert_allclose(values, values[0], rtol=0, atol=1e-10)
  assert np.ptp(speeds) > 1
  if conserved is not momentum_of_cart_pole:
    assert np.ptp(moved(make(gravity=9.0))[0]) > 1e-3


def test_work_is_torque_times_speed(x64):
  world = PENDULUM()
  states = [jnp.array([2.0, 1.0])]
  for _ in range(2):
    states.append(world.step(None, states[-1], jnp.array([0.5]))[0])
  before, _, after = map(energy_of_pendulum, states)
  # An action of one is 3 N m.
  power = float(after - before) / 2e-3
  assert power == pytest.approx(1.5 * float(states[1][1]), rel=1e-5)


@pytest.mark.parametrize('name', ENVIRONMENTS)
def test_rewards_are_in_range_and_steps_determined(name):
  world = ENVIRONMENTS[name]

  @jax.jit
  def episode(key):
    def step(running, key):
      act_key, step_key = jax.random.split(key)
      action = at_random(world, act_key, running.observation)
      running, step = control.proceed(world, step_key, running, action)
      return running, (step, running)

    keys = jax.random.split(key, 2 * world.horizon + 5)
    return jax.lax.scan(step, control.begin(world, keys[0]), keys[1:])[1]

  step, running = episode(KEY)
  assert step.observation.shape[1:] == (world.observation,)
  assert np.isfinite(step.observation).all()
  assert step.reward.min() >= 0 and 0 < step.reward.max() <= 1
  again = episode(KEY)[0]
  np.testing.assert_array_equal(step.observation, again.observation)
  assert (step.observation != episode(jax.random.key(1))[0].observation).any()
  # Time starts anew where an episode is over, and nowhere else.
  np.testing.assert_array_equal(running.time == 0, step.over)
  assert running.time.max() < world.horizon
  assert (step.over | ~step.done).all() and step.over.any()


def test_horizon_cuts_off_and_does_not_end():
  world = control.pendulum(horizon=3)
  running, seen = control.begin(world, KEY), []
  for i in range(6):
    own = jax.random.key(i)
    running, step = control.proceed(world, own, running, jnp.ones(1))
    seen.append((bool(step.over), bool(step.done)))
  assert seen == [(False, False), (False, False), (True, False)] * 2


def test_track_ends_the_episode_without_reward():
  world = control.cart_pole()
  beyond = jnp.array([2.39, 5.0, 0.0, 0.0])
  _, _, reward, done = world.step(None, beyond, 1)
  assert done and reward == 0
  _, _, reward, done = world.step(None, beyond.at[0].set(0.0), 1)
  assert not done and reward > 0.9


def played(world, state, *actions):
  """Rewards, ends, and the last state."""
  rewards, ends = [], []
  for action in actions:
    state, _, reward, done = world.step(None, state, action)
    rewards.append(float(reward))
    ends.append(bool(done))
  return rewards, ends, state


def test_breakout_breaks_bricks_and_builds_a_wall_anew():
  world = control.breakout()
  state = world.reset(KEY)[0]
  ball = functools.partial(jnp.array, dtype=jnp.int32)
  up = state._replace(ball=ball([4, 5]), way=ball([-1, 1]))
  rewards, ends, after = played(world, up, 1)
  assert rewards == [1.0] and ends == [False]
  assert not after.bricks[3, 6] and int(after.bricks.sum()) == 29
  assert after.ball.tolist() == [4, 6] and after.way.tolist() == [1, 1]
  # The paddle is moved before the ball: it meets the ball, or does not.
  down = state._replace(ball=ball([8, 4]), way=ball([1, 1]), paddle=ball(4))
  for action, end, way in ((1, False, [-1, 1]), (2, False, [-1, -1])):
    rewards, ends, after = played(world, down, action)
    assert ends == [end] and after.way.tolist() == way and rewards == [0.0]
  assert played(world, down, 0)[1] == [True]
  # At the corner it turns in both ways.
  corner = state._replace(ball=ball([0, 9]), way=ball([-1, 1]))
  corner = corner._replace(bricks=jnp.zeros((10, 10), bool))
  after = played(world, corner, 1)[2]
  assert after.ball.tolist() == [1, 8] and after.way.tolist() == [1, -1]
  bare = down._replace(bricks=jnp.zeros((10, 10), bool))
  assert int(played(world, bare, 1)[2].bricks.sum()) == 30


def test_gymnax_is_asked_for_by_name():
  if importlib.util.find_spec('gymnax'):
    pytest.skip('gymnax is installed')
  with pytest.raises(ImportError, match='Acrobot.*pip install gymnax'):
    control.gymnax_environment('Acrobot-v1')


@pytest.mark.filterwarnings('ignore')  # What gymnax warns of is its own.
@pytest.mark.parametrize('name', ['Acrobot-v1', 'Pendulum-v1'])
def test_gymnax_environments_keep_the_protocol(name):
  pytest.importorskip('gymnax', reason='needs gymnax')
  world = control.gymnax_environment(name, max_steps_in_episode=7)
  act = functools.partial(at_random, world)
  found = returns(world._replace(horizon=5), act, 4)
  assert world.horizon == 7 and found.shape == (4,) and (found < 0).all()
  running = control.begin(world, KEY)
  assert running.observation.shape == (world.observation,)
  for i in range(7):
    own = jax.random.key(i)
    running, step = control.proceed(
      world, own, running, act(own, running.observation)
    )
  assert step.over and not step.done


def looped(rewards, values, following, done, over, discount, trace):
  """Advantages of one environment, as a sum over later steps of its own."""
  found = np.zeros(len(rewards))
  for start in range(len(rewards)):
    weight = 1.0
    for t in range(start, len(rewards)):
      after = 0.0 if done[t] else following[t]
      found[start] += weight * (rewards[t] + discount * after - values[t])
      if over[t]:
        break
      weight *= discount * trace
  return found


def test_advantages_are_the_sums_they_stand_for(x64):
  rng = np.random.default_rng(0)
  rewards, values, following = rng.standard_normal((3, 40, 5))
  done = rng.random((40, 5)) < 0.1
  over = done | (rng.random((40, 5)) < 0.1)
  given = (rewards, values, following, done, over)
  found = learning.advantages(*map(jnp.asarray, given), discount=0.9, trace=0.8)
  expected = np.stack(
    [looped(*(x[:, i] for x in given), 0.9, 0.8) for i in range(5)], axis=1
  )
  np.testing.assert_allclose(found, expected, atol=1e-12)
  # To take every cut for an end is another thing.
  ended = (*given[:3], over, over)
  other = learning.advantages(*map(jnp.asarray, ended), discount=0.9, trace=0.8)
  assert np.abs(other - expected).max() > 0.1


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_clipped_objective_has_a_gradient_where_it_should(sign):
  def slope(ratio):
    return jax.grad(learning.clipped)(
      jnp.log(ratio), jnp.zeros(()), jnp.array(3 * sign), 0.2
    )

  # Gain beyond the clip counts no more, loss counts without bound.
  gained, lost = (1.3, 0.5) if sign > 0 else (0.7, 2.0)
  assert slope(gained) == 0
  for ratio in (lost, 1.1, 0.9):
    assert slope(ratio) == pytest.approx(3 * sign * ratio, rel=1e-5)


def test_every_gene_changes_the_outputs():
  world = ENVIRONMENTS['cart_pole']
  nets = learners.actor_critic(world)
  # Every slot is in use, and no activation is linear.
  own = jnp.asarray(
    [1 if kind != ('no', 'yes') else 0 for kind in nets.genes.values]
  )
  x = jax.random.normal(KEY, (6, world.observation))

  @jax.jit
  def outputs(own):
    layers = nets.init(KEY, own)
    return nets.act(layers, own, x), nets.value(layers, own, x)

  first = outputs(own)
  assert len(own) == 22
  for i, (gene, options) in enumerate(
    zip(nets.genes.names, nets.genes.options)
  ):
    seen = []
    for value in range(options):
      now = outputs(own.at[i].set(value))
      seen.append(now[gene.startswith('critic')])
      # The other network has nothing to do with it.
      other = gene.startswith('actor')
      np.testing.assert_array_equal(now[other], first[other])
    for one, two in itertools.combinations(seen, 2):
      assert np.abs(one - two).max() > 1e-6, gene


@functools.cache
def learner():
  """Of a pendulum that is strong enough to be lifted without a swing."""
  world = control.pendulum(torque=20.0, horizon=60)
  small = dict(envs=32, updates=4, episodes=(8, 8), count=1, width=8)
  return learners.ppo(world, **small)


# An architecture that learns: one dense slot in each, and no normalisation.
GOOD_GENES = {'width': 3, 'activation': 1, 'op0': 1, 'activation0': 1}

# Of four members: two that learn, one that does not, one drawn to chance.
HYPER = {'rate': [3e-3, 3e-3, 0.0, 3e-3], 'entropy': [0.01, 0.01, 0.01, 1.0]}


@functools.cache
def population():
  """Four members of one architecture, and of one body."""
  own = learner()
  prior = {name: mixing.Prior(0.1, 1.0) for name in HYPER}
  start = stages.members(KEY, own, 4, prior)
  genes = [GOOD_GENES.get(n.split('/')[1], 0) for n in own.genes.names]
  genes = jnp.tile(jnp.array(genes, jnp.int32), (4, 1))
  body = jax.jit(own.init)(KEY, genes[0], {}, ())
  body = jax.tree.map(lambda x: jnp.stack([x] * 4), body)
  hyper = {name: jnp.array(values) for name, values in HYPER.items()}
  return start, start._replace(member=Member(body, genes, hyper))


def rounds(members, count):
  """Members after so many rounds, measured."""
  advance, assess = stages.advance(learner()), stages.assess(learner())
  for i in range(count):
    own = jax.random.fold_in(KEY, i)
    members, _ = advance.update(own, members, ())
  return assess.update(KEY, members, ())[0]


@pytest.mark.slow
def test_ppo_improves_a_good_architecture():
  """And neither a rate of zero nor the passing of rounds does."""
  start = population()[1]
  before = rounds(start, 0).metrics['fitness']
  after = rounds(start, 8)
  assert (before < 10).all()
  assert (after.metrics['fitness'][:2] > before[:2] + 20).all()
  assert after.metrics['fitness'][2] == pytest.approx(float(before[2]), abs=2)
  layers = after.member.body.layers, start.member.body.layers
  for now, then in zip(*map(jax.tree.leaves, layers)):
    np.testing.assert_array_equal(now[2], then[2])
  # That member was in its worlds all the time, though.
  running = after.member.body.rest, start.member.body.rest
  assert (running[0].state[2] != running[1].state[2]).any()


@pytest.mark.slow
def test_hyper_parameters_of_a_member_are_read():
  own, start = learner(), population()[1]
  body = jax.tree.map(lambda x: x[0], start.member.body)
  genes = start.member.genes[0]
  given = jax.tree.map(jnp.array, {'rate': 3e-3, 'entropy': 0.01})
  train = jax.jit(own.train)

  def trained(**changed):
    return train(KEY, Member(body, genes, given | changed), ()).layers

  def apart(one, two):
    gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, two)
    return max(jax.tree.leaves(gaps))

  first = trained()
  assert apart(first, trained()) == 0
  assert apart(first, trained(rate=jnp.array(1e-3))) > 1e-4
  assert apart(first, trained(entropy=jnp.array(1.0))) > 1e-4
  # Without them, the factory's are.
  plain = train(KEY, Member(body, genes), ()).layers
  assert apart(plain, trained(rate=jnp.array(2e-3))) < 1e-5


@pytest.mark.slow
def test_what_no_gene_uses_stays_zero():
  narrow = 0
  start = population()[0]
  places = [learner().genes.names.index(f'{n}/width') for n in NETS]
  genes = start.member.genes.at[:, jnp.array(places)].set(narrow)
  keys = jax.random.split(KEY, 4)
  body = jax.jit(jax.vmap(learner().init, (0, 0, None, None)))(
    keys, genes, {}, ()
  )
  member = Member(body, genes, population()[1].member.hyper)
  layers = rounds(start._replace(member=member), 1).member.body.layers
  for net in NETS:
    assert (layers[f'{net}/in']['w'][:, :, 8:] == 0).all()
    assert (layers[f'{net}/out']['w'][:, 8:] == 0).all()
    assert (layers[f'{net}/in']['w'][:, :, :8] != 0).all()


def test_a_gene_of_width_owns_both_sides():
  genes = learner().genes
  for net in NETS:
    gene = genes.names.index(f'{net}/width')
    single = {
      name: own for name, own in genes.owner.items() if not np.ndim(own)
    }
    owned = [name for name, own in single.items() if own == gene]
    assert sorted(owned) == [f'{net}/in', f'{net}/out']
    assert genes.owner[f'{net}/head'] == -1


@pytest.mark.slow
def test_a_population_is_one_program():
  own, (start, same) = learner(), population()
  rounds(same, 1)
  genes = jnp.roll(start.member.genes, 1, axis=0)
  other = start._replace(member=start.member._replace(genes=genes))
  with count_compilations() as compiled:
    found = rounds(start, 1)
    # What a round gives is what the next one takes.
    rounds(found, 1)
    rounds(other, 1)
  assert len(set(map(tuple, np.asarray(start.member.genes)))) == 4
  assert not compiled
  returns = found.metrics['returns']
  assert returns.shape == (4, 8)
  np.testing.assert_allclose(
    returns.mean(axis=1), found.metrics['fitness'], 1e-5
  )
  # They can be the scores of a duel by a test of significance.
  assert selection.significant_duels()(KEY, returns).base.shape == (4,)
  # The same key gives other episodes in the test.
  tested, _ = stages.assess(own, measure=own.test).update(KEY, found, ())
  assert (tested.metrics['returns'] != returns).any()


@pytest.mark.slow
def test_children_stay_in_the_worlds_of_their_base():
  own = learner()
  member = population()[0].member
  base, donor = (jax.tree.map(lambda x, i=i: x[i], member) for i in (0, 1))

  @jax.jit
  def made(key):
    child = mixing.mix(own.genes, probability=0.5)
    return child(key, base, donor, lambda *drawn: own.init(*drawn, ()))

  child = made(KEY)
  kept, other = child.body.rest, donor.body.rest
  np.testing.assert_array_equal(kept.state, base.body.rest.state)
  assert (kept.state != other.state).any()
  for name in ('actor/head', 'critic/head', 'spread'):
    np.testing.assert_array_equal(
      *(jax.tree.leaves(m.body.layers[name])[0] for m in (child, base))
    )
  # Something came from the donor, and something did not.
  assert (child.genes != base.genes).any()
  assert (child.genes != donor.genes).any()


def test_steps_must_be_dealt_evenly():
  with pytest.raises(ValueError, match='multiple of batches=5'):
    learners.ppo(ENVIRONMENTS['pendulum'], batches=5)
