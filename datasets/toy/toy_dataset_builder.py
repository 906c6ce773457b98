"""A made-up catalogue and its logs, small enough for tests and smoke runs.

Items belong to groups; a user likes items of the groups that its profile
names, so that a policy which reads the profile beats any constant slate.
"""

import numpy as np

from hsrl_jax.shipped.datasets import schema

ITEMS, GROUPS, USERS, SLATES = 96, 4, 60, 12
SLATE_SIZE, HISTORY_LENGTH = 5, 10
SPLIT_OF_SLATE = ["train"] * 8 + ["val"] * 2 + ["test"] * 2


class Builder(schema.SlateBuilder):
  """Makes up items and sessions; reads no source."""

  def read_items(self, folder):
    """Columns of `items`."""
    del folder  # There is none.
    return {
      "feature": item_features(),
      "external_id": [f"toy-{i + 1}" for i in range(ITEMS)],
      "title": [f"Item {i + 1}" for i in range(ITEMS)],
      "genres": [f"Group {i % GROUPS}" for i in range(ITEMS)],
    }

  def read_sessions(self, folder):
    """Columns of `sessions`, by user and time."""
    del folder
    rows = [row for user in range(USERS) for row in sessions_of(user)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def item_features() -> np.ndarray:
  """Group, one-hot, and two noisy columns, float32 [ITEMS, GROUPS + 2]."""
  rng = np.random.default_rng(0)
  group = np.eye(GROUPS)[np.arange(ITEMS) % GROUPS]
  return np.concatenate([group, 0.5 * rng.normal(size=(ITEMS, 2))], 1).astype(
    np.float32
  )


def sessions_of(user: int):
  """Yields the slates that a user saw, oldest first."""
  rng = np.random.default_rng([1, user])
  liked_groups = rng.permutation(GROUPS)[:2]
  profile = np.isin(np.arange(GROUPS), liked_groups).astype(np.float32)
  past = [int(liked_groups[0]) + 1]
  for slate in range(SLATES):
    exposed = rng.permutation(ITEMS)[:SLATE_SIZE] + 1
    chance = np.where(profile[(exposed - 1) % GROUPS] > 0, 0.9, 0.1)
    response = rng.random(SLATE_SIZE) < chance
    yield {
      "user_id": user + 1,
      "profile": profile,
      "history": schema.left_padded(past, HISTORY_LENGTH),
      "exposed": exposed,
      "response": response,
      "timestamp": slate,
      "split": SPLIT_OF_SLATE[slate],
    }
    past += exposed[response].tolist()
