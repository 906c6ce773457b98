"""Verdicts on click models whose worth is known."""

import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics as sk_metrics

from hsrl_jax.data.feedback import Feedback
from hsrl_jax.evaluation import verdict
from hsrl_jax.evaluation.simulate import Simulated
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
    Feedback(),
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
      Feedback("implicit", "uniform", 5),
    )
    self.assertEqual(quality["verdict"], "weak")
    self.assertIn("no rate of likes", verdict.line(quality))
    self.assertNotIn("surest", quality["test"])

  def policy(self, quality, slates, rate, greedy=None, constant=0.0, **below):
    """The verdict on slates [S, K] of which a share is liked."""
    slates = np.asarray(slates).reshape(-1, 1, np.shape(slates)[-1])
    shown = np.count_nonzero(slates, axis=(1, 2))

    def sessions(slates, reward):
      return [
        Simulated(
          np.full(len(slates), reward), shown, rate * shown, slates, None
        )
      ]

    greedy = slates + 1 if greedy is None else np.reshape(greedy, slates.shape)
    return verdict.of_policy(
      quality,
      verdict.baselines(self.train, ITEMS),
      {
        "mine": sessions(slates, 1.0),
        "greedy_oracle": sessions(greedy, 1.0),
        "best_constant": sessions(slates, constant),
      },
      "mine",
      {
        name: {"auc_within_slates": {"mean": x, "ci95": [x - 0.02, x + 0.02]}}
        for name, x in below.items()
      },
    )

  def test_the_model_is_the_same_under_every_policy(self):
    """A policy that leaves the logs takes nothing from the click model."""
    good = self.judge(self.truth)
    logged = self.train.exposed
    found = self.policy(good, logged, 0.5)
    self.assertEqual((found["verdict"], found["reasons"]), ("good", []))
    self.assertAlmostEqual(found["distance"], 0)
    self.assertAlmostEqual(found["like_rate"], 0.5)
    self.assertEqual(found["as_greedy"], 0)
    rare = self.train._replace(exposed=np.minimum(self.train.exposed, 40))
    known = verdict.baselines(rare, ITEMS)
    self.assertEqual(known.showings[41:].sum(), 0)
    self.train = rare
    outside = self.policy(good, np.full((30, 6), [3, 4, 41, 42, 43, 44]), 0.5)
    self.assertEqual(outside["verdict"], "weak")
    self.assertIn("67% of what mine shows", outside["reasons"][0])
    results = {"agent": "mine", "simulator": good}
    for figures, said in (
      (found, "compare policies"),
      (outside, "do not use this number to choose between policies"),
    ):
      lines = verdict.lines(results | {"policy_in_simulator": figures})
      self.assertIn("simulator: good", lines[0])
      self.assertIn(said, lines[-1])
    useless = good | {"verdict": "useless", "reasons": ["chance"]}
    figures = self.policy(useless, logged, 0.5)
    self.assertEqual(
      (figures["verdict"], *figures["reasons"]), ("useless", "chance")
    )
    lines = verdict.lines(
      {"agent": "mine", "simulator": useless, "policy_in_simulator": figures}
    )
    self.assertLen(lines, 2)

  def test_likes_that_held_out_responses_confirm_or_not(self):
    good = self.judge(self.truth)
    groups = good["test"]["surest"]
    p = self.truth(self.test.user_id, self.test.exposed).ravel()
    top = np.argsort(-p)[: groups[-1]["responses"]]
    self.assertEqual(len(top), 180)  # 5 % of 1,800 are too few to tell.
    self.assertAlmostEqual(groups[-1]["predicted"], p[top].mean())
    self.assertAlmostEqual(
      groups[-1]["observed"], self.test.response.ravel()[top].mean()
    )
    logged = self.train.exposed
    rate = groups[2]["predicted"] - 1e-6
    self.assertEqual(self.policy(good, logged, rate)["verdict"], "good")
    more = self.policy(good, logged, groups[-1]["predicted"] + 1e-3)
    self.assertIn("no held-out response tells", *more["reasons"])
    # A model that is as sure as this one, of what chance decides.
    wrong = self.world.rng.permutation(self.test.response.ravel())
    fitted = good | {"test": {"surest": verdict.surest(p, wrong)}}
    found = self.policy(fitted, logged, rate)
    self.assertRegex(found["reasons"][0], r"of 360 held-out responses .* likes")
    # Nothing is held against rates that nobody claims.
    found = self.policy(good | {"test": {}, "claims_rates": False}, logged, 1.0)
    self.assertEqual((found["verdict"], found["like_rate"]), ("good", None))

  def test_few_responses_contradict_nothing(self):
    """Likes 8 points above all, of 20 said: half of it but for their error."""
    good, logged = self.judge(self.truth), self.train.exposed
    for count, verdict_ in ((100, "good"), (10_000, "weak")):
      groups = [
        {"responses": 30_000, "predicted": 0.3, "observed": 0.3},
        {"responses": count, "predicted": 0.5, "observed": 0.38},
      ]
      fitted = good | {"test": {"surest": groups}}
      found = self.policy(fitted, logged, 0.4)
      self.assertEqual(found["verdict"], verdict_, count)

  def test_held_out_logs_that_contradict(self):
    good, logged = self.judge(self.truth), self.train.exposed
    for below, constant, verdict_ in (
      ({"popularity": -0.03}, 0.5, "weak"),
      ({"popularity": -0.03}, 1.5, "good"),  # So says the simulator.
      ({"popularity": -0.01, "item_mean": 0.03}, 0.5, "good"),
      ({"ease": -0.03}, 0.5, "good"),
    ):
      found = self.policy(good, logged, 0.5, constant=constant, **below)
      self.assertEqual(found["verdict"], verdict_, str((below, constant)))

  def test_a_policy_that_ranks_by_the_click_model(self):
    good, logged = self.judge(self.truth), self.train.exposed
    other = np.where(np.arange(len(logged))[:, None] < 6, logged + 1, logged)
    for greedy, verdict_ in ((logged[:, ::-1], "weak"), (other, "weak")):
      found = self.policy(good, logged, 0.5, greedy=greedy)
      self.assertEqual(found["verdict"], verdict_)
      self.assertIn("ranks by the click model itself", found["reasons"][0])
    other[6:60] += 1
    found = self.policy(good, logged, 0.5, greedy=other)
    self.assertEqual((found["verdict"], found["as_greedy"]), ("good", 0.95))

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
