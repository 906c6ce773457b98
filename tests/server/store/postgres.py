"""A real PostgreSQL server for tests, where one is installed."""

import atexit
import contextlib
import functools
import importlib.util
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile
import time

_USERS = ("postgres", "nobody")  # The server refuses to run as root.


def programs() -> pathlib.Path | None:
  """The folder of initdb and postgres; None: not installed."""
  found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"))
  path = str(found[-1]) if found else shutil.which("initdb")
  return pathlib.Path(path).parent if path else None


def _account() -> dict:
  """Arguments of subprocess that make it another user's, where we are root."""
  if os.geteuid():
    return {}
  for name in _USERS:
    with contextlib.suppress(KeyError):
      user = pwd.getpwnam(name)
      return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
  raise RuntimeError("no user to run postgres as")


class Cluster:
  """A server with a data folder of its own, which goes when it ends."""

  def __init__(self, programs: pathlib.Path, durable: bool = False):
    """Makes the data and starts the server on loopback.

    Args:
      programs: folder of initdb and postgres.
      durable: whether a commit waits for the disk.
    """
    self._programs, self._account = programs, _account()
    self._sync = "on" if durable else "off"
    self._folder = pathlib.Path(tempfile.mkdtemp(prefix="pg"))
    if self._account:
      os.chown(self._folder, self._account["user"], self._account["group"])
    self.data = self._folder / "data"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(
      [programs / "initdb", "-D", self.data, "-U", "hsrl", "--auth=trust"]
      + ["--no-locale", "--encoding=UTF8", "--no-sync"],
      check=True,
      cwd=self._folder,
      **quiet,
      **self._account,
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
      self.port = free.getsockname()[1]
    self.start()

  def start(self) -> None:
    """Starts the server, and waits until it answers."""
    self._process = subprocess.Popen(
      [self._programs / "postgres", "-D", self.data, "-p", str(self.port)]
      + ["-h", "127.0.0.1", "-k", self._folder, "-c", f"fsync={self._sync}"],
      cwd=self._folder,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      **self._account,
    )
    end = time.monotonic() + 60
    ready = [self._programs / "pg_isready", "-q", "-h", "127.0.0.1"]
    while subprocess.run([*ready, "-p", str(self.port)]).returncode:
      if time.monotonic() > end or self._process.poll() is not None:
        raise TimeoutError("postgres does not start")
      time.sleep(0.05)

  def stop(self) -> None:
    """Ends the server at once; what was committed stays."""
    self._process.send_signal(3)  # SIGQUIT.
    self._process.wait(60)

  def url(self, name: str) -> str:
    """Of a database, which is made."""
    subprocess.run(
      [self._programs / "createdb", "-h", "127.0.0.1", "-U", "hsrl"]
      + ["-p", str(self.port), name],
      check=True,
    )
    return f"postgresql://hsrl@127.0.0.1:{self.port}/{name}"

  def remove(self) -> None:
    """Stops the server and removes its data."""
    self.stop()
    shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def cluster() -> Cluster:
  """One server for all tests of a process."""
  server = Cluster(programs())
  atexit.register(server.remove)
  return server


@contextlib.contextmanager
def database(test):
  """Yields the URL of a new database; skips the test where there is none."""
  if programs() is None or importlib.util.find_spec("psycopg") is None:
    test.skipTest("PostgreSQL or psycopg is not installed")
  yield cluster().url(f"t{time.monotonic_ns()}")
