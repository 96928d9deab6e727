"""What a person sees of a run: lines, tables, and the report of a folder."""

import base64
import io
import json
import re
import struct
import sys

import pytest
import rich.console

from jaxnas import draw, morphisms, network, report, spec, workdir
from jaxnas.base import Candidate, Cost, Event, Population
from jaxnas.spaces import seeds

SEED = seeds.chain((8, 8, 1), (4, 'M', 4), 10)
GROWN = seeds.chain((8, 8, 1), (6, 'M', 5), 10)
SPLIT = morphisms.split({'conv1': [0, 3], 'conv2': [1]})


def population(generation: int, *events: Event, **metrics) -> Population:
  member = Candidate(
    network.Network({}, GROWN), metrics=metrics, lineage=tuple(events)
  )
  spent = Cost(
    examples=4992, evaluations=3, compilations=12, seconds=5.8, compiling=3.9
  )
  return Population((member,), generation, spent)


def search(generations: int) -> workdir.Search:
  return workdir.Search('growth', None, None, None, generations)


def printed(*, width: int = 200) -> tuple[rich.console.Console, io.StringIO]:
  file = io.StringIO()
  return rich.console.Console(file=file, width=width), file


@pytest.mark.parametrize(
  ('event', 'words'),
  [
    (Event(0, 'diverged'), 'diverged'),
    (Event(0, 'move', SPLIT), 'split 2 in conv1, 1 in conv2'),
    (Event(0, 'move', SPLIT, -0.5), 'split 2 in conv1, 1 in conv2'),
    (
      Event(0, 'rejected', SPLIT, -0.5, 0.25),
      'rejected: split 2 in conv1, 1 in conv2 (loss -0.5000 predicted, '
      '+0.2500 measured)',
    ),
    (
      Event(
        0, 'move', morphisms.compose(SPLIT, morphisms.prune({'conv2': [0]}))
      ),
      'split 2 in conv1, 1 in conv2 and prune 1 in conv2',
    ),
    (Event(0, 'move', morphisms.identity()), 'identity'),
  ],
)
def test_events_in_words(event, words):
  assert report.describe(event) == words


def test_a_generation_in_one_line():
  events = (Event(0, 'move', SPLIT), Event(1, 'rejected', SPLIT))
  metrics = {'valid_metric': 0.875, 'train_loss': 0.25, 'params': 12345}
  line = report.generation_line(
    search(20), population(2, *events, **metrics), 63.2
  )
  for part in (
    '2/20',
    '87.5 %',
    '0.250',
    '12,345',
    '12 in 4 s',
    '6 s, 63 s left',
  ):
    assert part in line
  # Only what happened in this generation.
  assert line.count('split') == 1 and 'rejected: split' in line
  assert '\n' not in line


def test_a_generation_without_measurements_has_a_line():
  assert 'nan' in report.generation_line(search(20), population(1), 0.0)


def test_results_have_a_row_for_each_network():
  row = {'compilations': 3, 'seconds': 12.34, 'compiling': 8.76}
  table = report.results(
    {
      'grown': {
        **row,
        'test_accuracy': 0.98765,
        'params': 1234,
        'examples': 5e3,
      },
      'seed': {**row, 'test_accuracy': 0.5, 'params': 398, 'examples': 6000},
    }
  )
  console, file = printed()
  console.print(table)
  (grown,) = [line for line in file.getvalue().splitlines() if 'grown' in line]
  for number in ('0.9877', '1,234', '5,000', '3 in 9 s', '12.3'):
    assert number in grown
  assert '0.5000' in file.getvalue() and '398' in file.getvalue()


def test_results_without_the_time_of_compiling_have_a_gap():
  row = {
    'test_accuracy': 0.5,
    'params': 398,
    'examples': 6000,
    'compilations': 3,
    'seconds': 12.34,
  }
  console, file = printed()
  console.print(report.results({'seed': row}))
  (line,) = [line for line in file.getvalue().splitlines() if 'seed' in line]
  numbers = re.findall('[0-9.,]+', line)
  assert numbers == ['0.5000', '398', '6,000', '3', '12.3']


def test_widths_are_those_that_can_change():
  assert report.widths(GROWN) == '6-5'
  assert report.widths(seeds.resnet(10, blocks=1)) == '16-16-32-32-64-64'


def test_progress_without_a_terminal_is_plain_lines():
  console, file = printed()
  with report.progress(console) as show:
    show(search(3), population(0))
    show(search(3), population(1, valid_metric=0.5))
    show(search(3), population(2, valid_metric=0.75))
  text = file.getvalue()
  assert '\x1b' not in text and '\r' not in text
  first, second, third = text.splitlines()
  assert first == 'growth: starting of 3'
  assert '1/3' in second and '50.0 %' in second
  assert '2/3' in third and '75.0 %' in third


