"""Runs a study, or the method as published.

  python -m hsrl_jax.studies --study=NAME --flagfile=FILE --workdir=W

launch/flags/studies has flagfiles. All else is as in hsrl_jax.launch, which
does not know the studies, nor --agent=hsrl_published.
"""

from absl import flags

from hsrl_jax import agents, launch, settings
from hsrl_jax import flags as flags_lib
from hsrl_jax.studies.registry import AGENTS, FRONT


def register() -> None:
  """Adds the agents of this command, and its flags."""
  agents.AGENTS.update(AGENTS)
  own = (settings.Group("agent", x.settings) for x in AGENTS.values())
  flags_lib.define(own, FRONT.module)
  flags_lib.define_experiments(FRONT, FRONT.module)


if __name__ == "__main__":
  register()
  flags.declare_key_flag("study")
  flags.adopt_module_key_flags(launch)
  launch.entry(FRONT)
