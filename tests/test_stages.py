"""Stages: what they count, refuse, record and survive."""

import functools

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from jaxnas import (
  algorithms,
  base,
  combine,
  estimators,
  groups,
  morphisms,
  network,
  run,
  stages,
  tasks,
  testing,
  training,
)
from jaxnas.spaces import seeds
from jaxnas.stages.choose import Choice

KEY = jax.random.key(0)


@functools.cache
def task():
  """The digits, cut down."""
  whole = tasks.digits()

  def first(data, count):
    return base.Data(data.inputs[:count], data.targets[:count])

  return whole._replace(
    train=first(whole.train, 64), valid=first(whole.valid, 50)
  )


def member(widths=(4, 'M', 3), seed=0, **fields):
  spec = seeds.chain(task().shape, widths, task().outputs)
  net = network.init(spec, jax.random.key(seed))
  return base.Candidate(network.to_host(net), **fields)


def update(stage, *members, generation=0):
  start = base.Population(tuple(members), generation)
  return stage.update(KEY, start, stage.init(start))[0]


def scored(move, linear, rho, error=0.0):
  """A candidate as `judge` leaves it."""
  metrics = {
    'linear': linear,
    'error': error,
    'coefficients': np.asarray(rho, float),
    'predicted': linear + np.square(rho).mean() / 2,
  }
  return PARENT._replace(move=move, theta=None, metrics=metrics, parent=0)


PARENT = base.Candidate(
  network.to_host(network.init(seeds.mlp((4,), (3, 2), 3), jax.random.key(0)))
)


def split(channel, group='dense1'):
  return morphisms.split({group: [channel]})


def prune(channel, group='dense1'):
  return morphisms.prune({group: [channel]})


def test_expand_makes_a_candidate_for_each_channel_and_kind():
  stage = stages.expand(stages.splits(), stages.prunes())
  made = update(stage, member((4, 'M', 3)), member((2,)))
  assert len(made.members) == 2 * (4 + 3) + 2 * 2
  assert all(m.theta is None for m in made.members)


def test_expand_offers_no_prune_of_a_last_channel():
  made = update(stages.expand(stages.prunes()), member((1,)))
  assert [m.move for m in made.members] == [None]


def test_expand_keeps_two_members_with_one_network_apart():
  twin = member((2,))
  made = update(stages.expand(stages.splits()), twin, twin)
  rule = stages.choose(lambda pending: Choice((), ()))
  assert len(update(rule, *made.members).members) == 2


@pytest.mark.parametrize(
  'stage',
  [
    lambda: stages.train(task(), optax.sgd(0.1), epochs=1, batch=32),
    lambda: stages.expand(stages.splits()),
  ],
)
def test_a_pending_move_is_refused_with_the_remedy(stage):
  pending = member()._replace(move=split(0, 'conv1'))
  with pytest.raises(ValueError, match=r'add realise\(\) before'):
    update(stage(), pending)


def test_train_spends_what_it_used_and_counts_steps():
  stage = stages.train(task(), optax.sgd(0.1), epochs=2, batch=24)
  made = update(stage, member(), member(seed=1))
  assert made.spent.examples == 2 * 2 * 48
  assert [m.steps for m in made.members] == [4, 4]


def test_a_diverged_member_keeps_its_weights_and_the_others_train():
  broken = member(seed=1)
  params = jax.tree.map(np.copy, broken.net.variables['params'])
  params['logits']['kernel'][0, 0] = np.nan
  variables = {**broken.net.variables, 'params': params}
  broken = broken._replace(net=network.Network(variables, broken.net.spec))
  stage = stages.train(task(), optax.sgd(0.1), epochs=1, batch=32)
  made = update(stage, broken, member(), generation=4)
  assert [e.kind for e in made.members[0].lineage] == ['diverged']
  assert made.members[0].lineage[0].generation == 4
  assert made.members[0].net is broken.net
  assert made.members[0].opt_state is None
  assert made.members[1].lineage == () and made.members[1].steps == 2
  assert made.spent.examples == 2 * 64


