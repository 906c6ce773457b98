"""Compiled programs are kept, so that the next run does not compile them."""

import hashlib
import os
import pathlib
import platform
import warnings

import jax

ELSEWHERE = "JAX_COMPILATION_CACHE_DIR"  # Where jax is told of a folder.
MAX_BYTES = 2**30
_SECONDS = 0.3  # What compiles faster is not kept.
_CPU = pathlib.Path("/proc/cpuinfo")


def folder() -> pathlib.Path:
  """Where programs for this machine are: a processor may not run another's."""
  lines = _CPU.read_text().splitlines() if _CPU.exists() else []
  known = [x for x in lines if x.startswith(("flags", "Features"))][:1]
  of_cpu = hashlib.sha256("".join(known).encode()).hexdigest()[:8]
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  name = f"{platform.machine()}-{of_cpu}"
  return pathlib.Path(home) / "hsrl_jax" / "compiled" / name


def keep() -> None:
  """Has jax keep what it compiles from here on, unless it already does.

  Where the folder cannot be written, nothing is kept, and nothing else changes.
  """
  # A file that cannot be read or written costs a compilation, no more.
  warnings.filterwarnings(
    "ignore", "Error (reading|writing) persistent compilation cache"
  )
  if os.environ.get(ELSEWHERE):
    return
  try:
    place = folder()
    place.mkdir(parents=True, exist_ok=True)
    trim(place)
  except (OSError, RuntimeError):  # Without a home, say.
    return
  jax.config.update("jax_compilation_cache_dir", str(place))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def trim(place: pathlib.Path, most: int = MAX_BYTES) -> None:
  """Removes the oldest programs of a folder that holds more than `most` bytes.

  Raises:
    OSError: one cannot be removed.
  """
  kept = [(x.stat(), x) for x in place.glob("*-cache")]
  size = sum(stat.st_size for stat, _ in kept)
  for stat, path in sorted(kept, key=lambda x: x[0].st_mtime):
    if size <= most:
      return
    path.unlink(missing_ok=True)
    size -= stat.st_size