def test_progress_says_where_it_resumes():
  console, file = printed()
  with report.progress(console) as show:
    show(search(9), population(4))
  assert file.getvalue() == 'growth: resuming after generation 4 of 9\n'


def test_progress_does_not_break_lines_of_a_narrow_log():
  console, file = printed(width=40)
  with report.progress(console) as show:
    show(search(3), population(0))
    show(search(3), population(1, Event(0, 'move', SPLIT)))
  assert len(file.getvalue().splitlines()) == 2


def test_progress_thins_out_generations_that_only_train():
  console, file = printed()
  with report.progress(console) as show:
    show(search(105), population(0))
    for generation in range(1, 106):
      moved = (Event(6, 'move', SPLIT),) if generation >= 7 else ()
      show(search(105), population(generation, *moved))
  shown = re.findall(r'^ *(\d+)/105', file.getvalue(), re.MULTILINE)
  assert '7' in shown and '105' in shown
  assert len(shown) < 15
  assert file.getvalue().count('split') == 1


def test_rows_hold_widths():
  row = workdir.summary_row(population(1, valid_metric=0.5))
  assert json.loads(json.dumps(row))['widths'] == {'conv1': 6, 'conv2': 5}


# The report of a folder.

SETTINGS = {'seed': 3, 'generations': 2, 'growth': {'price': 1e-6}}
SUMMARY = {
  'test_accuracy': 0.63231,
  'params': 1440,
  'examples': 14592,
  'compilations': 17,
  'seconds': 12.63,
  'compiling': 9.87,
  'baselines': {
    'seed_same_examples': {
      'test_accuracy': 0.59331,
      'params': 398,
      'examples': 14976,
      'compilations': 2,
      'seconds': 1.33,
    }
  },
}


def metrics(name: str, generation: int, **more) -> dict:
  return {
    'search': name,
    'generation': generation,
    'valid_metric': generation / 10,
    'params': 100 * generation,
    'widths': {'conv1': 4 + generation, 'conv2': 4},
    'examples': 5000 * generation,
    'evaluations': 7,
    'compilations': 11,
    'seconds': 321.5,
    'compiling': 123.45,
    **more,
  }


MADE = {
  'event': 'move',
  'move': spec.encode(SPLIT),
  'predicted': -0.0341,
  'measured': 0.0011,
}


