"""Rows of a file that may be larger than memory."""

import dataclasses
import math
import os
import pathlib

import numpy as np

from hsrl_jax import files


@dataclasses.dataclass(frozen=True)
class NpyRows:
  """Rows of a .npy file; each slice x[a:b] is read anew, as float32.

  Nothing is held between slices and the file is not mapped, whose pages would
  count as resident memory.

  Attributes:
    path: of the file.
    shape: (N, D).
    dtype: in the file.
    offset: bytes before the first row.
  """

  path: pathlib.Path
  shape: tuple[int, int]
  dtype: np.dtype
  offset: int

  def __len__(self) -> int:
    """N."""
    return self.shape[0]

  def __getitem__(self, rows: slice) -> np.ndarray:
    """Reads the rows of a slice of step 1, float32 [b - a, D].

    Values beyond the range of float32 become infinite.

    Raises:
      TypeError: not such a slice.
      ValueError: the file has become shorter since it was opened.
    """
    if not isinstance(rows, slice) or rows.step not in (None, 1):
      raise TypeError(f"rows are read as x[a:b], not as x[{rows!r}]")
    start, stop, _ = rows.indices(len(self))
    width = self.shape[1]
    values = np.empty(max(stop - start, 0) * width, self.dtype)
    with self.path.open("rb", buffering=0) as file:
      file.seek(self.offset + start * width * self.dtype.itemsize)
      view, done = values.view(np.uint8), 0
      while done < len(view):
        read = file.readinto(view[done:])
        if not read:
          raise ValueError(
            f"{self.path} ends before row {stop}; it was longer when it was "
            "opened: write it again"
          )
        done += read
    with np.errstate(over="ignore"):
      return values.reshape(-1, width).astype(np.float32, copy=False)


def open_npy(path: str | os.PathLike) -> NpyRows:
  """Opens float rows for `hsrl_jax.sid.fit` and its kin, reading the header.

  Args:
    path: of a .npy file with a float matrix [N, D] in C order.

  Raises:
    OSError: it cannot be read.
    ValueError: it is no .npy file, holds something else, is empty or is
      shorter than its header says.
  """
  path = pathlib.Path(path)
  with path.open("rb") as file:
    try:
      shape, dtype, fortran = files.read_header(file)
    except ValueError as error:
      raise ValueError(
        f"{path} is not a .npy file; write it with numpy.save"
      ) from error
    offset = file.tell()
  if len(shape) != 2 or dtype.kind != "f":
    raise ValueError(
      f"{path} holds {dtype} of shape {shape}; expected a float matrix [N, D]"
    )
  if not all(shape):
    raise ValueError(f"{path} is empty, of shape {shape}; expected [N, D]")
  if fortran:
    raise ValueError(
      f"{path} is in Fortran order, column by column; save it with "
      "numpy.ascontiguousarray"
    )
  expected = offset + math.prod(shape) * dtype.itemsize
  size = path.stat().st_size
  if size < expected:
    raise ValueError(
      f"{path} has {size} bytes, but its header says {shape}, {expected} "
      "bytes: it is truncated; write it again"
    )
  return NpyRows(path, shape, dtype, offset)
