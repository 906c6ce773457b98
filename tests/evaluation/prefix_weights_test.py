"""Weights by prefix: by hand, over all outcomes, as obp has them, and in 10^4.

The last draws 600 logs of a world with 10,000 items whose values are known.
"""

import itertools
import json
import pathlib

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import off_policy, prefix_weights
from tests.evaluation import off_policy_inputs

OBP = pathlib.Path(__file__).with_name("off_policy_obp.json")
# Four items, three prefixes of a token; two users who differ. Row 0 pads.
SIDS = np.array([[0, 0], [2, 1], [0, 1], [2, 0], [1, 1]])
MU = np.array([[0, 0.4, 0.3, 0.2, 0.1], [0, 0.1, 0.2, 0.3, 0.4]])
PI = np.array([[0, 0.1, 0.2, 0.6, 0.1], [0, 0.5, 0.1, 0.1, 0.3]])
# Of the first token alone, and what an item adds to it.
OF_PREFIX = np.array([[0.5, 0.2, 0.7], [0.3, 0.6, 0.1]])[:, SIDS[:, 0]]
OF_ITEM = np.array([[0, 0.2, 0, -0.3, 0.1], [0, -0.1, 0.1, 0.2, 0]])


def _logged(users, items, reward, model):
  """Rows of one decision, and the prefixes of their items."""
  rows = np.arange(len(items))
  logged = off_policy.bandit(
    users,
    target=PI[users][rows, items, None],
    logging=MU[users][rows, items, None],
    reward=reward[:, None],
    predicted=model[users][rows, items, None],
    expected=(PI * model)[users].sum(1)[:, None],
  )
  sides = (
    prefix_weights.chances(SIDS, x[users], items)[:, None] for x in (PI, MU)
  )
  return logged, prefix_weights.Prefixes(*sides)


def _expectation(estimate, depth, chance, model):
  """Of an estimate, over all that may be logged of the two users."""
  total, users = 0.0, np.arange(2)
  for items in itertools.product(range(1, 5), repeat=2):
    logged, prefixes = _logged(
      users, np.array(items), chance[users, items], model
    )
    by_prefix = prefix_weights.at_depth(logged, prefixes, depth)
    total += MU[users, items].prod() * estimate(by_prefix).value
  return total


