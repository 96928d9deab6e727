"""Algorithms: searches as short chains of stages."""

from jaxnas.algorithms.growth import growth as growth
