"""Policy-gradient terms of ONE state; callers vmap."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array


def token_sum(levels: Array, tokens: Sequence[Array]) -> Array:
  """sum_l levels[l, tokens[l]]; the token -1 is none and adds 0.

  Args:
    levels: float32 [L, V], such as log-probabilities.
    tokens: for each level integers [...], each in -1..V-1: unchecked.

  Returns:
    float32 [...].
  """
  picked = []
  for level, token in zip(levels, tokens, strict=True):
    token = token.astype(jnp.int32)
    own = level.at[jnp.maximum(token, 0)].get(mode="promise_in_bounds")
    picked.append(jnp.where(token < 0, 0.0, own))
  # By a product: with a reduction, acting on all items takes half as much again
  # on a CPU (tests/benchmarks/where_time_goes.py).
  return jnp.tensordot(
    jnp.ones(len(levels)),
    jnp.stack(picked),
    axes=1,
    precision=jax.lax.Precision.HIGHEST,
  )


def geometric(start: float, end: float, progress: Array) -> Array:
  """A schedule: from `start` to `end` by equal ratios; both above 0, or 0."""
  return start * (end / start) ** progress if start else 0.0 * progress


def entropy(logits: Array) -> Array:
  """Entropy over the last axis, nats; [..., V] -> [...]."""
  log_probs = jax.nn.log_softmax(logits)
  return -(jnp.exp(log_probs) * log_probs).sum(-1)


def importance_weights(
  log_prob: Array, behaviour_log_prob: Array, clip: float
) -> Array:
  """min(pi / mu, clip) of each item, no gradient; [K], [K] -> [K].

  Truncated importance weights of replayed actions; `clip` > 0.
  """
  ratio = jnp.exp(jax.lax.stop_gradient(log_prob) - behaviour_log_prob)
  return jnp.minimum(ratio, clip)


def actor_loss(
  log_probs: Array,
  advantages: Array,
  behaviour_log_prob: Array,
  importance_clip: float,
) -> Array:
  """Mean over K choices of sum_l -A_{k,l} log p_l(z_l(k)).

  Args:
    log_probs: float32 [K, L], of what was chosen, its L parts.
    advantages: float32 [K, L] or [K, 1]; no gradient flows into them.
    behaviour_log_prob: float32 [K], of the whole choice when it was made.
    importance_clip: see importance_weights; 0: no weights.

  Returns:
    float32 [].
  """
  advantages = jax.lax.stop_gradient(advantages)
  if importance_clip:
    weights = importance_weights(
      log_probs.sum(-1), behaviour_log_prob, importance_clip
    )
    advantages = advantages * weights[:, None]
  return -(advantages * log_probs).sum(-1).mean()
