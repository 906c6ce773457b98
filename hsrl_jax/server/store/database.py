"""The table of slates, in SQLite or PostgreSQL: all that is SQL.

A batch takes a fixed number of statements, however many slates it has: rows
travel as one JSON text, since each statement gives up Python's lock and has to
wait for it again beside a busy event loop.
"""

import contextlib
import json
import pathlib
import re
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from hsrl_jax.errors import InputError
from hsrl_jax.server.store.records import Slate

FORMAT = 1
WAIT = 5.0  # Seconds for another process to finish its transaction.
_KEY = 0x6873726C  # Of the lock among writers of a PostgreSQL database.
# Classes of its errors: no connection, locked, shut down.
_AWAY = ("08", "55", "57")

# Name to type of each column. `part` counts sessions of one session_id, of
# which a new one begins after an end; `unanswered` counts places without a
# response; `closed` numbers the slates that were collected, from 1.
_COLUMNS = {
  "request_id": "text PRIMARY KEY",
  "user_id": "text NOT NULL",
  "session_id": "text",
  "part": "bigint NOT NULL",
  "step": "bigint NOT NULL",
  "time": "double precision NOT NULL",
  "width": "bigint NOT NULL",
  "items": "text NOT NULL",
  "propensities": "text NOT NULL",
  "history": "text NOT NULL",
  "profile": "text NOT NULL",
  "version": "text NOT NULL",
  "arm": "text NOT NULL",
  "responses": "text",
  "unanswered": "bigint",
  "reward": "double precision",
  "terminated": "bigint",
  "earned": "double precision",
  "closed": "bigint",
}
SHOWN = (*Slate._fields, "part")
ANSWER = (
  *("request_id", "responses", "unanswered", "reward", "terminated"),
  "earned",
)
COLLECTED = (
  *("closed", "request_id", "user_id", "session_id", "part", "step", "time"),
  *("items", "propensities", "history", "profile", "responses", "reward"),
  "terminated",
)
_SCHEMA = (
  "CREATE TABLE IF NOT EXISTS about (name text PRIMARY KEY, value text)",
  "CREATE TABLE IF NOT EXISTS slates ("
  + ", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())
  + ")",
  "CREATE INDEX IF NOT EXISTS slates_session ON slates "
  "(user_id, session_id, part, step, time) WHERE session_id IS NOT NULL",
  "CREATE INDEX IF NOT EXISTS slates_open ON slates (time, request_id) "
  "WHERE closed IS NULL AND responses IS NOT NULL",
  "CREATE UNIQUE INDEX IF NOT EXISTS slates_closed ON slates (closed) "
  "WHERE closed IS NOT NULL",
  "CREATE INDEX IF NOT EXISTS slates_width ON slates (width, closed) "
  "WHERE closed IS NOT NULL",
  "CREATE INDEX IF NOT EXISTS slates_earned ON slates "
  "(arm, version, user_id, earned) WHERE earned IS NOT NULL",
)


class StoreError(Exception):
  """The store cannot take this now; nothing of it is kept."""


class Away(StoreError):
  """The store takes nothing now, whatever it is."""


class Undecided(StoreError):
  """The store may have kept all of this, or nothing."""


class Engine(Protocol):
  """What differs between databases; parameters are written as ?."""

  def transaction(self) -> contextlib.AbstractContextManager[None]:
    """Commits durably at the end, or nothing; others' writes wait.

    Raises:
      Away: nothing can be committed.
      StoreError: this could not be committed.
      Undecided: whether it was committed is not known.
    """

  def rows(self, names: Sequence[str]) -> str:
    """A query of the rows in a parameter: a JSON list of lists, by names."""

  def read(self, query: str, width: int, *parameters: Any) -> list[Sequence]:
    """Rows of a query with `width` columns."""

  def run(self, statement: str, *parameters: Any) -> int:
    """Runs a statement; returns how many rows it changed."""

  def close(self) -> None:
    """Lets go of the database."""


