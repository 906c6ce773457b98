"""Settings of the whole suite; they must precede the first use of jax."""

import os

from absl import flags

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

flags.FLAGS.mark_as_parsed()
