"""Experiment `ab`: a treatment against a control, on the same simulated users.

Both arms are read from what evaluated runs left. Session e is of the same user
with the same luck in each (common random numbers), so their difference is
known far better than in a real A/B test, where each user meets one arm alone.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax.agents import AGENTS
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import measures as measures_lib
from hsrl_jax.evaluation import statistics
from hsrl_jax.evaluation.bounds import BOUNDS
from hsrl_jax.experiments import entrants, jobs
from hsrl_jax.experiments.registry import Ab
from hsrl_jax.report import experiment_plots, tables
from hsrl_jax.stages.evaluate import SESSIONS

_SATURATED = 0.99  # A share above it tells policies apart no more.


class Arm(NamedTuple):
  """Sessions of a policy; one row for each seed that it was trained with."""

  total_reward: np.ndarray  # float [S, E].
  depth: np.ndarray  # float [S, E], slates shown.
  positives: np.ndarray  # float [S, E], items liked.
  liked_slates: np.ndarray  # float [S, E], slates with a liked item.


def run(experiment: jobs.Experiment) -> None:
  """Trains the agents that are named, compares, writes and prints.

  Raises:
    InputError: an arm is unknown, or the arms did not meet the same users.
  """
  names = _arms(experiment.config)
  folders = {
    name: pathlib.Path(name)
    for name in names
    if (pathlib.Path(name) / SESSIONS).exists()
  }
  agents = [x for x in dict.fromkeys(names) if x in AGENTS and x not in BOUNDS]
  for name in set(names) - set(folders) - set(agents) - set(BOUNDS):
    raise InputError(
      f"{name!r} is no arm; expected one of {', '.join((*BOUNDS, *AGENTS))}, "
      f"or the folder of an evaluated run, which has {SESSIONS}"
    )
  if not folders and not agents:
    agents = ["random"]  # Whatever is evaluated, the bounds are beside it.
  runs = jobs.run_all(
    experiment,
    [jobs.Job(name, entrants.agent(experiment, name)) for name in agents],
  )
  folders |= {run.config.agent: run.workdir for run in runs.values()}
  check_paired(list(folders.values()))
  any_folder = next(iter(folders.values()))  # Bounds are in all of them.
  arms = [folders.get(name, any_folder) for name in names]
  policies = [
    name if name in (*BOUNDS, *AGENTS) else _results(folder)["agent"]
    for name, folder in zip(names, arms, strict=True)
  ]
  control, treatment = map(read, arms, policies)
  user = measures_lib.read(any_folder / SESSIONS)["user"]
  facts = _results(any_folder)
  results = {
    key: facts[key] for key in ("dataset", "protocol", "split", "episodes")
  } | {
    "simulated": True,
    "users": len(np.unique(user)),
    "control": policies[0],
    "treatment": policies[1],
    "measures": compare(control, treatment, user),
  }
  jobs.finish(experiment, results, table, experiment_plots.ab)


def compared(config: Ab) -> list[str]:
  """The agents that the experiment trains; where there is none, `random`."""
  return [x for x in _arms(config) if x in AGENTS] or ["random"]


def _arms(config: Ab) -> tuple[str, str]:
  """The names of control and treatment."""
  return config.agents or ("best_constant", entrants.REFERENCE)


def read(folder: pathlib.Path, policy: str) -> Arm:
  """The sessions of one of the policies that an evaluated run left."""
  saved = measures_lib.read(folder / SESSIONS)
  return Arm(*(saved[f"{policy}/{field}"] for field in Arm._fields))


def check_paired(folders: list[pathlib.Path]) -> None:
  """Raises InputError where the runs met other users, luck or protocols."""
  first, *others = folders
  names = ("user", "greedy_oracle/positives")
  a = measures_lib.read(first / SESSIONS)
  for other in others:
    b = measures_lib.read(other / SESSIONS)
    if not all(
      a[name].shape == b[name].shape and np.allclose(a[name], b[name])
      for name in names
    ):
      raise InputError(
        f"{other} was evaluated in another simulator, with other users or luck "
        f"than {first}; expected the same flags but for the agent: evaluate "
        "both alike"
      )


def measures(arm: Arm) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Each measure of a session as numerator and denominator, [S, E]."""
  one = np.ones_like(arm.depth)
  return {
    "conversion": ((arm.positives > 0).astype(float), one),
    "liked_slates": (arm.liked_slates, arm.depth),
    "liked_per_slate": (arm.positives, arm.depth),
    "total_reward": (arm.total_reward, one),
    "depth": (arm.depth, one),
  }


