"""The page at `/`, over HTTP and in a browser."""

import collections
import contextlib
import html
import json
import pathlib
import re
import shutil
import sqlite3
import tempfile
from unittest import mock
from urllib import parse

import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.server import page
from hsrl_jax.server import store as store_lib
from hsrl_jax.serving.catalogue import texts
from tests import browser, toy
from tests.server import running
from tests.serving import toy_export

_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_EVIL = '<script>alert("1")</script>&\'"'


class Visitor:
  """Fills in the form, as a browser would."""

  def __init__(self, port):
    """Opens the page."""
    self._port = port
    self._read(running.call(port, "GET", "/"))

  def send(self, button="next", answers=None, **fields):
    """Presses a button; returns the status.

    Args:
      button: its name.
      answers: item of the slate to like or refuse.
      **fields: in place of those on the page.
    """
    values = {"request": self.request, "request_id": self.request_id}
    values |= {f"on {item}": "none" for item in self.slate}
    values |= {f"on {item}": x for item, x in (answers or {}).items()}
    body = parse.urlencode(values | {button: "1"} | fields, doseq=True)
    return self._read(running.call(self._port, "POST", "/", body, _FORM))

  def _read(self, answer):
    self.status, self.headers, body = answer
    self.html = body.decode()
    one = re.compile(r'name="request_id" value="(.*?)"').search(self.html)
    self.request_id = one[1] if one else ""
    text = re.search(r"<textarea.*?>(.*?)</textarea>", self.html, re.S)[1]
    self.request = html.unescape(text)
    names = re.findall(r'name="on (.*?)"', self.html)
    self.slate = list(dict.fromkeys(map(html.unescape, names)))
    self.picks = re.findall(r'name="pick" value="(.*?)"', self.html)
    self.errors = re.findall(r'<p class="error".*?>(.*?)</p>', self.html)
    return self.status


class SearchTest(absltest.TestCase):
  def test_finds_titles_and_then_ids_whatever_the_case(self):
    titles = ["", "Ärger", "a STRASSE b", "abab", "", "gone Ärger", "x"]
    ids = ["", "1", "2", "3", "aba", "4", "ärger"]
    catalogue = mock.Mock()
    catalogue.titles, catalogue.item_ids = texts(titles), texts(ids)
    catalogue.index.active = [False, True, True, True, True, False, True]
    for block in (1, 2, 3, 1_024):
      with mock.patch.object(page, "_BLOCK", block):
        self.assertEqual(page.search(catalogue, "äRG"), [1, 6])
        self.assertEqual(page.search(catalogue, "straße"), [2])
        self.assertEqual(page.search(catalogue, "aba"), [3, 4])
        # No text goes on in the next one.
        self.assertEqual(page.search(catalogue, "ba"), [3, 4])
        self.assertEqual(page.search(catalogue, "ra"), [2])
        self.assertEqual(page.search(catalogue, "b1"), [])

  def test_many_are_cut(self):
    catalogue = mock.Mock()
    catalogue.titles = texts(["", *["tea"] * 99])
    catalogue.index.active = [False] + [True] * 99
    catalogue.popularity = None
    want = list(range(1, page._PICKS + 1))
    self.assertEqual(page.search(catalogue, "tea"), want)
    self.assertEqual(page.search(catalogue, ""), want)


class PageTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(tempfile.mkdtemp()) / "export"
    tags = [[], *([f"{_EVIL} {i % 2}"] for i in range(toy.ITEMS))]
    cls.exported = toy_export.make(cls.folder, tags=tags)
    cls.recommender = serving.load(cls.folder)

  @classmethod
  def tearDownClass(cls):
    shutil.rmtree(cls.folder.parent)
    super().tearDownClass()

  def _serve(self, recommender=None, **settings):
    """Server and port; what it keeps is in `self.store`."""
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.store = str(pathlib.Path(folder) / "kept.sqlite")
    opened = store_lib.open_store(self.store)
    given = {"folder": self.folder, "ids": "source"} | settings
    server, _, port = self.enter_context(
      running.serving(recommender or self.recommender, opened, **given)
    )
    return server, port

  def _kept(self):
    """Items, responses and user of each slate, in the order of steps."""
    query = "SELECT items, responses, user_id FROM slates ORDER BY step"
    with contextlib.closing(sqlite3.connect(self.store)) as connection:
      rows = connection.execute(query).fetchall()
    return [
      (json.loads(items), responses and json.loads(responses), user)
      for items, responses, user in rows
    ]

  @parameterized.parameters("source", "rows")
  def test_likes_are_kept_and_what_is_refused_stays_away(self, ids):
    _, port = self._serve(ids=ids)
    visitor = Visitor(port)
    self.assertEqual(visitor.status, 200)
    self.assertLen(visitor.picks, page._PICKS)
    picked, refused, slates = visitor.picks[:2], [], []
    self.assertEqual(visitor.send(pick=picked), 200, visitor.errors)
    for _ in range(toy_export.SEEN):
      self.assertLen(visitor.slate, toy.SLATE)
      self.assertEmpty(set(refused) & set(visitor.slate))
      slates.append(visitor.slate)
      like, refuse, _ = visitor.slate
      refused.append(refuse)
      picked.append(like)
      status = visitor.send(answers={like: "like", refuse: "refuse"})
      self.assertEqual(status, 200, visitor.errors)
    request = json.loads(visitor.request)
    self.assertEqual([str(x) for x in request["seen"]], refused)
    own = [*dict.fromkeys(picked)][-toy.HISTORY :]
    self.assertEqual([str(x) for x in request["history"]], own)
    kept = self._kept()
    name = "id-{}" if ids == "rows" else "{}"
    for (items, responses, user), slate in zip(kept, slates, strict=False):
      self.assertEqual(items, [name.format(x) for x in slate])
      self.assertEqual(responses, [1, 0, None])
      self.assertStartsWith(user, "page-")
    self.assertLen(kept, 1 + len(slates))
    self.assertLen({user for _, _, user in kept}, 1)
    # The field is a request of /recommend, with the same answer.
    status, answer = running.ask(port, **request)
    self.assertEqual(status, 200, answer)
    names = answer["items" if ids == "rows" else "item_ids"]
    self.assertEqual([str(x) for x in names], visitor.slate)

  def test_says_what_an_item_shares_and_how_often_it_was_shown(self):
    _, port = self._serve()
    visitor = Visitor(port)
    visitor.send(pick="id-7")
    self.assertNotIn("For a newcomer", visitor.html)
    catalogue = self.recommender.catalogue
    sids = catalogue.index.sids
    said = re.findall(r"Same first (.*?) as <b>(.*?)</b>", visitor.html)
    shared = []
    for name in visitor.slate:
      row = int(name.removeprefix("id-"))
      count = 0
      while count < 2 and sids[row][count] == sids[7][count]:
        count += 1
      if count:
        shared.append((("", "token", "2 tokens")[count], "Título 7"))
    self.assertEqual(said, shared)
    first = collections.Counter()
    for _ in range(3):
      for name in visitor.slate:
        first[int(sids[int(name.removeprefix("id-"))][0])] += 1
      table = visitor.html.split("First token of the SID")[1]
      rows = re.findall(r'"text">(\d+) .*?</meter> (\d+)<', table)
      self.assertEqual({int(a): int(b) for a, b in rows}, first)
      visitor.send()

  def test_texts_of_others_are_escaped(self):
    evil = ["", *[_EVIL] * self.recommender.manifest.sizes["capacity"]]
    catalogue = self.recommender.catalogue._replace(titles=texts(evil))
    _, port = self._serve(self.recommender.with_catalogue(catalogue))
    visitor = Visitor(port)
    pages = [visitor.html]
    visitor.send("search", find=_EVIL, pick="id-1")
    self.assertLen(visitor.picks, page._PICKS)
    pages.append(visitor.html)
    visitor.send(answers={"id-2": "like"})
    pages.append(visitor.html)
    self.assertEqual(visitor.send(request=_EVIL), 400)
    pages.append(visitor.html)
    self.assertEqual(visitor.send(request='{"history": ["<b>"]}'), 422)
    pages.append(visitor.html)
    for content in pages:
      self.assertNotRegex(content, "<script|<b>'|&'")
    self.assertIn(
      "default-src 'none'", visitor.headers["content-security-policy"]
    )

  def test_what_is_refused_is_a_line(self):
    server, port = self._serve(max_body=9_000)
    for status, words, fields in (
      (400, "no JSON", {"request": "{"}),
      (400, "no JSON object", {"request": "[3]"}),
      (422, "history is no list", {"request": '{"history": 1}'}),
      (422, "no known item", {"pick": "nothing"}),
      (422, "no known item", {"request_id": "", "on \0": "refuse"}),
      (422, "profile has 0", {"request": '{"history": []}'}),
      (422, "is no field", {"request": '{"history": [], "x": 1}'}),
      (404, "is unknown", {"request_id": "none", "on id-1": "like"}),
      (422, "did not show", {"on id-999": "like"}),
      (413, "too large", {"request": "9" * 9_000}),
    ):
      visitor = Visitor(port)
      visitor.send(pick="id-3")
      self.assertEqual(visitor.send(**fields), status, fields)
      self.assertRegex(visitor.errors[0], words)
    for method in ("PUT", "DELETE"):
      self.assertEqual(running.call(port, method, "/")[0], 405)
    for body in (b"\xff&%=&=%ff", b'{"history": []}', b""):
      self.assertEqual(running.call(port, "POST", "/", body)[0], 422)
    # The policy fails, and then no longer.
    visitor = Visitor(port)
    failing = mock.Mock(wraps=self.recommender)
    failing.configure_mock(
      batch_sizes=(4,),
      manifest=self.exported.manifest,
      catalogue=self.recommender.catalogue,
    )
    failing.decode.side_effect = RuntimeError("no device")
    server.recommender = failing
    self.assertEqual(visitor.send(pick="id-3"), 503)
    self.assertEqual(
      visitor.errors, ["an error of the server, which logged it"]
    )
    self.assertEqual(json.loads(visitor.request)["history"], ["id-3"])
    server.recommender = self.recommender
    self.assertEqual(visitor.send(), 200)
    self.assertLen(visitor.slate, toy.SLATE)

  def test_items_without_titles_have_their_ids(self):
    capacity = self.recommender.manifest.sizes["capacity"]
    none = texts([""] * (capacity + 1))
    catalogue = self.recommender.catalogue._replace(titles=none)
    _, port = self._serve(self.recommender.with_catalogue(catalogue))
    visitor = Visitor(port)
    visitor.send("search", find="ID-11")
    self.assertEqual(visitor.picks, ["id-11"])
    visitor.send(pick="id-11")
    self.assertIn(f'"text">{visitor.slate[0]}</td>', visitor.html)

  def test_a_field_that_was_altered_stays_bounded(self):
    _, port = self._serve()
    visitor = Visitor(port)
    slate = {"items": ["id-1"] * toy.SLATE, "responses": [0] * toy.SLATE}
    request = {
      "history": ["id-1"] * 500,
      "seen": ["id-2"] * 500,
      "earlier": [slate] * 400,
      "profile": [0] * toy.GROUPS,
    }
    status = visitor.send(request=json.dumps(request))
    self.assertEqual(status, 200, visitor.errors)
    request = json.loads(visitor.request)
    self.assertLen(request["history"], toy.HISTORY)
    self.assertLen(request["seen"], toy_export.SEEN)
    self.assertLen(request["earlier"], page._SHOWN // toy.SLATE)

  @pytest.mark.slow
  @pytest.mark.skipif(not browser.PROGRAM, reason="no Chromium is installed")
  def test_in_a_browser(self):
    evil = [f"{_EVIL} {i}" for i in range(toy_export.ROOM + 1)]
    catalogue = self.recommender.catalogue._replace(titles=texts(evil))
    _, port = self._serve(self.recommender.with_catalogue(catalogue))
    with browser.tab() as tab:
      tab.open(f"http://127.0.0.1:{port}/")
      self.assertEqual(tab.texts("h1"), ["Try it"])
      # The style is let through, and nothing that the page did not mean.
      border = "getComputedStyle(document.querySelector('li')).borderRadius"
      self.assertEqual(tab.js(border), "5px")
      tab.js("document.querySelector('[name=find]').value = '>&\\'\" 12'")
      tab.click("[name=search]", loads=True)
      self.assertEqual(tab.texts("li"), [f"{_EVIL} 12"])
      tab.click("[name=pick]")
      tab.click("[name=next]", loads=True)
      self.assertEqual(tab.texts("li.liked"), [f"{_EVIL} 12"])
      titles = tab.texts("tbody:first-of-type td:first-child")[: toy.SLATE]
      tab.click("tr:nth-child(1) [value=like]")
      tab.click("tr:nth-child(2) [value=like]")
      tab.click("tr:nth-child(2) [value=refuse]")  # Of one item, one answer.
      tab.click("[name=next]", loads=True)
      self.assertEqual(tab.texts("li.liked"), [titles[0], f"{_EVIL} 12"])
      again = tab.texts("tbody:first-of-type td:first-child")[: toy.SLATE]
      self.assertNotIn(titles[1], again)
      self.assertIn("last 2 slates", tab.js("document.body.innerText"))
      self.assertEqual(tab.complaints, [])
    self.assertEqual([x[1] for x in self._kept()], [[1, 0, None], None])


if __name__ == "__main__":
  absltest.main()
