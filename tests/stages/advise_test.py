"""What --mode=advise finds in logs of a kind, and says before training."""

import shlex

import numpy as np
import pandas as pd
from absl.testing import absltest, parameterized

from hsrl_jax.config import Config
from hsrl_jax.stages import logged
from hsrl_jax.types import Sessions
from tests import command, folders

_USERS, _ITEMS = 24, 12


def _interactions(**more):
  rng = np.random.default_rng(0)
  rows = {
    "user_id": np.repeat(np.arange(_USERS), 10),
    "item_id": np.concatenate(
      [rng.permutation(_ITEMS)[:10] for _ in range(_USERS)]
    ),
    "timestamp": np.arange(10 * _USERS),
  }
  return pd.DataFrame(rows | more)


def _sessions(propensity: str):
  """Two sessions of three slates for each user."""
  rng = np.random.default_rng(1)
  rows = 6 * _USERS
  return pd.DataFrame(
    {
      "user_id": np.repeat(np.arange(_USERS), 6),
      "session_id": np.arange(rows) // 3,
      "exposed": [
        "{};{}".format(*rng.permutation(_ITEMS)[:2]) for _ in range(rows)
      ],
      "response": [f"{x};{1 - x}" for x in rng.integers(0, 2, rows)],
      "propensity": [propensity] * rows,
      "timestamp": np.tile(np.arange(6), _USERS),
    }
  )


class AdviseTest(folders.FolderTest):
  def _advised(self, name, rows, **items):
    """What the command says of logs; each command that it names is one."""
    raw, workdir = self.folder / "raw", self.folder / "w"
    raw.mkdir()
    (raw / "logs.json").write_text(
      '{"slate_size": 2}' if name == "interactions" else "{}"
    )
    rows.to_csv(raw / f"{name}.csv", index=False)
    pd.DataFrame({"item_id": range(_ITEMS), **items}).to_csv(
      raw / "items.csv", index=False
    )
    given = ("--dataset=logs", f"--raw_data_dir={raw}", f"--workdir={workdir}")
    status, out, err = command.run("--mode=advise", *given)
    self.assertEqual(status, 0, err)
    commands = [x.strip() for x in out.splitlines() if "hsrl_jax.launch" in x]
    self.assertGreater(len(commands), 1)
    flags = (workdir / "flags.txt").read_text()
    for line in commands:
      (workdir / "flags.txt").write_text(flags)  # One of them is run.
      _, _, _, *arguments = shlex.split(line)
      status, _, err = command.run(*arguments, "--mode=data")
      self.assertEqual(status, 0, err)
    return out, commands

  @parameterized.parameters(True, False)
  def test_what_users_chose(self, are_rated):
    more = {"response": np.arange(10 * _USERS) % 2} if are_rated else {}
    out, commands = self._advised("interactions", _interactions(**more))
    self.assertIn("users: 24; the median has", out)
    self.assertIn("recommended, for what users like next:", out)
    self.assertEndsWith(commands[0], "--recipe=next_item")
    self.assertEqual("50.0% of what was shown is liked" in out, are_rated)
    self.assertEqual("negatives were drawn" in out, not are_rated)
    self.assertIn("long sessions: not from these logs, without session", out)
    self.assertIn("would have earned: not from these logs, without prop", out)

  @parameterized.parameters(
    ("0.5;0.5", {"genres": ["a", "b"] * 6}, "logged_sessions.flags"),
    ("", {}, "--recipe=logs --agent=cql"),
  )
  def test_sessions(self, propensity, items, end):
    rows = _sessions(propensity)
    out, commands = self._advised("sessions", rows, **items)
    self.assertIn("recommended, for long sessions:", out)
    self.assertIn(end, commands[0])
    weighed = [x for x in commands if "--importance_clip" in x]
    self.assertEqual(bool(weighed), bool(propensity))
    self.assertEqual("without propensity" in out, not propensity)
    estimated = "with an estimate of what the policy would have earned:"
    self.assertEqual(estimated in out, bool(propensity))
    self.assertNotIn("long sessions: not", out)

  def test_without_logs(self):
    status, _, err = command.run(
      "--mode=advise",
      "--dataset=sardine",
      "--simulator_world=SlateTopK-Bored",
      f"--workdir={self.folder / 'w'}",
    )
    self.assertEqual(status, 2)
    self.assertIn("has no logged slates; expected a --dataset that", err)


class WarningTest(absltest.TestCase):
  def test_logs_that_say_nothing_of_tomorrow(self):
    logs = Sessions(
      user_id=np.arange(4) // 2,
      profile=np.zeros((4, 0)),
      history=np.zeros((4, 1), int),
      exposed=np.ones((4, 2), int),
      response=np.ones((4, 2)),
      timestamp=np.arange(4.0),
    )

    def warned(**more):
      said = logged.lines(logged.facts(Config(), logs._replace(**more)))
      return [x for x in said if x.startswith("warning")]

    (line,) = warned()
    for way in ("--recipe=next_item", "--recipe=replay", "--mode=advise"):
      self.assertIn(way, line)
    # A session of a single slate has no tomorrow.
    self.assertLen(warned(session=np.arange(4)), 1)
    for more in (
      {"session": np.arange(4) // 2},
      {"propensity": np.full((4, 2), 0.5)},
      {"propensity": np.array([[0.5] * 2] + [[np.nan] * 2] * 3)},
      {"reward": np.array([1.0, np.nan, np.nan, np.nan])},
      {"terminated": np.array([0.0, 1, 0, 1])},
    ):
      self.assertEqual(warned(**more), [], str(more))
    known = logged.facts(
      Config(),
      logs._replace(propensity=np.array([[0.5] * 2] + [[np.nan] * 2] * 3)),
    )
    self.assertStartsWith(known["propensities"], "logged in 1 of 4 slates, e")


if __name__ == "__main__":
  absltest.main()
