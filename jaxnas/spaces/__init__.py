"""Spaces: where networks come from."""

from jaxnas.spaces import gan as gan
from jaxnas.spaces import seeds as seeds
from jaxnas.spaces import slots as slots
from jaxnas.spaces.chain import chain as chain
from jaxnas.spaces.conv_slots import conv_slots as conv_slots
