"""A run's folder: claimed once, resumed from any moment, read back or refused.

The searches here are toys that compile nothing, so that every moment at which
a run can stop is tried; tests/test_launch.py kills a real one.
"""

import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest
import tensorboardX.proto.event_pb2 as event_pb2
from tensorboardX import record_writer

from jaxnas import base, checkpoint, morphisms, network, spec, workdir
from jaxnas.spaces import seeds

SETTINGS = {'seed': 0, 'growth': {'rounds': 3, 'price': 1e-6}}
GENERATIONS = 3
TIMED = ('seconds', 'compilations', 'compiling')
MOVE = morphisms.split({'dense1': [0, 2]}, mass=0.25)


class Stopped(Exception):
  """What stands for the kill."""


def small_net(width: int = 3) -> network.Network:
  net = network.init(seeds.mlp((2,), (width,), 2), jax.random.key(0))
  return network.to_host(net)


def candidate(metric: float | None = None, **fields) -> base.Candidate:
  metrics = {} if metric is None else {'valid_metric': metric}
  return base.Candidate(small_net(), metrics=metrics, **fields)


def drift(before=lambda population: None) -> base.Stage:
  """Adds noise to all weights; counts its calls in its state."""

  def update(key, population, state):
    before(population)
    rng = base.rng(key)
    (member,) = population.members
    variables = jax.tree.map(
      lambda leaf: leaf + rng.normal(size=leaf.shape).astype(leaf.dtype),
      dict(member.net.variables),
    )
    event = base.Event(population.generation, 'move', MOVE, -0.5, -0.25)
    member = member._replace(
      net=network.Network(variables, member.net.spec),
      metrics={'valid_metric': rng.random(), 'calls': state + 1},
      lineage=(*member.lineage, event),
    )
    spent = population.spent.add(examples=10)
    return population._replace(members=(member,), spent=spent), state + 1

  return base.Stage(lambda population: 0, update, 'drift')


def search(name: str = 'drift', stage: base.Stage | None = None, **fields):
  start = base.Population((candidate(),))
  held = workdir.Search(
    name, jax.random.key(7), stage or drift(), start, GENERATIONS
  )
  return held._replace(**fields)


def conducted(folder, *searches, **options):
  """Conducts searches in a claimed folder; returns the last populations."""
  path = workdir.claim(folder, SETTINGS)
  searches = searches or (search(),)
  return [
    workdir.conduct(path, s, settings=SETTINGS, **options) for s in searches
  ]


def rows(folder) -> list[dict]:
  """The lines of metrics.jsonl without what depends on the clock."""
  lines = pathlib.Path(folder, 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in TIMED}
    for line in lines
  ]


def scalars(folder) -> list[tuple[int, str, float]]:
  """What the TensorBoard files of one search hold."""
  found = []
  for path in sorted(pathlib.Path(folder).iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], 'little')
      header, body = data[:8], data[12 : 12 + size]
      crc = int.from_bytes(data[8:12], 'little')
      assert crc == record_writer.masked_crc32c(header)
      event = event_pb2.Event.FromString(body)
      for value in event.summary.value:
        found.append((event.step, value.tag, value.simple_value))
      data = data[16 + size :]
  return found


def same(first, second) -> bool:
  """Whether two networks are equal bit for bit."""
  one, two = (jax.tree.leaves(net.variables) for net in (first, second))
  return first.spec == second.spec and all(
    a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True)
  )


# Claiming a folder.


def test_a_folder_is_made_with_its_parents_and_taken_up_again(tmp_path):
  path = workdir.claim(tmp_path / 'a' / 'b', SETTINGS)
  assert json.loads((path / 'config.json').read_text()) == SETTINGS
  (path / 'metrics.jsonl').write_text('')
  assert workdir.claim(str(path), SETTINGS) == path


def test_other_settings_are_refused_by_name_with_both_values(tmp_path):
  path = workdir.claim(tmp_path, SETTINGS)
  before = (path / 'config.json').read_bytes()
  other = {'growth': {'rounds': 4, 'price': 1e-6}, 'seed': 0, 'new': True}
  with pytest.raises(ValueError) as caught:
    workdir.claim(path, other)
  message = str(caught.value)
  assert 'growth.rounds: stored 3, received 4' in message
  assert 'new: stored nothing, received true' in message
  assert 'price' not in message and 'seed' not in message
  assert str(path) in message
  assert (path / 'config.json').read_bytes() == before


