"""The house rules that a parser can hold: layers, purity, docstrings, paths.

Every checker is a function from source to a list of complaints, and is shown
here to catch what it is for.
"""

import ast
import graphlib
import inspect
import re
import subprocess
import sys
import types

import pytest
import source_tree

import jaxnas

# Which layer each module or sub-package of jaxnas is in (docs/design.md). It
# may import from lower layers, and from its own where no cycle comes of it.
LAYERS = {
  'spec': 0,
  'layers': 1,
  'groups': 1,
  'packing': 1,
  'programs': 1,
  'network': 1,
  'base': 1.5,  # Types only, so that a task can be a `base.Task`.
  'morphisms': 2,
  'selection': 2,
  'curves': 2,
  'tasks': 2,
  'fidelity': 2,
  'mixing': 2,
  'mesh': 3,
  'forms': 3,
  'plans': 3,
  'training': 3,
  'spaces': 3,
  'estimators': 4,
  'learners': 4,
  'combine': 4,
  'run': 4,
  'workdir': 4,
  'checkpoint': 4,
  'draw': 4,
  'report': 4,
  'export': 4,
  'stages': 5,
  'algorithms': 6,
  'testing': 6,
  'jobs': 7,
}

# The upward imports there are; each must be inside a function.
ALLOWED_UPWARD = {
  # `spec.module()` is a convenience; the rest of `spec` stays free of jax.
  ('jaxnas.spec', 'jaxnas.network'),
}

# Downward imports that are refused all the same.
REFUSED = {
  # A morphism maps networks; of searches and populations it knows nothing.
  ('morphisms', 'base'),
}

# Slow to import, or not always installed: only for those who use them.
NOT_ON_IMPORT = (
  'grain',
  'matplotlib',
  'sklearn',
  'tensorflow',
  'tensorflow_datasets',
)

_MACHINE_FOLDERS = ('Users', 'home', 'root', 'tmp', 'work')
_MACHINE_PATH = re.compile(
  rf'(?<![\w./~$}}*)-])/(?:{"|".join(_MACHINE_FOLDERS)})(?![\w-])'
)


def component(module: str) -> str:
  """The row of the layer table: 'jaxnas.tasks.images' is in 'tasks'."""
  return module.split('.')[1]


def layer_complaints(tree: source_tree.Tree) -> list[str]:
  """Imports that point up, out of the library, or to its top."""
  complaints, used = [], set()
  for path in source_tree.python_files(tree, 'jaxnas'):
    module = source_tree.module_name(path)
    if module == 'jaxnas':
      continue  # Re-exports everything.
    here = component(module)
    if here not in LAYERS:
      complaints.append(
        f'{path}: {here!r} is in no layer; add it to LAYERS in '
        'tests/test_layering.py and to the table in docs/design.md.'
      )
      continue
    for found in source_tree.imports(tree, path):
      where = f'{path}:{found.line}: {module} imports {found.name}'
      if found.name.split('.')[0] in ('configs', 'launch', 'tests'):
        complaints.append(f'{where}, which the library must not know.')
      elif found.name == 'jaxnas':
        complaints.append(f'{where} itself; import the module that is meant.')
      elif found.target.startswith('jaxnas/'):
        there = component(found.name)
        if (module, found.name) in ALLOWED_UPWARD and found.lazy:
          used.add((module, found.name))
        elif (here, there) in REFUSED:
          complaints.append(f'{where}: {here} may not know {there}.')
        elif LAYERS.get(there, 0) > LAYERS[here]:
          complaints.append(
            f'{where}: layer {LAYERS[here]} may not import layer '
            f'{LAYERS[there]}.'
          )
      elif here == 'spec' and found.name.split('.')[0] not in (
        sys.stdlib_module_names
      ):
        complaints.append(f'{where}; spec knows only the standard library.')
  for module, name in sorted(ALLOWED_UPWARD - used):
    if source_tree.find(tree, module):
      complaints.append(f'ALLOWED_UPWARD: {module} does not import {name}.')
  return complaints


