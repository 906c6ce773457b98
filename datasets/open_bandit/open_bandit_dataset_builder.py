"""The Open Bandit Dataset: impressions of two policies, with propensities.

`--raw_data_dir` holds `LOGGER/CAMPAIGN/CAMPAIGN.csv` and `item_context.csv`
beside it, as published, for each LOGGER of `random` and `bts` (Bernoulli
Thompson sampling) and one CAMPAIGN, such as `men`. With several campaigns it is
one campaign's folder of either logger, such as `open_bandit/random/women`.

A slate is one impression: an item at one of three places of a page, with the
click and the propensity. Both policies logged it, side by side. The logs know
no users: here one is whoever has the same four features, so a user's history
is what such people clicked. Features of items are item_feature_0 and one column
for each value of the others; profiles have one for each value of user_feature_0
to 3. The hashes of a logger's items are its own, those of `random` are taken.
"""

import numpy as np
import pyarrow as pa

from hsrl_jax.shipped.datasets.logs import (
  interactions,
  logs_dataset_builder,
  options,
  tables,
)
from hsrl_jax.shipped.datasets.open_bandit import impressions


class Builder(logs_dataset_builder.Builder):
  """Reads the published files in `--raw_data_dir`."""

  HOMEPAGE = "https://research.zozo.com/data.html"
  EXTRA_ITEMS = {}
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "random/CAMPAIGN and bts/CAMPAIGN of the Open Bandit Dataset"
  )

  def read_items(self, folder):
    """Columns of `items`, in the order of the file."""
    table = impressions.read_items(folder)
    ids = tables.column(table, "item_id", tables.id_)
    number, *hashes = impressions.ITEM
    columns = [np.array(tables.column(table, number, tables.number))[:, None]]
    columns += [_one_hot(table.data[x]) for x in hashes]
    return {
      "feature": np.concatenate(columns, 1),
      "external_id": ids,
      "title": [f"item {x}" for x in ids],
      "genres": [""] * len(ids),
    }

  def read_sessions(self, folder):
    """Columns of `sessions`, by time."""
    ids = tables.column(impressions.read_items(folder), "item_id", tables.id_)
    logs = impressions.read_logs(folder)
    parts = [x.table for x in logs.values()]
    data = pa.concat_tables([x.data for x in parts])
    profile = [_one_hot(data[x]) for x in impressions.USER]
    data = data.drop_columns(impressions.USER).append_column(
      "profile", pa.array([*np.concatenate(profile, 1)])
    )
    rows = [row for part in parts for row in part.rows]
    by_user = options.BY_USER if self.split_by == options.BY_USER else None
    chosen = options.Options(slate_size=1, split_by=by_user)
    log = interactions.read(tables.Table(folder, data, rows), ids, chosen)
    made = interactions.slates(log, len(ids), chosen)
    shown = " and ".join(f"{k} ({len(x.item):,})" for k, x in logs.items())
    notes = [*made.notes, f"impressions of two policies are read: {shown}"]
    return self.told(made._replace(notes=notes), folder, chosen)


def _one_hot(values) -> np.ndarray:
  """A column for each value, float [R, V], by the values' order."""
  return (np.array(values)[:, None] == np.unique(values)).astype(np.float32)
