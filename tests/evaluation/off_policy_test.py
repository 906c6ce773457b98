"""Off-policy estimates, where every outcome is enumerated, and by hand."""

import itertools
import json
import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import off_policy, statistics
from tests.evaluation import off_policy_inputs

OBP = pathlib.Path(__file__).with_name("off_policy_obp.json")
DOCUMENTED = pathlib.Path(__file__).parents[2] / "docs/results/off_policy.json"
# Two users, three items.
MU = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
PI = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
CHANCE = np.array([[0.9, 0.5, 0.2], [0.3, 0.8, 0.4]])
WRONG = np.array([[0.1, 0.1, 0.9], [0.5, 0.0, 1.0]])

# Two steps, two states, two actions: the action chosen moves the state.
STEP_MU = np.array([[0.7, 0.3], [0.4, 0.6]])
STEP_PI = np.array([[0.2, 0.8], [0.9, 0.1]])
MOVES = np.array([[0.9, 0.2], [0.5, 0.6]])  # P(state 1 | state, action).
EARNS = np.array([[1.0, -0.5], [0.25, 2.0]])
STEP_WRONG = np.array([[0.3, 0.3], [1.0, -1.0]])
DISCOUNT = 0.8


def _logged(items, reward, mu, model):
  """One slate of one item for each user."""
  users = np.arange(2)
  return off_policy.bandit(
    target=PI[users, items][:, None],
    logging=mu[users, items][:, None],
    reward=np.asarray(reward, float)[:, None],
    predicted=model[users, items][:, None],
    expected=(PI * model).sum(1)[:, None],
    user=users,
  )


def _expectation(estimate, mu, model):
  """Over all that may be logged: an item and a response for each user."""
  total = 0.0
  for items in itertools.product(range(3), repeat=2):
    for reward in itertools.product((0, 1), repeat=2):
      chance = 1.0
      for user, (item, r) in enumerate(zip(items, reward, strict=True)):
        like = CHANCE[user, item]
        chance *= MU[user, item] * (like if r else 1 - like)
      value = estimate(_logged(list(items), reward, mu, model)).value
      total += chance * value
  return total


def _sessions():
  """Every session of two steps from state 0, and its chance under STEP_MU."""
  rows, chances = [], []
  for first, state, second in itertools.product(range(2), repeat=3):
    moved = MOVES[0, first] if state else 1 - MOVES[0, first]
    rows.append(([0, state], [first, second]))
    chances.append(STEP_MU[0, first] * moved * STEP_MU[state, second])
  states, actions = (np.array(x) for x in zip(*rows, strict=True))
  logged = off_policy.Logged(
    target=STEP_PI[states, actions],
    logging=STEP_MU[states, actions],
    reward=EARNS[states, actions],
    predicted=STEP_WRONG[states, actions],
    expected=(STEP_PI * STEP_WRONG).sum(1)[states],
    user=np.arange(8),
  )
  return logged, np.array(chances)


def _true_value():
  """Of STEP_PI from state 0, by dynamic programming."""
  last = (STEP_PI * EARNS).sum(1)
  later = MOVES[0] * last[1] + (1 - MOVES[0]) * last[0]
  return (STEP_PI[0] * (EARNS[0] + DISCOUNT * later)).sum()


def _many(weight=None, reward=None, users=200):
  """Users who saw one item each, of two that are shown alike."""
  item = np.arange(users) % 2
  target = np.array([0.8, 0.2])[item] if weight is None else weight / 2
  reward = item * (np.arange(users) % 3 > 0) if reward is None else reward
  blank = np.zeros((users, 1))
  return off_policy.bandit(
    np.arange(users),
    target=target.reshape(-1, 1),
    logging=np.full((users, 1), 0.5),
    reward=np.reshape(reward, (-1, 1)),
    predicted=blank,
    expected=blank,
  )


