"""Estimators: what a move would do, without making it."""

from jaxnas.estimators.brute_force import brute_force as brute_force
from jaxnas.estimators.curvature import exact_of as exact_of
from jaxnas.estimators.curvature import flat as flat
from jaxnas.estimators.curvature import gated as gated
from jaxnas.estimators.curvature import outgoing as outgoing
from jaxnas.estimators.curvature import sketch_of as sketch_of
from jaxnas.estimators.curvature import softmax_exact as softmax_exact
from jaxnas.estimators.curvature import softmax_labels as softmax_labels
from jaxnas.estimators.curvature import softmax_sketch as softmax_sketch
from jaxnas.estimators.curvature import split_step as split_step
from jaxnas.estimators.curvature import squares_exact as squares_exact
from jaxnas.estimators.curvature import squares_sketch as squares_sketch
from jaxnas.estimators.differences import Difference as Difference
from jaxnas.estimators.differences import mlp_difference as mlp_difference
from jaxnas.estimators.differences import (
  one_edit_differences as one_edit_differences,
)
from jaxnas.estimators.differences import ridge_difference as ridge_difference
from jaxnas.estimators.gauss_newton import first_order as first_order
from jaxnas.estimators.gauss_newton import gauss_newton as gauss_newton
from jaxnas.estimators.heuristics import batch_norm_scale as batch_norm_scale
from jaxnas.estimators.heuristics import magnitude as magnitude
from jaxnas.estimators.heuristics import mean_activation as mean_activation
from jaxnas.estimators.heuristics import random as random
from jaxnas.estimators.lineage import by_lineage as by_lineage
from jaxnas.estimators.lineage import contents as contents
from jaxnas.estimators.predictors import Basis as Basis
from jaxnas.estimators.predictors import Prediction as Prediction
from jaxnas.estimators.predictors import Predictor as Predictor
from jaxnas.estimators.predictors import gaussian_process as gaussian_process
from jaxnas.estimators.predictors import matern as matern
from jaxnas.estimators.predictors import mlp as mlp
from jaxnas.estimators.predictors import plain as plain
from jaxnas.estimators.predictors import products as products
from jaxnas.estimators.predictors import rbf as rbf
from jaxnas.estimators.predictors import ridge as ridge
from jaxnas.estimators.tangents import linearised as linearised
from jaxnas.estimators.tangents import tangents as tangents
from jaxnas.estimators.zero_cost import PROXIES as PROXIES
from jaxnas.estimators.zero_cost import by_proxy as by_proxy
from jaxnas.estimators.zero_cost import score_genotypes as score_genotypes
