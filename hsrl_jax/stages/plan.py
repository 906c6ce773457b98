"""Mode `plan`: what training takes on TPUs that need not be there.

Their compiler is asked, see host/tpu.py. Nothing is trained, nor is a click
model fitted: shapes alone count.
"""

import collections
import dataclasses
import datetime
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from hsrl_jax import files
from hsrl_jax.agents import agent_of
from hsrl_jax.config import TrainConfig
from hsrl_jax.data import blocks
from hsrl_jax.engine import core, loop, parallel, windows
from hsrl_jax.errors import InputError
from hsrl_jax.host import tpu
from hsrl_jax.report import tables
from hsrl_jax.session_config import FITTED_TO_LOGS
from hsrl_jax.sim import click_model
from hsrl_jax.stages import boredom, next_item, policy
from hsrl_jax.stages import start as start_lib
from hsrl_jax.stages.parts import Parts

FILE = "plan.json"
STAGES = ("data", "quantize")  # That have to be there.
UNKNOWN = (
  "gathers, scatters, sorts and transfers, which the compiler counts as 0",
  "waiting for memory, for other chips and for the host",
  "compilation, curves, checkpoints, and other stages than policy",
)
# In the names of all operations.
_EVERYWHERE = {
  *("", "of_all", "of_device", "_fun", "shard_map"),
  *("while", "body", "closed_call", "cond"),
}
_ARRAY = re.compile(r"\w+\[[\d,]*\]")
_MOST = 5  # Operations, loops or arrays that are named.
_GIB = 2**30


def run(parts: Parts, name: str) -> dict[str, Any]:
  """Plans the training of a run; writes plan.json.

  Args:
    parts: of the run, with STAGES.
    name: of the topology, see tpu.describe.

  Returns:
    What plan.json holds: bytes, milliseconds, seconds, shares of the time.

  Raises:
    InputError: the agent learns nothing, or the chips do not suit the recipe.
  """
  topology = tpu.describe(name)
  c, trained = parts.config.train, {}
  if c.goes_on and c.continue_from is None:
    first = start_lib.first_part(parts.as_given)
    where = parts.workdir / start_lib.FIRST
    trained["next_item"] = Parts(first, where, of=parts)
  trained[c.recipe.split(",")[-1]] = parts
  found = {
    "topology": name,
    "chip": topology.devices[0].device_kind,
    "chips": len(topology.devices),
    "hosts": topology.hosts,
    "available": tpu.memory(topology),
    "parts": {x: _part(own, topology) for x, own in trained.items()},
    "not_counted": UNKNOWN,
    "jax": jax.__version__,
    "libtpu": tpu.version(),
  }
  files.write_json(parts.workdir / FILE, found)
  return found


def _engine(parts: Parts) -> tuple[loop.Engine, core.Inputs, TrainConfig]:
  """Engine, inputs and course of the training; no click model is needed."""
  c, train = parts.config, parts.dataset.splits["train"]
  if not (parts.given or parts.made_up or parts.is_done("simulator")):
    first = jax.tree.map(lambda x: x[0], train)
    given = c.simulator, jax.random.key(0), parts.dataset.items.features, first
    parts.response = click_model.init(*given)
    if parts.response.blend is not None:  # Which has a bias for each user.
      users = jnp.unique(jnp.asarray(train.user_id))
      blend = parts.response.blend._replace(user_ids=users, users=0.0 * users)
      parts.response = parts.response._replace(blend=blend)
    if c.simulator.boredom == FITTED_TO_LOGS:
      fitted = boredom.unfitted(parts.dataset)
      parts.response = parts.response._replace(boredom=fitted)
  if c.train.recipe == "next_item":
    return next_item.engine_of(parts, next_item.untrained(parts))
  if c.train.goes_on and parts.start is None:
    width = next_item.untrained(parts)["interactions"].shape[1]
    sized = dataclasses.replace(c.next_item, interactions=width)
    c = dataclasses.replace(c, next_item=sized)
  env, items = parts.env, parts.catalogue.index.num_items
  agent = agent_of(c, env.slate_size, items)
  if not agent.learns:
    raise InputError(f"{c.agent} learns nothing; expected an agent that does")
  logs = parts.training_logs if c.train.from_logs else train
  if isinstance(logs, blocks.Blocks):
    read, rows = windows.reader(logs, env.reward, env.observed_items)
    slates = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), read(0, 1)
    )
  else:
    slates = policy.learned(agent, env, c.train, logs, items)
  inputs = core.Inputs(parts.catalogue, parts.users("train"), slates)
  return loop.make(agent, env, c.train), inputs, c.train