def test_an_exploding_learning_rate_is_survived():
  stage = stages.train(task(), optax.sgd(1e30), epochs=1, batch=32)
  start = member()
  made = update(stage, start).members[0]
  assert [e.kind for e in made.lineage] == ['diverged']
  assert made.net is start.net


def test_measure_refuses_the_test_split():
  with pytest.raises(ValueError, match='decides'):
    stages.measure(task(), 'test')


def test_measure_adds_metrics_and_pays_for_them():
  made = update(stages.measure(task()), member())
  metrics = made.members[0].metrics
  assert metrics['params'] == network.param_count(member().net)
  assert 0 <= metrics['valid_metric'] <= 1
  assert made.spent.evaluations == 1


def test_realise_makes_the_move_and_records_both_changes():
  pending = member()._replace(
    move=split(1, 'conv1'), theta=None, metrics={'predicted': -0.5}
  )
  made = update(stages.realise(task()), pending, generation=7).members[0]
  assert made.net.spec.shapes['conv1'][-1] == 5
  assert made.move is None and made.born == 7
  event = made.lineage[0]
  assert (event.kind, event.predicted) == ('move', -0.5)
  assert event.measured == pytest.approx(0, abs=0.1)


def test_realise_undoes_what_raises_the_loss_too_much():
  pending = member()._replace(move=prune(0, 'conv1'), theta=None)
  stage = stages.realise(task(), tolerance=-1.0)
  made = update(stage, pending).members[0]
  assert [e.kind for e in made.lineage] == ['rejected']
  assert made.net.spec == pending.net.spec and made.move is None


def test_training_goes_on_after_a_move_with_the_carried_state():
  train = stages.train(task(), optax.adam(1e-2), epochs=1, batch=32)
  trained = update(train, member()).members[0]
  pending = trained._replace(move=split(1, 'conv1'), theta=None)
  moved = update(stages.realise(), pending).members[0]
  count = moved.opt_state[0].count
  again = update(train, moved).members[0]
  assert again.opt_state[0].count == count + 2
  assert again.net.spec.shapes['conv1'][-1] == 5


SEEDS = {
  'mlp': seeds.mlp((5,), (3, 4), 3),
  'image mlp': seeds.mlp((3, 3, 2), (3, 4), 3),
  'chain': seeds.chain((8, 8, 1), (3, 'M', 4), 3),
  'resnet': seeds.resnet(3, shape=(8, 8, 1), blocks=1, widths=(2, 3, 4)),
  'mobilenet': seeds.mobilenet_v1((8, 8, 1), 3, width=2),
}


@hypothesis.settings(max_examples=25, derandomize=True)
@hypothesis.given(name=st.sampled_from(sorted(SEEDS)), data=st.data())
def test_the_price_is_the_number_of_parameters_of_the_built_network(name, data):
  spec = SEEDS[name]
  sizes = {
    g.name: data.draw(st.integers(1, 6), label=g.name)
    for g in groups.growable(spec)
  }
  built = groups.resized(spec, sizes)
  assert stages.parameters(spec)(sizes) == network.param_count(built)
  assert stages.operations(spec)(sizes) == network.flops(built)


def test_jointly_sees_that_equal_moves_are_redundant():
  same = [1.0, -1.0, 1.0, -1.0]
  pending = [scored(split(c), -0.6, same) for c in range(3)]
  choice = stages.jointly(price=0.0)(pending)
  assert choice.indices == (0,)
  assert choice.predicted == pytest.approx(-0.6 + 0.5)
  control = stages.independently(price=0.0, limit=3)(pending)
  assert control.predicted == pytest.approx(3 * -0.1)
  true = 3 * -0.6 + 0.5 * 9  # All three together overshoot.
  assert true > 0 > control.predicted


def test_jointly_adds_moves_that_do_not_meet():
  pending = [
    scored(split(0), -0.6, [1, 1, -1, -1]),
    scored(split(1), -0.6, [1, -1, 1, -1]),
  ]
  choice = stages.jointly(price=0.0)(pending)
  assert choice.indices == (0, 1)
  assert choice.predicted == pytest.approx(-0.2)


