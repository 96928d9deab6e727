"""Evolution: who lives, who dies, what is remembered, and what it costs."""

import functools
import json
import math

import jax
import numpy as np
import optax
import pytest
import rich.console

from configs import evolution_digits
from jaxnas import (
  algorithms,
  base,
  checkpoint,
  combine,
  jobs,
  morphisms,
  network,
  run,
  selection,
  spaces,
  stages,
  tasks,
  testing,
  training,
  workdir,
)
from jaxnas.spaces import seeds
from jaxnas.spaces.chain import units

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


@functools.cache
def space():
  """Dense chains in one bucket each: few programs, and many moves."""
  return spaces.chain(
    task().shape, task().outputs, stages=0, hidden=(1, 2), widths=(2, 3, 4)
  )


TX = optax.adam(1e-2)


def member(valid=0.5, params=10, born=0, seed=0, **metrics):
  net = network.to_host(
    network.init(seeds.mlp((4,), (3,), 2), jax.random.key(seed))
  )
  metrics = {'valid_metric': valid, 'params': params, **metrics}
  return base.Candidate(net, metrics=metrics, born=born)


def update(stage, *members, generation=0, archive=()):
  start = base.Population(tuple(members), generation, archive=archive)
  return stage.update(KEY, start, stage.init(start))[0]


def valid(population):
  return [m.metrics['valid_metric'] for m in population.members]


# Selecting.


def test_select_keeps_the_chosen_as_often_as_they_are_chosen():
  members = [member(v) for v in (0.1, 0.4, 0.3)]
  stage = stages.select(lambda key, scores: np.array([1, 1, 2]))
  assert valid(update(stage, *members)) == [0.4, 0.4, 0.3]
  assert valid(update(stages.select(selection.top(2)), *members)) == [0.4, 0.3]


def test_select_by_several_objectives_keeps_the_front():
  """Hand-made: (0.9, 30), (0.8, 20), (0.7, 10) trade; (0.7, 20) is beaten."""
  members = [
    member(0.7, 20),
    member(0.9, 30),
    member(0.8, 20),
    member(0.7, 10),
  ]
  by = (stages.more('valid_metric'), stages.less('params'))
  kept = update(stages.select(selection.nsga2(3), by=by), *members)
  assert sorted(valid(kept)) == [0.7, 0.8, 0.9]
  assert all(
    m.metrics['params'] != 20 or m.metrics['valid_metric'] == 0.8
    for m in kept.members
  )


def unguarded(candidate):
  """The control: an objective that trusts the metric of what diverged."""
  return candidate.metrics['valid_metric']


@pytest.mark.parametrize('loss', [math.nan, math.inf])
def test_a_diverged_member_ranks_last_whatever_its_metric(loss):
  members = [member(0.9, train_loss=loss), member(0.2, train_loss=1.0)]
  for rule in (
    selection.top(1),
    selection.tournament(4),
    selection.front(),
    selection.nsga2(1),
    selection.crowded_tournament(4),
  ):
    assert valid(update(stages.select(rule), *members)) == [0.2]
  control = stages.select(selection.top(1), by=unguarded)
  assert valid(update(control, *members)) == [0.9]


def test_selecting_by_what_was_not_measured_is_refused():
  stage = stages.select(selection.top(1), by=stages.less('flops'))
  with pytest.raises(ValueError, match=r"no metric 'flops'.*add measure\(\)"):
    update(stage, member())


def test_latency_is_the_slower_of_operations_and_memory():
  """4 -> 3 -> 2: layers of 24 and 12 operations, of 22 and 13 values."""
  candidate = member()
  slow_chip = stages.faster(operations=1.0, numbers=1e9)(candidate)
  assert slow_chip == pytest.approx(-36, rel=1e-6)
  slow_memory = stages.faster(operations=1e9, numbers=1.0)(candidate)
  dense = (15 + 4 + 3) + (8 + 3 + 2)
  assert slow_memory == pytest.approx(-dense - 6, rel=1e-6)
  with pytest.raises(ValueError, match='must be positive, got 0 and 1'):
    stages.faster(operations=0, numbers=1)


