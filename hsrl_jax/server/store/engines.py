"""SQLite and PostgreSQL: what differs between them, and how they fail."""

import contextlib
import json
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

WAIT = 5.0  # Seconds for another process to finish its transaction.
# Classes of its errors: no connection, locked, shut down.
_AWAY = ("08", "55", "57")

# Name to type of each column. `part` counts sessions of one session_id, of
# which a new one begins after an end; `unanswered` counts places without a
# response; `closed` numbers the slates that were collected, from 1.
COLUMNS = {
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


class StoreError(Exception):
  """The store cannot take this now; nothing of it is kept."""


class Away(StoreError):
  """The store takes nothing now, whatever it is."""


class Conflict(StoreError):
  """Another transaction changed what this one read; nothing of it is kept."""


class Undecided(StoreError):
  """The store may have kept all of this, or nothing."""


class Sqlite:
  """An embedded database: a file, with a write-ahead log beside it."""

  writer = "0"  # A number that writers at the same time do not share.

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
    """Commits durably at the end, or nothing; others' writes wait.

    Raises:
      Away: nothing can be committed.
      StoreError: this could not be committed.
      Undecided: whether it was committed is not known.
    """
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
    """A query of the rows in a parameter: a JSON list of lists, by names."""
    fields = [f"json_extract(value, '$[{i}]') {x}" for i, x in enumerate(names)]
    return f"SELECT {', '.join(fields)} FROM json_each(?)"

  def read(self, query: str, width: int, *parameters: Any) -> list[Sequence]:
    """Rows of a query with `width` columns; parameters are written as ?."""
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
    """Runs a statement; returns how many rows it changed."""
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

  writer = "pg_backend_pid()"

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
    # Who writes a row that was written since the transaction began, fails.
    level = self._psycopg.IsolationLevel.REPEATABLE_READ
    self._connection.isolation_level = level
    self.run(f"SET lock_timeout = '{WAIT:g}s'")
    # Rows are found by keys, whatever statistics say of tables that grow.
    for other in ("seqscan", "hashjoin", "mergejoin"):
      self.run(f"SET enable_{other} = off")

  @contextlib.contextmanager
  def transaction(self) -> Iterator[None]:
    """As that of Sqlite, while others write: or it raises Conflict."""
    commits = False
    try:
      if self._connection.closed:  # The database was restarted, say.
        self._connect()
      with self._connection.transaction():
        yield
        commits = True
    except self._psycopg.Error as error:
      if commits and error.sqlstate is None:  # The connection was lost.
        raise Undecided(line(error)) from error
      raise self._error(error) from error

  def _error(self, error: Exception) -> StoreError:
    """Whether the database is not there, or others wrote, or it refuses."""
    state = error.sqlstate or ""
    twice = isinstance(error, self._psycopg.errors.UniqueViolation)
    # A record that comes again will always be there.
    twice = twice and error.diag.constraint_name != "slates_pkey"
    if twice or state.startswith("40"):
      return Conflict(line(error))
    away = isinstance(error, self._psycopg.OperationalError)
    away = away and (state or "08")[:2] in _AWAY
    return (Away if away else StoreError)(line(error))

  def rows(self, names: Sequence[str]) -> str:
    fields = []
    for place, name in enumerate(names):
      kind = " ".join(x for x in COLUMNS[name].split() if x.islower())
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


def line(error: Exception) -> str:
  """The first line of an error: later ones name data of others."""
  return (str(error).splitlines() or [type(error).__name__])[0]
