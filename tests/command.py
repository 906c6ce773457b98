"""The command, run inside a test."""

import contextlib
import io

from absl import flags

from hsrl_jax import launch


def run(*arguments: str) -> tuple[int, str, str]:
  """Exit status, standard output and standard error."""
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  out, err = io.StringIO(), io.StringIO()
  status = 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      launch.run_command(["hsrl", *arguments])
    except SystemExit as stop:
      status = stop.code
  flags.FLAGS.mark_as_parsed()
  return status, out.getvalue(), err.getvalue()
