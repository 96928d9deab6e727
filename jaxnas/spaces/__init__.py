"""Spaces: where networks come from."""

from jaxnas.spaces import seeds as seeds
