"""The policy without tokens, against HSRL's whose tokens are the items."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.networks import flat_policy as flat
from hsrl_jax.networks import slate_policy as policy
from hsrl_jax.sim import observed

ITEMS, ENCODER = 12, (8, 0, 1, 0.0)
# Parameters that both have.
OF_USER = (
  "actor",
  "response",
  "user_hidden",
  "user",
  "vector_map",
  "position",
  "state_map",
  "repeat",
)


class FlatTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ITEMS + 1, 5)).astype("f")
    features[0] = 0
    self.features = jnp.asarray(features)
    seen = observed.start(jnp.zeros(0), jnp.array([3, 4]), 8)
    for slate, response in (([3, 4, 5], [1, 0, 1]), ([9, 2, 0], [0, 1, 0])):
      seen = observed.after(
        seen, jnp.asarray(slate), jnp.asarray(response, "f")
      )
    self.seen = seen
    self.items = flat.FlatPolicy(ENCODER)
    tokens = self._tokens(1)
    own = jax.eval_shape(self.items.init, jax.random.key(0), tokens, seen)
    own = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), own)
    self.own = jax.tree.map(jnp.float32, own)["params"]

  def test_it_begins_with_estimates_less_penalties(self):
    # No more than that, without the inner product.
    own = self.own | {"lower_out": jnp.zeros_like(self.own["lower_out"])}
    bound, tokens = self.items.bind({"params": own}), self._tokens(1)
    rows = np.asarray(self.features)[1:]
    rows = rows - rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = rows @ rows.T
    start, chosen = bound.start(tokens, self.seen), flat.none_chosen(5)
    user = np.asarray(start.estimate.user)
    vectors = np.asarray(self.features @ own["vector_map"]["kernel"])[1:]
    expected = vectors @ user[:-1] / self.items.prior_temperature
    once, like, lately = np.asarray(own["repeat"])
    for item in (3, 5, 2):  # Liked lately, among the newest ten.
      expected -= 2 * lately * cosine[item - 1]
    for slot, item in enumerate((7, 3, 9)):
      found = bound.logits(start, chosen, slot)[1:]
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
      logit = vectors[item - 1] @ user[:-1] + user[-1] + own["position"][slot]
      cost = once + like / (1 + np.exp(-logit))
      self.assertGreater(abs(cost), 0.1)
      expected -= cost * cosine[item - 1]
      one = bound.one_chosen(start, jnp.int32(item), slot)
      chosen = jax.tree.map(jnp.add, chosen, one)

  def test_its_inner_product_is_that_of_a_lower_level(self):
    # Twice the width, since a lower level is half as wide as the inner product.
    levels, tokens, other = self._of_tokens(2, 32)
    own = self.own
    other |= {name: own[name] for name in ("lower_map", "chosen_map", "norm")}
    other["lower_slot"] = own["lower_slot"][:, None]
    other["lower_out"] = own["lower_out"][None]
    a, b = self.items.bind({"params": own}), levels.bind({"params": other})
    without = own | {"lower_out": jnp.zeros_like(own["lower_out"])}
    without = self.items.bind({"params": without})
    one, two = a.start(tokens, self.seen), b.start(tokens, self.seen)
    chosen = a.one_chosen(one, jnp.int32(7), 0)
    seen = policy.Chosen(jnp.zeros((2, ITEMS)), chosen.vectors)
    for slot in (1, 2):
      found = a.logits(one, chosen, slot) - without.logits(one, chosen, slot)
      partial = jnp.zeros(policy.WIDTH)
      expected = b.logits(two, seen, partial, slot, 1) - two.prior[1]
      # A fifth of its scale: see docs/RESULTS.md, What the hierarchy is worth.
      self.assertGreater(np.ptp(expected), 1.0)
      np.testing.assert_allclose(
        5.0 * found[1:], expected, rtol=1e-4, atol=1e-3
      )

  def _tokens(self, levels):
    codebooks = jnp.repeat(self.features[None, 1:], levels, 0)
    return policy.Tokens(codebooks, self.features, jnp.arange(ITEMS + 1) - 1)

  def _of_tokens(self, levels, hidden):
    """HSRL whose tokens of each level are the items, and its parameters.

    They are 0 but for those of encoders and response head.
    """
    tokens = self._tokens(levels)
    tree = policy.SlatePolicy(
      ENCODER, hidden=hidden, levels=levels, vocab_size=ITEMS
    )
    shapes = jax.eval_shape(tree.init, jax.random.key(0), tokens, self.seen)
    other = jax.tree.map(lambda x: jnp.zeros(x.shape), dict(shapes["params"]))
    return tree, tokens, other | {name: self.own[name] for name in OF_USER}


if __name__ == "__main__":
  absltest.main()
