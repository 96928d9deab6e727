"""Array searches on real networks: what trainers and `teach` promise."""

import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rich.console

from configs import econas_digits
from jaxnas import (
  algorithms,
  jobs,
  learners,
  run,
  spaces,
  stages,
  tasks,
  testing,
  workdir,
)
from jaxnas import mesh as meshes
from jaxnas.base import Table, Taught, Trainer
from jaxnas.run import count_compilations
from jaxnas.spaces import supernet
from jaxnas.stages import trials

KEY = jax.random.key(0)
SPACE = spaces.nas_bench_201.space()
CELLS = np.array([[3, 1, 2, 3, 1, 3], [1, 2, 3, 0, 4, 3], [3] * 6])


def small_task(count=64):
  whole = tasks.digits()

  def cut(split, count):
    return jax.tree.map(lambda leaf: leaf[:count], split)

  return whole._replace(
    train=cut(whole.train, count), valid=cut(whole.valid, 40)
  )


@pytest.fixture(scope='module')
def task():
  return small_task()


@pytest.fixture(scope='module')
def net(task):
  return supernet.nas_bench_201(channels=2, repeats=1, shape=task.shape)


def optimizer(steps=24):
  return optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9)


@pytest.fixture(scope='module')
def trainer(net, task):
  return learners.as_data(net, task, optimizer(), epochs=2, batch=16, slots=2)


def keys(count=3):
  return list(jax.random.split(KEY, count))


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def taught(trainer):
  return trainer.train(keys(), CELLS, [None] * 3)


@pytest.mark.slow
def test_one_program_of_all_cells_keeps_the_laws(trainer):
  testing.check_trainer(trainer, CELLS)


@pytest.mark.slow
def test_unrolled_networks_keep_the_laws(net, task):
  trainer = learners.unrolled(net.spec, task, optimizer(), epochs=1, batch=16)
  testing.check_trainer(trainer, CELLS)


def test_a_rung_goes_on_where_the_last_one_ended(trainer, taught):
  first = taught[0]
  assert [each.examples for each in taught] == [2 * 64] * 3
  more = trainer.train(keys()[:1], CELLS[:1], [first.state])[0]
  count = optax.tree.get(first.state.opt_state, 'count')
  # Eight steps in a rung, and the schedule is not begun anew.
  assert count == 8 and optax.tree.get(more.state.opt_state, 'count') == 16
  assert more.fitness >= first.fitness  # The best so far.
  heir = trainer.train(
    keys()[:1], CELLS[:1], [trainer.heir(first.state, CELLS[0], CELLS[0])]
  )[0]
  assert optax.tree.get(heir.state.opt_state, 'count') == 8
  fresh = trainer.train(keys()[:1], CELLS[:1], [None])[0]
  equal(fresh.state, first.state)
  apart = jax.tree.leaves(
    jax.tree.map(
      lambda a, b: np.abs(a - b).max(), heir.state.net, fresh.state.net
    )
  )
  assert max(apart) > 0  # Hers, and not its own fresh ones.


@pytest.mark.slow
def test_an_edge_that_did_nothing_begins_by_doing_nothing(net, task):
  variables = net.init(KEY)
  # As after training, and with norms of an edge that once convolved.
  variables = jax.tree.map(lambda leaf: leaf + 0.1, variables)
  mother, child, other = ([3, 0, 2, 1, 0, 3], [3, 2, 2, 1, 3, 3], [3] * 6)
  x = task.prepare(task.valid.inputs[:8])

  @jax.jit
  def logits(variables, genotype):
    return net.apply(variables, jnp.array(genotype), x, train=True).logits

  hers = logits(variables, mother)
  gated = net.heir(variables, mother, child)
  np.testing.assert_allclose(logits(gated, child), hers, atol=1e-5)
  # Without it, and where other edges change, the function changes.
  assert jnp.abs(logits(variables, child) - hers).max() > 1e-2
  changed = net.heir(variables, mother, other)
  assert jnp.abs(logits(changed, other) - hers).max() > 1e-2


@pytest.mark.slow
def test_a_network_that_diverged_has_no_fitness(net, task):
  wild = learners.as_data(net, task, optax.sgd(1e30), epochs=1, batch=16)
  (lost,) = wild.train(keys(1), CELLS[:1], [None])
  assert np.isnan(lost.fitness)


