"""Slates out of interactions: one row for each item that a user met.

Explicit feedback, `response` (0 or 1) or `rating` with the option `like_from`:
K consecutive rows of a user (within a split, with or without propensities) make
a slate, cut from the newest backwards; the rows that are left over are part of
the history alone.

Positives only, no `response` or nothing but 1: each row makes a slate, with
K - 1 drawn negatives, in random order; see hsrl_jax/data/feedback.py. Neither
what the user likes in the train split nor the slate's own positive is drawn.

The history of a slate is what its user liked before it. Where `split` is given,
likes of a later split are in no history of an earlier one.

The option `"split_by": "leave_one_out"` takes the place of `split`: each user's
last slate with a like is for the test, the one before for validation, and all
else for training; so is all of a user with fewer than three such slates.
Slates of positives only, and those of `slate_size` 1, are single likes, which
is the usual leave-one-out.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from hsrl_jax.data import feedback
from hsrl_jax.data.source import SPLITS, STEP_COLUMNS
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets import schema
from hsrl_jax.shipped.datasets.logs import options as options_lib
from hsrl_jax.shipped.datasets.logs import slates as slates_lib
from hsrl_jax.shipped.datasets.logs import tables
from hsrl_jax.shipped.datasets.logs.slates import Slates

NEEDED = ("user_id", "item_id", "timestamp")
_KNOWN = (
  *NEEDED,
  *("response", "rating", "propensity", "position", "profile", "split"),
)
_ROWS = 2**17  # Rows of users that are cut at once; a user's are not parted.


class Log(NamedTuple):
  """Interactions, R rows."""

  file: str  # Its name.
  user: np.ndarray  # int [R], 1..U.
  item: np.ndarray  # int [R], 1..N.
  timestamp: np.ndarray  # float64 [R].
  response: np.ndarray  # float32 [R].
  positives_only: bool  # Whether negatives must be drawn.
  # int8 [R], number in SPLITS; None where it is to be made by time.
  split: np.ndarray | None
  rows: Slates  # All columns, each interaction as a slate of one item.


def read(
  table: tables.Table, item_ids: Sequence[str], options: options_lib.Options
) -> Log:
  """Checks the interactions of a user's table.

  Raises:
    InputError: the row and column that is no good, or a split that cannot be.
  """
  response = _response(table, options)
  positives_only = response is None or bool((response == 1).all())
  dropped = ("propensity", "position") if positives_only else ()
  dropped += ("rating",) if "response" in table.names else ()
  item = tables.column(table, "item_id", tables.Items(item_ids))
  rows = slates_lib.read(
    table,
    np.asarray(item, np.int32),
    options.split_by == options_lib.BY_USER,
    tuple(x for x in _KNOWN if x not in dropped),
  )
  columns = rows.columns
  log = Log(
    file=table.path.name,
    user=columns["user_id"],
    item=columns["exposed"][:, 0],
    timestamp=columns["timestamp"],
    response=np.ones(len(item), np.float32) if response is None else response,
    positives_only=positives_only,
    split=columns.get("split"),
    rows=rows,
  )
  if columns["propensity"].size:
    tables.check_actions(table.path, log.item)
  if "split" in table.names and options.split_by is not None:
    raise InputError(
      f"{table.path} has a column split, and {options_lib.NAME} has split_by "
      f"{options.split_by!r}; expected one of them"
    )
  if options.split_by == options_lib.LEAVE_ONE_OUT:
    return leave_one_out(log, options.slate_size)
  return log


def leave_one_out(log: Log, slate_size: int) -> Log:
  """A log without a split, with one by user: see the module's docstring.

  Raises:
    InputError: no user has three slates with a like.
  """
  size, held_out = 1 if log.positives_only else slate_size, 0
  split = np.zeros(len(log.user), np.int8)
  for own, part in _by_users(log):
    newest = _newest_likes(part, cut(part, size)[0])
    held_out += len(newest)
    for name, rows in zip(("test", "val"), newest.swapaxes(0, 1), strict=True):
      split[own[rows]] = SPLITS.index(name)
  if not held_out:
    what = f"slates of {size} with a like" if size > 1 else "likes"
    raise InputError(
      f"{log.file}: no user has three {what}, which leave_one_out needs for "
      f"train, val and test; expected some, or split_by time in "
      f"{options_lib.NAME}"
    )
  left = len(np.unique(log.user)) - held_out
  note = f"{log.file}: leave_one_out holds out likes of {held_out:,} users"
  if left:
    note += f"; {left:,} with too few likes stay in train"
  rows = log.rows._replace(notes=[*log.rows.notes, note])
  return log._replace(split=split, rows=rows)


def _newest_likes(log: Log, slates: np.ndarray) -> np.ndarray:
  """The two newest of the slates [S, K] with a like, rows [U', 2, K].

  Of each user with three of them or more. Of slates of one time the one that
  begins in a later row is the newer one.
  """
  liked = slates[(log.response[slates] > 0).any(1)]
  first = liked[:, 0]
  liked = liked[np.lexsort((-first, -log.timestamp[first], log.user[first]))]
  _, begins, count = np.unique(
    log.user[liked[:, 0]], return_index=True, return_counts=True
  )
  return liked[begins[count >= 3, None] + np.arange(2)]


def _response(
  table: tables.Table, options: options_lib.Options
) -> np.ndarray | None:
  """Responses [R]; None where all rows are positives."""
  if "response" in table.names:
    found = tables.column(table, "response", tables.binary)
    return found.astype(np.float32)
  if "rating" not in table.names:
    return None
  if options.like_from is None:
    raise InputError(
      f"{table.path} has ratings but no responses; expected a column response "
      f'(0 or 1), or {{"like_from": ...}} in {options_lib.NAME}, the least '
      "rating that is a like"
    )
  rating = tables.column(table, "rating", tables.number)
  return (rating >= options.like_from).astype(np.float32)


def slates(log: Log, num_items: int, options: options_lib.Options) -> Slates:
  """Makes slates out of interactions, as the user's options say.

  Raises:
    InputError: there is no slate, or a split is without any.
  """
  notes = list(log.rows.notes)
  size = 1 if log.positives_only else options.slate_size
  if log.positives_only and options.slate_size == 1:
    raise InputError(
      f"{log.file} has positives only and slate_size is 1 in "
      f"{options_lib.NAME}; expected at least 2, a positive and a negative"
    )
  parts = []
  for own, part in _by_users(log):
    rows, *others = cut(part, size)
    parts.append((own[rows], *others))
  parts, histories, counts = zip(*parts, strict=True)
  rows, history = np.concatenate(parts), schema.Histories.joined(histories)
  if log.positives_only:  # Negatives are drawn in the order of the file.
    order = np.argsort(rows[:, 0])
    rows, history = rows[order], history[order]
  left_over = len(log.user) - size * sum(counts)
  repeated = len(log.user) - left_over - rows.size
  of = f"of {len(log.user):,} rows are in no slate"
  if left_over:
    notes.append(
      f"{log.file}: {left_over:,} {of}: the oldest of each user, too few for "
      f"a slate of {size}; histories have them"
    )
  if repeated:
    notes.append(f"{log.file}: {repeated:,} {of}: it would show an item twice")
  if not len(rows):
    if repeated:
      fault = f"each slate of {size} rows would show an item twice"
      expected = "different items in a row"
    else:
      of = "" if log.split is None else " in one split"
      fault = f"no user has {size} rows{of}"
      expected = "enough for a slate"
    raise InputError(
      f"{log.file}: {fault}; expected {expected}, or a smaller slate_size in "
      f"{options_lib.NAME}"
    )
  first = rows[:, 0]
  columns = {
    "user_id": log.user[first],
    "profile": log.rows.columns["profile"][first],
    "history": history,
    "exposed": log.item[rows],
    "response": log.response[rows],
    "timestamp": log.timestamp[first],
    "split": _split(log, first),
  }
  for name in ("propensity", "position"):
    column = log.rows.columns[name]
    columns[name] = column[rows, 0] if column.size else column[first]
  about = feedback.Feedback()
  if log.positives_only:
    q = sampling(log, num_items, options)
    columns, left_out = _with_negatives(columns, q, options)
    about = feedback.Feedback(
      "implicit",
      options.negatives,
      options.slate_size - 1,
      options.base_rate,
      options.seed,
    )
    notes += _told(log, options, left_out)
    if not len(columns["user_id"]):
      raise InputError(
        f"{log.file}: no user leaves {options.slate_size - 1} of {num_items} "
        "items for negatives; expected more items, or a smaller slate_size in "
        f"{options_lib.NAME}"
      )
  # Slates that are made know no sessions.
  none = np.zeros((len(columns["user_id"]), 0))
  columns |= dict.fromkeys(STEP_COLUMNS, none)
  return slates_lib.by_time(Slates(columns, log.rows.users, notes, about))


def sampling(
  log: Log, num_items: int, options: options_lib.Options
) -> np.ndarray:
  """The distribution of a drawn negative, [N + 1]; of positives only."""
  train = _split(log, np.arange(len(log.user))) == SPLITS.index("train")
  return feedback.sampling_probabilities(
    log.item[train], num_items, options.negatives
  )


def _split(log: Log, rows: np.ndarray) -> np.ndarray:
  """The split of the slates that begin at some rows, numbers in SPLITS."""
  if log.split is None:
    return slates_lib.split_by_time(log.timestamp[rows])
  return log.split[rows]


def _by_users(log: Log) -> Iterator[tuple[np.ndarray, Log]]:
  """Parts of a log, all rows of some users each, and which rows they are."""
  order = np.argsort(log.user, kind="stable")
  user = log.user[order]
  begins = np.unique(np.searchsorted(user, user[::_ROWS]))
  for own in np.split(order, begins[1:]):
    part = {x: y[own] for x, y in log.rows.columns.items()}
    columns = log._asdict() | {"rows": log.rows._replace(columns=part)}
    for name, column in columns.items():
      if isinstance(column, np.ndarray):
        columns[name] = column[own]
    yield own, Log(**columns)


def cut(log: Log, size: int) -> tuple[np.ndarray, schema.Histories, int]:
  """Cuts slates, from the newest row of each user and split backwards.

  What comes of a user depends on this user's rows alone, all of which are
  there.

  Returns:
    Rows of the slates, by user, split and time, int [S, K]; their histories;
    and how many slates there are with those that would show an item twice.
  """
  split = np.zeros(len(log.user), int) if log.split is None else log.split
  kind = split
  if (propensity := log.rows.columns["propensity"]).size:
    kind = kind + len(SPLITS) * np.isnan(propensity[:, 0])
  order = np.lexsort((log.timestamp, kind, log.user))  # Stable.
  group = log.user[order].astype(np.int64) * 2 * len(SPLITS) + kind[order]
  last = np.searchsorted(group, group, side="right")
  left = last - np.arange(len(order))  # This row and those of its group after.
  start = np.flatnonzero(left % size == 0)
  rows = order[start[:, None] + np.arange(size)]
  shown = np.sort(log.item[rows], axis=1)
  kept = rows[(shown[:, 1:] != shown[:, :-1]).all(1)]
  return kept, _histories(log, split, kept[:, 0]), len(rows)


def _histories(
  log: Log, split: np.ndarray, first: np.ndarray
) -> schema.Histories:
  """Histories of S rows: likes of earlier rows, of no later split."""
  parts, places = [], []
  for own in range(len(SPLITS)):
    seen = np.flatnonzero(split <= own)
    liked = slates_lib.liked_before(
      log.user[seen],
      log.item[seen, None],
      log.response[seen, None],
      log.timestamp[seen],
    )
    places.append(np.flatnonzero(split[first] == own))
    parts.append(liked[np.searchsorted(seen, first[places[-1]])])
  return schema.Histories.joined(parts)[np.argsort(np.concatenate(places))]


def _with_negatives(
  columns: dict[str, np.ndarray],
  sampling: np.ndarray,
  options: options_lib.Options,
) -> tuple[dict[str, np.ndarray], int]:
  """Slates of one positive with negatives; how many had too few items left."""
  user, item = columns["user_id"], columns["exposed"][:, 0]
  train = columns["split"] == SPLITS.index("train")
  rng = np.random.default_rng(options.seed)
  negatives = feedback.draw_negatives(
    rng,
    sampling,
    user,
    item,
    (user[train], item[train]),
    options.slate_size - 1,
  )
  enough = (negatives > 0).all(1)
  exposed = np.concatenate([item[:, None], negatives], 1)
  # The positive anywhere, so that no place tells which one it is.
  exposed = rng.permuted(exposed, axis=1)
  response = (exposed == item[:, None]).astype(np.float32)
  columns = columns | {"exposed": exposed, "response": response}
  if not enough.all():
    columns = {name: column[enough] for name, column in columns.items()}
  return columns, int((~enough).sum())


def _told(log: Log, options: options_lib.Options, left_out: int) -> list[str]:
  """Notes on positives and their negatives."""
  rate = (
    f"base rate of likes {options.base_rate:g}"
    if options.base_rate
    else f"rates of likes stay unknown without base_rate in {options_lib.NAME}"
  )
  notes = [
    f"{log.file}: positives only; each of {len(log.user) - left_out:,} is "
    f"shown beside {options.slate_size - 1} negatives drawn by "
    f"{options.negatives}; {rate}"
  ]
  if left_out:
    notes.append(
      f"{log.file}: {left_out:,} of {len(log.user):,} rows are in no slate: "
      "their users like too many items for so many negatives"
    )
  return notes
