"""Study `changing_catalogue`: items change under a trained policy.

A part of the dataset's items, drawn at random, is held out: the start
catalogue has the others alone, codebooks are fitted on it alone, and logged
histories lose the held-out items. A policy is trained on the start catalogue
for half of the iterations. Then a share of it leaves, as many held-out items
arrive, and training goes on with what the learner has, in the same compiled
function. Newcomers get SIDs by the living index: no new fit. Policies know all
items by their content alone, which no rating changes; for other features see
--study_newcomers.

Compared, with the same losses: HSRL, and policies with one logit per item, of
the item alone (`free`) or of its features (`features`), each frozen right after
the change, and while it goes on to learn. A share of 0 is the control. Rewards
are normalised by the bounds of the catalogue at the time. The replay starts
anew at the change. Shares are nested: what leaves at 5 % also leaves at 20 %.
"""

import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import sid
from hsrl_jax.agents import make_agent
from hsrl_jax.config import Config, QuantizerConfig
from hsrl_jax.engine import checkpoint, core, loop, parallel
from hsrl_jax.evaluation import bounds as bounds_lib
from hsrl_jax.evaluation import simulate, statistics
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import watch
from hsrl_jax.ops import tree
from hsrl_jax.report import tables
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.user_simulator import EnvParams
from hsrl_jax.stages import policy, quantizer_fit, training
from hsrl_jax.stages import run as run_lib
from hsrl_jax.studies import content, plots
from hsrl_jax.studies.growing import COMPARED as COMPARED
from hsrl_jax.studies.growing import POLICIES

RECOVERED = 0.95  # Of what was reached before the change.


class Split(NamedTuple):
  """Who is there at the start."""

  start: np.ndarray  # int64 [N], ids in the order in which they leave.
  newcomers: np.ndarray  # int64 [M], ids in the order in which they arrive.

  def change(self, share: int) -> tuple[np.ndarray, np.ndarray]:
    """Who leaves and who arrives where `share` percent are replaced."""
    count = round(len(self.start) * share / 100)
    return self.start[:count], self.newcomers[:count]


def split_items(num_items: int, shares: tuple[int, ...]) -> Split:
  """Holds out as many of the ids 1..N as the largest share (percent) needs."""
  order = np.random.default_rng(0).permutation(num_items) + 1
  count = int(num_items / (1 + max(shares) / 100))
  return Split(order[:count], order[count:])


def start_catalogue(
  config: QuantizerConfig, features: np.ndarray, split: Split
) -> Catalogue:
  """The start catalogue, with room for newcomers; features [N + M + 1, D]."""
  rows = features[split.start]
  codebooks = quantizer_fit.fit(config, rows)
  nobody = np.zeros((0, config.levels), np.int32)
  index = sid.build_index(nobody, config.vocab_size, capacity=len(features) - 1)
  index = sid.add_items(index, split.start, codebooks, rows)
  return Catalogue(jnp.asarray(features), index, jnp.asarray(codebooks))


def replace_items(
  catalogue: Catalogue, leaving: np.ndarray, arriving: np.ndarray
) -> Catalogue:
  """The catalogue after the change; codebooks and all other SIDs stay."""
  index = sid.remove_items(catalogue.index, leaving)
  index = sid.add_items(
    index,
    arriving,
    np.asarray(catalogue.codebooks),
    np.asarray(catalogue.features)[arriving],
  )
  return catalogue._replace(index=index)


def without(users: EnvParams, items: np.ndarray) -> EnvParams:
  """The pool where `items` are not: in no history, [S, H], and not shown."""
  histories = np.asarray(users.histories)
  kept = np.where(np.isin(histories, items), 0, histories)
  order = np.argsort(kept > 0, axis=1, kind="stable")
  left = users.num_items
  return users._replace(
    histories=jnp.asarray(np.take_along_axis(kept, order, 1)),
    num_items=None if left is None else left - len(items),
  )


