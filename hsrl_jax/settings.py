"""Settings by name: one namespace for the fields of all configurations.

A field of a stage's config is the setting `<prefix><field>`; see PREFIXES. A
field of an agent's settings is the setting `<field>`; agents that have a field
of the same name share the setting. The command has a flag for each, Python
takes them as arguments, and a workdir keeps them as texts.
"""

import dataclasses
import difflib
import numbers
import os
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hsrl_jax import agents
from hsrl_jax import config as config_lib
from hsrl_jax.agents import next_item
from hsrl_jax.errors import InputError

PREFIXES = {
  "data": "",
  "quantizer": "sid_",
  "simulator": "simulator_",
  "network": "",
  "train": "",
  "agent": "",
  "next_item": "next_item_",
  "evaluate": "evaluate_",
  "export": "export_",
}

PATHS = (
  "response_params",
  "sids",
  "truth",
  "continue_from",
)  # Kept as full paths.
_NAMES = {
  bool: ("True or False", ""),
  int: ("an integer", "integers"),
  float: ("a number", "numbers"),
  str: ("a text", "names"),
}
_LARGEST_FLOAT = 3.4e38  # Of float32.


class Group(NamedTuple):
  """A config class, and what the names of its settings begin with."""

  name: str  # Of the group.
  type: type  # The class.
  prefix: str = ""  # Of the settings' names.


STAGES = tuple(
  Group(x.name, x.type, PREFIXES[x.name])
  for x in dataclasses.fields(config_lib.Config)
  if dataclasses.is_dataclass(x.type)
)
EXPORT = Group("export", config_lib.ExportConfig, PREFIXES["export"])


def of_agent(name: str, recipe: str) -> Group:
  """The group of an agent's own settings by a recipe."""
  return Group("agent", agents.settings_of(name, recipe))


def of_agents() -> tuple[Group, ...]:
  """The groups of all agents and recipes."""
  return tuple(Group("agent", x) for x in agents.all_settings())


def fields(
  groups: tuple[Group, ...] | None = None,
) -> Iterator[tuple[Group, dataclasses.Field, str, Any]]:
  """Yields (group, field, setting's name, type) of each field; None: of all."""
  if groups is None:
    groups = (*STAGES, EXPORT, *of_agents())
  for group in groups:
    types_ = typing.get_type_hints(group.type)
    for field in dataclasses.fields(group.type):
      if not field.metadata.get("found"):
        name = group.prefix + field.name
        yield group, field, name, types_[field.name]


def names(groups: Iterable[Group]) -> list[str]:
  """The names of the settings of groups, which may share some."""
  return [name for _, _, name, _ in fields(tuple(groups))]


def reads(agent: str, recipe: str) -> set[str]:
  """The names of the settings that a run of an agent by a recipe reads."""
  if recipe == "next_item":
    return {
      name
      for group, field, name, _ in fields(STAGES)
      if next_item.reads(agent, group.name, field.name)
    }
  goes_on = config_lib.goes_on(recipe)
  groups = [x for x in STAGES if x.name != "next_item" or goes_on]
  read = fields((*groups, of_agent(agent, recipe)))
  unread = config_lib.unread_of(recipe)
  return {
    name
    for group, field, name, _ in read
    if group.name != "train" or field.name not in unread
  }


