"""Errors of readers become one line for people."""

import json
import os
import pathlib

import numpy as np
import pyarrow.parquet
from absl.testing import absltest, parameterized

from hsrl_jax.errors import InputError, line, reading


class LineTest(parameterized.TestCase):
  @parameterized.parameters(
    ("at postgresql://ann:pw@host/x, no", "at postgresql://***@host/x, no"),
    ("postgres:/ann:p@w/@host", "postgres:/***@host"),
    ("'mysql://ann:p w@host'", "'mysql://***@host'"),
    (
      "postgresql://host/x?password=pw&a=b",
      "postgresql://host/x?password=***&a=b",
    ),
    ("host=h Password=pw", "host=h Password=***"),
    ("runs/a@b.db\nhttp://host/x", "runs/a@b.db http://host/x"),
  )
  def test_no_password_is_told(self, text, want):
    self.assertEqual(line(text), f"error: {want}")


class ReadingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir()) / "x"

  def _refused(self, message, reader, expected="a whole one"):
    with self.assertRaisesRegex(InputError, message) as caught:  # noqa: SIM117
      with reading(self.path, expected):
        reader(self.path)
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.named_parameters(
    ("json", lambda path: json.loads(path.read_text()), "Expecting property"),
    ("npy", np.load, ".*pickle"),
    ("parquet", pyarrow.parquet.read_table, ".*Parquet"),
    ("folder", lambda path: path.parent.read_text(), ".*Is a directory"),
    ("no_message", lambda path: next(iter(())), "StopIteration"),
  )
  def test_a_reader_fails(self, reader, message):
    self.path.write_bytes("{ü\nno file of any kind".encode())
    self._refused(
      rf"/x cannot be read \({message}.*\); expected a whole one", reader
    )

  def test_another_encoding(self):
    self.path.write_bytes("Müsli".encode("latin-1"))
    self._refused(
      "/x has the byte 0xfc, which is not utf-8; expected a whole one in utf-8",
      lambda path: path.read_text(encoding="utf-8"),
    )

  def test_no_file(self):
    self._refused(
      "/x is missing; expected a whole one", lambda path: path.read_text()
    )

  def test_no_such_entry(self):
    self._refused(
      "/x lacks 'b'; expected a whole one", lambda path: {"a": str(path)}["b"]
    )

  def test_a_fifo_is_refused_at_once(self):
    os.mkfifo(self.path)
    self._refused(
      "/x is no regular file; expected a whole one, in a regular file",
      lambda path: self.fail("It would wait for somebody to write."),
    )

  def test_other_errors_pass(self):
    def refuse(path):
      raise InputError("as it was")

    self._refused("^as it was$", refuse)
    with self.assertRaises(KeyboardInterrupt), reading(self.path, "anything"):
      raise KeyboardInterrupt


if __name__ == "__main__":
  absltest.main()
