"""What array populations learn: training procedures as pure functions.

Each factory gives a `base.Learner`. Architecture is data, a genotype of
integers, and a member's layers are what members exchange.
"""

from jaxnas.learners import toys as toys
from jaxnas.learners.cells import Pupil as Pupil
from jaxnas.learners.cells import as_data as as_data
from jaxnas.learners.cells import unrolled as unrolled
from jaxnas.learners.control import actor_critic as actor_critic
from jaxnas.learners.control import ppo as ppo
from jaxnas.learners.generation import adversarial as adversarial
from jaxnas.learners.generation import conv_gan as conv_gan
from jaxnas.learners.generation import gan as gan
from jaxnas.learners.images import TAYLOR_PRIORS as TAYLOR_PRIORS
from jaxnas.learners.images import Teacher as Teacher
from jaxnas.learners.images import by_cross_entropy as by_cross_entropy
from jaxnas.learners.images import by_taylor as by_taylor
from jaxnas.learners.images import classifier as classifier
from jaxnas.learners.teacher import teacher as teacher
from jaxnas.learners.toys import deceptive as deceptive
from jaxnas.learners.toys import plain as plain
