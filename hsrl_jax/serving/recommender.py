"""Answers requests with an exported policy.

  recommender = serving.load("runs/quickstart/export")
  found = recommender.recommend([[12, 7], []], seen=[[3], []])

A function is compiled for each batch size when it is loaded; parameters and
catalogue stay on the device. Nothing is traced or compiled afterwards, whatever
the requests and catalogues.
"""

import concurrent.futures
import copy
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from hsrl_jax.errors import InputError
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving.catalogue import Catalogue

_LARGEST = float(np.finfo(np.float32).max)


class Query(NamedTuple):
  """A checked request, padded.

  Attributes:
    profile: float32 [P].
    history: int32 [H], left-padded with 0.
    seen: int32 [T], padded with 0.
  """

  profile: np.ndarray
  history: np.ndarray
  seen: np.ndarray


class Recommendations(NamedTuple):
  """K items for each of n users, best first; fewer where fewer may be shown.

  Attributes:
    items: int32 [n, K]; 0 where there is none.
    sids: int32 [n, K, L]; -1 where there is no item.
    log_probs: float32 [n, K], log pi, up to a constant of the user; -inf where
      there is no item, 0 for agents that have none.
    valid: bool [n, K], whether there is an item.
  """

  items: np.ndarray
  sids: np.ndarray
  log_probs: np.ndarray
  valid: np.ndarray


class Recommender:
  """An exported policy with a catalogue; see `load`. It does not change.

  Attributes:
    manifest: of the export.
    catalogue: that it recommends from.
    batch_sizes: that are compiled, ascending.
  """

  def __init__(
    self,
    manifest: folder_lib.Manifest,
    decoders: dict[int, Callable],
    policy: dict[str, Any],
    catalogue: Catalogue,
  ):
    """Binds what is loaded; `policy` lies on the device."""
    self.manifest = manifest
    self.batch_sizes = tuple(sorted(decoders))
    self._decoders = decoders
    self._policy = policy
    self._take(catalogue)

  def _take(self, catalogue: Catalogue) -> None:
    self.catalogue = catalogue
    self._arrays = jax.device_put(catalogue.arrays())
    self._known = np.asarray(catalogue.index.known).tobytes()
    jax.block_until_ready(self._arrays)

  @property
  def version(self) -> str:
    """A short name of the catalogue's content, if it is that of the folder."""
    return self.manifest.files["catalogue"].sha256[:12]

  def with_catalogue(self, catalogue: Catalogue) -> "Recommender":
    """The same policy with another catalogue of the same sizes.

    Raises:
      InputError: it does not go with the export.
    """
    self.manifest.check(catalogue)
    changed = copy.copy(self)
    changed._take(catalogue)
    return changed

  def refreshed(self, folder: str | pathlib.Path) -> "Recommender":
    """With what the folder holds now.

    Another catalogue and other parameters are read; another artefact is loaded
    and compiled, as long as it takes the same requests.

    Raises:
      InputError: a file is missing or damaged, or requests are of other sizes.
    """
    folder = pathlib.Path(folder)
    old, new = self.manifest, folder_lib.read_manifest(folder)
    for name in ("history", "profile", "seen"):
      if old.sizes[name] != new.sizes[name]:
        raise InputError(
          f"{folder} has {name} {new.sizes[name]} and what is served has "
          f"{old.sizes[name]}; expected the same sizes of requests: start anew"
        )
    if old.files["decode"] != new.files["decode"]:
      return load(folder, self.batch_sizes)
    changed = copy.copy(self)
    changed.manifest = new
    if old.files["policy"] != new.files["policy"]:
      changed._policy = _read_policy(folder, new)
    if old.files["catalogue"] != new.files["catalogue"]:
      changed._take(folder_lib.read_catalogue(folder, new))
    return changed

  def query(
    self,
    history: Sequence[int],
    profile: Sequence[float] = (),
    seen: Sequence[int] = (),
  ) -> Query:
    """Checks one user's request.

    Args:
      history: ids of items that the user liked, newest last; of more than H
        the newest H count. Removed items are welcome.
      profile: P finite numbers.
      seen: at most T ids that are not to be recommended; 0 is ignored.

    Raises:
      InputError: names what is wrong.
    """
    sizes = self.manifest.sizes
    if len(seen) > sizes["seen"]:
      raise InputError(
        f"seen has {len(seen)} ids; expected {sizes['seen']} at most: leave "
        "out the oldest, or export with a larger --export_seen"
      )
    if len(profile) != sizes["profile"]:
      raise InputError(
        f"profile has {len(profile)} numbers; expected {sizes['profile']}"
      )
    padded = Query(
      np.zeros(sizes["profile"], np.float32),
      np.zeros(sizes["history"], np.int32),
      np.zeros(sizes["seen"], np.int32),
    )
    self._check_ids("history", history, 1)
    self._check_ids("seen", seen, 0)
    history = history[-sizes["history"] :]
    if len(history):
      padded.history[-len(history) :] = history
    padded.seen[: len(seen)] = seen
    for place, value in enumerate(profile):
      if isinstance(value, bool) or not isinstance(
        value, int | float | np.number
      ):
        raise InputError(f"profile holds {_short(value)}; expected numbers")
      if not abs(value) <= _LARGEST:
        raise InputError(
          f"profile holds {_short(value)}; expected finite float32 numbers"
        )
      padded.profile[place] = value
    return padded

  def _check_ids(self, name: str, ids: Sequence[int], first: int) -> None:
    known, capacity = self._known, self.manifest.sizes["capacity"]
    for item in ids:
      if type(item) is not int and not isinstance(item, np.integer):
        raise InputError(f"{name} holds {_short(item)}; expected item ids")
      if not first <= item <= capacity or (item and not known[item]):
        raise InputError(
          f"{name} holds {_short(item)}, which is no known item; expected ids "
          f"from 1 to {capacity} that the catalogue has or had"
        )

  def decode(self, queries: Sequence[Query]) -> Recommendations:
    """Recommendations for any number of users, by as few calls as needed."""
    largest = self.batch_sizes[-1]
    parts = [
      self._decode(queries[start : start + largest])
      for start in range(0, max(len(queries), 1), largest)
    ]
    return Recommendations(
      *(np.concatenate(x) for x in zip(*parts, strict=True))
    )

  def _decode(self, queries: Sequence[Query]) -> Recommendations:
    """Recommendations for as many users as one call takes; may be none."""
    count, sizes = len(queries), self.manifest.sizes
    batch = next(size for size in self.batch_sizes if size >= count)
    padded = Query(
      np.zeros((batch, sizes["profile"]), np.float32),
      np.zeros((batch, sizes["history"]), np.int32),
      np.zeros((batch, sizes["seen"]), np.int32),
    )
    for row, query in enumerate(queries):
      for rows, given in zip(padded, query, strict=True):
        rows[row] = given
    found = self._decoders[batch](self._policy, self._arrays, *padded)
    return Recommendations(*(np.asarray(x)[:count] for x in found))

  def recommend(
    self,
    history: Sequence[Sequence[int]],
    profile: Sequence[Sequence[float]] | None = None,
    seen: Sequence[Sequence[int]] | None = None,
  ) -> Recommendations:
    """Recommendations for n users; see `query` for what is asked of each.

    Args:
      history: n lists of any lengths.
      profile: n lists of P numbers; may be left out where P is 0.
      seen: n lists of at most T ids; none by default.

    Raises:
      InputError: names what is wrong, and the user's row.
    """
    nothing = [()] * len(history)
    rows = (
      history,
      nothing if profile is None else profile,
      nothing if seen is None else seen,
    )
    if len({len(x) for x in rows}) > 1:
      raise InputError(
        f"history, profile and seen are of {[len(x) for x in rows]} users; "
        "expected as many each"
      )
    queries = []
    for row, given in enumerate(zip(*rows, strict=True)):
      try:
        queries.append(self.query(*given))
      except InputError as error:
        raise InputError(f"user {row}: {error}") from error
    return self.decode(queries)


