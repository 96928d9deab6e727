"""Algorithms: searches as short chains of stages."""

from jaxnas.algorithms.array_evolution import array_evolution as array_evolution
from jaxnas.algorithms.array_nsga import array_nsga as array_nsga
from jaxnas.algorithms.array_nsga import eeea as eeea
from jaxnas.algorithms.array_random import array_random as array_random
from jaxnas.algorithms.bananas import bananas as bananas
from jaxnas.algorithms.delta_nas import delta_nas as delta_nas
from jaxnas.algorithms.econas import econas as econas
from jaxnas.algorithms.econas import econas_memory as econas_memory
from jaxnas.algorithms.econas import econas_slots as econas_slots
from jaxnas.algorithms.econas import halving as halving
from jaxnas.algorithms.ectonas import RECOVERY as RECOVERY
from jaxnas.algorithms.ectonas import ectonas as ectonas
from jaxnas.algorithms.ectonas import official as official
from jaxnas.algorithms.epbt import distilled as distilled
from jaxnas.algorithms.epbt import epbt as epbt
from jaxnas.algorithms.epbt import pulsation as pulsation
from jaxnas.algorithms.fire_pbt import fire_pbt as fire_pbt
from jaxnas.algorithms.growth import growth as growth
from jaxnas.algorithms.local_search import local_search as local_search
from jaxnas.algorithms.nsga import nsga as nsga
from jaxnas.algorithms.pbt import exploit_only as exploit_only
from jaxnas.algorithms.pbt import explore_only as explore_only
from jaxnas.algorithms.pbt import pbt as pbt
from jaxnas.algorithms.pbt_nas import evolving as evolving
from jaxnas.algorithms.pbt_nas import mutation_only as mutation_only
from jaxnas.algorithms.pbt_nas import pbt_nas as pbt_nas
from jaxnas.algorithms.pbt_nas import train_only as train_only
from jaxnas.algorithms.pnas import pnas as pnas
from jaxnas.algorithms.random_search import random_search as random_search
from jaxnas.algorithms.regularized_evolution import (
  regularized_evolution as regularized_evolution,
)
from jaxnas.algorithms.reinforce import reinforce as reinforce
from jaxnas.algorithms.robot import likeliest_process as likeliest_process
from jaxnas.algorithms.robot import robot as robot
