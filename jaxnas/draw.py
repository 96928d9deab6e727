"""Pictures: a network with its channel groups, and how a search went.

Matplotlib is imported where a picture is made, so that `import jaxnas` stays
quick. Every function returns a `matplotlib.figure.Figure` of its own
(`figure.savefig('net.png')`; a notebook shows it) and leaves `pyplot` and its
settings alone. The colours are those of Okabe and Ito, which stay apart for
colour-blind readers.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxnas import groups
from jaxnas import spec as specs
from jaxnas.base import Event

# Okabe and Ito (2008), without black and without the yellow that is hard to
# see on white.
COLOURS = (
  '#0072B2',
  '#E69F00',
  '#009E73',
  '#D55E00',
  '#CC79A7',
  '#56B4E9',
)
_HATCHES = ('', '///', '...', 'xxx')
_OWN = '#9AA5B1'
_FIXED = '#FFFFFF'
_INK = '#222222'
_FAINT = '#6B7280'


class Row(NamedTuple):
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


def rows(spec: specs.Spec) -> tuple[Row, ...]:
  """The lines of a network's picture, every input before its readers.

  Args:
    spec: the network.

  Returns:
    One row for each layer; norms, activations and pooling that follow a layer
    directly are in its row.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> for row in rows(seeds.chain((8, 8, 1), (4, 'M'), 10)):
    ...   print(row.nodes[0].name, '|', row.words)
    input | input
    conv1 | conv 3×3 · BN · relu · max 2×2 /2 · global mean
    logits | dense
  """
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
    Row(
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
  spec: specs.Spec, lines: Sequence[Row]
) -> dict[str, tuple[str, str]]:
  """The colour and hatch of every channel group.

  A group that only one row has is grey; the others are told apart.
  """
  table = groups.table(spec)
  seen: dict[str, int] = {}
  for line in lines:
    for name in dict.fromkeys(table.axes[line.nodes[0].name].groups):
      seen[name] = seen.get(name, 0) + 1
  tied = [name for name in seen if seen[name] > 1]
  looks = {}
  for name in seen:
    if name in tied:
      i = tied.index(name)
      hatch = _HATCHES[i // len(COLOURS) % len(_HATCHES)]
      looks[name] = (COLOURS[i % len(COLOURS)], hatch)
    else:
      looks[name] = (_FIXED if table.groups[name].frozen else _OWN, '')
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
  lines = rows(spec)
  looks = _looks(spec, lines)
  table = groups.table(spec)

  names = [line.nodes[0].name for line in lines]
  shapes = [
    '×'.join(map(str, spec.shapes[line.nodes[-1].name])) for line in lines
  ]
  curves = [
    (source, i, _bulge(i - source))
    for i, line in enumerate(lines)
    for source in line.sources
    if i - source > 1
  ]
  remarks = [_remark(spec, name, looks) for name in names]

  def column(texts: Iterable[str], bold: bool = False) -> float:
    return max(_extent(text, _SIZE, bold) for text in texts) + _GAP

  # Where the columns begin, in inches: rail, names, operations, shapes, bars.
  rail = 0.2 + max((bulge for _, _, bulge in curves), default=0.0)
  name_x = rail + _GAP
  words_x = name_x + column(names, bold=True)
  shape_x = words_x + column(line.words for line in lines)
  bars_x = shape_x + column(shapes)
  width = bars_x + _BARS + 0.1 + column(remarks)
  height = (len(lines) + 2.6) * _PITCH

  figure = _figure(width, height) if ax is None else ax.figure
  ax = figure.add_axes((0, 0, 1, 1)) if ax is None else ax
  ax.set_xlim(0, width)
  ax.set_ylim(height, 0)
  ax.set_axis_off()

  def y(i: int) -> float:
    return (i + 0.8) * _PITCH

  longest = max(sum(table.axes[name].sizes) for name in names)
  for i, (line, name) in enumerate(zip(lines, names, strict=True)):
    axis = table.axes[name]
    text = functools.partial(
      ax.text, y=y(i), fontsize=_SIZE, va='center_baseline', color=_INK
    )
    text(x=name_x, s=name, fontweight='bold')
    text(x=words_x, s=line.words)
    text(x=shape_x, s=shapes[i], color=_FAINT)
    x = bars_x
    for group, size in zip(axis.groups, axis.sizes, strict=True):
      _bar(ax, x, y(i), size / longest * _BARS, looks[group])
      x += size / longest * _BARS
    label, _, rest = remarks[i].partition('  ')
    text(x=x + 0.07, s=label)
    if rest:
      x += 0.07 + _extent(label + '  ', _SIZE)
      text(x=x, s=rest, color=_FAINT, fontsize=_SIZE - 1)

  for i, line in enumerate(lines):
    for source in line.sources:
      colour = looks[table.axes[lines[source].nodes[-1].name].groups[0]][0]
      colour = _OWN if colour == _FIXED else colour
      if i - source == 1:
        ax.plot((rail, rail), (y(source), y(i)), color=colour, lw=1.6, zorder=1)
      else:
        _curve(ax, rail, y(source), y(i), _bulge(i - source), colour)
  for i, name in enumerate(names):
    colour, _ = looks[table.axes[name].groups[0]]
    ax.plot(
      (rail,),
      (y(i),),
      marker='o',
      markersize=5.5,
      markerfacecolor=colour,
      markeredgecolor=_FAINT if colour == _FIXED else 'white',
      zorder=3,
    )
  ax.text(
    name_x, y(len(lines)), _NOTE, fontsize=7, color=_FAINT, va='center', 
    linespacing=1.3,
  )
  return figure


def _bulge(span: int) -> float:
  """How far a curve over so many rows goes to the left, in inches."""
  return min(0.14 + 0.06 * span, 0.9)


def _remark(spec: specs.Spec, name: str, looks: Mapping[str, Any]) -> str:
  """What stands behind a bar: the width, and what it is tied to."""
  table = groups.table(spec)
  axis = table.axes[name]
  text = str(sum(axis.sizes))
  if axis.repeat > 1:
    text += f' × {axis.repeat} positions'
  if set(axis.groups) & set(spec.padded):
    text += ' stored'
  others = [group for group in dict.fromkeys(axis.groups) if group != name]
  if others:
    return f'{text}  = {" + ".join(others)}'
  return f'{text}  fixed' if table.groups[name].frozen else text


def _bar(ax, x: float, y: float, length: float, look: tuple[str, str]) -> None:
  from matplotlib.patches import Rectangle

  colour, hatch = look
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
  lines = rows(spec)
  table = groups.table(spec)
  looks = _looks(spec, lines)
  text = ['flowchart TD']
  classes: dict[str, list[int]] = {}
  for i, line in enumerate(lines):
    name = line.nodes[0].name
    shape = '×'.join(map(str, spec.shapes[line.nodes[-1].name]))
    # `#` starts an entity in Mermaid, and quotes end the label.
    words = line.words.replace('#', '#35;').replace('"', '#quot;')
    text.append(f'  n{i}["<b>{name}</b><br>{words}<br>{shape}"]')
    found = dict.fromkeys(table.axes[name].groups)
    for group in found:
      if len(found) == 1 and looks[group][0] in COLOURS:
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
  'move': ('^', 'move made', COLOURS[0]),
  'rejected': ('x', 'move undone', COLOURS[3]),
  'diverged': ('D', 'diverged', COLOURS[4]),
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
      'color': COLOURS[i % len(COLOURS)],
      'linestyle': dashes[i % len(dashes)],
      'label': name.replace('_', ' '),
    }
    accuracy = 100 * _column(found, 'valid_metric')
    dots = 'o' if len(found) == 1 else ''
    left.plot(_column(found, 'examples'), accuracy, marker=dots, **style)
    params = _column(found, 'params')
    if i == 0:
      right.plot(_column(found, 'generation'), params, marker=dots, **style)
      _marks(left, found, _column(found, 'examples'), accuracy)
      _marks(right, found, _column(found, 'generation'), params)
    elif len(set(params)) == 1:  # A network of fixed size: a level to compare.
      right.axhline(params[0], **style)
  left.set_xlabel('training examples')
  left.set_ylabel('validation accuracy, %')
  right.set_xlabel('generation')
  right.set_ylabel('parameters')
  right.set_ylim(bottom=0)
  _plain(left, right)
  _whole_numbers(right.xaxis)
  left.legend(fontsize=8, frameon=False)
  return figure


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
    at = [i for i, row in enumerate(rows) if row.get('event') == kind]
    if at:
      ax.plot(
        x[at],
        y[at],
        linestyle='',
        marker=marker,
        markersize=6,
        color=colour,
        label=label,
      )


def _plain(*axes) -> None:
  from matplotlib.ticker import FuncFormatter

  for ax in axes:
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(color='#E5E7EB', linewidth=0.7)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8)
    for axis in (ax.xaxis, ax.yaxis):
      axis.label.set_fontsize(9)
      if ax.get_xlabel() == 'training examples' or axis is ax.yaxis:
        axis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:,.12g}'))


def _whole_numbers(axis) -> None:
  from matplotlib.ticker import MaxNLocator

  axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
