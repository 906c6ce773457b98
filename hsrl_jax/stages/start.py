"""The run that another one continues from: what it is, before it is loaded."""

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from hsrl_jax import agents, checked, files, settings
from hsrl_jax import config as config_lib
from hsrl_jax.config import Config
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError, reading
from hsrl_jax.host import workdir as workdir_lib

KEPT = "policy/start.json"  # What a run keeps of the one it continues from.
FIRST = "next_item"  # The folder of a recipe's part before the comma.
MODEL = "policy/next_item.json"  # See stages/next_item.py.
FORMAT = 3


class FinishedRun(NamedTuple):
  """A finished run whose parameters another run starts from."""

  workdir: pathlib.Path  # Of the finished run.
  digest: str  # Of its parameters; empty for a run's own first part.
  # What next_item.json says of its networks, those of a policy of the next
  # item; None: they are the agent's own.
  about: dict[str, Any] | None
  is_first_part: bool = False  # Whether it is the first part of the run itself.

  def sized(self, config: Config) -> Config:
    """`config` with the networks' sizes.

    Raises:
      InputError: next_item.json has other fields than a configuration.
    """
    if self.about is None:
      return config
    with reading(self.workdir / MODEL, "what this version of hsrl_jax wrote"):
      own = {
        name: tuple(x) if isinstance(x, list) else x  # JSON has no tuples.
        for name, x in self.about["next_item"].items()
      }
      sizes = config_lib.NextItemConfig(**own)
      return dataclasses.replace(config, next_item=sizes)

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
    first = workdir / FIRST
    if not config.train.goes_on or not (first / MODEL).exists():
      return None
    with reading(first / MODEL, "what --mode=policy wrote"):
      about = files.read_json(first / MODEL, FORMAT)
    return FinishedRun(first, "", about, is_first_part=True)
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
  theirs = config_lib.goes_on(by)
  if not first and (by == "next_item" or goes_on != theirs):
    expected = "a run of --recipe=next_item"
    if not goes_on:
      expected = f"--recipe={config_lib.RECIPES[-1]} here"
    raise InputError(f"{where} has --recipe={by}; expected {expected}")
  # Of a policy of the next item what it says is all that counts.
  if own != agent and not first:
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


def first_part(config: Config) -> Config:
  """The configuration of a recipe's part before the comma."""
  agent, recipe = config.agent, "next_item"
  if recipe not in agents.AGENTS[agent].recipes:
    agent = agents.DEFAULT  # Its softmax over items alone counts.
  first = agents.configure(config, agent, recipe=recipe)
  # As it is read again from what it keeps, without what it has no use for; but
  # where the source files are is not kept.
  read = settings.of_texts(FIRST, settings.texts(first))
  return dataclasses.replace(read, data=config.data)


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
  """Settings with the sizes of the networks of `source`, see with_brought."""
  if source is None or source.about is None or source.is_first_part:
    return dict(texts)
  prefix = settings.PREFIXES["next_item"]
  return settings.with_brought(
    texts,
    given,
    {k: x for k, x in settings.texts(config).items() if k.startswith(prefix)},
    f"the policy of --continue_from={source.workdir} has",
  )
