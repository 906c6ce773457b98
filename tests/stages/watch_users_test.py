"""The page of simulated users: its sessions, over HTTP and in a browser."""

import collections
import contextlib
import html
import http.client
import io
import itertools
import pathlib
import re
import socket
import threading
import time
import types
from unittest import mock
from urllib import parse

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.data import source
from hsrl_jax.environments import worlds
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, simulate
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.leave import BoredomRule
from hsrl_jax.stages import watch_users
from tests import browser, toy

_EVIL = '<script>alert("1")</script>&\'"'
_BOREDOM = TopicBoredom(toy.GROUPS, False, memory=10, window=2, threshold=3)


def _run(**env):
  """As much of a run as the page reads; users tire, and leave."""
  genres = [""] + [f"Kind {i % toy.GROUPS}|All" for i in range(toy.ITEMS)]
  topics = topics_lib.of_categories(genres)
  categories = topics.categories & (np.arange(toy.GROUPS + 1) > 0)
  users = toy.users()._replace(
    topics=jnp.asarray(topics.of_items), categories=jnp.asarray(categories)
  )
  names = [""] + [f"{_EVIL} {i}" for i in range(1, toy.ITEMS + 1)]
  ids = [""] + [f"id-{i}" for i in range(1, toy.ITEMS + 1)]
  features = np.asarray(toy.inputs().catalogue.features)
  catalogue = toy.inputs().catalogue
  active = catalogue.index.active
  logged = types.SimpleNamespace(user_id=np.arange(1, toy.USERS + 1))
  return types.SimpleNamespace(
    require=lambda stage: None,
    judge=toy.env(no_repeat=True)._replace(**env),
    judged_users=lambda: users,
    own_users=True,
    name=_EVIL,
    workdir=pathlib.Path("runs/toy"),
    config=types.SimpleNamespace(
      agent="hsrl", evaluate=types.SimpleNamespace(split="test")
    ),
    dataset=types.SimpleNamespace(
      splits={"test": logged},
      items=source.Items(features, ids, names, genres),
    ),
    catalogue=catalogue,
    topics=topics,
    policies=[(bounds.constant_policy(toy.SLATE), (active * 1.0, active))],
  )


_WORLD = {"leave": BoredomRule(window=6, threshold=2)}


class SessionsTest(parameterized.TestCase):
  def test_they_are_those_of_the_evaluation(self):
    run = _run(**_WORLD, dynamics=_BOREDOM)
    users = watch_users.Users(run)
    self.assertEqual(
      list(users.policies), ["hsrl", "greedy_oracle", "random", "farsighted"]
    )
    rows = simulate.sample(run.dataset.splits["test"].user_id, 8)
    self.assertEqual(users.names[:8], [str(x + 1) for x in rows])
    for name, (act, params) in users.policies.items():
      given = act, run.judge, params, run.judged_users()
      made = simulate.simulate(
        *given, jax.random.key(simulate.SEED), rows, episodes=8
      )
      for session in range(8):
        states, slates = users.play(session, name, 99)
        depth = int(made.depth[session])
        self.assertLen(slates, depth)
        self.assertLen(states, depth + 1)
        for step, slate in enumerate(slates):
          np.testing.assert_array_equal(slate.items, made.slates[session, step])
          np.testing.assert_array_equal(
            slate.result.response, made.responses[session, step]
          )
        self.assertAlmostEqual(
          sum(x.result.reward for x in slates),
          made.total_reward[session],
          places=4,
        )
        # A part is the start of the whole.
        part, _ = users.play(session, name, 2)
        for a, b in zip(*map(jax.tree.leaves, (part, states[:3])), strict=True):
          np.testing.assert_array_equal(a, b)

  def test_what_bores(self):
    run, found = _run(dynamics=_BOREDOM), 0
    users = watch_users.Users(run)
    for policy, session in itertools.product(users.policies, range(6)):
      states, slates = users.play(session, policy, 99)
      likes, until = [], {}
      for step, state in enumerate(states):
        bored = [x for x in until if until[x] >= step]
        names = [f"Kind {x - 1}" for x in bored]
        self.assertCountEqual(users.bores(state), names)
        found += len(bored)
        if step == len(slates):
          continue
        slate = slates[step]
        kinds = (slate.items - 1) % toy.GROUPS + 1
        self.assertEmpty(set(kinds[slate.result.response > 0]) & set(bored))
        np.testing.assert_array_equal(slate.chances > 0, ~np.isin(kinds, bored))
        likes += [(step, x) for x in kinds[slate.result.response > 0]]
        recent = [x for at, x in likes[-10:] if at > step - 2]
        for topic, count in collections.Counter(recent).items():
          if count >= 3 and until.get(topic, -1) <= step:
            until[topic] = step + 2
    self.assertGreater(found, 10)

  def test_what_makes_leave(self):
    run, found = _run(**_WORLD), 0
    users = watch_users.Users(run)
    for policy, session in itertools.product(users.policies, range(6)):
      _, slates = users.play(session, policy, 99)
      shown = []
      for slate in slates:
        kinds = (slate.items % toy.GROUPS).tolist()
        leaves = [shown[-6:].count(x) > 2 for x in kinds]
        self.assertEqual(slate.leaves.tolist(), leaves)
        self.assertEqual(bool(slate.result.terminated), any(leaves))
        found += any(leaves)
        shown += kinds
    self.assertGreater(found, 5)

  @parameterized.parameters("toy", "sardine")
  def test_chances_are_those_of_the_responses(self, world):
    run = _run(dynamics=_BOREDOM)
    if world == "sardine":
      run = _run()
      run.judge, users = worlds.sardine(users=toy.USERS)
      run.judged_users = lambda: users
      items = users.num_items + 1
      run.catalogue = types.SimpleNamespace(
        index=types.SimpleNamespace(active=np.arange(items) > 0)
      )
    users, chances, responses = watch_users.Users(run), [], []
    for session in range(toy.USERS):
      for slate in users.play(session, "random", 12)[1]:
        chances.append(slate.chances)
        responses.append(slate.result.response)
    chances, responses = np.stack(chances), np.stack(responses)
    deviation = np.sqrt((chances * (1 - chances)).sum(0))
    error = (responses - chances).sum(0) / deviation
    self.assertLess(np.abs(error).max(), 4)  # In each place.