def test_jointly_pays_for_splits_and_earns_by_prunes():
  rho = np.full(4, 1e-3)
  per_channel = 4 + 1 + 2  # Incoming weights, bias, outgoing weights.
  dear = stages.jointly(price=1.01 / per_channel)
  cheap = stages.jointly(price=0.99 / per_channel)
  gain = [scored(split(0), -1.0, rho)]
  harm = [scored(prune(0), 1.0, rho)]
  assert cheap(gain).indices == (0,) and dear(gain).indices == ()
  assert cheap(harm).indices == () and dear(harm).indices == (0,)


def test_jointly_never_splits_and_prunes_one_channel():
  rho = np.zeros(4)
  pending = [scored(split(1), -2.0, rho), scored(prune(1), -1.0, rho)]
  assert stages.jointly(price=0.0)(pending).indices == (0,)


def test_jointly_leaves_every_group_a_channel():
  pending = [scored(prune(c), -1.0, np.zeros(4)) for c in range(3)]
  assert len(stages.jointly(price=0.0)(pending).indices) == 2


def test_jointly_keeps_its_limit_and_asks_for_significance():
  pending = [scored(split(c), -1.0, np.zeros(4), 0.6) for c in range(3)]
  assert len(stages.jointly(price=0.0, limit=2)(pending).indices) == 2
  assert len(stages.jointly(price=0.0, z=1.0)(pending).indices) == 3
  assert stages.jointly(price=0.0, z=2.0)(pending).indices == ()


@pytest.mark.parametrize('wrong', [{'price': -1}, {'price': 0, 'z': -1}])
def test_jointly_refuses_negative_settings(wrong):
  with pytest.raises(ValueError, match='must not be negative'):
    stages.jointly(**wrong)


def test_choose_merges_what_is_chosen_into_one_move():
  pending = [scored(split(c), -1.0, np.zeros(4)) for c in (2, 0)]
  pending.append(scored(prune(1, 'dense2'), -1.0, np.zeros(4)))
  (made,) = update(stages.choose(stages.jointly(price=0.0)), *pending).members
  assert made.metrics['chosen'] == 3
  assert made.metrics['predicted'] == pytest.approx(-3.0)
  assert 'coefficients' not in made.metrics
  built = made.move(made.net, made.theta).spec.shapes
  assert (built['dense1'], built['dense2']) == ((5,), (1,))


def test_choose_lets_the_parent_go_on_where_nothing_pays():
  pending = [scored(split(c), 1.0, np.zeros(4)) for c in range(3)]
  (made,) = update(stages.choose(stages.jointly(price=0.0)), *pending).members
  assert made.move is None and made.theta == ()
  assert made.net is PARENT.net


@pytest.mark.parametrize('rule', [stages.jointly, stages.independently])
@pytest.mark.parametrize('cost', [stages.parameters, stages.operations])
def test_a_set_costs_no_more_than_its_ratio_allows(rule, cost):
  """Splits, prunes and a block, by the cost of the network that they build:
  splits behind the block cost more than they would without it."""
  block = morphisms.insert('act1', form='residual', name='block')
  pending = [
    *(scored(split(c), -1.0 - c / 8, np.zeros(4)) for c in range(3)),
    *(scored(split(c, 'dense2'), -0.5, np.zeros(4)) for c in range(2)),
    scored(block, -3.0, np.zeros(4)),
  ]
  theta = block.init(PARENT.net, jax.random.key(0))
  pending[-1] = pending[-1]._replace(theta=theta)
  count = cost(PARENT.net.spec)
  start = count({})

  def paid(ratio):
    choice = rule(price=0.0, ratio=ratio, cost=cost)(pending)
    picked = [pending[i] for i in choice.indices]
    move, _ = morphisms.unite(
      PARENT.net, [m.move for m in picked], [m.theta for m in picked]
    )
    return choice.indices, cost(morphisms.respec(move, PARENT.net.spec))({})

  everything, whole = paid(np.inf)
  assert sorted(everything) == list(range(6)) and everything[0] == 5
  for ratio in (1.0, 1.2, 1.5, 2.0):
    chosen, spent = paid(ratio)
    assert spent <= ratio * start < whole
    assert len(chosen) < 6
  assert paid(1.0)[0] == () and len(paid(2.0)[0]) > 1
  # Where nothing may be added, a prune still may go, and make room.
  pending += [scored(prune(c), 0.5, np.zeros(4)) for c in range(2)]
  earning = rule(price=1.0, ratio=1.0, cost=cost)(pending)
  assert earning.indices[0] >= 6


