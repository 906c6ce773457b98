"""Profiles out of a file of users: a row a user, a column a fact of them."""

import pathlib
from collections.abc import Sequence

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.logs import tables

NAME = "users"
_MOST = 100  # Values of a column of texts that become numbers of a profile.


def profiles(
  folder: pathlib.Path, ids: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
  """Reads the profiles of U users.

  A column of numbers becomes one number, its distance from the mean of the file
  in standard deviations, 0 in an empty cell. A column of texts becomes a 0 or 1
  for each of its values, in their order. Users without a row have zeros.

  Args:
    folder: with users.csv or users.parquet.
    ids: of the users, as the logs have them.

  Returns:
    float32 [U, P], and notes that say what each number is.

  Raises:
    InputError: the file, row and column that is no good.
  """
  table = tables.read_table(folder, NAME, ("user_id",))
  codes, known = tables.codes(table, "user_id")
  for row in np.flatnonzero(codes != np.arange(len(codes)))[:1]:
    table.refuse(row, "user_id", "a user of an earlier row; expected each once")
  numbers, told, left = [], [], []
  for name in table.names:
    cells = tables.texts(table, name, [])
    values = sorted({x for x in cells if x})
    if name == "user_id" or not values:
      continue
    if all(map(tables.is_number, values)):
      given = np.array([x != "" for x in cells])
      column = np.zeros(len(cells))
      column[given] = tables.column(table.where(given), name, tables.held)
      mean, scale = column[given].mean(), column[given].std() or 1.0
      numbers.append(np.where(given, (column - mean) / scale, 0))
      told.append(f"({name} - {mean:.6g}) / {scale:.6g}")
    elif len(values) <= min(_MOST, len(cells) // 2):
      numbers += [np.array(cells) == x for x in values]
      told += [f"{name}={x}" for x in values]
    else:
      left.append(f"{name} ({len(values):,} values of {len(cells):,} users)")
  if not numbers:
    raise InputError(
      f"{table.path} has no column for profiles; expected numbers, or texts "
      "that users share"
    )
  notes = [f"{table.path.name}: profiles are {', '.join(told)}"]
  if left:
    notes[0] += f"; without {', '.join(left)}"
  row_of = {name: row for row, name in enumerate(known)}
  rows = np.array([row_of.get(x, -1) for x in ids])
  if (rows < 0).any():
    notes.append(
      f"{table.path.name}: {(rows < 0).sum():,} of {len(rows):,} users of the "
      "logs have no row; their profiles are zeros"
    )
  found = np.stack(numbers, 1).astype(np.float32)[rows]
  return np.where(rows[:, None] < 0, np.float32(0), found), notes
