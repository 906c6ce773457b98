"""The table of slates: all statements of SQL.

A batch takes a fixed number of statements, however many slates it has: rows
travel as one JSON text, since each statement gives up Python's lock and has to
wait for it again beside a busy event loop.
"""

import itertools
import json
import math
import pathlib
import random
import re
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

from hsrl_jax.errors import InputError
from hsrl_jax.server.store import records
from hsrl_jax.server.store.engines import (
  COLUMNS,
  Conflict,
  Postgres,
  Sqlite,
  StoreError,
  line,
)

FORMAT = 2
SHOWN = (*records.Slate._fields, "part")
ANSWER = (
  *("request_id", "responses", "unanswered", "reward", "terminated"),
  "earned",
)
COLLECTED = (
  *("closed", "request_id", "user_id", "session_id", "part", "step", "time"),
  *("items", "propensities", "history", "profile", "responses", "reward"),
  "terminated",
)
# 1 where the slate s is the last of its session.
_LAST = (
  "(SELECT 1 FROM sessions l WHERE l.user_id = s.user_id AND "
  "l.session_id = s.session_id AND l.part = s.part AND l.step = s.step)"
)
# Above all parts and numbers of slates that were deleted.
_FORGOTTEN = (
  "(SELECT CAST(value AS bigint) FROM about WHERE name = 'forgotten')"
)
_TRIES = 10  # Of a transaction that others come between.
_T = TypeVar("_T")
_SUMS = ("users", "r", "n", "rr", "rn", "nn")  # See `Store.earned`.
_SCHEMA = (
  "CREATE TABLE IF NOT EXISTS about (name text PRIMARY KEY, value text)",
  "CREATE TABLE IF NOT EXISTS slates ("
  + ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
  + ")",
  # The last slate of each session, and 1 where the session ended with it.
  "CREATE TABLE IF NOT EXISTS sessions (user_id text, session_id text, "
  "part bigint, step bigint, time double precision, ended bigint, "
  "PRIMARY KEY (user_id, session_id))",
  "CREATE INDEX IF NOT EXISTS slates_open ON slates (time, request_id) "
  "WHERE closed IS NULL AND responses IS NOT NULL",
  "CREATE UNIQUE INDEX IF NOT EXISTS slates_closed ON slates (closed) "
  "WHERE closed IS NOT NULL",
  "CREATE INDEX IF NOT EXISTS slates_width ON slates (width, closed) "
  "WHERE closed IS NOT NULL",
  "CREATE TABLE IF NOT EXISTS users (arm text, version text, user_id text, "
  "r double precision, n double precision, "
  "PRIMARY KEY (user_id, arm, version))",
  "CREATE TABLE IF NOT EXISTS arms (arm text, version text, writer bigint, "
  + "".join(f"{name} double precision, " for name in _SUMS)
  + "PRIMARY KEY (arm, version, writer))",
)


