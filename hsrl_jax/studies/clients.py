"""Users of a world as clients of the server, over HTTP."""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.host import watch
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import PRNGKey

CONNECTIONS = 4
_TOGETHER = 256  # Sessions that go on at the same time.
BATCH = _TOGETHER // CONNECTIONS  # Requests in a list.
_BODY = 2**24  # Bytes of a list of requests, at most.
_START = 120.0  # Seconds until the server must serve.
_SERVES = re.compile(r"serving at http://([^:]+):(\d+)")


class ServerError(InputError):
  """The server ended, or refused what it should take."""


class World(NamedTuple):
  """A world whose users are clients."""

  env: UserSimulator  # How they respond.
  users: EnvParams  # With the pool.
  names: Sequence[str]  # Of the users of the pool.
  item_ids: Sequence[str]  # The items' ids in the source; "" for padding.


@contextlib.contextmanager
def server(
  export: pathlib.Path, store: pathlib.Path, log: pathlib.Path
) -> Iterator[tuple[str, int]]:
  """The example server in a process of its own; yields host and port.

  Raises:
    ServerError: it did not start.
  """
  command = [sys.executable, "-m", "hsrl_jax.server", "--port=0"]
  if shutil.which("setpriv"):  # It ends with this process, however that ends.
    command = ["setpriv", "--pdeathsig", "TERM", *command]
  with log.open("ab") as out:
    begin = out.tell()
    process = subprocess.Popen(
      [
        *command,
        *(f"--folder={export}", f"--store={store}"),
        *("--timeout=60", f"--max_body={_BODY}"),
      ],
      stdout=out,
      stderr=subprocess.STDOUT,
    )
  try:
    deadline = time.monotonic() + _START
    while not (found := _SERVES.search(log.read_text()[begin:])):
      if process.poll() is not None or time.monotonic() > deadline:
        said = log.read_text()[begin:].strip().splitlines()[-1:]
        raise ServerError(
          f"the server did not start ({' '.join(said)}); expected the extra "
          f"`serve` and a free port: see {log}"
        )
      time.sleep(0.1)
    yield found[1], int(found[2])
  finally:
    process.terminate()
    process.wait()


def wait(where: tuple[str, int], version: int) -> None:
  """Waits until a server has taken over a version of its export.

  Raises:
    ServerError: it did not.
  """
  deadline, served = time.monotonic() + _START, None
  while time.monotonic() < deadline:
    with urllib.request.urlopen(f"http://{where[0]}:{where[1]}/health") as x:
      served = json.load(x)["versions"]
    if set(served.values()) == {str(version)}:
      return
    time.sleep(0.1)
  raise ServerError(f"version {version} is not served, but {served}")


def play(
  where: tuple[str, int],
  world: World,
  rows: np.ndarray,
  *,
  temperature: float,
  seed: int,
  label: str,
) -> np.ndarray:
  """Whole sessions of users, who say what came of each slate; [E] rewards.

  Args:
    where: host and port of the server.
    world: of the users.
    rows: int [E], of the pool: who begins a session.
    temperature: that slates are drawn with.
    seed: of the responses.
    label: of the sessions' names, which no other call may have.

  Raises:
    ServerError: an answer was none that it should be.
  """
  rewards = []
  with watch.bar(len(rows), label, "session") as bar:
    for first in range(0, len(rows), _TOGETHER):
      own = np.arange(first, min(first + _TOGETHER, len(rows)))
      with _connected(where) as each:
        key = jax.random.fold_in(jax.random.key(seed), first)
        rewards.append(
          _sessions(each, world, rows[own], own, temperature, key, label)
        )
      bar.update(len(own))
  return np.concatenate(rewards)


@functools.partial(jax.jit, static_argnames="env")
def _step(env, keys, state, slates, users):
  """A step of each session; compiled once for all that are as many."""
  return jax.vmap(env.step, (0, 0, 0, None))(keys, state, slates, users)