class WeightsTest(parameterized.TestCase):
  def test_chances_by_hand(self):
    got = prefix_weights.chances(SIDS, PI, np.array([1, 4]))
    np.testing.assert_allclose(got, [[0.7, 0.1], [0.3, 0.3]])

  def test_chances_are_sums_over_items_that_share_the_prefix(self):
    rng = np.random.default_rng(0)
    sids = rng.integers(4, size=(51, 3))
    chance = rng.dirichlet(np.ones(50), size=20)
    chance = np.concatenate([np.zeros((20, 1)), chance], 1)
    items = rng.integers(1, 51, size=20)
    got = prefix_weights.chances(sids, chance, items)
    for row, depth in itertools.product(range(20), (1, 2, 3)):
      shared = [
        chance[row, i]
        for i in range(1, 51)
        if list(sids[i, :depth]) == list(sids[items[row], :depth])
      ]
      self.assertAlmostEqual(got[row, depth - 1], sum(shared))

  def test_whole_sids_are_the_items(self):
    rng = np.random.default_rng(1)
    users, items = rng.integers(2, size=300), rng.integers(1, 5, size=300)
    logged, prefixes = _logged(users, items, rng.random(300), OF_PREFIX)
    whole = prefix_weights.at_depth(logged, prefixes, 2)
    for name, estimate in off_policy.ESTIMATORS.items():
      of_items, of_sids = estimate(logged), estimate(whole)
      self.assertAlmostEqual(of_sids.value, of_items.value, msg=name)

  @parameterized.parameters((1, OF_PREFIX), (2, OF_PREFIX + OF_ITEM))
  def test_mips_is_unbiased_where_items_add_nothing(self, depth, chance):
    truth = (PI * chance).sum(1).mean()
    got = _expectation(off_policy.ips, depth, chance, 0 * chance)
    self.assertAlmostEqual(got, truth)

  def test_offcem_is_unbiased_where_a_model_knows_what_items_add(self):
    chance = OF_PREFIX + OF_ITEM
    truth = (PI * chance).sum(1).mean()
    got = _expectation(off_policy.doubly_robust, 1, chance, OF_ITEM)
    self.assertAlmostEqual(got, truth)
    blind = _expectation(off_policy.doubly_robust, 1, chance, 0 * OF_ITEM)
    self.assertGreater(abs(blind - truth), 0.05)

  def test_slots_of_a_slate_are_decisions(self):
    """Cascade-DR: a slot earns by the prefixes of its slate so far."""
    truth, expected, slots = 0.0, 0.0, np.arange(2)
    for slate in itertools.product(range(1, 5), repeat=2):
      first, second = np.array(slate)
      earned = np.array(
        [OF_PREFIX[0, first], OF_PREFIX[1, second] * (1 + SIDS[first, 0])]
      )
      truth += PI[0, first] * PI[1, second] * earned.sum()
      # The model is wrong alike for all items of a prefix.
      logged = off_policy.sessions(
        0 * slots,
        slots,
        0 * slots,
        target=PI[slots, slate],
        logging=MU[slots, slate],
        reward=earned,
        predicted=2 * OF_PREFIX[slots, slate],
        expected=2 * (PI * OF_PREFIX).sum(1),
      )
      prefixes = prefix_weights.Prefixes(
        *(
          prefix_weights.chances(SIDS, x, np.array(slate))[None]
          for x in (PI, MU)
        )
      )
      by_prefix = prefix_weights.at_depth(logged, prefixes, 1)
      value = off_policy.doubly_robust(by_prefix).value
      expected += MU[0, first] * MU[1, second] * value
    self.assertAlmostEqual(expected, truth)

  def test_the_deepest_that_leaves_enough(self):
    rng = np.random.default_rng(2)
    users, items = rng.integers(2, size=400), rng.integers(1, 5, size=400)
    logged, prefixes = _logged(users, items, rng.random(400), OF_PREFIX)
    sizes = [
      off_policy.effective_sample_size(
        off_policy.weights(prefix_weights.at_depth(logged, prefixes, depth))
      )
      for depth in (1, 2)
    ]
    self.assertGreater(sizes[0], sizes[1] + 20)
    for least, depth in (
      (sizes[1] - 1, 2),
      (sizes[1] + 1, 1),
      (sizes[0] + 1, 1),
    ):
      got = prefix_weights.deepest(logged, prefixes, least)
      expected = prefix_weights.at_depth(logged, prefixes, depth)
      np.testing.assert_array_equal(got.target, expected.target)

  def test_mips_of_obp(self):
    inputs = off_policy_inputs.bandit()
    rows = np.arange(len(inputs["item"]))
    pi = inputs["pi"][rows, inputs["place"]]
    logged = off_policy.bandit(
      rows,
      target=pi[rows, inputs["item"], None],
      logging=inputs["propensity"][:, None],
      reward=inputs["reward"][:, None],
      predicted=np.zeros((len(rows), 1)),
      expected=np.zeros((len(rows), 1)),
    )
    prefixes = prefix_weights.Prefixes(
      *(
        prefix_weights.chances(inputs["sids"], x, inputs["item"])[:, None]
        for x in (pi, inputs["mu"])
      )
    )
    got = off_policy.ips(prefix_weights.at_depth(logged, prefixes, 1)).value
    wanted = json.loads(OBP.read_text())["bandit"]["mips"]
    self.assertAlmostEqual(got, wanted, places=9)


