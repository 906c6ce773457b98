"""Settings by name, as Python gives them and as a workdir keeps them."""

import dataclasses
import os

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import agents, settings
from hsrl_jax.config import Config
from hsrl_jax.errors import InputError


class SettingsTest(parameterized.TestCase):
  def test_values_reach_their_fields(self):
    config = settings.config(
      "a2c",
      {
        "sid_vocab_size": np.int64(32),
        "simulator_dropout": 0,
        "critic_hidden": [8, 4],
        "seeds": 3,
        "item_logits": "free",
      },
    )
    self.assertEqual(config.quantizer.vocab_size, 32)
    self.assertIs(type(config.quantizer.vocab_size), int)
    self.assertIs(type(config.simulator.dropout), float)
    self.assertEqual(config.network.critic_hidden, (8, 4))
    self.assertEqual(config.train.seeds, (3,))
    self.assertTrue(config.settings.free)

  def test_nothing_given_is_the_default_configuration(self):
    config = settings.config(agents.DEFAULT, {})
    self.assertEqual(
      dataclasses.replace(config, agent=None, settings=None), Config()
    )

  @parameterized.parameters(
    ({"iterations": "20"}, "^iterations is '20'; expected an integer$"),
    ({"iterations": True}, "^iterations is True; expected an integer$"),
    ({"iterations": 250}, "^iterations is 250; expected .*a multiple of"),
    ({"iterations": None}, "^iterations is None; expected an integer$"),
    ({"learning_rate": float("nan")}, "^learning_rate is nan; expected a fi"),
    ({"learning_rate": 10**400}, "^learning_rate is 1000.*; expected a finit"),
    ({"learning_rate": 0}, "^learning_rate is 0.0; expected above 0$"),
    ({"seeds": (2**32,)}, "^seeds is 4294967296; expected an integer below"),
    ({"sids": ""}, "^sids is empty; expected a text, or leave it out$"),
    ({"seeds": np.arange(2)}, r"^seeds is array\(\[0, 1\]\); expected an int"),
    ({"seeds": (1, "x")}, "^seeds is 1,x; expected integers with commas$"),
    ({"explore_no_repeat": 1}, "^explore_no_repeat is 1; expected True or F"),
    ({"iteration": 20}, "^iteration is no setting; expected such as iterati"),
    ({"item_logits": "free"}, "agent=hsrl does not read it; .* agent=.*a2c"),
    ({"agent": "hrsl"}, "^agent is 'hrsl'; expected one of"),
    (
      {"next_item_epochs": 3},
      "recipe=replay does not read it; expected recipe=next_item or next_item,",
    ),
    (
      {"recipe": "next_item", "iterations": 100},
      "^iterations is given, but recipe=next_item does not read it; expected "
      "recipe=replay or on_policy or logs or .*, or no such setting$",
    ),
    (
      {"recipe": "next_item", "beams": 9},
      "^beams is given, but recipe=next_ite",
    ),
    (
      {"recipe": "next_item", "critic_hidden": 9},
      "^critic_hidden is given, but",
    ),
    (
      {"agent": "sasrec", "recipe": "next_item", "next_item_beams": 9},
      "agent=sasrec does not read it; expected agent=hsrl, or no such setting",
    ),
    (
      {"agent": "ddpg", "recipe": "next_item"},
      "^recipe is 'next_item' with ddpg; expected replay or logs, or one of",
    ),
    ({"recipe": "fly"}, "^recipe is 'fly'; expected one of"),
    (
      {"recipe": "logs", "temperature": 0.5},
      "^temperature is given, but recipe=logs does not read it; expected "
      "recipe=replay, or no such setting$",
    ),
    (
      {"recipe": "on_policy", "hold_logged": "none"},
      "^hold_logged is given, .* expected recipe=next_item,on_policy, or no ",
    ),
    (
      {"segment": 10},
      "^segment is given, but recipe=replay does not read it; expected recipe=",
    ),
  )
  def test_one_line_names_setting_value_and_what_is_expected(
    self, values, message
  ):
    values = dict(values)
    with self.assertRaisesRegex(InputError, message) as caught:
      settings.config(values.pop("agent", "hsrl"), values)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_a_file_is_kept_by_its_full_path(self):
    config = settings.config("hsrl", {"response_params": "urm.npz"})
    kept = settings.texts(config)
    self.assertEqual(kept["response_params"], os.path.abspath("urm.npz"))
    again = settings.of_texts("flags.txt", kept)
    self.assertEqual(settings.texts(again), kept)

  def test_what_the_task_does_not_read_is_not_kept(self):
    given = {"recipe": "next_item", "next_item_epochs": 3}
    kept = settings.texts(settings.config("hsrl", given))
    self.assertContainsSubset(
      {"next_item_epochs", "next_item_width", "seeds"}, kept
    )
    self.assertNoCommonElements({"iterations", "beams", "discount"}, kept)
    self.assertNoCommonElements(
      {"next_item_epochs"}, settings.texts(settings.config("hsrl", {}))
    )
    # A file of which more was kept is read.
    config = settings.of_texts("flags.txt", kept | {"iterations": "100"})
    self.assertEqual(config, settings.config("hsrl", given))

  @parameterized.parameters(
    ({"iterations": "many"}, "^flags.txt has iterations 'many'; expected an i"),
    ({"explore_no_repeat": "yes"}, "expected True or False"),
    ({"unheard": "1"}, "^flags.txt: unheard is no setting"),
  )
  def test_texts_that_are_no_values(self, texts, message):
    with self.assertRaisesRegex(InputError, message):
      settings.of_texts("flags.txt", texts)


if __name__ == "__main__":
  absltest.main()
