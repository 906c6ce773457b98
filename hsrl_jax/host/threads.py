"""Work in threads: XLA compiles and computes without Python's lock."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


def side_by_side(
  work: Callable[[_Given], _Made], items: Iterable[_Given]
) -> Iterator[_Made]:
  """Yields the work of each item, in their order; as many at once as cores.

  Functions that are compiled at their first call are compiled side by side, if
  they are of different items. After an error, or where the caller leaves, what
  has not begun is left.
  """
  with futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    yield from pool.map(work, items)