class BanditTest(parameterized.TestCase):
  TRUE = (PI * CHANCE).sum(1).mean()

  def test_the_true_value_by_hand(self):
    # (0.09 + 0.10 + 0.14 + 0.18 + 0.24 + 0.04) / 2
    self.assertAlmostEqual(self.TRUE, 0.395)

  def test_ips_is_unbiased(self):
    self.assertAlmostEqual(_expectation(off_policy.ips, MU, WRONG), self.TRUE)

  @parameterized.parameters(
    (MU, WRONG), (WRONG * 0.5 + 0.1, CHANCE), (MU, CHANCE), (MU, 0 * WRONG)
  )
  def test_doubly_robust_is_unbiased_if_either_is_right(self, mu, model):
    got = _expectation(off_policy.doubly_robust, mu, model)
    self.assertAlmostEqual(got, self.TRUE)

  @parameterized.parameters(off_policy.ips, off_policy.doubly_robust)
  def test_and_biased_if_neither_is(self, estimate):
    got = _expectation(estimate, WRONG * 0.5 + 0.1, WRONG)
    self.assertGreater(abs(got - self.TRUE), 0.05)

  def test_snips_by_hand(self):
    # Weights 2, 1 of user 1 and 0.5, 0.5 of user 2.
    logged = off_policy.bandit(
      target=np.array([[0.5, 0.25], [0.25, 0.125]]),
      logging=np.array([[0.25, 0.25], [0.5, 0.25]]),
      reward=np.array([[1.0, 0.0], [1.0, -0.1]]),
      predicted=np.zeros((2, 2)),
      expected=np.zeros((2, 2)),
      user=np.array([1, 2]),
    )
    value, influence = off_policy.snips(logged)
    self.assertAlmostEqual(value, (2 + 0.5 - 0.05) / 4)
    # 2 - 0.6125 * 3 and 0.45 - 0.6125, over the users' mean weight of 2.
    np.testing.assert_allclose(influence, [0.08125, -0.08125])
    value, influence = off_policy.ips(logged)
    self.assertAlmostEqual(value, (2 + 0.5 - 0.05) / 4)  # Four rows.
    # (2 - 2 * 0.6125) / 2 rows of a user.
    np.testing.assert_allclose(influence, [0.3875, -0.3875])

  def test_effective_sample_size(self):
    self.assertAlmostEqual(
      off_policy.effective_sample_size(np.full((3, 4), 0.25)), 12
    )
    self.assertEqual(off_policy.effective_sample_size(np.eye(5)[0]), 1)
    self.assertEqual(off_policy.effective_sample_size(np.zeros(5)), 0)
    self.assertAlmostEqual(off_policy.effective_sample_size([3.0, 1.0]), 1.6)


class SessionsTest(absltest.TestCase):
  def test_unbiased_by_decision(self):
    logged, chances = _sessions()
    self.assertAlmostEqual(chances.sum(), 1)
    users = np.arange(8)
    for estimate in (off_policy.ips, off_policy.doubly_robust):
      got = sum(
        chance
        * estimate(
          off_policy.Logged(*(x[row : row + 1] for x in logged)), DISCOUNT
        ).value
        for row, chance in zip(users, chances, strict=True)
      )
      self.assertAlmostEqual(got, _true_value())

  def test_snips_of_all_sessions_in_their_shares(self):
    # As many of each session as its chance says: ratios are exact.
    logged, chances = _sessions()
    count = np.round(chances * 1e4).astype(int)
    np.testing.assert_allclose(count, chances * 1e4)
    many = off_policy.Logged(*(np.repeat(x, count, 0) for x in logged))
    got = off_policy.snips(many._replace(user=np.arange(count.sum())), DISCOUNT)
    self.assertAlmostEqual(got.value, _true_value())

  def test_by_hand_where_a_session_ends(self):
    # Weights: 2, then 1; and 0.5 of a session that ends after a step.
    logged = off_policy.Logged(
      target=np.array([[0.8, 0.2], [0.3, 1.0]]),
      logging=np.array([[0.4, 0.4], [0.6, 1.0]]),
      reward=np.array([[1.0, 3.0], [2.0, 0.0]]),
      predicted=np.array([[0.5, 1.0], [1.5, 0.0]]),
      expected=np.array([[0.6, 2.0], [0.7, 0.0]]),
      user=np.array([7, 9]),
    )
    np.testing.assert_allclose(off_policy.weights(logged), [[2, 1], [0.5, 0.5]])
    got = off_policy.ips(logged, 0.5)
    self.assertAlmostEqual(got.value, (2 + 0.5 * 3 + 1) / 2)
    np.testing.assert_allclose(got.influence, [1.25, -1.25])
    got = off_policy.snips(logged, 0.5)
    self.assertAlmostEqual(got.value, 3 / 2.5 + 0.5 * 3 / 1.5)
    # (2 - 1.2 * 2) / 1.25 of the first step, 0.5 (3 - 2) / 0.75 of the second.
    np.testing.assert_allclose(got.influence[0], -0.32 + 0.5 / 0.75)
    got = off_policy.doubly_robust(logged, 0.5)
    first = 0.6 + 2 * 0.5 + 0.5 * (2 * 2.0 + 1 * 2.0)
    self.assertAlmostEqual(got.value, (first + 0.7 + 0.5 * 0.5) / 2)

  def test_rows_become_sessions(self):
    # Session 5 has steps 1, 2 and 3 in a mess, session 2 has one.
    rows = {
      "session": np.array([5, 2, 5, 5]),
      "step": np.array([3, 1, 1, 2]),
      "user": np.array([8, 9, 8, 8]),
    }
    values = np.array([0.3, 0.9, 0.1, 0.2])
    names = ("target", "logging", "reward", "predicted", "expected")
    columns = dict.fromkeys(names, values)
    logged = off_policy.sessions(**rows, **columns)
    np.testing.assert_array_equal(logged.user, [9, 8])
    for name in names:
      after = float(name in ("target", "logging"))
      np.testing.assert_array_equal(
        getattr(logged, name), [[0.9, after, after], [0.1, 0.2, 0.3]]
      )
    rows["step"][0] = 2
    with self.assertRaisesRegex(InputError, "session 5 has step 2 twice"):
      off_policy.sessions(**rows, **columns)


