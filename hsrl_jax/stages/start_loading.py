"""The parameters of the run that another one continues from."""

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import settings
from hsrl_jax.agents.hsrl import supervised
from hsrl_jax.engine import checkpoint, processes
from hsrl_jax.errors import InputError
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.stages import next_item, policy, training
from hsrl_jax.stages import start as source
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params


def load(parts: Parts, like: Params) -> Params:
  """Loads the state that training starts from; the workdir keeps its source.

  A seed starts from the same seed of the other run, or from its first one.

  What the other run lacks of `like`, leaves [S, ...], parameters that start
  afresh, such as a critic after supervised training, stays so.

  Raises:
    InputError: the other run is gone or has changed, or its items, SIDs or
      networks are not those of this one.
  """
  start = parts.start
  workdir, where = start.workdir, f"--continue_from={parts.start.workdir}"
  flags = workdir / workdir_lib.FLAGS
  kept = workdir_lib.kept_flags(workdir)
  if not kept:
    raise InputError(
      f"{where} is gone and {parts.workdir} has not started yet; expected the "
      "workdir of the finished run"
    )
  if not start.is_first_part and source.digest(workdir) != start.digest:
    raise InputError(
      f"{where} has changed since {parts.workdir} took it; expected the same "
      "parameters: use a new --workdir"
    )
  # Every process reads alone, as the one process of that run did.
  with checkpoint.alone():
    of = parts if start.is_first_part else None
    theirs = Parts(settings.of_texts(flags, kept), workdir, of=of)
    theirs.require("policy")
    if parts.config.train.goes_on:
      check_items(where, theirs, parts)
    elif _other_meaning(theirs.catalogue, parts.catalogue):
      print(
        f"  warning: the codebooks of {workdir} are others, so that its tokens "
        "meant something else; --sids keeps SIDs as they were"
      )
    trained = policy.trained(theirs)
  seeds = theirs.config.train.seeds
  chosen = [
    trained[seeds.index(seed) if seed in seeds else 0]
    for seed in parts.config.train.seeds
  ]
  if parts.config.train.goes_on:
    own = next_item.clicks(parts)
    fresh = training.by_seed(like)
    for number, x in enumerate(chosen):
      if parts.config.train.on_policy:
        first = x.get(supervised.KEY, x)  # What it is where RL went before.
        mine = fresh[number] if first is x else x
        chosen[number] = mine | {supervised.KEY: first | own}
      else:
        critic = {"critic": fresh[number]["critic"]}
        chosen[number] = critic | x | own | {"start": x["model"]}
  params = jax.tree.map(lambda *x: jnp.stack(x), *chosen)
  _check_shapes(where, params, like)
  if processes.is_first() and not start.is_first_part:
    start.keep(parts.workdir)
  return params


def check_items(where: str, theirs: Parts, ours: Parts) -> None:
  """Raises InputError unless items and their SIDs are the same."""
  names = [x.dataset.items.ids for x in (theirs, ours)]
  if len(names[0]) != len(names[1]):
    raise InputError(
      f"{where} has {len(names[0]) - 1:,} items, this run {len(names[1]) - 1:,}"
      "; expected the same items, which its policy was trained on"
    )
  if names[0] != names[1]:
    raise InputError(
      f"{where} has other items than this run; expected the same items in the "
      "same order, which its policy was trained on"
    )
  tokens = [x.catalogue.index.sids for x in (theirs, ours)]
  if not np.array_equal(*tokens):
    raise InputError(
      f"{where} has other SIDs than this run; expected the same, which its "
      "policy was trained on: those of its flags --sid_..., or of --sids"
    )


def _other_meaning(theirs: Catalogue, ours: Catalogue) -> bool:
  """Whether codebooks of the same shape differ."""
  return theirs.codebooks.shape == ours.codebooks.shape and not np.array_equal(
    theirs.codebooks, ours.codebooks
  )


def _check_shapes(where: str, params: Params, like: Params) -> None:
  """Raises InputError at the first leaf that is not as the agent has it."""
  expected, found = (
    {
      jax.tree_util.keystr(path, simple=True, separator="/"): x.shape[1:]
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    for tree in (like, params)
  )
  for name in sorted(expected.keys() | found.keys()):
    if expected.get(name) != found.get(name):
      raise InputError(
        f"{where} has {name} {_size(found.get(name))}; expected "
        f"{_size(expected.get(name))}, as the flags of this run say: give it "
        "those of that run (its flags.txt), or no --continue_from"
      )


def _size(shape: tuple[int, ...] | None) -> str:
  return "not" if shape is None else f"{list(shape)}"
