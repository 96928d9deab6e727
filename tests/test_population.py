"""Populations: as one by one, on any devices, in few programs."""

import functools
import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import source_tree

from jaxnas import (
  checkpoint,
  combine,
  forms,
  layers,
  morphisms,
  network,
  plans,
  stages,
  tasks,
  training,
)
from jaxnas import mesh as meshes
from jaxnas import spec as specs
from jaxnas.base import Candidate, Population
from jaxnas.run import count_compilations, run
from jaxnas.spaces import seeds

SHAPE, CLASSES = (4, 4, 1), 3
KEY = jax.random.key(0)


@functools.cache
def task():
  """Images of noise; no augmentation."""
  rng = np.random.default_rng(0)

  def split(size):
    images = rng.integers(0, 256, (size, *SHAPE)).astype(np.uint8)
    return images, rng.integers(0, CLASSES, size).astype(np.int32)

  return tasks.from_arrays(
    'noise', split(26), split(13), split(7), classes=CLASSES
  )


def own_task():
  """A task with which no other test has compiled anything."""
  shared = task()
  return shared._replace(
    loss=lambda *given: shared.loss(*given),
    metric=lambda *given: shared.metric(*given),
  )


@functools.cache
def tx():
  """Plain descent, the step size of each member as data."""
  return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


def net(*widths, seed=0):
  spec = seeds.mlp(SHAPE, widths, CLASSES)
  return network.to_host(network.init(spec, jax.random.key(seed)))


def nets():
  """Five networks of two graphs, in three buckets."""
  conv = seeds.chain(SHAPE, (3,), CLASSES)
  return [
    *(net(5), net(6, seed=1), net(9)),
    network.to_host(network.init(conv, KEY)),
    net(5, seed=2),
  ]


def keys(count):
  return [jax.random.fold_in(KEY, i) for i in range(count)]


def fit_all(given, **options):
  own = {'epochs': 2, 'batch': 8, **options}
  count = len(given)
  return training.fit_all(
    *(own.pop('keys', keys(count)), given, own.pop('task', task()), tx()),
    **own,
  )


def assert_same(one, two, **tolerance):
  check = np.testing.assert_array_equal
  if tolerance:
    check = functools.partial(np.testing.assert_allclose, **tolerance)
  jax.tree.map(check, one, two)


def at_once(planned, specs_, **work):
  """A plan with the members of another side by side."""
  return [b._replace(over=forms.at_once) for b in planned(specs_, **work)]


# As one by one.


def alone(given):
  return [
    training.fit(key, n, task(), tx(), epochs=2, batch=8)
    for key, n in zip(keys(len(given)), given)
  ]


def test_members_are_trained_as_if_alone():
  """To the last bit in turn; but for rounding side by side, and padded."""
  expected = alone(nets())
  assert_same(fit_all(nets(), plan=plans.apart), expected)
  close = {'rtol': 1e-4, 'atol': 1e-6}
  for plan in (
    plans.strategy,
    functools.partial(at_once, plans.apart),
  ):
    assert_same(fit_all(nets(), plan=plan), expected, **close)
  # The comparison can fail: another key is another result.
  other = fit_all(nets(), keys=keys(6)[1:])
  assert all(a.losses != b.losses for a, b in zip(other, expected))


def test_members_are_measured_as_if_alone():
  given = nets()
  expected = [training.evaluate(n, task(), task().valid) for n in given]
  for plan in (
    None,
    plans.apart,
    functools.partial(at_once, plans.apart),
  ):
    measured = training.evaluate_all(given, task(), task().valid, plan=plan)
    assert_same(measured, expected, rtol=1e-5)
  assert len({found.loss for found in expected}) == len(given)


def test_a_members_result_does_not_depend_on_its_neighbours():
  given = nets()
  whole = fit_all(given, plan=plans.apart)
  part = fit_all(given[1:3], keys=keys(3)[1:], plan=plans.apart)
  assert_same(part, whole[1:3])