def test_a_folder_of_other_things_is_not_claimed(tmp_path):
  (tmp_path / 'thesis.tex').write_text('years of work')
  with pytest.raises(ValueError, match=r"'thesis.tex'.* no config.json"):
    workdir.claim(tmp_path, SETTINGS)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_kill_while_claiming_leaves_a_folder_that_can_be_claimed(tmp_path):
  (tmp_path / 'config.json.partial').write_text('{"seed"')
  workdir.claim(tmp_path, SETTINGS)
  assert json.loads((tmp_path / 'config.json').read_text()) == SETTINGS


def test_unreadable_settings_are_refused_and_kept(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed": ')
  with pytest.raises(ValueError, match='config.json cannot be read'):
    workdir.claim(tmp_path, SETTINGS)
  assert (tmp_path / 'config.json').read_text() == '{"seed": '


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'file'
  workdir.write_atomically(path, 'old')

  def stop(*arguments):
    raise Stopped

  monkeypatch.setattr(workdir.os, 'replace', stop)
  with pytest.raises(Stopped):
    workdir.write_atomically(path, 'new')
  assert path.read_text() == 'old'


# Conducting a search.


def test_every_generation_is_on_disk_when_it_is_reported(tmp_path):
  seen = []

  def look(held, population):
    assert held.name == 'drift'
    stored = checkpoint.latest(tmp_path / 'checkpoints' / 'drift')
    written = (
      len(rows(tmp_path)) if (tmp_path / 'metrics.jsonl').exists() else 0
    )
    seen.append((population.generation, stored or 0, written))

  (last,) = conducted(tmp_path, report=look)
  assert seen == [(g, g, g) for g in range(GENERATIONS + 1)]
  assert last.generation == GENERATIONS
  assert last.members[0].metrics['calls'] == GENERATIONS


def test_tensorboard_holds_the_numbers_of_metrics_jsonl(tmp_path):
  conducted(tmp_path)
  found = scalars(tmp_path / 'tensorboard' / 'drift')
  for row in rows(tmp_path):
    for name in ('valid_metric', 'examples', 'predicted', 'measured'):
      value = np.float32(row[name])
      assert (row['generation'], name, value) in found
  assert {step for step, _, _ in found} == {1, 2, 3}


def test_old_checkpoints_go_and_the_last_are_kept(tmp_path):
  conducted(tmp_path, keep=2)
  folder = tmp_path / 'checkpoints' / 'drift'
  assert sorted(p.name for p in folder.iterdir()) == ['2', '3']


def test_a_finished_search_does_nothing_but_report(tmp_path):
  (last,) = conducted(tmp_path)
  before = _files(tmp_path)

  def refuse(population):
    raise AssertionError('trained again')

  reported = []
  (again,) = conducted(
    tmp_path,
    search(stage=drift(refuse)),
    report=lambda held, population: reported.append(population.generation),
  )
  assert reported == [GENERATIONS]
  assert same(again.members[0].net, last.members[0].net)
  assert again.spent == last.spent
  assert _files(tmp_path) == before


def _files(folder) -> dict[str, bytes]:
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in pathlib.Path(folder).rglob('*')
    if p.is_file()
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """Two searches that were never stopped, and the rows they left."""
  folder = tmp_path_factory.mktemp('whole')
  lasts = conducted(folder, search('first'), search('second'))
  return lasts, rows(folder)


def _during(generation, monkeypatch):
  """Stops inside a stage."""
  del monkeypatch

  def stop(population):
    if population.generation == generation - 1:
      raise Stopped

  return drift(stop), None


def _reporting(generation, monkeypatch):
  """Stops when everything of the generation is on disk."""
  del monkeypatch

  def stop(held, population):
    if population.generation == generation:
      raise Stopped

  return drift(), stop


def _unsaved(generation, monkeypatch):
  """Stops between the line of metrics and the checkpoint."""
  real = checkpoint.save

  def stop(directory, step, value, **options):
    if step == generation:
      raise Stopped
    real(directory, step, value, **options)

  monkeypatch.setattr(workdir.checkpoint, 'save', stop)
  return drift(), None


def _half_written(generation, monkeypatch):
  """Stops in the middle of a line of metrics."""
  real = workdir.json.dumps

  class HalfWritten(str):
    def __add__(self, end):
      return self[: len(self) // 2]

  def dumps(value, **options):
    text = real(value, **options)
    if isinstance(value, dict) and value.get('generation') == generation:
      return HalfWritten(text)
    return text

  stage, report = _unsaved(generation, monkeypatch)
  monkeypatch.setattr(workdir.json, 'dumps', dumps)
  return stage, report


@pytest.mark.parametrize(
  'moment', [_during, _reporting, _unsaved, _half_written]
)
@pytest.mark.parametrize(
  ('victim', 'generation'),
  [('first', 1), ('first', 2), ('second', 1), ('second', GENERATIONS)],
)
def test_a_search_stopped_at_any_moment_ends_as_one_never_stopped(
  tmp_path, whole, victim, moment, generation
):
  if victim == 'second':
    conducted(tmp_path, search('first'))
  with pytest.MonkeyPatch.context() as patch:
    stage, report = moment(generation, patch)
    with pytest.raises(Stopped):
      conducted(tmp_path, search(victim, stage), report=report)
  lasts = conducted(tmp_path, search('first'), search('second'))
  for ours, theirs in zip(lasts, whole[0], strict=True):
    assert same(ours.members[0].net, theirs.members[0].net)
    assert ours.members[0].metrics == theirs.members[0].metrics
    assert ours.members[0].lineage == theirs.members[0].lineage
    assert ours.spent.examples == theirs.spent.examples
  assert rows(tmp_path) == whole[1]
  steps = {
    (step, tag) for step, tag, _ in scalars(tmp_path / 'tensorboard' / victim)
  }
  assert (GENERATIONS, 'valid_metric') in steps


def test_a_deleted_checkpoint_is_made_again_from_the_one_before(
  tmp_path, whole
):
  conducted(tmp_path, search('first'), search('second'))
  shutil.rmtree(tmp_path / 'checkpoints' / 'first' / str(GENERATIONS))
  lasts = conducted(tmp_path, search('first'), search('second'))
  assert same(lasts[0].members[0].net, whole[0][0].members[0].net)
  order = [(row['search'], row['generation']) for row in rows(tmp_path)]
  assert sorted(order) == [
    (row['search'], row['generation']) for row in whole[1]
  ]


def test_a_damaged_checkpoint_is_refused_and_everything_kept(tmp_path):
  conducted(tmp_path)
  step = tmp_path / 'checkpoints' / 'drift' / str(GENERATIONS)
  manifest = step / 'manifest' / 'metadata'
  manifest.write_bytes(manifest.read_bytes()[:-20])
  before = _files(tmp_path)
  with pytest.raises(ValueError) as caught:
    conducted(tmp_path)
  message = str(caught.value)
  assert f'the checkpoint {step} cannot be trusted' in message
  assert f'delete it to resume from the previous one, {step.parent / "2"}' in (
    message
  )
  assert _files(tmp_path) == before


# Summaries.


def test_the_leader_has_the_best_metric_and_is_the_first_among_equals():
  members = [candidate(0.5, born=0), candidate(0.7, born=1)]
  members += [candidate(0.7, born=2), candidate(0.1, born=3)]
  assert workdir.leader(base.Population(tuple(members))).born == 1


@pytest.mark.parametrize('worse', [math.nan, None, -math.inf])
def test_a_member_without_a_number_does_not_lead(worse):
  members = (candidate(worse, born=0), candidate(0.0, born=1))
  assert workdir.leader(base.Population(members)).born == 1
  assert workdir.leader(base.Population(members[:1])).born == 0


def test_an_empty_population_has_no_leader():
  with pytest.raises(ValueError, match='empty population'):
    workdir.leader(base.Population(()))


def test_a_summary_row_is_json_of_the_leader_and_the_cost():
  moved = base.Event(4, 'move', MOVE, -0.5, -0.25)
  metrics = {
    'valid_metric': 0.75,
    'params': 12,
    'coefficients': np.ones(3),
    'note': 'text',
  }
  leading = candidate(lineage=(base.Event(3, 'rejected', MOVE), moved))
  population = base.Population(
    (candidate(0.5), leading._replace(metrics=metrics)),
    5,
    base.Cost(100, 20, 3, 1.5, 0.75),
  )
  assert json.loads(json.dumps(workdir.summary_row(population))) == {
    'generation': 5,
    'members': 2,
    'valid_metric': 0.75,
    'params': 12,
    'note': 'text',
    'examples': 100,
    'evaluations': 20,
    'compilations': 3,
    'seconds': 1.5,
    'compiling': 0.75,
    'widths': {'dense1': 3},
    'event': 'move',
    'move': spec.encode(MOVE),
    'predicted': -0.5,
    'measured': -0.25,
  }


def test_a_divergence_is_in_the_row_beside_a_move_of_the_same_generation():
  lineage = (base.Event(0, 'diverged'), base.Event(0, 'move', MOVE, 0.0, 1.0))
  row = workdir.summary_row(
    base.Population((candidate(0.5, lineage=lineage),), 1)
  )
  assert row['diverged'] and row['event'] == 'move' and row['measured'] == 1.0
  row = workdir.summary_row(
    base.Population((candidate(0.5, lineage=lineage[:1]),), 1)
  )
  assert row['diverged'] and row['event'] == 'diverged'


# Networks on disk.


def test_a_network_comes_back_bit_for_bit(tmp_path):
  net = network.to_host(
    network.init(seeds.chain((4, 4, 1), (2, 'M', 3), 2), jax.random.key(1))
  )
  workdir.save_network(tmp_path / 'best', net)
  read = workdir.load_network(tmp_path / 'best')
  assert same(read, net)
  assert jax.tree.structure(dict(read.variables)) == jax.tree.structure(
    dict(net.variables)
  )


def test_the_same_network_gives_the_same_bytes(tmp_path):
  net = small_net()

  def reordered(tree):
    if not isinstance(tree, dict):
      return tree
    return {name: reordered(tree[name]) for name in sorted(tree, reverse=True)}

  other = network.Network(reordered(dict(net.variables)), net.spec)
  on_device = network.Network(jax.device_put(dict(net.variables)), net.spec)
  for name, held in (('a', net), ('b', other), ('c', on_device)):
    workdir.save_network(tmp_path / name, held)
  workdir.save_network(tmp_path / 'a', net)
  first = _files(tmp_path / 'a')
  assert first.keys() == {'spec.json', 'weights.msgpack'}
  assert first == _files(tmp_path / 'b') == _files(tmp_path / 'c')


def test_saving_again_replaces_the_folder_as_a_whole(tmp_path):
  workdir.save_network(tmp_path / 'best', small_net(3))
  (tmp_path / 'best' / 'stale').write_text('')
  (tmp_path / 'best.partial').mkdir()  # Left over by a kill.
  (tmp_path / 'best.partial' / 'junk').write_text('')
  workdir.save_network(tmp_path / 'best', small_net(4))
  assert _files(tmp_path / 'best').keys() == {'spec.json', 'weights.msgpack'}
  assert [p.name for p in tmp_path.iterdir()] == ['best']
  assert same(workdir.load_network(tmp_path / 'best'), small_net(4))


def _other_weights(path):
  workdir.save_network(path.parent / 'other', small_net(5))
  shutil.copy(path.parent / 'other' / 'weights.msgpack', path)


def _other_layers(path):
  net = network.init(seeds.mlp((2,), (3, 3), 2), jax.random.key(0))
  workdir.save_network(path.parent / 'other', net)
  shutil.copy(path.parent / 'other' / 'weights.msgpack', path)


def _truncate(name):
  def damage(path):
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])

  return damage


