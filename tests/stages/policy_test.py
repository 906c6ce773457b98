"""What a run says of its speed."""

import json
import pathlib
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest

from hsrl_jax.stages import training
from tests import command


@pytest.mark.slow
class SpeedTest(absltest.TestCase):
  def test_a_long_training_says_how_fast_it_was(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    given = (*command.SMALL, f"--workdir={folder}", "--seeds=0,1")
    with mock.patch.object(training, "_LONG", 0.0):
      status, out, err = command.run(*given)
    self.assertEqual(status, 0, err)
    self.assertRegex(out, r"speed: +[\d.,]+ iterations/s, [\d,]+ slates/s, ")
    summary = json.loads((pathlib.Path(folder) / "summary.json").read_text())
    speed, spent = summary["speed"], summary["policy"]["training"]
    self.assertAlmostEqual(speed["iterations_per_second"] * spent, 120)
    self.assertBetween(speed["utilisation"], 0, 1)
    users = speed["slates_per_second"] / speed["iterations_per_second"]
    self.assertAlmostEqual(users, 2 * 16)


if __name__ == "__main__":
  absltest.main()
