"""The training engine: act, step, replay, update, in one `lax.scan`.

Any Agent, any simulator, ONE seed; `parallel` spreads seeds and users over
devices. All randomness is fold_in(key, step), then by user, so the result does
not depend on the number of devices (up to the order of floating-point sums).
What one call of `run` collects can be replayed from the next call on; in the
very first call nothing is learned yet. An offline agent, and any that learns
from logs, draws its batches from logged slates instead, and shows none. One
that shows slates may have logged ones among those it replays (`logged_share`).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import flatten_util

from hsrl_jax.agents.base import ActionSpace, Agent, exploration
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import replay
from hsrl_jax.ops import sampling
from hsrl_jax.sim.observed import append_positives
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import (
  EnvParams,
  EnvState,
  UserSimulator,
)
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Sessions,
  Transition,
)

# Names of the parts of an iteration in a profiler's trace.
ACTING, SIMULATOR, REPLAY, UPDATE = "acting", "simulator", "replay", "update"
PHASES = (ACTING, SIMULATOR, REPLAY, UPDATE)


class Learner(NamedTuple):
  """What all devices of a seed hold alike.

  Attributes:
    params: of the agent.
    target_params: what is evaluated: their Polyak average, or where the agent
      has a way of learning of its own the parameters themselves.
    opt_state: of the optimizer, or of the agent's own.
    key: never changes; see the module's docstring.
    step: int32 [], iterations done.
  """

  params: Params
  target_params: Params
  opt_state: optax.OptState
  key: PRNGKey
  step: Array


class Stream(NamedTuple):
  """What belongs to users: all of them, or those of one device.

  Attributes:
    user: int32 [U], their numbers among all users.
    env: their sessions, leaves [U, ...].
    replay: their transitions, leaves [C, U, ...].
  """

  user: Array
  env: EnvState
  replay: replay.ReplayState


class Inputs(NamedTuple):
  """Constants of the loop.

  Attributes:
    catalogue: the items.
    env_params: of the simulator.
    logs: logged slates, leaves [R, ...], where these are learned from.
  """

  catalogue: ActionSpace
  env_params: EnvParams
  logs: Transition | None = None


class Engine(NamedTuple):
  """The loop's functions.

  Attributes:
    init: (seed, inputs, part, parts) -> (Learner, Stream), of one of so many
      equal parts of the users; without the two, of all users.
    run: (learner, stream, inputs, axis_name) -> (learner, stream, metrics),
      of one device's streams; `iterations_per_call` iterations. Metrics are
      means over them, [].
  """

  init: Callable[..., tuple[Learner, Stream]]
  run: Callable[..., tuple[Learner, Stream, Metrics]]


class _Loop(NamedTuple):
  """What the loop's functions are made of; all of it is static."""

  agent: Agent
  env: UserSimulator
  config: TrainConfig
  optimizer: optax.GradientTransformation

  @property
  def offline(self) -> bool:
    """Whether batches are drawn from logs."""
    return self.agent.offline or self.config.from_logs

  @property
  def replayed(self) -> int:
    """Transitions of each user in an update."""
    return self.config.batch_size // self.config.users


def make(agent: Agent, env: UserSimulator, config: TrainConfig) -> Engine:
  """Builds the engine of an agent in a simulator."""
  if config.explore_no_repeat:
    env = env.exploring()
  loop = _Loop(agent, env, config, optimizer_of(config, config.iterations))
  return Engine(functools.partial(_init, loop), functools.partial(_run, loop))


def optimizer_of(
  config: TrainConfig, steps: int
) -> optax.GradientTransformation:
  """Adam whose rate falls to 0 in so many steps; gradients are clipped."""
  rate = optax.cosine_decay_schedule(config.learning_rate, steps)
  clip = optax.clip_by_global_norm(config.max_grad_norm)
  # Flat: a step on one vector instead of a small kernel for each leaf.
  return optax.flatten(optax.chain(clip, optax.adam(rate)))


def _init(
  loop: _Loop,
  seed: Array,
  inputs: Inputs,
  part: Array | int = 0,
  parts: int = 1,
) -> tuple[Learner, Stream]:
  """Engine.init."""
  config = loop.config
  count = users_of_part(config, parts)
  param_key, stream_key, key = sampling.split(jax.random.key(seed), 3)
  user = loop.env.start(jnp.int32(0), inputs.env_params)
  params = loop.agent.init(param_key, inputs.catalogue, user.observation)
  if loop.agent.learning:
    opt_state = loop.agent.learning.init(params)
  else:
    opt_state = loop.optimizer.init(_trained(loop.agent, params))
  learner = fresh_learner(params, opt_state, key)
  users = part * count + jnp.arange(count)
  return learner, _init_stream(loop, users, stream_key, params, inputs)


