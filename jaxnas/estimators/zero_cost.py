"""Zero-cost proxies: what an untrained network promises, from one batch.

Every proxy is a number of a network at its initialisation, larger for better
where its authors say so. Definitions follow Abdelfattah, Mehrotra, Dudziak and
Lane 2021 (arXiv 2101.08134) and the sources named in `PROXIES`; where this
departs from them it says so there. The control is `params`, which several of
them do not beat.

A proxy reads a `Subject`, a network as pure functions, so the same code serves
the cells of a supernet (`of_genotype`), hundreds in one compiled program
(`score_genotypes`), and ordinary networks (`of_network`), whose moves it then
judges (`by_proxy`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnas import morphisms, network, programs, tasks
from jaxnas import spec as specs
from jaxnas.base import Estimator, Key
from jaxnas.estimators import heuristics
from jaxnas.spaces import supernet

# Added to eigenvalues and correlations before their logarithm.
_JITTER = 1e-5
# An input at which the flow through deep networks, 1e40 and more at 1, and
# through small ones are float32.
_SMALL = 1e-30


class Subject(NamedTuple):
  """A network as a proxy sees it.

  Attributes:
    params: its parameters; those called `kernel` are its weights.
    forward: `forward(params, x, *, norm=True, see={}, touch=None) -> Outputs`
      with the statistics of the batch, see `jaxnas.spaces.supernet.Supernet`.
    used: a tree like `params`, one where the network has the parameter and zero
      where it merely could, of shapes that broadcast.
    flops: operations of one example.
  """

  params: Any
  forward: Callable[..., supernet.Outputs]
  used: Any
  flops: Any


class Batch(NamedTuple):
  """What proxies are computed from: prepared inputs, targets and a key."""

  inputs: jax.Array
  targets: jax.Array
  key: Key


def of_genotype(
  net: supernet.Supernet, variables: network.Variables, genotype: Any
) -> Subject:
  """One network of a supernet."""

  def forward(params, x, **how):
    own = {**variables, 'params': params}
    return net.apply(own, genotype, x, train=True, **how)

  flops = net.flops(genotype)
  return Subject(variables['params'], forward, net.used(genotype), flops)


def of_network(net: network.Network) -> Subject:
  """An ordinary network.

  Its `features` are what the last mixing layer, or a pooling right before it,
  reads.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.chain((4, 4, 1), (3,), 2), jax.random.key(0))
    >>> found = of_network(net).forward(
    ...     net.variables['params'], jnp.ones((2, 4, 4, 1)))
    >>> found.logits.shape, found.features.shape
    ((2, 2), (2, 4, 4, 3))
  """
  spec = net.spec

  def forward(params, x, *, norm=True, see=None, touch=None):
    see = see or {}
    call = network.caller(spec, {**net.variables, 'params': params})
    seen: dict[str, list[Any]] = {kind: [] for kind in see}

    def visit(node, *inputs):
      (first, *_) = inputs
      if isinstance(node.op, specs.Activation) and 'relu' in see:
        seen['relu'].append(see['relu'](first))
      if isinstance(node.op, specs.BatchNorm):
        if not norm:
          return first
        if 'norm' in see:
          seen['norm'].append(see['norm'](first))
        axes = tuple(range(first.ndim - 1))
        own, epsilon = params[node.name], node.op.epsilon
        mean, var = first.mean(axes), first.var(axes)
        return supernet.normalised(first, own, mean, var, epsilon)
      value = call(node, *inputs)
      return touch(value) if touch and _weighted(node.op) else value

    values = network.walk(spec, visit, x)
    last = [n for n in spec.order if n.op.kind == 'mixing'][-1].inputs[0]
    if isinstance(spec.by_name[last].op, specs.GlobalPool):
      (last,) = spec.by_name[last].inputs
    sums = {
      kind: jax.tree.map(lambda *xs: sum(xs), *found) if found else 0.0
      for kind, found in seen.items()
    }
    stats = net.variables.get('batch_stats', {})
    return supernet.Outputs(values[spec.output], values[last], stats, sums)

  params = net.variables['params']
  ones = jax.tree.map(lambda leaf: jnp.ones((1,) * jnp.ndim(leaf)), params)
  return Subject(params, forward, ones, network.flops(net))


def _weighted(op: specs.Op) -> bool:
  """Whether an op is a convolution or a dense layer."""
  return op.kind == 'mixing' or isinstance(op, specs.DepthwiseConv)


def _kernels(params: Any, used: Any = None) -> list[jax.Array]:
  """The weights, (layers, size) each; stacked ones are as many layers."""

  def rows(leaf):
    stacked = max(leaf.ndim - 4, 0)
    count = int(np.prod(leaf.shape[:stacked]))
    return leaf.reshape(count, -1)

  if used is not None:
    params = jax.tree.map(jnp.multiply, params, used)
  flat, _ = jax.tree_util.tree_flatten_with_path(params)
  return [rows(leaf) for path, leaf in flat if path[-1].key == 'kernel']


def _total(f: Callable, *trees: Any) -> jax.Array:
  return sum(f(*rows).sum() for rows in zip(*map(_kernels, trees)))


def _loss(subject: Subject, batch: Batch) -> Callable[..., jax.Array]:
  def loss(params, **how):
    logits = subject.forward(params, batch.inputs, **how).logits
    return tasks.cross_entropy(logits, batch.targets).mean()

  return loss


def _weights(subject, batch):
  del batch
  return jax.tree.map(jnp.multiply, subject.params, subject.used)


def _gradients(subject, batch):
  return jax.grad(_loss(subject, batch))(subject.params)


def _curvature(subject, batch):
  """The Hessian of the loss times its gradient, over the weights."""
  slope = jax.grad(_loss(subject, batch))

  def along_itself(params):
    own = slope(params)
    return _total(lambda a, b: a * b, own, jax.lax.stop_gradient(own))

  return jax.grad(along_itself)(subject.params)


@jax.custom_vjp
def _probe(z, total):
  """z; the gradient of the scalar is the Fisher score of all z that met it.

  A score is added up through the whole network as gradients are, whether its
  layers are unrolled, in a loop, or in the branch of a switch that is taken.
  """
  del total
  return z


def _probe_forward(z, total):
  del total
  return z, z


def _probe_backward(z, slope):
  each = (z * slope).sum(axis=tuple(range(1, z.ndim - 1)))
  return slope, jnp.square(each).mean(axis=0).sum() / 2


_probe.defvjp(_probe_forward, _probe_backward)


def _saliency(subject, batch):
  loss = _loss(subject, batch)
  return jax.grad(
    lambda total: loss(subject.params, touch=lambda z: _probe(z, total))
  )(0.0)


def _flow(subject, batch):
  """The logarithm of weights times slopes of the outputs, all positive.

  Without norms and biases outputs are proportional to the input. So they are
  first measured at a tiny one, and then differentiated at one which, like the
  factor of the outputs, takes half of their size away: neither activations nor
  slopes overflow where the whole would.
  """
  positive = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      jnp.zeros_like(leaf) if path[-1].key == 'bias' else abs(leaf)
    ),
    subject.params,
  )
  ones = jnp.ones((1, *batch.inputs.shape[1:]))

  def out(params, scale):
    return subject.forward(params, scale * ones, norm=False).logits.sum()

  whole = jnp.log(out(positive, _SMALL)) - np.log(_SMALL)
  scale = jnp.exp(-whole / 2)
  slopes = jax.grad(lambda params: scale * out(params, scale))(positive)
  return whole + jnp.log(_total(lambda a, b: abs(a * b), positive, slopes))


def _correlation(subject, batch):
  """(batch, batch) the correlations of the examples' input gradients."""
  slopes = jax.grad(lambda x: subject.forward(subject.params, x).logits.sum())(
    batch.inputs
  ).reshape(len(batch.inputs), -1)
  centred = slopes - slopes.mean(axis=1, keepdims=True)
  length = jnp.sqrt(jnp.square(centred).sum(axis=1, keepdims=True))
  centred = centred / length
  return centred @ centred.T


