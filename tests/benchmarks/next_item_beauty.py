"""SASRec and HSRL on the next item of Amazon Beauty, all items ranked.

  python tests/benchmarks/next_item_beauty.py DATA --model=hsrl --seeds=0,1,2

DATA has inter.json (user -> items in order of time, from 0) and the SIDs that
--sids names. Each user's last item is the test, the one before validation.
With --states=FOLDER the state after each epoch is kept there, and the same
command goes on from it. The test is looked at with --test only. Prints a line
for each epoch on stderr, and one line of JSON at the end.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
import time

from hsrl_jax.data import sequences, sids
from hsrl_jax.engine import checkpoint
from hsrl_jax.engine import next_item as engine
from hsrl_jax.evaluation import next_item as evaluation
from hsrl_jax.evaluation import ranking, statistics
from hsrl_jax.networks import next_item

MODELS = {"sasrec": next_item.SASREC, "hsrl": next_item.HSRL}


def load(folder: pathlib.Path, name: str):
  """Sequences, number of items and catalogue of the folder."""
  lists = json.loads((folder / "inter.json").read_text())
  count = 1 + max(max(items) for items in lists.values())
  data = sequences.from_lists(
    {user: [i + 1 for i in items] for user, items in lists.items()}, count
  )
  brought = sids.read_sids(folder / name, range(count))
  return data, count, next_item.Catalogue(brought.index)


def figures(ranker, params, held) -> dict:
  """Mean and 95 % interval by user, with and without the seen items."""
  out = {}
  ranks = ranker(params, held.history, held.target)
  for name, rank in zip(("all", "unseen"), ranks, strict=True):
    out[name] = {}
    for measure, x in ranking.measures(rank).items():
      error = statistics.standard_error(x)
      low, high = statistics.interval(x.mean(), error, len(x))
      out[name][measure] = [round(v, 5) for v in (x.mean(), low, high)]
  return out


def train(seed, model, catalogue, split, arguments, config):
  """Trains a seed; its figures."""
  start, cpu = time.perf_counter(), time.process_time()
  packed = sequences.pack(split.train, model.config.length)
  trainer = engine.Trainer(model, catalogue, packed, config)
  exact = evaluation.exact_ranker(model, catalogue)
  ranker = exact
  if model.config.token_weight:
    ranker = evaluation.search_ranker(model, catalogue)

  def judge(params, history, target):
    _, unseen = ranker(params, history, target)
    return ranking.measures(unseen)["ndcg@10"].mean()

  state = trainer.init(seed)
  with contextlib.ExitStack() as stack:
    if arguments.states:
      saved = stack.enter_context(
        checkpoint.open_directory(arguments.states / str(seed))
      )
      state = checkpoint.restore_latest(saved, state) or state
    for after in trainer.run(state, seed, split.validation, judge):
      state = after
      if arguments.states:
        checkpoint.save(saved, int(state.epoch), state)
      print(
        f"seed {seed} epoch {int(state.epoch)} loss {float(state.loss):.4f} "
        f"best {float(state.best):.5f} at {int(state.best_epoch)}, "
        f"{time.perf_counter() - start:.0f} s, CPU "
        f"{time.process_time() - cpu:.0f} s",
        file=sys.stderr,
        flush=True,
      )
  minutes = (time.perf_counter() - start) / 60
  cpu_minutes = (time.process_time() - cpu) / 60
  result = {
    "seed": seed,
    "epochs": int(state.epoch),
    "best_epoch": int(state.best_epoch),
    "minutes": round(minutes, 2),
    "cpu_minutes": round(cpu_minutes, 2),
    "validation": figures(ranker, state.best_params, split.validation),
  }
  if arguments.test:
    result["test"] = figures(ranker, state.best_params, split.test)
  if model.config.token_weight:
    few = sequences.Held(*(x[: arguments.exact] for x in split.validation))
    result["search_against_exact"] = {
      "users": len(few.target),
      "search": figures(ranker, state.best_params, few)["unseen"],
      "exact": figures(exact, state.best_params, few)["unseen"],
    }
  return result


def configure(arguments) -> tuple[next_item.ModelConfig, engine.TrainConfig]:
  """Settings of the model and of its training, --set applied."""
  configs = [MODELS[arguments.model], engine.TrainConfig()]
  for setting in arguments.set:
    name, _, text = setting.partition("=")
    at = 0 if hasattr(configs[0], name) else 1
    value = type(getattr(configs[at], name))(json.loads(text))
    configs[at] = dataclasses.replace(configs[at], **{name: value})
  return configs[0], configs[1]


def main(arguments) -> None:
  """Trains, evaluates and prints."""
  data, count, catalogue = load(arguments.folder, arguments.sids)
  split = sequences.leave_one_out(data)
  config, training = configure(arguments)
  model = next_item.Model(config, count, catalogue)
  result = {
    "model": arguments.model,
    "sids": arguments.sids,
    "settings": dataclasses.asdict(config) | dataclasses.asdict(training),
  }
  if arguments.test:
    popular = ranking.popularity(split.train.items, count)
    ranker = evaluation.same_ranker(popular)
    result["popularity"] = figures(ranker, None, split.test)
  result["seeds"] = [
    train(seed, model, catalogue, split, arguments, training)
    for seed in map(int, arguments.seeds.split(","))
  ]
  print(json.dumps(result))


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--model", choices=MODELS, default="hsrl")
  parser.add_argument("--sids", default="index_rqvae.json")
  parser.add_argument("--seeds", default="0")
  parser.add_argument("--set", nargs="*", default=[], help="NAME=VALUE")
  parser.add_argument("--states", type=pathlib.Path)
  parser.add_argument("--exact", type=int, default=1000, help="users")
  parser.add_argument("--test", action="store_true")
  main(parser.parse_args())
