"""The builder of RL4RS on made-up files in the official format."""

import csv

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import prepare, source
from tests import folders

NAME = "rl4rs"
TRAIN, TEST = "rl4rs_b_train.csv", "rl4rs_b_test.csv"
ITEMS = [1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 20, 21]  # Numbered 1..12.

builder = prepare.load_builder(
  prepare.builder_folder(NAME) / f"{NAME}_dataset_builder.py"
)


def _vector(item):
  rng = np.random.default_rng(item)
  return ",".join(f"{x:.4f}" for x in rng.normal(size=40))


def _line(time, session, sequence, exposed, response, history="0", seed=0):
  rng = np.random.default_rng(seed)
  portrait = [*rng.integers(0, 3, 10) * 1000, *rng.integers(-9, 90, 32) / 4]
  return "@".join(
    [
      f"{time}@{session}@{sequence}",
      ",".join(map(str, exposed)),
      ",".join(response),
      history,
      ",".join(map(str, portrait)),
      ";".join(_vector(item) for item in exposed),
      "1",
    ]
  )


def _log(cells):
  x = map(float, cells)
  return np.array([np.log(1 + y) if y > 0 else -np.log(1 - y) for y in x])


def _logs(sessions, first_time=1000):
  """Lines of sessions with two slates each, the later slate first."""
  rng = np.random.default_rng(sessions)
  lines = []
  for session in range(1, sessions + 1):
    time = first_time + 7 * session * (-1) ** session  # Not in their order.
    for sequence in (2, 1):
      exposed = rng.permutation(ITEMS)[:9]
      response = rng.choice(["0", "1"], 9)
      history = ["0", "0,5,8,5", ",".join(["21"] * 60)][session % 3]
      seed = [session, sequence]
      lines.append(
        _line(
          time + sequence, session, sequence, exposed, response, history, seed
        )
      )
  return lines


