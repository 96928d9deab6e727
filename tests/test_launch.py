"""`launch/train.py` as a command: its flags, its errors, and being killed.

Most commands run in forks of one process that has imported JAX already; the
slow test starts Python for each, as a user does.
"""

import hashlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN = ROOT / 'launch' / 'train.py'
DIGITS = f'--config={ROOT}/configs/growth_digits.py'
CIFAR10 = f'--config={ROOT}/configs/growth_cifar10.py'
# Growth of seconds; the baselines get as many examples.
TINY = (
  DIGITS,
  '--config.epochs=1',
  '--config.growth.price=0.0',
  '--config.growth.limit=1',
  '--config.growth.steps=2',
  '--config.growth.learn_examples=128',
  '--config.growth.score_examples=128',
)
FAST = (
  *TINY,
  '--config.net.name=mlp',
  '--config.net.widths=6-6',
  '--config.generations=4',
  '--config.growth.rounds=1',
)
SLOW = (
  *TINY,
  '--config.net.widths=4-M-4',
  '--config.generations=12',
  '--config.growth.rounds=3',
)
TIMED = ('compilations', 'seconds', 'compiling')


class Ended(NamedTuple):
  code: int
  out: str
  err: str


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """Where compiled programs are kept: between runs, if pytest keeps any."""
  kept = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  return pathlib.Path(kept or tmp_path_factory.mktemp('xla'))


@pytest.fixture(scope='module')
def start(cache):
  """Starts the command in a fork: `start(folder, *arguments) -> process`."""
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(['jaxnas.jobs', 'ml_collections', 'sklearn'])
  started = []

  def begin(folder, *arguments):
    process = context.Process(
      target=_command,
      args=(folder, (f'--compilation_cache={cache}', *arguments)),
    )
    started.append(process)
    process.start()
    return process

  yield begin
  for process in started:
    process.kill()
    process.join()


def _command(folder, arguments):
  """`python launch/train.py ARGUMENTS`, in a folder, with output to files."""
  import jax

  # Programs here are small, and mostly compiled for the first time.
  jax.config.update('jax_disable_most_optimizations', True)
  for stream, name in ((1, 'out'), (2, 'err')):
    file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, stream)
  os.chdir(ROOT)
  sys.argv = [str(TRAIN), *arguments]
  runpy.run_path(str(TRAIN), run_name='__main__')


@pytest.fixture
def command(start, tmp_path):
  """Runs the command to its end: `command(*arguments) -> Ended`."""

  def run(*arguments):
    process = start(tmp_path, *arguments)
    process.join()
    out, err = ((tmp_path / name).read_text() for name in ('out', 'err'))
    return Ended(process.exitcode, out, err)

  return run


def files(folder) -> dict[str, str]:
  """A checksum for every file of a folder."""
  return {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob('*'))
    if path.is_file()
  }


def timeless(tree):
  """Nested dicts and lists without what depends on clock and caches."""
  if isinstance(tree, dict):
    return {k: timeless(v) for k, v in tree.items() if k not in TIMED}
  return [timeless(v) for v in tree] if isinstance(tree, list) else tree


def lines(folder) -> list[bytes]:
  """The complete lines of metrics.jsonl, perhaps while it is written."""
  try:
    return (folder / 'metrics.jsonl').read_bytes().split(b'\n')[:-1]
  except FileNotFoundError:
    return []


def found(folder):
  """All that must be the same of two runs."""
  return {
    'best': files(folder / 'best'),
    'summary': timeless(json.loads((folder / 'summary.json').read_text())),
    'metrics': timeless([json.loads(line) for line in lines(folder)]),
  }


def refused(ended: Ended) -> str:
  """The message of a run that was refused as it should be: clearly, at once."""
  assert ended.code == 1, ended
  assert 'Traceback' not in ended.err, ended.err
  assert len(ended.err.splitlines()) <= 24, ended.err
  assert ended.out == ''
  return ended.err


