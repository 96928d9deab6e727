"""The project's source as data: its files, and who imports whom.

The tests of the layers and of the BUILD files read the tree through this
module. A tree is a dict from paths, relative to the top and with forward
slashes, to texts; so a test can also make a small bad one.
"""

import ast
import functools
import pathlib
import subprocess
from collections.abc import Iterator, Mapping
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Folders on the path of imports, beside the top: see `pythonpath` in
# pyproject.toml.
IMPORT_ROOTS = ('', 'tests/')
_SKIPPED = frozenset(
  {'build', 'data', 'dist', 'node_modules', 'runs', 'venv', '__pycache__'}
)

Tree = Mapping[str, str]


class Import(NamedTuple):
  """One imported module.

  Attributes:
    target: the path of the imported file, if it is in the tree, else ''.
    name: the dotted name, as written; of a file of the tree, its module.
    line: where.
    lazy: whether it is inside a function.
  """

  target: str
  name: str
  line: int
  lazy: bool


def read(*, root: pathlib.Path = ROOT) -> dict[str, str]:
  """The texts of the files that git tracks or would add; or of all files."""
  tree = {}
  for path in _paths(root):
    try:
      text = (root / path).read_text(encoding='utf-8')
    except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
      continue  # An image, or a file that is gone from the working tree.
    if '\0' not in text:
      tree[path] = text
  return tree


def _paths(root: pathlib.Path) -> list[str]:
  try:
    listed = subprocess.run(
      ['git', 'ls-files', '-z', '--cached', '--others', '--exclude-standard'],
      cwd=root,
      capture_output=True,
      check=True,
      text=True,
    ).stdout
  except (OSError, subprocess.CalledProcessError):  # Not a git checkout.
    found = (p.relative_to(root) for p in root.rglob('*') if p.is_file())
    return sorted(
      p.as_posix()
      for p in found
      if not any(x in _SKIPPED or x.startswith('.') for x in p.parts[:-1])
    )
  return sorted(set(filter(None, listed.split('\0'))))


def python_files(tree: Tree, *folders: str) -> list[str]:
  """The Python files under the folders; under the top, if none is given."""
  return sorted(
    path
    for path in tree
    if path.endswith('.py')
    and (not folders or path.startswith(tuple(f'{f}/' for f in folders)))
  )


def module_name(path: str) -> str:
  """The dotted name under which a file is imported.

  >>> module_name('jaxnas/morphisms/__init__.py')
  'jaxnas.morphisms'
  >>> module_name('tests/source_tree.py')
  'source_tree'
  """
  name = path.removeprefix('tests/').removesuffix('.py').replace('/', '.')
  return name.removesuffix('.__init__')


def find(tree: Tree, name: str) -> str:
  """The path of the module or package of this dotted name, or ''."""
  stem = name.replace('.', '/')
  for root in IMPORT_ROOTS:
    for path in (f'{root}{stem}/__init__.py', f'{root}{stem}.py'):
      if path in tree:
        return path
  return ''


def imports(tree: Tree, path: str) -> list[Import]:
  """All that a file imports, also inside functions and by `import_module`."""
  here = module_name(path)
  package = here if path.endswith('__init__.py') else here.rpartition('.')[0]
  result = []
  for node, lazy in _importing(tree[path], path):
    for name in _imported_names(tree, node, package):
      target = find(tree, name)
      name = module_name(target) if target else name
      result.append(Import(target, name, node.lineno, lazy))
  return result


@functools.cache  # Several tests read the same files.
def _importing(text: str, path: str) -> tuple[tuple[ast.AST, bool], ...]:
  """The nodes of a file that may import something, and whether lazily."""
  return tuple(
    (node, lazy)
    for node, lazy in _walk(ast.parse(text, path))
    if isinstance(node, ast.Import | ast.ImportFrom) or _imports_module(node)
  )


def _imports_module(node: ast.AST) -> bool:
  """Whether it is a call of `import_module` with a name."""
  if not isinstance(node, ast.Call) or not node.args:
    return False
  name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
  return name.endswith('import_module') and isinstance(
    node.args[0], ast.Constant
  )


def _walk(node: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
  for child in ast.iter_child_nodes(node):
    yield child, lazy
    function = isinstance(
      child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    )
    yield from _walk(child, lazy or function)


def _imported_names(tree: Tree, node: ast.AST, package: str) -> list[str]:
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  if isinstance(node, ast.ImportFrom):
    base = node.module or ''
    if node.level:
      parts = package.split('.')
      parents = parts[: len(parts) - node.level + 1]
      base = '.'.join([*parents, base] if base else parents)
    # `from package import x` imports the module x, if there is one.
    children = [f'{base}.{alias.name}' for alias in node.names]
    return [child if find(tree, child) else base for child in children]
  return [str(node.args[0].value)]
