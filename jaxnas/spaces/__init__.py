"""Spaces: where networks come from."""

from jaxnas.spaces import cell as cell
from jaxnas.spaces import cell_networks as cell_networks
from jaxnas.spaces import gan as gan
from jaxnas.spaces import nas_bench_101 as nas_bench_101
from jaxnas.spaces import nas_bench_201 as nas_bench_201
from jaxnas.spaces import nas_bench_macro as nas_bench_macro
from jaxnas.spaces import seeds as seeds
from jaxnas.spaces import slots as slots
from jaxnas.spaces import supernet as supernet
from jaxnas.spaces import tables as tables
from jaxnas.spaces import tabular as tabular
from jaxnas.spaces import transnas_bench as transnas_bench
from jaxnas.spaces.chain import chain as chain
from jaxnas.spaces.conv_slots import conv_slots as conv_slots
from jaxnas.spaces.tables import load as load