@pytest.mark.parametrize(
  ('arguments', 'says'),
  [
    (['--config.nonsense=1'], "no such setting: 'nonsense'"),
    ([DIGITS, '--config.growth.roundz=1'], 'Did you mean "rounds"'),
    ([CIFAR10, '--config.seed.x=1'], 'no such setting: .*seed.x'),
    (['--config.batch=many'], "--config.batch=many: .*'many'"),
    (['--nonsense=1'], "Unknown command line flag 'nonsense'"),
    (['stray'], r"unexpected arguments: \['stray'\]"),
    ([f'--config={ROOT}/configs/none.py'], 'configs/none.py'),
    ([f'--config={ROOT}/pyproject.toml'], 'pyproject.toml'),
    (
      ['--config.net.name=resnet', '--config.net.width=-3'],
      '--config.net.width must be at least 1, got -3',
    ),
    (['--config.net.widths=-4-M'], "--config.net.widths .*got '-4-M'"),
    (['--config.net.name=lenet'], "chain, cells, mlp, .*got 'lenet'"),
    (['--config.optimizer.name=lion'], "'adamw' or 'sgd', got 'lion'"),
    (['--config.batch=0'], '--config.batch must be at least 1, got 0'),
    (
      ['--config.job=grow'],
      "--config.job must be one of growth, race, .*, got 'grow'",
    ),
    ([CIFAR10, '--config.data_dir=nowhere'], 'download_and_prepare'),
    ([CIFAR10, '--config.dataset=cifar1'], "no set 'cifar1'"),
    (['--data_devices=3'], 'must divide the number of devices, 1, got 3'),
    (['--processes=2'], 'go together; got None, 2 and None'),
    (
      ['--coordinator=localhost:1', '--processes=2', '--process=2'],
      'from 0 to N - 1, go together; got localhost:1, 2 and 2',
    ),
  ],
  ids=lambda value: value[-1].split('/')[-1] if type(value) is list else '',
)
def test_bad_input_is_refused_in_a_few_lines_and_nothing_is_made(
  command, tmp_path, arguments, says
):
  if CIFAR10 in arguments:
    pytest.importorskip('tensorflow_datasets', reason='needs jaxnas[tfds]')
  ended = command(*arguments, f'--workdir={tmp_path}/run')
  if arguments == ['stray']:  # absl prints its usage on standard output.
    ended = ended._replace(out='')
  assert re.search(says, refused(ended)), ended.err
  assert not (tmp_path / 'run').exists()


def test_a_run_needs_a_folder(command):
  assert 'workdir must have a value' in refused(command())


def test_a_file_is_no_folder(command, tmp_path):
  (tmp_path / 'file').write_text('mine')
  assert 'file' in refused(command(f'--workdir={tmp_path}/file'))
  assert (tmp_path / 'file').read_text() == 'mine'


def test_a_folder_of_other_things_is_kept(command, tmp_path):
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'thesis.tex').write_text('years')
  message = refused(command(f'--workdir={tmp_path}/run'))
  assert "'thesis.tex'" in message and 'give an empty or new' in message
  assert files(tmp_path / 'run').keys() == {'thesis.tex'}


def test_debug_shows_where_an_error_came_from(command, tmp_path):
  ended = command('--debug', '--config.batch=0', f'--workdir={tmp_path}/run')
  assert ended.code == 1
  assert 'Traceback' in ended.err and 'settings.py' in ended.err


def _received(command, folder, *arguments) -> dict[str, str]:
  """The settings that a command comes to: a folder with none refuses all."""
  folder.mkdir()
  (folder / 'config.json').write_text('{}')
  message = refused(command(*arguments, f'--workdir={folder}'))
  pattern = r'([\w.]+): stored nothing, received ([^;]+?)(?:;|\. Start)'
  return dict(re.findall(pattern, message))


def test_flags_are_stronger_than_quick(command, tmp_path):
  plain = _received(command, tmp_path / 'plain')
  quick = _received(command, tmp_path / 'quick', '--config.quick')
  assert quick['generations'] != plain['generations']
  given = _received(
    command,
    tmp_path / 'given',
    '--config.quick',
    '--config.generations=7',
    '--config.growth.rounds=5',
  )
  assert given == {**quick, 'generations': '7', 'growth.rounds': '5'}
  # Not so for a value that `quick` is told to put in its place.
  told = _received(
    command,
    tmp_path / 'told',
    '--config.quick',
    '--config.when_quick.generations=9',
  )
  assert told == {**quick, 'generations': '9'}


