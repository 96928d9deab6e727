"""Runs pytest on the file named by the first argument, for `bazel test`."""

import sys

import pytest

if __name__ == '__main__':
  sys.exit(pytest.main(sys.argv[1:]))
