"""The pages: their commands run, what they name exists, the site builds."""

import ast
import contextlib
import io
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import warnings
import zlib
from unittest import mock

import nbclient
import nbformat
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized

from hsrl_jax import agents, api
from hsrl_jax.stages.run import Run
from tests import toy
from tests.command import (
  experiments_are,
  published,
  quick,
  run,
  study,
)
from tests.folders import CommandTest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
NOTEBOOK = DOCS / "notebook.ipynb"
METHOD = ("method", "policy", "simulator", "planner", "next_item")
# A record of what was run: its commands and flags are those of its commits.
LAB = DOCS / "lab"
# Where programs other than the command define their flags.
PROGRAMS = (
  ROOT / "datasets" / "rl4rs" / "made_up_model.py",
  *ROOT.glob("tests/benchmarks/*.py"),
  *ROOT.glob("hsrl_jax/server/**/*.py"),
  *ROOT.glob("launch/*.sh"),
)
# Flags of absl and of programs that are not ours.
OTHERS = {
  *("flagfile", "help", "helpfull", "dist", "logdir", "outdated"),
  "xla_cpu_use_fusion_emitters",
  "xla_cpu_experimental_ynn_fusion_type",
}
# Commands that have tests of their own: the last ones in launch_test and
# continue_from_test.
ELSEWHERE = re.compile(
  "hsrl_jax.launch.*"
  "(runs/items|runs/my_|agent=mine|quickstart|response_params|continue_from|"
  "--help)"
)
SMALL = (
  "--simulator_epochs=1",
  "--iterations=20",
  "--iterations_per_call=10",
  "--curve_every=20",
  "--save_every=20",
  "--evaluate_episodes=8",
  "--seeds=0",
)
_FRONT = re.compile(r"hsrl_jax\.(?:launch|studies)")
ON_POLICY = ("--segment=10", "--minibatches=2")
OF_RL = ("iterations", "curve", "save")  # What --recipe=next_item refuses.


def _blocks(language: str, page: pathlib.Path) -> list[str]:
  """A page's fenced blocks."""
  return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def _commands() -> list[str]:
  """Each line of the pages' shell blocks once, in order.

  Those of RESULTS.md and the lab are a record of what was run, and where.
  """
  lines = [
    line.strip()
    for page in PAGES
    if page.name != "RESULTS.md" and page.parent != LAB
    for block in _blocks("bash", page)
    for line in block.replace("\\\n", " ").splitlines()
  ]
  return list(dict.fromkeys(x for x in lines if x and not x.startswith("#")))


def _arguments(command: str) -> list[str]:
  return _FRONT.split(command, maxsplit=1)[1].split()


def _front(command: str):
  """What runs a command's arguments."""
  return study if "hsrl_jax.studies" in command else run


def _process(arguments) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, *arguments],
    cwd=ROOT,
    env=quick(),
    capture_output=True,
    text=True,
    check=False,
  )


