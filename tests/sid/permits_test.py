"""What a request permits: summaries and counts against every item by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import sid
from hsrl_jax.ops import masking
from hsrl_jax.sid import index as sid_index
from hsrl_jax.sid import permits

LEVELS, VOCAB, ITEMS, ROOM, WORDS = 3, 6, 60, 70, 2


def _index():
  rng = np.random.default_rng(0)
  numbers = rng.permutation(VOCAB**LEVELS)[:ITEMS]
  tokens = np.stack(np.unravel_index(numbers, (VOCAB,) * LEVELS), 1)
  active = rng.random(ITEMS) < 0.8
  return sid.build_index(tokens, VOCAB, active, ROOM)


def _tags():
  """Tags of 60 kinds, of which few items have each; times from 0 to 9."""
  rng = np.random.default_rng(1)
  bits = rng.random((ROOM + 1, WORDS, 32)) < 0.15
  words = (bits << np.arange(32)).sum(-1).astype(np.uint32)
  return words, rng.integers(0, 10, ROOM + 1, dtype=np.uint32)


def _allow(rng):
  """A request with some rules, or none."""
  masks = np.zeros((2, WORDS), np.uint32)
  for mask in masks:
    for tag in rng.integers(0, 64, rng.integers(0, 4)):
      mask[tag // 32] |= np.uint32(1 << tag % 32)
  since = rng.integers(0, 10) if rng.random() < 0.5 else 0
  return permits.Allow(*masks, np.uint32(since))


def _by_hand(allow, words, added):
  """Which items are permitted, item by item."""
  result = np.zeros(len(words), bool)
  for item, (own, time) in enumerate(zip(words, added, strict=True)):
    tags = {t for t in range(64) if own[t // 32] >> (t % 32) & 1}
    wanted, banned = (
      {t for t in range(64) if mask[t // 32] >> (t % 32) & 1}
      for mask in allow[:2]
    )
    result[item] = (
      (not wanted or bool(tags & wanted))
      and not tags & banned
      and time >= allow.since
    )
  return result


def _prefixes(index, permitted):
  """Nodes of each level with a permitted active item below, by SIDs."""
  tokens, active = index.sids, np.asarray(index.active)
  there = [set() for _ in range(LEVELS)]
  for item in np.flatnonzero(permitted & active):
    for level in range(LEVELS):
      there[level].add(tuple(tokens[item, : level + 1].tolist()))
  return there


class PermitsTest(parameterized.TestCase):
  def test_an_item_is_permitted_by_all_rules(self):
    words, added = _tags()
    rng = np.random.default_rng(2)
    of = jax.jit(lambda allow: allow.of(words, words, jnp.asarray(added) + 1))
    some = 0
    for _ in range(40):
      allow = _allow(rng)
      want = _by_hand(allow, words, added)
      np.testing.assert_array_equal(of(allow), want)
      some += 0 < want.sum() < len(want)
    self.assertGreater(some, 20)

  def test_prefixes(self):
    """Counts are exact; bounds miss nothing, and are exact of one rule."""
    index, (words, added) = _index(), _tags()
    summaries = jax.device_put(permits.summarise(index, words, added))
    rng = np.random.default_rng(3)

    @jax.jit
    def tokens(allow, permitted, prefix):
      bounded = dataclasses.replace(
        index, permit=permits.Bounds(summaries, allow, jnp.bool(True))
      )
      result = []
      for own in (bounded, permits.exactly(index, permitted)):
        node, may = jnp.int32(0), []
        for level in range(LEVELS):
          may.append(permits.tokens(own, node, level))
          node = sid_index.child(own, node, prefix[level], level)
        result.append(jnp.stack(may))
      return result

    loose = 0
    for _ in range(60):
      allow = _allow(rng)
      permitted = _by_hand(allow, words, added)
      there = _prefixes(index, permitted)
      prefix = index.sids[rng.integers(1, ITEMS + 1)]
      bounds, counts = tokens(allow, permitted, jnp.int32(prefix))
      want = np.array(
        [
          [(*prefix[:level], v) in there[level] for v in range(VOCAB)]
          for level in range(LEVELS)
        ]
      )
      np.testing.assert_array_equal(counts, want)
      self.assertTrue((np.asarray(bounds) >= want).all())
      np.testing.assert_array_equal(bounds[-1], want[-1])
      rules = sum(x.any() for x in allow)
      excluded = np.bitwise_count(allow.exclude).sum()
      if rules == 0 or (rules == 1 and excluded <= 1):
        np.testing.assert_array_equal(bounds, want)
      loose += (np.asarray(bounds) > want).any()
    self.assertGreater(loose, 0)  # Else there were no rules together.

  def test_searches_of_counts_find_the_best_permitted_items(self):
    index, (words, added) = _index(), _tags()
    rng = np.random.default_rng(4)
    log_probs = jax.nn.log_softmax(
      jnp.asarray(rng.normal(size=(LEVELS, VOCAB)), jnp.float32)
    )

    @jax.jit
    def search(permitted, excluded):
      return sid.beam_search(
        permits.exactly(index, permitted),
        (),
        lambda _, level: log_probs[level],
        lambda context, token, level: context,
        beams=4,
        excluded=excluded,
      )

    scores = np.asarray(log_probs)[np.arange(LEVELS), index.sids]
    for _ in range(20):
      permitted = _by_hand(_allow(rng), words, added)
      excluded = rng.integers(1, ITEMS + 1, 9)
      beams = search(permitted, excluded)
      usable = permitted & np.asarray(index.active)
      usable[excluded] = False
      found = np.asarray(beams.items)[np.asarray(beams.valid)]
      self.assertTrue(usable[found].all())
      self.assertLen(found, min(4, usable.sum()))
      if usable.sum() <= 4:
        self.assertCountEqual(found, np.flatnonzero(usable))
      else:
        worst = scores.sum(-1)[found].min()
        # A beam may lose the best items, but never all of them.
        self.assertGreaterEqual(
          np.sort(scores.sum(-1)[usable])[-1], worst - 1e-6
        )

  @parameterized.parameters(1, 3, 7)
  def test_leaves_below_beams(self, beams):
    """The best permitted ones of all, however many a beam has."""
    rng = np.random.default_rng(5)
    vocab = 96
    tokens = [(v, w) for v in range(8) for w in range(v, vocab, v // 3 + 1)]
    index = sid.build_index(np.array(tokens), vocab)
    words = rng.integers(0, 8, (len(tokens) + 1, 1), dtype=np.uint32)
    none = np.zeros(len(words), np.uint32)
    allow = permits.Allow(*np.array([[1], [4]], np.uint32), np.uint32(0))
    own = dataclasses.replace(
      index,
      permit=permits.Bounds(
        jax.device_put(permits.summarise(index, words, none)),
        allow,
        jnp.bool(True),
      ),
    )
    node = np.concatenate([rng.permutation(8)[: beams - 1], [-1]])
    score = rng.normal(size=(beams, vocab)).astype(np.float32)
    score[rng.random(score.shape) < 0.2] = masking.NEGATIVE
    best, leaf = jax.jit(permits.best_leaves, static_argnums=3)(
      own, jnp.asarray(node), jnp.asarray(score), 200
    )
    want = {}
    for item, (v, w) in enumerate(tokens, 1):
      if v in node and words[item, 0] & 1 and not words[item, 0] & 4:
        value = score[node.tolist().index(v), w]
        if value > masking.NEGATIVE / 2:
          want[item] = value
    found = np.asarray(sid_index.item_of(index, leaf))
    count = len(want)
    self.assertEqual(dict(zip(found[:count], best[:count], strict=True)), want)
    self.assertFalse(found[count:].any())
    self.assertTrue((np.diff(best) <= 0).all())

  def test_empty_index(self):
    index = sid.build_index(np.zeros((0, LEVELS), int), VOCAB, capacity=4)
    none = np.zeros((5, 1), np.uint32)
    summaries = permits.summarise(index, none, none[:, 0])
    self.assertFalse(any(x[..., -1].any() for x in summaries))
    changed = permits.exactly(index, jnp.ones(5, bool))
    self.assertFalse(changed.active.any())
    self.assertFalse(any(x.any() for x in changed.live))


if __name__ == "__main__":
  absltest.main()