class CoverageTest(absltest.TestCase):
  ITEMS, TOKENS, ROWS, REPEATS = 10_000, 22, 4_000, 600

  @pytest.mark.slow
  def test_intervals_hold_over_10_000_items_and_are_narrow(self):
    """Ten kinds of user; a model that is off by the kind and first token."""
    rng = np.random.default_rng(0)
    ids = np.arange(self.ITEMS)
    powers = self.TOKENS ** np.arange(2, -1, -1)
    sids = ids[:, None] // powers % self.TOKENS
    sids = np.concatenate([np.zeros((1, 3), int), sids])  # The padding's.
    kinds, tokens = 10, sids[1:, 0].max() + 1
    of_prefix = rng.normal(size=(kinds, tokens))[:, sids[1:, 0]]
    of_item = 0.5 * rng.normal(size=(kinds, self.ITEMS))
    logit = of_prefix + of_item - 1
    chance = 1 / (1 + np.exp(-logit))
    mu = _softmax(0.5 * logit + 1.0 * rng.normal(size=logit.shape))
    pi = _softmax(1.5 * logit + 1.0 * rng.normal(size=logit.shape))
    truth = (pi * chance).sum(1).mean()
    wrong = 0.1 * rng.normal(size=(kinds, tokens))
    model = chance + wrong[:, sids[1:, 0]]
    by_kind = [
      np.concatenate([np.zeros((kinds, 1)), x], 1) for x in (pi, mu, model)
    ]
    expected = (pi * model).sum(1)
    # Of each item by itself, so that a row's chances are looked up.
    tables = [self._table(sids, x) for x in by_kind[:2]]
    ends = mu.cumsum(1)
    held, widths, used = np.zeros(2), [], []
    for _ in range(self.REPEATS):
      kind = rng.integers(kinds, size=self.ROWS)
      drawn = rng.random(self.ROWS)
      item = np.empty(self.ROWS, int)
      for k in range(kinds):
        item[kind == k] = np.searchsorted(ends[k], drawn[kind == k])
      item = np.minimum(item, self.ITEMS - 1)
      reward = (rng.random(self.ROWS) < chance[kind, item]).astype(float)
      logged = off_policy.bandit(
        np.arange(self.ROWS),
        target=pi[kind, item, None],
        logging=mu[kind, item, None],
        reward=reward[:, None],
        predicted=model[kind, item, None],
        expected=expected[kind, None],
      )
      prefixes = prefix_weights.Prefixes(
        *(x[kind, item][:, None] for x in tables)
      )
      by_prefix = prefix_weights.deepest(logged, prefixes)
      used.append((by_prefix.target[:, 0] == prefixes.target[:, 0].T).all(1))
      ends_of = np.array(
        [
          off_policy.shown(estimate)["ci95"]
          for estimate in (
            off_policy.doubly_robust(by_prefix),
            off_policy.ips(logged),
          )
        ]
      )
      held += (ends_of[:, 0] <= truth) & (truth <= ends_of[:, 1])
      widths.append(np.ptp(ends_of, axis=1))
    held, widths = held / self.REPEATS, np.mean(widths, 0)
    print(f"coverage {held}, width {widths}, depth {np.mean(used, 0)}")
    self.assertBetween(held[0], 0.93, 0.97)
    self.assertLess(widths[0], 0.5 * widths[1])

  def _table(self, sids, chance):
    """chances of every item, [kinds, ITEMS, L]."""
    items = np.arange(1, self.ITEMS + 1)
    return np.stack(
      [
        np.concatenate(
          [
            prefix_weights.chances(
              sids, np.broadcast_to(row, (500, len(row))), part
            )
            for part in np.split(items, 20)
          ]
        )
        for row in chance
      ]
    )


def _softmax(logits):
  raw = np.exp(logits - logits.max(1, keepdims=True))
  return raw / raw.sum(1, keepdims=True)


if __name__ == "__main__":
  absltest.main()
