"""Stage `policy` of --recipe=next_item: trains on what users liked next."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import checked, files
from hsrl_jax.agents import next_item
from hsrl_jax.config import Config, TrainConfig
from hsrl_jax.data import item_vectors, sequences, source
from hsrl_jax.engine import core, loop
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import held_out, ranking
from hsrl_jax.host import watch as watch_lib
from hsrl_jax.stages import start, training
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params, Sessions

FOLDER = training.FOLDER
MODEL = "next_item.json"  # What the model was made by, for --continue_from.


def run(parts: Parts, watch: watch_lib.Watch) -> None:
  """Trains on sequences of likes; writes `policy/`, see `training.run`.

  The parameters of a seed's best epoch are kept, by NDCG@10 of what was liked
  next in the validation split.

  Raises:
    InputError: the training logs have no user who liked two items, or the
      validation split has no like.
  """
  given = untrained(parts)
  engine, inputs, train = engine_of(parts, given)
  judge = _judge(parts, given)

  def measure(params: Params) -> tuple[dict, dict, np.ndarray]:
    found = [judge(own) for own in training.by_seed(params)]
    point = {"mean": float(np.mean(found)), "per_seed": found}
    return {"ndcg@10": point}, {}, np.array(found)

  training.run(
    parts.workdir / FOLDER,
    engine,
    inputs,
    train,
    watch,
    curve=lambda _: measure,
    patience=parts.config.next_item.patience * train.iterations_per_call,
  )
  files.write_json(
    parts.workdir / FOLDER / MODEL,
    about(parts.config, given["interactions"].shape[1])
    | {"updates_per_epoch": train.iterations_per_call},
  )


def about(config: Config, interactions: int) -> dict:
  """Sizes that decide shapes and meaning of a policy's parameters.

  `interactions`, the numbers of a vector by who liked an item, may be fewer
  than the configuration asks for.
  """
  own = dataclasses.replace(config.next_item, interactions=interactions)
  return {
    "format": start.FORMAT,
    "agent": config.agent,
    "next_item": checked.values(own),
  }


def engine_of(
  parts: Parts, given: Params
) -> tuple[loop.Engine, core.Inputs, TrainConfig]:
  """Engine, inputs and course of the training; `given` as of `untrained`.

  Raises:
    InputError: the training logs have no user who liked two items.
  """
  c, items = parts.config.next_item, parts.catalogue.index.num_items
  liked = sequences.from_sessions(parts.dataset.splits["train"])
  packed = sequences.pack(liked, c.history)
  if not len(packed.item):
    raise InputError(
      f"{parts.name}: no user of the training logs liked two items; expected "
      "some, whose second is predicted from the first"
    )
  train = course(parts.config, len(packed.item))
  policy = next_item.policy(parts.config, ranking.LISTED, items)
  features = policy.catalogue(given, parts.catalogue).features
  catalogue = parts.catalogue._replace(features=features)
  inputs = core.Inputs(catalogue, None, jax.tree.map(jnp.asarray, packed))
  agent = next_item.learner(parts.config, items)
  return loop.make(agent, None, train), inputs, train


def course(config: Config, rows: int) -> TrainConfig:
  """How the engine trains on so many packed rows: a call is an epoch."""
  c = config.next_item
  batch = min(c.batch_rows, rows)
  steps = rows // batch
  return dataclasses.replace(
    TrainConfig(),
    recipe=config.train.recipe,
    seeds=config.train.seeds,
    polyak=1.0,
    users=1,
    batch_size=batch,
    buffer_size=steps,
    iterations=c.epochs * steps,
    iterations_per_call=steps,
    curve_every=c.eval_every * steps,
    save_every=steps,
  )


def _judge(parts: Parts, given: Params) -> Callable[[Params], float]:
  """NDCG@10 of what was liked next in the validation split, as it will act."""
  logs = _some(parts.dataset.splits["val"], parts.config.next_item.eval_rows)
  if not len(logs.user_id):
    raise InputError(
      f"{parts.name}: nothing is liked in the validation split; expected a "
      "like, by which the best epoch is chosen"
    )
  train, items = parts.dataset.splits["train"], parts.catalogue.index.num_items
  own = ranker(parts.config, items)
  _, liked = ranking.counts(train, items)
  left_out = None if ranking.repeats(train) else logs.history

  def judge(params: Params) -> float:
    top = ranking.best(
      own, ({"model": params} | given, parts.catalogue), logs, items, left_out
    )
    rows = held_out.next_liked(top, logs, liked)["ndcg@10"]
    return held_out.mean([rows])["mean"]

  return judge


def _some(sessions: Sessions, count: int) -> Sessions:
  """At most `count` rows with a like, drawn once; 0: all of them."""
  rows = np.flatnonzero((np.asarray(sessions.response) > 0).any(1))
  if 0 < count < len(rows):
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(rows, count, replace=False))
  return jax.tree.map(lambda x: np.asarray(x)[rows], sessions)


def ranker(config: Config, items: int) -> ranking.Ranker:
  """How the policy ranks N items; its parameters come with their Catalogue."""
  policy = next_item.policy(config, min(ranking.LISTED, items), items)

  def shown(params, observation, items):
    return policy.score(*params, observation, items)

  return ranking.Ranker(shown, ranking.by_slates(policy.act))


def load(parts: Parts) -> list[Params]:
  """The parameters of the best epoch, one pytree a seed.

  Raises:
    InputError: no checkpoint can be read.
  """
  given = untrained(parts)
  engine, inputs, train = engine_of(parts, given)
  folder = parts.workdir / FOLDER
  learner = training.restore(folder, engine, inputs, train.seeds)
  best = training.by_seed(learner.best.params)
  return [{"model": own} | given for own in best]


def untrained(parts: Parts) -> Params:
  """The part of the parameters that is not trained here."""
  return {"interactions": jnp.asarray(_interactions(parts))} | clicks(parts)


def clicks(parts: Parts) -> Params:
  """The click model's part of the parameters.

  Its weight is 0 where the logs do not say what was shown.
  """
  drawn = parts.dataset.items.sampling is not None
  weight = 0.0 if drawn else next_item.RESPONSE_WEIGHT
  return {
    "response": next_item.of_policy(parts.response, parts.catalogue.plain),
    "response_weight": jnp.float32(weight),
  }


def _interactions(parts: Parts) -> np.ndarray:
  """Vectors of items by who liked them, [N + 1, X], as long as features are."""
  features = parts.dataset.items.features
  size = parts.config.next_item.interactions
  of_logs = (parts.folder("data") / "data" / source.ITEM_VECTORS).exists()
  if not size or of_logs:
    return np.zeros((len(features), 0), np.float32)
  user, item = item_vectors.positives(parts.dataset.splits["train"])
  rows = item_vectors.of_interactions(user, item, len(features) - 1, size)
  length = np.sqrt((features**2).sum() / max((features**2).any(1).sum(), 1))
  return np.concatenate([np.zeros_like(rows[:1]), rows * np.float32(length)])
