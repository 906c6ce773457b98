"""The token decoder against plain NumPy, and its search against all items."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import sid
from hsrl_jax.networks import token_decoder

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


def _float64(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params)["params"]


def _logits(p, context, state, level, hidden):
  """All tokens' logits of a level, [V], in float64."""
  x = context
  if hidden:
    wide = np.concatenate([context, state])
    wide = wide @ p[f"wide_{level}"]["kernel"] + p[f"wide_{level}"]["bias"]
    # The tanh form of GELU, as in its paper.
    inner = np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    wide = 0.5 * wide * (1 + np.tanh(inner))
    narrow = p[f"narrow_{level}"]
    x = context + wide @ narrow["kernel"] + narrow["bias"]
  return p["kernel"][level] @ x + p["bias"][level]


def _plain(params, tokens, state, item, constrained, hidden):
  """log pi of an item, token by token."""
  p = _float64(params)
  active = np.delete(tokens, [3, 8], 0)
  total, context = 0.0, state.astype(np.float64)
  for level, token in enumerate(tokens[item - 1]):
    logits = _logits(p, context, state, level, hidden)
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


def _own(decoder, params, index, tokens, state):
  """log pi of items 1..20 by teacher forcing."""
  states = jnp.broadcast_to(state, (len(tokens), WIDTH))
  taken = decoder.apply(params, index, states, tokens, method="taken")
  return jnp.take_along_axis(taken, tokens[..., None], 2)[..., 0].sum(1)


class TokenDecoderTest(parameterized.TestCase):
  @parameterized.parameters((True, 5), (False, 5), (True, 0))
  def test_probabilities_are_those_of_plain_numpy(self, constrained, hidden):
    decoder, params, index, tokens, state = _setting(constrained, hidden)
    own = jax.jit(lambda p, s: _own(decoder, p, index, jnp.asarray(tokens), s))
    log_pi = np.asarray(own(params, state))
    active = np.delete(np.arange(20), [3, 8])
    expected = [
      _plain(params, tokens, state, i + 1, constrained, hidden) for i in active
    ]
    np.testing.assert_allclose(log_pi[active], expected, atol=1e-4)
    total = np.exp(log_pi[active]).sum()
    if constrained:
      self.assertAlmostEqual(total, 1.0, places=4)
      self.assertLess(log_pi[[3, 8]].max(), -1e6)
    else:
      self.assertLess(total, 0.99)

  @parameterized.parameters(True, False)
  def test_search_with_a_beam_for_each_item_loses_none(self, constrained):
    decoder, params, index, tokens, state = _setting(constrained)

    @jax.jit
    def run(params, state):
      beams = decoder.apply(params, index, state, 20, method="search")
      return _own(decoder, params, index, jnp.asarray(tokens), state), beams

    log_pi, beams = jax.tree.map(np.array, run(params, state))
    log_pi[[3, 8]] = -np.inf
    order = np.argsort(-log_pi, kind="stable")[:18]
    np.testing.assert_array_equal(beams.items[:18], order + 1)
    np.testing.assert_allclose(beams.log_probs[:18], log_pi[order], atol=1e-4)
    self.assertFalse(beams.valid[18:].any())

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
