"""Policies of the next liked item: SASRec and HSRL over tokens.

An item ranks by log pi(item | history) + w logit(item), with the logit of a
positive response by the click model: what is chosen next, and what is liked of
what is shown. Both are trained on logs, apart from each other; w is 0 where the
logs do not say what was shown (docs/next_item.md, Next item).
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from hsrl_jax.agents import base
from hsrl_jax.config import Config, NextItemConfig
from hsrl_jax.networks import next_item
from hsrl_jax.networks.next_item import Model
from hsrl_jax.ops import masking
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim import click_model
from hsrl_jax.types import Array, Params

# What the recipe reads of a part of Config; of the others all.
_READ = {"network": (), "train": ("recipe", "seeds")}
# Fields of NextItemConfig that only an agent with tokens reads.
_OF_TOKENS = ("hidden", "token_dropout", "beams")
# Items are ranked by log pi and this times the click model's logit; where the
# negatives of the logs were drawn, by log pi alone.
RESPONSE_WEIGHT = 10.0
_CLIP = 5.0  # Global norm of the gradient.
_FINAL_RATE = 0.1  # What is left of the learning rate at the end.
_WARMUP = 100  # Updates in which it rises, at most a tenth of all.


class Policy(NamedTuple):
  """The policy of a configuration; a user's functions, of ONE history.

  Parameters are a dict: `model`; `interactions`, float32 [N + 1, X], vectors of
  items by who liked them, which stand beside their features; `response`, the
  click model's (`of_policy`); and `response_weight`, w.
  """

  model: Model  # Of the next item.
  respond: click_model.ResponseFn  # How users respond to what they are shown.
  beams: int  # Width of the beam search; 0: each item is scored.
  slate_size: int  # K.

  def state(self, params, catalogue, observation) -> Array:
    """c_0, float32 [d]."""
    known = self.catalogue(params, catalogue)
    history = observation.history[None]
    return self.model.states(params["model"], known, history)[0]

  def catalogue(self, params: Params, catalogue: Catalogue) -> Catalogue:
    """The model's view of the items; nobody has liked later ones."""
    features, liked = catalogue.features, params["interactions"]
    if liked.shape[1]:
      missing = max(len(features) - len(liked), 0)
      liked = jnp.pad(liked, ((0, missing), (0, 0)))
      features = jnp.concatenate([features, liked], 1)
    return catalogue._replace(features=features)

  def response(self, params, catalogue, observation, items) -> Array:
    """w logit(item) of items, int32 [M] -> float32 [M]."""
    response = params["response"]
    seen = response.item_features.shape[1] or catalogue.features.shape[1]
    response = click_model.with_items(response, catalogue.features[:, :seen])
    profile, history, _ = observation
    chance = self.respond(response, profile, history, items)
    return params["response_weight"] * masking.finite_logit(chance)

  def score(self, params, catalogue, observation, items) -> Array:
    """Ranking scores of items, int32 [M] -> float32 [M], up to a constant."""
    known = self.catalogue(params, catalogue)
    state = self.state(params, catalogue, observation)
    of_model = self.model.score(params["model"], known, state, items)
    return of_model + self.response(params, catalogue, observation, items)

  def act(self, params, catalogue, observation, excluded, key, temperature):
    """See base.Agent.act."""
    if not self.beams:
      everything = jnp.arange(len(catalogue.features))
      return base.choose(
        self.score(params, catalogue, observation, everything),
        catalogue.index,
        excluded,
        key,
        temperature,
        self.slate_size,
      )
    known = self.catalogue(params, catalogue)
    state = self.state(params, catalogue, observation)
    rounds = []
    for beams in _rounds(self.beams, self.slate_size, key is None):
      search = self.model.search(
        params["model"],
        known,
        state,
        beams,
        excluded=excluded,
        key=key,
        temperature=temperature,
      )
      items = search.items
      log_pi = search.log_probs + self.model.item_score(
        params["model"], known, state, items
      )
      log_pi += self.response(params, catalogue, observation, items)
      noise = None if key is None else search.noise
      ranks, log_prob = base.draw(log_pi, search.valid, noise, temperature)
      best = base.top(ranks, beams)
      found = base.Ranked(items, log_pi, search.valid), log_prob
      rounds.append(jax.tree.map(operator.itemgetter(best), found))
      excluded = jnp.concatenate([excluded, items])
    ranked, log_prob = jax.tree.map(lambda *x: jnp.concatenate(x), *rounds)
    slate = jnp.where(ranked.allowed, ranked.items, 0)[: self.slate_size]
    log_prob = log_prob[: self.slate_size]
    return base.Action(slate, log_prob, jnp.zeros(0), ranked=ranked)