def test_padded_networks_share_programs_with_wider_ones():
  """They come back as they came, as good as those that were never padded."""
  given, room = [net(5), net(20)], [16, 32]
  padded = [
    morphisms.pad({'dense1': size})(n, ()) for n, size in zip(given, room)
  ]
  (batch,) = plans.strategy(
    [n.spec for n in padded], devices=1, batch=8, passes=1
  )
  assert batch.spec.shapes['dense1'] == (32,)
  close = {'rtol': 1e-4, 'atol': 1e-6}
  fits, expected = fit_all(padded), fit_all(given)
  assert [f.net.spec for f in fits] == [n.spec for n in padded]
  assert_same([_cropped(f) for f in fits], expected, **close)
  again = fit_all([f.net for f in fits], opt_states=[f.opt_state for f in fits])
  expected = fit_all(
    [f.net for f in expected], opt_states=[f.opt_state for f in expected]
  )
  assert_same([_cropped(f) for f in again], expected, **close)
  measured = training.evaluate_all(padded, task(), task().valid)
  expected = training.evaluate_all(given, task(), task().valid)
  assert_same(measured, expected, **close)


def _cropped(fitted):
  """A fit without the padding of its network."""
  move = morphisms.uncapped(fitted.net)
  net, state = morphisms.morph(move, fitted.net, opt_state=fitted.opt_state)
  return fitted._replace(net=net, opt_state=state)


def test_no_members_are_no_work():
  assert fit_all([]) == [] == training.evaluate_all([], task(), task().valid)


# Programs.


def compiled(call):
  with count_compilations() as programs:
    call()
  return len(programs)


def test_members_of_a_bucket_are_one_program_for_up_to_eight():
  own = own_task()

  given = [net(5 + i % 4, seed=i) for i in range(9)]
  fit_all([net(40)], epochs=1)  # Compiles what draws the keys of members.

  def both(count):
    fits = fit_all(given[:count], task=own, epochs=1)
    training.evaluate_all([f.net for f in fits], own, own.valid)

  counts = [compiled(lambda p=p: both(p)) for p in (5, 8, 3, 1, 9)]
  # Nine have other slots, and the order of examples is drawn for those.
  assert counts == [2, 0, 0, 0, 3]


def test_large_networks_keep_no_slots_empty():
  large = [net(6000).spec] * 5
  plan = functools.partial(plans.strategy, devices=1, batch=8, passes=1)
  slots = [plan(large[:n])[0].slots for n in (1, 2, 3, 5)]
  assert slots == [2, 2, 4, 8]


def test_short_training_shares_buckets_and_long_training_does_not():
  given = [net(5).spec, net(9).spec, net(20).spec]
  plan = functools.partial(plans.strategy, given, devices=1, batch=8)
  (batch,) = plan(passes=100)
  assert batch.members == (0, 1, 2) and batch.slots == 8
  assert batch.spec.shapes['dense1'] == (32,)
  assert len(plan(passes=10**12)) == 3
  mixed = [net(5), net(9), net(20)]

  def programs(plan):
    own = own_task()
    return compiled(lambda: fit_all(mixed, task=own, epochs=1, plan=plan))

  assert programs(plans.strategy) == 1
  assert programs(plans.apart) == 3


@pytest.mark.parametrize('dropout', [False, True])
def test_dropout_keeps_its_own_buckets(dropout):
  """Its draws depend on the capacity, so a neighbour would change them."""
  layer = specs.Dropout(0.5) if dropout else specs.Activation('relu')
  given = [
    seeds.sequential(
      (4,), [('d', specs.Dense(n)), ('a', layer), ('o', specs.Dense(3))]
    )
    for n in (5, 9)
  ]
  plan = plans.strategy(given, devices=1, batch=8, passes=100)
  assert len(plan) == (2 if dropout else 1)


