"""Mode `watch`: a page on which one watches the simulated users of a run.

An address names a user, a policy and how many slates are shown. Each request
plays the session again from its start, so that nothing is kept. Users and luck
are those of the evaluation.
"""

import collections
import dataclasses
import functools
import http.server
import os
import sys
from typing import Any, NamedTuple
from urllib import parse

import jax
import numpy as np

from hsrl_jax.data import source
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.host import stop
from hsrl_jax.report import journeys, page
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.leave import ItemRule, Patience
from hsrl_jax.sim.sardine import Sardine
from hsrl_jax.sim.user_simulator import EnvState, StepResult
from hsrl_jax.stages.run import Run
from hsrl_jax.types import Array

_RECENT, _GROUPS = 5, 8  # Slates and rows of the table of categories.
_HISTORY = 20  # Titles of the history that are shown.


class Slate(NamedTuple):
  """A slate, the chance of each like, whether an item drives away, [K] each."""

  items: Array
  chances: Array
  leaves: Array
  result: StepResult


@functools.partial(jax.jit, static_argnames=("act", "env"))
def _step(act, env, params, users, state, key) -> tuple[EnvState, Slate]:
  act_key, step_key = jax.random.split(key)  # As `simulate` has it.
  items = simulate.chosen(act, params, state, act_key)
  chances, leaves = env.chances(state, items, users), items < 0
  if isinstance(env, Sardine):  # There the place counts, too.
    chances = chances * env.attention()
  if isinstance(env.leave, ItemRule):
    known = getattr(users, env.leave.knows)
    leaves = env.leave.triggers(state.leave, items, known)
  state, result = env.step(step_key, state, items, users)
  return state, Slate(items, chances, leaves, result)


class Users:
  """Users of a run's evaluation, by name, and policies, that of the run first.

  `html` is the page. A run whose policy is missing raises InputError.
  """

  def __init__(self, run: Run):
    """Binds a run."""
    run.require("policy")
    self._run, self._env, self._users = run, run.judge, run.judged_users()
    user = run.dataset.splits[run.config.evaluate.split].user_id
    self._rows = simulate.sample(user, len(np.unique(user)))
    names = None
    if not run.own_users:
      names = source.user_names(run.folder("data") / "data")
    self.names = [names[x - 1] if names else str(x) for x in user[self._rows]]
    active = run.catalogue.index.active
    knows, size = (self._users, active), self._env.slate_size
    self.policies = {
      run.config.agent: run.policies[0],
      "greedy_oracle": (bounds.greedy_oracle(self._env), knows),
      "random": (bounds.random_policy(size), active),
    }
    if journeys.has_any(self._env):
      self.policies[bounds.FARSIGHTED] = bounds.farsighted(self._env), knows
    genres = run.dataset.items.genres
    self._genres = [sorted({*x.split("|")} - {""}) for x in genres]
    self._topics = (run.topics or topics_lib.of_categories(genres)).names

  @functools.cached_property
  def _tokens(self) -> np.ndarray:
    """Of all items on the host, [L, N + 1]."""
    return np.stack([np.asarray(x) for x in self._run.catalogue.index.tokens])

  def play(
    self, session: int, policy: str, most: int
  ) -> tuple[list[EnvState], list[Slate]]:
    """Returns the states before and after each of at most `most` slates."""
    (act, params), key = self.policies[policy], jax.random.key(simulate.SEED)
    given, slates = (self._env, self._users), []
    states = [simulate.start(*given, key, session, self._rows[session])]
    key = jax.random.fold_in(key, session)
    while len(slates) < most and not (slates and _is_over(slates[-1])):
      step_key = jax.random.fold_in(key, len(slates))
      made = _step(act, self._env, params, self._users, states[-1], step_key)
      state, slate = jax.device_get(made)
      states.append(state)
      slates.append(slate)
    return states, slates

  def bores(self, state: EnvState) -> list[str] | None:
    """Topics that bore the user now; None where none ever does."""
    boredom = self._env.dynamics
    if not isinstance(boredom, TopicBoredom):
      return None
    by_topic = dataclasses.replace(boredom, everything=False)
    found = np.flatnonzero(by_topic.bores(state.dynamics, state.steps)[1:])
    return [self._topics[x] if self._topics else f"topic {x}" for x in found]

  def html(self, query: str, nonce: str) -> str:
    """The page of an address; InputError where its query is wrong."""
    asked = {"user": self.names[0], "policy": next(iter(self.policies))}
    asked["slates"] = "1"
    asked |= {name: x.strip() for name, x in parse.parse_qsl(query)}
    most = self._env.max_steps + 1
    where = f"a user of the split {self._run.config.evaluate.split}"
    for name, known, expected in (
      ("user", self.names, where),
      ("policy", list(self.policies), "one of the page"),
      ("slates", [str(x) for x in range(most)], f"at most {most - 1}"),
    ):
      if asked[name] not in known:
        raise InputError(
          f"{name} is {asked[name][:40]!r}; expected {expected}, such as "
          f"{known[0]}"
        )
    session, policy = self.names.index(asked["user"]), asked["policy"]
    states, slates = self.play(session, policy, int(asked["slates"]))
    counts = collections.defaultdict(lambda: [0] * len(slates[-_RECENT:]))
    for place, slate in enumerate(slates[-_RECENT:]):
      for name in (x for item in slate.items for x in self._genres[item]):
        counts[name][place] += 1
    last, tires = states[-1], isinstance(self._env.leave, Patience)
    return page.render(
      "watch.html",
      title="Watch a simulated user",
      nonce=nonce,
      run=self._run,
      asked=asked,
      policies=list(self.policies),
      link=lambda **fields: "/?" + parse.urlencode(asked | fields),
      another=self.names[(session + 1) % len(self.names)],
      most=most - 1,
      liked=self._titles(_newest(last)),
      shown=[self._shown(*x) for x in zip(states, slates, strict=False)],
      total=float(sum(x.result.reward for x in slates)),
      patience=float(last.leave) if tires else None,
      over=bool(slates) and _is_over(slates[-1]),
      left=bool(slates) and bool(slates[-1].result.terminated),
      bored=self.bores(states[-2]) if slates else None,
      bores=self.bores(last),
      everything=getattr(self._env.dynamics, "everything", False),
      repeats=sorted(counts.items(), key=lambda x: -sum(x[1]))[:_GROUPS],
    )

  def _titles(self, items: list[int]) -> list[str]:
    known = self._run.dataset.items
    return [known.titles[x] or known.ids[x] for x in items[:_HISTORY]]

  def _shown(self, state: EnvState, slate: Slate) -> list[dict[str, Any]]:
    """The items of a slate, each with the like whose first tokens it has."""
    newest, shown, tokens = _newest(state), [], self._tokens
    for *own, liked in zip(*slate[:3], slate.result.response, strict=True):
      item, chance, leaves = own
      shared = (tokens[:, newest] == tokens[:, [item]]).cumprod(0).sum(0)
      most = int(shared.max(initial=0))
      shown.append(
        {
          "title": self._titles([item])[0],
          "chance": float(chance),
          "answer": (
            "liked" if liked else "refused",
            *["leaves"] * int(leaves),
          ),
          "sid": tokens[:, item].tolist(),
          "shared": most,
          "like": self._titles([newest[shared.argmax()]])[0] if most else "",
          "genres": self._genres[item],
        }
      )
    return [x for x, item in zip(shown, slate.items, strict=True) if item]


