"""What a person sees of a run: progress while it goes, a report after."""

import base64
import contextlib
import functools
import io
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

import rich.console
import rich.progress
import rich.table

from jaxnas import draw, groups, workdir
from jaxnas import spec as specs
from jaxnas.base import Event, Members, Population, Trials

# Lines for the generations of a search in which nothing but training happens.
LINES = 10


@contextlib.contextmanager
def progress(
  console: rich.console.Console,
) -> Iterator[Callable[[workdir.Search, Population], None]]:
  """A line for every generation with a move, and about ten for the others.

  On a terminal also a bar with the time left.

  Yields a function for `jaxnas.workdir.conduct`'s `report`.

  Args:
    console: where to write.
  """
  bar = rich.progress.Progress(
    rich.progress.TextColumn('{task.description}'),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TimeRemainingColumn(elapsed_when_finished=True),
    console=console,
    transient=True,
    disable=not console.is_terminal,
  )
  tasks: dict[str, tuple[rich.progress.TaskID, int, float]] = {}

  def show(search: workdir.Search, population: Population) -> None:
    done, total = population.generation, search.generations
    stride = max(1, total // LINES)
    if search.name not in tasks:
      task = bar.add_task(search.name, total=total, completed=done)
      tasks[search.name] = (task, done, time.monotonic())
      how = f'resuming after generation {done}' if done else 'starting'
      console.print(
        f'[bold]{search.name}[/bold]: {how} of {total}', highlight=False
      )
      return
    task, first, started = tasks[search.name]
    bar.update(task, completed=done)
    each = (time.monotonic() - started) / max(done - first, 1)
    if not (_events(population) or done == total or done % stride == 0):
      return
    console.print(
      generation_line(search, population, each * (total - done)),
      highlight=False,
      soft_wrap=True,
    )

  with bar:
    yield show


def generation_line(
  search: workdir.Search, population: Population, left: float
) -> str:
  """One generation in one line.

  Args:
    search: the search.
    population: after the generation.
    left: seconds left, by the mean of the generations so far.
  """
  spent = population.spent
  parts = [
    f'{population.generation:>4}/{search.generations}',
    *_state(population),
    f'compiled {spent.compilations:>3} in {spent.compiling:.0f} s',
    f'{spent.seconds:5.0f} s, {left:.0f} s left',
  ]
  parts += [describe(event) for event in _events(population)]
  return '  '.join(parts)


def _state(population: Population | Members | Trials) -> list[str]:
  """How good a population is, in words."""
  if isinstance(population, Trials):
    row = workdir.summary_row(population)
    fitness = '' if row['fitness'] is None else f'best {row["fitness"]:.4g}'
    return [f'{row["queries"]:,.0f} queries', fitness]
  if isinstance(population, Members):
    return [
      f'{_spaced(name)} {value:.4g}'
      for name, value in workdir.standing(population).items()
      if value is not None
    ]
  metrics = workdir.leader(population).metrics
  return [
    f'valid {100 * metrics.get("valid_metric", float("nan")):5.1f} %',
    f'loss {metrics.get("train_loss", float("nan")):.3f}',
    f'params {metrics.get("params", 0):>8,}',
  ]


def _events(population: Population | Members | Trials) -> list[Event]:
  """What happened to the best member in the last generation."""
  if isinstance(population, Members | Trials):
    return []  # Replacements are many, and in the picture of the lineage.
  lineage = workdir.leader(population).lineage
  return [e for e in lineage if e.generation == population.generation - 1]


def describe(event: Event) -> str:
  """An event of a lineage in words.

  Example:
    >>> from jaxnas import morphisms
    >>> move = morphisms.split({'conv1': [0, 3]})
    >>> describe(Event(2, 'move', move, -0.5, -0.25))
    'split 2 in conv1 (loss -0.5000 predicted, -0.2500 measured)'
  """
  if event.move is None:
    return event.kind
  names = []
  for move in getattr(event.move, 'moves', (event.move,)):
    kind = type(move).__name__.lower()
    channels = getattr(move, 'channels', ())
    where = ', '.join(f'{len(chosen)} in {name}' for name, chosen in channels)
    names.append(f'{kind} {where}'.strip())
  text = ' and '.join(names)
  if event.kind != 'move':
    text = f'{event.kind}: {text}'
  changes = [
    f'{change:+.4f} {how}'
    for change, how in (
      (event.predicted, 'predicted'),
      (event.measured, 'measured'),
    )
    if None not in (change, event.measured)
  ]
  return f'{text} (loss {", ".join(changes)})' if changes else text


def results(rows: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """The table of results: one row for each network.

  Args:
    rows: for each name `test_accuracy`, `params`, `examples`, `compilations`
      and `seconds`; and, if known, `compiling`.
  """
  table = rich.table.Table(title='Results on the test split')
  table.add_column('network')
  for name in ('test_accuracy', 'params', 'examples', 'compilations'):
    table.add_column(_TITLES[name], justify='right', no_wrap=True)
  table.add_column(_TITLES['seconds'], justify='right', no_wrap=True)
  for name, row in rows.items():
    table.add_row(
      name,
      f'{row["test_accuracy"]:.4f}',
      f'{row["params"]:,}',
      f'{row["examples"]:,}',
      compiled(row),
      _number('seconds', row['seconds']),
    )
  return table


def members_results(rows: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """The table of results of array populations.

  Args:
    rows: for each search `fitness`, `median_fitness`, `examples`,
      `compilations` and `seconds`; and, if known, `compiling`.

  Example:
    >>> row = {'fitness': 0.5, 'median_fitness': 0.4, 'examples': 100,
    ...        'compilations': 3, 'seconds': 2.0}
    >>> members_results({'pbt': row}).row_count
    1
  """
  table = rich.table.Table(title='Results on what nothing is selected by')
  table.add_column('search')
  for title in ('fitness', 'median', 'examples', 'compiled', 'seconds'):
    table.add_column(title, justify='right', no_wrap=True)
  for name, row in rows.items():
    table.add_row(
      _spaced(name),
      f'{row["fitness"]:.4f}',
      f'{row["median_fitness"]:.4f}',
      f'{row["examples"]:,}',
      compiled(row),
      _number('seconds', row['seconds']),
    )
  return table


def compiled(row: Mapping[str, Any]) -> str:
  """How many programs were compiled, and in what time, if that is known.

  Example:
    >>> compiled({'compilations': 17, 'compiling': 80.4})
    '17 in 80 s'
  """
  count = f'{row["compilations"]:,}'
  known = 'compiling' in row
  return f'{count} in {row["compiling"]:.0f} s' if known else count


def widths(spec: Any) -> str:
  """The widths of a spec's free groups, in order.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> widths(seeds.chain((8, 8, 1), (4, 'M', 8), 10))
    '4-8'
  """
  return '-'.join(str(g.size) for g in groups.growable(spec))


def html(folder: workdir.Folder) -> pathlib.Path:
  """Writes `report.html`: a run's results, curves, moves, cost and settings.

  One file that needs nothing else, neither other files nor a network nor
  scripts. It shows what the folder holds so far, so it can be called while a
  run goes on; what is missing or cannot be read is said in its place.

  Args:
    folder: the workdir.

  Returns:
    The path of `report.html` in it.

  Raises:
    ValueError: if there is no such folder.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> import tempfile
    >>> place = workdir.claim(tempfile.mkdtemp(), {'seed': 0})
    >>> 'no generation is complete' in html(place).read_text()
    True
  """
  path = pathlib.Path(folder)
  if not path.is_dir():
    raise ValueError(f'{path} is no folder; give the --workdir of a run.')
  settings = _stored(path / 'config.json')
  summary = _stored(path / 'summary.json')
  searches: dict[str, list[dict[str, Any]]] = {}
  for row in _stored_rows(path / 'metrics.jsonl'):
    searches.setdefault(row['search'], []).append(row)
  shown = next(iter(searches.values()), [])
  every = [row for rows in searches.values() for row in rows]
  seed, best = _spec(path / 'seed.json'), _spec(path / 'best' / 'spec.json')
  start = None if seed is None else _sizes(seed)

  name = path.resolve().name
  parts = [f'<h1>{escape(name)}</h1>']
  parts += [_paragraph(_status(settings, summary, searches))]
  if summary is not None:
    parts += ['<h2>Results on the test split</h2>', _results(summary)]
  if any('population' in row for row in shown):
    parts += [
      '<h2>How it went</h2>',
      _picture(
        'Fitness of the best member and of the median, against examples',
        lambda: draw.fitness(every),
      ),
      '<h2>Lineage</h2>',
      *(
        _picture(
          f'{_spaced(name)}: who descends from whom, and what they are',
          functools.partial(draw.lineage, rows),
        )
        for name, rows in searches.items()
      ),
    ]
  elif any('searches' in row for row in shown):
    parts += [
      '<h2>How it went</h2>',
      _picture(
        'The best so far: mean of the searches, and their middle half',
        lambda: draw.curves(_reached(searches), x='queries', y='fitness'),
      ),
    ]
  elif shown:
    parts += [
      '<h2>How it went</h2>',
      _picture(
        'Validation accuracy against training examples, and parameters',
        lambda: draw.growth(every),
      ),
    ]
  if any(row.get('widths') for row in shown):
    parts += [
      '<h2>Widths</h2>',
      _picture(
        'The width of each channel group after each generation',
        lambda: draw.widths(shown, start=start),
      ),
    ]
  if best is not None:
    parts += ['<h2>The network found</h2>', _network(best)]
  if seed is not None and seed != best:
    parts += ['<h2>The network it started from</h2>', _network(seed)]
  events = [event for row in shown for event in _recorded(row)]
  if events:
    parts += ['<h2>Moves</h2>', _moves(events)]
  if searches:
    parts += ['<h2>Cost</h2>', _cost(searches)]
  if settings:
    parts += [
      '<h2>Settings</h2>',
      _table(('setting', 'value'), _flat(settings)),
    ]
  page = _PAGE.format(title=escape(name), body='\n'.join(parts))
  # Numeric references for all beyond ASCII: no reader can misread the coding.
  page = page.encode('ascii', 'xmlcharrefreplace').decode()
  workdir.write_atomically(path / 'report.html', page)
  return path / 'report.html'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: jaxnas</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ margin-bottom: 0; }}
h2 {{ margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem;
  border-bottom: 1px solid #e5e7eb; font-size: 1.2rem; }}
table {{ border-collapse: collapse; font-size: 0.93rem; }}
th, td {{ padding: 0.25rem 0.9rem 0.25rem 0; text-align: left;
  vertical-align: top; border-bottom: 1px solid #e5e7eb; }}
th {{ color: #6b7280; font-weight: 600; white-space: nowrap; }}
.number {{ text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap; }}
.wide {{ overflow-x: auto; }}
img {{ max-width: 100%; height: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def _reached(searches: Mapping[str, Any]) -> dict[str, dict[str, list]]:
  """Rows of array searches as `draw.curves` takes them."""
  columns = {'x': 'queries', 'mean': 'fitness', 'low': 'low', 'high': 'high'}
  return {
    name: {
      end: [float('nan') if row[c] is None else row[c] for row in rows]
      for end, c in columns.items()
    }
    for name, rows in searches.items()
  }


def _stored(path: pathlib.Path) -> dict[str, Any] | None:
  """A JSON object in a file; None if there is none that can be read."""
  try:
    found = json.loads(path.read_text())
  except (OSError, ValueError):
    return None
  return found if isinstance(found, dict) else None


def _stored_rows(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a `metrics.jsonl` that is perhaps being written."""
  rows = []
  for line in (
    path.read_text(errors='replace').splitlines() if path.exists() else ()
  ):
    try:
      row = json.loads(line)
    except ValueError:
      continue  # The last line of a killed run may be half written.
    if isinstance(row, dict) and isinstance(row.get('generation'), int):
      rows.append({'search': 'search', **row})
  return rows


def _spec(path: pathlib.Path) -> specs.Spec | None:
  try:
    found = specs.from_json(path.read_text())
  except (OSError, ValueError, ImportError):
    return None
  return found if isinstance(found, specs.Spec) else None


def _sizes(spec: specs.Spec) -> dict[str, int]:
  return {group.name: group.size for group in groups.growable(spec)}


def _status(settings, summary, searches) -> str:
  if summary is not None:
    return 'The run is finished.'
  if not searches:
    return 'The run is not finished: no generation is complete yet.'
  name, rows = list(searches.items())[-1]
  total = (settings or {}).get('generations')
  of = f' of {total}' if total and len(searches) == 1 else ''
  return (
    f'The run is not finished: the last complete generation is '
    f'{rows[-1].get("generation")}{of} of {name}.'
  )


_TITLES = {
  'test_accuracy': 'accuracy',
  'params': 'parameters',
  'examples': 'examples',
  'evaluations': 'evaluations',
  'compilations': 'compiled',
  'seconds': 'seconds',
  'compiling': 'compiling',
}
_TIMES = ('compilations', 'seconds', 'compiling')


def _results(summary: Mapping[str, Any]) -> str:
  """The rows of `summary.json`: what the run found, and its baselines."""
  arms, baselines = summary.get('arms'), summary.get('baselines')
  rows = dict(arms) if isinstance(arms, Mapping) else {'grown': summary}
  if isinstance(baselines, Mapping):
    rows |= baselines
  names = [
    name
    for name, value in next(iter(rows.values()), {}).items()
    if isinstance(value, int | float | str)
  ]
  names.sort(key=lambda n: [*_TITLES, n].index(n))
  return _table(
    ('network', *(_TITLES.get(name, _spaced(name)) for name in names)),
    (
      (_spaced(title), *(_number(name, row.get(name)) for name in names))
      for title, row in rows.items()
      if isinstance(row, Mapping)
    ),
  )


def _number(name: str, value: Any) -> Any:
  """A measurement as it is written in tables."""
  if isinstance(value, float):
    return f'{value:,.1f}' if name in _TIMES else f'{value:.4f}'
  return f'{value:,}' if isinstance(value, int) else value


def _spaced(name: str) -> str:
  return name.replace('_', ' ')


def _moves(events: Sequence[Event]) -> str:
  parts = []
  if any(None not in (e.predicted, e.measured) for e in events):
    parts += [
      _picture(
        'Predicted against measured loss change of every move',
        lambda: draw.calibration(events),
      )
    ]

  def nats(value: float | None) -> str:
    return '' if value is None else f'{value:+.4f}'

  header = ('generation', 'move', 'predicted, nats', 'measured, nats')
  parts += [
    _table(
      header,
      (
        (
          event.generation + 1,
          _move_words(event),
          nats(event.predicted),
          nats(event.measured),
        )
        for event in events
      ),
    )
  ]
  return '\n'.join(parts)


def _recorded(row: Mapping[str, Any]) -> list[Event]:
  """The events that a row of metrics records."""
  generation, kind = row['generation'] - 1, row.get('event')
  events = []
  if row.get('diverged') or kind == 'diverged':
    events.append(Event(generation, 'diverged'))
  if kind not in (None, 'diverged'):
    move = row.get('move')
    with contextlib.suppress(ValueError, TypeError, ImportError):
      move = specs.decode(move)
    numbers = (row.get('predicted'), row.get('measured'))
    events.append(Event(generation, kind, move, *numbers))
  return events


def _move_words(event: Event) -> str:
  if isinstance(event.move, dict):  # Written by code that is not here now.
    return f'{event.kind}: {event.move.get("type")}'
  return describe(event._replace(predicted=None, measured=None))


def _cost(searches: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
  """What each search has spent by its last generation."""
  names = ('examples', 'evaluations', *_TIMES)
  rows = [
    (
      _spaced(search),
      rows[-1].get('generation'),
      *(_number(name, rows[-1].get(name)) for name in names),
    )
    for search, rows in searches.items()
  ]
  return _table(
    ('search', 'generations', *(_TITLES[name] for name in names)), rows
  )


def _flat(settings: Mapping[str, Any], prefix: str = '') -> list[tuple]:
  """Nested settings as `(dotted name, value)`."""
  rows = []
  for name, value in settings.items():
    if isinstance(value, Mapping):
      rows += _flat(value, f'{prefix}{name}.')
    else:
      rows.append((prefix + name, json.dumps(value, ensure_ascii=False)))
  return rows


def _paragraph(text: str) -> str:
  return f'<p>{escape(text)}</p>'


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  """An HTML table; columns of numbers are set to the right."""
  cells = [['' if v is None else str(v) for v in row] for row in rows]
  plain = str.maketrans('', '', '+-.,e ')
  right = [
    all(row[i].translate(plain).isdigit() or not row[i] for row in cells)
    for i in range(len(header))
  ]

  def line(tag: str, row: Sequence[str]) -> str:
    return ''.join(
      f'<{tag} class="number">{escape(text)}</{tag}>'
      if number
      else f'<{tag}>{escape(text)}</{tag}>'
      for text, number in zip(row, right, strict=True)
    )

  body = ''.join(f'<tr>{line("td", row)}</tr>\n' for row in cells)
  return (
    f'<div class="wide"><table>\n<thead><tr>{line("th", header)}</tr></thead>\n'
    f'<tbody>\n{body}</tbody>\n</table></div>'
  )


def _network(spec: specs.Spec) -> str:
  return _picture(
    f'Layers and channel groups; widths {widths(spec)}',
    lambda: draw.network(spec),
  )


def _picture(title: str, make: Callable[[], Any]) -> str:
  """A figure as an image within the page.

  A picture that cannot be drawn is replaced by the reason: a report must not
  end a job whose results it shows.
  """
  try:
    figure = make()
    image = io.BytesIO()
    figure.savefig(image, format='png', dpi=192, metadata={'Software': None})
  except ImportError:
    raise
  except Exception as error:
    return _paragraph(f'{title}: not drawn, {type(error).__name__}: {error}')
  data = base64.b64encode(image.getvalue()).decode()
  width = round(96 * figure.get_figwidth())
  return (
    f'<p><img width="{width}" alt="{escape(title)}" '
    f'src="data:image/png;base64,{data}"></p>'
  )
