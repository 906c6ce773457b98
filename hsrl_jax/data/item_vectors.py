"""Item vectors out of training interactions, given numbers, and words.

Blocks, each with a mean square length of one, stand beside each other:
- interactions: SVD of the users' positives in the train split;
- numbers: given features and attributes that are numbers, standardised;
- words: hashed words of titles, genres and other attributes, by SVD.
"""

import io
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse

from hsrl_jax import config, files
from hsrl_jax.data import source
from hsrl_jax.errors import InputError
from hsrl_jax.types import Sessions

AUTO, GIVEN, LOGS = config.ITEM_VECTORS
DIMENSIONS = 64  # Numbers that are made of the likes, and of the words.
HEAVY_TAIL = 3.0  # Ratio of lengths from which they are taken for heavy-tailed.
_ENOUGH = 100  # Rows from which a 99th percentile says anything.
_SLATES = 2**16  # Whose likes are read at once.
_HASHES = 2**18
_POWER_ITERATIONS, _OVERSAMPLES = 7, 10


class Vectors(NamedTuple):
  """Item vectors and what they are made of."""

  rows: np.ndarray  # float32 [N, D].
  blocks: dict[str, int]  # Name to its number of columns, in their order.
  notes: list[str]  # For people.


def write(data_dir: pathlib.Path, kind: str = AUTO) -> list[str]:
  """Writes item vectors beside a prepared dataset; `source.load` takes them.

  Args:
    data_dir: where a builder wrote.
    kind: "given": nothing is written, items have features; "logs": all blocks;
      "auto": the latter where items have no features.

  Returns:
    Notes for people.

  Raises:
    InputError: the kind is "given" and items have no features.
  """
  items = source.read_items(data_dir)
  width = items.features.shape[1]
  if kind == GIVEN and not width:
    raise InputError(
      f"{data_dir}: items have no features; expected some, or "
      "--item_vectors=logs"
    )
  if kind != LOGS and width:
    unused = attributes(items)
    if not unused:
      return []
    return [
      f"items: columns not in their vectors: {', '.join(unused)} (their "
      "features are); --item_vectors=logs joins them"
    ]
  count = len(items.titles) - 1
  train = source.read_split(data_dir, "train", count)
  vectors = of_dataset(items, train)
  rows = np.concatenate([np.zeros_like(vectors.rows[:1]), vectors.rows])
  content = io.BytesIO()
  np.save(content, rows)
  files.write_atomic(data_dir / source.ITEM_VECTORS, content.getvalue())
  return vectors.notes


def of_dataset(items: source.Items, train: Sessions) -> Vectors:
  """Makes item vectors of a dataset.

  Raises:
    InputError: there is nothing that they could be made of.
  """
  num_items = len(items.features) - 1
  user, item = positives(train)
  columns = {"title": items.titles[1:], "genres": items.genres[1:]}
  columns |= attributes(items)
  if items.titles == items.external_ids:
    del columns["title"]  # Made of the ids.
  numbers, texts = _by_kind(columns)
  features, notes = tamed(items.features[1:])
  given = [features, *(np.array(x, float)[:, None] for x in numbers.values())]
  named = ("feature",) * (features.shape[1] > 0) + tuple(numbers)
  blocks = {
    "interactions": of_interactions(user, item, num_items, DIMENSIONS),
    "numbers": standardised(np.concatenate(given, 1)),
    "words": of_words(texts, DIMENSIONS),
  }
  blocks = {name: x for name, x in blocks.items() if x.any()}
  if not blocks:
    raise InputError(
      "item vectors: no likes in the train split, no features and no texts of "
      "items; expected one of them"
    )
  rows = join(list(blocks.values()))
  sizes = {name: block.shape[1] for name, block in blocks.items()}
  unseen = num_items - len(np.unique(item))
  what = {
    "interactions": f"{len(item):,} training likes"
    + (f" ({unseen:,} of {num_items:,} items have none)" if unseen else ""),
    "numbers": ", ".join(named),
    "words": f"words of {', '.join(texts)}",
  }
  parts = ", ".join(f"{sizes[name]} from {what[name]}" for name in sizes)
  return Vectors(
    rows, sizes, [*notes, f"item vectors: {rows.shape[1]} numbers, {parts}"]
  )


