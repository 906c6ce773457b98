"""The page of SIDs."""

import re

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.evaluation import sid_quality
from hsrl_jax.report import sid_page


def _random(seed, count=60, levels=3, vocab_size=5, width=4):
  rng = np.random.default_rng(seed)
  codebooks = rng.normal(size=(levels, vocab_size, width)).astype(np.float32)
  number = rng.choice(vocab_size**levels, count, replace=False)
  tokens = np.stack(np.unravel_index(number, (vocab_size,) * levels), 1)
  x = rng.normal(size=(count, width)).astype(np.float32) + 7
  return codebooks, tokens.astype(np.int32), x


class PageTest(parameterized.TestCase):
  def _facts(self, codebooks, tokens, **more):
    levels, vocab_size, _ = codebooks.shape
    return {
      "source": {"name": "my <items>.npy", "digest": ""},
      "levels": levels,
      "vocab_size": vocab_size,
      "fitted": len(tokens),
      "items": len(tokens),
      "sids": len(tokens),
      "variance": 1.0,
      "relative_error": [0.5 / (i + 1) for i in range(levels)],
      "relative_error_unique": 0.1234,
      "collided_items": 17,
      "recall_at_10": None,
      "seconds": {"fit": 1.0, "plain": 0.1, "unique": 0.2},
      "drift": None,
      **sid_quality.occupancy(tokens, vocab_size),
      **more,
    }

  def _render(self, codebooks, tokens, title_of, genres=None):
    facts = self._facts(codebooks[: tokens.shape[1]], tokens)
    return sid_page.render(
      facts, codebooks[: tokens.shape[1]], tokens, title_of, genres
    )

  @parameterized.parameters(1, 2, 3, 4)
  def test_is_whole_and_self_contained(self, levels):
    codebooks, tokens, _ = _random(0, 4, levels)
    facts = self._facts(codebooks, tokens)
    page = sid_page.render(facts, codebooks, tokens, "title {}".format)
    self.assertIn("</html>", page)
    self.assertIn("my &lt;items&gt;.npy", page)
    self.assertIn("12.34%", page)
    self.assertNotIn("Drift", page)
    rest = re.sub(r'src="data:.*?"', "", page)
    self.assertNotRegex(rest, r"(?i)//|url\(|@import|<script|<link|href=|src=")

  def test_shows_who_shares_a_prefix(self):
    codebooks, _, _ = _random(0)
    tokens = np.array([[1, 2, 0], [1, 2, 3], [1, 4, 0], [2, 0, 0]])
    prefixes = sid_page.prefixes(tokens, "<t{}>".format)
    row = {"tokens": [1, 2], "count": 2, "titles": ["<t0>", "<t1>"]}
    self.assertEqual(prefixes["rows"], [row | {"genres": ()}])
    page = self._render(codebooks, tokens, "<t{}>".format)
    self.assertIn("1 · 2 · *", page)
    self.assertEqual(
      re.findall("<li>(.*)</li>", page), ["&lt;t0&gt;", "&lt;t1&gt;"]
    )
    self.assertNotIn("Typical genres", page)
    genres = ["A|B", "A|B", "C", "C"]
    page = self._render(codebooks, tokens, str, genres)
    self.assertIn("Typical genres", page)
    self.assertIn("<td>A, B</td>", page)
    self.assertNotIn("<h3>", self._render(codebooks, tokens[:, :1], str))

  def test_says_that_a_refit_is_due(self):
    codebooks, tokens, _ = _random(0)
    facts = self._facts(codebooks, tokens)
    error = {"plain": [0.9], "unique": 0.95}
    facts["drift"] = sid_quality.drift(facts, 5, error)
    facts["sids"] += 7
    page = sid_page.render(facts, codebooks, tokens, str)
    self.assertIn("<h2>Drift</h2>", page)
    self.assertIn("a refit is due", page)
    self.assertIn("7 items were removed", page)

  def test_a_line_says_how_far_newcomers_drift(self):
    facts = self._facts(*_random(0)[:2], relative_error=[0.1])
    self.assertEqual(sid_page.drift_line(facts), "")
    for lost, text in ((0.1, "; a refit is due beyond"), (0.9, "is due (")):
      error = {"plain": [lost], "unique": lost}
      facts["drift"] = sid_quality.drift(facts | {"drift": None}, 10, error)
      self.assertStartsWith(sid_page.drift_line(facts), "10 items added")
      self.assertIn(text, sid_page.drift_line(facts))

  def test_equal_input_gives_an_equal_page(self):
    codebooks, tokens, _ = _random(0)
    facts = self._facts(codebooks, tokens)
    pages = {sid_page.render(facts, codebooks, tokens, str) for _ in range(2)}
    self.assertLen(pages, 1)


if __name__ == "__main__":
  absltest.main()
