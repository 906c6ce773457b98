"""State, collecting and one gradient step, which all ways of learning share.

All of it is of ONE seed; `parallel` spreads seeds and users over devices. All
randomness is fold_in(key, step), then by user, so that results do not depend on
the number of devices (up to the order of floating-point sums).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import flatten_util

from hsrl_jax.agents.base import Agent
from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import replay
from hsrl_jax.ops import sampling
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.user_simulator import EnvParams, EnvState, UserSimulator
from hsrl_jax.types import Array, Metrics, Params, PRNGKey, Transition

# Names of the parts of an iteration in a profiler's trace.
ACTING, SIMULATOR, REPLAY, UPDATE = "acting", "simulator", "replay", "update"
PHASES = (ACTING, SIMULATOR, REPLAY, UPDATE)


_MAX_NORM = 1.0  # Global norm at which gradients are clipped.
NO_MEASURE = -1.0  # Of what was never validated; measures are at least 0.


class Best(NamedTuple):
  """The parameters that did best on what is held out."""

  params: Params  # Of the agent.
  measure: Array  # float32 [], the larger, the better.
  step: Array  # int32 [], iterations done then; 0: nothing was measured yet.


class Learner(NamedTuple):
  """State that all devices of a seed hold alike."""

  params: Params  # Of the agent.
  # What is evaluated: their Polyak average, or where the agent has a way of
  # learning of its own the parameters themselves.
  target_params: Params
  opt_state: optax.OptState  # Of the optimizer, or of the agent's own.
  key: PRNGKey  # Never changes; see the module's docstring.
  step: Array  # int32 [], iterations done.
  # Parameters by validation; None for agents that end with their last.
  best: Best | None = None


class Stream(NamedTuple):
  """State of users: of all, or of those of one device."""

  user: Array  # int32 [U], their numbers among all users.
  env: EnvState  # Their sessions, leaves [U, ...].
  replay: replay.ReplayState  # Their transitions, leaves [C, U, ...].


class Inputs(NamedTuple):
  """Constants of the loop."""

  catalogue: Catalogue  # The items.
  env_params: EnvParams  # Of the simulator.
  # Logged slates, leaves [R, ...], where these are learned from.
  logs: Transition | None = None


class Loop(NamedTuple):
  """Static parts of the loop."""

  agent: Agent  # Which learns.
  env: UserSimulator  # The simulator.
  config: TrainConfig  # Of training.
  optimizer: optax.GradientTransformation  # Of the agent's loss.

  @property
  def on_policy(self) -> bool:
    """Whether the agent learns from what it has just shown."""
    return self.agent.on_policy is not None

  @property
  def offline(self) -> bool:
    """Whether batches are drawn from logs, and nothing is shown."""
    return self.agent.offline or self.config.from_logs


def optimizer_of(
  config: TrainConfig, steps: int
) -> optax.GradientTransformation:
  """Adam whose rate falls to 0 in so many steps; gradients are clipped."""
  rate = optax.cosine_decay_schedule(config.learning_rate, steps)
  clip = optax.clip_by_global_norm(_MAX_NORM)
  # Flat: a step on one vector instead of a small kernel for each leaf.
  return optax.flatten(optax.chain(clip, optax.adam(rate)))


def users_of_part(config: TrainConfig, parts: int) -> int:
  """Users of each part; raises ValueError where parts would not be equal."""
  if config.users % parts:
    raise ValueError(
      f"users is {config.users}; expected a multiple of the {parts} devices"
    )
  return config.users // parts


def hidden(loop: Loop, state: EnvState, inputs: Inputs) -> Array | None:
  """The simulator's state as the critic alone sees it, float32 [Z].

  Z is 0 where the critic sees none; None where the agent has no such critic.
  """
  if not loop.on_policy:
    return None
  if not loop.agent.on_policy.settings.has("critic_state"):
    return jnp.zeros(0)
  return loop.env.hidden(state, inputs.env_params)


def show(
  loop: Loop,
  params: Params,
  states: EnvState,
  inputs: Inputs,
  act_keys: PRNGKey,
  step_keys: PRNGKey,
  exploration: Array | float,
) -> tuple[EnvState, Transition]:
  """Each user, of leading axis U in states and keys, is shown a slate."""

  def of_user(state, act_key, step_key):
    seen = hidden(loop, state, inputs)
    with jax.named_scope(ACTING):
      action = loop.agent.act(
        params,
        inputs.catalogue,
        state.observation,
        state.seen,
        act_key,
        exploration,
      )
    with jax.named_scope(SIMULATOR):
      next_state, result, last = loop.env.step_or_reset(
        step_key, state, action.slate, inputs.env_params
      )
    return next_state, Transition(
      observation=state.observation,
      slate=action.slate,
      log_prob=action.log_prob,
      response=result.response,
      reward=result.reward,
      terminated=result.terminated.astype(jnp.float32),
      truncated=result.truncated.astype(jnp.float32),
      latent=action.latent,
      next_history=result.observation.history,
      next_shown=result.observation.shown,
      hidden=seen,
      next_hidden=hidden(loop, last, inputs),
      notes=action.notes if loop.on_policy else None,
    )

  return jax.vmap(of_user)(states, act_keys, step_keys)


def gradient_step(
  loop: Loop,
  learner: Learner,
  loss: Callable[[Params], tuple[Array, Metrics]],
  weight: Array | float = 1.0,
  shown: Metrics | None = None,
  axis_name: str | None = None,
) -> tuple[Learner, Metrics]:
  """One step of the optimizer, of the parameters and of their average.

  Args:
    loop: the loop.
    learner: before the step.
    loss: of the parameters, [], and metrics.
    weight: of the loss; 0 where there is nothing to learn from yet.
    shown: metrics of what the users were shown meanwhile.
    axis_name: of the devices, over which gradients and metrics are averaged.
  """
  frozen = {x: learner.params[x] for x in loop.agent.frozen}
  shown = shown or {}

  def whole(trained):
    return trained | frozen if frozen else trained

  def weighed(trained):
    value, metrics = loss(whole(trained))
    return value * weight, metrics

  own = trained(loop.agent, learner.params)
  grads, metrics = jax.grad(weighed, has_aux=True)(own)
  if axis_name is not None:
    # As one vector: devices meet once a step.
    local, unravel = flatten_util.ravel_pytree((grads, metrics, shown))
    grads, metrics, shown = unravel(jax.lax.pmean(local, axis_name))
  metrics = jax.tree.map(lambda m: m * weight, metrics) | shown
  # Of one vector, as the optimizer has it: less to compile.
  metrics["grad_norm"] = optax.tree.norm(flatten_util.ravel_pytree(grads)[0])
  updates, opt_state = loop.optimizer.update(grads, learner.opt_state, own)
  own = optax.apply_updates(own, updates)
  averaged = optax.incremental_update(
    own, trained(loop.agent, learner.target_params), loop.config.polyak
  )
  learner = learner._replace(
    params=whole(own), target_params=whole(averaged), opt_state=opt_state
  )
  return learner, metrics


def keep_best(learner: Learner, measure: Array) -> Learner:
  """The learner with its averaged parameters, if they are the best so far."""
  best = learner.best
  now = Best(learner.target_params, measure, learner.step)
  kept = jax.tree.map(
    lambda new, old: jnp.where(measure > best.measure, new, old), now, best
  )
  return learner._replace(best=kept)


def best_step(learner: Learner) -> Array:
  """The iteration of the best parameters."""
  return learner.best.step


def trained(agent: Agent, params: Params) -> Params:
  """The parameters without those that the agent keeps frozen."""
  if not agent.frozen:
    return params
  return {x: own for x, own in params.items() if x not in agent.frozen}


def split(keys: PRNGKey, count: int) -> tuple[PRNGKey, ...]:
  """Splits each of the keys [U]; `count` arrays of that shape."""
  split = jax.vmap(sampling.split, in_axes=(0, None))
  return tuple(jnp.moveaxis(split(keys, count), -1, 0))


def by_user(key: PRNGKey, users: Array) -> PRNGKey:
  """A key for each user, [U]."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, users)


def mean_over(x: Any, axis_name: str | None) -> Any:
  """The mean over the devices of an axis; as it is without one."""
  return x if axis_name is None else jax.lax.pmean(x, axis_name)
