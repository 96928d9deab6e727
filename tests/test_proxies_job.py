"""The study of proxies: its statistics, refusals, resuming, and a real run."""

import io
import itertools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import rich.console
from scipy import stats

from jaxnas import draw, fidelity, network, tasks
from jaxnas.base import Taught, Trainer
from jaxnas.jobs import (
  consistency,
  image_spaces,
  proxies,
  proxy_columns,
  proxy_plan,
)
from jaxnas.spaces import cell

ROOT = pathlib.Path(__file__).resolve().parent.parent
CELLS = image_spaces.SPACES['nas_bench_201']
TIMED = ('seconds', 'processor', 'cost', 'compiling', 'recommended')
# How much noise there is in the made-up scores of a setting.
NOISE = {'c2r0s0e8': 0.1, 'c0r2s0e8': 9.0, 'c0r0s2e8': 9.0, 'c0r0s0e4': 0.3}
MADE_UP = {
  'examples': 0,
  'valid': 0,
  'batch': 64,
  'networks': 16,
  'chunk': 5,
  'reference': 'c0r0s0e8',
  'fidelities': list(NOISE),
  'zero_cost': [],
  'resamples': 300,
}


def quiet() -> rich.console.Console:
  return rich.console.Console(file=io.StringIO(), width=120)


def ran(folder, **changes) -> tuple[dict, str]:
  console = quiet()
  summary = proxies.study({**MADE_UP, **changes}, folder, console=console)
  return summary, console.file.getvalue()


def timeless(tree):
  """Nested dicts without what depends on clock and caches."""
  if isinstance(tree, dict):
    return {k: timeless(v) for k, v in tree.items() if k not in TIMED}
  return tree


@pytest.fixture
def made_up(monkeypatch):
  """Trainings that take no time; gives the list of their calls."""
  calls = []

  def trainer(job, name):
    noise = NOISE.get(name, 0.0)

    def train(keys, genotypes, states):
      calls.append((name, len(keys)))
      assert states == [None] * len(keys)
      draws = [float(jax.random.normal(key)) for key in keys]
      scores = [
        float((np.asarray(g) * [1, 5, 25, 2, 7, 3]).sum() + 20 * noise * draw)
        for g, draw in zip(genotypes, draws)
      ]
      return [Taught(None, score, job.sizes[name].examples) for score in scores]

    return Trainer(train, None)

  monkeypatch.setattr(proxy_columns, '_trainer', trainer)
  return calls


# Statistics.


@pytest.mark.parametrize('count', [4, 7, 24])
def test_agreement_is_that_of_scipy_in_every_sample(count):
  rng = np.random.default_rng(count)
  one = rng.normal(size=count).round(1)  # With ties.
  other = (one + rng.normal(size=count)).round(1)
  counts = consistency.resamples(rng, count, 40)
  rho, tau = consistency.agreement(one, other, counts)
  for sample, found in zip(counts.astype(int), zip(rho, tau)):
    rows = np.repeat(np.arange(count), sample)
    if len(set(one[rows])) == 1 or len(set(other[rows])) == 1:
      assert found == (0.0, 0.0)
      continue
    expected = [f(one[rows], other[rows])[0] for f in (_spearman, _kendall)]
    np.testing.assert_allclose(found, expected, atol=1e-12)
  assert (counts[0] == 1).all() and (counts.sum(axis=1) == count).all()


def _spearman(one, other):
  return stats.spearmanr(one, other)


def _kendall(one, other):
  return stats.kendalltau(one, other)


def test_what_diverged_comes_last_and_no_order_agrees_with_nothing():
  ones = np.ones((1, 4))
  scores = [0.4, np.nan, 0.2, 0.3]
  rho, tau = consistency.agreement([4, 1, 2, 3], scores, ones)
  assert rho == tau == 1
  rho, _ = consistency.agreement([4, 1, 2, 3], [0.4, -np.inf, 0.2, 0.3], ones)
  assert rho == 1
  rho, tau = consistency.agreement([4, 1, 2, 3], [0.5] * 4, ones)
  assert rho == tau == 0


