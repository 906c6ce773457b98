"""Made-up ratings of few users, who chose what they rated for training.

A user likes an item for its attributes, of which the features tell, and for its
quality, of which they do not. Users rate 24 items that they rather like, which
are the training and validation split, and 16 at random, the test split.
"""

import numpy as np
from scipy import special
from sklearn import metrics

from hsrl_jax.data import source
from hsrl_jax.types import Sessions

USERS, ITEMS, ATTRIBUTES, WIDTH, HISTORY = 290, 300, 43, 4, 24


def world(seed: int = 0) -> source.Dataset:
  """Such a dataset."""
  rng = np.random.default_rng(seed)
  attributes = (rng.random((ITEMS, ATTRIBUTES)) < 0.1).astype(np.float32)
  taste = 0.45 * rng.normal(size=(USERS, ATTRIBUTES)) @ attributes.T
  ease = rng.normal(size=(USERS, 1)) / 2
  logits = taste + rng.normal(size=ITEMS) + ease - 1.3
  liked = rng.random(logits.shape) < special.expit(logits)
  wanted = np.argsort(0.7 * logits + rng.gumbel(size=logits.shape), axis=1)
  chosen = rng.permuted(wanted[:, -24:], axis=1)
  shown = rng.permuted(np.tile(np.arange(ITEMS), (USERS, 1)), axis=1)[:, :16]
  rows = np.arange(USERS)[:, None]
  splits = {}
  for name, items, known in (
    ("train", chosen[:, :20], 0),
    ("val", chosen[:, 20:], 20),
    ("test", shown, 24),
  ):
    slates = items.reshape(USERS, -1, WIDTH)
    histories = np.zeros((*slates.shape[:2], HISTORY), np.int32)
    for user in range(USERS):
      for i in range(slates.shape[1]):
        before = chosen[user, : known or WIDTH * i]
        past = before[liked[user, before]] + 1
        histories[user, i, HISTORY - len(past) :] = past
    splits[name] = Sessions(
      user_id=np.repeat(np.arange(USERS), slates.shape[1]),
      profile=np.zeros((slates[..., 0].size, 0), np.float32),
      history=histories.reshape(-1, HISTORY),
      exposed=slates.reshape(-1, WIDTH).astype(np.int32) + 1,
      response=liked[rows, items].reshape(-1, WIDTH).astype(np.float32),
    )
  features = np.concatenate([np.zeros((1, ATTRIBUTES), "f"), attributes])
  names = [""] * (ITEMS + 1)
  return source.Dataset(source.Items(features, names, names, names), splits)


def auc_within_users(sessions: Sessions, score: np.ndarray) -> float:
  """Mean AUC of scores, [S, K], over users with both responses."""
  liked = sessions.response > 0
  of_users = [
    metrics.roc_auc_score(liked[rows].ravel(), score[rows].ravel())
    for rows in (sessions.user_id == user for user in range(USERS))
    if 0 < liked[rows].mean() < 1
  ]
  return float(np.mean(of_users))
