"""Lines of metrics and TensorBoard events: whole, or not there."""

import json
import pathlib
import resource
import tempfile

import numpy as np
from absl.testing import absltest
from tensorboardX.proto import event_pb2

from hsrl_jax.host import metrics


def _events(folder):
  """The events of all files of a folder, by the format of TFRecord."""
  found = []
  for path in sorted((folder / "events").iterdir()):
    data = path.read_bytes()
    while data:
      size = int.from_bytes(data[:8], "little")
      found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
      data = data[16 + size :]
  return found


class MetricsWriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    root = self.enter_context(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(root)
    self.path = self.folder / metrics.METRICS

  def test_resumed_drops_what_lies_beyond_and_what_was_cut(self):
    with metrics.MetricsWriter(self.folder, 0) as writer:
      for step in (1, 2, 3):
        writer.write(step, {"loss": step / 2})
    with self.path.open("a") as file:
      file.write('{"step": 4, "lo')
    with metrics.MetricsWriter(self.folder, 2) as writer:
      writer.write(3, {"loss": 9.0})
    self.assertEqual(
      self.path.read_text(),
      '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'
      '{"step": 3, "loss": 9.0}\n',
    )

  def test_full_disk_leaves_whole_lines(self):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with metrics.MetricsWriter(self.folder, 0) as writer:
      resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
      try:
        with self.assertRaisesRegex(OSError, "File too large"):
          for step in range(1, 99):
            writer.write(step, {"words": "x" * 350})
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
      self.assertEqual([x["step"] for x in metrics.read(self.folder)], [1, 2])
      writer.write(3, {})
    self.assertEqual([x["step"] for x in metrics.read(self.folder)], [1, 2, 3])

  def test_events_for_tensorboard(self):
    counts = np.array([0, 3, 0, 5, 0])
    with metrics.MetricsWriter(self.folder, 10) as writer:
      writer.write(11, {"a": {"b": 2.5}, "c": [1]}, {"tokens": counts})
    first, start, scalar, histogram = _events(self.folder)
    self.assertEqual(first.file_version, "brain.Event:2")
    self.assertEqual((start.step, start.session_log.status), (11, 1))
    self.assertEqual(scalar.step, 11)
    (value,) = scalar.summary.value
    self.assertEqual((value.tag, value.simple_value), ("a/b", 2.5))
    (value,) = histogram.summary.value
    self.assertEqual(value.tag, "tokens")
    self.assertEqual(list(value.histo.bucket), counts.tolist())
    self.assertEqual(list(value.histo.bucket_limit), [0.5, 1.5, 2.5, 3.5, 4.5])
    drawn = np.repeat(np.arange(5), counts)
    for name, expected in (
      ("num", drawn.size),
      ("min", drawn.min()),
      ("max", drawn.max()),
      ("sum", drawn.sum()),
      ("sum_squares", (drawn**2).sum()),
    ):
      self.assertEqual(getattr(value.histo, name), expected, name)
    self.assertEqual(json.loads(self.path.read_text())["step"], 11)


if __name__ == "__main__":
  absltest.main()
