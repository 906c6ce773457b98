"""Stage `policy` of --task=next_item: trains on what users liked next."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import checked, files
from hsrl_jax.agents import next_item
from hsrl_jax.config import Config
from hsrl_jax.data import item_vectors, sequences, source
from hsrl_jax.engine import checkpoint
from hsrl_jax.engine import next_item as engine
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import held_out, ranking
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import stop, watch
from hsrl_jax.ops import tree
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Params, Sessions

FOLDER = "policy"
MODEL = "next_item.json"  # What the model was made by, for --continue_from.


def run(parts: Parts) -> None:
  """Trains each seed; writes `policy/`.

  In it are, for each seed, a folder `seed_S` with checkpoints, metrics.jsonl
  and TensorBoard events, and next_item.json. Goes on after the last epoch that
  was saved; a signal to stop waits for the end of the epoch in hand.

  Args:
    parts: of the run.

  Raises:
    FloatingPointError: a parameter became NaN or infinite; such a state is not
      saved.
    InputError: the training logs have no user who liked two items, or the
      validation split has no like.
  """
  folder = parts.workdir / FOLDER
  given = untrained(parts)
  trainer, judge = _trainer(parts, given), _judge(parts, given)
  with stop.deferred(by_all=True) as signals:
    for seed in parts.config.train.seeds:
      if not signals.due():
        _train(trainer, judge, folder / f"seed_{seed}", seed, signals)
  files.write_json(
    folder / MODEL, about(parts.config, given["interactions"].shape[1])
  )


def about(config: Config, interactions: int) -> dict:
  """What decides the shapes and the meaning of a policy's parameters.

  Args:
    config: of the run.
    interactions: numbers of a vector by who liked an item, which may be fewer
      than the configuration asks for.
  """
  sizes = checked.values(config.next_item)
  return {
    "format": 1,
    "agent": config.agent,
    "next_item": sizes | {"interactions": interactions},
    "network": checked.values(config.network),
  }


def _train(
  trainer: engine.Trainer,
  judge: engine.Judge,
  folder: pathlib.Path,
  seed: int,
  signals: stop.Deferral,
) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  with checkpoint.open_directory(folder / "checkpoints") as checkpointer:
    state = trainer.init(seed)
    state = checkpoint.restore_latest(checkpointer, state) or state
    done = int(state.epoch)
    epochs = trainer.config.epochs
    with (
      metrics_lib.MetricsWriter(folder, done, "epoch") as writer,
      watch.bar(epochs, f"policy, seed {seed}", "epoch", done) as bar,
    ):
      for after, measure in trainer.run(state, seed, judge):
        bad = tree.first_not_finite((after.loss, after.params))
        if bad:
          raise FloatingPointError(
            f"{bad} is not finite by epoch {int(after.epoch)}: lower "
            "--next_item_learning_rate, in a new --workdir"
          )
        epoch = int(after.epoch)
        checkpoint.save(checkpointer, epoch, after)
        writer.write(epoch, _measured(after, measure))
        bar.update()
        bar.set_postfix(val_ndcg=f"{float(after.best):.4f}")
        if signals.due():
          break


def _measured(
  state: engine.TrainState, measure: float | None
) -> dict[str, float]:
  """A line of metrics.jsonl: of the epoch, and of the best one so far."""
  measured = {"train_loss": float(state.loss)}
  if measure is not None:
    measured["val_ndcg@10"] = measure
  if int(state.best_epoch):
    measured["best_val_ndcg@10"] = float(state.best)
    measured["best_epoch"] = int(state.best_epoch)
  return measured


def _trainer(parts: Parts, given: Params) -> engine.Trainer:
  """The trainer; `given` is what `untrained` says."""
  c, items = parts.config.next_item, parts.catalogue.index.num_items
  liked = sequences.from_sessions(parts.dataset.splits["train"], items)
  packed = sequences.pack(liked, c.history)
  if not len(packed.item):
    raise InputError(
      f"{parts.name}: no user of the training logs liked two items; expected "
      "some, whose second is predicted from the first"
    )
  policy = next_item.policy(parts.config, ranking.LISTED, items)
  catalogue = policy.catalogue(given, parts.catalogue)
  return engine.Trainer(policy.model, catalogue, packed, c)


def _judge(parts: Parts, given: Params) -> engine.Judge:
  """NDCG@10 of what was liked next in the validation split, as it will act.

  Args:
    parts: of the run.
    given: what `untrained` says.
  """
  logs = _some(parts.dataset.splits["val"], parts.config.next_item.eval_rows)
  if not len(logs.user_id):
    raise InputError(
      f"{parts.name}: nothing is liked in the validation split; expected a "
      "like, by which the best epoch is chosen"
    )
  train, items = parts.dataset.splits["train"], parts.catalogue.index.num_items
  own = ranker(parts.config, items)
  _, liked = ranking.counts(train, items)
  without_history = not ranking.repeats(train)

  def judge(params: Params) -> float:
    top = ranking.best(
      own,
      ({"model": params} | given, parts.catalogue),
      logs,
      items,
      without_history=without_history,
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
  """How the policy ranks items; its parameters come with their ActionSpace.

  Args:
    config: of the run.
    items: N.
  """
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
  trainer = _trainer(parts, given)
  return [
    {"model": _best(parts.workdir, seed, trainer)} | given
    for seed in parts.config.train.seeds
  ]


def _best(workdir: pathlib.Path, seed: int, trainer: engine.Trainer) -> Params:
  folder = workdir / FOLDER / f"seed_{seed}" / "checkpoints"
  with checkpoint.open_directory(folder, read_only=True) as checkpointer:
    state = checkpoint.restore_latest(checkpointer, trainer.shapes())
  if state is None:
    raise InputError(
      f"{folder}: no checkpoint can be read; delete {workdir}/.done/policy "
      "and run --mode=policy again"
    )
  return state.best_params


def untrained(parts: Parts) -> Params:
  """The part of the parameters that is not trained here."""
  return {"interactions": jnp.asarray(_interactions(parts))} | clicks(parts)


def clicks(parts: Parts) -> Params:
  """The click model's part of the parameters.

  Its weight is 0 where the logs do not say what was shown.
  """
  weight = parts.config.next_item.response_weight
  if parts.dataset.items.sampling is not None:
    weight = 0.0
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
