"""What the package obp estimates from the inputs of off_policy_inputs.py.

It needs an environment of its own (obp 0.5.7 is for Python 3.7 to 3.9):

  python3.9 -m venv obp_env
  obp_env/bin/pip install "numpy<2" "pandas<2" "scikit-learn<1.2" scipy \
      matplotlib seaborn tqdm pyyaml "torch==1.12.1"
  obp_env/bin/pip install --no-deps "obp==0.5.7"
  obp_env/bin/python tests/benchmarks/off_policy_obp.py

writes tests/evaluation/off_policy_obp.json: figures of off_policy_inputs.py and
of what --study=off_policy estimates from, once this package's environment has
written that to a file:

  python tests/benchmarks/off_policy_obp.py data/open_bandit inputs.npz
  obp_env/bin/python tests/benchmarks/off_policy_obp.py inputs.npz
"""

import json
import pathlib
import sys

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "evaluation"
sys.path.insert(0, str(FOLDER))

import off_policy_inputs  # noqa: E402


def of_bandit(inputs):
  """IPS, SNIPS and DR of impressions."""
  from obp import ope

  common = {
    "reward": inputs["reward"],
    "action": inputs["item"],
    "position": inputs["place"],
    "pscore": inputs["propensity"],
    "action_dist": np.ascontiguousarray(inputs["pi"].transpose(0, 2, 1)),
  }
  q = np.ascontiguousarray(inputs["q"].transpose(0, 2, 1))
  ips = ope.InverseProbabilityWeighting()
  snips = ope.SelfNormalizedInverseProbabilityWeighting()
  return {
    "ips": ips.estimate_policy_value(**common),
    "snips": snips.estimate_policy_value(**common),
    "dr": ope.DoublyRobust().estimate_policy_value(
      **common, estimated_rewards_by_reg_model=q
    ),
  }


def of_prefixes(inputs):
  """MIPS, the embedding of an item being the first token of its SID."""
  from obp import ope

  token, places = inputs["sids"][:, 0], inputs["pi"].shape[1]
  return ope.MarginalizedInverseProbabilityWeighting(
    n_actions=len(token)
  ).estimate_policy_value(
    reward=inputs["reward"],
    action=inputs["item"],
    action_embed=token[inputs["item"], None],
    p_e_a=np.eye(token.max() + 1)[token][..., None],
    position=inputs["place"],
    pi_b=np.repeat(inputs["mu"][..., None], places, axis=2),
    action_dist=np.ascontiguousarray(inputs["pi"].transpose(0, 2, 1)),
  )


def of_sessions(inputs):
  """The same by decision: obp knows sessions as slates with a cascade."""
  from obp.ope import estimators_slate as slate

  rows, places, items = inputs["pi"].shape
  pi = np.take_along_axis(inputs["pi"], inputs["item"][..., None], -1)[..., 0]
  common = {
    "slate_id": np.repeat(np.arange(rows), places),
    "reward": inputs["reward"].ravel(),
    "position": np.tile(np.arange(places), rows),
    "pscore_cascade": inputs["propensity"].cumprod(1).ravel(),
    "evaluation_policy_pscore_cascade": pi.cumprod(1).ravel(),
  }
  ips = slate.SlateRewardInteractionIPS(len_list=places)
  snips = slate.SelfNormalizedSlateRewardInteractionIPS(len_list=places)
  dr = slate.SlateCascadeDoublyRobust(len_list=places, n_unique_action=items)
  return {
    "ips": ips.estimate_policy_value(**common),
    "snips": snips.estimate_policy_value(**common),
    "dr": dr.estimate_policy_value(
      **common,
      action=inputs["item"].ravel(),
      q_hat=inputs["q"].ravel(),
      evaluation_policy_action_dist=inputs["pi"].ravel(),
    ),
  }


def write_inputs(folder, path):
  """Arrays of --study=off_policy: `POLICY/NAME`, of each policy estimated."""
  from hsrl_jax.shipped.datasets.open_bandit import impressions
  from hsrl_jax.studies import off_policy

  logs, arrays = impressions.read_logs(pathlib.Path(folder)), {}
  items = 1 + max(int(x.item.max()) for x in logs.values())
  for policy, logger in zip(logs, reversed(logs), strict=True):
    pi = off_policy.probabilities(logs[policy], items)
    pi = pi + (pi.sum(1, keepdims=True) == 0) / items  # A place without rows.
    seen, rows = logs[logger], len(logs[logger].item)
    q = off_policy.model(seen, items, 0)
    for name, value in (
      ("item", seen.item),
      ("place", seen.place),
      ("reward", seen.click),
      ("propensity", seen.propensity),
      ("pi", np.broadcast_to(pi, (rows, *pi.shape))),
      ("q", np.broadcast_to(q[:, None], (rows, *pi.shape))),
    ):
      arrays[f"{policy}/{name}"] = value
  np.savez(path, **arrays)


def main():
  if len(sys.argv) == 3:
    write_inputs(*sys.argv[1:])
    return
  import obp

  path = FOLDER / "off_policy_obp.json"
  figures = json.loads(path.read_text()) if path.exists() else {}
  figures |= {
    "obp": obp.__version__,
    "seed": off_policy_inputs.SEED,
    "bandit": {
      **of_bandit(off_policy_inputs.bandit()),
      "mips": of_prefixes(off_policy_inputs.bandit()),
    },
    "sessions": of_sessions(off_policy_inputs.sessions()),
  }
  if len(sys.argv) == 2:
    arrays, figures["open_bandit"] = np.load(sys.argv[1]), {}
    for policy in ("random", "bts"):
      names = ("item", "place", "reward", "propensity", "pi", "q")
      inputs = {x: arrays[f"{policy}/{x}"] for x in names}
      figures["open_bandit"][policy] = of_bandit(inputs)
  path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
  main()
