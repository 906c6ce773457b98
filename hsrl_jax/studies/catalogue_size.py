"""Study `catalogue_size`: reward, time and memory, 10^3 to 10^6 items.

The users and their click model are those of the dataset. A smaller catalogue is
a random part of its items, and what a history has of the others is replaced by
the nearest that is left. A larger one also has mixtures of two of its items. A
click model's logit is linear in an item's features, so that nobody likes a
mixture more than both of its parts.

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

from hsrl_jax import files, sid
from hsrl_jax.agents import make_agent
from hsrl_jax.config import EvaluateConfig
from hsrl_jax.engine import core, loop
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds as bounds_lib
from hsrl_jax.evaluation import simulate
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.report import tables
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import policy, quantizer_fit
from hsrl_jax.studies import plots
from hsrl_jax.studies.growing import COMPARED as COMPARED
from hsrl_jax.studies.growing import POLICIES

_SCORES = 50_000_000  # Numbers that the evaluation holds for each array.
_DECISIONS = 20
_LARGEST_STEP = 0.5  # Of a mixture: how far it is from the first item.


class Synthetic(NamedTuple):
  """A catalogue made of another one."""

  features: np.ndarray  # float32 [N + 1, D], row 0 for padding.
  # int32 [M + 1], who is in a history for each of the others.
  stands_for: np.ndarray


def synthetic(features: np.ndarray, size: int) -> Synthetic:
  """`size` items made of the dataset's, float32 [M + 1, D]; see the module."""
  rng = np.random.default_rng([0, size])
  count = len(features) - 1
  same = np.arange(count + 1, dtype=np.int32)
  if size <= count:
    chosen = np.concatenate([[0], np.sort(rng.permutation(count)[:size] + 1)])
    part = features[chosen]
    # |a - b|^2 less |a|^2, which is the same for all b.
    distance = (part[1:] ** 2).sum(1) - 2 * features[1:] @ part[1:].T
    return Synthetic(
      part, np.append(0, distance.argmin(1) + 1).astype(np.int32)
    )
  first = rng.integers(count, size=size - count)
  second = (first + rng.integers(1, count, size - count)) % count  # Another.
  step = rng.uniform(0, _LARGEST_STEP, (size - count, 1)).astype(np.float32)
  real = features[1:]
  mixed = real[first] + step * (real[second] - real[first])
  return Synthetic(np.concatenate([features, mixed]), same)


