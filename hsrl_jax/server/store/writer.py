"""One thread that writes: all that waits goes into one durable commit.

A commit takes a write to the disk, whatever it holds. So while one commit runs
the next batch gathers, and there is no timer to set.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hsrl_jax.errors import InputError
from hsrl_jax.server.store import records
from hsrl_jax.server.store.database import Store
from hsrl_jax.server.store.engines import Away, StoreError, Undecided
from hsrl_jax.server.store.records import (
  Feedback,
  Outcome,
  Slate,
  UnknownRequest,
)

_Work = Slate | Feedback | None  # None: only whether it can be kept.


class Writer:
  """Writes to a store for the coroutines of one event loop."""

  def __init__(
    self,
    store: Store,
    most: int = 10_000,
    on_batch: Callable[[int], object] = lambda size: None,
    seconds: float | None = None,
  ):
    """Binds a store, which nobody else may use meanwhile.

    Args:
      store: that is written to.
      most: records that wait; more are refused.
      on_batch: called in the thread with the size of each batch.
      seconds: that a record waits for its outcome; None: as long as it takes.
    """
    self._store, self._most, self._on_batch = store, most, on_batch
    self._seconds = seconds
    self._waiting: dict[asyncio.Future, _Work] = {}
    self._changed = threading.Condition()
    self._stopping = False
    self._thread: threading.Thread | None = None

  def start(self) -> None:
    """Starts the thread; call it in the event loop."""
    self._loop = asyncio.get_running_loop()
    self._thread = threading.Thread(target=self._run, name="store")
    self._thread.start()

  def stop(self) -> None:
    """Writes what waits, and ends the thread."""
    with self._changed:
      self._stopping = True
      self._changed.notify()
    if self._thread is not None:
      self._thread.join()

  async def record(self, slate: Slate) -> None:
    """Returns when a slate is kept, durably.

    Raises:
      StoreError: it is not kept.
      Undecided: it may be kept.
    """
    await self._put(slate)

  async def answer(self, feedback: Feedback) -> Outcome:
    """Returns when a feedback is kept, durably.

    Raises:
      StoreError: nothing of it is kept.
      Undecided: all of it is kept, or nothing.
      UnknownRequest: no slate has its request id.
      InputError: it does not go with the slate.
    """
    return await self._put(feedback)

  async def check(self) -> None:
    """Raises StoreError unless the store keeps something now."""
    await self._put(None)

  async def _put(self, work: _Work) -> Any:
    future = self._loop.create_future()
    with self._changed:
      if len(self._waiting) >= self._most or self._stopping:
        raise StoreError("too many records wait for the store")
      self._waiting[future] = work
      self._changed.notify()
    done, _ = await asyncio.wait([future], timeout=self._seconds)
    if done:
      return future.result()
    future.cancel()
    with self._changed:
      if future in self._waiting:  # It is never written.
        del self._waiting[future]
        raise StoreError("the store is too slow")
    raise Undecided("the store is too slow")

  def _run(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._waiting or self._stopping)
        if not self._waiting:
          return
      futures: list[asyncio.Future] = []

      def take(futures=futures) -> list[_Work]:
        with self._changed:
          batch, self._waiting = self._waiting, {}
        futures.extend(batch)
        return [*batch.values()]

      results = _apply(self._store, take)
      self._on_batch(len(futures))
      self._loop.call_soon_threadsafe(_settle, futures, results)


def _settle(futures: list[asyncio.Future], results: list[Any]) -> None:
  for future, result in zip(futures, results, strict=True):
    if future.done():
      continue
    if isinstance(result, Exception):
      future.set_exception(result)
    else:
      future.set_result(result)


def apply(store: Store, batch: Sequence[_Work]) -> list[Any]:
  """Writes slates, then feedback, in one transaction.

  What one record makes impossible is tried without it: then the halves of the
  batch have transactions of their own, and so on.

  Returns:
    An Outcome for each feedback, None for anything else, or its error.
  """
  return _apply(store, lambda: batch)


def _apply(store: Store, take: Callable[[], Sequence[_Work]]) -> list[Any]:
  """See `apply`; `take` is called once the transaction has begun."""
  batch = None

  def write() -> list[Any]:
    nonlocal batch
    batch = take() if batch is None else batch
    return _write(store, batch)

  try:
    return store.transact(write)
  except Exception as error:  # noqa: BLE001 (the next batch is tried anew)
    if batch is None:
      batch = take()
    if len(batch) > 1 and not isinstance(error, Away | Undecided):
      half = len(batch) // 2
      return apply(store, batch[:half]) + apply(store, batch[half:])
    failed = error if isinstance(error, StoreError) else StoreError(repr(error))
    return [failed] * len(batch)


def _write(store: Store, batch: Sequence[_Work]) -> list[Any]:
  """See `apply`; within a transaction."""
  slates = [x for x in batch if isinstance(x, Slate)]
  feedback = [x for x in batch if isinstance(x, Feedback)]
  if slates:
    store.insert(_in_sessions(store, slates))
  outcomes = iter(_answered(store, feedback) if feedback else ())
  if len(slates) + len(feedback) < len(batch):
    store.touch()
  return [next(outcomes) if isinstance(x, Feedback) else None for x in batch]


def _in_sessions(store: Store, slates: list[Slate]) -> list[Sequence]:
  """Rows to insert, with steps that are distinct and go on with time."""
  keys = list(
    dict.fromkeys(
      (x.user_id, x.session_id) for x in slates if x.session_id is not None
    )
  )
  rows = store.sessions(keys) if keys else ()
  last = {(user, session): rest for user, session, *rest in rows}
  inserted = []
  for slate in slates:
    part = 0
    if slate.session_id is not None:
      key = (slate.user_id, slate.session_id)
      part, step, time, ended = last[key]
      if ended:
        part, step = part + 1, -1
      slate = slate._replace(
        step=max(slate.step, step + 1), time=max(slate.time, time)
      )
      last[key] = (part, slate.step, slate.time, 0)
    inserted.append([*slate, part])
  return inserted


def _answered(store: Store, batch: list[Feedback]) -> list[Any]:
  """Merges feedback into its slates, one after another."""
  found = store.find(list({x.request_id for x in batch}))
  kept = {name: records.kept_of(*values) for name, *values in found}
  outcomes, changed = [], set()
  for feedback in batch:
    name = feedback.request_id
    try:
      if name not in kept:
        raise UnknownRequest(name)
      kept[name], outcome = records.merge(kept[name], feedback)
    except (UnknownRequest, InputError) as error:
      outcomes.append(error)
      continue
    outcomes.append(outcome)
    if outcome.accepted:
      changed.add(name)
  if changed:
    store.update([_row(name, kept[name]) for name in changed])
  return outcomes


def _row(name: str, kept: records.Kept) -> Sequence:
  end = None if kept.terminated is None else int(kept.terminated)
  text = json.dumps(kept.responses)
  unanswered = kept.responses.count(None)
  return [name, text, unanswered, kept.reward, end, kept.earned]
