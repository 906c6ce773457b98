"""The path in Python: what it recommends, refuses and has from the command."""

import inspect
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import api, serving, settings
from hsrl_jax.data import feedback, prepare, source
from hsrl_jax.errors import InputError
from hsrl_jax.types import Observation
from tests import folders, toy
from tests.command import interpreter
from tests.command import run as _command

_SETTINGS = {
  "sid_levels": 2,
  "sid_vocab_size": 16,
  "simulator_epochs": 1,
  "width": 8,
  "critic_hidden": (8,),
  "users": 8,
  "batch_size": 16,
  "buffer_size": 800,
  "iterations": 20,
  "iterations_per_call": 10,
  "curve_every": 20,
  "save_every": 20,
  "evaluate_episodes": 8,
}


def _recommender(agent="hsrl"):
  """An untrained policy on the toy, whose items are called 10, 20, ..."""
  config = toy.config(agent)
  catalogue, users = toy.inputs().catalogue, toy.users()
  profiles = np.asarray(users.profiles)
  histories = np.asarray(users.histories)
  names = [""] + [str(10 * i) for i in range(1, toy.ITEMS + 1)]
  items = source.Items(np.asarray(catalogue.features), names, names, names)
  rows = {
    "train": [(0, [0, 0, 0, 0, 1, 2], [3, 4, 5], [0, 1, 0], 2.0)],
    "val": [(0, [0, 0, 0, 1, 2, 4], [6, 7, 8], [1, 0, 1], 4.0)],
    "test": [(5, [0, 0, 0, 0, 0, 0], [9, 8, 7], [0, 0, 0], 6.0)],
  }
  splits = {
    name: source.Sessions(
      np.array([u for u, *_ in own]),
      profiles[[u for u, *_ in own]],
      *(np.array(x) for x in list(zip(*own, strict=True))[1:]),
    )
    for name, own in rows.items()
  }
  agent = toy.agent(config)
  params = [
    jax.jit(agent.init)(
      jax.random.key(seed), catalogue, Observation(profiles[0], histories[0])
    )
    for seed in config.train.seeds
  ]
  run = types.SimpleNamespace(
    workdir=pathlib.Path("nowhere"),
    config=config,
    own_users=True,
    made_up=False,
    dataset=source.Dataset(items, splits),
    policies=[(None, (x, catalogue)) for x in params],
    agent=lambda k: toy.agents.make_agent(config, k, toy.ITEMS),
  )
  return api.Recommender(run), params, catalogue


class RecommendTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.recommender, cls.params, cls.catalogue = _recommender()
    cls.profile = [0.0, 1.0, 0.0, 0.0]

  def _order(self, profile, history, seed=0):
    """All items in the order of the policy, the best first."""
    agent = self.recommender._run.agent(toy.ITEMS)
    padded = np.zeros(toy.HISTORY, np.int32)
    padded[toy.HISTORY - len(history) :] = history
    action = jax.jit(agent.act, static_argnums=5)(
      self.params[seed],
      self.catalogue,
      Observation(jnp.asarray(profile, jnp.float32), jnp.asarray(padded)),
      jnp.zeros(0, jnp.int32),
      None,
      1.0,
    )
    return np.asarray(action.slate), np.asarray(action.log_prob)

  def test_the_best_items_but_those_of_the_history(self):
    history = [30, "70", 10]
    items = self.recommender.recommend(history, profile=self.profile, k=6)
    order, scores = self._order(self.profile, [3, 7, 1])
    left = ~np.isin(order, [3, 7, 1])
    self.assertEqual(
      [x.item_id for x in items], (10 * order[left][:6]).tolist()
    )
    np.testing.assert_allclose(
      [x.score for x in items], scores[left][:6], rtol=1e-5
    )
    self.assertEqual(items[0].title, str(items[0].item_id))
    again = self.recommender.recommend(
      history, profile=self.profile, k=6, repeat=True
    )
    self.assertEqual([x.item_id for x in again], (10 * order[:6]).tolist())

  def test_a_user_of_the_logs(self):
    # The latest slate is of val; 3, 5 and 7 were shown and refused.
    order, _ = self._order(np.eye(4)[0], [1, 2, 4, 6, 8])
    left = order[~np.isin(order, np.arange(1, 9))]
    items = self.recommender.recommend(user_id=0, k=6)
    self.assertEqual([x.item_id for x in items], (10 * left[:6]).tolist())
    again = self.recommender.recommend(user_id=0, k=6, repeat=True)
    self.assertEqual([x.item_id for x in again], (10 * order[:6]).tolist())

  def test_a_logged_user_with_another_history_saw_the_same(self):
    items = self.recommender.recommend([110], user_id=0, k=toy.ITEMS)
    self.assertCountEqual(
      [x.item_id for x in items],
      [10 * i for i in range(9, toy.ITEMS + 1) if i != 11],
    )

  def test_drawn_negatives_were_shown_to_nobody(self):
    recommender, *_ = _recommender()
    run, drawn = recommender._run, feedback.Feedback("implicit", "uniform", 2)
    items = run.dataset.items._replace(feedback=drawn)
    run.dataset = run.dataset._replace(items=items)
    found = recommender.recommend(user_id=0, k=toy.ITEMS)
    self.assertCountEqual(
      [x.item_id for x in found],
      [10 * i for i in range(1, toy.ITEMS + 1) if i not in (1, 2, 4, 6, 8)],
    )

  def test_items_that_a_user_does_not_get(self):
    both = self.recommender.recommend(
      user_id=[0, 0], k=toy.ITEMS, exclude=[[100, 110], []]
    )
    ids = [{x.item_id for x in items} for items in both]
    self.assertEqual(ids[1] - ids[0], {100, 110})

  @parameterized.parameters(
    ("test", 0, [1, 2, 4, 6, 8], range(1, 9)),
    ("val", 0, [1, 2, 4], range(1, 6)),  # Item 4 was liked in train.
    ("train", 0, [1, 2], (1, 2)),
    (4.0, 0, [1, 2, 4], range(1, 6)),
    (1.0, 0, [1, 2], (1, 2)),
    ("test", 5, [], ()),
    ("now", 5, [], (7, 8, 9)),
  )
  def test_as_it_was_at_a_cut(self, until, user, liked, seen):
    order, _ = self._order(np.eye(4)[user and 1], liked)
    left = order[~np.isin(order, seen)]
    items = self.recommender.recommend(user_id=user, k=6, until=until)
    self.assertEqual([x.item_id for x in items], (10 * left[:6]).tolist())

  def test_what_was_held_out_is_not_known_unnoticed(self):
    with self.assertWarnsRegex(UserWarning, "knows .* test.* until='test'"):
      self.recommender.recommend(user_id=[0, 5], k=6)
    self.recommender.recommend(user_id=0, k=6)  # No slate of the test.

  def test_several_users_at_once(self):
    together = self.recommender.recommend(user_id=["0", 5, 0], k=6, until="now")
    alone = [
      self.recommender.recommend(user_id=x, k=6, until="now") for x in (0, 5)
    ]
    for i, j in enumerate((0, 1, 0)):
      self.assertEqual(
        [x.item_id for x in together[i]], [x.item_id for x in alone[j]]
      )
    by_history = self.recommender.recommend(
      [[], [10]], profile=[self.profile] * 2, k=6
    )
    self.assertLen(by_history, 2)
    self.assertEqual(self.recommender.recommend([], user_id=[], k=6), [])

  def test_fewer_where_fewer_are_left(self):
    gone = [10 * i for i in range(3, toy.ITEMS + 1)]
    items = self.recommender.recommend(
      user_id=5, k=6, exclude=gone, until="now"
    )
    self.assertCountEqual([x.item_id for x in items], [10, 20])

  def test_the_policy_of_a_seed(self):
    items = self.recommender.recommend(user_id=5, k=6, seed=1, until="now")
    order, _ = self._order(np.eye(4)[1], [], seed=1)
    order = order[~np.isin(order, [7, 8, 9])]  # They were shown.
    self.assertEqual([x.item_id for x in items], (10 * order[:6]).tolist())

  @parameterized.parameters(
    ({}, "^no user is given; expected a history or a user_id"),
    ({"history": [11]}, "^history has 11; expected item ids of the logs, suc"),
    ({"history": "tea"}, "^history is 'tea'; expected a list of item ids"),
    ({"user_id": 7}, "^user_id is 7, of whom the logs have no slate; expecte"),
    ({"history": [10]}, r"^profile is \[\]; expected 4 finite numbers, or a"),
    ({"history": [], "profile": ["x"] * 4}, "^profile cannot be read"),
    ({"user_id": 0, "exclude": ["x"]}, "^exclude has 'x'; expected item ids"),
    ({"user_id": [0, 5], "exclude": [[10]]}, "^exclude is of 1 users and the"),
    ({"user_id": 0, "until": "later"}, "^until is 'later'; expected one of"),
    ({"user_id": 0, "k": 41}, "^k is 41; expected an integer from 1 to 40"),
    ({"user_id": 0, "seed": 9}, r"^seed is 9; expected one of \(0, 1\)"),
    ({"user_id": [0], "history": [[], []]}, "2, 1. users; expected as many"),
  )
  def test_bad_requests(self, request, message):
    with self.assertRaisesRegex(InputError, message):
      self.recommender.recommend(**request)

  def test_a_random_policy_has_no_best_items(self):
    recommender, *_ = _recommender("random")
    with self.assertRaisesRegex(InputError, "^the agent random draws at rand"):
      recommender.recommend(user_id=0)

  def test_unknown_settings_of_an_export(self):
    with self.assertRaisesRegex(InputError, "^export_batch is no setting; ex"):
      self.recommender.export(batch=3)


