"""Slates without replacement, against enumeration and frequencies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from scipy import stats

from hsrl_jax.ops import plackett_luce, sampling

SCORES = np.array([0.3, -1.0, 2.0, 0.0, 5.0, 1.0], np.float32)
ALLOWED = np.array([True, True, True, True, False, True])


def by_hand(temperature, slate):
  """Probability of each place, from the definition, in float64."""
  weights = np.where(ALLOWED, np.exp(SCORES.astype(float) / temperature), 0)
  result = []
  for item in slate:
    result.append(weights[item] / weights.sum())
    weights[item] = 0
  return result


class PlackettLuceTest(parameterized.TestCase):
  @parameterized.parameters(0.2, 1.0, 7.0)
  def test_probabilities_are_those_of_the_definition(self, temperature):
    slates = list(itertools.permutations(np.flatnonzero(ALLOWED), 3))
    scaled = plackett_luce.scale(SCORES, ALLOWED, temperature)
    found = jax.vmap(plackett_luce.probabilities, (None, None, 0))(
      scaled, jnp.asarray(ALLOWED), jnp.asarray(slates)
    )
    want = np.array([by_hand(temperature, slate) for slate in slates])
    np.testing.assert_allclose(found, want, rtol=2e-5)
    self.assertAlmostEqual(float(found.prod(-1).sum()), 1.0, places=5)

  def test_a_likely_item_costs_later_ones_no_digits(self):
    # After the first, which is 1 - 1e-13 of all, two alike are left.
    scores, allowed = jnp.array([0.0, -30.0, -30.0]), jnp.ones(3, bool)
    found = plackett_luce.probabilities(scores, allowed, jnp.arange(3))
    np.testing.assert_allclose(found, [1.0, 0.5, 1.0], rtol=1e-6)

  @parameterized.parameters(0.5, 2.0)
  def test_draws_come_as_often_as_they_say(self, temperature):
    count = 20_000
    draw = jax.vmap(plackett_luce.draw, (0, None, None, None, None))
    slates, said = jax.jit(draw, static_argnums=4)(
      jax.random.split(jax.random.key(0), count),
      jnp.asarray(SCORES),
      jnp.asarray(ALLOWED),
      temperature,
      2,
    )
    pairs = list(itertools.permutations(np.flatnonzero(ALLOWED), 2))
    want = {pair: np.prod(by_hand(temperature, pair)) for pair in pairs}
    seen = [tuple(x) for x in np.asarray(slates).tolist()]
    self.assertContainsSubset(set(seen), set(pairs))
    np.testing.assert_allclose(
      said.prod(-1), [want[pair] for pair in seen], rtol=1e-4
    )
    often = np.array([seen.count(pair) for pair in pairs])
    expected = count * np.array(list(want.values()))
    rare = expected < 10
    bins = [np.append(x[~rare], x[rare].sum()) for x in (often, expected)]
    statistic = ((bins[0] - bins[1]) ** 2 / np.maximum(bins[1], 1)).sum()
    self.assertGreater(stats.chi2.sf(statistic, len(bins[0]) - 1), 1e-4)

  def test_fewer_items_than_places(self):
    allowed = jnp.asarray([False, True, False, False, False, True])
    slate, said = plackett_luce.draw(
      jax.random.key(0), jnp.asarray(SCORES), allowed, 1.0, 4
    )
    self.assertCountEqual(slate[:2].tolist(), [1, 5])
    self.assertEqual(said[1:].tolist(), [1.0, 0.0, 0.0])

  def _in_turn(self, key, temperature, count=2):
    """Of scores that fall by 3 beside what was chosen last."""

    def step(last, place):
      near = jnp.abs(jnp.arange(len(SCORES)) - last) == 1
      scores = SCORES - 3.0 * near + place

      def after(item, allowed):
        return item, (scores[item], allowed)

      return scores, after

    return plackett_luce.in_turn(
      step, jnp.int32(-9), jnp.asarray(ALLOWED), count, key, temperature
    )

  def test_the_best_in_turn_by_hand(self):
    # 2 is the best; then 1 and 3 have -4 and -3, 5 has 1; then 0 is left.
    slate, propensity, (scores, allowed) = self._in_turn(None, 1.0, count=6)
    self.assertEqual(slate.tolist()[:3], [2, 5, 0])
    self.assertCountEqual(slate.tolist()[3:5], [1, 3])
    self.assertEqual(slate[5], 0)  # Nothing is left.
    np.testing.assert_array_equal(propensity[:5], 1.0)
    np.testing.assert_allclose(scores[:3], [2.0, 2.0, 2.3], rtol=1e-6)
    np.testing.assert_array_equal(allowed[0], ALLOWED)
    self.assertFalse(allowed[1, 2] | allowed[2, 5])

  def test_draws_in_turn_come_as_often_as_they_say(self):
    count, temperature = 20_000, 2.0
    keys = jax.random.split(jax.random.key(0), count)
    slates, said, _ = jax.jit(
      jax.vmap(lambda key: self._in_turn(key, temperature))
    )(keys)
    want = {}
    for first, second in itertools.permutations(np.flatnonzero(ALLOWED), 2):
      near = np.abs(np.arange(len(SCORES)) - first) == 1
      left = np.where(np.arange(len(SCORES)) == first, 0.0, 1.0) * ALLOWED
      later = left * np.exp((SCORES - 3.0 * near) / temperature)
      chance = later[second] / later.sum()
      want[first, second] = by_hand(temperature, [first])[0] * chance
    self.assertAlmostEqual(sum(want.values()), 1.0)
    seen = [tuple(x) for x in np.asarray(slates).tolist()]
    np.testing.assert_allclose(
      np.prod(said, axis=1), [want[x] for x in seen], rtol=1e-4
    )
    counts = [seen.count(pair) for pair in want]
    expected = count * np.array(list(want.values()))
    self.assertGreater(stats.chisquare(counts, expected).pvalue, 1e-3)

  def test_one_choice(self):
    for temperature in (0.5, 1.0):
      found = plackett_luce.of_choice(
        jnp.asarray(SCORES), jnp.asarray(ALLOWED), 3, temperature
      )
      want = by_hand(temperature, [3])[0]
      np.testing.assert_allclose(found, want, rtol=1e-5)
    best = plackett_luce.of_choice(
      jnp.asarray(SCORES), jnp.asarray(ALLOWED), 2, 0.0
    )
    self.assertEqual(float(best), 1.0)


class LongTailedGumbelTest(absltest.TestCase):
  def test_is_gumbel_to_the_far_end(self):
    noise = np.asarray(sampling.long_tailed_gumbel(jax.random.key(1), (10**6,)))
    self.assertTrue(np.isfinite(noise).all())
    self.assertGreater(stats.kstest(noise[::50], "gumbel_r").pvalue, 1e-3)
    # Of 10^6 the largest are all different, as they are of real numbers.
    top = np.sort(noise)[-1000:]
    self.assertLen(set(top.tolist()), 1000)


if __name__ == "__main__":
  absltest.main()
