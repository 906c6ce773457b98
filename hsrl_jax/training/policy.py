"""Stage `policy`: trains the agent in the simulator."""

import contextlib
import pathlib
from collections.abc import Callable

import jax

from hsrl_jax.agents.a2c import agent as a2c
from hsrl_jax.agents.base import Agent, Catalogue, Spec
from hsrl_jax.agents.ddpg import agent as ddpg
from hsrl_jax.agents.hac import agent as hac
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.agents.pgra import agent as pgra
from hsrl_jax.agents.popularity import agent as popularity
from hsrl_jax.agents.random import agent as random
from hsrl_jax.agents.sasrec import agent as sasrec
from hsrl_jax.agents.td3 import agent as td3
from hsrl_jax.agents.wolpertinger import agent as wolpertinger
from hsrl_jax.config import Config, PolicyConfig
from hsrl_jax.envs.user_simulator import EnvParams, UserSimulator
from hsrl_jax.errors import InputError
from hsrl_jax.sid import SidIndex
from hsrl_jax.training import (
  checkpoint,
  evaluate,
  hosts,
  loop,
  parallel,
  progress,
)
from hsrl_jax.training import metrics as metrics_lib
from hsrl_jax.types import Params, Sessions

FOLDER = "policy"

# The name of --agent to what builds it, from (PolicyConfig, Spec).
AGENTS = {
  "random": random.make,
  "popularity": popularity.make,
  "sasrec": sasrec.make,
  "a2c": a2c.make,
  "pgra": pgra.make,
  "ddpg": ddpg.make,
  "td3": td3.make,
  "wolpertinger": wolpertinger.make,
  "hac": hac.make,
  "hsrl": hsrl.make,
}


def make_agent(config: Config, env: UserSimulator, index: SidIndex) -> Agent:
  """The agent that a configuration names."""
  spec = Spec(
    levels=config.quantizer.levels,
    vocab_size=config.quantizer.vocab_size,
    slate_size=env.slate_size,
    penalty=config.simulator.penalty,
    iterations=config.policy.iterations,
    sweet_point=config.simulator.sweet_point,
  )
  return AGENTS[config.policy.agent](config.policy, spec)


def acting(config: PolicyConfig, index: SidIndex) -> str:
  """How the agent finds a slate, in words."""
  if config.agent != "hsrl" or not hsrl.searches(config, index):
    return f"each of {index.num_items:,} items is scored"
  return f"beam search, {config.beams} beams, {index.num_items:,} items"


def greedy(agent: Agent) -> evaluate.Act:
  """The agent's greedy policy; its `params` are (params, Catalogue)."""

  def act(params, observation, excluded, key):
    params, catalogue = params
    if agent.loss is not None:
      key = None
    return agent.act(params, catalogue, observation, excluded, key, 1.0).slate

  return act


def by_seed(config: PolicyConfig, params: Params) -> list[Params]:
  """Parameters with leading axis S as one pytree a seed."""
  return [
    jax.tree.map(lambda x, i=i: x[i], params) for i in range(len(config.seeds))
  ]


def run(
  config: Config,
  workdir: pathlib.Path,
  env: UserSimulator,
  catalogue: Catalogue,
  users: EnvParams,
  val_users: EnvParams,
  logs: Sessions,
) -> None:
  """Trains; writes `policy/`: checkpoints, metrics.jsonl, TensorBoard events.

  Resumes from the last checkpoint; what it then leaves is, bit for bit, what
  an uninterrupted run would have left.

  Args:
    config: of the run.
    workdir: of the run.
    env: the simulator.
    catalogue: the items.
    users: the pool of the training split.
    val_users: the pool of the learning curve.
    logs: the training slates, for an agent that learns from them.

  Raises:
    FloatingPointError: a metric became NaN or infinite.
    InputError: the users do not divide over the devices.
  """
  policy = config.policy
  agent = make_agent(config, env, catalogue.index)
  folder = workdir / FOLDER
  if agent.loss is None:
    folder.mkdir(parents=True, exist_ok=True)
    return
  engine = loop.make(agent, env, policy)
  inputs = loop.Inputs(
    catalogue,
    users,
    loop.logged(logs, env.penalty) if agent.offline else None,
  )
  layout = parallel.layout(len(policy.seeds))
  try:
    learner, stream = parallel.init(engine.init, policy.seeds, inputs, layout)
  except ValueError as error:
    raise InputError(str(error)) from error
  iterate = parallel.over_devices(engine.run, layout)
  curve = _curve(agent, env, config, catalogue, val_users)
  with checkpoint.open_directory(folder / "checkpoints") as checkpointer:
    restored = checkpoint.restore_latest(checkpointer, (learner, stream))
    learner, stream = restored or (learner, stream)
    done = int(parallel.one_copy(learner.step)[0])
    learner, stream, inputs = parallel.place(learner, stream, inputs, layout)
    first = hosts.is_first()
    with (
      metrics_lib.MetricsWriter(folder, done)
      if first
      else contextlib.nullcontext() as writer,
      progress.bar(policy.iterations, "policy", "it", done) as bar,
    ):
      for step in range(
        done + policy.iterations_per_call,
        policy.iterations + 1,
        policy.iterations_per_call,
      ):
        learner, stream, measured = iterate(learner, stream, inputs)
        measured = metrics_lib.seed_means(measured)
        bad = metrics_lib.first_not_finite(measured)
        if bad:
          raise FloatingPointError(
            f"{bad} is {measured[bad]} by iteration {step}; the last good "
            f"checkpoint is kept in {folder}: lower --learning_rate"
          )
        bar.update(policy.iterations_per_call)
        if first:
          writer.write(step, measured)
        if first and (
          step % policy.curve_every == 0 or step == policy.iterations
        ):
          point = curve(parallel.target_params(learner, layout))
          writer.write(step, {"eval": point})
          bar.set_postfix(val_reward=f"{point['total_reward']['mean']:.2f}")
        if step % policy.save_every == 0 or step == policy.iterations:
          state = parallel.collect(learner, stream, layout)
          checkpoint.save(checkpointer, step, state)
  parallel.assert_replicated(learner, layout)


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
  seeds = config.policy.seeds
  agent = make_agent(config, env, catalogue.index)
  inputs = loop.Inputs(catalogue, users)
  if agent.loss is None:
    user = env.start(0, users).observation
    return [agent.init(jax.random.key(seed), catalogue, user) for seed in seeds]
  engine = loop.make(agent, env, config.policy)
  like = parallel.shapes(engine.init, seeds, inputs)
  folder = workdir / FOLDER / "checkpoints"
  with checkpoint.open_directory(folder) as checkpointer:
    restored = checkpoint.restore_latest(checkpointer, like)
  if restored is None:
    raise InputError(
      f"{folder}: no checkpoint can be read; delete {workdir}/.done/policy "
      "and run --mode=policy again"
    )
  return by_seed(config.policy, restored[0].target_params)


def _curve(
  agent: Agent,
  env: UserSimulator,
  config: Config,
  catalogue: Catalogue,
  users: EnvParams,
) -> Callable[[Params], dict]:
  """A point of the learning curve: sessions of the validation users."""
  act = greedy(agent)
  key = jax.random.key(config.evaluate.seed)

  def point(params: Params) -> dict:
    sessions = [
      evaluate.simulate(
        act,
        env,
        (p, catalogue),
        users,
        key,
        episodes=config.policy.curve_episodes,
      )
      for p in by_seed(config.policy, params)
    ]
    return {
      name: evaluate.summarise([getattr(s, name) for s in sessions])
      for name in ("total_reward", "depth")
    }

  return point
