"""Settings of the published method; defaults are its own.

Rates of Adam, of which each part has one, stand here: the learning rate, its
decay and the clipping of TrainConfig are not read, nor are temperatures.
"""

import dataclasses

from hsrl_jax.agents import base
from hsrl_jax.checked import setting


@dataclasses.dataclass(frozen=True)
class Settings(base.DiscountSettings):
  """Of HSRL as published.

  Attributes:
    advantage_clip: bound of the slate's advantage.
    actor_rate: learning rate of the actor's Adam.
    critic_rate: the same of the critic's.
    behaviour_rate: the same of the behaviour loss's, a second one on the actor;
      0: there is no such loss.
    actor_decay: L2 weight decay of the first two, a part of the gradient.
    behaviour_decay: the same of the third.
    entropy_bonus: beta, the same throughout.
    actor_tokens: outputs of each level's softmax, whatever the SIDs have.
    critic_dropout: rate in training.
    warm_up: transitions that are collected before anything is learned.
  """

  advantage_clip: float = setting(1.0, above=0)
  actor_rate: float = setting(1e-3, above=0)
  critic_rate: float = setting(1e-3, above=0)
  behaviour_rate: float = setting(0.0, least=0)
  actor_decay: float = setting(1e-5, least=0)
  behaviour_decay: float = setting(3e-5, least=0)
  entropy_bonus: float = setting(0.1, least=0)
  actor_tokens: int = setting(256, least=2)
  critic_dropout: float = setting(0.2, least=0, most=0.998)
  warm_up: int = setting(2_000, least=0)
