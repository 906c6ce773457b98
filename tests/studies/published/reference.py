"""The published networks once more in NumPy, without dropout."""

import jax
import numpy as np
from scipy import special

EPSILON = 1e-5


def _own(params):
  return jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])


def _linear(own, x):
  return x @ own["kernel"] + own["bias"]


def _norm(own, x, axes=-1):
  """Normalised over the axes: the last one, or all others for a batch."""
  centred = x - x.mean(axes, keepdims=True)
  deviation = np.sqrt(x.var(axes, keepdims=True) + EPSILON)
  return centred / deviation * own["scale"] + own["bias"]


def _layer(own, x, heads):
  """Every position of [H, d], after those before it and itself."""
  q, k, v = (
    np.split(_linear(own[name], x), heads, -1)
    for name in ("query", "key", "value")
  )
  mixed = []
  for head in range(heads):
    logits = q[head] @ k[head].T / np.sqrt(q[head].shape[-1])
    logits[np.triu_indices(len(x), 1)] = -np.inf
    mixed.append(special.softmax(logits, -1) @ v[head])
  x = _norm(own["attention_norm"], x + _linear(own["out"], np.hstack(mixed)))
  hidden = np.maximum(_linear(own["wide"], x), 0)
  return _norm(own["feed_forward_norm"], x + _linear(own["narrow"], hidden))


def view(params, features, history, heads=2):
  """Logits, [L, tokens], and contexts, [L + 1, d], of an actor."""
  own = _own(params)
  x = _linear(own["item"], np.asarray(features, np.float64)[history])
  x = _norm(own["norm"], x + own["position"])
  for layer in range(sum(name.startswith("layer_") for name in own)):
    x = _layer(own[f"layer_{layer}"], x, heads)
  logits, contexts = [], [x[-1]]
  for level in range(sum(name.startswith("head_") for name in own)):
    logits.append(_linear(own[f"head_{level}"], contexts[-1]))
    mean = special.softmax(logits[-1]) @ own[f"embedding_{level}"]
    contexts.append(_norm(own[f"norm_{level}"], contexts[-1] - mean))
  return np.stack(logits), np.stack(contexts)


def log_pi(params, catalogue, observation):
  """Of each item, [N + 1], one after another."""
  logits, _ = view(params["actor"], catalogue.features, observation.history)
  tokens = catalogue.index.sids
  return np.array(
    [
      sum(
        special.log_softmax(row)[z] for row, z in zip(logits, sid, strict=True)
      )
      for sid in tokens
    ]
  )


def values(params, contexts):
  """V of each context, [B, M], of a critic; [B, M, d]."""
  own, x = _own(params), np.asarray(contexts, np.float64)
  for i in range(sum(name.startswith("hidden_") for name in own)):
    x = np.maximum(_linear(own[f"hidden_{i}"], x), 0)
    x = _norm(own[f"norm_{i}"], x, (0, 1))
  return _linear(own["out"], x)[..., 0]