class CommandsTest(CommandTest):
  """All of the pages; installing ones run in .ci/run."""

  def test_every_command_is_known_and_its_files_exist(self):
    commands = _commands()
    self.assertGreater(len(commands), 20)
    for command in commands:
      if ELSEWHERE.search(command):
        continue
      if re.search("--raw_data_dir=(data/|my_)", command):  # No test has it.
        self._launch_without_source(command)
      elif re.search(r"-m hsrl_jax\.(launch|studies)", command):
        self._launch_data(command)
      elif "pytest" in command:
        self.assertIn(command, (ROOT / ".ci" / "run").read_text())
      elif "pip install" in command:
        (extra,) = re.findall(r"\[(\w+)\]", command)
        self.assertIn(f'"{extra}": [', (ROOT / "setup.py").read_text())
      elif not command.startswith("export "):
        self._names_a_file(command)

  @pytest.mark.slow
  def test_quickstart_and_what_is_made_of_it(self):
    commands = [x for x in _commands() if "hsrl_jax.launch" in x]
    quickstart = next(x for x in commands if x.endswith("quickstart.flags"))
    (export,) = [x for x in commands if "--export_slate_size" in x]
    workdir = f"--workdir={self.folder}/runs/quickstart"
    ran = _process(
      [
        *("-m", "hsrl_jax.launch", *_arguments(quickstart), *SMALL, *ON_POLICY),
        *("--next_item_epochs=1", "--next_item_eval_every=1", workdir),
      ]
    )
    self.assertEqual(ran.returncode, 0, ran.stderr)
    self.assertIn("greedy_oracle", ran.stdout)
    small = ("--export_batch_sizes=2", "--export_platforms=cpu", "--export_any")
    with contextlib.chdir(ROOT):
      status, _, err = run(*_arguments(export), workdir, *small)
    self.assertEqual(status, 0, err)
    code = "".join(_blocks("py", DOCS / "serving.md"))
    with contextlib.chdir(self.folder), contextlib.redirect_stdout(None):
      exec(compile(code, "serving.md", "exec"), {})

  def test_embeddings_of_ones_own(self):
    commands = [x for x in _commands() if "runs/items" in x]
    self.assertGreater(len(commands), 3)
    rng = np.random.default_rng(0)
    with contextlib.chdir(self.folder):
      for name, first, count in (("items", 1, 100), ("new", 101, 5)):
        x = rng.normal(size=(count, 4)).astype(np.float32)
        ids = np.arange(first, first + count)
        np.savez(f"{name}.npz", embeddings=x, item_id=ids)
      pathlib.Path("gone.txt").write_text("3\n")
      for command in commands:
        self.ok(*_arguments(command))
      self.assertTrue(pathlib.Path("runs/items/sids/report.html").exists())

  def test_logs_of_ones_own(self):
    """Runs the commands on the files that the page shows."""
    text = (DOCS / "bring_your_own.md").read_text()
    shown = r"`(my_\w+/\S+?)`[^`]*?```(?:text|json)\n(.*?)```"
    files = dict(re.findall(shown, text, re.S))
    self.assertLen(files, 5)
    for name, content in files.items():
      path = self.folder / name
      path.parent.mkdir(exist_ok=True)
      path.write_text(content)
    for name, told in (
      ("my_logs", ", 1 from price, 4 from words of title, category"),
      ("my_slates", ""),
    ):
      out = self._data_of(name)
      self.assertIn("4 items; slates: train 2, val 1, test 1", out)
      self.assertIn(told, out)

  def test_sessions_to_learn_from(self):
    text = (DOCS / "logs.md").read_text()
    shown = r"`(my_sessions/\S+?)`[^`]*?```text\n(.*?)```"
    for name, content in re.findall(shown, text, re.S):
      path = self.folder / name
      path.parent.mkdir(exist_ok=True)
      path.write_text(content)
    out = self._data_of("my_sessions")
    self.assertIn("4 items; slates: train 2, val 1, test 1", out)
    self.assertNotIn("columns not used", out)

  @pytest.mark.slow
  def test_in_a_model_of_the_logs(self):
    """Of sessions that are large enough for a split by user."""
    rng = np.random.default_rng(0)
    place = self.folder / "my_sessions"
    place.mkdir()
    items = [f"i{x},{x % 3};{x % 4};{x / 9},g{x % 3}" for x in range(12)]
    lines = ["item_id,feature,genres", *items]
    (place / "items.csv").write_text("\n".join(lines))
    lines = ["user_id,session_id,step,exposed,response,timestamp"]
    for user in range(40):
      for step in range(4):
        shown = ";".join(f"i{x}" for x in rng.permutation(12)[:2])
        liked = ";".join(str(x) for x in rng.integers(0, 2, 2))
        lines.append(f"u{user},{user},{step},{shown},{liked},{4 * user + step}")
    (place / "sessions.csv").write_text("\n".join(lines))
    (command,) = (x for x in _commands() if "runs/my_model" in x)
    sizes = ("--sid_levels=2", "--sid_vocab_size=8", "--simulator_max_steps=3")
    with contextlib.chdir(self.folder):
      small = (*SMALL, *ON_POLICY, *sizes)
      out = self.ok(*_arguments(command), *small)
      self.assertIn("best_constant", out)
      run_folder = pathlib.Path("runs/my_model")
      self.assertTrue((run_folder / "simulator/boredom.npz").exists())
      results = json.loads((run_folder / "results.json").read_text())
      # No rule says how much of a topic does no harm.
      self.assertNotIn("farsighted", results["policies"])
      flags = ("--mode=export", "--workdir=runs/my_model")
      status, out, err = run(*flags, "--export_platforms=cpu", "--export_any")
    self.assertEqual(status, 0, err)

  def test_public_data_as_logs(self):
    """The page's conversions, of made-up files in the same formats."""
    with contextlib.chdir(self.folder):
      for name in ("beauty", "ml-1m"):
        pathlib.Path("data", name).mkdir(parents=True)
      _public_data()
      for block in _blocks("py", DOCS / "bring_your_own.md"):
        exec(compile(block, "bring_your_own.md", "exec"), {})
    out = self._data_of("my_beauty")
    self.assertIn("16 items; slates: train 21, val 7, test 7", out)
    self.assertIn("positives only; each of 35 is shown", out)
    out = self._data_of("my_beauty", "quantize")
    self.assertIn("SIDs of index_rqvae.json: 2 tokens of 4 values, no", out)
    commands = [x for x in _commands() if "flags/next_item/beauty" in x]
    self.assertLen(commands, 2)
    for command in commands:
      with contextlib.chdir(self.folder):
        status, out, err = run(*_arguments(command), "--mode=data")
      self.assertEqual(status, 0, err)
      self.assertIn("leave_one_out holds out likes of 7 users", out)
    out = self._data_of("my_films")
    self.assertIn("12 from words of title, genres", out)
    self.assertIn("12 items; slates: train 8, val 1, test 1", out)

  def _data_of(self, name, mode="data"):
    (command,) = [
      x for x in _commands() if f"runs/{name} " in x and f"--mode={mode}" in x
    ]
    with contextlib.chdir(self.folder):
      status, out, err = run(*_arguments(command))
    self.assertEqual(status, 0, err)
    return out

  @pytest.mark.slow
  def test_the_path_in_python(self):
    """The tour's blocks; README's, with the recommender that these made."""
    small = {
      name[2:]: value for name, _, value in (x.partition("=") for x in SMALL)
    }
    small = {k: int(v) for k, v in small.items()} | {"sid_vocab_size": 8}
    fit, calls = api.fit, []

    def quick(*arguments, **settings):
      calls.append(settings["workdir"])
      if len(calls) > 1:
        return api.load(calls[0])
      return fit(*arguments, **(settings | small))

    self.enter_context(mock.patch.object(api, "fit", quick))
    rng = np.random.default_rng(0)
    names = ["tea", "coffee", "cake", *(f"item {i}" for i in range(17))]
    rows = [
      f"{user},{names[i]},{time},{rng.integers(2)}"
      for user in ("ann", "bob", *range(30))
      for time, i in enumerate(rng.permutation(20))
    ]
    lines = ["user_id,item_id,timestamp,response", *rows]
    with (
      contextlib.chdir(self.folder),
      contextlib.redirect_stdout(io.StringIO()) as out,
    ):
      pathlib.Path("my_logs.csv").write_text("\n".join(lines))
      for page in (DOCS / "tour.md", ROOT / "README.md"):
        namespace = {}
        for block in _blocks("py", page):
          # Responses at random make no policy that an export would pass.
          block = block.replace('.export("runs', '.export(any=True, dir="runs')
          exec(compile(block, page.name, "exec"), namespace)
    self.assertEqual(calls, ["runs/mine", "runs/python"])
    tables = re.findall(r"^held-out logs +AUC", out.getvalue(), re.M)
    self.assertLen(tables, 2)
    self.assertTrue((self.folder / "runs/mine/export/current").exists())

  def test_an_agent_of_ones_own(self):
    """The command that the page shows takes it, and it learns."""
    blocks = _blocks("python", DOCS / "bring_your_own.md")
    (source,) = [x for x in blocks if "base.Agent(" in x]
    made = {}
    exec(compile(source, "bring_your_own.md", "exec"), made)
    (command,) = [x for x in _commands() if "--agent=mine" in x]
    mine = agents.Algorithm(agents.Settings, made["make"])
    self.enter_context(mock.patch.dict(agents.AGENTS, mine=mine))
    self._launch_data(command)
    untrained, trained = toy.learning("mine")
    self.assertGreater(trained, untrained + 0.5)

  def _launch_without_source(self, command):
    workdir = tempfile.mkdtemp(dir=self.folder)
    with contextlib.chdir(self.folder):  # A checkout may have a folder `data`.
      for path in re.findall(r"--truth=(\S+)", command):
        np.save(path, np.ones((2, 3)))
      for path in re.findall(r"--sids=(\S+)", command):
        pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(path).write_text('{"item": [1]}')
      arguments = *_arguments(command), f"--workdir={workdir}"
      status, _, err = _front(command)(*arguments)
    self.assertEqual(status, 2, err)
    self.assertRegex(err, r"--raw_data_dir=\S+ is no folder; expected a folder")

  def _launch_data(self, command):
    """The first stage; beyond it they differ from the quickstart in values."""
    arguments = _arguments(command)
    flagfile = re.search(r"--flagfile=(\S+)", command)
    text = (ROOT / flagfile[1]).read_text() if flagfile else ""
    dataset = re.search(r"--dataset=(\S+)", text)
    # One folder for each dataset: it is prepared once.
    workdir, small = self.folder / (dataset[1] if dataset else "default"), SMALL
    if "--recipe=next_item" in text + command:
      small = [x for x in SMALL if not x[2:].startswith(OF_RL)]
      workdir = workdir / "next_item"  # A workdir keeps its task.
    if "--recipe=logs" in text + command:
      small = [x for x in small if not x.startswith("--curve_")]
      workdir = workdir / "from_logs"
    if re.search("--recipe=.*on_policy", text + command):
      small, workdir = (*small, *ON_POLICY), workdir / "on_policy"
    if "--split_by=user" in text:
      workdir = workdir / "by_user"  # And its splits.
    own = (f"--workdir={workdir}", "--mode=data")
    if re.search("--(experiment|study)=", text + command):
      own = (f"--workdir={tempfile.mkdtemp(dir=self.folder)}",)

    def first_stage(made):
      Run(made.base, workdir).stage("data")

    with contextlib.chdir(ROOT), experiments_are(first_stage):
      status, _, err = _front(command)(*arguments, *small, *own)
    self.assertEqual(status, 0, err)

  def _names_a_file(self, command):
    """A script or a benchmark, whose own test or run is elsewhere."""
    paths = re.findall(
      r"(?:datasets|tests|launch|hsrl_jax)[\w./]+\.(?:py|sh)", command
    )
    modules = re.findall(r"-m (?:hsrl_jax\.shipped\.)?(\w+\.[\w.]+)", command)
    for path in (x.replace(".", "/") for x in modules):
      package = (ROOT / path).is_dir()
      paths.append(f"{path}/__main__.py" if package else f"{path}.py")
    self.assertNotEmpty(paths, command)
    for path in paths:
      self.assertTrue((ROOT / path).exists(), command)


