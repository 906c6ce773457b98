"""The workdir of a run: whole folders, and which stages are complete."""

import contextlib
import errno
import fcntl
import fnmatch
import os
import pathlib
import shutil
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from typing import IO, NamedTuple

from hsrl_jax import files
from hsrl_jax.errors import InputError

FLAGS = "flags.txt"
LOCK = ".lock"
# What the system says where a user may not write.
_FORBIDDEN = (
  errno.EACCES,
  errno.EEXIST,
  errno.ENOTDIR,
  errno.EPERM,
  errno.EROFS,
)


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other processes' runs out of a workdir, or a folder of exports.

  The lock is the system's, which frees it when the process ends in whatever
  way; the file alone keeps nobody out.

  Raises:
    InputError: another process holds it; names the process.
  """
  path, new = workdir / LOCK, not workdir.exists()
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = _lock(path)
  except OSError as error:
    if error.errno not in _FORBIDDEN:
      raise
    yield  # Nobody can write there: what has to says so.
    return
  with file:
    try:
      _sign(file, path)
      yield
    finally:
      path.unlink(missing_ok=True)
      if new:
        with contextlib.suppress(OSError):
          workdir.rmdir()  # Where nothing was written.


def _sign(file: IO[str], path: pathlib.Path) -> None:
  """Says in a lock who holds it."""
  try:
    file.truncate(0)
    os.write(file.fileno(), f"{os.getpid()} on {socket.gethostname()}".encode())
  except OSError as error:
    error.filename = str(path)  # A full disk names no file.
    raise


def _lock(path: pathlib.Path):
  """The open file, locked where the file system has locks."""
  while True:
    file = path.open("a+")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        file.seek(0)
        name = file.read()  # Empty while it is written.
      holder = f"process {name}" if name else "another process"
      raise InputError(
        f"{path.parent} is in use by {holder}; expected no other run: "
        "wait for its end, or use another folder"
      ) from None
    except OSError as error:
      print(
        f"warning: {path} cannot be locked ({error.strerror}); make sure that "
        "no other run writes there",
        file=sys.stderr,
      )
      return file
    # Its last holder may have removed it between the two lines above.
    if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
      return file
    file.close()


class Kind(NamedTuple):
  """A kind of folder that is replaced as a whole."""

  name: str  # With its article, for people.
  # Patterns of the names of all files that such a folder may hold.
  files: tuple[str, ...]
  # Whether the files of a folder are those of a complete one.
  is_complete: Callable[[pathlib.Path], bool]

  def stranger(self, folder: pathlib.Path) -> str | None:
    """The name of an entry that is no file of this kind; None: there is none.

    A file that `files.write_atomic` did not finish counts as one of the kind.
    """
    patterns = [x for p in self.files for x in (p, f".{p}.*")]
    for path in sorted(folder.iterdir()):
      known = any(fnmatch.fnmatchcase(path.name, x) for x in patterns)
      if not known or path.is_symlink() or not path.is_file():
        return path.name
    return None


@contextlib.contextmanager
def replace_folder(folder: pathlib.Path, kind: Kind) -> Iterator[pathlib.Path]:
  """Yields a new folder, which takes the place of `folder` at the end.

  Its files belong together, so all of them change or none. A folder cannot be
  renamed over another with files in it; the old one steps aside first, and is
  removed when the new one is in place. `settle` puts right what a crash
  between the two renames leaves.

  Args:
    folder: see `check_replaceable`.
    kind: of the folder.

  Raises:
    InputError: something else is in that place; nothing was changed.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  check_replaceable(folder, kind)
  settle(folder, kind)
  new, old = _aside(folder)
  new.mkdir(parents=True)
  try:
    yield new
    for path in new.iterdir():
      with path.open("rb") as file:
        os.fsync(file.fileno())
    check_replaceable(folder, kind)
  except BaseException as error:
    shutil.rmtree(new)
    if isinstance(error, OSError):
      error.filename = error.filename or str(folder)
    raise
  if folder.exists():
    folder.rename(old)
  new.rename(folder)
  shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: pathlib.Path, kind: Kind) -> None:
  """Checks that nothing is lost where `replace_folder` writes.

  Args:
    folder: is missing, empty, or a complete folder of the kind and no more.
    kind: of the folder.

  Raises:
    InputError: something else is there.
  """
  folder = pathlib.Path(os.path.abspath(folder))
  if folder.is_symlink():
    what = "is a symbolic link"
  elif not folder.exists():
    return
  elif not folder.is_dir():
    what = "is no folder"
  elif not any(folder.iterdir()):
    return
  elif stranger := kind.stranger(folder):
    what = f"holds {stranger!r}, which is not of {kind.name}"
  elif not kind.is_complete(folder):
    what = f"is not {kind.name} of hsrl_jax"
  else:
    return
  raise InputError(
    f"{folder} {what}; expected a folder that is missing, empty, or "
    f"{kind.name} alone, since it is replaced: choose another one, or move "
    "away what is there"
  )


def settle(folder: pathlib.Path, kind: Kind) -> None:
  """Puts right what a crash in `replace_folder` left.

  Raises:
    InputError: what lies where such a crash would leave something is not ours.
  """
  new, old = _aside(folder)
  for path in (new, old):
    if path.is_symlink() or (
      path.exists() and (not path.is_dir() or kind.stranger(path))
    ):
      raise InputError(
        f"{path} is not what an interrupted write of {folder.name} leaves; "
        "expected nothing there: move it away"
      )
  if old.exists() and not folder.exists():
    # The old one stepped aside, so the new is complete.
    (new if new.exists() else old).rename(folder)
  for path in (new, old):
    shutil.rmtree(path, ignore_errors=True)


