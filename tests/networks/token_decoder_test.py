"""The token decoder against plain NumPy, and its search against all items."""

import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import sid
from hsrl_jax.networks import token_decoder
from hsrl_jax.sid import index as sid_index

LEVELS, VOCAB, WIDTH = 3, 4, 6


@functools.cache
def _setting(constrained=True, hidden=5):
  """Decoder, parameters, index of 20 SIDs of which two are inactive."""
  rng = np.random.default_rng(0)
  numbers = rng.choice(VOCAB**LEVELS, 20, replace=False)
  tokens = np.stack(np.unravel_index(numbers, (VOCAB,) * LEVELS), 1)
  index = sid.build_index(tokens, VOCAB, capacity=22)
  index = sid.remove_items(index, [4, 9])
  decoder = token_decoder.TokenDecoder(
    LEVELS, VOCAB, WIDTH, hidden, 0.5, constrained
  )
  state = rng.normal(size=WIDTH).astype("f")
  params = jax.tree.map(
    lambda x: (0.7 * rng.normal(size=x.shape)).astype("f"),
    jax.eval_shape(decoder.init, jax.random.key(0), index, state),
  )
  return decoder, params, index, tokens, state


def _norm(p, x):
  spread = np.sqrt(x.var() + 1e-6)
  return (x - x.mean()) / spread * p["scale"] + p["bias"]


def _plain(params, tokens, state, item, constrained, hidden):
  """log pi of an item, token by token, in float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]
  active = np.delete(tokens, [3, 8], 0)
  total, context = 0.0, state.astype(np.float64)
  for level, token in enumerate(tokens[item - 1]):
    x = context
    if hidden:
      wide = np.concatenate([context, state])
      wide = wide @ p[f"wide_{level}"]["kernel"] + p[f"wide_{level}"]["bias"]
      # The tanh form of GELU, as in its paper.
      inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
      wide = 0.5 * wide * (1 + np.tanh(inner))
      narrow = p[f"narrow_{level}"]
      x = context + wide @ narrow["kernel"] + narrow["bias"]
    logits = p["kernel"][level] @ x + p["bias"][level]
    if constrained:
      prefix = (active[:, :level] == tokens[item - 1, :level]).all(1)
      allowed = np.isin(np.arange(VOCAB), active[prefix, level])
      logits = np.where(allowed, logits, -np.inf)
    total += logits[token] - np.log(np.exp(logits).sum())
    if level < LEVELS - 1:
      context = _norm(
        p[f"norm_{level}"], context - p["embedding"][level, token]
      )
  return total


class TokenDecoderTest(parameterized.TestCase):
  @parameterized.parameters((True, 5), (False, 5), (True, 0))
  def test_scores_are_those_of_plain_numpy(self, constrained, hidden):
    decoder, params, index, tokens, state = _setting(constrained, hidden)
    scores = jax.jit(
      lambda p, s: decoder.apply(p, index, s, method="score_all")
    )(params, state)
    items = [i for i in range(1, 21) if i not in (4, 9)]
    expected = [
      _plain(params, tokens, state, item, constrained, hidden) for item in items
    ]
    np.testing.assert_allclose(scores[np.asarray(items)], expected, atol=1e-4)
    others = np.setdiff1d(np.arange(23), items)
    self.assertTrue(np.isneginf(scores[others]).all())
    total = np.exp(np.asarray(scores)[items]).sum()
    if constrained:
      self.assertAlmostEqual(total, 1.0, places=4)
    else:
      self.assertLess(total, 0.99)

  @parameterized.parameters(True, False)
  def test_teacher_forcing_and_search_agree_with_scores(self, constrained):
    decoder, params, index, tokens, state = _setting(constrained)

    @jax.jit
    def run(params, state):
      scores = decoder.apply(params, index, state, method="score_all")
      found = decoder.apply(params, index, state, 20, method="search")
      sids = sid_index.sid_of(index, np.arange(1, 21))
      states = np.ones((20, 1), "f") * state[None]
      return (
        scores,
        found,
        decoder.apply(params, index, states, sids, method="taken"),
      )

    scores, found, taken = jax.tree.map(np.asarray, run(params, state))
    own = np.take_along_axis(taken, tokens[..., None], 2)[..., 0].sum(1)
    active = np.isfinite(scores[1:21])
    np.testing.assert_allclose(own[active], scores[1:21][active], atol=1e-4)
    # Beams for all items lose none.
    order = np.argsort(-scores, kind="stable")[:18]
    np.testing.assert_array_equal(found.items[:18], order)
    np.testing.assert_allclose(found.log_probs[:18], scores[order], atol=1e-4)
    self.assertFalse(found.valid[18:].any())

  def test_dropout_depends_on_the_key(self):
    decoder, params, index, _, state = _setting()
    sid_ = np.asarray([0, 0, 0])

    @jax.jit
    def run(key):
      return decoder.apply(params, index, state, sid_, key, method="taken")

    one, again, other = (run(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    self.assertGreater(np.abs(one - other).max(), 1e-3)


if __name__ == "__main__":
  absltest.main()
