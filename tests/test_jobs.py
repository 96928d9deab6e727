"""Whole jobs in this process: what they leave, refuse, survive and repeat.

tests/test_launch.py runs them as commands, and kills them.
"""

import copy
import hashlib
import importlib.util
import io
import json
import math
import pathlib
import re
import shutil

import jax
import ml_collections
import pytest
import rich.console

from configs import (
  ectonas_cifar10,
  ectonas_digits,
  growth_cifar10,
  growth_digits,
)
from jaxnas import jobs, network, tasks, training, workdir

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A job of seconds, which grows inside its buckets. The baselines end with less
# than a whole generation.
TINY = {
  'net.name': 'mlp',
  'net.widths': '6-6',
  'epochs': 2,
  'generations': 3,
  'growth.rounds': 2,
  'growth.price': 0.0,
  'growth.tolerance': 100.0,
  'growth.limit': 1,
  'growth.steps': 2,
  'growth.learn_examples': 128,
  'growth.score_examples': 128,
}
KEYS = (
  *('test_accuracy', 'params', 'examples'),
  *('compilations', 'compiling', 'seconds'),
)
BASELINES = ('seed_same_examples', 'final_from_scratch')
TIMED = ('compilations', 'seconds', 'compiling')


@pytest.fixture
def no_training(monkeypatch):
  """Fails a test that trains."""

  def refuse(*arguments, **options):
    raise AssertionError('trained')

  monkeypatch.setattr(training, 'fit_all', refuse)


def tiny(module=growth_digits, **changes) -> ml_collections.ConfigDict:
  """A config with TINY and the changes, `__` in place of dots."""
  config = module.get_config()
  changes = {name.replace('__', '.'): v for name, v in changes.items()}
  config.update_from_flattened_dict({**TINY, **changes})
  return config


def run(config, folder) -> tuple[dict, str]:
  """A job's summary and what it printed."""
  text = io.StringIO()
  console = rich.console.Console(file=text, width=120)
  return jobs.run(config, folder, console=console), text.getvalue()


def files(folder, under: str = '') -> dict[str, str]:
  """A checksum for every file of a folder."""
  folder = pathlib.Path(folder)
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((folder / under).rglob('*'))
    if path.is_file()
  }


def timeless(tree):
  """Nested dicts and lists without what depends on clock and caches."""
  if isinstance(tree, dict):
    return {k: timeless(v) for k, v in tree.items() if k not in TIMED}
  return [timeless(v) for v in tree] if isinstance(tree, list) else tree