# Ageing and memory.


def test_youngest_drops_the_oldest_and_then_the_first():
  members = [member(born=b, valid=i) for i, b in enumerate((1, 0, 2, 1, 0))]
  assert valid(update(stages.youngest(3), *members)) == [0, 2, 3]
  assert valid(update(stages.youngest(4), *members)) == [0, 2, 3, 4]
  assert len(update(stages.youngest(9), *members).members) == 5
  with pytest.raises(ValueError, match='at least 1, got 0'):
    stages.youngest(0)


def test_remember_keeps_the_best_of_the_history():
  old = member(0.8)
  stage = stages.remember(selection.top(1))
  assert update(stage, member(0.5), archive=(old,)).archive == (old,)
  better = member(0.9)
  made = update(stage, member(0.5), better, archive=(old,))
  assert made.archive == (better,)
  assert workdir.leader(made) is better
  assert made.members[0].metrics['valid_metric'] == 0.5


def test_remember_holds_one_of_equals_and_the_whole_front():
  by = (stages.more('valid_metric'), stages.less('params'))
  stage = stages.remember(selection.front(), by=by)
  small, large = member(0.5, 10), member(0.9, 20)
  made = update(stage, small, large, member(0.5, 20))
  assert made.archive == (small, large)
  again = stage.update(KEY, made, ())[0]
  assert again.archive == (small, large)


def test_the_archive_passes_through_combinators():
  kept = member(0.9)
  forget = combine.stage(lambda key, p: p._replace(members=()), 'forget')
  remembering = stages.remember(selection.top(1))
  for stage in (
    combine.append(forget),
    combine.group_by(lambda m: m.born, combine.chain(remembering, forget)),
    combine.repeat(2, remembering),
  ):
    made = update(stage, member(0.1), member(0.2, born=1), archive=(kept,))
    assert made.archive == (kept,)


# Changing.


def test_mutate_draws_each_legal_move_about_as_often():
  start = stages.founders(jax.random.key(3), space(), 1).members * 600
  made = update(stages.mutate(stages.within(space())), *start, generation=4)
  offered = space().moves(start[0].net.spec)
  counts = [sum(m.move == move for m in made.members) for move in offered]
  assert sum(counts) == 600
  np.testing.assert_allclose(counts, 600 / len(offered), rtol=0.35)
  assert {m.born for m in made.members} == {4}
  assert all(m.theta is None for m in made.members)


def test_mutate_does_not_propose_what_is_illegal():
  illegal, legal = morphisms.widen({'dense1': 1}), morphisms.identity()
  start = [member()] * 20
  made = update(stages.mutate(lambda net: [illegal, legal]), *start)
  assert {m.move for m in made.members} == {legal}
  made = update(stages.mutate(lambda net: [illegal]), *start)
  assert {m.move for m in made.members} == {None}


def test_preserving_offers_what_keeps_the_function_and_no_more():
  net = stages.founders(jax.random.key(3), space(), 1).members[0].net
  every = list(stages.within(space())(net))
  kept = stages.preserving(stages.within(space()))(net)
  assert 0 < len(kept) < len(every)
  assert [m for m in every if m.preserves] == kept


def test_restart_gives_fresh_weights_and_nothing_else():
  old = member()._replace(opt_state=(1,), steps=3, lineage=('x',), born=2)
  (new,) = update(stages.restart(), old).members
  assert new.net.spec == old.net.spec
  assert (new.opt_state, new.steps, new.metrics) == (None, 0, {})
  assert (new.lineage, new.born) == (('x',), 2)
  kernels = [c.net.variables['params']['dense1']['kernel'] for c in (old, new)]
  assert not np.array_equal(*kernels)


def test_inherit_keeps_the_weights_and_starts_the_optimizer_anew():
  old = member()._replace(opt_state=(1,), steps=3)
  (new,) = update(stages.inherit(), old).members
  assert new == old._replace(opt_state=None)


