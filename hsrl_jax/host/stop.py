"""Stopping when SIGTERM or Ctrl-C asks: cleanly, and in time.

A machine that is about to be taken away sends SIGTERM and waits 30 s. Training
defers a signal to the end of the step in hand, so that it can save; elsewhere
it ends what is being done at once, since all files are written whole.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

GRACE_SECONDS = 25.0
LINE = "stopped; the same command goes on from here"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
  """SIGTERM came; raised where the main thread is at the time."""


@contextlib.contextmanager
def on_sigterm() -> Iterator[None]:
  """For a command: SIGTERM raises Terminated inside.

  Python sees a signal only between two of its own steps, and one of XLA's may
  be long. So another thread counts: GRACE_SECONDS after the signal it ends the
  process, with status 0 unless an error came first, as a process that is killed
  ends: what is on the disk is whole, and what came after the last checkpoint is
  done again.
  """
  if threading.current_thread() is not threading.main_thread():
    yield  # Only the main thread may set handlers.
    return

  status = 0

  def terminate(number, frame):
    raise Terminated

  def count(read_end):
    with open(read_end, "rb", buffering=0) as signals:
      while number := signals.read(1):
        if number[0] == signal.SIGTERM:
          time.sleep(GRACE_SECONDS)
          if not status:
            print(f"\n{LINE}", file=sys.stderr, flush=True)
          os._exit(status)

  read_end, write_end = os.pipe()
  os.set_blocking(write_end, False)
  threading.Thread(target=count, args=(read_end,), daemon=True).start()
  old_end = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
  old = signal.signal(signal.SIGTERM, terminate)
  try:
    yield
  except Exception:
    status = 1
    raise
  finally:
    signal.signal(signal.SIGTERM, old)
    signal.set_wakeup_fd(old_end)
    os.close(write_end)


class Deferral:
  """Whether a signal came meanwhile; see `deferred`."""

  def __init__(self, by_all: bool):
    self._by_all = by_all
    self._number = 0

  def receive(self, number, frame) -> None:
    """The handler; a second Ctrl-C is not deferred."""
    if number == self._number == signal.SIGINT:
      raise KeyboardInterrupt
    self._number = number

  def due(self) -> bool:
    """Whether to stop after this step; asked by all at the same step."""
    if self._by_all and jax.process_count() > 1:
      asked = multihost_utils.process_allgather(np.int32(self._number))
      self._number = int(np.max(asked))
    return bool(self._number)


@contextlib.contextmanager
def deferred(by_all: bool = False) -> Iterator[Deferral]:
  """Signals wait until the end of the block, which asks whether one is due.

  Args:
    by_all: whether all processes are inside: a signal to one is one to all.
  """
  deferral = Deferral(by_all)
  if threading.current_thread() is not threading.main_thread():
    yield deferral
    return
  old = {number: signal.getsignal(number) for number in _SIGNALS}
  # Ctrl-C is ignored where a script started the command in the background:
  # training must not stop for what then ends nothing.
  old = {x: own for x, own in old.items() if own is not signal.SIG_IGN}
  for number in old:
    signal.signal(number, deferral.receive)
  try:
    yield deferral
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
  if deferral.due():
    signal.raise_signal(deferral._number)