def cycle_complaints(tree: source_tree.Tree) -> list[str]:
  """Cycles of modules, and of the parts that the layer table speaks of."""
  modules: dict[str, set[str]] = {}
  parts: dict[str, set[str]] = {}
  for path in source_tree.python_files(tree, 'jaxnas'):
    module = source_tree.module_name(path)
    if module == 'jaxnas':
      continue
    for found in source_tree.imports(tree, path):
      outside = not found.name.startswith('jaxnas.')
      if outside or (module, found.name) in ALLOWED_UPWARD:
        continue
      modules.setdefault(module, set()).add(found.name)
      if component(found.name) != component(module):
        parts.setdefault(component(module), set()).add(component(found.name))
  complaints = []
  for graph in (modules, parts):
    try:
      graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
      complaints.append(f'import cycle: {" <- ".join(error.args[1])}')
  return complaints


def private_complaints(tree: source_tree.Tree) -> list[str]:
  """Private names of others in layer 6: it uses only what a user has."""
  complaints = []
  for path in source_tree.python_files(tree, 'jaxnas'):
    module = source_tree.module_name(path)
    if module == 'jaxnas' or LAYERS.get(component(module)) != 6:
      continue
    modules, used = set(), []
    for node in ast.walk(ast.parse(tree[path])):
      if isinstance(node, ast.ImportFrom) and node.module:
        if node.module.split('.')[0] == 'jaxnas':
          modules |= {alias.asname or alias.name for alias in node.names}
          used += [(node.lineno, alias.name) for alias in node.names]
      elif isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Name):
          used.append((node.lineno, f'{node.value.id}.{node.attr}'))
    for line, name in used:
      owner, _, last = name.rpartition('.')
      if last.startswith('_') and (not owner or owner in modules):
        complaints.append(f'{path}:{line}: {name} is private.')
  return complaints


def self_store_complaints(path: str, text: str) -> list[str]:
  """Stores to `self`, but for a Flax module's `setup`."""
  nodes = list(ast.walk(ast.parse(text)))
  allowed = set()
  for node in nodes:
    if isinstance(node, ast.ClassDef) and any(
      ast.unparse(base).split('.')[-1] == 'Module' for base in node.bases
    ):
      for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == 'setup':
          allowed |= set(ast.walk(method))
  return [
    f'{path}:{node.lineno}: {ast.unparse(node)} writes on self; return a new '
    'value instead.'
    for node in nodes
    if _writes_on_self(node) and node not in allowed
  ]


def _writes_on_self(node: ast.AST) -> bool:
  if isinstance(node, ast.Call):
    return (
      ast.unparse(node.func) in ('setattr', 'object.__setattr__')
      and bool(node.args)
      and ast.unparse(node.args[0]) == 'self'
    )
  return (
    isinstance(node, ast.Attribute)
    and isinstance(node.ctx, ast.Store | ast.Del)
    and ast.unparse(node).startswith('self.')
  )


def print_complaints(path: str, text: str) -> list[str]:
  """Calls of `print`: a library reports through values and callbacks."""
  return [
    f'{path}:{node.lineno}: print in the library; return or log instead.'
    for node in ast.walk(ast.parse(text))
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == 'print'
  ]


def module_docstring_complaints(path: str, text: str) -> list[str]:
  """Files that do not say what they are for."""
  if ast.get_docstring(ast.parse(text)):
    return []
  return [f'{path}: no module docstring.']


def public_docstring_complaints(module: types.ModuleType) -> list[str]:
  """Names in `__all__` that are functions or classes without a docstring."""
  complaints = []
  if not hasattr(module, '__all__'):
    return [f'{module.__name__}: no __all__.']
  for name in module.__all__:
    value = inspect.unwrap(getattr(module, name))
    callable_ = inspect.isroutine(value) or inspect.isclass(value)
    if (callable_ or inspect.ismodule(value)) and not _docstring(value):
      complaints.append(f'{module.__name__}.{name}: no docstring.')
  return complaints