@pytest.mark.parametrize('make', [stages.restart, lambda: stages.mutate()])
def test_stages_that_cannot_take_a_pending_move_say_so(make):
  pending = member()._replace(move=morphisms.identity())
  with pytest.raises(ValueError, match=r'add realise\(\) before'):
    update(make(), pending)


BY = (stages.more('valid_metric'), stages.less('params'))
LAWFUL = {
  'select': (stages.select(selection.tournament(2, count=5)), 5),
  'survivors': (stages.select(selection.nsga2(2), by=BY), 2),
  'remember': (stages.remember(selection.front(), by=BY), 3),
  'youngest': (stages.youngest(2), 2),
  'mutate': (stages.mutate(lambda net: [morphisms.identity()]), 3),
  'restart': (stages.restart(), 3),
  'inherit': (stages.inherit(), 3),
  'sample': (stages.sample(space()), 3),
}


@pytest.mark.parametrize(('stage', 'count'), LAWFUL.values(), ids=LAWFUL)
def test_stages_keep_the_laws_and_their_counts(stage, count):
  start = base.Population(tuple(member(0.1 * i, 5 - i) for i in range(3)))
  assert len(testing.check_stage(stage, start, KEY).members) == count


# Algorithms.


def evolution(weights=stages.restart, moves=lambda m: m, **options):
  settings = {'size': 4, 'entrants': 2, 'children': 2, **options}
  return algorithms.regularized_evolution(
    task(),
    TX,
    moves(stages.within(space())),
    epochs=1,
    batch=32,
    weights=weights(),
    **settings,
  )


def evolved(stage, generations, count=4, state=None, start=None):
  start = start or stages.founders(KEY, space(), count)
  return run(jax.random.key(7), stage, start, generations, state=state)


def test_evolution_counts_ages_and_remembers():
  seen = []
  stage = combine.chain(evolution(), combine.observe(seen.append))
  last, _ = evolved(stage, 4)
  born = [sorted(m.born for m in p.members) for p in seen]
  assert born == [[0] * 4, [0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]]
  assert last.spent.evaluations == 4 + 3 * 2
  assert last.spent.examples == (4 + 3 * 2) * 64
  best = [
    max(m.metrics['valid_metric'] for m in (*p.members, *p.archive))
    for p in seen
  ]
  assert best == sorted(best)
  assert last.archive[0].metrics['valid_metric'] == best[-1]
  history = [m for p in seen for m in p.members]
  assert best[-1] == max(m.metrics['valid_metric'] for m in history)
  # One move more than the parent, or none where none was legal.
  assert all(len(m.lineage) >= 1 for m in last.members), (
    'children have a lineage'
  )


def test_the_history_holds_what_the_population_has_lost():
  """Scores fall from generation to generation; the first is the answer."""

  def worse(key, population):
    members = tuple(
      m._replace(metrics={'valid_metric': -float(m.born)})
      for m in population.members
    )
    return population._replace(members=members)

  cycle = combine.chain(
    combine.append(
      combine.chain(
        stages.select(selection.tournament(2)),
        stages.mutate(stages.within(space())),
        stages.realise(),
        combine.stage(worse),
      )
    ),
    stages.youngest(2),
  )
  founders = stages.founders(KEY, space(), 2)
  first = tuple(
    m._replace(metrics={'valid_metric': 0.0}) for m in founders.members
  )
  start = founders._replace(members=first, generation=1)
  remembering = combine.chain(cycle, stages.remember(selection.top(1)))
  last, _ = run(KEY, remembering, start, 6)
  assert min(m.born for m in last.members) == 4
  # By the end of generation 1 one founder is left, and it is remembered.
  assert workdir.leader(last).born == 0
  forgetful, _ = run(KEY, cycle, start, 6)  # The control.
  assert workdir.leader(forgetful).born == 4


