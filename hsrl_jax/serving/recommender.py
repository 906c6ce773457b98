"""Answers requests with an exported policy.

  recommender = serving.load("runs/quickstart/export")
  recommendations = recommender.recommend([[12, 7], []], seen=[[3], []])

`load` compiles a function for each batch size; parameters and catalogue stay on
the device. Nothing is traced or compiled afterwards, whatever the requests and
catalogues.
"""

import concurrent.futures
import contextlib
import copy
import ctypes
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
from hsrl_jax.serving import request as request_lib
from hsrl_jax.serving.catalogue import ServedCatalogue
from hsrl_jax.serving.request import Query


class Recommendations(NamedTuple):
  """K items for each of n users, best first; fewer where fewer may be shown."""

  items: np.ndarray  # int32 [n, K]; 0 where there is none.
  sids: np.ndarray  # int32 [n, K, L]; -1 where there is no item.
  # float32 [n, K], log pi, up to a constant of the user, or what agents without
  # one chose each item by; -inf where there is no item.
  log_probs: np.ndarray
  valid: np.ndarray  # bool [n, K], whether there is an item.
  # float32 [n, K], the probability with which each item was drawn for its
  # place, given the places before: their product is that of the slate. 1 at
  # temperature 0; 0 where there is no item.
  propensity: np.ndarray


class Signature(NamedTuple):
  """The arrays that an artefact takes; those of the files must be like them."""

  # Shape and dtype of each parameter, by name.
  policy: dict[str, jax.ShapeDtypeStruct]
  # Shape and dtype of each array of the catalogue, by name.
  catalogue: dict[str, jax.ShapeDtypeStruct]
  # Those of a request and of its answer, named as in a manifest.
  sizes: dict[str, int]

  def check(self, folder: pathlib.Path, manifest: folder_lib.Manifest) -> None:
    """Raises InputError if a manifest has other sizes than the artefact."""
    for name, size in self.sizes.items():
      if manifest.sizes[name] != size:
        raise InputError(
          f"{folder / folder_lib.MANIFEST} has {name} {manifest.sizes[name]}; "
          f"expected {size}, as its artefact has: run --mode=export again"
        )


def _check_arrays(
  where: Any, arrays: dict[str, Any], wanted: dict[str, jax.ShapeDtypeStruct]
) -> None:
  """Checks the names, shapes and dtypes of arrays, and that all are finite."""
  for name in sorted(arrays.keys() | wanted.keys()):
    has = _shape(arrays[name]) if name in arrays else "nothing"
    expected = _shape(wanted[name]) if name in wanted else "nothing"
    if has != expected:
      raise InputError(
        f"{where} has {has} for the array {name!r}; expected {expected}, which "
        "the exported function takes: run --mode=export again"
      )
    array = arrays[name]
    if array.dtype.kind == "f" and not np.isfinite(np.asarray(array)).all():
      raise InputError(
        f"{where} has numbers in the array {name!r} that are not finite; "
        "expected finite ones: run --mode=export again"
      )


def _shape(array: Any) -> str:
  return f"{array.dtype} {list(array.shape)}"


