"""Study `off_policy`: a policy's value from the logs of another.

Of one's own logs (`--dataset=logs`) it is that of a policy that came from
elsewhere: a column `target` has its probability of what was shown.

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
from hsrl_jax.report import run_page, tables
from hsrl_jax.studies import plots

if TYPE_CHECKING:
  from hsrl_jax.shipped.datasets.open_bandit.impressions import Impressions

_OWN = "logs"
_WANTED = {  # Of a dataset, what its folder holds.
  "open_bandit": "random/CAMPAIGN and bts/CAMPAIGN of the Open Bandit Dataset",
  _OWN: "interactions or sessions, with the columns propensity and target",
}
_FOLDS = 5
_FORM = "{:.5f}"
_MODEL = ("predicted", "expected")  # Columns of a model of responses.


def run(experiment: jobs.Experiment) -> None:
  """Estimates both policies, writes and prints.

  Raises:
    InputError: the dataset or its folder is another, a file is no good, or
      nothing that one policy did is in the logs of the other.
  """
  # The package starts without the folder of the datasets.
  from hsrl_jax.shipped.datasets.open_bandit import impressions

  data = experiment.base.data
  if data.dataset not in _WANTED:
    raise InputError(
      f"--study=off_policy with --dataset={data.dataset}; expected "
      f"--dataset={' or --dataset='.join(_WANTED)}"
    )
  if data.raw_data_dir is None or not pathlib.Path(data.raw_data_dir).is_dir():
    raise InputError(
      f"--raw_data_dir={data.raw_data_dir} is no folder; expected a folder "
      f"with {_WANTED[data.dataset]}"
    )
  folder = pathlib.Path(data.raw_data_dir)
  if data.dataset == _OWN:
    _of_own(experiment, folder)
    return
  logs = impressions.read_logs(folder)
  estimated = {
    policy: estimate(logs, policy, logger)
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
  jobs.finish(experiment, results, table, plots.off_policy)


def _of_own(experiment: jobs.Experiment, folder: pathlib.Path) -> None:
  """Estimates what the policy in the column `target` would have earned."""
  from hsrl_jax.shipped.datasets.logs import tables as logs_lib

  name = "sessions" if logs_lib.has(folder, "sessions") else "interactions"
  needed = ("user_id", "response", "propensity", "target")
  table = logs_lib.read_table(folder, name, needed)
  there = table.has_cell("propensity")
  if not there.any():
    table.refuse(0, "propensity", "none in any row; expected some")
  rows, width = table.where(there), None

  def read(column: str, parse) -> np.ndarray:
    if name == "sessions":
      return logs_lib.matrix(rows, column, parse, width, np.float64)
    return np.asarray(logs_lib.column(rows, column, parse))[:, None]

  reward = read("response", logs_lib.binary)
  width = reward.shape[1]
  model = dict.fromkeys(_MODEL, np.zeros_like(reward))
  if {*_MODEL} <= {*table.names}:
    model = {x: read(x, logs_lib.number) for x in _MODEL}
  logged = off_policy.bandit(
    logs_lib.codes(rows, "user_id")[0],
    target=read("target", logs_lib.number),
    logging=read("propensity", logs_lib.probability),
    reward=reward,
    **model,
  )
  found = off_policy.compare({"target": logged})
  rows = {"rows": int(there.sum()), "of_rows": len(there)}
  results, own = {"dataset": _OWN} | rows | found, found["off_policy"]
  text = tables.blocks(
    f"Value of an item, {there.sum():,} of {len(there):,} rows of {name} have "
    "propensities",
    tables.aligned(run_page.off_policy_rows("policy", own)),
    tables.filled(*off_policy.sentences(*found.values())),
  )
  real = own[off_policy.LOGGING_POLICY][off_policy.ON_POLICY]
  drawn = {"target": own["target"] | {"real": real, "logger": "another"}}
  jobs.finish(
    experiment,
    results,
    lambda _: text,
    lambda _: plots.off_policy({"off_policy": drawn}, "that of the other"),
  )


def estimate(
  logs: dict[str, "Impressions"], policy: str, logger: str
) -> dict[str, Any]:
  """A policy's value from the logs of another, and its real one.

  Returns:
    What `off_policy.estimates` does, with `real`, {"mean", "ci95"} by the
    policy's own logs; `logger`, `rows` and `users`.
  """
  items = 1 + max(int(x.item.max()) for x in logs.values())
  pi = probabilities(logs[policy], items)
  seen, own = (
    seen_by(pi, logs[x], model(logs[x], items)) for x in (logger, policy)
  )
  return off_policy.estimates(seen) | {
    "real": off_policy.shown(off_policy.ips(off_policy.on_policy(own))),
    "logger": logger,
    "rows": len(seen.user),
    "users": len(np.unique(seen.user)),
  }


def probabilities(logs: "Impressions", items: int) -> np.ndarray:
  """A policy's probabilities of N items at each of P places, [P, N]."""
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


def model(logs: "Impressions", items: int) -> np.ndarray:
  """Each item's smoothed click rate among the users of other folds, [R, N]."""
  users, user = np.unique(logs.user, return_inverse=True)
  fold = np.random.default_rng(0).permutation(len(users))[user] % _FOLDS
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
    for name in [x for x in off_policy.ESTIMATORS if x in found]:
      one = found[name]
      cells = (*tables.cells(one, _FORM), f"{one['ess']:,.0f}")
      rows.append((policy, logger, name.upper(), *cells))
    rows.append((policy, policy, "real", *tables.cells(real, _FORM), "-"))
    said.append(_sentence(policy, found))
  return tables.blocks(
    f"Clicks an impression, {results['dataset']}, campaign "
    f"{results['campaign']}",
    tables.aligned(rows, left=3),
    tables.filled(*said),
  )


def _sentence(policy: str, found: dict[str, Any]) -> str:
  """Whether the real value is where the estimates say."""
  source = f"{policy} from {found['rows']:,} impressions of {found['logger']}"
  estimated = {x: found[x] for x in off_policy.ESTIMATORS if x in found}
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
