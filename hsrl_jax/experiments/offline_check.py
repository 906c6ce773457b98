"""Experiment `offline_check`: a policy's reward, estimated from logs alone.

The reward of one item drawn from the agent's stochastic policy, at several
temperatures, by the estimators of evaluation/off_policy.py and under their
assumptions. Beside each stands its effective sample size: without one the
estimate says nothing. Twice:

- `simulated`: the logs are drawn in the simulator by the agent itself at a
  known temperature, so that the propensities are known, and the answer too;
- `logged`: the logs of the dataset. Nobody knows their propensities, for the
  users chose; they are taken to be the items' shares of the training logs.
"""

import functools
from typing import Any

import jax
import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import logged
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.report import experiment_plots, tables


def run(experiment: jobs.Experiment) -> None:
  """Trains the agent where it is missing, estimates, writes and prints.

  Raises:
    InputError: the agent has no probabilities of items.
  """
  base, config = experiment.base, experiment.config
  job = jobs.Job(base.agent, entrants.agent(experiment, base.agent))
  (run,) = jobs.run_all(experiment, [job]).values()
  index, split = run.catalogue.index, base.evaluate.split
  agent = run.agent(slate_size=index.num_items)
  (_, params), *_ = run.policies()
  logs, users = run.dataset.splits[split], run.users(split)
  train = run.dataset.splits["train"]
  rewards = logged.item_rewards(train, index.capacity, run.env.reward)
  popularity = logged.log_popularity(train, index.capacity)
  log_key, *keys = jax.random.split(jax.random.key(config.seed), 3)
  drawn = logged.collect(
    agent,
    params,
    run.env,
    users,
    np.resize(logs.user_id, base.evaluate.episodes),
    log_key,
    temperature=config.logging_temperature,
  )
  temperatures = (config.logging_temperature, *config.temperatures)
  check = functools.partial(
    logged.estimates, table=rewards, clip=config.weight_clip, env=run.env
  )
  checked = {}
  for (name, sessions, log_mu), key in zip(
    (("simulated", drawn, None), ("logged", logs, popularity)),
    keys,
    strict=True,
  ):
    scores = logged.score(
      agent, run.env, params, users, sessions, rewards, temperatures, key
    )
    check_probabilities(scores)
    checked[name] = check(sessions, scores, temperatures, log_mu=log_mu)
  results = {
    "dataset": base.data.dataset,
    "split": split,
    "agent": base.agent,
    "seed": base.train.seeds[0],
    "items": index.num_items,
    "logging_temperature": config.logging_temperature,
    "weight_clip": config.weight_clip,
    # exp of the guessed propensities' cross-entropy on the logged items.
    "behaviour_alike_items": float(np.exp(-popularity[logs.exposed].mean())),
    **checked,
  }
  jobs.finish(
    experiment, results, table(results), experiment_plots.offline_check(results)
  )


def check_probabilities(scores: logged.Scores) -> None:
  """Raises InputError where the agent has no probabilities of items."""
  if not np.ptp(scores.log_pi):
    raise InputError(
      "--agent has no probabilities of items; expected one that has, such as "
      "hsrl or a2c"
    )


def table(results: dict[str, Any]) -> str:
  """For a terminal, at most 80 columns wide."""
  head = (
    "logs",
    "T",
    "ESS",
    "truth",
    "model",
    "SNIPS [95 % CI]",
    "doubly robust [CI]",
  )
  rows = [head]
  for name in ("simulated", "logged"):
    for row in results[name]:
      rows.append(
        (
          "drawn" if name == "simulated" else name,
          f"{row['temperature']:g}",
          f"{row['effective_sample_size']:,.0f}",
          f"{row['truth']:.3f}" if "truth" in row else "?",
          f"{row['direct']['value']:.3f}",
          _cell(row["snips"]),
          _cell(row["doubly_robust"]),
        )
      )
  return "\n".join(
    [
      f"Reward of an item of {results['agent']}, {results['dataset']}, split "
      f"{results['split']}",
      "",
      *tables.aligned(rows),
      "",
      *map(tables.filled, notes(results)),
    ]
  )


def notes(results: dict[str, Any]) -> list[str]:
  """Paragraphs below the table: what a reader must know."""
  shown = {name: results[name][0]["draws"] for name in ("simulated", "logged")}
  return [
    "T: temperature of the policy estimated. ESS: effective sample size, of "
    f"{shown['simulated']:,} items shown in the simulator and "
    f"{shown['logged']:,} logged; weights are cut at "
    f"{results['weight_clip']:g}. Positions count as independent draws, though "
    "slates have no repeats.",
    "drawn: in the simulator by the agent itself at temperature "
    f"{results['logging_temperature']:g}; propensities and answer are known. "
    "model: the items' mean rewards in the training logs, another world.",
    "logged: users chose; propensities are guessed from popularity, the same "
    "for everybody. They tell a logged item as little as a draw among "
    f"{results['behaviour_alike_items']:,.0f} items all alike would, of "
    f"{results['items']:,}. That is weak evidence, and its intervals know "
    "nothing of wrong propensities. model: the click model.",
  ]


def _cell(estimate: dict[str, Any]) -> str:
  low, high = estimate["ci95"]
  return f"{estimate['value']:.2f} [{low:.2f},{high:.2f}]"
