"""The BUILD files are complete, and say what the imports say.

They are written by hand (CONTRIBUTING.md). A BUILD file is Python syntax, so
it is parsed here, and every complaint names the line to write.
"""

import ast
import posixpath
import re
import sys
import tomllib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import source_tree

# The folders whose Python files must each be in one target. A folder below
# them with a BUILD file of its own is a Bazel package of its own.
FOLDERS = ('jaxnas', 'configs', 'launch', 'tests')

# Every test runs through this file: a test file alone would define its tests
# and exit.
RUNNER = 'run_pytest.py'
CONFTEST = 'conftest.py'

# Imported name to the name of its distribution, where they differ.
DISTRIBUTIONS = {
  'absl': 'absl-py',
  'orbax': 'orbax-checkpoint',
  'PIL': 'pillow',
  'sklearn': 'scikit-learn',
  'xdist': 'pytest-xdist',
  'tensorboardX': 'tensorboardx',
}

# Imports that no dep may stand for: Bazel refuses a cycle, and whoever calls
# `spec.module()` has a network, hence the other target, anyway.
NOT_DEPS = {('jaxnas/spec.py', 'jaxnas/network.py')}

RULES = ('py_binary', 'py_library', 'py_test')


class Target(NamedTuple):
  """One rule of a BUILD file.

  Attributes:
    label: '//package:name'.
    rule: the function called, such as 'py_library'.
    srcs: paths from the top of the tree.
    deps: labels, in full.
    kept: those of `deps` whose line ends in `# keep`: needed at run time
      though not imported.
    attributes: all keyword arguments, as written.
    where: 'path:line'.
  """

  label: str
  rule: str
  srcs: tuple[str, ...]
  deps: tuple[str, ...]
  kept: tuple[str, ...]
  attributes: dict
  where: str


def normalize(distribution: str) -> str:
  """The name of a distribution in labels of the pip hub.

  >>> normalize('tensorboardX>=2.6')
  'tensorboardx'
  """
  name = re.match(r'[\w.-]+', distribution).group()
  return re.sub(r'[-_.]+', '_', name).lower()


def full_label(label: str, package: str) -> str:
  """A label in full.

  >>> full_label(':spec', 'jaxnas'), full_label('//launch/bench', '')
  ('//jaxnas:spec', '//launch/bench:bench')
  """
  if label.startswith(':'):
    return f'//{package}{label}'
  if ':' in label:
    return label
  return f'{label}:{label.rpartition("/")[2]}'


def short_label(label: str, package: str) -> str:
  """A full label as it is written in the BUILD file of a package.

  >>> short_label('//jaxnas:spec', 'jaxnas'), short_label('//a/b:b', 'c')
  (':spec', '//a/b')
  """
  where, _, name = label.partition(':')
  if where == f'//{package}':
    return f':{name}'
  return where if where.rpartition('/')[2] == name else label


def packages(tree: source_tree.Tree) -> dict[str, str]:
  """Bazel's packages: folder to the path of its BUILD file."""
  return {
    posixpath.dirname(path): path
    for path in tree
    if posixpath.basename(path) == 'BUILD'
  }


def targets(tree: source_tree.Tree) -> Iterator[Target]:
  """All Python targets of the tree."""
  for package, path in packages(tree).items():
    lines = tree[path].splitlines()
    for call in ast.parse(tree[path], path).body:
      rule = ast.unparse(getattr(getattr(call, 'value', None), 'func', call))
      if rule not in RULES:
        continue
      keywords = {word.arg: word.value for word in call.value.keywords}
      attributes = {k: ast.literal_eval(v) for k, v in keywords.items()}
      deps = getattr(keywords.get('deps'), 'elts', [])
      label = full_label(f':{attributes["name"]}', package)
      yield Target(
        label=label,
        rule=rule,
        srcs=tuple(
          posixpath.join(package, src) for src in attributes.get('srcs', [])
        ),
        deps=tuple(full_label(dep.value, package) for dep in deps),
        kept=tuple(
          full_label(dep.value, package)
          for dep in deps
          if '# keep' in lines[dep.lineno - 1]
        ),
        attributes=attributes,
        where=f'{path}:{call.lineno}: {attributes["name"]}',
      )


