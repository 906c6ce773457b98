"""--continue_from: RL goes on from a supervised policy, or from RL."""

import functools
import json
import pathlib
import re
import shutil
import tempfile
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import api, sid
from hsrl_jax import config as config_lib
from hsrl_jax.engine import checkpoint
from hsrl_jax.errors import InputError
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.stages import policy, start
from hsrl_jax.stages import start_loading as loading
from hsrl_jax.stages.run import Run
from tests.command import run
from tests.folders import CommandTest

TOUR = pathlib.Path(__file__).parents[1] / "docs" / "tour.md"
# Of all runs: as small as it gets.
TOY = (
  "--dataset=toy",
  "--sid_levels=2",
  "--sid_vocab_size=16",
  "--simulator_epochs=1",
  "--evaluate_episodes=4",
)
# A click model that has statistics of the logs.
BLENDED = ("--simulator_click_model=blended",)
SUPERVISED = (
  "--next_item_width=8",
  "--next_item_epochs=2",
  "--next_item_hidden=8",
  "--next_item_history=8",
  "--next_item_beams=20",
)
RL = (
  "--critic_hidden=8",
  "--users=8",
  "--iterations=20",
  "--iterations_per_call=10",
  "--curve_every=20",
  "--save_every=20",
)


def _tour():
  """The tour's two commands; nothing of them but paths is left out."""
  commands = re.findall(
    r"^python -m hsrl_jax.launch (.*runs/supervised.*)$", TOUR.read_text(), re.M
  )
  return [command.split() for command in commands]


