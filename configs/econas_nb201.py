"""EcoNAS' ladder on NAS-Bench-201, networks known after 12 and 200 epochs."""

import ml_collections

from configs import evolution_nb201


def get_config() -> ml_collections.ConfigDict:
  """Settings of the run."""
  config = evolution_nb201.get_config()
  config.tabular.arms = 'econas-halving-flat_first-flat_last-evolution-random'
  config.tabular.searches = 200
  config.tabular.signal = 'val_ep200'
  config.tabular.cost = 'train_time_ep200_s'
  # Of training, as the table says it took: about 40 whole trainings.
  config.tabular.budget = 100_000.0
  config.tabular.unit = 'seconds'
  config.tabular.queries = 800
  config.ladder = ml_collections.ConfigDict()
  # Columns of the rungs, and what it takes to get there, joined by ','.
  config.ladder.signals = 'val_ep12,val_ep200'
  config.ladder.costs = 'train_time_ep12_s,train_time_ep200_s'
  # Random genotypes, how many go on from rung 1, and children of each rung.
  config.ladder.first = 16
  config.ladder.promote = '2'
  config.ladder.mothers = '8-8'
  config.when_quick = ml_collections.ConfigDict({'tabular': {'searches': 50}})
  return config
