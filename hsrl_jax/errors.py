"""The one exception that a user's bad input raises, and how it is told."""

import contextlib
import pathlib
import re
from collections.abc import Iterator

# Where the password of a database's URL begins and ends, and one by itself.
_PASSWORD = re.compile(
  r"(postgres\w*:/*|://).*@|(password=)[^&\s]*", re.S | re.I
)


class InputError(Exception):
  """Bad input: one line that names what was found, expected, and what to do."""


def line(error: object) -> str:
  """The one line that a command prints of an error; it names no password."""
  return f"error: {' '.join(masked(str(error)).split())}"


def masked(text: str) -> str:
  """Returns a text with *** for users and passwords of databases in it."""
  return _PASSWORD.sub(
    lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text
  )


def check_regular(path: pathlib.Path, expected: str) -> None:
  """Raises InputError where a path is a FIFO or a device, which may hang."""
  if path.exists() and not (path.is_file() or path.is_dir()):
    raise InputError(
      f"{path} is no regular file; expected {expected}, in a regular file"
    )


@contextlib.contextmanager
def reading(source: object, expected: str) -> Iterator[None]:
  """Turns any error of a reader into an InputError that names the source.

  Use it around the call of a reader alone: json, numpy, csv, pyarrow and their
  kin raise errors of many types about a file that is damaged.

  Args:
    source: path of the file, for people.
    expected: what should be there, such as "a complete .csv file".

  Raises:
    InputError: the reader's own, or one in place of any other exception; or
      the source is a path of a FIFO or a device.
  """
  if isinstance(source, pathlib.Path):
    check_regular(source, expected)
  try:
    yield
  except InputError:
    raise
  except FileNotFoundError as error:
    raise InputError(f"{source} is missing; expected {expected}") from error
  except KeyError as error:
    raise InputError(f"{source} lacks {error}; expected {expected}") from error
  except UnicodeDecodeError as error:
    raise InputError(
      f"{source} has the byte {error.object[error.start]:#04x}, which is not "
      f"{error.encoding}; expected {expected} in {error.encoding}"
    ) from error
  except Exception as error:  # noqa: BLE001 (any reader error is bad input)
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{source} cannot be read ({what}); expected {expected}"
    ) from error