@pytest.mark.parametrize('pearson', [0.0, 0.8])
def test_intervals_hold_the_true_rho_about_as_often_as_they_say(pearson):
  true = 6 / np.pi * np.arcsin(pearson / 2)
  rng = np.random.default_rng(0)
  held, middle = 0, []
  for _ in range(200):
    one, other = rng.normal(size=(2, 24))
    other = pearson * one + np.sqrt(1 - pearson**2) * other
    rho, _ = consistency.agreement(
      one, other, consistency.resamples(rng, 24, 300)
    )
    low, high = consistency.interval(rho[1:])
    held += low <= true <= high
    middle.append(rho[0])
  assert 0.9 * 200 <= held <= 0.99 * 200
  assert abs(np.mean(middle) - true) < 0.05


def row(rho, low, cost):
  return {'rho': rho, 'rho_interval': [low, 0.99], 'cost': cost}


def test_the_cheapest_certain_proxy_is_recommended():
  rows = {
    'best': row(0.95, 0.9, 0.5),
    'cheap': row(0.7, 0.55, 0.1),
    'cheapest': row(0.8, 0.45, 0.01),
  }
  found = consistency.recommend(rows, 0.5)
  assert found['proxy'] == 'cheap' and found['certain']
  assert 'the cheapest of 2 proxies (of 3)' in found['reason']
  assert '10 % of the reference' in found['reason']
  assert consistency.recommend(rows, 0.4)['proxy'] == 'cheapest'
  assert consistency.recommend(rows, 0.6)['proxy'] == 'best'
  found = consistency.recommend(rows, 0.95)
  assert found['proxy'] == 'best' and not found['certain']
  assert 'Not certain' in found['reason']


def pairs_of(*names, reference='c0r0s0e8', **settings):
  held = proxy_plan.DEFAULTS | {'batch': 64} | settings
  task = tasks.digits()
  trained = {name: fidelity.parse(name) for name in names}
  steps = {
    name: proxy_plan.sized(held, task, own).steps
    for name, own in trained.items()
  }
  found = consistency.comparable(trained, steps, fidelity.parse(reference))
  return [tuple(pair) for pair in found]


def test_comparable_proxies_are_found():
  # 1168 images are 18 steps of 64, 584 are 9, and 292 are 4.
  names = ('c0r2s0e8', 'c2r0s0e8', 'c0r0s2e8', 'c0r0s0e4', 'c0r0s4e8')
  assert pairs_of(*names) == [
    (consistency.CHANNELS, 'c2r0s0e8', 'c0r2s0e8'),
    (consistency.SAMPLES, 'c0r0s0e4', 'c0r0s2e8'),
  ]
  # Four steps of eight epochs are 32; nine of four are 36, and too many.
  assert pairs_of('c0r0s4e8', 'c0r0s2e4') == []
  assert pairs_of('c0r0s4e9', 'c0r0s2e4', 'c0r0s0e2') == [
    (consistency.SAMPLES, 'c0r0s2e4', 'c0r0s4e9'),
    (consistency.SAMPLES, 'c0r0s0e2', 'c0r0s4e9'),
    (consistency.SAMPLES, 'c0r0s0e2', 'c0r0s2e4'),
  ]
  # Other samples or epochs, or other channels beside them.
  assert pairs_of('c2r0s0e8', 'c0r2s0e6', 'c0r2s2e8') == []
  assert pairs_of('c2r0s2e8', 'c0r0s0e4') == []
  # Cuts count from the reference.
  of = {'reference': 'c2r0s0e8', 'channels': 16}
  assert pairs_of('c2r2s0e8', 'c4r0s0e8', **of) == [
    (consistency.CHANNELS, 'c4r0s0e8', 'c2r2s0e8')
  ]
  assert pairs_of('c2r0s0e8', 'c0r2s0e8', **of) == []


