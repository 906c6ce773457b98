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
truncation of pi / mu of the latent. Its standard deviation is taken to be
today's, which is exact where `temperature_end` is `temperature`.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.scipy import stats

from hsrl_jax.agents import base
from hsrl_jax.networks.critic import Critic
from hsrl_jax.networks.heads import Bounded, ItemLogits
from hsrl_jax.ops import masking, policy_gradient, returns


@dataclasses.dataclass(frozen=True)
class Settings(base.PolicySettings, base.ItemLogitsSettings):
  """Of PG-RA."""


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent; `settings.item_logits` says where w_i comes from."""
  encoder = base.encoder(spec.network)
  actor = Bounded(spec.network.width)
  guess = Bounded(spec.network.width, (2 * spec.network.width,))
  items = ItemLogits(settings.free)
  critic = Critic(spec.network.critic_hidden)

  def encode(params, catalogue, observation, key=None):
    return encoder.apply(
      params["encoder"], catalogue.features, *observation, key
    )

  def value_of(params, state):
    return critic.apply(params["critic"], state[None])[0]

  def log_item(params, catalogue, latent):
    """log f(i|e), [N + 1]."""
    logits, _ = items.apply(params["items"], catalogue.features, latent)
    return masking.log_softmax(logits, catalogue.index.active)

  def log_density(latent, mean, std):
    return stats.norm.logpdf(latent, mean, std).sum()

  def init(key, catalogue, observation):
    keys = jax.random.split(key, 5)
    state = jnp.zeros(spec.network.width)
    return {
      "encoder": encoder.init(keys[0], catalogue.features, *observation),
      "actor": actor.init(keys[1], state),
      "guess": guess.init(keys[2], jnp.concatenate([state, state])),
      "items": items.init(keys[3], catalogue.features, state),
      "critic": critic.init(keys[4], state[None]),
    }

  def act(params, catalogue, observation, excluded, key, std):
    state = encode(params, catalogue, observation)
    mean = latent = actor.apply(params["actor"], state)
    if key is not None:
      latent = mean + std * jax.random.normal(key, mean.shape)
    action = base.choose(
      log_item(params, catalogue, latent),
      catalogue.index,
      excluded,
      None,
      std,
      spec.slate_size,
    )
    log_prob = log_density(latent, mean, std)
    return action._replace(
      log_prob=jnp.full(spec.slate_size, log_prob), latent=latent
    )

  def loss(params, target_params, catalogue, transition, key, progress):
    state = encode(params, catalogue, transition.observation, key)
    value = value_of(params, state)
    next_state = encode(target_params, catalogue, transition.next_observation)
    target = returns.td_target(
      transition.reward,
      transition.terminated,
      value_of(target_params, next_state),
      settings.discount,
    )
    critic_loss = (value - target) ** 2
    advantage = jnp.clip(
      target - value, -settings.advantage_clip, settings.advantage_clip
    )
    log_prob = log_density(
      transition.latent,
      actor.apply(params["actor"], state),
      base.exploration(spec.train, progress),
    )
    actor_loss = policy_gradient.actor_loss(
      log_prob[None, None],
      advantage[None, None],
      transition.log_prob[:1],
      settings.importance_clip,
    )
    before_and_after = jnp.concatenate(
      [state, jax.lax.stop_gradient(next_state)]
    )
    guessed = guess.apply(params["guess"], before_and_after)
    log_items = log_item(params, catalogue, guessed)
    behaviour_loss = -log_items[transition.slate].mean()
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