def _rounds(beams: int, slate_size: int, greedy: bool) -> list[int]:
  """Beams of one search after the other, each for what those before left.

  What a search finds does not depend on the size of a greedy slate, so a
  shorter slate is the beginning of a longer one. A sample is one search.
  """
  if not greedy:
    return [max(beams, slate_size)]
  rounds = [beams]
  while sum(rounds) < slate_size:
    rounds.append(2 * rounds[-1])
  return rounds


def learner(config: Config, items: int) -> base.Agent:
  """The model as the engine trains it, on sequences of likes.

  Args:
    config: of the recipe next_item.
    items: N in training.
  """
  own = policy(config, 1, items)

  def init(key, catalogue, observation):
    del observation
    return own.model.init(key, catalogue)

  return base.Agent(
    init,
    own.act,
    None,
    sequence_loss=own.model.loss,
    optimizer=functools.partial(_optimizer, config.next_item),
  )


def _optimizer(
  config: NextItemConfig, steps: int
) -> optax.GradientTransformation:
  """AdamW with a warm-up and a cosine decay over so many steps."""
  rate = optax.warmup_cosine_decay_schedule(
    0.0,
    config.learning_rate,
    min(_WARMUP, steps // 10),
    steps,
    _FINAL_RATE * config.learning_rate,
  )
  return optax.chain(
    optax.clip_by_global_norm(_CLIP),
    optax.adamw(
      rate,
      weight_decay=config.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
  )


def reads(agent: str, part: str, field: str) -> bool:
  """Whether training an agent on the next item reads a field.

  Args:
    agent: one of AGENTS; its own settings are not read.
    part: name of a part of Config.
    field: of that part.
  """
  if part == "next_item" and field in _OF_TOKENS:
    return agent == "hsrl"
  return field in _READ.get(part, (field,))


def of_policy(
  response: click_model.ResponseParams, plain: Array | None
) -> click_model.ResponseParams:
  """The part of a click model that a policy keeps; see `Policy.response`.

  Its items are those of the catalogue. It does not know users by their ids, and
  what is added to the logits of all items does not change how they rank.

  Args:
    response: the click model.
    plain: see sid.index.Catalogue.
  """
  blend = response.blend
  if blend is not None:
    blend = blend._replace(user_ids=blend.user_ids[:0], users=blend.users[:0])
  return response._replace(
    item_features=jnp.zeros((0, 0)) if plain is None else plain,
    blend=blend,
    shift=None,
    boredom=None,
  )


def policy(config: Config, slate_size: int, items: int) -> Policy:
  """The policy that a configuration describes.

  Args:
    config: of the recipe next_item.
    slate_size: K.
    items: N in training.
  """
  c, tokens = config.next_item, config.agent != "sasrec"
  sizes = next_item.ModelConfig(
    length=c.history,
    width=c.width,
    layers=c.layers,
    heads=c.heads,
    dropout=c.dropout,
    tokens=tokens,
    id_inputs="ids" in c.inputs,
    feature_inputs="features" in c.inputs,
    hidden=c.hidden,
    token_dropout=c.token_dropout,
  )
  q = config.quantizer
  return Policy(
    Model(sizes, items, q.levels, q.vocab_size),
    click_model.response_fn(config.simulator),
    c.beams if tokens else 0,
    slate_size,
  )


class Start(NamedTuple):
  """The policy of the next item that RL goes on from."""

  policy: Policy  # The policy.
  agent: base.Agent  # As one that is not trained.
  beams: int  # Items that it finds.


def start(config: Config, slate_size: int, items: int) -> Start:
  """The policy that a configuration goes on from."""
  own = policy(config, slate_size, items)
  beams = max(config.next_item.beams, slate_size)
  return Start(own, make(config, slate_size, items), beams)


def make(config: Config, slate_size: int, items: int) -> base.Agent:
  """The policy as an agent that the engine does not train."""
  own = policy(config, slate_size, items)

  def init(key, catalogue, observation):
    keys = [jax.random.fold_in(key, i) for i in range(2)]
    # As many numbers as the policy was trained on, where there is one.
    size = config.next_item.interactions if config.train.goes_on else 0
    nothing = {"interactions": jnp.zeros((len(catalogue.features), size))}
    features, plain = catalogue.features, catalogue.plain
    if plain is not None:
      features = features[:, : plain.shape[1]]
    return nothing | {
      "model": own.model.init(keys[0], own.catalogue(nothing, catalogue)),
      "response": of_policy(
        click_model.init(config.simulator, keys[1], features, observation),
        plain,
      ),
      "response_weight": jnp.float32(RESPONSE_WEIGHT),
    }

  return base.Agent(
    init=init,
    act=own.act,
    loss=None,
    fixed_items=not own.beams,
    beams=own.beams,
  )
