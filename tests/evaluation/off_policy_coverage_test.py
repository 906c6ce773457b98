"""95 % intervals of off-policy estimates hold in 95 of 100 known worlds."""

import itertools

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import off_policy

# 0.95 is four standard errors of its share from 0.93 and from 0.97.
REPEATS = 2_000
LEAST, MOST = 0.93, 0.97
# Two states, three actions.
MU = np.array([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3]])
PI = np.array([[0.3, 0.3, 0.4], [0.1, 0.4, 0.5]])
CHANCE = np.array([[0.5, 0.3, 0.4], [0.2, 0.6, 0.5]])
WRONG = np.array([[0.6, 0.2, 0.3], [0.3, 0.3, 0.7]])
MOVES = np.array([[0.2, 0.5, 0.8], [0.7, 0.4, 0.1]])  # P(state 1 | s, a).


def _logs(rng, users, sessions, steps, rate, spread):
  """Sessions of users, half of whom are more pleased than the others.

  A user likes an action by `rate` of its chance, times 1 - spread or
  1 + spread, so that rewards of a user are correlated.
  """
  rows, user = users * sessions, np.repeat(np.arange(users), sessions)
  rate_of = rate * (1 + spread * rng.choice([-1, 1], users))[user]
  state = rng.integers(2, size=rows)
  columns = []
  for t in range(steps):
    action = (rng.random((rows, 1)) > MU.cumsum(1)[state, :2]).sum(1)
    columns.append(
      (
        PI[state, action],
        MU[state, action],
        rng.random(rows) < rate_of * CHANCE[state, action],
        rate * (steps - t) * WRONG[state, action],
        rate * (steps - t) * (PI * WRONG).sum(1)[state],
      )
    )
    state = (rng.random(rows) < MOVES[state, action]).astype(int)
  arrays = np.moveaxis(np.array(columns, np.float64), 0, 2)
  return off_policy.Logged(*arrays, user)


def _truth(pi, steps, rate):
  """Of a policy: both states are as likely at the start."""
  share, total = np.array([0.5, 0.5]), 0.0
  for _ in range(steps):
    total += rate * share @ (pi * CHANCE).sum(1)
    moved = share @ (pi * MOVES).sum(1)
    share = np.array([1 - moved, moved])
  return total


class CoverageTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_of_each_estimator(self):
    for users, sessions, steps, rate, spread in (
      (300, 1, 1, 1.0, 0.0),  # A bandit.
      (100, 6, 1, 0.6, 0.6),  # Six rows of each user, correlated.
      (2_000, 1, 1, 0.1, 0.0),  # Rewards are rare.
      (800, 1, 4, 1.0, 0.0),  # Four steps.
      (150, 6, 3, 0.6, 0.6),  # Three, six correlated sessions of each user.
    ):
      world = (users, sessions, steps, rate, spread)
      with self.subTest(world):
        rng, sizes = np.random.default_rng(0), []
        value, own = (_truth(pi, steps, rate) for pi in (PI, MU))
        truths = {"off_policy": value, "off_policy_differences": value - own}
        held = dict.fromkeys(
          itertools.product(truths, off_policy.ESTIMATORS), 0
        )
        for _ in range(REPEATS):
          found = off_policy.compare({"new": _logs(rng, *world)})
          for what, name in held:
            low, high = found[what]["new"][name]["ci95"]
            held[what, name] += low <= truths[what] <= high
          sizes.append(found["off_policy"]["new"]["ips"]["ess"])
        self.assertGreater(np.percentile(sizes, 1), 200)
        for name, times in held.items():
          self.assertBetween(times / REPEATS, LEAST, MOST, name)

  @pytest.mark.slow
  def test_rare_clicks_beside_a_bootstrap_by_user(self):
    """Logs drawn uniformly; a policy that likes what is clicked, 34 items."""
    rng, users, rows, items = np.random.default_rng(0), 600, 10_000, 34
    held, above, worlds = np.zeros(2), np.zeros(2), 0
    for _ in range(400):
      rate = np.clip(rng.gamma(1.0, 0.0046, items), 1e-4, 0.05)
      liked = np.log(rate) + 0.5 * rng.normal(size=items)
      pi = np.exp(rng.choice([2.5, 3.5]) * liked / np.std(liked))
      pi /= pi.sum()
      item, user = (
        rng.integers(items, size=rows),
        rng.integers(users, size=rows),
      )
      click = rng.random(rows) < rate[item] * rng.gamma(2, 0.5, users)[user]
      nothing = np.zeros((rows, 1))
      logged = off_policy.bandit(
        user,
        target=pi[item, None],
        logging=np.full((rows, 1), 1 / items),
        reward=click[:, None],
        predicted=nothing,
        expected=nothing,
      )
      if off_policy.refusal(logged):
        continue
      truth, weight = pi @ rate, items * pi[item]
      earned = np.bincount(user, weight * click, users)
      drawn = rng.multinomial(users, np.full(users, 1 / users), 1_000)
      means = drawn @ earned / (drawn @ np.bincount(user, weight, users))
      ends = np.array(
        [
          off_policy.estimates(logged)["snips"]["ci95"],
          np.percentile(means, [2.5, 97.5]),
        ]
      )
      held += (ends[:, 0] <= truth) & (truth <= ends[:, 1])
      above += truth > ends[:, 1]
      worlds += 1
    self.assertGreater(worlds, 380)
    own, bootstrap = held / worlds
    self.assertBetween(own, 0.92, 0.98)  # Three standard errors.
    self.assertLess(bootstrap, own)
    self.assertLess(above[0] / worlds, 0.05)  # One side's share is 0.025.
    self.assertGreater(above[1] / worlds, 0.05)


if __name__ == "__main__":
  absltest.main()
