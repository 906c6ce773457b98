"""Items and users of SARDINE, for the worlds of --simulator_world.

The vectors of the 1,000 items, `item_vectors.npy` (float32 [1000, 10], each of
length 1), are those that the worlds of SARDINE with many items use, its file
`item_embeddings_focused_small.npy` of release 1.0.8
(https://github.com/naver/sardine). They are under its licence, `LICENSE`. An
item's topic is its largest coordinate.

Users are vectors too, drawn by the package's law with a seed of our own: 4,000
for training, 500 for validation and 1,000 for test. They are stored as
profiles, which only the simulator sees. There are no slates: SARDINE knows how
its users respond.
"""

import pathlib

import numpy as np

from hsrl_jax.shipped.datasets import schema
from hsrl_jax.sim import sardine

VECTORS = pathlib.Path(__file__).parent / "item_vectors.npy"
USERS = {"train": 4_000, "val": 500, "test": 1_000}
TOPICS, SEED = 10, 0


class Builder(schema.SlateBuilder):
  """Reads the vectors beside this file, and draws the users."""

  HOMEPAGE = "https://github.com/naver/sardine"

  def read_items(self, folder):
    """Columns of `items`."""
    del folder  # There is none.
    vectors = np.load(VECTORS)
    return {
      "feature": vectors,
      "external_id": [str(row) for row in range(len(vectors))],
      "title": [title(vector) for vector in vectors],
      "genres": [f"Topic {np.argmax(vector)}" for vector in vectors],
    }

  def read_sessions(self, folder):
    """Columns of `sessions`: users, without slates."""
    del folder
    rng, count = np.random.default_rng(SEED), sum(USERS.values())
    return {
      "user_id": np.arange(1, count + 1),
      "profile": [sardine.taste(rng, TOPICS) for _ in range(count)],
      "history": np.zeros((count, schema.HISTORY_LENGTH), np.int32),
      "exposed": np.zeros((count, 0), np.int32),
      "response": np.zeros((count, 0), np.float32),
      "timestamp": np.zeros(count, np.int64),
      "split": np.repeat(list(USERS), list(USERS.values())),
    }


def title(vector: np.ndarray) -> str:
  """Topics of an item, such as "topic 3 0.81, topic 7 0.59"."""
  topics = np.argsort(-vector, kind="stable")[: np.count_nonzero(vector)]
  return ", ".join(f"topic {t} {vector[t]:.2f}" for t in topics)
