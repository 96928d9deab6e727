"""The laws of stages, rules and estimators catch what breaks them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas import base, estimators, morphisms, network, spaces, testing
from jaxnas.spaces import seeds

KEY = jax.random.key(0)


def population(members=3):
  net = network.init(seeds.mlp((2,), (3,), 2), KEY)
  net = jax.tree.map(np.array, net)  # Writable, so that mistakes show.
  candidates = (
    base.Candidate(net, metrics={'loss': float(i)}) for i in range(members)
  )
  return base.Population(tuple(candidates), spent=base.Cost(examples=10))


def stage(update, init=lambda population: ()):
  return base.Stage(init, update, 'mine')


def shuffled(key, population, state):
  """A right stage: a new order, and its price."""
  order = base.rng(key).permutation(len(population.members))
  members = tuple(population.members[i] for i in order)
  spent = population.spent.add(evaluations=len(members), seconds=0.1)
  return population._replace(members=members, spent=spent), state


def test_a_stage_that_keeps_the_laws_passes():
  out = testing.check_stage(stage(shuffled), population(), KEY)
  assert out.spent.evaluations == 3


_calls = itertools.count()


def counts_calls(key, population, state):
  return population._replace(generation=next(_calls)), state


def scales_in_place(key, population, state):
  for member in population.members:
    member.net.variables['params']['dense1']['kernel'] *= 2
  return population, state


def donates(key, population, state):
  def twice(leaf):
    doubled = leaf + leaf
    leaf.delete()
    return doubled

  return jax.tree.map(
    lambda x: twice(x) if isinstance(x, jax.Array) else x, population
  ), state


def refunds(key, population, state):
  return population._replace(spent=base.Cost()), state


def creates(key, population, state):
  net = network.init(seeds.mlp((2,), (3,), 2), KEY)
  return population._replace(members=(base.Candidate(net),)), state


def remembers(key, population, state):
  state.append(1)
  return population, state


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    (stage(counts_calls), 'same in, same out: in the population: generation'),
    (
      stage(scales_in_place),
      'arguments stay as they are: its population: members/0/net/variables/',
    ),
    (
      stage(refunds),
      'spent never decreases: examples fell from 10 to 0',
    ),
    (stage(creates), 'empty in, empty out: got 1 members'),
    (
      stage(remembers, lambda population: []),
      'arguments stay as they are: its state: the structure is',
    ),
  ],
)
def test_a_stage_that_breaks_a_law_is_told_which(wrong, said):
  with pytest.raises(AssertionError, match=f"stage 'mine': {said}"):
    testing.check_stage(wrong, population(), KEY)


def test_a_stage_must_not_donate_what_it_is_given():
  on_device = jax.tree.map(
    lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, population()
  )
  with pytest.raises(AssertionError, match='arrays were donated'):
    testing.check_stage(stage(donates), on_device, KEY)


def top(count):
  return lambda key, scores: np.argsort(-scores, kind='stable')[:count]


def drawn(key, scores):
  """By inverse distribution: one score shifts all boundaries."""
  rng = base.rng(key)
  chances = np.where(np.isnan(scores), 0, np.exp(np.nan_to_num(scores)))
  if not chances.any():
    return np.array([0])
  return rng.choice(len(scores), size=1, p=chances / chances.sum())


def tournament(key, scores):
  rng = base.rng(key)
  entrants = rng.choice(len(scores), size=3, replace=False)
  ranked = np.where(np.isnan(scores), -np.inf, scores)
  if np.isinf(ranked[entrants]).all():
    return np.argsort(-ranked)[:1]
  return entrants[[np.argmax(ranked[entrants])]]


@pytest.mark.parametrize('rule', [top(3), drawn, tournament])
def test_rules_that_keep_the_laws_pass(rule):
  testing.check_rule(rule, KEY)


def sorts_in_place(key, scores):
  scores.sort()
  return np.arange(2)


_draws = np.random.default_rng(0)


@pytest.mark.parametrize(
  ('rule', 'said'),
  [
    (lambda key, scores: np.argsort(scores)[:2], 'a better score never hurts'),
    (lambda key, scores: np.argsort(scores)[::-1][:2], 'NaN never wins'),
    (lambda key, scores: [len(scores)], r'are not all in \[0, 8\)'),
    (lambda key, scores: [-1], r'are not all in \[0, 8\)'),
    (lambda key, scores: scores[:2], 'a vector of integers'),
    (lambda key, scores: 3, 'a vector of integers'),
    (lambda key, scores: _draws.integers(8, size=2), 'same in, same out'),
    (sorts_in_place, 'it changed the scores'),
  ],
)
def test_a_rule_that_breaks_a_law_is_told_which(rule, said):
  with pytest.raises(AssertionError, match=said):
    testing.check_rule(rule, KEY)


MOVES = (
  morphisms.widen({'dense1': 4}),
  morphisms.widen({'dense1': 6}),
  morphisms.prune({'dense1': [0]}),
)


def scores_of(moves, linear):
  costs = np.asarray([linear(i, move) for i, move in enumerate(moves)], float)
  return base.Scores(costs, np.ones((4, len(moves))), np.abs(costs), 2)


def width_of(i, move):
  del i
  return dict(move.widths)['dense1'] if hasattr(move, 'widths') else -1.0


def estimator(score):
  return base.Estimator(lambda net: (), score, None)


def test_an_estimator_that_keeps_the_laws_passes():
  mine = estimator(lambda key, net, moves, *rest: scores_of(moves, width_of))
  net = population(1).members[0].net
  scores = testing.check_estimator(mine, KEY, net, MOVES, None)
  np.testing.assert_array_equal(scores.linear, [4, 6, -1])


def draws_anew(key, net, moves, *rest):
  return scores_of(moves, lambda i, move: _draws.normal())


def writes_on_the_network(key, net, moves, *rest):
  net.variables['params']['dense1']['bias'] += 1
  return scores_of(moves, width_of)


@pytest.mark.parametrize(
  ('score', 'said'),
  [
    (draws_anew, 'same in, same out: in linear'),
    (
      lambda key, net, moves, *rest: scores_of(moves, lambda i, move: i),
      'the order of the moves does not matter: in .*linear by 2',
    ),
    (
      lambda key, net, moves, *rest: scores_of(moves, lambda i, m: np.nan),
      'scores are finite: linear',
    ),
    (
      lambda key, net, moves, *rest: scores_of(moves[1:], width_of),
      r'shapes: linear is \(2,\), expected \(3,\)',
    ),
    (
      lambda key, net, moves, *rest: scores_of(moves, width_of)._replace(
        examples=3
      ),
      '4 rows of coefficients are no multiple of 3 examples',
    ),
    (writes_on_the_network, 'arguments stay as they are: the network'),
  ],
)
def test_an_estimator_that_breaks_a_law_is_told_which(score, said):
  net = population(1).members[0].net
  with pytest.raises(AssertionError, match=said):
    testing.check_estimator(estimator(score), KEY, net, MOVES, None)


def learning(change, examples=5):
  """An estimator that changes every parameter given."""

  def fit(key, net, moves, thetas, data, state):
    return base.Learned(jax.tree.map(change, thetas), state, examples)

  return base.Estimator(
    lambda net: (), lambda key, net, m, *rest: scores_of(m, by_channel), fit
  )


def by_channel(i, move):
  del i
  return dict(move.channels)['dense1'][0]


@pytest.mark.parametrize(
  ('wrong', 'said'),
  [
    (learning(lambda x: x[..., :1]), 'given shapes: dense1/dense1 is'),
    (learning(lambda x: x / 0), 'learned parameters are finite'),
    (learning(lambda x: x + _draws.normal()), 'fit: same in, same out'),
    (learning(lambda x: x * 2, examples=0), 'it reports no examples'),
  ],
)
@pytest.mark.filterwarnings('ignore:divide by zero')
def test_what_an_estimator_learns_is_held_to_laws_too(wrong, said):
  net = population(1).members[0].net
  moves = [morphisms.split({'dense1': pair}) for pair in ([0, 1], [2, 1])]
  right = learning(lambda x: x * 2)
  testing.check_estimator(right, KEY, net, moves, None)
  with pytest.raises(AssertionError, match=said):
    testing.check_estimator(wrong, KEY, net, moves, None)


def test_randomized_networks_have_no_equal_channels_and_no_defaults():
  spec = seeds.chain((4, 4, 1), (5, 4), 3)
  net = testing.randomized(network.init(spec, KEY))
  stats, params = net.variables['batch_stats'], net.variables['params']
  for held in stats.values():
    assert (held['mean'] != 0).all()
    assert ((held['var'] > 0.5) & (held['var'] < 2)).all()
  for leaf in jax.tree.leaves(params):
    assert len(np.unique(leaf)) == leaf.size
  again = testing.randomized(network.init(spec, KEY))
  jax.tree.map(np.testing.assert_array_equal, net, again)


def test_randomized_padded_networks_keep_inactive_channels_zero():
  spec = seeds.mlp((2,), (3,), 2)
  padded = morphisms.pad({'dense1': 5})(network.init(spec, KEY), ())
  net = testing.randomized(padded)
  assert net.variables['arch']['active'] == {'dense1': 3}
  assert (net.variables['params']['dense1']['kernel'][:, 3:] == 0).all()
  assert (net.variables['params']['logits']['kernel'][3:] == 0).all()


BROKEN_SPACES = {
  'sample: all keys': lambda s: s._replace(
    sample=lambda key: jnp.ones(6, 'i4')
  ),
  'sample: gave float32': lambda s: s._replace(
    sample=lambda key: s.sample(key).astype(jnp.float32)
  ),
  'mutate: gave': lambda s: s._replace(mutate=lambda key, g: g.at[0].set(7)),
  'mutate: made': lambda s: s._replace(mutate=lambda key, g: g),
  'crossover: gave': lambda s: s._replace(crossover=lambda key, a, b: a - 9),
  'neighbours: of .* not all different': lambda s: s._replace(
    neighbours=lambda g: (jnp.stack([g, g]), jnp.ones(2, bool))
  ),
  'neighbours: of .* legal is not': lambda s: s._replace(
    neighbours=lambda g: (s.neighbours(g)[0], jnp.zeros(18, bool))
  ),
  'encode: gave': lambda s: s._replace(encode=lambda g: s.encode(g) * jnp.nan),
}


@pytest.mark.parametrize('says', BROKEN_SPACES)
def test_a_broken_array_space_is_caught(says):
  space = BROKEN_SPACES[says](spaces.tabular.transnas_micro())
  with pytest.raises(AssertionError, match=says):
    testing.check_array_space(space, jax.random.key(0), samples=8)


def counting(keys, genotypes, states):
  """A right trainer: a network is how often it was trained, and its key."""
  return [
    base.Taught(
      np.array(jax.random.key_data(key))
      if state is None
      else state + np.uint32(1),
      float(cell.sum()),
      5,
    )
    for key, cell, state in zip(keys, genotypes, states)
  ]


def _first_only(keys, genotypes, states):
  return counting(keys, genotypes, states)[:1]


def _by_place(keys, genotypes, states):
  found = counting(keys, genotypes, states)
  return [own._replace(fitness=float(i)) for i, own in enumerate(found)]


def _in_place(keys, genotypes, states):
  for state in states:
    if state is not None:
      state += np.uint32(1)
  return counting(keys, genotypes, states)


def _anew(keys, genotypes, states):
  return counting(keys, genotypes, [None] * len(keys))


def _longer(keys, genotypes, states):
  found = counting(keys, genotypes, [None] * len(keys))
  return [
    own if state is None else own._replace(state=np.append(own.state, 1))
    for own, state in zip(found, states)
  ]


def _free(keys, genotypes, states):
  found = counting(keys, genotypes, states)
  return [own._replace(examples=0) for own in found]


@pytest.mark.parametrize(
  ('train', 'says'),
  [
    (_first_only, '3 genotypes give 1'),
    (_by_place, 'trained alone is another'),
    (_in_place, 'goes on from changed'),
    (_anew, 'is begun anew'),
    (_longer, 'a rung changes the state'),
    (_free, 'examples at least 1'),
  ],
)
def test_a_trainer_that_breaks_a_law_is_told_which(train, says):
  def heir(state, mother, child):
    return np.array(state)

  cells = np.eye(3, dtype=int)
  testing.check_trainer(base.Trainer(counting, heir), cells)
  with pytest.raises(AssertionError, match=says):
    testing.check_trainer(base.Trainer(train, heir), cells)


def test_a_broken_predictor_is_caught():
  right = estimators.ridge()

  def leaky(key, params, x, y, use):
    return right.fit(key, params, x, jnp.nan_to_num(y), use | True)

  def deaf(key, params, x, y, use):
    return params

  for fit, says in ((leaky, 'do not count change'), (deaf, 'not learned')):
    with pytest.raises(AssertionError, match=says):
      testing.check_predictor(right._replace(fit=fit))


def test_a_broken_difference_is_caught():
  right = estimators.ridge_difference()

  def uneven(params, a, b):
    return right.predict(params, a, b) + 1e-3

  def leaky(key, params, x, y, pairs):
    return right.fit(key, params, x, jnp.nan_to_num(y), pairs * 0 + 1.0)

  for broken, says in (
    (right._replace(predict=uneven), 'not odd'),
    (right._replace(fit=leaky), 'of no pair change'),
  ):
    with pytest.raises(AssertionError, match=says):
      testing.check_difference(broken)
