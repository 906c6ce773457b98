"""The rules of the house: layers, sizes, and who may name agents and flags."""

import ast
import functools
import pathlib
import re

from absl import flags
from absl.testing import absltest, parameterized

from hsrl_jax import agents
from hsrl_jax import flags as flags_lib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "hsrl_jax"

# Lowest first.
LAYERS = (
  (
    "types",
    "checked",
    "session_config",
    "config",
    "errors",
    "files",
    "docstrings",
    "shipped",
  ),
  ("ops",),
  ("sid",),
  ("data", "serving", "server"),
  ("networks",),
  ("sim",),
  ("agents",),
  ("settings",),
  ("engine",),
  ("evaluation",),
  ("host",),
  ("report",),
  ("stages",),
  ("api", "environments"),
  ("experiments",),
  ("flags",),  # Only what starts a run may see flags.
  ("command",),
  ("launch",),
  ("studies",),  # Nothing else knows them.
)
# Modules of `agents` that are no agent.
SHARED = (
  *(["base"], ["next_item"]),
  *(["baselines", x] for x in ("latent", "scored", "outlook")),
)
# Groups that see less than what is below them.
ONLY = {
  "flags": {
    "agents",
    "checked",
    "config",
    "errors",
    "docstrings",
    "experiments",
    "settings",
  },
  # What is served needs jax and numpy alone.
  "serving": {"types", "errors", "files", "docstrings", "sid", "serving"},
  "server": {"errors", "files", "docstrings", "serving", "server"},
}

# The most lines of the package with `datasets/`, of a file, and of a function
# without its docstring.
PACKAGE_LINES, FILE_LINES, FUNCTION_LINES = 44_180, 500, 80
# Groups with flax modules.
FLAX = {"networks", "agents", "studies"}
# Groups that may name agents, and flags of the command, in their strings.
NAMES_AGENTS = {"agents", "experiments", "studies"}
NAMES_FLAGS = {"launch", "command", "flags", "stages", "studies"}
# Rules that are broken, each as `broken_rules` says it, with the reason.
_ADVICE = "its errors say which command to run"
EXCEPTIONS = {
  "hsrl_jax.data.item_vectors names flags": _ADVICE,
  "hsrl_jax.data.manifest names flags": _ADVICE,
  "hsrl_jax.data.prepare names flags": _ADVICE,
  "hsrl_jax.experiments.benchmark names flags": _ADVICE,
  "hsrl_jax.experiments.entrants names flags": _ADVICE,
  "hsrl_jax.experiments.results names flags": _ADVICE,
  "hsrl_jax.report.sid_page names flags": _ADVICE,
  "hsrl_jax.serving.catalogue names flags": _ADVICE,
  "hsrl_jax.serving.folder names flags": _ADVICE,
  "hsrl_jax.serving.recommender names flags": _ADVICE,
  "hsrl_jax.serving.request names flags": _ADVICE,
  "hsrl_jax.sim.click_model names flags": _ADVICE,
}

_LEVEL = {group: level for level, names in enumerate(LAYERS) for group in names}


