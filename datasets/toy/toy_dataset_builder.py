"""A made-up catalogue and its logs, small enough for tests and smoke runs.

Items belong to groups; a user likes items of the groups that its profile
names, so that a policy which reads the profile beats any constant slate.
"""

import numpy as np
import tensorflow_datasets as tfds

ITEMS, GROUPS, USERS, SLATES = 96, 4, 60, 12
SLATE_SIZE, HISTORY_LENGTH = 5, 10
SPLITS = {"train": range(0, 8), "val": range(8, 10), "test": range(10, 12)}


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes `items` and `sessions` (DESIGN: data schema) as array_record."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name="sessions", description="Slates."),
    tfds.core.BuilderConfig(name="items", description="Items."),
  ]

  def _info(self) -> tfds.core.DatasetInfo:
    if self.builder_config.name == "items":
      features = {
        "item_id": np.int32,
        "feature": tfds.features.Tensor(shape=(GROUPS + 2,), dtype=np.float32),
        "external_id": tfds.features.Text(),
        "title": tfds.features.Text(),
        "genres": tfds.features.Text(),
      }
    else:
      ids, floats = np.int32, np.float32
      tensor = tfds.features.Tensor
      features = {
        "user_id": np.int32,
        "profile": tensor(shape=(GROUPS,), dtype=floats),
        "history": tensor(shape=(HISTORY_LENGTH,), dtype=ids),
        "history_length": np.int32,
        "exposed": tensor(shape=(SLATE_SIZE,), dtype=ids),
        "response": tensor(shape=(SLATE_SIZE,), dtype=floats),
        "timestamp": np.int64,
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description=__doc__,
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # Nothing is downloaded.
    if self.builder_config.name == "items":
      return {"items": self._generate_items()}
    return {name: self._generate_examples(s) for name, s in SPLITS.items()}

  def _generate_items(self):
    feature = item_features()
    for i in range(ITEMS):
      group = i % GROUPS
      yield (
        i,
        {
          "item_id": i + 1,
          "feature": feature[i],
          "external_id": f"toy-{i + 1}",
          "title": f"Item {i + 1}",
          "genres": f"Group {group}",
        },
      )

  def _generate_examples(self, slates):
    for user in range(USERS):
      for slate, row in enumerate(sessions_of(user)):
        if slate in slates:
          yield user * SLATES + slate, row


def item_features() -> np.ndarray:
  """Group, one-hot, and two noisy columns, float32 [ITEMS, GROUPS + 2]."""
  rng = np.random.default_rng(0)
  group = np.eye(GROUPS)[np.arange(ITEMS) % GROUPS]
  return np.concatenate([group, 0.5 * rng.normal(size=(ITEMS, 2))], 1).astype(
    np.float32
  )


def sessions_of(user: int):
  """The slates that a user saw, oldest first."""
  rng = np.random.default_rng([1, user])
  liked_groups = rng.permutation(GROUPS)[:2]
  profile = np.isin(np.arange(GROUPS), liked_groups).astype(np.float32)
  past = [int(liked_groups[0]) + 1]
  for slate in range(SLATES):
    exposed = rng.permutation(ITEMS)[:SLATE_SIZE] + 1
    chance = np.where(profile[(exposed - 1) % GROUPS] > 0, 0.9, 0.1)
    response = (rng.random(SLATE_SIZE) < chance).astype(np.float32)
    recent = past[-HISTORY_LENGTH:]
    yield {
      "user_id": user + 1,
      "profile": profile,
      "history": np.array(
        [0] * (HISTORY_LENGTH - len(recent)) + recent, np.int32
      ),
      "history_length": len(recent),
      "exposed": exposed.astype(np.int32),
      "response": response,
      "timestamp": slate,
    }
    past += [int(i) for i in exposed[response > 0]]
