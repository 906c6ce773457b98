"""Verdicts on click models whose worth is known."""

import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sk_metrics

from hsrl_jax.evaluation import verdict
from hsrl_jax.types import Sessions

ITEMS, USERS, WIDTH = 50, 120, 6


class _World:
  """Users with tastes and items with qualities; logs drawn uniformly."""

  def __init__(self, seed=0, taste=1.5, quality=0.7):
    self.rng = np.random.default_rng(seed)
    self.quality = quality * self.rng.normal(size=ITEMS + 1)
    side = self.rng.choice([-1, 1], (USERS, 1))
    self.taste = taste * side * self.rng.choice([-1, 1], ITEMS + 1)

  def logits(self, user, exposed):
    return self.quality[exposed] + self.taste[user[:, None], exposed]

  def logs(self, rows):
    user = self.rng.integers(0, USERS, rows)
    exposed = np.stack(
      [self.rng.permutation(ITEMS)[:WIDTH] + 1 for _ in range(rows)]
    )
    liked = self.rng.random(exposed.shape) < _sigmoid(
      self.logits(user, exposed)
    )
    return Sessions(
      user, np.zeros((rows, 0)), np.zeros((rows, 1), int), exposed, 1.0 * liked
    )


def _sigmoid(x):
  return 1 / (1 + np.exp(-x))


def _judge(world, model, val, test, train):
  """The verdict on `model`, (user, exposed) -> probabilities."""
  splits = {"validation": val, "test": test}
  return verdict.of_fit(
    {name: model(x.user_id, x.exposed) for name, x in splits.items()},
    splits,
    verdict.baselines(train, ITEMS),
  )


class VerdictTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.world = _World()
    self.train, self.val, self.test = (
      self.world.logs(rows) for rows in (1200, 300, 300)
    )

  def judge(self, model, **changes):
    logs = dict(val=self.val, test=self.test, train=self.train) | changes
    return _judge(self.world, model, **logs)

  def truth(self, user, exposed):
    return _sigmoid(self.world.logits(user, exposed))

  def test_the_true_model_is_good(self):
    quality = self.judge(self.truth)
    self.assertEqual(quality["verdict"], "good", str(quality["reasons"]))
    self.assertEqual(quality["reasons"], [])
    lists = quality["test"]["lists"]
    self.assertGreater(
      quality["test"]["auc_within_users"],
      lists["item_mean"]["auc_within_users"],
    )

  def test_shuffled_responses_are_useless(self):
    def shuffled(sessions):
      response = self.world.rng.permuted(sessions.response.ravel())
      return sessions._replace(response=response.reshape(-1, WIDTH))

    quality = self.judge(
      self.truth,
      val=shuffled(self.val),
      test=shuffled(self.test),
      train=shuffled(self.train),
    )
    self.assertEqual(quality["verdict"], "useless")
    self.assertIn("chance", " ".join(quality["reasons"]))

  def test_two_slates_are_useless(self):
    few = {
      name: type(x)(*(y if y is None else y[:2] for y in x))
      for name, x in (("val", self.val), ("test", self.test))
    }
    quality = self.judge(self.truth, **few)
    self.assertEqual(quality["verdict"], "useless")
    self.assertIn("20", quality["reasons"][0])

  def test_worse_than_one_number_is_useless(self):
    quality = self.judge(lambda u, x: self.truth(u, x) ** 8)
    self.assertEqual(quality["verdict"], "useless")
    self.assertIn("one number for all", quality["reasons"][0])

  def test_less_than_the_items_mean_is_weak(self):
    noise = 0.4 * self.world.rng.normal(size=(USERS, ITEMS + 1))

    def model(user, exposed):
      quality = self.world.quality[exposed]
      logits = 0.4 * (quality + noise[user[:, None], exposed])
      return _sigmoid(logits)

    quality = self.judge(model)
    self.assertEqual(quality["verdict"], "weak", str(quality["reasons"]))
    self.assertIn("item", quality["reasons"][0])

  def test_drawn_negatives_are_weak(self):
    splits = {"validation": self.val, "test": self.test}
    quality = verdict.of_fit(
      {k: self.truth(x.user_id, x.exposed) for k, x in splits.items()},
      splits,
      verdict.baselines(self.train, ITEMS),
      claims_rates=False,
    )
    self.assertEqual(quality["verdict"], "weak")
    self.assertIn("no rate of likes", verdict.line(quality))
    # However much the simulated users like: there is nothing to hold it to.
    known = verdict.baselines(self.train, ITEMS)
    after = verdict.of_slates(quality, self.train.exposed, 1.0, known)
    self.assertEqual(after["reasons"], quality["reasons"])
    self.assertIsNone(after["policy_slates"]["like_rate"])

  def test_slates_that_are_liked_too_much_are_weak(self):
    good = self.judge(self.truth)
    known = verdict.baselines(self.train, ITEMS)
    logged = self.train.exposed
    same = verdict.of_slates(good, logged, known.rate, known)
    self.assertEqual(same["verdict"], "good")
    self.assertAlmostEqual(same["policy_slates"]["distance"], 0)
    much = verdict.of_slates(good, logged, 2.1 * known.rate, known)
    self.assertEqual(much["verdict"], "weak")
    one = verdict.of_slates(good, np.full(10, 3), known.rate, known)
    self.assertGreater(one["policy_slates"]["distance"], 0.9)

  def test_slates_never_make_a_verdict_better(self):
    known = verdict.baselines(self.train, ITEMS)
    for level in ("weak", "useless"):
      quality = {"verdict": level, "reasons": ["as fitted"]}
      after = verdict.of_slates(quality, self.train.exposed, known.rate, known)
      self.assertEqual(after["verdict"], level)
      self.assertEqual(after["reasons"], ["as fitted"])

  def test_aucs_are_those_of_scikit_learn(self):
    score = self.world.rng.normal(size=self.test.response.shape).round(1)
    aucs = verdict.auc_by_user(score, self.test.response > 0, self.test.user_id)
    for place, user in enumerate(np.unique(self.test.user_id)):
      rows = self.test.user_id == user
      y = self.test.response[rows].ravel()
      if 0 < y.mean() < 1:
        self.assertAlmostEqual(
          aucs[place], sk_metrics.roc_auc_score(y, score[rows].ravel())
        )
    p = _sigmoid(score)
    measured = verdict.measure(p, self.test.response, self.test.user_id)
    y = self.test.response.ravel()
    self.assertAlmostEqual(
      measured["auc"], sk_metrics.roc_auc_score(y, p.ravel())
    )
    self.assertAlmostEqual(
      measured["log_loss"], sk_metrics.log_loss(y, p.ravel())
    )

  def test_calibration_error_by_hand(self):
    # Bin 0.2: said 0.25, was 0.5. Bin 0.9: said 0.95, was 1. Half each.
    p = np.array([[0.25, 0.25, 0.95, 0.95]])
    y = np.array([[1.0, 0, 1, 1]])
    measured = verdict.measure(p, y, np.zeros(1))
    self.assertAlmostEqual(
      measured["calibration_error"], 0.5 * 0.25 + 0.5 * 0.05
    )

  def test_no_auc_where_all_responses_are_alike(self):
    measured = verdict.measure(
      np.full((2, 3), 0.9), np.ones((2, 3)), np.arange(2)
    )
    self.assertSetEqual(
      set(measured), {"log_loss", "calibration_error", "like_rate"}
    )

  def test_measures_by_hand(self):
    measured = verdict.measure(
      np.array([[0.25, 0.75]]), np.array([[0, 1]]), np.array([1])
    )
    self.assertAlmostEqual(measured["log_loss"], -np.log(0.75))
    self.assertAlmostEqual(measured["calibration_error"], 0.25)
    self.assertEqual(measured["auc_within_users"], 1.0)
    log_loss = sk_metrics.log_loss([0, 1], [0.25, 0.75])
    self.assertAlmostEqual(measured["log_loss"], log_loss)


if __name__ == "__main__":
  absltest.main()
