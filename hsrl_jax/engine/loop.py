"""The training engine: collect, learn, one `lax.scan` for ONE seed.

Any Agent, any simulator. An iteration is a slate for each user, or a batch of
logs. What is learned from is the agent's: what was replayed or logged
(`replayed`), the segment just shown (`on_policy`), or sequences of likes
(`next_item`). State,
random numbers, collecting and the gradient step are the same (`core`);
`parallel` spreads seeds and users over devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents.base import Agent
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import core, next_item, on_policy, replay, replayed
from hsrl_jax.engine.core import Inputs, Learner, Loop, Stream
from hsrl_jax.ops import sampling
from hsrl_jax.sim.user_simulator import UserSimulator
from hsrl_jax.types import Array, Metrics, Params, PRNGKey


class Engine(NamedTuple):
  """The loop's functions."""

  # (seed, inputs, part, parts) -> (Learner, Stream), of one of so many equal
  # parts of the users; without the two, of all users.
  init: Callable[..., tuple[Learner, Stream]]
  # (learner, stream, inputs, axis_name) -> (learner, stream, metrics), of one
  # device's streams; `iterations_per_call` iterations. Metrics are means over
  # them, [].
  run: Callable[..., tuple[Learner, Stream, Metrics]]


@functools.lru_cache(maxsize=4)  # As many as `agents.agent_of` keeps.
def make(
  agent: Agent, env: UserSimulator | None, config: TrainConfig
) -> Engine:
  """Builds the engine of an agent in a simulator; None where it needs none."""
  if env is not None and config.explore_no_repeat:
    env = env.exploring()
  steps = config.iterations
  if agent.on_policy is not None:
    steps = on_policy.steps(config, agent.on_policy.epochs)
  optimizer = agent.optimizer or functools.partial(core.optimizer_of, config)
  loop = Loop(agent, env, config, optimizer(steps))
  init, run = (_init, _run)
  if agent.sequence_loss is not None:
    init, run = next_item.init, next_item.run
  # Shapes, the program and its arithmetic are all asked of these; inlined, they
  # are traced once for them all, and the programs are what they would be.
  return Engine(
    jax.jit(functools.partial(init, loop), static_argnums=3, inline=True),
    jax.jit(functools.partial(run, loop), static_argnums=3, inline=True),
  )


def _init(
  loop: Loop, seed: Array, inputs: Inputs, part: Array | int = 0, parts: int = 1
) -> tuple[Learner, Stream]:
  """Engine.init."""
  agent = loop.agent
  count = core.users_of_part(loop.config, parts)
  param_key, stream_key, key = sampling.split(jax.random.key(seed), 3)
  user = loop.env.start(jnp.int32(0), inputs.env_params)
  hidden = core.hidden(loop, user, inputs)
  params = agent.init(
    *(param_key, inputs.catalogue, user.observation),
    *(() if hidden is None else (hidden,)),
  )
  if agent.learning:
    opt_state = agent.learning.init(params)
  else:
    opt_state = loop.optimizer.init(core.trained(agent, params))
  # A copy, since both are donated.
  target_params = jax.tree.map(jnp.copy, params)
  learner = Learner(params, target_params, opt_state, key, jnp.int32(0))
  users = part * count + jnp.arange(count)
  return learner, _init_stream(loop, users, stream_key, params, inputs)


def _init_stream(
  loop: Loop, users: Array, key: PRNGKey, params: Params, inputs: Inputs
) -> Stream:
  """Sessions that begin, and an empty replay."""
  keys = core.by_user(key, users)
  state = jax.vmap(loop.env.reset, in_axes=(0, None))(keys, inputs.env_params)
  if loop.on_policy or loop.config.from_logs:
    return Stream(users, state, replay.ReplayState((), jnp.int32(0)))
  _, example = jax.eval_shape(
    functools.partial(core.show, loop),
    params,
    state,
    inputs,
    keys,
    keys,
    jnp.float32(0),
  )
  ring = replay.init(example, loop.config.buffer_size // loop.config.users)
  return Stream(users, state, ring)


def _run(
  loop: Loop,
  learner: Learner,
  stream: Stream,
  inputs: Inputs,
  axis_name: str | None = None,
) -> tuple[Learner, Stream, Metrics]:
  """Engine.run."""
  iterate = on_policy.iterate if loop.on_policy else replayed.iterate
  at_once = loop.config.segment if loop.on_policy else 1

  def body(carry, _):
    learner, env_state = carry
    learner, env_state, transition, metrics = iterate(
      loop, learner, stream._replace(env=env_state), inputs, axis_name
    )
    return (learner, env_state), (transition, metrics)

  (learner, env_state), (transitions, metrics) = jax.lax.scan(
    body,
    (learner, stream.env),
    length=loop.config.iterations_per_call // at_once,
  )
  if transitions is not None:
    with jax.named_scope(core.REPLAY):
      ring = replay.add(stream.replay, transitions)
    stream = stream._replace(replay=ring)
  return (
    learner,
    stream._replace(env=env_state),
    jax.tree.map(jnp.mean, metrics),
  )