def check_devices():
  """Run by a process that has two devices."""
  task = small_task()
  net = supernet.nas_bench_201(channels=2, repeats=1, shape=task.shape)
  found = []
  for devices in (jax.devices()[:1], jax.devices()):
    trainer = learners.as_data(
      net,
      task,
      optimizer(),
      epochs=1,
      batch=16,
      slots=2,
      mesh=meshes.make(devices),
    )
    found.append(trainer.train(keys(), CELLS, [None] * 3))
  assert len(jax.devices()) == 2
  for one, two in zip(*found):
    equal(one.state, two.state)
    assert one.fitness == two.fitness


@pytest.mark.slow
def test_two_devices_teach_the_same():
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    # A device by itself would share its matrix products among threads, which
    # rounds otherwise.
    'XLA_FLAGS': '--xla_force_host_platform_device_count=2 '
    '--xla_cpu_multi_thread_eigen=false',
    'PYTHONPATH': os.pathsep.join(sys.path),
  }
  code = 'import test_teach; test_teach.check_devices()'
  done = subprocess.run([sys.executable, '-c', code], env=environment)
  assert done.returncode == 0


def test_one_program_for_all_cells_and_rungs(trainer, taught):
  with count_compilations() as compiled:
    trainer.train(keys(), CELLS[::-1], [None, taught[1].state, None])
  assert len(compiled) <= 2  # None of training: keys are split and folded.


@pytest.mark.slow
def test_unrolled_networks_learn_as_well_and_inherit_by_name(net):
  task = tasks.digits()
  tx = optax.sgd(0.1, momentum=0.9)

  def cell_network(cell):
    return spaces.cell_networks.nas_bench_201(
      cell, channels=4, repeats=1, shape=task.shape
    )

  as_data, unrolled = (
    make(first, task, tx, epochs=8, batch=64)
    for make, first in (
      (
        learners.as_data,
        supernet.nas_bench_201(channels=4, repeats=1, shape=task.shape),
      ),
      (learners.unrolled, cell_network),
    )
  )
  both = [t.train(keys(1), CELLS[2:], [None])[0] for t in (as_data, unrolled)]
  assert both[0].examples == both[1].examples
  assert min(each.fitness for each in both) > 0.7
  state = unrolled.heir(both[1].state, CELLS[2], CELLS[0])
  mother, child = (
    held.net.variables['params']['stem_conv']['kernel']
    for held in (both[1].state, state)
  )
  np.testing.assert_array_equal(mother, child)
  brief = learners.unrolled(cell_network, task, tx, epochs=1, batch=64)
  other = brief.train(keys(1), CELLS[:1], [state])[0]
  again = brief.train(keys(1), CELLS[:1], [None])[0]
  assert other.fitness > again.fitness


def counted(found):
  """A trainer that trains nothing: a network is how often it was trained."""

  def train(keys, genotypes, states):
    found.append((np.array(genotypes), list(states)))
    return [
      Taught((0 if state is None else state) + 1, float(cell.sum()), 5)
      for cell, state in zip(genotypes, states)
    ]

  return Trainer(train, lambda state, mother, child: state + 100)


def climbed(heir=None, generations=6, remember=63):
  asked = []
  trainer = counted(asked)
  more = {'heir': trainer.heir} if heir else {}
  answer = stages.teach(SPACE, trainer, remember=remember, **more)
  stage = algorithms.econas(
    SPACE, answer, first=4, promote=(2, 1), mothers=(2, 1, 1)
  )
  start = trials.start(SPACE, 4 + 5 * 7, metrics=stages.RUNGS)
  return run(KEY, stage, start, generations)[0], asked


def test_weights_follow_their_networks():
  last, asked = climbed()
  rung = np.asarray(last.metrics['rung'])
  # What was trained n times is on rung n, and is remembered so.
  for slot, state in last.memory.items():
    assert state == rung[int(slot)]
  assert {1, 2, 3} == set(last.memory.values())
  gone = last.metrics['source'][rung > 1].astype(int)
  assert not set(map(str, gone.tolist())) & set(last.memory)
  assert last.spent.examples == 5 * np.isfinite(rung).sum()
  assert np.nansum(last.metrics['cost']) == last.spent.examples
  inherited, _ = climbed(heir=True)
  assert max(inherited.memory.values()) > 100
  # A child is on rung 1 whatever it began with.
  assert (np.nan_to_num(inherited.metrics['rung']) <= 3).all()


