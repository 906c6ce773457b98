"""PPO over categories, against plain NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.sim import observed
from tests import toy
from tests.agents import checks

RNG = np.random.default_rng(5)
# Of each item none to three of five categories, of which one has no items.
CATEGORIES = RNG.random((toy.ITEMS + 1, 5)) < 0.3
CATEGORIES[[0, 11, 12]] = False
CATEGORIES[:, 3] = False
BANNED = [2, 7, 30]


def _kind(item):
  """The rarest category of an item, the first of equal ones; 5: none."""
  own = np.flatnonzero(CATEGORIES[item])
  return min(own, key=lambda c: (CATEGORIES[:, c].sum(), c), default=5)


KINDS = np.array([_kind(item) for item in range(toy.ITEMS + 1)])


@functools.cache
def _made():
  made = checks.made("ppo_categories", repeat_penalty=0.7)
  seen = observed.start(*made.observation[:2], 8)
  for slate, response in (([3, 4, 5], [1, 0, 1]), ([9, 20, 0], [0, 1, 0])):
    seen = observed.after(seen, jnp.asarray(slate), jnp.asarray(response, "f"))
  catalogue = made.catalogue._replace(categories=jnp.asarray(CATEGORIES))
  init = (checks.KEY, catalogue, seen)
  # Of the rest nothing is computed.
  kinds = jax.jit(lambda *args: made.agent.init(*args)["kinds"])(*init)
  params = checks.random_params(made.agent, seen, 1, catalogue)
  own = params["policy"]["params"]
  own["user"] = jax.tree.map(lambda x: x / 20, own["user"])
  params["kinds"] = kinds
  return made._replace(params=params, catalogue=catalogue, observation=seen)


def _by_response_head(made):
  """The agent before RL: estimates and what is in the slate alone count."""
  policy, kept = made.params["policy"]["params"], {}
  for name, own in policy.items():
    known = ("response", "user_hidden", "user", "vector_map", "position")
    kept[name] = own if name in known else jax.tree.map(jnp.zeros_like, own)
  kept["repeat"] = jnp.array([0.7, 0.4, 0.0])
  return made._replace(params=made.params | {"policy": {"params": kept}})


@functools.cache
def _choices(agent):
  def choices(params, catalogue, observation, slate, notes):
    one = checks.transition(
      observation,
      slate=slate,
      response=jnp.ones(toy.SLATE),
      hidden=jnp.zeros(0),
      notes=notes,
    )
    return agent.on_policy.choices(params, catalogue, one, None)

  return jax.jit(jax.vmap(choices, (None, None, None, 0, 0)))


def _row(tree, row):
  return jax.tree.map(lambda x: x[row], tree)


class _Brute:
  """The choices of a slate one by one, by loops over the items."""

  def __init__(self, made, user):
    own = made.params["policy"]["params"]
    features = np.asarray(made.catalogue.features, np.float64)
    self.logits = features @ own["vector_map"]["kernel"] @ user[:-1]
    self.position, self.bias = np.asarray(own["position"]), user[-1]
    self.penalties = np.asarray(own["repeat"])
    there = sorted(set(KINDS[1:]))
    means = {c: features[1:][KINDS[1:] == c].mean(0) for c in there}
    centre = np.mean(list(means.values()), 0)
    unit = {
      c: (x - centre) / np.linalg.norm(x - centre) for c, x in means.items()
    }
    self.like = {
      (a, b): max(unit[a] @ unit[b], 0) for a in there for b in there
    }

  def slot(self, before):
    """Best item and log-probability of each category that has items left."""
    left = set(range(1, toy.ITEMS + 1)) - {*BANNED, *before}
    best, logits = {}, {}
    for kind in {KINDS[item] for item in left}:
      items = [item for item in left if KINDS[item] == kind]
      best[kind] = max(items, key=lambda item: self.logits[item])
      logits[kind] = self.logits[best[kind]] / 0.5
      for place, item in enumerate(before):
        chance = self.logits[item] + self.bias + self.position[place]
        likes = 1 / (1 + np.exp(-chance))
        lost = self.penalties[0] + self.penalties[1] * likes
        logits[kind] -= lost * self.like[KINDS[item], kind]
    total = np.log(sum(np.exp(x) for x in logits.values()))
    return best, {kind: x - total for kind, x in logits.items()}


class CategoriesTest(absltest.TestCase):
  def test_an_item_has_the_rarest_of_its_categories_or_that_of_none(self):
    kinds = np.asarray(_made().params["kinds"])
    self.assertEqual(kinds.shape, (toy.ITEMS + 1, 6))
    np.testing.assert_array_equal(kinds[0], 0)
    np.testing.assert_array_equal(kinds[1:], np.eye(6)[KINDS[1:]])

  def test_choices_are_those_of_a_brute_force(self):
    made = _by_response_head(_made())
    acted = jax.device_get(checks.sample(made, BANNED))
    brute = _Brute(made, acted.notes.estimate.user[0].astype(np.float64))
    learned = _choices(made.agent)(
      *(made.params, made.catalogue, made.observation),
      *(acted.slate[:20], _row(acted.notes, slice(20))),
    )
    for row, slate in enumerate(acted.slate[:20].tolist()):
      for place, item in enumerate(slate):
        best, log_prob = brute.slot(slate[:place])
        kind = KINDS[item]
        self.assertEqual(item, best[kind])
        for found in (
          acted.log_prob[row, place],
          np.log(acted.propensity[row, place]),
          learned.log_probs[row, place, 0],
        ):
          np.testing.assert_allclose(found, log_prob[kind], atol=1e-4)
    # So the frequencies are the probabilities.
    best, log_prob = brute.slot([])
    self.assertLen(best, 5)
    for kind, item in best.items():
      chance = np.exp(log_prob[kind])
      found = (acted.slate[:, 0] == item).mean()
      error = np.sqrt(chance * (1 - chance) / checks.DRAWS) + 1e-4
      self.assertLess(abs(found - chance), 5 * error)

  def test_learning_sees_what_acting_did(self):
    made = _made()
    acted = jax.device_get(checks.sample(made, BANNED))
    learned = _choices(made.agent)(
      *(made.params, made.catalogue, made.observation),
      *(acted.slate[:20], _row(acted.notes, slice(20))),
    )
    self.assertGreater(np.ptp(acted.log_prob[:20]), 1.0)
    np.testing.assert_allclose(
      learned.log_probs[..., 0], acted.log_prob[:20], rtol=1e-3, atol=1e-4
    )

  def test_scores_are_log_pi_of_best_items(self):
    made = _made()
    score = jax.jit(made.agent.scores)
    scores = np.asarray(score(made.params, made.catalogue, made.observation))
    own = made.params["policy"]["params"]
    user = np.asarray(checks.sample(made, BANNED).notes.estimate.user[0])
    logits = made.catalogue.features @ own["vector_map"]["kernel"] @ user[:-1]
    best = 0.0
    for kind in set(KINDS[1:]):
      items = 1 + np.flatnonzero(KINDS[1:] == kind)
      first = items[np.argmax(logits[items])]
      best += np.exp(scores[first])
      below = (logits[first] - logits[items]) / 0.5
      np.testing.assert_allclose(
        scores[first] - scores[items], below, rtol=1e-3, atol=1e-3
      )
    np.testing.assert_allclose(best, 1.0, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
