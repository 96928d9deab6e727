"""Jobs of array populations: whole, killed, refused, and drawn."""

import functools
import importlib
import json
import math
import warnings

import flax.serialization
import jax
import pytest
import rich.console

from configs import epbt_digits, pbt_nas_teacher
from jaxnas import combine, draw, jobs, report, workdir

SMALL = {'size': 8, 'steps': 2, 'arms': 'pbt_nas-random'}


def settings(**changes):
  config = pbt_nas_teacher.get_config().to_dict()
  config['generations'] = changes.pop('generations', 3)
  config['seed'] = changes.pop('seed', 0)
  config['members'] |= SMALL | changes
  return config


def run(folder, **changes):
  with open('/dev/null', 'w') as nowhere:
    console = rich.console.Console(file=nowhere)
    return jobs.run(settings(**changes), folder, console=console)


def lines(folder):
  """Rows of metrics without what depends on the machine and the process."""
  rows = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
  varies = ('seconds', 'compiling', 'compilations')
  return [{k: v for k, v in row.items() if k not in varies} for row in rows]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a job and its summary."""
  folder = tmp_path_factory.mktemp('whole')
  return folder, run(folder)


def test_a_job_writes_what_it_found(whole):
  folder, summary = whole
  assert set(summary['arms']) == {'pbt_nas', 'random'}
  for row in summary['arms'].values():
    assert row['examples'] == 8 * 3 * 2 * 48
    assert row['error'] == pytest.approx(-row['fitness'])
  rows = lines(folder)
  assert [row['generation'] for row in rows] == [1, 2, 3] * 2
  # The same start, so the same first generation; then only one is replaced.
  first = {row['search']: row['population'] for row in rows[::3]}
  assert first['pbt_nas'] == first['random']
  last = {row['search']: row['population'] for row in rows[2::3]}
  assert last['pbt_nas']['genes'] != first['pbt_nas']['genes']
  assert last['random']['genes'] == first['random']['genes']
  genotype = json.loads((folder / 'best' / 'genotype.json').read_text())
  assert len(genotype['genes']) == 40
  assert genotype['values']['slot0'] in (
    'zero',
    'identity',
    'tanh',
    'relu',
    'sine',
    'square',
    'bump',
  )
  weights = flax.serialization.msgpack_restore(
    (folder / 'best' / 'weights.msgpack').read_bytes()
  )
  assert weights['layers']['slots']['u'].shape == (40, 2, 8)
  page = (folder / 'report.html').read_text()
  assert 'Lineage' in page
  assert page.count('<img') >= 3
  assert 'cannot' not in page


def test_a_job_that_was_stopped_goes_on_bit_for_bit(
  whole, tmp_path, monkeypatch
):
  (whole, _), stopped = whole, tmp_path / 'stopped'

  class Stop(Exception):
    pass

  real = workdir.summary_row

  def stop(population):
    if population.generation == 2:
      raise Stop
    return real(population)

  with monkeypatch.context() as patch:
    patch.setattr(workdir, 'summary_row', stop)
    with pytest.raises(Stop):
      run(stopped)
  assert len(lines(stopped)) == 1
  run(stopped)
  assert lines(stopped) == lines(whole)
  for name in ('genotype.json', 'weights.msgpack'):
    one, other = (f / 'best' / name for f in (whole, stopped))
    assert one.read_bytes() == other.read_bytes()
  with pytest.raises(ValueError, match='seed'):
    run(stopped, seed=1)


def test_the_best_arm_is_chosen_without_the_test(tmp_path, monkeypatch):
  module = importlib.import_module('jaxnas.jobs.members')
  toy, train = module.SUBJECTS['plain_toy'], module.ARMS['random']

  def reversed_in_test(settings, key):
    subject = toy(settings, key)

    def make(steps):
      learner = subject.make(steps)

      def test(key, member, data):
        return {'fitness': -learner.measure(key, member, data)['fitness']}

      return learner._replace(test=test)

    return subject._replace(make=make)

  def diverging(settings, subject, learner):
    lost = combine.stage(
      lambda key, members: members._replace(
        metrics=jax.tree.map(lambda leaf: leaf * math.nan, members.metrics)
      )
    )
    return combine.chain(train(settings, subject, learner), lost)

  monkeypatch.setitem(module.SUBJECTS, 'plain_toy', reversed_in_test)
  monkeypatch.setitem(module.ARMS, 'fire', diverging)
  monkeypatch.setattr(report, 'html', lambda path: None)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)  # The median of nothing.
    changes = {'steps': 10, 'generations': 2, 'arms': 'fire-pbt-random'}
    summary = run(tmp_path, learner='plain_toy', **changes)
  rows = summary['arms']
  assert math.isnan(rows['fire']['valid_fitness'])
  assert math.isfinite(rows.pop('fire')['fitness'])
  valid = {arm: row['valid_fitness'] for arm, row in rows.items()}
  assert summary['best'] == max(valid, key=valid.get)
  # The control: by what is measured in the test it were the other.
  assert summary['best'] == min(rows, key=lambda arm: rows[arm]['fitness'])
  assert len(set(valid.values())) == 2


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'learner': 'student'}, 'members.learner must be one of teacher, gan'),
    ({'arms': 'pbt_nas-gradient'}, "must be of pbt_nas.*'pbt_nas-gradient'"),
    ({'size': 7}, 'members.size must be at least 8'),
    ({'fraction': 0.7}, 'fraction must be above 0 and at most 0.5, got 0.7'),
    (
      {'fraction': 0},
      'members.fraction must be above 0 and at most 0.5, got 0',
    ),
    (
      {'arms': 'fire', 'steps': 10, 'size': 4, 'fraction': 0.5},
      'members.size must be at least 5 for the arm fire',
    ),
    ({'cycle': 0}, 'members.cycle must be at least 1, got 0'),
    ({'arms': 'pbt'}, 'pbt changes hyper-parameters, of which'),
    (
      {'arms': 'preserving'},
      'preserving changes slots that can grow, of which the learner .teacher.',
    ),
    (
      {'learner': 'plain_toy', 'arms': 'mutation'},
      'mutation changes genes, of which',
    ),
    (
      {'learner': 'control', 'arms': 'random-epbt'},
      'epbt selects by the metric behaviour, which the learner .control. does',
    ),
    ({'arms': 'fire', 'learner': 'plain_toy'}, 'steps must be a multiple'),
    ({'environment': 'moon'}, 'members.environment must be one of pendulum'),
  ],
)
def test_illegal_settings_are_refused_before_the_folder_is_made(
  tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    run(tmp_path / 'run', **changes)
  assert not (tmp_path / 'run').exists()


def test_settings_are_drawn_for_the_arms_that_change_them():
  module = importlib.import_module('jaxnas.jobs.members')
  held = settings(learner='control', arms='pbt-fire-random')
  subject = module.SUBJECTS['control'](held, None)
  learner = subject.make(1)
  module._suited(held, subject, learner)
  names = {}
  for arm in ('pbt', 'fire', 'random', 'pbt_nas'):
    first = functools.partial(module._started, held, subject, learner, arm)
    names[arm] = set(jax.eval_shape(first).member.hyper)
  assert names['pbt'] == names['fire'] == {'rate', 'entropy'}
  assert names['random'] == names['pbt_nas'] == set()


@pytest.mark.slow
def test_children_that_preserve_the_function_are_an_arm(tmp_path):
  few = {'learner': 'control', 'steps': 1, 'fraction': 0.5}
  run(tmp_path, arms='preserving', generations=2, **few)
  one, two = (row['population'] for row in lines(tmp_path))
  assert one['genes'] != two['genes']
  # Of slots alone: what else a child has is its parent's.
  names = json.loads((tmp_path / 'best' / 'genotype.json').read_text())
  names = list(names['values'])
  for genes, (parent, other) in zip(two['genes'], two['parents']):
    assert parent == other
    changed = {
      n for n, a, b in zip(names, genes, one['genes'][parent]) if a != b
    }
    assert all('/slots/op' in name for name in changed)


@pytest.mark.slow
def test_pbt_is_an_arm_of_learners_whose_settings_have_defaults(tmp_path):
  run(tmp_path, learner='control', arms='pbt-random', steps=1, generations=1)
  first = {row['search']: row['population'] for row in lines(tmp_path)}
  assert first['pbt']['genes'] == first['random']['genes']
  assert len(set(first['pbt']['hyper/rate'])) == 8
  assert 'hyper/rate' not in first['random']


def test_a_member_that_diverged_is_written_as_null():
  rows = [
    {
      'search': 'pbt',
      'generation': i,
      'examples': i,
      'fitness': 0.5,
      'median_fitness': 0.5,
      'population': {
        'fitness': [0.5, None],
        'genes': [[], []],
        'parents': [[0, 0], [i - 1, 0]],
        'hyper/rate': [0.1, 0.2 * i],
      },
    }
    for i in (1, 2)
  ]
  assert len(draw.lineage(rows).axes) == 3
  assert len(draw.fitness(rows).axes) == 1
  with pytest.raises(ValueError, match='no row has a population'):
    draw.lineage([{'search': 'x'}])


def test_the_quick_form_of_epbt_has_a_pulse():
  config = epbt_digits.get_config().to_dict()
  for quick in (False, True):
    held = jobs.resolve({**config, 'quick': quick})
    # The first pulse is after so many generations, of which one must follow.
    assert held['members']['cycle'] < held['generations']


# Of the quick forms, seed 0: what is measured of an arm, and between what.
QUICK = {
  'pbt_nas_teacher': ('error', {'pbt_nas': (0.2, 0.4)}),
  'pbt_nas_gan_digits': ('frechet', {'pbt_nas': (2.0, 5.0)}),
  'pbt_nas_control': ('fitness', {'pbt_nas': (15.0, 60.0)}),
  'fire_pbt_toy': (
    'fitness',
    {'fire': (1.1, 1.2), 'pbt': (0.95, 1.01), 'random': (1.02, 1.06)},
  ),
  'epbt_digits': ('accuracy', {'epbt': (0.55, 0.85), 'pbt': (0.7, 0.95)}),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', QUICK)
def test_quick_forms_keep_their_promises(tmp_path, name):
  config = importlib.import_module(f'configs.{name}').get_config().to_dict()
  config['quick'] = True
  summary = jobs.run(config, tmp_path)
  jax.clear_caches()
  examples = {row['examples'] for row in summary['arms'].values()}
  assert len(examples) == 1
  assert all(math.isfinite(row['fitness']) for row in summary['arms'].values())
  measure, ranges = QUICK[name]
  for arm, (low, high) in ranges.items():
    assert low < summary['arms'][arm][measure] < high
