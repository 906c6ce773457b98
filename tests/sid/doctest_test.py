"""The examples in the docstrings of hsrl_jax.sid."""

import doctest
import importlib
import pkgutil

import pytest
from absl.testing import absltest

from hsrl_jax import sid


class DoctestTest(absltest.TestCase):
  @pytest.mark.slow
  def test_examples(self):
    attempted = {}
    for file in pkgutil.iter_modules(sid.__path__, f"{sid.__name__}."):
      module = importlib.import_module(file.name)
      result = doctest.testmod(module, extraglobs={"sid": sid})
      self.assertEqual(result.failed, 0, file.name)
      attempted[file.name.split(".")[-1]] = result.attempted
    self.assertGreater(attempted["trie"], 0)
    self.assertGreater(attempted["quantizer"], 0)
    self.assertGreater(attempted["beam_search"], 0)


if __name__ == "__main__":
  absltest.main()
