"""Moves that change depth: insert a layer or block, remove a node."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import network
from jaxnas import spec as specs
from jaxnas.morphisms import base

# Activations s with x = s(x) - s(-x) up to a factor: s(x) = x F(x) with
# F(x) + F(-x) = 1, and softplus; leaky ReLU gives (1 + slope) x.
_PAIRS = {
  'relu': 1.0,
  'gelu': 1.0,
  'silu': 1.0,
  'hard_swish': 1.0,
  'softplus': 1.0,
  'leaky_relu': 1.1,
}
FORMS = ('auto', 'identity', 'pair', 'residual')


def nonnegative(spec: specs.Spec, name: str) -> bool:
  """Whether a node's value is never negative, whatever its input."""
  node = spec.by_name[name]
  if isinstance(node.op, specs.Activation):
    return node.op.fn in ('relu', 'sigmoid', 'softplus')
  passes = specs.Pool | specs.GlobalPool | specs.Dropout | specs.Flatten
  joins = specs.Add | specs.Concat
  if isinstance(node.op, passes | joins):
    return all(nonnegative(spec, source) for source in node.inputs)
  return False


@dataclasses.dataclass(frozen=True)
class Insert:
  """A new layer or block behind a node; build it with `insert`."""

  after: str
  form: str = 'auto'
  kernel: tuple[int, int] = (3, 3)
  activation: str = 'relu'
  norm: bool = False
  name: str = 'insert'
  preserves = True

  def resolved(self, spec: specs.Spec) -> str:
    """The form used on this spec; `ValueError` where it is not exact."""
    base.unpadded(self, spec)
    spec.node(self.after, asker=self)
    if self.after == spec.output:
      raise base.refuse(
        self,
        f'node {self.after!r} is the output of the network',
        'insert behind another node',
      )
    shape = spec.shapes[self.after]
    if len(shape) not in (1, 3):
      raise base.refuse(
        self,
        f'node {self.after!r} has shape {shape}',
        'insert behind (height, width, channels) or (features,)',
      )
    identity = self.activation == 'relu' and nonnegative(spec, self.after)
    pair = self.activation in _PAIRS and not self.norm
    if self.form == 'auto':
      return 'identity' if identity else 'pair' if pair else 'residual'
    if self.form == 'identity' and not identity:
      raise base.refuse(
        self,
        'an identity layer is exact for activation relu behind a node that '
        f'is never negative; {self.after!r} with {self.activation!r} is not '
        'such a case',
        "use form 'pair' or 'residual'",
      )
    if self.form == 'pair' and not pair:
      raise base.refuse(
        self,
        f'the pair form is exact for {", ".join(_PAIRS)} without norm',
        "use form 'residual'",
      )
    return self.form

  def names(self, spec: specs.Spec) -> dict[str, str]:
    """The names of the new nodes by their part in the block."""
    names, taken = {}, spec
    for part in ('', '_bn', '_act', '_out', '_gate', '_add'):
      names[part] = taken.fresh(f'{self.name}{part}')
    return names

  def _linear(self, spec: specs.Spec, features: int) -> specs.Op:
    if len(spec.shapes[self.after]) == 1:
      return specs.Dense(features)
    return specs.Conv(features, self.kernel)

  def _spec(self, spec: specs.Spec) -> specs.Spec:
    form, names = self.resolved(spec), self.names(spec)
    width = spec.shapes[self.after][-1]
    doubled = 2 * width if form == 'pair' else width
    chain = [('', self._linear(spec, doubled))]
    chain += [('_bn', specs.BatchNorm())] if self.norm else []
    chain += [('_act', specs.Activation(self.activation))]
    if form != 'identity':
      chain += [('_out', self._linear(spec, width))]
    if form == 'residual':
      chain += [('_gate', specs.Gate())]
    added, source = [], self.after
    for part, op in chain:
      added.append(specs.Node(names[part], op, (source,)))
      source = names[part]
    if form == 'residual':
      added.append(specs.Node(names['_add'], specs.Add(), (self.after, source)))
      source = names['_add']
    nodes = [
      dataclasses.replace(
        node,
        inputs=tuple(source if s == self.after else s for s in node.inputs),
      )
      for node in spec.nodes
    ]
    at = [node.name for node in nodes].index(self.after) + 1
    return specs.Spec((*nodes[:at], *added, *nodes[at:]), spec.output)

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    """Noise for the kernels behind a closed gate, and the gate's opening.

    The noise has the scale of a fresh kernel (He et al. 2015), the opening is
    zero; for the exact identity and pair forms theta is empty.
    """
    if self.resolved(net.spec) != 'residual':
      return {}
    after = network.shapes(self._spec(net.spec)).variables['params']
    names, theta = self.names(net.spec), {}
    dtype = _dtype(net)
    for part in ('', '_out'):
      shape = after[names[part]]['kernel'].shape
      noise = jax.random.normal(network.named_key(key, part), shape, dtype)
      theta[names[part]] = noise * np.sqrt(2 / np.prod(shape[:-1])).astype(
        dtype
      )
    theta[names['_gate']] = jnp.zeros((), dtype)
    return theta

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    spec, form = self._spec(net.spec), self.resolved(net.spec)
    names, dtype = self.names(net.spec), _dtype(net)
    after = network.shapes(spec).variables
    variables = {c: dict(held) for c, held in net.variables.items()}
    added = [n for n in spec.by_name if n not in net.spec.by_name]
    for collection, held in after.items():
      target = variables.setdefault(collection, {})
      for node in added:
        if node in held:
          target[node] = {
            leaf: np.zeros(shape.shape, dtype)
            for leaf, shape in held[node].items()
          }
    params = variables['params']
    eye = np.eye(net.spec.shapes[self.after][-1])
    gain = _PAIRS.get(self.activation, 1.0)
    first, last = eye, eye
    if form == 'pair':
      first = np.concatenate([eye, -eye], axis=1)
      last = np.concatenate([eye, -eye], axis=0) / gain
    for part, matrix in (('', first), ('_out', last)):
      name = names[part]
      if name in params:
        kernel = centred(matrix, params[name]['kernel'].shape).astype(dtype)
        noise = theta[name] if name in theta else np.zeros((), dtype)
        params[name] = {**params[name], 'kernel': kernel + noise}
    if names['_gate'] in theta:
      gate = params[names['_gate']]
      alpha = gate['alpha'] + theta[names['_gate']]
      params[names['_gate']] = {**gate, 'alpha': alpha}
    if self.norm:
      epsilon = spec.by_name[names['_bn']].op.epsilon
      ones = np.ones_like(params[names['_bn']]['scale'])
      variables['batch_stats'][names['_bn']]['var'] = ones
      scale = np.asarray(np.sqrt(1 + epsilon)).astype(dtype)
      params[names['_bn']]['scale'] = ones * scale
    return network.Network(variables, spec)


