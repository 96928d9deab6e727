"""Pictures: what is written and coloured in them, and that it can be read."""

import dataclasses
import itertools
import math
import re
import sys
from typing import ClassVar

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle

from jaxnas import draw, groups, spec
from jaxnas.base import Event
from jaxnas.spaces import seeds

NETS = {
  'chain': seeds.chain((8, 8, 1), (9, 'M', 7, 10), 10),
  'mlp': seeds.mlp((8, 8, 1), (30, 20), 10),
  'resnet': seeds.resnet(10, blocks=3),
  'vgg19': seeds.vgg19((32, 32, 3), 10),
  'mobilenet': seeds.mobilenet_v1((32, 32, 3), 100),
}


def dense_block() -> spec.Spec:
  """Two convolutions whose outputs lie behind their input's channels."""
  return spec.Spec(
    (
      spec.Node('image', spec.Input((8, 8, 3))),
      spec.Node('stem', spec.Conv(8), ('image',)),
      spec.Node('grow1', spec.Conv(4), ('stem',)),
      spec.Node('cat1', spec.Concat(), ('stem', 'grow1')),
      spec.Node('grow2', spec.Conv(4), ('cat1',)),
      spec.Node('cat2', spec.Concat(), ('stem', 'grow1', 'grow2')),
      spec.Node('flat', spec.Flatten(), ('cat2',)),
      spec.Node('logits', spec.Dense(10), ('flat',)),
    ),
    output='logits',
  )


def lines(figure: Figure) -> dict[str, list[str]]:
  """The texts of each row of a network's picture, by the row's first."""
  rows: dict[float, list[tuple[float, str]]] = {}
  for text in figure.axes[0].texts:
    x, y = text.get_position()
    rows.setdefault(round(y, 4), []).append((x, text.get_text()))
  ordered = (sorted(row) for _, row in sorted(rows.items()))
  return {row[0][1]: [text for _, text in row[1:]] for row in ordered}


def bars(figure: Figure) -> dict[str, list[Rectangle]]:
  """The bars of each row, by the name at its left."""
  names = {
    round(text.get_position()[1], 4): text.get_text()
    for text in figure.axes[0].texts
    if text.get_fontweight() == 'bold'
  }
  found: dict[str, list[Rectangle]] = {}
  for patch in figure.axes[0].patches:
    if isinstance(patch, Rectangle):
      middle = patch.get_y() + patch.get_height() / 2
      found.setdefault(names[round(middle, 4)], []).append(patch)
  return found


def look(bar: Rectangle) -> tuple[str, str]:
  return to_hex(bar.get_facecolor()), bar.get_hatch() or ''


def curves(figure: Figure) -> list[PathPatch]:
  return [p for p in figure.axes[0].patches if isinstance(p, PathPatch)]


@pytest.mark.parametrize('net', NETS)
def test_every_layer_has_its_name_and_width_in_its_row(net):
  rows = lines(draw.network(NETS[net]))
  for node in NETS[net].nodes:
    if node.op.kind == 'mixing':
      assert str(node.op.features) in rows[node.name]


@pytest.mark.parametrize('net', NETS)
def test_texts_lie_inside_the_picture_and_apart(net):
  figure = draw.network(NETS[net])
  figure.draw_without_rendering()
  boxes = [text.get_window_extent() for text in figure.axes[0].texts]
  for box in boxes:
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1
  # The boxes of texts in neighbouring rows touch where nothing is inked.
  boxes = [box.shrunk(1, 0.8) for box in boxes]
  for a, b in itertools.combinations(boxes, 2):
    assert not a.overlaps(b)
  for bar in itertools.chain(*bars(figure).values()):
    assert not any(bar.get_window_extent().overlaps(box) for box in boxes)


@pytest.mark.parametrize('net', ['resnet', 'mobilenet'])
def test_bars_look_alike_where_and_only_where_channels_are_tied(net):
  table = groups.table(NETS[net])
  looks: dict[str, set[tuple[str, str]]] = {}
  rows: dict[str, int] = {}
  for name, (bar,) in bars(draw.network(NETS[net])).items():
    (group,) = table.axes[name].groups
    if not table.groups[group].frozen:
      looks.setdefault(group, set()).add(look(bar))
      rows[group] = rows.get(group, 0) + 1
  assert all(len(found) == 1 for found in looks.values())
  shared = [found.pop() for group, found in looks.items() if rows[group] > 1]
  own = {found.pop() for found in looks.values() if found}
  assert len(shared) > 2 and len(set(shared)) == len(shared)
  assert not own & set(shared)


