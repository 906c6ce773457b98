"""Many processes as one run, with real ones: two of two devices each."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import chex
import jax
import numpy as np
from absl.testing import absltest

from hsrl_jax.training import checkpoint, hosts, metrics, policy

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
  f"--flagfile={ROOT}/launch/flags/smoke.flags",
  "--simulator_epochs=2",
  "--sid_restarts=1",
  "--agent=a2c",
  "--width=8",
  "--critic_hidden=8",
  "--iterations=200",
  "--iterations_per_call=10",
  "--buffer_size=3200",
  "--curve_every=200",
  "--save_every=10",
  "--curve_episodes=20",
  "--evaluate_episodes=40",
  "--seeds=0,1",
)
STEPS = 200


def _free_port() -> int:
  with contextlib.closing(socket.socket()) as found:
    found.bind(("127.0.0.1", 0))
    return found.getsockname()[1]


class HostsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp())
    cls.enterClassContext(contextlib.closing(cls))
    cls.one = cls.folder / "one"
    cls.start(cls.one, devices=4)
    cls.finish()

  @classmethod
  def close(cls):
    for process in cls.running:
      process.kill()
    shutil.rmtree(cls.folder)

  running = ()

  @classmethod
  def start(cls, workdir, *arguments, devices, processes=1):
    """Starts the command in one process, or in some that are one run."""
    environment = os.environ | {
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
      "JAX_COMPILATION_CACHE_DIR": str(cls.folder / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    own = [()]
    if processes > 1:
      where = (f"--coordinator=127.0.0.1:{_free_port()}", "--processes=2")
      own = [(*where, f"--process={i}") for i in range(processes)]
    command = [sys.executable, "-m", "hsrl_jax.launch", *SMALL]
    cls.running = [
      subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments, *more],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
      for more in own
    ]

  @classmethod
  def finish(cls, status=0):
    """What the processes printed, [(standard output, standard error)]."""
    said = [x.communicate(timeout=300) for x in cls.running]
    for process, (_, err) in zip(cls.running, said, strict=True):
      assert process.returncode == status, (process.returncode, err)
    return said

  def params(self, workdir):
    """The parameters that a run left, without a word of its devices."""
    path = workdir / policy.FOLDER / "checkpoints"
    with checkpoint.open_directory(path) as checkpointer:
      state = checkpointer.load(STEPS)
    return jax.tree.map(np.asarray, state[0]["params"])

  def assert_same_run(self, workdir):
    chex.assert_trees_all_close(
      self.params(workdir), self.params(self.one), rtol=1e-3, atol=1e-3
    )
    ours, theirs = (
      metrics.read(x / policy.FOLDER) for x in (workdir, self.one)
    )
    self.assertEqual([x["step"] for x in ours], [x["step"] for x in theirs])

  def test_a_life(self):
    # Two start from nothing; one of them is killed while they train.
    workdir = self.folder / "two"
    self.start(workdir, devices=2, processes=2)
    lines = workdir / policy.FOLDER / metrics.METRICS
    while not (lines.exists() and '"step": 30,' in lines.read_text()):
      time.sleep(0.01)
      self.assertIsNone(self.running[0].poll())
    self.running[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    out, err = self.running[0].communicate(timeout=2 * hosts.LOST_SECONDS)
    print(time.monotonic() - killed, out, err)
    self.assertEqual(self.running[0].returncode, 1)
    self.assertRegex(err.splitlines()[-1], "^error: a host was lost; the same ")

    # The same command goes on, and so does a single process of one device.
    other = self.folder / "other"
    shutil.copytree(workdir, other)
    self.start(workdir, devices=2, processes=2)
    (out, _), (other_out, other_err) = self.finish()
    self.assertIn("policy done", out)
    self.assertEqual((other_out, other_err), ("", ""))
    self.assert_same_run(workdir)
    self.start(other, devices=1)
    self.finish()
    self.assert_same_run(other)


if __name__ == "__main__":
  absltest.main()