def rows(folder) -> list[dict]:
  lines = pathlib.Path(folder, 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A tiny job that ran to its end: folder, summary and what it printed."""
  folder = tmp_path_factory.mktemp('job') / 'run'
  return folder, *run(tiny(), folder)


def test_a_job_leaves_everything_it_promises(whole):
  folder, summary, _ = whole
  assert json.loads((folder / 'config.json').read_text()) == jobs.resolve(
    tiny()
  )
  assert json.loads((folder / 'summary.json').read_text()) == summary
  assert {p.name for p in folder.iterdir()} >= {
    'config.json',
    'metrics.jsonl',
    'tensorboard',
    'checkpoints',
    'best',
    'summary.json',
  }
  assert files(folder / 'best').keys() == {'spec.json', 'weights.msgpack'}
  for search in ('growth', *BASELINES):
    assert list((folder / 'checkpoints' / search).iterdir())
    (events,) = (folder / 'tensorboard' / search).iterdir()
    assert events.stat().st_size > 500
  assert not list(folder.rglob('*.partial'))


def test_the_summary_has_the_promised_keys_and_honest_numbers(whole):
  folder, summary, _ = whole
  assert tuple(summary) == (*KEYS, 'baselines')
  assert tuple(summary['baselines']) == BASELINES
  config, train = tiny(), len(tasks.digits().train.targets)
  epoch = train // config.batch * config.batch
  learned = config.growth.rounds * config.growth.score_examples
  assert summary['examples'] > config.generations * config.epochs * epoch
  assert summary['examples'] > learned
  last = {row['search']: row for row in rows(folder)}
  for search, held in (('growth', summary), *summary['baselines'].items()):
    assert tuple(held)[: len(KEYS)] == KEYS
    assert 0 <= held['test_accuracy'] <= 1
    assert held['compilations'] > 0
    assert 0 < held['compiling'] < held['seconds']
    assert {k: last[search][k] for k in KEYS[1:]} == {
      k: held[k] for k in KEYS[1:]
    }
  for held in summary['baselines'].values():  # As many, to a whole epoch.
    assert 0 <= held['examples'] - summary['examples'] < epoch
  scratch = summary['baselines']['final_from_scratch']
  assert scratch['params'] == summary['params']


def test_metrics_have_every_generation_of_every_search_once(whole):
  folder, _, _ = whole
  found = [(row['search'], row['generation']) for row in rows(folder)]
  generations = {
    name: [g for search, g in found if search == name]
    for name in ('growth', *BASELINES)
  }
  assert generations['growth'] == [1, 2, 3]
  for name in BASELINES:  # 7 epochs, in generations of 2.
    assert generations[name] == [1, 2, 3, 4]
  assert len(found) == 11
  assert any(row.get('event') in ('move', 'rejected') for row in rows(folder))


def test_the_best_network_has_the_reported_accuracy(whole):
  folder, summary, _ = whole
  net = workdir.load_network(folder / 'best')
  task = tasks.digits()
  measured = training.evaluate(net, task, task.test).metric
  assert measured == summary['test_accuracy']


def test_the_table_of_results_is_printed(whole):
  _, summary, text = whole
  for name in ('grown', 'seed, same examples', 'final from scratch'):
    assert name in text
  assert f'{summary["test_accuracy"]:.4f}' in text
  assert f'{summary["examples"]:,}' in text
  for title in ('accuracy', 'parameters', 'examples', 'compiled', 'seconds'):
    assert title in text


def test_a_finished_job_does_nothing_and_prints_its_table_again(
  whole, no_training
):
  folder, summary, text = whole
  before = files(folder)
  again, printed = run(tiny(), folder)
  assert again == summary
  assert files(folder) == before
  assert 'resuming after generation 3 of 3' in printed
  table = text[text.index('Results on') :]
  assert printed.endswith(table)


def test_a_seed_gives_its_network_bit_for_bit_and_another_seed_another(
  whole, tmp_path
):
  folder, summary, _ = whole
  same, _ = run(tiny(), tmp_path / 'same')
  assert files(tmp_path / 'same' / 'best') == files(folder / 'best')
  assert timeless(same) == timeless(summary)

  def weights(name, **changes):
    run(tiny(generations=1, growth__rounds=0, **changes), tmp_path / name)
    return files(tmp_path / name / 'best')['weights.msgpack']

  assert weights('zero') != weights('one', seed=1)


def test_a_job_stopped_again_and_again_ends_as_one_never_stopped(
  whole, tmp_path, monkeypatch
):
  """Stopped at every fifth measurement, wherever in the job that is."""
  real, calls = training.evaluate_all, iter(range(1, 1000))

  class Stopped(Exception):
    pass

  def evaluate_all(*arguments, **options):
    if next(calls) % 5 == 0:
      raise Stopped
    return real(*arguments, **options)

  monkeypatch.setattr(training, 'evaluate_all', evaluate_all)
  stopped = []
  for _ in range(20):
    try:
      summary, _ = run(tiny(), tmp_path / 'run')
      break
    except Stopped:
      stopped.append(len(rows(tmp_path / 'run')))
  assert len(stopped) >= 4, stopped
  folder, wanted, _ = whole
  assert files(tmp_path / 'run' / 'best') == files(folder / 'best')
  assert timeless(summary) == timeless(wanted)
  assert timeless(rows(tmp_path / 'run')) == timeless(rows(folder))


def test_a_loss_that_diverges_is_recorded_and_survived(tmp_path):
  """Every training diverges, and the job still ends with a network."""
  config = tiny(optimizer__learning_rate=1e30, generations=2, growth__rounds=1)
  summary, text = run(config, tmp_path / 'run')
  found = rows(tmp_path / 'run')
  assert all(row['diverged'] for row in found)
  assert 'diverged' in text
  assert {row['search'] for row in found} == {'growth', *BASELINES}
  net = workdir.load_network(tmp_path / 'run' / 'best')
  assert all(
    math.isfinite(float(abs(leaf).sum()))
    for leaf in jax.tree.leaves(net.variables)
  )
  assert 0 <= summary['test_accuracy'] <= 1
  assert summary['examples'] > 0


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    (
      {'job': 'grow'},
      r"--config.job must be one of growth, race, .*, got 'grow'",
    ),
    ({'net__name': 'lenet'}, r"net.name must be one of chain, .*got 'lenet'"),
    (
      {'net__name': 'resnet', 'net__width': -3},
      r'--config.net.width must be at least 1, got -3',
    ),
    ({'net__widths': '-4-M'}, r"--config.net.widths must be .*got '-4-M'"),
    ({'net__widths': '4-0'}, r"--config.net.widths must be .*got '4-0'"),
    ({'net__widths': '4,8'}, r"--config.net.widths must be .*got '4,8'"),
    ({'net__widths': 'M'}, r"--config.net.widths must be .*got 'M'"),
    ({'net__widths': ''}, r"--config.net.widths must be .*got ''"),
    ({'net__blocks': 0}, r'--config.net.blocks must be at least 1, got 0'),
    ({'optimizer__name': 'lion'}, r"'adamw' or 'sgd', got 'lion'"),
    (
      {'optimizer__learning_rate': math.nan},
      r'--config.optimizer.learning_rate must be at least 0, got nan',
    ),
    (
      {'optimizer__weight_decay': -1.0},
      r'--config.optimizer.weight_decay must be at least 0, got -1.0',
    ),
    ({'batch': 0}, r'--config.batch must be at least 1, got 0'),
    ({'epochs': -1}, r'--config.epochs must be at least 1, got -1'),
    ({'generations': 0}, r'--config.generations must be at least 1, got 0'),
    ({'growth__mass': 1.5}, r'--config.growth.mass must be at most 0.99'),
    ({'growth__limit': -1}, r'--config.growth.limit must be at least 0'),
    ({'growth__batch': 0}, r'--config.growth.batch must be at least 1'),
    (
      {'growth__score_examples': 0},
      r'--config.growth.score_examples must be at least 1, got 0',
    ),
    ({'seed': -1}, r'--config.seed must be at least 0, got -1'),
    ({'seed': 2**32}, r'--config.seed must be at most 4294967295'),
  ],
)
def test_illegal_settings_are_refused_before_anything_is_made(
  tmp_path, no_training, changes, says
):
  with pytest.raises(ValueError, match=says):
    run(tiny(**changes), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'changes',
  [
    {'dataset': 'cifar10', 'data_dir': 'nowhere'},
    {'dataset': 'no_such_set'},
  ],
)
def test_missing_data_are_refused_and_the_message_says_how_to_get_them(
  tmp_path, no_training, changes
):
  pytest.importorskip('tensorflow_datasets', reason='needs jaxnas[tfds]')
  with pytest.raises(FileNotFoundError) as caught:
    run(tiny(**changes), tmp_path / 'run')
  message = str(caught.value)
  assert changes['dataset'] in message
  assert changes.get('data_dir', '') in message
  assert 'download_and_prepare' in message and '--config.data_dir' in message
  assert not (tmp_path / 'run').exists()


def test_an_unknown_setting_is_refused_where_quick_would_set_it(tmp_path):
  config = tiny(quick=True).to_dict()
  config['when_quick'] = {'growth': {'roundz': 1}}
  with pytest.raises(ValueError, match=r"no settings \['roundz'\]"):
    run(config, tmp_path / 'run')


def test_changed_settings_are_refused_by_name_and_nothing_is_touched(
  whole, no_training
):
  folder, _, _ = whole
  before = files(folder)
  with pytest.raises(ValueError) as caught:
    run(tiny(batch=32, growth__price=1e-3), folder)
  message = str(caught.value)
  assert 'batch: stored 64, received 32' in message
  assert 'growth.price: stored 0.0, received 0.001' in message
  assert 'epochs' not in message
  assert str(folder) in message
  assert files(folder) == before


def test_a_folder_of_other_things_is_refused_and_kept(tmp_path, no_training):
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(ValueError, match=r"'notes.txt'.*no run to resume"):
    run(tiny(), tmp_path)
  assert files(tmp_path).keys() == {'notes.txt'}


def _truncated_arrays(step):
  for path in step.glob('arrays/**/d/*'):  # Orbax leaves files it never reads.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _truncated_manifest(step):
  path = step / 'manifest' / 'metadata'
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_arrays(step):
  shutil.rmtree(step / 'arrays')


def _arrays_of_another_generation(step):
  _no_arrays(step)
  shutil.copytree(step.parent / '1' / 'arrays', step / 'arrays')


def _arrays_of_another_search(step):
  _no_arrays(step)
  other = step.parent.parent / 'final_from_scratch' / '4'
  shutil.copytree(other / 'arrays', step / 'arrays')


def _manifest_of_another_generation(step):
  shutil.rmtree(step / 'manifest')
  shutil.copytree(step.parent / '1' / 'manifest', step / 'manifest')


@pytest.mark.parametrize(
  'damage',
  [
    _truncated_arrays,
    _truncated_manifest,
    _no_arrays,
    _arrays_of_another_generation,
    _arrays_of_another_search,
    _manifest_of_another_generation,
  ],
)
def test_a_checkpoint_that_cannot_be_trusted_is_refused_and_nothing_lost(
  whole, tmp_path, no_training, damage
):
  shutil.copytree(whole[0], tmp_path / 'run')
  step = tmp_path / 'run' / 'checkpoints' / 'growth' / '3'
  damage(step)
  before = files(tmp_path / 'run')
  with pytest.raises(ValueError) as caught:
    run(tiny(), tmp_path / 'run')
  message = str(caught.value)
  assert f'the checkpoint {step} cannot be trusted' in message
  assert f'delete it to resume from the previous one, {step.parent / "2"}' in (
    message
  )
  assert files(tmp_path / 'run') == before


def test_the_advice_for_a_damaged_checkpoint_restores_the_run(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / 'run')
  step = tmp_path / 'run' / 'checkpoints' / 'growth' / '3'
  _truncated_arrays(step)
  shutil.rmtree(step)
  summary, _ = run(tiny(), tmp_path / 'run')
  assert timeless(summary) == timeless(whole[1])
  assert files(tmp_path / 'run' / 'best') == files(whole[0] / 'best')


def test_settings_are_plain_and_quick_is_put_into_effect():
  config = growth_digits.get_config()
  slow = jobs.resolve(config)
  assert 'when_quick' not in slow
  config.quick = True
  quick = jobs.resolve(config)
  assert type(quick) is dict and type(quick['growth']) is dict
  changed = {name for name in quick if quick[name] != slow[name]}
  assert changed == {'quick', *config.when_quick}
  for name, value in config.when_quick.growth.items():
    assert quick['growth'][name] == value
  assert quick['growth'].keys() == slow['growth'].keys()


def test_bounds_are_inclusive_and_nested():
  rules = {'a.b': (0, 2), 'c': (None, None)}
  for value in (0, 1, 2):
    jobs.check({'a': {'b': value}, 'c': 'any'}, rules)
  for value, bound in ((-1, 'least 0'), (3, 'most 2'), (math.nan, 'least 0')):
    with pytest.raises(ValueError, match=f'--config.a.b must be at {bound}'):
      jobs.check({'a': {'b': value}, 'c': 'any'}, rules)


@pytest.mark.parametrize('name', jobs.SEEDS)
def test_every_seed_can_be_made_at_a_small_width(name):
  config = tiny(net__name=name, net__width=3, net__widths='3-M-3')
  task = tasks.digits()._replace(shape=(32, 32, 3))
  spec = jobs.make_seed(jobs.resolve(config), task)
  assert spec.shapes[spec.output] == (10,)
  assert spec.shapes[spec.input] == (32, 32, 3)


CONFIGS = sorted((ROOT / 'configs').glob('[a-z]*.py'))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config_module(request):
  where = importlib.util.spec_from_file_location('config', request.param)
  module = importlib.util.module_from_spec(where)
  where.loader.exec_module(module)
  module.path = request.param.relative_to(ROOT)
  return module


def test_a_config_promises_command_hardware_minutes_and_result(config_module):
  text = ' '.join(
    f'{config_module.__doc__} {config_module.get_config.__doc__}'.split()
  )
  command = f'python launch/train.py --config={config_module.path}'
  assert command in text.replace('\\ ', '')
  assert '--workdir=' in text
  for promise, pattern in {
    'hardware': r'\d+ (CPU )?cores?|GPU',
    'minutes': r'\d minutes?',
    'expected result': r'accuracy|(error|distance|return|objective) of about',
    'date': r'20\d\d-\d\d-\d\d',
  }.items():
    assert re.search(pattern, text), f'{config_module.path}: no {promise}'


@pytest.mark.parametrize('quick', [False, True])
def test_a_config_is_plain_values_that_a_job_accepts(config_module, quick):
  config = config_module.get_config()
  assert isinstance(config, ml_collections.ConfigDict)
  plain = copy.deepcopy(config.to_dict())
  assert json.loads(json.dumps(plain)) == plain
  config.quick = quick
  settings = jobs.resolve(config)
  assert settings['quick'] is quick
  assert settings['job'] in jobs.JOBS
  jobs.CHECKS[settings['job']](settings)
  if 'net' not in settings:
    return
  jobs.make_seed(settings, tasks.digits()._replace(shape=(32, 32, 3)))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['chain', 'resnet', 'vgg19', 'mobilenet_v1'])
def test_every_seed_trains_and_grows_on_cifar10(tmp_path, cifar10_folder, name):
  config = tiny(
    growth_cifar10,
    data_dir=str(cifar10_folder),
    examples__train=256,
    examples__test=64,
    net__name=name,
    net__width=4,
    epochs=1,
    generations=1,
    growth__rounds=1,
    growth__batch=32,
    growth__learn_examples=64,
    growth__score_examples=64,
  )
  summary, _ = run(config, tmp_path / 'run')
  (first, *_) = rows(tmp_path / 'run')
  assert first['event'] == 'move'
  assert math.isfinite(first['predicted']) and math.isfinite(first['measured'])
  seed = summary['baselines']['seed_same_examples']
  assert summary['params'] != seed['params']
  net = workdir.load_network(tmp_path / 'run' / 'best')
  assert net.spec.shapes[net.spec.output] == (10,)


@pytest.mark.slow
def test_a_race_compares_arms_of_equal_size_and_cost(tmp_path):
  config = tiny(job='race', growth__ratio=1.4, growth__moves='split')
  config.growth.limit = 0
  summary, text = run(config, tmp_path / 'race')
  arms = summary['arms']
  assert list(arms) == [
    'gauss_newton',
    'first_order',
    'random',
    'uniform_from_scratch',
    'final_from_scratch',
    'seed_same_examples',
  ]
  first, seed = arms['gauss_newton'], arms['seed_same_examples']
  assert first['params'] > 1.5 * seed['params']
  epoch = 2 * len(tasks.digits().train.targets)
  for name, arm in arms.items():
    assert 0 <= arm['test_accuracy'] <= 1
    assert name.replace('_', ' ') in text
    assert abs(arm['examples'] - first['examples']) <= epoch
    if arm is not seed:
      assert 0.8 < arm['params'] / first['params'] < 1.25
  assert run(config, tmp_path / 'race')[0] == summary  # Resumed at its end.


def test_a_race_without_a_ratio_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r'needs --config.growth.ratio'):
    run(tiny(job='race'), tmp_path / 'race')


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param(
      {
        'growth__moves': 'free_split-merge-insert',
        'growth__confirm': True,
        'growth__limit': 6,
      },
      marks=pytest.mark.slow,
    ),
    {'growth__judge': 'magnitude', 'growth__rule': 'independently'},
    pytest.param(
      {'growth__judge': 'synflow', 'growth__rounds': 1}, marks=pytest.mark.slow
    ),
    pytest.param(
      {'growth__judge': 'brute_force', 'growth__ratio': 1.2},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_job_grows_by_any_judge_rule_and_moves(tmp_path, changes):
  summary, _ = run(tiny(generations=2, **changes), tmp_path / 'run')
  assert summary['params'] > 0 and summary['examples'] > 0


@pytest.mark.parametrize(
  ('name', 'value', 'says'),
  [
    ('judge', 'oracle', 'growth.judge must be one of gauss_newton, '),
    ('judge', 'bn_gamma', "judge: 'bn_gamma' reads .*net.name='mlp' has none"),
    ('rule', 'greedily', "growth.rule must be one of jointly, .*'greedily'"),
    ('moves', 'split-widen', "growth.moves must be one of .*, got 'widen'"),
    ('ratio', 0.5, r'growth.ratio must be 0 \(no bound\) or at least 1'),
  ],
)
def test_unknown_judges_rules_and_moves_are_refused(
  tmp_path, no_training, name, value, says
):
  with pytest.raises(ValueError, match=says):
    run(tiny(**{f'growth__{name}': value}), tmp_path / 'run')


ECTONAS = {
  'quick': True,
  'net.name': 'mlp',
  'net.widths': '4',
  'ectonas.warmup': 1,
}


def ectonas(module=ectonas_digits, **changes) -> ml_collections.ConfigDict:
  """The quick form of a config, from a small dense network."""
  config = module.get_config()
  config.update(config.when_quick)
  config.when_quick = ml_collections.ConfigDict({})
  changes = {name.replace('__', '.'): v for name, v in changes.items()}
  config.update_from_flattened_dict({**ECTONAS, **changes})
  return config


@pytest.mark.parametrize(
  ('name', 'value', 'says'),
  [
    ('net__name', 'resnet', 'net.name must be chain, cells or mlp'),
    ('net__widths', '3-x', 'net.widths must be whole numbers'),
    ('optimizer__name', 'adamw', 'optimizer.name must be one of adam, sgd'),
    ('ectonas__pool', 'sum', 'ectonas.pool must be one of none, max, mean'),
    ('ectonas__compat', 'old', 'ectonas.compat must be one of fixed, offic'),
    ('ectonas__children', 'best', 'ectonas.children must be one of all, rank'),
    ('ectonas__screen', -1, 'ectonas.screen must be at least 0'),
    ('ectonas__alpha', -1.0, 'ectonas.alpha must be at least 0'),
    ('ectonas__rounds', 0, 'ectonas.rounds must be at least 1'),
    ('ectonas__budget', 1.5, 'ectonas.budget must be at least ectonas.warmup'),
    ('epochs', 0, 'config.epochs must be at least 1'),
  ],
)
def test_bad_settings_of_ectonas_are_refused(
  tmp_path, no_training, name, value, says
):
  with pytest.raises(ValueError, match=says):
    run(ectonas(**{name: value}), tmp_path / 'run')


def test_a_budget_that_ranking_alone_would_use_up_is_refused(
  tmp_path, no_training
):
  config = ectonas(ectonas__children='ranked', ectonas__budget=12.0)
  with pytest.raises(ValueError, match='ranking costs a parent together, 18'):
    run(config, tmp_path / 'run')


def test_cells_are_written_as_channels_and_units():
  task = tasks.digits()
  for widths, params in (('3-6:10-10', 686), ('3-6', 466), ('3-6:', 466)):
    net = {'name': 'cells', 'widths': widths, 'width': 1, 'blocks': 1}
    assert network.param_count(jobs.make_seed({'net': net}, task)) == params


@pytest.mark.slow
@pytest.mark.parametrize(
  ('compat', 'children'),
  [('fixed', 'all'), ('official', 'all'), ('fixed', 'ranked')],
)
def test_an_ectonas_job_resumes_and_compares_at_equal_epochs(
  tmp_path, compat, children
):
  config = ectonas(ectonas__compat=compat, ectonas__children=children)
  config.ectonas.budget = budget = 40.0 if children == 'ranked' else 12.0
  config.generations = 2
  summary, text = run(config, tmp_path / 'run')
  assert (summary['epochs'] <= budget) == (compat == 'fixed')
  assert summary['edits'] and summary['start_params'] == 310
  found = workdir.load_network(tmp_path / 'run' / 'best')
  assert network.param_count(found) == summary['params']
  epoch = 1168
  for name, row in summary['baselines'].items():
    assert abs(row['examples'] - summary['examples']) <= epoch
    assert name.replace('_', ' ') in text
  # Killed after the first generation of the search.
  again = tmp_path / 'again'
  shutil.copytree(tmp_path / 'run', again)
  for step in (again / 'checkpoints' / 'ectonas').iterdir():
    if step.name != '1':
      shutil.rmtree(step)
  assert timeless(run(config, again)[0]) == timeless(summary)


@pytest.mark.slow
def test_the_quick_ectonas_config_keeps_its_promise(tmp_path):
  config = ectonas_digits.get_config()
  config.quick = True
  summary, _ = run(config, tmp_path / 'run')
  assert summary['epochs'] <= 69.45 and summary['start_params'] == 686
  assert summary['valid_accuracy'] >= 0.85
  assert summary['test_accuracy'] >= 0.82


@pytest.mark.slow
def test_ectonas_searches_cifar10(tmp_path, cifar10_folder):
  config = ectonas_cifar10.get_config()
  config.quick = True
  config.data_dir = str(cifar10_folder)
  config.when_quick.examples.train = 512
  config.when_quick.examples.test = 128
  summary, _ = run(config, tmp_path / 'run')
  assert 0 < summary['epochs'] <= 69.45
  assert math.isfinite(summary['valid_accuracy'])
