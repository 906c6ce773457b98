"""The examples in the docstrings of hsrl_jax.sid."""

import doctest
import importlib
import pkgutil

from absl.testing import absltest

from hsrl_jax import sid


class DoctestTest(absltest.TestCase):
  def test_examples(self):
    attempted = {}
    for found in pkgutil.iter_modules(sid.__path__, f"{sid.__name__}."):
      module = importlib.import_module(found.name)
      result = doctest.testmod(module)
      self.assertEqual(result.failed, 0, found.name)
      attempted[found.name.split(".")[-1]] = result.attempted
    self.assertGreater(attempted["index"], 0)
    self.assertGreater(attempted["beam_search"], 0)


if __name__ == "__main__":
  absltest.main()
