"""Constrained beam search against rankings of the whole catalogue."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from scipy import special, stats
from sklearn.datasets import load_digits

from hsrl_jax.sid import quantizer, resolve, trie
from hsrl_jax.sid.beam_search import beam_search

LEVELS, VOCAB, ITEMS, INACTIVE, USERS = 3, 4, 30, 6, 20
WIDTH = 3


class _Free:
  """A policy whose levels are independent given the state."""

  def __init__(self, levels=LEVELS, vocab=VOCAB):
    self.shape = (levels, vocab)

  def log_prob(self, context, level):
    return context[level]

  def advance(self, context, token, level):
    del token, level
    return context

  def contexts(self, seed, users):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(users, *self.shape))
    return special.log_softmax(logits, -1).astype("f")

  def reference(self, context, sid):
    """log p of each level's tokens on the way to `sid`, [L, V]."""
    del sid
    return context.astype(np.float64)


class _Dependent:
  """A policy whose next level depends on the tokens before it."""

  def __init__(self, levels=LEVELS, vocab=VOCAB):
    rng = np.random.default_rng(7)
    self.kernel = rng.normal(size=(levels, WIDTH, vocab)).astype("f")
    self.embedding = rng.normal(size=(levels, vocab, WIDTH)).astype("f")

  def log_prob(self, context, level):
    return jax.nn.log_softmax(context @ self.kernel[level])

  def advance(self, context, token, level):
    return jnp.tanh(context - jnp.asarray(self.embedding)[level, token])

  def contexts(self, seed, users):
    return np.random.default_rng(seed).normal(size=(users, WIDTH)).astype("f")

  def reference(self, context, sid):
    """log p of each level's tokens on the way to `sid`, [L, V]."""
    context, rows = context.astype(np.float64), []
    for level, token in enumerate(sid):
      rows.append(special.log_softmax(context @ self.kernel[level]))
      context = np.tanh(context - self.embedding[level, token])
    return np.stack(rows)


def _log_prob_of(policy, context, prefix):
  rows = policy.reference(context, prefix)
  return sum(rows[level][token] for level, token in enumerate(prefix))


def _all_log_probs(policy, context, tokens):
  return np.asarray([_log_prob_of(policy, context, t) for t in tokens.tolist()])


def _catalogue(levels=LEVELS, vocab=VOCAB, items=ITEMS, inactive=INACTIVE):
  rng = np.random.default_rng(3)
  every = np.asarray(list(itertools.product(range(vocab), repeat=levels)))
  tokens = every[rng.choice(len(every), items, replace=False)]
  active = np.ones(items, bool)
  active[rng.choice(items, inactive, replace=False)] = False
  return tokens, active, trie.build_index(tokens, vocab, active)


def _reference(policy, context, tokens, active, beams, excluded=()):
  """A plain beam search over prefixes: (item, log pi), best first."""
  alive = {
    tuple(t): i + 1
    for i, t in enumerate(tokens.tolist())
    if active[i] and i + 1 not in excluded
  }
  kept = [()]
  for length in range(1, tokens.shape[1] + 1):
    prefixes = {sid[:length] for sid in alive if sid[: length - 1] in kept}
    ranked = sorted(prefixes, key=lambda p: -_log_prob_of(policy, context, p))
    kept = ranked[:beams]
  return [(alive[sid], _log_prob_of(policy, context, sid)) for sid in kept]


@functools.cache
def _program(make, beams):
  """The search for many users; tests with the same shapes share it."""
  policy = make()

  @jax.jit
  def run(index, contexts, excluded):
    return jax.vmap(
      lambda c, e: beam_search(
        index, c, policy.log_prob, policy.advance, beams=beams, excluded=e
      )
    )(contexts, excluded)

  return run


class SearchTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.tokens, self.active, self.index = _catalogue()

  def _search(self, policy, contexts, beams, excluded=None):
    run = _program(type(policy), beams)
    return jax.tree.map(np.asarray, run(self.index, contexts, excluded))

  def _check_sound(self, found, policy, contexts):
    """What is returned exists, once, and is scored as it should be."""
    for user, context in enumerate(contexts):
      valid = found.valid[user]
      items = found.items[user][valid]
      self.assertLen(set(items.tolist()), len(items))
      self.assertTrue(self.active[items - 1].all())
      np.testing.assert_array_equal(
        found.tokens[user][valid], self.tokens[items - 1]
      )
      np.testing.assert_allclose(
        found.log_probs[user][valid],
        _all_log_probs(policy, context, self.tokens[items - 1]),
        atol=1e-4,
      )
      np.testing.assert_array_equal(found.items[user][~valid], 0)
      np.testing.assert_array_equal(found.tokens[user][~valid], -1)
      np.testing.assert_array_equal(found.log_probs[user][~valid], 0)
      self.assertTrue((np.diff(found.scores[user]) <= 0).all())

  @parameterized.product(
    make=(_Free, _Dependent), beams=(ITEMS - INACTIVE, VOCAB**LEVELS + 3)
  )
  def test_exhaustive_width_ranks_the_catalogue(self, make, beams):
    policy = make()
    contexts = policy.contexts(0, USERS)
    found = self._search(policy, contexts, beams)
    self.assertEqual(found.items.shape, (USERS, beams))
    self._check_sound(found, policy, contexts)
    for user, context in enumerate(contexts):
      scores = _all_log_probs(policy, context, self.tokens)
      ranking = np.argsort(-np.where(self.active, scores, -np.inf)) + 1
      ranking = ranking[: self.active.sum()]
      valid = found.valid[user]
      # Best first, and what is missing comes last.
      np.testing.assert_array_equal(valid, np.arange(beams) < self.active.sum())
      np.testing.assert_array_equal(found.items[user][valid], ranking)
      np.testing.assert_allclose(
        found.scores[user][valid], scores[ranking - 1], atol=1e-4
      )

  @parameterized.product(make=(_Free, _Dependent), beams=(1, 3))
  def test_narrow_width_equals_plain_beam_search(self, make, beams):
    policy = make()
    contexts = policy.contexts(1, USERS)
    found = self._search(policy, contexts, beams)
    self._check_sound(found, policy, contexts)
    for user, context in enumerate(contexts):
      expected = _reference(policy, context, self.tokens, self.active, beams)
      items, scores = zip(*expected, strict=True)
      np.testing.assert_array_equal(found.items[user], items)
      np.testing.assert_allclose(found.scores[user], scores, atol=1e-4)

  @parameterized.parameters(_Free, _Dependent)
  def test_excluded_items_cost_no_beam(self, make):
    policy = make()
    rng = np.random.default_rng(2)
    contexts = policy.contexts(2, USERS)
    beams = VOCAB ** (LEVELS - 1)  # Every prefix above the last level.
    # For each user another number of the best items, then padding.
    excluded = np.zeros((USERS, 8), np.int32)
    rankings = []
    for user, context in enumerate(contexts):
      scores = _all_log_probs(policy, context, self.tokens)
      ranking = np.argsort(-np.where(self.active, scores, -np.inf)) + 1
      ranking = ranking[: self.active.sum()]
      count = 2 * (user % 5)
      excluded[user, :count] = rng.permutation(ranking[:count])
      rankings.append(ranking[count:][:beams])
    found = self._search(policy, contexts, beams, excluded)
    self._check_sound(found, policy, contexts)
    for user, ranking in enumerate(rankings):
      self.assertEmpty(set(found.items[user]) & set(excluded[user]) - {0})
      np.testing.assert_array_equal(found.items[user], ranking)
      self.assertTrue(found.valid[user].all())

  @parameterized.parameters(_Free, _Dependent)
  def test_excluded_with_few_beams(self, make):
    policy = make()
    contexts = policy.contexts(4, USERS)
    excluded = [
      self._search(policy, contexts, 2).items,
      np.zeros((USERS, 1), int),
    ]
    excluded = np.concatenate(excluded, 1)
    found = self._search(policy, contexts, 3, excluded)
    self._check_sound(found, policy, contexts)
    for user, context in enumerate(contexts):
      expected = _reference(
        policy, context, self.tokens, self.active, 3, excluded[user]
      )
      items, _ = zip(*expected, strict=True)
      count = len(items)
      np.testing.assert_array_equal(found.items[user][:count], items)
      np.testing.assert_array_equal(found.valid[user], np.arange(3) < count)

  @parameterized.parameters((_Free, 2), (_Dependent, 1), (_Dependent, 5))
  def test_excluded_prefixes_take_no_beam(self, make, beams):
    """Users who have seen most of the items, with few beams at all levels."""
    policy = make()
    rng = np.random.default_rng(5)
    users = 40
    contexts = policy.contexts(6, users)
    # With some twice, inactive ones, padding and ids that are none.
    excluded = rng.integers(0, ITEMS + 1, (users, 2 * ITEMS))
    excluded[:, 0] = -1
    excluded[:, 1] = ITEMS + 1
    found = self._search(policy, contexts, beams, excluded.astype(np.int32))
    self._check_sound(found, policy, contexts)
    closed = 0
    for user, context in enumerate(contexts):
      out = set(excluded[user].tolist())
      expected = _reference(
        policy, context, self.tokens, self.active, beams, out
      )
      items = [item for item, _ in expected]
      self.assertEqual(
        found.items[user].tolist(), items + [0] * (beams - len(items))
      )
      self.assertEqual(found.valid[user].sum(), len(items))
      alive = np.flatnonzero(self.active) + 1
      rest = [item for item in alive if item not in out]
      first = self.tokens[:, 0]
      closed += len(set(first[alive - 1])) - len(
        set(first[np.asarray(rest, int) - 1])
      )
    self.assertGreater(closed, users)

  def test_everything_excluded(self):
    policy = _Free()
    contexts = policy.contexts(0, 1)
    excluded = np.arange(1, ITEMS + 1)[None]
    found = self._search(policy, contexts, 4, excluded)
    self.assertFalse(found.valid.any())
    np.testing.assert_array_equal(found.items, 0)

  def test_one_active_item_is_always_found(self):
    policy = _Dependent()
    for item in (1, ITEMS):
      active = np.arange(1, ITEMS + 1) == item
      self.index = trie.build_index(self.tokens, VOCAB, active)
      found = self._search(policy, policy.contexts(5, USERS), 2)
      np.testing.assert_array_equal(found.items, [[item, 0]] * USERS)
      np.testing.assert_array_equal(found.valid, [[True, False]] * USERS)

  def test_no_active_item(self):
    self.index = trie.build_index(self.tokens, VOCAB, np.zeros(ITEMS, bool))
    policy = _Free()
    found = self._search(policy, policy.contexts(5, USERS), 3)
    self.assertFalse(found.valid.any())
    np.testing.assert_array_equal(found.items, 0)


