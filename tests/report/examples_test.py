"""Examples for people, against lists and sessions computed by hand."""

import numpy as np
from absl.testing import absltest

from hsrl_jax.data.source import Items
from hsrl_jax.evaluation import simulate
from hsrl_jax.report import examples
from hsrl_jax.types import Sessions


def _items():
  """Items 1..5; item 4 has no title, item 5 no features."""
  features = [[0, 0], [1, 0], [0, 2], [3, 3], [-1, 0], [0, 0]]
  titles = ["", "East", "North", "Northeast", "", "Nowhere"]
  external = ["", "e", "n", "ne", "w", "x"]
  return Items(np.float32(features), external, titles, [""] * 6)


def _logs():
  """User 7 has two rows, user 9 no history, user 8 no likes."""
  return Sessions(
    user_id=np.array([7, 9, 7, 8]),
    profile=np.zeros((4, 0)),
    history=np.array([[0, 1, 2], [0, 0, 0], [1, 2, 3], [0, 0, 4]]),
    exposed=np.array([[3, 5], [1, 2], [4, 1], [1, 3]]),
    response=np.array([[1, 0], [1, 0], [1, 0], [0, 0]]),
  )


_TOP = np.array([[3, 4, 5], [3, 1, 2], [5, 4, 0], [3, 0, 0]])
_LIKES = np.array([0, 2.0, 9, 2, 0, 1])


class ListsTest(absltest.TestCase):
  def test_by_hand(self):
    (user,) = examples.of_lists(_TOP, _logs(), _items(), _LIKES, 4)
    self.assertEqual(
      {k: v for k, v in user.items() if k != "recommended"},
      {
        "user": "7",
        "users": 3,
        "items": 5,
        "history": ["East", "North"],
        "later": ["Northeast", "item w"],  # Of both rows.
      },
    )
    names = ("title", "liked", "like", "similarity", "popularity", "shown_to")
    self.assertEqual(
      [tuple(x[name] for name in names) for x in user["recommended"]],
      [
        # As near to both; North is newer. All three users get it.
        ("Northeast", True, "North", 0.7071, 2, 1.0),
        ("item w", True, "North", 0.0, 5, 0.3333),
        ("Nowhere", False, "North", 0.0, 4, 0.3333),
      ],
    )

  def test_without_anybody_who_has_a_history_and_likes(self):
    logs = _logs()
    logs = logs._replace(response=np.zeros_like(logs.response))
    shown = examples.of_lists(_TOP, logs, _items(), _LIKES, 4)
    self.assertEqual([x["user"] for x in shown], ["7", "8", "9"])
    names = [f"name {x}" for x in range(1, 10)]
    named = examples.of_lists(_TOP, logs, _items(), _LIKES, 4, names)
    self.assertEqual([x["user"] for x in named], ["name 7", "name 8", "name 9"])
    self.assertLen(shown[1]["recommended"], 1)  # Padding is no item.
    self.assertIsNone(shown[2]["recommended"][0]["like"])
    self.assertIsNone(shown[2]["recommended"][0]["similarity"])

  def test_users_are_spread(self):
    rows = 40
    logs = Sessions(
      np.arange(rows),
      np.zeros((rows, 0)),
      np.ones((rows, 1), int),
      np.full((rows, 1), 2),
      np.ones((rows, 1)),
    )
    top = np.full((rows, 12), 3)
    shown = examples.of_lists(top, logs, _items(), _LIKES, 4)
    self.assertEqual([x["user"] for x in shown], ["0", "13", "26", "39"])
    self.assertLen(shown[0]["recommended"], 10)


class SessionsTest(absltest.TestCase):
  def test_by_hand(self):
    sessions = simulate.Simulated(
      total_reward=np.float32([1.5, 0]),
      depth=np.float32([2, 1]),
      positives=np.float32([2, 0]),
      slates=np.array([[[1, 4], [2, 3], [0, 0]]] * 2),
      responses=np.array([[[1, 0], [0, 1], [0, 0]]] * 2),
    )
    histories = np.array([[0, 5]])
    (first, second) = examples.of_sessions(sessions, histories, _items(), 3)
    self.assertEqual(
      first,
      {
        "history": ["Nowhere"],
        "steps": [
          {"titles": ["East", "item w"], "liked": [True, False]},
          {"titles": ["North", "Northeast"], "liked": [False, True]},
        ],
        "total_reward": 1.5,
        "depth": 2,
      },
    )
    self.assertLen(second["steps"], 1)


if __name__ == "__main__":
  absltest.main()
