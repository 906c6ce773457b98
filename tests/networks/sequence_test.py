"""Packed rows against plain NumPy, one history at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.data import sequences
from hsrl_jax.networks import sequence

LENGTH, WIDTH, HEADS, ITEMS = 5, 8, 2, 9
LISTS = [[1, 2, 3, 4, 5, 6, 7], [8, 9, 1], [4, 2], [5, 5, 3, 1]]


def _random_like(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (0.5 * rng.normal(size=x.shape)).astype("f"), tree
  )


@functools.cache
def _setting():
  """Network, parameters, item vectors and the packed rows of LISTS."""
  network = sequence.SequenceEncoder(WIDTH, 2, HEADS, 0.5)
  packed = sequences.pack(sequences.from_lists(LISTS), LENGTH)
  vectors = np.random.default_rng(1).normal(size=(ITEMS + 1, WIDTH))
  vectors = vectors.astype("f")
  shapes = jax.eval_shape(
    network.init,
    jax.random.key(0),
    vectors[packed.item[0]],
    packed.position[0],
    packed.segment[0],
  )
  return network, _random_like(shapes), vectors, packed


@functools.cache
def _run():
  network, *_ = _setting()
  return jax.jit(jax.vmap(network.apply, (None, 0, 0, 0)))


def _norm(p, x):
  spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return (x - x.mean(-1, keepdims=True)) / spread * p["scale"] + p["bias"]


def _dense(p, x):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _plain(params, vectors, position):
  """The state after the last of a sequence's items, in float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
  x = vectors * WIDTH**0.5 + p["position"][position]
  for layer in range(2):
    own = p[f"layer_{layer}"]
    y = _norm(own["attention_norm"], x)
    q, k, v = (_dense(own[name], y) for name in ("query", "key", "value"))
    mixed = []
    for at in np.split(np.arange(WIDTH), HEADS):
      logits = q[:, at] @ k[:, at].T / np.sqrt(len(at))
      weights = np.tril(np.exp(logits))
      mixed.append(weights / weights.sum(1, keepdims=True) @ v[:, at])
    x = x + _dense(own["out"], np.concatenate(mixed, 1))
    y = np.maximum(_dense(own["wide"], _norm(own["feed_forward_norm"], x)), 0)
    x = x + _dense(own["narrow"], y)
  return _norm(p["state_norm"], x[-1])


class SequenceEncoderTest(absltest.TestCase):
  def test_states_are_those_of_plain_numpy(self):
    """A row's states, each out of the sequence's own items alone."""
    _, params, vectors, packed = _setting()
    states = _run()(
      params, vectors[packed.item], packed.position, packed.segment
    )
    checked = 0
    for row in range(len(packed.item)):
      for at in np.flatnonzero(packed.segment[row]):
        own = packed.segment[row] == packed.segment[row, at]
        own &= np.arange(LENGTH) <= at
        expected = _plain(
          params, vectors[packed.item[row, own]], packed.position[row, own]
        )
        np.testing.assert_allclose(states[row, at], expected, atol=1e-4)
        checked += 1
    self.assertEqual(checked, sum(len(x) - 1 for x in LISTS))
    nothing = np.zeros((1, LENGTH), np.int32)
    states = _run()(params, vectors[nothing], nothing, nothing)
    expected = params["params"]["state_norm"]["bias"]
    np.testing.assert_allclose(states[0, -1], expected, atol=1e-5)

  def test_neighbours_in_a_row_do_not_matter(self):
    _, params, vectors, packed = _setting()
    row = int(packed.segment.max(1).argmax())
    self.assertGreater(packed.segment[row].max(), 1)
    other = packed.item[row].copy()
    other[packed.segment[row] == 1] = 7
    arguments = packed.position[row][None], packed.segment[row][None]
    before = _run()(params, vectors[packed.item[row]][None], *arguments)
    after = _run()(params, vectors[other][None], *arguments)
    same = packed.segment[row] == 2
    np.testing.assert_allclose(before[0, same], after[0, same], atol=1e-6)
    first = packed.segment[row] == 1
    self.assertGreater(np.abs(before - after)[0, first].max(), 1e-2)


class ItemRowsTest(absltest.TestCase):
  def test_rows_are_sums(self):
    """Of id, tokens and scaled features; item 10 came after training."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (2, ITEMS + 2))
    features = rng.normal(size=(ITEMS + 2, 3)).astype("f")
    network = sequence.ItemRows(WIDTH, ITEMS, 2, 4)
    item = np.asarray([[3, 0], [9, ITEMS + 1]])
    shapes = jax.eval_shape(
      network.init, jax.random.key(0), item, tokens, features
    )
    params = jax.tree.map(jnp.asarray, _random_like(shapes))
    rows = network.apply(params, item, tokens, features)
    p = params["params"]
    for at in ((0, 0), (1, 0), (1, 1)):
      i = item[at]
      expected = p["token"][0, tokens[0, i]] + p["token"][1, tokens[1, i]]
      scaled = p["feature_scale"] * features[i]
      expected = expected + scaled @ p["feature"]["kernel"]
      expected = expected + p["feature"]["bias"]
      if i <= ITEMS:
        expected = expected + p["id"][i]
      np.testing.assert_allclose(rows[at], expected, atol=1e-5)
    np.testing.assert_array_equal(rows[0, 1], 0.0)

  def test_features_begin_at_a_mean_square_length_of_one(self):
    features = 50 * np.random.default_rng(0).normal(size=(ITEMS + 1, 3))
    features[0] = 0
    network = sequence.ItemRows(WIDTH, ITEMS, ids=False)
    params = network.init(
      jax.random.key(0), np.asarray([1]), None, features.astype("f")
    )
    scaled = params["params"]["feature_scale"] * features[1:]
    self.assertAlmostEqual((scaled**2).sum(1).mean(), 1.0, places=4)

  def test_without_ids_nothing_is_known_of_an_item_alone(self):
    network = sequence.ItemRows(WIDTH, ITEMS, ids=False)
    self.assertEmpty(network.init(jax.random.key(0), np.asarray([1])))


if __name__ == "__main__":
  absltest.main()