@pytest.mark.parametrize('wrong', [{'ratio': 0.9}, {'ratio': np.nan}])
def test_a_ratio_below_one_is_refused(wrong):
  for rule in (stages.jointly, stages.independently):
    with pytest.raises(ValueError, match='ratio must be at least 1'):
      rule(price=0.0, **wrong)


def confirmed_by(losses, monkeypatch):
  """`confirmed` of a rule that chooses four splits, the loss of the network
  with n more channels being `losses[n]`."""
  seen = []

  def evaluate(net, task, data):
    assert data is task.valid
    seen.append(sum(g.size for g in groups.growable(net.spec)) - 5)
    loss = losses[seen[-1]]
    return training.Measured(loss, 0.0, 50)

  monkeypatch.setattr(training, 'evaluate', evaluate)
  pending = [scored(split(c), -1.0, np.zeros(4)) for c in range(3)]
  pending += [scored(split(c, 'dense2'), -1.0, np.zeros(4)) for c in range(2)]
  thetas = (m.move.init(PARENT.net, KEY) for m in pending)
  pending = [m._replace(theta=t) for m, t in zip(pending, thetas)]
  choice = Choice((4, 0, 3, 1), (-1.0, -2.0, -3.0, -4.0))
  price = 1e-4
  made = stages.confirmed(lambda members: choice, task(), price=price)(pending)
  return made, seen


@pytest.mark.parametrize(
  'losses, kept, seen',
  [
    ({0: 1.0, 4: 0.9}, 4, [0, 4]),
    ({0: 1.0, 4: 1.1, 2: 0.9}, 2, [0, 4, 2]),
    ({0: 1.0, 4: 1.1, 2: 1.1, 1: 0.9}, 1, [0, 4, 2, 1]),
    ({0: 1.0, 4: 1.1, 2: 1.1, 1: 1.1}, 0, [0, 4, 2, 1]),
    ({0: 1.0, 4: 0.9999, 2: 0.9}, 2, [0, 4, 2]),  # Gains less than it costs.
    ({0: 1.0, 4: np.nan, 2: 0.9}, 2, [0, 4, 2]),
  ],
)
def test_confirmed_halves_a_set_until_the_second_fold_agrees(
  losses, kept, seen, monkeypatch
):
  made, networks = confirmed_by(losses, monkeypatch)
  assert made.indices == (4, 0, 3, 1)[:kept]
  assert made.predictions == (-1.0, -2.0, -3.0, -4.0)[:kept]
  assert networks == seen and made.evaluations == len(seen)


def test_what_confirming_measures_is_spent():
  rule = stages.confirmed(stages.jointly(price=0.0, z=0.0, limit=2), task())
  pending = _judged(member((3, 'M', 4)))
  made = update(stages.choose(rule), *pending)
  assert made.spent.evaluations >= 2
  plain = update(stages.choose(stages.jointly(price=0.0, limit=2)), *pending)
  assert plain.spent.evaluations == 0


def leaning(channel, shares):
  """A candidate that merges a channel of `dense1` into others."""
  move = morphisms.merge({'dense1': [channel]})
  theta = {
    'means': {'dense2': np.zeros(1)},
    'shares': {'dense1': np.array([shares], float)},
  }
  return scored(move, -1.0, np.zeros(4))._replace(theta=theta)


