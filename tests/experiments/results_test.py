"""docs/RESULTS.md: nothing in it that its sources do not say."""

import json
import pathlib
import re
import tempfile

from absl.testing import absltest

from hsrl_jax import config as config_lib
from hsrl_jax.errors import InputError
from hsrl_jax.experiments import jobs, results
from hsrl_jax.experiments.registry import LAUNCH, Results
from hsrl_jax.studies.registry import FRONT

DOCS = pathlib.Path(__file__).parents[2] / "docs"
RESULTS = {
  "format": 1,
  "experiment": "ablation",
  "command": "python -m hsrl_jax.launch --flagfile=a.flags",
  "commit": "0123abcd",
  "seeds": [3, 5],
  "seconds": 4_000.0,
  "table": ["name  reward", "------------", "hsrl    9.87"],
}


class DocumentTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(root)
    self.docs = self.root / "docs"

  def _experiment(self, name, **changed):
    folder = self.root / name
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(RESULTS | changed))
    (folder / "plot.png").write_bytes(b"picture of " + name.encode())
    return str(folder)

  def _document(self, *workdirs):
    config = Results(workdirs=workdirs)
    base = config_lib.Config()
    results.run(
      jobs.Experiment("results", base, config, self.docs, "", known=FRONT.known)
    )
    return (self.docs / "RESULTS.md").read_text()

  def test_the_committed_page_is_what_its_sources_make(self):
    page = results.page(DOCS / "results", FRONT.known)
    self.assertEqual((DOCS / "RESULTS.md").read_text(), page)

  def test_committed_results_name_no_folder_of_a_machine(self):
    for path in (DOCS / "RESULTS.md", *DOCS.glob("results/*.json")):
      self.assertNotRegex(path.read_text(), r"(?<![\w.])/(?:\w+/)+", path)

  def test_each_result_with_its_origin(self):
    text = self._document(
      self._experiment("small"),
      self._experiment("large", experiment="benchmark", seconds=61.0),
    )
    for part in (
      "## Ablations",
      "### small",
      "```bash\npython -m hsrl_jax.launch --flagfile=a.flags\n```",
      "Seeds 3, 5; commit 0123abcd; took 1 h 7 min.",
      "took 1 min.",
      "hsrl    9.87\n```",
      "![small](results/small.png)",
    ):
      self.assertIn(part, text)
    self.assertLess(text.index("## Benchmarks"), text.index("## Ablations"))
    self.assertNotIn("## A/B tests", text)
    self.assertNotIn(str(self.root), text)
    for picture in re.findall(r"!\[.*\]\((.*)\)", text):
      name = pathlib.Path(picture).stem
      self.assertEqual(
        (self.docs / picture).read_bytes(), b"picture of " + name.encode()
      )

  def test_earlier_results_stay(self):
    self._document(self._experiment("one"))
    (self.docs / "results" / "notes.md").write_text("## Notes\n\nA note.\n")
    text = self._document(self._experiment("two"))
    self.assertIn("### one", text)
    self.assertIn("### two", text)
    self.assertEndsWith(text, "\n\n## Notes\n\nA note.\n")

  def test_contents(self):
    (self.docs / "results").mkdir(parents=True)
    (self.docs / "results" / "notes.md").write_text("## What, and why\n\nx\n")
    text = self._document(
      self._experiment("b_1"),
      self._experiment("a"),
      self._experiment("c", experiment="closed_loop"),
    )
    self.assertIn(
      "\n\n- [Ablations](#ablations): [a](#a), [b_1](#b_1)\n"
      "- [The closed loop](#the-closed-loop): [c](#c)\n"
      "- [What, and why](#what-and-why)\n\n## Ablations\n",
      text,
    )

  def test_rules_stand_in_the_section_of_their_world(self):
    earned = {"mean": 7.0, "per_seed": [6.5, 7.5]}
    share = {"normalised": {"per_seed": [0.6, 0.8]}}
    world = {
      "experiment": "world",
      "episodes": 60,
      "reference": "hsrl",
      "rows": {"hsrl": {"kind": "method", "total_reward": earned} | share},
    }
    rule = {"kind": "rule", "agent": "spaced", "total_reward": {"mean": 8.0}}
    rule["normalised"] = {"per_seed": [0.9]}
    bound = {"kind": "bound", "total_reward": {"mean": 9.0}}
    rules = world | {
      "command": "python -m hsrl_jax.launch --seeds=0",
      "rows": {"rule": rule, "greedy_oracle": bound},
      "table": ["rule  8.00"],
    }
    text = self._document(
      self._experiment("bored", **world),
      self._experiment("rules_bored", **rules),
      self._experiment("rules_alone", **rules),
    )
    self.assertIn("- [Worlds](#worlds): [bored](#bored), [rules_alone]", text)
    self.assertNotIn("### rules_bored", text)
    self.assertIn("```\nrule  8.00\n```", text)
    # -1 +- Student's 12.706 standard errors of 0.5.
    self.assertIn("- hsrl less rule (spaced): -1.00 [-7.35, 5.35]", text)
    self.assertNotIn("less greedy_oracle", text)
    self.assertRegex(text, r"hsrl +0\.70 +\[0\.60, 0\.80\] +0\.70 +0\.70")
    self.assertTrue((self.docs / "results" / "over_worlds.png").exists())

  def test_results_that_the_command_does_not_know(self):
    folder = self._experiment("loop", experiment="closed_loop")
    with self.assertRaisesRegex(InputError, "the experiment closed_loop; expe"):
      results._copy(pathlib.Path(folder), self.docs, LAUNCH.known)
    self._document(folder)
    with self.assertRaisesRegex(InputError, "loop.json is of the experiment c"):
      results.page(self.docs / "results", LAUNCH.known)

  def test_what_is_no_experiment(self):
    single = self._experiment("single", experiment=None, format=2)
    with self.assertRaisesRegex(InputError, "single, which holds a single run"):
      self._document(single)
    with self.assertRaisesRegex(InputError, "missing, which cannot be read"):
      self._document(str(self.root / "missing"))


if __name__ == "__main__":
  absltest.main()