def kill_at(process, folder, rows: int, later: float) -> bool:
  """SIGKILL `later` seconds after metrics.jsonl has so many rows.

  Returns whether the process was still running.
  """
  poll = getattr(process, 'poll', None) or (lambda: process.exitcode)
  while poll() is None and len(lines(folder)) < rows:
    time.sleep(0.002)
  time.sleep(later)
  alive = poll() is None
  process.kill()
  process.wait() if hasattr(process, 'wait') else process.join()
  return alive


@pytest.fixture(scope='module')
def whole(start, tmp_path_factory):
  """A small run that was never killed."""
  folder = tmp_path_factory.mktemp('whole')
  process = start(folder, *FAST, f'--workdir={folder}/run')
  process.join()
  assert process.exitcode == 0, (folder / 'err').read_text()
  return folder / 'run'


def test_a_killed_run_ends_as_one_never_killed(whole, start, command, tmp_path):
  """Killed while it grows, and in the last baseline."""
  folder, count = tmp_path / 'run', len(lines(whole))
  for rows, later in ((2, 0.01), (count - 3, 0.05)):
    process = start(tmp_path, *FAST, f'--workdir={folder}')
    assert kill_at(process, folder, rows, later)
  assert not (folder / 'summary.json').exists()
  ended = command(*FAST, f'--workdir={folder}')
  assert ended.code == 0 and ended.err == '', ended
  assert 'final_from_scratch: resuming after generation' in ended.out
  assert found(folder) == found(whole)


def test_a_finished_run_prints_its_table_again_and_does_no_more(whole, command):
  before = files(whole)
  ended = command(*FAST, f'--workdir={whole}')
  assert ended.code == 0 and ended.err == '', ended
  assert 'Results on the test split' in ended.out
  accuracy = json.loads((whole / 'summary.json').read_text())['test_accuracy']
  assert f'{accuracy:.4f}' in ended.out
  assert files(whole) == before


def test_changed_settings_are_refused_with_both_values(whole, command):
  before = files(whole)
  message = refused(
    command(
      *FAST,
      '--config.generations=5',
      '--config.optimizer.name=sgd',
      f'--workdir={whole}',
    )
  )
  assert 'generations: stored 4, received 5' in message
  assert 'optimizer.name: stored "adamw", received "sgd"' in message
  assert 'Start in a fresh working directory' in message
  assert files(whole) == before


def test_a_damaged_checkpoint_is_refused_with_what_to_do(
  whole, command, tmp_path
):
  subprocess.run(['cp', '-r', whole, tmp_path / 'run'], check=True)
  step = tmp_path / 'run' / 'checkpoints' / 'growth' / '4'
  for path in step.glob('arrays/**/d/*'):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  before = files(tmp_path / 'run')
  ended = command(*FAST, f'--workdir={tmp_path}/run')
  message = refused(ended._replace(out=''))
  assert f'the checkpoint {step} cannot be trusted' in message
  assert f'delete it to resume from the previous one, {step.parent / "3"}' in (
    message
  )
  assert files(tmp_path / 'run') == before


