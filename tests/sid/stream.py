"""A stand-in for rows of a file, for tests of the quantizer and of SIDs."""


class Stream:
  """Rows that can only be read slice by slice; `largest` were read at once."""

  def __init__(self, x):
    self.x, self.shape, self.largest = x, x.shape, 0

  def __getitem__(self, rows):
    assert isinstance(rows, slice)
    part = self.x[rows]
    self.largest = max(self.largest, len(part))
    return part
