"""Time by phase, and traces."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from hsrl_jax import checked, config
from hsrl_jax.host import watch


class WatchTest(parameterized.TestCase):
  def test_compilation_is_what_first_laps_took_longer(self):
    clock = iter([0, 9, 10, 12, 20, 22, 30, 36, 40, 41])
    found = watch.Watch()
    with mock.patch("time.monotonic", lambda: next(clock)):
      for name in ("training", "training", "training", "curve", "curve"):
        with found.phase(name):
          pass
    found.split_compilation("training", "curve", "never")
    # Laps 9, 2, 2 and 6, 1: usual are 2 and 1.
    self.assertEqual(
      found.seconds(), {"training": 6, "curve": 2, "compile": 12}
    )

  @parameterized.parameters(
    ((3, 8), [(1, 4), (5, 8)]),
    ((5, 5), [(5, 8)]),
    ((9, 99), [(9, 12)]),
    ((20, 30), []),
    (None, []),
  )
  def test_profiler_covers_the_steps(self, steps, expected):
    traced, calls = [], [(1, 4), (5, 8), (9, 12)]
    running = []
    with (
      mock.patch("jax.profiler.start_trace", running.append),
      mock.patch("jax.profiler.stop_trace", lambda: running.clear()),
    ):
      with watch.profiler(pathlib.Path("trace"), steps) as before:
        for first, last in calls:
          before(first, last)
          if running:
            traced.append((first, last))
      self.assertEqual(running, [])
    self.assertEqual(traced, expected)

  def test_a_trace_is_written(self):
    with tempfile.TemporaryDirectory() as folder:
      with watch.profiler(pathlib.Path(folder), (1, 1)) as before:
        before(1, 1)
      self.assertNotEmpty(list(pathlib.Path(folder).rglob("*.xplane.pb")))

  @parameterized.parameters("5", "7:3", "0:3", "a:b", "1:2:3")
  def test_bad_profile_steps(self, text):
    with self.assertRaisesRegex(ValueError, "profile_steps is .*101:300"):
      config.TrainConfig(profile_steps=text)

  def test_profile_steps_decide_nothing(self):
    traced = config.TrainConfig(profile_steps="10:20")
    self.assertEqual(traced.profile_range, (10, 20))
    self.assertEqual(
      checked.fingerprint(traced), checked.fingerprint(config.TrainConfig())
    )


if __name__ == "__main__":
  absltest.main()
