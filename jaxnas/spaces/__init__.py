"""Spaces: where networks come from."""

from jaxnas.spaces import seeds as seeds
from jaxnas.spaces.chain import chain as chain