def _is_over(slate: Slate) -> bool:
  return bool(slate.result.terminated | slate.result.truncated)


def _newest(state: EnvState) -> list[int]:
  """The items of a history, the newest first."""
  history = np.asarray(state.observation.history)[::-1]
  return history[history > 0].tolist()


class _Handler(http.server.BaseHTTPRequestHandler):
  timeout = 30.0  # Seconds: browsers connect before they ask.
  users: Users

  def do_GET(self) -> None:
    path, _, query = self.path.partition("?")
    nonce, status, kind = os.urandom(16).hex(), 200, "html"
    try:
      if path != "/":
        raise InputError("nothing is here; expected /")
      text = self.users.html(query, nonce)
    except InputError as error:
      text, status, kind = str(error), 422 if path == "/" else 404, "plain"
    self.send_response(status)
    self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
    self.send_header("Cache-Control", "no-store")
    self.send_header("Referrer-Policy", "no-referrer")
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header(
      "Content-Security-Policy",
      f"default-src 'none'; style-src 'nonce-{nonce}'; img-src data:; "
      "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    )
    self.end_headers()
    self.wfile.write(text.encode())

  def log_message(self, *given: Any) -> None:
    """Says nothing."""


class _HttpServer(http.server.ThreadingHTTPServer):
  def handle_error(self, *request: Any) -> None:
    """Says nothing of a browser that went away."""
    if not isinstance(sys.exception(), ConnectionError | TimeoutError):
      super().handle_error(*request)


def listen(run: Run, port: int) -> http.server.ThreadingHTTPServer:
  """Returns a server of the page on this machine; 0 is any free port.

  Raises:
    InputError: the port is taken, or the run's stage `policy` is missing.
  """
  handler = type("Handler", (_Handler,), {"users": Users(run)})
  try:
    return _HttpServer(("127.0.0.1", port), handler)
  except OSError as error:
    raise InputError(
      f"port {port} cannot be listened at ({error}); expected a free one"
    ) from error


def serve(run: Run, port: int) -> None:
  """Serves the page until a signal ends it; see `listen`."""
  with listen(run, port) as server:
    print(
      f"watch: http://127.0.0.1:{server.server_port}/ until Ctrl-C", flush=True
    )
    try:
      server.serve_forever()
    except (KeyboardInterrupt, stop.Terminated):
      print("watch: ended", flush=True)
