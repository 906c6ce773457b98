"""The files of `deploy/` are checked against the server, and its commands run.

They run as processes, since no image is built.
"""

import contextlib
import http.server
import itertools
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from importlib import metadata
from unittest import mock

import pyarrow.parquet
import pytest
import yaml
from absl.testing import absltest, parameterized
from packaging import requirements

from hsrl_jax import serving
from hsrl_jax.server import __main__ as server_lib
from hsrl_jax.server import application
from hsrl_jax.server.settings import Settings
from tests import toy
from tests.command import ROOT, environment, interpreter, run
from tests.server import running
from tests.server.store import postgres
from tests.serving import toy_export

_DEPLOY = ROOT / "deploy"
_DOCKERFILE = (_DEPLOY / "Dockerfile").read_text()
_SERVICES = yaml.safe_load((_DEPLOY / "compose.yaml").read_text())["services"]
_SERVICE, _DEPLOYMENT = yaml.safe_load_all(
  (_DEPLOY / "kubernetes.yaml").read_text()
)
_POD = _DEPLOYMENT["spec"]["template"]["spec"]
(_CONTAINER,) = _POD["containers"]
# Name of a directive of nginx to the arguments of each.
_PROXY = {}
for _name, _values in re.findall(
  r"^\s*(\w+) ([^{;#]+?) ?[{;]", (_DEPLOY / "proxy.conf").read_text(), re.M
):
  _PROXY.setdefault(_name, []).append(_values)
_PROGRAM = shutil.which("nginx")

# Packages that the image does not have are missing.
_ALONE = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition(".")[0] in {missing!r}:
      raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
import psycopg
from hsrl_jax.server import __main__, page
page._template()
"""


def _instruction(name):
  """The JSON list of the only such instruction of the Dockerfile."""
  lines = _DOCKERFILE.replace("\\\n", " ")
  (found,) = re.findall(rf"^{name} [^\[\n]*(\[.*\])$", lines, re.M)
  return json.loads(found)


def _seconds(text):
  return float(re.fullmatch(r"(\d+)s", text)[1])


def _healthy(port):
  """Whether the image's health check passes for a server of this machine."""
  python, *check = _instruction("HEALTHCHECK")
  assert python == "python"
  check = [x.replace(":8000/", f":{port}/") for x in check]
  ran = subprocess.run([sys.executable, *check], capture_output=True)
  return ran.returncode == 0


class FilesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.entry = _instruction("ENTRYPOINT")
    self.assertEqual(self.entry[:3], ["python", "-m", "hsrl_jax.server"])
    self.port = int(re.search(r"^EXPOSE (\d+)$", _DOCKERFILE, re.M)[1])

  def _settings(self, arguments):
    return server_lib._settings([*self.entry[3:], *arguments])

  def test_commands_are_of_the_server(self):
    in_compose = self._settings(_SERVICES["server"]["command"])
    in_kubernetes = self._settings(_CONTAINER["args"])
    self.assertEqual(in_compose, in_kubernetes)
    self.assertEqual(in_compose.host, "0.0.0.0")
    (mount,) = _SERVICES["server"]["volumes"]
    self.assertEndsWith(mount, f":{in_compose.folder}:ro")
    (mount,) = _CONTAINER["volumeMounts"]
    self.assertEqual(mount["mountPath"], str(in_compose.folder))

  def test_the_store_is_the_database(self):
    made = _SERVICES["database"]["environment"]
    user, database = made["POSTGRES_USER"], made["POSTGRES_DB"]
    url = f"postgresql://{user}@database/{database}"
    self.assertEqual(self._settings(_CONTAINER["args"]).store, url)
    password = _SERVICES["server"]["environment"]["PGPASSWORD"]
    self.assertEqual(password, made["POSTGRES_PASSWORD"])
    (given,) = _CONTAINER["env"]
    self.assertEqual(given["name"], "PGPASSWORD")

  def test_ports_are_one(self):
    self.assertEqual(self._settings([]).port, self.port)
    self.assertEqual(_PROXY["server"][0], f"server:{self.port}")
    (port,) = _CONTAINER["ports"]
    self.assertEqual(port["containerPort"], self.port)
    (public,) = _SERVICE["spec"]["ports"]
    names = {public["targetPort"]} | {
      _CONTAINER[f"{x}Probe"]["httpGet"]["port"]
      for x in ("startup", "readiness", "liveness")
    }
    self.assertEqual(names, {port["name"]})
    (published,) = _SERVICES["proxy"]["ports"]
    self.assertEqual(published.split(":")[1], _PROXY["listen"][0])

  def test_paths_are_of_the_server(self):
    app = application.make_app(mock.Mock(token="secret"))
    known = {x.path for x in app.routes}
    asked = set(re.findall(r"http://[\d.:]+(/\w+)", _DOCKERFILE))
    self.assertEqual(asked, {"/health"})
    for name in ("startup", "readiness", "liveness"):
      asked.add(_CONTAINER[f"{name}Probe"]["httpGet"]["path"])
    asked.update(x.removeprefix("= ") for x in _PROXY["location"])
    asked.discard("/admin/")
    self.assertEmpty(asked - known)
    self.assertNotEmpty([x for x in known if x.startswith("/admin/")])

  def test_labels_select_the_pods(self):
    labels = _DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    self.assertEqual(_DEPLOYMENT["spec"]["selector"]["matchLabels"], labels)
    self.assertEqual(_SERVICE["spec"]["selector"], labels)

  def test_nobody_is_root(self):
    (user,) = re.findall(r"^USER (.*)$", _DOCKERFILE, re.M)
    self.assertGreater(int(user), 0)
    self.assertEqual(_POD["securityContext"]["runAsUser"], int(user))
    self.assertTrue(_POD["securityContext"]["runAsNonRoot"])

  def test_limits_of_the_proxy_fit_the_servers(self):
    settings = Settings(pathlib.Path("export"))
    (idle,), (answer,) = (
      _PROXY["keepalive_timeout"],
      _PROXY["proxy_read_timeout"],
    )
    self.assertLess(_seconds(idle), settings.timeout)
    self.assertGreater(_seconds(answer), settings.timeout)
    (body,) = _PROXY["client_max_body_size"]
    self.assertEqual(int(body), settings.max_body)

  def test_python_is_one_that_the_package_takes(self):
    python = re.search(r"^ARG PYTHON=(.*)$", _DOCKERFILE, re.M)[1]
    setup = (ROOT / "setup.py").read_text()
    self.assertIn(f'"Programming Language :: Python :: {python}"', setup)

  def test_copied_files_are_there(self):
    build = _SERVICES["server"]["build"]
    context = _DEPLOY / build["context"]
    self.assertTrue((context / build["dockerfile"]).is_file())
    for line in re.findall(r"^COPY (.*) \S+$", _DOCKERFILE, re.M):
      for name in line.split():
        self.assertTrue((context / name).exists(), name)
    (mount,) = _SERVICES["proxy"]["volumes"]
    self.assertTrue((_DEPLOY / mount.split(":")[0]).is_file())

  def test_the_image_has_what_the_server_imports(self):
    names = re.search(r'grep -hE "\^\((.*)\)', _DOCKERFILE)[1].split("|")
    pins = {}
    for name in ("requirements.txt", "requirements-dev.txt"):
      for line in (ROOT / name).read_text().splitlines():
        if not line.startswith(("#", "-r ")):
          pin = requirements.Requirement(line)
          pins[pin.name] = pin.extras
    self.assertEmpty(set(names) - set(pins))
    needed, new = set(), [(x, frozenset(pins[x])) for x in names]
    while new:
      name, extras = new.pop()
      needed.add(name.lower().replace("-", "_"))
      for text in metadata.requires(name) or []:
        need = requirements.Requirement(text)
        if any(
          not need.marker or need.marker.evaluate({"extra": x})
          for x in ("", *extras)
        ):
          new.append((need.name, frozenset(need.extras)))
    missing = {
      module
      for module, owners in metadata.packages_distributions().items()
      if not {x.lower().replace("-", "_") for x in owners} & needed
    }
    missing -= {"hsrl_jax"}
    self.assertContainsSubset({"flax", "matplotlib", "pandas"}, missing)
    ran = interpreter("-c", _ALONE.format(missing=missing))
    self.assertEqual(ran.returncode, 0, ran.stderr)


@contextlib.contextmanager
def _forwarder(ports):
  """Yields the port of a proxy that asks one server after the other."""
  turns = itertools.cycle(ports)

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      body = self.rfile.read(int(self.headers["Content-Length"]))
      for _ in ports:
        with contextlib.suppress(ConnectionRefusedError):
          status, _, answer = running.call(next(turns), "POST", self.path, body)
          break
      self.send_response(status)
      self.end_headers()
      self.wfile.write(answer)

    def log_message(self, *arguments):
      del arguments

  with (
    http.server.HTTPServer(("127.0.0.1", 0), Handler) as proxy,
    running.in_thread(proxy),
  ):
    yield proxy.server_port


