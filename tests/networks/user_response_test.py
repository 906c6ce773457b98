"""The user response model against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.networks import user_response

ITEMS, FEATURES, PROFILE, LENGTH = 12, 5, 3, 4
WIDTH, HIDDEN, HEADS = 6, 7, 2
HISTORIES = np.asarray([[3, 1, 4, 9], [0, 0, 2, 6], [0, 0, 0, 0]])
SLATE = np.asarray([5, 3, 12])


def _inputs():
  rng = np.random.default_rng(1)
  features = rng.normal(size=(ITEMS + 1, FEATURES)).astype("f")
  return features, rng.normal(size=PROFILE).astype("f")


@functools.cache
def _network(final_dense, dropout=0.0):
  network = user_response.UserResponseModel(
    WIDTH, HIDDEN, HEADS, final_dense, dropout
  )
  shapes = jax.eval_shape(
    network.init, jax.random.key(0), *_inputs(), HISTORIES[0], SLATE
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.7 * rng.normal(size=x.shape)).astype("f"), shapes
  )
  return network, params, jax.jit(network.apply)


def _dense(p, x):
  kernel = p["kernel"].reshape(x.shape[-1], -1)
  return x @ kernel + p["bias"].reshape(-1)


def _attention(p, queries, values, usable):
  size = WIDTH // HEADS
  q, k, v = (
    _dense(p[name], x)
    for name, x in (("query", queries), ("key", values), ("value", values))
  )
  mixed = np.zeros_like(q)
  for head in range(HEADS):
    part = slice(head * size, (head + 1) * size)
    for row in range(len(q)):
      if usable.any():
        weights = np.exp(k[usable, part] @ q[row, part] / np.sqrt(size))
        mixed[row, part] = weights @ v[usable, part] / weights.sum()
  kernel = p["out"]["kernel"].reshape(WIDTH, WIDTH)
  return mixed @ kernel + p["out"]["bias"]


def _plain(params, features, profile, history, slate, final_dense):
  p = jax.tree.map(np.float64, params)["params"]
  hidden = np.maximum(_dense(p["user_hidden"], profile), 0.0)
  user = _dense(p["user_out"], hidden)
  item = _dense(p["item"], features)
  past, usable = item[history], history > 0
  past = _attention(p["self_attention"], past, past, usable)
  (interest,) = _attention(p["cross_attention"], user[None], past, usable)
  if final_dense:
    interest = _dense(p["mix"], np.concatenate([interest, user]))
  return item[slate] @ interest


class UserResponseTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_equals_plain_numpy(self, final_dense):
    _, params, apply = _network(final_dense)
    for history in HISTORIES:
      found = apply(params, *_inputs(), history, SLATE)
      expected = _plain(params, *_inputs(), history, SLATE, final_dense)
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(True, False)
  def test_padding_features_do_not_matter(self, final_dense):
    _, params, apply = _network(final_dense)
    features, profile = _inputs()
    other = features.copy()
    other[0] = 100.0
    for history in HISTORIES:
      np.testing.assert_allclose(
        apply(params, other, profile, history, SLATE),
        apply(params, features, profile, history, SLATE),
        rtol=1e-5,
      )

  def test_gradients_are_finite_without_history(self):
    network, params, _ = _network(True)

    @jax.jit
    def gradient(params):
      return jax.grad(
        lambda p: network.apply(p, *_inputs(), HISTORIES[2], SLATE).sum()
      )(params)

    leaves = jax.tree.leaves(gradient(params))
    self.assertTrue(all(np.isfinite(x).all() for x in leaves))

  def test_without_a_profile_all_users_share_one(self):
    network = user_response.UserResponseModel(WIDTH, HIDDEN, HEADS)
    features, nothing = _inputs()[0], np.zeros(0, "f")
    init = network.init(
      jax.random.key(0), features, nothing, HISTORIES[0], SLATE
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: (0.7 * rng.normal(size=x.shape)).astype("f"), init
    )
    for history in HISTORIES:
      np.testing.assert_allclose(
        network.apply(params, features, nothing, history, SLATE),
        _plain(params, features, np.ones(1), history, SLATE, True),
        rtol=1e-4,
        atol=1e-4,
      )

  @pytest.mark.slow
  def test_ids_add_to_the_features_of_those_who_were_there(self):
    network = user_response.UserResponseModel(
      WIDTH, HIDDEN, HEADS, id_dropout=0.5
    )
    _, params, _ = _network(True)
    features, profile = _inputs()
    # Ids start at zero: nothing is known but the features.
    fresh = network.init(
      jax.random.key(0), features, profile, HISTORIES[0], SLATE
    )["params"]
    tables = {x: fresh[x] for x in ("past_ids", "shown_ids")}
    self.assertEqual(max(float(jnp.abs(x).max()) for x in tables.values()), 0)
    rng = np.random.default_rng(3)
    tables = jax.tree.map(lambda x: rng.normal(size=x.shape), tables)
    known = {"params": params["params"] | tables}
    plain = jax.tree.map(np.float64, params)["params"]
    item = _dense(plain["item"], features)
    shown, history = item + tables["shown_ids"], HISTORIES[0]
    past, usable = (item + tables["past_ids"])[history], history > 0
    hidden = np.maximum(_dense(plain["user_hidden"], profile), 0.0)
    user = _dense(plain["user_out"], hidden)
    past = _attention(plain["self_attention"], past, past, usable)
    (interest,) = _attention(plain["cross_attention"], user[None], past, usable)
    interest = _dense(plain["mix"], np.concatenate([interest, user]))
    np.testing.assert_allclose(
      network.apply(known, features, profile, history, SLATE),
      shown[SLATE] @ interest,
      rtol=1e-4,
      atol=1e-4,
    )
    # A newcomer, beyond the tables, is known by its features alone.
    more = np.concatenate([features, features[5:6]])
    (newcomer,) = network.apply(
      known, more, profile, history, np.array([ITEMS + 1])
    )
    self.assertAlmostEqual(float(newcomer), item[5] @ interest, places=3)

  def test_catalogue_equals_slates_piecewise(self):
    _, params, apply = _network(True)
    everything = jnp.arange(1, ITEMS + 1)
    inputs = (params, *_inputs(), HISTORIES[0])
    pieces = [apply(*inputs, everything[i : i + 3]) for i in range(0, ITEMS, 3)]
    np.testing.assert_allclose(
      apply(*inputs, everything), np.concatenate(pieces), rtol=1e-5
    )

  def test_dropout_is_on_only_in_training(self):
    network, params, apply = _network(True, 0.5)
    inputs = (params, *_inputs(), HISTORIES[0], SLATE)
    np.testing.assert_allclose(
      apply(*inputs), _network(True)[2](*inputs), rtol=1e-6
    )

    @jax.jit
    def train(seed):
      rngs = {"dropout": jax.random.key(seed)}
      return network.apply(*inputs, deterministic=False, rngs=rngs)

    np.testing.assert_array_equal(train(0), train(0))
    self.assertGreater(np.abs(train(0) - train(1)).max(), 1e-2)


if __name__ == "__main__":
  absltest.main()
