"""Chromium without a window, by its DevTools protocol over two pipes.

It needs nothing but the browser: chromedriver, Selenium and Playwright bring
a driver of hundreds of MB for what is two messages here.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile

PROGRAM = next(
  filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None
)
_PATIENCE = 60.0  # Seconds until a test gives up on an answer.
_FLAGS = (
  *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
  *("--disable-dev-shm-usage", "--disable-background-networking"),
  "--remote-debugging-pipe",
)


class Tab:
  """One tab of the browser."""

  def __init__(self, to_browser: int, from_browser: int):
    """Opens a tab; the arguments are descriptors."""
    self._to, self._from, self._rest = to_browser, from_browser, b""
    self._number, self._session = 0, None
    self._events = []
    target = self.send("Target.createTarget", url="about:blank")["targetId"]
    attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
    self._session = attached["sessionId"]
    for domain in ("Page", "Runtime", "Log"):
      self.send(f"{domain}.enable")

  def send(self, method, **params):
    """Returns the result of a command."""
    self._number += 1
    message = {"id": self._number, "method": method, "params": params}
    if self._session:
      message["sessionId"] = self._session
    os.write(self._to, json.dumps(message).encode() + b"\0")
    while (answer := self._read()).get("id") != self._number:
      self._events.append(answer)
    if "error" in answer:
      raise RuntimeError(answer["error"])
    return answer["result"]

  def _read(self):
    while b"\0" not in self._rest:
      if not select.select([self._from], [], [], _PATIENCE)[0]:
        raise TimeoutError("the browser says nothing")
      piece = os.read(self._from, 1 << 16)
      if not piece:
        raise EOFError("the browser is gone")
      self._rest += piece
    first, self._rest = self._rest.split(b"\0", 1)
    return json.loads(first)

  def _load(self, start):
    """Does what loads a page, and waits until it is there."""
    self._events.clear()
    start()
    while not any(
      x.get("method") == "Page.loadEventFired" for x in self._events
    ):
      self._events.append(self._read())
    self.complaints = [
      x["params"]["entry"]["text"]
      for x in self._events
      if x.get("method") == "Log.entryAdded"
    ]

  def open(self, url):
    """Goes to an address."""
    self._load(lambda: self.send("Page.navigate", url=url))

  def js(self, expression):
    """Returns the value of an expression in the page."""
    result = self.send(
      "Runtime.evaluate", expression=expression, returnByValue=True
    )
    if "exceptionDetails" in result:
      raise RuntimeError(result["exceptionDetails"])
    return result["result"].get("value")

  def texts(self, selector):
    """Returns the texts of the elements that a selector has."""
    return self.js(
      f"[...document.querySelectorAll({json.dumps(selector)})]"
      ".map(x => x.innerText.trim())"
    )

  def click(self, selector, loads=False):
    """Clicks on the first element that a selector has."""
    go = f"document.querySelector({json.dumps(selector)}).click()"
    if loads:
      self._load(lambda: self.js(go))
    else:
      self.js(go)

  def screenshot(self, path, width=1000, height=1200, dark=False):
    """Writes a picture of the page."""
    self.send(
      "Emulation.setDeviceMetricsOverride",
      **{"width": width, "height": height, "mobile": False},
      deviceScaleFactor=1,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else ""}
    self.send("Emulation.setEmulatedMedia", features=[scheme])
    data = self.send("Page.captureScreenshot", captureBeyondViewport=False)
    pathlib.Path(path).write_bytes(base64.b64decode(data["data"]))


@contextlib.contextmanager
def tab():
  """Yields a tab of a new browser, which is closed."""
  (read, to_browser), (from_browser, write) = os.pipe(), os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    shell = f'exec 3<&{read} 4>&{write}; exec "$@"'  # Its descriptors.
    process = subprocess.Popen(
      [
        "bash",
        "-c",
        shell,
        "bash",
        PROGRAM,
        *_FLAGS,
        f"--user-data-dir={profile}",
      ],
      pass_fds=(read, write),
      stderr=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
    )
    os.close(read)
    os.close(write)
    try:
      yield Tab(to_browser, from_browser)
    finally:
      os.close(to_browser)  # It ends, as with its window.
      process.terminate()
      process.wait(_PATIENCE)
      os.close(from_browser)