def test_many_members_are_chunks_of_bounded_memory():
  given = [net(5).spec] * 150
  plan = plans.strategy(given, devices=1, batch=8, passes=100)
  assert [(len(b.members), b.slots) for b in plan] == [
    *[(64, 64)] * 2,
    (22, 32),
  ]
  dealt = plans.strategy(given, devices=4, batch=8, passes=100)
  assert [(len(b.members), b.slots) for b in dealt] == [(150, 64)]


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'opt_states': [None]}, 'got 2 and 1'),
    ({'keys': keys(3)}, 'got 3 and 2'),
    ({'plan': lambda given, **work: []}, 'each of them once, got'),
    (
      {
        'plan': lambda given, **work: [
          plans.Batch((0, 1), network.to_host(net(8)).spec, forms.in_turn, 1)
        ]
      },
      'do not fit into slots=1',
    ),
  ],
)
def test_impossible_requests_are_refused(wrong, message):
  with pytest.raises(ValueError, match=message):
    fit_all([net(8), net(8)], **wrong)


def test_a_mesh_needs_devices_for_its_data_axis():
  with pytest.raises(ValueError, match='must divide the number of devices'):
    meshes.make(jax.devices()[:1], data=2)


# Hyper-parameters as data, and members that diverge.


def states(given, rates):
  return [
    optax.tree.set(
      network.to_host(tx().init(n.variables['params'])), learning_rate=rate
    )
    for n, rate in zip(given, rates)
  ]


def rate(state):
  return float(state.hyperparams['learning_rate'])


def test_step_sizes_differ_from_member_to_member_in_one_program():
  given, own = [net(8), net(8), net(8)], own_task()
  rates = [0.0, 0.1, 0.5]
  given_states = states(given, rates)

  def fit():
    return fit_all(given, task=own, opt_states=given_states, keys=[KEY] * 3)

  assert compiled(fit) == 1
  still, slow, fast = fit()
  assert_same(still.net, given[0])
  default = fit_all(given[:1], keys=[KEY])[0]  # Made with 0.1.
  assert_same(slow.net, default.net)
  assert fast.losses != slow.losses != still.losses
  assert [rate(f.opt_state) for f in (still, slow, fast)] == [
    np.float32(r) for r in rates
  ]


def test_step_sizes_follow_a_move_and_padding():
  given = [net(5), net(5, seed=1)]
  moved = [
    morphisms.morph(morphisms.widen({'dense1': n}), g, KEY, opt_state=s)
    for n, g, s in zip((7, 12), given, states(given, [0.25, 0.5]))
  ]
  fits = fit_all([m[0] for m in moved], opt_states=[m[1] for m in moved])
  assert [rate(f.opt_state) for f in fits] == [0.25, 0.5]


@pytest.mark.parametrize('over', [forms.in_turn, forms.at_once])
def test_a_member_that_diverges_disturbs_no_other(over):
  given = [net(8), net(8, seed=1), net(8, seed=2)]

  def plan(given, **work):
    return [b._replace(over=over) for b in plans.apart(given, **work)]

  def fit(middle):
    return fit_all(
      given, opt_states=states(given, [0.1, middle, 0.1]), plan=plan
    )

  calm, wild = fit(0.1), fit(1e30)
  assert not np.isfinite(wild[1].losses).all()
  assert np.isfinite(calm[1].losses).all()
  assert_same((wild[0], wild[2]), (calm[0], calm[2]))


def test_a_member_that_diverges_is_undone_by_the_stage():
  given = [net(8), net(8, seed=1)]
  members = tuple(
    Candidate(n, opt_state=s) for n, s in zip(given, states(given, [0.1, 1e30]))
  )
  stage = stages.train(task(), tx(), epochs=1, batch=8)
  after, _ = stage.update(KEY, Population(members), ())
  good, bad = after.members
  assert [e.kind for e in bad.lineage] == ['diverged'] and not good.lineage
  assert_same((bad.net, bad.opt_state), (given[1], members[1].opt_state))
  assert (good.steps, bad.steps) == (3, 0)
  assert after.spent.examples == 2 * 24


# Convolutions of a few images at a time.


