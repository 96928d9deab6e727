"""Which cheap score of a network can be trusted: the study of EcoNAS.

Zhou et al., "EcoNAS: Finding Proxies for Economical Neural Architecture
Search" (CVPR 2020, arXiv 2001.01233), sections 2 and 3. Networks are drawn from
a space and trained at a reference setting, and again, from weights of their
own, at cheaper ones (`jaxnas.fidelity`). How well a cheap setting keeps their
order is its consistency. Scores that need no training
(`jaxnas.estimators.zero_cost`) stand beside them.

Departs from the paper in the number of networks, in the intervals, which it
does not give, and in that all settings are compared by the seconds that they
take, not by their operations alone.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table

from jaxnas import base, draw, fidelity, network, workdir
from jaxnas.fidelity import Fidelity
from jaxnas.jobs import consistency, proxy_columns, proxy_plan
from jaxnas.jobs.image_spaces import SPACES
from jaxnas.jobs.proxy_columns import Column, Study
from jaxnas.jobs.proxy_plan import AGAIN
from jaxnas.jobs.settings import Settings

_UNITS = {'processor': 'processor time', 'seconds': 'wall time'}


def study(
  settings: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Measures how well cheap scores keep the order of networks.

  Each of `networks` is trained at `reference` and at each of `fidelities`, from
  weights of its own each time, by SGD with momentum 0.9, weight decay, clipped
  gradients and a cosine over the whole of that training, as the official code
  of EcoNAS does it; its score is the best accuracy on the validation split
  after an epoch. Each of `zero_cost` is computed from one batch, of the
  networks at the size of the reference. How well a score agrees with the
  reference is told by Spearman's rho and Kendall's tau-b, each with the 95 %
  interval of a bootstrap over networks; a training that diverged ranks last.

  Networks are drawn as the space draws them, each once, and by default without
  those whose output does not depend on their input: every proxy knows these
  from the others, so that a few of them promise more than there is.

  All scores are on the same validation images, and share what is particular
  about them. What `again` adds says how much of the rest is noise: the
  reference once more, from other weights, is as consistent as a proxy can be
  expected to be.

  Killed at any moment and called again with the same settings it goes on.
  Fidelities and zero-cost scores may be added to those of a finished study, and
  `threshold` and `resamples` changed; everything else must stay.

  Args:
    settings: what differs from `proxy_plan.DEFAULTS`:
      dataset: `'digits'`, or a name in TFDS with `data_dir`.
      examples, valid: images to train on and to score by; 0 for all there are
        to train on, and for what the data set holds out.
      space: of `image_spaces.SPACES`.
      channels, repeats: of its networks, at fidelity c0.
      networks: how many, 4 at least.
      unconnected: whether to draw those that are not connected, too.
      reference: a fidelity, such as `'c0r0s0e12'`.
      fidelities: cheaper ones.
      zero_cost: of `estimators.PROXIES`.
      again: whether to train the reference twice.
      batch, learning_rate, weight_decay, clip: of training.
      chunk: networks that are trained in one call, and saved after it.
      seed: of the data, the networks, their weights and the bootstrap.
      threshold: the rho that a proxy must have to be recommended.
      resamples: of the bootstrap.
    folder: the workdir. `columns/` has the scores of each proxy.
    console: where to show progress; None for standard output.

  Returns:
    What is written to `summary.json`: `proxies`, for each name `rho`, `tau`,
    their intervals, and what a network cost, `examples`, and relative to the
    reference `flops` (None where nothing is trained), `seconds` of wall time
    without compiling, and `cost`: on CPU the seconds of the processor, which
    other programs disturb less, where it is known of all, and elsewhere wall
    time; `pairs`, the differences in rho of comparable proxies, and
    `questions`, their means; `recommended`, with the reason in words; and
    `reference`, what there was to agree with. `consistency.png` shows it.

  Raises:
    ValueError: for illegal settings, before anything is computed, and for a
      folder that holds another study.
    ImportError, FileNotFoundError: if the data cannot be read.
  """
  console = console or rich.console.Console()
  settings = proxy_plan.check(settings)
  space = SPACES[settings['space']]
  task = proxy_plan.read(settings)
  trained = proxy_plan.named(settings)
  sizes = {
    name: proxy_plan.sized(settings, task, own) for name, own in trained.items()
  }
  key = jax.random.key(settings['seed'])
  genotypes = proxy_plan.draw_networks(
    network.named_key(key, 'networks'),
    space,
    settings['networks'],
    unconnected=settings['unconnected'],
  )
  proxy_plan.refuse_dear(settings, task, sizes, genotypes)
  path = workdir.claim(folder, proxy_plan.claimed(settings))
  (path / 'columns').mkdir(exist_ok=True)
  console.print(
    f'{task.name}: {len(task.train.targets):,} training and '
    f'{len(task.valid.targets):,} validation images; {len(genotypes)} networks '
    f'of {space.space.name}; {len(sizes)} trainings of each; '
    f'{jax.device_count()} {jax.default_backend()} device(s); {path}',
    highlight=False,
  )
  job = Study(
    *(settings, space, task, trained, sizes, genotypes, key, path, console)
  )
  columns = {**proxy_columns.train(job), **proxy_columns.score(job)}
  summary = _summarised(job, columns)
  workdir.write_atomically(
    path / 'summary.json', json.dumps(summary, indent=2) + '\n'
  )
  figure = draw.consistency(
    points(summary),
    x=f"cost of a network, of the reference's ({_UNITS[summary['cost']]})",
    threshold=settings['threshold'],
  )
  workdir.save_figure(path / 'consistency.png', figure)
  console.print(results(summary))
  again = summary['proxies'].get(AGAIN)
  if again is not None:
    low, high = again['rho_interval']
    console.print(
      'the reference agrees with itself, trained again, by rho '
      f'{again["rho"]:.2f} ({low:.2f} to {high:.2f})',
      highlight=False,
      soft_wrap=True,
    )
  several = [row for row in summary['questions'] if row['pairs'] > 1]
  for row in (*summary['pairs'], *several):
    console.print(_in_words(row), highlight=False, soft_wrap=True)
  console.print(
    summary['recommended']['reason'], highlight=False, soft_wrap=True
  )
  console.print(f'everything is in {path}', highlight=False)
  return summary


