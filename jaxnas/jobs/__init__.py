"""Whole jobs from plain settings: what `launch/train.py` runs."""

from typing import Any

import rich.console

from jaxnas import workdir
from jaxnas.jobs.econas import econas
from jaxnas.jobs.econas import refuse as check_econas
from jaxnas.jobs.ectonas import check_ectonas, ectonas
from jaxnas.jobs.evolution import check_evolution, evolution
from jaxnas.jobs.growth import check_growth, growth, race
from jaxnas.jobs.growth import uniform as uniform
from jaxnas.jobs.members import members
from jaxnas.jobs.members import refuse as check_members
from jaxnas.jobs.settings import SEEDS as SEEDS
from jaxnas.jobs.settings import Settings, one_of
from jaxnas.jobs.settings import check as check
from jaxnas.jobs.settings import make_optimizer as make_optimizer
from jaxnas.jobs.settings import make_seed as make_seed
from jaxnas.jobs.settings import make_task as make_task
from jaxnas.jobs.settings import resolve as resolve
from jaxnas.jobs.tabular import refuse as check_tabular
from jaxnas.jobs.tabular import tabular

CHECKS = {
  'growth': check_growth,
  'race': check_growth,
  'evolution': check_evolution,
  'econas': check_econas,
  'ectonas': check_ectonas,
  'members': check_members,
  'tabular': check_tabular,
}
JOBS = {
  'growth': growth,
  'race': race,
  'evolution': evolution,
  'econas': econas,
  'ectonas': ectonas,
  'members': members,
  'tabular': tabular,
}


def run(
  config: Settings,
  folder: workdir.Folder,
  *,
  console: rich.console.Console | None = None,
) -> dict[str, Any]:
  """Runs the job that `config.job` names.

  Raises:
    ValueError: for an unknown job.
  """
  one_of('job', config['job'], JOBS)
  return JOBS[config['job']](config, folder, console=console)