class Store:
  """The slates; see `open_store`. For one thread at a time."""

  def __init__(self, engine: Sqlite | Postgres):
    """Makes the tables where they are missing."""
    self._engine = engine
    self.transact(self._make)
    about = self.about()
    if about["format"] != str(FORMAT):
      raise InputError(
        f"the store has format {about['format']}; expected {FORMAT}: use the "
        "version of hsrl_jax that made it, or another store"
      )
    self.id = about["id"]

  def _make(self) -> None:
    for statement in _SCHEMA:
      self._engine.run(statement)
    self._keep("format", str(FORMAT))
    self._keep("id", uuid.uuid4().hex)

  def transact(self, work: Callable[[], _T]) -> _T:
    """Calls `work` in a transaction, anew where others changed what it read.

    Returns:
      What `work` returns, durably.

    Raises:
      StoreError: nothing is kept.
      Undecided: all is kept, or nothing.
    """
    for tries in itertools.count(1):
      try:
        with self._engine.transaction():
          return work()
      except Conflict:
        if tries == _TRIES:
          raise
        time.sleep(random.uniform(0, 0.01 * tries))

  def _keep(self, name: str, value: str) -> None:
    self._engine.run(
      "INSERT INTO about (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING",
      name,
      value,
    )

  def touch(self) -> None:
    """Writes something; within a transaction."""
    self._engine.run("DELETE FROM about WHERE name = 'touched'")
    self._keep("touched", uuid.uuid4().hex)

  def about(self) -> dict[str, str]:
    """Facts of the store itself: `format`, `id`, and those of `note`."""
    return dict(self._engine.read("SELECT name, value FROM about", 2))

  def note(self, name: str, value: str, replace: bool = False) -> str:
    """Writes a value about the store, unless there is one; returns it."""

    def write():
      if replace:
        self._engine.run("DELETE FROM about WHERE name = ?", name)
      self._keep(name, value)

    self.transact(write)
    return self.about()[name]

  def sessions(self, keys: list[tuple[str, str]]) -> list[Sequence]:
    """The last slates of sessions.

    Args:
      keys: user_id and session_id of each.

    Returns:
      Rows of user_id, session_id, part, step, time, and 1 where the session
      ended; the step is -1 where there is none, and the part one that no
      session of that name had.
    """
    query = (
      "SELECT k.user_id, k.session_id, "
      f"coalesce(s.part, {_FORGOTTEN}, 0), coalesce(s.step, -1), "
      "coalesce(s.time, 0), coalesce(s.ended, 0) "
      f"FROM ({self._engine.rows(('user_id', 'session_id'))}) k "
      "LEFT JOIN sessions s "
      "ON s.user_id = k.user_id AND s.session_id = k.session_id"
    )
    return self._engine.read(query, 6, json.dumps(keys))

  def _named(self, *names: str) -> str:
    """The slates s whose request_id is in the rows k, a parameter."""
    rows = self._engine.rows(("request_id", *names))
    return f"({rows}) k JOIN slates s ON s.request_id = k.request_id"

  def insert(self, rows: list[Sequence]) -> None:
    """Adds slates; each row has the columns SHOWN.

    A session's row is written with its slates: of two transactions that read it
    one fails. It has a key of its own, so that there is one where there was
    none.
    """
    self._engine.run(
      f"INSERT INTO slates ({', '.join(SHOWN)}) {self._engine.rows(SHOWN)}",
      json.dumps(rows),
    )
    names = ("user_id", "session_id", "part", "step", "time")
    places = [SHOWN.index(name) for name in names]
    last = {(row[1], row[2]): [row[i] for i in places] for row in rows}
    last = [last[key] for key in sorted(k for k in last if k[1] is not None)]
    if last:
      self._engine.run(
        f"INSERT INTO sessions ({', '.join(names)}, ended) "
        f"SELECT k.*, 0 FROM ({self._engine.rows(names)}) k WHERE true "
        "ON CONFLICT (user_id, session_id) DO UPDATE SET part = excluded.part, "
        "step = excluded.step, time = excluded.time, ended = 0",
        json.dumps(last),
      )

  def find(self, request_ids: list[str]) -> list[Sequence]:
    """Rows of request_id and the arguments of `records.kept_of`."""
    query = (
      "SELECT s.request_id, s.items, s.responses, s.reward, s.terminated, "
      "s.closed, CASE WHEN s.session_id IS NULL THEN 1 ELSE "
      f"coalesce({_LAST}, 0) END FROM {self._named()}"
    )
    return self._engine.read(query, 7, json.dumps([[x] for x in request_ids]))

  def update(self, rows: list[Sequence]) -> None:
    """Replaces what is known of slates; each row has the columns ANSWER."""
    self._count(
      "k.earned - coalesce(s.earned, 0)",
      "CASE WHEN s.earned IS NULL THEN 1.0 ELSE 0.0 END",
      json.dumps([(row[0], row[-1]) for row in rows]),
    )
    names = [name for name in ANSWER if name != "request_id"]
    self._engine.run(
      f"UPDATE slates SET {', '.join(f'{x} = k.{x}' for x in names)} "
      f"FROM ({self._engine.rows(ANSWER)}) k "
      "WHERE slates.request_id = k.request_id",
      json.dumps(rows),
    )
    ended = [[row[0]] for row in rows if row[4]]
    if ended:
      self._engine.run(
        f"UPDATE sessions SET ended = 1 WHERE {self._last_is()}",
        json.dumps(ended),
      )

  def _last_is(self) -> str:
    """A condition for sessions: the last slate is one of a parameter."""
    names = ("user_id", "session_id", "part", "step")
    last = ", ".join(f"s.{name}" for name in names)
    return f"({', '.join(names)}) IN (SELECT {last} FROM {self._named()})"

  def close_done(self, before: float, most: int) -> int:
    """Closes slates that are answered, or ended, or were shown `before`.

    Args:
      before: seconds since 1970.
      most: slates that are closed.

    Returns:
      How many were closed; less than `most`: no more are left.
    """

    def close() -> int:
      ((last,),) = self._engine.read(
        f"SELECT max(number) FROM (SELECT coalesce({_FORGOTTEN}, 0) AS number "
        "UNION ALL SELECT max(closed) FROM slates WHERE closed IS NOT NULL) n",
        1,
      )
      return self._engine.run(
        "UPDATE slates SET closed = ? + k.number FROM ("
        "SELECT request_id, row_number() OVER (ORDER BY time, request_id) "
        "AS number FROM slates WHERE closed IS NULL AND responses IS NOT NULL "
        "AND (unanswered = 0 OR terminated = 1 OR time < ?) "
        "ORDER BY time, request_id LIMIT ?"
        ") k WHERE slates.request_id = k.request_id",
        last,
        before,
        most,
      )

    return self.transact(close)

  def mark(self, name: str, number: int) -> None:
    """Writes the largest of some numbers; within a transaction."""
    self._engine.run(
      "INSERT INTO about (name, value) VALUES (?, ?) ON CONFLICT (name) "
      "DO UPDATE SET value = excluded.value "
      "WHERE CAST(about.value AS bigint) < CAST(excluded.value AS bigint)",
      name,
      str(number),
    )

  def forget(self, before: float, most: int) -> tuple[int, int]:
    """Deletes slates that were shown `before`, whatever came of them.

    What they earned is in the sums of `earned` no longer, so that nothing is
    left of a user without slates.

    Args:
      before: seconds since 1970.
      most: slates that are deleted.

    Returns:
      How many were deleted, and how many of these had feedback that is in no
      collected file: `collected_K` is the last number of K items that is.
    """

    def work() -> tuple[int, int]:
      rows = self._engine.read(
        "SELECT request_id, earned, closed, width, part FROM slates "
        "WHERE request_id < ? ORDER BY request_id LIMIT ?",
        *(5, records.first_id(before), most),
      )
      if not rows:
        return 0, 0
      about, answered = self.about(), [x for x in rows if x[1] is not None]
      read = [
        (closed or math.inf) <= int(about.get(f"collected_{width}", 0))
        for _, _, closed, width, _ in answered
      ]
      slates, ids = self._named(), json.dumps([x[:1] for x in rows])
      self._count("-s.earned", "-1", json.dumps([x[:1] for x in answered]))
      for gone in (
        f"users WHERE n = 0 AND user_id IN (SELECT s.user_id FROM {slates})",
        f"sessions WHERE {self._last_is()}",
        f"slates WHERE request_id IN (SELECT s.request_id FROM {slates})",
      ):
        self._engine.run(f"DELETE FROM {gone}", ids)
      self.mark("forgotten", max(max(x[2] or 0, x[4] + 1) for x in rows))
      return len(rows), len(read) - sum(read)

    return self.transact(work)

  def widths(self) -> list[Sequence]:
    """The widths of closed slates, each with its last number."""
    return self._engine.read(
      "SELECT width, max(closed) FROM slates WHERE closed IS NOT NULL "
      "GROUP BY width ORDER BY width",
      2,
    )

  def closed(
    self, width: int, after: int, last: int, most: int
  ) -> list[Sequence]:
    """The first `most` closed slates of a width, by number.

    Args:
      width: K.
      after: their numbers are larger.
      last: and at most this.
      most: how many.

    Returns:
      Rows with the columns COLLECTED.
    """
    query = (
      f"SELECT {', '.join(COLLECTED)} FROM slates WHERE closed IS NOT NULL "
      "AND width = ? AND closed > ? AND closed <= ? ORDER BY closed LIMIT ?"
    )
    return self._engine.read(query, len(COLLECTED), width, after, last, most)

  def _count(self, r: str, n: str, rows: str) -> None:
    """Adds to the sums of users and of arms; within a transaction.

    Args:
      r: by how much more a slate s earned, of the rows k; see `earned`.
      n: by how many answered slates it counts more.
      rows: k, of request_id and earned.
    """
    changes = (
      f"SELECT s.arm, s.version, s.user_id, sum({r}) AS r, sum({n}) AS n "
      f"FROM {self._named('earned')} GROUP BY s.arm, s.version, s.user_id"
    )
    self._engine.run(
      f"INSERT INTO users (arm, version, user_id, r, n) {changes} "
      "ON CONFLICT (arm, version, user_id) "
      "DO UPDATE SET r = users.r + excluded.r, n = users.n + excluded.n",
      rows,
    )
    # Of a user who had (r, n) before, and has (u.r, u.n) now.
    self._engine.run(
      f"INSERT INTO arms (arm, version, writer, {', '.join(_SUMS)}) "
      f"SELECT c.arm, c.version, {self._engine.writer}, "
      "sum(CASE WHEN u.n = c.n THEN 1 WHEN u.n = 0 THEN -1 ELSE 0 END), "
      "sum(c.r), sum(c.n), "
      "sum(c.r * (2 * u.r - c.r)), sum(c.r * u.n + c.n * (u.r - c.r)), "
      f"sum(c.n * (2 * u.n - c.n)) FROM ({changes}) c JOIN users u "
      "ON u.arm = c.arm AND u.version = c.version AND u.user_id = c.user_id "
      "GROUP BY c.arm, c.version ON CONFLICT (arm, version, writer) DO UPDATE "
      f"SET {', '.join(f'{x} = arms.{x} + excluded.{x}' for x in _SUMS)}",
      rows,
    )

  def earned(self, arm: str, version: str) -> Sequence:
    """Sums over the users who answered slates of an arm and a version.

    Returns:
      Users, and the sums of r, n, r^2, r n and n^2, where r is what a user's
      slates earned and n how many they were.
    """
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in _SUMS)
    return self._engine.read(
      f"SELECT {sums} FROM arms WHERE arm = ? AND version = ?", 6, arm, version
    )[0]

  def close(self) -> None:
    """Lets go of the database."""
    self._engine.close()