def _dtype(net: network.Network):
  return jnp.result_type(*jax.tree.leaves(net.variables['params']))


def centred(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """A kernel that applies `matrix` at the centre of its window."""
  if len(shape) == 2:
    return matrix
  kernel = np.zeros(shape)
  kernel[(shape[0] - 1) // 2, (shape[1] - 1) // 2] = matrix
  return kernel


def insert(
  after: str,
  *,
  form: str = 'auto',
  kernel: tuple[int, int] = (3, 3),
  activation: str = 'relu',
  norm: bool = False,
  name: str = 'insert',
) -> Insert:
  """Inserts a layer or block behind a node, leaving the function as it is.

  `'identity'`: one identity layer with ReLU, behind a node that is never
  negative (Net2DeeperNet, Chen et al. 2016). `'pair'`: two layers around
  an activation s with x = s(x) - s(-x), for ReLU, GELU, SiLU, hard swish,
  softplus and (scaled) leaky ReLU. `'residual'`: x + alpha F(x) with the gate
  alpha at zero and F two layers around any activation; theta holds their
  random kernels, and how far the gate opens. `'auto'` takes the first that is
  exact.

  Args:
    after: the node whose readers will read the new layers.
    form: `'auto'`, `'identity'`, `'pair'` or `'residual'`.
    kernel: of the new convolutions, where the node has an image's shape.
    activation: one of `jaxnas.spec.ACTIVATIONS`.
    norm: whether a batch norm follows the first new layer. It is exact in
      evaluation mode, its statistics being those of standard inputs.
    name: of the first new node; numbered if taken.

  Raises:
    ValueError: for an unknown form or activation.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> sorted(insert('act1')(net, {}).spec.by_name)
    ['act1', 'dense1', 'input', 'insert', 'insert_act', 'logits']
  """
  if form not in FORMS:
    raise ValueError(
      f'insert: form must be one of {", ".join(FORMS)}, got {form!r}.'
    )
  specs.Activation(activation)
  specs.Conv(1, tuple(kernel))
  return Insert(after, form, tuple(kernel), activation, norm, name)


@dataclasses.dataclass(frozen=True)
class Remove:
  """A node bypassed; build it with `remove`."""

  node: str
  keep: int = 0
  preserves = False

  def init(self, net: network.Network, key: jax.Array) -> base.Theta:
    del key
    self._spec(net.spec)
    return ()

  def _spec(self, spec: specs.Spec) -> specs.Spec:
    base.unpadded(self, spec)
    node = spec.node(self.node, asker=self)
    if self.node == spec.output or not node.inputs:
      raise base.refuse(
        self,
        f'node {self.node!r} is the input or output of the network',
        'remove a node in between',
      )
    if not 0 <= self.keep < len(node.inputs):
      raise base.refuse(
        self,
        f'node {self.node!r} has {len(node.inputs)} inputs, got '
        f'keep={self.keep}',
        'keep one of them, counted from 0',
      )
    source = node.inputs[self.keep]
    before, after = spec.shapes[source], spec.shapes[self.node]
    if before != after:
      raise base.refuse(
        self,
        f'node {self.node!r} changes the shape from {before} to {after}',
        'remove nodes whose input and output shapes agree',
      )
    rewired = {
      n.name: dataclasses.replace(
        n, inputs=tuple(source if s == self.node else s for s in n.inputs)
      )
      for n in spec.nodes
      if n.name != self.node
    }
    reached, pending = set(), [spec.output]
    while pending:
      name = pending.pop()
      if name not in reached:
        reached.add(name)
        pending.extend(rewired[name].inputs)
    reached.add(spec.input)
    kept = tuple(n for name, n in rewired.items() if name in reached)
    return specs.Spec(kept, spec.output)

  def __call__(
    self, net: network.Network, theta: base.Theta
  ) -> network.Network:
    del theta
    spec = self._spec(net.spec)
    variables = {
      collection: {n: leaf for n, leaf in held.items() if n in spec.by_name}
      for collection, held in net.variables.items()
    }
    return network.Network({c: h for c, h in variables.items() if h}, spec)


def remove(node: str, *, keep: int = 0) -> Any:
  """Removes a node: its readers read its input instead.

  Nodes that then no longer reach the output go too, so removing the add of a
  residual block removes the branch. The function changes, except where the
  node did nothing.

  Args:
    node: the node to bypass; its input and output must have one shape.
    keep: which of its inputs remains, counted from 0.

  Example:
    >>> import jax
    >>> from jaxnas import network
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8, 8), 3), jax.random.key(0))
    >>> sorted(remove('dense2')(net, ()).spec.by_name)
    ['act1', 'act2', 'dense1', 'input', 'logits']
  """
  return Remove(node, keep)