def check_read(
  given: Collection[str],
  trained: Collection[str],
  recipe: str,
  dashes: str = "",
) -> None:
  """Raises InputError unless a trained agent reads each setting.

  Args:
    given: names of settings that exist.
    trained: names of agents, each trained by the recipe or by its first one.
    recipe: of the configuration.
    dashes: what precedes a setting's name in errors.
  """
  if recipe not in config_lib.RECIPES:
    return  # TrainConfig says so.
  own = {x: agents.recipe_for(x, recipe) for x in trained}
  read = set().union(*(reads(*x) for x in own.items()))
  for name in sorted(set(given) - read):
    others = [x for x in agents.trained_by(recipe) if name in reads(x, recipe)]
    what, expected = f"{dashes}recipe={recipe}", f"another {dashes}recipe"
    if others:
      what = f"{dashes}agent={' or '.join(sorted(trained))}"
      expected = f"{dashes}agent={' or '.join(others)}"
    elif known := [
      y
      for y in config_lib.RECIPES
      if any(
        name in reads(x, y) for x in trained if y in agents.AGENTS[x].recipes
      )
    ]:
      expected = f"{dashes}recipe={' or '.join(known)}"
    raise InputError(
      f"{dashes}{name} is given, but {what} does not read it; expected "
      f"{expected}, or no such " + ("flag" if dashes else "setting")
    )


def make(group: Group, values: Mapping[str, Any], dashes: str = "") -> Any:
  """An instance of a group's class.

  Args:
    group: whose class it is.
    values: by setting's name; what is missing has its default. Elements of a
      tuple may be texts.
    dashes: what precedes a setting's name in errors.

  Raises:
    InputError: a value is out of range, or of another type.
  """
  chosen = {
    field.name: _value(dashes + name, values[name], kind)
    for _, field, name, kind in fields((group,))
    if name in values
  }
  try:
    return group.type(**chosen)
  except ValueError as error:
    raise InputError(f"{dashes}{group.prefix}{error}") from error


def config(agent: str, values: Mapping[str, Any]) -> config_lib.Config:
  """The configuration that settings describe; what is missing has its default.

  Raises:
    InputError: there is no such agent or setting, agent and task do not read
      it, or its value is out of range.
  """
  check_agent("agent", agent)
  known = names((*STAGES, *of_agents()))
  for name in values:
    if name not in known:
      near = difflib.get_close_matches(name, known, 3)
      raise InputError(
        f"{name} is no setting; expected "
        + (f"such as {' or '.join(near)}" if near else f"one of {known}")
      )
  recipe = values.get("recipe", config_lib.RECIPES[0])
  check_read(values, [agent], recipe)
  made = build(agent, values)
  agents.check(made)
  return made


def build(
  agent: str, values: Mapping[str, Any], dashes: str = ""
) -> config_lib.Config:
  """The configuration of an agent's run by known settings; see `make`."""
  recipe = values.get("recipe", config_lib.RECIPES[0])
  own = of_agent(agent, agents.recipe_for(agent, recipe))
  return config_lib.Config(
    **{x.name: make(x, values, dashes) for x in STAGES},
    agent=agent,
    settings=make(own, values, dashes),
  )


def check_agent(name: str, agent: str) -> None:
  """Raises InputError unless the setting `name` names an agent."""
  if agent not in agents.AGENTS:
    raise InputError(
      f"{name} is {agent!r}; expected one of {tuple(agents.AGENTS)}"
    )


def texts(config: config_lib.Config) -> dict[str, str]:
  """Name to text of every setting with a value that decides what a run is."""
  recipe = config.train.recipe
  read = reads(config.agent, recipe)
  values: dict[str, Any] = {"agent": config.agent}
  parts = {x.name: getattr(config, x.name) for x in STAGES}
  parts["agent"] = config.settings
  for group, field, name, _ in fields(
    (*STAGES, of_agent(config.agent, recipe))
  ):
    value = getattr(parts[group.name], field.name)
    if field.compare and name in read:
      path = name in PATHS and value is not None
      values[name] = os.path.abspath(value) if path else value
  return {k: text(v) for k, v in values.items() if v is not None}


def text(value: Any) -> str:
  """A value as its flag takes it."""
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  if isinstance(value, bool):
    return str(value).lower()
  return str(value)


