"""Tables and paragraphs for a terminal, at most 80 columns wide."""

import textwrap
from collections.abc import Sequence

WIDTH = 80


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
  """A table, with a rule below the first row, its head.

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
  return "\n".join(lines)


def filled(*paragraphs: str) -> str:
  """Paragraphs, broken into lines."""
  return "\n".join(textwrap.fill(x, WIDTH) for x in paragraphs)


def blocks(*parts: str) -> str:
  """Tables and paragraphs, an empty line between them; skips empty ones."""
  return "\n\n".join(filter(None, parts))


def mean(measure: dict | None, form: str = "{:z.2f}") -> str:
  """A measure's mean as `form` says; a dash where there is none."""
  value = (measure or {}).get("mean")
  return "-" if value is None else form.format(value)


def interval(measure: dict | None, form: str = "{:z.2f}") -> str:
  """`[low, high]` of a measure's `ci95`, each end as `form` says, or a dash."""
  low, high = (measure or {}).get("ci95") or (None, None)
  return "-" if low is None else f"[{form.format(low)}, {form.format(high)}]"


def cells(measure: dict | None, form: str = "{:z.2f}") -> tuple[str, str]:
  """Mean and interval of a measure; empty where there is none."""
  if measure is None:
    return "", ""
  return mean(measure, form), interval(measure, form)
