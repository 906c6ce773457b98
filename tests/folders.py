"""Tests with a folder of their own, and with errors of one line."""

import contextlib
import pathlib
import tempfile

from absl.testing import parameterized

from hsrl_jax.data import prepare, source
from hsrl_jax.errors import InputError


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
