"""Tests with a folder of their own, of data or the command."""

import contextlib
import pathlib
import tempfile
from collections.abc import Callable

from absl.testing import parameterized

from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError
from tests import command


class FolderTest(parameterized.TestCase):
  """A test with an empty `folder`, which goes when it ends."""

  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder)

  @contextlib.contextmanager
  def refused(self, *texts: str):
    """Expects an InputError of one line that has these texts."""
    with self.assertRaises(InputError) as caught:
      yield
    error = str(caught.exception)
    for text in texts:
      self.assertIn(text, error)
    self.assertNotIn("\n", error)


class DataTest(FolderTest):
  """A builder's source is in `raw`, and what is prepared of it in `data`."""

  def setUp(self):
    super().setUp()
    self.raw, self.data = self.folder / "raw", self.folder / "data"
    self.raw.mkdir()

  def prepared(self, dataset: str, **kinds) -> source.Dataset:
    """What the builder of a dataset makes of `raw`."""
    prepare.prepare(dataset, self.data, str(self.raw), **kinds)
    return source.load(self.data)


class CommandTest(FolderTest):
  """A test of the command, in this process."""

  def ok(self, *arguments: str, by: Callable = command.run) -> str:
    """What a command prints that does its work."""
    status, out, err = by(*arguments)
    self.assertEqual(status, 0, err)
    return out

  def fails(
    self, text: str, *arguments: str, by: Callable = command.run
  ) -> None:
    """Expects that a command says what is wrong in one line, with a text."""
    status, _, err = by(*arguments)
    self.assertEqual(status, 2, err)
    self.assertLen(err.splitlines(), 1, err)
    self.assertIn(text, err)
