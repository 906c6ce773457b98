"""Examples for people: what was recommended to whom, and why it is plausible.

`of_lists` takes lists on held-out logs, `of_sessions` simulated sessions, for
runs that have no such lists. Both return what is written to examples.json.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from hsrl_jax.data.source import Items
from hsrl_jax.evaluation.simulate import Simulated
from hsrl_jax.types import Sessions

_LIST = 10  # Items of a list.


def title(items: Items, item: int) -> str:
  """An item's title, or its id where it has none."""
  return items.titles[item] or f"item {items.external_ids[item] or item}"


def of_lists(
  top: np.ndarray,
  logs: Sessions,
  items: Items,
  likes: np.ndarray,
  count: int,
  names: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
  """Lists of some users, beside what these users liked before and later.

  A user counts once, at the first held-out row. Users who have a history and
  like something later come first; those that are chosen lie evenly among them.

  Args:
    top: int [S, M], the best items for each row, the best first, without items
      of the row's history; 0 where there are fewer.
    logs: the S rows, of each user by time.
    items: N items.
    likes: [N + 1], positive responses of each item in the training logs.
    count: of users.
    names: of user 1, 2, ... in the source; None: their numbers.

  Returns:
    For each user: `user`, the name; `users`, how many there are; `items`, N;
    the titles `history` (the newest last) and `later`; and `recommended`, for
    each item `title`, `liked` (later), `like` (title of the history's item with
    the most similar features, or None), `similarity` (the cosine), `popularity`
    (1: the most liked item in the training logs), `shown_to` (share of the
    users who have it in their list).
  """
  users, first = np.unique(logs.user_id, return_index=True)
  lists = top[first, :_LIST]
  everybody = np.bincount(lists[lists > 0], minlength=len(likes)) / len(users)
  popularity = scipy.stats.rankdata(-likes[1:], "min")
  directions = items.features / np.maximum(
    np.linalg.norm(items.features, axis=1, keepdims=True), 1e-12
  )
  later = [
    np.asarray(logs.exposed)[rows][np.asarray(logs.response)[rows] > 0]
    for rows in (logs.user_id == user for user in users)
  ]
  informed = [
    i
    for i, row in enumerate(first)
    if len(later[i]) and (logs.history[row] > 0).any()
  ]
  chosen = informed or range(len(users))
  places = np.unique(np.linspace(0, len(chosen) - 1, count).round().astype(int))
  examples = []
  for i in (chosen[place] for place in places):
    past = logs.history[first[i]][logs.history[first[i]] > 0]
    recommended = []
    for item in lists[i][lists[i] > 0]:
      cosines = directions[past] @ directions[item]
      # Of equal ones the newest.
      nearest = len(past) - 1 - cosines[::-1].argmax() if len(past) else None
      recommended.append(
        {
          "title": title(items, item),
          "liked": bool(item in later[i]),
          "like": None if nearest is None else title(items, past[nearest]),
          "similarity": (
            None if nearest is None else round(float(cosines[nearest]), 4)
          ),
          "popularity": int(popularity[item - 1]),
          "shown_to": round(float(everybody[item]), 4),
        }
      )
    examples.append(
      {
        "user": str(users[i]) if names is None else names[users[i] - 1],
        "users": len(users),
        "items": len(likes) - 1,
        "history": [title(items, x) for x in past],
        "later": [title(items, x) for x in dict.fromkeys(later[i].tolist())],
        "recommended": recommended,
      }
    )
  return examples


def of_sessions(
  sessions: Simulated, histories: np.ndarray, items: Items, count: int
) -> list[dict[str, Any]]:
  """The first simulated sessions: titles shown, and what was liked.

  Args:
    sessions: E of them.
    histories: int [S, H], of the pool's users.
    items: the catalogue.
    count: of sessions.
  """
  chosen = []
  for e in range(min(count, len(sessions.depth))):
    depth = int(sessions.depth[e])
    history = histories[e % len(histories)]
    steps = zip(sessions.slates[e], sessions.responses[e], strict=True)
    chosen.append(
      {
        "history": [title(items, i) for i in history[history > 0]],
        "steps": [
          {
            "titles": [title(items, i) for i in slate],
            "liked": [bool(r) for r in response],
          }
          for slate, response in list(steps)[:depth]
        ],
        "total_reward": float(sessions.total_reward[e]),
        "depth": depth,
      }
    )
  return chosen