def _docstring(value) -> str | None:
  # dataclass and NamedTuple write a signature into `__doc__`.
  if inspect.isclass(value) and re.match(
    rf'{value.__name__}\(', value.__doc__ or ''
  ):
    return None
  return value.__doc__


def machine_path_complaints(path: str, text: str) -> list[str]:
  """Absolute paths that exist on one machine."""
  return [
    f'{path}:{number}: a path of one machine: {line.strip()[:80]}'
    for number, line in enumerate(text.splitlines(), 1)
    if _MACHINE_PATH.search(line)
  ]


def imported_complaints(statement: str) -> list[str]:
  """Which of NOT_ON_IMPORT a statement loads, in a new process."""
  code = (
    f'{statement}\nimport sys\n'
    f'for name in {NOT_ON_IMPORT!r}:\n'
    '  if name in sys.modules:\n'
    '    print(name)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    check=True,
    cwd=source_tree.ROOT,
    text=True,
  )
  return [f'{statement!r} imports {name}' for name in done.stdout.split()]


@pytest.fixture(scope='module')
def tree():
  return source_tree.read()


def report(complaints: list[str]) -> str:
  return '\n' + '\n'.join(complaints)


@pytest.mark.parametrize(
  'check', [layer_complaints, cycle_complaints, private_complaints]
)
def test_imports_point_one_way(tree, check):
  complaints = check(tree)
  assert not complaints, report(complaints)


@pytest.mark.parametrize(
  'check',
  [self_store_complaints, print_complaints, module_docstring_complaints],
)
def test_library_modules_follow_the_house_rules(tree, check):
  complaints = [
    complaint
    for path in source_tree.python_files(tree, 'jaxnas')
    for complaint in check(path, tree[path])
  ]
  assert not complaints, report(complaints)


def test_every_file_says_what_it_is_for(tree):
  complaints = [
    complaint
    for path in source_tree.python_files(tree)
    for complaint in module_docstring_complaints(path, tree[path])
  ]
  assert not complaints, report(complaints)


def test_public_names_have_docstrings():
  complaints = public_docstring_complaints(jaxnas)
  assert not complaints, report(complaints)


def test_no_path_of_one_machine_is_written_down(tree):
  complaints = [
    complaint
    for path, text in tree.items()
    for complaint in machine_path_complaints(path, text)
  ]
  assert not complaints, report(complaints)


def test_import_loads_no_optional_package():
  complaints = imported_complaints('import jaxnas')
  assert not complaints, report(complaints)


# Each checker catches what it is for.


@pytest.mark.parametrize(
  ('path', 'text', 'message'),
  [
    ('jaxnas/spec.py', 'import jax', 'standard library'),
    ('jaxnas/spec.py', 'from jaxnas import network', 'layer 0 may not'),
    ('jaxnas/layers.py', 'import jaxnas', 'itself'),
    ('jaxnas/layers.py', 'from jaxnas import Network', 'itself'),
    ('jaxnas/layers.py', 'import jaxnas.run as r', 'layer 1 may not'),
    ('jaxnas/layers.py', 'from jaxnas.run import x', 'layer 1 may not'),
    ('jaxnas/layers.py', 'from . import run', 'layer 1 may not'),
    ('jaxnas/layers.py', 'def f():\n  from jaxnas import run', 'layer 1 may'),
    ('jaxnas/layers.py', 'import_module("jaxnas.run")', 'layer 1 may not'),
    ('jaxnas/morphisms/width.py', 'from .. import run', 'layer 2 may not'),
    ('jaxnas/morphisms/width.py', 'from jaxnas import base', 'may not know'),
    ('jaxnas/run.py', 'from launch import train', 'must not know'),
    ('jaxnas/novelty.py', '', 'in no layer'),
  ],
)
def test_layer_check_catches(path, text, message):
  modules = ('__init__', 'spec', 'layers', 'network', 'base', 'run')
  tree = {f'jaxnas/{name}.py': '' for name in modules}
  tree['jaxnas/morphisms/__init__.py'] = ''
  allowed = 'def module():\n  from jaxnas import network'
  complaints = layer_complaints({**tree, 'jaxnas/spec.py': allowed, path: text})
  assert any(message in complaint for complaint in complaints)
  assert not layer_complaints({**tree, 'jaxnas/spec.py': allowed})


