"""The official files of NAS-Bench-201 as tables of ours.

    python -m jaxnas.spaces.convert FOLDER_OR_FILE cifar10 OUT.npz
    python -m jaxnas.spaces.convert HW-NAS-Bench-v1_0.pickle hardware OUT.npz

Reads what the authors release: the folder `NATS-tss-v1_0-3ffb9-simple` of
NATS-Bench, with `meta.pickle.pbz2` and one file for each cell; the same in one
file, `NATS-tss-v1_0-3ffb9.pickle.pbz2`; or `NAS-Bench-201-v1_1-096897.pth`; and
the latencies and energies of the same cells on devices, by HW-NAS-Bench.
What is written is a table that `jaxnas.spaces.load` reads, row i being the
official architecture i.

The files are pickles, and a pickle can run any program. Here nothing is made of
one but plain containers, numbers, strings and NumPy arrays; tensors, in which
the releases keep weights, are skipped unread, so PyTorch is not needed.
"""

import bz2
import io
import pathlib
import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxnas.spaces import nas_bench_201

DATA = ('cifar10', 'cifar100', 'ImageNet16-120')
# What a pickle may name: containers, and what NumPy's numbers are made of.
_SAFE = {
  ('_codecs', 'encode'),
  ('builtins', 'set'),
  ('builtins', 'frozenset'),
  ('builtins', 'complex'),
  ('collections', 'OrderedDict'),
  ('collections', 'defaultdict'),
  ('numpy', 'dtype'),
  ('numpy', 'ndarray'),
  ('numpy._core.multiarray', 'scalar'),
  ('numpy._core.multiarray', '_reconstruct'),
}


class _Nothing:
  """What stands for a tensor: takes any arguments and keeps none."""

  def __new__(cls, *arguments: Any, **options: Any) -> '_Nothing':
    del arguments, options
    return super().__new__(cls)

  def __setstate__(self, state: Any) -> None:
    del state


class _Restricted(pickle.Unpickler):
  """Makes plain values, skips tensors, and refuses everything else."""

  def find_class(self, module: str, name: str) -> Any:
    # As NumPy before 2 and Python before 3 called them.
    module = module.replace('numpy.core.', 'numpy._core.')
    module = module.replace('__builtin__', 'builtins')
    if (module, name) in _SAFE:
      return super().find_class(module, name)
    if module == 'torch' or module.startswith('torch.'):
      return _Nothing
    raise pickle.UnpicklingError(
      f'it asks for {module}.{name}, which no table needs'
    )

  def persistent_load(self, identity: Any) -> Any:
    del identity
    return _Nothing()


def unpickled(data: bytes) -> Any:
  """The plain values of a pickle.

  Args:
    data: the pickle.

  Raises:
    pickle.UnpicklingError: if it asks for anything but plain values.

  Example:
    >>> unpickled(pickle.dumps({'accuracy': [91.5]}))
    {'accuracy': [91.5]}
    >>> unpickled(pickle.dumps(print))
    Traceback (most recent call last):
      ...
    _pickle.UnpicklingError: it asks for builtins.print, which no table needs
  """
  return _Restricted(io.BytesIO(data)).load()


def _opened(path: pathlib.Path) -> Any:
  try:
    if path.suffix == '.pth':
      return _of_torch(path)
    return unpickled(bz2.decompress(path.read_bytes()))
  except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
    raise ValueError(
      f'{path}: not a file of an official release ({error}).'
    ) from None


def _of_torch(path: pathlib.Path) -> Any:
  """The plain values of a file of `torch.save`, of the old kind or the new."""
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      inside = [n for n in archive.namelist() if n.endswith('data.pkl')]
      if len(inside) != 1:
        raise ValueError('no data.pkl in it')
      return unpickled(archive.read(inside[0]))
  with open(path, 'rb') as file:
    # A magic number, a version and the system stand before the values.
    for _ in range(3):
      _Restricted(file).load()
    return _Restricted(file).load()


def _records(path: pathlib.Path) -> tuple[list[str], Iterator[tuple]]:
  """The cells' strings, and (number, {epochs: record}) of each."""
  if path.is_dir():
    meta = path / 'meta.pickle.pbz2'
    if not meta.is_file():
      raise ValueError(f'{path}: no meta.pickle.pbz2 in it.')
    cells = list(_opened(meta)['meta_archs'])

    def each() -> Iterator[tuple]:
      for number in range(len(cells)):
        held = path / f'{number:06d}.pickle.pbz2'
        if held.is_file():
          yield number, _opened(held)

    return cells, each()
  if not path.is_file():
    raise FileNotFoundError(f'{path}: no such file or folder.')
  whole = _opened(path)
  if not isinstance(whole, Mapping) or not {'meta_archs', 'arch2infos'} <= set(
    whole
  ):
    raise ValueError(f'{path}: it has no meta_archs and arch2infos.')
  return list(whole['meta_archs']), iter(whole['arch2infos'].items())


def _runs(record: Mapping[str, Any], data: str) -> list[Mapping[str, Any]]:
  """The runs on a data set, in the order of their seeds."""
  seeds = sorted(record['dataset_seed'].get(data, ()))
  return [record['all_results'][data, seed] for seed in seeds]