def package_of(path: str, tree: source_tree.Tree) -> str:
  """The package a file belongs to: the nearest folder with a BUILD file."""
  found, folder = packages(tree), posixpath.dirname(path)
  while folder and folder not in found:
    folder = posixpath.dirname(folder)
  return folder


def is_test(path: str) -> bool:
  return posixpath.basename(path).startswith('test_')


def srcs_complaints(tree: source_tree.Tree) -> list[str]:
  """Files in no target, in two, or in one that does not run them."""
  complaints, owners = [], {}
  for target in targets(tree):
    for src in target.srcs:
      if src not in tree:
        complaints.append(f'{target.where}: srcs: {src} does not exist.')
      if posixpath.basename(src) != RUNNER or target.rule != 'py_test':
        owners.setdefault(src, []).append(target)
  for path in source_tree.python_files(tree, *FOLDERS):
    package = package_of(path, tree)
    build = posixpath.join(package, 'BUILD')
    name = posixpath.relpath(path, package or '.')
    rules = [target.rule for target in owners.get(path, [])]
    if posixpath.dirname(path) != package and path.startswith('jaxnas/'):
      complaints.append(
        f'{path}: add a BUILD file to {posixpath.dirname(path)}.'
      )
    elif not rules:
      rule = 'py_test' if is_test(path) else 'py_library or py_binary'
      complaints.append(f'{build}: add a {rule} with {name!r} in srcs.')
    elif len(rules) > 1:
      complaints.append(f'{build}: {name!r} is in {len(rules)} targets.')
    elif (rules == ['py_test']) != is_test(path):
      complaints.append(f'{build}: {name!r} is in a {rules[0]}.')
  return complaints


def deps_complaints(tree: source_tree.Tree) -> list[str]:
  """Deps that the imports of a target's srcs need, or do not."""
  complaints = []
  everything = list(targets(tree))
  owner = {src: target.label for target in everything for src in target.srcs}
  for target in everything:
    wanted = {}
    for src in filter(tree.__contains__, target.srcs):
      for found in source_tree.imports(tree, src):
        label = _label(found, src, owner)
        if label and label != target.label:
          wanted.setdefault(label, f'{src}:{found.line} imports {found.name}')
    if target.rule == 'py_test' and f'tests/{CONFTEST}' in owner:
      label = owner[f'tests/{CONFTEST}']
      wanted[label] = f'pytest loads {CONFTEST}'
    package = target.label.partition(':')[0].removeprefix('//')
    for label in sorted(wanted.keys() - set(target.deps)):
      complaints.append(
        f'{target.where}: deps: add "{short_label(label, package)}" '
        f'({wanted[label]}).'
      )
    for label in sorted(set(target.deps) - set(wanted) - set(target.kept)):
      complaints.append(
        f'{target.where}: deps: remove "{short_label(label, package)}", which '
        'no src imports, or end its line with "# keep: WHY".'
      )
    labels = {target.label for target in everything}
    for label in target.deps:
      if label.startswith('//') and label not in labels:
        complaints.append(f'{target.where}: deps: there is no {label}.')
  return complaints


def _label(found: source_tree.Import, src: str, owner) -> str:
  if (src, found.target) in NOT_DEPS:
    return ''
  if found.target:
    return owner.get(found.target, '')
  top = found.name.split('.')[0]
  local = top in FOLDERS or not top or top in sys.stdlib_module_names
  if local or top == '__future__':
    return ''
  return f'@pypi//{normalize(DISTRIBUTIONS.get(top, top))}:' + normalize(
    DISTRIBUTIONS.get(top, top)
  )


def run_complaints(tree: source_tree.Tree) -> list[str]:
  """Targets that Bazel would run wrongly, or not at all."""
  complaints = []
  for target in targets(tree):
    attributes = target.attributes
    if target.rule == 'py_test':
      (test,) = [src for src in target.srcs if is_test(src)][:1] or ['']
      name = posixpath.basename(test).removesuffix('.py')
      if not test or attributes['name'] != name:
        complaints.append(f'{target.where}: name it after its test file.')
      if attributes.get('main') != RUNNER or attributes.get('args') != [test]:
        complaints.append(
          f'{target.where}: needs main = "{RUNNER}" and args = ["{test}"]; '
          'without them Bazel runs no test.'
        )
    elif target.rule == 'py_binary':
      main = attributes.get('main', f'{attributes["name"]}.py')
      if main not in attributes['srcs']:
        complaints.append(f'{target.where}: main {main!r} is not in srcs.')
  return complaints