def test_jointly_removes_no_channel_that_a_chosen_merge_leans_on():
  rule = stages.jointly(price=0.0)
  both = [leaning(0, [0, 0.9, 0]), leaning(1, [0.9, 0, 0])]
  assert rule(both).indices == (0,)
  apart = [leaning(0, [9, 0, 0.9]), leaning(1, [0.05, 0, 0.9])]
  assert rule(apart).indices == (0, 1)
  # Whichever is chosen first; and a plain prune counts as a removal too.
  first = scored(prune(1), -2.0, np.zeros(4))
  assert rule([leaning(0, [0, 0.9, 0]), first]).indices == (1,)
  last = scored(prune(1), -0.5, np.zeros(4))
  assert rule([leaning(0, [0, 0.9, 0]), last]).indices == (0,)
  # What it leans on may be split.
  twin = scored(split(1), -0.5, np.zeros(4))
  assert rule([leaning(0, [0, 0.9, 0]), twin]).indices == (0, 1)


def test_jointly_inserts_one_block_behind_a_node():
  def block(after, **options):
    move = morphisms.insert(after, form='residual', **options)
    return scored(move, -1.0, np.zeros(4))

  pending = [block('act1'), block('act1', activation='silu'), block('act2')]
  assert stages.jointly(price=0.0)(pending).indices == (0, 2)
  dear = stages.jointly(price=1.01 / (2 * (3 * 3 + 3) + 1))
  assert dear(pending[:1]).indices == ()
  cheap = stages.jointly(price=0.99 / (2 * (3 * 3 + 3) + 1))
  assert cheap(pending[:1]).indices == (0,)


def test_jointly_never_chooses_a_score_that_is_no_number():
  pending = [
    scored(split(0), np.nan, np.zeros(4)),
    scored(split(1), -1.0, np.zeros(4)),
  ]
  assert stages.jointly(price=0.0)(pending).indices == (1,)


def stub(seen):
  """An estimator that notes its calls; move i has slope i and theta i."""

  def score(key, net, moves, thetas, data, state):
    del key, state
    seen.append((net, tuple(moves), tuple(thetas), data))
    slopes = np.arange(float(len(moves)))
    rho = np.outer([1, -1, 1, -1], slopes)
    return base.Scores(slopes, rho, slopes + 0.5, len(data.targets))

  def fit(key, net, moves, thetas, data, state):
    del key
    seen.append((net, tuple(moves), tuple(thetas), data))
    return base.Learned(list(range(len(moves))), state, 3 * len(data.targets))

  return base.Estimator(lambda net: (), score, fit)


def expanded(*members):
  return update(stages.expand(stages.prunes()), *members).members


def test_judge_scores_all_moves_of_a_network_at_once():
  seen, one, two = [], member((2, 3)), member((3,))
  idle = member((1,))
  pending = expanded(one, two, idle)
  made = update(stages.judge(stub(seen), task(), examples=10), *pending)
  assert [len(moves) for _, moves, _, _ in seen] == [5, 3]
  assert [net.spec for net, _, _, _ in seen] == [one.net.spec, two.net.spec]
  assert made.spent.examples == 20
  metrics = made.members[2].metrics
  assert (metrics['linear'], metrics['error']) == (2.0, 2.5)
  np.testing.assert_array_equal(metrics['coefficients'], [2, -2, 2, -2])
  assert metrics['predicted'] == 2.0 + 4.0 / 2
  assert made.members[-1] == idle


def test_learn_gives_every_move_its_own_theta():
  seen = []
  pending = expanded(member((2,)), member((3,)))
  made = update(stages.learn(stub(seen), task(), examples=10), *pending)
  assert [m.theta for m in made.members] == [0, 1, 0, 1, 2]
  assert [m.move for m in made.members] == [m.move for m in pending]
  assert made.spent.examples == 2 * 3 * 10


def test_the_order_of_candidates_mixes_no_parents():
  seen = []
  pending = expanded(member((2,)), member((3,)))
  mixed = [pending[i] for i in (3, 0, 4, 1, 2)]
  made = update(stages.learn(stub(seen), task(), examples=10), *mixed)
  assert [m.theta for m in made.members] == [0, 0, 1, 1, 2]
  for net, moves, _, _ in seen:
    assert all(morphisms.respec(move, net.spec) for move in moves)


