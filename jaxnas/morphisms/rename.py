"""Other names for the same nodes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax

from jaxnas import network
from jaxnas import spec as specs
from jaxnas.morphisms import base


@dataclasses.dataclass(frozen=True)
class Rename:
  """Nodes under other names; build it with `rename`."""

  names: tuple[tuple[str, str], ...]
  preserves = True

  @functools.lru_cache(maxsize=1024)
  def _spec(self, spec: specs.Spec) -> specs.Spec:
    base.unpadded(self, spec)
    to = dict(self.names)
    for name in to:
      spec.node(name, asker=self)
    after = [to.get(name, name) for name in spec.by_name]
    twice = sorted({name for name in after if after.count(name) > 1})
    if twice:
      raise base.refuse(
        self,
        f'several nodes would be called {twice}',
        'give each node a name of its own',
      )
    nodes = tuple(
      specs.Node(
        to.get(node.name, node.name),
        node.op,
        tuple(to.get(source, source) for source in node.inputs),
      )
      for node in spec.nodes
    )
    return specs.Spec(nodes, to.get(spec.output, spec.output))

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del key
    self._spec(net.spec)
    return ()

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    spec = self._spec(net.spec)
    variables = {c: self._held(held) for c, held in net.variables.items()}
    return network.Network(variables, spec)

  def _held(self, tree: Mapping[str, Any]) -> dict[str, Any]:
    to = dict(self.names)
    return {to.get(name, name): held for name, held in tree.items()}

  def moments(self, spec: specs.Spec, tree: base.Tree, power: int):
    del spec, power
    return self._held(tree)


def rename(names: Mapping[str, str]) -> Rename:
  """Gives nodes other names, and changes nothing else.

  Compiled programs are kept by spec, names included, so networks that differ
  in names alone share one under common names.

  Args:
    names: for each node its new name.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> sorted(rename({'dense1': 'hidden'})(net, ()).spec.by_name)
    ['act1', 'hidden', 'input', 'logits']
  """
  return Rename(tuple(sorted(names.items())))
