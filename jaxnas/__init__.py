"""jaxnas: neural architecture search by composing pure functions in JAX."""

from jaxnas import algorithms as algorithms
from jaxnas import base as base
from jaxnas import checkpoint as checkpoint
from jaxnas import combine as combine
from jaxnas import curves as curves
from jaxnas import draw as draw
from jaxnas import estimators as estimators
from jaxnas import fidelity as fidelity
from jaxnas import forms as forms
from jaxnas import groups as groups
from jaxnas import jobs as jobs
from jaxnas import layers as layers
from jaxnas import learners as learners
from jaxnas import mesh as mesh
from jaxnas import mixing as mixing
from jaxnas import morphisms as morphisms
from jaxnas import network as network
from jaxnas import plans as plans
from jaxnas import report as report
from jaxnas import selection as selection
from jaxnas import spaces as spaces
from jaxnas import spec as spec
from jaxnas import stages as stages
from jaxnas import tasks as tasks
from jaxnas import testing as testing
from jaxnas import training as training
from jaxnas import workdir as workdir
from jaxnas.base import Candidate as Candidate
from jaxnas.base import Cost as Cost
from jaxnas.base import Data as Data
from jaxnas.base import Estimator as Estimator
from jaxnas.base import Population as Population
from jaxnas.base import Space as Space
from jaxnas.base import Stage as Stage
from jaxnas.base import Task as Task
from jaxnas.combine import append as append
from jaxnas.combine import chain as chain
from jaxnas.combine import group_by as group_by
from jaxnas.combine import observe as observe
from jaxnas.combine import repeat as repeat
from jaxnas.combine import stage as stage
from jaxnas.combine import when as when
from jaxnas.morphisms import Morphism as Morphism
from jaxnas.morphisms import morph as morph
from jaxnas.network import Network as Network
from jaxnas.network import apply as apply
from jaxnas.network import flops as flops
from jaxnas.network import init as init
from jaxnas.network import param_count as param_count
from jaxnas.run import count_compilations as count_compilations
from jaxnas.run import run as run
from jaxnas.spec import Node as Node
from jaxnas.spec import Spec as Spec

__all__ = (
  'Candidate',
  'Cost',
  'Data',
  'Estimator',
  'Morphism',
  'Network',
  'Node',
  'Population',
  'Space',
  'Spec',
  'Stage',
  'Task',
  'algorithms',
  'append',
  'apply',
  'base',
  'chain',
  'checkpoint',
  'combine',
  'count_compilations',
  'curves',
  'draw',
  'estimators',
  'fidelity',
  'flops',
  'forms',
  'group_by',
  'groups',
  'init',
  'jobs',
  'layers',
  'learners',
  'mesh',
  'morph',
  'morphisms',
  'network',
  'observe',
  'param_count',
  'plans',
  'repeat',
  'report',
  'run',
  'selection',
  'spaces',
  'spec',
  'stage',
  'stages',
  'tasks',
  'testing',
  'training',
  'when',
  'workdir',
)
