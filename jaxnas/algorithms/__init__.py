"""Algorithms: searches as short chains of stages."""

from jaxnas.algorithms.ectonas import RECOVERY as RECOVERY
from jaxnas.algorithms.ectonas import ectonas as ectonas
from jaxnas.algorithms.ectonas import official as official
from jaxnas.algorithms.growth import growth as growth
from jaxnas.algorithms.nsga import nsga as nsga
from jaxnas.algorithms.random_search import random_search as random_search
from jaxnas.algorithms.regularized_evolution import (
  regularized_evolution as regularized_evolution,
)
