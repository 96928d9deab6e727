"""Runs pytest on the file named by the first argument, for `bazel test`."""

import sys

import pytest

if __name__ == '__main__':
  # Bazel's copy of the tree is read-only, so pytest may keep no cache in it.
  sys.exit(pytest.main(['-p', 'no:cacheprovider', *sys.argv[1:]]))
