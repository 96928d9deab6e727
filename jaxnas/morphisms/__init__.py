"""Morphisms: pure functions from network to network."""

from jaxnas.morphisms.base import Morphism as Morphism
from jaxnas.morphisms.base import carry_state as carry_state
from jaxnas.morphisms.base import compose as compose
from jaxnas.morphisms.base import identity as identity
from jaxnas.morphisms.base import morph as morph
from jaxnas.morphisms.base import respec as respec
from jaxnas.morphisms.blocks import add_block as add_block
from jaxnas.morphisms.blocks import label as label
from jaxnas.morphisms.blocks import remove_block as remove_block
from jaxnas.morphisms.depth import insert as insert
from jaxnas.morphisms.depth import remove as remove
from jaxnas.morphisms.embed import embed as embed
from jaxnas.morphisms.embed import extract as extract
from jaxnas.morphisms.kernel import grow_kernel as grow_kernel
from jaxnas.morphisms.kernel import shrink_kernel as shrink_kernel
from jaxnas.morphisms.outgoing import free_split as free_split
from jaxnas.morphisms.outgoing import merge as merge
from jaxnas.morphisms.pad import crop as crop
from jaxnas.morphisms.pad import pad as pad
from jaxnas.morphisms.pad import uncapped as uncapped
from jaxnas.morphisms.rename import rename as rename
from jaxnas.morphisms.several import unite as unite
from jaxnas.morphisms.width import prune as prune
from jaxnas.morphisms.width import split as split
from jaxnas.morphisms.width import widen as widen
