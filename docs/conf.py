"""Sphinx: the pages of this folder, and an API reference of the docstrings.

python -m sphinx -W -b html docs build/docs
"""

import inspect
import pathlib
import re
import sys

import jax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "hsrl_jax"
sys.path.insert(0, str(ROOT))


def _reference(paths) -> str:
  """A section for each module, by their files."""
  modules = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(paths)
    if path.name != "__init__.py"
  ]
  return "\n".join(
    f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
    for name in modules
  )


def _fields(owner: type):
  """Yields a line of each field that has a comment, beside or above it."""
  above = []
  for line in inspect.getsource(owner).splitlines():
    comment = re.match("  # (.*)", line)
    field = re.match(r"  (\w+): [^#]*(?:  # (.*))?$", line)
    if field and (text := field[2] or " ".join(above)):
      yield f":ivar {field[1]}: {text}"
    above = [*above, comment[1]] if comment else []


def _plain(app, what, name, obj, options, lines) -> None:
  """Docstrings are plain text: bars, stars and a lone `B.` mark up nothing."""
  del app, name, options
  if what == "class" and obj.__module__.startswith("hsrl_jax"):
    lines += ["", *_fields(obj), ""]
  for i, line in enumerate(lines):
    parts = re.sub(r"(: )([A-Z]\.)$", r"\1\\\2", line).split("`")
    parts[::2] = [re.sub(r"([|*])", r"\\\1", x) for x in parts[::2]]
    lines[i] = "`".join(parts)


def _skip(app, what, name, obj, skip, options) -> bool:
  """Leaves out a NamedTuple's text on its fields, and the alias of arrays."""
  del app, what, name, options
  return skip or obj is jax.Array or type(obj).__name__ == "_tuplegetter"


def setup(app) -> None:
  app.connect("autodoc-process-docstring", _plain, priority=400)
  app.connect("autodoc-skip-member", _skip)


project = "hsrl_jax"
author = "the authors of hsrl_jax"
release = re.search(
  r'__version__ = "(.*)"', (PACKAGE / "__init__.py").read_text()
)[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["results"]
html_theme = "furo"
html_show_copyright = False
html_title = f"hsrl_jax {release}"

myst_enable_extensions = ["dollarmath", "substitution"]
myst_heading_anchors = 3
# {{ ops }} and the like, in api/: new modules come by themselves.
myst_substitutions = {
  folder.name: _reference(folder.rglob("*.py"))
  for folder in PACKAGE.iterdir()
  if folder.is_dir()
} | {"core": _reference(PACKAGE.glob("*.py"))}

default_role = "code"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
add_module_names = False
napoleon_use_ivar = True  # The class's docstring describes its fields.