def test_layer_check_catches_an_exception_no_longer_used():
  (complaint,) = layer_complaints({'jaxnas/spec.py': ''})
  assert 'ALLOWED_UPWARD' in complaint


def test_cycle_check_catches_modules_and_parts():
  modules = {
    'jaxnas/tasks/__init__.py': '',
    'jaxnas/tasks/a.py': 'from jaxnas.tasks import b',
    'jaxnas/tasks/b.py': 'from jaxnas.tasks import a',
  }
  assert len(cycle_complaints(modules)) == 1
  parts = {
    'jaxnas/run.py': '',
    'jaxnas/estimators/a.py': 'from jaxnas import run',
    'jaxnas/estimators/b.py': '',
  }
  assert not cycle_complaints(parts)
  parts['jaxnas/run.py'] = 'from jaxnas.estimators import b'
  assert len(cycle_complaints(parts)) == 1


@pytest.mark.parametrize(
  'text',
  ['from jaxnas.run import _loop', 'from jaxnas import run\nrun._loop()'],
)
def test_private_check_catches(text):
  tree = {'jaxnas/run.py': '', 'jaxnas/algorithms/growth.py': text}
  assert private_complaints(tree)
  assert not private_complaints({'jaxnas/stages/learn.py': text})


@pytest.mark.parametrize(
  'statement',
  [
    'self.x = 1',
    'self.x += 1',
    'self.x: int = 1',
    'self.x.y, z = 1, 2',
    'del self.x',
    'setattr(self, "x", 1)',
    'object.__setattr__(self, "x", 1)',
  ],
)
def test_self_store_check_catches(statement):
  text = 'class A({base}):\n  def {name}(self):\n    {statement}\n'
  bad = [
    text.format(base='', name='setup', statement=statement),
    text.format(base='nn.Module', name='__call__', statement=statement),
  ]
  for source in bad:
    assert self_store_complaints('a.py', source)
  good = text.format(base='nn.Module', name='setup', statement=statement)
  assert not self_store_complaints('a.py', good)


def test_print_check_catches():
  assert print_complaints('a.py', 'def f():\n  print(1)')
  assert not print_complaints('a.py', 'jax.debug.print("{}", x)')


def test_docstring_checks_catch():
  assert module_docstring_complaints('a.py', 'import x')
  assert not module_docstring_complaints('a.py', '"""What it is for."""')
  module = types.ModuleType('module')
  assert public_docstring_complaints(module)
  source = (
    'import dataclasses\n'
    'from typing import NamedTuple\n'
    'def bare(): pass\n'
    'def good(): "Doc."\n'
    '@dataclasses.dataclass\n'
    'class Data:\n  x: int\n'
    'class Named(NamedTuple):\n  x: int\n'
    'limit = 3\n'
    '__all__ = ["bare", "good", "Data", "Named", "limit"]\n'
  )
  exec(source, module.__dict__)
  complaints = public_docstring_complaints(module)
  assert [c.split(':')[0] for c in complaints] == [
    'module.bare',
    'module.Data',
    'module.Named',
  ]


@pytest.mark.parametrize('folder', _MACHINE_FOLDERS)
def test_machine_path_check_catches(folder):
  for bad in (f'cd /{folder}', f"x = '/{folder}/me/x'", f'--dir=/{folder}/x'):
    assert machine_path_complaints('a.md', bad)
  for good in (
    f'../{folder}/x',
    f'https://a.example/{folder}/x',
    f'a/{folder}',
  ):
    assert not machine_path_complaints('a.md', good)


def test_import_check_catches():
  assert imported_complaints('import sklearn')
