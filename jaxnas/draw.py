"""Pictures: a network with its channel groups, and how a search went.

Matplotlib is imported where a picture is made, so that `import jaxnas` stays
quick. Every function returns a `matplotlib.figure.Figure` of its own
(`figure.savefig('net.png')`; a notebook shows it) and leaves `pyplot` and its
settings alone. The colours are those of Okabe and Ito, which stay apart for
colour-blind readers.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnas import groups
from jaxnas import spec as specs
from jaxnas.base import Event

# Okabe and Ito (2008), without black and without the yellow that is hard to
# see on white.
_COLOURS = (
  '#0072B2',
  '#E69F00',
  '#009E73',
  '#D55E00',
  '#CC79A7',
  '#56B4E9',
)
# Of lines, where there are more of them than colours.
_STYLES = ('-', '--', ':')
_HATCHES = ('', '///', '...', 'xxx')
_OWN = '#9AA5B1'
_FIXED = '#FFFFFF'
_INK = '#222222'
_FAINT = '#6B7280'


class _Row(NamedTuple):
  """One line of a picture: a node, and what is folded into its line.

  Attributes:
    nodes: the leading node, then operations on its value that nothing else
      reads in between (norms, activations, pooling).
    words: the operations in words.
    sources: positions of the rows that it reads.
  """

  nodes: tuple[specs.Node, ...]
  words: str
  sources: tuple[int, ...]


def _rows(spec: specs.Spec) -> tuple[_Row, ...]:
  """The lines of a network's picture, every input before its readers."""
  place: dict[str, int] = {}
  lines: list[list[specs.Node]] = []
  for node in spec.order:
    leads = isinstance(node.op, specs.DepthwiseConv) or node.op.kind in (
      'input',
      'mixing',
    )
    alone = len(node.inputs) == 1 and len(spec.consumers[node.inputs[0]]) == 1
    if leads or not alone:
      place[node.name] = len(lines)
      lines.append([node])
    else:
      place[node.name] = place[node.inputs[0]]
      lines[place[node.name]].append(node)
  return tuple(
    _Row(
      tuple(line),
      ' · '.join(_words(node.op) for node in line),
      tuple(dict.fromkeys(place[source] for source in line[0].inputs)),
    )
    for line in lines
  )


def _words(op: Any) -> str:
  """An operation in a few words; its class's name if it is a user's own."""
  window = ''
  for field, sign in (('kernel', ' '), ('window', ' '), ('strides', ' /')):
    size = getattr(op, field, None)
    if size and not (field == 'strides' and set(size) == {1}):
      same = field == 'strides' and len(set(size)) == 1
      window += sign + (f'{size[0]}' if same else '×'.join(map(str, size)))
  if getattr(op, 'padding', 'SAME') != 'SAME':
    window += f' {op.padding.lower()}'
  names = {
    specs.BatchNorm: 'BN',
    specs.LayerNorm: 'LN',
    specs.DepthwiseConv: 'depthwise',
    specs.GlobalPool: 'global mean',
  }
  if isinstance(op, specs.Activation):
    return op.fn
  if isinstance(op, specs.Pool):
    return f'{op.reduce}{window}'
  if isinstance(op, specs.Dropout):
    return f'dropout {op.rate:g}'
  return names.get(type(op), type(op).__name__.lower()) + window