def _sessions(
  each: Callable[[str, list[dict]], list[dict]],
  world: World,
  rows: np.ndarray,
  numbers: np.ndarray,
  temperature: float,
  key: PRNGKey,
  label: str,
) -> np.ndarray:
  """Sessions side by side, [E] total rewards."""
  env, users = world.env, world.users
  row_of = {name: i for i, name in enumerate(world.item_ids) if i}
  state = jax.vmap(lambda row: env.start(row, users))(rows)
  total = np.zeros(len(rows))
  alive = np.ones(len(rows), bool)
  earlier: list[list[dict[str, Any]]] = [[] for _ in rows]
  profiles = np.asarray(state.observation.profile).tolist()
  for time_step in range(env.max_steps):
    history = np.asarray(state.observation.history)
    seen = np.asarray(state.seen)
    going = np.flatnonzero(alive)
    asked = [
      {
        "user_id": world.names[rows[i]],
        "session_id": f"{label}/{numbers[i]}",
        "history": [world.item_ids[x] for x in history[i] if x],
        "profile": profiles[i],
        "seen": [world.item_ids[x] for x in seen[i] if x],
        "earlier": earlier[i],
        "temperature": temperature,
      }
      for i in going
    ]
    answers = each("/recommend", asked)
    slates = np.zeros((len(rows), env.slate_size), np.int32)
    for i, answer in zip(going, answers, strict=True):
      items = [row_of[x] for x in answer["item_ids"]]
      slates[i, : len(items)] = items
    keys = jax.random.split(jax.random.fold_in(key, time_step), len(rows))
    state, result = _step(env, keys, state, slates, users)
    result = jax.device_get(result)
    total += np.where(alive, result.reward, 0.0)
    told = []
    for i, answer in zip(going, answers, strict=True):
      shown = len(answer["item_ids"])
      responses = result.response[i, :shown].astype(int).tolist()
      earlier[i].append({"items": answer["item_ids"], "responses": responses})
      told.append(
        {
          "request_id": answer["request_id"],
          "responses": responses,
          "reward": float(result.reward[i]),
          "terminated": bool(result.terminated[i]),
        }
      )
    each("/feedback", told)
    alive &= ~(result.terminated | result.truncated)
    if not alive.any():
      break
  return total


@contextlib.contextmanager
def _connected(where: tuple[str, int]):
  """Yields `_each` by connections that are kept, with a thread for each."""
  connections = [http.client.HTTPConnection(*where) for _ in range(CONNECTIONS)]
  try:
    with concurrent.futures.ThreadPoolExecutor(CONNECTIONS) as pool:
      yield functools.partial(_each, pool, connections)
  finally:
    for connection in connections:
      connection.close()


def _each(
  pool: concurrent.futures.Executor,
  connections: list[http.client.HTTPConnection],
  path: str,
  bodies: list[dict],
) -> list[dict]:
  """The answers to as many requests, in their order.

  Raises:
    ServerError: a request was refused.
  """
  size = max(1, -(-len(bodies) // len(connections)))
  lists = [bodies[i : i + size] for i in range(0, len(bodies), size)]
  parts = pool.map(functools.partial(_post, path), connections, lists)
  answers = [answer for part in parts for answer in part]
  for answer in answers:
    if "error" in answer:
      raise ServerError(f"{path} was refused: {answer['error'][:300]}")
  return answers


def _post(path: str, connection, value: list[dict]) -> list[dict]:
  """A list of requests and its answer.

  Raises:
    ServerError: the answer is no 200.
  """
  import orjson  # The extra `serve`, which the server that answers has.

  connection.request("POST", path, orjson.dumps(value))
  answer = connection.getresponse()
  content = answer.read()
  if answer.status != 200:
    raise ServerError(f"{path} was refused: {content.decode()[:300]}")
  return orjson.loads(content)