def imported_names(tree: ast.Module, module: str, is_package: bool):
  """Yields the dotted name of everything that a module imports."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        parts = module.split(".")
        up = node.level - is_package
        parent = parts[: len(parts) - up]
        base = ".".join([*parent, base]).rstrip(".")
      yield from (f"{base}.{alias.name}" for alias in node.names)


def _attribute(node: ast.Attribute) -> str:
  parts = [node.attr]
  while isinstance(node.value, ast.Attribute):
    node = node.value
    parts.append(node.attr)
  if isinstance(node.value, ast.Name):
    parts.append(node.value.id)
  return ".".join(reversed(parts))


def _agent(path: list[str]) -> list[str]:
  """The agent whose module it is, as a folder or file of `agents`."""
  return path[2 : 4 if path[2:3] == ["baselines"] else 3]


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
  """What a module, such as `hsrl_jax.ops.tree`, does against the layering."""
  tree = ast.parse(source)
  path = module.split(".")
  group = path[1] if len(path) > 1 else None
  broken = []
  if group is not None and group not in _LEVEL:
    return [f"{module}: no layer is known of {group}; add it to LAYERS"]

  names = list(imported_names(tree, module, is_package))
  for name in names:
    parts = name.split(".")
    if parts[0] == PACKAGE:
      target = parts[1] if len(parts) > 1 else None
      if group is None or target not in _LEVEL:
        if target != "__version__":
          broken.append(f"{module} imports {name}")
        continue
      allowed = _LEVEL[target] <= _LEVEL[group]
      if group in ONLY:
        allowed = target in ONLY[group]
      if target == "launch" and group != "studies" or not allowed:
        broken.append(f"{module} imports {name}, which is above it")
      in_agent = group == target == "agents" and path[2:] not in ([], *SHARED)
      if in_agent and _agent(parts) not in (_agent(path), *SHARED):
        broken.append(f"{module} imports {name} of another agent")
    if name.startswith("orbax") and module != f"{PACKAGE}.engine.checkpoint":
      broken.append(f"{module} imports orbax")
    if name.startswith("flax.linen") and group not in FLAX:
      broken.append(f"{module} imports flax.linen")
    if name == "jax.pmap" and module != f"{PACKAGE}.engine.parallel":
      broken.append(f"{module} imports jax.pmap")

  for node in ast.walk(tree):
    if not isinstance(node, ast.Attribute):
      continue
    name = _attribute(node)
    if name == "jax.pmap" and module != f"{PACKAGE}.engine.parallel":
      broken.append(f"{module} mentions jax.pmap")
    if name in ("nn.Module", "flax.linen", "linen.Module") and (
      group not in FLAX
    ):
      broken.append(f"{module} mentions {name}")
  return broken


@functools.cache
def _agents() -> frozenset[str]:
  """Names of all agents but those that are words of other things too."""
  return frozenset(agents.AGENTS) - {"random", "popularity"}


@functools.cache
def _flags() -> frozenset[str]:
  """Names of the flags of the command."""
  defined = flags.FLAGS.flags_by_module_dict()[flags_lib.__name__]
  return frozenset(flag.name for flag in defined)


def broken_rules(module: str, source: str, is_package=False) -> list[str]:
  """Rules for one file that it breaks: its sizes, its strings, a docstring."""
  tree, group = ast.parse(source), module.split(".")[1:2] or [""]
  broken = []
  if len(source.splitlines()) > FILE_LINES:
    broken.append(f"{module} is too long")
  if is_package and ast.get_docstring(tree) is None:
    broken.append(f"{module} does not say what it holds")
  functions = (ast.FunctionDef, ast.AsyncFunctionDef)
  docstrings = set()
  for node in ast.walk(tree):
    if not isinstance(node, (ast.Module, ast.ClassDef, *functions)):
      continue
    documented = ast.get_docstring(node) is not None
    first = node.body[0] if documented else None
    if documented:
      docstrings.add(first.value)
    if isinstance(node, functions):
      lines = node.end_lineno - node.lineno + 1
      if documented:
        lines -= first.end_lineno - first.lineno + 1
      if lines > FUNCTION_LINES:
        broken.append(f"{module}.{node.name} is too long")
  texts = [
    node.value
    for node in ast.walk(tree)
    if isinstance(node, ast.Constant)
    and isinstance(node.value, str)
    and node not in docstrings
  ]
  if group[0] not in NAMES_AGENTS and _agents() & {*texts}:
    broken.append(f"{module} names agents")
  dashed = set(re.findall(r"(?<![\w-])--(\w+)", "\n".join(texts)))
  if group[0] != "studies" and f"{PACKAGE}.studies" in " ".join(texts):
    broken.append(f"{module} names studies")
  if group[0] not in NAMES_FLAGS and _flags() & dashed:
    broken.append(f"{module} names flags")
  return broken


def package_lines() -> int:
  """Lines of the package and of the builders of datasets."""
  return sum(
    len(path.read_text().splitlines())
    for folder in (PACKAGE, "datasets")
    for path in (ROOT / folder).rglob("*.py")
  )


def _modules():
  for path in sorted((ROOT / PACKAGE).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    yield ".".join(parts[: len(parts) - is_package]), path, is_package


def _function(lines: int, indent: int = 0, docstring: int = 0) -> str:
  """A function of so many lines, and a docstring of some more."""
  text = ["def f():"]
  if docstring:
    text += ['  """' + "\n" * (docstring - 1) + '"""']
  text += ["  x = 1"] * (lines - 1)
  return "\n".join(" " * indent + line for line in text)


class SizesAndNamesTest(parameterized.TestCase):
  def test_the_package_keeps_the_rules(self):
    modules = list(_modules())
    broken = [
      line
      for module, path, is_package in modules
      for line in broken_rules(module, path.read_text(), is_package)
    ]
    self.assertEmpty(set(broken) - set(EXCEPTIONS))
    mended = set(EXCEPTIONS) - set(broken)
    self.assertEmpty(mended, "These exceptions are needed no longer.")

  @parameterized.parameters(
    ("x = 1\n" * 501, "hsrl_jax.ops.tree is too long"),
    (_function(81), "hsrl_jax.ops.tree.f is too long"),
    ("class A:\n" + _function(81, 2), "hsrl_jax.ops.tree.f is too long"),
    ("async " + _function(81), "hsrl_jax.ops.tree.f is too long"),
    ("x = y == 'hsrl'", "hsrl_jax.ops.tree names agents"),
    ("x = {'a2c': 1}", "hsrl_jax.ops.tree names agents"),
    ("x = 'run --mode=data'", "hsrl_jax.ops.tree names flags"),
    ("x = f'use {y}: --sid_levels'", "hsrl_jax.ops.tree names flags"),
    ("x = 'hsrl_jax.studies.workers'", "hsrl_jax.ops.tree names studies"),
  )
  def test_a_bad_module_is_caught(self, source, line):
    self.assertEqual(broken_rules("hsrl_jax.ops.tree", source), [line])

  @parameterized.parameters(
    ("hsrl_jax.ops.tree", "x = 1\n" * 500),
    ("hsrl_jax.ops.tree", _function(80)),
    ("hsrl_jax.ops.tree", _function(80, docstring=40)),
    ("hsrl_jax.ops.tree", '"""Of --mode and "hsrl"."""'),
    ("hsrl_jax.ops.tree", "x = 'random', 'made of hsrl', '--accent: 1'"),
    ("hsrl_jax.agents.hac", "x = 'hac'"),
    ("hsrl_jax.experiments.jobs", "x = 'hac'"),
    ("hsrl_jax.launch", "x = '--mode'"),
    ("hsrl_jax.stages.run", "x = '--mode'"),
  )
  def test_a_good_module_passes(self, module, source):
    self.assertEmpty(broken_rules(module, source))

  @parameterized.parameters("", "x = 1", "from hsrl_jax.ops import tree")
  def test_a_package_says_what_it_holds(self, source):
    self.assertEqual(
      broken_rules("hsrl_jax.ops", source, is_package=True),
      ["hsrl_jax.ops does not say what it holds"],
    )
    documented = f'"""Maths."""\n{source}'
    self.assertEmpty(broken_rules("hsrl_jax.ops", documented, is_package=True))

  def test_no_docstring_begins_with_what(self):
    """Those which did were riddles."""
    for folder in (PACKAGE, "datasets", "launch"):
      for path in (ROOT / folder).rglob("*.py"):
        self.assertNotRegex(path.read_text(), r'"""What\b', path)

  def test_the_package_keeps_its_budget(self):
    self.assertBetween(package_lines(), 20_000, PACKAGE_LINES)


