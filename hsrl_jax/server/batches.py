"""The state of the server: recommenders, requests that wait, and a store."""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import orjson

from hsrl_jax.errors import InputError
from hsrl_jax.server import arms as arms_lib
from hsrl_jax.server.arms import Arms, Served
from hsrl_jax.server.bodies import Ask
from hsrl_jax.server.measures import Measures
from hsrl_jax.server.settings import Settings
from hsrl_jax.server.store import (
  Feedback,
  Outcome,
  Slate,
  StoreError,
  Writer,
  open_store,
  records,
)
from hsrl_jax.server.store.database import Store
from hsrl_jax.serving import versions
from hsrl_jax.serving.recommender import Query, Recommendations, Recommender

_REWARDS = 10.0  # Seconds for which sums over the store are good.
_OLD = 600.0  # Seconds between two looks for slates that are too old.
_PIECE, _PAUSE = 500, 0.1  # Slates that are deleted together, then a pause.

_log = logging.getLogger(__name__)


class Full(Exception):
  """Too many requests wait."""


class Server:
  """The application's state: recommenders, and requests that wait for them.

  Decoding, loading and the store leave the event loop; nothing else needs a
  lock.
  """

  def __init__(
    self,
    served: Recommender | Arms,
    settings: Settings,
    store: Store | None = None,
    token: str = "",
  ):
    """Binds what is loaded; `running` starts the work.

    Args:
      served: to all users, or to shares of them.
      settings: of the server.
      store: for what is shown; it is closed at the end.
      token: of the administrator; "": there is none.
    """
    self.settings, self.token = settings, token
    if not isinstance(served, Arms):
      stable, _ = arms_lib.wanted(settings)
      served = Arms(arms_lib.serve(served, stable.name, settings))
    self.arms = served
    self.measures = Measures()
    self.measures.show(self.recommender)
    self.store = store
    self._writer: Writer | None = None
    if store is not None:
      self._writer = Writer(
        store,
        8 * settings.max_queue,
        self.measures.commit.observe,
        settings.timeout,
      )
    self._reader: Store | None = None
    self._deleter: Store | None = None
    self._summed = -_REWARDS
    self._store_fails = False
    self._waiting: list[tuple[Served, Query, asyncio.Future]] = []
    self._arrived = asyncio.Event()
    self._look = asyncio.Event()

  @property
  def recommender(self) -> Recommender:
    """Of the stable arm."""
    return self.arms.stable.recommender

  @recommender.setter
  def recommender(self, recommender: Recommender) -> None:
    stable = self.arms.stable._replace(recommender=recommender)
    self.arms = self.arms._replace(stable=stable)

  @contextlib.asynccontextmanager
  async def running(self, app: Any) -> AsyncIterator[None]:
    """The lifespan of the application."""
    del app
    threads = [concurrent.futures.ThreadPoolExecutor(1) for _ in range(3)]
    if self._writer is not None:
      self._writer.start()
    tasks = [
      asyncio.create_task(work(thread))
      for work, thread in zip(
        (self._decode, self._watch, self._forget), threads, strict=True
      )
    ]
    yield
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for thread in threads:
      thread.shutdown()
    loop = asyncio.get_running_loop()
    if self._writer is not None:
      await loop.run_in_executor(None, self._writer.stop)
    for store in (self.store, self._reader, self._deleter):
      if store is not None:
        store.close()

  def served_to(self, user: str) -> Served:
    """Returns what a user gets."""
    canary = self.arms.canary
    if canary is not None and (
      arms_lib.share_of(user, canary.version) < self.settings.canary
    ):
      return canary
    return self.arms.stable

  async def recommend(self, query: Query, served: Served | None = None) -> Any:
    """Returns one user's recommendations.

    Args:
      query: a checked request.
      served: whose request it is; None: of the stable arm.

    Raises:
      Full: too many requests wait.
      TimeoutError: no answer within the time-out.
      Exception: the decoder failed.
    """
    if len(self._waiting) >= self.settings.max_queue:
      raise Full
    future = asyncio.get_running_loop().create_future()
    self._waiting.append((served or self.arms.stable, query, future))
    self._arrived.set()
    async with asyncio.timeout(self.settings.timeout):
      return await future

  async def _decode(self, thread: concurrent.futures.Executor) -> None:
    """Decodes the waiting requests, batch after batch."""
    while True:
      self._arrived.clear()
      if not self._waiting:
        await self._arrived.wait()
      if len(self._waiting) < self.recommender.batch_sizes[-1]:
        await asyncio.sleep(self.settings.linger)
      most = self.recommender.batch_sizes[-1]
      batch = [x for x in self._waiting[:most] if not x[-1].done()]
      del self._waiting[:most]
      self.measures.queue.set(len(self._waiting))
      # A request is decoded by what checked it, though another may have taken
      # over since.
      groups: dict[int, list] = {}
      for served, query, future in batch:
        group = groups.setdefault(id(served), [served])
        group.append((query, future))
      for served, *own in groups.values():
        await self._decode_batch(thread, served, own)

  async def _decode_batch(
    self,
    thread: concurrent.futures.Executor,
    served: Served,
    batch: list[tuple[Query, asyncio.Future]],
  ) -> None:
    self.measures.batch.observe(len(batch))
    queries = [query for query, _ in batch]
    loop = asyncio.get_running_loop()
    try:
      slates = await loop.run_in_executor(
        thread, served.recommender.decode, queries
      )
    except Exception as error:  # This batch fails; the next is decoded.
      for _, future in batch:
        if not future.done():
          future.set_exception(error)
      return
    for row, (_, future) in enumerate(batch):
      if not future.done():
        future.set_result(Recommendations(*(x[row] for x in slates)))

  async def _watch(self, thread: concurrent.futures.Executor) -> None:
    """Loads the folder whenever it changes, and serves it."""
    loop, settings = asyncio.get_running_loop(), self.settings
    seen = None
    while True:
      now = arms_lib.signature(settings)
      if now != seen:
        seen = now
        try:
          arms = await loop.run_in_executor(
            thread, arms_lib.refreshed, self.arms, settings
          )
          if self.store is not None:  # Of the profiles that are served.
            profile = self.recommender.manifest.sizes["profile"]
            arms_lib.check_profiles(arms, profile)
          self._take(arms)
        except Exception as error:
          # The old arms go on; the next change of the folder is tried.
          self.measures.swap_errors.inc()
          _log.warning("not taken over: %s", error)
      self._look.clear()
      with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.watch):
          await self._look.wait()

  async def _forget(self, thread: concurrent.futures.Executor) -> None:
    """Deletes what is older than it may be, piece by piece."""
    loop, settings = asyncio.get_running_loop(), self.settings

    def piece() -> tuple[int, int]:
      if self._deleter is None:  # The writer has a connection of its own.
        self._deleter = open_store(settings.store)
      before = time.time() - 86_400 * settings.retention
      return self._deleter.forget(before, _PIECE)

    while settings.retention and self.store is not None:
      deleted = unread = 0
      try:
        deleted, unread = await loop.run_in_executor(thread, piece)
      except (StoreError, InputError) as error:
        _log.warning("old slates stay: %s", error)
      if unread:
        _log.warning(
          "deleted %d old slates with feedback that was in no collection yet; "
          "expected to collect more often, or a longer retention",
          unread,
        )
      await asyncio.sleep(_PAUSE if deleted == _PIECE else _OLD)

  def _take(self, arms: Arms) -> None:
    """Serves arms, where they are not what is served already."""
    before, new = (
      [(x.arm, x.version, x.recommender.manifest) for x in both.all()]
      for both in (self.arms, arms)
    )
    if new == before:
      return
    self.arms = arms
    self.measures.swaps.inc()
    self.measures.show(self.recommender)
    for arm, version, manifest in new:
      policy, catalogue = (
        manifest.files[role].sha256[:12] for role in ("policy", "catalogue")
      )
      _log.info(
        "takes over: %s is version %s, policy %s, catalogue %s",
        *(arm, version, policy, catalogue),
      )

  async def record(
    self, ask: Ask, served: Served, slate: Recommendations, items: list[str]
  ) -> str | None:
    """Keeps a slate that is about to be shown.

    Args:
      ask: the request.
      served: what made the slate.
      slate: of one user; the valid items come first.
      items: their ids in the source.

    Returns:
      The request id; None where nothing is kept.
    """
    if self._writer is None or not items:
      return None
    names, count = served.recommender.catalogue.item_ids, len(items)
    longest = served.recommender.manifest.sizes["history"]
    history = (ask.history or ask.arguments["history"])[-longest:]
    if ask.history is None:
      history = [names.of(item) for item in history]
    # Logs take no propensity of 0, to which a small one is rounded.
    chances = np.clip(slate.propensity[:count], np.finfo(np.float32).tiny, 1)
    now = round(time.time(), 3)
    request_id = records.first_id(now) + os.urandom(10).hex()

    def text(value) -> str:
      return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()

    record = Slate(
      request_id,
      ask.user_id or request_id,
      ask.session_id,
      ask.step,
      now,
      count,
      text(items),
      text(chances),
      text(history),
      text(ask.arguments.get("profile", [])),
      served.version,
      served.arm,
    )
    try:
      await self._writer.record(record)
    except StoreError as error:
      # Users go on to see slates, of which nothing will be learned.
      self._store_failed(error)
      return None
    self._store_fails = False
    self.measures.shown.labels(served.arm).inc()
    return request_id

  async def answer(self, feedback: Feedback) -> Outcome:
    """Keeps feedback, durably.

    Raises:
      StoreError: it is not kept.
      Undecided: it may be kept.
      UnknownRequest: no slate has its request id.
      InputError: it does not go with the slate.
    """
    try:
      outcome = await self._writer.answer(feedback)
    except StoreError as error:
      self._store_failed(error)
      raise
    self._store_fails = False
    for name in ("accepted", "known", "ignored"):
      self.measures.feedback.labels(name).inc(getattr(outcome, name))
    return outcome

  def _store_failed(self, error: Exception) -> None:
    """Counts a failure; the log has the first of many."""
    self.measures.store_errors.inc()
    if not self._store_fails:
      _log.warning("not kept: %s", error)
    self._store_fails = True

  async def check(self) -> None:
    """Asks for what clients ask for: slates of each arm, and that one is kept.

    Raises:
      Exception: clients get none.
    """
    for served in self.arms.all():
      slates = [
        await self.recommend(query, served)
        for query in served.recommender.probes()
      ]
      slates = Recommendations(*map(np.stack, zip(*slates, strict=True)))
      served.recommender.check(slates)
    if self._writer is not None:
      await self._writer.check()

  async def sum_rewards(self) -> None:
    """Publishes what the arms earn, from the store."""
    if self.store is None or time.monotonic() < self._summed + _REWARDS:
      return
    self._summed = time.monotonic()
    arms = [(served.arm, served.version) for served in self.arms.all()]

    def read():
      if self._reader is None:  # The writer has a connection of its own.
        self._reader = open_store(self.settings.store)
      return [(*arm, self._reader.earned(*arm)) for arm in arms]

    try:
      loop = asyncio.get_running_loop()
      self.measures.show_rewards(await loop.run_in_executor(None, read))
    except (StoreError, InputError) as error:
      self.measures.store_errors.inc()
      _log.warning("rewards are not known: %s", error)

  def roll_back(self, promote: bool = False) -> int:
    """Goes back to the version before, or ends the canary by its version.

    Raises:
      InputError: there is no such version.
    """
    change = versions.promote if promote else versions.rollback
    number = change(self.settings.folder)
    self._look.set()
    return number