def test_only_the_last_are_remembered():
  last, _ = climbed(remember=7, generations=2)
  assert min(map(int, last.memory)) >= int(last.count) - 7
  with pytest.raises(ValueError, match='give a larger remember'):
    climbed(remember=1)


def test_every_array_search_may_be_taught(trainer):
  answer = stages.teach(SPACE, trainer)
  stage = algorithms.array_evolution(SPACE, answer, size=2, entrants=2)
  last, _ = run(KEY, stage, trials.start(SPACE, 3), 3)
  assert int(last.spent.evaluations) == 3 and not last.memory
  assert np.isfinite(np.asarray(last.metrics['fitness'])).all()
  with pytest.raises(ValueError, match='trained on the host'):
    jax.jit(lambda held: stage.update(KEY, held, stage.init(held)))(
      trials.start(SPACE, 3)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  'make',
  [
    algorithms.array_random,
    algorithms.local_search,
    algorithms.reinforce,
    lambda space, answer: algorithms.delta_nas(space, answer, first=6, keep=3),
  ],
)
def test_searches_written_for_tables_ask_a_trainer(make):
  asked = []
  stage = make(SPACE, stages.teach(SPACE, counted(asked)))
  last, _ = run(KEY, stage, trials.start(SPACE, 60), 3)
  count = sum(len(genotypes) for genotypes, _ in asked)
  assert count == int(last.spent.evaluations) >= 3
  assert last.spent.examples == 5 * count
  held = np.asarray(last.index) >= 0
  np.testing.assert_array_equal(
    np.asarray(last.metrics['fitness'])[held],
    np.asarray(last.genotypes)[held].sum(axis=1),
  )
  assert not last.memory and all(s is None for _, own in asked for s in own)


@pytest.mark.slow
def test_proxies_weighed_by_robot_choose_what_is_taught():
  space, asked = SPACE, []
  pool = np.unique(np.random.default_rng(0).integers(0, 5, (60, 6)), axis=0)
  index = jax.vmap(space.index)(jnp.asarray(pool))
  # The first is what a network is worth; the second says nothing.
  scores = {'good': pool.sum(axis=1) * 1.0, 'odd': pool[:, 0] % 2.0}
  columns = {
    name: jnp.full(space.size, jnp.nan).at[index].set(score)
    for name, score in scores.items()
  }
  answer = stages.teach(space, counted(asked))
  search = algorithms.robot(
    Table(space, columns), answer, tuple(columns), pool, total=6
  )
  last, _ = run(KEY, search, trials.start(space, 11), 11)
  assert int(last.spent.evaluations) == 6 == len(asked)
  assert np.nanmax(last.metrics['fitness']) == pool.sum(axis=1).max()


def config(**changes):
  settings = econas_digits.get_config()
  settings.quick = True
  settings.when_quick = {}
  settings.cells.channels = 2
  settings.fidelity, settings.retrain.fidelity = 'c0r2s2e3', 'c0r2s2e1'
  settings.retrain.best = 2
  settings.generations = 3
  settings.ladder.arms = 'econas-random'
  settings.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return settings


def ran(settings, folder):
  text = io.StringIO()
  console = rich.console.Console(file=text, width=120)
  return jobs.run(settings, folder, console=console), text.getvalue()


TIMED = ('compilations', 'seconds', 'compiling')