def _recalls(tokens, vocab, logits, widths):
  """The share of the exact ten best of users [U, L, V] in beams of widths."""
  index = trie.build_index(tokens, vocab)
  scores = logits[:, np.arange(tokens.shape[1]), tokens].sum(-1)
  best = np.argsort(-scores, 1)[:, :10] + 1

  def search(logits, beams):
    return beam_search(
      index,
      (),
      lambda context, level: logits[level],
      lambda context, token, level: context,
      beams=beams,
    ).items

  recalls = []
  for beams in widths:
    found = jax.jit(jax.vmap(functools.partial(search, beams=beams)))(logits)
    held = [np.isin(b, f).mean() for b, f in zip(best, found, strict=True)]
    recalls.append(np.mean(held))
  return recalls


class RecallTest(absltest.TestCase):
  """How often B beams hold the exact ten best."""

  @pytest.mark.slow
  def test_of_images(self):
    """Digits as items; users like what two of them have in common."""
    images = load_digits().data.astype("f") / 16.0
    images -= images.mean(0)
    codebooks = quantizer.fit(
      jax.random.key(0), images, levels=3, vocab_size=16, iterations=10
    )
    tokens = resolve.encode_unique(np.asarray(codebooks), images)
    liked = np.random.default_rng(0).integers(len(images), size=(60, 2))
    logits = np.einsum("ud,lvd->ulv", images[liked].mean(1), codebooks)
    # The last width keeps all prefixes of two tokens.
    recalls = _recalls(tokens, 16, logits, (10, 20, 256))
    self.assertBetween(recalls[0], 0.9, 0.999)
    self.assertBetween(recalls[1], 0.99, 1.0)
    self.assertEqual(recalls[2], 1.0)

  @pytest.mark.slow
  def test_of_random_logits(self):
    """Harder: few items, of which coarse tokens say no more than fine ones."""
    rng = np.random.default_rng(0)
    numbers = rng.choice(16**3, 200, replace=False)
    tokens = np.stack(np.unravel_index(numbers, (16, 16, 16)), 1)
    logits = rng.normal(size=(60, 3, 16)).astype("f")
    recalls = _recalls(tokens, 16, logits, (10, 20, 40, 256))
    self.assertTrue((np.diff(recalls) > 0.02).all(), recalls)
    self.assertGreater(recalls[0], 0.3)
    self.assertEqual(recalls[-1], 1.0)


DRAWS = 20_000


@functools.cache
def _draws(make, beams, temperature, excluded=()):
  """Many samples from a space so small that all outcomes can be counted."""
  tokens, active, index = _catalogue(levels=2, vocab=3, items=7, inactive=1)
  policy = make(2, 3)
  (context,) = policy.contexts(6, 1)

  def draw(key):
    return beam_search(
      index,
      context,
      policy.log_prob,
      policy.advance,
      beams=beams,
      excluded=jnp.asarray(excluded, jnp.int32),
      temperature=temperature,
      key=key,
    )

  found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), DRAWS))
  left = active & ~np.isin(np.arange(1, len(active) + 1), excluded)
  return jax.tree.map(np.asarray, found), tokens, left, policy, context