def load_complaints(tree: source_tree.Tree) -> list[str]:
  """Rules used but not loaded from rules_python, or loaded in vain."""
  complaints = []
  for path in packages(tree).values():
    used, loaded = set(), set()
    for node in ast.walk(ast.parse(tree[path], path)):
      if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        used |= {name} & set(RULES)
        if name == 'load':
          loaded |= {ast.literal_eval(argument) for argument in node.args}
    for rule in sorted(used | loaded & set(RULES)):
      source = f'@rules_python//python:{rule}.bzl'
      if (rule in used) != (rule in loaded) or source not in loaded:
        complaints.append(
          f'{path}: {rule}: use it and load it from "{source}", or neither.'
        )
  return complaints


def pypi_complaints(tree: source_tree.Tree) -> list[str]:
  """Third-party deps that pip would not install, here or under Bazel."""
  complaints = []
  project = tomllib.loads(tree['pyproject.toml'])['project']
  required = {normalize(name) for name in project['dependencies']}
  extras = {
    normalize(name)
    for names in project['optional-dependencies'].values()
    for name in names
  }
  locked = {
    normalize(line)
    for line in tree['requirements_lock.txt'].splitlines()
    if line.strip() and not line.startswith('#')
  }
  for name in sorted((required | extras) - locked - {'jaxnas'}):
    complaints.append(f'requirements_lock.txt: {name} is missing.')
  for path in source_tree.python_files(tree, *FOLDERS):
    for found in source_tree.imports(tree, path):
      label = '' if found.target else _label(found, path, {})
      name = label.rpartition(':')[2]
      # What only some tasks need may be an extra, if imported where needed.
      optional = found.lazy or path.startswith('tests/')
      if name and name not in (required | extras if optional else required):
        complaints.append(
          f'pyproject.toml: {path}:{found.line} imports {found.name}: add '
          f'{name} to dependencies.'
        )
  return complaints


CHECKS = [
  srcs_complaints,
  deps_complaints,
  run_complaints,
  load_complaints,
  pypi_complaints,
]


@pytest.fixture(scope='module')
def tree():
  return source_tree.read()


@pytest.mark.parametrize('check', CHECKS)
def test_build_files_match_the_source(tree, check):
  complaints = check(tree)
  assert not complaints, '\n' + '\n'.join(complaints)


def test_versions_agree(tree):
  version = tomllib.loads(tree['pyproject.toml'])['project']['version']
  assert f'version = "{version}"' in tree['MODULE.bazel'].split('bazel_dep')[0]


# Each check catches what it is for.

_LOADS = ''.join(
  f'load("@rules_python//python:{rule}.bzl", "{rule}")\n'
  for rule in ('py_binary', 'py_library', 'py_test')
)
GOOD = {
  'pyproject.toml': (
    '[project]\ndependencies = ["absl-py>=2"]\n'
    '[project.optional-dependencies]\ntest = ["jaxnas[x]", "pytest"]\n'
  ),
  'requirements_lock.txt': '# Locked.\nabsl-py==2.1\npytest==9.0\n',
  'jaxnas/a.py': 'from absl import app\n',
  'jaxnas/b.py': 'from jaxnas import a\n',
  'jaxnas/BUILD': (
    'load("@rules_python//python:py_library.bzl", "py_library")\n'
    'py_library(name = "a", srcs = ["a.py"], deps = ["@pypi//absl_py"])\n'
    'py_library(name = "b", srcs = ["b.py"], deps = [":a"])\n'
  ),
  'tests/conftest.py': '',
  'tests/run_pytest.py': 'import pytest\n',
  'tests/tool.py': '',
  'tests/test_b.py': 'import json\nimport tool\nimport jaxnas.b\n',
  'tests/BUILD': (
    'load("@rules_python//python:py_library.bzl", "py_library")\n'
    'load("@rules_python//python:py_test.bzl", "py_test")\n'
    'py_library(name = "conftest", srcs = ["conftest.py"])\n'
    'py_library(name = "tool", srcs = ["tool.py"])\n'
    'py_library(name = "run_pytest", srcs = ["run_pytest.py"],'
    ' deps = ["@pypi//pytest"])\n'
    'py_test(name = "test_b", srcs = ["run_pytest.py", "test_b.py"],'
    ' main = "run_pytest.py", args = ["tests/test_b.py"],'
    ' deps = [":conftest", ":tool", "//jaxnas:b", "@pypi//pytest"])\n'
  ),
}


