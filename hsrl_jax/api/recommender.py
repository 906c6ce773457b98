"""A trained recommender: its results, its recommendations, its export."""

import pathlib
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from hsrl_jax import settings as settings_lib
from hsrl_jax.data import source
from hsrl_jax.errors import InputError, reading
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.report import run_page
from hsrl_jax.stages import export as export_lib
from hsrl_jax.stages import policy
from hsrl_jax.stages import run as run_lib
from hsrl_jax.types import Observation

_LEAST_SEEN = 64  # Excluded items of a call; more in powers of two.


class Item(NamedTuple):
  """A recommended item."""

  item_id: str | int  # In the source.
  # Log pi of the item, up to a constant of the user; of agents without one the
  # value by which it was chosen.
  score: float
  title: str  # For people.


class Results(dict):
  """results.json of a run; its str is the table of the terminal."""

  def __str__(self) -> str:
    return run_page.table(self)


class Recommender:
  """A trained policy with its catalogue, of `fit` or `load`.

  Attributes:
    workdir: folder of the run, with `report/report.html` for people.
  """

  def __init__(self, run: run_lib.Run):
    """Binds a run whose stage `policy` is done."""
    self._run = run
    self._decoders: dict[int, Any] = {}
    self.workdir = run.workdir

  def evaluate(self) -> Results:
    """Returns what held-out logs and the simulator say.

    `held_out` has the measures of the policy and of simple lists, `simulator`
    the `verdict`; print(...) shows both. docs/tour.md explains all of it.

    Raises:
      InputError: the stage `evaluate` is missing.
    """
    self._run.require("evaluate")
    return Results(self._run.results())

  def recommend(
    self,
    history: Sequence[Any] | None = None,
    *,
    user_id: Any = None,
    profile: Sequence[float] | None = None,
    k: int = 10,
    exclude: Sequence[Any] = (),
    repeat: bool = False,
    until: str | float | None = None,
    seed: int | None = None,
  ) -> list[Item] | list[list[Item]]:
    """Recommends the policy's best items to one user, or to several at once.

    Args:
      history: ids of items that the user liked, in the source's own naming, the
        newest last; of several users a list of such lists. None: what the
        user `user_id` liked in the logs.
      user_id: a user of the logs, or a list of them.
      profile: numbers about the user, or a list of such lists; None: those of
        the latest logged slate of `user_id`.
      k: items for each user.
      exclude: ids of items that nobody gets; of several users also a list of
        such lists.
      repeat: whether items of the history, and those that `user_id` was shown
        in the logs, liked or not, are recommended again.
      until: where the logs of `user_id` end: `now`, with all of them; a split,
        such as `test`, or a timestamp: before it, so that the user is as
        the first slate from there on found them. None: `now`, with a warning
        where that includes the split by which the run is evaluated.
      seed: which of the run's seeds; None: the first.

    Returns:
      At most k items, the best first; of several users a list for each. Ids
      are integers where all ids of the source are written as integers.

    Raises:
      InputError: an item, a user or a cut is not known, a profile is missing,
        or the policy draws at random.
    """
    if history is None and user_id is None:
      raise InputError("no user is given; expected a history or a user_id")
    several = _is_list(user_id) or (
      history is not None and any(_is_list(x) for x in history)
    )
    given = [history, user_id, profile]
    columns = [x if several else [x] for x in given if x is not None]
    if len({len(x) for x in columns}) > 1:
      raise InputError(
        f"history, user_id and profile are of {[len(x) for x in columns]} "
        "users; expected as many each"
      )
    count = len(columns[0])
    rows = zip(
      *([None] * count if x is None else x if several else [x] for x in given),
      strict=True,
    )
    by_user = several and _is_list(exclude) and any(map(_is_list, exclude))
    outside = exclude if by_user else [exclude] * count
    if len(outside) != count:
      raise InputError(
        f"exclude is of {len(outside)} users and the others of {count}; "
        "expected as many each, or one list for all"
      )
    states = [self._state(*row, until) for row in rows]
    seen = [
      self._numbers("exclude", own) + ([] if repeat else known)
      for own, (_, known) in zip(outside, states, strict=True)
    ]
    observations = [observation for observation, _ in states]
    recommended = self._best(observations, seen, k, seed)
    return recommended if several else recommended[0]

  def export(
    self, folder: str | pathlib.Path | None = None, **settings: Any
  ) -> pathlib.Path:
    """Writes the policy for `hsrl_jax.serving`; see docs/serving.md.

    Args:
      folder: where to; None: `export` in the workdir.
      **settings: fields of config.ExportConfig, such as `batch_sizes`.

    Returns:
      The folder.

    Raises:
      InputError: a setting is unknown or does not go with the run, or
        something else is in the folder.
    """
    group = settings_lib.EXPORT
    known = settings_lib.names([group])
    values = {f"{group.name}_{name}": x for name, x in settings.items()}
    if unknown := sorted(values.keys() - known):
      raise InputError(
        f"{unknown[0]} is no setting; expected some of {sorted(known)}, each "
        f"without {group.name}_"
      )
    folder = pathlib.Path(folder or self.workdir / export_lib.FOLDER)
    values[f"{group.name}_dir"] = str(folder)
    with workdir_lib.locked(self.workdir):
      self._run.export(settings_lib.make(group, values))
    return folder

  def _best(
    self,
    observations: list[Observation],
    seen: list[list[int]],
    k: int,
    seed: int | None,
  ) -> list[list[Item]]:
    """The k best items of each user but those that it has seen."""
    count, items = len(observations), self._run.dataset.items
    most = len(items.titles) - 1
    if type(k) is not int or not 1 <= k <= most:
      raise InputError(f"k is {k!r}; expected an integer from 1 to {most}")
    if not count:
      return []
    width = _power_of_two(max(_LEAST_SEEN, *map(len, seen), 1))
    excluded = np.zeros((_power_of_two(count), width), np.int32)
    for row, ids in zip(excluded, seen, strict=False):
      row[: len(ids)] = ids
    # Whole powers of two, so that few sizes are compiled.
    filled = observations + [observations[-1]] * (len(excluded) - count)
    batch = jax.tree.map(lambda *x: np.stack(x), *filled)
    params, catalogue = self._params(seed)
    slates, scores, valid = jax.device_get(
      self._decoder(k)(params, catalogue, batch, excluded)
    )
    return [
      [
        Item(self._names[i], float(score), items.titles[i])
        for i, score in zip(slate[shown], own[shown], strict=True)
      ]
      for slate, own, shown in zip(
        slates[:count], scores[:count], valid[:count], strict=True
      )
    ]

  def _decoder(self, k: int):
    """The compiled greedy policy of many users, for slates of k."""
    if k not in self._decoders:
      agent = self._run.agent(k)
      if agent.draws:
        raise InputError(
          f"the agent {self._run.config.agent} draws at random; expected one "
          "that has a policy"
        )

      def of_user(params, catalogue, observation, excluded):
        return policy.shown(agent, params, catalogue, observation, excluded)

      self._decoders[k] = jax.jit(jax.vmap(of_user, (None, None, 0, 0)))
    return self._decoders[k]

  def _params(self, seed: int | None):
    """The parameters of a seed, with the catalogue."""
    seeds = self._run.config.train.seeds
    if seed is not None and seed not in seeds:
      raise InputError(f"seed is {seed!r}; expected one of {seeds}")
    return self._run.policies[0 if seed is None else seeds.index(seed)][1]

  def _state(
    self, history: Any, user_id: Any, profile: Any, until: Any = "now"
  ) -> tuple[Observation, list[int]]:
    """The user's observation, and all items that the user saw."""
    train = self._run.dataset.splits["train"]
    size = train.history.shape[1]
    width = 0 if self._run.made_up else train.profile.shape[1]
    liked, known, own = [], [], None
    if user_id is not None:
      own, liked, known = self._logged(user_id, until)
      if self._run.made_up:  # What users are like is not for agents to see.
        own = None
    if history is not None:
      liked = self._numbers("history", history)
      known = [*known, *liked]
    if profile is not None:
      with reading("profile", "numbers"):
        own = np.asarray(profile, np.float32).reshape(-1)
    if own is None:
      own = np.zeros(0, np.float32)
    if len(own) != width or not np.isfinite(own).all():
      raise InputError(
        f"profile is {own.tolist()}; expected {width} finite numbers, or a "
        "user_id of the logs"
      )
    padded = np.zeros(size, np.int32)
    latest = liked[-size:] if size else []
    padded[size - len(latest) :] = latest
    return Observation(own, padded), known

  def _logged(
    self, user_id: Any, until: Any
  ) -> tuple[np.ndarray, list[int], list[int]]:
    """A logged user's profile, last liked items, and all items seen."""
    number, dataset = self._users.get(str(user_id)), self._run.dataset
    before, after, known = [], [], set()
    for split, logs in dataset.splits.items() if number is not None else ():
      own = np.flatnonzero(logs.user_id == number)
      if (
        len(own) and until is None and split == self._run.config.evaluate.split
      ):
        warnings.warn(
          f"recommend knows what users saw and liked in the split {split}, and "
          f"leaves it out: to score lists on it pass until={split!r}, else "
          "until='now'",
          stacklevel=4,
        )
      past = np.broadcast_to(
        _is_past(split, logs.timestamp, until), len(logs.user_id)
      )[own]
      before += [(logs, i) for i in own[past]]
      after += [(logs, i) for i in own[~past]]
      own = own[past]
      known.update(logs.history[own].flat, dataset.seen(split)[own].flat)
    if not before and not after:
      raise InputError(
        f"user_id is {user_id!r}, of whom the logs have no slate; expected a "
        "user of the logs, or a history"
      )
    logs, row = after[0] if after else before[-1]
    liked = logs.history[row]
    if not after:
      liked = np.append(liked, logs.exposed[row][logs.response[row] > 0])
    known.update(liked)
    return logs.profile[row], liked[liked > 0].tolist(), sorted(known - {0})

  def _numbers(self, name: str, ids: Sequence[Any]) -> list[int]:
    """Numbers of items by their ids in the source."""
    if not _is_list(ids):
      raise InputError(f"{name} is {ids!r}; expected a list of item ids")
    unknown = [x for x in ids if str(x) not in self._items]
    if unknown:
      raise InputError(
        f"{name} has {unknown[0]!r}; expected item ids of the logs, such as "
        f"{self._names[1]!r}"
      )
    return [self._items[str(x)] for x in ids]

  @cached_property
  def _names(self) -> list[str | int]:
    """Ids in the source of item 0 (padding), 1, ..."""
    names = self._run.dataset.items.ids
    if all(x.isdecimal() and x == str(int(x)) for x in names[1:]):
      return [0] + [int(x) for x in names[1:]]
    return names

  @cached_property
  def _items(self) -> dict[str, int]:
    names = self._run.dataset.items.ids
    return {x: i for i, x in enumerate(names) if i}

  @cached_property
  def _users(self) -> dict[str, int]:
    """Numbers of users by their ids in the source."""
    names = None
    if not self._run.own_users:
      names = source.user_names(self._run.folder("data") / "data")
    if names is not None:
      return {x: i for i, x in enumerate(names, 1)}
    splits = self._run.dataset.splits.values()
    numbers = np.unique(np.concatenate([x.user_id for x in splits]))
    return {str(x): int(x) for x in numbers}


def _is_past(split: str, time: np.ndarray | None, until: Any) -> Any:
  """Whether slates of a split are before a cut, [S] or one for all."""
  if until is None or until == "now":
    return True
  if until in source.SPLITS:
    return source.SPLITS.index(split) < source.SPLITS.index(until)
  if not isinstance(until, int | float) or time is None:
    raise InputError(
      f"until is {until!r}; expected one of {('now', *source.SPLITS)}"
      + ("" if time is None else ", or a timestamp")
    )
  return time < until


def _is_list(value: Any) -> bool:
  """Whether a value is a sequence, but no text."""
  return not isinstance(value, str) and hasattr(value, "__len__")


def _power_of_two(count: int) -> int:
  """The least power of two that is not below `count`."""
  return 1 << (count - 1).bit_length()