class SampleTest(parameterized.TestCase):
  def _distribution(self, tokens, active, policy, context, temperature):
    """pi^(1/T), renormalised over the valid tokens of each level; [N]."""
    alive = tokens[active].tolist()
    result = np.zeros(len(tokens))
    for item, sid in enumerate(tokens.tolist()):
      if not active[item]:
        continue
      result[item] = 1.0
      weights = np.exp(policy.reference(context, sid) / temperature)
      for level, token in enumerate(sid):
        valid = {t[level] for t in alive if t[:level] == sid[:level]}
        result[item] *= weights[level][token] / sum(
          weights[level][v] for v in valid
        )
    return result

  @parameterized.product(
    make=(_Free, _Dependent), beams_temperature=((6, 0.5), (2, 2.0))
  )
  def test_first_item_follows_the_policy(self, make, beams_temperature):
    beams, temperature = beams_temperature
    found, *space = _draws(make, beams, temperature)
    expected = self._distribution(*space, temperature)
    self.assertAlmostEqual(expected.sum(), 1.0, places=5)
    self.assertTrue(found.valid[:, 0].all())
    counts = np.bincount(found.items[:, 0] - 1, minlength=len(expected))
    active = space[1]
    self.assertEqual(counts[~active].sum(), 0)
    test = stats.chisquare(counts[active], DRAWS * expected[active])
    self.assertGreater(test.pvalue, 1e-3)
    # The test has power: untempered, this would not pass.
    other = self._distribution(*space, 1.0)
    test = stats.chisquare(counts[active], DRAWS * other[active])
    self.assertLess(test.pvalue, 1e-12)

  @parameterized.parameters(_Free, _Dependent)
  def test_pairs_are_draws_without_replacement(self, make):
    """P(i, j) = p_i p_j / (1 - p_i), with fewer beams than items."""
    found, *space = _draws(make, 2, 2.0)
    p = self._distribution(*space, 2.0)
    pairs = np.zeros((len(p), len(p)))
    np.add.at(pairs, tuple(found.items.T - 1), 1)
    expected = DRAWS * p[:, None] * p[None] / (1.0 - p[:, None])
    possible = expected * (1 - np.eye(len(p))) > 0
    self.assertEqual(possible.sum(), 6 * 5)
    self.assertEqual(pairs[~possible].sum(), 0)
    test = stats.chisquare(pairs[possible], expected[possible])
    self.assertGreater(test.pvalue, 1e-3)

  @parameterized.parameters(_Free, _Dependent)
  def test_exhaustive_sample_holds_every_item_once(self, make):
    found, tokens, active, policy, context = _draws(make, 6, 0.5)
    ids = np.flatnonzero(active) + 1
    self.assertTrue(found.valid.all())
    np.testing.assert_array_equal(
      np.sort(found.items, 1), np.broadcast_to(ids, (DRAWS, 6))
    )
    np.testing.assert_array_equal(found.tokens, tokens[found.items - 1])
    # Ordered by the noisy score; log_probs have neither noise nor temperature.
    self.assertTrue((np.diff(found.scores, axis=1) <= 0).all())
    log_probs = _all_log_probs(policy, context, tokens)
    np.testing.assert_allclose(
      found.log_probs, log_probs[found.items - 1], atol=1e-4
    )

  @parameterized.parameters(_Free, _Dependent)
  def test_the_rest_is_sampled_where_a_prefix_is_excluded(self, make):
    tokens, active, _ = _catalogue(levels=2, vocab=3, items=7, inactive=1)
    first = np.bincount(tokens[active, 0]).argmin()  # The smallest prefix.
    excluded = np.flatnonzero(active & (tokens[:, 0] == first)) + 1
    self.assertBetween(len(excluded), 1, 2)
    found, *space = _draws(make, 2, 2.0, tuple(excluded.tolist()))
    expected = self._distribution(*space, 2.0)
    self.assertAlmostEqual(expected.sum(), 1.0, places=5)
    self.assertTrue(found.valid.all())
    counts = np.bincount(found.items[:, 0] - 1, minlength=len(expected))
    left = space[1]
    self.assertEqual(counts[~left].sum(), 0)
    test = stats.chisquare(counts[left], DRAWS * expected[left])
    self.assertGreater(test.pvalue, 1e-3)

  def test_excluded_items_are_never_sampled(self):
    _, active, index = _catalogue()
    policy = _Dependent()
    (context,) = policy.contexts(0, 1)
    excluded = (np.flatnonzero(active)[::2] + 1).astype(np.int32)

    @jax.jit
    @jax.vmap
    def draw(key):
      return beam_search(
        index,
        context,
        policy.log_prob,
        policy.advance,
        beams=16,
        excluded=excluded,
        key=key,
      )

    found = draw(jax.random.split(jax.random.key(1), 500))
    rest = np.flatnonzero(active)[1::2] + 1
    items = np.sort(found.items, 1)[:, -len(rest) :]
    np.testing.assert_array_equal(
      items, np.broadcast_to(rest, (500, len(rest)))
    )
    np.testing.assert_array_equal(found.valid.sum(1), len(rest))


if __name__ == "__main__":
  absltest.main()
