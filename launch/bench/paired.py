"""Paired comparisons of methods over seeds, and rows that are kept."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats


def compared(
  ours: Sequence[float], theirs: Sequence[float], *, better: str
) -> dict[str, Any]:
  """How much better one method is, seed by seed.

  Args:
    ours: scores of a method, one for each seed.
    theirs: those of another, of the same seeds.
    better: `'less'` or `'greater'`, what our scores are to be.

  Returns:
    `wins`, the seeds in which ours is better; `difference`, the median of ours
    minus theirs, and `interval`, its 95 % bootstrap interval; and `p`, that of
    Wilcoxon's exact one-sided signed-rank test: None where all pairs are equal,
    and below five seeds, of which no outcome is significant.
  """
  gaps = np.subtract(ours, theirs)
  drawn = np.random.default_rng(0).integers(len(gaps), size=(10_000, len(gaps)))
  low, high = np.percentile(np.median(gaps[drawn], axis=1), [2.5, 97.5])
  p = None
  if gaps.any() and len(gaps) >= 5:
    p = float(stats.wilcoxon(gaps, alternative=better, method='exact').pvalue)
  return {
    'wins': int((gaps < 0).sum() if better == 'less' else (gaps > 0).sum()),
    'difference': float(np.median(gaps)),
    'interval': [float(low), float(high)],
    'p': p,
  }


def summarised(
  rows: Mapping[str, Sequence[Mapping[str, Any]]],
  metrics: Sequence[str],
  pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
  """Medians over seeds and comparisons of methods, less being better.

  Args:
    rows: of each method, one for each seed.
    metrics: of a row.
    pairs: of methods that are compared, where there are rows of both.

  Returns:
    For each metric `{metric}_{method}`, and `{metric}_{a}_over_{b}`, which is
    that of `compared` and the number of seeds.
  """
  found: dict[str, Any] = {}
  for metric in metrics:
    scores = {name: [row[metric] for row in own] for name, own in rows.items()}
    for name, values in scores.items():
      found[f'{metric}_{name}'] = round(float(np.median(values)), 2)
    for one, other in pairs:
      if one in scores and other in scores:
        pair = compared(scores[one], scores[other], better='less')
        found[f'{metric}_{one}_over_{other}'] = {
          **pair,
          'seeds': len(scores[one]),
          'difference': round(pair['difference'], 2),
          'interval': [round(end, 2) for end in pair['interval']],
        }
  return found


def kept(
  path: str, what: Mapping[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
  """A row of a benchmark: found in a file, or measured and written there.

  So a benchmark that is stopped goes on where it was.

  Args:
    path: of JSON lines, read if it is there; empty to measure always.
    what: names the row, and stands in it: method, seed, and all settings.
    measure: gives the rest of it.

  Returns:
    The row. A last line that was not written to its end is not read.
  """
  file = pathlib.Path(path) if path else None
  text = file.read_text() if file is not None and file.exists() else ''
  for line in text.splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if what.items() <= row.items():
      return row
  row = {**what, **measure()}
  if file is not None:
    broken = text and not text.endswith('\n')
    with file.open('a') as out:
      out.write('\n' * bool(broken) + json.dumps(row) + '\n')
  return row
