"""One network of the weights of several that share a genotype."""

import jax
import jax.numpy as jnp

from jaxnas import combine, mixing, programs, selection
from jaxnas.base import Body, Key, Learner, Member, Members, Stage


def soup(learner: Learner, *, by: str = 'fitness') -> Stage:
  """Averages members into the best, one after another, where that helps.

  The greedy soup of Wortsman et al. (2022, arXiv 2203.05482), as PBT-NAS may
  make one of its last population: the members that have the genotype of the
  best, in the order of their fitness, each join the mean if it then measures no
  worse. All soups are measured with the same key, so by the same noise. Layers
  and their running averages are averaged; what a body holds besides
  (`Body.rest`: batch statistics, vectors of spectral normalisation) and its
  optimizer's state stay the best member's, in whose place the soup is put.

  Fitness is measured once for every member, on what is selected by, so that the
  fitness of the soup flatters it: report `learner.test`.

  Args:
    learner: whose `measure` decides.
    by: the metric of which more is better.

  Raises:
    ValueError: when run, for members without that metric.

  Example:
    >>> from jaxnas import learners, stages
    >>> learner = learners.teacher(jax.random.key(0), slots=2, steps=1)
    >>> start = stages.members(jax.random.key(1), learner, 4)
    >>> stage = combine.chain(stages.assess(learner), soup(learner))
    >>> last, _ = stage.update(jax.random.key(2), start, stage.init(start))
    >>> last.spent.evaluations
    8
  """

  def update(key: Key, members: Members) -> Members:
    if by not in members.metrics:
      raise ValueError(
        f'soup: members have no metric {by!r}, they have '
        f'{sorted(members.metrics)}; add assess() before soup().'
      )
    member, metrics = _souping(learner.measure, by)(
      key, members.member, dict(members.metrics), learner.data
    )
    spent = members.spent.add(evaluations=len(members.parents))
    return members._replace(member=member, metrics=metrics, spent=spent)

  return combine.stage(update, 'soup')


@programs.kept
def _souping(measure, by: str):
  def run(key, member: Member, metrics, data):
    order = selection.order(metrics[by])
    best = jax.tree.map(lambda leaf: leaf[order[0]], member)

    def measured(body: Body):
      found = measure(key, best._replace(body=body), data)
      return jax.tree.map(
        lambda value: jnp.where(jnp.isfinite(value), value, jnp.nan), found
      )

    def add(held, place):
      body, found, count = held
      other = jax.tree.map(lambda leaf: leaf[place], member)

      def mean(one, more):
        return one + (more - one) / (count + 1)

      layers, average = jax.tree.map(
        mean,
        (body.layers, body.average),
        (other.body.layers, other.body.average),
      )
      mixed = body._replace(layers=layers, average=average)
      then = measured(mixed)
      # False for NaN, which is what a member that diverged makes of a mean.
      taken = (other.genes == best.genes).all() & (then[by] >= found[by])
      held = mixing.pick(taken, (mixed, then), (body, found))
      return (*held, count + taken), None

    start = (best.body, measured(best.body), jnp.ones(()))
    (body, found, _), _ = jax.lax.scan(add, start, order[1:])

    def put(all_, one):
      return all_.at[order[0]].set(one)

    member = member._replace(body=jax.tree.map(put, member.body, body))
    return member, {name: put(metrics[name], found[name]) for name in metrics}

  return programs.jit(run)
