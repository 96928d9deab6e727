"""The README's two commands are there, and are what CI runs."""

import pathlib
import re
import subprocess
import sys

import pytest
import source_tree

SCRIPT = source_tree.ROOT / '.ci' / 'readme_command.py'
README = source_tree.ROOT / 'README.md'


def command(
  number: int, readme: pathlib.Path = README
) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, SCRIPT, readme, str(number)],
    capture_output=True,
    text=True,
  )


def test_first_command_installs_and_runs_the_main_job():
  done = command(1)
  assert not done.returncode, done.stderr
  assert 'pip install' in done.stdout
  assert 'launch/train.py' in done.stdout
  for path in re.findall(r'(?:launch|configs)/[\w./]+', done.stdout):
    assert (source_tree.ROOT / path).exists(), path


def test_second_command_installs_and_runs_the_tests():
  done = command(2)
  assert not done.returncode, done.stderr
  assert '[test]' in done.stdout
  assert 'pytest' in done.stdout
  assert done.stdout in README.read_text(encoding='utf-8')


@pytest.mark.parametrize('blocks', [0, 1, 3])
def test_another_number_of_commands_is_refused(tmp_path, blocks):
  readme = tmp_path / 'README.md'
  text = '## Quick start\n' + '```bash\nrun\n```\n' * blocks + '## Next\n'
  readme.write_text(text + '```bash\nno start\n```\n', encoding='utf-8')
  done = command(1, readme)
  assert done.returncode
  assert f'found {blocks}' in done.stderr


def test_the_snippets_run_one_after_another():
  text = README.read_text(encoding='utf-8')
  snippets = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  assert len(snippets) == 2
  scope = {'print': lambda *values: None}
  for snippet in snippets:
    exec(compile(snippet, 'README.md', 'exec'), scope)
  assert scope['last'].generation == 3
  assert scope['logits'].shape == (len(scope['images']), 10)


def page(name):
  """What the one snippet of a page defines."""
  text = (source_tree.ROOT / 'docs' / name).read_text(encoding='utf-8')
  (snippet,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
  scope = {'print': lambda *values: None}
  exec(compile(snippet, name, 'exec'), scope)
  return scope


def test_the_snippet_of_the_page_on_mixing_runs():
  assert page('pbt_nas.md')['last'].generation == 3


def test_the_snippet_of_the_page_on_tables_runs():
  scope = page('tables.md')
  assert scope['last'].spent.evaluations == 50
  assert scope['best'].shape == (20,) and scope['best'].min() >= 3
