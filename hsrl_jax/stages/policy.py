"""Stage `policy`: trains the agent in the simulator, or from logs."""

import functools
import pathlib
from collections.abc import Callable
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import agent_of
from hsrl_jax.agents.base import Agent
from hsrl_jax.config import Config, TrainConfig
from hsrl_jax.data import blocks
from hsrl_jax.engine import core, loop, parallel, processes, replayed
from hsrl_jax.engine import windows as windows_lib
from hsrl_jax.evaluation import measures, simulate, statistics
from hsrl_jax.host import watch as watch_lib
from hsrl_jax.ops import sampling
from hsrl_jax.sid import SidIndex
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import logged, next_item, training
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Array, Observation, Params, Sessions, Transition

FOLDER = training.FOLDER
CURVE_EPISODES = 256  # Validation sessions of a point of the learning curve.


def acting(agent: Agent, index: SidIndex) -> str:
  """How the agent finds a slate, in words."""
  if agent.on_policy is not None:
    return f"slot after slot, of {index.num_items:,} items"
  if not agent.beams:
    return f"each of {index.num_items:,} items is scored"
  return f"beam search, {agent.beams} beams, {index.num_items:,} items"


@functools.lru_cache(maxsize=4)  # As many as `agents.agent_of` keeps.
def greedy(agent: Agent) -> simulate.Act:
  """The agent's greedy policy; its `params` are (params, Catalogue)."""

  def act(params, observation, excluded, key):
    params, catalogue = params
    if not agent.draws:
      key = None
    return agent.act(params, catalogue, observation, excluded, key, 1.0).slate

  return act


def shown(
  agent: Agent,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
  excluded: Array,
) -> tuple[Array, Array, Array]:
  """The greedy slate of one user: items, log probabilities, which are valid.

  Agents fill a slate that is not full with items that are not to be shown;
  here these are 0, with -inf.

  Args:
    agent: made for slates of K.
    params: of the agent.
    catalogue: the items.
    observation: of the user.
    excluded: int32 [T], ids that may not be shown; 0 is ignored.

  Returns:
    int32 [K], float32 [K] and bool [K].
  """
  action = agent.act(params, catalogue, observation, excluded, None, 1.0)
  slate = action.slate
  # An id of 0 is not active.
  valid = catalogue.index.active[slate]
  valid &= ~(slate[:, None] == excluded[None]).any(1)
  return (
    jnp.where(valid, slate, 0),
    jnp.where(valid, action.log_prob, -jnp.inf),
    valid,
  )


def run(
  config: Config,
  workdir: pathlib.Path,
  env: UserSimulator,
  catalogue: Catalogue,
  users: EnvParams,
  val_users: EnvParams,
  val_rows: np.ndarray,
  logs: Sessions | blocks.Blocks,
  watch: watch_lib.Watch,
  start: Callable[[Params], Params] | None = None,
) -> None:
  """Trains on slates; writes `policy/`, see `training.run`.

  Sessions of the learning curve are of `val_rows`, int32 [E], of the pool
  `val_users`. `logs` on disk are read by windows. `start` makes of fresh
  parameters, [S, ...], those that training starts from.

  Raises:
    FloatingPointError: a metric or parameter became NaN or infinite; such a
      state is not saved.
    InputError: the users do not divide over the devices, or `start` raises it.
  """
  train, items = config.train, catalogue.index.num_items
  agent = agent_of(config, env.slate_size, items)
  folder = workdir / FOLDER
  if not agent.learns:
    folder.mkdir(parents=True, exist_ok=True)
    return
  engine = loop.make(agent, env, train)
  layout = parallel.layout(len(train.seeds))
  slates, feeding = None, windows_lib.unchanged
  if isinstance(logs, blocks.Blocks):
    windows = windows_lib.reader(logs, env.reward, env.observed_items)
    waiting = functools.partial(watch.phase, "waiting for slates")
    given = (*windows, train, layout, waiting)
    feeding = functools.partial(windows_lib.feed, *given)
  else:
    slates = learned(agent, env, train, logs, items)
  with futures.ThreadPoolExecutor(1) as beside:
    curve = None
    if not train.from_logs:  # Else no session is simulated.
      judged = catalogue, val_users, val_rows
      curve = functools.partial(_curve, agent, env, config, *judged, beside)
    training.run(
      folder,
      engine,
      core.Inputs(catalogue, users, slates),
      train,
      watch,
      feeding=feeding,
      start=start,
      curve=curve,
    )