def test_convolutions_by_images_are_those_of_all_at_once(monkeypatch):
  monkeypatch.setattr(layers, 'cached', lambda batch, patches: batch // 3)
  key = jax.random.key(1)
  x = jax.random.normal(key, (6, 5, 5, 2))
  kernel = jax.random.normal(key, (3, 3, 2, 4))

  def value(form, strides):
    def f(x, kernel):
      return jnp.sin(layers.conv2d(x, kernel, strides, form=form)).sum()

    return jax.jit(jax.value_and_grad(f, (0, 1)))(x, kernel)

  for strides in ((1, 1), (2, 2)):
    got, expected = value('images', strides), value('patches', strides)
    assert_same(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('normalised', [False, True])
def test_a_gradient_of_a_few_images_at_a_time_is_the_whole(
  x64, monkeypatch, normalised
):
  """Batch statistics keep the examples of a step together."""
  del x64
  norm = [('bn', specs.BatchNorm())] if normalised else []
  spec = seeds.sequential(
    SHAPE,
    [
      ('conv', specs.Conv(3)),
      *norm,
      ('act', specs.Activation('gelu')),
      ('gap', specs.GlobalPool()),
      ('logits', specs.Dense(CLASSES)),
    ],
  )
  start = jax.tree.map(
    lambda leaf: leaf.astype(np.float64),
    network.to_host(network.init(spec, KEY)),
  )
  taken, fits = [], []
  for few in (8, 2):

    def cached(batch, patches, few=few):
      taken.append(min(batch, few))
      return taken[-1]

    monkeypatch.setattr(layers, 'cached', cached)
    # Another function of data: a program of its own.
    own = task()._replace(loss=lambda *given: task().loss(*given))
    fits.append(fit_all([start], task=own)[0])
  assert set(taken) == {8, 2}
  assert_same(fits[0].net, fits[1].net, rtol=1e-9, atol=1e-9)
  assert fits[0].losses == pytest.approx(fits[1].losses)


# Devices and processes.


def search(mesh, look=lambda population: None):
  """The stage and the first population of a search of mixed structures."""
  own = {'plan': plans.apart, 'mesh': mesh}
  stage = combine.chain(
    stages.train(task(), tx(), epochs=1, batch=8, **own),
    combine.observe(look),
    stages.measure(task(), **own),
  )
  given = [net(5), net(6, seed=1), net(9), net(5, seed=2), net(7, seed=3)]
  return stage, Population(tuple(Candidate(n) for n in given))


def outcome(mesh):
  """The last population of a short search, as plain arrays."""
  stage, first = search(mesh)
  return arrays(run(KEY, stage, first, 2)[0])


def arrays(last):
  return {
    f'{i}/{where}': np.asarray(leaf)
    for i, member in enumerate(last.members)
    for where, leaf in [
      *((f'weight{j}', w) for j, w in enumerate(jax.tree.leaves(member.net))),
      *sorted(member.metrics.items()),
    ]
  }


def write_outcomes(path, *, data_axis):
  """In a process of its own: outcomes by the shape of the mesh."""
  devices = jax.devices()
  shapes = [(n, 1) for n in (1, 2, 4, 8) if n <= len(devices)]
  if jax.process_count() > 1:
    shapes = [(len(devices), 1)]
  if data_axis:
    # The last with examples two at a time, on every device of the axis.
    shapes += [(2, 2), (1, 4)]
  found = {}
  for members, data in shapes:
    if data == 4:
      layers.cached = lambda batch, patches: 2
    mesh = meshes.make(devices[: members * data], data=data)
    for name, leaf in outcome(mesh).items():
      found[f'{members}x{data}/{name}'] = leaf
  np.savez(path, **found)


def start(code, devices, before=''):
  """A Python process with a number of CPU devices, in the tests' folder.

  Args:
    code: in which this module is `t`.
    devices: how many.
    before: code for before this module, which has a key, is imported.
  """
  path = [str(source_tree.ROOT), str(source_tree.ROOT / 'tests')]
  quick = jax.config.read('jax_disable_most_optimizations')
  return subprocess.Popen(
    [sys.executable, '-c', f'{before}\nimport test_population as t\n{code}'],
    env={
      **os.environ,
      # Programs that are optimized otherwise round otherwise.
      'JAX_DISABLE_MOST_OPTIMIZATIONS': str(quick),
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': os.pathsep.join(path),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    },
  )


def by_mesh(path):
  """{mesh: {name: array}} of what `write_outcomes` wrote."""
  found: dict[str, dict[str, np.ndarray]] = {}
  with np.load(path) as stored:
    for name in stored.files:
      mesh, _, rest = name.partition('/')
      found.setdefault(mesh, {})[rest] = stored[name]
  return found


def test_one_two_four_and_eight_devices_give_the_same_search(tmp_path):
  """To the last bit; and but for rounding with examples spread as well."""
  path = str(tmp_path / 'found.npz')
  code = f't.write_outcomes({json.dumps(path)}, data_axis=True)'
  assert start(code, 8).wait() == 0
  found = by_mesh(path)
  assert set(found) == {'1x1', '2x1', '4x1', '8x1', '2x2', '1x4'}
  expected = outcome(meshes.make(jax.devices()[:1]))
  for mesh, got in found.items():
    close = {} if mesh.endswith('1') else {'rtol': 1e-4, 'atol': 1e-6}
    assert_same(got, expected, **close)
  # The comparison can fail: members differ from each other.
  assert expected['0/train_loss'] != expected['3/train_loss']


def together(paths, code, *, devices):
  """Runs `code` in as many connected processes as paths; the exit codes."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  connect = f'from jaxnas import mesh; mesh.connect({address!r}, {len(paths)}, '
  processes = [
    start(code.format(path=path), devices, (len(paths) > 1) * f'{connect}{i})')
    for i, path in enumerate(paths)
  ]
  return [process.wait() for process in processes]


@pytest.mark.slow
def test_two_processes_give_the_search_of_one(tmp_path):
  paths = [str(tmp_path / f'{i}.npz') for i in range(2)]
  code = 't.write_outcomes({path!r}, data_axis=True)'
  assert together(paths, code, devices=2) == [0, 0]
  expected = outcome(meshes.make(jax.devices()[:1]))
  for path in paths:
    found = by_mesh(path)
    assert set(found) == {'4x1', '2x2', '1x4'}
    assert_same(found['4x1'], expected)
    for mesh in ('2x2', '1x4'):
      assert_same(found[mesh], expected, rtol=1e-4, atol=1e-6)


def write_resumed(path, folder, *, killed):
  """A search saved every generation; killed within the second, or resumed."""

  def look(population):
    if killed and population.generation == 1:
      os._exit(7)

  stage, population = search(meshes.make(), look)
  saved = checkpoint.restore(folder)
  population, state = (population, None) if saved is None else saved[1]

  def save(population, state):
    checkpoint.save(folder, population.generation, (population, state))

  last, _ = run(KEY, stage, population, 2, state=state, after=save)
  np.savez(
    path, **{f'last/{name}': leaf for name, leaf in arrays(last).items()}
  )


@pytest.mark.slow
@pytest.mark.parametrize('count', [1, 2])
def test_killed_within_a_round_and_resumed_is_the_search_never_killed(
  tmp_path, count
):
  paths = [str(tmp_path / f'{i}.npz') for i in range(count)]
  folder = str(tmp_path / 'saved')
  for killed in (True, False):
    codes = together(
      paths,
      f't.write_resumed({{path!r}}, {folder!r}, killed={killed})',
      devices=2,
    )
    assert (codes == [0] * count) == (not killed)
    assert checkpoint.latest(folder) == (1 if killed else 2)
    assert [os.path.exists(path) for path in paths] == [not killed] * count
  expected = outcome(meshes.make(jax.devices()[:1]))
  for path in paths:
    assert_same(by_mesh(path)['last'], expected)