class Rl4rsTest(folders.DataTest):
  def setUp(self):
    super().setUp()
    rows = [f"{i} {_vector(i)} {i / 4} {i % 3} {2 * (i > 9)}" for i in ITEMS]
    rows.reverse()
    self._write("item_info.csv", builder.ITEM_COLUMNS, rows)

  def _write(self, name, header, lines):
    (self.raw / name).write_text("\n".join([header, *lines]) + "\n")

  def _write_logs(self, lines, name=TRAIN):
    self._write(name, builder.COLUMNS, lines)

  def _prepare(self):
    malformed = prepare.prepare(NAME, self.data, str(self.raw))
    return malformed, source.load(self.data)

  def _refused(self, message):
    with self.refused(message):
      self._prepare()

  def test_all_columns_by_hand(self):
    lines = _logs(20)
    self._write_logs(lines)
    malformed, (items, splits) = self._prepare()
    self.assertEqual(malformed, {})

    self.assertEqual(items.external_ids[1:], [str(i) for i in ITEMS])
    self.assertEqual(items.titles[5], "item 8, price 2")
    self.assertEqual(items.genres[5], "location 2")
    self.assertEqual(items.genres[7], "location 1|special 2")
    vectors = [np.fromstring(_vector(i), sep=",") for i in ITEMS]
    np.testing.assert_allclose(items.features[1:], vectors, rtol=1e-6)

    # Sessions by time: the odd ones, the last first; then the even ones.
    order = [*range(19, 0, -2), *range(2, 21, 2)]
    parts = {"train": order[:16], "val": order[16:18], "test": order[18:]}
    cells = {tuple(x.split("@")[1:3]): x.split("@") for x in lines}
    number = {str(item): i for i, item in enumerate(ITEMS, 1)}
    portraits = {key: x[6].split(",") for key, x in cells.items()}
    columns = []
    for column in range(10):
      values = [portraits[str(s), q][column] for s in order[:16] for q in "12"]
      # At most 3 values, so all have a column; ties by value.
      found = sorted(set(values), key=lambda x: (-values.count(x), float(x)))
      columns.append(found)
    quantities = np.array(
      [_log(portraits[str(s), q][10:]) for s in order[:16] for q in "12"]
    )
    for name, sessions in parts.items():
      found, row = splits[name], 0
      self.assertLen(found.user_id, 2 * len(sessions))
      for session in sessions:
        clicked = []
        for sequence in "12":
          x = cells[str(session), sequence]
          exposed, response = x[3].split(","), x[4].split(",")
          self.assertEqual(found.user_id[row], order.index(session) + 1)
          self.assertEqual(
            found.exposed[row].tolist(), [number[i] for i in exposed]
          )
          self.assertEqual(
            found.response[row].tolist(), [float(y) for y in response]
          )
          past = [i for i in x[5].split(",") if i != "0"] + clicked
          past = [number[i] for i in past]
          self.assertEqual(found.history[row].tolist(), ([0] * 50 + past)[-50:])
          clicked += [
            item
            for item, answer in zip(exposed, response, strict=True)
            if answer == "1"
          ]
          portrait = portraits[str(session), sequence]
          hot = np.zeros((10, 8))
          for column, value in enumerate(portrait[:10]):
            if value in columns[column]:
              hot[column, columns[column].index(value)] = 1
          quantity = _log(portrait[10:])
          quantity = (quantity - quantities.mean(0)) / quantities.std(0)
          np.testing.assert_allclose(
            found.profile[row], [*hot.ravel(), *quantity], atol=1e-4
          )
          row += 1
    self.assertTrue((splits["train"].history == 0).all(1).any())

  def test_a_test_file_is_the_test_split(self):
    self._write_logs(_logs(10))
    self._write_logs(_logs(3, first_time=0), TEST)
    _, (_, splits) = self._prepare()
    sizes = {name: len(x.user_id) for name, x in splits.items()}
    self.assertEqual(sizes, {"train": 18, "val": 2, "test": 6})
    self.assertEqual(set(splits["test"].user_id), {1, 2, 3})  # The oldest.

  def test_rare_values_of_a_category_have_no_column(self):
    portrait = np.ones((40, 42))
    portrait[:, 3] = [*np.repeat(np.arange(9.0), 4), 20, 21, 22, 23]
    train = np.arange(40) < 38
    found = builder.profiles(portrait, train)[:, 24:32]
    np.testing.assert_array_equal(found[:32], np.repeat(np.eye(8), 4, 0))
    np.testing.assert_array_equal(found[32:], 0)

  @parameterized.parameters(
    (3, "28,32", "exposed_items has item 28; expected the items of item_info"),
    (3, "1,2,3", "exposed_items is '1,2,3'; expected 9 different items"),
    (3, "1,1,2,3,5,8,9,10,11", "expected 9 different items"),
    (3, "", "exposed_items is ''; expected an integer"),
    (
      4,
      "1,1,1,1,1,1,1,1,2",
      "user_feedback is '1,1,1,1,1,1,1,1,2'; expected 9",
    ),
    (4, "1,1", "user_feedback is '1,1'; expected 9 times 0 or 1"),
    (5, "5,4", "user_seqfeature has item 4"),
    (5, "", "user_seqfeature is ''; expected an integer"),
    (6, "1,2,3", "user_protrait has 3 numbers; expected 42"),
    (
      6,
      ",".join(["nan"] * 42),
      "user_protrait has 42 numbers, some not finite",
    ),
    (7, "0.1,0.2", "item_feature has 1 vectors; expected 9"),
    (7, ";".join(["0.1,x"] * 9), "item_feature: could not convert string"),
    (7, ";".join(["0.1,1"] * 9), "item_feature has 2 numbers; expected 40"),
    (0, "soon", "timestamp is 'soon'; expected an integer"),
    (1, "1.5", "session_id is '1.5'; expected an integer"),
    (1, "9" * 20, f"session_id is '{'9' * 20}'; expected an integer of 64"),
    (2, "2", "session_id 1 and sequence_id 2 are those of row 2; expected"),
    (8, "1@2", "10 columns with '@' between; expected 9"),
  )
  def test_a_malformed_row_is_named_and_left_out(self, column, cell, why):
    lines = _logs(10)
    cells = lines[1].split("@")  # Session 1, sequence 1.
    cells[column] = cell
    lines[1] = "@".join(cells)
    lines.append(lines[-1][:-300])  # Cut short.
    self._write_logs(lines)
    malformed, (_, splits) = self._prepare()
    ((path, rows),) = malformed.items()
    self.assertLen(rows, 2)
    self.assertEqual(rows[0][:2], (TRAIN, "3"))
    self.assertIn(why, rows[0][2])
    self.assertEqual(rows[1][:2], (TRAIN, "22"))
    self.assertIn("columns with '@' between", rows[1][2])
    with path.open(newline="") as file:
      written = list(csv.reader(file))
    self.assertEqual(written, [["file", "row", "why"], *map(list, rows)])
    self.assertEqual(sum(len(x.user_id) for x in splits.values()), 19)

  def test_nothing_but_malformed_rows(self):
    self._write_logs([x[:-300] for x in _logs(5)])
    self._refused(f"{TRAIN}: all 10 rows are malformed, the first is row 2: 8 ")

  @parameterized.parameters(
    ([], "has a header alone; expected rows below it"),
    (_logs(2), "the logs have 2 sessions to split; expected at least 3"),
  )
  def test_too_little(self, lines, message):
    self._write_logs(lines)
    self._refused(message)

  def test_another_header(self):
    self._write(TRAIN, "a,b", _logs(5))
    self._refused(f"{TRAIN}: row 1 is 'a,b'; expected the header 'timestamp@")

  def test_blank_lines_are_no_rows(self):
    self._write_logs(_logs(10))
    for name in ("item_info.csv", TRAIN):
      with (self.raw / name).open("a") as file:
        file.write("\n \n")
    malformed, (items, splits) = self._prepare()
    self.assertEqual(malformed, {})
    self.assertLen(items.features, len(ITEMS) + 1)
    self.assertEqual(sum(len(x.user_id) for x in splits.values()), 20)

  def test_missing_files(self):
    self._refused("has no logs to learn from; expected rl4rs_b_train.csv")
    self._write_logs(_logs(5), TEST)
    self._refused("has no logs to learn from; expected rl4rs_b_train.csv")
    (self.raw / "item_info.csv").unlink()
    self._refused("item_info.csv is missing")

  @parameterized.parameters(
    ("1 0.1,0.2 3 1 0", "item_vec has 2 numbers; expected 40"),
    (f"1 {_vector(1)} 3 1 0", "item_id is 1; expected 1.., each once"),
    (f"0 {_vector(1)} 3 1 0", "item_id is 0; expected 1.., each once"),
    (f"1 {_vector(1)} 3 1", "4 columns with ' ' between; expected 5"),
    (f"4 {_vector(1)} x 1 0", "price: could not convert"),
    (f"4 1e39{_vector(1)[6:]} 3 1 0", "item_vec has 40 numbers, some not fin"),
  )
  def test_a_bad_item_is_refused(self, row, message):
    with (self.raw / "item_info.csv").open("a") as file:
      file.write(row + "\n")
    self._write_logs(_logs(5))
    self._refused(f"item_info.csv: row 14: {message}")


if __name__ == "__main__":
  absltest.main()
