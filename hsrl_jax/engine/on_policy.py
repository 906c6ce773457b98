"""The on-policy engine: act for a segment, then learn from it and forget it.

Like `loop` it is one `lax.scan` for ONE seed, with the same state, which
`parallel` spreads over devices; the replay stays empty. An iteration is a slate
for each user. After each `segment` of them the agent's choices are judged by
their advantages (`ops.returns.choice_advantages`), and the policy follows the
clipped objective of PPO (arXiv 1707.06347) for some epochs.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import flatten_util

from hsrl_jax.agents.base import Agent, geometric
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import loop as loop_lib
from hsrl_jax.engine.loop import Engine, Inputs, Learner, Stream
from hsrl_jax.engine.replay import ReplayState
from hsrl_jax.ops import returns, sampling
from hsrl_jax.sim.user_simulator import EnvState, UserSimulator
from hsrl_jax.types import Array, Decision, Metrics, PRNGKey

_EPSILON = 1e-6
_NO_USER = 2**32 - 1


class _Segment(NamedTuple):
  """What T slates of U users were; leaves [T, U, ...].

  Attributes:
    decisions: the slates.
    rewards: float32 [T, U, K], what each place added.
    over: float32 [T, U], 1 where the session ended, for whatever reason.
  """

  decisions: Decision
  rewards: Array
  over: Array


class _Batch(NamedTuple):
  """Decisions to learn from; leaves have any leading axes.

  Attributes:
    decisions: the slates.
    log_probs: float32 [..., K, P], under the policy that acted.
    advantages: float32 [..., K, P].
    returns: float32 [..., K, P], which values learn.
  """

  decisions: Decision
  log_probs: Array
  advantages: Array
  returns: Array


class _Loop(NamedTuple):
  """What the loop's functions are made of; all of it is static."""

  agent: Agent
  env: UserSimulator
  config: TrainConfig
  optimizer: optax.GradientTransformation


def make(agent: Agent, env: UserSimulator, config: TrainConfig) -> Engine:
  """Builds the engine of an agent that learns on-policy, in a simulator."""
  if config.explore_no_repeat:
    env = env.exploring()
  segments = config.iterations // config.segment
  steps = segments * config.epochs * config.minibatches
  optimizer = loop_lib.optimizer_of(config, steps)
  loop = _Loop(agent, env, config, optimizer)
  return Engine(functools.partial(_init, loop), functools.partial(_run, loop))


def _init(
  loop: _Loop,
  seed: Array,
  inputs: Inputs,
  part: Array | int = 0,
  parts: int = 1,
) -> tuple[Learner, Stream]:
  """Engine.init."""
  count = loop_lib.users_of_part(loop.config, parts)
  param_key, stream_key, key = sampling.split(jax.random.key(seed), 3)
  user = loop.env.start(jnp.int32(0), inputs.env_params)
  params = loop.agent.init(
    param_key,
    inputs.catalogue,
    user.observation,
    _hidden(loop, user, inputs),
  )
  learner = loop_lib.fresh_learner(params, loop.optimizer.init(params), key)
  users = part * count + jnp.arange(count)
  states = jax.vmap(loop.env.reset, in_axes=(0, None))(
    loop_lib.by_user(stream_key, users), inputs.env_params
  )
  return learner, Stream(users, states, ReplayState((), jnp.int32(0)))


def _hidden(loop: _Loop, state: EnvState, inputs: Inputs) -> Array:
  """What the critic alone sees of a user, float32 [Z]; Z may be 0."""
  if not loop.agent.on_policy.settings.critic_sees_state:
    return jnp.zeros(0)
  return loop.env.hidden(state, inputs.env_params)


def _rollout(
  loop: _Loop, learner: Learner, stream: Stream, inputs: Inputs
) -> tuple[EnvState, _Segment]:
  """Shows each user `segment` slates."""

  def iteration(states, t):
    key = jax.random.fold_in(learner.key, learner.step + t)
    keys = loop_lib.split(loop_lib.by_user(key, stream.user), 2)
    return jax.vmap(of_user)(states, *keys)

  def of_user(state, act_key, step_key):
    hidden = _hidden(loop, state, inputs)
    with jax.named_scope(loop_lib.ACTING):
      action = loop.agent.act(
        learner.params,
        inputs.catalogue,
        state.observation,
        state.seen,
        act_key,
        1.0,
      )
    with jax.named_scope(loop_lib.SIMULATOR):
      next_state, result = loop.env.step_or_reset(
        step_key, state, action.slate, inputs.env_params
      )
    decision = Decision(
      state.observation, hidden, action.slate, result.response, action.notes
    )
    over = (result.terminated | result.truncated).astype(jnp.float32)
    rewards = loop.env.reward.places(result.response)
    return next_state, _Segment(decision, rewards, over)

  return jax.lax.scan(iteration, stream.env, jnp.arange(loop.config.segment))


