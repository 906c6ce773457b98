"""Study `closed_loop`: a policy that learns from what it served alone.

A server shows slates to users of the world of the flags, who are clients over
HTTP. It begins with a popularity policy. After each round of sessions, what was
shown and what came of it is collected as logs, HSRL learns in a model of all
logs so far (docs/logs.md), and the next version is published. Beside it stand
its myopic twin, the policy it began with, and the same agent trained in the
world itself, which nobody with real users can do. Each seed of each has a
process of its own, and prints to a file below `logs/`.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from hsrl_jax import files, settings
from hsrl_jax.config import Config, ExportConfig
from hsrl_jax.evaluation import simulate, statistics
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.report import plots, tables
from hsrl_jax.session_config import FITTED_TO_LOGS, SessionConfig
from hsrl_jax.stages import collect
from hsrl_jax.stages.run import Run
from hsrl_jax.studies import clients, workers
from hsrl_jax.studies.registry import ClosedLoop

FIRST = "popularity"  # The policy of the first round.
COMPARED = (entrants.REFERENCE, FIRST)
# Beside HSRL, unless --study_variants names others.
VARIANTS: Mapping[str, Mapping[str, Any]] = {"myopic": {"discount": 0.0}}
_WORLD = "world"  # Trained in it.
STAGES = ("data", "quantize", "simulator", "policy")
# A round learns from so many training slates, the newest: so it costs what the
# one before did, and programs of the same shapes are compiled once.
_NEWEST = 40_000
# Of the click model of the logs, of which there are many: as in ml1m.flags.
_FIT = {
  "batch_size": 256,
  "epochs": 2,
  "learning_rate": 5e-3,
  "dropout": 0.1,
  "weight_decay": 0.01,
}
_TEMPERATURE = 0.5  # That slates are drawn with.
_AGAIN = 6  # A round that goes on learns so many times shorter.


def run(experiment: jobs.Experiment) -> None:
  """Runs what is missing; leaves results.json, table.txt and plot.png.

  Raises:
    InputError: a process failed, such as where its server ended.
  """
  world = jobs.prepare(experiment, jobs.Job("world", experiment.base))
  seeds, names = experiment.base.train.seeds, arms(experiment.config)
  rounds = experiment.config.rounds
  tasks = [
    workers.Task(f"{arm}/{seed}", _curve, (experiment, arm, seed), rounds)
    for seed in seeds
    for arm in names
  ] + [
    workers.Task(f"{_WORLD}/{seed}", _in_world, (experiment, seed), 1)
    for seed in seeds
  ]

  def known_of(name: str) -> list[list[float]]:
    return json.loads(_file(experiment, name).read_text())

  missing = [x for x in tasks if not _file(experiment, x.name).exists()]
  for task, spent in workers.run(missing, experiment.workdir / "logs", "round"):
    jobs.add_seconds(experiment, task.name, "loop", spent)
    means = " ".join(f"{np.mean(x):.2f}" for x in known_of(task.name))
    print(f"{task.name}: {means}", flush=True)
  curves = {arm: [known_of(f"{arm}/{x}") for x in seeds] for arm in names}
  known = [known_of(f"{_WORLD}/{x}")[0] for x in seeds]
  users = [_users(experiment, world, seeds[0], x)[1] for x in range(rounds)]
  # Of what the world's own policy earns, in the last round, [S].
  shares = np.array(curves["hsrl"])[:, -1].mean(1) / np.mean(known, 1)
  results = {
    "dataset": experiment.base.data.dataset,
    "rounds": rounds,
    "sessions": experiment.config.sessions,
    "temperature": _TEMPERATURE,
    "iterations": experiment.base.train.iterations,
    "curves": {
      arm: [
        statistics.summarise([y[r] for y in x], users[r])
        for r in range(len(users))
      ]
      for arm, x in curves.items()
    },
    "in_world": statistics.summarise(known, users[-1]),
    "share": {"mean": float(shares.mean()), "per_seed": shares.tolist()},
  }
  jobs.finish(experiment, results, table, figure)


def arms(config: ClosedLoop) -> dict[str, Mapping[str, Any]]:
  """Who goes round the loop, by name: changes to the flags' configuration.

  Raises:
    InputError: a variant is unknown.
  """
  names = VARIANTS if config.variants is None else config.variants
  return {entrants.REFERENCE: {}} | entrants.variants(names, VARIANTS)


def _users(
  experiment: jobs.Experiment, world: Run, seed: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the pool of training users, and who they are, int [E] each."""
  user = world.dataset.splits["train"].user_id
  rounds = experiment.config.rounds
  rows = simulate.sample(
    user, experiment.config.sessions, seed * rounds + number % rounds
  )
  return rows, user[rows]


def _file(experiment: jobs.Experiment, name: str) -> pathlib.Path:
  """Where the rewards of an arm, or of the world's own policy, are kept."""
  return experiment.workdir / "curves" / f"{name.replace('/', '_')}.json"


def _curve(
  experiment: jobs.Experiment, arm: str, seed: int, tell: Callable[[], None]
) -> None:
  """Total rewards of each session of each round, [R, E], into a file."""
  folder = experiment.workdir / arm / str(seed)
  shutil.rmtree(folder, ignore_errors=True)  # What was interrupted.
  world = jobs.prepare(experiment, jobs.Job("world", experiment.base))
  rewards = _loop(experiment, world, arm, seed, folder, tell)
  files.write_json(_file(experiment, f"{arm}/{seed}"), rewards)