class World:
  """Users and catalogues of one configuration, the same for all policies."""

  def __init__(
    self, run: run_lib.Run, shares: tuple[int, ...], newcomers: str = "logged"
  ):
    """Splits the items and fits the codebooks.

    Args:
      run: with the stages data and simulator complete.
      shares: percent of the start catalogue that are replaced.
      newcomers: see registry.ChangingCatalogue.
    """
    features = run.dataset.items.features
    self.config, self.env = run.config, run.env
    self.split = split_items(len(features) - 1, shares)
    items = run.dataset.items
    if newcomers == "content":
      features = content.of_items(items)
    elif newcomers == "unrated":
      features = content.for_newcomers(items, self.split.newcomers)
    self.users, self.held_out_users = (
      without(run.users(name), self.split.newcomers)
      for name in ("train", run.config.evaluate.split)
    )
    c = run.config.evaluate
    self.rows = simulate.sample(run.dataset.splits[c.split].user_id, c.episodes)
    self.start = start_catalogue(run.config.quantizer, features, self.split)

  def changed(self, share: int) -> Catalogue:
    """The catalogue with `share` percent replaced."""
    return replace_items(self.start, *self.split.change(share))

  def sessions(self, act: simulate.Act, params) -> simulate.Simulated:
    """Sessions of the users of the evaluation, alike for all policies."""
    key = jax.random.key(simulate.SEED)
    given = (act, self.env, params, self.held_out_users, key, self.rows)
    return simulate.simulate(*given, episodes=len(self.rows))

  def bounds(self, share: int) -> dict[str, float]:
    """Total reward of the bounds, and the seconds that the change took."""
    start = time.monotonic()
    active = self.changed(share).index.active
    seconds = time.monotonic() - start
    policies = bounds_lib.bounds(self.env, self.held_out_users, active)
    return {"index_seconds": seconds} | {
      name: float(np.mean(self.sessions(act, params).total_reward))
      for name, (act, params) in policies.items()
    }


class Learning:
  """A policy of all seeds: trained to the change once, then on from it."""

  def __init__(self, world: World, config: Config, folder: pathlib.Path):
    """Compiles nothing yet; `folder` has the checkpoint of the change."""
    self.world, self.config, self.folder = world, config.train, folder
    agent = make_agent(
      config, world.env.slate_size, world.start.index.num_items
    )
    self.act = policy.greedy(agent)
    self.engine = loop.make(agent, world.env, config.train)
    self.layout = parallel.layout(len(config.train.seeds))
    self.iterate = parallel.over_devices(self.engine.run, self.layout)
    calls = config.train.iterations // config.train.iterations_per_call
    self.calls_before, self.calls_after = calls // 2, calls - calls // 2

  def run(self, share: int) -> dict[str, Any]:
    """Before the change, right after it, and on the way from there.

    Returns:
      `before`, a point, and `after`, points at `step`, iterations since the
      change, at every doubling. A point has for each seed `total_reward` and
      `newcomers`, their share of the items shown.
    """
    learner, stream = self._at_change()
    before = self._point(learner.target_params, self.world.start)
    catalogue = self.world.changed(share)
    state, inputs = self._place(learner, stream, catalogue)
    after, done, last = [], 0, self.calls_after
    doublings = [2**i for i in range(last.bit_length()) if 2**i < last]
    for calls in (0, *doublings, last):
      state = self._advance(state, inputs, calls - done)
      done = calls
      params = parallel.target_params(state[0], self.layout)
      step = {"step": calls * self.config.iterations_per_call}
      after.append(step | self._point(params, catalogue))
    return {"before": before, "after": after}

  def _at_change(self) -> tuple[core.Learner, core.Stream]:
    """The state at the change, from a checkpoint or trained now."""
    inputs = core.Inputs(self.world.start, self.world.users)
    like = parallel.shapes(self.engine.init, self.config.seeds, inputs)
    with checkpoint.open_directory(self.folder) as checkpointer:
      state = checkpoint.restore_latest(checkpointer, like)
      if state is None:
        start = parallel.init(
          self.engine.init, self.config.seeds, inputs, self.layout
        )
        placed = self._place(*start, self.world.start)
        learner, stream = self._advance(*placed, self.calls_before)
        learner, stream = parallel.collect(learner, stream, self.layout)
        empty = jax.tree.map(jnp.zeros_like, stream.replay)
        state = (learner, stream._replace(replay=empty))
        checkpoint.save(checkpointer, int(learner.step[0]), state)
        # Read though just written: the loop consumes the state it is given.
        state = checkpoint.restore_latest(checkpointer, like)
      return state

  def _place(self, learner, stream, catalogue: Catalogue):
    learner, stream, inputs = parallel.place(
      learner, stream, core.Inputs(catalogue, self.world.users), self.layout
    )
    return (learner, stream), inputs

  def _advance(self, state, inputs: core.Inputs, calls: int):
    """`calls` of the compiled loop."""
    per_call = self.config.iterations_per_call
    with watch.bar(calls * per_call, "policy", "it", delay=2.0) as bar:
      for _ in range(calls):
        *state, measured = self.iterate(*state, inputs)
        measured = metrics_lib.seed_means(measured)
        bad = tree.first_not_finite(measured)
        if bad:
          raise FloatingPointError(
            f"{bad} is {measured[bad]}: lower --learning_rate"
          )
        bar.update(per_call)
    return tuple(state)

  def _point(self, params, catalogue: Catalogue) -> dict[str, list[float]]:
    point = {"total_reward": [], "newcomers": []}
    for one in training.by_seed(params):
      sessions = self.world.sessions(self.act, (one, catalogue))
      shown = sessions.slates[sessions.slates > 0]
      new = np.isin(shown, self.world.split.newcomers)
      point["total_reward"].append(float(np.mean(sessions.total_reward)))
      point["newcomers"].append(float(new.mean()))
    return point