def test_networks_wider_than_the_palette_still_tell_groups_apart():
  shared = [
    look(bar)
    for name, (bar,) in bars(draw.network(NETS['mobilenet'])).items()
    if name.startswith('depth')
  ]
  assert len(set(shared)) == 13


def test_tied_rows_name_the_group():
  rows = lines(draw.network(NETS['resnet']))
  assert '= stem' in rows['stage1_block2_conv2']
  assert not any(text.startswith('=') for text in rows['stem'])
  assert 'fixed' in rows['logits']


def test_lengths_of_bars_are_widths():
  found = bars(draw.network(NETS['chain']))
  lengths = [found[f'conv{i}'][0].get_width() for i in (1, 2, 3)]
  np.testing.assert_allclose(np.divide(lengths, lengths[0]), [1, 7 / 9, 10 / 9])


def test_norms_activations_and_pools_are_folded_into_the_layer_before():
  rows = lines(draw.network(NETS['chain']))
  assert list(rows)[:5] == ['input', 'conv1', 'conv2', 'conv3', 'logits']
  assert rows['conv1'][:2] == ['conv 3×3 · BN · relu · max 2×2 /2', '4×4×9']
  assert rows['conv3'][:2] == ['conv 3×3 · BN · relu · global mean', '10']


def test_a_value_read_twice_is_not_folded_away():
  nodes = (
    spec.Node('image', spec.Input((4,))),
    spec.Node('dense', spec.Dense(4), ('image',)),
    spec.Node('act', spec.Activation('gelu'), ('dense',)),
    spec.Node('sum', spec.Add(), ('dense', 'act')),
  )
  rows = lines(draw.network(spec.Spec(nodes, 'sum')))
  assert list(rows)[:4] == ['image', 'dense', 'act', 'sum']
  assert rows['act'][0] == 'gelu'


def test_concatenated_groups_lie_side_by_side():
  figure = draw.network(dense_block())
  found = bars(figure)
  alone = [look(found[name][0]) for name in ('stem', 'grow1', 'grow2')]
  assert [look(bar) for bar in found['cat2']] == alone
  lengths = [bar.get_width() for bar in found['cat2']]
  np.testing.assert_allclose(np.divide(lengths, lengths[0]), [1, 0.5, 0.5])
  first, second, _ = found['cat2']
  assert first.get_x() + first.get_width() == pytest.approx(second.get_x())
  assert {'16', '= stem + grow1 + grow2'} <= set(lines(figure)['cat2'])


def test_only_values_that_skip_rows_are_curves():
  assert not curves(draw.network(NETS['vgg19']))
  # One over the first block, and around and into each of two shortcuts.
  assert len(curves(draw.network(seeds.resnet(10, blocks=1)))) == 5
  assert len(curves(draw.network(dense_block()))) == 3


def test_curves_keep_clear_of_names_and_differ_in_reach():
  figure = draw.network(dense_block())
  found = [curve.get_path() for curve in curves(figure)]
  boxes = [path.get_extents() for path in found]
  # They begin and end on one line, left of the names, and bend away from it.
  (rail,) = {box.x1 for box in boxes}
  assert rail < min(text.get_position()[0] for text in figure.axes[0].texts)
  reach = {round(box.height, 4): rail - box.x0 for box in boxes}
  assert 0.1 < min(reach.values()) and max(reach.values()) < rail
  assert [reach[height] for height in sorted(reach)] == sorted(reach.values())


def test_draws_into_axes():
  figure = Figure()
  left, right = figure.subplots(1, 2)
  assert draw.network(NETS['mlp'], ax=right) is figure
  assert figure.axes == [left, right]
  assert 'dense1' in {text.get_text() for text in right.texts}
  assert not left.texts


