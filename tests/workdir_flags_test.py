"""A workdir knows its flags: what is kept, taken, compared and taken back."""

import contextlib
import os
import pathlib
import resource
import shutil
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import command
from hsrl_jax.errors import InputError
from hsrl_jax.experiments.registry import Ab, Benchmark
from hsrl_jax.studies.registry import CatalogueSize
from tests.command import experiments_are, run, study
from tests.folders import CommandTest

TOY = ("--dataset=toy", "--sid_levels=2", "--sid_vocab_size=16")


class Stages:
  """Stands for all stages: notes the run, and leaves what a stage leaves."""

  def __init__(self, leaves: str = "sids"):
    self.runs, self.leaves, self.error = [], leaves, None

  def __call__(self, mode, run, workdir):
    if self.error is not None:
      raise self.error
    self.runs.append((mode, workdir, run.config))
    if self.leaves:
      (workdir / self.leaves).mkdir(parents=True, exist_ok=True)


class WorkdirFlagsTest(CommandTest):
  def setUp(self):
    super().setUp()
    self.workdir = self.folder / "run"
    self.stages, self.run_claimed = Stages(), command._run_claimed
    self.enter_context(mock.patch.object(command, "_run_claimed", self.stages))

  def _run(self, *arguments, workdir=None):
    self.ok(f"--workdir={workdir or self.workdir}", *arguments)
    return self.stages.runs[-1]

  def _refused(self, message, *arguments):
    count = len(self.stages.runs)
    self.fails(message, *arguments)
    self.assertLen(self.stages.runs, count)

  def _kept(self, workdir=None):
    path = (workdir or self.workdir) / "flags.txt"
    return path.read_text().splitlines() if path.exists() else None

  def test_what_hangs_or_is_no_text_is_refused(self):
    fifo = self.folder / "x.flags"
    os.mkfifo(fifo)
    message = f"{fifo} is no regular file; expected a text file with flags"
    self._refused(message, f"--flagfile={fifo}")
    self._refused(message, "--flagfile", str(fifo))
    self._refused(
      "'--workdir=\\udcc3' is no text in utf-8; expected some",
      "--workdir=\udcc3",
    )

  def test_no_such_device(self):
    self.stages.error = RuntimeError("Unable to initialize backend 'x': no\nx")
    self._refused(
      "backend 'x': no x; expected JAX_PLATFORMS to name devices",
      f"--workdir={self.workdir}",
      *TOY,
    )

  def test_a_full_disk_while_the_data_are_written(self):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with mock.patch.object(command, "_run_claimed", self.run_claimed):
      resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
      try:
        status, _, err = run(f"--workdir={self.workdir}", *TOY, "--mode=data")
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (line,) = [x for x in err.splitlines() if x.startswith("error")]
    self.assertEqual(line, f"error: {self.workdir}/data: File too large")
    self.assertEqual(status, 1)
    self.assertNotIn("Traceback", err)

  def _made(self):
    """A run of smoke.flags, with a width of its own."""
    _, _, config = self._run(*TOY, "--width=48")
    self.assertEqual((config.data.dataset, config.network.width), ("toy", 48))
    return config

  @parameterized.parameters(
    "all", "data", "quantize", "simulator", "policy", "evaluate", "export"
  )
  def test_the_workdir_suffices(self, mode):
    made, kept = self._made(), self._kept()
    self.assertEqual(self._run(f"--mode={mode}"), (mode, self.workdir, made))
    self.assertEqual(self._kept(), kept)

  def test_given_flags_are_compared(self):
    made = self._made()
    self.assertEqual(self._run("--width=48", "--mode=report")[2], made)
    own = f"--workdir={self.workdir}"
    self._refused("--width was 48, now 32; expected the", own, "--width=32")
    # At its default, but kept otherwise.
    self._refused("--dataset was toy", own, "--dataset=movielens_latest_small")
    # Kept by nobody, since it has no value.
    self._refused(
      "--sid_batch_size was unset, now 9", own, "--sid_batch_size=9"
    )
    self._refused("--agent was hsrl, now a2c", own, "--agent=a2c")

  def test_what_decides_nothing_is_not_compared(self):
    made = self._made()
    self.assertNotIn("export_seen", "".join(self._kept()))
    given = ("--export_seen=4", "--profile_steps=1:2", "--raw_data_dir=x")
    self.assertEqual(self._run("--mode=export", *given)[2], made)

  def test_a_flagfile_names_its_workdir(self):
    made = self._made()
    moved = self.workdir.rename(self.folder / "moved")
    for flagfile in (
      (f"--flagfile={moved}/flags.txt",),
      ("-flagfile", f"{moved}/flags.txt"),
    ):
      self.ok(*flagfile, "--mode=evaluate")
      self.assertEqual(self.stages.runs[-1], ("evaluate", moved, made))
    with contextlib.chdir(moved):
      status, _, err = run("--flagfile=flags.txt", "--mode=evaluate")
    self.assertEqual(status, 0, err)
    self.assertEqual(self.stages.runs[-1][1], pathlib.Path())

  @parameterized.parameters(False, True)
  def test_the_flags_of_another_workdir(self, last):
    made, new = self._made(), self.folder / "new"
    arguments = [
      f"--flagfile={self.workdir}/flags.txt",
      f"--workdir={new}",
    ]
    self.ok(*(arguments[::-1] if last else arguments))
    self.assertEqual(self.stages.runs[-1], ("all", new, made))
    self.assertEqual(self._kept(new), self._kept())

  def test_a_flags_txt_that_nobody_kept(self):
    path = self.folder / "flags.txt"
    path.write_text("--dataset=toy\n")
    self._refused("--workdir is missing", f"--flagfile={path}")
    path.write_text(f"--dataset=toy\n--workdir={self.workdir}\n")
    self.assertEqual(run(f"--flagfile={path}")[0], 0)
    self.assertEqual(self.stages.runs[-1][1], self.workdir)

  def test_a_flag_of_another_version(self):
    self._made()
    with (self.workdir / "flags.txt").open("a") as file:
      file.write("--colour=red\n")
    self._refused(
      "flags.txt: --colour=red is no flag of this", f"--workdir={self.workdir}"
    )
    (self.workdir / "flags.txt").write_text("--width=wide\n")
    self._refused("--width=wide is no flag", f"--workdir={self.workdir}")

  def test_a_new_workdir_may_change_all_but_its_data(self):
    self.stages.leaves = ".done/data"
    self._run(*TOY, "--mode=data")
    config = self._run("--mode=quantize", "--sid_levels=4")[2]
    self.assertEqual((config.data.dataset, config.quantizer.levels), ("toy", 4))
    self.assertEqual(self._run("--mode=quantize")[2], config)
    self._refused(
      "--dataset was toy, now rl4rs",
      f"--workdir={self.workdir}",
      "--dataset=rl4rs",
    )

  def test_refused_flags_are_not_kept(self):
    self.stages.error = InputError("too few; expected more")
    own = f"--workdir={self.workdir}"
    self._refused("too few", own, *TOY, "--sid_batch_size=9")
    self.assertFalse(self.workdir.exists())
    self.stages.error, self.stages.leaves = None, ".done/data"
    config = self._run(*TOY, "--mode=data")[2]
    self.stages.error = InputError("too few; expected more")
    self._refused("too few", own, "--sid_batch_size=9")
    self.stages.error = None
    self.assertEqual(self._run()[2], config)

  def test_flags_stay_with_what_was_made_of_them(self):
    def data_alone(mode, run, workdir):
      Stages(".done/data")(mode, run, workdir)
      raise InputError("too few; expected more")

    with mock.patch.object(command, "_run_claimed", data_alone):
      self._refused("too few", f"--workdir={self.workdir}", *TOY)
    self.assertEqual(self._run()[2].data.dataset, "toy")