def open_store(where: str) -> Store:
  """Opens or makes a store.

  Args:
    where: path of an SQLite file, or a URL that begins with postgresql://.

  Raises:
    InputError: it cannot be opened, or is something else.
  """
  if where.startswith(("postgresql://", "postgres://")):
    return _open_postgres(where)
  path = pathlib.Path(where)
  if path.name == ":memory:":
    raise InputError(
      f"the store {where} is gone with its process; expected the path of a file"
    )
  if "://" in where:
    raise InputError(
      f"the store {where!r} has an unknown scheme; expected a path, or a URL "
      "that begins with postgresql://"
    )
  try:
    return Store(Sqlite(path))
  except (sqlite3.Error, StoreError) as error:
    raise InputError(
      f"the store {path} cannot be opened ({line(error)}); expected a file "
      "that a store made, or a new name in a folder that is there"
    ) from error


def _open_postgres(url: str) -> Store:
  try:
    import psycopg
  except ImportError as error:
    raise InputError(
      "a store in PostgreSQL needs the package psycopg; expected it to be "
      'installed: pip install "hsrl_jax[postgres]"'
    ) from error
  try:
    return Store(Postgres(url))
  except (psycopg.Error, StoreError) as error:
    # Of a URL that libpq takes apart elsewhere it repeats pieces.
    why = line(error)
    for piece in re.findall(r"[^:/@?&=]{3,}", url.rpartition("@")[0])[1:]:
      why = why.replace(piece, "***")
    raise InputError(
      f"the store in PostgreSQL cannot be opened ({why}); expected "
      "postgresql://USER:PASSWORD@HOST:PORT/DATABASE of a running server"
    ) from error
