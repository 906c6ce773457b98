"""The registry and the flags: what an agent reads, and what a new one needs."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from absl import flags
from absl.testing import absltest, parameterized

from hsrl_jax import agents, settings
from hsrl_jax import flags as flags_lib
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.errors import InputError
from hsrl_jax.experiments.registry import LAUNCH
from hsrl_jax.studies import registry as studies
from tests import toy

ROOT = pathlib.Path(__file__).parents[2]
RULES = "import_layers_test.py"
# An agent with a setting of its own, and one that it shares.
MINE = '''
import dataclasses

import flax.linen as nn

from hsrl_jax.agents import base


@dataclasses.dataclass(frozen=True)
class Settings(base.ValueSettings):
  """Of mine.

  Attributes:
    mine_rate: how much of it.
  """

  mine_rate: float = 0.5


class Scores(nn.Module):
  """A linear map of features."""

  @nn.compact
  def __call__(self, features):
    """[N + 1, D] -> [N + 1]."""
    return nn.Dense(1)(features)[:, 0]


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Draws items by scores that it does not learn."""
  del settings
  network = Scores()

  def init(key, catalogue, observation):
    del observation
    return network.init(key, catalogue.features)

  def act(params, catalogue, observation, excluded, key, exploration):
    del observation
    scores = network.apply(params, catalogue.features)
    return base.choose(
      scores, catalogue.index, excluded, key, exploration, spec.slate_size
    )

  return base.Agent(init, act, None, draws=True)