def compare(
  control: Arm, treatment: Arm, user: np.ndarray
) -> dict[str, dict[str, Any]]:
  """The treatment's lift, measure by measure.

  An arm of several seeds is their mixture: its policies are taken as given, so
  intervals are over users, not over trainings.

  Args:
    control: arm A.
    treatment: arm B, with the sessions of the same users and luck.
    user: int [E], the user of each session; sessions of a user are dependent.

  Returns:
    Measure to `control` and `treatment`; `difference` and `lift` (relative;
    None where the control is not above 0), each with `value`, `ci95` and
    `ci95_unpaired`, what two groups of as many users would have given;
    `variance_reduction` of the difference by common random numbers (None where
    nothing varies); `p_value` of the paired test and `p_holm`, corrected for
    all measures; `sample_size`, sessions of different users that each arm of a
    real test needs for 80 % power at the level 5 % (None without difference).
  """
  rows = {}
  treated = measures(treatment)
  for name, parts in measures(control).items():
    a, psi_a = _by_user(parts, user)
    b, psi_b = _by_user(treated[name], user)
    paired = statistics.standard_error(psi_b - psi_a)
    apart = _apart(psi_a, psi_b)
    lift = None
    if a > 0:
      lift = _interval(b / a - 1, psi_b / a, -b / a**2 * psi_a)
    rows[name] = {
      "control": a,
      "treatment": b,
      "difference": _interval(b - a, psi_b, -psi_a),
      "lift": lift,
      "variance_reduction": 1 - (paired / apart) ** 2 if apart else None,
      "p_value": statistics.p_value(b - a, paired, len(psi_a)),
      "sample_size": statistics.sample_size(
        b - a, (_variance(parts), _variance(treated[name]))
      ),
    }
  adjusted = statistics.holm([x["p_value"] for x in rows.values()])
  for row, p in zip(rows.values(), adjusted, strict=True):
    row["p_holm"] = float(p)
  return rows


def table(results: dict[str, Any]) -> str:
  """For a terminal, at most 80 columns wide."""
  rows = [("", "A", "B", "lift %", "[95 % CI]", "p", "var", "n per arm")]
  for name, row in results["measures"].items():
    lift, saved = row["lift"], row["variance_reduction"]
    low, high = lift["ci95"] if lift else (np.nan, np.nan)
    rows.append(
      (
        name,
        f"{row['control']:.3f}",
        f"{row['treatment']:.3f}",
        f"{100 * lift['value']:+.2f}" if lift else "-",
        f"[{100 * low:+.2f},{100 * high:+.2f}]" if lift else "-",
        "<.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}",
        "-" if saved is None else f"{-100 * saved:+.0f}%",
        f"{row['sample_size']:,}" if row["sample_size"] else "-",
      )
    )
  head = (
    f"A/B, simulated: {results['treatment']} (B) against "
    f"{results['control']} (A); {results['dataset']}, split "
    f"{results['split']}, protocol {results['protocol']}, "
    f"{results['episodes']:,} sessions of {results['users']:,} users"
  )
  said = tables.filled(*notes(results["measures"]))
  return tables.blocks(tables.filled(head), tables.aligned(rows), said)


def notes(measured: dict[str, dict[str, Any]]) -> list[str]:
  """Paragraphs below the table: what a reader must know."""
  lines = [
    "p: paired by user, Holm's correction. var: change of the difference's "
    "variance by the same users and luck. n per arm: users, a session each, "
    "of a real, unpaired test of 80 % power at the level 5 %.",
    "Users are simulated, and nothing in here has a cost; the paper's "
    "+18.421 % conversion at +1.251 % cost is of an online test.",
  ]
  saturated = [
    name
    for name in ("conversion", "liked_slates")
    if min(measured[name]["control"], measured[name]["treatment"]) > _SATURATED
  ]
  if saturated:
    lines.append(
      f"Saturated in this simulator, so no guide: {', '.join(saturated)}."
    )
  return lines


def _by_user(parts, user: np.ndarray) -> tuple[float, np.ndarray]:
  """A measure, and each user's influence on it; the mean over the seeds."""
  return statistics.ratio(
    *(statistics.by_group(x.mean(0, dtype=np.float64), user) for x in parts)
  )


def _variance(parts) -> float:
  """Of one session's influence: what a user brings to a real test."""
  return float(statistics.ratio(*(x.ravel() for x in parts))[1].var(ddof=1))


def _interval(
  value: float, treated: np.ndarray, untreated: np.ndarray
) -> dict[str, Any]:
  """A value by the influences on it of each user in either arm, [U]."""
  units = len(treated)
  error = statistics.standard_error(treated + untreated)
  return {
    "value": value,
    "ci95": statistics.interval(value, error, units),
    "ci95_unpaired": statistics.interval(
      value, _apart(treated, untreated), units
    ),
  }


def _apart(a: np.ndarray, b: np.ndarray) -> float:
  """Standard error of a difference of two groups that do not share users."""
  return float(
    np.hypot(statistics.standard_error(a), statistics.standard_error(b))
  )


def _results(folder: pathlib.Path) -> dict[str, Any]:
  return measures_lib.read_results(folder / "results.json")