def _looks(
  spec: specs.Spec, lines: Sequence[_Row]
) -> dict[str, tuple[str, str]]:
  """The colour and hatch of every channel group.

  A group of fixed width is white, and one that only one row has is grey; the
  others are told apart.
  """
  table = groups.table(spec)
  seen: dict[str, int] = {}
  for line in lines:
    for name in dict.fromkeys(table.axes[line.nodes[0].name].groups):
      seen[name] = seen.get(name, 0) + 1
  fixed = [name for name in seen if table.groups[name].frozen]
  tied = [name for name in seen if seen[name] > 1 and name not in fixed]
  looks = {}
  for name in seen:
    if name in tied:
      i = tied.index(name)
      hatch = _HATCHES[i // len(_COLOURS) % len(_HATCHES)]
      looks[name] = (_COLOURS[i % len(_COLOURS)], hatch)
    else:
      looks[name] = (_FIXED if name in fixed else _OWN, '')
  return looks


def _figure(width: float, height: float, layout: str | None = None):
  try:
    from matplotlib.figure import Figure
  except ImportError as error:
    raise ImportError(
      'jaxnas.draw needs matplotlib, which is not installed: pip install '
      'matplotlib.'
    ) from error
  return Figure(figsize=(width, height), layout=layout, facecolor='white')


@functools.lru_cache(maxsize=4096)
def _extent(text: str, size: float, bold: bool = False) -> float:
  """The length of a text in inches."""
  from matplotlib.font_manager import FontProperties
  from matplotlib.textpath import text_to_path

  font = FontProperties(size=size, weight='bold' if bold else 'normal')
  length, _, _ = text_to_path.get_text_width_height_descent(text, font, False)
  return length / 72


_PITCH = 0.27  # Inches from row to row.
_BARS = 1.9  # Inches of the longest bar.
_GAP = 0.22  # Inches between columns.
_SIZE = 9.0
_NOTE = (
  'Bars: channels. One colour and pattern: one group of tied channels, whose\n'
  'widths change together. Grey: a width of its own. White: fixed. Curves on\n'
  'the left: values read further down.'
)


def network(spec: specs.Spec, *, ax: Any = None) -> Any:
  """A network from top to bottom: layers, shapes, widths, what ties them.

  Each row is a layer with the norm, activation and pooling behind it, the
  shape that comes out (without the batch axis), and a bar as long as it has
  channels. Bars of one colour and pattern are one channel group
  (`jaxnas.groups`). Values that are read further down (residual, concat) are
  curves on the left.

  Args:
    spec: the network.
    ax: Matplotlib axes to draw in; a new figure of the right size if None.
      The picture is laid out in inches, so that small axes make it crowded.

  Returns:
    The Matplotlib figure.

  Raises:
    ImportError: if Matplotlib is not installed.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> figure = network(seeds.resnet(10, blocks=1))
    >>> texts = [text.get_text() for text in figure.axes[0].texts]
    >>> 'stage2_block1_conv1' in texts
    True
  """
  lines = _rows(spec)
  looks = _looks(spec, lines)
  names = [line.nodes[0].name for line in lines]
  shapes = [_shape(spec, line) for line in lines]
  remarks = [_remark(spec, name) for name in names]

  def column(texts: Iterable[str], bold: bool = False) -> float:
    return max(_extent(text, _SIZE, bold) for text in texts) + _GAP

  spans = [i - s for i, line in enumerate(lines) for s in line.sources]
  rail = 0.2 + max((_bulge(span) for span in spans if span > 1), default=0.0)
  columns = list(
    itertools.accumulate(
      (
        rail + _GAP,
        column(names, bold=True),
        column(line.words for line in lines),
        column(shapes),
      )
    )
  )
  width = columns[-1] + _BARS + 0.1 + column(remarks)
  height = (len(lines) + 2.4) * _PITCH

  figure = _figure(width, height) if ax is None else ax.figure
  ax = figure.add_axes((0, 0, 1, 1)) if ax is None else ax
  ax.set_xlim(0, width)
  ax.set_ylim(height, 0)
  ax.set_axis_off()
  for i, (line, name) in enumerate(zip(lines, names, strict=True)):
    write = functools.partial(
      ax.text, y=_y(i), fontsize=_SIZE, va='center_baseline', color=_INK
    )
    write(columns[0], s=name, fontweight='bold')
    write(columns[1], s=line.words)
    write(columns[2], s=shapes[i], color=_FAINT)
    end = _bar(ax, columns[3], _y(i), spec, name, looks)
    size, _, note = remarks[i].partition('  ')
    write(end + 0.07, s=size)
    after = end + 0.07 + _extent(size + '  ', _SIZE)
    if note:
      write(after, s=note, color=_FAINT, fontsize=_SIZE - 1)
  _rail(ax, rail, spec, lines, looks)
  bottom = _y(len(lines)) - 0.4 * _PITCH
  ax.text(columns[0], bottom, _NOTE, fontsize=7, color=_FAINT, va='top')
  return figure


def _y(row: int) -> float:
  return (row + 0.8) * _PITCH


def _shape(spec: specs.Spec, line: _Row) -> str:
  return '×'.join(map(str, spec.shapes[line.nodes[-1].name]))


def _bulge(span: int) -> float:
  """How far a curve over so many rows goes to the left, in inches."""
  return min(0.14 + 0.06 * span, 0.9)


def _remark(spec: specs.Spec, name: str) -> str:
  """What stands behind a bar: the width, and what it is tied to."""
  table = groups.table(spec)
  axis = table.axes[name]
  text = str(sum(axis.sizes))
  if axis.repeat > 1:
    text += f' × {axis.repeat} positions'
  if set(axis.groups) & set(spec.padded):
    text += ' stored'
  found = tuple(dict.fromkeys(axis.groups))
  notes = []
  if len(found) > 3:
    notes = [f'= {len(found)} groups']
  elif found != (name,):
    notes = [f'= {" + ".join(found)}']
  if any(table.groups[group].frozen for group in found):
    notes.append('fixed')
  return (text + '  ' + ', '.join(notes)).rstrip()


def _bar(ax, x: float, y: float, spec: specs.Spec, name: str, looks) -> float:
  """Draws a node's channels, group after group; returns where they end."""
  from matplotlib.patches import Rectangle

  axes = groups.table(spec).axes
  longest = max(sum(axis.sizes) for axis in axes.values())
  for group, size in zip(axes[name].groups, axes[name].sizes, strict=True):
    colour, hatch = looks[group]
    length = size / longest * _BARS
    ax.add_patch(
      Rectangle(
        (x, y - 0.3 * _PITCH),
        length,
        0.6 * _PITCH,
        facecolor=colour,
        edgecolor=_FAINT if colour == _FIXED else 'white',
        linewidth=0.6,
        hatch=hatch,
      )
    )
    x += length
  return x


def _rail(ax, x: float, spec: specs.Spec, lines: Sequence[_Row], looks) -> None:
  """Draws which row reads which, on the left."""
  axes = groups.table(spec).axes
  colours = [looks[axes[line.nodes[0].name].groups[0]][0] for line in lines]
  for i, line in enumerate(lines):
    for source in line.sources:
      colour = _OWN if colours[source] == _FIXED else colours[source]
      if i - source == 1:
        ax.plot((x, x), (_y(source), _y(i)), color=colour, lw=1.6, zorder=1)
      else:
        _curve(ax, x, _y(source), _y(i), _bulge(i - source), colour)
  for i, colour in enumerate(colours):
    ax.plot(
      (x,),
      (_y(i),),
      marker='o',
      markersize=5.5,
      markerfacecolor=colour,
      markeredgecolor=_FAINT if colour == _FIXED else 'white',
      zorder=3,
    )


def _curve(ax, x, top, bottom, bulge: float, colour: str) -> None:
  from matplotlib.patches import PathPatch
  from matplotlib.path import Path

  # A cubic's middle is at three quarters of its control points.
  left = x - bulge / 0.75
  path = Path(
    ((x, top), (left, top), (left, bottom), (x, bottom)),
    (Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4),
  )
  ax.add_patch(
    PathPatch(path, facecolor='none', edgecolor=colour, lw=1.6, zorder=2)
  )


def mermaid(spec: specs.Spec) -> str:
  """A network as a Mermaid flowchart, for Markdown that renders it.

  Args:
    spec: the network.

  Returns:
    The text, from `flowchart TD` on; rows and colours are as in `network`.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> print(mermaid(seeds.mlp((4,), (8,), 3)))
    flowchart TD
      n0["<b>input</b><br>input<br>4"]
      n1["<b>dense1</b><br>dense · relu<br>8"]
      n2["<b>logits</b><br>dense<br>3"]
      n0 --> n1
      n1 --> n2
  """
  lines = _rows(spec)
  table = groups.table(spec)
  looks = _looks(spec, lines)
  text = ['flowchart TD']
  classes: dict[str, list[int]] = {}
  for i, line in enumerate(lines):
    name = line.nodes[0].name
    # `#` starts an entity in Mermaid, and quotes end the label.
    words = line.words.replace('#', '#35;').replace('"', '#quot;')
    text.append(f'  n{i}["<b>{name}</b><br>{words}<br>{_shape(spec, line)}"]')
    found = dict.fromkeys(table.axes[name].groups)
    for group in found:
      if len(found) == 1 and looks[group][0] in _COLOURS:
        classes.setdefault(group, []).append(i)
  for i, line in enumerate(lines):
    text += [f'  n{source} --> n{i}' for source in line.sources]
  for number, (group, members) in enumerate(classes.items()):
    colour = looks[group][0]
    style = f'fill:{colour}33,stroke:{colour},stroke-width:2px'
    text.append(f'  classDef g{number} {style}')
    text.append(f'  class {",".join(f"n{i}" for i in members)} g{number}')
  return '\n'.join(text)


_KINDS = {
  'move': ('^', 'move made', _COLOURS[0]),
  'rejected': ('x', 'move undone', _COLOURS[3]),
  'diverged': ('D', 'diverged', _COLOURS[4]),
}


def growth(rows: Sequence[Mapping[str, Any]]) -> Any:
  """Accuracy against examples, and parameters over the generations.

  Args:
    rows: rows of `metrics.jsonl`, oldest first. The search of the first row
      is the one shown; rows of other searches are baselines, drawn dashed.

  Returns:
    The Matplotlib figure: on the left the validation metric of the best
    member against training examples spent, on the right its parameters.
    Generations with a move are marked.

  Raises:
    ValueError: if there are no rows.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> row = {'search': 'growth', 'generation': 1, 'examples': 500}
    >>> figure = growth([{**row, 'valid_metric': 0.5, 'params': 398}])
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['training examples', 'generation']
  """
  searches = _searches(rows)
  figure = _figure(9, 3.5, 'constrained')
  left, right = figure.subplots(1, 2)
  dashes = ('-', '--', '-.', ':')
  for i, (name, found) in enumerate(searches.items()):
    style = {
      'color': _COLOURS[i % len(_COLOURS)],
      'linestyle': dashes[i % len(dashes)],
      'label': name.replace('_', ' '),
    }
    accuracy = 100 * _column(found, 'valid_metric')
    dots = 'o' if len(found) == 1 else ''
    left.plot(_column(found, 'examples'), accuracy, marker=dots, **style)
    params = _column(found, 'params')
    if i == 0:
      right.plot(_column(found, 'generation'), params, marker=dots, **style)
    elif len(set(params)) == 1:  # A network of fixed size: a level to compare.
      right.axhline(params[0], **style)
  shown = next(iter(searches.values()))
  for ax, x, y, scale in (
    (left, 'examples', 'valid_metric', 100),
    (right, 'generation', 'params', 1),
  ):
    _marks(ax, shown, _column(shown, x), scale * _column(shown, y))
  left.set_xlabel('training examples')
  left.set_ylabel('validation accuracy, %')
  right.set_xlabel('generation')
  right.set_ylabel('parameters')
  right.set_ylim(bottom=0)
  _plain(left, right)
  _thousands(left.xaxis)
  _thousands(right.yaxis)
  _whole_numbers(right.xaxis)
  left.legend(fontsize=8, frameon=False)
  return figure


def fitness(rows: Sequence[Mapping[str, Any]]) -> Any:
  """Searches of array populations beside each other.

  Args:
    rows: rows of `metrics.jsonl`, oldest first.

  Returns:
    The Matplotlib figure: the fitness of the best member (full line) and the
    population's median (dashed) against training examples.

  Raises:
    ValueError: if there are no rows.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> row = {'search': 'pbt_nas', 'generation': 1, 'examples': 500}
    >>> figure = fitness([{**row, 'fitness': 0.5, 'median_fitness': 0.4}])
    >>> figure.axes[0].get_ylabel()
    'fitness'
  """
  figure = _figure(9, 3.5, 'constrained')
  ax = figure.subplots()
  for i, (name, found) in enumerate(_searches(rows).items()):
    colour = _COLOURS[i % len(_COLOURS)]
    dots = 'o' if len(found) == 1 else ''
    for column, style in (('fitness', '-'), ('median_fitness', '--')):
      label = name.replace('_', ' ') if style == '-' else None
      ax.plot(
        *(_column(found, 'examples'), _column(found, column)),
        color=colour,
        linestyle=style,
        marker=dots,
        label=label,
      )
  ax.set_xlabel('training examples')
  ax.set_ylabel('fitness')
  _plain(ax)
  _thousands(ax.xaxis)
  ax.legend(fontsize=8, frameon=False, title='best; dashed: median')
  return figure


def lineage(rows: Sequence[Mapping[str, Any]]) -> Any:
  """An array population through its generations.

  Args:
    rows: rows of `metrics.jsonl` of one search, oldest first, with
      `population` (`jaxnas.workdir.summary_row`).

  Returns:
    The Matplotlib figure. On the left the members' places, one line each, in
    the colour of the founder that its base descends from; where a member is
    replaced, lines come from the places of its base and, thinner, of its donor.
    On the right, for each gene or hyper-parameter, how common the last best
    member's option is, or where between its extremes the population's median
    lies.

  Raises:
    ValueError: if there are no such rows.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> held = {'fitness': [0.1, 0.2], 'genes': [[0], [1]],
    ...         'parents': [[0, 0], [1, 1]]}
    >>> row = {'generation': 1, 'population': held}
    >>> len(lineage([row, {**row, 'generation': 2}]).axes) >= 2
    True
  """
  held = [row['population'] for row in rows if 'population' in row]
  if not held:
    raise ValueError('lineage: no row has a population.')
  from matplotlib import colormaps

  figure = _figure(10, 4.2, 'constrained')
  left, right = figure.subplots(1, 2, width_ratios=(3, 2))
  size = len(held[0]['fitness'])
  founder, colours = np.arange(size), colormaps['turbo']
  for x, now in enumerate(held):
    base, donor = np.asarray(now['parents'], int).reshape(size, 2).T
    before, founder = founder, founder[base]
    for i in range(size):
      colour = colours(founder[i] / max(size - 1, 1))
      if x:
        style = {'color': colour, 'solid_capstyle': 'round'}
        left.plot([x, x + 1], [base[i], i], linewidth=1.6, **style)
        if donor[i] != base[i]:
          style['color'] = colours(before[donor[i]] / max(size - 1, 1))
          left.plot([x, x + 1], [donor[i], i], linewidth=0.5, **style)
      left.plot(x + 1, i, 'o', markersize=2.5, color=colour)
  left.set_xlabel('generation')
  left.set_ylabel('place in the population')
  left.set_title('lineage; colour: the founder of the base', fontsize=9)
  _shares(figure, right, held)
  _plain(left)
  _whole_numbers(left.xaxis)
  _whole_numbers(left.yaxis)
  return figure


def _shares(figure, ax, held: Sequence[Mapping[str, Any]]) -> None:
  """How common the last best member's options are in each generation."""
  last = [-math.inf if f is None else f for f in held[-1]['fitness']]
  best = int(np.argmax(last))
  genes = np.asarray([now['genes'] for now in held])
  lines = [(genes == genes[-1, best]).mean(axis=1).T] if genes.size else []
  for name in sorted(held[0]):
    if name.startswith('hyper/'):
      values = np.asarray([now[name] for now in held], float)
      values = values.reshape(len(held), len(last), -1)
      low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
      middle = np.median(values, axis=1) - low
      lines.append((middle / np.maximum(high - low, 1e-12)).T)
  if not lines:
    ax.set_visible(False)
    return
  image = ax.imshow(
    np.concatenate(lines),
    aspect='auto',
    interpolation='nearest',
    cmap=_blues(),
    vmin=0,
    vmax=1,
    extent=(0.5, len(held) + 0.5, sum(map(len, lines)) - 0.5, -0.5),
  )
  figure.colorbar(image, ax=ax, shrink=0.7)
  ax.set_xlabel('generation')
  ax.set_ylabel('gene' if genes.size else 'hyper-parameter')
  share = "share with the last best one's option"
  ax.set_title(
    share if genes.size else 'median, between the extremes', fontsize=9
  )
  _whole_numbers(ax.xaxis)
  _whole_numbers(ax.yaxis)


def _searches(
  rows: Iterable[Mapping[str, Any]],
) -> dict[str, list[Mapping[str, Any]]]:
  """Rows by the name of their search; `ValueError` if there are none."""
  found: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows:
    found.setdefault(row['search'], []).append(row)
  if not found:
    raise ValueError(
      'there is nothing to draw: no rows of metrics.jsonl; wait for the first '
      'generation.'
    )
  return found


def _column(rows: Iterable[Mapping[str, Any]], name: str) -> np.ndarray:
  values = (row.get(name) for row in rows)
  return np.array([math.nan if v is None else v for v in values], float)


def _marks(ax, rows, x: np.ndarray, y: np.ndarray) -> None:
  for kind, (marker, label, colour) in _KINDS.items():
    at = [
      i
      for i, row in enumerate(rows)
      if row.get('event') == kind or row.get(kind) is True
    ]
    if at:
      ax.plot(
        x[at],
        y[at],
        linestyle='',
        marker=marker,
        markersize=9 if kind == 'diverged' else 6,
        fillstyle='none' if kind == 'diverged' else 'full',
        color=colour,
        label=label,
      )


def _plain(*axes) -> None:
  for ax in axes:
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(color='#E5E7EB', linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    for axis in (ax.xaxis, ax.yaxis):
      axis.label.set_fontsize(9)


def _thousands(axis) -> None:
  from matplotlib.ticker import FuncFormatter

  axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:,.12g}'))


def _whole_numbers(axis) -> None:
  from matplotlib.ticker import MaxNLocator

  axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def curves(
  lines: Mapping[str, Mapping[str, Any]],
  *,
  x: str,
  y: str,
  goal: float | None = None,
) -> Any:
  """Curves of searches, each with a band.

  Args:
    lines: for each name `x` and `mean`, and perhaps `low` and `high`, the ends
      of the band: sequences of one length, with NaN where there is nothing yet.
    x: what the first axis is.
    y: what the second axis is.
    goal: the best there is, a dotted line; None for none.

  Returns:
    The Matplotlib figure.

  Raises:
    ValueError: if there are no lines.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> line = {'x': [1, 2], 'mean': [90, 91], 'low': [88, 90],
    ...         'high': [92, 92]}
    >>> figure = curves({'random': line}, x='queries', y='accuracy')
    >>> figure.axes[0].get_xlabel()
    'queries'
  """
  figure, ax = _framed('curves', lines, x, y)
  ends = []
  for i, (name, line) in enumerate(lines.items()):
    colour = _COLOURS[i % len(_COLOURS)]
    at, mean = np.asarray(line['x'], float), np.asarray(line['mean'], float)
    dots = 'o' if len(at) == 1 else ''
    label = name.replace('_', ' ')
    style = _STYLES[i // len(_COLOURS) % len(_STYLES)]
    ax.plot(at, mean, style, color=colour, marker=dots, label=label)
    if 'low' in line:
      low, high = (np.asarray(line[end], float) for end in ('low', 'high'))
      ax.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
    known = mean[np.isfinite(mean)]
    if len(known):
      ends.append((np.quantile(known, 0.1), known.max()))
  if goal is not None:
    ax.axhline(goal, color='#6B7280', linestyle=':', linewidth=1)
  if ends:
    # The first few answers are anything, and would flatten all the others.
    bottom, top = min(low for low, _ in ends), max(high for _, high in ends)
    top = max(top, goal) if goal is not None else top
    if top > bottom:
      ax.set_ylim(bottom - 0.05 * (top - bottom), top + 0.1 * (top - bottom))
  _thousands(ax.xaxis)
  ax.legend(fontsize=8, frameon=False, loc='lower right')
  return figure


def fronts(
  lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  *,
  x: str,
  y: str,
) -> Any:
  """Pareto fronts as steps: the best y that no more than x costs.

  Args:
    lines: for each name the costs and the values of its points.
    x: what the costs are.
    y: what the values are, of which more is better.

  Returns:
    The Matplotlib figure.

  Raises:
    ValueError: if there are no lines.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> figure = fronts({'all': ([1, 2], [90, 91])}, x='FLOPs', y='accuracy')
    >>> figure.axes[0].get_ylabel()
    'accuracy'
  """
  figure, ax = _framed('fronts', lines, x, y)
  most = max(max(costs) for costs, _ in lines.values())
  for i, (name, (costs, values)) in enumerate(lines.items()):
    order = np.argsort(costs)
    costs, values = np.asarray(costs)[order], np.asarray(values)[order]
    colour = _COLOURS[i % len(_COLOURS)]
    ax.step(
      np.append(costs, most),
      np.append(values, values[-1]),
      where='post',
      color=colour,
      alpha=0.5,
    )
    ax.plot(costs, values, 'o', ms=4, color=colour, label=name)
  ax.legend(fontsize=8, frameon=False, loc='lower right')
  return figure


def _framed(name: str, lines: Mapping[str, Any], x: str, y: str) -> Any:
  """A figure for lines and its axes, named; refuses to draw nothing."""
  if not lines:
    raise ValueError(f'{name}: there is nothing to draw, no lines.')
  figure = _figure(7, 3.8, 'constrained')
  ax = figure.subplots()
  ax.set_xlabel(x)
  ax.set_ylabel(y)
  _plain(ax)
  return figure, ax


def widths(
  rows: Sequence[Mapping[str, Any]],
  *,
  start: Mapping[str, int] | None = None,
) -> Any:
  """The width of every channel group over the generations.

  Args:
    rows: rows of `metrics.jsonl`, oldest first, of the search to show; rows
      of searches other than the first row's are left out.
    start: widths before the first generation, shown as generation 0.

  Returns:
    The Matplotlib figure: a row for each group from input to output, a column
    for each generation, darker for more channels. A width is written where it
    is new and there is room, the last ones on the right.

  Raises:
    ValueError: if no row has widths.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> row = {'search': 'growth', 'generation': 1, 'widths': {'conv1': 6}}
    >>> figure = widths([row], start={'conv1': 4})
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['4', '6', '6']
  """
  found = next(iter(_searches(rows).values()))
  columns = {
    row['generation']: row['widths'] for row in found if 'widths' in row
  }
  if start is not None:
    columns = {0: start, **columns}
  names = list(dict.fromkeys(name for c in columns.values() for name in c))
  if not names:
    raise ValueError(
      'there is nothing to draw: no row has widths of channel groups.'
    )
  generations = range(min(columns), max(columns) + 1)
  table = np.full((len(names), len(generations)), math.nan)
  for generation, sizes in columns.items():
    for name, size in sizes.items():
      table[names.index(name), generation - generations[0]] = size

  cell = min(0.5, max(7 / len(generations), 0.02))
  figure = _figure(
    1.8 + max(cell * len(generations), 2), 1 + 0.26 * len(names), 'constrained'
  )
  ax = figure.add_subplot()
  _cells(
    ax,
    np.ma.masked_invalid(table),
    names,
    first=generations[0],
    vmin=0,
    linewidth=0.5 if cell > 0.1 else 0,
  )
  for i, row in enumerate(table):
    for j, size, length in _runs(row):
      text = f'{size:.0f}'
      extent = _extent(text, 7.5) + 0.06
      if extent < length * cell:
        ax.text(
          j + generations[0] - 0.5 + max(cell, extent) / cell / 2,
          i,
          text,
          ha='center',
          va='center',
          fontsize=7.5,
          color='white' if size > 0.6 * np.nanmax(table) else _INK,
        )
    if not math.isnan(row[-1]):
      last = generations[-1] + 0.5 + 0.08 / cell
      ax.text(last, i, f'{row[-1]:.0f}', va='center', fontsize=8, color=_INK)
  ax.set_xlabel('generation', fontsize=9)
  _whole_numbers(ax.xaxis)
  return figure


def _cells(ax, table, rows: Sequence[Any], *, first: int = 0, **style) -> None:
  """A table as colours, its rows from the top, its columns from `first` on."""
  high, wide = table.shape
  ax.pcolormesh(
    np.arange(wide + 1) + first - 0.5,
    np.arange(high + 1) - 0.5,
    table,
    cmap=_blues(),
    edgecolors='white',
    **style,
  )
  ax.set_yticks(range(high), rows)
  ax.set_ylim(high - 0.5, -0.5)
  ax.tick_params(labelsize=8, length=0)
  ax.spines[:].set_visible(False)


def _runs(row: np.ndarray) -> list[tuple[int, float, int]]:
  """Stretches of one value, as (start, value, length); NaN is left out."""
  runs, start = [], 0
  for value, group in itertools.groupby(row):
    length = len(list(group))
    if not math.isnan(value):
      runs.append((start, value, length))
    start += length
  return runs


def _blues():
  from matplotlib.colors import LinearSegmentedColormap

  return LinearSegmentedColormap.from_list('widths', ['#EAF2F8', _COLOURS[0]])


def heat(
  tables: Mapping[str, Any],
  *,
  rows: Sequence[Any],
  columns: Sequence[Any],
  x: str,
  y: str,
  marked: Mapping[str, Any] | None = None,
) -> Any:
  """Tables of numbers as colours, side by side.

  Args:
    tables: for each title an (R, C) array of finite numbers.
    rows: what the R rows are, from the top.
    columns: what the C columns are.
    x: what the columns say.
    y: what the rows say.
    marked: by title, (R, C) of bool, cells to be framed; None for none.

  Returns:
    The Matplotlib figure; darker is more, on a scale of each table's own.

  Raises:
    ValueError: if there is no table, or one is not of shape (R, C).
    ImportError: if Matplotlib is not installed.

  Example:
    >>> figure = heat({'error': [[1.0, 2.0]]}, rows=[0.4], columns=[0, 1],
    ...               x='noise', y='keep')
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1', '2']
  """
  shape = (len(rows), len(columns))
  arrays = {title: np.asarray(table) for title, table in tables.items()}
  for title, table in arrays.items():
    if table.shape != shape:
      raise ValueError(
        f'heat: {title!r} is of shape {table.shape}, and there are '
        f'{shape[0]} rows and {shape[1]} columns.'
      )
  if not arrays:
    raise ValueError('heat: there is nothing to draw, no tables.')
  wide, high = 0.62 * shape[1] + 0.9, 0.36 * shape[0] + 0.9
  figure = _figure(wide * len(arrays), high, 'constrained')
  axes = figure.subplots(1, len(arrays), squeeze=False, sharey=True)[0]
  frame = 0.46 * np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1]])
  for ax, (title, table) in zip(axes, arrays.items()):
    _cells(ax, table, rows, linewidth=0.5)
    middle = (table.min() + table.max()) / 2
    for (i, j), value in np.ndenumerate(table):
      ax.text(
        *(j, i, f'{value:.3g}'),
        ha='center',
        va='center',
        fontsize=7.5,
        color='white' if value > middle else _INK,
      )
    for i, j in np.argwhere((marked or {}).get(title, np.zeros(shape))):
      ax.plot(j + frame[0], i + frame[1], color=_COLOURS[3], linewidth=1.6)
    ax.set_title(title, fontsize=9)
    ax.set_xticks(range(shape[1]), columns)
    ax.set_xlabel(x, fontsize=9)
  axes[0].set_ylabel(y, fontsize=9)
  return figure