def _mean(runs: list, name: str, split: str | None = None) -> float:
  """The mean over the runs of a value in their last epoch."""
  found = []
  for run in runs:
    last = run['epochs'] - 1
    held = run.get(name) or {}
    value = held.get(last if split is None else f'{split}@{last}')
    if value is not None:
      found.append(float(value))
  return float(np.mean(found)) if found else np.nan


def _seconds(runs: list, split: str) -> float:
  """Seconds of all training epochs and one measurement on the split."""
  found = []
  for run in runs:
    times = run.get('train_times')
    if times:
      seconds = sum(float(time) for time in times.values())
      one = (run.get('eval_times') or {}).get(f'{split}@{run["epochs"] - 1}')
      found.append(seconds + float(one or 0.0))
  return float(np.mean(found)) if found else np.nan


# What unpickling raises for other files, and reading for other values.
_NOT_HARDWARE = (
  *(pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError),
  *(AttributeError, IndexError, StopIteration),
)
# Epochs of the schedules, by the names that the releases give them.
_SCHEDULES = {'12': 12, '200': 200, 'less': 12, 'full': 200}


def _row(records: Mapping[str, Any], data: str) -> dict[str, float]:
  """The columns of a cell."""
  # CIFAR-10 is selected on by runs that were trained on half of the data.
  half = 'cifar10-valid' if data == 'cifar10' else data
  test = 'ori-test' if data == 'cifar10' else 'x-test'
  row = {}
  for name, record in records.items():
    if str(name) not in _SCHEDULES:
      continue
    epochs = _SCHEDULES[str(name)]
    validated, tested = _runs(record, half), _runs(record, data)
    row[f'val_ep{epochs}'] = _mean(validated, 'eval_acc1es', 'x-valid')
    row[f'test_ep{epochs}'] = _mean(
      tested or validated, 'eval_acc1es', test if tested else 'ori-test'
    )
    row[f'train_time_ep{epochs}_s'] = _seconds(validated, 'x-valid')
    for run in (*tested, *validated)[:1]:
      row['params_m'], row['flops_official_m'] = run['params'], run['flop']
  return row


def convert(path: str, data: str = 'cifar10') -> dict[str, np.ndarray]:
  """The arrays of a table from an official release.

  Args:
    path: the folder or file of the release.
    data: `'cifar10'`, `'cifar100'` or `'ImageNet16-120'`.

  Returns:
    `ops`, (n, 6), and columns of (n,) float32: `val_ep12`, `test_ep12`,
    `train_time_ep12_s` and those of 200 epochs as far as they are there, means
    over the seeds in percent and seconds; `params_m` and `flops_official_m` in
    millions. NaN where a release lacks something. Validation on CIFAR-10 is
    that of networks trained on half of the training set, whose time it is;
    tested are those trained on all of it, where there are any.

  Raises:
    FileNotFoundError: for a missing release.
    ValueError: for an unknown data set or what is no release.
  """
  if data not in DATA:
    raise ValueError(
      f'convert: data must be of {", ".join(DATA)}, got {data!r}.'
    )
  cells, records = _records(pathlib.Path(path))
  columns: dict[str, np.ndarray] = {}
  try:
    for number, held in records:
      for name, value in _row(held, data).items():
        column = columns.setdefault(name, np.full(len(cells), np.nan))
        column[number] = value
  except (KeyError, TypeError, AttributeError, IndexError) as error:
    raise ValueError(
      f'{path}: not laid out as a release of NAS-Bench-201: '
      f'{type(error).__name__} {error}.'
    ) from None
  if not columns:
    raise ValueError(f'{path}: it has no results of {data}.')
  ops = np.stack([nas_bench_201.parse(cell) for cell in cells]).astype(np.uint8)
  columns = {name: held.astype(np.float32) for name, held in columns.items()}
  return {'ops': ops, **columns}


def hardware(path: str) -> dict[str, np.ndarray]:
  """The arrays of a table of devices from the file of HW-NAS-Bench.

  Li et al. (2021), for the cells of NAS-Bench-201.

  Args:
    path: the file, `HW-NAS-Bench-v1_0.pickle`.

  Returns:
    `ops`, (n, 6), `metrics`, (m,) their names, and for each data set (n, m)
    float32: milliseconds, millijoules and arithmetic intensity, NaN where a
    device gave none.

  Raises:
    FileNotFoundError: for a missing file.
    ValueError: for what is no such file.
  """
  try:
    held = unpickled(pathlib.Path(path).read_bytes())['nasbench201']
    first = next(iter(held.values()))
    names = [name for name in first if name != 'config']
    cells = [nas_bench_201.parse(c['arch_str']) for c in first['config']]
    columns = {
      data: np.stack([np.asarray(own[name], np.float32) for name in names], 1)
      for data, own in held.items()
    }
  except _NOT_HARDWARE as error:
    raise ValueError(
      f'{path}: not the file of HW-NAS-Bench: {type(error).__name__} {error}.'
    ) from None
  ops = np.stack(cells).astype(np.uint8)
  return {'ops': ops, 'metrics': np.array(names), **columns}


def main(arguments: list[str]) -> None:
  if len(arguments) != 3:
    sys.exit(
      'usage: python -m jaxnas.spaces.convert FOLDER_OR_FILE '
      f'{{{",".join(DATA)},hardware}} OUT.npz'
    )
  path, data, out = arguments
  try:
    held = hardware(path) if data == 'hardware' else convert(path, data)
    np.savez_compressed(out, **held)
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  main(sys.argv[1:])
