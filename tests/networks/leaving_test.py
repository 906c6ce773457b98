"""What makes a user leave: the loss, and a rule that is learned."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from hsrl_jax.networks import leaving

_KINDS, _SHOWN = 4, 6


def _sessions(rng, count):
  """Users who leave at an item whose kind two of the last three had.

  An item is its kind.
  """
  kinds = rng.integers(_KINDS, size=(count, _SHOWN + 1))
  shown, item = kinds[:, :-1], kinds[:, -1]
  left = (shown[:, -3:] == item[:, None]).sum(1) >= 2
  # An age, as the policy has it: 1 for the newest, the oldest together.
  age = np.minimum(np.arange(_SHOWN)[::-1], 3)
  rows = np.eye(4)[age].T
  return rows, shown, item, left.astype(float)


class LossTest(absltest.TestCase):
  def test_who_left_and_who_did_not(self):
    hazards, anyway = np.array([-1.0, 0.5, -3.0]), -2.0
    stays = 1 - 1 / (1 + np.exp(-np.append(hazards, anyway)))
    for left, chance in ((0.0, stays.prod()), (1.0, 1 - stays.prod())):
      found = leaving.loss(jnp.asarray(hazards), jnp.float32(anyway), left)
      np.testing.assert_allclose(found, -np.log(chance), rtol=1e-5)

  def test_it_has_gradients_where_nobody_can_leave(self):
    empty = jnp.full(3, -1e9)
    for left in (0.0, 1.0):
      grads = jax.grad(leaving.loss, (0, 1))(empty, jnp.float32(-1e9), left)
      self.assertTrue(all(np.isfinite(x).all() for x in grads))


class LeaveHeadTest(absltest.TestCase):
  def test_it_learns_a_rule(self):
    rng, head = np.random.default_rng(0), leaving.LeaveHead()
    rows, shown, item, left = map(jnp.asarray, _sessions(rng, 4_000))
    # In units in which nothing could be learned without their scale.
    features = jnp.diag(10.0 ** jnp.arange(-2, _KINDS - 2))
    params = head.init(jax.random.key(0), features, shown[0], rows)

    def hazard(params, shown, item):
      found = head.apply(params, features, shown, rows)
      return leaving.hazards(found, features[item]), found.anyway

    def loss(params):
      each = jax.vmap(hazard, (None, 0, 0))(params, shown, item)
      return jax.vmap(leaving.loss)(each[0][:, None], each[1], left).mean()

    optimizer = optax.adam(0.01)

    def step(carry, _):
      params, moments = carry
      updates, moments = optimizer.update(jax.grad(loss)(params), moments)
      return (optax.apply_updates(params, updates), moments), None

    start = (params, optimizer.init(params))
    (params, _), _ = jax.jit(lambda x: jax.lax.scan(step, x, None, 150))(start)
    # All histories of a length, whether they were in the sample or not.
    each = np.array(list(itertools.product(range(_KINDS), repeat=3)))
    padded = np.concatenate([np.tile([[0, 1, 2]], (len(each), 1)), each], 1)
    every = jnp.arange(_KINDS)
    found, _ = jax.vmap(lambda x: hazard(params, x, every))(padded)
    drives = (each[:, :, None] == np.arange(_KINDS)).sum(1) >= 2
    self.assertGreater(found[drives].min(), 0.5)
    self.assertLess(found[~drives].max(), -0.5)


if __name__ == "__main__":
  absltest.main()
