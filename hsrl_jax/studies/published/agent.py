"""HSRL as published: greedy slates under dropout, three Adams, one MLP critic.

Policy and critic are those of `published.networks`; the policy in one state is
log pi(i) = sum_l log p_l(z_l(i)), and items that share a SID share it. A step
on a batch of replayed transitions is, in this order, with mean over the batch:

- y = r + gamma (1 - terminated) V_target(s'), V the mean of V(c_0) .. V(c_L);
- the critic's Adam on (V(s) - y)^2;
- the actor's Adam on clip(y - V(s), -1, 1) mean_k(-log pi(i_k)) + beta sum_l
  sum_v p_l log p_l;
- the behaviour loss's Adam, on the actor that this gave: BCE of the responses
  on sigmoid(pi(i_k) / sum_j pi(i_j));
- targets move by `polyak`.

Dropout is on in all of it, in the target networks too. What differs from the
agent `hsrl`, and why, is a table in docs/policy.md.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.errors import InputError
from hsrl_jax.networks.hierarchy import Hierarchy
from hsrl_jax.ops import policy_gradient, sampling
from hsrl_jax.sid.index import Catalogue, sid_of
from hsrl_jax.studies.published.networks import Actor, Critic
from hsrl_jax.studies.published.settings import Settings
from hsrl_jax.types import (
  Array,
  Metrics,
  Observation,
  Params,
  PRNGKey,
  Transition,
)

__all__ = ["Settings", "adam", "make"]


class _Method(NamedTuple):
  """Static parts of the functions below.

  The parameters are a dict of those of `actor` and `critic` and of their
  targets, `target_actor` and `target_critic`.
  """

  settings: Settings
  spec: base.Spec
  actor: Actor
  critic: Critic
  optimizers: dict[str, optax.GradientTransformation]

  def views(
    self, actor: Params, catalogue: Catalogue, history: Array, keys: PRNGKey
  ) -> Hierarchy:
    """The policy in states of histories [B, H], leaves [B, ...]."""

    def of_state(history, key):
      return self.actor.apply(actor, catalogue.features, history, key)

    return jax.vmap(of_state)(history, keys)

  def values(
    self, critic: Params, contexts: Array, keys: PRNGKey, axis_name: str | None
  ) -> Array:
    """V of contexts [B, L + 1, d], [B]: levels count alike."""
    return self.critic.apply(critic, contexts, keys, axis_name).mean(-1)


def make(settings: Settings, spec: base.Spec) -> base.Agent:
  """Builds the agent.

  Raises:
    InputError: the SIDs have tokens that the actor has no output for.
  """
  if settings.actor_tokens < spec.vocab_size:
    raise InputError(
      f"actor_tokens is {settings.actor_tokens}; expected at least the "
      f"{spec.vocab_size} values of a SID's token"
    )
  sizes = spec.network
  optimizers = {
    "actor": adam(settings.actor_rate, settings.actor_decay),
    "critic": adam(settings.critic_rate, settings.actor_decay),
  }
  if settings.behaviour_rate:
    optimizers["behaviour"] = adam(
      settings.behaviour_rate, settings.behaviour_decay
    )
  method = _Method(
    settings,
    spec,
    Actor(
      spec.levels,
      settings.actor_tokens,
      sizes.width,
      sizes.layers,
      sizes.heads,
      sizes.dropout,
    ),
    Critic(sizes.critic_hidden, settings.critic_dropout),
    optimizers,
  )
  return base.Agent(
    init=functools.partial(_init, method),
    act=functools.partial(_act, method),
    loss=None,
    learning=base.Learning(
      init=functools.partial(_init_optimizers, method),
      step=functools.partial(_step, method),
      warm_up=settings.warm_up,
    ),
  )


def adam(rate: float, decay: float) -> optax.GradientTransformation:
  """Adam of gradients to which `decay` times the parameters is added."""
  return optax.flatten(
    optax.chain(optax.add_decayed_weights(decay), optax.adam(rate))
  )


def _init(
  method: _Method, key: PRNGKey, catalogue: Catalogue, observation: Observation
) -> Params:
  """See base.Agent.init."""
  actor_key, critic_key = sampling.split(key, 2)
  levels, width = method.spec.levels, method.spec.network.width
  parts = {
    "actor": method.actor.init(
      actor_key, catalogue.features, observation.history
    ),
    "critic": method.critic.init(critic_key, jnp.zeros((1, levels + 1, width))),
  }
  targets = {f"target_{x}": jax.tree.map(jnp.copy, parts[x]) for x in parts}
  return parts | targets


def _act(
  method: _Method,
  params: Params,
  catalogue: Catalogue,
  observation: Observation,
  excluded: Array,
  key: PRNGKey | None,
  exploration: Array | float,
) -> base.Action:
  """See base.Agent.act; the key is of the dropout, which alone explores."""
  del exploration
  view = method.actor.apply(
    params["actor"], catalogue.features, observation.history, key
  )
  index = catalogue.index
  log_pi = policy_gradient.token_sum(
    jax.nn.log_softmax(view.logits), index.tokens
  )
  slate_size = method.spec.slate_size
  return base.choose(log_pi, index, excluded, None, 1.0, slate_size)


def _init_optimizers(method: _Method, params: Params) -> dict:
  """See base.Learning.init."""
  return {
    name: optimizer.init(params[_TRAINS[name]])
    for name, optimizer in method.optimizers.items()
  }


# By optimizer, the part of the parameters that it trains.
_TRAINS = {"actor": "actor", "critic": "critic", "behaviour": "actor"}


def _step(
  method: _Method,
  params: Params,
  state: dict,
  catalogue: Catalogue,
  batch: Transition,
  keys: PRNGKey,
  axis_name: str | None,
) -> tuple[Params, dict, Metrics]:
  """See base.Learning.step."""
  batch, keys = jax.tree.map(
    lambda x: x.reshape(keys.size, *x.shape[2:]), (batch, keys)
  )
  keys = jnp.moveaxis(jax.vmap(lambda k: sampling.split(k, 5))(keys), -1, 0)
  tokens = sid_of(catalogue.index, batch.slate)
  target = _target(method, params, catalogue, batch, keys[:2], axis_name)

  def losses(trained):
    return _losses(
      method, trained, catalogue, batch, tokens, target, keys[2:4], axis_name
    )

  trained = {x: params[x] for x in ("actor", "critic")}
  grads, metrics = jax.grad(losses, has_aux=True)(trained)
  grads, metrics = _mean((grads, metrics), axis_name)
  metrics["grad_norm"] = optax.tree.norm(grads)
  params, state = dict(params), dict(state)
  for name in ("actor", "critic"):
    _move(method, name, params, state, grads[name])

  if "behaviour" in method.optimizers:

    def behaviour(actor):
      view = method.views(actor, catalogue, batch.observation.history, keys[4])
      return _behaviour_loss(view, tokens, batch.response)

    value, grads = jax.value_and_grad(behaviour)(params["actor"])
    value, grads = _mean((value, grads), axis_name)
    metrics["behaviour_loss"] = value
    _move(method, "behaviour", params, state, grads)

  for name in trained:
    params[f"target_{name}"] = optax.incremental_update(
      params[name], params[f"target_{name}"], method.spec.train.polyak
    )
  return params, state, metrics


def _move(
  method: _Method, name: str, params: Params, state: dict, grads: Params
) -> None:
  """A step of one optimizer, in the dicts."""
  part = _TRAINS[name]
  updates, state[name] = method.optimizers[name].update(
    grads, state[name], params[part]
  )
  params[part] = optax.apply_updates(params[part], updates)


def _mean(x, axis_name: str | None):
  """The mean over devices."""
  return x if axis_name is None else jax.lax.pmean(x, axis_name)


def _target(
  method: _Method,
  params: Params,
  catalogue: Catalogue,
  batch: Transition,
  keys: PRNGKey,
  axis_name: str | None,
) -> Array:
  """y of each transition, [B]."""
  view = method.views(
    params["target_actor"], catalogue, batch.next_history, keys[0]
  )
  value = method.values(
    params["target_critic"], view.contexts, keys[1], axis_name
  )
  goes_on = 1.0 - batch.terminated
  return batch.reward + method.settings.discount * goes_on * value


def _losses(
  method: _Method,
  trained: Params,
  catalogue: Catalogue,
  batch: Transition,
  tokens: Array,
  target: Array,
  keys: PRNGKey,
  axis_name: str | None,
) -> tuple[Array, Metrics]:
  """The sum of the actor's and the critic's loss, of which neither is both's.

  The critic's contexts and the actor's advantages are held, so the gradient of
  each part is that of its own loss.
  """
  view = method.views(
    trained["actor"], catalogue, batch.observation.history, keys[0]
  )
  contexts = jax.lax.stop_gradient(view.contexts)
  value = method.values(trained["critic"], contexts, keys[1], axis_name)
  critic = ((value - target) ** 2).mean()

  bound = method.settings.advantage_clip
  advantage = jnp.clip(target - jax.lax.stop_gradient(value), -bound, bound)
  chosen = _slate_log_probs(view, tokens).mean(-1)
  entropy = policy_gradient.entropy(view.logits).sum(-1).mean()
  actor = -(advantage * chosen).mean()
  return critic + actor - method.settings.entropy_bonus * entropy, {
    "critic_loss": critic,
    "actor_loss": actor,
    "entropy": entropy,
    "value": value.mean(),
    "advantage": (target - value).mean(),
  }


def _slate_log_probs(view: Hierarchy, tokens: Array) -> Array:
  """log pi of slates of SIDs [B, K, L], [B, K]."""
  log_probs = jax.nn.log_softmax(view.logits)
  by_level = jnp.moveaxis(tokens, -1, 1)
  return jax.vmap(policy_gradient.token_sum)(log_probs, by_level)


def _behaviour_loss(view: Hierarchy, tokens: Array, response: Array) -> Array:
  """BCE on the sigmoid of a probability, which is between 0.5 and 0.73."""
  of_slate = jax.nn.softmax(_slate_log_probs(view, tokens))
  return optax.sigmoid_binary_cross_entropy(of_slate, response).mean()
