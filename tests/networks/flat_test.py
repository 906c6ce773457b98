"""The policy without tokens, against HSRL's whose tokens are the items."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.networks.slates import flat, policy
from hsrl_jax.sim import observed

ITEMS, ENCODER = 12, (8, 0, 1, 0.0)
# Parameters of the encoders, the response head and the first level.
SAME = (
  "actor",
  "response",
  "user_hidden",
  "user",
  "vector_map",
  "position",
  "state_map",
  "meaning_map",
  "first_map",
  "first_slot",
  "first_out",
  "repeat",
)


class FlatTest(absltest.TestCase):
  def test_it_is_one_level_with_a_token_for_each_item(self):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(ITEMS + 1, 5)).astype("f")
    features[0] = 0
    seen = observed.start(jnp.zeros(0), jnp.array([3, 4]), 8)
    for slate, response in (([3, 4, 5], [1, 0, 1]), ([9, 2, 0], [0, 1, 0])):
      seen = observed.after(
        seen, jnp.asarray(slate), jnp.asarray(response, "f")
      )
    items = flat.FlatPolicy(ENCODER)
    shapes = jax.eval_shape(items.init, jax.random.key(0), features, seen)
    own = jax.tree.map(lambda x: 0.5 * rng.normal(size=x.shape), shapes)
    own = jax.tree.map(jnp.float32, own)["params"]
    # The inner product is of lower levels, of which the other has none.
    own["lower_out"] = jnp.zeros_like(own["lower_out"])
    tokens = policy.Tokens(
      jnp.asarray(features[None, 1:]),
      jnp.asarray(features),
      jnp.arange(ITEMS + 1) - 1,
    )
    levels = policy.SlatePolicy(1, ITEMS, ENCODER)
    shapes = jax.eval_shape(levels.init, jax.random.key(0), tokens, seen)
    other = jax.tree.map(lambda x: jnp.zeros(x.shape), dict(shapes["params"]))
    other |= {name: own[name] for name in SAME}
    # It also counts what is of a token itself, and not only what is like it.
    for name, kernel in (
      ("count_map", own["count_map"]["kernel"]),
      ("slate_map", own["slate_map"]),
    ):
      kernel = jnp.concatenate([jnp.zeros_like(kernel), kernel])
      other[name] = {"kernel": kernel}
    a, b = items.bind({"params": own}), levels.bind({"params": other})
    one, two = a.start(jnp.asarray(features), seen), b.start(tokens, seen)
    known = [flat.none_chosen(ITEMS + 1), policy.none_chosen(ITEMS, 1)]
    known[1] = jax.tree.map(lambda x: x[0], known[1])
    for slot, item in enumerate((7, 3, 9)):
      found = a.logits(one, known[0], slot)
      expected = b.first_logits(two, known[1], slot)
      self.assertGreater(np.ptp(expected), 1.0)
      np.testing.assert_allclose(found[1:], expected, rtol=1e-4, atol=1e-4)
      vector = b.item_vectors(tokens, item, jnp.array([item - 1]))
      likes = b.likes(two, vector, slot)
      chosen = (
        a.one_chosen(one, jnp.int32(item), slot),
        b.one_chosen(jnp.int32(item - 1), vector, likes),
      )
      known = [
        jax.tree.map(jnp.add, x, y) for x, y in zip(known, chosen, strict=True)
      ]


if __name__ == "__main__":
  absltest.main()