def fresh_learner(
  params: Params, opt_state: optax.OptState, key: PRNGKey
) -> Learner:
  """A learner that has done nothing yet."""
  # A copy, since both are donated.
  target_params = jax.tree.map(jnp.copy, params)
  return Learner(params, target_params, opt_state, key, jnp.int32(0))


def users_of_part(config: TrainConfig, parts: int) -> int:
  """Users of each part; raises ValueError where parts would not be equal."""
  if config.users % parts:
    raise ValueError(
      f"users is {config.users}; expected a multiple of the {parts} devices"
    )
  return config.users // parts


def _init_stream(
  loop: _Loop, users: Array, key: PRNGKey, params: Params, inputs: Inputs
) -> Stream:
  """Sessions that begin, and an empty replay."""
  keys = by_user(key, users)
  state = jax.vmap(loop.env.reset, in_axes=(0, None))(keys, inputs.env_params)
  if loop.config.from_logs:
    return Stream(users, state, replay.ReplayState((), jnp.int32(0)))
  _, example = jax.eval_shape(
    functools.partial(_interact, loop),
    params,
    state,
    inputs,
    keys,
    keys,
    jnp.float32(0),
  )
  ring = replay.init(example, loop.config.buffer_size // loop.config.users)
  return Stream(users, state, ring)


def _interact(
  loop: _Loop,
  params: Params,
  states: EnvState,
  inputs: Inputs,
  act_keys: PRNGKey,
  step_keys: PRNGKey,
  progress: Array,
) -> tuple[EnvState, Transition]:
  """Each user, of leading axis U in states and keys, is shown a slate."""

  def of_user(state, act_key, step_key):
    with jax.named_scope(ACTING):
      action = loop.agent.act(
        params,
        inputs.catalogue,
        state.observation,
        state.seen,
        act_key,
        exploration(loop.config, progress),
      )
    with jax.named_scope(SIMULATOR):
      next_state, result = loop.env.step_or_reset(
        step_key, state, action.slate, inputs.env_params
      )
    return next_state, Transition(
      observation=state.observation,
      slate=action.slate,
      log_prob=action.log_prob,
      response=result.response,
      reward=result.reward,
      terminated=result.terminated.astype(jnp.float32),
      latent=action.latent,
      next_history=result.observation.history,
      next_shown=result.observation.shown,
    )

  return jax.vmap(of_user)(states, act_keys, step_keys)


def _update(
  loop: _Loop,
  learner: Learner,
  batch: Transition,
  keys: PRNGKey,
  inputs: Inputs,
  progress: Array,
  weight: Array,
  shown: Metrics,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """One step of the optimizer.

  Args:
    loop: the loop.
    learner: before the step.
    batch: transitions, leaves [U, replayed, ...].
    keys: of the losses, [U, replayed].
    inputs: of the loop.
    progress: share of the iterations that are done.
    weight: of the loss; 0 where nothing can be replayed yet.
    shown: metrics of what the users were shown meanwhile.
    axis_name: of the devices, over which gradients and metrics are averaged.
  """

  frozen = {x: learner.params[x] for x in loop.agent.frozen}

  def whole(trained):
    return trained | frozen if frozen else trained

  def loss(trained):
    def of_transition(transition, key):
      return loop.agent.loss(
        whole(trained),
        learner.target_params,
        inputs.catalogue,
        transition,
        key,
        progress,
      )

    losses, metrics = jax.vmap(jax.vmap(of_transition))(batch, keys)
    return losses.mean() * weight, jax.tree.map(jnp.mean, metrics)

  trained = _trained(loop.agent, learner.params)
  grads, metrics = jax.grad(loss, has_aux=True)(trained)
  if axis_name is not None:
    # As one vector: devices meet once an iteration.
    local, unravel = flatten_util.ravel_pytree((grads, metrics, shown))
    grads, metrics, shown = unravel(jax.lax.pmean(local, axis_name))
  metrics = jax.tree.map(lambda m: m * weight, metrics) | shown
  # Of one vector, as the optimizer has it: less to compile.
  metrics["grad_norm"] = optax.tree.norm(flatten_util.ravel_pytree(grads)[0])
  updates, opt_state = loop.optimizer.update(grads, learner.opt_state)
  trained = optax.apply_updates(trained, updates)
  averaged = optax.incremental_update(
    trained,
    _trained(loop.agent, learner.target_params),
    loop.config.polyak,
  )
  learner = Learner(
    whole(trained), whole(averaged), opt_state, learner.key, learner.step + 1
  )
  return learner, metrics


def _own_update(
  loop: _Loop,
  learner: Learner,
  batch: Transition,
  keys: PRNGKey,
  inputs: Inputs,
  progress: Array,
  weight: Array,
  shown: Metrics,
  axis_name: str | None,
) -> tuple[Learner, Metrics]:
  """`_update` by an agent that has a way of learning of its own."""
  del progress
  params, state, metrics = loop.agent.learning.step(
    learner.params, learner.opt_state, inputs.catalogue, batch, keys, axis_name
  )

  def where_learned(new, old):
    return jax.tree.map(lambda x, y: jnp.where(weight > 0, x, y), new, old)

  params, state, metrics = where_learned(
    (params, state, metrics),
    (
      learner.params,
      learner.opt_state,
      jax.tree.map(jnp.zeros_like, metrics),
    ),
  )
  if axis_name is not None:
    shown = jax.lax.pmean(shown, axis_name)
  learner = Learner(params, params, state, learner.key, learner.step + 1)
  return learner, metrics | shown


def _trained(agent: Agent, params: Params) -> Params:
  """The parameters without those that the agent keeps frozen."""
  if not agent.frozen:
    return params
  return {x: own for x, own in params.items() if x not in agent.frozen}


def _iterate(
  loop: _Loop,
  learner: Learner,
  stream: Stream,
  inputs: Inputs,
  axis_name: str | None,
) -> tuple[Learner, EnvState, Transition | None, Metrics]:
  """One iteration; with logs the users are left alone."""
  progress = learner.step / loop.config.iterations
  key = jax.random.fold_in(learner.key, learner.step)
  share = loop.agent.logged_share
  act_keys, step_keys, replay_keys, *loss_keys = split(
    by_user(key, stream.user), 3 + loop.replayed + (share > 0)
  )
  mix_keys = loss_keys.pop() if share else None
  loss_keys = jnp.stack(loss_keys, -1)
  if loop.offline:
    batch = _sample_logs(inputs.logs, replay_keys, loop.replayed)
    env_state, transition, shown = stream.env, None, {}
    weight = jnp.float32(1)
  else:
    env_state, transition = _interact(
      loop, learner.params, stream.env, inputs, act_keys, step_keys, progress
    )
    shown = {"reward": transition.reward.mean()}
    with jax.named_scope(REPLAY):
      batch = replay.sample(stream.replay, replay_keys, loop.replayed)
    if share:
      batch = _mixed(batch, inputs.logs, mix_keys, share)
    warm_up = loop.agent.learning.warm_up if loop.agent.learning else 0
    collected = stream.replay.added * loop.config.users
    weight = (collected >= max(warm_up, 1)).astype(jnp.float32)
  update = _own_update if loop.agent.learning else _update
  given = (loop, learner, batch, loss_keys, inputs, progress, weight, shown)
  with jax.named_scope(UPDATE):
    learner, metrics = update(*given, axis_name)
  return learner, env_state, transition, metrics


def _sample_logs(logs: Transition, keys: PRNGKey, count: int) -> Transition:
  """`count` logged slates for each of the keys [U], leaves [U, count, ...]."""
  rows = jax.vmap(lambda key: sampling.index(key, len(logs.reward), (count,)))(
    keys
  )
  return jax.tree.map(lambda x: x[rows], logs)


def _mixed(
  batch: Transition, logs: Transition, keys: PRNGKey, share: float
) -> Transition:
  """A batch, leaves [U, R, ...], a share of which becomes logged slates."""
  row_keys, own_keys = split(keys, 2)
  count = batch.reward.shape[1]
  logged = _sample_logs(logs, row_keys, count)
  draws = jax.vmap(lambda key: sampling.uniform(key, (count,)))(own_keys)
  either = jax.vmap(jax.vmap(jnp.where))
  return jax.tree.map(functools.partial(either, draws < share), logged, batch)


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
    learner, env_state, transition, metrics = _iterate(
      loop, learner, stream._replace(env=env_state), inputs, axis_name
    )
    return (learner, env_state), (transition, metrics)

  (learner, env_state), (transitions, metrics) = jax.lax.scan(
    body, (learner, stream.env), length=loop.config.iterations_per_call
  )
  if not loop.offline:
    with jax.named_scope(REPLAY):
      ring = replay.add(stream.replay, transitions)
    stream = stream._replace(env=env_state, replay=ring)
  return learner, stream, jax.tree.map(jnp.mean, metrics)


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
    latent=jnp.zeros((len(rewards), 0)),
    next_history=jax.vmap(append_positives)(
      sessions.history, sessions.exposed, sessions.response
    ),
  )


def split(keys: PRNGKey, count: int) -> tuple[PRNGKey, ...]:
  """Splits each of the keys [U]; `count` arrays of that shape."""
  split = jax.vmap(sampling.split, in_axes=(0, None))
  return tuple(jnp.moveaxis(split(keys, count), -1, 0))


def by_user(key: PRNGKey, users: Array) -> PRNGKey:
  """A key for each user, [U]."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, users)