def _loop(
  experiment: jobs.Experiment,
  world: Run,
  arm: str,
  seed: int,
  folder: pathlib.Path,
  tell: Callable[[], None],
) -> list[list[float]]:
  export, store = folder / "export", folder / "store.sqlite"
  train = world.dataset.splits["train"]
  shown = clients.World(
    world.env,
    world.users("train"),
    [f"user-{x}" for x in train.user_id],
    world.dataset.items.external_ids,
  )
  rewards: list[list[float]] = []
  before, where = None, ("", 0)
  with contextlib.ExitStack() as server:
    for number in range(experiment.config.rounds):
      if number:
        logs = folder / "logs" / f"slates_{world.env.slate_size}"
        files.write_json(logs / "logs.json", {"newest": _NEWEST})
        config = _config(experiment, arm, seed, logs, before)
        policy = Run(config, folder / f"round_{number + 1}")
        policy.claim(settings.texts(config))
        before = policy.workdir
      else:
        config = experiment.with_agent(FIRST, seeds=(seed,), recipe="replay")
        job = jobs.Job(f"{arm}/{seed}/round_1", config)
        policy = jobs.prepare(experiment, job, world)
      policy.complete(STAGES)
      policy.export(
        ExportConfig(
          str(export), (clients.BATCH,), platforms=("cpu",), repeat=True
        )
      )
      if number:
        clients.wait(where, number + 1)
      else:
        log = folder / "server.log"
        where = server.enter_context(clients.server(export, store, log))
      earned = clients.play(
        where,
        shown,
        _users(experiment, world, seed, number)[0],
        temperature=_TEMPERATURE,
        seed=seed * experiment.config.rounds + number,
        label=f"round {number + 1}",
      )
      print(
        f"{arm}, seed {seed}, round {number + 1}: {earned.mean():.2f}",
        flush=True,
      )
      rewards.append(earned.tolist())
      collect.run(str(store), folder / "logs", str(export), 0.0)
      jax.clear_caches()
      tell()
  return rewards


def _config(
  experiment: jobs.Experiment,
  arm: str,
  seed: int,
  logs: pathlib.Path,
  before: pathlib.Path | None,
) -> Config:
  """Of HSRL in a model of the logs so far, going on from the round before."""
  varied = arms(experiment.config)[arm]
  changes: dict[str, Any] = {"seeds": (seed,)} | dict(varied)
  if before is not None:
    train = experiment.base.train
    calls = train.iterations // train.iterations_per_call // _AGAIN
    own = max(calls, 1) * train.iterations_per_call
    changes |= dict.fromkeys(("iterations", "save_every", "curve_every"), own)
    changes["continue_from"] = str(before)
  config = experiment.with_agent(entrants.REFERENCE, **changes)
  rule = {
    x.name: x.default
    for x in dataclasses.fields(SessionConfig)
    if x.name.startswith("boredom")
  }
  simulator = dataclasses.replace(
    config.simulator, **(rule | {"boredom": FITTED_TO_LOGS} | _FIT)
  )
  data = dataclasses.replace(
    config.data, dataset="logs", raw_data_dir=str(logs)
  )
  return dataclasses.replace(config, data=data, simulator=simulator)


def _in_world(
  experiment: jobs.Experiment, seed: int, tell: Callable[[], None]
) -> None:
  """Total rewards of who is trained in the world, [1, E], into a file."""
  world = jobs.prepare(experiment, jobs.Job("world", experiment.base))
  config = experiment.with_agent(entrants.REFERENCE, seeds=(seed,))
  name = f"in_the_world/{seed}"
  run = jobs.prepare(experiment, jobs.Job(name, config), world)
  run.stage("policy")
  ((act, params),) = run.policies
  rows, _ = _users(experiment, world, seed, -1)
  given = (act, world.env, params, world.users("train"), jax.random.key(seed))
  sessions = simulate.simulate(*given, rows, episodes=len(rows))
  rewards = sessions.total_reward.tolist()
  files.write_json(_file(experiment, f"{_WORLD}/{seed}"), [rewards])
  tell()


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = (
    f"{results['dataset']}: {results['rounds']} rounds of "
    f"{results['sessions']:,} sessions, served at temperature "
    f"{results['temperature']:g}; total reward of a session"
  )
  curves = results["curves"]
  rows = [("round", *(x for arm in curves for x in (arm, "[95% CI]")))]
  for number, of_arms in enumerate(zip(*curves.values(), strict=True), start=1):
    rows.append((str(number), *(y for x in of_arms for y in tables.cells(x))))
  note = (
    f"Round 1 is the {FIRST} policy, which nothing but these logs has improved "
    f"on. Trained in the world itself: "
    f"{' '.join(tables.cells(results['in_world']))}; the last round of hsrl "
    f"earns {results['share']['mean']:.0%} of that."
  )
  return tables.blocks(
    tables.filled(head), tables.aligned(rows), tables.filled(note)
  )


def figure(results: Mapping[str, Any]) -> Figure:
  """Reward by round."""
  made = Figure(figsize=(7, 4), layout="constrained")
  axes = made.subplots()
  for number, (arm, rows) in enumerate(results["curves"].items()):
    mean = np.array([x["mean"] for x in rows])
    low, high = np.array([x["ci95"] for x in rows]).T
    rounds = np.arange(1, len(mean) + 1)
    color, marker = plots.COLOURS[number], plots.MARKERS[number]
    axes.plot(rounds, mean, color=color, marker=marker, label=arm)
    axes.fill_between(rounds, low, high, color=color, alpha=0.2)
  # Each label is where the curves are not: they begin low and end high.
  trained, untrained = results["in_world"], results["curves"]["hsrl"][0]
  plots.level(axes, trained["mean"], "trained in the world", 0)
  plots.level(axes, untrained["mean"], "no retraining")
  plots.style(axes, "a policy that learns from what it served", "round")
  axes.set_ylabel("total reward of a session")
  axes.legend(frameon=False)
  return made