def with_brought(
  texts: Mapping[str, str],
  given: Collection[str],
  sizes: Mapping[str, str],
  whose: str,
) -> dict[str, str]:
  """Settings as texts, with the sizes that something else brings.

  Args:
    texts: of the settings.
    given: names of those that the user gave.
    sizes: name to text, of the settings that something brings.
    whose: sizes these are, such as "the SIDs of --sids=x.npz have".

  Raises:
    InputError: a size that is given is not the one that is brought.
  """
  for name, size in sizes.items():
    if name in given and texts[name] != size:
      raise InputError(
        f"--{name} is {texts[name]}, but {whose} {size}; expected the same, or "
        f"no --{name}"
      )
  return {**texts, **sizes}


def of_texts(where: Any, kept: Mapping[str, str]) -> config_lib.Config:
  """The configuration of which `texts` wrote the settings.

  Raises:
    InputError: a text is no value of its setting.
  """
  kept = dict(kept)
  agent = kept.pop("agent", agents.DEFAULT)
  values = {}
  for _, _, name, kind in fields((*STAGES, *of_agents())):
    if name not in kept:
      continue
    try:
      values[name] = _parsed(kept[name], kind)
    except (ValueError, KeyError) as error:
      expected = _NAMES[_element(kind)[0]][0]
      raise InputError(
        f"{where} has {name} {kept[name]!r}; expected {expected}"
      ) from error
  unknown = {name: kept[name] for name in kept if name not in values}
  # What the recipe does not read decides nothing, and may be kept all the same.
  recipe = values.get("recipe", config_lib.RECIPES[0])
  read = set().union(*(reads(x, recipe) for x in agents.AGENTS))
  values = {name: value for name, value in values.items() if name in read}
  try:
    return config(agent, unknown | values)
  except InputError as error:
    raise InputError(f"{where}: {error}") from error


def _parsed(text: str, kind: Any) -> Any:
  """Inverse of `text`; elements of a tuple stay texts."""
  own, several = _element(kind)
  if several:
    return text.split(",") if text else ()
  return {"true": True, "false": False}[text] if own is bool else own(text)


def _element(kind: Any) -> tuple[type, bool]:
  """The type of a field's values, or of its tuple's; whether it is a tuple."""
  for part in (kind, *typing.get_args(kind)):
    if typing.get_origin(part) is tuple:
      return typing.get_args(part)[0], True
  own = [x for x in typing.get_args(kind) if x is not type(None)]
  return (own[0] if own else kind), False


def _value(name: str, value: Any, kind: Any) -> Any:
  """A value as its field has it."""
  own, several = _element(kind)
  optional = type(None) in typing.get_args(kind)
  if value is None and optional:
    return None
  if not several:
    if optional and isinstance(value, str) and not value:
      raise InputError(f"{name} is empty; expected a text, or leave it out")
    return _scalar(name, value, own)
  given = value if isinstance(value, list | tuple) else (value,)
  try:
    elements = tuple(own(x) if isinstance(x, str) else x for x in given)
  except ValueError as error:
    raise InputError(
      f"{name} is {text(value)}; expected {_NAMES[own][1]} with commas"
    ) from error
  return tuple(_scalar(name, x, own) for x in elements)


def _scalar(name: str, value: Any, own: type) -> Any:
  """A value as Python's own type.

  Integers must be int32 or, for seeds, uint32; floats finite in float32.
  """
  kinds = {int: numbers.Integral, float: numbers.Real}
  truth = isinstance(value, bool)
  if truth != (own is bool) or not isinstance(value, kinds.get(own, own)):
    raise InputError(f"{name} is {value!r}; expected {_NAMES[own][0]}")
  if own is float and not abs(value) <= _LARGEST_FLOAT:
    expected = "a finite number"
  elif own is int and not -(2**31) <= value < 2**32:
    expected = "an integer below 2^31, or a seed below 2^32"
  elif own is int and value >= 2**31 and "seed" not in name:
    expected = "an integer below 2^31"
  else:
    return own(value)
  raise InputError(f"{name} is {value}; expected {expected}")