def test_padded_widths_are_said_to_be_stored():
  padded = dataclasses.replace(NETS['mlp'], padded=('dense1',))
  rows = lines(draw.network(padded))
  assert '30 stored' in rows['dense1'] and '20' in rows['dense2']


@dataclasses.dataclass(frozen=True)
class Rotate:
  """An operation of a user's own, with what pictures look for."""

  window: tuple[int, int] = (2, 4)
  kind: ClassVar[str] = 'channelwise'

  def shape(self, x):
    return x


def test_operations_that_are_not_ours_are_called_by_their_class():
  nodes = (
    spec.Node('image', spec.Input((8, 8, 3))),
    spec.Node(
      'conv', spec.Conv(4, (5, 1), (2, 1), padding='VALID'), ('image',)
    ),
    spec.Node('turn', Rotate(), ('conv',)),
    spec.Node('drop', spec.Dropout(0.5), ('turn',)),
  )
  rows = lines(draw.network(spec.Spec(nodes, 'drop')))
  assert rows['conv'][0] == 'conv 5×1 /2×1 valid · rotate 2×4 · dropout 0.5'


def test_pictures_leave_pyplot_alone():
  draw.network(NETS['mlp'])
  assert 'matplotlib.pyplot' not in sys.modules


@pytest.mark.parametrize('net', NETS)
def test_mermaid_has_the_rows_and_edges_of_the_picture(net):
  found = NETS[net]
  text = draw.mermaid(found)
  names = dict(re.findall(r'^  (n\d+)\["<b>(\w+)</b>', text, re.MULTILINE))
  assert [*names.values()] == list(bars(draw.network(found)))
  edges = re.findall(r'^  (n\d+) --> (n\d+)$', text, re.MULTILINE)
  read = {names[target] for _, target in edges}
  assert read == set(names.values()) - {found.input}
  for source, target in edges:
    assert int(source[1:]) < int(target[1:])


def test_mermaid_colours_tied_rows():
  text = draw.mermaid(seeds.resnet(10, blocks=1))
  assert '  class n1,n3,n4 g0\n' in text
  assert len(re.findall('classDef', text)) == 3


def run_rows() -> list[dict]:
  grown = [
    {'valid_metric': 0.3, 'params': 400, 'event': 'move'},
    {'valid_metric': 0.6, 'params': 700, 'event': 'rejected'},
    {'valid_metric': None, 'params': 700},
  ]
  rows = [
    {'search': 'growth', 'generation': i, 'examples': 500 * i, **row}
    for i, row in enumerate(grown, 1)
  ]
  other = {'search': 'seed_same_examples', 'params': 100, 'valid_metric': 0.4}
  return rows + [{**other, 'generation': i, 'examples': i} for i in (1, 2)]


def test_growth_shows_every_search_and_marks_moves():
  left, right = draw.growth(run_rows()).axes
  drawn = {line.get_label(): line for line in left.lines}
  assert [*drawn] == [
    'growth',
    'seed same examples',
    'move made',
    'move undone',
  ]
  np.testing.assert_allclose(
    drawn['growth'].get_xydata(), [[500, 30], [1000, 60], [1500, math.nan]]
  )
  np.testing.assert_allclose(drawn['move made'].get_xydata(), [[500, 30]])
  np.testing.assert_allclose(drawn['move undone'].get_xydata(), [[1000, 60]])
  assert drawn['seed same examples'].get_linestyle() == '--'
  params = {line.get_label(): line for line in right.lines}
  np.testing.assert_allclose(params['growth'].get_ydata(), [400, 700, 700])
  np.testing.assert_allclose(params['seed same examples'].get_ydata(), 100)


def test_growth_marks_a_divergence_beside_the_move_after_it():
  row = {'search': 'growth', 'generation': 1, 'examples': 5, 'params': 400}
  row = {**row, 'valid_metric': 0.5, 'event': 'move', 'diverged': True}
  left, _ = draw.growth([row]).axes
  labels = [line.get_label() for line in left.lines]
  assert labels == ['growth', 'move made', 'diverged']


def test_growth_needs_rows():
  with pytest.raises(ValueError, match='nothing to draw'):
    draw.growth([])