def learned(
  agent: Agent,
  env: UserSimulator,
  train: TrainConfig,
  logs: Sessions,
  items: int,
) -> Transition | None:
  """Logged slates as the agent learns from them; None where it does not."""
  if train.from_logs:
    return logged.learned(logs, env.reward, items, env.observed_items)
  return replayed.logged(logs, env.reward) if agent.offline else None


def trained(parts: Parts) -> list[Params]:
  """The stage's trained parameters, whatever the recipe: one pytree a seed.

  Raises:
    InputError: no checkpoint can be read.
  """
  if parts.config.train.recipe == "next_item":
    return next_item.load(parts)
  return load(
    parts.config,
    parts.workdir,
    parts.env,
    parts.catalogue,
    parts.users("train"),
  )


def load(
  config: Config,
  workdir: pathlib.Path,
  env: UserSimulator,
  catalogue: Catalogue,
  users: EnvParams,
) -> list[Params]:
  """The averaged parameters that `run` left, one pytree a seed.

  Raises:
    InputError: no checkpoint can be read.
  """
  seeds = config.train.seeds
  agent = agent_of(config, env.slate_size, catalogue.index.num_items)
  inputs = core.Inputs(catalogue, users)
  if not agent.learns:
    return [_unlearned(agent, env, catalogue, users, seed) for seed in seeds]
  engine = loop.make(agent, env, config.train)
  learner = training.restore(workdir / FOLDER, engine, inputs, seeds)
  return training.by_seed(learner.target_params)


def _unlearned(
  agent: Agent,
  env: UserSimulator,
  catalogue: Catalogue,
  users: EnvParams,
  seed: int,
) -> Params:
  """The parameters of an agent without training, the same every time."""
  keys = sampling.split(jax.random.key(seed), 2)
  user = env.start(0, users).observation
  params = agent.init(keys[0], catalogue, user)
  if agent.fit is None:
    return params
  fit = jax.jit(agent.fit, static_argnums=1)
  return fit(params, env, users, catalogue, keys[1])


def _curve(
  agent: Agent,
  env: UserSimulator,
  config: Config,
  catalogue: Catalogue,
  users: EnvParams,
  rows: np.ndarray,
  beside: futures.Executor,
  params: Params,
) -> training.Curve:
  """A point of the learning curve: sessions of the validation users.

  It comes with how often each token was shown, by level. A first call compiles
  it beside training.
  """
  act, key = greedy(agent), jax.random.key(simulate.SEED)

  def simulated(params: Params) -> simulate.Simulated:
    given = (act, env, (params, catalogue), users, key, rows)
    return simulate.simulate(*given, episodes=len(rows))

  first = None
  if not processes.many():  # All would have to call it at the same time.
    first = beside.submit(simulated, training.by_seed(params)[0])

  def point(params: Params) -> tuple[dict, dict, None]:
    if first is not None:
      first.result()
    sessions = [simulated(p) for p in training.by_seed(params)]
    counts = measures.code_usage(
      catalogue.index, [np.asarray(s.slates) for s in sessions]
    )
    by_level = {f"level_{i}": x for i, x in enumerate(counts, start=1)}
    measured = {
      name: statistics.summarise([getattr(s, name) for s in sessions])
      for name in ("total_reward", "depth")
    }
    spread = {name: statistics.perplexity(x) for name, x in by_level.items()}
    measured["perplexity"] = spread
    tokens = {f"tokens/{name}": x for name, x in by_level.items()}
    return measured, tokens, None

  return point