# Refusals.


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'networks': 3}, '--networks must be at least 4, got 3'),
    ({'networks': 15_626}, 'at most 15625'),
    ({'batch': 0}, '--batch'),
    ({'learning_rate': 0.0}, '--learning_rate must be above 0'),
    ({'threshold': 2.0}, '--threshold'),
    ({'space': 'cells'}, '--space must be one of nas_bench_201'),
    ({'colour': 1}, r"no settings \['colour'\]"),
    ({'reference': 'c0r0e12'}, '--reference: a fidelity is written'),
    ({'fidelities': ['c0r0s0e0']}, '--fidelities: .*at least one epoch'),
    ({'fidelities': 'c2r0s0e8'}, '--fidelities must be a list'),
    ({'fidelities': ['c0r0s0e1'] * 2}, 'c0r0s0e1 twice'),
    ({'fidelities': ['c0r0s0e8']}, 'the reference, c0r0s0e8, itself'),
    ({'fidelities': ['c0r0s0e9']}, 'is no dearer than c0r0s0e9'),
    ({'fidelities': ['c2r0s0e64']}, 'is no dearer than c2r0s0e64'),
    ({'fidelities': ['c0r4s0e8']}, '8 pixels cut by index 4 would be 2'),
    ({'fidelities': ['c5r0s0e8']}, '8 channels cut by index 5'),
    ({'fidelities': ['c0r0s9e8']}, 'there are 52 images .* --batch is 64'),
    ({'fidelities': []}, 'nothing to study'),
    ({'space': 'cells'}, "one of nas_bench_201, econas, darts, got 'cells'"),
    (
      {'space': 'econas', 'channels': 3},
      '--channels must be a multiple of 2 in econas, got 3',
    ),
    ({'zero_cost': ['params', 'luck']}, "--zero_cost must be .* got 'luck'"),
    ({'examples': 5000}, '--examples must be at most 1168 here, got 5000'),
  ],
)
def test_what_cannot_be_studied_is_refused_at_once(
  changes, message, tmp_path, made_up
):
  with pytest.raises(ValueError, match=message):
    ran(tmp_path / 'run', **changes)
  assert not made_up and not (tmp_path / 'run').exists()


def test_two_names_of_one_setting_are_refused(tmp_path, made_up):
  with pytest.raises(ValueError, match='c2r0s0e8 and c02r0s0e8 are the same'):
    ran(tmp_path / 'run', fidelities=['c2r0s0e8', 'c02r0s0e8'])
  assert not made_up


def test_images_that_the_networks_cannot_take_are_refused(monkeypatch):
  task = tasks.digits()._replace(shape=(10, 10, 1))
  monkeypatch.setattr(proxy_plan.tasks, 'digits', lambda **how: task)
  with pytest.raises(ValueError, match='multiples of 4'):
    proxy_plan.read(proxy_plan.DEFAULTS)


def test_the_command_says_in_a_line_what_is_wrong(tmp_path):
  command = [sys.executable, 'launch/proxies.py', f'--workdir={tmp_path}/run']
  done = subprocess.run(
    [*command, '--fidelities=c2r0s0e3,nonsense', '--compilation_cache='],
    capture_output=True,
    cwd=ROOT,
    text=True,
  )
  assert done.returncode == 1 and 'Traceback' not in done.stderr
  assert 'error: --fidelities: a fidelity is written' in done.stderr
  assert "'nonsense'" in done.stderr


# Studies with made-up scores.


def test_networks_differ_and_are_connected_unless_told():
  key = jax.random.key(0)
  cells = proxy_plan.draw_networks(key, CELLS, 300)
  assert len(np.unique(cells, axis=0)) == 300
  assert all(CELLS.connected(cell) for cell in cells)
  every = proxy_plan.draw_networks(key, CELLS, 300, unconnected=True)
  assert len(np.unique(every, axis=0)) == 300
  assert not all(CELLS.connected(cell) for cell in every)
  none = CELLS._replace(connected=lambda cell: False)
  with pytest.raises(ValueError, match='--networks is 5'):
    proxy_plan.draw_networks(key, none, 5)