def _judged(
  loop: _Loop,
  learner: Learner,
  states: EnvState,
  segment: _Segment,
  inputs: Inputs,
  axis_name: str | None,
) -> _Batch:
  """The segment with the advantages of its choices; leaves [T, U, ...]."""
  learning, settings = loop.agent.on_policy, loop.agent.on_policy.settings

  def judge(decision):
    return learning.choices(learner.params, inputs.catalogue, decision, None)

  choices = jax.vmap(jax.vmap(judge))(segment.decisions)
  last = jax.vmap(
    lambda state: learning.value(
      learner.params,
      inputs.catalogue,
      state.observation,
      _hidden(loop, state, inputs),
    )
  )(states)
  advantages, targets = jax.vmap(
    functools.partial(
      returns.choice_advantages,
      discount=settings.discount,
      trace=settings.trace,
      place_trace=settings.place_trace,
      by_choice=settings.prefix_values,
    ),
    in_axes=(1, 1, 1, 0),
    out_axes=1,
  )(choices.values, segment.rewards, segment.over, last)
  return _Batch(
    segment.decisions,
    choices.log_probs,
    _normalised(advantages, axis_name),
    targets,
  )


def _normalised(advantages: Array, axis_name: str | None) -> Array:
  """Advantages of mean 0 and variance 1 over all users of all devices."""

  def mean(x):
    x = x.mean()
    return x if axis_name is None else jax.lax.pmean(x, axis_name)

  centred = advantages - mean(advantages)
  return centred * jax.lax.rsqrt(mean(centred**2) + _EPSILON)


def _update(
  loop: _Loop,
  learner: Learner,
  batch: _Batch,
  keys: PRNGKey,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """One step of the optimizer, on decisions with leaves [U, n, ...]."""
  learning, settings = loop.agent.on_policy, loop.agent.on_policy.settings
  progress = learner.step / loop.config.iterations
  entropy_weight = geometric(
    settings.entropy_weight, settings.entropy_weight_end, progress
  )

  def of_decision(params, one, key):
    choices = learning.choices(params, inputs.catalogue, one.decisions, key)
    ratio = jnp.exp(choices.log_probs - one.log_probs)
    clipped = jnp.clip(ratio, 1 - settings.ratio_clip, 1 + settings.ratio_clip)
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

  def loss(params):
    of_all = jax.vmap(jax.vmap(of_decision, (None, 0, 0)), (None, 0, 0))
    losses, metrics = of_all(params, batch, keys)
    return losses.mean(), jax.tree.map(jnp.mean, metrics)

  grads, metrics = jax.grad(loss, has_aux=True)(learner.params)
  if axis_name is not None:
    local, unravel = flatten_util.ravel_pytree((grads, metrics))
    grads, metrics = unravel(jax.lax.pmean(local, axis_name))
  # Of one vector, as the optimizer has it: less to compile.
  metrics["grad_norm"] = optax.tree.norm(flatten_util.ravel_pytree(grads)[0])
  updates, opt_state = loop.optimizer.update(grads, learner.opt_state)
  params = optax.apply_updates(learner.params, updates)
  averaged = optax.incremental_update(
    params, learner.target_params, loop.config.polyak
  )
  learner = learner._replace(
    params=params, target_params=averaged, opt_state=opt_state
  )
  return learner, metrics


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
  loop: _Loop,
  learner: Learner,
  batch: _Batch,
  users: Array,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """Some epochs over a segment, in minibatches of all users' times."""
  config = loop.config
  count = config.segment // config.minibatches
  step = learner.step

  def epoch(learner, number):
    keys = loop_lib.by_user(epoch_key(learner.key, step, number), users)
    order_keys, loss_keys = loop_lib.split(keys, 2)
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
      return _update(loop, learner, chosen, keys.T, inputs, axis_name)

    return jax.lax.scan(minibatch, learner, (parts, loss_keys))

  return jax.lax.scan(epoch, learner, jnp.arange(config.epochs))


def _run(
  loop: _Loop,
  learner: Learner,
  stream: Stream,
  inputs: Inputs,
  axis_name: str | None = None,
) -> tuple[Learner, Stream, Metrics]:
  """Engine.run."""

  def body(carry, _):
    learner, env_state = carry
    now = stream._replace(env=env_state)
    env_state, segment = _rollout(loop, learner, now, inputs)
    with jax.named_scope(loop_lib.UPDATE):
      batch = _judged(loop, learner, env_state, segment, inputs, axis_name)
      learner, metrics = _epochs(
        loop, learner, batch, stream.user, inputs, axis_name
      )
    learner = learner._replace(step=learner.step + loop.config.segment)
    shown = segment.rewards.sum(-1).mean()
    if axis_name is not None:
      shown = jax.lax.pmean(shown, axis_name)
    return (learner, env_state), metrics | {"reward": shown}

  (learner, env_state), metrics = jax.lax.scan(
    body,
    (learner, stream.env),
    length=loop.config.iterations_per_call // loop.config.segment,
  )
  return (
    learner,
    stream._replace(env=env_state),
    jax.tree.map(jnp.mean, metrics),
  )