class Recommender:
  """An exported policy with a catalogue; see `load`. Immutable.

  Attributes:
    manifest: of the export.
    catalogue: the items that are recommended.
    batch_sizes: those that are compiled, ascending.
  """

  def __init__(
    self,
    manifest: folder_lib.Manifest,
    decoders: dict[int, Callable],
    policy: dict[str, Any],
    catalogue: ServedCatalogue,
    inputs: Signature,
  ):
    """Binds what is loaded; `policy` lies on the device."""
    self._inputs = inputs
    self.manifest = manifest
    self.batch_sizes = tuple(sorted(decoders))
    self._decoders = decoders
    self._policy = policy
    self._take(catalogue)

  def _take(self, catalogue: ServedCatalogue) -> None:
    self.catalogue = catalogue
    self._arrays = jax.device_put(catalogue.arrays())
    self._known = np.asarray(catalogue.index.known).tobytes()
    jax.block_until_ready(self._arrays)

  @property
  def version(self) -> str:
    """A short hash of the catalogue's file in the folder."""
    return self.manifest.files["catalogue"].sha256[:12]

  def with_catalogue(self, catalogue: ServedCatalogue) -> "Recommender":
    """Returns the same policy with another catalogue of the same sizes.

    Raises:
      InputError: the catalogue does not go with the export.
    """
    self.manifest.check(catalogue)
    _check_arrays("the catalogue", catalogue.arrays(), self._inputs.catalogue)
    changed = copy.copy(self)
    changed._take(catalogue)
    return changed

  def refreshed(self, folder: str | pathlib.Path) -> "Recommender":
    """Returns a recommender of what the folder holds now.

    Another catalogue and other parameters are read; another artefact is loaded
    and compiled, and its requests may be of other sizes. All that changed is
    checked, and asked for one slate.

    Raises:
      InputError: a file is missing or damaged, or `probe` fails.
    """
    folder = folder_lib.current(pathlib.Path(folder))
    old, new = self.manifest, folder_lib.read_manifest(folder)
    if old.files["decode"] != new.files["decode"]:
      return load(folder, self.batch_sizes)
    self._inputs.check(folder, new)
    changed = copy.copy(self)
    changed.manifest = new
    if old.files["policy"] != new.files["policy"]:
      changed._policy = _read_policy(folder, new, self._inputs)
    if old.files["catalogue"] != new.files["catalogue"]:
      changed._take(_read_catalogue(folder, new, self._inputs))
    changed.probe()
    _trim()
    return changed

  def probe(self) -> None:
    """Asks for the slates of `probes` in each batch size.

    Raises:
      InputError: see `check`.
    """
    probes = self.probes()
    for size in self.batch_sizes:
      for start in range(0, len(probes), size):
        self.check(self._decode((probes * size)[start : start + size]))

  def probes(self) -> list[Query]:
    """Returns requests of all kinds that clients send.

    A newcomer; users with a short and a long history, whose profiles are at the
    ends of what training saw; one in a session; one for whom slates are drawn.
    """
    sizes, active = self.manifest.sizes, np.asarray(self.catalogue.index.active)
    items = np.flatnonzero(active)
    if len(items):  # As many as a history takes, from all of the catalogue.
      places = np.linspace(0, len(items) - 1, sizes["history"])
      items = items[places.astype(int)]
    items, width = items.tolist(), sizes["profile"]
    low, high = self.manifest.ranges["profile"]
    slate = items[: sizes["slate"]]
    earlier = [(slate, [place % 2 for place in range(len(slate))])] * 2
    queries = [
      self.query((), [0.0] * width),
      self.query(items[:1], [low] * width),
      self.query(items, [high] * width),
      self.query(items, [0.0] * width, earlier=earlier),
      self.query(items, [0.0] * width, temperature=1.0),
    ]
    return [x._replace(seen=np.zeros_like(x.seen)) for x in queries]

  def check(self, slates: Recommendations) -> None:
    """Checks slates that were asked for without tags and seen items.

    Raises:
      InputError: one holds inactive items or NaN, or is empty although there
        are active items.
    """
    active = np.asarray(self.catalogue.index.active)
    for items, _, log_probs, valid, propensity in zip(*slates, strict=True):
      if (
        not active[items[valid]].all()
        or (active.any() and not valid.any())
        or np.isnan([log_probs, propensity]).any()
      ):
        raise InputError(
          f"the policy answers {items.tolist()} with log probabilities "
          f"{log_probs.tolist()}; expected active items, and no NaN: run "
          "--mode=export again"
        )

  def query(
    self,
    history: Sequence[int],
    profile: Sequence[float] = (),
    seen: Sequence[int] = (),
    *,
    earlier: Sequence[tuple[Sequence[int], Sequence[float]]] = (),
    k: int | None = None,
    temperature: float = 0.0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    since: int | None = None,
  ) -> Query:
    """Checks and pads one user's request.

    Args:
      history: ids of items that the user liked, newest last, those of this
        session too; of more than H the newest H count. Removed items are
        allowed.
      profile: P finite numbers.
      seen: at most T ids that are not to be recommended; 0 is ignored. Where
        the export does not `repeat`, items of `earlier` and `history` follow,
        the newest first, as many as T has room for.
      earlier: the slates of this session, oldest first, each a pair of item ids
        and their responses, from 0 to 1. An export whose policy sees likes
        alone checks and ignores them.
      k: the first so many items of the slate; None: all K.
      temperature: 0 for the best slate; else that of a draw.
      include: names of tags, of which an item needs one; none: all items.
      exclude: names of tags, of which an item may have none.
      since: the least `added` of an item, see Tags.

    Raises:
      InputError: names what is wrong.
    """
    return request_lib.make(
      self.manifest,
      self._known,
      self.catalogue.tags,
      history,
      profile,
      seen,
      earlier=earlier,
      k=k,
      temperature=temperature,
      include=include,
      exclude=exclude,
      since=since,
    )

  def decode(self, queries: Sequence[Query]) -> Recommendations:
    """Recommends to any number of users, in as few calls as possible."""
    largest = self.batch_sizes[-1]
    parts = [
      self._decode(queries[start : start + largest])
      for start in range(0, max(len(queries), 1), largest)
    ]
    return Recommendations(
      *(np.concatenate(x) for x in zip(*parts, strict=True))
    )

  def _decode(self, queries: Sequence[Query]) -> Recommendations:
    """Recommends to at most as many users as the largest batch; may be 0."""
    count, sizes = len(queries), self.manifest.sizes
    batch = next(size for size in self.batch_sizes if size >= count)
    padded = request_lib.padding(sizes, batch)
    of_each = [jax.tree.leaves(query) for query in queries]
    for number, rows in enumerate(jax.tree.leaves(padded)):
      for row, leaves in enumerate(of_each):
        rows[row] = leaves[number]
    decoded = self._decoders[batch](self._policy, self._arrays, padded.inputs())
    slates = [np.asarray(x)[:count] for x in decoded]
    return _first(Recommendations(*slates), padded.k[:count])

  def recommend(
    self,
    history: Sequence[Sequence[int]],
    profile: Sequence[Sequence[float]] | None = None,
    seen: Sequence[Sequence[int]] | None = None,
  ) -> Recommendations:
    """Recommends to n users; see `query` for the limits of a row.

    Args:
      history: n lists of any lengths.
      profile: n lists of P numbers; may be left out where P is 0.
      seen: n lists of at most T ids; none by default.

    Raises:
      InputError: names what is wrong, and the row of the user.
    """
    nothing = [()] * len(history)
    rows = [nothing if x is None else x for x in (history, profile, seen)]
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
  """Loads an export: reads, checks and compiles it, and asks for one slate.

  Args:
    folder: that --mode=export wrote.
    batch_sizes: users decoded at once, each compiled; those of the export by
      default.

  Raises:
    InputError: a file is missing, damaged or of another version; the export is
      not for this platform; `probe` fails.
  """
  # One version, whatever is published meanwhile.
  folder = folder_lib.current(pathlib.Path(folder))
  manifest = folder_lib.read_manifest(folder)
  backend = jax.default_backend()
  platform = {"gpu": "cuda"}.get(backend, backend)
  if platform not in manifest.platforms:
    raise InputError(
      f"{folder} is for {', '.join(manifest.platforms)}, and this is "
      f"{platform}; expected an export for it: add it to --export_platforms"
    )
  exported, inputs = _read_decode(folder, manifest)
  policy = _read_policy(folder, manifest, inputs)
  catalogue = _read_catalogue(folder, manifest, inputs)
  wanted = sorted(set(batch_sizes or manifest.batch_sizes))
  decoders = _compile(exported, inputs, wanted)
  recommender = Recommender(manifest, decoders, policy, catalogue, inputs)
  recommender.probe()
  _trim()
  return recommender


