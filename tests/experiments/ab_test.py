"""A/B comparisons against a bootstrap, textbook formulas and an A/A test."""

import contextlib
import io
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest
from scipy import stats

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, measures
from hsrl_jax.experiments import ab
from hsrl_jax.report import experiment_plots
from hsrl_jax.stages.evaluate import SESSIONS
from tests import command


def _arm(rng, user, lift=0.0, seeds=1, own=None, share=1.0):
  """Sessions whose users differ; the luck is `own`, or the same for all."""
  taste = np.random.default_rng(9).normal(0, 1, user.max() + 1)[user]
  luck = (own or np.random.default_rng(8)).normal(0, 0.5, (seeds, len(user)))
  depth = np.clip(np.round(6 + lift + 2 * taste + luck), 1, None)
  positives = rng.binomial((4 * depth).astype(int), 0.3 * share).astype(float)
  liked = np.minimum(positives, depth)
  return ab.Arm(positives / 4 - 0.1 * depth, depth, positives, liked)


class CompareTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.user = np.arange(600) % 250  # Some have two sessions, some three.
    self.a = _arm(rng, self.user)
    self.b = _arm(rng, self.user, lift=0.4)
    self.found = ab.compare(self.a, self.b, self.user)

  def test_intervals_are_those_of_a_bootstrap_over_users(self):
    rng = np.random.default_rng(1)
    sums = {
      name: np.stack([np.bincount(self.user, x[0]) for x in (*parts, *other)])
      for (name, parts), other in zip(
        ab.measures(self.a).items(),
        ab.measures(self.b).values(),
        strict=True,
      )
    }
    drawn = rng.integers(0, 250, (4000, 250))
    for name, row in self.found.items():
      a_num, a_den, b_num, b_den = sums[name][:, drawn].sum(-1)
      a, b = a_num / a_den, b_num / b_den
      for key, values in (("difference", b - a), ("lift", b / a - 1)):
        want = np.quantile(values, [0.025, 0.975])
        got = np.array(row[key]["ci95"])
        width = want[1] - want[0]
        if width == 0:
          continue
        np.testing.assert_allclose(got, want, atol=0.12 * width, err_msg=name)

  def test_one_session_each_is_the_paired_t_test(self):
    user = np.arange(600)
    row = ab.compare(self.a, self.b, user)["depth"]
    want = stats.ttest_rel(self.b.depth[0], self.a.depth[0])
    np.testing.assert_allclose(row["p_value"], want.pvalue, rtol=1e-6)
    np.testing.assert_allclose(
      row["difference"]["ci95"], want.confidence_interval(0.95)
    )
    apart = np.sqrt((self.a.depth.var(ddof=1) + self.b.depth.var(ddof=1)) / 600)
    low, high = row["difference"]["ci95_unpaired"]
    np.testing.assert_allclose((high - low) / 2 / apart, 1.96, atol=0.01)
    # var(B - A) = var A + var B - 2 cov.
    covariance = np.cov(self.a.depth[0], self.b.depth[0])
    np.testing.assert_allclose(
      row["variance_reduction"],
      2 * covariance[0, 1] / np.trace(covariance),
      rtol=1e-6,
    )

  def test_common_luck_narrows_the_interval(self):
    row = self.found["depth"]
    self.assertGreater(row["variance_reduction"], 0.5)
    paired, apart = (
      np.diff(row["lift"][key])[0] for key in ("ci95", "ci95_unpaired")
    )
    self.assertLess(paired, 0.8 * apart)

  def test_the_sample_size_shows_the_lift_in_four_tests_of_five(self):
    row = self.found["depth"]
    size = row["sample_size"]
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(800):
      a = rng.choice(self.a.depth[0], size)
      b = rng.choice(self.b.depth[0], size)
      hits += stats.ttest_ind(b, a).pvalue < 0.05
    self.assertAlmostEqual(hits / 800, 0.8, delta=0.04)

  def test_control_against_control_covers_zero(self):
    # The same policy, other luck: 95 % of the intervals have 0 in them.
    rng = np.random.default_rng(3)
    covered, false_alarms = 0, 0
    for _ in range(120):
      a, b = (_arm(rng, self.user, own=rng) for _ in range(2))
      found = ab.compare(a, b, self.user)
      low, high = found["total_reward"]["lift"]["ci95"]
      covered += low <= 0 <= high
      false_alarms += min(x["p_holm"] for x in found.values()) < 0.05
    self.assertAlmostEqual(covered / 120, 0.95, delta=0.05)
    self.assertLess(false_alarms / 120, 0.1)

  def test_an_arm_against_itself(self):
    found = ab.compare(self.a, self.a, self.user)
    for row in found.values():
      self.assertEqual(row["difference"]["ci95"], [0.0, 0.0])
      self.assertEqual(row["p_holm"], 1.0)
      self.assertIsNone(row["sample_size"])

  def test_an_arm_of_several_seeds_is_their_mixture(self):
    rng = np.random.default_rng(4)
    arm = _arm(rng, self.user, seeds=3)
    row = ab.compare(self.a, arm, self.user)["liked_per_slate"]
    self.assertAlmostEqual(
      row["treatment"], arm.positives.sum() / arm.depth.sum()
    )

  def test_table_is_80_columns_and_says_what_is_saturated(self):
    results = {
      "dataset": "movielens_latest_small",
      "split": "test",
      "protocol": "no_repeat",
      "episodes": 2000,
      "users": 10_000,
      "control": "best_constant",
      "treatment": "wolpertinger",
      "measures": self.found,
    }
    self.assertLessEqual(
      max(map(len, ab.table(results).splitlines())), 80, ab.table(results)
    )
    bought = ab.compare(
      *(x._replace(positives=np.ones((1, 600))) for x in (self.a, self.b)),
      self.user,
    )
    self.assertIn("Saturated", ab.table(results | {"measures": bought}))
    nobody = self.a._replace(positives=np.zeros((1, 600)))
    quiet = ab.compare(nobody, nobody, self.user)
    self.assertNotIn("Saturated", ab.table(results | {"measures": quiet}))
    experiment_plots.ab(results | {"measures": quiet})


class RunTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    self.sessions = {"user": np.arange(60)}
    rng = np.random.default_rng(0)
    for name in ("hsrl", *bounds.BOUNDS):
      for measure in measures.MEASURES:
        self.sessions[f"{name}/{measure}"] = rng.integers(1, 9, (1, 60)) * 1.0
    self.evaluated("first", {})

  def evaluated(self, name, changed):
    """A folder as an evaluated run leaves it."""
    folder = self.folder / name
    folder.mkdir()
    np.savez(folder / SESSIONS, format=1, **self.sessions | changed)
    facts = {"format": measures.RESULTS_FORMAT, "dataset": "toy"}
    facts |= {"protocol": "paper", "split": "test"}
    files.write_json(
      folder / "results.json", facts | {"episodes": 60, "agent": "hsrl"}
    )
    return str(folder)

  def run_mode(self, control, treatment):
    arms = (control, treatment)
    experiment = command.experiment("ab", self.folder, agents=arms)
    with contextlib.redirect_stdout(io.StringIO()) as out:
      ab.run(experiment)
    self.assertTrue((self.folder / "plot.png").exists())
    results = json.loads((self.folder / "results.json").read_text())
    return results, out.getvalue()

  def test_arms_are_folders_or_bounds_beside_them(self):
    results, out = self.run_mode("random", str(self.folder / "first"))
    self.assertIn("hsrl (B) against random (A)", out)
    self.assertEqual(results["users"], 60)
    for arm, name in (("control", "random"), ("treatment", "hsrl")):
      for measure in ("total_reward", "depth"):
        self.assertAlmostEqual(
          results["measures"][measure][arm],
          self.sessions[f"{name}/{measure}"].mean(),
        )
    better = {"hsrl/depth": self.sessions["hsrl/depth"] + 1}
    results, _ = self.run_mode(
      str(self.folder / "first"), self.evaluated("better", better)
    )
    depth = results["measures"]["depth"]["difference"]
    np.testing.assert_allclose([depth["value"], *depth["ci95"]], 1.0)

  def test_other_users_and_unknown_arms_are_refused(self):
    key = "greedy_oracle/positives"
    other = self.evaluated("other", {key: self.sessions[key] + 1})
    with self.assertRaisesRegex(InputError, "other was .* another simulator"):
      self.run_mode(str(self.folder / "first"), other)
    with self.assertRaisesRegex(InputError, "'nobody' is no arm"):
      self.run_mode("nobody", other)


if __name__ == "__main__":
  absltest.main()