class RunsTest(CommandTest):
  def _new(self, name, *arguments, like="W"):
    """The policy of a run that shares what comes before with another one."""
    old, new = self.folder / like, self.folder / name
    for part in ("data", "sids", "simulator"):
      shutil.copytree(old / part, new / part)
      mark = new / ".done" / {"sids": "quantize"}.get(part, part)
      mark.parent.mkdir(exist_ok=True)
      shutil.copy(old / ".done" / mark.name, mark)
    mode = ("--mode=policy", f"--workdir={new}")
    return run(*arguments, *TOY, *RL, *mode)

  def _params(self, name):
    """What a run acts by; of an RL run the averaged parameters."""
    (params,) = policy.trained(api.load(self.folder / name)._run)
    return jax.tree.map(np.asarray, params)

  @pytest.mark.slow
  def test_the_tour_and_what_comes_of_it(self):
    supervised, continued = (
      [x.replace("runs/supervised", str(self.folder / "W")) for x in command]
      for command in _tour()
    )
    self.ok(*supervised, *TOY, *SUPERVISED, *BLENDED)
    goes_on = [x for x in continued if not x.startswith("--workdir")]
    goes_on += ["--segment=10", "--minibatches=2"]
    self.ok("R", *goes_on, *BLENDED, by=self._new)
    kept = (self.folder / "R/flags.txt").read_text()
    self.assertIn("--next_item_width=8\n", kept)
    own = self._params("W")
    chex.assert_trees_all_equal(
      {x: self._params("R")["supervised"][x] for x in own}, own
    )

    # Other sizes, or settings of other networks, go with nothing.
    goes_on_by = "--recipe=next_item,on_policy"
    wide = "--next_item_width=64"
    self._refused(f"{wide[:17]} is 64, but the policy of", goes_on_by, wide)
    self._refused("--beams is given, but --recipe", goes_on_by, "--beams=9")

    # It is complete: the run that it came from is gone.
    (self.folder / "W").rename(self.folder / "gone")
    self._resumes("R")
    self.ok(f"--workdir={self.folder / 'R'}", "--mode=evaluate")
    results = json.loads((self.folder / "R" / "results.json").read_text())
    self.assertIn("recall@10", results["held_out"]["hsrl"])

    # RL goes on from RL.
    path = self.folder / "R"
    again = [x for x in goes_on if not x.startswith("--continue_from")]
    again += [f"--continue_from={path}", *BLENDED]
    self.ok("S", *again, by=functools.partial(self._new, like="R"))
    self._only_first_checkpoint("S")
    chex.assert_trees_all_equal(self._params("S"), self._params("R"))

  def _refused(self, message, *arguments):
    self.fails(
      message,
      f"--workdir={self.folder / 'N'}",
      f"--continue_from={self.folder / 'W'}",
      *TOY,
      *arguments,
    )

  def _only_first_checkpoint(self, name):
    shutil.rmtree(self.folder / name / "policy" / "checkpoints" / "20")

  def _resumes(self, name):
    """From the first checkpoint of RL a run comes to the same end."""
    folder = self.folder / name / "policy/checkpoints"
    end = checkpoint.latest_digest(folder)
    self._only_first_checkpoint(name)
    (self.folder / name / ".done/policy").unlink()
    self.ok(f"--workdir={self.folder / name}", "--mode=policy")
    self.assertEqual(checkpoint.latest_digest(folder), end)

  @pytest.mark.slow
  def test_both_parts_in_one_run(self):
    """The policy of the next item, then RL on-policy, exported and resumed."""
    own = f"--workdir={self.folder / 'O'}"
    self.ok(
      *(own, "--recipe=next_item,on_policy", "--segment=10", "--minibatches=2"),
      *("--simulator_observed=interactions", *TOY, *SUPERVISED, *BLENDED, *RL),
    )
    results = json.loads((self.folder / "O" / "results.json").read_text())
    self.assertIn("recall@10", results["held_out"]["hsrl"])
    run_ = api.load(self.folder / "O")._run
    (trained,) = policy.trained(run_)
    first = Run(
      start.first_part(run_.as_given), self.folder / "O" / start.FIRST, of=run_
    )
    (before,) = policy.trained(first)
    chex.assert_trees_all_equal(
      {x: trained["supervised"][x] for x in before}, before
    )
    small = ("--export_batch_sizes=2", "--export_platforms=cpu")
    self.ok(own, "--mode=export", "--export_any", *small)
    recommended = api.load(self.folder / "O").recommend(
      ["toy-1"], profile=[0.0] * 4, k=3
    )
    self.assertLen(recommended, 3)
    self._resumes("O")

  @pytest.mark.slow
  def test_rl_goes_on_from_rl(self):
    self.ok(*TOY, f"--workdir={self.folder / 'W'}", "--mode=data")
    for mode in ("quantize", "simulator"):
      self.ok(f"--workdir={self.folder / 'W'}", f"--mode={mode}")
    sizes = ("--agent=a2c", "--width=8")
    sizes += ("--batch_size=16", "--buffer_size=800")
    self.ok("P", *sizes, by=self._new)
    goes_on = f"--continue_from={self.folder / 'P'}"
    self.ok("Q", *sizes, goes_on, "--learning_rate=0.001", by=self._new)
    shutil.rmtree(self.folder / "Q" / "policy" / "checkpoints" / "20")
    chex.assert_trees_all_equal(self._params("Q"), self._params("P"))
    self.fails(
      "kernel [1, 8, 8]; expected [1, 32, 8], as the flags",
      "N",
      "--agent=a2c",
      goes_on,
      by=self._new,
    )


