"""Blending a click model with the logs: by hand, and where features fail."""

import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from scipy import special

from hsrl_jax.data import feedback
from hsrl_jax.sim import blend as blend_lib
from hsrl_jax.types import Sessions
from tests.sim import self_selected


def _sessions(exposed, response, user_id=None, history=None, **more):
  exposed = np.asarray(exposed, np.int32)
  rows = len(exposed)
  return Sessions(
    user_id=np.arange(rows) if user_id is None else np.asarray(user_id),
    profile=np.zeros((rows, 0), np.float32),
    history=np.zeros((rows, 2), np.int32) if history is None else history,
    exposed=exposed,
    response=np.asarray(response, np.float32),
    **more,
  )


class BiasTest(absltest.TestCase):
  def test_biases_by_hand(self):
    """6 of 10 responses are likes, so a mean counts as 6 of 10 showings."""
    logs = _sessions(
      [[1, 2], [1, 3], [1, 2], [1, 3], [1, 2]],
      [[1, 0], [1, 1], [1, 0], [1, 1], [0, 0]],
      user_id=[7, 7, 9, 9, 4],
    )
    blend, positions = blend_lib.of_logs(logs, np.ones((6, 2)))
    self.assertIsNone(positions)
    middle = special.logit(0.6)
    expected = [0, *special.logit([10 / 15, 6 / 13, 8 / 12]) - middle, 0, 0]
    np.testing.assert_allclose(blend.items, expected, atol=1e-6)
    self.assertEqual(blend.user_ids.tolist(), [4, 7, 9])
    of_users = special.logit([6 / 12, 9 / 14, 9 / 14]) - middle
    np.testing.assert_allclose(blend.users, of_users, atol=1e-6)
    strangers = blend.of_users(np.array([9, 8, 4, 99]))
    expected = [of_users[2], 0, of_users[0], 0]
    np.testing.assert_allclose(strangers, expected, atol=1e-6)

  def test_an_item_is_not_blamed_for_its_position(self):
    """Likes depend on the position; item 1 is mostly at the bad one."""
    rng = np.random.default_rng(0)
    first = rng.random(4_000) < 0.9
    exposed = np.where(first[:, None], [[2, 1]], [[1, 2]])
    liked = rng.random(exposed.shape) < [[0.6, 0.2]]
    position = np.tile([10, 30], (4_000, 1))
    logs = _sessions(exposed, liked)
    blamed, _ = blend_lib.of_logs(logs, np.ones((3, 1)))
    fair, positions = blend_lib.of_logs(
      logs._replace(position=position), np.ones((3, 1))
    )
    self.assertLess(float(blamed.items[1]), -0.5)
    self.assertLess(np.abs(fair.items).max(), 0.1)
    np.testing.assert_allclose(  # The third position was never logged.
      positions(np.array([10, 30, 20])),
      [*special.logit([0.6, 0.2]) - special.logit(0.4), 0],
      atol=0.1,
    )

  def test_popular_items_are_not_blamed_for_being_drawn(self):
    """Negatives by popularity: biases are of popularity, once corrected."""
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.25, 0.15, 0.1])
    positives = rng.choice(4, 60_000, p=share) + 1
    drawn = feedback.sampling_probabilities(positives, 4, "popularity")
    negative = rng.choice(5, 60_000, p=drawn)
    exposed = np.stack([positives, negative], 1)
    response = np.tile([1, 0], (60_000, 1))
    logs = _sessions(exposed, response)
    plain, _ = blend_lib.of_logs(logs, np.ones((5, 1)))
    self.assertLess(np.abs(plain.items).max(), 0.1)
    corrected, _ = blend_lib.of_logs(
      logs, np.ones((5, 1)), feedback.log_q_offset(drawn)
    )
    gaps = np.diff(corrected.items[1:])
    np.testing.assert_allclose(gaps, np.diff(np.log(share)), atol=0.1)


class BlendTest(absltest.TestCase):
  def test_logits_by_hand(self):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(6, 3)).astype(np.float32)
    items = np.array([0, 0.5, -1, 2, 0, 0], np.float32)
    blend = blend_lib.Blend(
      np.float32([0.5, 2, 3, 4, -1]),
      items,
      np.arange(2),
      np.zeros(2, np.float32),
      features[1:].mean(0),
    )
    direction = features - features[1:].mean(0)
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    network = np.float32([0.1, 0.2, 0.3])
    slate = np.array([1, 3, 5])
    similarity = direction[slate] @ (direction[2] + direction[4]) / 5**0.5
    expected = 0.5 * network + 2 * items[slate] + 3 * 0.7 + 4 * similarity - 1
    np.testing.assert_allclose(
      blend_lib.logits(
        blend, network, features, np.array([0, 2, 4]), slate, 0.7
      ),
      expected,
      rtol=1e-5,
    )
    # Without a history or a bias nothing is left but network and constant.
    more = np.concatenate([features, features[:1]])
    np.testing.assert_allclose(
      blend_lib.logits(
        blend, network[:1], more, np.zeros(3, int), jnp.array([6])
      ),
      0.5 * network[:1] - 1,
      rtol=1e-5,
    )

  def test_weights_are_those_that_made_the_responses(self):
    rng = np.random.default_rng(3)
    rows = 20_000
    exposed = rng.integers(1, 6, (rows, 2))
    network = rng.normal(size=exposed.shape)
    blend, _ = blend_lib.of_logs(
      _sessions(exposed[:9], np.ones((9, 2))), np.ones((6, 1), np.float32)
    )
    items = np.array([0, 1, -1, 0.5, -0.5, 0], np.float32)
    blend = blend._replace(items=items)
    offset = np.tile([1.0, -1.0], (rows, 1))
    logits = 0.7 * network + 1.5 * items[exposed] - 0.4 + offset
    logs = _sessions(exposed, rng.random(exposed.shape) < special.expit(logits))
    fitted = blend_lib.fit(blend, network, np.ones((6, 1)), logs, offset)
    np.testing.assert_allclose(
      fitted.weights, [0.7, 1.5, 0, 0, -0.4], atol=0.06
    )
    # A term that misleads is left out, not turned round.
    turned = blend_lib.fit(
      blend._replace(items=-items), -network, np.ones((6, 1)), logs, offset
    )
    np.testing.assert_allclose(turned.weights[:2], 0, atol=1e-6)

  @pytest.mark.slow
  def test_it_beats_the_items_mean_where_features_do_not_tell_quality(self):
    """As above all where the network has learned nothing."""
    world = self_selected.world()
    train, val, test = (world.splits[x] for x in ("train", "val", "test"))
    features = world.items.features
    blend, _ = blend_lib.of_logs(train, features)
    nothing = np.random.default_rng(0).normal(size=val.exposed.shape)
    blend = blend_lib.fit(
      blend, nothing, features, val, np.zeros(val.exposed.shape)
    )
    blended = np.stack(
      [
        blend_lib.logits(blend, np.zeros(4), features, *row)
        for row in zip(test.history, test.exposed, strict=True)
      ]
    )
    auc = self_selected.auc_within_users(test, blended)
    of_items = self_selected.auc_within_users(
      test, np.asarray(blend.items)[test.exposed]
    )
    self.assertGreater(auc, of_items + 0.01)
    self.assertGreater(of_items, 0.6)


if __name__ == "__main__":
  absltest.main()