def positives(train: Sessions) -> tuple[np.ndarray, np.ndarray]:
  """The distinct (user, item) that the train split knows as liked.

  Items of its histories count too: they were liked before its slates.

  Returns:
    int [M] each: users as in `train`, items from 1.
  """
  user, exposed, response, history = map(
    np.asarray, (train.user_id, train.exposed, train.response, train.history)
  )
  pairs = []  # User and item in one number each.
  for start in range(0, len(user), _SLATES):
    own = slice(start, start + _SLATES)
    liked = np.where(response[own] > 0, exposed[own], 0)
    item = np.concatenate([liked, history[own]], 1).astype(np.int64)
    pair = (user[own, None].astype(np.int64) << 32) + item
    pairs.append(np.unique(pair[item > 0]))
  pair = np.unique(np.concatenate(pairs))
  return pair >> 32, pair & (2**32 - 1)


def of_interactions(
  user: np.ndarray, item: np.ndarray, num_items: int, dimensions: int
) -> np.ndarray:
  """Embeds items so that those with the same users are near.

  Truncated SVD U S V^T of the users x items matrix of positives, each divided
  by the root of (positives of its user x positives of its item), else frequent
  ones would own every direction; rows of V S of length one. With all dimensions
  their products are the cosines of the matrix' columns.

  Args:
    user: int [M], any ids.
    item: int [M], from 1; pairs are distinct.
    num_items: N.
    dimensions: at most that many are made.

  Returns:
    float32 [N, D]; zeros for an item without positives.
  """
  if not len(item):
    return np.zeros((num_items, 0), np.float32)
  _, user = np.unique(user, return_inverse=True)
  by_user, by_item = np.bincount(user), np.bincount(item, minlength=1)
  weights = (by_user[user] * by_item[item]) ** -0.5
  matrix = scipy.sparse.csr_matrix(
    (weights, (user, item - 1)), (len(by_user), num_items)
  )
  return unit_rows(_svd(matrix.T.tocsr(), dimensions))


def of_words(texts: Mapping[str, Sequence[str]], dimensions: int) -> np.ndarray:
  """Embeds items by the words of their texts.

  Each word, with the name of its column, and each whole text is hashed;
  weighted by its inverse document frequency; then truncated SVD of at most so
  many dimensions. `texts` has N of each column.

  Returns:
    float32 [N, D], rows of length one, or zeros where there is no text.
  """
  if not texts:
    return np.zeros((0, 0), np.float32)
  tokens = [
    sorted(
      {
        f"{name}={part}"
        for name, text in zip(texts, row, strict=True)
        for part in [text.lower(), *re.findall(r"\w+", text.lower())]
        if part
      }
    )
    for row in zip(*texts.values(), strict=True)
  ]
  from sklearn import feature_extraction  # Here: it takes a while.

  hasher = feature_extraction.FeatureHasher(_HASHES, input_type="string")
  hashed = hasher.transform(tokens)
  if not hashed.nnz:
    return np.zeros((len(tokens), 0), np.float32)
  # Of signed hashes too: an item has a word, or has it not.
  has = np.bincount(hashed.indices, minlength=_HASHES)
  weight = np.log((1 + len(tokens)) / (1 + has)) + 1
  weighted = (hashed @ scipy.sparse.diags(weight)).tocsr()
  used = np.flatnonzero(has)
  return unit_rows(_svd(weighted[:, used], dimensions))


def join(blocks: Sequence[np.ndarray]) -> np.ndarray:
  """Blocks [N, D_i] beside each other, equally long in the mean square.

  The mean is over the rows that are not zero; float32 [N, sum of D_i].
  """
  scaled = []
  for block in blocks:
    square = (block.astype(np.float64) ** 2).sum(1)
    present = square > 0
    size = np.sqrt(square[present].mean()) if present.any() else 1.0
    scaled.append((block / size).astype(np.float32))
  return np.concatenate(scaled, 1)