def test_inherited_children_start_from_their_parents_function():
  """Before training a child computes what its parent did; afresh it doesn't."""
  parents = evolved(evolution(), 1)[0]
  moves = stages.preserving(stages.within(space()))
  child = combine.chain(
    stages.mutate(moves), stages.realise(), stages.inherit()
  )
  made, _ = child.update(KEY, parents, child.init(parents))
  x = task().valid.inputs[:4]
  changed = 0
  for before, after in zip(parents.members, made.members):
    prepared = task().prepare(x)
    old = network.apply(before.net, prepared)
    np.testing.assert_allclose(
      network.apply(after.net, prepared), old, rtol=1e-4, atol=1e-5
    )
    changed += before.net.spec != after.net.spec
  assert changed
  fresh, _ = stages.restart().update(KEY, made, ())
  outputs = [network.apply(m.net, prepared) for m in fresh.members]
  olds = [network.apply(m.net, prepared) for m in parents.members]
  assert max(float(abs(a - b).max()) for a, b in zip(outputs, olds)) > 0.05


@pytest.mark.parametrize(
  'make',
  [
    evolution,
    functools.partial(evolution, stages.inherit, stages.preserving),
    lambda: algorithms.random_search(task(), TX, space(), epochs=1, batch=32),
    lambda: algorithms.nsga(
      task(),
      TX,
      stages.within(space()),
      size=4,
      children=2,
      epochs=1,
      batch=32,
    ),
  ],
  ids=['fresh', 'inherited', 'random', 'nsga'],
)
def test_searches_are_resumed_from_a_checkpoint_as_never_stopped(
  make, tmp_path
):
  whole, _ = evolved(make(), 4)
  half, state = evolved(make(), 2)
  checkpoint.save(tmp_path, 2, (half, state), settings={})
  _, (half, state) = checkpoint.restore(tmp_path, settings={})
  resumed, _ = evolved(make(), 4, state=state, start=half)
  assert described(resumed) == described(whole)
  other, _ = run(jax.random.key(8), make(), stages.founders(KEY, space(), 4), 4)
  assert described(other) != described(whole)


def described(population):
  """All that two equal searches share, bit for bit."""

  def one(candidate):
    leaves = jax.tree.leaves((candidate.net.variables, candidate.opt_state))
    weights = [np.asarray(leaf).tobytes() for leaf in leaves]
    rest = candidate._replace(net=candidate.net.spec, opt_state=None)
    return rest, weights

  spent = population.spent
  return (
    [one(m) for m in (*population.members, *population.archive)],
    (spent.examples, spent.evaluations),
  )


def test_a_search_in_which_everything_diverges_goes_on():
  nowhere = task()._replace(
    loss=lambda outputs, targets: outputs[:, 0] * np.nan
  )
  stage = algorithms.regularized_evolution(
    nowhere,
    TX,
    stages.within(space()),
    size=2,
    entrants=2,
    epochs=1,
    batch=32,
  )
  last, _ = evolved(stage, 3, count=2)
  assert all(map(stages.diverged, last.members))
  assert len(last.archive) == 1
  for leaf in jax.tree.leaves(workdir.leader(last).net.variables):
    assert np.isfinite(leaf).all()


def test_nsga_keeps_its_size_and_remembers_the_front():
  stage = algorithms.nsga(
    task(),
    TX,
    stages.within(space()),
    size=4,
    children=3,
    epochs=1,
    batch=32,
    by=(stages.more('valid_metric'), stages.less('params')),
  )
  seen = []
  last, _ = evolved(combine.chain(stage, combine.observe(seen.append)), 4)
  assert [len(p.members) for p in seen] == [4] * 4
  assert last.spent.evaluations == 4 + 3 * 3
  scores = stages.score(
    last.archive, (stages.more('valid_metric'), stages.less('params'))
  )
  assert (selection.fronts(scores) == 0).all()
  assert not selection.dominance(scores).any()


# The space.


@pytest.mark.slow
def test_chains_keep_the_laws_of_spaces():
  for found in (
    spaces.chain((8, 8, 1), 10, depth=(1, 2)),
    spaces.chain((6, 6, 2), 3, stages=1, norm=False, hidden=(0, 2)),
    spaces.chain((5,), 3, stages=0, hidden=(1, 3)),
  ):
    testing.check_space(found, KEY, samples=3, steps=3)