def _codes(subject, batch):
  """(batch, batch) in how many ReLUs two examples agree."""

  def agreement(z):
    on = (z > 0).reshape(len(z), -1).astype(jnp.float32)
    return on @ on.T + (1 - on) @ (1 - on).T

  see = {'relu': agreement}
  return subject.forward(subject.params, batch.inputs, see=see).seen['relu']


def _zen(subject, batch):
  """The change of the features under noise, and the scales of the norms."""
  weights, first, second = jax.random.split(batch.key, 3)
  params = jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      jax.random.normal(
        network.named_key(weights, jax.tree_util.keystr(path)), leaf.shape
      )
      if path[-1].key == 'kernel'
      else leaf
    ),
    subject.params,
  )

  def spread(z):
    variance = z.var(axis=tuple(range(z.ndim - 1))).mean()
    return jnp.log(variance + 1e-12) / 2

  x = jax.random.normal(first, batch.inputs.shape)
  near = x + 0.01 * jax.random.normal(second, x.shape)
  one = subject.forward(params, x, see={'norm': spread})
  two = subject.forward(params, near)
  change = abs(one.features - two.features)
  change = change.sum(axis=tuple(range(1, change.ndim))).mean()
  return jnp.log(change) + one.seen['norm']


# What the proxies are made of: each is computed once for all that read it.
SOURCES: dict[str, Callable[[Subject, Batch], Any]] = {
  'weights': _weights,
  'gradients': _gradients,
  'curvature': _curvature,
  'saliency': _saliency,
  'flow': _flow,
  'correlation': _correlation,
  'codes': _codes,
  'zen': _zen,
}