def sessions(config: EvaluateConfig, size: int) -> int:
  """Sessions, each of a user of its own, that a size is evaluated on."""
  return max(min(config.episodes, _SCORES // size), 1)


class SizedWorld(NamedTuple):
  """A simulator with a catalogue of some size."""

  env: UserSimulator  # The simulator.
  catalogue: Catalogue  # The items.
  users: EnvParams  # The pool for training.
  held_out: EnvParams  # The pool for the evaluation.
  sessions: int  # Of that pool.
  seconds: float  # That the SIDs took.


def world(experiment: jobs.Experiment, size: int) -> SizedWorld:
  """The world of a size; its SIDs are made once."""
  base = experiment.base
  if base.simulator.uses_topics or base.simulator.leave == "distance":
    raise InputError(
      f"simulator_boredom is {base.simulator.boredom!r} and simulator_leave "
      f"{base.simulator.leave!r}, but items that are made up have no topics; "
      "expected simulator_boredom none, and another simulator_leave"
    )
  run = jobs.prepare(experiment, jobs.Job("dataset", base))
  items = synthetic(run.dataset.items.features, size)
  path = _folder(experiment, size) / "sids.npz"
  if not path.exists():
    start = time.monotonic()
    codebooks = quantizer_fit.fit(base.quantizer, items.features[1:])
    tokens = sid.encode_unique(codebooks, items.features[1:])
    buffer = io.BytesIO()
    seconds = time.monotonic() - start
    np.savez(buffer, codebooks=codebooks, tokens=tokens, seconds=seconds)
    files.write_atomic(path, buffer.getvalue())
  with np.load(path) as saved:
    index = sid.build_index(saved["tokens"], base.quantizer.vocab_size)
    codebooks = jnp.asarray(saved["codebooks"])
    seconds = float(saved["seconds"])
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
      jnp.int32(len(features) - 1),
    )

  catalogue = Catalogue(features, index, codebooks)
  count = sessions(base.evaluate, size)
  users, held_out = pool("train"), pool(base.evaluate.split, count)
  return SizedWorld(run.env, catalogue, users, held_out, count, seconds)


def bounds(experiment: jobs.Experiment, size: int) -> dict[str, float]:
  """Total reward of the bounds at a size, and the seconds that SIDs took."""
  w = world(experiment, size)
  policies = bounds_lib.bounds(w.env, w.held_out, w.catalogue.index.active)
  return {"sids_seconds": w.seconds} | {
    name: _reward(w, act, params) for name, (act, params) in policies.items()
  }


def measure(
  experiment: jobs.Experiment, size: int, name: str
) -> dict[str, Any]:
  """A policy at a size.

  Returns:
    `total_reward` of each seed, `iteration_ms`, `decision_ms`, `memory_gb`, the
    most that the process had until it was trained, and `start_gb`, what it had
    before. What could not be measured is None; then `left_out` says why.
  """
  limits = experiment.config
  config = entrants.vary(experiment, POLICIES[name])
  w = world(experiment, size)
  row = dict.fromkeys(
    ("total_reward", "iteration_ms", "decision_ms", "memory_gb", "left_out")
  )
  row["start_gb"] = _memory("VmRSS")
  agent = make_agent(config, w.env.slate_size, w.catalogue.index.num_items)
  engine = loop.make(agent, w.env, config.train)
  inputs = core.Inputs(w.catalogue, w.users)
  start = jax.jit(engine.init)
  iterate = (
    jax.jit(engine.run, donate_argnums=(0, 1))
    .lower(*jax.eval_shape(start, 0, inputs), inputs)
    .compile()
  )
  plan = iterate.memory_analysis()
  needed = (plan.temp_size_in_bytes + plan.argument_size_in_bytes) / 1e9
  if needed > limits.memory_gb:
    return row | {
      "left_out": f"training needs {needed:.0f} GB, above the limit of "
      f"{limits.memory_gb:g}"
    }

  per_call = config.train.iterations_per_call
  calls = config.train.iterations // per_call
  trained, seconds = [], []
  for seed in config.train.seeds:
    learner, stream = jax.block_until_ready(start(seed, inputs))
    for _ in range(calls):
      begin = time.monotonic()
      learner, stream, _ = iterate(learner, stream, inputs)
      jax.block_until_ready(learner)
      seconds.append(time.monotonic() - begin)
      if len(seconds) == 1 and calls * seconds[0] > limits.seconds_per_run:
        row["left_out"] = (
          f"training takes {calls * seconds[0]:,.0f} s a seed, above the limit "
          f"of {limits.seconds_per_run:g}"
        )
        break
    trained.append(learner.target_params)
    if row["left_out"]:
      break
  row["iteration_ms"] = 1e3 * sum(seconds) / (len(seconds) * per_call)
  row["memory_gb"] = _memory("VmHWM")
  del stream
  act = policy.greedy(agent)
  row["decision_ms"] = 1e3 * _decision_seconds(act, w, trained[0])
  if not row["left_out"]:
    row["total_reward"] = [
      _reward(w, act, (params, w.catalogue)) for params in trained
    ]
  return row


def run(experiment: jobs.Experiment) -> dict[str, Any]:
  """Runs what is missing; leaves results.json, table.txt and plot.png."""
  c = experiment.config
  jobs.prepare(experiment, jobs.Job("dataset", experiment.base))
  todo = [(size, name) for size in c.sizes for name in ("bounds", *POLICIES)]
  limits, measured = {}, {}
  for number, (size, name) in enumerate(todo, start=1):
    job = f"{size}/{name}"
    print(f"job {number} of {len(todo)}: {job}", flush=True)
    task = (bounds, experiment, size)
    if name != "bounds":
      task = (measure, experiment, size, name)
    with jobs.timed(experiment, job, "measure"):
      row = jobs.kept(
        _folder(experiment, size) / f"{name}.json",
        lambda task=task: alone(*task),
        lambda row: row.get("left_out"),  # Perhaps not by today's limits.
      )
    if name == "bounds":
      limits[size] = row
    else:
      measured[size, name] = row
  base = experiment.base
  results = summary(limits, measured) | {
    "dataset": base.data.dataset,
    "protocol": base.simulator.protocol,
    "split": base.evaluate.split,
    "iterations": base.train.iterations,
    "episodes": {str(n): sessions(base.evaluate, n) for n in c.sizes},
  }
  jobs.finish(experiment, results, table, plots.catalogue_size)
  return results


def alone(function: Callable[..., Any], *args) -> Any:
  """Calls a function in a process of its own."""
  with concurrent.futures.ProcessPoolExecutor(
    1, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    return pool.submit(function, *args).result()


def summary(
  limits: dict[int, dict[str, float]],
  measured: dict[tuple[int, str], dict[str, Any]],
) -> dict[str, Any]:
  """The bounds, and a row for each size and policy, with `normalised`."""
  rows = []
  for (size, name), x in measured.items():
    reward = x["total_reward"]
    normalised = reward and bounds_lib.normalised(
      [[y] for y in reward], limits[size]
    )
    rows.append({"size": size, "policy": name, "normalised": normalised} | x)
  return {"bounds": {str(k): v for k, v in limits.items()}, "rows": rows}


def table(results: dict[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  lines = [("items", "policy", "reward", "[95% CI]")]
  lines[0] += ("ms/iteration", "ms/decision", "peak GB")
  notes = []
  for row in results["rows"]:
    reward = tables.mean(row["normalised"], "{:.2f}")
    ends = tables.interval(row["normalised"], "{:.2f}")
    numbers = [
      "-" if x is None else f"{x:,.1f}"
      for x in (row["iteration_ms"], row["decision_ms"], row["memory_gb"])
    ]
    lines.append((f"{row['size']:,}", row["policy"], reward, ends, *numbers))
    if row["left_out"]:
      notes.append(f"{row['size']:,} {row['policy']}: {row['left_out']}")
  episodes = ", ".join(f"{n:,}" for n in results["episodes"].values())
  head = (
    f"{results['dataset']}, protocol {results['protocol']}, "
    f"{results['iterations']:,} iterations\n"
    "reward: 0 random, 1 the best bound, at that size\n"
    f"sessions by size: {episodes}"
  )
  return "\n".join([tables.blocks(head, tables.aligned(lines, left=0)), *notes])


def _folder(experiment: jobs.Experiment, size: int) -> pathlib.Path:
  return experiment.workdir / f"{size}"


def _reward(w: SizedWorld, act: simulate.Act, params) -> float:
  given = (act, w.env, params, w.held_out, jax.random.key(simulate.SEED))
  simulated = simulate.simulate(*given, episodes=w.sessions)
  return float(np.mean(simulated.total_reward))


def _decision_seconds(act: simulate.Act, w: SizedWorld, params) -> float:
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
