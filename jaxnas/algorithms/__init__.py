"""Algorithms: searches as short chains of stages."""

from jaxnas.algorithms.ectonas import RECOVERY as RECOVERY
from jaxnas.algorithms.ectonas import ectonas as ectonas
from jaxnas.algorithms.ectonas import official as official
from jaxnas.algorithms.growth import growth as growth
