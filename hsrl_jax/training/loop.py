"""The training engine: act, step, replay, update, in one `lax.scan`.

Any Agent, any simulator. Users are spread over devices; seeds run side by
side under a vmap. All randomness is fold_in(key, step), then by user, so the
result does not depend on the number of devices (up to the order of
floating-point sums). What one call of `run` collects can be replayed from the
next call on; in the very first call nothing is learned yet.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents.base import Agent, Catalogue, geometric
from hsrl_jax.config import PolicyConfig
from hsrl_jax.envs.user_simulator import EnvParams, EnvState, UserSimulator
from hsrl_jax.ops import sampling, tree
from hsrl_jax.training import replay
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition


class Learner(NamedTuple):
  """What all devices hold alike. S seeds lead every leaf but `step`.

  Attributes:
    params: of the agent.
    target_params: their Polyak average; also what is evaluated.
    opt_state: of the optimizer.
    key: never changes; see the module's docstring.
    step: int32 [], iterations done.
  """

  params: Params
  target_params: Params
  opt_state: optax.OptState
  key: PRNGKey
  step: Array


class Stream(NamedTuple):
  """What belongs to the users of one device.

  Across devices every leaf has one more leading axis.

  Attributes:
    user: int32 [U], the users' numbers among all devices' users.
    env: their sessions, leaves [U, S, ...].
    replay: their transitions, leaves [C, U, S, ...].
  """

  user: Array
  env: EnvState
  replay: replay.ReplayState


class Inputs(NamedTuple):
  """Constants of the loop."""

  catalogue: Catalogue
  env_params: EnvParams


class Engine(NamedTuple):
  """The loop's functions.

  Attributes:
    init: (inputs, device_count) -> (Learner, Stream).
    run: (learner, stream, inputs, axis_name) -> (learner, stream, metrics),
      of one device's streams; `iterations_per_call` iterations. Metrics are
      means over them, [S].
  """

  init: Callable[[Inputs, int], tuple[Learner, Stream]]
  run: Callable[..., tuple[Learner, Stream, Metrics]]


def make(agent: Agent, env: UserSimulator, config: PolicyConfig) -> Engine:
  """Builds the engine of an agent in a simulator."""
  if config.explore_no_repeat:
    env = env._replace(no_repeat=True)
  # Flat: a step on one vector instead of a small kernel for each leaf.
  optimizer = optax.flatten(
    optax.chain(
      optax.clip_by_global_norm(config.max_grad_norm),
      optax.adam(
        optax.cosine_decay_schedule(config.learning_rate, config.iterations)
      ),
    )
  )
  per_user = config.batch_size // config.users

  def init(inputs: Inputs, device_count: int) -> tuple[Learner, Stream]:
    if config.users % device_count:
      raise ValueError(
        f"users is {config.users}; expected a multiple of the "
        f"{device_count} devices"
      )
    seeds = jnp.stack([jax.random.key(seed) for seed in config.seeds])
    param_keys, stream_keys, keys = _split(seeds, 3)
    params = jax.vmap(init_params, in_axes=(0, None))(param_keys, inputs)
    learner = Learner(
      params,
      jax.tree.map(jnp.copy, params),
      jax.vmap(optimizer.init)(params),
      keys,
      jnp.int32(0),
    )
    users = jnp.arange(config.users).reshape(device_count, -1)
    stream = jax.vmap(init_stream, in_axes=(0, None, None))(
      users, stream_keys, inputs
    )
    return learner, stream

  def init_params(key: PRNGKey, inputs: Inputs) -> Params:
    state = env.start(jnp.int32(0), inputs.env_params)
    return agent.init(key, inputs.catalogue, state.observation)

  def init_stream(users: Array, keys: PRNGKey, inputs: Inputs) -> Stream:
    state = jax.vmap(jax.vmap(env.reset, in_axes=(0, None)), in_axes=(0, None))(
      _by_user(keys, users), inputs.env_params
    )
    shape = (*state.steps.shape, env.slate_size)
    example = Transition(
      observation=state.observation,
      slate=jnp.zeros(shape, jnp.int32),
      log_prob=jnp.zeros(shape),
      response=jnp.zeros(shape),
      reward=jnp.zeros(shape[:-1]),
      terminated=jnp.zeros(shape[:-1]),
      next_history=state.observation.history,
    )
    ring = replay.init(example, config.buffer_size // config.users)
    return Stream(users, state, ring)

  def interact(
    params: Params,
    env_state: EnvState,
    inputs: Inputs,
    act_key: PRNGKey,
    step_key: PRNGKey,
    progress: Array,
  ) -> tuple[EnvState, Transition]:
    """One user is shown a slate."""
    slate, log_prob = agent.act(
      params,
      inputs.catalogue,
      env_state.observation,
      env_state.seen,
      act_key,
      geometric(config.temperature, config.temperature_end, progress),
    )
    next_state, result = env.step_or_reset(
      step_key, env_state, slate, inputs.env_params
    )
    return next_state, Transition(
      observation=env_state.observation,
      slate=slate,
      log_prob=log_prob,
      response=result.response,
      reward=result.reward,
      terminated=result.terminated.astype(jnp.float32),
      next_history=result.observation.history,
    )

  def update(
    params: Params,
    target_params: Params,
    opt_state: optax.OptState,
    batch: Transition,
    keys: PRNGKey,
    inputs: Inputs,
    progress: Array,
    weight: Array,
    axis_name: str | None,
  ) -> tuple[Params, Params, optax.OptState, Metrics]:
    """One step of one seed; `batch` and `keys` lead with [U, per_user]."""

    def loss(params):
      def of_transition(transition, key):
        return agent.loss(
          params,
          target_params,
          inputs.catalogue,
          transition,
          key,
          progress,
        )

      losses, metrics = jax.vmap(jax.vmap(of_transition))(batch, keys)
      return losses.mean() * weight, jax.tree.map(jnp.mean, metrics)

    grads, metrics = jax.grad(loss, has_aux=True)(params)
    if axis_name is not None:
      grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    metrics = jax.tree.map(lambda m: m * weight, metrics)
    metrics["grad_norm"] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, opt_state)
    params = optax.apply_updates(params, updates)
    target_params = tree.polyak(target_params, params, config.polyak)
    return params, target_params, opt_state, metrics

  def iterate(
    learner: Learner,
    stream: Stream,
    inputs: Inputs,
    axis_name: str | None,
  ) -> tuple[Learner, EnvState, Transition, Metrics]:
    """One iteration of all seeds."""
    progress = learner.step / config.iterations
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(
      learner.key, learner.step
    )
    act_keys, step_keys, replay_keys, *loss_keys = _split(
      _by_user(keys, stream.user), 3 + per_user
    )
    by_seed = jax.vmap(interact, in_axes=(0, 0, None, 0, 0, None))
    by_user = jax.vmap(by_seed, in_axes=(None, 0, None, 0, 0, None))
    env_state, transition = by_user(
      learner.params,
      stream.env,
      inputs,
      act_keys,
      step_keys,
      progress,
    )
    batch = replay.sample(stream.replay, replay_keys, per_user)
    params, target_params, opt_state, metrics = jax.vmap(
      functools.partial(update, axis_name=axis_name),
      in_axes=(0, 0, 0, 1, 1, None, None, None),
    )(
      learner.params,
      learner.target_params,
      learner.opt_state,
      batch,
      jnp.stack(loss_keys, -1),
      inputs,
      progress,
      (stream.replay.added > 0).astype(jnp.float32),
    )
    reward = transition.reward.mean(0)
    if axis_name is not None:
      reward = jax.lax.pmean(reward, axis_name)
    learner = Learner(
      params, target_params, opt_state, learner.key, learner.step + 1
    )
    return learner, env_state, transition, metrics | {"reward": reward}

  def run(
    learner: Learner,
    stream: Stream,
    inputs: Inputs,
    axis_name: str | None = None,
  ) -> tuple[Learner, Stream, Metrics]:
    def body(carry, _):
      learner, env_state = carry
      learner, env_state, transition, metrics = iterate(
        learner, stream._replace(env=env_state), inputs, axis_name
      )
      return (learner, env_state), (transition, metrics)

    (learner, env_state), (transitions, metrics) = jax.lax.scan(
      body, (learner, stream.env), length=config.iterations_per_call
    )
    ring = replay.add(stream.replay, transitions)
    metrics = jax.tree.map(lambda m: m.mean(0), metrics)
    return learner, Stream(stream.user, env_state, ring), metrics

  return Engine(init, run)


def _split(keys: PRNGKey, count: int) -> tuple[PRNGKey, ...]:
  """Splits each key of an array of any shape; `count` arrays of that shape."""
  split = sampling.split
  for _ in keys.shape:
    split = jax.vmap(split, in_axes=(0, None))
  return tuple(jnp.moveaxis(split(keys, count), -1, 0))


def _by_user(keys: PRNGKey, users: Array) -> PRNGKey:
  """A key for each user and seed, [S], [U] -> [U, S]."""
  by_seed = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  return jax.vmap(by_seed, in_axes=(None, 0))(keys, users)
