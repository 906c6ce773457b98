"""The builder of the Open Bandit Dataset on made-up files of its format."""

import numpy as np
from absl.testing import absltest

from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError
from hsrl_jax.shipped.datasets.open_bandit import impressions
from tests import folders, open_bandit


class OpenBanditTest(folders.FolderTest):
  def setUp(self):
    super().setUp()
    self.raw = self.folder / "raw"
    open_bandit.write(self.raw, rows=60)

  def test_slates_of_both_loggers(self):
    data = self.folder / "data"
    prepare.prepare("open_bandit", data, str(self.raw))
    self.assertIn(
      "impressions of two policies are read: random (60) and bts (60)",
      prepare.notes(data),
    )
    items, splits = source.load(data)
    # A number, two values, one, and four that are the logger's own.
    self.assertEqual(items.features.shape, (5, 8))
    np.testing.assert_allclose(items.features[1:, 0], np.arange(4) / 7)
    np.testing.assert_array_equal(items.features[1:, 1], [1, 0, 1, 0])
    self.assertEqual(items.external_ids[1:], ["0", "1", "2", "3"])
    self.assertEqual([len(x.user_id) for x in splits.values()], [96, 12, 12])
    logs = impressions.read_logs(self.raw)
    # The same impressions, of the same seconds.
    want = [
      (row, x.item[row] + 1, x.click[row], x.propensity[row], x.place[row])
      for x in logs.values()
      for row in range(60)
    ]
    got = np.concatenate(
      [
        np.column_stack(
          (x.timestamp, x.exposed, x.response, x.propensity, x.position)
        )
        for x in splits.values()
      ]
    )
    got[:, 0] -= got[0, 0]
    order = lambda rows: sorted(map(tuple, np.round(rows, 6)))  # noqa: E731
    np.testing.assert_allclose(order(got), order(want))
    train = splits["train"]
    # Four features of three values, of which a profile has one each.
    np.testing.assert_array_equal(train.profile.sum(1), 4)
    self.assertLen(
      np.unique(train.user_id), len(np.unique(train.profile, axis=0))
    )

  def test_a_campaign_of_several(self):
    self.assertEqual(impressions.campaign(self.raw), "men")
    open_bandit.write(self.raw, rows=20, campaign="women")
    with self.assertRaisesRegex(InputError, "has the campaigns men, women; ex"):
      impressions.read_logs(self.raw)
    for logger in impressions.LOGGERS:
      folder = self.raw / logger / "women"
      self.assertEqual(impressions.campaign(folder), "women")
      self.assertLen(impressions.read_logs(folder)["bts"].item, 20)
    with self.assertRaisesRegex(
      InputError, "has no campaign; expected one, ra"
    ):
      impressions.read_logs(self.folder)

  def test_items_that_differ(self):
    path = self.raw / "bts" / "men" / "item_context.csv"
    open_bandit.change(path, "item_id", "9")
    with self.assertRaisesRegex(InputError, "have other items; expected the s"):
      impressions.read_logs(self.raw)


if __name__ == "__main__":
  absltest.main()
