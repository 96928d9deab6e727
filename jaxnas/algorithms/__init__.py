"""Algorithms: searches as short chains of stages."""

from jaxnas.algorithms.ectonas import RECOVERY as RECOVERY
from jaxnas.algorithms.ectonas import ectonas as ectonas
from jaxnas.algorithms.ectonas import official as official
from jaxnas.algorithms.epbt import distilled as distilled
from jaxnas.algorithms.epbt import epbt as epbt
from jaxnas.algorithms.epbt import pulsation as pulsation
from jaxnas.algorithms.fire_pbt import fire_pbt as fire_pbt
from jaxnas.algorithms.growth import growth as growth
from jaxnas.algorithms.nsga import nsga as nsga
from jaxnas.algorithms.pbt import exploit_only as exploit_only
from jaxnas.algorithms.pbt import explore_only as explore_only
from jaxnas.algorithms.pbt import pbt as pbt
from jaxnas.algorithms.pbt_nas import evolving as evolving
from jaxnas.algorithms.pbt_nas import mutation_only as mutation_only
from jaxnas.algorithms.pbt_nas import pbt_nas as pbt_nas
from jaxnas.algorithms.pbt_nas import train_only as train_only
from jaxnas.algorithms.random_search import random_search as random_search
from jaxnas.algorithms.regularized_evolution import (
  regularized_evolution as regularized_evolution,
)
