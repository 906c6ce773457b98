"""The command: flagfiles, the whole path, a second run, bad input."""

import contextlib
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized

from hsrl_jax import command, settings
from hsrl_jax import config as config_lib
from hsrl_jax import flags as flags_lib
from hsrl_jax.experiments.registry import LAUNCH
from hsrl_jax.networks import encoder
from hsrl_jax.stages import run as run_lib
from hsrl_jax.studies.registry import FRONT
from tests import folders
from tests.command import (
  ROOT,
  SMALL,
  environment,
  interpreter,
  published,
  quick,
)
from tests.command import process as _process
from tests.command import run as _in_process
from tests.sim import response_file_test

FLAGFILES = sorted((ROOT / "launch" / "flags").rglob("*.flags"))
# Exports a run; the slates of four users as the run has them, and as served.
EXPORT = """
import json, pathlib, sys
import numpy as np
from hsrl_jax import flags as flags_lib, launch, serving
from hsrl_jax.stages import run as run_lib
from hsrl_jax.studies.registry import FRONT

arguments, exported = json.loads(sys.argv[1])
launch.run_command(["hsrl", *arguments, *exported])
run = run_lib.Run(
  flags_lib.config_from_flags(), pathlib.Path(flags_lib.WORKDIR.value)
)
((act, params),) = run.policies
users = run.users("test")
states = [run.env.start(row, users) for row in range(4)]
live = [act(params, x.observation, x.seen, None).tolist() for x in states]
histories = np.asarray(users.histories[:4])
served = serving.load(exported[1].split("=")[1])
found = served.recommend(
  [row[row > 0] for row in histories], np.asarray(users.profiles[:4])
)
print(json.dumps([live, found.items.tolist()]))
"""


def _config(*arguments):
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["hsrl", *arguments])
  config = flags_lib.config_from_flags(_chosen())
  flags.FLAGS.mark_as_parsed()
  return config


def _chosen():
  """The experiment, or study where the flags know studies."""
  front = FRONT if "study" in flags.FLAGS else LAUNCH
  return flags_lib.experiment_from_flags(front)


class FlagsTest(parameterized.TestCase):
  @parameterized.parameters(*[str(p.relative_to(ROOT)) for p in FLAGFILES])
  def test_flagfile_parses_to_a_configuration(self, name):
    if "/studies/" in name:
      self.enter_context(published())
    config = _config(f"--flagfile={ROOT}/{name}")
    self.assertIsInstance(config, config_lib.Config)
    chosen = _chosen()
    self.assertTrue(flags_lib.WORKDIR.value)
    # The kept flags describe the same configuration.
    with tempfile.NamedTemporaryFile("w", suffix=".flags") as kept:
      for flag, text in flags_lib.resolved(chosen).items():
        kept.write(f"--{flag}={text}\n")
      kept.flush()
      self.assertEqual(_config(f"--flagfile={kept.name}"), config)
      self.assertEqual(_chosen(), chosen)
      texts = settings.texts(config)
      if chosen is None:
        self.assertEqual(flags_lib.resolved(), texts)
      read = settings.of_texts("flags.txt", texts)
      self.assertEqual(settings.texts(read), texts)
      # A run keeps nothing of a recipe that only its experiment has.
      if chosen is None or not chosen.entry.also:
        self.assertEqual(read, config)

  @parameterized.parameters(
    *[str(x.relative_to(ROOT)) for x in (ROOT / "docs/results").rglob("*.json")]
  )
  def test_the_command_of_a_result_is_one_of_today(self, name):
    results = json.loads((ROOT / name).read_text())
    _, _, module, *arguments = results["command"].split()
    if module == FRONT.module:
      self.enter_context(published())
    with contextlib.chdir(ROOT):
      config, chosen = _config(*arguments), _chosen()
    self.assertEqual(chosen.entry.name, results["experiment"])
    self.assertEqual(list(config.train.seeds), results["seeds"])

  def test_flags_of_all_fields_have_help(self):
    for _, _, name, _ in settings.fields():
      self.assertGreater(len(flags.FLAGS[name].help), 5, name)

  def test_help_is_short_and_useful(self):
    ran = _process("--help")
    for name in ("workdir", "agent", "recipe"):
      self.assertIn(f"  --{name}: ", ran.stdout)
    self.assertIn("python -m hsrl_jax.launch", ran.stdout)
    self.assertLess(len(ran.stdout.splitlines()), 75)

  def test_help_waits_for_nothing_heavy(self):
    """A flag that is wrong is told before what trains is imported."""
    heavy = ("scipy.stats", "sklearn", "matplotlib", "orbax.checkpoint")
    program = f"""
import sys
from hsrl_jax import launch
print([x for x in {heavy} if x in sys.modules])
launch.run_command(["hsrl", "--itrations=3"])
"""
    ran = interpreter("-c", program)
    self.assertEqual(ran.returncode, 2, ran.stderr)
    self.assertEqual(ran.stdout, "[]\n")
    self.assertStartsWith(ran.stderr, "error: Unknown command line flag")


