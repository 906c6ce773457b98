"""Study `conservatism`: what a policy is worth that learned from logs.

Logs are drawn in the world of the flags by two policies that do not know the
user: uniform, and by popularity with a temperature. From them agents learn
without the simulator, each by the same number of updates. What they learned is
then worth what it earns in the world, beside the logging policy and the bounds:
against the number of slates, and, of CQL, against the weight of its
conservative term. `model` is HSRL that learned on-policy in a model of the
logs, a click model and boredom that are fitted to their sessions. What each
policy earns in that model is the estimate that the logs alone give, and stands
beside the truth. (Weights of whole sessions know nothing of slates like these:
a session is 20 slates of ten out of thousands of items.)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hsrl_jax.agents import make_agent, trained_by
from hsrl_jax.config import Config
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, simulate, statistics
from hsrl_jax.evaluation import simulated_logs as logs
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.host import watch
from hsrl_jax.report import plots, tables
from hsrl_jax.session_config import FITTED_TO_LOGS
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import topics as topics_lib
from hsrl_jax.sim import user_simulator
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import policy, simulator
from hsrl_jax.stages.run import Run
from hsrl_jax.studies.registry import Conservatism
from hsrl_jax.types import Sessions

CONSERVATIVE = "cql"
MODEL = "model"
DEFAULT = (CONSERVATIVE, entrants.REFERENCE, MODEL)
# Of `model`, beside the flags; found on validation users of the world itself.
IN_MODEL = {
  "recipe": "on_policy",
  "learning_rate": 3e-3,
  "trace": 0.5,
}
_TEMPERATURE = 1.0  # Of the popularity policy that draws logs.
_VALIDATION = 0.1  # Of the sessions, to choose the epochs of the model's fit.
LOGGING = ("uniform", "popularity")
_DRAWN = "logged"  # The folder of what is kept of rewards.


class _World(NamedTuple):
  """A world, and the users by whom policies are measured."""

  experiment: jobs.Experiment
  run: Run  # With data, SIDs and click model.
  env: UserSimulator  # How its users respond.
  users: EnvParams  # With the pool of the evaluation's split.
  rows: np.ndarray  # int32 [E], of that pool.
  user: np.ndarray  # int [E], who they are.


class Row(NamedTuple):
  """A policy to train."""

  logging: str  # The logging policy, of LOGGING.
  agent: str  # Its name, or MODEL.
  slates: int  # Logged.
  # Of the conservative term; None where the agent has none.
  weight: float | None

  @property
  def name(self) -> str:
    """Of its folder."""
    weight = "" if self.weight is None else f"_{self.weight:g}"
    return f"{self.logging}/{self.agent}_{self.slates}{weight}"


def run(experiment: jobs.Experiment) -> None:
  """Draws the logs, trains what is missing, measures, writes and prints.

  Raises:
    InputError: an agent does not learn from logs.
  """
  world = _world(experiment)
  rows = plan(experiment)
  earned = _bounds(world)
  measured = []
  for logging in LOGGING:
    own = [row for row in rows if row.logging == logging]
    drawn = _drawn(world, logging, max(x.slates for x in own))
    for row in own:
      number = len(measured) + 1
      print(f"job {number} of {len(rows)}: {row.name}", flush=True)
      known = world, row, logs.first(drawn, row.slates)
      rewards = _kept(row.name, _trained, *known)
      believed = _kept(f"in_model/{row.name}", _believed, *known)
      measured.append((row, rewards, believed))
      jax.clear_caches()
  results = {
    "dataset": experiment.base.data.dataset,
    "split": experiment.base.evaluate.split,
    "episodes": len(world.rows),
    "iterations": experiment.base.train.iterations,
    "logging_temperature": _TEMPERATURE,
    "bounds": {
      name: statistics.summarise(x, world.user) for name, x in earned.items()
    },
    "rows": [_row(world, *x, earned) for x in measured],
  }
  jobs.finish(experiment, results, table, figure)


def compared(config: Conservatism) -> tuple[str, ...]:
  """The agents that the study trains."""
  of_model = {MODEL: entrants.REFERENCE}
  return tuple(dict.fromkeys(of_model.get(x, x) for x in _learners(config)))


def _learners(config: Conservatism) -> tuple[str, ...]:
  """Who learns: agents, and MODEL."""
  names = DEFAULT if config.agents is None else config.agents
  for name in names:
    if name not in (*trained_by("logs"), MODEL):
      raise InputError(
        f"--study_agents has {name!r}; expected some of "
        f"{', '.join(trained_by('logs'))}, which learn from logs, and {MODEL}"
      )
  return tuple(names)


def plan(experiment: jobs.Experiment) -> list[Row]:
  """All that is trained: each size of logs, then each conservative weight."""
  config, rows = experiment.config, []
  own = experiment.with_agent(CONSERVATIVE).settings
  for logging in LOGGING:
    for agent in _learners(config):
      weights = [None]
      if agent == CONSERVATIVE:
        weights = [own.conservative_weight]
      rows += [
        Row(logging, agent, slates, weight)
        for slates in config.logged_slates
        for weight in weights
      ]
      if agent == CONSERVATIVE:
        most = max(config.logged_slates)
        weights = [own.conservative_weight, *config.conservative_weights]
        rows += [Row(logging, agent, most, weight) for weight in weights]
  return list(dict.fromkeys(rows))


def _world(experiment: jobs.Experiment) -> _World:
  """Prepares data, SIDs and click model."""
  run = jobs.prepare(experiment, jobs.Job("world", experiment.base))
  c = experiment.base.evaluate
  user = run.dataset.splits[c.split].user_id
  rows = simulate.sample(user, c.episodes)
  return _World(experiment, run, run.env, run.users(c.split), rows, user[rows])


def _drawn(world: _World, logging: str, slates: int) -> Sessions:
  """The logs of a logging policy."""
  run = world.run
  return logs.draw(
    run.env,
    run.users("train"),
    run.dataset.splits["train"].user_id,
    _weights(run.catalogue, logging),
    run.catalogue.index.active,
    slates=slates,
    seed=0,
  )


def _weights(catalogue: Catalogue, logging: str) -> jax.Array:
  """See logs.log_weights."""
  return logs.log_weights(
    catalogue.popularity,
    catalogue.index.active,
    _TEMPERATURE if logging == "popularity" else None,
  )


def _config(world: _World, row: Row) -> Config:
  """The configuration that a row is trained by."""
  if row.agent == MODEL:
    config = world.experiment.with_agent(entrants.REFERENCE, **IN_MODEL)
    simulator = dataclasses.replace(config.simulator, boredom=FITTED_TO_LOGS)
    return dataclasses.replace(config, simulator=simulator)
  changes: dict[str, Any] = {"recipe": "logs"}
  if row.weight is not None:
    changes["conservative_weight"] = row.weight
  return world.experiment.with_agent(row.agent, **changes)


def _trained(world: _World, row: Row, drawn: Sessions) -> list[np.ndarray]:
  """Trains; the total rewards in the world, [S, E]."""
  env, users = _teacher(world, row, drawn)
  policy.run(
    _config(world, row),
    world.experiment.workdir / row.name,
    env,
    world.run.catalogue,
    users,
    users,
    world.rows,
    drawn,
    watch.Watch(),
  )
  return _earned_by(world, row, (env, users))


def _believed(world: _World, row: Row, drawn: Sessions) -> list[np.ndarray]:
  """Total rewards in a model of the logs, of the same users, [S, E]."""
  teacher = _teacher(world, row, drawn)
  env, _, users = _model(world, row, drawn)
  world = world._replace(env=env, users=users)
  return _earned_by(world, row, teacher)


def _teacher(
  world: _World, row: Row, drawn: Sessions
) -> tuple[UserSimulator, EnvParams]:
  """The simulator that a row is trained with; one from logs does not ask it."""
  if row.agent == MODEL:
    return _model(world, row, drawn)[:2]
  return world.run.env, world.run.users("train")


def _earned_by(
  world: _World, row: Row, teacher: tuple[UserSimulator, EnvParams]
) -> list[np.ndarray]:
  """Total rewards in a world of what `teacher` trained, [S, E]."""
  config, catalogue = _config(world, row), world.run.catalogue
  folder, (env, users) = world.experiment.workdir / row.name, teacher
  params = policy.load(config, folder, env, catalogue, users)
  agent = make_agent(config, env.slate_size, catalogue.index.num_items)
  act = policy.greedy(agent)
  return [_earned(world, act, (p, catalogue)) for p in params]


def _model(
  world: _World, row: Row, drawn: Sessions
) -> tuple[UserSimulator, EnvParams, EnvParams]:
  """A simulator that is fitted to logs, its users, and the tested ones."""
  run = world.run
  of_logs = Row(row.logging, MODEL, row.slates, None)
  folder = world.experiment.workdir / of_logs.name
  config = _config(world, of_logs).simulator
  # The last sessions are no other users': what is chosen by them is the epoch.
  sessions = drawn.session.max() + 1
  late = drawn.session >= (1 - _VALIDATION) * sessions
  train, val = (
    jax.tree.map(lambda x, of=of: x[of], drawn) for of in (~late, late)
  )
  dataset = run.dataset._replace(
    splits={"train": train, "val": val, "test": val}
  )
  # What is written last says that it is whole.
  if not (folder / simulator.FOLDER / "quality.json").exists():
    simulator.run(config, folder, dataset)
  response = simulator.load(config, folder, dataset)
  topics = topics_lib.of_categories(run.dataset.items.genres)
  env = user_simulator.make(config, run.env.slate_size, len(topics.names))
  pools = (
    user_simulator.pool(response, run.dataset.splits[split], topics)
    for split in ("train", world.experiment.base.evaluate.split)
  )
  return env, *pools


def _bounds(world: _World) -> dict[str, list[np.ndarray]]:
  """Total rewards, [1, E], of the bounds and the logging policies."""
  catalogue = world.run.catalogue
  active = catalogue.index.active
  policies = bounds.bounds(world.env, world.users, active)
  act = logs.policy(world.env.slate_size)
  for logging in LOGGING:
    weights = _weights(catalogue, logging)
    policies[f"logging: {logging}"] = act, (weights, active)
  return {
    name: _kept(
      f"bounds/{name.replace(': ', '_')}",
      lambda *own: [_earned(*own)],
      world,
      *own,
    )
    for name, own in policies.items()
  }


def _earned(world: _World, act: simulate.Act, params: Any) -> np.ndarray:
  """Total rewards of a policy in the world, [E]."""
  key = jax.random.key(simulate.SEED)
  given = (act, world.env, params, world.users, key, world.rows)
  return simulate.simulate(*given, episodes=len(world.rows)).total_reward


def _kept(name: str, make, world: _World, *own) -> np.ndarray:
  """Rewards [S, E] that `make` makes of the rest where none are kept."""
  experiment = world.experiment
  path = experiment.workdir / _DRAWN / f"{name}.json"

  def made() -> list[list[float]]:
    with jobs.timed(experiment, name, "policy"):
      return [x.tolist() for x in make(world, *own)]

  return np.array(jobs.kept(path, made))


def _row(
  world: _World,
  row: Row,
  rewards: np.ndarray,
  believed: np.ndarray,
  known: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """An entry of `rows` of results.json."""

  def above(name: str) -> dict[str, Any]:
    return statistics.difference(rewards, known[name], world.user)

  return row._asdict() | {
    "total_reward": statistics.summarise(rewards, world.user),
    "in_model": statistics.summarise(believed, world.user),
    "above_logging": above(f"logging: {row.logging}"),
    "above_best_constant": above("best_constant"),
    "seconds": jobs.seconds(world.experiment).get(row.name, {}).get("policy"),
  }


def table(results: Mapping[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = (
    f"{results['dataset']}, split {results['split']}, "
    f"{results['episodes']:,} sessions a seed, {results['iterations']:,} "
    "updates; total reward in the world that the logs are of"
  )
  known = [(name, *tables.cells(x)) for name, x in results["bounds"].items()]
  known.insert(0, ("", "reward", "[95% CI]"))
  parts = [tables.filled(head), tables.aligned(known)]
  for logging in LOGGING:
    rows = [
      ("agent", "slates", "w", "reward", "in model", "log. +", "const. +")
    ]
    for row in results["rows"]:
      if row["logging"] == logging:
        weight = row["weight"]
        rows.append(
          (
            row["agent"],
            f"{row['slates']:,}",
            "" if weight is None else f"{weight:g}",
            tables.mean(row["total_reward"]),
            tables.mean(row["in_model"]),
            tables.interval(row["above_logging"]),
            tables.interval(row["above_best_constant"]),
          )
        )
    parts.append(f"learned from logs of the policy {logging}:")
    parts.append(tables.aligned(rows))
  note = (
    "model: HSRL, on-policy in a model of the logs. w: weight of the "
    "conservative term. in model: what the same policy earns in a model of its "
    "logs, all that one knows without the world. log. +, const. +: 95 % "
    "intervals of what is earned above the logging policy, and above the best "
    "constant slates, both paired by user and luck."
  )
  return tables.blocks(*parts, tables.filled(note))


def figure(results: Mapping[str, Any]) -> Figure:
  """True value against the size of the logs, and the conservative weight."""
  weighed = any(x["weight"] is not None for x in results["rows"])
  made = Figure(figsize=(9 if weighed else 5, 6.5), layout="constrained")
  panels = made.subplots(len(LOGGING), 1 + weighed, sharey=True, squeeze=False)
  for axes, logging in zip(panels, LOGGING, strict=True):
    rows = [x for x in results["rows"] if x["logging"] == logging]
    most = max(x["slates"] for x in rows)
    usual = next((x["weight"] for x in rows if x["weight"] is not None), None)
    for number, agent in enumerate(dict.fromkeys(x["agent"] for x in rows)):
      own = [x for x in rows if x["agent"] == agent]
      sizes = [x for x in own if x["weight"] in (None, usual)]
      weights = [x for x in own if x["weight"] is not None]
      weights = [x for x in weights if x["slates"] == most]
      for panel, shown, by in (
        (axes[0], sizes, "slates"),
        (axes[-1], weights, "weight"),
      ):
        _line(panel, shown, by, agent, number)
    labels = ("slates", "weight of the conservative term")
    for panel, label in zip(axes, labels, strict=False):
      plots.style(panel, f"logs: {logging}", label)
      for name in (f"logging: {logging}", "best_constant"):
        plots.level(panel, results["bounds"][name]["mean"], name)
    axes[0].set_xscale("log")
    if weighed:
      axes[1].set_xscale("symlog", linthresh=0.01)
      axes[1].set_xlim(left=-0.002)
  plots.legend_below(made, 2, panels[0, 0].get_legend_handles_labels()[0])
  return made


def _line(
  axes: Axes, rows: list[dict[str, Any]], by: str, agent: str, number: int
) -> None:
  """Rewards with their intervals, and in the model, by a number of the rows."""
  rows = sorted(rows, key=lambda x: x[by])
  if not rows:
    return
  mean = np.array([x["total_reward"]["mean"] for x in rows])
  low, high = np.array([x["total_reward"]["ci95"] for x in rows]).T
  places = [x[by] for x in rows]
  color = plots.COLOURS[number % len(plots.COLOURS)]
  marker = plots.MARKERS[number % len(plots.MARKERS)]
  how = {"color": color, "marker": marker, "markersize": 3.5}
  errors = [mean - low, high - mean]
  axes.errorbar(places, mean, errors, capsize=3, label=agent, **how)
  believed = [x["in_model"]["mean"] for x in rows]
  how |= {"linestyle": ":", "markerfacecolor": "white"}
  axes.plot(places, believed, label=f"{agent}, in a model of its logs", **how)
