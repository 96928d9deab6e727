"""Stages: the steps that searches are chains of."""

from jaxnas.stages.choose import Choice as Choice
from jaxnas.stages.choose import Rule as Rule
from jaxnas.stages.choose import choose as choose
from jaxnas.stages.choose import confirmed as confirmed
from jaxnas.stages.choose import independently as independently
from jaxnas.stages.choose import jointly as jointly
from jaxnas.stages.choose import operations as operations
from jaxnas.stages.choose import parameters as parameters
from jaxnas.stages.fit import realise as realise
from jaxnas.stages.fit import train as train
from jaxnas.stages.judge import judge as judge
from jaxnas.stages.judge import learn as learn
from jaxnas.stages.judge import measure as measure
from jaxnas.stages.propose import Moves as Moves
from jaxnas.stages.propose import expand as expand
from jaxnas.stages.propose import inserts as inserts
from jaxnas.stages.propose import prunes as prunes
from jaxnas.stages.propose import splits as splits