class NumbersTest(parameterized.TestCase):
  """Every flag with values at which programs break; nothing is run."""

  def _status(self, *arguments):
    """The command's status; configurations are built, none is used."""

    def build(*unused):
      self.built = (
        flags_lib.config_from_flags(),
        flags_lib.export_from_flags(),
        flags_lib.sweep_sizes(),
      )

    with (
      tempfile.TemporaryDirectory() as folder,
      mock.patch.object(command, "_run", build),
      mock.patch.object(command, "_run_experiment", build),
      mock.patch.object(command, "_run_stages", build),
      mock.patch.object(command.parallel, "use_cores"),
      mock.patch.object(command.processes, "start"),
    ):
      status, _, err = _in_process(f"--workdir={folder}/run", *arguments)
    if status:
      self.assertEqual(status, 2, err)
      self.assertLen(err.splitlines(), 1, err)
      self.assertStartsWith(err, "error: ")
    self.err = err
    return status

  def _accepted(self, value):
    """The flags with a number that accept a value; checks all flags."""
    numbers = [kind for kind in (int, float) for kind in (kind, kind | None)]
    numbers += [tuple[int, ...], tuple[float, ...]]
    kinds = {name: kind for _, _, name, kind in settings.fields()}
    readers = {}
    for entry in LAUNCH.entries:
      for _, _, name, kind in settings.fields((entry.group,)):
        kinds[name], readers[name] = kind, [str(entry)]
    names = {
      flag.name for flag in flags.FLAGS.flags_by_module_dict()["hsrl_jax.flags"]
    }
    self.assertGreater(len(names), 90)
    accepted = set()
    for name in names:
      recipe = "replay"
      if name not in settings.reads("hsrl", recipe):
        # Of those that need no other run.
        for other in ("on_policy", "logs", "next_item"):
          if name in settings.reads("hsrl", other):
            recipe = other
      chosen = readers.get(name, [])
      given = (f"--{name}={value}", f"--recipe={recipe}", *chosen)
      if name == "recipe":
        given = given[:1]
      if not self._status(*given):
        accepted.add(name)
    return {x for x in accepted if kinds.get(x) in numbers}

  def test_zero(self):
    self.assertEqual(
      self._accepted("0"),
      {
        "actor_weight",
        "anchor_weight",
        "behaviour_weight",
        "critic_weight",
        "discount",
        "dropout",
        "export_seed",
        "export_seen",
        "importance_clip",
        "next_item_dropout",
        "sid_likes_weight",
        "lately_penalty",
        "layers",
        "leave_penalty",
        "next_item_eval_rows",
        "next_item_hidden",
        "next_item_token_dropout",
        "next_item_weight_decay",
        "polyak",
        "repeat_penalty",
        "seeds",
        "sid_topic_weight",
        "simulator_dropout",
        "simulator_leave_threshold",
        "simulator_penalty",
        "simulator_sweet_point",
        "simulator_weight_decay",
        "trace",
      },
    )

  def test_below_zero(self):
    self.assertEqual(
      self._accepted("-1"), {"simulator_penalty", "simulator_sweet_point"}
    )

  @parameterized.parameters("nan", "inf", "-inf", "1e39")
  def test_what_is_not_finite(self, value):
    self.assertEmpty(self._accepted(value))

  def test_a_number_beyond_all_integers(self):
    kinds = {name: kind for _, _, name, kind in settings.fields()}
    for name in self._accepted(str(10**20)):
      self.assertIn(kinds[name], (float, float | None, tuple[float, ...]), name)

  def test_nothing(self):
    self.assertEqual(self._accepted(""), {"critic_hidden"})

  @parameterized.parameters(
    *("embeddings", "from", "item_ids"),
    *("raw_data_dir", "experiment_tuned", "export_dir", *settings.PATHS),
  )
  def test_an_empty_path_is_not_the_current_folder(self, name):
    chosen = ["--experiment=world"] if name == "experiment_tuned" else []
    self.assertEqual(self._status(f"--{name}=", *chosen), 2)
    self.assertRegex(self.err, f"--{name}.* expected a (path|text), or leave")

  @parameterized.parameters(
    ("--iterations_per_call=0", "iterations_per_call is 0; expected at least"),
    ("--export_seed=-1", "--export_seed is -1; expected in [0, 4294967296)"),
    ("--seeds=1,4294967296", "4294967296; expected an integer below 2^31, or"),
    ("--evaluate_episodes=2147483648", "expected an integer below 2^31"),
    ("--simulator_heads=0", "--simulator_heads is 0; expected at least"),
    ("--width=0", "--width is 0; expected at least 1"),
    (
      "--critic_hidden=8,0",
      "--critic_hidden is (8, 0); expected each at least 1",
    ),
    (f"--sid_levels={10**20}", "--sid_levels is 1"),
    ("--sid_levels=99999999", "--sid_levels is 99999999; expected in [1, 62]"),
    ("--simulator_learning_rate=-1", "learning_rate is -1.0; expected above"),
    ("--temperature=inf", "--temperature is inf; expected a finite number"),
    ("--dropout=0.999", "--dropout is 0.999; expected in [0, 0.998]"),
    ("--simulator_dropout=0.999", "_dropout is 0.999; expected in [0, 0.998]"),
    (
      "--simulator_boredom=often",
      "expected one of ('none', 'topic', 'all', 'fitted', '",
    ),
    ("--simulator_leave=soon", "--simulator_leave is 'soon'; expected one of"),
    ("--sweep=2x99999999999", "--sweep has '2x99999999999'; expected sizes"),
    (f"--sweep=2x{'9' * 9999}", "expected sizes such as"),
    ("--coordinator=junk", "expected HOST:PORT with a port below 65536"),
    ("--coordinator=host:99999", "expected HOST:PORT with a port below 65536"),
    ("--processes=0", "processes"),
    (
      "--next_item_epochs=3",
      "--recipe=replay does not read it; expected --recipe=next_item",
    ),
  )
  def test_one_line_says_what_is_expected(self, argument, message):
    mode = ["--mode=quantize"] if argument.startswith("--sweep") else []
    self.assertEqual(self._status(argument, *mode), 2)
    self.assertIn(message, self.err)

  def test_values_that_are_used(self):
    status = self._status("--seeds=4294967295,0", "--simulator_penalty=1e38")
    self.assertEqual(status, 0)
    config = self.built[0]
    self.assertEqual(config.train.seeds, (2**32 - 1, 0))
    self.assertEqual(config.simulator.penalty, 1e38)
    address = ("--coordinator=[::1]:80", "--processes=2", "--process=1")
    self.assertEqual(self._status(*address), 0)
    self.assertEqual(self._status(*address, "--process=2"), 2)

  def test_a_binary_flagfile(self):
    with tempfile.NamedTemporaryFile(suffix=".flags") as file:
      file.write(bytes(range(256)))
      file.flush()
      self.assertEqual(self._status(f"--flagfile={file.name}"), 2)

  def test_the_most_dropout_leaves_something(self):
    for rate in (0.5, 0.998):
      scales = encoder.dropout_scales(jax.random.key(0), rate, (4096,))[0]
      self.assertBetween(float(jnp.mean(scales)), 0.3, 2.5)

  @pytest.mark.slow
  def test_help_without_docstrings(self):
    ran = interpreter("-OO", "-c", "import hsrl_jax.flags")
    self.assertEqual(ran.returncode, 0, ran.stderr)

  def test_by_the_real_command(self):
    ran = _process("--workdir=/nowhere", f"--sid_levels={10**20}")
    self.assertEqual(ran.returncode, 2)
    self.assertLen(ran.stderr.splitlines(), 1)


