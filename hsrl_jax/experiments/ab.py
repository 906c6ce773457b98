"""Experiment `ab`: a treatment against a control, on the same simulated users.

Both arms are read from what evaluated runs left. Session e is of the same user
with the same luck in each (common random numbers), so their difference is
known far better than in a real A/B test, where each user meets one arm alone.
"""

import pathlib
import textwrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from hsrl_jax.agents import AGENTS
from hsrl_jax.config import ExperimentConfig
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import simulate, statistics
from hsrl_jax.evaluation.simulate import BOUNDS
from hsrl_jax.experiments import benchmark, comparison, jobs
from hsrl_jax.report import plots, run_page
from hsrl_jax.stages.run import SESSIONS

_SATURATED = 0.99  # A share above it tells policies apart no more.


class Arm(NamedTuple):
  """Sessions of a policy; one row for each seed that it was trained with.

  Attributes:
    total_reward: float [S, E].
    depth: float [S, E], slates shown.
    positives: float [S, E], items liked.
    liked_slates: float [S, E], slates with a liked item.
  """

  total_reward: np.ndarray
  depth: np.ndarray
  positives: np.ndarray
  liked_slates: np.ndarray


def run(experiment: jobs.Experiment) -> None:
  """Trains the agents that are named, compares, writes and prints.

  Raises:
    InputError: an arm is unknown, or the arms did not meet the same users.
  """
  names = compared(experiment.config)
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
    [jobs.Job(name, benchmark.entrant(experiment, name)) for name in agents],
  )
  folders |= {run.config.agent: run.workdir for run in runs.values()}
  check_paired(list(folders.values()))
  any_folder = next(iter(folders.values()))  # Bounds are in all of them.
  found = [folders.get(name, any_folder) for name in names]
  policies = [
    name if name in (*BOUNDS, *AGENTS) else _results(folder)["agent"]
    for name, folder in zip(names, found, strict=True)
  ]
  control, treatment = map(read, found, policies)
  user = simulate.read(any_folder / SESSIONS)["user"]
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
  jobs.finish(experiment, results, table(results), plot(results))


def compared(config: ExperimentConfig) -> tuple[str, str]:
  """The names of control and treatment."""
  return config.control, config.treatment or comparison.REFERENCE


def read(folder: pathlib.Path, policy: str) -> Arm:
  """The sessions of one of the policies that an evaluated run left."""
  saved = simulate.read(folder / SESSIONS)
  return Arm(*(saved[f"{policy}/{field}"] for field in Arm._fields))


def check_paired(folders: list[pathlib.Path]) -> None:
  """Raises InputError where the runs met other users, luck or protocols."""
  first, *others = folders
  for other in others:
    a, b = simulate.read(first / SESSIONS), simulate.read(other / SESSIONS)
    same = all(
      a[key].shape == b[key].shape and np.allclose(a[key], b[key])
      for key in ("user", "greedy_oracle/positives")
    )
    if not same:
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
  found = {}
  treated = measures(treatment)
  for name, parts in measures(control).items():
    a, psi_a = _by_user(parts, user)
    b, psi_b = _by_user(treated[name], user)
    paired = statistics.standard_error(psi_b - psi_a)
    apart = _apart(psi_a, psi_b)
    lift = None
    if a > 0:
      lift = _interval(b / a - 1, psi_b / a, -b / a**2 * psi_a)
    found[name] = {
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
  adjusted = statistics.holm([x["p_value"] for x in found.values()])
  for row, p in zip(found.values(), adjusted, strict=True):
    row["p_holm"] = float(p)
  return found


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
  return "\n".join(
    [
      textwrap.fill(head, 80),
      "",
      *run_page.aligned(rows),
      "",
      *(textwrap.fill(x, 80) for x in notes(results["measures"])),
    ]
  )


def notes(found: dict[str, dict[str, Any]]) -> list[str]:
  """What a reader must know, a paragraph each."""
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
    if min(found[name]["control"], found[name]["treatment"]) > _SATURATED
  ]
  if saturated:
    lines.append(
      f"Saturated in this simulator, so no guide: {', '.join(saturated)}."
    )
  return lines


def plot(results: dict[str, Any]) -> Figure:
  """The lifts with their intervals, paired and not."""
  figure = Figure(figsize=(8, 3.6), layout="constrained")
  axes = figure.add_subplot()
  found = {k: v for k, v in results["measures"].items() if v["lift"]}
  for place, row in enumerate(found.values()):
    lift = row["lift"]
    for key, shift, colour, marker in (
      ("ci95", -0.12, plots.BLUE, "o"),
      ("ci95_unpaired", 0.12, plots.GREY, "s"),
    ):
      ends = np.abs(np.array(lift[key]) - lift["value"])
      axes.errorbar(
        100 * lift["value"],
        place + shift,
        xerr=100 * ends[:, None],
        fmt=marker,
        color=colour,
        capsize=3,
        markersize=5,
        label=None
        if place
        else {"ci95": "same users and luck"}.get(key, "two groups of users"),
      )
    size = row["sample_size"]
    axes.annotate(
      f"{100 * lift['value']:+.1f} %" + (f"\n{size:,} per arm" if size else ""),
      (1.01, place),
      xycoords=("axes fraction", "data"),
      va="center",
      fontsize=8,
    )
  axes.axvline(0, color="black", linewidth=0.8)
  axes.set_yticks(range(len(found)), [x.replace("_", " ") for x in found])
  axes.set_ylim(len(found) - 0.5, -0.5)
  plots.style(
    axes,
    f"{results['treatment']} against {results['control']}, simulated users, "
    f"{results['dataset']}, {results['protocol']}",
    "lift, %, with its 95 % confidence interval",
  )
  figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
  return figure


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
  return simulate.read_results(folder / "results.json")
