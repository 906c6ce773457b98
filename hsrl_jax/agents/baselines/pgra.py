"""PG-RA: policy gradient with action representations (Chandak et al., 2019).

The internal policy is a Gaussian over a latent action e in R^d: its mean is
tanh of a linear map of the state, its standard deviation the exploration. A
second part f(i|e) = softmax_i(<e, w_i> + b_i) turns e into items: the slate are
its K most likely ones. Only the internal policy follows the policy gradient,
with log pi(e|s) and the slate's advantage (a latent action has no share for
each item). f is trained apart by self-supervision: from what is before and
after a step, a network g guesses e, and f(.|g(s, s')) has to predict the items
that were shown; `behaviour_weight` is the weight of that loss.

Replayed latents come from other means than today's; `importance_clip` is the
truncation of pi / mu of the latent.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy import stats

from hsrl_jax.agents import base
from hsrl_jax.agents.baselines import scored
from hsrl_jax.ops import masking, policy_gradient, returns
from hsrl_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Settings(base.PolicySettings, base.ItemLogitsSettings):
  """Of PG-RA."""


class Bounded(nn.Module):
  """An MLP with its last layer in (-1, 1), of ONE vector; callers vmap."""

  width: int  # Of the latent space.
  hidden: Sequence[int] = ()  # Widths of the hidden layers.

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """[any] -> [width]."""
    for width in self.hidden:
      x = nn.relu(nn.Dense(width)(x))
    return nn.tanh(nn.Dense(self.width)(x))


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; `settings.item_logits` says where w_i comes from."""
  width = spec.network.width
  states, items = scored.states(spec), scored.ItemLogits(settings.free)
  actor, guess = Bounded(width), Bounded(width, (2 * width,))

  def log_item(params, catalogue, latent):
    """log f(i|e), [N + 1]."""
    logits, _ = items.apply(params["items"], catalogue.features, latent)
    return masking.log_softmax(logits, catalogue.index.active)

  def init(key, catalogue, observation):
    features, state = catalogue.features, jnp.zeros(width)
    return scored.init(
      key,
      encoder=(states.encoder, features, *observation),
      actor=(actor, state),
      guess=(guess, jnp.concatenate([state, state])),
      items=(items, features, state),
      critic=(states.critic, state[None]),
    )

  def act(params, catalogue, observation, excluded, key, std):
    state = states.state(params, catalogue, observation)
    mean = latent = actor.apply(params["actor"], state)
    if key is not None:
      latent = mean + std * jax.random.normal(key, mean.shape)
    scores = log_item(params, catalogue, latent)
    chosen = base.choose(
      scores, catalogue.index, excluded, None, std, spec.slate_size
    )
    log_prob = jnp.full(spec.slate_size, _log_density(latent, mean, std))
    return chosen._replace(log_prob=log_prob, latent=latent)

  def loss(params, target_params, catalogue, transition, key, progress):
    state, after, value, next_value = states.look(
      params, target_params, catalogue, transition, key
    )
    target = returns.td_target(
      transition.reward, transition.terminated, next_value, settings.discount
    )
    mean = actor.apply(params["actor"], state)
    log_prob = _log_density(transition.latent, mean, spec.train.temperature)
    # A latent action has the slate's advantage alone.
    advantage = returns.item_advantages(
      target, value[None], None, clip=base.ADVANTAGE_CLIP
    )
    actor_loss = policy_gradient.actor_loss(
      log_prob[None, None],
      advantage,
      transition.log_prob[:1],
      settings.importance_clip,
    )
    both = [state, jax.lax.stop_gradient(after)]
    guessed = guess.apply(params["guess"], jnp.concatenate(both))
    log_items = log_item(params, catalogue, guessed)
    behaviour_loss = -log_items[transition.slate].mean()
    critic_loss = (value - target) ** 2
    loss = (
      settings.critic_weight * critic_loss
      + settings.actor_weight * actor_loss
      + settings.behaviour_weight * behaviour_loss
    )
    return loss, {
      "loss": loss,
      "critic_loss": critic_loss,
      "actor_loss": actor_loss,
      "behaviour_loss": behaviour_loss,
      "value": value,
      "advantage": target - value,
    }

  return base.Agent(init, act, loss, fixed_items=settings.free)


def _log_density(latent: Array, mean: Array, std: Array | float) -> Array:
  """log pi(e|s), []."""
  return stats.norm.logpdf(latent, mean, std).sum()
