"""Which cheap score of a network can be trusted: the study of EcoNAS.

    python launch/proxies.py --workdir=runs/proxies

trains a dozen networks on digits at a reference setting and at cheaper ones,
and says how well each of these, and scores without any training, keep their
order, what they cost, and which to take. With `--dataset=cifar10` or any other
set of images that TFDS has prepared it does so there. The same command resumes
a study that was stopped; fidelities may be added. The work is in
`jaxnas.jobs.proxies`.
"""

from typing import Any

from absl import app, flags

from jaxnas.jobs import command, image_spaces, proxies, proxy_plan

# The settings of `proxies.study`, by the kind of their flag.
_HELP = {
  'dataset': "'digits', or the name of an image set in TFDS.",
  'data_dir': 'Where TFDS prepared it; empty for $TFDS_DATA_DIR.',
  'examples': 'Images to train on; 0 for all.',
  'valid': 'Images to score by; 0 for what the set holds out.',
  'space': f'One of {", ".join(image_spaces.SPACES)}.',
  'channels': 'Of the first stage, at c0.',
  'repeats': 'Cells in each stage.',
  'networks': 'How many to draw and train.',
  'unconnected': 'Draw also networks whose output ignores their input.',
  'reference': 'The fidelity that others are to agree with.',
  'fidelities': 'Cheaper ones, such as c2r0s0e12,c0r2s0e12.',
  'zero_cost': 'Scores without training, such as params,synflow.',
  'again': 'Train the reference twice: what no proxy need be better than.',
  'batch': 'Examples in a step, and for scores without training.',
  'learning_rate': 'Where the cosine begins.',
  'weight_decay': 'Of SGD.',
  'clip': 'The largest norm of gradients.',
  'chunk': 'Networks that are trained, and saved, at a time.',
  'seed': 'Of the data, the networks, their weights and the intervals.',
  'threshold': 'The rho that is good enough.',
  'resamples': 'Of the bootstrap.',
}
_KINDS = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  list: flags.DEFINE_list,
}
_SETTINGS = {
  name: _KINDS[type(value)](name, value, _HELP[name])
  for name, value in proxy_plan.DEFAULTS.items()
}


def settings() -> dict[str, Any]:
  """What the flags say."""
  return {name: flag.value for name, flag in _SETTINGS.items()}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {argv[1:]}')
  command.run(
    lambda workdir, console: proxies.study(settings(), workdir, console=console)
  )


if __name__ == '__main__':
  command.define()
  app.run(main)