def _norms(tree):
  return sum(
    jnp.sqrt(jnp.square(rows).sum(axis=1)).sum() for rows in _kernels(tree)
  )


def _jacob_cov(subject, correlation, targets):
  # Those of equal rows are 0, and by rounding, times their number, below.
  values = jnp.maximum(jnp.linalg.eigvalsh(correlation), 0)
  return -(jnp.log(values + _JITTER) + 1 / (values + _JITTER)).sum()


def _epe_nas(subject, correlation, targets):
  """Sum over classes of the size of the log-correlations within each."""
  logs = jnp.log(abs(correlation) + _JITTER)
  same = targets[:, None] == targets[None]
  sums = jnp.where(same, logs, 0).sum(axis=1)
  # Of each class once: what all of its rows say, at the first of them.
  each = jnp.where(same, sums[None], 0).sum(axis=1)
  first = jnp.argmax(same, axis=1) == jnp.arange(len(targets))
  return jnp.where(first, abs(each), 0).sum()


def _counted(subject, weights, targets):
  sizes = jax.tree.map(
    lambda leaf, used: jnp.broadcast_to(used, leaf.shape).sum(),
    subject.params,
    subject.used,
  )
  return sum(jax.tree.leaves(sizes))


def _gamma(subject, weights, targets):
  """The sum over the batch norms of the mean size of their scales."""
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(subject.params),
    jax.tree.leaves(subject.used),
  )
  return sum(
    (jnp.abs(leaf) * used).mean(axis=-1).sum()
    for (path, leaf), used in pairs
    if path[-1].key == 'scale'
  )


class Proxy(NamedTuple):
  """A proxy: a name of `SOURCES`, and what is made of it.

  Attributes:
    source: what it reads.
    score: `score(subject, value of the source, targets) -> ()`.
    reads: the kind of op that it is about; None for any.
  """

  source: str
  score: Callable[[Subject, Any, jax.Array], jax.Array]
  reads: type[specs.Op] | None = None


