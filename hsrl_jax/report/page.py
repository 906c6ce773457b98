"""The reports' pages: the templates beside this file, filled in.

A page needs nothing from outside: style and pictures are part of its text.
Every value is escaped.
"""

import base64
import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
  """A page.

  Args:
    template: name of a file in `templates/`.
    **values: what the template names.

  Raises:
    jinja2.UndefinedError: the template names something else.
  """
  return _environment().get_template(template).render(values)


def number(value: float | None, form: str) -> str:
  """A number as the format string `form` says; a dash where it is None."""
  return "–" if value is None else form.format(value)


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader("hsrl_jax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
  )
  environment.filters["number"] = number
  environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
  return environment