def test_chains_stay_within_their_choices():
  found = spaces.chain(
    (8, 8, 1), 10, depth=(1, 2), hidden=(0, 1), widths=(2, 6), windows=(1, 5)
  )
  rng, spec = np.random.default_rng(0), found.sample(KEY)
  kinds = set()
  for _ in range(60):
    moves = found.moves(spec)
    move = moves[rng.integers(len(moves))]
    kinds.add(type(move).__name__)
    spec = morphisms.respec(move, spec)
    found_units = units(spec)
    depths = [
      sum(u.part == part for u in found_units) for part in (0, 1, 'hidden')
    ]
    assert all(1 <= d <= 2 for d in depths[:2]) and depths[2] <= 1
    assert {u.width for u in found_units} <= {2, 6}
    assert {u.window for u in found_units} <= {0, 1, 5}
  assert kinds == {
    'Widen',
    'Prune',
    'GrowKernel',
    'ShrinkKernel',
    'Insert',
    'Composed',
  }


@pytest.mark.parametrize(
  'change',
  [
    lambda space: space._replace(
      moves=lambda spec: [morphisms.widen({'nothing': 3})]
    ),
    lambda space: space._replace(moves=lambda spec: [morphisms.identity()]),
    lambda space: space._replace(sample=lambda key: space.sample(KEY)),
    lambda space: space._replace(
      sample=lambda key: seeds.mlp(
        (int(jax.random.randint(key, (), 1, 9)),), (3,), 2
      )
    ),
  ],
)
def test_spaces_that_break_a_law_are_told(change):
  with pytest.raises(AssertionError, match='^space: '):
    testing.check_space(change(space()), KEY, steps=1)


@pytest.mark.parametrize(
  ('options', 'says'),
  [
    ({'widths': ()}, 'widths must be at least one width'),
    ({'widths': (0, 4)}, r'widths must be .*got \(0, 4\)'),
    ({'windows': (2, 3)}, r'windows must be at least one odd .*\(2, 3\)'),
    ({'depth': (2, 1)}, r'depth must be \(least, most\).* got \(2, 1\)'),
    ({'depth': (0, 1)}, r'1 <= least <= most, got \(0, 1\)'),
    ({'stages': 0}, r'hidden must be .*1 <= least.*got \(0, 1\)'),
    ({'stages': -1}, 'stages must be at least 0'),
    ({'shape': (8, 8)}, r'shape must be .*got \(8, 8\)'),
    ({'shape': (8,)}, 'stages must be .* 0 for features, got 2'),
  ],
)
def test_chains_that_cannot_be_are_refused(options, says):
  options = {'shape': (8, 8, 1), **options}
  with pytest.raises(ValueError, match=says):
    spaces.chain(options.pop('shape'), 10, **options)


def test_a_seed_of_other_names_is_a_chain_too():
  """Its units are found by what they are, not by what they are called."""
  for seed, found in (
    (seeds.mlp(task().shape, (4, 2), task().outputs), space()),
    (seeds.chain((8, 8, 1), (4, 'M', 8), 10), spaces.chain((8, 8, 1), 10)),
  ):
    moves = found.moves(seed)
    assert len({type(move) for move in moves}) >= 3
    for move in moves:
      assert morphisms.respec(move, seed) != seed


def test_a_network_that_is_no_chain_is_refused():
  with pytest.raises(ValueError, match='of chains, each node reading the one'):
    space().moves(seeds.resnet(10, blocks=1, widths=(4,)))


# The job.

TINY = {
  'space.stages': 0,
  'space.hidden': '1-2',
  'space.widths': '2-4',
  'batch': 512,
  'epochs': 1,
  'generations': 3,
  'evolution.size': 2,
  'evolution.entrants': 2,
  'evolution.children': 1,
  'evolution.arms': 'fresh-inherited-nsga-random',
}