def _public_data():
  """Files such as those of two public data sets, below `data`."""
  bought = {u: [(3 * u + 2 * t) % 16 for t in range(5)] for u in range(7)}
  pathlib.Path("data/beauty/inter.json").write_text(json.dumps(bought))
  sids = {i: [i // 4, i % 4] for i in range(16)}
  pathlib.Path("data/beauty/index_rqvae.json").write_text(json.dumps(sids))
  films = [f"{i}::Film {i} (1999)::Drama|{i % 2}" for i in range(1, 13)]
  ratings = [
    f"{u}::{1 + i}::{1 + (u + i) % 5}::{60 * i + u}"
    for u in range(10)
    for i in range(11)
  ]
  for name, lines in (("movies", films), ("ratings", ratings)):
    path = pathlib.Path(f"data/ml-1m/{name}.dat")
    path.write_text("\n".join(lines), encoding="latin-1")


class NamesTest(parameterized.TestCase):
  def test_python_blocks_run(self):
    blocks = [x for page in PAGES for x in _blocks("python", page)]
    self.assertGreater(len(blocks), 1)
    for block in blocks:
      exec(compile(block, "docs", "exec"), {})

  def test_flags_exist(self):
    flag = re.compile(r"(?<![\w-])--(\w[\w-]*)")
    with published():
      known = set(flags.FLAGS) | OTHERS
    for path in PROGRAMS:
      text = path.read_text()
      known |= set(flag.findall(text))
      known |= set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
      known |= set(re.findall(r"^  (\w+): ", text, re.M))  # Of Settings.
    for page in (x for x in PAGES if x.parent != LAB):
      for name in flag.findall(page.read_text()):
        # `--experiment_` stands for all that begin so.
        group = name.endswith("_") and any(x.startswith(name) for x in known)
        self.assertTrue(group or name in known, f"{page.name}: --{name}")

  def test_links_lead_somewhere(self):
    texts = {page: page.read_text() for page in PAGES}
    cells = nbformat.read(NOTEBOOK, 4).cells
    texts[NOTEBOOK] = "\n".join(
      x.source for x in cells if x.cell_type == "markdown"
    )
    seen = 0
    for page, text in texts.items():
      for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
          continue
        seen += 1
        path, _, anchor = target.partition("#")
        path = page.parent / path if path else page
        self.assertTrue(path.exists(), f"{page.name}: {target}")
        if anchor:
          count = _anchors(path).count(anchor)
          self.assertEqual(count, 1, f"{page.name}: {target}")
    self.assertGreater(seen, 50)

  def test_the_method_names_what_is_there(self):
    text = "".join((DOCS / f"{name}.md").read_text() for name in METHOD)
    named = re.findall(r"\(\.\./(hsrl_jax/\S+\.py)\)((?:,?\s`\w+`)+)", text)
    self.assertGreater(len(named), 40)
    for path, names in named:
      source = (ROOT / path).read_text()
      for name in re.findall(r"\w+", names):
        pattern = rf"^\s*(def|class) {name}\b"
        self.assertTrue(re.search(pattern, source, re.M), f"{path}: {name}")


@pytest.mark.slow
class SiteTest(absltest.TestCase):
  def test_builds_without_warnings_and_describes_everything(self):
    with tempfile.TemporaryDirectory() as folder:
      ran = _process(
        ["-m", "sphinx", "-W", "-q", "-b", "html", str(DOCS), folder]
      )
      self.assertEqual(ran.returncode, 0, ran.stderr)
      inventory = (pathlib.Path(folder) / "objects.inv").read_bytes()
    body = zlib.decompress(inventory.split(b"\n", 4)[4]).decode()
    described = {line.split(" ", 1)[0] for line in body.splitlines()}
    public = set(_public())
    self.assertGreater(len(public), 200)
    self.assertEmpty(public - described)

  def test_notebook_runs(self):
    notebook = nbformat.read(NOTEBOOK, 4)
    environment = quick() | {"PYTHONPATH": str(ROOT)}
    client = nbclient.NotebookClient(notebook, timeout=300)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      client.execute(env=environment)
    self.assertLess(NOTEBOOK.stat().st_size, 100_000)


def _anchors(page: pathlib.Path) -> list[str]:
  """What GitHub makes of the headings, before it numbers those said twice."""
  text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
  headings = re.findall(r"^#+ (.*)$", text, re.M)
  plain = [re.sub(r"[^\w\- ]", "", x.lower()) for x in headings]
  return [x.replace(" ", "-") for x in plain]


def _public():
  """The full names of all public functions and classes."""
  for path in sorted((ROOT / "hsrl_jax").rglob("*.py")):
    if path.name == "__init__.py":
      continue
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.parse(path.read_text()).body:
      known = isinstance(node, ast.FunctionDef | ast.ClassDef)
      if known and not node.name.startswith("_"):
        yield f"{module}.{node.name}"


if __name__ == "__main__":
  absltest.main()