def _summarised(job: Study, columns: Mapping[str, Column]) -> dict[str, Any]:
  settings, count = job.settings, len(job.genotypes)
  rng = base.rng(network.named_key(job.key, 'bootstrap'))
  counts = consistency.resamples(rng, count, settings['resamples'])
  whole = columns[settings['reference']]
  agreed = {
    name: consistency.agreement(whole.scores, column.scores, counts)
    for name, column in columns.items()
    if name != settings['reference']
  }
  rows = _rows(job, columns, agreed)
  pairs, questions = _compared(job, {n: rho for n, (rho, _) in agreed.items()})
  candidates = {n: row for n, row in rows.items() if n != AGAIN} or rows
  return {
    'reference': _described(settings['reference'], whole),
    'cost': 'processor' if _counted(columns) else 'seconds',
    'proxies': rows,
    'pairs': pairs,
    'questions': questions,
    'recommended': consistency.recommend(candidates, settings['threshold']),
    'sizes': {
      name: {**size._asdict(), 'shape': list(size.shape)}
      for name, size in job.sizes.items()
    },
    'networks': job.genotypes.tolist(),
    'scores': {
      name: [float(s) if np.isfinite(s) else None for s in column.scores]
      for name, column in columns.items()
    },
    'settings': dict(settings),
  }


def _counted(columns: Mapping[str, Column]) -> bool:
  """Whether the time of the processor is known of all."""
  return all(column.counted for column in columns.values())


def _cost(column: Column, counted: bool) -> float:
  """Seconds for a network, of the processor or on the wall."""
  if counted:
    return column.processor / column.counted
  return column.seconds / column.done


def _rows(job: Study, columns, agreed) -> dict[str, dict[str, Any]]:
  """What is known of each proxy."""
  whole, counted = columns[job.settings['reference']], _counted(columns)
  # Networks and images of one size are counted once.
  once = {size[:2]: size for size in job.sizes.values()}
  flops = {
    key: proxy_plan.flops(job.settings, job.task, size, job.genotypes)
    for key, size in once.items()
  }
  work = {n: flops[size[:2]] * size.examples for n, size in job.sizes.items()}
  full = work[job.settings['reference']]
  return {
    name: {
      'rho': float(rho[0]),
      'rho_interval': consistency.interval(rho[1:]),
      'tau': float(tau[0]),
      'tau_interval': consistency.interval(tau[1:]),
      'examples': columns[name].examples,
      'flops': work[name] / full if name in work else None,
      'seconds': columns[name].seconds / whole.seconds,
      'compiling': columns[name].compiling,
      'cost': _cost(columns[name], counted) / _cost(whole, counted),
      'diverged': int(np.isnan(columns[name].scores).sum()),
    }
    for name, (rho, tau) in agreed.items()
  }


