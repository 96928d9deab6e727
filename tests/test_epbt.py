"""EPBT: the loss it searches for, who stays, who is a parent, and children."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import algorithms, learners, mixing, selection, stages, tasks
from jaxnas.base import Body, Genes, Learner, Member, Members
from jaxnas.run import rounds, run
from jaxnas.spaces.conv_slots import Network

KEY = jax.random.key(0)
HALF_SQUARED = jnp.array([0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0])
PRIORS = {
  'rate': mixing.Prior(1e-3, 1.0),
  'shape': mixing.Prior(-1.0, 1.0, log=False),
}


def expansion(b):
  """Of the cross-entropy about p = b, to second order."""
  return jnp.array([0.0, b, 0.0, 0.0, 0.0, -1 / b, 1 / b**2, 0.0])


def some_logits(count=5, classes=4):
  logits = jax.random.normal(KEY, (count, classes))
  return logits, jax.nn.one_hot(jnp.arange(count) % classes, classes)


def gradient(coefficients, logits, targets, **how):
  def mean(logits):
    return tasks.taylor(coefficients, logits, targets, **how).mean()

  return jax.grad(mean)(logits)


# The loss.


def test_taylor_is_its_polynomial():
  logits, y = some_logits()
  coefficients = jnp.linspace(-1.0, 2.0, 8)
  a, b, c1, c2, c3, c4, c5, c6 = map(float, coefficients)
  p = np.asarray(jax.nn.softmax(logits))
  wanted = np.zeros(len(p))
  for i, k in itertools.product(range(len(p)), range(p.shape[1])):
    q, z = p[i, k] - b, float(y[i, k]) - a
    wanted[i] += c1 * q + c2 / 2 * q**2 + c3 / 6 * q**3
    wanted[i] += c4 * z * q + c5 / 2 * z * q**2 + c6 / 2 * z**2 * q
  found = tasks.taylor(coefficients, logits, y)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.mark.parametrize('name', tasks.TAYLOR)
@pytest.mark.parametrize('predict', [lambda p: p, jax.nn.sigmoid])
def test_every_coefficient_changes_the_gradient(name, predict):
  logits, y = some_logits()
  start = jnp.array([0.2, 0.6, 0.3, 1.0, 0.5, -2.0, 0.4, 0.7])
  other = start.at[tasks.TAYLOR.index(name)].add(0.1)
  one, two = (gradient(c, logits, y, predict=predict) for c in (start, other))
  assert jnp.abs(one - two).max() > 1e-4


@pytest.mark.parametrize('name', tasks.TAYLOR)
def test_under_softmax_all_but_c1_change_the_gradient(name):
  logits, y = some_logits()
  start = jnp.array([0.2, 0.6, 0.3, 1.0, 0.5, -2.0, 0.4, 0.7])
  other = start.at[tasks.TAYLOR.index(name)].add(0.1)
  difference = jnp.abs(gradient(start, logits, y) - gradient(other, logits, y))
  assert (difference.max() > 1e-5) == (name != 'c1')


def test_some_coefficients_are_losses_that_are_known():
  logits, y = some_logits()

  def half_squared(logits):
    return optax.l2_loss(jax.nn.softmax(logits), y).sum(axis=-1).mean()

  np.testing.assert_allclose(
    gradient(HALF_SQUARED, logits, y), jax.grad(half_squared)(logits), atol=1e-7
  )

  def cross_entropy(logits):
    p, b = jax.nn.softmax(logits), 0.7
    slope = jax.grad(lambda p: (-y * jnp.log(p)).sum())
    at, one = jnp.full_like(p, b), jnp.ones_like(p)
    first, second = jax.jvp(slope, (at,), (one,))
    return (first * (p - b) + second / 2 * (p - b) ** 2).sum(axis=-1).mean()

  wanted = jax.grad(cross_entropy)(logits)
  found = gradient(expansion(0.7), logits, y)
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  # The control: another point of expansion is another loss.
  assert jnp.abs(gradient(expansion(0.5), logits, y) - wanted).max() > 1e-3


@pytest.mark.parametrize('coefficients', [HALF_SQUARED, expansion(0.5)])
def test_descent_is_towards_the_label(coefficients):
  logits, y = some_logits()

  def after(sign):
    moved = logits - sign * 0.1 * gradient(coefficients, logits, y)
    return (jax.nn.softmax(moved) * y).sum(axis=-1)

  now = (jax.nn.softmax(logits) * y).sum(axis=-1)
  assert (after(1) > now).all()
  assert (after(-1) < now).all()


def test_taylor_takes_coefficients_as_data():
  logits, y = some_logits()
  both = jnp.stack([HALF_SQUARED, expansion(0.5)])
  found = jax.vmap(lambda c: tasks.taylor(c, logits, y))(both)
  for i in range(2):
    np.testing.assert_allclose(
      found[i], tasks.taylor(both[i], logits, y), rtol=1e-6
    )


def test_priors_are_of_coefficients_and_hold_the_default():
  hyper = {f'taylor_{name}' for name in tasks.TAYLOR}
  assert {*learners.TAYLOR_PRIORS} == hyper - {'taylor_c1'}
  logits, y = some_logits()
  np.testing.assert_array_equal(
    learners.by_taylor(logits, y, {}), tasks.taylor(HALF_SQUARED, logits, y)
  )
  # Every draw points to the label at p = 1/2, where d/dp is linear in c.
  draws = {
    name: prior.sample(jax.random.fold_in(KEY, i), (200,))
    for i, (name, prior) in enumerate(learners.TAYLOR_PRIORS.items())
  }
  binary, label = jnp.zeros((1, 2)), jnp.array([[0.0, 1.0]])

  def slope(hyper):
    grad = jax.grad(lambda x: learners.by_taylor(x, label, hyper).sum())
    return grad(binary)[0]

  slopes = jax.vmap(slope)(draws)
  assert (slopes[:, 1] < 0).mean() > 0.95


# Novelty.


def elite_of(fitness, behaviour, elite, multiple):
  found = jax.jit(selection.novelty_order, static_argnums=(2, 3))(
    jnp.array(fitness), jnp.array(behaviour), elite, multiple
  )
  assert sorted(found.tolist()) == list(range(len(fitness)))
  return found.tolist()


def test_novelty_takes_the_fit_that_differ():
  fitness = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
  behaviour = [[0.0], [0.0], [0.1], [10.0], [20.0], [99.0]]
  order = elite_of(fitness, behaviour, 3, 5 / 3)
  # The sixth differs most, but is not among the five fittest.
  assert order == [0, 3, 4, 1, 2, 5]
  # The control: by fitness alone the elite is another.
  assert selection.order(np.array(fitness))[:3].tolist() == [0, 1, 2]


def test_of_the_closest_pair_the_less_fit_goes():
  fitness = [4.0, 3.0, 2.0, 1.0]
  # 2 is the farthest on the whole and enters with 0; 1 is near to 0 and 3 to 2.
  behaviour = [[0.0], [1.0], [9.0], [9.5]]
  assert elite_of(fitness, behaviour, 2, 2.0)[:2] in ([0, 2], [0, 3])
  assert set(elite_of(fitness, behaviour, 3, 4 / 3)[:3]) == {0, 1, 2}
  # With the fitness turned round, the other of that pair goes.
  turned = elite_of(fitness[::-1], behaviour, 3, 4 / 3)
  assert set(turned[:3]) == {3, 1, 0} or set(turned[:3]) == {3, 2, 0}
  assert turned[0] == 3


def brute_force(fitness, behaviour, elite, multiple):
  """The same in plain Python."""
  ranked = sorted(range(len(fitness)), key=lambda i: -fitness[i])
  pool = ranked[: int(multiple * elite)]

  def apart(i, j):
    return float(np.linalg.norm(behaviour[i] - behaviour[j]))

  total = {i: sum(apart(i, j) for j in pool) for i in pool}
  novel = [pool[0], *sorted(pool[1:], key=lambda i: -total[i])]
  inside = novel[:elite]
  for one in novel[elite:]:
    inside.append(one)
    pairs = itertools.combinations(sorted(inside, key=pool.index), 2)
    closest = min(pairs, key=lambda pair: apart(*pair))
    inside.remove(max(closest, key=pool.index))
  return set(inside)


@pytest.mark.parametrize('seed', range(8))
def test_novelty_is_as_in_plain_python(seed):
  rng = np.random.default_rng(seed)
  fitness = rng.permutation(14).astype(np.float32)
  behaviour = rng.normal(size=(14, 3)).astype(np.float32)
  found = elite_of(fitness, behaviour, 5, 2.2)
  assert set(found[:5]) == brute_force(fitness, behaviour, 5, 2.2)
  assert found[0] == fitness.argmax()
  for part in (found[:5], found[5:]):
    assert (np.diff(fitness[part]) < 0).all()


def test_a_multiple_of_one_is_the_order_of_fitness():
  rng = np.random.default_rng(0)
  fitness = rng.normal(size=9).astype(np.float32)
  behaviour = rng.normal(size=(9, 2)).astype(np.float32)
  assert elite_of(fitness, behaviour, 4, 1.0) == np.argsort(-fitness).tolist()


@pytest.mark.parametrize('where', ['fitness', 'behaviour'])
def test_who_diverged_is_not_novel(where):
  fitness = np.array([5.0, 4.0, 3.0, 2.0, 1.0], np.float32)
  behaviour = np.array([[0.0], [1.0], [2.0], [3.0], [500.0]], np.float32)
  assert 4 in elite_of(fitness, behaviour, 3, 5 / 3)[:3]  # The control.
  {'fitness': fitness, 'behaviour': behaviour}[where][4] = np.nan
  order = elite_of(fitness, behaviour, 3, 5 / 3)
  assert order[-1] == 4
  assert set(order[:3]) == {0, 1, 3} or set(order[:3]) == {0, 2, 3}


def test_novelty_refuses_what_it_cannot_rank():
  fitness, behaviour = jnp.arange(3.0), jnp.zeros((3, 1))
  for elite in (0, 4):
    with pytest.raises(ValueError, match='elite must be in 1..3'):
      selection.novelty_order(fitness, behaviour, elite)
  with pytest.raises(ValueError, match='multiple at least 1'):
    selection.novelty_order(fitness, behaviour, 2, 0.5)
  with pytest.raises(ValueError, match=r'behaviour must be \(3, B\)'):
    selection.novelty_order(fitness, jnp.zeros(3), 2)


def of(generation, fitness, behaviour):
  metrics = {'fitness': jnp.array(fitness), 'behaviour': jnp.array(behaviour)}
  return Members(None, metrics, None, generation)


def test_pulses_come_every_so_many_generations():
  fitness = [6.0, 5.0, 4.0, 3.0, 2.0, float('nan')]
  behaviour = [[0.0], [0.0], [0.1], [10.0], [20.0], [99.0]]
  by = algorithms.pulsation(3, multiple=5 / 3)
  for generation in range(1, 7):
    scores = by(of(generation, fitness, behaviour))
    best = set(selection.order(np.asarray(scores))[:3].tolist())
    assert best == ({0, 3, 4} if generation % 3 == 0 else {0, 1, 2})
    assert np.isnan(scores[5])


def test_pulsation_says_what_is_missing():
  with pytest.raises(ValueError, match='no metric behaviour'):
    algorithms.pulsation()(Members(None, {'fitness': jnp.ones(2)}, None))
  with pytest.raises(ValueError, match='cycle must be at least 1'):
    algorithms.pulsation(0)


# Who is a parent.


def test_the_best_half_stay_and_nobody_is_the_own_parent():
  scores = jnp.array([3.0, np.nan, 9.0, 1.0, 5.0, 7.0])
  pairing = jax.jit(selection.tournaments())
  for seed in range(50):
    slot, base, donor = pairing(jax.random.key(seed), scores)
    assert set(slot.tolist()) == {0, 1, 3}
    assert (base != slot).all()
    assert (donor != slot).all()


def test_tournaments_are_won_by_the_fitter():
  scores = jnp.array([np.nan, 1.0, 2.0, 3.0, 4.0, 5.0])
  keys = jax.random.split(KEY, 2000)

  def share(size):
    found = jax.vmap(lambda key: selection.tournaments(0.2, size)(key, scores))
    return np.bincount(found(keys).base.ravel(), minlength=6) / len(keys)

  # The worst alone is replaced: of 5 others the r-th best wins a pair with
  # probability (5 - r) / 10.
  np.testing.assert_allclose(share(2), [0, 0, 0.1, 0.2, 0.3, 0.4], atol=0.04)
  np.testing.assert_allclose(share(1), [0, *[0.2] * 5], atol=0.04)
  np.testing.assert_allclose(share(5), [0, 0, 0, 0, 0, 1])


def test_tournaments_refuse_too_few():
  for fraction in (0.0, 0.6):
    with pytest.raises(ValueError, match='fraction must be in'):
      selection.tournaments(fraction)
  with pytest.raises(ValueError, match='size must be a whole number'):
    selection.tournaments(0.5, 0)
  with pytest.raises(ValueError, match='take more members'):
    selection.tournaments(0.5, 2)(KEY, jnp.arange(2.0))


# Children.


def two_parents(count=30):
  names = [f'h{i:02}' for i in range(count)]

  def parent(value):
    hyper = {name: jnp.float32(value + i) for i, name in enumerate(names)}
    return Member(Body({'w': jnp.full(3, value)}), jnp.array([0]), hyper)

  return parent(0.0), parent(1000.0)


def test_crossover_takes_each_from_one_of_the_parents():
  base, donor = two_parents()
  child = mixing.crossover()(KEY, base, donor, None)
  from_base = [child.hyper[n] == base.hyper[n] for n in base.hyper]
  from_donor = [child.hyper[n] == donor.hyper[n] for n in base.hyper]
  assert all(a != b for a, b in zip(from_base, from_donor))
  assert 5 < sum(map(bool, from_base)) < 25
  assert child.body is base.body
  assert child.genes is base.genes
  for probability, parent in ((0.0, base), (1.0, donor)):
    child = mixing.crossover(probability)(KEY, base, donor, None)
    assert all(child.hyper[n] == parent.hyper[n] for n in base.hyper)
  with pytest.raises(ValueError, match='probability must be in'):
    mixing.crossover(2.0)


def test_jitter_moves_within_the_range_and_through_zero():
  hyper = {'rate': 0.03, 'shape': 0.0, 'x': 7.0}
  hyper = {name: jnp.float32(value) for name, value in hyper.items()}
  base = Member(Body({}), jnp.zeros(0), hyper)
  keys = jax.random.split(KEY, 500)

  def drawn(child):
    return jax.vmap(lambda key: child(key, base, base, None).hyper)(keys)

  found = drawn(mixing.jitter(PRIORS, scale=0.1))
  assert (found['x'] == 7).all()
  assert (found['shape'] > 0.05).any()
  assert (found['shape'] < -0.05).any()
  assert float(found['shape'].std()) == pytest.approx(0.2, rel=0.1)
  decades = jnp.log10(found['rate'] / 0.03)
  assert float(decades.std()) == pytest.approx(0.3, rel=0.1)
  # The control: no factor brings a hyper-parameter away from zero.
  assert (drawn(mixing.explore(PRIORS))['shape'] == 0).all()
  wide = drawn(mixing.jitter(PRIORS, scale=10.0))
  for name, prior in PRIORS.items():
    assert wide[name].min() == pytest.approx(prior.low)
    assert wide[name].max() == pytest.approx(prior.high)
  some = drawn(mixing.jitter(PRIORS, probability=0.25))
  assert 0.15 < float((some['shape'] != 0).mean()) < 0.35


# The algorithm.


def climbing():
  """Members whose one weight grows by their rate, and is their fitness.

  A rate above 0.5 diverges.
  """

  def init(key, genes, hyper, data):
    del genes, hyper, data
    return Body({'w': jax.random.uniform(key, (2,))}, {'w': ()})

  def train(key, member, data):
    del key
    rate = member.hyper['rate']
    held = member.body.layers['w'] + jnp.where(rate > 0.5, jnp.nan, rate)
    if 'teacher' in data:
      taught = data['teacher'].layers['w'][0]
      held = jnp.stack([held[0], taught])
    return member.body._replace(layers={'w': held})

  def measure(key, member, data):
    del key, data
    w, shape = member.body.layers['w'], member.hyper['shape']
    return {'fitness': w[0], 'behaviour': jnp.stack([shape, w[0]])}

  return Learner(Genes((), {'w': -1}, ()), init, train, measure, measure, {}, 1)


def population(learner, size=8):
  start = stages.members(KEY, learner, size, PRIORS)
  return stages.assess(learner).update(KEY, start, ())[0]


def test_elites_are_untouched_to_the_last_bit():
  learner = climbing()
  before = population(learner)._replace(generation=5)
  fitness = before.metrics['fitness'].at[2].set(jnp.nan)
  before = before._replace(metrics={**before.metrics, 'fitness': fitness})
  child = mixing.following(mixing.crossover(), mixing.jitter(PRIORS))
  by = algorithms.pulsation(5)
  for scores in ('fitness', by):
    change = stages.replace(learner, selection.tournaments(), child, by=scores)
    after, _ = change.update(KEY, before, ())
    ranked = selection.order(
      np.asarray(by(before) if callable(scores) else fitness)
    )
    for i in ranked[:4]:
      for old, new in zip(
        jax.tree.leaves((before.member, before.metrics)),
        jax.tree.leaves((after.member, after.metrics)),
        strict=True,
      ):
        np.testing.assert_array_equal(old[i], new[i])
      assert after.parents[i].tolist() == [i, i]
    assert 2 in ranked[4:]
    for i in ranked[4:]:
      base, donor = after.parents[i].tolist()
      assert base != i
      assert 2 not in (base, donor)
      weights = [m.member.body.layers['w'] for m in (before, after)]
      np.testing.assert_array_equal(weights[0][base], weights[1][i])
      assert np.isnan(after.metrics['fitness'][i])
      # Crossed and then moved: no parent's.
      assert float(after.member.hyper['shape'][i]) not in [
        float(before.member.hyper['shape'][j]) for j in (base, donor)
      ]


@pytest.mark.parametrize(
  'how',
  [
    pytest.param({}, id='whole'),
    *(
      pytest.param(how, id=name, marks=pytest.mark.slow)
      for name, how in (
        ('no pulses', {'by': 'fitness'}),
        ('no crossover', {'child': mixing.jitter(PRIORS)}),
        ('no teacher', {'learn': 'plain'}),
      )
    ),
  ],
)
def test_a_search_under_scan_is_the_search_on_the_host(how):
  learner = climbing()
  how = dict(how)
  if 'learn' in how:
    how['learn'] = stages.advance(learner)
  if 'by' not in how:
    how['by'] = algorithms.pulsation(2)
  stage = algorithms.epbt(learner, PRIORS, **how)
  start = stages.members(KEY, learner, 8, PRIORS)
  host, _ = run(KEY, stage, start, 5)
  scan, _ = jax.jit(lambda start: rounds(KEY, stage, start, 5))(start)
  for one, two in zip(
    jax.tree.leaves((host.member, host.metrics, host.parents)),
    jax.tree.leaves((scan.member, scan.metrics, scan.parents)),
    strict=True,
  ):
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_it_finds_rates_that_learn_and_keep_finite():
  learner = climbing()
  start = stages.members(KEY, learner, 16, PRIORS)
  rates = start.member.hyper['rate']
  assert (rates > 0.5).any()
  searched = algorithms.epbt(learner, PRIORS, by='fitness')
  last, _ = run(KEY, searched, start, 20)
  control, _ = run(KEY, algorithms.train_only(learner), start, 20)
  best = [
    float(m.metrics['fitness'][stages.champion(m)]) for m in (last, control)
  ]
  assert best[0] > best[1]
  assert float(jnp.median(last.member.hyper['rate'])) > 3 * float(
    jnp.median(rates)
  )
  assert np.isnan(control.metrics['fitness']).any()


def test_the_teacher_is_the_best_member_ever_measured():
  learner = climbing()
  stage = algorithms.distilled(learner)
  start = stages.members(KEY, learner, 3, PRIORS)
  hyper = {'rate': jnp.full(3, 0.1), 'shape': jnp.zeros(3)}
  start = start._replace(member=start.member._replace(hyper=hyper))
  state = stage.init(start)
  assert not np.isfinite(state.fitness)

  def measured(*fitness):
    return start._replace(
      metrics={**start.metrics, 'fitness': jnp.array(fitness)}
    )

  weights = start.member.body.layers['w']
  seen = []
  for fitness in (
    (np.nan, np.nan, np.nan),
    (1.0, np.nan, 3.0),
    (2.0, 2.5, np.nan),
    (4.0, 2.5, np.nan),
  ):
    members, state = stage.update(KEY, measured(*fitness), state)
    seen.append(float(state.fitness))
    taught = members.member.body.layers['w'][:, 1]
    assert (taught == state.layers['w'][0]).all()
  assert seen == [-np.inf, 3.0, 3.0, 4.0]
  np.testing.assert_array_equal(state.layers['w'], weights[0])


def test_a_teacher_needs_room():
  with pytest.raises(ValueError, match='must be a dict'):
    algorithms.distilled(climbing()._replace(data=(1, 2)))


@functools.cache
def digits_learner():
  """A linear classifier, so that a search takes a second."""
  network = Network(
    Genes((), {'w': -1}, ()),
    lambda key, genes: {'w': jax.random.normal(key, (64, 10)) / 8},
    lambda layers, genes, x: x.reshape((len(x), -1)) @ layers['w'],
  )
  return learners.classifier(
    tasks.digits(shift=0), network, steps=40, objective=learners.by_taylor
  )


@pytest.mark.slow
def test_it_searches_the_loss_of_classifiers():
  learner = digits_learner()
  priors = {
    'learning_rate': mixing.Prior(1e-5, 3e-2),
    **learners.TAYLOR_PRIORS,
  }
  start = stages.members(KEY, learner, 8, priors)
  stage = algorithms.epbt(learner, priors, by=algorithms.pulsation(2))
  last, _ = run(KEY, stage, start, 6)
  control, _ = run(KEY, algorithms.train_only(learner), start, 6)
  assert last.spent.examples == control.spent.examples
  median, worse = (
    float(np.median(m.metrics['accuracy'])) for m in (last, control)
  )
  assert median > worse + 0.1
  assert float(last.metrics['accuracy'].max()) > 0.7
  for name, prior in priors.items():
    values = last.member.hyper[name]
    assert ((values >= prior.low - 1e-6) & (values <= prior.high + 1e-6)).all()
