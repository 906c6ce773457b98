"""HSRL's policy and critic once more in NumPy: one level after another."""

from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from tests.agents import checks

FREE_RATE = 0.1


class Levels(NamedTuple):
  """Logits float64 [L, V] and contexts [L + 1, d] of one state."""

  logits: np.ndarray
  contexts: np.ndarray


def _tokens(params, catalogue):
  """Rows of W, A C, E and b, as docs/policy.md has them."""
  own = jax.tree.map(
    lambda x: np.asarray(x, np.float64), params["policy"]["params"]
  )
  codebooks = np.asarray(catalogue.codebooks, np.float64)
  if "meaning_map" not in own:
    meaning = np.zeros_like(own["kernel"])
    return own, own["kernel"], meaning, own["embedding"], own["bias"]
  return (
    own,
    FREE_RATE * own["kernel"],
    codebooks @ own["meaning_map"]["kernel"],
    FREE_RATE * own["embedding"] + codebooks @ own["embedding_map"]["kernel"],
    FREE_RATE * own["bias"] + (codebooks @ own["bias_map"]["kernel"])[..., 0],
  )


def levels(params, catalogue, state, taken=None) -> Levels:
  """With the expected residual, or with that of the tokens `taken` [L]."""
  own, kernel, meaning, embedding, bias = _tokens(params, catalogue)
  logits, contexts = [], [state]
  for l in range(len(kernel)):
    row = kernel[l] @ contexts[-1] + meaning[l] @ state + bias[l]
    weights = special.softmax(row)
    if taken is not None:
      weights = np.eye(len(row))[taken[l]]
    left = contexts[-1] - weights @ embedding[l]
    centred = (left - left.mean()) / np.sqrt(left.var() + 1e-6)
    norm = own[f"norm_{l}"]
    logits.append(row)
    contexts.append(centred * norm["scale"] + norm["bias"])
  return Levels(np.stack(logits), np.stack(contexts))


def residual(params, catalogue, state, item) -> float:
  """What an item earns by what its SID loses of its features."""
  own = params["policy"]["params"]
  tokens = catalogue.index.sids[item]
  lost = np.asarray(catalogue.features[item], np.float64) - sum(
    np.asarray(catalogue.codebooks[l, t], np.float64)
    for l, t in enumerate(tokens)
  )
  return float(
    lost @ np.asarray(own["meaning_map"]["kernel"]) @ state
    + (lost @ np.asarray(own["bias_map"]["kernel"]))[0]
  )


def log_pi(made: checks.Made):
  """log pi of each item, one by one, [N + 1]; -inf for padding."""
  _, _, params, catalogue, observation = made
  state = checks.state(params, catalogue, observation)
  sids = catalogue.index.sids
  settings, out = made.config.settings, [-np.inf]
  log_prob = special.log_softmax(levels(params, catalogue, state).logits, 1)
  for item in range(1, len(sids)):
    score = sum(log_prob[l, t] for l, t in enumerate(sids[item]))
    if settings.item_residual:
      score += residual(params, catalogue, state, item)
    out.append(score)
  return np.array(out)


def value(params, contexts):
  """V(s) and the values of the levels, of contexts [L + 1, d]."""
  own = jax.tree.map(
    lambda x: np.asarray(x, np.float64), params["critic"]["params"]
  )
  weights = special.softmax(own["level_weight"])  # Of all levels, or of c_0.
  values = [
    checks.mlp(own["value"], contexts[l], l) for l in range(len(weights))
  ]
  return weights @ values, np.array(values)