@pytest.fixture
def folder(tmp_path):
  """A folder as a finished job leaves it."""
  path = workdir.claim(tmp_path / 'run', SETTINGS)
  rows = [
    metrics('growth', 1, **MADE),
    metrics('growth', 2),
    metrics('seed_same_examples', 1),
  ]
  (path / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  (path / 'seed.json').write_text(spec.to_json(SEED))
  (path / 'best').mkdir()
  (path / 'best' / 'spec.json').write_text(spec.to_json(GROWN))
  (path / 'summary.json').write_text(json.dumps(SUMMARY))
  return path


def pictures(page: str) -> dict[str, bytes]:
  """The embedded PNG files by their alternative text."""
  found = re.findall(r'alt="([^"]*)" src="data:image/png;base64,([^"]*)"', page)
  return {title: base64.b64decode(data) for title, data in found}


def cells(page: str) -> list[list[str]]:
  """The cells of all tables, row by row."""
  rows = re.findall(r'<tr>(.*?)</tr>', page)
  return [re.findall(r'<t[dh][^>]*>(.*?)</t[dh]>', row) for row in rows]


def test_report_of_a_finished_run(folder):
  path = report.html(folder)
  assert path == folder / 'report.html'
  page = path.read_text()
  assert 'The run is finished.' in page
  rows = cells(page)
  assert ['grown', '0.6323', '1,440', '14,592', '17', '12.6', '9.9'] in rows
  # Of this network it is not known how long compiling took.
  seed = ['seed same examples', '0.5933', '398', '14,976', '2', '1.3', '']
  assert seed in rows
  assert ['1', 'split 2 in conv1, 1 in conv2', '-0.0341', '+0.0011'] in rows
  cost = ['7', '11', '321.5', '123.5']
  assert ['growth', '2', '10,000', *cost] in rows
  assert ['seed same examples', '1', '5,000', *cost] in rows
  assert ['growth.price', '1e-06'] in rows


def test_report_holds_its_pictures(folder):
  found = pictures(report.html(folder).read_text())
  assert len(found) == 5
  for picture in found.values():
    assert picture.startswith(b'\x89PNG')
    width, height = struct.unpack('>II', picture[16:24])
    assert width > 500 and height > 100
  assert {'Layers and channel groups; widths 6-5'} <= set(found)
  assert {'Layers and channel groups; widths 4-4'} <= set(found)


def test_report_shows_widths_from_the_seed_on(folder, monkeypatch):
  starts = []
  widths = draw.widths

  def spy(rows, start):
    starts.append(start)
    return widths(rows, start=start)

  monkeypatch.setattr(draw, 'widths', spy)
  report.html(folder)
  assert starts == [{'conv1': 4, 'conv2': 4}]


def test_report_says_all_letters_in_ascii(folder):
  (folder / 'config.json').write_text(json.dumps({'place': 'Zürich'}))
  page = report.html(folder).read_text()
  assert 'Z&#252;rich' in page


def test_report_needs_nothing_else(folder):
  page = report.html(folder).read_bytes()
  page.decode('ascii')
  text = re.sub(rb'base64,[^"]*', b'', page).decode()
  assert not re.search(r'https?:|<script|<link|<iframe|@import|url\(', text)
  assert set(re.findall(r'src="([^"]*)"', text)) == {'data:image/png;'}


def test_report_of_the_same_folder_is_the_same(folder):
  first = report.html(folder).read_bytes()
  assert report.html(folder).read_bytes() == first


def test_report_escapes_what_it_did_not_write(folder):
  bad = '<script>alert("&")</script>'
  (folder / 'config.json').write_text(json.dumps({bad: bad}))
  row = metrics(bad, 1, event=bad, move={'type': f'{bad}:x'}, widths={bad: 3})
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  (folder / 'summary.json').write_text(
    json.dumps({'test_accuracy': bad, bad: 1, 'baselines': {bad: {}}})
  )
  place = folder.rename(folder.with_name('<b>run'))
  page = report.html(place).read_text()
  assert '<script' not in page and '<b>' not in page
  assert page.count('&lt;script&gt;') > 5


def test_report_before_the_first_generation(tmp_path):
  path = workdir.claim(tmp_path, SETTINGS)
  page = report.html(path).read_text()
  assert 'not finished: no generation is complete yet' in page
  assert not pictures(page)
  assert ['seed', '3'] in cells(page)


def test_report_of_a_run_that_was_killed(folder):
  for name in ('summary.json', 'best/spec.json'):
    (folder / name).unlink()
  line = json.dumps(metrics('growth', 1, **MADE))
  (folder / 'metrics.jsonl').write_text(f'{line}\n{line[:40]}')
  page = report.html(folder).read_text()
  assert (
    'not finished: the last complete generation is 1 of 2 of growth' in page
  )
  assert 'Results on the test split' not in page
  assert ['growth', '1', '5,000', '7', '11', '321.5', '123.5'] in cells(page)
  assert len(pictures(page)) == 4


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('summary.json', '{"test_acc'),
    ('summary.json', '{"test_accuracy": 0.5, "baselines": {"other": 3}}'),
    ('summary.json', '{"test_accuracy": null, "baselines": 3}'),
    ('best/spec.json', '{"type": "nowhere:Spec"}'),
    ('best/spec.json', '[1, 2]'),
    ('seed.json', ''),
    ('config.json', '3'),
    ('metrics.jsonl', '{"search": "growth"}\n7\n{"generation": 1}\n'),
    ('metrics.jsonl', '{"search": "growth", "generation": 1, "widths": 3}\n'),
  ],
)
def test_report_does_without_what_cannot_be_read(tmp_path, name, text):
  path = workdir.claim(tmp_path, SETTINGS)
  (path / name).parent.mkdir(exist_ok=True)
  (path / name).write_text(text)
  page = report.html(path).read_text()
  assert page.endswith('</html>\n') and not pictures(page).keys() - {
    'Validation accuracy against training examples, and parameters'
  }


def test_a_picture_that_fails_leaves_its_reason(folder):
  row = metrics('growth', 1, valid_metric='<high>')
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  page = report.html(folder).read_text()
  assert 'not drawn, ValueError' in page and '&lt;high&gt;' in page
  assert len(pictures(page)) == 3


def test_a_move_after_a_divergence_is_not_the_only_one_listed(folder):
  rows = [
    metrics('growth', 1, diverged=True, **MADE),
    metrics('growth', 2, diverged=True, event='diverged'),
  ]
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  found = [row for row in cells(report.html(folder).read_text()) if row]
  start = found.index(
    ['generation', 'move', 'predicted, nats', 'measured, nats']
  )
  assert [row[:2] for row in found[start + 1 : start + 4]] == [
    ['1', 'diverged'],
    ['1', 'split 2 in conv1, 1 in conv2'],
    ['2', 'diverged'],
  ]


def test_moves_of_code_that_is_gone_are_named(folder):
  row = metrics('growth', 1, event='move', move={'type': 'their.moves:Twist'})
  (folder / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  page = report.html(folder).read_text()
  assert ['1', 'move: their.moves:Twist', '', ''] in cells(page)


def test_report_needs_a_folder(tmp_path):
  with pytest.raises(ValueError, match='no folder'):
    report.html(tmp_path / 'nowhere')


def test_report_names_a_missing_matplotlib(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(ImportError, match='pip install matplotlib'):
    report.html(folder)
  assert not (folder / 'report.html').exists()
