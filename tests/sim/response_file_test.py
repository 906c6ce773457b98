"""A file with a response model: what it says, and each fault's one line."""

import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError
from hsrl_jax.sim import response_file

ROOT = pathlib.Path(__file__).parents[2]
ITEMS, USERS, D, P, HIDDEN, F, H = 12, 43, 5, 3, 7, 6, 4


def arrays(final_dense: bool, own: bool, seed: int = 0):
  """Name to array of a good file."""
  rng = np.random.default_rng(seed)
  sizes = {"user_hidden": (P, HIDDEN), "user_out": (HIDDEN, F), "item": (D, F)}
  for block in ("self_attention", "cross_attention"):
    for name in ("query", "key", "value", "out"):
      sizes[f"{block}.{name}"] = (F, F)
  if final_dense:
    sizes["mix"] = (2 * F, F)
  made = {}
  for name, size in sizes.items():
    made[f"{name}.kernel"] = 0.7 * rng.normal(size=size)
    made[f"{name}.bias"] = 0.7 * rng.normal(size=size[1])
  if own:
    made["item_features"] = rng.normal(size=(ITEMS + 1, D))
    made["item_features"][0] = 0
    made["profiles"] = rng.normal(size=(USERS, P))
    histories = rng.integers(1, ITEMS + 1, size=(USERS, H))
    histories[np.arange(H) < np.arange(USERS)[:, None] % (H + 1)] = 0
    made["histories"] = histories
  return made


class ResponseFileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(folder) / "urm.npz"

  def _read(self, made):
    np.savez(self.path, **made)
    return response_file.read(self.path)

  @parameterized.product(final_dense=(True, False), own=(True, False))
  def test_reads_what_was_written(self, final_dense, own):
    made = arrays(final_dense, own)
    found = self._read(made)
    self.assertEqual(found.final_dense, final_dense)
    self.assertEqual(found.name, "urm.npz")
    sizes = (found.profile_width, found.feature_width, found.hidden)
    self.assertEqual((*sizes, found.features), (P, D, HIDDEN, F))
    for name, array in found.weights.items():
      np.testing.assert_array_equal(array, made[name].astype("f"))
    self.assertLen(found.weights, len(made) - 3 * own)
    self.assertEqual(found.dataset is not None, own)

  def test_users_are_split_by_row_and_items_named(self):
    made = arrays(False, True)
    items, splits = self._read(made).dataset
    # 43 users: 4 each for validation and test, in the order of the rows.
    cuts = {"train": slice(0, 35), "val": slice(35, 39), "test": slice(39, 43)}
    self.assertEqual(list(splits), list(cuts))
    for split, rows in cuts.items():
      np.testing.assert_array_equal(
        splits[split].history, made["histories"][rows]
      )
      np.testing.assert_array_equal(
        splits[split].profile, made["profiles"][rows].astype("f")
      )
      self.assertEqual(splits[split].exposed.shape[1], 0)
    self.assertEqual(items.titles[:3], ["", "item 1", "item 2"])
    self.assertLen(items.titles, ITEMS + 1)

  def test_one_that_is_made_up(self):
    program = ROOT / "datasets" / "rl4rs" / "made_up_model.py"
    items = self.path.parent / "item_info.csv"

    def made():
      return subprocess.run(
        [sys.executable, program, f"--item_info={items}", f"--out={self.path}"],
        capture_output=True,
        text=True,
        check=False,
      )

    ran = made()
    self.assertEqual(ran.returncode, 2)
    self.assertRegex(ran.stderr, "item_info.csv cannot be read .*No such file")
    self.assertFalse(self.path.exists())
    header = "item_id item_vec price location special_item\n"
    for rows in ("", "1\n", "1 0.5,nan 7.0 1 0\n", "1 a,b 7.0 1 0\n"):
      items.write_text(header + rows)
      ran = made()
      self.assertEqual(ran.returncode, 2)
      self.assertRegex(ran.stderr, "item_info.csv cannot be read")
      self.assertNotIn("Traceback", ran.stderr)
    vectors = np.random.default_rng(0).normal(3, 2, size=(ITEMS, D))
    rows = [",".join(map(str, x)) for x in vectors.tolist()]
    lines = [f"{i} {x} 7.0 1 0\n" for i, x in enumerate(rows, start=1)]
    items.write_text(header + "".join(lines))
    ran = made()
    self.assertEqual(ran.returncode, 0, ran.stderr)
    found = response_file.read(self.path)
    features = found.dataset.items.features
    np.testing.assert_array_equal(features[0], 0)
    np.testing.assert_allclose(features[1:].mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(features[1:].std(0), 1, atol=1e-6)
    content = self.path.read_bytes()
    self.assertEqual(made().returncode, 0)
    self.assertEqual(self.path.read_bytes(), content)

  @parameterized.parameters(
    ("item.bias", None, "lacks item.bias"),
    ("item.biases", np.zeros(F), "has the unknown array item.biases"),
    ("profiles", None, "lacks profiles; .*all of item_features, profiles, hi"),
    ("mix.bias", np.zeros(F), "lacks mix.kernel; expected it"),
    ("user_out.kernel", np.zeros((F, HIDDEN)), r"\(6, 7\); expected \(7, 6\)"),
    ("user_hidden.kernel", np.zeros(3), r"shape \(3,\); expected \(3, 7\)"),
    ("self_attention.key.kernel", np.zeros((F, 2, 3)), r"\(6, 2, 3\); .*\(6, "),
    ("item_features", np.zeros((9, 4)), r"\(9, 4\); expected \(9, 5\)"),
    ("profiles", np.zeros((USERS, 2)), r"\(43, 2\); expected \(43, 3\)"),
    ("histories", np.zeros((3, H), int), r"\(3, 4\); expected \(43, 4\)"),
    ("histories", np.zeros((USERS, H)), "histories is of float64; expected in"),
    ("histories", np.full((USERS, H), 13), r"unknown item .*ids 1\.\.12"),
    ("item_features", np.ones((13, D)), "row 0; expected zeros"),
    ("item.kernel", np.full((D, F), np.nan), r"kernel\[0, 0\] is not finite"),
    ("item.kernel", np.full((D, F), 1e300), r"not finite in float32 \(30 such"),
    ("item.kernel", np.full((D, F), "x"), "is of <U1; expected finite numbers"),
    ("item.kernel", np.array([{}]), "item.kernel is of object; expected fin"),
  )
  def test_each_fault_is_one_line(self, name, value, message):
    made = arrays(False, True) | {name: value}
    if value is None:
      del made[name]
    with self.assertRaisesRegex(InputError, f"urm.npz.*{message}") as caught:
      self._read(made)
    self.assertNotIn("\n", str(caught.exception))

  def test_too_few_users(self):
    made = arrays(False, True)
    made |= {name: made[name][:9] for name in ("profiles", "histories")}
    with self.assertRaisesRegex(InputError, "has 9 users; expected at least"):
      self._read(made)

  def test_no_file(self):
    with self.assertRaisesRegex(InputError, "urm.npz is missing; expected the"):
      response_file.read(self.path)

  @parameterized.parameters(b"", b"no zip", pickle.dumps([1.0]))
  def test_no_npz(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(InputError, "urm.npz cannot be read"):
      response_file.read(self.path)

  def test_npy(self):
    with self.path.open("wb") as file:
      np.save(file, np.zeros(3))
    with self.assertRaisesRegex(InputError, "urm.npz cannot be read"):
      response_file.read(self.path)


if __name__ == "__main__":
  absltest.main()