class PageTest(absltest.TestCase):
  def _serve(self, **env):
    """Users of a run and the port of their page."""
    server = watch_users.listen(_run(**env), 0)
    self.enter_context(server)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    self.addCleanup(thread.join)
    self.addCleanup(server.shutdown)
    return watch_users.Users(_run(**env)), server.server_address[1]

  def _get(self, port, path="/", method="GET", **query):
    """Status, headers and text."""
    with contextlib.closing(
      http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    ) as connection:
      connection.request(method, f"{path}?{parse.urlencode(query)}")
      answer = connection.getresponse()
      return answer.status, answer.headers, answer.read().decode()

  def test_a_session_up_to_its_end(self):
    users, port = self._serve(**_WORLD)
    user, policy = users.names[3], "greedy_oracle"
    _, slates = users.play(3, policy, 99)
    self.assertTrue(slates[-1].result.terminated)
    for count, slate in enumerate(slates, 1):
      status, headers, text = self._get(
        port, user=user, policy=policy, slates=count
      )
      self.assertEqual(status, 200)
      self.assertIn(f"Slate {count} of 6", text)
      rows = re.findall(r"(<tr[^>]*><td>.*?</tr>)", text, re.S)[: toy.SLATE]
      said = [re.findall(r"<td.*?>(.*?)</td>", x, re.S) for x in rows]
      self.assertEqual(
        [html.unescape(x[0]) for x in said],
        [f"{_EVIL} {x}" for x in slate.items],
      )
      answers = [
        ("liked" if y else "refused") + (", and leaves" if z else "")
        for y, z in zip(slate.result.response, slate.leaves, strict=True)
      ]
      self.assertEqual([x[1] for x in said], answers)
      self.assertEqual(
        [x[2] for x in said], [f"{x:.0%}" for x in slate.chances]
      )
      links = [html.unescape(x) for x in re.findall('href="(/.*?)"', text)]
      nexts = {"user": user, "policy": policy, "slates": count + 1}
      self.assertEqual(
        f"/?{parse.urlencode(nexts)}" in links, count < len(slates)
      )
      self.assertEqual("The user left after" in text, count == len(slates))
      self.assertNotRegex(text, "<script|&'")
      csp = headers["Content-Security-Policy"]
      self.assertStartsWith(csp, "default-src 'none'; style-src 'nonce-")
      nonce = re.search("nonce-(.*?)'", csp)[1]
      self.assertIn(f'<style nonce="{nonce}">', text)
    # What is asked for beyond the end is the end.
    _, _, beyond = self._get(port, user=user, policy=policy, slates=6)
    self.assertIn(f"Slate {len(slates)} of 6", beyond)
    self.assertIn("In this world no topic becomes boring.", beyond)

  def test_says_what_bores(self):
    users, port = self._serve(dynamics=_BOREDOM)
    (start, *_), slates = users.play(0, "greedy_oracle", 1)
    self.assertEqual(slates[0].result.response.sum(), toy.SLATE)  # Of one kind.
    kind = (slates[0].items[0] - 1) % toy.GROUPS
    status, _, _ = self._get(port, policy=" greedy_oracle ")
    self.assertEqual(status, 200)
    _, _, text = self._get(port, policy="greedy_oracle")
    self.assertIn("During slate 1: nothing.", text)
    self.assertIn(f"From now on: <b>Kind {kind}</b>.", text)
    _, _, text = self._get(port, policy="greedy_oracle", slates=2)
    self.assertIn(f"During slate 2: Kind {kind}.", text)
    _, _, text = self._get(port, policy="greedy_oracle")
    self.assertIn(f"<td>Kind {kind}</td><td>3</td>", text)
    _, _, text = self._get(port, policy="greedy_oracle", slates=0)
    self.assertIn("From now on: <b>nothing</b>.", text)
    self.assertNotIn("During slate", text)
    history = start.observation.history[::-1]
    liked = re.findall('<li class="liked">(.*?)</li>', text)
    self.assertEqual(
      [html.unescape(x) for x in liked], [f"{_EVIL} {x}" for x in history]
    )

  def test_why_an_item_is_shown(self):
    run, said = _run(), collections.Counter()
    own = run.judged_users()
    own = own._replace(histories=own.histories.at[:, :-3].set(0))
    run.judged_users = lambda: own
    users = watch_users.Users(run)
    tokens = np.stack(run.catalogue.index.tokens, 1).tolist()

    def same(item, like):
      pairs = zip(tokens[item], tokens[like], strict=True)
      return len([*itertools.takewhile(lambda x: x[0] == x[1], pairs)])

    for session, user in enumerate(users.names):
      (before, *_), (slate, *_) = users.play(session, "random", 1)
      likes = before.observation.history[:-4:-1].tolist()  # The newest first.
      text = html.unescape(users.html(f"user={user}&policy=random", ""))
      liked = text[text.index("What the user likes") :]
      answers = int(slate.result.response.sum())
      self.assertLen(re.findall('<li class="liked">.', liked), 3 + answers)
      reasons = re.findall(r"<td>(Same first .*?|No first .*?) <span", text)
      for item, reason in zip(slate.items, reasons, strict=True):
        like = max(likes, key=lambda x: same(item, x))  # The first of several.
        count = same(item, like)
        words = ("No first token in common with a like", "Same first token as ")
        words += tuple(f"Same first {n} tokens as " for n in (2, 3))
        name = f"{_EVIL} {like}" if count else ""
        self.assertEqual(reason, words[count] + name)
        said[count] += 1
    self.assertGreater(min(said[0], said[1]), 0)

  def test_other_worlds_end_otherwise(self):
    _, port = self._serve()
    _, _, text = self._get(port, slates=6, policy="random")
    self.assertRegex(text, "The user left|with the user still there")
    self.assertIn("Patience: ", text)
    _, _, text = self._get(port, slates=0)
    self.assertNotIn("Slate 1", text)
    self.assertIn("Next slate", text)

  def test_what_is_wrong_is_a_line(self):
    _, port = self._serve()
    first = watch_users.Users(_run()).names[0]
    for name, value, words in (
      ("user", "nobody<", f"a user of the split test, such as {first}"),
      ("policy", "x", "one of the page, such as hsrl"),
      *(("slates", x, "at most 6") for x in ("-1", "7", "9" * 9_000, "²")),
    ):
      status, headers, text = self._get(port, **{name: value})
      self.assertEqual(status, 422, value)
      self.assertStartsWith(text, f"{name} is {value[:40]!r}; expected {words}")
      self.assertStartsWith(headers["Content-Type"], "text/plain")
    self.assertEqual(self._get(port, "/x")[0], 404)
    self.assertEqual(self._get(port, method="POST")[0], 501)
    with self.assertRaisesRegex(InputError, f"{port} cannot be listened at"):
      watch_users.listen(_run(), port)

  def test_a_browser_that_hangs_up_is_no_fault(self):
    _, port = self._serve()
    asked, said = threading.Event(), io.StringIO()

    def large(*given):
      asked.set()
      return "x" * 10**7  # More than the system keeps for a client.

    with contextlib.redirect_stderr(said):
      with mock.patch.object(watch_users.Users, "html", large):
        with socket.create_connection(("127.0.0.1", port)) as client:
          client.sendall(b"GET / HTTP/1.0\r\n\r\n")
          asked.wait()
        while any("process_request" in x.name for x in threading.enumerate()):
          time.sleep(0.01)
      self.assertEqual(said.getvalue(), "")
      with (
        mock.patch.object(watch_users.Users, "html", side_effect=KeyError),
        self.assertRaises(http.client.RemoteDisconnected),
      ):
        self._get(port)
    self.assertIn("KeyError", said.getvalue())

  def test_a_run_without_a_policy(self):
    run = _run()

    def require(stage):
      raise InputError(f"stage {stage} is missing")

    run.require = require
    with self.assertRaisesRegex(InputError, "stage policy is missing"):
      watch_users.listen(run, 0)

  @pytest.mark.slow
  @pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")
  def test_in_a_browser(self):
    users, port = self._serve(**_WORLD)
    _, slates = users.play(3, "farsighted", 99)
    with browser.tab() as tab:
      tab.open(f"http://127.0.0.1:{port}/")
      self.assertEqual(tab.texts("h1"), ["Watch a simulated user"])
      tab.js(f"document.querySelector('[name=user]').value = {users.names[3]}")
      tab.js("document.querySelector('select').value = 'farsighted'")
      tab.click("button", loads=True)
      for count, slate in enumerate(slates, 1):
        titles = tab.texts("table.examples td:first-child")
        self.assertEqual(titles, [f"{_EVIL} {x}" for x in slate.items])
        self.assertEqual(tab.complaints, [])
        if count < len(slates):
          tab.click(f"p > a[href*='slates={count + 1}']", loads=True)
      border = "getComputedStyle(document.querySelector('li')).borderRadius"
      self.assertEqual(tab.js(border), "5px")


if __name__ == "__main__":
  absltest.main()
