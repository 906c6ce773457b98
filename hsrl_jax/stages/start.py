"""The run that another one continues from: what it is, before it is loaded."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from hsrl_jax import checked, files, settings
from hsrl_jax import config as config_lib
from hsrl_jax.config import Config
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError, reading
from hsrl_jax.host import workdir as workdir_lib

KEPT = "policy/start.json"  # What a run keeps of the one it continues from.
MODEL = "policy/next_item.json"  # See stages/next_item.py.
FORMAT = 1
_SIZES = ("width", "layers", "heads")  # Of NetworkConfig.


class FinishedRun(NamedTuple):
  """A finished run whose parameters another run starts from.

  Attributes:
    workdir: of the finished run.
    digest: of its parameters.
    about: what next_item.json says of its networks, those of a policy of the
      next item; None: they are the agent's own.
  """

  workdir: pathlib.Path
  digest: str
  about: dict[str, Any] | None

  def sized(self, config: Config) -> Config:
    """`config` with the networks' sizes.

    Raises:
      InputError: next_item.json has other fields than a configuration.
    """
    if self.about is None:
      return config
    with reading(self.workdir / MODEL, "what this version of hsrl_jax wrote"):
      sizes = {name: self.about["network"][name] for name in _SIZES}
      network = dataclasses.replace(config.network, **sizes)
      # On-policy RL has networks of its own beside.
      return dataclasses.replace(
        config,
        supervised=network,
        next_item=config_lib.NextItemConfig(**self.about["next_item"]),
        network=config.network if config.train.on_policy else network,
      )

  def keep(self, workdir: pathlib.Path) -> None:
    """Writes what a run keeps, so that it can do without this one."""
    kept = {"format": FORMAT, "digest": self.digest, "next_item": self.about}
    files.write_json(workdir / KEPT, kept)


def of_config(config: Config, workdir: pathlib.Path) -> FinishedRun | None:
  """The run that a configuration continues from; None: it starts afresh.

  Args:
    config: of the run.
    workdir: where the run writes. Once it has started, what it kept counts.

  Raises:
    InputError: there is no such run, or it is none to continue from.
  """
  if config.train.continue_from is None:
    if config.train.goes_on:
      raise InputError(
        f"--recipe={config.train.recipe} needs --continue_from; expected the "
        "workdir of a finished run of --recipe=next_item"
      )
    return None
  path = pathlib.Path(config.train.continue_from)
  if (workdir / KEPT).exists():
    with reading(workdir / KEPT, "what a run keeps of where it started"):
      kept = files.read_json(workdir / KEPT, FORMAT)
      return FinishedRun(path, kept["digest"], kept["next_item"])
  return FinishedRun(path, *_read(path, config))


def _read(path: pathlib.Path, config: Config) -> tuple[str, dict | None]:
  """Digest and networks of the run in a folder; see `of_config`."""
  where, kept = f"--continue_from={path}", workdir_lib.kept_flags(path)
  agent, recipe = config.agent, config.train.recipe
  own, by = kept.get("agent"), kept.get("recipe", config_lib.RECIPES[0])
  if not kept:
    raise InputError(f"{where} is no workdir; expected that of a finished run")
  if recipe == "next_item":
    raise InputError(
      f"{where} with --recipe={recipe}, which starts afresh; expected another "
      "--recipe, or no --continue_from"
    )
  if not (path / ".done" / "policy").exists():
    raise InputError(
      f"{where} has no trained policy; expected a finished run: "
      f"--workdir={path} --mode=policy finishes it"
    )
  goes_on = config.train.goes_on
  first = by == "next_item" and goes_on
  if not first and (by == "next_item" or goes_on != ("," in by)):
    expected = "a run of --recipe=next_item"
    if not goes_on:
      last = recipe.split(",")[-1]
      expected = f"--recipe={by if ',' in by else f'{by},{last}'} here"
    raise InputError(f"{where} has --recipe={by}; expected {expected}")
  # On-policy what the policy of the next item says is all that counts.
  if own != agent and not (first and config.train.on_policy):
    raise InputError(
      f"{where} trained --agent={own}; expected --agent={agent}, as this run "
      "trains"
    )
  found = digest(path)
  if not found:
    raise InputError(
      f"{where}: --agent={own} has no checkpoints, for it learns nothing; "
      "expected an agent that does, or no --continue_from"
    )
  if not goes_on:
    return found, None
  if first:
    with reading(path / MODEL, "what --mode=policy wrote"):
      return found, files.read_json(path / MODEL, FORMAT)
  with reading(path / KEPT, "what --mode=policy wrote"):
    return found, files.read_json(path / KEPT, FORMAT)["next_item"]


def digest(workdir: pathlib.Path) -> str:
  """Tells a run's newest checkpoints from others; empty: there are none."""
  folders = sorted((workdir / "policy").glob("**/checkpoints"))
  digests = [
    f"{folder.parent.name} {own}"
    for folder in folders
    if (own := checkpoint.latest_digest(folder)) is not None
  ]
  return checked.fingerprint(*digests) if digests else ""


def with_sizes(
  source: FinishedRun | None,
  texts: Mapping[str, str],
  given: Collection[str],
  config: Config,
) -> dict[str, str]:
  """Settings that count, with the sizes of networks that `source` brings.

  Args:
    source: that the run continues from; None: it starts afresh.
    texts: of the settings.
    given: names of those that the user gave.
    config: with the sizes that count.

  Raises:
    InputError: a size that is given is not that of the source.
  """
  kept = dict(texts)
  if not config.supervised or config.train.on_policy:
    return kept
  sizes = settings.texts(config)
  for name in (f"{settings.PREFIXES['network']}{x}" for x in _SIZES):
    if name in given and texts[name] != sizes[name]:
      raise InputError(
        f"--{name} is {texts[name]}, but the policy of "
        f"--continue_from={source.workdir} has {sizes[name]}; expected the "
        f"same, or no --{name}"
      )
    kept[name] = sizes[name]
  return kept
