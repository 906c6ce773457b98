"""Tables and paragraphs for a terminal, at most 80 columns wide."""

import textwrap
from collections.abc import Sequence

WIDTH = 80


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
  """Lines of a table, with a rule below the first row, its head.

  Args:
    rows: cells, the same number in each row.
    left: the first columns, so many, are aligned left; the others right.
  """
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    "  ".join(
      cell.ljust(width) if i < left else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]
  lines.insert(1, "-" * len(lines[0]))
  return lines


def filled(text: str) -> str:
  """A paragraph, broken into lines."""
  return textwrap.fill(text, WIDTH)


def mean(measure: dict | None, form: str = "{:z.2f}") -> str:
  """A measure's mean as `form` says; a dash where there is none."""
  value = (measure or {}).get("mean")
  return "-" if value is None else form.format(value)


def interval(measure: dict, form: str = "{:z.2f}") -> str:
  """`[low, high]` of a measure's `ci95`, each end as `form` says, or a dash."""
  if measure["ci95"][0] is None:
    return "-"
  low, high = (form.format(x) for x in measure["ci95"])
  return f"[{low}, {high}]"


def cells(measure: dict | None, form: str = "{:z.2f}") -> tuple[str, str]:
  """Mean and interval of a measure; empty where there is none."""
  if measure is None:
    return "", ""
  return mean(measure, form), interval(measure, form)