class Sqlite:
  """An embedded database: a file, with a write-ahead log beside it."""

  def __init__(self, path: pathlib.Path):
    """Opens or makes the file.

    Raises:
      sqlite3.Error: it cannot be opened.
    """
    path = path.absolute()
    self._paths = (path, path.with_name(f"{path.name}-wal"))
    self._files: list | None = None
    self._connection = sqlite3.connect(
      path, timeout=WAIT, isolation_level=None, check_same_thread=False
    )
    try:
      self._prepare()
    except sqlite3.Error:
      self._connection.close()
      raise

  def _prepare(self) -> None:
    tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
    names = {name for (name,) in self._connection.execute(tables)}
    if names and not {"about", "slates"} <= names:
      raise sqlite3.DatabaseError(f"it has the table {min(names)!r}")
    for pragma in (
      "journal_mode=WAL",
      "synchronous=FULL",
      "wal_autocheckpoint=8000",  # Pages of 4 KiB.
      "cache_size=-32768",  # KiB.
    ):
      self._connection.execute(f"PRAGMA {pragma}")

  @contextlib.contextmanager
  def transaction(self) -> Iterator[None]:
    try:
      self._connection.execute("BEGIN IMMEDIATE")
      self._check_files(Away)
      yield
      self._connection.execute("COMMIT")
    except BaseException as error:
      with contextlib.suppress(sqlite3.Error):
        if self._connection.in_transaction:
          self._connection.execute("ROLLBACK")
      if isinstance(error, sqlite3.Error):
        raise _of_sqlite(error) from error
      raise
    self._check_files(Undecided)

  def _check_files(self, kind: type[StoreError]) -> None:
    """Raises `kind` where the open files are no longer those of the path.

    SQLite itself goes on writing to files that nobody will find.
    """
    files = []
    for path in self._paths:
      with contextlib.suppress(OSError):
        status = path.stat()
        files.append((path, status.st_dev, status.st_ino))
    self._files = self._files or files
    if files != self._files:
      raise kind(f"{self._paths[0]} was removed, or renamed, or replaced")

  def rows(self, names: Sequence[str]) -> str:
    fields = [f"json_extract(value, '$[{i}]') {x}" for i, x in enumerate(names)]
    return f"SELECT {', '.join(fields)} FROM json_each(?)"

  def read(self, query: str, width: int, *parameters: Any) -> list[Sequence]:
    names = ", ".join(f"c{i}" for i in range(width))
    query = (
      f"WITH q({names}) AS ({query}) "
      f"SELECT json_group_array(json_array({names})) FROM q"
    )
    try:
      ((text,),) = self._connection.execute(query, parameters).fetchall()
    except sqlite3.Error as error:
      raise _of_sqlite(error) from error
    return json.loads(text)

  def run(self, statement: str, *parameters: Any) -> int:
    return self._connection.execute(statement, parameters).rowcount

  def close(self) -> None:
    self._connection.close()


def _of_sqlite(error: sqlite3.Error) -> StoreError:
  """Whether a file is locked, say, or something does not fit into it."""
  fits = getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_FULL
  away = isinstance(error, sqlite3.OperationalError) and fits
  return (Away if away else StoreError)(str(error))


class Postgres:
  """A PostgreSQL database, which several servers may share."""

  def __init__(self, url: str):
    """Connects.

    Raises:
      psycopg.Error: nobody answers there, or refuses.
    """
    import psycopg  # The extra `postgres`.

    self._psycopg, self._url = psycopg, url
    self._connection = None
    self._connect()

  def _connect(self) -> None:
    self._connection = self._psycopg.connect(
      self._url,
      autocommit=True,
      connect_timeout=int(WAIT),
      tcp_user_timeout=int(2e3 * WAIT),
    )
    self.run(f"SET lock_timeout = '{WAIT:g}s'")

  @contextlib.contextmanager
  def transaction(self) -> Iterator[None]:
    commits = False
    try:
      if self._connection.closed:  # The database was restarted, say.
        self._connect()
      with self._connection.transaction():
        # One writer at a time: then steps of a session, and numbers of
        # collected slates, are in the order of commits.
        self.run("SELECT pg_advisory_xact_lock(?)", _KEY)
        yield
        commits = True
    except self._psycopg.Error as error:
      if commits and error.sqlstate is None:  # The connection was lost.
        raise Undecided(_line(error)) from error
      raise self._error(error) from error

  def _error(self, error: Exception) -> StoreError:
    """Whether the database is not there, or locked, or refuses a record."""
    away = isinstance(error, self._psycopg.OperationalError)
    away = away and (error.sqlstate or "08")[:2] in _AWAY
    return (Away if away else StoreError)(_line(error))

  def rows(self, names: Sequence[str]) -> str:
    fields = []
    for place, name in enumerate(names):
      kind = " ".join(x for x in _COLUMNS[name].split() if x.islower())
      fields.append(f"(value->>{place})::{kind} AS {name}")
    return f"SELECT {', '.join(fields)} FROM jsonb_array_elements(?::jsonb)"

  def read(self, query: str, width: int, *parameters: Any) -> list[Sequence]:
    del width
    try:
      if self._connection.closed:
        self._connect()
      return self._execute(query, parameters).fetchall()
    except self._psycopg.Error as error:
      raise self._error(error) from error

  def run(self, statement: str, *parameters: Any) -> int:
    return self._execute(statement, parameters).rowcount

  def _execute(self, statement: str, parameters: Sequence[Any]):
    statement = statement.replace("%", "%%").replace("?", "%s")
    return self._connection.execute(statement, parameters)

  def close(self) -> None:
    self._connection.close()


