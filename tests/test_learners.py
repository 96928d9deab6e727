"""The laws of learners and children, on all there are and on broken ones."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxnas import learners, mixing, tasks, testing
from jaxnas.spaces import slots

KEY = jax.random.key(0)
TOY = {'h': 1.0}


@functools.cache
def few(task: str = 'digits'):
  """Digits, few of them."""
  found = getattr(tasks, task)()
  cut = {
    split: jax.tree.map(lambda leaf: leaf[:128], getattr(found, split))
    for split in ('train', 'valid', 'test')
  }
  return found._replace(**cut)


LEARNERS = {
  'teacher': lambda: (
    learners.teacher(KEY, slots=3, steps=2, points=(8, 8)),
    {},
  ),
  'plain': lambda: (learners.plain(steps=2), TOY),
  'deceptive': lambda: (learners.deceptive(steps=2), TOY),
  'gan': lambda: (
    learners.gan(KEY, few(), steps=2, samples=(100, 100), part=100),
    {},
  ),
  'ppo': lambda: (
    learners.ppo(
      tasks.control.pendulum(horizon=20),
      envs=4,
      steps=4,
      updates=1,
      batches=1,
      episodes=(2, 2),
    ),
    {},
  ),
  'classifier': lambda: (learners.classifier(few(), steps=1), {}),
  'taylor': lambda: (
    learners.classifier(few(), steps=1, objective=learners.by_taylor),
    {name: prior.low for name, prior in learners.TAYLOR_PRIORS.items()},
  ),
}


@functools.cache
def made(name):
  return LEARNERS[name]()


# Those whose programs compile for long; their own tests run every time.
_LONG = ('gan', 'ppo', 'classifier', 'taylor')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in _LONG else ())
    for name in LEARNERS
  ],
)
def test_learners_keep_the_laws(name):
  learner, hyper = made(name)
  testing.check_learner(learner, hyper=hyper)


PRIORS = {'h': mixing.Prior(0.5, 2.0)}
CHILDREN = {
  'mix': lambda genes: mixing.mix(genes),
  'exact': lambda genes: mixing.mix(
    genes, keep=1.0, noise=0.0, moments='take_donor'
  ),
  'itself': lambda genes: mixing.itself(mixing.mix(genes)),
  'mutate': mixing.mutate,
  'copy': lambda genes: mixing.copy(),
}


@pytest.mark.parametrize('make', CHILDREN)
def test_children_keep_the_laws(make):
  learner, hyper = made('teacher')
  testing.check_child(CHILDREN[make](learner.genes), learner, hyper=hyper)


@pytest.mark.slow
@pytest.mark.parametrize('make', CHILDREN)
@pytest.mark.parametrize('name', ['gan', 'ppo', 'classifier'])
def test_children_of_networks_keep_the_laws(name, make):
  learner, hyper = made(name)
  testing.check_child(CHILDREN[make](learner.genes), learner, hyper=hyper)


def test_children_of_hyper_parameters_keep_the_laws():
  learner, hyper = made('plain')
  for child in (
    mixing.explore(PRIORS),
    mixing.explore(PRIORS, resample=1.0),
    mixing.following(mixing.crossover(), mixing.jitter(PRIORS)),
  ):
    testing.check_child(child, learner, hyper=hyper)


@pytest.mark.slow
def test_growing_children_keep_the_laws():
  learner, _ = made('gan')
  child = slots.morph(learner.genes, slots.held(learner.genes))
  testing.check_child(child, learner)


def broken(**parts):
  return made('teacher')[0]._replace(**parts)


def _captures():
  table = jnp.ones(5000)
  real = broken()

  def measure(key, member, data):
    found = real.measure(key, member, data)
    return {**found, 'fitness': found['fitness'] * table.mean()}

  return measure


def _unnamed(key, genes, hyper, data):
  body = broken().init(key, genes, hyper, data)
  return body._replace(layers={'other': body.layers['slots']})


@pytest.mark.parametrize(
  ('parts', 'message'),
  [
    ({'measure': _captures()}, 'measure: it captures arrays of shapes'),
    ({'init': _unnamed}, "the body has .'other'., genes.owner .'slots'."),
    (
      {'train': lambda key, member, data: member.body._replace(rest=1.0)},
      'train: the body has changed its layout',
    ),
    (
      {'measure': lambda key, member, data: {'fitness': jnp.nan}},
      'fitness must be a number, got',
    ),
    ({'test': lambda key, member, data: {'loss': 0.0}}, 'got None'),
  ],
)
def test_a_broken_learner_is_caught(parts, message):
  with pytest.raises(AssertionError, match=message):
    testing.check_learner(broken(**parts))


@pytest.mark.parametrize(
  ('child', 'message'),
  [
    (lambda key, one, two, init: two, 'rest'),
    (
      lambda key, one, two, init: one._replace(genes=one.genes + 7),
      'are not within',
    ),
    (
      lambda key, one, two, init: one._replace(hyper={'more': 1.0}),
      'a child is unlike its parents',
    ),
  ],
)
def test_a_broken_child_is_caught(child, message):
  with pytest.raises(AssertionError, match=message):
    testing.check_child(child, broken())
