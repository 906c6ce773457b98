"""Experiment `results`: docs/RESULTS.md out of what experiments left.

For each experiment in --experiment_workdirs `results.json` and `plot.png` are
copied to `results/` below --workdir, under the name of its folder; the page is
then written from that folder alone: contents, sections and its `notes.md`.
"""

import json
import pathlib
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from hsrl_jax import files
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import statistics
from hsrl_jax.experiments import entrants, jobs, over_worlds
from hsrl_jax.experiments.registry import Entry
from hsrl_jax.report import plots, tables

PAGE = "RESULTS.md"
FOLDER = "results"
UNSHOWN = "tuning"  # A folder in it, of what is on no page.
# Before the name of a world: the rules in it, which stand in its section.
RULES = "rules_"
OVER_WORLDS = "over_worlds"  # The picture of all worlds that have rules.
_WIDTH = 120


def run(experiment: jobs.Experiment) -> None:
  """Copies what the experiments left, and writes the page.

  Raises:
    InputError: a folder holds no finished experiment, or one that the command
      does not know.
  """
  docs, known = experiment.workdir, experiment.known
  for name in experiment.config.workdirs:
    _copy(pathlib.Path(name), docs / FOLDER, known)
  folder = docs / FOLDER
  if found := _over_worlds(_read(folder)):
    picture = plots.png(over_worlds.plot(found, entrants.REFERENCE))
    files.write_atomic(folder / f"{OVER_WORLDS}.png", picture)
  files.write_atomic(docs / PAGE, page(folder, known))
  print(f"results: {docs / PAGE}")


def _copy(
  workdir: pathlib.Path, folder: pathlib.Path, known: Mapping[str, Entry]
) -> None:
  try:
    results = json.loads((workdir / "results.json").read_text())
    picture = (workdir / "plot.png").read_bytes()
    name = results.get("experiment")
  except (OSError, ValueError) as error:
    raise InputError(
      f"--experiment_workdirs has {workdir}, which cannot be read ({error}); "
      "expected the folder of a finished experiment"
    ) from error
  if name not in known:
    what = "a single run" if name is None else f"the experiment {name}"
    raise InputError(
      f"--experiment_workdirs has {workdir}, which holds {what}; expected one "
      f"of the experiments {', '.join(known)}"
    )
  number = results.get("format")
  files.check_format(workdir / "results.json", number, jobs.FORMAT)
  if not known[name].title:
    folder = folder / UNSHOWN
  files.write_json(folder / f"{workdir.name}.json", results)
  files.write_atomic(folder / f"{workdir.name}.png", picture)


def page(folder: pathlib.Path, known: Mapping[str, Entry]) -> str:
  """The page of a folder with results, which are those of `run`.

  Args:
    folder: of the results.
    known: experiments by name, in the page's order.

  Raises:
    InputError: there are results of an experiment that is not known.
  """
  results = _read(folder)
  for name, x in results.items():
    if x["experiment"] not in known:
      raise InputError(
        f"{folder / name}.json is of the experiment {x['experiment']}; "
        f"expected some of {', '.join(known)}: write the page with the command "
        "that knows it"
      )
  about = (
    f"Written by the experiment `results` out of the files in `{FOLDER}/`: no "
    "figure of a table is typed by hand. Rewards are totals of a session; "
    "intervals are of 95 %."
  )
  contents, parts = [], []
  for experiment, entry in known.items():
    names = [
      k
      for k, x in results.items()
      if x["experiment"] == experiment
      and k.removeprefix(RULES) not in results.keys() - {k}
    ]
    if names:
      contents.append(f"- {_link(entry.title)}: {', '.join(map(_link, names))}")
      parts += [f"## {entry.title}", _fill(entry.question)]
      if experiment == "world" and (found := _over_worlds(results)):
        parts.append(_all_worlds(found))
      for name in names:
        parts.append(_section(name, results[name]))
        if rules := results.get(f"{RULES}{name}"):
          parts.append(_rules(results[name], rules))
  notes = folder / "notes.md"
  if notes.exists():
    parts.append(notes.read_text().strip())
    titles = re.findall(r"^## (.+)$", parts[-1], re.M)
    contents += [f"- {_link(title)}" for title in titles]
  parts = ["# Results", _fill(about), "\n".join(contents), *parts]
  return "\n\n".join(parts) + "\n"


def _read(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Name to results, of each file of the folder."""
  return {
    path.stem: files.read_json(path, jobs.FORMAT)
    for path in sorted(folder.glob("*.json"))
  }


def _over_worlds(results: dict[str, dict[str, Any]]) -> over_worlds.Runs:
  """The runs of all worlds in which rules were tried; empty without any."""
  rules = {
    x.removeprefix(RULES): results[x] for x in results if x.startswith(RULES)
  }
  worlds = {x: results[x] for x in rules if x in results}
  return over_worlds.runs(worlds, rules) if worlds else {}


def _all_worlds(found: over_worlds.Runs) -> str:
  return "\n\n".join(
    (
      "### All worlds",
      _fill(
        "The middle half of all runs of the worlds in which rules were tried "
        "(IQM), on the way from random slates, 0, to the best bound, 1; "
        "intervals by a bootstrap within each world (Agarwal et al., 2021). "
        "The best rule is that of each world, by test users. Below: the share "
        "of runs above each reward."
      ),
      f"```\n{over_worlds.table(found)}\n```",
      f"![All worlds]({FOLDER}/{OVER_WORLDS}.png)",
    )
  )


def _link(title: str) -> str:
  """To the heading of this title, where GitHub and the site put it."""
  anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
  return f"[{title}](#{anchor})"


def _section(name: str, results: dict[str, Any]) -> str:
  seeds = ", ".join(map(str, results["seeds"]))
  return "\n\n".join(
    (
      f"### {name}",
      f"```bash\n{results['command']}\n```",
      f"Seeds {seeds}; commit {results['commit']}; took "
      f"{_duration(results['seconds'])}.",
      "\n".join(("```", *results["table"], "```")),
      f"![{name}]({FOLDER}/{name}.png)",
    )
  )


def _rules(world: dict[str, Any], rules: dict[str, Any]) -> str:
  """The rules in a world: their table, and what the reference earns more.

  That is paired by session where both have the same sessions, with Student's
  interval over the seeds of the reference.
  """
  lines = []
  for name, row in rules["rows"].items():
    if row["kind"] == "rule" and rules["episodes"] == world["episodes"]:
      reference = world["reference"]
      own = world["rows"][reference]["total_reward"]["per_seed"]
      earned = row["total_reward"]["mean"]
      more = statistics.summarise([np.array([x - earned]) for x in own])
      title = name if row["agent"] == name else f"{name} ({row['agent']})"
      cells = " ".join(tables.cells(more))
      lines.append(f"- {reference} less {title}: {cells}")
  return "\n\n".join(
    (
      f"Rules in this world, which learn nothing:\n\n```bash\n"
      f"{rules['command']}\n```",
      f"Commit {rules['commit']}; took {_duration(rules['seconds'])}; "
      "intervals over users.",
      "\n".join(("```", *rules["table"], "```")),
      "On the same sessions, intervals over the seeds of the trained:\n\n"
      + "\n".join(lines),
    )
  )


def _duration(seconds: float) -> str:
  minutes = round(seconds / 60)
  if minutes < 1:
    return f"{seconds:.0f} s"
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _fill(text: str) -> str:
  return textwrap.fill(
    text, _WIDTH, break_on_hyphens=False, break_long_words=False
  )