def _part(parts: Parts, topology: tpu.Topology) -> dict[str, Any]:
  """Memory and time of a part of a recipe."""
  engine, inputs, train = _engine(parts)
  layout = parallel.layout(len(train.seeds), topology.devices)
  if topology.hosts > 1 and train.recipe == "next_item":
    raise InputError(
      f"the recipe next_item on {topology.hosts} hosts; expected a topology of "
      "one host"
    )

  def compiled(seeds: int) -> tuple[float, tpu.Estimate | None]:
    """Bytes that so many seeds need; None where they do not fit."""
    try:
      lowered = parallel.lowered(
        engine.init, engine.run, tuple(range(seeds)), inputs, layout
      )
      said = tpu.compiled(lowered, topology)
    except tpu.OutOfMemoryError as error:
      return error.args[0], None
    except ValueError as error:
      raise InputError(str(error)) from error
    return sum(said.memory.values()), said

  own = -(-layout.seeds // layout.groups) if layout.by_seed else layout.seeds
  needed, said = compiled(own)
  other = 1 if own > 1 else 2
  each = (needed - compiled(other)[0]) / (own - other)
  more = (tpu.memory(topology) - needed) // max(each, 1)
  found = {
    "agent": parts.config.agent,
    "seeds": layout.seeds,
    "seeds_of_a_chip": own,
    "users_are_shared": not layout.by_seed,
    "fits": said is not None,
    "needed": needed,
    "seeds_that_fit": max(own + int(more), 0),
    "iterations": train.iterations,
  }
  if said is None:
    return found
  took = said.milliseconds / train.iterations_per_call
  return found | {
    "memory": said.memory,
    "largest": _largest(said),
    "milliseconds_per_iteration": took,
    "seconds": took * train.iterations / 1e3,
    **_shares(said),
  }


def _largest(said: tpu.Estimate) -> dict[str, int]:
  """The largest arrays that are made, each once, but for what is given."""

  def squeezed(array: str) -> str:  # Without the side of a device.
    return re.sub(r"\b1,|,1\b", "", array)

  given = {*map(squeezed, _ARRAY.findall(said.text.split("\n", 1)[0]))}
  made = {}
  for name, _, result, size in said.operations:
    array = result.split("{")[0]
    if squeezed(array) not in given:
      made.setdefault(f"{array} {_short(name)}", size)
  return dict(sorted(made.items(), key=lambda x: -x[1])[:_MOST])


def _shares(said: tpu.Estimate) -> dict[str, dict[str, float]]:
  """Shares of the time: of phases, of operations, of loops in an iteration."""
  counted = collections.defaultdict(collections.Counter)
  for name, cycles, _, _ in said.operations:
    counted["operations"][_short(name)] += cycles
    inside = [x for x in core.PHASES if re.search(rf"\b{x}\b", name)]
    counted["phases"][(*inside, "other")[0]] += cycles
  # The one that takes longest is that of the iterations.
  for trips, name, cycles in sorted(said.loops, key=lambda x: x.cycles)[:-1]:
    counted["loops"][f"{trips} trips of {_short(name)}"] += cycles
  total = max(counted["phases"].total(), 1)
  return {
    kind: {x: n / total for x, n in counted[kind].most_common(_MOST) if n}
    for kind in ("phases", "operations", "loops")
  }


def _short(name: str) -> str:
  """The end of a name, without what stands in each."""
  name = name.replace("transpose(", "gradient of ")
  parts = re.sub(r"(?:vmap|jvp|jit)\(|\)", "", name).split("/")
  return "/".join([x for x in parts if x not in _EVERYWHERE][-3:]) or "unnamed"


def lines(plan: dict[str, Any]) -> str:
  """The result of `run`, for a terminal."""
  said = ["{topology}: {chips} x {chip}, {hosts} host(s)".format(**plan)]
  for recipe, part in plan["parts"].items():
    head = "{agent}, {0}: {seeds_of_a_chip} of {seeds} seed(s) on a chip"
    head = head.format(recipe, **part)
    if part["users_are_shared"]:
      head += ", with its share of the users"
    needed, available = part["needed"] / _GIB, plan["available"] / _GIB
    said.append(
      f"{head}\n{'fits' if part['fits'] else 'does not fit'}: needs "
      f"{needed:.2f} of {available:.2f} GiB; about "
      f"{part['seeds_that_fit']:,} seeds would fit side by side"
    )
    if not part["fits"]:
      continue
    seconds = math.ceil(part["seconds"])
    said[-1] += (
      f"\nan iteration: at least {part['milliseconds_per_iteration']:.3g} ms; "
      f"{part['iterations']:,}: at least {datetime.timedelta(seconds=seconds)}"
    )
    sizes = part["memory"] | {f"  {x}": n for x, n in part["largest"].items()}
    rows = [(x, f"{n / 2**20:,.1f}") for x, n in sizes.items()]
    said.append(tables.aligned([("memory, largest arrays", "MiB"), *rows]))
    rows = [("phases, operations, loops", "time")]
    for kind in ("phases", "operations", "loops"):
      rows += [(x, f"{share:.1%}") for x, share in part[kind].items()]
    said.append(tables.aligned(rows))
  said.append(tables.filled(f"Not counted: {'; '.join(plan['not_counted'])}."))
  return tables.blocks(*said)
