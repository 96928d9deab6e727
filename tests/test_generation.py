"""Frechet's distance, and searched generators and how they learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnas import learners, mixing, stages, tasks
from jaxnas.base import Member
from jaxnas.learners import generation as learning
from jaxnas.run import count_compilations
from jaxnas.spaces import gan, slots
from jaxnas.tasks import generation
from launch.bench import paired


def key(seed=0):
  return jax.random.key(seed)


def moments_of(seed, mean=0.0, size=6):
  """Moments of a Gaussian with a random covariance."""
  root = jax.random.normal(key(seed), (size, size))
  return generation.Moments(jnp.full(size, mean), root @ root.T / size)


def test_frechet_is_that_of_the_matrix_root():
  linalg = pytest.importorskip('scipy.linalg')
  with jax.enable_x64(True):
    one, other = moments_of(0), moments_of(1, 0.5)
    product = np.asarray(one.covariance @ other.covariance)
    root = linalg.sqrtm(product).real
    expected = (
      6 * 0.25
      + np.trace(one.covariance)
      + np.trace(other.covariance)
      - 2 * np.trace(root)
    )
    found = jax.jit(generation.frechet)(one, other)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    back = generation.frechet(other, one)
    np.testing.assert_allclose(back, expected, rtol=1e-9)


def test_frechet_of_gaussians_whose_axes_agree():
  # Then it is the squared distance of means and of standard deviations.
  one, other = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.0])
  a = generation.Moments(jnp.zeros(3), jnp.diag(one**2))
  b = generation.Moments(jnp.arange(3.0), jnp.diag(other**2))
  expected = np.square(one - other).sum() + 5
  np.testing.assert_allclose(generation.frechet(a, b), expected, rtol=1e-5)


def test_frechet_of_equals_is_zero_and_of_others_is_not():
  one = moments_of(2)
  assert abs(generation.frechet(one, one)) < 1e-4
  assert generation.frechet(one, moments_of(3)) > 0.5


def test_sampled_moments_are_those_of_all_draws():
  def draw(key):
    return 100 + jax.random.normal(key, (50, 3))

  found = generation.sampled_moments(draw, key(), 4)
  every = jnp.concatenate([draw(k) for k in jax.random.split(key(), 4)])
  expected = generation.moments(every)
  np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6)
  np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-4)
  np.testing.assert_allclose(
    expected.covariance, np.cov(np.asarray(every).T), atol=1e-3
  )


@pytest.fixture(scope='module')
def digits():
  return tasks.digits()


def test_features_tell_digits_apart(digits):
  features = generation.dense_features()
  images = generation.to_unit(digits.test.inputs, 0, 16)

  def right(params, head):
    found = features.apply(params, images) @ head
    return (found.argmax(axis=1) == digits.test.targets).mean()

  settings = (features, digits)
  trained = generation.fitted_with_head(key(), *settings, 600, 64, 2e-3)
  untrained = generation.fitted_with_head(key(), *settings, 1, 64, 0.0)
  assert right(*trained) > 0.9
  assert right(*untrained) < 0.4
  again = generation.fitted(key(), *settings, steps=600)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(trained[0])):
    np.testing.assert_array_equal(a, b)


def test_split_moments_count_every_image_once(digits):
  features = generation.dense_features()
  params = features.init(key(), digits.shape)
  found = generation.split_moments(features, params, digits)
  images = generation.to_unit(digits.train.inputs, 0, 16)
  expected = generation.moments(features.apply(params, images))
  for a, b in zip(found, expected):
    np.testing.assert_allclose(a, b, atol=1e-5)


# The learner of dense networks.


@pytest.fixture(scope='module')
def learner(digits):
  return learners.gan(
    key(),
    digits,
    steps=100,
    spectral=True,
    samples=(1000, 1000),
    part=500,
    taught=300,
  )


@pytest.fixture(scope='module')
def train(learner):
  return jax.jit(learner.train)


def started(learner, genes, seed=1):
  genes = jnp.asarray(genes)
  return Member(learner.init(key(seed), genes, {}, learner.data), genes)


# Ops and activations of the generator's four slots and the discriminator's two.
MIXED = (3, 1, 0, 2, 3, 2, 1, 0, 2, 0, 2, 3)


@pytest.fixture(scope='module')
def trained(learner, train):
  """A member of every op before and after two rounds."""
  member, found = started(learner, MIXED), []
  for round_ in range(2):
    found.append(member)
    body = train(key(10 + round_), member, learner.data)
    member = member._replace(body=body)
  return found[0], member


@pytest.mark.slow
def test_a_round_lowers_the_distance(learner, trained):
  measure = jax.jit(learner.measure)
  before, after = (
    measure(key(2), member, learner.data)['frechet'] for member in trained
  )
  # Control: other noise alone changes little.
  again = measure(key(3), trained[0], learner.data)['frechet']
  assert again != before
  assert abs(again - before) < 0.1 * before
  assert after < 0.7 * before


def test_the_test_has_noise_and_images_of_its_own(learner, trained):
  measured = jax.jit(learner.measure)(key(2), trained[1], learner.data)
  tested = jax.jit(learner.test)(key(2), trained[1], learner.data)
  assert measured['fitness'] == -measured['frechet']
  # As many samples and the same key: only the noise differs.
  assert tested['frechet'] != measured['frechet']
  assert abs(tested['frechet'] / measured['frechet'] - 1) < 0.2
  assert tested['held_out'] != tested['frechet']


def test_learning_leaves_what_no_op_reads(trained):
  before, after = (member.body.layers for member in trained)
  for layer in before:
    for leaf in before[layer]:
      old, new = before[layer][leaf], after[layer][leaf]
      if not layer.endswith('slots'):
        assert (old != new).any(), (layer, leaf)
        continue
      ops = np.asarray(MIXED[:4] if 'generator' in layer else MIXED[8:10])
      hidden = np.array([0, 32, 16, 64])[ops]
      for slot, op in enumerate(ops):
        used = old[slot] != new[slot]
        if leaf in ('u', 'a'):
          assert not used[..., hidden[slot] :].any()
          assert used[..., : hidden[slot]].any() == (op > 0)
        else:
          assert used.any() == (op > 1)
        if leaf == 'v':
          assert not new[slot, hidden[slot] :].any()


def test_the_average_lags_behind(trained):
  before, after = trained
  names = [n for n in before.body.layers if n.startswith('generator')]
  assert sorted(before.body.average) == sorted(names)
  for name in names:
    average, layer = after.body.average[name], after.body.layers[name]
    for leaf in layer:
      if (before.body.layers[name][leaf] != layer[leaf]).any():
        assert (average[leaf] != layer[leaf]).any()
        assert (average[leaf] != before.body.average[name][leaf]).any()


@pytest.mark.slow
def test_mixing_perturbs_neither_averages_nor_vectors(learner, trained):
  base = trained[1]
  donor = started(learner, np.roll(MIXED, 1), 7)
  donor = donor._replace(
    body=donor.body._replace(
      average=jax.tree.map(lambda x: x + 1.0, donor.body.average),
      rest=jax.tree.map(lambda x: x + 1.0, donor.body.rest),
    )
  )
  child = mixing.mix(learner.genes, probability=1.0)(
    key(), base, donor, lambda *drawn: learner.init(*drawn, learner.data)
  )
  slots_ = 'generator/slots'
  for leaf in donor.body.average[slots_]:
    np.testing.assert_array_equal(
      child.body.average[slots_][leaf], donor.body.average[slots_][leaf]
    )
  for name in ('generator/in', 'generator/out'):
    np.testing.assert_array_equal(
      child.body.average[name]['w'], base.body.average[name]['w']
    )
  for a, b in zip(
    jax.tree.leaves(child.body.rest), jax.tree.leaves(base.body.rest)
  ):
    np.testing.assert_array_equal(a, b)
  # Control: the weights of these slots are the donor's no more.
  weights = child.body.layers[slots_]['u'] - donor.body.layers[slots_]['u']
  assert jnp.abs(weights).max() > 0.1


def test_spectral_norms_are_one(learner, trained):
  body = trained[1].body
  judge = {n: body.layers[n] for n in body.rest}
  assert sorted(judge) == [
    'discriminator/in',
    'discriminator/out',
    'discriminator/slots',
  ]
  raw, divided = [], []
  normal = learning.normalised(judge, body.rest)
  for name in judge:
    for leaf in body.rest[name]:
      for held, found in ((judge, raw), (normal, divided)):
        matrix = np.asarray(held[name][leaf])
        found += list(np.linalg.norm(np.atleast_3d(matrix.T).T, 2, (1, 2)))
  raw, divided = np.array(raw), np.array(divided)
  # The slot without residual has no second matrix, and none is divided by 0.
  assert (raw > 0).sum() == len(raw) - MIXED[8:10].count(1) - 2 * (
    MIXED[8:10].count(0)
  )
  np.testing.assert_allclose(divided[raw > 0], 1, atol=0.1)
  assert np.abs(raw[raw > 0] - 1).max() > 0.3
  assert (divided[raw == 0] == 0).all()


def test_a_vector_survives_a_matrix_of_zeros():
  layers = {'a': {'w': jnp.zeros((3, 2))}}
  held = learning.vectors(key(), layers)
  kept = learning.iterated(layers, held, 3)
  np.testing.assert_array_equal(kept['a']['w'], held['a']['w'])
  found = learning.normalised(layers, kept)['a']['w']
  np.testing.assert_array_equal(found, 0)
  # So that a matrix which comes to its place later is divided rightly.
  later = {'a': {'w': jnp.diag(jnp.array([1.0, 5.0, 2.0]))[:, :2]}}
  kept = learning.iterated(later, kept, 8)
  found = learning.normalised(later, kept)['a']['w']
  np.testing.assert_allclose(np.linalg.norm(found, 2), 1, rtol=1e-3)


@pytest.mark.slow
def test_every_gene_changes_what_a_network_does():
  networks = gan.dense((4, 4, 1), latent=5, width=6)
  own = jnp.array([3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2])
  full = networks.init(key(), jnp.full(12, 3))
  z = jax.random.normal(key(1), (7, 5))

  @jax.jit
  def outputs(own):
    images = networks.generate(full, own, z, None)
    return images, networks.discriminate(full, own, images)

  images, scores = outputs(own)
  assert images.shape == (7, 4, 4, 1)
  assert jnp.abs(images).max() <= 1
  assert scores.shape == (7,)
  for gene in range(12):
    for step in (1, 2, 3):
      other, judged = outputs(own.at[gene].set((own[gene] + step) % 4))
      moved = jnp.abs(other - images).max()
      assert moved > 1e-4 if gene < 8 else moved == 0
      assert jnp.abs(judged - scores).max() > 1e-4


@pytest.fixture(scope='module')
def tiny(digits):
  return learning.adversarial(
    key(),
    digits,
    gan.dense(digits.shape, width=4, depths=(1, 1)),
    generation.dense_features(4, 4),
    steps=2,
    taught=2,
  )


@pytest.mark.slow
def test_rates_are_hyper_parameters_of_each_network(tiny):
  genes = jnp.ones(len(tiny.genes.options), int)
  base = started(tiny, genes)
  train = jax.jit(tiny.train)

  def trained(generator, discriminator):
    rates = {'generator_rate': generator, 'discriminator_rate': discriminator}
    hyper = {name: jnp.float32(rate) for name, rate in rates.items()}
    return train(key(3), base._replace(hyper=hyper), tiny.data).layers

  def moved(layers):
    return {
      name.split('/')[0]
      for name, layer in layers.items()
      for a, b in zip(
        jax.tree.leaves(layer), jax.tree.leaves(base.body.layers[name])
      )
      if (a != b).any()
    }

  assert moved(trained(1e-3, 0.0)) == {'generator'}
  assert moved(trained(0.0, 1e-3)) == {'discriminator'}
  usual = train(key(3), base, tiny.data).layers
  for a, b in zip(jax.tree.leaves(usual), jax.tree.leaves(trained(5e-4, 5e-4))):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_hyper_parameters_that_are_not_read_are_refused(tiny):
  teacher = learners.teacher(key(), slots=2, points=(8, 8))
  for one, read in ((tiny, 'generator_rate'), (teacher, 'no hyper-parameters')):
    genes = jnp.zeros(len(one.genes.options), int)
    with pytest.raises(ValueError, match=f'it reads .*{read}.*; got rate'):
      one.init(key(), genes, {'rate': 0.1}, one.data)


@pytest.mark.slow
def test_a_population_is_one_program(tiny):
  start = [stages.members(key(seed), tiny, 3) for seed in range(2)]
  assert (start[0].member.genes != start[1].member.genes).any()
  few = stages.members(key(), tiny, 2)
  stage, counts = stages.advance(tiny), []
  for members in (*start, few):
    with count_compilations() as compiled:
      moved, _ = stage.update(key(1), members, stage.init(members))
    counts.append(len(compiled))
    assert moved.spent.examples == len(members.parents) * 2 * 32
  assert counts[0] > 0
  assert counts[1] == 0
  # Control: another number of members is another program.
  assert counts[2] > 0


def test_slots_of_the_learner_can_grow(learner, trained):
  names = ('generator/slots', 'discriminator/slots')
  grow = slots.morph(learner.genes, names, probability=1.0)
  base = trained[1]
  child = grow(
    key(), base, base, lambda *drawn: learner.init(*drawn, learner.data)
  )
  assert (child.genes != base.genes).sum() == 4
  networks = gan.dense((8, 8, 1))
  z = jax.random.normal(key(4), (9, 12))
  for held in ('layers', 'average'):
    one, other = (
      networks.generate(getattr(member.body, held), member.genes, z)
      for member in (base, child)
    )
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_parts_must_divide_the_samples(digits):
  with pytest.raises(ValueError, match='multiples of part=300'):
    learners.gan(key(), digits, samples=(1000, 2000), part=300)


def test_methods_are_compared_by_every_measure():
  rows = {
    'pbt_nas': [{'best': 1.0, 'held_out': 4.0, 'median': 5.0}] * 5,
    'random': [{'best': 2.0, 'held_out': 3.0, 'median': 9.0}] * 5,
  }
  found = paired.summarised(
    rows, ('best', 'held_out', 'median'), [('pbt_nas', 'random')]
  )
  for measure, difference in {'best': -1, 'held_out': 1, 'median': -4}.items():
    assert found[f'{measure}_pbt_nas'] == rows['pbt_nas'][0][measure]
    pair = found[f'{measure}_pbt_nas_over_random']
    assert pair['difference'] == difference
    assert pair['wins'] == 5 * (difference < 0)


# The convolutional spaces.


def test_sizes_of_the_published_spaces():
  easy, hard = (
    space((32, 32, 3), widths=(8, 8)).genes for space in (gan.easy, gan.hard)
  )
  assert len(easy.options) == 21
  assert gan.architectures(easy) == (3**2 * 7**5) ** 3
  assert f'{gan.architectures(easy):.1e}' == '3.5e+15'
  assert len(hard.options) == 72
  assert f'{gan.architectures(hard):.1e}' == '2.9e+52'
  noise, block = 2 * 6 * 2 * 3, 7**7 * 2 * 8**2
  assert gan.architectures(hard) == (
    noise**3 // 2 * gan.architectures(easy) * block**4 // 7**3 * 5**3
  )


def native(x, kernel, dilation=1, stride=1):
  pad = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(pad, pad)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


def edged(own, name, x, stride=1):
  """An edge of a name, by XLA's own convolutions."""
  side = {'1': 1, '3': 3, '5': 5}[name[-1]]
  rim = (5 - side) // 2
  kernel = own['w'][rim : 5 - rim, rim : 5 - rim]
  dilation = 2 if name.startswith('dilated') else 1
  return native(x, kernel, dilation, stride) + own['b'].reshape((1, 1, 1, -1))


