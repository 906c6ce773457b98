"""What holds of agents that score every item."""

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import sid
from hsrl_jax.networks.encoder import Encoder
from hsrl_jax.types import Transition
from tests import toy

KEY = jax.random.key(0)
NOTHING = jnp.zeros(0, jnp.int32)


def made(name, **overrides):
  """(agent, params away from zero, catalogue, observation) of the toy."""
  agent, inputs = toy.agent(toy.config(agent=name, **overrides)), toy.inputs()
  observation = toy.env().start(jnp.int32(3), inputs.env_params).observation
  params = agent.init(jax.random.key(1), inputs.catalogue, observation)
  params = jax.tree.map(
    lambda x: x + 0.3 * jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape),
    params,
  )
  return agent, params, inputs.catalogue, observation


def state(params, catalogue, observation):
  """The encoder's state, float64 [d]."""
  return np.asarray(
    Encoder(8, 1, 2, 0.1).apply(
      params["encoder"], catalogue.features, *observation
    ),
    np.float64,
  )


def item_logits(params, catalogue, x):
  """<x, w_i> + b_i in plain numpy, [N + 1]."""
  own = jax.tree.map(np.asarray, params["items"]["params"])
  if isinstance(own["row"], dict):
    features = np.asarray(catalogue.features, np.float64)
    rows = features @ own["row"]["kernel"]
    return rows @ x + features @ own["bias"]["kernel"][:, 0]
  return own["row"].astype(np.float64) @ x + own["bias"]


def transition(observation, **changes):
  """A step after which the history is another one."""
  base = Transition(
    observation,
    jnp.array([1, 2, 3]),
    jnp.full(3, -3.0),
    jnp.array([1.0, 0.0, 1.0]),
    jnp.float32(0.6),
    jnp.float32(0.0),
    jnp.zeros(0),
    jnp.array([0, 0, 0, 7, 1, 3]),
  )
  return base._replace(**changes)


def shows_the_top(agent, params, catalogue, observation, scores):
  """Greedy slates are the best by `scores`, [N + 1], of what may be shown.

  The best item of all is removed from the index first.

  Returns:
    That item, and log_prob of each item shown.
  """
  order = (1 + np.argsort(-np.asarray(scores)[1:], kind="stable")).tolist()
  removed = order.pop(0)
  fewer = catalogue._replace(index=sid.remove_items(catalogue.index, [removed]))
  log_probs = {}
  for banned, want in (
    (NOTHING, order[: toy.SLATE]),
    (
      jnp.array([order[0], 0, order[2]]),
      [order[1], *order[3 : toy.SLATE + 2]],
    ),
  ):
    action = agent.act(params, fewer, observation, banned, None, 1.0)
    np.testing.assert_array_equal(action.slate, want)
    log_probs |= zip(want, np.asarray(action.log_prob).tolist(), strict=True)
  return removed, log_probs


def sampled_slates(agent, params, catalogue, observation, count=200):
  """Slates [count, K] that are distinct and permitted, 5 and 12 banned."""
  fewer = catalogue._replace(index=sid.remove_items(catalogue.index, [12]))
  act = jax.jit(
    jax.vmap(
      lambda key: agent.act(
        params, fewer, observation, jnp.array([5]), key, 1.0
      )
    )
  )
  actions = act(jax.random.split(jax.random.key(0), count))
  slates = np.asarray(actions.slate)
  assert all(len(set(slate.tolist())) == toy.SLATE for slate in slates)
  assert not np.isin(slates, [0, 5, 12]).any()
  return actions


def gradient_parts(agent, params, catalogue, step):
  """Largest gradient by top-level part: of params, of the target's."""

  def loss(params, target):
    return agent.loss(params, target, catalogue, step, KEY, 0.5)[0]

  def largest(tree):
    return {
      name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(part))
      for name, part in tree.items()
    }

  return map(largest, jax.grad(loss, argnums=(0, 1))(params, params))
