"""A slate's view against numbers worked out by hand or in plain numpy."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.agents.hsrl.slate_view import SlateView

K, L, V = 3, 2, 4


class SlateViewTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits = rng.normal(size=(K, L, V)).astype(np.float32)
    self.tokens = rng.integers(0, V, size=(K, L))
    self.view = SlateView(jnp.asarray(self.logits), jnp.asarray(self.tokens))

  def _taken(self, levels):
    return np.array(
      [[levels[k, l, self.tokens[k, l]] for l in range(L)] for k in range(K)]
    )

  def test_log_probs(self):
    norm = np.log(np.exp(self.logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(
      self.view.log_probs(), self._taken(self.logits - norm), rtol=1e-5
    )

  def test_scores_are_additive(self):
    np.testing.assert_allclose(
      self.view.scores(), self._taken(self.logits).sum(1), rtol=1e-5
    )

  def test_an_item_without_a_sid_has_no_score(self):
    view = self.view._replace(tokens=self.view.tokens.at[1].set(-1))
    for found, all_there in (
      (view.scores(), self.view.scores()),
      (view.log_probs(), self.view.log_probs()),
    ):
      np.testing.assert_array_equal(found[1], 0.0 * all_there[1])
      np.testing.assert_array_equal(found[::2], all_there[::2])

  def test_entropy_of_uniform_tokens(self):
    view = self.view._replace(logits=jnp.zeros((K, L, V)))
    np.testing.assert_allclose(view.entropy(), L * np.log(V), rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