PROXIES: dict[str, Proxy] = {
  # The controls: the numbers of parameters and of operations, and the norms of
  # the weights.
  'params': Proxy('weights', _counted),
  'flops': Proxy('weights', lambda s, w, y: jnp.asarray(s.flops, jnp.float32)),
  'l2_norm': Proxy('weights', lambda s, w, y: _norms(w)),
  # Chen et al. 2021 (BN-NAS), who sum the last norm of each chosen operation of
  # a trained supernet. This sums all norms; at the start it counts them.
  'bn_gamma': Proxy('weights', _gamma, specs.BatchNorm),
  # Of the gradient of the loss: norms, |g w| (Lee et al. 2019), and g w.
  'grad_norm': Proxy('gradients', lambda s, g, y: _norms(g)),
  'snip': Proxy(
    'gradients', lambda s, g, y: _total(lambda a, b: abs(a * b), g, s.params)
  ),
  'plain': Proxy(
    'gradients', lambda s, g, y: _total(lambda a, b: a * b, g, s.params)
  ),
  # Wang, Zhang and Grosse 2020: -w H g.
  'grasp': Proxy(
    'curvature', lambda s, h, y: -_total(lambda a, b: a * b, h, s.params)
  ),
  # Turner et al. 2020, of the outputs of convolutions, depthwise ones too, and
  # of dense layers.
  'fisher': Proxy('saliency', lambda s, total, y: total),
  # Tanaka et al. 2020, its logarithm. Biases are zero here and not positive,
  # which no weight of a network without biases in convolutions can tell.
  'synflow': Proxy('flow', lambda s, flow, y: flow),
  # Mellor et al.: version 1 (input gradients) and 3 (codes of the ReLUs).
  'jacob_cov': Proxy('correlation', _jacob_cov),
  'naswot': Proxy(
    'codes', lambda s, k, y: jnp.linalg.slogdet(k)[1], specs.Activation
  ),
  # Lopes, Alirezazadeh and Alexandre 2021, the form for up to 100 classes.
  'epe_nas': Proxy('correlation', _epe_nas),
  # Lin et al. 2021. Norms count with the variance of the batch, and not with
  # the running one.
  'zen': Proxy('zen', lambda s, score, y: score),
}


def measure(
  subject: Subject, batch: Batch, names: Sequence[str]
) -> dict[str, jax.Array]:
  """The proxies of one network.

  Args:
    subject: the network.
    batch: what they are computed from.
    names: of `PROXIES`.

  Returns:
    For each name a scalar; -inf where it is no number, as for networks whose
    output does not depend on their input, and where it overflows, also to +inf:
    what cannot be computed of a network promises nothing.

  Raises:
    KeyError: for names that are not there.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.chain((4, 4, 1), (3,), 2), jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (4, 4, 4, 1))
    >>> batch = Batch(x, jnp.array([0, 1, 0, 1]), jax.random.key(2))
    >>> int(measure(of_network(net), batch, ['params'])['params'])
    41
  """
  _known(names)
  needed = dict.fromkeys(PROXIES[name].source for name in names)
  values = {name: SOURCES[name](subject, batch) for name in needed}
  found = {
    name: PROXIES[name].score(
      subject, values[PROXIES[name].source], batch.targets
    )
    for name in names
  }
  return {
    name: jnp.where(jnp.isfinite(score), score, -jnp.inf)
    for name, score in found.items()
  }


def _known(names: Sequence[str]) -> None:
  unknown = [name for name in names if name not in PROXIES]
  if unknown or isinstance(names, str):
    raise KeyError(
      f'there are no proxies {names if isinstance(names, str) else unknown}; '
      f'give a list of {", ".join(PROXIES)}.'
    )


def score_genotypes(
  net: supernet.Supernet,
  key: Key,
  genotypes: jax.Array,
  inputs: jax.Array,
  targets: jax.Array,
  names: Sequence[str] = tuple(PROXIES),
  at_once: int | None = None,
) -> dict[str, jax.Array]:
  """The proxies of many cells, each with weights of its own.

  Compile it by `jaxnas.programs.jit`, on CPU much faster than by `jax.jit`.

  Args:
    net: the networks.
    key: folded with each genotype's place, for its weights.
    genotypes: (G, L).
    inputs: (batch, ...), prepared.
    targets: (batch,).
    names: of `PROXIES`.
    at_once: how many genotypes run side by side, under `vmap`; by default one
      after another, which on CPU lets an edge do its one operation alone.

  Returns:
    For each name (G,).

  Raises:
    KeyError: for names that are not there.

  Example:
    >>> net = supernet.nas_bench_201(channels=2, repeats=1, shape=(4, 4, 3))
    >>> cells = jnp.array([[3] * 6, [1] * 6])
    >>> found = score_genotypes(net, jax.random.key(0), cells,
    ...     jnp.ones((2, 4, 4, 3)), jnp.array([0, 1]), ['params'])
    >>> found['params'].tolist()
    [6036.0, 1332.0]
  """
  _known(names)

  def one(row):
    number, genotype = row
    weights, own = jax.random.split(jax.random.fold_in(key, number))
    subject = of_genotype(net, net.init(weights), genotype)
    return measure(subject, Batch(inputs, targets, own), names)

  rows = jnp.arange(len(genotypes)), jnp.asarray(genotypes)
  return jax.lax.map(one, rows, batch_size=at_once)


