"""Settings of the whole suite; they must precede the first import of jax."""

import os
import shutil
import tempfile

from absl import flags

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
# Most of a test's time is compilation: less of it, and nothing twice. What is
# compiled is kept for all workers, and for the processes that tests start.
_FIRST = "HSRL_TEST_COMPILED" not in os.environ
if _FIRST:
  os.environ["HSRL_TEST_COMPILED"] = tempfile.mkdtemp()
os.environ |= {
  "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  "JAX_COMPILATION_CACHE_DIR": os.environ["HSRL_TEST_COMPILED"],
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}

flags.FLAGS.mark_as_parsed()


def pytest_unconfigure():
  """Removes it at the end, in the process that made it."""
  if _FIRST:
    shutil.rmtree(os.environ["HSRL_TEST_COMPILED"], ignore_errors=True)