@contextlib.contextmanager
def _nginx(ports):
  """Yields the port of nginx with the file of `deploy/`."""
  text = (_DEPLOY / "proxy.conf").read_text()
  servers = " ".join(f"server 127.0.0.1:{x};" for x in ports)
  text, port = text.replace("server server:8000;", servers), _free()
  text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};")
  with tempfile.TemporaryDirectory() as folder:
    places = " ".join(
      f"{x}_temp_path {folder};"
      for x in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = pathlib.Path(folder) / "nginx.conf"
    path.write_text(
      f"daemon off; pid {folder}/pid; events {{}}\n"
      f"http {{ access_log off; {places}\n{text} }}"
    )
    process = subprocess.Popen([_PROGRAM, "-e", "stderr", "-c", path])
    try:
      running.until(lambda: running.listens(port) or process.poll())
      yield port
    finally:
      process.terminate()
      process.wait(60)


def _free():
  with socket.create_server(("127.0.0.1", 0)) as free:
    return free.getsockname()[1]


class StartedTest(parameterized.TestCase):
  """As many servers as compose starts, on one PostgreSQL."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
      self.enter_context(tempfile.TemporaryDirectory())
    )
    toy_export.make(self.folder / "export")

  def _start(self, store):
    """The servers of the compose file by port, each with its own place."""
    server, processes = _SERVICES["server"], {}
    for _ in range(server["deploy"]["replicas"]):
      port = _free()
      given = [*_instruction("ENTRYPOINT")[1:], *server["command"]]
      # The last value of a flag counts.
      given += ["--host=127.0.0.1", f"--port={port}", f"--store={store}"]
      processes[port] = subprocess.Popen(
        [sys.executable, *given, f"--folder={self.folder}/export"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.DEVNULL,
      )
      self.addCleanup(processes[port].wait)
      self.addCleanup(processes[port].kill)
    for port in processes:
      running.until(lambda p=port: running.listens(p))
      running.until(lambda p=port: _healthy(p))
    return processes

  @parameterized.parameters(_forwarder, _nginx)
  @pytest.mark.slow
  def test_a_session_of_both_servers_is_one(self, proxy):
    if proxy is _nginx and _PROGRAM is None:
      self.skipTest("nginx is not installed")
    store = self.enter_context(postgres.database(self))
    processes = self._start(store)
    first, second = processes
    asked = {"history": [], "profile": [0.0] * toy.GROUPS}
    asked |= {"user_id": "ann", "session_id": "s"}
    given = [[1, 0, 0], [0, 0, 1], [0, 1, 0], [1, 1, 0]]
    with proxy([first, second]) as port:

      def step(responses):
        status, slate = running.ask(port, **asked)
        self.assertEqual(status, 200, slate)
        answer = {"request_id": slate["request_id"], "responses": responses}
        # The other server, then that of the slate, so that the next is shown
        # by the other.
        known = []
        for _ in range(2):
          status, outcome = running.post(port, "/feedback", answer)
          self.assertEqual(status, 200, outcome)
          known.append(outcome["known"])
        self.assertEqual(known, [False, True])

      for responses in given[:3]:
        step(responses)
      # The second is not asked: it would keep the rewards for ten seconds.
      shown = running.metrics(first)['hsrl_shown_total{arm="stable"}']
      self.assertBetween(shown, 1, 2)  # Of three.
      processes[first].terminate()
      self.assertEqual(processes[first].wait(60), 0)
      self.assertFalse(_healthy(first))
      step(given[3])
      postgres.cluster().stop()
      try:  # The probes keep it, since it still shows slates.
        self.assertFalse(_healthy(second))
        for probe in ("readinessProbe", "livenessProbe"):
          path = _CONTAINER[probe]["httpGet"]["path"]
          self.assertEqual(running.call(second, "GET", path)[0], 200)
        status, slate = running.ask(port, **asked)
        self.assertEqual(status, 200, slate)
        self.assertIsNone(slate["request_id"])
      finally:
        postgres.cluster().start()
    logs = self.folder / "logs"
    status, _, err = run(
      "--mode=collect", f"--from={store}", f"--workdir={logs}"
    )
    self.assertEqual(status, 0, err)
    table = logs / f"slates_{toy.SLATE}" / "sessions.parquet"
    rows = pyarrow.parquet.read_table(table).to_pylist()
    self.assertLen({row["session_id"] for row in rows}, 1)
    self.assertEqual([row["step"] for row in rows], [0, 1, 2, 3])
    self.assertEqual([row["response"] for row in rows], given)

  @pytest.mark.slow
  def test_the_proxy_keeps_what_is_of_one_server(self):
    if _PROGRAM is None:
      self.skipTest("nginx is not installed")
    export = self.folder / "export"
    with (
      running.serving(serving.load(export), folder=export) as (_, _, server),
      _nginx([server]) as port,
    ):
      for path, status in (
        *(("/", 200), ("/health", 200), ("/metrics", 404)),
        ("/admin/rollback", 404),
      ):
        self.assertEqual(running.call(port, "GET", path)[0], status, path)
      for size, status in ((65_536, 400), (65_537, 413)):
        body = "x" * size
        got = running.call(port, "POST", "/recommend", body)
        self.assertEqual(got[0], status, size)


if __name__ == "__main__":
  absltest.main()
