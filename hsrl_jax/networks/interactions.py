"""Items shown lately as a vector: sums by age, then a small network."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hsrl_jax.types import Array, Shown

AGES = 10  # The last one stands for all older ones too.


class Interactions(nn.Module):
  """Maps the items shown to ONE user to a vector; callers vmap.

  Items are mapped to a few numbers each and added up by how many steps ago they
  were shown: once all of them, and once the liked ones. That is attention whose
  weights are those of an item's age and response, so that counts, such as the
  likes of a topic in the last steps, are linear in it.
  """

  width: int  # Of the result, and of the hidden layer half of it.
  item_width: int = 16  # Numbers of an item.

  @nn.compact
  def __call__(self, item_features: Array, shown: Shown) -> Array:
    """Returns float32 [width].

    Args:
      item_features: float32 [N + 1, D], row 0 for padding.
      shown: of the user.
    """
    there = (shown.items > 0).astype(jnp.float32)
    age = jnp.clip(shown.ago, 1, AGES) - 1
    by_age = jax.nn.one_hot(age, AGES, axis=0) * there[None]
    features = item_features[shown.items]
    both = jnp.concatenate([features, jnp.ones((len(there), 1))], 1)
    # A slate is about as long as an age has items.
    share = AGES / len(there)
    of_all = by_age @ both * share
    of_liked = by_age @ (both * shown.response[:, None]) * share
    # Mapped after they are added up: there are fewer ages than items.
    item = nn.Dense(self.item_width, use_bias=False, name="item")
    sums = jnp.stack([of_all, of_liked])
    sums = jnp.concatenate([item(sums[..., :-1]), sums[..., -1:]], -1)
    step = jnp.log1p(shown.step.astype(jnp.float32))[None]
    x = jnp.concatenate([sums.ravel(), step])
    x = nn.relu(nn.Dense(2 * self.width, name="hidden")(x))
    return nn.Dense(self.width, name="out")(x)
