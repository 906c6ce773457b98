"""What an export says of the training that its policy had."""

import json
import pathlib
import types

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.config import ExportConfig
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import measures
from hsrl_jax.stages import export
from hsrl_jax.types import Sessions
from tests import toy


class RangesTest(absltest.TestCase):
  def test_of_profiles_and_rewards(self):
    logs = Sessions(
      user_id=np.int32([1, 2]),
      profile=np.float32([[0.5, -2.0], [1.0, 1.5]]),
      history=np.ones((2, 1), np.int32),
      exposed=np.ones((2, toy.SLATE), np.int32),
      response=np.zeros((2, toy.SLATE), np.float32),
    )
    # The toy's rewards are at most 1; likes of a slate count as one too.
    ranges = export._ranges(logs, toy.env())
    self.assertEqual(ranges["profile"], (-2.0, 1.5))
    low, high = ranges["reward"]
    self.assertBetween(low, -1.0, 0.0)
    self.assertEqual(high, toy.SLATE)
    logged = np.float32([np.nan, -30.0, 70.0])
    ranges = export._ranges(logs._replace(reward=logged), toy.env())
    self.assertEqual(ranges["reward"], (-30.0, 70.0))
    none = logs._replace(profile=np.zeros((2, 0), np.float32))
    self.assertEqual(export._ranges(none, toy.env())["profile"], (0.0, 0.0))


def _results(auc=0.1, recall=0.1, verdict="good", **more):
  """Of a run whose policy has so much more than popularity, +- 0.05."""
  return {
    "format": measures.RESULTS_FORMAT,
    "ranks_next": False,
    "held_out_rows": {"users": 40},
    "held_out_differences": {
      "popularity": {
        name: {"mean": x, "ci95": [x - 0.05, x + 0.05]}
        for name, x in (("auc_within_slates", auc), ("recall@10", recall))
      }
    },
    "simulator": {"verdict": verdict, "reasons": ["it knows nothing"]},
    **more,
  }


class GateTest(parameterized.TestCase):
  def _check(self, results, anything=False, learns=True):
    folder = pathlib.Path(self.create_tempdir().full_path)
    if results is not None:
      (folder / "results.json").write_text(json.dumps(results))
    parts = types.SimpleNamespace(
      workdir=folder, is_done=lambda _: results is not None
    )
    agent = types.SimpleNamespace(learns=learns)
    return export._doubts(parts, agent, ExportConfig(any=anything))

  @parameterized.parameters(
    ({"auc": 0.0, "recall": -0.1}, r"not above popularity: .* \[-0.150, -0.05"),
    ({"verdict": "useless"}, "simulator that is useless: it knows nothing"),
  )
  def test_what_a_run_itself_doubts_is_refused(self, results, words):
    with self.assertRaisesRegex(InputError, f"{words}.*--export_any"):
      self._check(_results(**results))
    (doubt,) = self._check(_results(**results), anything=True)
    self.assertRegex(doubt, words)
    # There is nothing better to expect of popularity itself.
    self.assertLen(self._check(_results(**results), True, learns=False), 0)

  @parameterized.parameters(
    {},
    {"auc": 0.0},  # The other is above.
    {"verdict": "useless", "ranks_next": True},  # No reward is simulated.
    {"verdict": "useless", "learned_from": {}},
    {"auc": -0.1, "recall": -0.1, "held_out_rows": {"users": 3}},
    {"held_out_differences": {}},
  )
  def test_what_passes(self, **results):
    self.assertEqual(self._check(_results(**results)), [])

  def test_without_results_nothing_is_known(self):
    self.assertIn("was not evaluated", *self._check(None))


if __name__ == "__main__":
  absltest.main()