@pytest.mark.parametrize('check', CHECKS)
def test_checks_accept_a_good_tree(check):
  assert not check(GOOD)


@pytest.mark.parametrize(
  ('check', 'path', 'old', 'new', 'message'),
  [
    (srcs_complaints, 'jaxnas/BUILD', '"a.py"', '"c.py"', 'does not exist'),
    (srcs_complaints, 'jaxnas/BUILD', '"a.py"', '', "with 'a.py' in srcs"),
    (srcs_complaints, 'jaxnas/BUILD', '"b.py"', '"a.py"', 'in 2 targets'),
    (srcs_complaints, 'jaxnas/new.py', '', '1', "add a py_library or py_bin"),
    (srcs_complaints, 'jaxnas/n/new.py', '', '1', 'add a BUILD file to'),
    (srcs_complaints, 'tests/test_new.py', '', '1', 'add a py_test'),
    (srcs_complaints, 'tests/BUILD', '"tool.py"', '"test_c.py"', 'not exist'),
    (deps_complaints, 'jaxnas/BUILD', '":a"', '', 'deps: add ":a" (jaxnas/b'),
    (deps_complaints, 'jaxnas/BUILD', '":a"', '":a", ":c"', 'remove ":c"'),
    (deps_complaints, 'jaxnas/BUILD', '":a"', '":a", ":c"', 'is no //jaxnas:c'),
    (deps_complaints, 'jaxnas/BUILD', '"@pypi//absl_py"', '', 'add "@pypi//'),
    (deps_complaints, 'tests/BUILD', '"//jaxnas:b", ', '', 'add "//jaxnas:b"'),
    (deps_complaints, 'tests/BUILD', '":tool", ', '', 'add ":tool"'),
    (deps_complaints, 'tests/BUILD', '":conftest", ', '', 'add ":conftest"'),
    (deps_complaints, 'jaxnas/a.py', 'from', 'import jaxnas.b\nfrom', '":b"'),
    (run_complaints, 'tests/BUILD', 'main = "run_pytest.py",', '', 'no test'),
    (run_complaints, 'tests/BUILD', 'args = ["tests/', 'args = ["', 'no test'),
    (run_complaints, 'tests/BUILD', '"test_b", ', '"b", ', 'name it after'),
    (run_complaints, 'jaxnas/BUILD', 'py_library(name = "b"',
     'py_binary(name = "main"', "main 'main.py'"),
    (load_complaints, 'jaxnas/BUILD', 'load(', '(', 'py_library'),
    (load_complaints, 'jaxnas/BUILD', ':py_library', ':defs', 'py_library'),
    (load_complaints, 'tests/BUILD', 'py_test(name', 'f(name', 'py_test'),
    (pypi_complaints, 'jaxnas/b.py', 'from', 'import PIL\nfrom', 'pillow'),
    (pypi_complaints, 'pyproject.toml', '"absl-py>=2"', '', 'absl_py'),
    (pypi_complaints, 'requirements_lock.txt', 'pytest', 'x', 'pytest is miss'),
  ],
)  # fmt: skip
def test_check_catches(check, path, old, new, message):
  before = GOOD.get(path, '')
  bad = before.replace(old, new, 1)
  assert bad != before
  complaints = check({**GOOD, path: bad})
  assert any(message in complaint for complaint in complaints), complaints


def test_a_dep_marked_keep_is_kept():
  marked = GOOD['jaxnas/BUILD'].replace('":a"]', '":a",\n  ":c",  # keep: y\n]')
  complaints = deps_complaints({**GOOD, 'jaxnas/BUILD': marked})
  assert not any('remove' in complaint for complaint in complaints)
