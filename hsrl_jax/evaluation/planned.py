"""A bound for any world: rollouts of some slates to the end of the session."""

import functools

import jax
import jax.numpy as jnp

from hsrl_jax.agents import base
from hsrl_jax.evaluation import bounds
from hsrl_jax.evaluation.simulate import Oracle
from hsrl_jax.sim.user_simulator import UserSimulator

NAME = "planned"


@functools.cache
def planned(
  env: UserSimulator,
  candidates: int = 12,
  rollouts: int = 12,
  noise: float = 0.3,
) -> Oracle:
  """Of some candidate slates the one of the best rollouts.

  The first candidates are the slates of `greedy_oracle` and, where there is
  something to foresee, of `farsighted`; the others the same with Gumbel noise
  on their scores, more on each. A rollout shows the slate, then what
  `farsighted`, else `greedy_oracle`, shows until the session ends; candidates
  have the same luck in it. That is one step of policy iteration, estimated, so
  it earns about as much as the better rule at least; it is no optimum.

  `params` are EnvParams and who is active, bool [N + 1].

  Args:
    env: the simulator.
    candidates: slates.
    rollouts: of each.
    noise: about the largest that is added to the scores of the last candidates;
      scores are probabilities.
  """
  rules = bounds.rules(env)

  def act(params, state, key):
    env_params, active = params
    noise_key, luck_key = jax.random.split(key)
    scores = jnp.stack([rule(env_params, active, state) for rule in rules])
    number = jnp.arange(candidates)
    scores = scores[number % len(rules)]
    level = number // len(rules)
    # The largest of N draws is about log N.
    most = noise / jnp.log(len(active))
    strength = most * level / jnp.maximum(level[-1], 1)
    drawn = jax.random.gumbel(noise_key, scores.shape)
    scores = scores + strength[:, None] * drawn

    def slate_of(scores, state):
      usable = base.usable(active, scores, state.seen)
      return base.top(usable, env.slate_size)

    slates = jax.vmap(slate_of, (0, None))(scores, state)

    def value(slate, luck):
      """Total reward of a rollout, float32 []."""

      def step(carry):
        state, slate, earned, _, t = carry
        state, result = env.step(
          jax.random.fold_in(luck, t), state, slate, env_params
        )
        following = slate_of(rules[-1](env_params, active, state), state)
        alive = ~(result.terminated | result.truncated)
        return state, following, earned + result.reward, alive, t + 1

      start = state, slate, jnp.float32(0), jnp.bool(True), jnp.int32(0)
      return jax.lax.while_loop(lambda carry: carry[3], step, start)[2]

    luck = jax.random.split(luck_key, rollouts)
    # One candidate after the other: all at once would take much memory.
    values = jax.lax.map(
      lambda slate: jax.vmap(value, (None, 0))(slate, luck).mean(), slates
    )
    return slates[values.argmax()]

  return Oracle(act)