def width_rows() -> list[dict]:
  sizes = [{'conv1': 4}, {'conv1': 4}, {'conv1': 9, 'conv2': 3}]
  return [
    {'search': 'growth', 'generation': i, 'widths': found}
    for i, found in enumerate(sizes, 1)
  ]


def test_widths_are_written_where_they_are_new_and_at_the_end():
  other = {'search': 'other', 'generation': 4, 'widths': {'conv9': 99}}
  figure = draw.widths([*width_rows(), other], start={'conv1': 2})
  (ax,) = figure.axes
  written = {'conv1': [], 'conv2': []}
  names = [label.get_text() for label in ax.get_yticklabels()]
  for text in ax.texts:
    written[names[text.get_position()[1]]].append(text.get_text())
  assert written == {'conv1': ['2', '4', '9', '9'], 'conv2': ['3', '3']}


def test_widths_are_darker_for_more_channels_and_empty_for_none():
  (ax,) = draw.widths(width_rows()).axes
  (mesh,) = ax.collections
  values = mesh.get_array()
  assert values.tolist() == [[4, 4, 9], [None, None, 3]]
  few, many = mesh.cmap(mesh.norm([4.0, 9.0]))[:, :3].sum(axis=1)
  assert many < few


def test_widths_of_a_long_run_fit():
  rows = [
    {'search': 's', 'generation': i, 'widths': {'conv1': 100 + i}}
    for i in range(1, 400)
  ]
  figure = draw.widths(rows)
  assert figure.get_figwidth() < 12
  # There is room for no width but the last.
  assert [text.get_text() for text in figure.axes[0].texts] == ['499']


def test_widths_need_widths():
  with pytest.raises(ValueError, match='no row has widths'):
    draw.widths([{'search': 'growth', 'generation': 1}])


def test_calibration_has_a_point_for_each_measured_move():
  events = [
    Event(0, 'move', None, -0.5, -0.25),
    Event(1, 'rejected', None, -0.1, 0.3),
    Event(2, 'diverged'),
    Event(3, 'move', None, -0.2, math.nan),
  ]
  (ax,) = draw.calibration(events).axes
  drawn = {line.get_label(): line for line in ax.lines}
  np.testing.assert_allclose(drawn['move made'].get_xydata(), [[-0.5, -0.25]])
  np.testing.assert_allclose(drawn['move undone'].get_xydata(), [[-0.1, 0.3]])
  made, undone = drawn['move made'], drawn['move undone']
  assert made.get_marker() != undone.get_marker()
  assert [text.get_text() for text in ax.texts] == ['1', '2']
  predicted, measured = drawn['equal'].get_data()
  assert list(predicted) == list(measured) == list(ax.get_xlim())
  assert ax.get_xlim() == ax.get_ylim()


@pytest.mark.parametrize('events', [[], [Event(0, 'diverged')]])
def test_calibration_needs_a_measured_move(events):
  with pytest.raises(ValueError, match='nothing to draw'):
    draw.calibration(events)


def test_a_missing_matplotlib_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
  with pytest.raises(ImportError, match='pip install matplotlib'):
    draw.calibration([Event(0, 'move', None, -0.5, -0.25)])


def test_heat_tells_every_number_and_frames_what_is_marked():
  tables = {'error': np.array([[1.0, 20.0], [3.0, 4.0]]), 'other': np.eye(2)}
  where = {'rows': [0.0, 0.4], 'columns': [0.1, 0.3], 'x': 'noise', 'y': 'keep'}
  marked = {'error': np.array([[False, True], [False, False]])}
  figure = draw.heat(tables, **where, marked=marked)
  left, right = figure.axes
  assert [text.get_text() for text in left.texts] == ['1', '20', '3', '4']
  assert [text.get_text() for text in right.texts] == ['1', '0', '0', '1']
  (frame,) = left.get_lines()
  assert set(frame.get_xdata().round()) == {1.0}  # The second column,
  assert set(frame.get_ydata().round()) == {0.0}  # the first row.
  assert not right.get_lines()
  with pytest.raises(ValueError, match=r'shape \(2, 2\).* 1 rows'):
    draw.heat(tables, **{**where, 'rows': [0.0]})
  with pytest.raises(ValueError, match='no tables'):
    draw.heat({}, **where)