'''
USE = """
from absl import flags
from hsrl_jax import agents, errors
from hsrl_jax import flags as flags_lib

flags.FLAGS(["x", "--agent=mine", "--mine_rate=3", "--discount=0.5"])
config = flags_lib.config_from_flags()
assert (config.settings.mine_rate, config.settings.discount) == (3.0, 0.5)
assert flags_lib.resolved()["mine_rate"] == "3.0"
assert agents.make_agent(config, 3, 40).draws
assert flags.FLAGS["mine_rate"].help == "how much of it."
flags.FLAGS["agent"].value = "hsrl"
try:
  flags_lib.config_from_flags()
except errors.InputError as error:
  print(error)
"""


def _config(*arguments):
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["hsrl", *arguments])
  try:
    chosen = flags_lib.experiment_from_flags(LAUNCH)
    return flags_lib.config_from_flags(chosen)
  finally:
    flags.FLAGS.mark_as_parsed()


class NewAgentTest(absltest.TestCase):
  @pytest.mark.slow
  def test_two_files_are_touched(self):
    with tempfile.TemporaryDirectory() as root:
      package = pathlib.Path(root) / "hsrl_jax"
      shutil.copytree(
        ROOT / "hsrl_jax",
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
      )
      (package / "agents" / "mine.py").write_text(MINE)
      registry = package / "agents" / "__init__.py"
      text = registry.read_text()
      text = text.replace("import next_item", "import mine, next_item", 1)
      text = text.replace(
        "AGENTS = {\n",
        'AGENTS = {\n  "mine": Algorithm(mine.Settings, mine.make),\n',
        1,
      )
      registry.write_text(text)
      ran = self._run(root, "-c", USE)
      self.assertEqual(ran.returncode, 0, ran.stderr)
      self.assertIn("--mine_rate is given", ran.stdout)
      self.assertIn("expected --agent=mine", ran.stdout)
      # In the real tree it keeps the rules of the house, too.
      shutil.copytree(ROOT / "datasets", pathlib.Path(root) / "datasets")
      shutil.copy(ROOT / "pyproject.toml", root)
      (pathlib.Path(root) / "tests").mkdir()
      shutil.copy(ROOT / "tests" / RULES, pathlib.Path(root) / "tests")
      ran = self._run(root, "-m", "pytest", "-q", f"tests/{RULES}", "-kkeeps")
      self.assertEqual(ran.returncode, 0, ran.stdout)
      self.assertIn("3 passed", ran.stdout)
      (package / "agents" / "mine.py").write_text(
        MINE + "\nfrom hsrl_jax.agents.baselines import ddpg\n"
      )
      ran = self._run(root, "-m", "pytest", "-q", f"tests/{RULES}", "-kkeeps")
      self.assertIn("of another agent", ran.stdout)

  def _run(self, root, *arguments):
    return subprocess.run(
      [sys.executable, *arguments],
      cwd=root,
      capture_output=True,
      text=True,
      check=False,
    )


class FlagsTest(parameterized.TestCase):
  def test_a_flag_means_the_same_to_all_agents(self):
    stages = {x for _, _, x, _ in settings.fields(settings.STAGES)}
    first = {}
    every = [
      *agents.all_settings(),
      *(x.settings for x in studies.AGENTS.values()),
    ]
    for name in every:
      for field in dataclasses.fields(name):
        self.assertNotIn(field.name, stages)
        other = first.setdefault(field.name, field)
        self.assertEqual(
          (other.default, other.type, other.metadata),
          (field.default, field.type, field.metadata),
          f"{field.name} of {name}",
        )

  @parameterized.parameters(
    ("hsrl", "--item_logits=free", "sasrec or a2c or pgra"),
    ("random", "--discount=0.5", "hsrl"),
    ("ddpg", "--beams=5", "expected --agent=hsrl"),
    ("hac", "--without=item_residual", "hsrl"),
  )
  def test_a_flag_that_the_agent_does_not_read_is_refused(
    self, agent, flag, others
  ):
    with self.assertRaises(InputError) as caught:
      _config(f"--agent={agent}", flag)
    message = str(caught.exception)
    name = flag.split("=")[0].replace("--no", "--")
    for part in (f"{name} is given", f"--agent={agent} does not", others):
      self.assertIn(part, message)
    self.assertNotIn("\n", message)

  @parameterized.parameters(
    (
      ("--next_item_epochs=3",),
      "--next_item_epochs is given, but --recipe=replay does not read it; "
      "expected --recipe=next_item or next_item,on_policy, or no such flag",
    ),
    (
      ("--recipe=next_item", "--iterations=100"),
      "--iterations is given, but --recipe=next_item does not read it; "
      "expected --recipe=replay or on_policy or logs or next_item,on_policy, "
      "or no such flag",
    ),
    (
      ("--recipe=next_item", "--without=item_residual"),
      "--without is given, but --recipe=next_item does not read it; "
      "expected --recipe=replay or on_policy or logs or next_item,on_policy, "
      "or no such flag",
    ),
    (
      ("--recipe=next_item", "--agent=sasrec", "--next_item_hidden=3"),
      "--next_item_hidden is given, but --agent=sasrec does not read it; "
      "expected --agent=hsrl, or no such flag",
    ),
    (
      ("--recipe=next_item", "--agent=ddpg"),
      "recipe is 'next_item' with ddpg; expected replay or logs, or one of "
      "sasrec, hsrl",
    ),
  )
  def test_a_flag_that_the_task_does_not_read_is_refused(self, given, message):
    with self.assertRaises(InputError) as caught:
      _config(*given)
    self.assertEqual(str(caught.exception), message)

  def test_in_an_experiment_one_of_the_agents_must_read_it(self):
    flag = "--item_logits=free"
    chosen = "--experiment=benchmark", "--experiment_agents=hsrl,a2c"
    config = _config(flag, *chosen)
    self.assertEqual(config.agent, "hsrl")
    self.assertTrue(flags_lib.settings_from_flags("a2c", "replay").free)
    with self.assertRaisesRegex(InputError, "--agent=ddpg or hsrl does not"):
      _config(flag, chosen[0], "--experiment_agents=hsrl,ddpg")

  def test_what_a_run_keeps_is_what_its_agent_reads(self):
    _config("--agent=td3")
    kept = flags_lib.resolved()
    self.assertEqual(kept["agent"], "td3")
    self.assertContainsSubset({"discount", "layers", "temperature"}, kept)
    self.assertNoCommonElements({"beams", "item_logits", "without"}, kept)

  @parameterized.parameters(
    ("discount", 1.5, r"in \[0, 1\]"),
    ("beams", 0, "at least 1"),
    ("importance_clip", float("nan"), "at least 0"),
    ("temperature", float("inf"), "above 0"),
    ("critic_hidden", (8, 0), "each at least 1"),
  )
  def test_bounds_name_field_value_and_expectation(self, name, value, expected):
    with self.assertRaisesRegex(
      ValueError, rf"^{name} is .*; expected {expected}"
    ):
      toy.config("hsrl", **{name: value})

  def test_choices_of_texts_are_named(self):
    expected = "^credit is 'some'; expected one of"
    with self.assertRaisesRegex(ValueError, expected):
      agents.settings_of("hsrl", "on_policy")(credit="some")


class ConfigureTest(absltest.TestCase):
  def test_what_two_agents_read_is_carried_over(self):
    first = toy.config("hsrl", discount=0.5, beams=7, polyak=0.5)
    second = agents.configure(first, "a2c", item_logits="free")
    self.assertEqual(second.settings.discount, 0.5)
    self.assertEqual(second.settings.item_logits, "free")
    self.assertEqual(second.train.polyak, 0.5)
    with self.assertRaises(TypeError):
      agents.configure(first, "a2c", beams=3)


class SearchTest(parameterized.TestCase):
  @parameterized.parameters(
    (hsrl.SEARCH_FROM - 1, False), (hsrl.SEARCH_FROM, True)
  )
  def test_shared_sids_are_not_searched(self, items, searched):
    config = toy.config("hsrl")
    self.assertEqual(agents.make_agent(config, 3, items).beams > 0, searched)
    plain = dataclasses.replace(
      config,
      quantizer=dataclasses.replace(config.quantizer, assignment="plain"),
    )
    if not searched:
      agents.make_agent(plain, 3, items)
      return
    with self.assertRaisesRegex(
      InputError, "sid_assignment is 'plain'.*expect"
    ):
      agents.make_agent(plain, 3, items)


if __name__ == "__main__":
  absltest.main()
