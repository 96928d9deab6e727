"""What a person sees of a run: progress while it goes, and a table after."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import rich.console
import rich.progress
import rich.table

from jaxnas import groups, workdir
from jaxnas.base import Event, Population


@contextlib.contextmanager
def progress(
  console: rich.console.Console,
) -> Iterator[Callable[[workdir.Search, Population], None]]:
  """A line for every generation, and on a terminal a bar with the time left.

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
  best = workdir.leader(population)
  metrics = best.metrics
  parts = [
    f'{population.generation:>4}/{search.generations}',
    f'valid {100 * metrics.get("valid_metric", float("nan")):5.1f} %',
    f'loss {metrics.get("train_loss", float("nan")):.3f}',
    f'params {metrics.get("params", 0):>8,}',
    f'compiled {population.spent.compilations:>3}',
    f'{population.spent.seconds:5.0f} s, {left:.0f} s left',
  ]
  last = [e for e in best.lineage if e.generation == population.generation - 1]
  parts += [describe(event) for event in last]
  return '  '.join(parts)


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
  if event.predicted is not None and event.measured is not None:
    text += (
      f' (loss {event.predicted:+.4f} predicted, {event.measured:+.4f} '
      'measured)'
    )
  return text


def results(rows: Mapping[str, Mapping[str, Any]]) -> rich.table.Table:
  """The table of results: one row for each network.

  Args:
    rows: for each name `test_accuracy`, `params`, `examples`, `compilations`
      and `seconds`.
  """
  table = rich.table.Table(title='Results on the test split')
  table.add_column('network')
  for title in ('accuracy', 'parameters', 'examples', 'compiled', 'seconds'):
    table.add_column(title, justify='right')
  for name, row in rows.items():
    table.add_row(
      name,
      f'{row["test_accuracy"]:.4f}',
      f'{row["params"]:,}',
      f'{row["examples"]:,}',
      f'{row["compilations"]}',
      f'{row["seconds"]:.1f}',
    )
  return table


def widths(spec: Any) -> str:
  """The widths of a spec's free groups, in order.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> widths(seeds.chain((8, 8, 1), (4, 'M', 8), 10))
    '4-8'
  """
  return '-'.join(str(g.size) for g in groups.growable(spec))