def timeless(summary):
  return {
    name: {k: v for k, v in row.items() if k not in TIMED}
    for name, row in summary['arms'].items()
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('job') / 'run'
  return folder, *ran(config(), folder)


@pytest.mark.slow
def test_a_job_leaves_everything_it_promises(whole):
  folder, summary, text = whole
  assert json.loads((folder / 'summary.json').read_text()) == summary
  assert (folder / 'curves.png').read_bytes()[:4] == b'\x89PNG'
  assert (folder / 'report.html').stat().st_size > 1000
  row = summary['arms']['econas']
  assert row['networks'] >= 4 and row['topped'] >= 1
  # 584 images, so nine batches of 64.
  assert row['examples'] % (9 * 64) == 0
  net = workdir.load_network(folder / 'best')
  found = summary['arms'][summary['best']]['cell']
  cell = spaces.nas_bench_201.parse(found)
  assert net.spec == supernet.nas_bench_201(
    channels=2, repeats=1, shape=(4, 4, 1)
  ).spec(cell)
  for word in ('econas', 'random', 'digits at c0r2s2'):
    assert word in text


@pytest.mark.slow
def test_a_job_stopped_on_the_way_ends_as_one_never_stopped(
  whole, tmp_path, monkeypatch
):
  real, calls = workdir.summary_row, iter(range(100))

  class Stopped(Exception):
    pass

  def row(population):
    if next(calls) in (2, 4, 7):
      raise Stopped
    return real(population)

  monkeypatch.setattr(workdir, 'summary_row', row)
  stopped = 0
  for _ in range(9):
    try:
      again, _ = ran(config(), tmp_path / 'run')
      break
    except Stopped:
      stopped += 1
  assert stopped == 3
  assert timeless(again) == timeless(whole[1])


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'fidelity': 'c4r4s0'}, 'fidelity: a fidelity is written'),
    ({'retrain__fidelity': 'x'}, 'retrain.fidelity: a fidelity is'),
    ({'fidelity': 'c9r2s2e3'}, 'fidelity: .*2 channels cut by index 9 would'),
    ({'fidelity': 'c0r8s2e3'}, 'config.fidelity: .*8 pixels cut by index 8'),
    ({'retrain__fidelity': 'c0r5s0e1'}, 'retrain.fidelity: .*8 pixels cut by'),
    (
      {'space': 'econas', 'cells__channels': 3},
      'cells.channels must be a multiple of 2',
    ),
    ({'fidelity': 'c0r0s0e4'}, 'has 4 epochs, which 3 rungs do not divide'),
    ({'ladder__promote': '2'}, 'promote has 1 numbers and .*mothers 3'),
    ({'ladder__promote': '2-0'}, 'promote must be above 0'),
    ({'ladder__mothers': '0-0-0'}, 'mothers, got'),
    ({'ladder__mothers': 'many'}, 'mothers must be whole numbers'),
    ({'ladder__arms': 'climb'}, 'arms must be of econas, flat'),
    ({'ladder__arms': 'flat', 'ladder__mothers': '2-2-1'}, 'in whole epochs'),
    ({'ladder__promote': '20-10'}, r'the 4 children .* got \(20, 10\)'),
    ({'ladder__promote': '1-2'}, 'promote must not grow from rung to rung'),
    (
      {'ladder__arms': 'screened', 'ladder__proxy': 'luck'},
      'proxy must be one of',
    ),
    ({'space': 'macro'}, 'space must be one of nas_bench_201, econas'),
    (
      {'space': 'econas', 'ladder__arms': 'screened'},
      'screened needs a space whose networks are one program',
    ),
    ({'cells__channels': 0}, 'cells.channels must be at least 1'),
    ({'generations': 1}, 'generations must be at least 2'),
  ],
)
def test_what_is_wrong_is_said_before_anything_is_made(tmp_path, changes, says):
  with pytest.raises(ValueError, match=says):
    ran(config(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('arm', ['flat', 'halving', 'inherited', 'screened'])
def test_every_arm_runs(arm, tmp_path):
  settings = config(ladder__arms=arm, retrain__best=1, fidelity='c0r2s2e12')
  (row,) = ran(settings, tmp_path / 'run')[0]['arms'].values()
  assert row['examples'] > 0 and 0 <= row['test_accuracy'] <= 1


@pytest.mark.slow
def test_the_papers_own_cells_are_climbed(tmp_path):
  settings = config(ladder__arms='econas', space='econas', retrain__best=1)
  settings.cells.channels, settings.cells.repeats = 2, 3
  settings.generations = 2
  summary, _ = ran(settings, tmp_path / 'run')
  row = summary['arms']['econas']
  assert row['networks'] == 6 and row['topped'] == 2
  genotype = np.array(row['cell'].split('-'), int)
  net = workdir.load_network(tmp_path / 'run' / 'best')
  assert net.spec == spaces.cell_networks.darts(
    spaces.cell.ECONAS, genotype, channels=2, layers=3, shape=(4, 4, 1)
  )


@pytest.mark.slow
def test_the_quick_config_keeps_its_promise(tmp_path):
  settings = econas_digits.get_config()
  settings.quick = True
  summary, _ = ran(settings, tmp_path / 'run')
  assert set(summary['arms']) == {'econas', 'halving', 'random'}
  for row in summary['arms'].values():
    assert 0.6 < row['test_accuracy'] < 0.95