class SlowTest(absltest.TestCase):
  def test_every_mark_takes_effect(self):
    """Above a decorator of `parameterized` a mark would be lost."""
    lost = re.compile(r"@pytest\.mark\.\w+\n\s*@parameterized")
    self.assertRegex("@pytest.mark.slow\n  @parameterized.parameters(1)", lost)
    for path in (ROOT / "tests").rglob("*_test.py"):
      self.assertNotRegex(path.read_text(), lost, path.name)


class LayersTest(parameterized.TestCase):
  def test_the_package_keeps_its_layers(self):
    modules = list(_modules())
    self.assertGreater(len(modules), 20)
    broken = [
      line
      for module, path, is_package in modules
      for line in violations(module, path.read_text(), is_package)
    ]
    self.assertEmpty(broken, "\n".join(["", *broken]))

  @parameterized.parameters(
    ("hsrl_jax.ops.tree", "from hsrl_jax.sid import index"),
    ("hsrl_jax.ops.tree", "import hsrl_jax.networks.critic"),
    ("hsrl_jax.ops.tree", "from ..sid import index"),
    ("hsrl_jax.ops.tree", "from ..sid.index import build"),
    ("hsrl_jax.types", "def f():\n  from hsrl_jax.ops import tree"),
    ("hsrl_jax.networks.encoder", "from hsrl_jax.sim import user_simulator"),
    ("hsrl_jax.sim.x", "from hsrl_jax import engine"),
    ("hsrl_jax.engine.loop", "from hsrl_jax import launch"),
    ("hsrl_jax.engine.loop", "from hsrl_jax import flags"),
    ("hsrl_jax.stages.run", "from hsrl_jax.experiments import jobs"),
    ("hsrl_jax.experiments.jobs", "from hsrl_jax import flags"),
    ("hsrl_jax.launch", "import hsrl_jax.launch"),
    ("hsrl_jax.launch", "from hsrl_jax import studies"),
    ("hsrl_jax.experiments.jobs", "from hsrl_jax.studies import registry"),
    ("hsrl_jax.agents", "from hsrl_jax.studies.published import agent"),
    ("hsrl_jax.serving.x", "from hsrl_jax.data import source"),
    ("hsrl_jax.sid.index", "from hsrl_jax import serving"),
    ("hsrl_jax.flags", "from hsrl_jax.types import Array"),
    ("hsrl_jax.flags", "from hsrl_jax.engine import loop"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.mine import losses"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents import mine"),
    ("hsrl_jax.agents.hsrl.agent", "from ..mine import losses"),
    ("hsrl_jax.agents.baselines.td3", "from . import ddpg"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.baselines import hac"),
    ("hsrl_jax.engine.loop", "import jax\nf = jax.pmap(print)"),
    ("hsrl_jax.engine.loop", "from jax import pmap"),
    ("hsrl_jax.engine.loop", "import orbax.checkpoint as ocp"),
    ("hsrl_jax.engine.loop", "from orbax.checkpoint import v1"),
    ("hsrl_jax.sim.dynamics", "import flax.linen as nn"),
    ("hsrl_jax.sim.dynamics", "from flax import linen"),
    ("hsrl_jax.sim.dynamics", "import flax\nx = flax.linen.Dense"),
    ("hsrl_jax.sim.dynamics", "class A(nn.Module):\n  pass"),
    ("hsrl_jax.unheard", "import jax"),
  )
  def test_a_bad_module_is_caught(self, module, source):
    self.assertNotEmpty(violations(module, source))

  @parameterized.parameters(
    ("hsrl_jax.ops.tree", "from hsrl_jax.types import Array\nimport jax"),
    ("hsrl_jax.ops.tree", "from . import masking"),
    ("hsrl_jax.networks.encoder", "import flax.linen as nn\nx = nn.Module"),
    ("hsrl_jax.agents.mine", "import flax.linen as nn\nx = nn.Module"),
    ("hsrl_jax.agents.baselines.td3", "from . import latent"),
    ("hsrl_jax.engine.parallel", "import jax\nf = jax.pmap(print)"),
    ("hsrl_jax.engine.checkpoint", "from orbax.checkpoint import v1"),
    ("hsrl_jax.sid.index", "from flax import struct"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.hsrl import losses"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents import base"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.base import Agent"),
    ("hsrl_jax.flags", "from absl import flags\nfrom hsrl_jax import config"),
    ("hsrl_jax.launch", "from hsrl_jax import flags"),
    ("hsrl_jax.studies.workers", "from hsrl_jax import launch"),
    ("hsrl_jax.config", "from hsrl_jax.errors import InputError"),
  )
  def test_a_good_module_passes(self, module, source):
    self.assertEmpty(violations(module, source))

  def test_relative_imports_of_a_package(self):
    source = "from . import tree\nfrom .. import types"
    self.assertEmpty(violations("hsrl_jax.ops", source, is_package=True))
    self.assertNotEmpty(
      violations("hsrl_jax.ops", "from ..sid import index", is_package=True)
    )


if __name__ == "__main__":
  absltest.main()
