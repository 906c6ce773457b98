"""The encoder against plain NumPy attention over all positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.networks import encoder

ITEMS, FEATURES, PROFILE, LENGTH = 9, 3, 2, 6
WIDTH, LAYERS, HEADS = 8, 2, 2
HISTORIES = np.asarray(
  [
    [3, 1, 4, 1, 5, 9],
    [0, 0, 0, 2, 6, 5],
    [0, 0, 0, 0, 0, 7],
    [0, 0, 0, 0, 0, 0],
  ]
)


def _random_like(params, seed=0):
  """Values for all parameters, so that no zero bias hides a mistake."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: (0.5 * rng.normal(size=x.shape)).astype("f"), params
  )


def _inputs(seed=1):
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(ITEMS + 1, FEATURES)).astype("f")
  return features, rng.normal(size=(PROFILE,)).astype("f")


@functools.cache
def _network(dropout=0.25, layers=LAYERS):
  network = encoder.Encoder(WIDTH, layers, HEADS, dropout)
  features, profile = _inputs()
  shapes = jax.eval_shape(
    network.init,
    jax.random.key(0),
    features,
    profile,
    HISTORIES[0],
  )
  return network, _random_like(shapes)


@functools.cache
def _run(dropout=0.25, layers=LAYERS):
  """The jitted network over a batch of histories."""
  network, _ = _network(dropout, layers)

  @jax.jit
  def run(params, features, profile, histories, key=None):
    return jax.vmap(
      lambda h: network.apply(
        params,
        features,
        profile,
        h,
        None,
        key,
      )
    )(histories)

  return run


def _dense(p, x):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _norm(p, x):
  spread = np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return (x - x.mean(-1, keepdims=True)) / spread * p["scale"] + p["bias"]


def _plain(params, features, profile, history, layers=LAYERS):
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
  hidden = np.maximum(_dense(p["profile_hidden"], profile), 0.0)
  user = _dense(p["profile"], hidden)
  x = _dense(p["item"], features[history]) + p["position"] + user[:WIDTH]
  x = _norm(p["norm"], x)
  for layer in range(layers):
    q = p[f"layer_{layer}"]
    queries, keys, values = (
      _dense(q[name], x) for name in ("query", "key", "value")
    )
    mixed = np.zeros_like(x)
    size = WIDTH // HEADS
    for head in range(HEADS):
      part = slice(head * size, (head + 1) * size)
      for t in range(LENGTH):
        past = [s for s in range(t + 1) if history[s] > 0]
        if past:
          logits = keys[past, part] @ queries[t, part] / np.sqrt(size)
          weights = np.exp(logits - logits.max())
          mixed[t, part] = weights @ values[past, part] / weights.sum()
    x = _norm(q["attention_norm"], x + _dense(q["out"], mixed))
    hidden = np.maximum(_dense(q["wide"], x), 0.0)
    x = _norm(q["feed_forward_norm"], x + _dense(q["narrow"], hidden))
  state = x[-1] if history[-1] > 0 else np.zeros(WIDTH)
  return _norm(p["state_norm"], state + user[WIDTH:])


class EncoderTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_equals_plain_numpy(self, layers):
    _, params = _network(layers=layers)
    features, profile = _inputs()
    found = _run(layers=layers)(params, features, profile, HISTORIES)
    expected = [_plain(params, features, profile, h, layers) for h in HISTORIES]
    np.testing.assert_allclose(found, expected, atol=1e-4)

  def test_padding_content_does_not_matter(self):
    _, params = _network()
    features, profile = _inputs()
    expected = _run()(params, features, profile, HISTORIES)
    other = features.copy()
    other[0] = 100.0
    # Positions of padding do not matter either.
    tree = params["params"]
    position = tree["position"].copy()
    position[:3] = 10.0 * position[:3][::-1]
    moved = {"params": tree | {"position": position}}
    np.testing.assert_allclose(
      _run()(params, other, profile, HISTORIES), expected, atol=1e-6
    )
    found = _run()(moved, features, profile, HISTORIES)
    np.testing.assert_allclose(found[1:], expected[1:], atol=1e-6)
    self.assertGreater(np.abs(found[0] - expected[0]).max(), 1e-3)

  def test_amount_of_padding_does_not_matter(self):
    network, params = _network()
    features, profile = _inputs()
    expected = _run()(params, features, profile, HISTORIES)[1]
    tree = params["params"]
    short = {"params": tree | {"position": tree["position"][3:]}}
    apply = jax.jit(network.apply)
    found = apply(short, features, profile, HISTORIES[1, 3:])
    np.testing.assert_allclose(found, expected, atol=1e-5)

  def test_every_item_and_the_profile_matter(self):
    _, params = _network()
    features, profile = _inputs()
    expected = _run()(params, features, profile, HISTORIES)
    for place in range(LENGTH):
      other = HISTORIES.copy()
      other[0, place] = 8
      found = _run()(params, features, profile, other)
      self.assertGreater(np.abs(found[0] - expected[0]).max(), 1e-4)
    found = _run()(params, features, profile + 1.0, HISTORIES)
    self.assertGreater(np.abs(found - expected).max(-1).min(), 1e-3)

  def test_without_a_profile(self):
    network, _ = _network()
    features, _ = _inputs()
    init = jax.jit(network.init)
    params = init(jax.random.key(0), features, jnp.zeros(0), HISTORIES[0])
    self.assertNotIn("profile", params["params"])
    found = _run()(params, features, jnp.zeros(0), HISTORIES)
    self.assertTrue(np.isfinite(found).all())
    # With neither history nor profile, the state is what the norm makes of 0.
    np.testing.assert_allclose(found[-1], 0.0, atol=1e-6)

  def test_gradients_are_finite(self):
    _, params = _network()
    features, profile = _inputs()
    run = _run()

    @jax.jit
    @jax.grad
    def gradient(params, histories):
      return (run(params, features, profile, histories) ** 2).sum()

    for row in (1, 3):
      leaves = jax.tree.leaves(gradient(params, HISTORIES[[row]]))
      self.assertTrue(all(np.isfinite(x).all() for x in leaves))
      self.assertGreater(max(np.abs(x).max() for x in leaves), 1e-3)


class DropoutTest(parameterized.TestCase):
  def test_key_decides(self):
    _, params = _network()
    inputs = (params, *_inputs(), HISTORIES[:1])
    run = _run()
    one, again = (run(*inputs, key=jax.random.key(0)) for _ in range(2))
    other = run(*inputs, key=jax.random.key(1))
    np.testing.assert_array_equal(one, again)
    self.assertGreater(np.abs(one - other).max(), 1e-3)
    self.assertGreater(np.abs(one - _run()(*inputs)).max(), 1e-3)

  def test_no_rate_is_no_dropout(self):
    _, params = _network()
    inputs = (params, *_inputs(), HISTORIES)
    np.testing.assert_allclose(
      _run(dropout=0.0)(*inputs, key=jax.random.key(0)),
      _run()(*inputs),
      atol=1e-6,
    )

  @parameterized.parameters(0.1, 0.25, 0.5)
  def test_scales(self, rate):
    shapes = [(301, 50), (7,), (50, 301)]
    scales = encoder.dropout_scales(jax.random.key(0), rate, shapes)
    self.assertEqual([x.shape for x in scales], shapes)
    dropped = round(256 * rate) / 256
    for x in (scales[0], scales[2]):
      x = np.asarray(x, np.float64)
      np.testing.assert_allclose(np.unique(x), [0.0, 1 / (1 - dropped)])
      error = np.sqrt(dropped * (1 - dropped) / x.size)
      self.assertAlmostEqual((x == 0).mean(), dropped, delta=4 * error)
      self.assertAlmostEqual(x.mean(), 1.0, delta=4 * error / (1 - dropped))
    # Arrays, rows and columns are independent.
    one, two = (np.asarray(x).ravel() for x in (scales[0], scales[2]))
    for a, b in ((one, two), (one[1:], one[:-1]), (one[4:], one[:-4])):
      self.assertLess(abs(np.corrcoef(a, b)[0, 1]), 4 / np.sqrt(a.size))


if __name__ == "__main__":
  absltest.main()
