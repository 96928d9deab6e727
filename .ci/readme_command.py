"""Writes the n-th `bash` block under 'Quick start' of a README, as printed."""

import pathlib
import re
import sys


def quick_start_commands(text: str) -> list[str]:
  """The fenced blocks of the section, which has exactly two.

  >>> quick_start_commands('''## Quick start
  ... ```bash
  ... run
  ... ```
  ... ```bash
  ... test
  ... ```
  ... ## Next''')
  ['run\\n', 'test\\n']
  """
  found = re.search(r'^## Quick start$(.*?)(?=^## |\Z)', text, re.M | re.S)
  section = found.group(1) if found else ''
  blocks = re.findall(r'^```bash\n(.*?)^```$', section, re.M | re.S)
  if len(blocks) != 2:
    raise ValueError(
      "the README's 'Quick start' must have two bash blocks, to run and to "
      f'test; found {len(blocks)}.'
    )
  return blocks


if __name__ == '__main__':
  readme, number = sys.argv[1:]
  text = pathlib.Path(readme).read_text(encoding='utf-8')
  sys.stdout.write(quick_start_commands(text)[int(number) - 1])