class FitTest(folders.FolderTest):
  def test_no_argument_hides_a_setting(self):
    own = set(inspect.signature(api.fit).parameters)
    known = {name for _, _, name, _ in settings.fields()}
    self.assertContainsSubset({"iterations", "users"}, known)
    self.assertEmpty(own & known)

  @parameterized.parameters(
    ({"logs": "movies"}, "^logs is 'movies'; expected a DataFrame, .* toy or"),
    ({"logs": "toy", "items": "a.csv"}, "^logs is 'toy' and `items`, `"),
    ({"logs": "toy", "dataset": "toy"}, "^dataset is given, and logs tells"),
    ({"logs": "toy", "agent": "hrsl"}, "^agent is 'hrsl'; expected one of"),
    ({"logs": "toy", "iteration": 10}, "^iteration is no setting; expected s"),
    (
      {"logs": "a.csv", "log_options": [1]},
      r"^log_options is '\[1\]'; expected a dict, such as \{'like_from': 4\}",
    ),
    ({"logs": [1, 2]}, r"^logs is list '\[1, 2\]'; expected a pandas DataFr"),
  )
  def test_bad_arguments(self, arguments, message):
    with self.assertRaisesRegex(InputError, message):
      api.fit(workdir=self.folder / "run", **arguments)
    self.assertFalse((self.folder / "run").exists())

  @parameterized.parameters(3, "", None, [["runs"]])
  def test_no_folder_to_write_to(self, workdir):
    for use in (
      lambda: api.fit("toy", workdir=workdir),
      lambda: api.load(workdir),
    ):
      with self.assertRaisesRegex(
        InputError, "^workdir is .*; expected the pa"
      ):
        use()

  def test_nothing_to_load(self):
    with self.assertRaisesRegex(InputError, "flags.txt is missing; expected"):
      api.load(self.folder)

  def _frames(self):
    """The toy's items and slates."""
    prepare.prepare("toy", self.folder / "toy")
    items, splits = source.load(self.folder / "toy")
    names = np.array(items.external_ids)
    logs = [
      {
        "user_id": f"user {u}",
        "profile": p,
        "history": names[h[h > 0]],
        "exposed": names[x],
        "response": r.astype(int),
        "timestamp": t,
        "split": split,
      }
      for split, rows in splits.items()
      for u, p, h, x, r, t in zip(
        *(np.asarray(x) for x in rows[:5]), rows.timestamp, strict=True
      )
    ]
    items = {
      "item_id": names[1:],
      "feature": list(items.features[1:]),
      "title": items.titles[1:],
    }
    return pd.DataFrame(logs), pd.DataFrame(items)

  @pytest.mark.slow
  def test_fit_is_the_command(self):
    logs, items = self._frames()
    recommender = api.fit(logs, items, workdir=self.folder / "a", **_SETTINGS)
    raw = self.folder / "raw"
    raw.mkdir()
    logs.to_parquet(raw / "sessions.parquet")
    items.to_parquet(raw / "items.parquet")
    given = [f"--{k}={settings.text(v)}" for k, v in _SETTINGS.items()]
    command = ["--dataset=logs", f"--raw_data_dir={raw}", *given]
    status, _, err = _command(*command, f"--workdir={self.folder / 'b'}")
    self.assertEqual(status, 0, err)
    for name in ("flags.txt", "report/examples.json"):
      ours, theirs = ((self.folder / x / name).read_text() for x in "ab")
      self.assertEqual(ours, theirs, name)
    ours, theirs = (
      json.loads((self.folder / x / "results.json").read_text()) for x in "ab"
    )
    for results in (ours, theirs):
      del results["sids"]  # It has the time of the fit.
    self.assertEqual(ours, theirs)
    # The command goes on where Python was.
    status, out, err = _command(*command, f"--workdir={self.folder / 'a'}")
    self.assertEqual(status, 0, err)
    self.assertIn("nothing to do", out)
    results = recommender.evaluate()
    self.assertEqual(
      results, json.loads((self.folder / "a/results.json").read_text())
    )
    self.assertIn("held-out logs", str(results))
    self._resumes(logs, items)
    self._recommends_as_served(recommender)

  def _resumes(self, logs, items):
    """Another call runs nothing; of other logs or settings it is refused."""
    workdir = self.folder / "a"
    before = (workdir / "results.json").stat().st_mtime_ns
    api.fit(logs, items, workdir=workdir, **_SETTINGS)
    self.assertEqual((workdir / "results.json").stat().st_mtime_ns, before)
    with self.assertRaisesRegex(InputError, "was made of other logs"):
      api.fit(logs[1:], items, workdir=workdir, **_SETTINGS)
    with self.assertRaisesRegex(InputError, "iterations was 20, now 40"):
      api.fit(logs, items, workdir=workdir, **_SETTINGS | {"iterations": 40})

  def _recommends_as_served(self, recommender):
    """A loaded recommender is the same, and so is its export."""
    loaded = api.load(self.folder / "a")
    user = {"user_id": "user 3", "k": 5, "until": "now"}
    items = recommender.recommend(**user)
    self.assertEqual(loaded.recommend(**user), items)
    folder = loaded.export(
      batch_sizes=(1,), platforms=("cpu",), slate_size=5, any=True
    )
    observation, known = loaded._state(None, "user 3", None)
    history = observation.history[observation.history > 0]
    served = serving.load(folder).recommend(
      [history], [observation.profile], [known]
    )
    names = loaded._run.dataset.items.external_ids
    self.assertEqual(
      [names[i] for i in served.items[0]], [x.item_id for x in items]
    )

  @pytest.mark.slow
  def test_flags_are_neither_defined_nor_parsed(self):
    code = (
      "from absl import flags; from hsrl_jax import api; "
      "from hsrl_jax.errors import InputError\n"
      "try: api.fit('toy', workdir='w', iterations=3)\n"
      "except InputError as error: print(error)\n"
      "print(flags.FLAGS.is_parsed(), 'workdir' in flags.FLAGS)"
    )
    ran = interpreter("-c", code)
    self.assertRegex(
      ran.stdout, "^iterations is 3; expected .*\nFalse False\n$", ran.stderr
    )


if __name__ == "__main__":
  absltest.main()