@pytest.mark.parametrize('name', gan.EDGES)
def test_each_edge_is_its_convolution(name):
  w, b = jax.random.normal(key(), (5, 5, 3, 3)), jnp.arange(3.0)
  own, x = {'w': w, 'b': b}, jax.random.normal(key(1), (2, 8, 8, 3))
  found = gan.edge(own, jnp.array(gan.EDGES.index(name)), x)
  if name in ('none', 'skip'):
    expected = 0 * x if name == 'none' else x
  else:
    expected = edged(own, name, jax.nn.relu(x))
  np.testing.assert_allclose(found, expected, atol=1e-4)


def test_transposed_upsampling_is_a_transposed_convolution():
  x, k = jax.random.normal(key(), (2, 5, 5, 3)), jnp.arange(27.0) / 9
  own = {'w': jnp.eye(3), 'b': jnp.ones(3), 'k': k.reshape((3, 3, 3))}
  found = gan.upsampled(own, jnp.array(2), x)
  # Zeros between the pixels, and the kernel turned around.
  expected = jax.lax.conv_general_dilated(
    jax.nn.relu(x),
    own['k'][::-1, ::-1, None],
    (1, 1),
    [(1, 2)] * 2,
    lhs_dilation=(2, 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=3,
  )
  np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_fresh_kernels_have_the_scale_of_their_edge():
  networks = gan.easy((8, 8, 1), widths=(24, 2), latent=3)
  edges = np.array([i for i in range(21) if i % 7 > 1])
  own = jnp.zeros(21, jnp.int32).at[edges].set(np.arange(15) % 7)
  w = np.asarray(jax.jit(networks.init)(key(), own)['generator/edges']['w'])
  assert not w[:2].any()
  for kind, taps in enumerate((1, 9, 25, 9, 25), 2):
    assert (w[kind] != 0).any(axis=(2, 3)).sum() == taps
    scale = np.sqrt(np.square(w[kind]).sum() / (24 * 24 * taps))
    np.testing.assert_allclose(scale * np.sqrt(24 * taps / 2), 1, rtol=0.15)


@functools.cache
def called(name):
  """A space on 16 x 16 images, with all weights in use, as two programs."""
  networks = getattr(gan, name)((16, 16, 1), widths=(4, 4), latent=6)
  options = jnp.asarray(networks.genes.options)
  layers = networks.init(key(), 0 * options)
  leaves, structure = jax.tree.flatten(layers)
  keys = jax.random.split(key(1), len(leaves))
  layers = structure.unflatten(
    [
      jax.random.normal(k, leaf.shape) / np.sqrt(np.prod(leaf.shape[-3:-1]))
      for k, leaf in zip(keys, leaves)
    ]
  )
  z = jax.random.normal(key(2), (3, 6))
  images = jax.random.normal(key(3), (3, 16, 16, 1))
  generate = jax.jit(lambda own, key: networks.generate(layers, own, z, key))
  judge = jax.jit(lambda own: networks.discriminate(layers, own, images))
  return networks, layers, images, generate, judge


def changed(generate, judge, own, names, options):
  """The genes that change images, and those that change scores."""
  images, scores = generate(own, key(9)), judge(own)
  found = [], []
  for gene, name in enumerate(names):
    other = own.at[gene].set((own[gene] + 1) % options[gene])
    if jnp.abs(generate(other, key(9)) - images).max() > 1e-5:
      found[0].append(name)
    if jnp.abs(judge(other) - scores).max() > 1e-5:
      found[1].append(name)
  return found


@pytest.mark.slow
def test_every_gene_of_the_easy_space_changes_the_images():
  networks, _, _, generate, judge = called('easy')
  names, options = networks.genes.names, networks.genes.options
  own = jnp.full(21, gan.EDGES.index('conv3')) % jnp.asarray(options)
  images, scores = changed(generate, judge, own, names, options)
  assert images == list(names)
  assert not scores
  found = generate(own, None)
  assert found.shape == (3, 16, 16, 1)
  # Without any edge the network is one all the same.
  found = generate(jnp.zeros(21, jnp.int32), None)
  assert jnp.isfinite(found).all()
  assert jnp.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.slow
def test_every_gene_of_the_hard_space_changes_something():
  networks, _, _, generate, judge = called('hard')
  names, options = networks.genes.names, networks.genes.options
  # Skips turn into 1 x 1 convolutions: on 2 x 2 pixels larger ones are equal.
  value = {'edge': 1, 'reads': 1, 'halve': 1, 'down0': 0, 'down1': 5, 'on': 1}
  own = [
    next((v for n, v in value.items() if n in name.split('/')[1]), 0)
    for name in names
  ]
  own[names.index('noise0/reads')] = gan.READS.index('whole bottom')
  images, scores = changed(generate, judge, jnp.array(own), names, options)
  # The first cell's input is at the bottom: nothing is to be interpolated.
  assert images == [
    name
    for name in names
    if not name.startswith('block') and name != 'noise0/fill'
  ]
  assert scores == [name for name in names if name.startswith('block')]
  # Dropout is for training only.
  dropped = jnp.array([2 if 'dropout' in n else v for n, v in zip(names, own)])
  still = generate(jnp.array(own), None)
  np.testing.assert_array_equal(generate(dropped, None), still)


def judged(layers, values, images):
  """Scores by blocks of their true size, of genes by name."""
  pool = {
    'average': lambda x: x.reshape(
      (x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1)
    ).mean(axis=(2, 4)),
    'max': lambda x: x.reshape(
      (x.shape[0], x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1)
    ).max(axis=(2, 4)),
  }
  edges, downs = (
    [
      jax.tree.map(lambda leaf, i=i: leaf[i], layers[f'discriminator/{name}'])
      for i in range(len(layers[f'discriminator/{name}']['b']))
    ]
    for name in ('edges', 'downs')
  )
  relu, x = jax.nn.relu, images
  for i in range(4):
    kinds = [values[f'block{i}/edge{j}'] for j in range(7)]
    own = edges[:4] if i == 0 else edges[7 * i - 3 : 7 * i + 4]
    own = own if i else [None] * 3 + own

    def edge(j, x, kinds=kinds, own=own):
      return x if kinds[j] == 'skip' else edged(own[j], kinds[j], relu(x))

    nodes = [None] * 3
    for j in range(3):
      if i == 0:
        image = jax.tree.map(lambda x, j=j: x[j], layers['discriminator/image'])
        nodes[j] = edged(image, kinds[j], x)
      elif kinds[j] != 'none':
        nodes[j] = edge(j, x)
    ends = []
    for j in (1, 2):
      if nodes[j] is None:
        continue
      name = values[f'block{i}/down{j - 1}']
      down = downs[2 * i + j - 1]

      def halved(x, name=name, down=down):
        kind = name.split()[0]
        return pool[kind](x) if kind in pool else edged(down, kind, relu(x), 2)

      halves = values[f'block{i}/halve'] == 'yes'
      first = halved if halves and 'first' in name else (lambda x: x)
      after = halved if halves and 'first' not in name else (lambda x: x)
      node = first(nodes[j])
      if nodes[0] is not None and kinds[j + 2] != 'none':
        node = node + first(edge(j + 2, nodes[0]))
      if kinds[j + 4] != 'none':
        node = edge(j + 4, node)
      ends.append(after(node))
    x = sum(ends) if ends else x if nodes[0] is None else nodes[0]
  return (relu(x).sum(axis=(1, 2)) @ layers['discriminator/out']['w'])[:, 0]


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(6))
def test_masks_stand_for_images_of_other_sizes(seed):
  networks, layers, images, _, judge = called('hard')
  genes = networks.genes
  options = jnp.asarray(genes.options)
  own = jax.random.randint(key(seed), options.shape, 0, options)
  if seed == 0:  # Blocks without any node, or with node 0 alone.
    for name, value in (('block1', (0, 0, 0)), ('block2', (3, 0, 0))):
      for j in range(3):
        own = own.at[genes.names.index(f'{name}/edge{j}')].set(value[j])
  values = {
    name: options[int(gene)]
    for name, options, gene in zip(genes.names, genes.values, own)
  }
  expected = judged(layers, values, images)
  np.testing.assert_allclose(judge(own), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('side', [12, 8])
def test_spaces_refuse_images_they_cannot_halve(side):
  with pytest.raises(ValueError, match='that 16 divides'):
    gan.hard((side, side, 3))
  with pytest.raises(ValueError, match='multiple of 3'):
    gan.easy((8, 8, 3), latent=10)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['easy', 'hard'])
def test_convolutional_learners_learn(name):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 255, (64, 16, 16, 1)).astype(np.uint8)
  labels = np.arange(64) % 2
  pairs = [(images[i::3], labels[i::3]) for i in range(3)]
  task = tasks.from_arrays('noise', *pairs, classes=2)
  learner = learners.conv_gan(
    key(),
    task,
    getattr(gan, name),
    width=4,
    steps=1,
    batch=3,
    critics=2,
    samples=(8, 16),
    part=8,
    taught=2,
  )
  options = jnp.asarray(learner.genes.options)
  train, measure = jax.jit(learner.train), jax.jit(learner.measure)
  for seed in range(2):
    own = jax.random.randint(key(seed), options.shape, 0, options)
    member = started(learner, own)
    body = train(key(2), member, learner.data)
    for leaf in jax.tree.leaves(body):
      assert jnp.isfinite(leaf).all()
    moved = optax.tree.norm(
      jax.tree.map(lambda a, b: a - b, body.layers, member.body.layers)
    )
    assert moved > 0
    found = measure(key(3), member._replace(body=body), learner.data)
    assert jnp.isfinite(found['frechet'])
