"""Worlds whose users are made up: what goes with them, and the whole path."""

import json
import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import settings
from hsrl_jax.data import prepare
from hsrl_jax.errors import InputError
from hsrl_jax.stages.parts import Parts
from tests.command import run

WORLD = {"dataset": "sardine", "simulator_world": "SlateTopK-Bored"}


class RefusedTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"dataset": "toy"}, "SlateTopK-Bored with --dataset=toy; .*=sardine"),
    ({"simulator_world": "fitted"}, "no slates to fit users to; .*BoredInf"),
    ({"response_params": "x.npz"}, "and --response_params; expected --dat"),
    ({"item_vectors": "logs"}, "item_vectors=logs .* expected auto or given"),
    ({"agent": "sasrec"}, "agent=sasrec learns from logged slates"),
    ({"simulator_max_steps": 9}, "max_steps is 9; expected 20, the default"),
    ({"simulator_slate_size": 3}, "slate_size is 3; .* world = SlateTopK-B"),
    ({"simulator_protocol": "no_repeat"}, "expected paper, the default"),
    ({"simulator_world": "Slate"}, "'Slate'; expected one of .'fitted', 'Sl"),
  )
  def test_in_one_line(self, values, expected):
    values = dict(WORLD | values)
    with self.assertRaisesRegex(InputError, expected) as raised:
      agent = values.pop("agent", "hsrl")
      Parts(settings.config(agent, values), pathlib.Path("nowhere"))
    self.assertNotIn("\n", str(raised.exception))

  def test_what_is_decided_by_no_world_may_be_chosen(self):
    values = {"simulator_reward": "mean", "simulator_observed": "interactions"}
    config = settings.config("hsrl", WORLD | values)
    self.assertTrue(Parts(config, pathlib.Path("nowhere")).without_slates)


class DatasetTest(absltest.TestCase):
  def test_users_and_items(self):
    folder = prepare.builder_folder("sardine")
    module = prepare.load_builder(folder / "sardine_dataset_builder.py")
    made = module.Builder.read_sessions(None, None)
    users, split = np.stack(made["profile"]), np.array(made["split"])
    np.testing.assert_allclose(np.linalg.norm(users, axis=1), 1)
    topics = np.count_nonzero(users, 1)
    self.assertEqual((topics.min(), topics.max()), (3, 5))
    # Binomial of 10 and 0.4, cut to 3, 4 and 5: 0.215 : 0.251 : 0.201.
    share = np.bincount(topics)[3:] / len(topics)
    np.testing.assert_allclose(share, [0.322, 0.376, 0.301], atol=0.02)
    self.assertLen(np.unique(users, axis=0), len(users))
    self.assertEqual((split == "train").sum(), 4_000)
    self.assertEqual(np.shape(made["exposed"]), (5_500, 0))
    items = module.Builder.read_items(None, None)
    self.assertEqual(items["feature"].shape, (1_000, 10))
    for row in (0, 500, 999):
      largest = np.argmax(items["feature"][row])
      self.assertEqual(items["genres"][row], f"Topic {largest}")
      self.assertStartsWith(items["title"][row], f"topic {largest} 0.")


class WholePathTest(absltest.TestCase):
  @pytest.mark.slow
  def test_leaves_a_report(self):
    workdir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    status, out, err = run(
      "--dataset=sardine",
      "--simulator_world=SlateTopK-Bored",
      "--simulator_observed=interactions",
      "--sid_vocab_size=16",
      "--iterations=20",
      "--iterations_per_call=10",
      "--curve_every=20",
      "--save_every=20",
      "--evaluate_episodes=20",
      f"--workdir={workdir}",
    )
    self.assertEqual(status, 0, err)
    self.assertIn("users: train 4,000, val 500, test 1,000", out)
    self.assertIn("sardine, split test, SlateTopK-Bored, 20 episodes", out)
    results = json.loads((workdir / "results.json").read_text())
    rewards = {
      name: x["total_reward"]["mean"] for name, x in results["policies"].items()
    }
    self.assertGreater(rewards["greedy_oracle"], 2 * rewards["random"])
    self.assertGreater(rewards["farsighted"], 2 * rewards["greedy_oracle"])
    page = (workdir / "report" / "report.html").read_text()
    self.assertIn("is known (SlateTopK-Bored)", page)


if __name__ == "__main__":
  absltest.main()