def load(
  folder: str | pathlib.Path, batch_sizes: Sequence[int] | None = None
) -> Recommender:
  """Loads an export: reads, checks, compiles and calls it once.

  Args:
    folder: that --mode=export wrote.
    batch_sizes: users decoded at once, each compiled; those of the export by
      default.

  Raises:
    InputError: a file is missing, damaged or of another version; the export is
      not for this platform.
  """
  folder = pathlib.Path(folder)
  manifest = folder_lib.read_manifest(folder)
  backend = jax.default_backend()
  platform = {"gpu": "cuda"}.get(backend, backend)
  if platform not in manifest.platforms:
    raise InputError(
      f"{folder} is for {', '.join(manifest.platforms)}, and this is "
      f"{platform}; expected an export for it: add it to --export_platforms"
    )
  artefact = folder_lib.read_file(folder, manifest, "decode")
  try:
    exported = export.deserialize(bytearray(artefact))
  except Exception as error:  # Of another version of jax, say.
    what = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{folder / manifest.files['decode'].name} cannot be read by jax "
      f"{jax.__version__} ({what}); expected an artefact of jax.export: export "
      "again with this version"
    ) from error
  policy = _read_policy(folder, manifest)
  catalogue = folder_lib.read_catalogue(folder, manifest)
  given = (policy, catalogue.arrays())
  sizes = manifest.sizes

  def compiled(batch: int) -> Callable:
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given
    )
    rows = [
      jax.ShapeDtypeStruct((batch, sizes[name]), dtype)
      for name, dtype in (
        ("profile", np.float32),
        ("history", np.int32),
        ("seen", np.int32),
      )
    ]
    return jax.jit(exported.call).lower(*shapes, *rows).compile()

  wanted = sorted(set(batch_sizes or manifest.batch_sizes))
  # XLA compiles without the GIL.
  with concurrent.futures.ThreadPoolExecutor(
    len(os.sched_getaffinity(0))
  ) as pool:
    decoders = dict(zip(wanted, pool.map(compiled, wanted), strict=True))
  recommender = Recommender(manifest, decoders, policy, catalogue)
  for size in wanted:
    recommender.decode([recommender.query((), [0.0] * sizes["profile"])] * size)
  return recommender


def _read_policy(
  folder: pathlib.Path, manifest: folder_lib.Manifest
) -> dict[str, Any]:
  """The policy's parameters by name, on the device."""
  data = folder_lib.read_file(folder, manifest, "policy")
  with np.load(io.BytesIO(data)) as arrays:
    return jax.device_put(dict(arrays))


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else text[:40] + "..."