class RefusalsTest(CommandTest):
  """What is told before anything runs."""

  def _finished(self, done=True, **kept):
    """A folder that looks like a finished run."""
    folder = self.folder / "W"
    (folder / ".done").mkdir(parents=True)
    flags = {"agent": "hsrl", "dataset": "toy", "width": 32} | kept
    lines = [f"--{name}={value}\n" for name, value in flags.items()]
    (folder / "flags.txt").write_text("".join(lines))
    if done:
      (folder / ".done" / "policy").write_text("0\n")
    return folder

  def _refused(self, message, *arguments):
    new = self.folder / "new"
    source = f"--continue_from={self.folder / 'W'}"
    self.fails(message, f"--workdir={new}", source, *TOY, *arguments)
    self.assertFalse(new.exists())

  def test_no_workdir(self):
    self._refused("is no workdir; expected that of a finished run")

  @parameterized.parameters(
    ({"done": False}, "has no trained policy; expected a finished run"),
    ({"agent": "a2c"}, "trained --agent=a2c; expected --agent=hsrl"),
    ({}, "--agent=hsrl has no checkpoints"),
  )
  def test_a_run_that_is_no_start(self, kept, message):
    self._finished(**kept)
    self._refused(message)

  def test_tasks_and_modes(self):
    self._finished()
    self._refused("--recipe=next_item", "--recipe=next_item")
    mode = "--experiment=ablation"
    self._refused(f"with {mode}; expected a single", mode)

  def test_recipes_that_do_not_follow_each_other(self):
    self._finished(recipe="next_item")
    goes_on = "expected --recipe=next_item,on_policy here"
    self._refused(f"has --recipe=next_item; {goes_on}")

  def test_what_goes_on_is_not_what_does_not(self):
    self._finished()
    goes_on = "--recipe=next_item,on_policy"
    self._refused("expected a run of --recipe=next_item", goes_on)

  def test_settings_of_the_other_way_of_learning(self):
    workdir = f"--workdir={self.folder / 'new'}"
    for arguments, message in (
      (["--trace=0.5"], "--trace is given, but --recipe=replay does not read"),
      (
        [
          "--recipe=on_policy",
          "--iterations_per_call=100",
          "--without=item_residual",
        ],
        "without is item_residual; hsrl by recipe=on_policy has no",
      ),
      *(
        (
          ["--recipe=on_policy", flag],
          f"{flag.partition('=')[0]} is given, but --recipe=on_policy does not "
          "read it; expected --recipe=replay",
        )
        for flag in (
          *("--temperature=1", "--batch_size=32"),
          "--buffer_size=32000",
        )
      ),
      (
        ["--recipe=on_policy", "--iterations_per_call=100", "--agent=a2c"],
        "recipe is 'on_policy' with a2c; expected replay or logs, or one of",
      ),
    ):
      self.fails(message, workdir, *TOY, *arguments, "--mode=data")

  @parameterized.parameters(
    ({"names": ["", "a", "b"]}, "has 2 items, this run 3"),
    ({"names": ["", "a", "b", "x"]}, "has other items than this run"),
    ({"tokens": [[0, 0], [1, 0], [0, 1]]}, "has other SIDs than this run"),
    ({}, None),
  )
  def test_items_must_be_the_same(self, changes, message):
    ours = {"names": ["", "a", "b", "c"], "tokens": [[0, 0], [0, 1], [1, 0]]}
    parts = [_parts(**ours | changes), _parts(**ours)]
    if message is None:
      loading.check_items("--continue_from=W", *parts)
      return
    with self.assertRaisesRegex(InputError, message):
      loading.check_items("--continue_from=W", *parts)

  def test_digests_tell_parameters_apart(self):
    seen = []
    for value in (1.0, 1.0, 2.0):
      folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
      with checkpoint.open_directory(folder) as checkpointer:
        self.assertIsNone(checkpoint.latest_digest(folder))
        checkpoint.save(checkpointer, 1, {"x": jnp.full(2, value)})
      seen.append(checkpoint.latest_digest(folder))
    self.assertEqual(seen[0], seen[1])
    self.assertNotEqual(seen[0], seen[2])


def _parts(names, tokens):
  index = sid.build_index(np.array(tokens[: len(names) - 1]), 2)
  items = mock.Mock(ids=names)
  catalogue = Catalogue(None, index, None)
  return mock.Mock(
    dataset=mock.Mock(items=items), catalogue=catalogue, config=config_lib
  )


if __name__ == "__main__":
  absltest.main()
