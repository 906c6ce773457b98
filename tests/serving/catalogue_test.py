"""The Python API of the served catalogue: wrong arguments name themselves."""

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import serving, sid
from hsrl_jax.errors import InputError

CODEBOOKS = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
TOKENS = [[0, 1], [2, 0], [0, 3]]
NAN = float("nan")


def _arguments():
  """Arguments of make_catalogue: three items, room for five."""
  return {
    "index": sid.build_index(TOKENS, 4),
    "codebooks": CODEBOOKS,
    "features": np.ones((4, 3), np.float32),
    "item_ids": ["", "a", "b", "c"],
    "titles": ["", "A", "É", "C"],
    "capacity": 5,
    "popularity": np.arange(4.0),
  }


class CatalogueTest(parameterized.TestCase):
  def _check(self, words, call, *args, **kwargs):
    with self.assertRaisesRegex(InputError, words) as caught:
      call(*args, **kwargs)
    self.assertLen(str(caught.exception).splitlines(), 1)
    self.assertIn("expected", str(caught.exception))

  @parameterized.parameters(
    ("index", None, "index is None"),
    ("index", np.asarray(TOKENS), "index is array"),
    ("codebooks", None, "codebooks are None"),
    ("codebooks", "abc", "codebooks are 'abc'"),
    ("codebooks", [[1.0], [1.0, 2.0]], "codebooks are"),
    ("codebooks", CODEBOOKS[0], r"codebooks have the shape \[4, 3\]"),
    ("codebooks", CODEBOOKS[:1], r"codebooks have the shape \[1, 4, 3\]"),
    ("codebooks", CODEBOOKS + NAN, "codebooks have numbers that are not"),
    ("features", {}, "features are {}"),
    ("features", np.ones(4), r"features have the shape \[4\]"),
    ("features", np.ones((3, 3)), "features have 3 rows"),
    ("features", np.ones((9, 3)), "features have 9 rows"),
    ("features", np.full((4, 3), 1e300), "features have numbers that are not"),
    ("features", np.full((4, 3), 1j), "features are"),
    ("item_ids", None, "item_ids are None"),
    ("item_ids", "abcd", "item_ids are 'abcd'"),
    ("item_ids", ["", "a", "b"], "item_ids are .* 4 strings"),
    ("titles", ["", "A", "B", 3], "titles are .* 4 strings"),
    ("titles", ["", "A", "B", "\ud800"], "valid Unicode"),
    ("capacity", 2, "capacity 2"),
    ("capacity", 5.0, "capacity is 5.0"),
    ("capacity", "5", "capacity is '5'"),
    ("capacity", 10**20, "capacity is 1000"),
    ("capacity", -1, "capacity is -1"),
    ("popularity", [1.0], r"popularity have the shape \[1\]"),
    ("popularity", ["a"] * 4, "popularity are"),
    ("added", [0.5] * 4, r"added are float64 \[4\]"),
    ("added", [0] * 3, r"added are int64 \[3\]"),
    ("added", [0, 1, 2, -1], "added is -1"),
    ("added", [0, 1, 2**32 - 1, 0], "added is 4294967295"),
  )
  def test_make_catalogue(self, name, value, words):
    self._check(
      words, lambda: serving.make_catalogue(**_arguments() | {name: value})
    )

  @parameterized.parameters(
    (dict(items=["4"]), "items are"),
    (dict(items=4), "items are 4"),
    (dict(items=None), "items are None"),
    (dict(items=[4.0]), "items are"),
    (dict(items=[True]), "items are"),
    (dict(items=[[4]]), "items are"),
    (dict(items=[[4], [4, 5]]), "items are"),
    (dict(items=[10**30]), "items are"),
    (dict(items=[-1]), "item -1"),
    (dict(items=[0]), "item 0"),
    (dict(items=[6]), "item 6 is beyond the capacity"),
    (dict(items=[1]), "item 1 is active already"),
    (
      dict(items=[4, 4], features=np.ones((2, 3)), titles=["D", "D"]),
      "item 4 is there twice",
    ),
    (dict(features=None), "features are None"),
    (dict(features=["a", "b", "c"]), "features are"),
    (dict(features=[1.0, 2.0, 3.0]), r"features have the shape \[3\]"),
    (dict(features=np.ones((2, 3))), r"features have the shape \[2, 3\]"),
    (dict(features=np.ones((1, 2))), r"features have the shape \[1, 2\]"),
    (dict(features=[[1.0, NAN, 1.0]]), "not finite"),
    (dict(item_ids=["x", "y"]), "item_ids are .* 1 strings"),
    (dict(item_ids="x"), "item_ids are 'x'"),
    (dict(item_ids=[7]), "item_ids are"),
    (dict(titles=[]), r"titles are \[\]"),
    (dict(titles=[b"x"]), "titles are"),
    (dict(titles=5), "titles are 5"),
  )
  def test_add_items(self, change, words):
    catalogue = serving.make_catalogue(**_arguments())
    good = {"items": [4], "features": np.ones((1, 3)), "titles": ["D"]}
    self._check(words, lambda: catalogue.add_items(**good | change))
    self.assertEqual(catalogue.add_items(**good).titles.of(4), "D")

  @parameterized.parameters(
    (["1"], "items are"),
    (1, "items are 1"),
    ([1.5], "items are"),
    ([None], "items are"),
    ([4], "item 4 is not active"),
    ([10**9], "item 1000000000 is not active"),
    ([1, 1], "item 1 is there twice"),
  )
  def test_remove_items(self, items, words):
    catalogue = serving.make_catalogue(**_arguments())
    self._check(words, catalogue.remove_items, items)

  @parameterized.parameters(-1, 6, 10**30, "1", 1.0, None)
  def test_names_of_no_item(self, item):
    catalogue = serving.make_catalogue(**_arguments())
    self._check("has no text", catalogue.titles.of, item)
    self._check("has no text", catalogue.item_ids.of, item)

  def test_names_of_items(self):
    catalogue = serving.make_catalogue(**_arguments())
    titles = [catalogue.titles.of(i) for i in range(6)]
    self.assertEqual(titles, ["", "A", "É", "C", "", ""])
    self.assertEqual(catalogue.item_ids.of(np.int32(3)), "c")
    none = catalogue.add_items([], np.zeros((0, 3)))
    self.assertEqual(none.titles.of(2), "É")
    self.assertEqual(none.remove_items([]).item_ids.of(1), "a")


if __name__ == "__main__":
  absltest.main()
