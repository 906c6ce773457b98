"""The page of the loop, followed with a small export."""

import contextlib
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import urllib.request

import pyarrow.parquet
import pytest
from absl.testing import absltest

from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving import versions
from tests import toy
from tests.command import ROOT, environment, run
from tests.server import running
from tests.serving import toy_export

_PAGE = (ROOT / "docs" / "loop.md").read_text()


def _command(words):
  """The page's line with these words, its arguments after the module."""
  (line,) = [x for x in _PAGE.splitlines() if words in x and "python -m" in x]
  return line


class LoopTest(absltest.TestCase):
  @pytest.mark.slow
  def test_the_page(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(contextlib.chdir(folder))
    export = folder / "runs" / "quickstart" / "export"
    for salt in (1, 2):
      new = versions.next_folder(export)
      toy_export.make(new, salt)
      versions.publish(new)
    with socket.create_server(("127.0.0.1", 0)) as free:
      port = free.getsockname()[1]
    serve = _command("hsrl_jax.server").replace("8000", str(port))
    token, *arguments = serve.split()
    server = subprocess.Popen(
      [sys.executable, *arguments[1:]],
      env=environment() | {"PYTHONPATH": str(ROOT)} | dict([token.split("=")]),
      stdout=subprocess.DEVNULL,
    )
    try:
      running.until(lambda: running.listens(port))
      block, _ = re.findall(r"```py\n(.*?)```", _PAGE, re.S)
      exec(compile(block.replace("8000", str(port)), "loop.md", "exec"), {})
      status, out, err = run(*_command("--mode=collect").split()[3:])
      self.assertEqual(status, 0, err)
      self.assertIn("collect: 3 slates", out)
      table = f"runs/quickstart_logs/slates_{toy.SLATE}/sessions.parquet"
      rows = pyarrow.parquet.read_table(table).to_pylist()
      self.assertEqual([row["step"] for row in rows], [0, 1, 2])
      self.assertEqual([row["terminated"] for row in rows], [0, 0, 1])
      self.assertEqual(rows[2]["response"], [0, 0, 1])
      request = urllib.request.Request(
        f"http://localhost:{port}/admin/rollback",
        method="POST",
        headers={"Authorization": "Bearer secret"},
      )
      with urllib.request.urlopen(request) as answer:
        self.assertEqual(answer.read(), b'{"version":1}')
    finally:
      server.terminate()
      self.assertEqual(server.wait(60), 0)
    new = versions.next_folder(export)
    os.rename(folder_lib.version_folder(export, 2), new)
    versions.publish(new)
    status, out, err = run(*_command("--mode=rollback").split()[3:])
    self.assertEqual(status, 0, err)
    self.assertIn("serves version 1", out)


if __name__ == "__main__":
  absltest.main()
