"""Docstrings as the one place for what a setting means."""

import inspect
import re
import sys


def attribute(documented: type, name: str) -> str:
  """The text of an attribute in the `Attributes:` of a class's docstring.

  The class may inherit it.

  Returns:
    The text in one line; empty where Python runs without docstrings (-OO).
  """
  owner = next(
    x for x in documented.__mro__ if name in inspect.get_annotations(x)
  )
  # Before Python 3.13 __doc__ is indented as in the file.
  _, _, text = (inspect.getdoc(owner) or "").partition("Attributes:")
  if not text and sys.flags.optimize >= 2:
    return ""
  lines = re.search(rf"^  {name}: (.*?)(?=^  \w+: |\Z)", text, re.M | re.S)
  return " ".join(lines[1].split())
