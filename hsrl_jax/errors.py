"""The one exception that a user's bad input raises."""


class InputError(Exception):
  """Bad input: one line that names what was found, expected, and what to do."""
