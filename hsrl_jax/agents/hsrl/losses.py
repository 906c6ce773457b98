"""Losses of HSRL for ONE transition; the engine takes the mean.

y = r + gamma (1 - terminated) V_target(s')             (DESIGN, section 6)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.ops import policy_gradient, returns
from hsrl_jax.types import Array


class SlateView(NamedTuple):
  """What the policy says of a shown slate.

  Attributes:
    logits: float32 [K, L, V], of the levels on the way to each item. In the
      `expected` mode all K are the same.
    tokens: int32 [K, L], the items' SIDs.
  """

  logits: Array
  tokens: Array


def _at_tokens(levels: Array, tokens: Array) -> Array:
  """[K, L, V] at [K, L] -> [K, L]."""
  return jnp.take_along_axis(levels, tokens[..., None], -1)[..., 0]


def critic_loss(target: Array, value: Array) -> Array:
  """(V(s) - y)^2, both []."""
  return (value - jax.lax.stop_gradient(target)) ** 2


def actor_loss(
  view: SlateView,
  advantages: Array,
  behaviour_log_prob: Array,
  importance_clip: float,
) -> Array:
  """Mean over the slate of sum_l -A_{k,l} log p_l(z_l(k)).

  Args:
    view: of the slate.
    advantages: float32 [K, L] or [K, 1]; no gradient flows into them.
    behaviour_log_prob: float32 [K], log pi of each item when it was shown.
    importance_clip: see policy_gradient.importance_weights; 0: no weights.

  Returns:
    float32 [].
  """
  log_probs = _at_tokens(jax.nn.log_softmax(view.logits), view.tokens)
  weights = jnp.ones(log_probs.shape[0])
  if importance_clip:
    weights = policy_gradient.importance_weights(
      log_probs.sum(-1), behaviour_log_prob, importance_clip
    )
  advantages = jax.lax.stop_gradient(advantages) * weights[:, None]
  return -(advantages * log_probs).sum(-1).mean()


def item_advantages(
  target: Array,
  value: Array,
  level_values: Array,
  rewards: Array,
  *,
  clip: float,
  item_credit: bool,
  per_level: bool,
  sweet_point: float | None = None,
) -> Array:
  """A_{k,l}: the slate's clipped advantage, and each item's own share.

  Args:
    target: float32 [], y.
    value: float32 [], V(s).
    level_values: float32 [L + 1], V_l(c_l).
    rewards: float32 [K], of each item.
    clip: bound of the slate's advantage.
    item_credit: whether each item's own part is added.
    per_level: level l's loss uses V_{l-1}(c_{l-1}), the value of the context
      its token was chosen in, instead of V(s).
    sweet_point: see returns.item_advantages.

  Returns:
    float32 [K, L] (per level) or [K, 1].
  """
  baseline = level_values[:-1] if per_level else value[None]
  advantage = jnp.clip(target - baseline, -clip, clip)
  if not item_credit:
    return jnp.broadcast_to(advantage, (len(rewards), len(advantage)))
  return jax.vmap(returns.item_advantages, in_axes=(0, None, None), out_axes=1)(
    advantage, rewards, sweet_point
  )


def entropy(view: SlateView) -> Array:
  """sum_l H(p_l), mean over the slate, []."""
  return policy_gradient.entropy(view.logits).sum(-1).mean()


def behaviour_loss(view: SlateView, bias: Array, response: Array) -> Array:
  """BCE of the responses on s(i) = sum_l logits_l[z_l(i)] + b, mean, [].

  The logits are not normalised: the score regresses on what was shown, so it
  needs no importance weights.
  """
  scores = _at_tokens(view.logits, view.tokens).sum(-1) + bias
  return optax.sigmoid_binary_cross_entropy(scores, response).mean()