def calibration(events: Iterable[Event]) -> Any:
  """Predicted against measured loss change of moves, with the identity.

  Args:
    events: a lineage; events without both numbers are left out.

  Returns:
    The Matplotlib figure: a point for each move, numbered by its generation as
    the rows of `metrics.jsonl` are (the first is 1); moves that were undone
    look different.

  Raises:
    ValueError: if no event has both numbers.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> figure = calibration([Event(2, 'move', None, -0.5, -0.25)])
    >>> figure.axes[0].get_xlabel()
    'predicted loss change, nats'
  """
  events = [
    event
    for event in events
    if event.predicted is not None
    and event.measured is not None
    and math.isfinite(event.predicted)
    and math.isfinite(event.measured)
  ]
  if not events:
    raise ValueError(
      'there is nothing to draw: no move was both predicted and measured.'
    )
  figure = _figure(4.6, 4.2, 'constrained')
  ax = figure.add_subplot()
  values = [v for event in events for v in (event.predicted, event.measured)]
  low, high = min(*values, 0.0), max(*values, 0.0)
  room = 0.06 * (high - low) or 1.0
  low, high = low - room, high + room
  ax.axhline(0, color=_OWN, linewidth=0.8)
  ax.axvline(0, color=_OWN, linewidth=0.8)
  ax.plot((low, high), (low, high), '--', color=_FAINT, lw=1, label='equal')
  for kind, (marker, label, colour) in _KINDS.items():
    chosen = [event for event in events if event.kind == kind]
    if chosen:
      ax.plot(
        [event.predicted for event in chosen],
        [event.measured for event in chosen],
        linestyle='',
        marker=marker,
        markersize=6,
        color=colour,
        label=label,
      )
  for event in events:
    ax.annotate(
      str(event.generation + 1),
      (event.predicted, event.measured),
      (5, 4),
      textcoords='offset points',
      fontsize=7,
      color=_FAINT,
    )
  ax.set_xlim(low, high)
  ax.set_ylim(low, high)
  ax.set_aspect('equal')
  ax.set_xlabel('predicted loss change, nats')
  ax.set_ylabel('measured loss change, nats')
  ax.locator_params(nbins=6)
  _plain(ax)
  ax.legend(fontsize=8, frameon=False)
  return figure