def standardised(columns: np.ndarray) -> np.ndarray:
  """Columns [N, D] with mean 0 and variance 1; NaN becomes the mean, 0.

  A column that does not vary becomes zeros.
  """
  known = np.isfinite(columns)
  count = np.maximum(known.sum(0), 1)
  centred = columns - np.where(known, columns, 0).sum(0) / count
  centred = np.where(known, centred, 0)
  deviation = np.sqrt((centred**2).sum(0) / count)
  varies = deviation > 1e-12
  return np.where(varies, centred / np.where(varies, deviation, 1), 0)


def tail(rows: np.ndarray) -> float:
  """Ratio of the 99th percentile of the rows' lengths to their median.

  Rows of zeros do not count; 1 where there are fewer than 100 others.
  """
  lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
  lengths = lengths[lengths > 0]
  if len(lengths) < _ENOUGH:
    return 1.0
  return float(np.percentile(lengths, 99) / np.median(lengths))


def tamed(
  rows: np.ndarray, normalise: bool | None = None
) -> tuple[np.ndarray, list[str]]:
  """Brings rows to length one where a few are much longer than most.

  A quantizer that minimises squared errors would spend its codes on the long
  ones. `normalise` says whether to; None: where `tail` exceeds HEAVY_TAIL.

  Returns:
    [N, D], and a note where something was done, or should be.
  """
  ratio = tail(rows)
  heavy = rows.size > 0 and ratio > HEAVY_TAIL
  if not (heavy if normalise is None else normalise):
    if heavy:
      note = f"lengths of features are heavy-tailed ({ratio:.1f}) and kept so"
      return rows, [note]
    return rows, []
  why = f" (99th percentile {ratio:.1f} times the median)" if heavy else ""
  return unit_rows(rows), [f"each feature was brought to length one{why}"]


def unit_rows(rows: np.ndarray) -> np.ndarray:
  """Rows [N, D] of length one, float32; those of zeros stay."""
  length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  # What is left of rounding has no direction.
  present = length > 1e-9 * max(length.max(initial=0.0), 1e-300)
  scaled = np.where(present, rows / np.where(present, length, 1), 0)
  return scaled.astype(np.float32)


def attributes(items: source.Items) -> dict[str, list[str]]:
  """Further columns of a user's items: name to N texts."""
  if not items.attributes:
    return {}
  rows = [json.loads(x) for x in items.attributes[1:]]
  return {name: [row[name] for row in rows] for name in rows[0]}


def _by_kind(columns: Mapping[str, list[str]]):
  """Columns of numbers (NaN where empty) and of texts; none that is empty."""
  numbers, texts = {}, {}
  for name, cells in columns.items():
    if not any(cells):
      continue
    try:
      values = [float(x) if x else np.nan for x in cells]
    except ValueError:
      texts[name] = cells
    else:
      numbers[name] = values
  return numbers, texts


def _svd(matrix: scipy.sparse.csr_matrix, dimensions: int) -> np.ndarray:
  """U S of the leading singular values of [N, X], with determined signs.

  Randomised subspace iteration (Halko et al. 2011) on the shorter side; of the
  longer one a few rows at a time are dense.
  """
  size = min(dimensions, *matrix.shape)
  long = matrix.T.tocsr() if matrix.shape[0] < matrix.shape[1] else matrix
  parts = [long[x : x + _SLATES] for x in range(0, long.shape[0], _SLATES)]
  shape = long.shape[1], size + _OVERSAMPLES
  basis = np.random.RandomState(0).normal(size=shape)
  for _ in range(_POWER_ITERATIONS):
    image = sum(x.T @ (x @ basis) for x in parts)
    basis = scipy.linalg.lu(image, permute_l=True)[0]
  image = sum(x.T @ (x @ basis) for x in parts)
  squares, turn = np.linalg.eigh(basis.T @ image)
  some = squares > 1e-14 * squares[-1]  # The others are rounding.
  turn = turn[:, some] / np.sqrt(squares[some])
  right, values, left = np.linalg.svd(image @ turn, full_matrices=False)
  made = matrix @ (basis @ (turn @ left.T)) if long is matrix else right
  made = made[:, :size] * values[:size]
  made *= np.sign(made[np.abs(made).argmax(0), np.arange(made.shape[1])])
  return np.pad(made, ((0, 0), (0, size - made.shape[1])))
