"""Study `off_policy`: one logging policy's value from another's logs.

Two policies logged the same campaign side by side (`--dataset=open_bandit`), so
that the value of each is known: the mean of its own logs. The logs of the other
estimate it, by impressions, each at its place of the page.

A policy's probability of an item at a place is its share of what the policy
showed there, or the propensity where that never changes. A policy that learns
as it logs, such as Thompson sampling, is thereby taken at its average. The
model of doubly robust estimates is the item's smoothed click rate among other
users, in five folds.
"""

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import off_policy, ranking
from hsrl_jax.experiments import jobs
from hsrl_jax.report import tables
from hsrl_jax.studies import plots

if TYPE_CHECKING:
  from hsrl_jax.shipped.datasets.open_bandit.impressions import Impressions

DATASET = "open_bandit"
_FOLDS = 5
_FORM = "{:.5f}"


def run(experiment: jobs.Experiment) -> None:
  """Estimates both policies, writes and prints.

  Raises:
    InputError: the dataset or its folder is another, a file is no good, or
      nothing that one policy did is in the logs of the other.
  """
  # The package starts without the folder of the datasets.
  from hsrl_jax.shipped.datasets.open_bandit import impressions

  data = experiment.base.data
  if data.dataset != DATASET:
    raise InputError(
      f"--study=off_policy with --dataset={data.dataset}; expected "
      f"--dataset={DATASET}, which two policies logged"
    )
  if data.raw_data_dir is None or not pathlib.Path(data.raw_data_dir).is_dir():
    raise InputError(
      f"--raw_data_dir={data.raw_data_dir} is no folder; expected a folder "
      "with random/CAMPAIGN and bts/CAMPAIGN of the Open Bandit Dataset"
    )
  folder = pathlib.Path(data.raw_data_dir)
  logs = impressions.read_logs(folder)
  estimated = {
    policy: estimate(logs, policy, logger, experiment.config.seed)
    for policy, logger in zip(logs, reversed(logs), strict=True)
  }
  if not any(x["ips"]["ess"] for x in estimated.values()):
    raise InputError(
      f"{folder}: no overlap: neither policy shows what the other logged; "
      "expected some item that both show at a place"
    )
  results = {
    "dataset": data.dataset,
    "campaign": impressions.campaign(folder),
    "off_policy": estimated,
  }
  jobs.finish(experiment, results, table(results), plots.off_policy(results))


def estimate(
  logs: dict[str, "Impressions"], policy: str, logger: str, seed: int
) -> dict[str, Any]:
  """A policy's value from the logs of another, and its real one.

  Args:
    logs: of both.
    policy: whose value is asked.
    logger: whose logs are used.
    seed: of the model's folds.

  Returns:
    What `off_policy.estimates` does, with `real`, {"mean", "ci95"} by the
    policy's own logs; `logger`, `rows` and `users`.
  """
  items = 1 + max(int(x.item.max()) for x in logs.values())
  pi = probabilities(logs[policy], items)
  seen, own = (
    seen_by(pi, logs[x], model(logs[x], items, seed)) for x in (logger, policy)
  )
  return off_policy.estimates(seen) | {
    "real": off_policy.shown(off_policy.ips(off_policy.on_policy(own))),
    "logger": logger,
    "rows": len(seen.user),
    "users": len(np.unique(seen.user)),
  }


def probabilities(logs: "Impressions", items: int) -> np.ndarray:
  """A policy's probabilities of N items at each of P places, [P, N].

  Args:
    logs: its own.
    items: N.
  """
  pi = np.zeros((int(logs.place.max()) + 1, items))
  for place in np.unique(logs.place):
    here = logs.place == place
    item, propensity = logs.item[here], logs.propensity[here]
    shown = np.bincount(item, minlength=items)
    mean = np.bincount(item, propensity, items) / np.maximum(shown, 1)
    # All items were seen, and always by the same chance.
    is_known = np.allclose(propensity, mean[item]) and np.isclose(mean.sum(), 1)
    pi[place] = mean if is_known else shown / shown.sum()
  return pi


def model(logs: "Impressions", items: int, seed: int) -> np.ndarray:
  """Each item's smoothed click rate among the users of other folds, [R, N].

  Args:
    logs: R impressions.
    items: N.
    seed: of the folds.
  """
  users, user = np.unique(logs.user, return_inverse=True)
  fold = np.random.default_rng(seed).permutation(len(users))[user] % _FOLDS
  rates = np.zeros((_FOLDS, items))
  for k in range(_FOLDS):
    item, click = logs.item[fold != k], logs.click[fold != k]
    shown = np.bincount(item, minlength=items).astype(float)
    rates[k] = ranking.smoothed(shown, np.bincount(item, click, items))
  return rates[fold]


def seen_by(
  pi: np.ndarray, logs: "Impressions", q: np.ndarray
) -> off_policy.Logged:
  """Logs as a policy sees them.

  Args:
    pi: float [P, N], see `probabilities`; places beyond P are never used.
    logs: R impressions.
    q: float [R, N], see `model`.
  """
  beyond = max(int(logs.place.max()) + 1 - len(pi), 0)
  of_row = np.pad(pi, ((0, beyond), (0, 0)))[logs.place]
  item = logs.item[:, None]
  return off_policy.bandit(
    target=np.take_along_axis(of_row, item, 1),
    logging=logs.propensity[:, None],
    reward=logs.click[:, None],
    predicted=np.take_along_axis(q, item, 1),
    expected=(of_row * q).sum(1, keepdims=True),
    user=np.unique(logs.user, return_inverse=True)[1],
  )


def table(results: dict[str, Any]) -> str:
  """For a terminal, at most 80 columns wide."""
  rows = [("policy", "logs of", "estimator", "value", "[95% CI]", "ESS")]
  said = []
  for policy, found in results["off_policy"].items():
    real, logger = found["real"], found["logger"]
    for name in off_policy.ESTIMATORS:
      one = found[name]
      refused = "refused" in one
      ends = "-" if refused else tables.interval(one, _FORM)
      cells = tables.mean(one, _FORM), ends, f"{one['ess']:,.0f}"
      rows.append((policy, logger, name.upper(), *cells))
    ends = tables.interval(real, _FORM)
    rows.append((policy, policy, "real", tables.mean(real, _FORM), ends, "-"))
    said.append(tables.filled(_sentence(policy, found)))
  return "\n".join(
    [
      f"Clicks an impression, {results['dataset']}, campaign "
      f"{results['campaign']}",
      "",
      *tables.aligned(rows, left=3),
      "",
      *said,
    ]
  )


def _sentence(policy: str, found: dict[str, Any]) -> str:
  """Whether the real value is where the estimates say."""
  source = f"{policy} from {found['rows']:,} impressions of {found['logger']}"
  estimated = {x: found[x] for x in off_policy.ESTIMATORS}
  reasons = [x["refused"] for x in estimated.values() if "refused" in x]
  if reasons:
    return f"{source}: no estimate; {reasons[0]}."
  real = found["real"]["mean"]
  missed = [
    name.upper()
    for name, x in estimated.items()
    if not x["ci95"][0] <= real <= x["ci95"][1]
  ]
  where = (
    f"outside that of {', '.join(missed)}" if missed else "in each interval"
  )
  caution = estimated["ips"].get("caution")
  return f"{source}: the real value is {where}" + (
    f", but {caution}." if caution else "."
  )