@pytest.mark.slow
@pytest.mark.parametrize(
  'job',
  [
    FAST,
    (
      f'--config={ROOT}/configs/pbt_nas_teacher.py',
      *('--config.members.size=8', '--config.members.steps=10'),
      *('--config.members.arms=pbt_nas', '--config.generations=4'),
    ),
  ],
  ids=['networks', 'arrays'],
)
def test_two_processes_make_the_run_of_one_and_go_on_where_they_were_killed(
  job, tmp_path
):
  """Of two devices each: the first writes, both know what it wrote."""

  def begin(folder, count, *more):
    with socket.socket() as free:
      free.bind(('localhost', 0))
      address = f'localhost:{free.getsockname()[1]}'
    environment = {k: v for k, v in os.environ.items() if 'JAX_' not in k} | {
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': str(ROOT),
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={4 // count}',
    }
    processes = []
    for i in range(count):
      joined = (
        *(f'--coordinator={address}', f'--processes={count}'),
        f'--process={i}',
      )
      command = [
        *(sys.executable, TRAIN, *job, f'--workdir={folder}', *more),
        *('--compilation_cache=', *(joined if count > 1 else ())),
      ]
      with (
        (tmp_path / f'out{i}').open('w') as out,
        (tmp_path / f'err{i}').open('w') as err,
      ):
        processes.append(
          subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=out, stderr=err
          )
        )
    return processes

  def ended(processes):
    return [process.wait() for process in processes]

  assert ended(begin(tmp_path / 'one', 1)) == [0]
  first, second = begin(tmp_path / 'two', 2)
  assert kill_at(first, tmp_path / 'two', 2, 0.05)
  second.kill()
  assert ended([first, second]) == [-signal.SIGKILL] * 2
  assert len(lines(tmp_path / 'two')) < len(lines(tmp_path / 'one'))
  # Other settings: both are refused, and neither waits for the other.
  assert ended(begin(tmp_path / 'two', 2, '--config.seed=1')) == [1, 1]
  assert 'seed: stored 0, received 1' in (tmp_path / 'err0').read_text()
  assert 'the first process has failed' in (tmp_path / 'err1').read_text()
  assert ended(begin(tmp_path / 'two', 2)) == [0, 0]
  assert 'resuming after generation' in (tmp_path / 'out0').read_text()
  said = (tmp_path / 'out1').read_text().splitlines()
  assert all(line.startswith('[Gloo]') for line in said)
  assert found(tmp_path / 'two') == found(tmp_path / 'one')


@pytest.mark.slow
def test_devices_that_share_images_change_no_more_than_rounding(
  tmp_path, monkeypatch
):
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=2')
  curves = []
  for devices in (1, 2):
    folder = tmp_path / str(devices)
    process = subprocess.run(
      [
        *(sys.executable, TRAIN, *FAST, '--compilation_cache='),
        *(f'--workdir={folder}', f'--data_devices={devices}'),
      ],
      cwd=ROOT,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
      capture_output=True,
    )
    assert process.returncode == 0, process.stderr
    rows = [json.loads(line) for line in lines(folder)]
    curves.append([row['train_loss'] for row in rows if 'train_loss' in row])
  one, two = curves
  assert one != two  # Or nothing was shared.
  assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.slow
def test_a_run_killed_at_10_random_moments_ends_as_one_never_killed(
  cache, tmp_path
):
  """Real processes and real kills, of a convolutional network that grows."""
  environment = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_COMPILATION_CACHE_DIR': str(cache),
  }

  def begin(folder):
    with (tmp_path / 'err').open('w') as err:
      return subprocess.Popen(
        [
          *(sys.executable, TRAIN, *SLOW),
          *(f'--compilation_cache={cache}', f'--workdir={folder}'),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=err,
      )

  began = time.monotonic()
  process = begin(tmp_path / 'whole')
  assert process.wait() == 0, (tmp_path / 'err').read_text()
  count = len(lines(tmp_path / 'whole'))
  rng = random.Random(0)
  # Rows at which to stop, in order, and seconds after them: the first kill is
  # while Python starts, later ones in a growing generation or a short one.
  moments = [(0, rng.uniform(0, 5))] + [
    (rows, rng.uniform(0, 3 if rows < 3 else 0.3))
    for rows in (rng.randrange(3), *sorted(rng.sample(range(3, count - 4), 8)))
  ]
  folder = tmp_path / 'killed'
  for rows, later in moments:
    assert kill_at(begin(folder), folder, rows, later), (
      (rows, later),
      (tmp_path / 'err').read_text(),
    )
    print(f'killed {later:.2f} s after row {rows}: {len(lines(folder))} rows')
  process = begin(folder)
  assert process.wait() == 0, (tmp_path / 'err').read_text()
  assert found(folder) == found(tmp_path / 'whole')
  print(f'{count} rows, {time.monotonic() - began:.0f} s')
