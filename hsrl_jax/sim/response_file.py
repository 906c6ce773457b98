"""A user response model (URM) trained elsewhere, as one .npz file.

Its arrays and their shapes are in docs/bring_your_own.md, "A click model"; the
network is networks/user_response.py. Head h has the columns h F / heads to
(h + 1) F / heads of query, key and value; products are divided by
sqrt(F / heads). The answer is a logit. The file may bring users and items of
its own, OWN, all three or none.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from hsrl_jax import files
from hsrl_jax.data import source
from hsrl_jax.errors import InputError, reading
from hsrl_jax.types import Sessions

OWN = ("item_features", "profiles", "histories")
_PROJECTIONS = ("query", "key", "value", "out")
_EXPECTED = (
  "the .npz file of a response model: plain arrays as numpy.savez writes them, "
  "nothing pickled"
)
_LEAST_USERS = 10  # Of which a tenth each is for validation and test.


class ResponseFile(NamedTuple):
  """The content of such a file, checked."""

  name: str  # Of the file, for people.
  digest: str  # SHA-256 of its content.
  # Name to float32 array, as in the module's docstring.
  weights: dict[str, np.ndarray]
  # Its users and items; None where it has none. No slates: `exposed` and
  # `response` are [S, 0].
  dataset: source.Dataset | None

  @property
  def profile_width(self) -> int:
    """P."""
    return self.weights["user_hidden.kernel"].shape[0]

  @property
  def feature_width(self) -> int:
    """D."""
    return self.weights["item.kernel"].shape[0]

  @property
  def hidden(self) -> int:
    """Width of the profile's hidden layer."""
    return self.weights["user_hidden.bias"].shape[0]

  @property
  def features(self) -> int:
    """F."""
    return self.weights["item.bias"].shape[0]

  @property
  def final_dense(self) -> bool:
    """Whether the network has the final Dense."""
    return "mix.kernel" in self.weights


def read(path: pathlib.Path) -> ResponseFile:
  """Reads and checks a file.

  Args:
    path: of the .npz file, which has `mix.*` where its network has the final
      Dense.

  Raises:
    InputError: the file is missing or no plain .npz, lacks an array or has an
      unknown one, or an array has the wrong shape or odd values.
  """
  with reading(path, _EXPECTED):
    arrays: dict[str, Any] = files.npz_headers(path)
  own = [name for name in OWN if name in arrays]
  final_dense = any(name.startswith("mix.") for name in arrays)
  names = [*_shapes(0, 0, 0, 0, final_dense), *(OWN if own else ())]
  for wrong, what, due in (
    (set(names) - arrays.keys(), "lacks", "it"),
    (arrays.keys() - set(names), "has the unknown array", "none such"),
  ):
    if wrong:
      name = min(wrong)
      if name in OWN:
        due += f" beside {own[0]}: all of {', '.join(OWN)} or none"
      raise InputError(f"{path} {what} {name}; expected {due}")
  for name, header in arrays.items():
    _check_kind(path, name, header)

  def axis(name: str, number: int) -> int:
    shape = arrays[name].shape
    return shape[number] if number < len(shape) else 0

  expected = _shapes(
    axis("user_hidden.kernel", 0),
    axis("item.kernel", 0),
    axis("user_hidden.bias", 0),
    axis("item.bias", 0),
    final_dense,
  )
  if own:
    expected |= {
      "item_features": (axis("item_features", 0), axis("item.kernel", 0)),
      "profiles": (axis("profiles", 0), axis("user_hidden.kernel", 0)),
      "histories": (axis("profiles", 0), axis("histories", 1)),
    }
  for name, shape in expected.items():
    if arrays[name].shape != shape:
      raise InputError(
        f"{path}: {name} has shape {arrays[name].shape}; expected {shape}, by "
        "the shapes of the other arrays"
      )
  arrays = {name: _numbers(path, name, x) for name, x in _arrays(path).items()}
  dataset = _dataset(path, *(arrays.pop(name) for name in OWN)) if own else None
  return ResponseFile(path.name, files.digest(path), arrays, dataset)


def _shapes(
  profile: int, item: int, hidden: int, width: int, final_dense: bool
) -> dict[str, tuple[int, ...]]:
  """Name to shape of every weight."""
  kernels = {
    "user_hidden": (profile, hidden),
    "user_out": (hidden, width),
    "item": (item, width),
  }
  for block in ("self_attention", "cross_attention"):
    kernels |= {f"{block}.{name}": (width, width) for name in _PROJECTIONS}
  if final_dense:
    kernels["mix"] = (2 * width, width)
  shapes = {}
  for layer, shape in kernels.items():
    shapes[f"{layer}.kernel"] = shape
    shapes[f"{layer}.bias"] = shape[1:]
  return shapes


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  # Opened here, since numpy leaves a damaged file open.
  with (
    reading(path, _EXPECTED),
    path.open("rb") as file,
    np.load(file, allow_pickle=False) as saved,
  ):
    return {name: saved[name] for name in saved.files}


def _kind(name: str) -> tuple[str, str, type]:
  """Kinds of dtype that an array may have, in words, and what it becomes."""
  if name == "histories":
    return "iu", "integers", np.int32
  return "fiu", "finite numbers", np.float32


def _check_kind(path: pathlib.Path, name: str, header: files.Header) -> None:
  kinds, what, _ = _kind(name)
  if header.dtype.kind not in kinds:
    raise InputError(f"{path}: {name} is of {header.dtype}; expected {what}")


def _numbers(path: pathlib.Path, name: str, array: np.ndarray) -> np.ndarray:
  """The array as float32, or int32 for histories."""
  _, what, dtype = _kind(name)
  with np.errstate(over="ignore"):
    array = array.astype(dtype)
  bad = np.argwhere(~np.isfinite(array))
  if len(bad):
    raise InputError(
      f"{path}: {name}{bad[0].tolist()} is not finite in float32 ({len(bad)} "
      f"such values); expected {what}"
    )
  return array


def _dataset(
  path: pathlib.Path,
  features: np.ndarray,
  profiles: np.ndarray,
  histories: np.ndarray,
) -> source.Dataset:
  """The file's users, 80 / 10 / 10 by row, and its items."""
  count = len(features) - 1
  if count < 1 or not features.shape[1] or features[0].any():
    raise InputError(
      f"{path}: item_features has no items, no columns or an item in row 0; "
      "expected zeros there, then a row for each item from 1 on"
    )
  users = len(profiles)
  if users < _LEAST_USERS:
    raise InputError(
      f"{path} has {users} users; expected at least {_LEAST_USERS}, to split "
      "them"
    )
  rows = {
    "user_id": np.arange(1, users + 1, dtype=np.int32),
    "profile": profiles,
    "history": histories,
    "exposed": np.zeros((users, 0), np.int32),
    "response": np.zeros((users, 0), np.float32),
  }
  source.check_sessions(rows, count, path)
  tenth = users // 10
  cuts = dict(
    zip(
      source.SPLITS,
      np.split(np.arange(users), [users - 2 * tenth, users - tenth]),
      strict=True,
    )
  )
  names = [str(item) for item in range(1, count + 1)]
  return source.Dataset(
    source.Items(
      features,
      external_ids=["", *names],
      titles=["", *(f"item {name}" for name in names)],
      genres=[""] * (count + 1),
    ),
    {
      split: Sessions(**{name: x[cut] for name, x in rows.items()})
      for split, cut in cuts.items()
    },
  )
