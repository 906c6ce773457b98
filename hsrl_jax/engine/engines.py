"""The engine that an agent is trained by."""

import functools

import jax

from hsrl_jax.agents.base import Agent
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import loop, on_policy
from hsrl_jax.sim.user_simulator import UserSimulator


@functools.lru_cache(maxsize=4)  # As many as `agents.agent_of` keeps.
def make(agent: Agent, env: UserSimulator, config: TrainConfig) -> loop.Engine:
  """By replay, or on-policy where the agent learns so."""
  engine = loop if agent.on_policy is None else on_policy
  made = engine.make(agent, env, config)
  # Shapes, the program and its arithmetic are all asked of these; inlined, they
  # are traced once for them all, and the programs are what they would be.
  return loop.Engine(
    jax.jit(made.init, static_argnums=3, inline=True),
    jax.jit(made.run, static_argnums=3, inline=True),
  )