def test_a_study_finds_what_was_put_in(tmp_path, made_up):
  summary, text = ran(tmp_path / 'run', again=True)
  stored = (tmp_path / 'run' / 'summary.json').read_text()
  assert json.loads(stored) == summary
  image = (tmp_path / 'run' / 'consistency.png').read_bytes()
  assert image[:4] == b'\x89PNG' and len(image) > 10_000
  rows = summary['proxies']
  assert set(rows) == {*NOISE, proxy_plan.AGAIN}
  assert rows[proxy_plan.AGAIN]['rho'] == rows[proxy_plan.AGAIN]['tau'] == 1
  assert rows['c2r0s0e8']['rho'] > 0.9 > 0.5 > rows['c0r2s0e8']['rho']
  for name, own in rows.items():
    low, high = own['rho_interval']
    assert -1 <= low <= own['rho'] <= high <= 1
    assert own['diverged'] == 0 and own['seconds'] > 0 and own['cost'] > 0
    assert own['examples'] == summary['sizes'][name]['examples']
  # Convolutions are a quarter at half the width; a stem has three inputs still.
  assert 0.2 < rows['c2r0s0e8']['flops'] < 0.35
  assert 0.2 < rows['c0r2s0e8']['flops'] < 0.3
  assert rows['c0r0s0e4']['flops'] == 0.5
  answers = {pair['question']: pair['verdict'] for pair in summary['pairs']}
  assert answers == {
    consistency.CHANNELS: 'cutting channels is better',
    consistency.SAMPLES: 'more samples is better',
  }
  assert [q['pairs'] for q in summary['questions']] == [1, 1]
  assert summary['recommended']['certain']
  assert summary['recommended']['proxy'] in ('c2r0s0e8', 'c0r0s0e4')
  for word in ('min left', 'cutting channels is better', 'Recommended: c'):
    assert word in text
  # Some networks at all settings, then some more.
  assert [call[0] for call in made_up[:6]] == [*summary['sizes']]
  assert [call[1] for call in made_up[::6]] == [5, 5, 5, 1]


@pytest.mark.slow
def test_a_study_of_networks_that_are_compiled_each(tmp_path, monkeypatch):
  """Small cells on digits, of which each network is a program."""
  small = cell.Grammar('small', ('none', 'skip', 'conv3'), 1, 1)
  choice = image_spaces.of_cells(small)
  monkeypatch.setitem(image_spaces.SPACES, 'small', choice)
  settings = {
    'space': 'small',
    'channels': 2,
    'networks': 4,
    'examples': 64,
    'valid': 40,
    'batch': 32,
    'reference': 'c0r0s0e2',
    'fidelities': ['c0r0s0e1'],
    'zero_cost': ['params', 'naswot'],
  }
  summary = proxies.study(settings, tmp_path / 'run', console=quiet())
  assert set(summary['proxies']) == {'c0r0s0e1', 'params', 'naswot'}
  assert 0 < summary['proxies']['c0r0s0e1']['flops'] < 1
  key = network.named_key(jax.random.key(0), 'networks')
  genotypes = proxy_plan.draw_networks(key, choice, 4)
  nets = choice.networks(channels=2, layers=3, classes=10, shape=(8, 8, 1))
  counts = [network.param_count(nets.spec(row)) for row in genotypes]
  assert summary['scores']['params'] == counts


def test_a_study_stopped_anywhere_ends_as_one_never_stopped(
  tmp_path, made_up, monkeypatch
):
  whole, _ = ran(tmp_path / 'whole')
  trained = len(made_up)
  real, stored = proxy_columns._store, itertools.count()

  class Stopped(Exception):
    pass

  def store(*arguments):
    real(*arguments)
    if next(stored) % 3 == 2:
      raise Stopped

  monkeypatch.setattr(proxy_columns, '_store', store)
  stops = 0
  while True:
    try:
      resumed, _ = ran(tmp_path / 'run')
      break
    except Stopped:
      stops += 1
  assert stops > 3 and timeless(resumed) == timeless(whole)
  assert len(made_up) == 2 * trained  # Nothing was trained twice.


