"""Tokens that mean nothing: what they leave as it is, and who learns them."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.networks.slate_policy import (
  WIDTH,
  SlatePolicy,
  Tokens,
  none_chosen,
)
from hsrl_jax.sim import observed

ITEMS, VOCAB, LEVELS = 12, 4, 2


class FreeTokensTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.tokens = Tokens(
      jnp.asarray(rng.normal(size=(LEVELS, VOCAB, 5)), jnp.float32),
      jnp.asarray(rng.normal(size=(ITEMS + 1, 5)), jnp.float32),
      jnp.arange(ITEMS + 1) % VOCAB,
    )
    seen = observed.start(jnp.zeros(0), jnp.array([3, 4]), 8)
    self.seen = observed.after(
      seen, jnp.array([3, 4, 5]), jnp.array([1.0, 0.0, 1.0])
    )
    made, params = [], {}
    for semantic in (True, False):
      policy = SlatePolicy(
        (8, 0, 1, 0.0), levels=LEVELS, vocab_size=VOCAB, semantic=semantic
      )
      shapes = jax.eval_shape(
        policy.init, jax.random.key(0), self.tokens, self.seen
      )["params"]
      for name, shape in shapes.items():
        own = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shape)
        params.setdefault(name, jax.tree.map(jnp.float32, own))
      made.append((policy, set(shapes)))
    (self.mapped, names), (self.free, of_free) = made
    self.assertEqual(of_free - names, {"vectors"})
    self.assertContainsSubset(names, of_free)
    self.params, self.names = params, names

  def _start(self, policy, params):
    if policy is self.mapped:
      params = {x: params[x] for x in self.names}
    policy = policy.bind({"params": params})
    return policy, policy.start(self.tokens, self.seen)

  def _of_items(self, policy, params):
    """What is estimated of the items: chances, and what they begin with."""
    policy, start = self._start(policy, params)
    items = jnp.arange(1, ITEMS + 1)
    vectors = policy.item_vectors(self.tokens, items)
    begins = policy.item_estimates(start, self.tokens, items)
    return jnp.stack([policy.chances(start, vectors), begins])

  def _logits(self, policy, params):
    policy, start = self._start(policy, params)
    chosen = jax.tree.map(lambda x: x[0], none_chosen(VOCAB, 1))
    partial = jnp.zeros(WIDTH)
    return jnp.stack(
      [policy.logits(start, chosen, partial, 0, x) for x in range(LEVELS)]
    )

  def test_the_response_head_is_the_same(self):
    found = self._of_items(self.free, self.params)
    self.assertGreater(np.ptp(found), 1.0)
    np.testing.assert_array_equal(
      found, self._of_items(self.mapped, self.params)
    )

  def test_rl_alone_learns_them(self):
    own = {name: self.params[name] for name in ("vectors", "vector_map")}

    def learned(what):
      def total(own):
        return jnp.sum(jnp.square(what(self.free, self.params | own)))

      found = jax.grad(total)(own)
      return {
        name
        for name in own
        if max(jnp.abs(x).max() for x in jax.tree.leaves(found[name])) > 0
      }

    self.assertEqual(learned(self._of_items), {"vector_map"})
    self.assertEqual(learned(self._logits), {"vectors"})

  def test_their_estimate_is_that_of_nothing(self):
    _, start = self._start(self.free, self.params)
    np.testing.assert_array_equal(start.estimate.likes, 0)
    _, start = self._start(self.mapped, self.params)
    self.assertGreater(np.ptp(start.estimate.likes), 1.0)


if __name__ == "__main__":
  absltest.main()
