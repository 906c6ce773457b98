"""SASRec and HSRL on the next item of Amazon Beauty, all items ranked.

  python tests/benchmarks/next_item_beauty.py DATA --model=hsrl --seeds=0,1,2

DATA has inter.json (user -> items in order of time, from 0) and the SIDs that
--sids names. Each user's last item is the test, the one before validation.
Prints a line for each epoch on stderr, and one line of JSON at the end.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time

import numpy as np

from hsrl_jax import sid
from hsrl_jax.data import sequences
from hsrl_jax.engine import next_item as engine
from hsrl_jax.evaluation import next_item as evaluation
from hsrl_jax.evaluation import ranking
from hsrl_jax.networks import next_item


def load(folder: pathlib.Path, sids: str):
  """Sequences and catalogue of the folder; ids there begin at 0."""
  lists = json.loads((folder / "inter.json").read_text())
  tokens = json.loads((folder / sids).read_text())
  count = len(tokens)
  data = sequences.from_lists(
    {user: [i + 1 for i in items] for user, items in lists.items()}, count
  )
  table = np.asarray([tokens[str(i)] for i in range(count)])
  index = sid.build_index(table, int(table.max()) + 1)
  return data, count, next_item.Catalogue(index)


def mean(rank) -> dict[str, float]:
  """Means of all measures."""
  return {
    name: round(float(value.mean()), 5)
    for name, value in ranking.measures(rank).items()
  }


def train(seed, model, catalogue, split, config, limit, test):
  """Trains a seed; its figures."""
  start = time.perf_counter()
  packed = sequences.pack(split.train, model.config.length)
  trainer = engine.Trainer(model, catalogue, packed, config)
  exact = model.config.token_weight == 0
  rank = (evaluation.exact_ranker if exact else evaluation.search_ranker)(
    model, catalogue
  )

  def judge(params, history, target):
    return ranking.measures(rank(params, history, target)[1])["ndcg@10"].mean()

  begun = time.perf_counter()
  for state in trainer.run(trainer.init(seed), seed, split.validation, judge):
    now = time.perf_counter()
    print(
      f"seed {seed} epoch {int(state.epoch)} loss {float(state.loss):.4f} "
      f"best {float(state.best):.5f} at {int(state.best_epoch)}, "
      f"{now - begun:.1f} s",
      file=sys.stderr,
      flush=True,
    )
    begun = now
    if limit and now - start > 60 * limit:
      break
  result = {
    "seed": seed,
    "epochs": int(state.epoch),
    "best_epoch": int(state.best_epoch),
  }
  for name in ("validation", "test")[: 1 + test]:
    held = getattr(split, name)
    ranks = rank(state.best_params, held.history, held.target)
    result[name] = {"all": mean(ranks[0]), "unseen": mean(ranks[1])}
  result["minutes"] = round((time.perf_counter() - start) / 60, 2)
  if not exact:
    few = slice(0, 1024)
    held = split.validation
    some = held.history[few], held.target[few]
    full = evaluation.exact_ranker(model, catalogue)(state.best_params, *some)
    beam = rank(state.best_params, *some)
    result["validation_1024"] = {
      "exact": mean(full[1]),
      "beam_search": mean(beam[1]),
    }
  return result


def main(arguments) -> None:
  """Trains, evaluates and prints."""
  data, count, catalogue = load(arguments.folder, arguments.sids)
  split = sequences.leave_one_out(data)
  base = {"sasrec": next_item.SASREC, "hsrl": next_item.HSRL}[arguments.model]
  config, training = base, engine.TrainConfig()
  for setting in arguments.set:
    name, value = setting.split("=")
    target = config if hasattr(config, name) else training
    value = type(getattr(target, name))(json.loads(value))
    if target is config:
      config = dataclasses.replace(config, **{name: value})
    else:
      training = dataclasses.replace(training, **{name: value})
  model = next_item.Model(config, count, catalogue)
  result = {
    "model": arguments.model,
    "settings": dataclasses.asdict(config) | dataclasses.asdict(training),
  }
  if arguments.test:
    popular = ranking.popularity(split.train.items, count)
    held = split.test
    scores = np.broadcast_to(popular, (len(held.target), len(popular)))
    rank = [
      np.concatenate([ranking.ranks(*x) for x in zip(*parts, strict=True)])
      for parts in (
        [np.array_split(x, 40) for x in (scores, held.target)],
        [np.array_split(x, 40) for x in (scores, held.target, held.history)],
      )
    ]
    result["popularity"] = {"all": mean(rank[0]), "unseen": mean(rank[1])}
  result["seeds"] = [
    train(
      seed, model, catalogue, split, training, arguments.limit, arguments.test
    )
    for seed in map(int, arguments.seeds.split(","))
  ]
  print(json.dumps(result))


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--model", choices=("sasrec", "hsrl"), default="hsrl")
  parser.add_argument("--sids", default="index_rqvae.json")
  parser.add_argument("--seeds", default="0")
  parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE")
  parser.add_argument("--limit", type=float, default=0, help="minutes a seed")
  parser.add_argument("--test", action="store_true", help="looks at the test")
  main(parser.parse_args())
