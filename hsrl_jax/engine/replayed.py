"""Learning from replayed or logged slates: one step an iteration.

What one call of the engine collects can be replayed from the next call on; in
the very first call nothing is learned yet. An offline agent, and any that
learns from logs, draws its batches from logged slates instead, and shows none.
"""

import jax
import jax.numpy as jnp

from hsrl_jax.engine import core, replay
from hsrl_jax.engine.core import Inputs, Learner, Loop, Stream
from hsrl_jax.ops import sampling
from hsrl_jax.sim.observed import append_positives
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import EnvState
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  PRNGKey,
  Sessions,
  Transition,
)


def iterate(
  loop: Loop,
  learner: Learner,
  stream: Stream,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, EnvState, Transition | None, Metrics]:
  """Shows each user a slate, then learns from a batch; see `loop.Engine.run`.

  Returns:
    Learner, sessions, what was shown (leaves [U, ...]; None with logs, where
    the users are left alone), and metrics.
  """
  config, agent = loop.config, loop.agent
  replayed = config.batch_size // config.users
  key = jax.random.fold_in(learner.key, learner.step)
  act_keys, step_keys, replay_keys, *loss_keys = core.split(
    core.by_user(key, stream.user), 3 + replayed
  )
  loss_keys = jnp.stack(loss_keys, -1)
  if loop.offline:
    batch = _sample_logs(inputs.logs, replay_keys, replayed)
    env_state, transition, shown = stream.env, None, {}
    weight = jnp.float32(1)
  else:
    env_state, transition = core.show(
      loop,
      learner.params,
      stream.env,
      inputs,
      act_keys,
      step_keys,
      config.temperature,
    )
    shown = {"reward": transition.reward.mean()}
    with jax.named_scope(core.REPLAY):
      batch = replay.sample(stream.replay, replay_keys, replayed)
    warm_up = agent.learning.warm_up if agent.learning else 0
    collected = stream.replay.added * config.users
    weight = (collected >= max(warm_up, 1)).astype(jnp.float32)
  learn = _own_step if agent.learning else _step
  with jax.named_scope(core.UPDATE):
    learner, metrics = learn(
      loop, learner, batch, loss_keys, inputs, weight, shown, axis_name
    )
  learner = learner._replace(step=learner.step + 1)
  return learner, env_state, transition, metrics


def _step(
  loop: Loop,
  learner: Learner,
  batch: Transition,
  keys: PRNGKey,
  inputs: Inputs,
  weight: Array,
  shown: Metrics,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """One gradient step on the agent's loss."""
  progress = learner.step / loop.config.iterations

  def loss(params):
    def of_transition(transition, key):
      return loop.agent.loss(
        params,
        learner.target_params,
        inputs.catalogue,
        transition,
        key,
        progress,
      )

    losses, metrics = jax.vmap(jax.vmap(of_transition))(batch, keys)
    return losses.mean(), jax.tree.map(jnp.mean, metrics)

  return core.gradient_step(loop, learner, loss, weight, shown, axis_name)


def _own_step(
  loop: Loop,
  learner: Learner,
  batch: Transition,
  keys: PRNGKey,
  inputs: Inputs,
  weight: Array,
  shown: Metrics,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """`_step` of an agent that has a way of learning of its own."""
  params, state, metrics = loop.agent.learning.step(
    learner.params, learner.opt_state, inputs.catalogue, batch, keys, axis_name
  )

  def where_learned(new, old):
    return jax.tree.map(lambda x, y: jnp.where(weight > 0, x, y), new, old)

  params, state, metrics = where_learned(
    (params, state, metrics),
    (learner.params, learner.opt_state, jax.tree.map(jnp.zeros_like, metrics)),
  )
  learner = learner._replace(
    params=params, target_params=params, opt_state=state
  )
  return learner, metrics | core.mean_over(shown, axis_name)


def _sample_logs(logs: Transition, keys: PRNGKey, count: int) -> Transition:
  """`count` logged slates for each of the keys [U], leaves [U, count, ...]."""
  rows = jax.vmap(lambda key: sampling.index(key, len(logs.reward), (count,)))(
    keys
  )
  return jax.tree.map(lambda x: x[rows], logs)


def logged(sessions: Sessions, reward: Reward) -> Transition:
  """Logged slates as transitions, leaves [R, ...].

  A log says nothing of a next step that the agent chose, so each is the last.
  """
  sessions = jax.tree.map(jnp.asarray, sessions)
  rewards = reward.items(sessions.response)
  ones = jnp.ones(len(rewards))
  return Transition(
    observation=Observation(sessions.profile, sessions.history),
    slate=sessions.exposed,
    log_prob=jnp.zeros_like(rewards),
    response=sessions.response,
    reward=reward.slate(rewards),
    terminated=ones,
    truncated=jnp.zeros_like(ones),
    latent=jnp.zeros((len(rewards), 0)),
    next_history=jax.vmap(append_positives)(
      sessions.history, sessions.exposed, sessions.response
    ),
  )