def test_equal_numbers_of_two_expands_mix_no_parents():
  """In groups each expand numbers from zero; weights tell twins apart."""
  seen = []
  start = member((2,)), member((3,)), member((3,), seed=1)
  grouped = combine.group_by(
    lambda m: float(m.net.variables['params']['logits']['kernel'][0, 0]),
    stages.expand(stages.prunes()),
  )
  pending = update(grouped, *start).members
  assert {m.parent for m in pending} == {0}
  update(stages.judge(stub(seen), task(), examples=10), *pending)
  assert all(call[0] is m.net for call, m in zip(seen, start, strict=True))
  assert [len(moves) for _, moves, _, _ in seen] == [2, 3, 3]


def test_moves_are_judged_on_other_examples_than_they_were_learned_from():
  seen, plain = [], task()._replace(augment=tasks.unchanged)
  pending = expanded(member((2,)))
  for stage in (stages.learn, stages.judge):
    update(stage(stub(seen), plain, examples=32), *pending)
  learned, judged = (
    {image.tobytes() for image in np.asarray(data.inputs)}
    for _, _, _, data in seen
  )
  assert len(learned) == len(judged) == 32 and not learned & judged


def _two():
  return member((2, 'M', 3)), member((3, 'M', 2), seed=1)


def _judged(*members):
  estimator, chain = estimators.gauss_newton(), []
  chain.append(stages.learn(estimator, task(), examples=32))
  chain.append(stages.judge(estimator, task(), examples=32))
  for stage in (stages.expand(stages.splits(), stages.prunes()), *chain):
    members = update(stage, *members).members
  return members


def _chosen(*members):
  rule = stages.jointly(price=0.0, z=0.0, limit=2)
  return update(stages.choose(rule), *_judged(*members)).members


@pytest.mark.parametrize(
  'stage, members',
  [
    (lambda: stages.train(task(), optax.adam(0.1), epochs=1, batch=32), _two),
    (lambda: stages.measure(task()), _two),
    (lambda: stages.expand(stages.splits(), stages.prunes()), _two),
    (
      lambda: stages.learn(
        estimators.gauss_newton(steps=1), task(), examples=32
      ),
      lambda: expanded(*_two()),
    ),
    (
      lambda: stages.judge(estimators.gauss_newton(), task(), examples=32),
      lambda: expanded(*_two()),
    ),
    (
      lambda: stages.choose(stages.jointly(price=0.0, z=0.0)),
      lambda: _judged(*_two()),
    ),
    (lambda: stages.realise(task()), lambda: _chosen(*_two())),
  ],
  ids=['train', 'measure', 'expand', 'learn', 'judge', 'choose', 'realise'],
)
def test_stages_keep_their_laws(stage, members):
  """Same in, same out; arguments as they were; costs grow; empty stays."""
  testing.check_stage(stage(), base.Population(tuple(members())), KEY)


@pytest.mark.slow
def test_growth_records_what_it_predicted_and_what_it_measured():
  """A move for each member and round; a run in two parts is the run."""
  tx = optax.adam(1e-2)
  stage = algorithms.growth(
    task(),
    tx,
    estimators.gauss_newton(),
    stages.jointly(price=0.0, z=0.0, limit=2),
    epochs=1,
    batch=32,
    rounds=2,
    learn_examples=32,
    score_examples=32,
  )
  start = base.Population((member((6, 'M', 5)), member((5, 'M', 6), seed=1)))
  after, _ = run(KEY, stage, start, 3)
  for grown, seed in zip(after.members, start.members, strict=True):
    assert [e.kind for e in grown.lineage] == ['move', 'move']
    assert [e.generation for e in grown.lineage] == [0, 1]
    assert all(e.predicted < 0 for e in grown.lineage)
    assert all(np.isfinite(e.measured) for e in grown.lineage)
    spec = seed.net.spec
    for event in grown.lineage:
      spec = morphisms.respec(event.move, spec)
    assert grown.net.spec == spec != seed.net.spec
    assert grown.steps == 3 * 2 and grown.move is None
    assert grown.metrics['params'] == network.param_count(spec)
  half, state = run(KEY, stage, start, 1)
  rest, _ = run(KEY, stage, half, 3, state=state)
  jax.tree.map(np.testing.assert_array_equal, rest.members, after.members)
