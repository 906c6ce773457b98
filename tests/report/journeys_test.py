"""What the picture of sessions tells, against sessions gone through by hand."""

import json

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax.evaluation import simulate
from hsrl_jax.report import journeys, plots
from hsrl_jax.sim import topics
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.leave import BoredomRule as Leave
from hsrl_jax.sim.leave import Length
from tests import toy

# Topics: A of the odd items, B of the even ones.
TOPICS = topics.of_categories(["", *("AB"[i % 2] for i in range(toy.ITEMS))])


def _sessions(slates, responses):
  """One session; its slates are filled up to the step limit."""
  slates, responses = np.array(slates), np.array(responses)
  depth = len(slates)
  room = [(0, toy.env().max_steps - depth), (0, 0)]
  padded = (np.pad(x, room)[None] for x in (slates, responses))
  total = np.float32([responses.sum()])
  return simulate.Simulated(total, np.float32([depth]), total, *padded)


def _journeys(env, slates, responses):
  users = toy.users()._replace(
    topics=jnp.asarray(TOPICS.of_items),
    categories=jnp.asarray(TOPICS.categories),
    num_items=jnp.int32(toy.ITEMS),
  )
  policies = {"hsrl": _sessions(slates, responses)}
  found = journeys.of_sessions(
    env, users, TOPICS, policies, [env.start(0, users)] * 3
  )
  self_contained = json.loads(json.dumps(found))
  assert self_contained == found
  return found


class JourneysTest(absltest.TestCase):
  def test_boredom_by_hand(self):
    """Two likes of a topic within two steps bore for two steps."""
    env = toy.env()._replace(
      leave=Length(), dynamics=TopicBoredom(2, True, 10, 2, 2), slate_size=2
    )
    slates = [[1, 3], [2, 5], [4, 6], [2, 4], [1, 2], [8, 9]]
    responses = [[1, 1], [0, 0], [0, 0], [0, 1], [0, 1], [0, 0]]
    found = _journeys(env, slates, responses)
    (session,) = found["sessions"]
    self.assertEqual(found["topics"], ["A", "B"])
    self.assertTrue(found["everything"])
    self.assertEqual(session["boring"], [[], [1], [1], [], [], [2]])
    self.assertEqual(session["topics"][1], [2, 1])
    self.assertEqual(session["liked"][0], [True, True])
    self.assertFalse(session["left"])
    self.assertFalse(np.any(session["leaves"]))
    (axes,) = journeys.figure(found).axes
    # A square for each item, and a bar for each boring topic and step.
    self.assertLen([x for x in axes.patches if x.get_alpha() == 1.0], 4)
    self.assertLen(axes.lines, 3)
    self.assertIn("4 liked, 6 steps", axes.get_title(loc="left"))

  def test_leaving_by_hand(self):
    """A topic may be among the last two items once."""
    env = toy.env()._replace(leave=Leave(2, 1), slate_size=1)
    found = _journeys(env, [[1], [2], [3], [5], [7]], [[1], [1], [0], [1], [1]])
    (session,) = found["sessions"]
    self.assertEqual(
      session["leaves"], [[False], [False], [False], [False], [True]]
    )
    self.assertTrue(session["left"])
    self.assertEqual(session["boring"], [[]] * 5)
    drawn = journeys.figure(found)
    self.assertIn("left at step 5", drawn.axes[0].get_title(loc="left"))
    self.assertStartsWith(plots.png(drawn), b"\x89PNG")

  def test_items_may_run_out(self):
    """Then the session ends, but the user did not leave."""
    env = toy.env(no_repeat=True)._replace(leave=Leave(2, 1), slate_size=20)
    slates = np.arange(1, 41).reshape(2, 20)
    found = _journeys(env, slates, np.ones((2, 20), int))
    self.assertFalse(found["sessions"][0]["left"])

  def test_worlds_with_nothing_to_draw(self):
    self.assertFalse(journeys.has_any(toy.env()))
    self.assertTrue(journeys.has_any(toy.env()._replace(leave=Leave(2, 1))))


if __name__ == "__main__":
  absltest.main()