def score_network(net: network.Network, batch: Batch, name: str) -> jax.Array:
  """A proxy of one network, by a program that is kept for its structure.

  Args:
    net: the network.
    batch: what it is computed from.
    name: of `PROXIES`.

  Returns:
    As of `measure`.

  Raises:
    KeyError: for a name that is not there.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> batch = Batch(jnp.ones((2, 4)), jnp.array([0, 1]), jax.random.key(1))
    >>> float(score_network(net, batch, 'params'))
    67.0
  """
  _known([name])
  return _measured(net.spec, name)(net.variables, batch)


def prepared(
  net: network.Network, batch: Batch, name: str
) -> Callable[[], jax.Array]:
  """`score_network` in two steps: compiles, and returns what scores.

  So that scoring may be timed by itself.

  Args:
    net: the network.
    batch: what it is computed from.
    name: of `PROXIES`.

  Returns:
    A function of nothing that gives the score, and compiles nothing.

  Raises:
    KeyError: for a name that is not there.

  Example:
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> batch = Batch(jnp.ones((2, 4)), jnp.array([0, 1]), jax.random.key(1))
    >>> float(prepared(net, batch, 'params')())
    67.0
  """
  _known([name])
  lowered = _measured(net.spec, name).lower(net.variables, batch)
  return functools.partial(lowered.compile(), net.variables, batch)


def by_proxy(name: str) -> Estimator:
  """Scores moves by how a proxy of the network changes with them.

  A move is made, and `linear` is the proxy before less the proxy after, so
  that of a better network is lower, as of losses. It is not in nats. There is
  no curvature: a set of moves counts as the sum of its moves. C moves of N
  examples cost (C + 1) N examples, and each new structure a compilation.

  Args:
    name: of `PROXIES`.

  Returns:
    An `Estimator` of moves of any kind, whose data are `(inputs, targets)`,
    prepared; `score` raises `ValueError` for illegal moves, before any is made,
    and for a network without the ops that the proxy reads.

  Raises:
    KeyError: for a name that is not there.

  Example:
    >>> from jaxnas.base import Data
    >>> from jaxnas.spaces import seeds
    >>> net = network.init(seeds.mlp((4,), (8,), 3), jax.random.key(0))
    >>> moves = [morphisms.prune({'dense1': [0]})]
    >>> data = Data(jnp.ones((2, 4)), jnp.array([0, 1]))
    >>> by_proxy('params').score(
    ...     jax.random.key(1), net, moves, [None], data, ()).linear
    array([8.])
  """
  _known([name])

  def score(key, net, moves, thetas, data, state):
    reads = PROXIES[name].reads
    if reads and not any(isinstance(n.op, reads) for n in net.spec.nodes):
      raise ValueError(
        f'by_proxy: {name} reads {reads.__name__}, and the network has none.'
      )
    for move in moves:
      morphisms.respec(move, net.spec)
    thetas = heuristics.drawn(key, net, moves, thetas, data, state).thetas
    batch = Batch(jnp.asarray(data.inputs), jnp.asarray(data.targets), key)

    made = [move(net, theta) for move, theta in zip(moves, thetas)]
    values = [score_network(each, batch, name) for each in (net, *made)]
    before, *after = map(float, jax.device_get(values))
    with np.errstate(invalid='ignore'):  # -inf less -inf.
      changes = np.nan_to_num(before - np.array(after), nan=0.0, posinf=np.inf)
    examples = len(data.targets) * (len(moves) + 1)
    return heuristics.scored(changes[None], examples)._replace(nats=False)

  return Estimator(lambda net: (), score, heuristics.drawn)


@programs.kept
def _measured(spec, name):
  """The compiled proxy of one structure."""

  @programs.jit
  def one(variables, batch):
    subject = of_network(network.Network(variables, spec))
    return measure(subject, batch, [name])[name]

  return one
