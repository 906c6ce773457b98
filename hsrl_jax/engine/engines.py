"""The engine that an agent is trained by."""

from hsrl_jax.agents.base import Agent
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import loop, on_policy
from hsrl_jax.sim.user_simulator import UserSimulator


def make(agent: Agent, env: UserSimulator, config: TrainConfig) -> loop.Engine:
  """By replay, or on-policy where the agent learns so."""
  engine = loop if agent.on_policy is None else on_policy
  return engine.make(agent, env, config)
