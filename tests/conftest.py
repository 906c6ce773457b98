"""Settings of the whole suite; they must precede the first use of jax."""

import gc
import os
from importlib import metadata

import pytest
from absl import flags

# Most of a test's time is compilation; the tests that depend on how users have
# it say so.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Nobody reads where in the code an operation of a compiled program came from.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
_FLAGS = [
  os.environ.get("XLA_FLAGS", ""),
  "--xla_force_host_platform_device_count=4",
  # Parts for threads have a cost of their own.
  "--xla_cpu_parallel_codegen_split_count=1",
]
# The newer emitters take four times as long; jaxlib 0.12 has no other, and ends
# at flags that it does not know.
if metadata.version("jaxlib").startswith("0.10."):
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_FLAGS)
# Arrays of different ranks that meet are more often a mistake than a wish.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

flags.FLAGS.mark_as_parsed()

# Files with the longest tests come first, so that no worker is left with them
# at the end while the others have nothing to do.
_LONGEST = (
  "faults_test.py",
  "processes_test.py",
  "docs_test.py",
  "launch_test.py",
  "compare_test.py",
  "loop_test.py",
  "learning_test.py",
  "closed_loop_test.py",
  "continue_from_test.py",
  "catalogue_size_test.py",
  "changing_catalogue_test.py",
)


def pytest_configure(config):
  """Has pytest-xdist keep to this order, not to the number of tests."""
  config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  """Brings them into this order; that of the rest is kept."""
  rank = {name: i for i, name in enumerate(_LONGEST)}
  items.sort(key=lambda x: rank.get(x.path.name, len(rank)))


def pytest_collection_finish(session):
  """Has the garbage collector leave alone what all modules keep.

  Tracing makes many small objects that live on; it would look at them often.
  """
  del session
  gc.collect()
  gc.freeze()
  gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session", autouse=True)
def _compiled(tmp_path_factory):
  """Has tests, and processes that they start, share what they compile.

  The folder is one of this session, unless the environment names it.
  """
  import jax

  from tests import command

  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent  # Of all workers.
  os.environ.setdefault("HSRL_TEST_COMPILED", str(folder / "compiled"))
  for name, value in command.cache():
    jax.config.update(name, value)
