"""Learning on-policy: act for a segment, learn from it, and forget it.

An iteration is a slate for each user. After each `segment` of them the agent's
choices are judged by their advantages (`ops.returns.choice_advantages`), and
the policy follows the clipped objective of PPO (arXiv 1707.06347) for as many
epochs as the agent says.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax.agents.base import OnPolicy
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import core
from hsrl_jax.engine.core import Inputs, Learner, Loop, Stream
from hsrl_jax.ops import policy_gradient, returns, sampling
from hsrl_jax.sim.user_simulator import EnvState
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

_EPSILON = 1e-6
_NO_USER = 2**32 - 1


class Judged(NamedTuple):
  """Slates to learn from; leaves have any leading axes."""

  transitions: Transition  # The slates.
  log_probs: Array  # float32 [..., K, P], under the policy that acted.
  advantages: Array  # float32 [..., K, P].
  returns: Array  # float32 [..., K, P], which values learn.


def steps(config: TrainConfig, epochs: int) -> int:
  """Gradient steps of a whole training."""
  segments = config.iterations // config.segment
  return segments * epochs * config.minibatches


def iterate(
  loop: Loop,
  learner: Learner,
  stream: Stream,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, EnvState, None, Metrics]:
  """Shows each user a segment of slates and learns from it.

  Returns:
    Learner, sessions, None since nothing is kept, and metrics.
  """
  env_state, segment = _collect(loop, learner, stream, inputs)
  with jax.named_scope(core.UPDATE):
    batch = _judge(loop, learner, env_state, segment, inputs, axis_name)
    learner, metrics = _epochs(
      loop, learner, batch, stream.user, inputs, axis_name
    )
  learner = learner._replace(step=learner.step + loop.config.segment)
  shown = core.mean_over(
    _place_rewards(loop, segment).sum(-1).mean(), axis_name
  )
  return learner, env_state, None, metrics | {"reward": shown}


def _collect(
  loop: Loop, learner: Learner, stream: Stream, inputs: Inputs
) -> tuple[EnvState, Transition]:
  """Shows each user `segment` slates; leaves [T, U, ...]."""

  def iteration(states, t):
    key = jax.random.fold_in(learner.key, learner.step + t)
    keys = core.split(core.by_user(key, stream.user), 2)
    return core.show(loop, learner.params, states, inputs, *keys, 1.0)

  return jax.lax.scan(iteration, stream.env, jnp.arange(loop.config.segment))


def _place_rewards(loop: Loop, segment: Transition) -> Array:
  """Reward of each place of the slates, float32 [T, U, K]."""
  return jax.vmap(jax.vmap(loop.env.reward.places))(segment.response)


def _judge(
  loop: Loop,
  learner: Learner,
  states: EnvState,
  segment: Transition,
  inputs: Inputs,
  axis_name: str | None,
) -> Judged:
  """The segment with the advantages of its choices; leaves [T, U, ...]."""
  learning, settings = loop.agent.on_policy, loop.agent.on_policy.settings

  def choices_of(transition):
    return learning.choices(learner.params, inputs.catalogue, transition, None)

  choices = jax.vmap(jax.vmap(choices_of))(segment)
  last = jax.vmap(
    lambda state: learning.value(
      learner.params,
      inputs.catalogue,
      state.observation,
      core.hidden(loop, state, inputs),
    )
  )(states)
  ends = returns.Ends(
    segment.terminated,
    segment.truncated,
    _cut_values(loop, learner, segment, inputs),
  )
  advantages, targets = jax.vmap(
    functools.partial(
      returns.choice_advantages,
      discount=settings.discount,
      trace=settings.trace,
      credit=settings.credit,
    ),
    in_axes=(1, 1, 1, 0),
    out_axes=1,
  )(choices.values, _place_rewards(loop, segment), ends, last)
  return Judged(
    segment, choices.log_probs, _normalised(advantages, axis_name), targets
  )


def _cut_values(
  loop: Loop, learner: Learner, segment: Transition, inputs: Inputs
) -> Array:
  """V after each slate, [T, U]; 0 in a segment in which no session was cut."""

  def of_slate(transition):
    return loop.agent.on_policy.value(
      learner.params,
      inputs.catalogue,
      transition.next_observation,
      transition.next_hidden,
    )

  return jax.lax.cond(
    (segment.truncated > 0).any(),
    jax.vmap(jax.vmap(of_slate)),
    lambda segment: jnp.zeros_like(segment.truncated),
    segment,
  )


def _normalised(advantages: Array, axis_name: str | None) -> Array:
  """Advantages of mean 0 and variance 1 over all users of all devices."""
  mean = core.mean_over(advantages.mean(), axis_name)
  centred = advantages - mean
  variance = core.mean_over((centred**2).mean(), axis_name)
  return centred * jax.lax.rsqrt(variance + _EPSILON)


def objective(
  learning: OnPolicy,
  params: Params,
  catalogue,
  one: Judged,
  entropy_weight: Array,
  key: PRNGKey | None,
) -> tuple[Array, Metrics]:
  """PPO's clipped objective, values, entropy and the agent's own loss.

  Args:
    learning: of the agent.
    params: of the agent.
    catalogue: the items.
    one: of ONE slate.
    entropy_weight: beta, [].
    key: of the dropout.

  Returns:
    The loss, float32 [], and metrics.
  """
  settings = learning.settings
  choices = learning.choices(params, catalogue, one.transitions, key)
  ratio = jnp.exp(choices.log_probs - one.log_probs)
  clipped = jnp.clip(ratio, 1 - learning.clip, 1 + learning.clip)
  actor = -jnp.minimum(ratio * one.advantages, clipped * one.advantages)
  actor = actor.mean()
  critic = ((choices.values - one.returns) ** 2).mean()
  loss = (
    settings.actor_weight * (actor - entropy_weight * choices.entropy)
    + settings.critic_weight * critic
    + choices.loss
  )
  return loss, {
    "loss": loss,
    "actor_loss": actor,
    "critic_loss": critic,
    "entropy": choices.entropy,
    "value": choices.values[0, 0],
    "ratio_moved": jnp.abs(ratio - 1.0).mean(),
  } | choices.metrics


def _step(
  loop: Loop,
  learner: Learner,
  batch: Judged,
  keys: PRNGKey,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """One gradient step, on slates with leaves [U, n, ...]."""
  learning = loop.agent.on_policy
  entropy_weight = policy_gradient.geometric(
    learning.settings.entropy_weight,
    learning.settings.entropy_weight_end,
    learner.step / loop.config.iterations,
  )

  def loss(params):
    def of_slate(params, one, key):
      return objective(
        learning, params, inputs.catalogue, one, entropy_weight, key
      )

    of_all = jax.vmap(jax.vmap(of_slate, (None, 0, 0)), (None, 0, 0))
    losses, metrics = of_all(params, batch, keys)
    return losses.mean(), jax.tree.map(jnp.mean, metrics)

  return core.gradient_step(loop, learner, loss, axis_name=axis_name)


def epoch_key(key: PRNGKey, step: Array, number: Array | int) -> PRNGKey:
  """The key of an epoch over the segment that began with a step.

  The step's own keys are those of its users; no user has the number _NO_USER.

  Args:
    key: of the learner.
    step: int32 [], iterations before the segment.
    number: int32 [], of the epoch.
  """
  key = jax.random.fold_in(jax.random.fold_in(key, step), _NO_USER)
  return jax.random.fold_in(key, number)


def _epochs(
  loop: Loop,
  learner: Learner,
  batch: Judged,
  users: Array,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """Some epochs over a segment, in minibatches of all users' times."""
  config = loop.config
  count = config.segment // config.minibatches

  def epoch(learner, number):
    keys = core.by_user(epoch_key(learner.key, learner.step, number), users)
    order_keys, loss_keys = core.split(keys, 2)
    order = jax.vmap(jax.random.permutation, (0, None))(
      order_keys, config.segment
    )
    parts = order.reshape(-1, config.minibatches, count).swapaxes(0, 1)
    loss_keys = jax.vmap(sampling.split, (0, None), 1)(
      loss_keys, config.segment
    ).reshape(config.minibatches, count, -1)

    def minibatch(learner, part):
      times, keys = part
      of_user = jax.vmap(lambda x, t: x[t], (1, 0))
      chosen = jax.tree.map(lambda x: of_user(x, times), batch)
      return _step(loop, learner, chosen, keys.T, inputs, axis_name)

    return jax.lax.scan(minibatch, learner, (parts, loss_keys))

  epochs = jnp.arange(loop.agent.on_policy.epochs)
  return jax.lax.scan(epoch, learner, epochs)