class Store:
  """The slates; see `open_store`. For one thread at a time."""

  def __init__(self, engine: Engine):
    """Makes the tables where they are missing."""
    self._engine = engine
    self.transaction = engine.transaction
    with engine.transaction():
      for statement in _SCHEMA:
        engine.run(statement)
      self._keep("format", str(FORMAT))
      self._keep("id", uuid.uuid4().hex)
    about = self.about()
    if about["format"] != str(FORMAT):
      raise InputError(
        f"the store has format {about['format']}; expected {FORMAT}: use the "
        "version of hsrl_jax that made it, or another store"
      )
    self.id = about["id"]

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
    """What is known of the store itself: `format`, `id`, what `note` wrote."""
    return dict(self._engine.read("SELECT name, value FROM about", 2))

  def note(self, name: str, value: str, replace: bool = False) -> str:
    """Writes a value about the store, unless there is one; returns it."""
    with self.transaction():
      if replace:
        self._engine.run("DELETE FROM about WHERE name = ?", name)
      self._keep(name, value)
    return self.about()[name]

  def sessions(self, keys: list[tuple[str, str]]) -> list[Sequence]:
    """The last slates of sessions that are there.

    Args:
      keys: user_id and session_id of each.

    Returns:
      Rows of user_id, session_id, part, step, time, and 1 where the session
      ended.
    """
    last = (
      "SELECT l.request_id FROM slates l WHERE l.user_id = k.user_id "
      "AND l.session_id = k.session_id "
      "ORDER BY l.part DESC, l.step DESC LIMIT 1"
    )
    query = (
      "SELECT k.user_id, k.session_id, s.part, s.step, s.time, "
      "coalesce(s.terminated, 0) "
      f"FROM ({self._engine.rows(('user_id', 'session_id'))}) k "
      f"JOIN slates s ON s.request_id = ({last})"
    )
    return self._engine.read(query, 6, json.dumps(keys))

  def insert(self, rows: list[Sequence]) -> None:
    """Adds slates; each row has the columns SHOWN."""
    self._engine.run(
      f"INSERT INTO slates ({', '.join(SHOWN)}) {self._engine.rows(SHOWN)}",
      json.dumps(rows),
    )

  def find(self, request_ids: list[str]) -> list[Sequence]:
    """Rows of request_id and the arguments of `records.kept_of`."""
    later = (
      "NOT EXISTS (SELECT 1 FROM slates l WHERE l.user_id = s.user_id AND "
      "l.session_id = s.session_id AND l.part = s.part AND l.step > s.step)"
    )
    query = (
      "SELECT s.request_id, s.items, s.responses, s.reward, s.terminated, "
      f"s.closed, CASE WHEN s.session_id IS NULL OR {later} THEN 1 ELSE 0 END "
      f"FROM ({self._engine.rows(('request_id',))}) k "
      "JOIN slates s ON s.request_id = k.request_id"
    )
    return self._engine.read(query, 7, json.dumps([[x] for x in request_ids]))

  def update(self, rows: list[Sequence]) -> None:
    """Replaces what is known of slates; each row has the columns ANSWER."""
    names = [name for name in ANSWER if name != "request_id"]
    self._engine.run(
      f"UPDATE slates SET {', '.join(f'{x} = k.{x}' for x in names)} "
      f"FROM ({self._engine.rows(ANSWER)}) k "
      "WHERE slates.request_id = k.request_id",
      json.dumps(rows),
    )

  def close_done(self, before: float, most: int) -> int:
    """Closes slates that are answered, or ended, or were shown `before`.

    Args:
      before: seconds since 1970.
      most: slates that are closed.

    Returns:
      How many were closed; less than `most`: no more are left.
    """
    with self.transaction():
      ((last,),) = self._engine.read(
        "SELECT coalesce(max(closed), 0) FROM slates WHERE closed IS NOT NULL",
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

  def earned(self, arm: str, version: str) -> Sequence:
    """Sums over the users who answered slates of an arm and a version.

    Returns:
      Users, and the sums of r, n, r^2, r n and n^2, where r is what a user's
      slates earned and n how many they were.
    """
    query = (
      "SELECT count(*), coalesce(sum(r), 0), coalesce(sum(n), 0), "
      "coalesce(sum(r * r), 0), coalesce(sum(r * n), 0), "
      "coalesce(sum(n * n), 0) FROM ("
      "SELECT sum(earned) r, cast(count(*) AS double precision) n FROM slates "
      "WHERE arm = ? AND version = ? AND earned IS NOT NULL GROUP BY user_id) u"
    )
    return self._engine.read(query, 6, arm, version)[0]

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
      f"the store {path} cannot be opened ({_line(error)}); expected a file "
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
    why = _line(error)
    for piece in re.findall(r"[^:/@?&=]{3,}", url.rpartition("@")[0])[1:]:
      why = why.replace(piece, "***")
    raise InputError(
      f"the store in PostgreSQL cannot be opened ({why}); expected "
      "postgresql://USER:PASSWORD@HOST:PORT/DATABASE of a running server"
    ) from error


def _line(error: Exception) -> str:
  """The first line of an error: later ones name data of others."""
  return (str(error).splitlines() or [type(error).__name__])[0]