def _remove(name):
  return lambda path: (path / name).unlink()


def _garbage(name):
  return lambda path: (path / name).write_bytes(b'\xff\x00 no network')


def _empty(name):
  return lambda path: (path / name).write_bytes(b'')


def _scalar(path):
  (path / 'weights.msgpack').write_bytes(b'\x01')  # The number 1.


def _list(path):
  (path / 'spec.json').write_text('[1, 2]')


@pytest.mark.parametrize(
  ('damage', 'says'),
  [
    (_other_weights, r"'dense1'.*should have shape \(3,\) and has \(5,\)"),
    (_other_layers, r"'dense2'.*should have shape"),
    *(
      (make(name), 'holds no readable network')
      for name in ('spec.json', 'weights.msgpack')
      for make in (_remove, _truncate, _garbage, _empty)
    ),
    (_scalar, 'holds no readable network'),
    (_list, 'holds no readable network'),
    (shutil.rmtree, 'holds no readable network'),
  ],
)
def test_what_is_no_whole_network_is_refused(tmp_path, damage, says):
  folder = tmp_path / 'best'
  workdir.save_network(folder, small_net())
  damage(folder)
  with pytest.raises(ValueError, match=says) as caught:
    workdir.load_network(folder)
  assert str(folder) in str(caught.value)
