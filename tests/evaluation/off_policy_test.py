"""Off-policy estimates of a bandit whose every outcome is enumerated."""

import itertools

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import off_policy

# Two users, three items.
MU = np.array([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
PI = np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
CHANCE = np.array([[0.9, 0.5, 0.2], [0.3, 0.8, 0.4]])
WRONG = np.array([[0.1, 0.1, 0.9], [0.5, 0.0, 1.0]])


def _logged(items, reward, mu, model):
  """One slate of one item for each user."""
  users = np.arange(2)
  weight = (PI / mu)[users, items]
  return off_policy.Logged(
    weight=weight[:, None],
    reward=np.asarray(reward, float)[:, None],
    predicted=model[users, items][:, None],
    expected=(PI * model).sum(1),
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


class OffPolicyTest(parameterized.TestCase):
  TRUE = (PI * CHANCE).sum(1).mean()

  def test_the_true_value_by_hand(self):
    # (0.09 + 0.10 + 0.14 + 0.18 + 0.24 + 0.04) / 2
    self.assertAlmostEqual(self.TRUE, 0.395)

  @parameterized.parameters(
    (MU, WRONG), (WRONG + 0.1, CHANCE), (MU, CHANCE), (MU, 0 * WRONG)
  )
  def test_doubly_robust_is_unbiased_if_either_is_right(self, mu, model):
    got = _expectation(off_policy.doubly_robust, mu, model)
    self.assertAlmostEqual(got, self.TRUE)

  def test_and_biased_if_neither_is(self):
    got = _expectation(off_policy.doubly_robust, WRONG + 0.1, WRONG)
    self.assertGreater(abs(got - self.TRUE), 0.05)

  def test_direct_is_the_model(self):
    got = _expectation(off_policy.direct, MU, WRONG)
    self.assertAlmostEqual(got, (PI * WRONG).sum(1).mean())

  def test_snips_by_hand(self):
    logged = off_policy.Logged(
      weight=np.array([[2.0, 1.0], [0.5, 0.5]]),
      reward=np.array([[1.0, 0.0], [1.0, -0.1]]),
      predicted=np.zeros((2, 2)),
      expected=np.zeros(2),
      user=np.array([1, 2]),
    )
    got = off_policy.snips(logged)
    self.assertAlmostEqual(got.value, (2 + 0.5 - 0.05) / 4)
    # Two users: 2 - 0.6125 * 3 and 0.45 - 0.6125, over the mean weight of 2.
    self.assertAlmostEqual(got.error, abs(2 - 0.6125 * 3) / 2)

  def test_snips_and_doubly_robust_cover_the_truth(self):
    rng = np.random.default_rng(0)
    users = 4_000
    kind = np.arange(users) % 2
    items = np.stack([rng.choice(3, 5, p=MU[k]) for k in kind])
    who = kind[:, None]
    logged = off_policy.Logged(
      weight=(PI / MU)[who, items],
      reward=(rng.random(items.shape) < CHANCE[who, items]).astype(float),
      predicted=WRONG[who, items],
      expected=(PI * WRONG).sum(1)[kind],
      user=np.arange(users),
    )
    for estimate in (off_policy.snips, off_policy.doubly_robust):
      value, error = estimate(logged)
      self.assertLess(abs(value - self.TRUE), 3 * error)
      self.assertLess(error, 0.02)

  def test_all_weights_zero(self):
    logged = _logged([0, 0], [1, 1], MU, WRONG)._replace(
      weight=np.zeros((2, 1))
    )
    self.assertTrue(np.isnan(off_policy.snips(logged).value))

  def test_effective_sample_size_in_closed_form(self):
    self.assertEqual(
      off_policy.effective_sample_size(np.full((3, 4), 0.25)), 12
    )
    self.assertEqual(off_policy.effective_sample_size(np.eye(5)[0]), 1)
    self.assertEqual(off_policy.effective_sample_size(np.zeros(5)), 0)
    # n draws of mu: n (sum pi)^2 / sum pi^2 / mu, in the limit.
    rng = np.random.default_rng(0)
    items = rng.choice(3, 200_000, p=MU[0])
    got = off_policy.effective_sample_size((PI / MU)[0][items])
    want = 200_000 / (PI[0] ** 2 / MU[0]).sum()
    np.testing.assert_allclose(got, want, rtol=0.01)


if __name__ == "__main__":
  absltest.main()
