"""The layering of hsrl_jax: a module imports only lower groups or siblings."""

import ast
import pathlib

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "hsrl_jax"

# Lowest first.
LAYERS = (
  ("types", "checked", "config", "errors", "files", "docstrings"),
  ("ops",),
  ("sid",),
  ("data", "serving"),
  ("networks",),
  ("sim",),
  ("agents",),
  ("engine",),
  ("evaluation",),
  ("host",),
  ("report",),
  ("stages",),
  ("experiments",),
  ("flags",),  # Only what starts a run may see flags.
  ("launch",),
)
# Modules of `agents` that are no agent.
SHARED = (["base"], ["latent"])
# Groups that see less than what is below them.
ONLY = {
  "flags": {"config", "errors", "docstrings", "agents"},
  # What is served needs jax and numpy alone.
  "serving": {"types", "errors", "files", "docstrings", "sid", "serving"},
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


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
  """What a module, such as `hsrl_jax.ops.tree`, does against the layering."""
  tree = ast.parse(source)
  path = module.split(".")
  group = path[1] if len(path) > 1 else None
  found = []
  if group is not None and group not in _LEVEL:
    return [f"{module}: no layer is known of {group}; add it to LAYERS"]

  names = list(imported_names(tree, module, is_package))
  for name in names:
    parts = name.split(".")
    if parts[0] == PACKAGE:
      target = parts[1] if len(parts) > 1 else None
      if group is None or target not in _LEVEL:
        if target != "__version__":
          found.append(f"{module} imports {name}")
        continue
      allowed = _LEVEL[target] <= _LEVEL[group]
      if group in ONLY:
        allowed = target in ONLY[group]
      if target == "launch" or not allowed:
        found.append(f"{module} imports {name}, which is above it")
      in_agent = group == target == "agents" and path[2:] not in ([], *SHARED)
      if in_agent and parts[2:3] not in ([path[2]], *SHARED):
        found.append(f"{module} imports {name} of another agent")
    if name.startswith("orbax") and module != f"{PACKAGE}.engine.checkpoint":
      found.append(f"{module} imports orbax")
    if name.startswith("flax.linen") and group != "networks":
      found.append(f"{module} imports flax.linen")
    if name == "jax.pmap" and module != f"{PACKAGE}.engine.parallel":
      found.append(f"{module} imports jax.pmap")

  for node in ast.walk(tree):
    if not isinstance(node, ast.Attribute):
      continue
    name = _attribute(node)
    if name == "jax.pmap" and module != f"{PACKAGE}.engine.parallel":
      found.append(f"{module} mentions jax.pmap")
    if name in ("nn.Module", "flax.linen", "linen.Module") and (
      group != "networks"
    ):
      found.append(f"{module} mentions {name}")
  return found


def _modules():
  for path in sorted((ROOT / PACKAGE).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    yield ".".join(parts[: len(parts) - is_package]), path, is_package


class LayersTest(parameterized.TestCase):
  def test_the_package_keeps_its_layers(self):
    modules = list(_modules())
    self.assertGreater(len(modules), 20)
    found = [
      line
      for module, path, is_package in modules
      for line in violations(module, path.read_text(), is_package)
    ]
    self.assertEmpty(found, "\n".join(["", *found]))

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
    ("hsrl_jax.serving.x", "from hsrl_jax.data import source"),
    ("hsrl_jax.sid.index", "from hsrl_jax import serving"),
    ("hsrl_jax.flags", "from hsrl_jax.types import Array"),
    ("hsrl_jax.flags", "from hsrl_jax.engine import loop"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.ddpg import losses"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents import ddpg"),
    ("hsrl_jax.agents.hsrl.agent", "from ..ddpg import losses"),
    ("hsrl_jax.engine.loop", "import jax\nf = jax.pmap(print)"),
    ("hsrl_jax.engine.loop", "from jax import pmap"),
    ("hsrl_jax.engine.loop", "import orbax.checkpoint as ocp"),
    ("hsrl_jax.engine.loop", "from orbax.checkpoint import v1"),
    ("hsrl_jax.agents.hsrl.agent", "import flax.linen as nn"),
    ("hsrl_jax.agents.hsrl.agent", "from flax import linen"),
    ("hsrl_jax.agents.hsrl.agent", "import flax\nx = flax.linen.Dense"),
    ("hsrl_jax.agents.hsrl.agent", "class A(nn.Module):\n  pass"),
    ("hsrl_jax.unheard", "import jax"),
  )
  def test_a_bad_module_is_caught(self, module, source):
    self.assertNotEmpty(violations(module, source))

  @parameterized.parameters(
    ("hsrl_jax.ops.tree", "from hsrl_jax.types import Array\nimport jax"),
    ("hsrl_jax.ops.tree", "from . import masking"),
    ("hsrl_jax.networks.encoder", "import flax.linen as nn\nx = nn.Module"),
    ("hsrl_jax.engine.parallel", "import jax\nf = jax.pmap(print)"),
    ("hsrl_jax.engine.checkpoint", "from orbax.checkpoint import v1"),
    ("hsrl_jax.sid.index", "from flax import struct"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.hsrl import losses"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents import base"),
    ("hsrl_jax.agents.hsrl.agent", "from hsrl_jax.agents.base import Agent"),
    ("hsrl_jax.flags", "from absl import flags\nfrom hsrl_jax import config"),
    ("hsrl_jax.launch", "from hsrl_jax import flags"),
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
