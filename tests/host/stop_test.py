"""Signals: at once, after the step in hand, and in time whatever is done."""

import pathlib
import signal
import subprocess
import sys
import time
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax.host import stop, watch


class Heard(Exception):
  """What the handler around raises."""


class DeferredTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    for number in (signal.SIGTERM, signal.SIGINT):
      old = signal.signal(number, self._hear)
      self.addCleanup(signal.signal, number, old)

  def _hear(self, number, frame):
    raise Heard(number)

  @parameterized.parameters(signal.SIGTERM, signal.SIGINT)
  def test_waits_for_the_end_of_the_block(self, number):
    steps = []
    with self.assertRaises(Heard) as heard, stop.deferred() as deferral:
      for step in range(5):
        if step == 2:
          signal.raise_signal(number)
        steps.append(step)
        if deferral.due():
          break
    self.assertEqual(steps, [0, 1, 2])
    self.assertEqual(heard.exception.args, (number,))

  def test_comes_too_late_to_be_asked_for(self):
    with self.assertRaises(Heard), stop.deferred():
      signal.raise_signal(signal.SIGTERM)

  def test_second_ctrl_c_does_not_wait(self):
    with self.assertRaises(KeyboardInterrupt), stop.deferred():
      signal.raise_signal(signal.SIGINT)
      signal.raise_signal(signal.SIGINT)
    with self.assertRaises(Heard):
      signal.raise_signal(signal.SIGINT)

  def test_a_signal_to_one_process_is_one_to_all(self):
    of_all = [0, signal.SIGTERM]
    with (
      mock.patch("jax.process_count", lambda: 2),
      mock.patch.object(
        stop.multihost_utils, "process_allgather", lambda mine: of_all
      ),
    ):
      with self.assertRaises(Heard), stop.deferred(by_all=True) as deferral:
        self.assertTrue(deferral.due())
      with stop.deferred() as deferral:
        self.assertFalse(deferral.due())

  def test_what_was_ignored_stays_so(self):
    """As in a command that a script starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop.deferred() as deferral:
      signal.raise_signal(signal.SIGINT)
      self.assertFalse(deferral.due())
    self.assertEqual(signal.getsignal(signal.SIGINT), signal.SIG_IGN)
    with self.assertRaises(Heard), stop.deferred():
      signal.raise_signal(signal.SIGTERM)

  def test_nothing_comes(self):
    with stop.deferred() as deferral:
      self.assertFalse(deferral.due())


class OnSigtermTest(absltest.TestCase):
  def test_ends_in_time_what_hears_nothing(self):
    code = (
      "import os, signal, time\n"
      "from hsrl_jax.host import stop, watch\n"
      "stop.GRACE_SECONDS = 0.1\n"
      "with stop.on_sigterm():\n"
      "  try:\n"
      "    os.kill(os.getpid(), signal.SIGTERM)\n"
      "    time.sleep(1)\n"
      "  except stop.Terminated:\n"
      "    print('heard', flush=True)\n"
      "    time.sleep(600)\n"
    )
    ran = subprocess.run(
      (sys.executable, "-c", code),
      cwd=pathlib.Path(__file__).parents[2],
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    self.assertEqual(ran.returncode, 0, ran.stderr)
    self.assertEqual(ran.stdout, "heard\n")
    self.assertEqual(ran.stderr, f"\n{stop.LINE}\n")


class ProgressTest(absltest.TestCase):
  def test_rate_when_the_wall_clock_jumps_back(self):
    backwards = mock.patch("tqdm.std.time", lambda: -time.time())
    with backwards, watch.bar(10, "work", "it") as bar:
      time.sleep(0.01)
      bar.update(5)
      shown = bar.format_dict
    self.assertBetween(shown["elapsed"], 0.01, 60)
    self.assertNotIn("-", str(bar).split("work")[1])


if __name__ == "__main__":
  absltest.main()