def test_proxies_are_added_to_a_finished_study_and_the_rest_stays(
  tmp_path, made_up
):
  folder = tmp_path / 'run'
  first, _ = ran(folder, fidelities=['c2r0s0e8'])
  made_up.clear()
  second, _ = ran(folder, zero_cost=['params'], threshold=0.99)
  assert {name for name, _ in made_up} == {*NOISE} - {'c2r0s0e8'}
  assert second['scores']['c2r0s0e8'] == first['scores']['c2r0s0e8']
  row = second['proxies']['params']
  assert row['flops'] is None and row['examples'] == 64
  assert not second['recommended']['certain']
  made_up.clear()
  for other in ({'seed': 1}, {'networks': 17}, {'batch': 32}):
    with pytest.raises(ValueError, match=f'{[*other][0]}: stored'):
      ran(folder, **other)
  assert not made_up
  (folder / 'columns' / 'c2r0s0e8.npz').write_bytes(b'no columns')
  with pytest.raises(ValueError, match='c2r0s0e8.npz cannot be read'):
    ran(folder)


def test_what_is_trained_does_not_depend_on_what_stands_beside_it(
  tmp_path, made_up
):
  alone, _ = ran(tmp_path / 'alone', fidelities=['c0r2s0e8'], chunk=16)
  beside, _ = ran(tmp_path / 'beside')
  for name in ('c0r0s0e8', 'c0r2s0e8'):
    assert alone['scores'][name] == beside['scores'][name]


# The picture.


def test_names_in_the_picture_are_all_there_and_apart():
  rng = np.random.default_rng(0)
  points = {
    f'c{i}r0s0e12': {
      'x': float(np.exp(rng.normal())),
      'y': y,
      'low': y - 0.2,
      'high': y + 0.1,
      'kind': ('channels', 'epochs')[i % 2],
    }
    for i, y in enumerate(rng.uniform(0.2, 0.9, size=12))
  }
  figure = draw.consistency(points, x='seconds', threshold=0.5)
  (axes,) = figure.axes
  assert axes.get_xscale() == 'log' and axes.get_xlabel() == 'seconds'
  texts = {text.get_text(): text for text in axes.texts}
  assert set(texts) == set(points)
  legend = [text.get_text() for text in figure.legends[0].get_texts()]
  assert legend == ['channels', 'epochs']
  figure.draw_without_rendering()
  boxes = [text.get_window_extent() for text in texts.values()]
  for one, other in itertools.combinations(boxes, 2):
    assert not one.overlaps(other)
  with pytest.raises(ValueError, match='nothing to draw'):
    draw.consistency({})


# A real study, as small as can be.

REAL = {
  'examples': 96,
  'valid': 60,
  'channels': 2,
  'networks': 5,
  'chunk': 3,
  'batch': 32,
  'reference': 'c0r0s0e2',
  'fidelities': ['c0r2s0e2', 'c0r0s0e1'],
  'zero_cost': ['params', 'synflow'],
  'resamples': 200,
}


@pytest.mark.slow
def test_a_real_study_and_the_same_resumed(tmp_path, monkeypatch):
  console = quiet()
  whole = proxies.study(REAL, tmp_path / 'whole', console=console)
  assert set(whole['proxies']) == {*REAL['fidelities'], *REAL['zero_cost']}
  scores = whole['scores']['c0r0s0e2']
  assert len(scores) == 5 and all(0 < score < 1 for score in scores)
  assert whole['reference']['examples'] == 2 * 96
  assert whole['proxies']['c0r0s0e1']['examples'] == 96
  net = CELLS.networks(channels=2, layers=3, shape=(8, 8, 1))
  assert whole['scores']['params'] == [
    network.param_count(net.spec(cell)) for cell in whole['networks']
  ]
  real, stored = proxy_columns._store, itertools.count()

  def store(*arguments):
    if next(stored) == 4:
      raise InterruptedError
    real(*arguments)

  monkeypatch.setattr(proxy_columns, '_store', store)
  with pytest.raises(InterruptedError):
    proxies.study(REAL, tmp_path / 'run', console=console)
  resumed = proxies.study(REAL, tmp_path / 'run', console=console)
  assert timeless(resumed) == timeless(whole)
