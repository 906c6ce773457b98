"""Experiment `off_policy` on a campaign whose values are known."""

import json
import pathlib
import shutil
import tempfile

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import off_policy as estimators
from hsrl_jax.shipped.datasets.open_bandit import impressions
from hsrl_jax.studies import off_policy
from tests import open_bandit
from tests.command import study


class OffPolicyTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp())
    cls.addClassCleanup(shutil.rmtree, cls.folder)
    cls.raw = cls.folder / "raw"
    open_bandit.write(cls.raw, rows=1_500)

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(tempfile.mkdtemp(dir=self.folder))

  def _run(self, raw, *flags):
    return study(
      "--study=off_policy",
      "--dataset=open_bandit",
      f"--raw_data_dir={raw}",
      f"--workdir={self.workdir}",
      *flags,
    )

  def test_both_ways(self):
    status, out, err = self._run(self.raw)
    self.assertEqual(status, 0, err)
    self.assertIn(
      "bts from 1,500 impressions of random: the real value is i", out
    )
    self.assertLessEqual(max(map(len, out.splitlines()[:12])), 80, out)
    self.assertTrue((self.workdir / "plot.png").exists())
    results = json.loads((self.workdir / "results.json").read_text())
    self.assertEqual(results["campaign"], "men")
    logs = impressions.read_logs(self.raw)
    for policy, pi in (
      ("random", open_bandit.RANDOM),
      ("bts", open_bandit.BTS),
    ):
      found = results["off_policy"][policy]
      truth = (pi @ open_bandit.CHANCE).mean()
      self.assertAlmostEqual(found["real"]["mean"], logs[policy].click.mean())
      for name in estimators.ESTIMATORS:
        low, high = found[name]["ci95"]
        self.assertBetween(truth, low, high, (policy, name))
        self.assertLess(high - low, 0.12)
        self.assertGreater(found[name]["ess"], 500)

  def test_probabilities(self):
    logs = impressions.read_logs(self.raw)
    for policy, pi in (
      ("random", open_bandit.RANDOM),
      ("bts", open_bandit.BTS),
    ):
      # Place 0 is no place. Propensities that never change are taken.
      got = off_policy.probabilities(logs[policy], 4)
      np.testing.assert_allclose(got, np.pad(pi, ((1, 0), (0, 0))), rtol=1e-6)
    moving = logs["bts"]._replace(propensity=np.linspace(0.1, 0.9, 1_500))
    got = off_policy.probabilities(moving, 4)
    here = moving.place == 2
    self.assertAlmostEqual(got[2, 3], (moving.item[here] == 3).mean())

  def test_the_model_has_not_seen_the_user(self):
    logs = impressions.read_logs(self.raw)["random"]
    q = off_policy.model(logs, 4)
    someone = logs.user == logs.user[0]
    flipped = logs._replace(click=np.where(someone, 1 - logs.click, logs.click))
    again = off_policy.model(flipped, 4)
    np.testing.assert_array_equal(q[someone], again[someone])
    self.assertGreater(np.abs(q - again)[~someone].max(), 0)
    np.testing.assert_allclose(q.mean(0), open_bandit.CHANCE, atol=0.08)

  @parameterized.parameters(
    ("propensity_score", "0", "propensity_score: found '0'; expected a prob"),
    ("propensity_score", "1.5", "propensity_score: found '1.5'; expected a p"),
    ("propensity_score", "", "propensity_score: found ''; expected a probab"),
    ("click", "2", "row 5, column click: found '2'; expected 0 or 1"),
    ("item_id", "77", "column item_id: found item '77'; expected an item_id"),
  )
  def test_a_bad_cell(self, column, value, told):
    self._refused(column, value, told)

  def test_logs_of_one_action(self):
    self._refused("item_id", "1", "every row shows the same item", slice(None))

  def test_no_overlap(self):
    raw = self._copy()
    for logger, item in (("random", 0), ("bts", 2)):
      path = raw / logger / "men" / "men.csv"
      open_bandit.change(path, "item_id", item, slice(0, None, 2))
      open_bandit.change(path, "item_id", item + 1, slice(1, None, 2))
    status, _, err = self._run(raw)
    self.assertEqual(status, 2)
    self.assertRegex(err, r"^error: .*no overlap: neither policy shows .*\n$")

  def test_other_data(self):
    status, _, err = self._run(self.folder / "none")
    self.assertEqual(status, 2)
    self.assertIn("none is no folder; expected a folder with", err)
    status, _, err = self._run(self.raw, "--dataset=toy")
    self.assertEqual(status, 2)
    self.assertIn("--dataset=open_bandit or --dataset=logs", err)
    status, _, err = self._run(self.raw, "--dataset=logs")
    self.assertEqual(status, 2)
    self.assertIn("no interactions file; expected one of", err)

  @parameterized.parameters("interactions", "sessions")
  def test_ones_own_logs_and_a_policy_from_elsewhere(self, name):
    """By hand, of the rows that have a propensity."""
    rng = np.random.default_rng(0)
    rows, width = 1_200, 1 if name == "interactions" else 2
    liked = rng.integers(0, 2, (rows, width))
    mu = rng.uniform(0.2, 0.8, (rows, width))
    target = np.where(rng.random((rows, width)) < mu, 0.9 * mu, 1.1 * mu)
    q, expected = rng.uniform(size=(2, rows, width))
    known = rng.random(rows) < 0.7
    columns = {"response": liked, "propensity": mu, "target": target}
    if name == "sessions":
      columns |= {"predicted": q, "expected": expected}
    frame = pd.DataFrame(
      {
        k: [";".join(map(repr, x.tolist())) for x in v]
        for k, v in columns.items()
      }
      | {"user_id": np.arange(rows) % 60}
    )
    frame.loc[~known, "propensity"] = ""
    raw = self.workdir / "raw"
    raw.mkdir()
    frame.to_csv(raw / f"{name}.csv", index=False)
    status, out, err = self._run(raw, "--dataset=logs")
    self.assertEqual(status, 0, err)
    self.assertIn(f"{known.sum()} of 1,200 rows of {name}", out)
    self.assertIn("the difference", " ".join(out.split()))
    results = json.loads((self.workdir / "results.json").read_text())
    found, w = results["off_policy"]["target"], (target / mu)[known]
    y = liked[known]
    want = {"ips": (w * y).mean(), "snips": (w * y).sum() / w.sum()}
    if name == "sessions":
      want["dr"] = (expected[known] + w * (y - q[known])).mean()
    self.assertEqual(list(found), list(want))
    for estimator, value in want.items():
      self.assertAlmostEqual(found[estimator]["mean"], value, places=9)
    own = results["off_policy"]["logging_policy"]["on_policy"]["mean"]
    self.assertAlmostEqual(own, y.mean())
    # A probability that is none.
    frame.loc[5, "target"] = ";".join(["1.5"] * width)
    frame.to_csv(raw / f"{name}.csv", index=False)
    frame["propensity"] = frame["propensity"].replace("", "0.5")
    status, _, err = self._run(raw, "--dataset=logs")
    self.assertEqual(status, 2)
    self.assertIn("a policy's probability is outside 0 to 1", err)

  def _copy(self):
    raw = self.workdir / "raw"
    shutil.copytree(self.raw, raw)
    return raw

  def _refused(self, column, value, told, rows=slice(3, 4)):
    raw = self._copy()
    open_bandit.change(raw / "bts" / "men" / "men.csv", column, value, rows)
    status, _, err = self._run(raw)
    self.assertEqual(status, 2)
    self.assertIn(told, err)
    self.assertEqual(err.count("\n"), 1, err)


if __name__ == "__main__":
  absltest.main()
