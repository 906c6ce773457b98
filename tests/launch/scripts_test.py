"""The scripts of `launch/`, with fakes of what they call on the PATH.

The fake gcloud notes its arguments; what it is to run on a worker it runs
here, in a home for each of two workers. What the job file really does is in
`tests/launch_test.py`.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from absl.testing import absltest, parameterized

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
WHERE = "--zone=us-central2-b --project=p"
SETTINGS = {"NAME": "hsrl", "ZONE": "us-central2-b", "PROJECT": "p"}
FAKES = {
  "gcloud": r"""
    case "$*" in
      *queued-resources\ describe*)
        [[ -s $FAKE/states ]] || exit 1
        head -n 1 "$FAKE/states"
        sed -i 1d "$FAKE/states"
        exit ;;
    esac
    printf '%q ' "$@" >>"$FAKE/calls"
    echo >>"$FAKE/calls"
    workers="0 1"
    for argument in "$@"; do
      case "$argument" in
        --worker=[0-9]) workers=${argument#--worker=} ;;
        --command=*) command=${argument#--command=} ;;
      esac
    done
    case "$*" in
      *tpu-vm\ describe*) echo "10.0.0.1;10.0.0.2" ;;
      *tpu-vm\ scp*)
        for i in $workers; do cp "$5" "$FAKE/$i/hsrl.tar.gz"; done ;;
      *tpu-vm\ ssh*)
        for i in $workers; do
          ln -sfn "$FAKE/$i" "$FAKE/disk"
          cd "$FAKE/$i"
          HOME=$PWD WORKER=$i bash -c "$command" || exit
        done ;;
    esac""",
  # Packs what is here, committed or not.
  "git": 'tar -czf "$6" -C "$2" launch requirements.txt',
  "hostname": 'echo "worker-$WORKER"',
  "sudo": 'echo "sudo $*" >>"$FAKE/$WORKER/calls"',
  "systemctl": 'printf "%s\n" $(<"$FAKE/service")',
  "python3": r"""
    echo "python3 $*" >>"$HOME/calls"
    mkdir -p "$HOME/.local/bin"
    printf '#!/bin/bash\necho "uv $*" >>"$HOME/calls"' >"$HOME/.local/bin/uv"
    chmod +x "$HOME/.local/bin/uv" """,
  # A job of two steps; a signal stops it after the one that it is at.
  "job_python": r"""
    trap 'stopped=1' TERM
    : >"$FAKE/started"
    until [[ -e $FAKE/go || ${stopped:-} ]]; do sleep 0.05; done
    [[ ${stopped:-} ]] || mkdir -p "$FAKE/run/.done/report"
    exit "${STATUS:-0}" """,
  "srun": r"""
    echo "srun $*" >>"$FAKE/calls"
    until [[ -e $FAKE/go ]]; do sleep 0.05; done
    exit "$STATUS" """,
  "scancel": 'echo "scancel $*" >>"$FAKE/calls"; touch "$FAKE/go"',
  "scontrol": 'echo "scontrol $*" >>"$FAKE/calls"',
}


class ScriptsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.fake = pathlib.Path(self.create_tempdir())
    for name, text in FAKES.items():
      path = self.fake / "bin" / name
      path.parent.mkdir(exist_ok=True)
      path.write_text(f"#!/bin/bash\n{text}\n")
      path.chmod(0o755)
    for name in ("0", "1", "shared"):
      (self.fake / name).mkdir()
    self.environment = {
      "PATH": f"{self.fake}/bin:{os.environ['PATH']}",
      "FAKE": str(self.fake),
      "POLL": "0",
    }

  def _start(self, script, *arguments, **settings):
    return subprocess.Popen(
      ["bash", f"launch/{script}", *arguments],
      cwd=ROOT,
      env=self.environment | settings,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def _run(self, script, *arguments, **settings):
    """Standard output of a script that must succeed."""
    process = self._start(script, *arguments, **settings)
    out, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 0, err)
    return out

  def _refused(self, status, message, script, *arguments, **settings):
    process = self._start(script, *arguments, **settings)
    _, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, status, err)
    self.assertLen(err.splitlines(), 1)
    self.assertRegex(err, f"^error: .*{message}")

  def _calls(self, name="calls"):
    path = self.fake / name
    text = path.read_text() if path.exists() else ""
    path.unlink(missing_ok=True)
    return [shlex.split(line) for line in text.splitlines()]

  def _tpus(self, *lines):
    return [shlex.split(f"compute tpus {line} {WHERE}") for line in lines]

  def test_shellcheck_finds_nothing(self):
    shellcheck = pathlib.Path(sys.executable).with_name("shellcheck")
    ran = subprocess.run(
      [shellcheck, "-x", *SCRIPTS, ROOT / ".ci" / "run"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual((ran.returncode, ran.stdout), (0, ""))

  @parameterized.parameters(*[x.name for x in SCRIPTS if "tpu_vm" in x.name])
  def test_help(self, script):
    out = self._run(script, "--help")
    self.assertIn(script, out)
    self.assertNotIn("#", out)
    self.assertNotIn("set -e", out)
    self.assertEqual(self._calls(), [])

  @parameterized.parameters(
    ("tpu_vm_create.sh", "ACCELERATOR"),
    ("tpu_vm_setup.sh", "SHARED"),
    ("tpu_vm_submit.sh", "SHARED"),
    ("tpu_vm_logs.sh", ""),
    ("tpu_vm_delete.sh", ""),
  )
  def test_missing_settings_are_named(self, script, more):
    wanted = f"missing NAME ZONE PROJECT {more}".strip()
    self._refused(2, f"{wanted}; expected", script)
    self._refused(2, "missing PROJECT", script, "NAME=a", ZONE="z")
    self.assertEqual(self._calls(), [])

  def test_create_asks_and_waits(self):
    (self.fake / "states").write_text("\nWAITING_FOR_RESOURCES\nACTIVE\n")
    out = self._run(
      "tpu_vm_create.sh", "ACCELERATOR=v4-8", "SPOT=true", **SETTINGS
    )
    self.assertEqual(
      self._calls(),
      self._tpus(
        "queued-resources create hsrl --node-id=hsrl --accelerator-type=v4-8 "
        "--runtime-version=tpu-ubuntu2204-base --spot"
      ),
    )
    self.assertEqual(
      out.splitlines(), ["hsrl is WAITING_FOR_RESOURCES", "hsrl is ACTIVE"]
    )

  def test_create_leaves_what_is_there(self):
    (self.fake / "states").write_text("ACTIVE\n")
    self._run("tpu_vm_create.sh", ACCELERATOR="v4-8", **SETTINGS)
    self.assertEqual(self._calls(), [])

  def test_create_makes_anew_what_was_preempted(self):
    (self.fake / "states").write_text("SUSPENDED\nPROVISIONING\nACTIVE\n")
    self._run("tpu_vm_create.sh", ACCELERATOR="v5litepod-16", **SETTINGS)
    self.assertEqual(
      self._calls(),
      self._tpus(
        "queued-resources delete hsrl --force --quiet",
        "queued-resources create hsrl --node-id=hsrl "
        "--accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite",
      ),
    )

  def test_create_fails_where_the_request_fails(self):
    (self.fake / "states").write_text("\nFAILED\n")
    self._refused(
      1, "describe hsrl", "tpu_vm_create.sh", ACCELERATOR="v4-8", **SETTINGS
    )

  def test_create_of_an_unknown_kind_needs_its_runtime(self):
    self._refused(
      2, "missing RUNTIME", "tpu_vm_create.sh", ACCELERATOR="v9-8", **SETTINGS
    )

  def test_setup_installs_on_all_workers(self):
    shared = str(self.fake / "shared")
    out = self._run("tpu_vm_setup.sh", SHARED=shared, **SETTINGS)
    self.assertIn("2 workers", out)
    archive = self._calls()[0][4]
    self.assertFalse(pathlib.Path(archive).exists())
    (jax,) = (
      line.split(";")[0].replace("==", "[tpu]==")
      for line in (ROOT / "requirements.txt").read_text().splitlines()
      if line.startswith("jax==") and '< "3.12"' in line
    )
    for worker in ("0", "1"):
      self.assertTrue((self.fake / worker / "hsrl/launch/job.sh").exists())
      self.assertEqual(
        self._calls(f"{worker}/calls"),
        [
          ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"],
          ["uv", "venv", "--quiet", "--clear", "--python=3.11", ".venv"],
          [
            *["uv", "pip", "install", "--quiet", "--python=.venv/bin/python"],
            *("-r", "requirements.txt", jax),
          ],
        ],
      )
    self.assertEqual(list((self.fake / "shared").iterdir()), [])

  def test_setup_finds_that_a_folder_is_not_shared(self):
    shared = str(self.fake / "disk")  # Of each worker its own.
    self._refused(
      1,
      "worker-0: sees the files of 1 of 2 workers in .*/disk; expected",
      "tpu_vm_setup.sh",
      SHARED=shared,
      **SETTINGS,
    )

  def _set_up(self):
    self._run("tpu_vm_setup.sh", SHARED=str(self.fake / "shared"), **SETTINGS)
    for name in ("calls", "0/calls", "1/calls"):
      self._calls(name)

  def _submit(self, *arguments, **settings):
    shared = self.fake / "shared"
    return self._run(
      "tpu_vm_submit.sh",
      f"--workdir={shared}/run",
      *arguments,
      SHARED=str(shared),
      **SETTINGS,
      **settings,
    )

  def test_submit_starts_a_service_on_all_workers(self):
    self._set_up()
    self._submit("--flagfile=a b.flags")
    for worker in ("0", "1"):
      home = self.fake / worker
      self.assertEqual(
        shlex.split((home / "hsrl_job.sh").read_text(), comments=True),
        [
          *("cd", f"{home}/hsrl", "exec", "bash", "launch/job.sh"),
          *(f"--workdir={self.fake}/shared/run", "--flagfile=a b.flags"),
        ],
      )
      self.assertEqual(
        [" ".join(x) for x in self._calls(f"{worker}/calls")],
        [
          f"sudo cp {home}/hsrl.service /etc/systemd/system/hsrl.service",
          "sudo systemctl daemon-reload",
          "sudo systemctl enable --quiet hsrl",
          "sudo systemctl restart hsrl",
        ],
      )
      unit = (home / "hsrl.service").read_text().splitlines()
      for line in (
        f'ExecStart=/bin/bash "{home}/hsrl_job.sh"',
        f"StandardOutput=append:{home}/hsrl.log",
        "Restart=on-failure",
        "RestartPreventExitStatus=2",
        "WantedBy=multi-user.target",
      ):
        self.assertIn(line, unit)

  def test_submit_refuses_a_workdir_that_is_not_shared(self):
    self._refused(
      2,
      "expected --workdir=/mnt/hsrl/",
      "tpu_vm_submit.sh",
      "--workdir=runs/x",
      SHARED="/mnt/hsrl",
      **SETTINGS,
    )

  def test_submit_watches_and_starts_again_after_preemption(self):
    self._set_up()
    (self.fake / "states").write_text(
      "ACTIVE\nACTIVE\nSUSPENDED\nSUSPENDED\nACTIVE\nACTIVE\n"
    )
    # The job ends when the machine was made anew.
    gcloud = self.fake / "bin" / "gcloud"
    gcloud.write_text(
      gcloud.read_text() + 'case "$*" in *" start "*) [[ ! -e $FAKE/made ]] || '
      'touch "$FAKE/0/hsrl.finished" ;; *create*) touch "$FAKE/made" ;; esac\n'
    )
    out = self._submit(ACCELERATOR="v4-8", WATCH="true")
    self.assertEqual(out.splitlines()[-1], "finished")
    calls = [" ".join(x[2:5]) for x in self._calls()]
    self.assertEqual(calls.count("queued-resources create hsrl"), 1)
    starts = [x for x in self._calls("0/calls") if "restart" in x]
    self.assertLen(starts, 2)

  def test_submit_watches_until_the_job_is_refused(self):
    self._set_up()
    (self.fake / "states").write_text("ACTIVE\n" * 2)
    (self.fake / "service").write_text("ExecMainStatus=2 ActiveState=failed")
    shared = str(self.fake / "shared")
    self._refused(
      1,
      "the job was refused",
      "tpu_vm_submit.sh",
      f"--workdir={shared}/run",
      SHARED=shared,
      WATCH="true",
      ACCELERATOR="v4-8",
      **SETTINGS,
    )

  def test_logs(self):
    (self.fake / "1" / "hsrl.log").write_text("policy done\n")
    out = self._run("tpu_vm_logs.sh", WORKER="1", **SETTINGS)
    self.assertEqual(out, "policy done\n")
    self.assertEqual(
      self._calls(),
      self._tpus("tpu-vm ssh hsrl --worker=1 '--command=tail -n 100 hsrl.log'"),
    )

  def test_delete(self):
    self._run("tpu_vm_delete.sh", *(f"{k}={v}" for k, v in SETTINGS.items()))
    self.assertEqual(
      self._calls(),
      self._tpus("queued-resources delete hsrl --force --quiet"),
    )

  def _job(self, **settings):
    flags = self.fake / "job.flags"
    flags.write_text(f"--workdir={self.fake}/run\n")
    return self._start(
      "job.sh", f"--flagfile={flags}", PYTHON="job_python", **settings
    )

  def test_job_says_whether_work_is_left(self):
    (self.fake / "go").touch()
    for status in (0, 2):
      process = self._job(STATUS=str(status))
      _, err = process.communicate(timeout=60)
      self.assertEqual((process.returncode, err), (status, ""))

  def test_job_hands_a_signal_on(self):
    process = self._job()
    self._until("started")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 75)
    self.assertIn("the same command goes on", err)

  def _until(self, name):
    deadline = time.monotonic() + 60
    while not (self.fake / name).exists():
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.02)

  def test_slurm_runs_the_job_and_goes_back_into_the_queue(self):
    process = self._start(
      "slurm.sh", "--flagfile=x", SLURM_JOB_ID="7", STATUS="75"
    )
    self._until("calls")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    self.assertEqual(process.returncode, 75)
    self.assertEqual(
      [" ".join(x) for x in self._calls()],
      [
        "srun --kill-on-bad-exit=0 bash launch/job.sh --flagfile=x",
        "scancel --signal=TERM 7",
        "scontrol requeue 7",
      ],
    )

  def test_slurm_ends_where_the_job_is_finished(self):
    (self.fake / "go").touch()
    self._run("slurm.sh", "--flagfile=x", SLURM_JOB_ID="7", STATUS="0")
    self.assertLen(self._calls(), 1)

  def test_slurm_needs_sbatch(self):
    process = self._start("slurm.sh")
    out, err = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 2)
    self.assertIn("sbatch --nodes=2 launch/slurm.sh", out)
    self.assertIn("expected sbatch", err)


if __name__ == "__main__":
  absltest.main()