def consistency(
  points: Mapping[str, Mapping[str, Any]],
  *,
  x: str = 'cost',
  threshold: float | None = None,
) -> Any:
  """How well cheap scores of networks agree with a dear one, against cost.

  Args:
    points: for each proxy `x`, its cost, above 0; `y`, a rank correlation, with
      `low` and `high`, the ends of its interval; and `kind`, which is told by
      colour.
    x: what the cost is.
    threshold: a correlation to be reached, a dotted line; None for none.

  Returns:
    The Matplotlib figure, with costs on a logarithmic axis.

  Raises:
    ValueError: if there are no points.
    ImportError: if Matplotlib is not installed.

  Example:
    >>> point = {'x': 0.3, 'y': 0.8, 'low': 0.6, 'high': 0.9, 'kind': 'epochs'}
    >>> figure = consistency({'c0r0s0e3': point})
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['c0r0s0e3']
  """
  if not points:
    raise ValueError('consistency: there is nothing to draw, no points.')
  figure = _figure(9, 5)
  ax = figure.add_axes((0.07, 0.1, 0.91, 0.77))
  _plain(ax)
  ax.set_xscale('log')
  ends = [point[end] for point in points.values() for end in ('low', 'high')]
  costs = [point['x'] for point in points.values()]
  ax.set_xlim(min(costs) / 1.6, max(costs) * 2.5)
  ax.set_ylim(min([-0.05, *ends]) - 0.02, max([*ends, 1.0]) + 0.04)
  kinds = list(dict.fromkeys(point['kind'] for point in points.values()))
  for i, kind in enumerate(kinds):
    own = [point for point in points.values() if point['kind'] == kind]
    middle = np.array([point['y'] for point in own])
    spread = [
      np.maximum(middle - [point['low'] for point in own], 0),
      np.maximum([point['high'] for point in own] - middle, 0),
    ]
    colours = (*_COLOURS, _FAINT)
    colour = colours[i % len(colours)]
    marker = 'osD'[i // len(colours) % 3]
    ax.errorbar(
      *([point['x'] for point in own], middle, spread),
      fmt=marker,
      ms=6,
      color=colour,
      elinewidth=1,
      label=kind,
    )
  if threshold is not None:
    ax.axhline(threshold, color=_FAINT, linestyle=':', linewidth=1)
  ax.axhline(0, color=_OWN, linewidth=0.8)
  _labels(ax, points)
  ax.set_xlabel(x)
  ax.set_ylabel("Spearman's rho with the reference; bars: 95 %")
  figure.legend(fontsize=8, frameon=False, loc='upper center', ncols=4)
  return figure


def _labels(ax, points: Mapping[str, Mapping[str, Any]]) -> None:
  """Names of points, beside them where there is room."""

  def at(cost, value):
    return ax.transData.transform((cost, value)) / ax.figure.dpi

  dots = {name: at(point['x'], point['y']) for name, point in points.items()}
  # Boxes (left, bottom, right, top), in inches, of what no name may cover.
  taken = [(x - 0.06, y - 0.06, x + 0.06, y + 0.06) for x, y in dots.values()]
  bars = [
    (*at(point['x'], point['low']), *at(point['x'], point['high']))
    for point in points.values()
  ]

  def covers(box, other) -> float:
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return wide * high if min(wide, high) > 0 else 0.0

  for name, (x, y) in sorted(dots.items(), key=lambda item: item[1][0]):
    wide, high = _extent(name, _SIZE - 1), 0.13
    places = [
      (x + side, y + rise, x + side + wide, y + rise + high)
      for rise in (-0.065, 0.08, -0.21, 0.22, -0.35, 0.36, -0.49, 0.5, -0.63)
      for side in (0.09, -0.09 - wide)
    ]
    costs = [
      20 * sum(covers(place, box) for box in taken)
      + sum(covers(place, (b[0] - 0.02, b[1], b[2] + 0.02, b[3])) for b in bars)
      + 0.002 * i
      for i, place in enumerate(places)
    ]
    best = places[int(np.argmin(costs))]
    taken.append(best)
    ax.annotate(
      name,
      (72 * x, 72 * y),
      (72 * best[0], 72 * (best[1] + high / 2)),
      xycoords='figure points',
      textcoords='figure points',
      va='center_baseline',
      fontsize=_SIZE - 1,
      color=_INK,
    )
