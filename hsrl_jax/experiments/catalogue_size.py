"""Experiment: what the size of the catalogue costs, from 10^3 to 10^6 items.

The users and their click model are those of the dataset. A smaller catalogue is
a random part of its items, and what a history has of the others is replaced by
the nearest that is left. A larger one also has mixtures of two of its items. A
click model's logit is linear in an item's features, so that nobody likes a
mixture more than both of what it is made of.

HSRL scores all items below 10^5 and searches from there; policies with one
logit per item score all. Each size and policy is measured in a process of its
own, for its memory. Large catalogues are evaluated on fewer users, the bounds
too, see `sessions`.
"""

import concurrent.futures
import io
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from hsrl_jax import files, sid
from hsrl_jax.agents import make_agent
from hsrl_jax.agents.base import ActionSpace
from hsrl_jax.config import EvaluateConfig
from hsrl_jax.engine import loop
from hsrl_jax.evaluation import simulate
from hsrl_jax.experiments import jobs
from hsrl_jax.experiments.changing_catalogue import LABELS, POLICIES
from hsrl_jax.report import plots
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import policy, quantize

_SCORES = 50_000_000  # Numbers that the evaluation holds for each array.
_DECISIONS = 20
_LARGEST_STEP = 0.5  # Of a mixture: how far it is from the first item.


class Items(NamedTuple):
  """A catalogue made of another one.

  Attributes:
    features: float32 [N + 1, D], row 0 for padding.
    stands_for: int32 [M + 1], who is in a history for each of the others.
  """

  features: np.ndarray
  stands_for: np.ndarray


def synthetic(features: np.ndarray, size: int, seed: int) -> Items:
  """A catalogue of `size` items; see the module.

  Args:
    features: float32 [M + 1, D], of the dataset, row 0 for padding.
    size: N.
    seed: of the draws.
  """
  rng = np.random.default_rng([seed, size])
  count = len(features) - 1
  same = np.arange(count + 1, dtype=np.int32)
  if size <= count:
    chosen = np.concatenate([[0], np.sort(rng.permutation(count)[:size] + 1)])
    made = features[chosen]
    # |a - b|^2 less |a|^2, which is the same for all b.
    distance = (made[1:] ** 2).sum(1) - 2 * features[1:] @ made[1:].T
    return Items(made, np.append(0, distance.argmin(1) + 1).astype(np.int32))
  first = rng.integers(count, size=size - count)
  second = (first + rng.integers(1, count, size - count)) % count  # Another.
  step = rng.uniform(0, _LARGEST_STEP, (size - count, 1)).astype(np.float32)
  real = features[1:]
  mixed = real[first] + step * (real[second] - real[first])
  return Items(np.concatenate([features, mixed]), same)


