"""The function that is exported: requests to slates, drawn or the best."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hsrl_jax import sid
from hsrl_jax.agents.base import Action, Agent
from hsrl_jax.ops import plackett_luce, tree
from hsrl_jax.serving.catalogue import ServedCatalogue
from hsrl_jax.sid import permits
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.types import Array, Observation, Params, Shown


class _Slate(NamedTuple):
  """K places, leading axes the caller's; items as the agent fills them."""

  items: Array
  log_prob: Array
  propensity: Array


def decoder(
  agent: Agent, params: Params, catalogue: ServedCatalogue
) -> Callable:
  """The function that is exported.

  Of parameters and catalogue their structure alone counts.

  Returns:
    ({name: parameter}, {name: array of the catalogue}, the fields of
    serving.Query as `inputs` has them, leaves [B, ...]) -> the fields of
    serving.Recommendations.
  """
  names = list(tree.by_name(params))
  of_params = jax.tree.structure(params)
  of_index = jax.tree.structure(catalogue.index)

  def decode(policy, arrays, request):
    params = jax.tree.unflatten(of_params, [policy[x] for x in names])
    places = jax.tree.unflatten(of_index, range(of_index.num_leaves))
    index = jax.tree_util.tree_map_with_path(
      lambda path, _: arrays[jax.tree_util.keystr(path)], places
    )
    items = Catalogue(
      arrays["features"], index, arrays["codebooks"], arrays.get("popularity")
    )
    permitted = functools.partial(_permitted, arrays)

    def exact(request):
      every = jnp.arange(len(index.active))
      own = permits.exactly(index, permitted(every, request))
      return _act(agent, params, items._replace(index=own), request)

    asked = jnp.bool(False)
    for mask in request["allow"].values():
      asked |= (mask != 0).any()

    def bounded(request):
      levels = range(1, index.levels + 1)
      summaries = tuple(arrays[f"tags[{level}]"] for level in levels)
      bounds = permits.Bounds(summaries, _allow(request), asked)
      own = dataclasses.replace(index, permit=bounds)
      return _act(agent, params, items._replace(index=own), request)

    act = bounded if agent.beams else exact
    actions = jax.vmap(act)(request)
    slate = _drawn(actions, request)
    # An id of 0 is not active.
    valid = index.active[slate.items]
    valid &= jax.vmap(permitted)(slate.items, request)
    seen = request["seen"][:, None]
    valid &= ~(slate.items[..., None] == seen).any(-1)
    shown = jnp.where(valid, slate.items, 0)
    return (
      shown,
      sid.sid_of(index, shown),
      jnp.where(valid, slate.log_prob, -jnp.inf),
      valid,
      jnp.where(valid, slate.propensity, 0.0),
    )

  return decode


def _allow(request: dict[str, Any]) -> permits.Allow:
  return permits.Allow(**request["allow"])


def _permitted(
  arrays: dict[str, Array], items: Array, request: dict[str, Any]
) -> Array:
  """Whether a request allows items by their tags and times, bool [...]."""
  tags = arrays["tags"][items]
  return _allow(request).of(tags, tags, arrays["added"][items] + 1)


def _act(
  agent: Agent, params: Params, items: Catalogue, request: dict[str, Any]
) -> Action:
  """Answers one request by the agent.

  One that draws place by place does so with the request's temperature; the
  others choose their best slate, see `_drawn`.
  """
  shown = Shown(**request["earlier"])
  observation = Observation(
    request["profile"], request["history"], shown if len(shown.items) else None
  )
  key, temperature = None, 1.0
  if agent.place_by_place:
    key = jax.random.wrap_key_data(request["seed"])
    temperature = request["temperature"]
  return agent.act(
    params, items, observation, request["seen"], key, temperature
  )


def _drawn(actions: Action, request: dict[str, Any]) -> _Slate:
  """The best slates, or where the temperature is not 0 drawn ones.

  A slate is drawn from what the best one was chosen from: all items, or what a
  beam search without noise finds. So its probability is known.
  """
  slate, log_prob, ranked = actions.slate, actions.log_prob, actions.ranked
  if ranked is None:
    return _Slate(slate, log_prob, actions.propensity)
  best = _Slate(slate, log_prob, jnp.ones(slate.shape))
  temperature = request["temperature"]

  def draw(ranked, best, seed, temperature):
    place, propensity = plackett_luce.draw(
      jax.random.wrap_key_data(seed),
      ranked.scores,
      ranked.allowed,
      jnp.where(temperature > 0, temperature, 1.0),
      len(best.items),
    )
    drawn = _Slate(ranked.items[place], ranked.scores[place], propensity)
    return jax.tree.map(
      lambda x, y: jnp.where(temperature > 0, x, y), drawn, best
    )

  return jax.lax.cond(
    (temperature > 0).any(),
    jax.vmap(draw),
    lambda ranked, best, *_: best,
    ranked,
    best,
    request["seed"],
    temperature,
  )