def tiny(**changes):
  config = evolution_digits.get_config()
  changes = {name.replace('__', '.'): v for name, v in changes.items()}
  config.update_from_flattened_dict({**TINY, **changes})
  return config


def job(config, folder):
  with open(folder.with_suffix('.txt'), 'w') as text:
    console = rich.console.Console(file=text, width=120)
    return jobs.run(config, folder, console=console)


def timeless(tree):
  if not isinstance(tree, dict):
    return tree
  skipped = ('compilations', 'seconds', 'compiling')
  return {k: timeless(v) for k, v in tree.items() if k not in skipped}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('evolution') / 'run'
  return folder, job(tiny(), folder)


def test_arms_spend_the_same_and_say_what_they_found(whole):
  folder, summary = whole
  assert list(summary['arms']) == ['fresh', 'inherited', 'nsga', 'random']
  assert len({row['examples'] for row in summary['arms'].values()}) == 1
  assert {row['evaluations'] for row in summary['arms'].values()} == {4}
  for row in summary['arms'].values():
    assert 0 <= row['test_accuracy'] <= 1
    assert row['params'] > 0 and row['flops'] > 0
  found = summary['arms'][summary['best']]
  assert found['valid_accuracy'] == max(
    row['valid_accuracy'] for row in summary['arms'].values()
  )
  best = workdir.load_network(folder / 'best')
  assert network.param_count(best) == found['params']
  whole_task = tasks.digits()
  metric = training.evaluate(best, whole_task, whole_task.test).metric
  assert metric == found['test_accuracy']
  assert json.loads((folder / 'summary.json').read_text()) == summary
  page = (folder / 'report.html').read_text()
  assert all(f'>{arm}<' in page for arm in summary['arms'])


@pytest.mark.slow
def test_a_job_stopped_again_and_again_ends_as_one_never_stopped(
  whole, tmp_path, monkeypatch
):
  """Stopped at every sixth measurement; the last four are of the test split."""
  real, calls = training.evaluate_all, iter(range(1, 1000))

  class Stopped(Exception):
    pass

  def evaluate_all(*arguments, **options):
    if next(calls) % 6 == 0:
      raise Stopped
    return real(*arguments, **options)

  monkeypatch.setattr(training, 'evaluate_all', evaluate_all)
  stopped = 0
  for _ in range(10):
    try:
      summary = job(tiny(), tmp_path / 'run')
      break
    except Stopped:
      stopped += 1
  assert stopped >= 2
  assert timeless(summary) == timeless(whole[1])


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'evolution__arms': 'fresh-grid'}, "must be of fresh, .*got 'fresh-grid'"),
    ({'evolution__children': 3}, 'must be a multiple of .*got 2 and 3'),
    ({'evolution__size': 0}, 'evolution.size must be at least 1, got 0'),
    ({'evolution__against': 'bytes'}, "'params' or 'flops', got 'bytes'"),
    ({'space__widths': '4,8'}, "space.widths must be whole .*got '4,8'"),
    ({'space__hidden': '0-1'}, r'config.space: chain: hidden must be'),
    ({'generations': 0}, 'generations must be at least 1, got 0'),
    ({'optimizer__name': 'lion'}, "'adamw' or 'sgd', got 'lion'"),
  ],
)
def test_illegal_settings_are_refused_before_anything_is_made(
  changes, says, tmp_path
):
  with pytest.raises(ValueError, match=says):
    job(tiny(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_the_quick_form_keeps_the_promise_of_its_docstring(tmp_path):
  """Inherited weights win by far; 41,472 examples an arm."""
  config = evolution_digits.get_config()
  config.quick = True
  summary = job(config, tmp_path / 'run')
  arms = summary['arms']
  assert {row['examples'] for row in arms.values()} == {41_472}
  assert {row['evaluations'] for row in arms.values()} == {18}
  assert arms['inherited']['test_accuracy'] > 0.65
  for other in ('fresh', 'random'):
    assert arms[other]['test_accuracy'] < 0.65
  assert summary['best'] == 'inherited'
