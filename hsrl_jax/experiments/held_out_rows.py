"""How the policies of an experiment rank held-out logs, row by row."""

from collections.abc import Sequence
from typing import Any

from hsrl_jax.evaluation import held_out, ranking
from hsrl_jax.stages import score_on_logs as on_logs
from hsrl_jax.stages.run import Run

# What tables show, with their heads.
MEASURES = {
  "auc_within_slates": "AUC",
  "recall@10": "recall@10",
  "ndcg@10": "NDCG@10",
}

ByRow = dict[str, held_out.Measured]  # Name of a measure to its rows.


def of_policy(run: Run) -> list[ByRow]:
  """The measures of each seed; none where there is nothing to rank."""
  if not on_logs.can_rank(run):
    return []
  params = [own for _, own in run.policies]
  return _by_row(run, on_logs.of_policy(run, params)).get(run.config.agent, [])


def of_lists(run: Run) -> dict[str, list[ByRow]]:
  """The same of simple lists and the click model, by name."""
  if not on_logs.can_rank(run):
    return {}
  return _by_row(run, on_logs.of_lists(run))


def _by_row(run: Run, rankers: on_logs.Rankers) -> dict[str, list[ByRow]]:
  train, logs = run.dataset.splits["train"], on_logs.judged(run)
  _, liked = ranking.counts(train, run.catalogue.index.num_items)
  return {
    name: held_out.by_row(seeds, logs, liked)
    for name, seeds in on_logs.rankings(run, rankers).items()
  }


def measured(own: Sequence[ByRow]) -> dict[str, Any]:
  """MEASURES of a policy by its seeds; None for one that is not defined."""
  return {name: held_out.mean([x[name] for x in own]) for name in MEASURES}


def more(own: Sequence[ByRow], other: Sequence[ByRow]) -> dict[str, Any]:
  """The same of what one policy has more than another, paired."""
  return {
    name: held_out.difference([x[name] for x in own], [x[name] for x in other])
    for name in MEASURES
  }