def run(experiment: jobs.Experiment) -> dict[str, Any]:
  """Runs what is missing; leaves results.json, table.txt and plot.png."""
  base, c = experiment.base, experiment.config
  # What is shared among jobs is named after what it depends on.
  name = f"held_out_{max(c.shares)}_{c.newcomers}"
  prepared = jobs.prepare(experiment, jobs.Job(name, base))
  with jobs.timed(experiment, name, "world"):
    world = World(prepared, c.shares, c.newcomers)
  folder = experiment.workdir / name
  bounds, measured = {}, {}
  names = ["bounds", *POLICIES]
  for number, job in enumerate(names, start=1):
    print(f"job {number} of {len(names)}: {name}/{job}", flush=True)
    make = world.bounds
    if job != "bounds":
      config = entrants.vary(experiment, POLICIES[job])
      make = Learning(world, config, folder / job).run
    for share in sorted({0, *c.shares}):
      with jobs.timed(experiment, f"{name}/{job}", f"{share} %"):
        row = jobs.kept(
          folder / f"{job}_{share}.json", lambda m=make, s=share: m(s)
        )
      if job == "bounds":
        bounds[share] = row
      else:
        measured[job, share] = row
    jax.clear_caches()  # The next policy compiles functions of its own.
  results = summary(bounds, measured) | {
    "dataset": base.data.dataset,
    "protocol": base.simulator.protocol,
    "split": base.evaluate.split,
    "episodes": base.evaluate.episodes,
    "items": len(world.split.start),
    "newcomers": c.newcomers,
    "iterations_before": base.train.iterations // 2,
  }
  jobs.finish(experiment, results, table, plots.changing_catalogue)
  return results


def summary(
  bounds: dict[int, dict[str, float]],
  measured: dict[tuple[str, int], dict[str, Any]],
) -> dict[str, Any]:
  """The bounds, and a row for each policy and share.

  Returns:
    `bounds`, and `rows` with `policy`, `share`, `before`, `after` (points) and
    `steps_to_recover`: of each seed, iterations to RECOVERED of what it was
    before; None where they were not enough. A point has `step`, `normalised`,
    `total_reward` and `newcomers`, each with mean, ci95 and per_seed.
  """

  def point(x, share, step):
    reward = x["total_reward"]
    return {
      "step": step,
      "normalised": bounds_lib.normalised([[y] for y in reward], bounds[share]),
      "total_reward": statistics.summarise([[y] for y in reward]),
      "newcomers": statistics.summarise([[y] for y in x["newcomers"]]),
    }

  rows = []
  for (name, share), x in measured.items():
    before = point(x["before"], 0, None)
    after = [point(y, share, y["step"]) for y in x["after"]]
    # Where there is no scale, NaN, which reaches nothing.
    curve = np.array([y["normalised"]["per_seed"] for y in after], float)
    usual = np.array(before["normalised"]["per_seed"], float)
    reached = curve >= RECOVERED * usual
    steps = [y["step"] for y in after]
    recovered = [
      steps[seed.argmax()] if seed.any() else None for seed in reached.T
    ]
    own = {"policy": name, "share": share, "before": before, "after": after}
    rows.append(own | {"steps_to_recover": recovered})
  return {"bounds": {str(k): v for k, v in bounds.items()}, "rows": rows}


def table(results: dict[str, Any]) -> str:
  """The results for a terminal, at most 80 columns wide."""
  head = ("share", "policy", "before", "after", "[95% CI]", "end")
  head += ("recovered", "new %")
  lines = [head]
  rows = sorted(results["rows"], key=lambda x: x["share"])
  for row in rows:
    first, last = row["after"][0], row["after"][-1]
    lines.append(
      (
        f"{row['share']} %",
        row["policy"],
        tables.mean(row["before"]["normalised"], "{:.3f}"),
        *tables.cells(first["normalised"], "{:.3f}"),
        tables.mean(last["normalised"], "{:.3f}"),
        _median(row["steps_to_recover"], last["step"]),
        "-".join(f"{100 * x['newcomers']['mean']:.0f}" for x in (first, last)),
      )
    )
  about = f"{results['dataset']}, protocol {results['protocol']}"
  if "newcomers" in results:
    about += f", newcomers by {results['newcomers']}"
  about += (
    "\nreward: 0 random, 1 the best bound, on the catalogue as it is then\n"
    f"recovered: iterations to {RECOVERED:.0%} of before, median of seeds\n"
    "new %: newcomers among the items shown, right after and at the end"
  )
  return tables.blocks(about, tables.aligned(lines, left=0))


def _median(steps: list[int | None], limit: int) -> str:
  """The median; None counts as more than `limit`."""
  middle = np.sort([np.inf if x is None else x for x in steps])[len(steps) // 2]
  return f">{limit}" if np.isinf(middle) else f"{middle:.0f}"
