"""The agents by the name that --agent gives them."""

from hsrl_jax.agents import (
  a2c,
  ddpg,
  hac,
  pgra,
  sasrec,
  simple,
  td3,
  wolpertinger,
)
from hsrl_jax.agents.base import Agent, Spec
from hsrl_jax.agents.hsrl import agent as hsrl
from hsrl_jax.config import Config
from hsrl_jax.sim import reward

# Name to what builds the agent, from (PolicyConfig, Spec).
AGENTS = {
  "random": simple.make_random,
  "popularity": simple.make_popularity,
  "sasrec": sasrec.make,
  "a2c": a2c.make,
  "pgra": pgra.make,
  "ddpg": ddpg.make,
  "td3": td3.make,
  "wolpertinger": wolpertinger.make,
  "hac": hac.make,
  "hsrl": hsrl.make,
}


def make_agent(config: Config, slate_size: int) -> Agent:
  """The agent that a configuration names, for slates of K items."""
  spec = Spec(
    levels=config.quantizer.levels,
    vocab_size=config.quantizer.vocab_size,
    slate_size=slate_size,
    reward=reward.of_config(config.simulator),
    iterations=config.policy.iterations,
  )
  return AGENTS[config.policy.agent](config.policy, spec)