class ObpTest(parameterized.TestCase):
  """Equal to another package; the script is in tests/benchmarks."""

  @parameterized.parameters("bandit", "sessions")
  def test_equal(self, kind):
    figures = json.loads(OBP.read_text())
    self.assertEqual(figures["seed"], off_policy_inputs.SEED)
    inputs = getattr(off_policy_inputs, kind)()
    pi, q, item = inputs["pi"], inputs["q"], inputs["item"]
    if kind == "bandit":
      at = (np.arange(len(item)), inputs["place"])
      pi, q, item = pi[at][:, None], q[at][:, None], item[:, None]
    logged = off_policy.Logged(
      target=np.take_along_axis(pi, item[..., None], -1)[..., 0],
      logging=inputs["propensity"].reshape(item.shape),
      reward=inputs["reward"].reshape(item.shape),
      predicted=np.take_along_axis(q, item[..., None], -1)[..., 0],
      expected=(pi * q).sum(-1),
      user=np.arange(len(item)),
    )
    for name, estimate in off_policy.ESTIMATORS.items():
      got = estimate(logged).value
      self.assertAlmostEqual(got, figures[kind][name], delta=1e-9, msg=name)

  def test_the_documented_figures_are_equal_too(self):
    ours = json.loads(DOCUMENTED.read_text())["off_policy"]
    for policy, figures in json.loads(OBP.read_text())["open_bandit"].items():
      for name, theirs in figures.items():
        self.assertAlmostEqual(ours[policy][name]["mean"], theirs, delta=1e-9)
        low, high = ours[policy][name]["ci95"]
        self.assertBetween(ours[policy]["real"]["mean"], low, high)


class RefusalTest(parameterized.TestCase):
  def test_enough_is_estimated(self):
    logged = _many()
    self.assertIsNone(off_policy.refusal(logged))
    for name, found in off_policy.estimates(logged).items():
      value = off_policy.ESTIMATORS[name](logged).value
      self.assertAlmostEqual(found["mean"], value)
      self.assertLess(found["ci95"][0], value)
      # Weights 1.6 and 0.4, as many of each.
      self.assertAlmostEqual(found["ess"], 200 / 1.36)

  @parameterized.parameters(
    (_many(np.zeros(200)), "no overlap"),
    (_many(np.eye(200)[0] * 2), "effective sample is 1 of 200; expected at"),
    (_many(np.full(200, 0.7)), "weights' mean is 0.70 where it should be 1"),
    (_many(reward=np.ones(200)), "every reward is 1"),
    (_many()._replace(user=np.arange(200) % 19), "19 users were logged"),
  )
  def test_too_little(self, logged, why):
    self.assertRegex(off_policy.refusal(logged), why)
    for found in off_policy.estimates(logged).values():
      self.assertIsNone(found["mean"])
      self.assertIsNone(found["ci95"])
      self.assertRegex(found["refused"], why)

  @parameterized.parameters(
    (0.0, r"a propensity is 0 \(1 such actions\)"),
    (1.5, "a propensity is 1.5"),
    (-0.1, "a propensity is -0.1"),
    (np.nan, r"a propensity is missing \(1 such"),
  )
  def test_propensities_that_are_none(self, value, told):
    logged = _many()
    logged.logging[3] = value
    with self.assertRaisesRegex(InputError, told):
      off_policy.estimates(logged)

  def test_other_numbers(self):
    logged = _many()._replace(reward=np.full((200, 1), np.inf))
    with self.assertRaisesRegex(InputError, "reward is not finite"):
      off_policy.check(logged)
    with self.assertRaisesRegex(InputError, "outside 0 to 1"):
      off_policy.check(_many(np.full(200, 2.5)))