def _compared(job: Study, rhos: Mapping[str, np.ndarray]) -> tuple[list, list]:
  """Comparable proxies, and the mean of all that answer one question."""
  reference = job.settings['reference']
  trained = {
    n: own for n, own in job.trained.items() if n not in (reference, AGAIN)
  }
  draws: dict[str, list[np.ndarray]] = {}
  pairs, questions = [], []
  steps = {name: size.steps for name, size in job.sizes.items()}
  whole = job.trained[reference]
  for pair in consistency.comparable(trained, steps, whole):
    less = rhos[pair.first] - rhos[pair.second]
    draws.setdefault(pair.question, []).append(less)
    pairs.append(
      {**pair._asdict(), **consistency.difference(pair.question, less)}
    )
  for question, found in draws.items():
    mean = consistency.difference(question, np.mean(found, axis=0))
    questions.append({'question': question, 'pairs': len(found), **mean})
  return pairs, questions


def _described(name: str, column: Column) -> dict[str, Any]:
  """What there is to agree with."""
  finite = column.scores[np.isfinite(column.scores)]
  known = len(finite) > 0
  return {
    'fidelity': name,
    'mean': float(finite.mean()) if known else None,
    'std': float(finite.std(ddof=1)) if len(finite) > 1 else None,
    'low': float(finite.min()) if known else None,
    'high': float(finite.max()) if known else None,
    'diverged': len(column.scores) - len(finite),
    'examples': column.examples,
    'seconds': column.seconds / column.done,
    'processor': _cost(column, True) if column.counted else None,
    'compiling': column.compiling,
  }


def _in_words(row: Mapping[str, Any]) -> str:
  """A pair, or a question, in a line."""
  low, high = row['interval']
  what = (
    f'rho of {row["first"]} less {row["second"]}'
    if 'first' in row
    else f'the mean of {row["pairs"]}'
  )
  return (
    f'{row["question"]}: {what} is {row["difference"]:+.2f} '
    f'({low:+.2f} to {high:+.2f}), {row["verdict"]}'
  )


def kind(name: str, reference: Fidelity = Fidelity()) -> str:
  """What a proxy saves of a reference, in words.

  Example:
    >>> kind('c2r2s0e9'), kind('c0r0s0e3'), kind('synflow')
    ('channels and resolution', 'epochs', 'no training')
  """
  if name == AGAIN:
    return 'the reference again'
  try:
    own = fidelity.parse(name)
  except ValueError:
    return 'no training'
  fields = ('channels', 'resolution', 'samples')
  cut = [n for n in fields if getattr(own, n) != getattr(reference, n)]
  return ' and '.join(cut) or 'epochs'


def points(summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """A study's proxies as `draw.consistency` takes them."""
  reference = fidelity.parse(summary['reference']['fidelity'])
  return {
    name: {
      'x': max(row['cost'], 1e-6),  # On a logarithmic axis.
      'y': row['rho'],
      'low': row['rho_interval'][0],
      'high': row['rho_interval'][1],
      'kind': kind(name, reference),
    }
    for name, row in summary['proxies'].items()
  }


def results(summary: Mapping[str, Any]) -> rich.table.Table:
  """The table of a study: one row for each proxy, the best first."""
  whole = summary['reference']
  table = rich.table.Table(
    title=(
      f'Agreement with {whole["fidelity"]} of {len(summary["networks"])} '
      f'networks ({whole["seconds"]:.3g} s each); cost: '
      f'{_UNITS[summary["cost"]]}'
    )
  )
  table.add_column('proxy', no_wrap=True)
  for title in ('rho', '95 %', 'tau', 'examples', 'flops', 'cost'):
    table.add_column(title, justify='right', no_wrap=True)

  def share(value: float | None) -> str:
    return '' if value is None else f'{100 * value:.2f} %'

  rows = summary['proxies']
  for name in sorted(rows, key=lambda name: -rows[name]['rho']):
    row = rows[name]
    low, high = row['rho_interval']
    table.add_row(
      name,
      f'{row["rho"]:.2f}',
      f'{low:.2f} to {high:.2f}',
      f'{row["tau"]:.2f}',
      f'{row["examples"]:,}',
      share(row['flops']),
      share(row['cost']),
    )
  return table