def _read_decode(
  folder: pathlib.Path, manifest: folder_lib.Manifest
) -> tuple[export.Exported, Signature]:
  """Reads the artefact, and the description of its inputs."""
  artefact = folder_lib.read_file(folder, manifest, "decode")
  try:
    exported = export.deserialize(bytearray(artefact))
    (policy, catalogue, request), _ = jax.tree.unflatten(
      exported.in_tree, exported.in_avals
    )
    rows = {name: request[name] for name in ("profile", "history", "seen")}
    rows["shown"] = request["earlier"]["items"]
    rows["tags"] = request["allow"]["include"]
    sizes = {name: row.shape[1] for name, row in rows.items()}
    sizes["slate"] = exported.out_avals[0].shape[1]
    inputs = Signature(policy, catalogue, sizes)
  except Exception as error:  # Of another version of jax, say.
    what = (str(error) or type(error).__name__).splitlines()[0]
    raise InputError(
      f"{folder / manifest.files['decode'].name} cannot be read by jax "
      f"{jax.__version__} ({what}); expected an artefact of jax.export: export "
      "again with this version"
    ) from error
  inputs.check(folder, manifest)
  return exported, inputs


def _compile(
  exported: export.Exported, inputs: Signature, batch_sizes: Sequence[int]
) -> dict[int, Callable]:
  """Compiles the exported function for each batch size."""
  arrays = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (inputs.policy, inputs.catalogue),
  )

  def compiled(batch: int) -> Callable:
    rows = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
      request_lib.padding(inputs.sizes, batch).inputs(),
    )
    return jax.jit(exported.call).lower(*arrays, rows).compile()

  # XLA compiles without the GIL.
  with concurrent.futures.ThreadPoolExecutor(
    len(os.sched_getaffinity(0))
  ) as pool:
    return dict(zip(batch_sizes, pool.map(compiled, batch_sizes), strict=True))