def is_done(
  workdir: pathlib.Path, stage: str, fingerprint: str, again: bool = False
) -> bool:
  """Whether the stage is complete with this configuration.

  Raises:
    InputError: it is complete, but with another one, and not to be done
      `again`.
  """
  path = _marker(workdir, stage)
  if not path.exists():
    return False
  kept = path.read_text().strip()
  if kept != fingerprint and not again:
    raise InputError(
      f"{workdir}: stage {stage} was made with another configuration "
      f"({kept}, now {fingerprint}); expected the same: use a new workdir"
    )
  return kept == fingerprint


def mark_done(workdir: pathlib.Path, stage: str, fingerprint: str) -> None:
  """Marks a stage as complete; the last thing that a stage writes."""
  files.write_atomic(_marker(workdir, stage), fingerprint + "\n")


def claim(
  workdir: pathlib.Path,
  flags: dict[str, str],
  given: Collection[str] | None = None,
  of_data: Collection[str] = (),
  changes: bool = False,
  later: Collection[str] = (),
) -> None:
  """Keeps the flags of a new workdir; in an old one those given must be equal.

  A workdir counts as new until a stage beyond `data` has left something, so
  that a mistyped size can be put right.

  Args:
    workdir: where the run writes.
    flags: name to value, of all flags that decide what is computed.
    given: the names of those that are compared; None: all.
    of_data: the names of those that hold once stage `data` is complete.
    changes: whether those that are not compared may change later, such as what
      an experiment compares.
    later: the names of those that are read anew after the training, so that
      they may change among the compared.

  Raises:
    InputError: the workdir was made with other flags, or cannot be written.
  """
  path = workdir / FLAGS
  old = kept_flags(workdir)
  compared = old.keys() | flags.keys() if given is None else {*given}
  if old and _has_outputs(workdir):
    _check_same(workdir, old, flags, compared - {*later})
    if not changes:
      own = {x: flags[x] for x in compared & {*later} & flags.keys()}
      flags = old | own
    if flags == old:
      return
  elif old and _marker(workdir, "data").exists():
    _check_same(workdir, old, flags, compared & {*of_data})
  try:
    files.write_atomic(path, flag_lines(flags))
  except OSError as error:
    if error.errno not in _FORBIDDEN:
      raise
    raise InputError(
      f"the workdir {workdir} cannot be written ({error.strerror}); expected a "
      "folder that this user may write to"
    ) from error


@contextlib.contextmanager
def unclaimed_on_error(workdir: pathlib.Path) -> Iterator[None]:
  """Takes back what `claim` wrote inside where bad input ended the run.

  Flags that were refused are none to go on with. They stay where a stage has
  left something that was made with them.
  """

  def state():
    return _has_outputs(workdir), _marker(workdir, "data").exists()

  path, started = workdir / FLAGS, state()
  before = _flags_text(workdir)
  try:
    yield
  except InputError:
    if state() == started:
      if before is None and path.exists():
        path.unlink()
      elif before is not None and path.read_text() != before:
        files.write_atomic(path, before)
    raise


def agree(
  workdir: pathlib.Path, flags: dict[str, str], given: Collection[str]
) -> None:
  """Raises InputError where a flag in `given` differs from what claim kept."""
  _check_same(workdir, kept_flags(workdir), flags, given)


def flag_lines(flags: dict[str, str]) -> str:
  """The text of a flagfile: name to value, in the order of the names."""
  return "".join(f"--{name}={flags[name]}\n" for name in sorted(flags))


def kept_flags(workdir: pathlib.Path) -> dict[str, str]:
  """Name to value of the flags that claim kept; none for a new workdir."""
  text = _flags_text(workdir) or ""
  lines = [line.split("=", 1) for line in text.splitlines()]
  return {x[0].removeprefix("--"): x[1] for x in lines if len(x) == 2}


def _flags_text(workdir: pathlib.Path) -> str | None:
  """The flags that `claim` kept; None for a new or released workdir."""
  try:
    return (workdir / FLAGS).read_text(errors="replace")
  except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
    return None


def _has_outputs(workdir: pathlib.Path) -> bool:
  """Whether a stage beyond `data` has left something."""
  outputs = ("sids", "simulator", "policy", "shared", "results.json")
  return any((workdir / name).exists() for name in outputs)


def _check_same(workdir: pathlib.Path, old, new, names) -> None:
  changed = [
    f"--{name} was {old.get(name, 'unset')}, now {new.get(name, 'unset')}"
    for name in sorted(names)
    if old.get(name) != new.get(name)
  ]
  if changed:
    raise InputError(
      f"{workdir} belongs to another configuration: {'; '.join(changed)}; "
      "expected the same flags: leave them out, or use a new workdir"
    )


def _aside(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Where a folder's next and last version lie while they are exchanged."""
  return tuple(folder.with_name(f".{folder.name}.{x}") for x in ("new", "old"))


def _marker(workdir: pathlib.Path, stage: str) -> pathlib.Path:
  return workdir / ".done" / stage