@pytest.mark.slow
class WholePathTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp())
    cls.workdir = cls.folder / "run"
    # Most of the time of a run so small is compilation.
    cls.quick = environment() | quick()
    cls.first = subprocess.run(  # By the job file, as on a TPU VM.
      ["bash", "launch/job.sh", *SMALL, f"--workdir={cls.workdir}"],
      cwd=ROOT,
      env=cls.quick | {"PYTHON": sys.executable},
      capture_output=True,
      text=True,
      check=False,
    )

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.folder)
    super().tearDownClass()

  def _copy(self, name):
    target = self.folder / name
    shutil.copytree(self.workdir, target)
    return target

  def test_leaves_what_the_design_says(self):
    self.assertEqual(self.first.returncode, 0, self.first.stderr)
    for name in (
      "flags.txt",
      "sids/codebooks.npz",
      "sids/sids.npz",
      "sids/report.json",
      "simulator/metrics.jsonl",
      "policy/metrics.jsonl",
      "report/report.html",
      "summary.json",
    ):
      self.assertTrue((self.workdir / name).exists(), name)
    self.assertNotEmpty(list(self.workdir.glob("policy/events/events*")))
    leftovers = [p for p in self.workdir.rglob(".*.*") if p.is_file()]
    self.assertEqual(leftovers, [])

  def test_results_have_the_schema(self):
    results = json.loads((self.workdir / "results.json").read_text())
    self.assertEqual(results["protocol"], "paper")
    self.assertEqual(results["dataset"], "toy")
    self.assertEqual(results["split"], "test")
    self.assertEqual(results["episodes"], 60)
    self.assertEqual(results["seeds"], [0])
    self.assertEqual(
      set(results["policies"]),
      {"random", "best_constant", "greedy_oracle", "hsrl"},
    )
    # The toy may be too small for a scale.
    verdict = results["simulator"]["verdict"]
    self.assertIn(verdict, ("good", "weak", "useless"))
    kept = json.loads((self.workdir / "simulator/quality.json").read_text())
    self.assertEqual(kept, results["simulator"])
    figures = results["policy_in_simulator"]
    self.assertIn(figures["verdict"], ("good", "weak", "useless"))
    self.assertEqual(figures["verdict"] == "useless", verdict == "useless")
    for split in ("validation", "test"):
      self.assertIn("item_mean", kept[split]["lists"])
    for measures in results["policies"].values():
      self.assertEqual(
        "withheld" in measures["normalised"], verdict == "useless"
      )
      for name in ("total_reward", "depth"):
        low, high = measures[name]["ci95"]
        self.assertLessEqual(low, measures[name]["mean"])
        self.assertLessEqual(measures[name]["mean"], high)
    self.assertEqual(
      list(results["held_out"]),
      [
        "hsrl",
        "popularity",
        "item_mean",
        "item_to_item",
        "click_model",
        "ease",
        "als",
      ],
    )
    for measures in results["held_out"].values():
      for name in (
        "auc_within_slates",
        "ndcg_within_slates",
        "recall@10",
        "ndcg@10",
        "coverage",
        "top_item_share",
      ):
        low, high = measures[name]["ci95"]
        self.assertLessEqual(low, measures[name]["mean"])
        self.assertLessEqual(measures[name]["mean"], high)
    out = self.first.stdout
    self.assertLess(out.index("held-out logs"), out.index("total reward"))
    self.assertIn("hsrl", self.first.stdout)
    self.assertIn(str(self.workdir / "results.json"), self.first.stdout)
    self.assertIn("report.html", self.first.stdout)
    self.assertRegex(
      self.first.stdout,
      r"memory:  at most [\d,]+ MiB of the process\n"
      r"time:    data [\d.]+ s, quantize .*\n(?s:.*)"
      r"policy:  start [\d.]+ s, training .* compile\s+[\d.]+ s\n$",
    )

  def test_an_agent_that_learns_nothing(self):
    workdir = self._copy("popularity")
    shutil.rmtree(workdir / "policy")
    shutil.rmtree(workdir / "report")
    for stage in ("policy", "evaluate", "report"):
      (workdir / ".done" / stage).unlink()
    (workdir / "flags.txt").unlink()
    status, out, err = _in_process(
      *SMALL, f"--workdir={workdir}", "--agent=popularity"
    )
    self.assertEqual(status, 0, err)
    self.assertIn("popularity", out)
    policies = json.loads((workdir / "results.json").read_text())["policies"]
    self.assertEqual(
      set(policies), {"random", "best_constant", "greedy_oracle", "popularity"}
    )
    # Everybody gets the most popular items that are new to them.
    shown = json.loads((workdir / "report" / "examples.json").read_text())
    self.assertGreater(len(shown), 1)
    for user in shown:
      ranks = [x["popularity"] for x in user["recommended"]]
      self.assertEqual(ranks, sorted(ranks))
      self.assertLess(ranks[-1], 20)
    self.assertEqual(list((workdir / "policy").iterdir()), [])
    # The page does without a learning curve.
    page = (workdir / "report" / "report.html").read_text()
    self.assertIn("popularity on toy", page)
    self.assertNotIn("<h2>Learning</h2>", page)
    self.assertFalse((workdir / "report" / "learning_curve.png").exists())

  @pytest.mark.slow
  def test_export_acts_as_the_run(self):
    folder = self.folder / "served"
    arguments = [*SMALL, f"--workdir={self.workdir}"]
    exported = [
      "--mode=export",
      f"--export_dir={folder}",
      "--export_batch_sizes=4",
      "--export_any",
      "--export_repeat",
    ]
    # In a process of its own, which has as many devices as that of the run.
    ran = subprocess.run(
      [sys.executable, "-c", EXPORT, json.dumps([arguments, exported])],
      cwd=ROOT,
      env=self.quick,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(ran.returncode, 0, ran.stderr)
    self.assertIn(f"export: {folder}", ran.stdout)
    live, served = json.loads(ran.stdout.splitlines()[-1])
    self.assertLen(live, 4)
    self.assertEqual(served, live)

  def test_an_export_that_does_not_go_with_the_run(self):
    arguments = [*SMALL, f"--workdir={self.workdir}", "--mode=export"]
    for flag, what in (
      ("--export_seed=5", "expected one of --seeds"),
      ("--export_capacity=3", "--export_capacity=3; expected at least"),
      ("--export_platforms=gpu", "--export_platforms"),
      ("--width=8", "--width was 16"),
      (f"--workdir={self.folder / 'untrained'}", "--mode=policy"),
    ):
      status, _, err = _in_process(*arguments, flag)
      self.assertEqual(status, 2)
      self.assertIn(what, err)

  def test_export_writes_over_nothing_else(self):
    link = self.folder / "link"
    link.symlink_to(self._copy("linked"))
    file = self.folder / "file"
    file.write_text("kept")
    before = self._all()
    for folder in (
      self.workdir,
      self.workdir / "sids",
      link,
      file,
      "/dev/null",
    ):
      status, _, err = _in_process(
        *SMALL,
        f"--workdir={self.workdir}",
        "--mode=export",
        f"--export_dir={folder}",
      )
      self._refused(status, err, f"{folder} ")
      self.assertIn("expected a folder that is missing, empty, or an exp", err)
      self.assertLen(err.splitlines(), 1)
    self.assertEqual(self._all(), before)

  def _all(self):
    return {
      p: (p.is_symlink(), p.is_file() and p.read_bytes())
      for p in self.folder.rglob("*")
    }

  def test_sids_file_is_invertible(self):
    saved = np.load(self.workdir / "sids" / "sids.npz")
    self.assertLen(set(map(tuple, saved["tokens"])), len(saved["item_id"]))

  def test_second_run_finds_the_results(self):
    before = {
      p: p.stat().st_mtime_ns for p in self.workdir.rglob("*") if p.is_file()
    }
    status, out, _ = _in_process(*SMALL, f"--workdir={self.workdir}")
    self.assertEqual(status, 0)
    self.assertIn("nothing to do", out)
    self.assertIn("greedy_oracle", out)
    after = {
      p: p.stat().st_mtime_ns for p in self.workdir.rglob("*") if p.is_file()
    }
    self.assertEqual(before, after)

  def test_the_evaluation_alone_is_done_again(self):
    workdir = self._copy("again")
    trained = workdir / "policy"
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    status, out, _ = _in_process(
      f"--workdir={workdir}", "--evaluate_split=val", "--evaluate_episodes=20"
    )
    self.assertEqual(status, 0)
    self.assertNotIn("policy ...", out)
    self.assertEqual(
      before, {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    )
    first, again = (
      json.loads((x / "results.json").read_text())
      for x in (self.workdir, workdir)
    )
    self.assertEqual((first["split"], again["split"]), ("test", "val"))
    self.assertEqual(again["episodes"], 20)
    self.assertEqual(first["simulator"], again["simulator"])
    self.assertNotEqual(first["held_out"], again["held_out"])
    status, out, _ = _in_process(f"--workdir={workdir}")
    self.assertEqual(status, 0)
    self.assertIn("nothing to do", out)
    status, _, err = _in_process(
      f"--workdir={workdir}", "--evaluate_split=test", "--width=32"
    )
    self._refused(status, err, "--width was 16, now 32")
    self.assertIn("--evaluate_split=val", (workdir / "flags.txt").read_text())

  def test_changed_flags_are_named(self):
    status, _, err = _in_process(
      *SMALL, f"--workdir={self.workdir}", "--learning_rate=0.5", "--width=32"
    )
    self._refused(status, err, "--learning_rate was 0.001, now 0.5")
    self.assertIn("--width was 16, now 32", err)

  def test_truncated_data_file(self):
    workdir = self._copy("truncated")
    for stage in ("quantize", "simulator", "policy", "evaluate", "report"):
      (workdir / ".done" / stage).unlink()
    (shard,) = workdir.glob("data/toy/items/*/*.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    self._fails(workdir, "bytes; expected")

  def test_empty_data_file(self):
    workdir = self._copy("empty")
    (workdir / ".done" / "simulator").unlink()
    (shard,) = workdir.glob("data/toy/sessions/*/*train.array_record*")
    shard.write_bytes(b"")
    self._fails(workdir, "has 0 bytes; expected")

  def test_missing_data(self):
    workdir = self._copy("missing")
    (workdir / ".done" / "simulator").unlink()
    shutil.rmtree(workdir / "data")
    self._fails(workdir, "no prepared data; run --mode=data first")

  @pytest.mark.slow
  def test_altered_data_file(self):
    workdir = self._copy("altered")
    (workdir / ".done" / "simulator").unlink()
    (shard,) = workdir.glob("data/toy/sessions/*/*train.array_record*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    self._fails(workdir, "was altered since it was prepared")

  def test_damaged_sids(self):
    workdir = self._copy("sids")
    (workdir / ".done" / "policy").unlink()
    path = workdir / "sids" / "sids.npz"
    path.write_bytes(path.read_bytes()[:100])
    self._fails(workdir, "sids.npz cannot be read")

  def _fails(self, workdir, message):
    status, _, err = _in_process(*SMALL, f"--workdir={workdir}")
    self._refused(status, err, message)

  def _refused(self, status, err, message):
    self.assertEqual(status, 2, err)
    self.assertIn(message, err)
    self.assertLen([x for x in err.splitlines() if x.startswith("error:")], 1)
    self.assertNotIn("Traceback", err)


class BadInputTest(parameterized.TestCase):
  @parameterized.parameters(
    (("--no_such_flag=1",), "no_such_flag"),
    (("--mode=fly",), "mode"),
    (("--iterations=many",), "iterations"),
    (("--flagfile=/no/such.flags",), "error: Unable to open flagfile: "),
    (
      ("--recipe=next_item", "--next_item_inputs=names"),
      "expected at least one of ('ids', 'feat",
    ),
    (("--simulator_protocol=twice",), "--simulator_protocol is 'twice'"),
    (("--sid_levels=0",), "--sid_levels is 0; expected in [1, 62]"),
    (("--item_vectors=some",), "--item_vectors is 'some'; expected one of"),
    (("--seeds=1,x",), "--seeds is 1,x; expected integers"),
    (("--dataset=nothing",), "--dataset=nothing: no builder found"),
    (("stray",), "unexpected argument 'stray'"),
    (("--mode=policy",), "stage data is missing; run --mode=data first"),
    (("--recipe=fly",), "--recipe is 'fly'; expected one of"),
    (
      ("--agent=ddpg", "--recipe=next_item"),
      "recipe is 'next_item' with ddpg; expected replay or logs",
    ),
    (
      ("--experiment=ab", "--recipe=next_item"),
      "--recipe=next_item with --experiment=ab; expected one that trains",
    ),
    (
      ("--distributed", "--recipe=next_item"),
      "--recipe=next_item with many processes; expected a single one",
    ),
  )
  def test_one_clear_line_and_status_2(self, arguments, message):
    with tempfile.TemporaryDirectory() as folder:
      status, _, err = _in_process(f"--workdir={folder}/run", *arguments)
    self.assertEqual(status, 2, err)
    lines = [line for line in err.splitlines() if line]
    self.assertLen(lines, 1)
    self.assertStartsWith(lines[0], "error: ")
    self.assertIn(message, lines[0])

  def test_no_workdir(self):
    status, _, err = _in_process("--dataset=toy")
    self.assertEqual(status, 2)
    self.assertIn("--workdir is missing", err)

  def test_item_vectors_are_chosen(self):
    with tempfile.TemporaryDirectory() as folder:
      arguments = ("--dataset=toy", f"--workdir={folder}/run", "--mode=data")
      status, out, err = _in_process(*arguments, "--item_vectors=logs")
      self.assertEqual(status, 0, err)
      self.assertRegex(out, "item vectors: .*, \\d+ from .* training likes")
      made = pathlib.Path(folder, "run", "data", "item_vectors.npy")
      self.assertTrue(made.exists())
      status, _, err = _in_process(*arguments, "--item_vectors=auto")
      self.assertEqual(status, 2)
      self.assertIn("--item_vectors was logs, now auto; expected the same", err)

  def test_workdir_below_a_file(self):
    with tempfile.NamedTemporaryFile() as file:
      status, _, err = _in_process(f"--workdir={file.name}/run")
    self.assertEqual(status, 2)
    self.assertIn("cannot be written", err)

  def test_space_too_small_leaves_nothing_half_written(self):
    with tempfile.TemporaryDirectory() as folder:
      workdir = pathlib.Path(folder) / "run"
      status, _, err = _in_process(
        f"--workdir={workdir}",
        "--dataset=toy",
        "--sid_levels=2",
        "--sid_vocab_size=4",
      )
      self.assertFalse((workdir / "sids").exists())
      self.assertFalse((workdir / ".done" / "quantize").exists())
      corrected, _, _ = _in_process(
        f"--workdir={workdir}",
        "--mode=quantize",
        "--dataset=toy",
        "--sid_levels=2",
        "--sid_vocab_size=10",
      )
    self.assertEqual(corrected, 0)
    self.assertEqual(status, 2)
    self.assertIn("use vocab_size 10 or levels 4", err)


class EmbeddingsTest(folders.FolderTest):
  """SIDs of a file, and what comes after: everything by command."""

  def setUp(self):
    super().setUp()
    self.workdir = self.folder / "run"
    self.items = self._npz("items", 0, 60)

  def _npz(self, name, first, count, **arrays):
    path = self.folder / f"{name}.npz"
    _write_npz(path, first, count, **arrays)
    return path

  def _run(self, mode, *arguments):
    return _in_process(
      f"--workdir={self.workdir}", f"--mode={mode}", *arguments
    )

  def _quantize(self, path=None, *arguments):
    path = path or self.items
    return self._run(
      "quantize", f"--embeddings={path}", "--sid_vocab_size=8", *arguments
    )

  def _refused(self, ran, message):
    status, _, err = ran
    self.assertEqual(status, 2, err)
    lines = [line for line in err.splitlines() if line]
    self.assertLen(lines, 1, err)
    self.assertStartsWith(lines[0], "error: ")
    self.assertIn(message, lines[0])

  def _items(self):
    with np.load(self.workdir / "sids" / "sids.npz") as saved:
      return dict(zip(saved["item_id"].tolist(), saved["active"], strict=True))

  def test_a_life(self):
    status, out, err = self._quantize()
    self.assertEqual(status, 0, err)
    self.assertIn("60 items, 60 SIDs", out)
    self.assertIn("report.html", out)
    status, out, _ = self._quantize()
    self.assertEqual(status, 0)
    self.assertIn("nothing to do", out)

    new = self._npz("new", 60, 5)
    status, out, err = self._run("add_items", f"--embeddings={new}")
    self.assertEqual(status, 0, err)
    self.assertIn("5 items added; 65 now", out)
    self.assertIn("5 items added since the fit lose", out)
    self._refused(
      self._run("add_items", f"--embeddings={new}"),
      "5 items are in the catalogue already (60, 61, 62, ...)",
    )

    gone = self.folder / "gone.txt"
    gone.write_text("7\n61\n")
    status, out, err = self._run("remove_items", f"--item_ids={gone}")
    self.assertEqual(status, 0, err)
    self.assertIn("2 items removed; 63 now", out)
    self._refused(
      self._run("remove_items", f"--item_ids={gone}"),
      "2 items are not in the catalogue (7, 61)",
    )
    there = self._items()
    self.assertEqual([k for k, x in there.items() if not x], [7, 61])
    # What was added and removed outlives the first command.
    self.assertIn("nothing to do", self._quantize()[1])
    self.assertEqual(self._items(), there)

  def test_changes_after_the_fact_are_refused(self):
    self._quantize()
    self._refused(
      self._quantize(None, "--sid_levels=2"), "--sid_levels was 3, now 2"
    )
    self._refused(
      self._run("add_items", f"--embeddings={self.items}", "--sid_levels=2"),
      "--sid_levels was 3, now 2",
    )
    self._refused(
      self._quantize(self._npz("other", 0, 60)), "--embeddings was "
    )
    self._npz("items", 0, 59)
    self._refused(self._quantize(), "items.npz has changed since its SIDs")

  def test_sids_of_other_codebooks(self):
    self._quantize()
    path = self.workdir / "sids" / "codebooks.npz"
    with np.load(path) as kept:
      other = dict(kept)
    np.savez(path, **(other | {"codebooks": other["codebooks"] + 1}))
    new = self._npz("new", 60, 5)
    self._refused(
      self._run("add_items", f"--embeddings={new}"), "of other codebooks"
    )

  @parameterized.named_parameters(
    ("nan", {"embeddings": [[1.0, np.nan]] * 3}, "3 rows have NaN"),
    ("infinite", {"embeddings": [[1.0, np.inf], [1.0, 2.0]]}, "1 row has NaN"),
    (
      "id_twice",
      {"embeddings": np.ones((2, 2)), "item_id": [4, 4]},
      "4 (2 tim",
    ),
    ("empty", {"embeddings": np.ones((0, 2))}, "at least one item"),
    ("integers", {"embeddings": np.ones((2, 2), int)}, "are int64"),
    ("no_column", {"vectors": np.ones((2, 2))}, "expected 'embeddings'"),
    ("too_many", {"embeddings": np.ones((513, 2))}, "use vocab_size 9 or lev"),
  )
  def test_bad_embeddings(self, arrays, message):
    path = self.folder / "bad.npz"
    np.savez(path, **arrays)
    self._refused(self._quantize(path), message)
    self.assertFalse(self.workdir.exists())

  @parameterized.parameters("items.npy", "items.npz", "items.parquet")
  def test_missing_and_damaged_files(self, name):
    path = self.folder / "bad" / name
    self._refused(self._quantize(path), f"{name} is missing")
    path.parent.mkdir()
    path.write_bytes(b"")
    self._refused(self._quantize(path), name)
    np.save(self.folder / "whole.npy", np.ones((9, 9), np.float32))
    path.write_bytes((self.folder / "whole.npy").read_bytes()[:-8])
    self._refused(self._quantize(path), name)
    self.assertFalse((self.workdir / "sids").exists())

  def test_wrong_width(self):
    self._quantize()
    new = self._npz("new", 60, 2, embeddings=np.ones((2, 7)))
    self._refused(
      self._run("add_items", f"--embeddings={new}"),
      "7 dimensions; expected 4",
    )
    self.assertLen(self._items(), 60)

  def test_what_others_have_in_the_workdir_stays(self):
    for name in ("sids/letter", ".fit/letter"):
      path = self.workdir / name
      path.parent.mkdir(parents=True)
      path.write_text("kept")
    self._refused(self._quantize(), "sids.npz cannot be read")
    (self.workdir / "sids" / "letter").unlink()
    (self.workdir / "sids").rmdir()
    self.assertEqual(self._quantize()[0], 0)
    self.assertEqual(list((self.workdir / ".fit").iterdir()), [path])

  @parameterized.parameters(
    (("--embeddings=x.npz",), "--embeddings with --mode=all"),
    (("--mode=add_items",), "--mode=add_items needs --embeddings"),
    (("--mode=remove_items",), "--mode=remove_items needs --item_ids"),
    (("--mode=quantize", "--item_ids=x.txt"), "--item_ids with --mode=quanti"),
    (("--mode=data", "--sweep=4x2"), "--sweep with --mode=data"),
    (("--mode=data", "--watch_port=8"), "--watch_port with --mode=data; exp"),
    (("--mode=watch", "--watch_port=65536"), "--watch_port"),
    (("--mode=watch",), "flags.txt is missing; expected the workdir of a run"),
    (("--mode=quantize", "--sweep=4,2"), "--sweep has '4'; expected sizes"),
    (("--mode=quantize", "--sweep=4x99"), "--sweep has '4x99'; expected"),
    (("--mode=quantize", "--sid_levels=11"), "--sid_levels is 11; expected"),
    (("--mode=quantize", "--embeddings=x.csv"), "x.csv is missing"),
    (("--mode=quantize", "--embeddings=setup.py"), "suffix '.py'; expected"),
    (("--mode=add_items", "--embeddings=x.npz"), "has no SIDs of --embeddings"),
    (("--mode=quantize", "--sid_batch_size=0"), "--sid_batch_size is 0; exp"),
  )
  def test_flags_that_do_not_go_together(self, arguments, message):
    with contextlib.chdir(ROOT):
      self._refused(
        _in_process(f"--workdir={self.workdir}", *arguments), message
      )

  def test_sweep_compares_sizes_and_claims_nothing(self):
    np.save(self.folder / "items.npy", np.load(self.items)["embeddings"])
    status, out, err = self._quantize(
      self.folder / "items.npy", "--sweep=4x2,4x3,8x2"
    )
    self.assertEqual(status, 0, err)
    lines = [line.split() for line in out.splitlines()]
    self.assertEqual(lines[2][:2], ["4x2", "over"])
    self.assertEqual(
      [x[:2] for x in lines[3:5]], [["4x3", "93.8%"], ["8x2", "93.8%"]]
    )
    self.assertCountEqual(
      [x.name for x in self.workdir.iterdir()], ["sweep.html", "sweep.json"]
    )
    found = json.loads((self.workdir / "sweep.json").read_text())
    self.assertEqual([x["fits"] for x in found["sizes"]], [False, True, True])
    # The sizes as measured are those of a run.
    self._quantize(self.folder / "items.npy", "--sid_levels=2")
    facts = json.loads((self.workdir / "sids" / "report.json").read_text())
    for name in ("relative_error_unique", "collided_items"):
      self.assertEqual(found["sizes"][2][name], facts[name])


class ResponseParamsTest(folders.FolderTest):
  """A click model trained elsewhere, with and without a dataset."""

  SMALL = (
    "--sid_vocab_size=8",
    "--width=8",
    "--layers=1",
    "--critic_hidden=8",
    "--users=8",
    "--batch_size=8",
    "--buffer_size=80",
    "--iterations=20",
    "--iterations_per_call=10",
    "--curve_every=20",
    "--save_every=20",
    "--evaluate_episodes=8",
    "--seeds=0",
  )

  def setUp(self):
    super().setUp()
    self.workdir = self.folder / "run"
    self.file = self.folder / "urm.npz"

  def _run(self, *arguments):
    return _in_process(
      f"--flagfile={ROOT}/launch/flags/rl4rs_response.flags",
      f"--workdir={self.workdir}",
      f"--response_params={self.file}",
      *self.SMALL,
      *arguments,
    )

  def _json(self, name):
    return json.loads((self.workdir / name).read_text())

  @pytest.mark.slow
  def test_users_and_items_of_its_own(self):
    np.savez(self.file, **response_file_test.arrays(False, True))
    with (
      mock.patch("jax.profiler.start_trace") as start_trace,
      mock.patch("jax.profiler.stop_trace") as stop_trace,
    ):
      status, out, err = self._run("--profile_steps=11:20")
    self.assertEqual(status, 0, err)
    start_trace.assert_called_once_with(str(self.workdir / "policy/profile"))
    stop_trace.assert_called_once_with()
    self.assertIn("12 items; users: train 35, val 4, test 4", out)
    self.assertFalse((self.workdir / "data").exists())
    results = self._json("results.json")
    self.assertEqual(results["dataset"], "urm.npz")
    digest = hashlib.sha256(self.file.read_bytes()).hexdigest()
    source = {"file": "urm.npz", "sha256": digest}
    self.assertEqual(results["simulator"], {"source": source})
    self.assertIn(
      digest[:16], (self.workdir / "report/report.html").read_text()
    )

    # The workdir is complete: the file may go, but not change.
    content = self.file.read_bytes()
    self.file.unlink()
    status, out, err = self._run()
    self.assertEqual(status, 0, err)
    self.assertIn("nothing to do", out)
    np.savez(self.file, **response_file_test.arrays(False, True, seed=1))
    status, _, err = self._run()
    self.assertEqual(status, 2)
    self.assertIn("stage data was made with another configuration", err)
    self.file.write_bytes(content)
    status, _, err = self._run("--simulator_protocol=no_repeat")
    self.assertEqual(status, 2)
    self.assertIn("--simulator_protocol was paper, now no_repeat", err)

  def test_on_top_of_a_dataset(self):
    toy = ("--dataset=toy",)
    status, _, err = _in_process(
      f"--workdir={self.workdir}", "--mode=data", *toy
    )
    self.assertEqual(status, 0, err)
    items, splits = run_lib.Run(_config(*toy), self.workdir).dataset
    made = response_file_test.arrays(True, False)
    rng = np.random.default_rng(0)
    made |= {
      "item.kernel": rng.normal(size=(items.features.shape[1], 6)),
      "user_hidden.kernel": rng.normal(
        size=(splits["val"].profile.shape[1], 7)
      ),
    }
    np.savez(self.file, **made)
    for mode in ("quantize", "simulator"):
      status, out, err = self._run(*toy, f"--mode={mode}")
      self.assertEqual(status, 0, err)
    self.assertIn("nothing is fitted", out)
    self.assertBetween(self._json("simulator/quality.json")["auc"], 0.3, 0.7)

  def test_a_slate_size_is_needed(self):
    np.savez(self.file, **response_file_test.arrays(True, True))
    status, _, err = _in_process(
      f"--workdir={self.workdir}", f"--response_params={self.file}"
    )
    self.assertEqual(status, 2)
    self.assertIn("--simulator_slate_size is missing", err)


def _write_npz(path, first, count, **arrays):
  """Embeddings of some items, as the README has them."""
  rng = np.random.default_rng(first)
  ids = np.arange(first, first + count)
  x = rng.normal(size=(count, 4)).astype(np.float32)
  np.savez(path, **{"embeddings": x, "item_id": ids, **arrays})


if __name__ == "__main__":
  absltest.main()
