"""Settings of the whole suite; they must precede the first use of jax."""

import os

import pytest
from absl import flags

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
# Most of a test's time is compilation; the tests that depend on how users have
# it say so.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session", autouse=True)
def _compiled(tmp_path_factory):
  """Where processes that tests start keep what they compile."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent  # Of all workers.
  os.environ["HSRL_TEST_COMPILED"] = str(folder / "compiled")
