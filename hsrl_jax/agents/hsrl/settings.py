"""Settings of HSRL by recipe."""

import dataclasses

from hsrl_jax.agents import base
from hsrl_jax.checked import setting


@dataclasses.dataclass(frozen=True)
class Settings(base.ActorCriticSettings, base.PartsSettings):
  """Of HSRL that learns by replay, or from logs.

  Attributes:
    beams: width of the beam search, which acts from 100,000 items on.
  """

  beams: int = setting(50, least=1)
  parts = ("residual", "semantic_tokens", "item_residual", "level_critics")

  @property
  def item_residual(self) -> bool:
    """Whether what a SID loses of the features counts when items are ranked."""
    return self.has("item_residual") and self.has("semantic_tokens")


@dataclasses.dataclass(frozen=True)
class SlateSettings(base.OnPolicySettings):
  """Of what learns on-policy, slot after slot.

  Attributes:
    slates: how a slate is drawn: `sequential`, each slot knows the slots
      before; `independent`, all by the same probabilities.
    prior_temperature: log pi begins as the estimated logit of a like divided by
      this.
    repeat_penalty: what log pi of a token begins to lose for each item of its
      kind that is in the slate already.
    lately_penalty: the same for each like of its kind lately.
    leave_penalty: logits of a like that an item begins to lose for each nat of
      -log P(the user stays), which a head learns from who left; 0: no head.
    anchor_weight: of the divergence of log pi from what it begins with.
  """

  slates: str = setting("sequential", among=("sequential", "independent"))
  prior_temperature: float = setting(0.5, above=0)
  repeat_penalty: float = setting(3.0, least=0)
  lately_penalty: float = setting(0.3, least=0)
  leave_penalty: float = setting(0.0, least=0)
  anchor_weight: float = setting(0.0, least=0)


@dataclasses.dataclass(frozen=True)
class OnPolicySettings(SlateSettings):
  """Of HSRL that learns on-policy."""

  parts = ("residual", "semantic_tokens", "item_prior", "critic_state")


@dataclasses.dataclass(frozen=True)
class SupervisedSettings(base.Settings):
  """Of what goes on from the next item on-policy.

  Attributes:
    supervised_weight: of the log pi of the policy of the next item in what
      items begin with.
    hold_logged: what stays as the policy of the next item has it in states that
      logs know, where nothing was shown yet: the whole `slate`, its first
      `slot`, which ranks the items of a list, or `none`. The flat twin has no
      `slot`.
  """

  supervised_weight: float = setting(1.0, least=0)
  hold_logged: str = setting("slate", among=("slate", "slot", "none"))


@dataclasses.dataclass(frozen=True)
class SupervisedItems(SlateSettings, SupervisedSettings):
  """Of its flat twin."""


@dataclasses.dataclass(frozen=True)
class SupervisedTokens(SupervisedItems):
  """Of HSRL that goes on from the next item on-policy, see `supervised`."""

  parts = ("residual", "semantic_tokens", "critic_state")
