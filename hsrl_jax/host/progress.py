"""Progress bars with rate and time left."""

import sys
import time

import tqdm

from hsrl_jax.engine import processes


class _Bar(tqdm.tqdm):
  """By a clock that never jumps, so that rates and times are true."""

  # Read-only: tqdm would set the wall clock.
  _time = property(lambda self: time.monotonic, lambda self, clock: None)


def bar(
  total: int, title: str, unit: str, done: int = 0, delay: float = 0.0
) -> tqdm.tqdm:
  """A bar on standard error; where that is no terminal, a line now and then.

  Args:
    total: units to do.
    title: what is done.
    unit: its name.
    done: units done before.
    delay: seconds before the bar shows: a short wait needs none.
  """
  return _Bar(
    total=total,
    desc=title,
    unit=unit,
    initial=done,
    mininterval=0.2 if sys.stderr.isatty() else 15.0,
    miniters=1,
    dynamic_ncols=True,
    smoothing=0.1,
    delay=delay,
    disable=not processes.is_first(),
  )