class OtherModesTest(CommandTest):
  """Experiments, sizes side by side, and SIDs of embeddings."""

  def setUp(self):
    super().setUp()
    self.workdir = self.folder / "run"
    self.own = f"--workdir={self.workdir}"
    self.ran = []

    def experiment(made):
      (made.workdir / "shared").mkdir(exist_ok=True)
      self.ran.append(made)

    self.enter_context(experiments_are(experiment))

  def _ok(self, *arguments, command=run):
    self.ok(self.own, *arguments, by=command)
    return self.ran[-1] if self.ran else None

  def _refused(self, message, *arguments):
    self.fails(message, self.own, *arguments)

  def _like(self, made):
    """What an experiment is, apart from the command that started it."""
    return made._replace(command="", settings={}, known={})

  def test_an_experiment_goes_on(self):
    first = self._ok(
      *TOY, "--experiment=ablation", "--experiment_variants=no_item_residual"
    )
    self.assertEqual(first.config.variants, ("no_item_residual",))
    for arguments in ((), ("--experiment=ablation",)):
      self.assertEqual(self._like(self._ok(*arguments)), self._like(first))
    self.ok(f"--flagfile={self.workdir}/flags.txt")
    self.assertEqual(self._like(self.ran[-1]), self._like(first))
    # What is compared may change; what the jobs are may not.
    more = ("no_item_residual", "no_entropy")
    self._ok(f"--experiment_variants={','.join(more)}")
    self.assertEqual(self._ok().config.variants, more)
    self._refused("--width was 32, now 48", "--width=48")
    self._refused("run belongs to an experiment", "--mode=export")
    made = self._ok("--experiment=benchmark")
    self.assertEqual((made.name, made.config), ("benchmark", Benchmark()))

  def test_a_study_goes_on(self):
    first = self._ok(
      *TOY, "--study=catalogue_size", "--study_sizes=50", command=study
    )
    self.assertEqual(first.config, CatalogueSize(sizes=(50,)))
    again = self._ok("--study_memory_gb=3", command=study)
    self.assertEqual(again.config, CatalogueSize(sizes=(50,), memory_gb=3.0))
    self.assertEqual(again.base, first.base)
    self._refused("--study=catalogue_size is no flag of this command")

  def test_arms_that_are_no_agents(self):
    arms = "--experiment_agents=best_constant,hsrl"
    made = self._ok(*TOY, "--experiment=ab", arms, "--users=8")
    self.assertEqual(made.config, Ab(("best_constant", "hsrl")))

  def test_by_either_flag(self):
    for given in (
      ("--experiment=world",),
      ("--mode=experiment", "--experiment=world"),
    ):
      self.assertEqual(self._ok(*TOY, *given).name, "world")
      shutil.rmtree(self.workdir)

  @parameterized.parameters(
    ((), "--experiment_trials is given, but a single run does not read it; "),
    (
      ("--experiment=world",),
      "--experiment_trials is given, but --experiment=world does not read it; "
      "expected --experiment=tune, or no such flag",
    ),
    (("--mode=data",), "but a single run does not read it"),
  )
  def test_a_flag_that_nothing_reads(self, given, message):
    self._refused(message, *TOY, *given, "--experiment_trials=4")
    self.assertFalse(self.workdir.exists())

  @parameterized.parameters(
    (("--mode=experiment",), "needs --experiment; expected a name"),
    (
      ("--experiment=ab", "--mode=export"),
      "--mode=export with --experiment=ab; expected --mode=experiment, or",
    ),
  )
  def test_an_experiment_and_its_mode(self, given, message):
    self._refused(message, *TOY, *given)

  def test_an_experiment_or_a_study(self):
    given = (self.own, "--experiment=ab", "--study=off_policy")
    message = "--experiment with --study; expected one of them"
    self.fails(message, *given, by=study)

  def test_the_flags_of_agents_that_are_compared(self):
    given = ("--experiment_agents=td3,ddpg", "--temperature=0.4")
    self._ok(*TOY, "--experiment=benchmark", *given)
    text = (self.workdir / "flags.txt").read_text()
    self.assertIn("--temperature=0.4\n", text)
    self.assertNotIn("--beams", text)

  def test_an_experiment_in_the_workdir_of_a_run(self):
    with mock.patch.object(command, "_run_claimed", Stages()):
      self._ok(*TOY)
    kept = f"--flagfile={self.workdir}/flags.txt"
    self._refused("belongs to a single run; expected", "--experiment=ablation")
    new = self.workdir.with_name("new")
    self.ok(kept, f"--workdir={new}", "--experiment=ablation")
    self.assertEqual(self.ran[-1].base.data.dataset, "toy")

  def test_results_keep_no_flags(self):
    self._ok("--experiment=results")
    self.assertFalse((self.workdir / "flags.txt").exists())

  def test_embeddings(self):
    items, new = (self.workdir.with_name(f"{x}.npz") for x in ("items", "new"))
    rng = np.random.default_rng(0)
    for path, ids in ((items, range(60)), (new, range(60, 64))):
      x = rng.normal(size=(len(ids), 4)).astype(np.float32)
      np.savez(path, embeddings=x, item_id=np.array(ids))
    small = "--sid_vocab_size=8"
    self._ok("--mode=quantize", f"--embeddings={items}", small)
    self.assertIn("nothing to do", self.ok(self.own, "--mode=quantize"))
    self.assertIn("8x2", self.ok(self.own, "--mode=quantize", "--sweep=8x2"))
    self._refused("has SIDs of --embeddings and no run", "--mode=policy")
    self._refused("needs --embeddings", "--mode=add_items")
    given = ("--mode=add_items", f"--embeddings={new}")
    self._refused("--sid_levels was 3, now 2", *given, "--sid_levels=2")
    self._ok(*given, "--raw_data_dir=x")


if __name__ == "__main__":
  absltest.main()