def _trim() -> None:
  """Gives freed memory back to the system, which glibc keeps otherwise.

  What XLA's compiler frees is more than all else that a server holds.
  """
  with contextlib.suppress(AttributeError):  # Another C library.
    ctypes.CDLL(None).malloc_trim(0)


def _first(slates: Recommendations, k: np.ndarray) -> Recommendations:
  """The first k places, int32 [n], of slates; the others show nothing."""
  count = slates.items.shape[1]
  cut = np.arange(count) >= k[:, None]
  if not cut.any():
    return slates
  return Recommendations(
    items=np.where(cut, 0, slates.items),
    sids=np.where(cut[..., None], -1, slates.sids),
    log_probs=np.where(cut, -np.inf, slates.log_probs),
    valid=slates.valid & ~cut,
    propensity=np.where(cut, 0, slates.propensity),
  )


def _read_policy(
  folder: pathlib.Path, manifest: folder_lib.Manifest, inputs: Signature
) -> dict[str, Any]:
  """Reads the policy's parameters by name, and puts them on the device."""
  data = folder_lib.read_file(folder, manifest, "policy")
  path = folder / manifest.files["policy"].name
  try:
    with np.load(io.BytesIO(data)) as arrays:
      policy = dict(arrays)
  except Exception as error:  # Any error of the readers is a damaged file.
    raise folder_lib.unreadable(path, error) from error
  _check_arrays(path, policy, inputs.policy)
  return jax.device_put(policy)


def _read_catalogue(
  folder: pathlib.Path, manifest: folder_lib.Manifest, inputs: Signature
) -> ServedCatalogue:
  """Reads the catalogue, checked against the inputs of the artefact."""
  catalogue = folder_lib.read_catalogue(folder, manifest)
  path = folder / manifest.files["catalogue"].name
  _check_arrays(path, catalogue.arrays(), inputs.catalogue)
  return catalogue