class CompareTest(parameterized.TestCase):
  def test_beside_the_logging_policy(self):
    # Of 400 users the even see item 0; item 1 is liked by 2 of 3, 0 by none.
    better = _many(np.tile([0.2, 1.8], 200), users=400)
    found = off_policy.compare(
      {"new": better, "list": _many(np.zeros(400), users=400)}
    )
    own = better.reward.mean()
    logging = found["off_policy"]["logging_policy"]["on_policy"]
    self.assertAlmostEqual(logging["mean"], own)
    self.assertEqual(logging["ess"], 400)
    rows = better.reward[:, 0] * (np.tile([0.2, 1.8], 200) - 1)
    difference = found["off_policy_differences"]["new"]["ips"]
    self.assertAlmostEqual(difference["mean"], rows.mean())
    low, high = difference["ci95"]
    self.assertAlmostEqual((high - low) / 2, 1.966 * stats.sem(rows), places=3)
    refused = found["off_policy_differences"]["list"]["refused"]
    self.assertStartsWith(refused, "no overlap")
    one, other = off_policy.sentences(*found.values())
    self.assertRegex(one, r"^new, SNIPS, less .*: \+0\.26.*is believ")
    self.assertRegex(one, "above 0")
    self.assertRegex(other, "^list: no estimate; no overlap")

  def test_a_difference_that_may_be_chance(self):
    weight, liked = np.tile([0.9, 1.1], 100), np.arange(200) // 2 % 3 > 0
    found = off_policy.compare({"same": _many(weight, liked.astype(float))})
    (said,) = off_policy.sentences(*found.values())
    self.assertRegex(said, "may be chance")
    flipped = _many(np.tile([1.8, 0.2], 200), users=400)
    found = off_policy.compare({"worse": flipped})
    (said,) = off_policy.sentences(*found.values())
    self.assertRegex(said, "every interval is below 0")

  @parameterized.parameters(
    (9, "worth 5.5 rewards"),
    (12, "cannot be told"),
    (30, "few rewards differ, 18 by"),
    (40, "chance|beli"),
  )
  def test_few_rewards_compare_nothing(self, rewards, told):
    # ESS 400 / 1.64; of 400 rewards 30 differ, by that sample 18.
    weight = np.tile([0.2, 1.8], 200)
    liked = (np.arange(400) < rewards).astype(float)
    found = off_policy.compare({"new": _many(weight, liked, users=400)})
    estimated = found["off_policy"]["new"]["ips"]
    self.assertIsNotNone(estimated["mean"])
    self.assertEqual("caution" in estimated, rewards == 9)
    self.assertRegex(off_policy.sentences(*found.values())[0], told)

  def test_nothing_to_say(self):
    self.assertEmpty(off_policy.sentences({}, {}))


class SkewedIntervalTest(absltest.TestCase):
  def test_is_where_the_cubic_says(self):
    influence = np.random.default_rng(0).gamma(0.3, 1.0, 40)
    influence -= influence.mean()
    skew = stats.skew(influence) / 40**0.5
    low, high = statistics.skewed_interval(2.0, influence)
    for end, sign in ((low, 1), (high, -1)):
      t = (2.0 - end) / stats.sem(influence)
      cubic = t + skew * t**2 / 3 + skew**2 * t**3 / 27 + skew / 6
      self.assertAlmostEqual(cubic, sign * stats.t.ppf(0.975, 39))
    self.assertGreater(high - 2, 2 - low)  # The tail is above.
    opposite = statistics.skewed_interval(-2.0, -influence)
    np.testing.assert_allclose(opposite, [-high, -low])

  def test_without_skew_it_is_students(self):
    influence = np.array([-1.0, 1.0, -2.0, 2.0])
    got = statistics.skewed_interval(0.5, influence)
    half = stats.sem(influence) * stats.t.ppf(0.975, 3)
    np.testing.assert_allclose(got, [0.5 - half, 0.5 + half])
    self.assertEqual(statistics.skewed_interval(1.0, np.zeros(3)), [1.0, 1.0])


if __name__ == "__main__":
  absltest.main()
