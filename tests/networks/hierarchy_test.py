"""The hierarchical policy against plain NumPy."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized
from scipy import special

from hsrl_jax.networks import hierarchy

LEVELS, VOCAB, WIDTH, FEATURES = 3, 5, 4, 2
CODEBOOKS = np.random.default_rng(2).normal(size=(LEVELS, VOCAB, FEATURES))
CODEBOOKS = CODEBOOKS.astype("f")
STATE = np.random.default_rng(1).normal(size=WIDTH).astype("f")


@functools.cache
def _network(semantic):
  network = hierarchy.PolicyNetwork(LEVELS, VOCAB, WIDTH, semantic)
  shapes = jax.eval_shape(network.init, jax.random.key(0), CODEBOOKS, STATE)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f"), shapes)
  return network, params


@functools.cache
def _method(semantic, name):
  network, _ = _network(semantic)
  return jax.jit(functools.partial(network.apply, method=name))


def _expected(semantic, params=None):
  params = params or _network(semantic)[1]
  return _method(semantic, "expected")(params, CODEBOOKS, STATE)


def _plain(semantic):
  """Logits and contexts."""
  p = jax.tree.map(np.float64, _network(semantic)[1])["params"]
  logits, contexts = [], [np.float64(STATE)]
  for level in range(LEVELS):
    kernel, embedding, bias = (
      p[name][level] for name in ("kernel", "embedding", "bias")
    )
    shared = 0.0
    if semantic:
      code = np.float64(CODEBOOKS[level])
      kernel = kernel / 10
      embedding = embedding / 10 + code @ p["embedding_map"]["kernel"]
      bias = bias / 10 + code @ p["bias_map"]["kernel"][:, 0]
      shared = code @ p["meaning_map"]["kernel"] @ contexts[0]
    logits.append(kernel @ contexts[-1] + bias + shared)
    x = contexts[-1] - special.softmax(logits[-1]) @ embedding
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-6)
    norm = p[f"norm_{level}"]
    contexts.append(x * norm["scale"] + norm["bias"])
  return logits, contexts


class PolicyTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_expected_equals_plain_numpy(self, semantic):
    found = _expected(semantic)
    self.assertEqual(found.logits.shape, (LEVELS, VOCAB))
    self.assertEqual(found.contexts.shape, (LEVELS + 1, WIDTH))
    logits, contexts = _plain(semantic)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    np.testing.assert_allclose(found.contexts, contexts, atol=1e-4)

  def test_without_residual_all_levels_see_the_state(self):
    network = hierarchy.PolicyNetwork(
      LEVELS, VOCAB, WIDTH, False, residual=False
    )
    p = _network(False)[1]["params"]
    expected = p["kernel"] @ STATE + p["bias"]
    found = network.apply({"params": p}, CODEBOOKS, STATE, method="expected")
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)
    np.testing.assert_array_equal(found.contexts, [STATE] * (LEVELS + 1))

  def test_refined_scores_are_those_of_the_features_as_they_are(self):
    """Without free rows, the SIDs' score and what they lose make up for it."""
    network, params = _network(True)
    params = jax.tree.map(np.copy, params)
    for name in ("kernel", "embedding", "bias"):
      params["params"][name] *= 0
    sids = np.array([[0, 1, 2], [4, 0, 3]])
    items = np.random.default_rng(3).normal(size=(2, FEATURES)).astype("f")
    lost = items - CODEBOOKS[np.arange(LEVELS), sids].sum(1)
    logits = _expected(True, params).logits
    scores = logits[np.arange(LEVELS), sids].sum(1)
    scores += network.apply(params, lost, STATE, method="meaning")
    p = params["params"]
    expected = items @ p["meaning_map"]["kernel"] @ STATE
    expected += items @ p["bias_map"]["kernel"][:, 0]
    np.testing.assert_allclose(scores, expected, atol=1e-4)

  @parameterized.parameters(True, False)
  def test_init(self, semantic):
    network, _ = _network(semantic)
    params = jax.jit(network.init)(jax.random.key(0), CODEBOOKS, STATE)
    names = {"kernel", "bias", "embedding", "response_bias"}
    names |= {f"norm_{level}" for level in range(LEVELS)}
    if semantic:
      names |= {"meaning_map", "embedding_map", "bias_map"}
    self.assertEqual(set(params["params"]), names)
    # Tokens start apart, but none is preferred: without state, no logit.
    found = _method(semantic, "expected")(params, CODEBOOKS, 0 * STATE)
    np.testing.assert_allclose(found.logits[0], 0.0)
    self.assertGreater(np.ptp(_expected(semantic, params).logits, -1).min(), 0)


if __name__ == "__main__":
  absltest.main()