def sessions(config: EvaluateConfig, size: int) -> int:
  """Sessions, each of a user of its own, that a size is evaluated on."""
  return max(min(config.episodes, _SCORES // size), 1)


class World(NamedTuple):
  """A simulator with a catalogue of some size.

  Attributes:
    env: the simulator.
    catalogue: the items.
    users: the pool for training.
    held_out: the pool for the evaluation.
    seconds: that the SIDs took.
  """

  env: UserSimulator
  catalogue: ActionSpace
  users: EnvParams
  held_out: EnvParams
  seconds: float


def world(experiment: jobs.Experiment, size: int) -> World:
  """The world of a size; its SIDs are made once."""
  base = experiment.base
  run = jobs.prepare(experiment, jobs.Job("dataset", base))
  items = synthetic(run.dataset.items.features, size, experiment.config.seed)
  path = _folder(experiment, size) / "sids.npz"
  if not path.exists():
    start = time.monotonic()
    codebooks = quantize.fit(base.quantizer, items.features[1:])
    tokens = sid.encode_unique(codebooks, items.features[1:])
    buffer = io.BytesIO()
    seconds = time.monotonic() - start
    np.savez(buffer, codebooks=codebooks, tokens=tokens, seconds=seconds)
    files.write_atomic(path, buffer.getvalue())
  with np.load(path) as made:
    index = sid.build_index(made["tokens"], base.quantizer.vocab_size)
    codebooks, seconds = jnp.asarray(made["codebooks"]), float(made["seconds"])
  features = jnp.asarray(items.features)

  def pool(split, count=None):
    users = run.users(split)
    rows = np.arange(len(users.profiles))
    if count is not None:  # Spread over the pool, which may be in order.
      rows = rows[:: max(len(rows) // count, 1)][:count]
    return EnvParams(
      users.response._replace(item_features=features),
      users.profiles[rows],
      jnp.asarray(items.stands_for[np.asarray(users.histories)[rows]]),
    )

  return World(
    run.env,
    ActionSpace(features, index, codebooks),
    pool("train"),
    pool(base.evaluate.split, sessions(base.evaluate, size)),
    seconds,
  )


def bounds(experiment: jobs.Experiment, size: int) -> dict[str, float]:
  """Total reward of the bounds at a size, and the seconds that SIDs took."""
  w = world(experiment, size)
  found = simulate.bounds(w.env, w.held_out, w.catalogue.index.active)
  return {"sids_seconds": w.seconds} | {
    name: _reward(experiment, w, act, params, size)
    for name, (act, params) in found.items()
  }


def measure(
  experiment: jobs.Experiment, size: int, name: str
) -> dict[str, Any]:
  """A policy at a size.

  Returns:
    `total_reward` of each seed, `iteration_ms`, `decision_ms`, `memory_gb`, the
    most that the process had until it was trained, and `start_gb`, what it had
    before. What could not be measured is None, and `left_out` says why.
  """
  c = experiment.config
  config = experiment.with_agent(**POLICIES[name])
  w = world(experiment, size)
  found = dict.fromkeys(
    ("total_reward", "iteration_ms", "decision_ms", "memory_gb", "left_out")
  )
  found["start_gb"] = _memory("VmRSS")
  agent = make_agent(config, w.env.slate_size, w.catalogue.index.num_items)
  engine = loop.make(agent, w.env, config.train)
  inputs = loop.Inputs(w.catalogue, w.users)
  start = jax.jit(engine.init)
  iterate = (
    jax.jit(engine.run, donate_argnums=(0, 1))
    .lower(*jax.eval_shape(start, 0, inputs), inputs)
    .compile()
  )
  plan = iterate.memory_analysis()
  needed = (plan.temp_size_in_bytes + plan.argument_size_in_bytes) / 1e9
  if needed > c.memory_gb:
    why = f"training needs {needed:.0f} GB, above the limit of {c.memory_gb:g}"
    return found | {"left_out": why}

  per_call = config.train.iterations_per_call
  calls = config.train.iterations // per_call
  trained, seconds, done = [], 0.0, 0
  for seed in config.train.seeds:
    learner, stream = jax.block_until_ready(start(seed, inputs))
    for call in range(calls):
      begin = time.monotonic()
      learner, stream, _ = iterate(learner, stream, inputs)
      jax.block_until_ready(learner)
      seconds += time.monotonic() - begin
      done += per_call
      expected = seconds / done * config.train.iterations
      if call == 0 and expected > c.seconds_per_run:
        found["left_out"] = (
          f"training takes {expected:,.0f} s a seed, above the limit of "
          f"{c.seconds_per_run:g}"
        )
        break
    trained.append(learner.target_params)
    if found["left_out"]:
      break
  found["iteration_ms"] = 1e3 * seconds / done
  found["memory_gb"] = _memory("VmHWM")
  del stream
  act = policy.greedy(agent)
  found["decision_ms"] = 1e3 * _decision_seconds(act, w, trained[0])
  if not found["left_out"]:
    found["total_reward"] = [
      _reward(experiment, w, act, (params, w.catalogue), size)
      for params in trained
    ]
  return found


def run(experiment: jobs.Experiment) -> dict[str, Any]:
  """Runs what is missing; leaves results.json, table.txt and plot.png."""
  c = experiment.config
  jobs.prepare(experiment, jobs.Job("dataset", experiment.base))
  todo = [(size, name) for size in c.sizes for name in ("bounds", *POLICIES)]
  limits, found = {}, {}
  for number, (size, name) in enumerate(todo, start=1):
    job = f"{size}/{name}"
    print(f"job {number} of {len(todo)}: {job}", flush=True)
    task = (bounds, experiment, size)
    if name != "bounds":
      task = (measure, experiment, size, name)
    with jobs.timed(experiment, job, "measure"):
      made = jobs.kept(
        _folder(experiment, size) / f"{name}.json",
        lambda task=task: alone(*task),
      )
    if name == "bounds":
      limits[size] = made
    else:
      found[size, name] = made
  base = experiment.base
  results = summary(limits, found) | {
    "dataset": base.data.dataset,
    "protocol": base.simulator.protocol,
    "split": base.evaluate.split,
    "iterations": base.train.iterations,
    "episodes": {str(n): sessions(base.evaluate, n) for n in c.sizes},
  }
  jobs.finish(experiment, results, table(results), figure(results))
  return results


def alone(function: Callable[..., Any], *args) -> Any:
  """Calls a function in a process of its own."""
  with concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    return pool.submit(function, *args).result()


def summary(
  limits: dict[int, dict[str, float]],
  found: dict[tuple[int, str], dict[str, Any]],
) -> dict[str, Any]:
  """The bounds, and a row for each size and policy, with `normalised`."""
  rows = []
  for (size, name), x in found.items():
    low, high = limits[size]["random"], limits[size]["greedy_oracle"]
    reward = x["total_reward"]
    normalised = reward and simulate.summarise(
      [[(y - low) / (high - low)] for y in reward]
    )
    rows.append({"size": size, "policy": name, "normalised": normalised} | x)
  return {"bounds": {str(k): v for k, v in limits.items()}, "rows": rows}


def table(results: dict[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  lines = [("items", "policy", "reward", "[95% CI]")]
  lines[0] += ("ms/iteration", "ms/decision", "peak GB")
  notes = []
  for row in results["rows"]:
    reward, ci = "-", "-"
    if row["normalised"]:
      low, high = row["normalised"]["ci95"]
      reward, ci = (
        f"{row['normalised']['mean']:.2f}",
        f"[{low:.2f}, {high:.2f}]",
      )
    numbers = [
      "-" if x is None else f"{x:,.1f}"
      for x in (row["iteration_ms"], row["decision_ms"], row["memory_gb"])
    ]
    lines.append((f"{row['size']:,}", row["policy"], reward, ci, *numbers))
    if row["left_out"]:
      notes.append(f"{row['size']:,} {row['policy']}: {row['left_out']}")
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = [
    "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True))
    for line in lines
  ]
  text.insert(1, "-" * len(text[0]))
  episodes = ", ".join(f"{n:,}" for n in results["episodes"].values())
  return "\n".join(
    [
      f"{results['dataset']}, protocol {results['protocol']}, "
      f"{results['iterations']:,} iterations",
      "reward: 0 random, 1 greedy oracle, at that size",
      f"sessions by size: {episodes}",
      "",
      *text,
      *notes,
    ]
  )


def figure(results: dict[str, Any]) -> Figure:
  """Reward, time and memory by the number of items."""
  drawing = Figure(figsize=(12.5, 3.6), layout="constrained")
  panels = drawing.subplots(1, 4)
  keys = ("normalised", "iteration_ms", "decision_ms", "memory_gb")
  titles = (
    "Reward, 0 random, 1 oracle",
    "Milliseconds per iteration",
    "Milliseconds per decision",
    "Peak memory, GB",
  )
  for axes, key, title in zip(panels, keys, titles, strict=True):
    plots.style(axes, title, "items")
    axes.set_xscale("log")
    if key.endswith("_ms"):
      axes.set_yscale("log")
    for i, name in enumerate(POLICIES):
      rows = [
        x for x in results["rows"] if x["policy"] == name and x[key] is not None
      ]
      x, y = [row["size"] for row in rows], [row[key] for row in rows]
      style = {"color": plots.COLOURS[i], "marker": plots.MARKERS[i]}
      style |= {"markersize": 4, "label": LABELS[name]}
      if key == "normalised":
        mean = np.array([v["mean"] for v in y])
        ends = np.array([v["ci95"] for v in y]).reshape(-1, 2).T
        axes.errorbar(x, mean, np.abs(ends - mean), capsize=2, **style)
      else:
        axes.plot(x, y, **style)
    if key == "memory_gb":
      axes.set_ylim(bottom=0)
  drawing.legend(
    *panels[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=len(POLICIES),
    frameon=False,
    fontsize=8,
  )
  return drawing


def _folder(experiment: jobs.Experiment, size: int) -> pathlib.Path:
  return experiment.workdir / f"{size}_seed_{experiment.config.seed}"


def _reward(experiment, w: World, act, params, size: int) -> float:
  c = experiment.base.evaluate
  found = simulate.simulate(
    act,
    w.env,
    params,
    w.held_out,
    jax.random.key(c.seed),
    episodes=sessions(c, size),
  )
  return float(np.mean(found.total_reward))


def _decision_seconds(act: simulate.Act, w: World, params) -> float:
  """Median seconds of a greedy slate for one user."""
  state = w.env.start(jnp.int32(0), w.held_out)
  decide = jax.jit(act)
  args = ((params, w.catalogue), state.observation, state.seen, None)
  jax.block_until_ready(decide(*args))
  times = []
  for _ in range(_DECISIONS):
    start = time.monotonic()
    jax.block_until_ready(decide(*args))
    times.append(time.monotonic() - start)
  return statistics.median(times)


def _memory(field: str) -> float:
  """A line of this process's status, in GB: VmRSS now, VmHWM at most.

  Not getrusage, whose maximum begins with that of the parent.
  """
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split(f"{field}:")[1].split()[0]) / 1e6
