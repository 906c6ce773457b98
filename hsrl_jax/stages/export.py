"""Mode `export`: a trained policy as a folder that needs no training code.

The exported function takes parameters, catalogue and requests. Parameters are
inputs, not constants, so that a policy that was trained on takes its place in a
running server, and so that they are stored once for all platforms. The number
of users is symbolic: each batch size is compiled where it is served.
"""

import collections
import contextlib
import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from hsrl_jax import __version__, checked, serving
from hsrl_jax.agents.base import Agent
from hsrl_jax.config import Config, ExportConfig
from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import measures, verdict
from hsrl_jax.host import workdir as workdir_lib
from hsrl_jax.ops import tree
from hsrl_jax.serving import folder as folder_lib
from hsrl_jax.serving import request as request_lib
from hsrl_jax.serving import versions
from hsrl_jax.serving.catalogue import ServedCatalogue
from hsrl_jax.stages import evaluate
from hsrl_jax.stages import policy as policy_lib
from hsrl_jax.stages.decoding import decoder
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Observation, Params, Sessions

__all__ = ["FOLDER", "KIND", "capacity", "decoder", "run", "tags_of", "write"]

FOLDER = "export"
_ROOM = 1.25  # Capacity, in items, where none is given.
_TAGS = 1_000  # Of a dataset, at most: each costs a bit of each item and node.


def _is_export(folder: pathlib.Path) -> bool:
  """Whether the manifest in a folder is one of an export, of any version."""
  try:
    manifest = json.loads((folder / folder_lib.MANIFEST).read_text())
    return set(folder_lib.ROLES) <= set(manifest["files"])
  except (OSError, ValueError, KeyError, TypeError):
    return False


KIND = workdir_lib.Kind(
  "an export",
  (folder_lib.MANIFEST, "decode.bin", "policy.npz", "catalogue-*.npz"),
  _is_export,
)


def run(parts: Parts, export: ExportConfig) -> None:
  """Exports the trained policy of a seed, for serving.

  Raises:
    InputError: the policy is missing, the settings do not go with it,
      something else is where it would be written, or another export writes
      there.
  """
  root = pathlib.Path(export.dir or parts.workdir / FOLDER)
  versions.next_folder(root)  # What stands there is left alone, lock and all.
  with workdir_lib.locked(root):  # Two would take the same number.
    _run(parts, export, root)


def _run(parts: Parts, export: ExportConfig, root: pathlib.Path) -> None:
  folder = versions.next_folder(root)
  parts.require("policy")
  config, items = parts.config, parts.dataset.items
  agent = parts.agent(export.slate_size)
  sizes = _sizes(agent, parts, export)
  doubted = _doubts(parts, agent, export)
  env = parts.env._replace(slate_size=sizes.slate)
  learned, users = parts.catalogue, parts.users("train")
  params = policy_lib.trained(parts)
  tags, genres, left_out = tags_of(items)
  served = serving.make_catalogue(
    learned.index,
    learned.codebooks,
    parts.items.features,
    items.external_ids,
    items.titles,
    capacity=sizes.capacity,
    popularity=learned.popularity if agent.reads_popularity else None,
    tags=tags,
    added=items.added,
  )
  how = policy_lib.acting(agent, served.index)
  print(f"export ...\n  acting: {how}", flush=True)
  for doubt in doubted:
    print(f"  warning: {doubt}")
  manifest = write(
    folder,
    agent,
    params[config.train.seeds.index(sizes.seed)],
    served,
    env.start(0, users).observation,
    export,
    slate_size=sizes.slate,
    seen=sizes.seen,
    ranges=_ranges(parts.dataset.splits["train"], env),
    about={
      "agent": config.agent,
      "acting": how,
      "seed": sizes.seed,
      "dataset": parts.name,
      # The last features of an item, where topics are joined to them.
      "topics": parts.items.features.shape[1] - items.features.shape[1],
      "genres": genres,
      "fingerprint": parts.fingerprints["policy"],
      "config": checked.values(config),
    },
  )
  versions.publish(folder)
  size = sum(file.bytes for file in manifest.files.values())
  print(
    f"  {served.index.num_items:,} items with room for {sizes.capacity:,}, "
    f"slates of {sizes.slate}, for {', '.join(manifest.platforms)}; "
    f"{len(served.tags.names):,} tags; {size / 1e6:.1f} MB"
  )
  if left_out:
    print(f"  {left_out:,} tags of fewer items were left out")
  print(f"export: {root}, version {folder.name}")


def _doubts(parts: Parts, agent: Agent, export: ExportConfig) -> list[str]:
  """Doubts of the run's own results about its policy, for people."""
  if not agent.learns:
    return []
  if not parts.is_done("evaluate"):
    return ["the policy was not evaluated: --mode=evaluate tells what it is"]
  found = verdict.doubts(
    measures.read_results(parts.workdir / evaluate.RESULTS)
  )
  if found and not export.any:
    raise InputError(
      f"{parts.workdir}: {'; '.join(found)}; expected a policy that is better, "
      "or --export_any"
    )
  return found


def _ranges(logs: Sessions, env: Any) -> dict[str, tuple[float, float]]:
  """The least and the largest number that training saw, see Manifest.ranges.

  The number of positive responses counts as a reward too: the server takes it
  where feedback has none.
  """
  positive = np.tri(env.slate_size + 1, env.slate_size, -1)
  rewards = [*env.reward.slate(env.reward.items(positive)), 0, env.slate_size]
  if logs.reward is not None:
    rewards = np.append(rewards, logs.reward)
  seen = {"profile": np.append(logs.profile, 0.0), "reward": rewards}
  return {
    k: (float(np.nanmin(x)), float(np.nanmax(x))) for k, x in seen.items()
  }


def tags_of(items: Items) -> tuple[list[list[str]], list[str], int]:
  """Tags of a dataset's items: genres and all others.

  Returns:
    [N + 1] lists of distinct names, the most frequent ones; which of them are
    genres; and how many tags are left out.
  """
  genres = [[x for x in text.split("|") if x] for text in items.genres]
  others = items.tags or [[]] * len(genres)
  rows = [[*dict.fromkeys(x + y)] for x, y in zip(genres, others, strict=True)]
  counts = collections.Counter(name for row in rows for name in row)
  kept = {name for name, _ in counts.most_common(_TAGS)}
  return (
    [[name for name in row if name in kept] for row in rows],
    sorted(kept & {name for row in genres for name in row}),
    len(counts) - len(kept),
  )


class _Sizes(NamedTuple):
  """The sizes C, K and T of an export, and the seed whose policy it has."""

  capacity: int
  slate: int
  seen: int
  seed: int


def _sizes(agent: Agent, parts: Parts, export: ExportConfig) -> _Sizes:
  """The sizes of an export."""
  items = len(parts.dataset.items.titles) - 1
  room = capacity(agent, parts.config, export, items)
  seeds = parts.config.train.seeds
  seed = seeds[0] if export.seed is None else export.seed
  if seed not in seeds:
    raise InputError(f"--export_seed={seed}; expected one of --seeds={seeds}")
  slate = export.slate_size or parts.env.slate_size
  if slate > room:
    raise InputError(
      f"--export_slate_size={slate}; expected at most {room}, the capacity"
    )
  seen = export.seen
  if seen is None:
    likes = parts.dataset.splits["train"].history.shape[1]
    seen = parts.env.max_steps * slate + likes * (not export.repeat)
  return _Sizes(room, slate, seen, seed)


def capacity(
  agent: Agent, config: Config, export: ExportConfig, items: int
) -> int:
  """C of an export of so many items.

  Raises:
    InputError: there is nothing to export, or not with this capacity.
  """
  if agent.draws and not agent.place_by_place:
    raise InputError(
      f"--agent={config.agent} with --mode=export; expected an agent that has "
      "a policy"
    )
  if config.quantizer.assignment == "plain":
    raise InputError(
      "--sid_assignment=plain with --mode=export; expected an assignment that "
      "gives each item a SID of its own"
    )
  if agent.fixed_items:
    if export.capacity not in (None, items):
      raise InputError(
        f"--export_capacity={export.capacity} with --agent={config.agent}, "
        f"which scores no new items; expected {items}, those of its training"
      )
    return items
  if export.capacity is None:
    return int(np.ceil(items * _ROOM))
  if export.capacity < items:
    raise InputError(
      f"--export_capacity={export.capacity}; expected at least {items}, the "
      "number of items"
    )
  return export.capacity


def write(
  folder: pathlib.Path,
  agent: Agent,
  params: Params,
  catalogue: ServedCatalogue,
  like: Observation,
  config: ExportConfig,
  *,
  slate_size: int,
  seen: int,
  ranges: dict[str, tuple[float, float]],
  about: dict[str, Any],
) -> folder_lib.Manifest:
  """Writes the folder, all or nothing.

  Args:
    folder: where nothing is, or an export, which is replaced.
    agent: made for `slate_size`.
    params: of the agent.
    catalogue: with the capacity that the export will have.
    like: an observation, for its shapes.
    config: of the export.
    slate_size: K.
    seen: T.
    ranges: see Manifest.
    about: what the manifest tells people beside.

  Returns:
    The manifest.
  """
  named = tree.by_name(params)
  users = jax.export.symbolic_shape("users")
  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
    (named, catalogue.arrays()),
  )
  sizes = catalogue.sizes() | {
    "history": len(like.history),
    "profile": len(like.profile),
    "seen": seen,
    "slate": slate_size,
    "shown": 0 if like.shown is None else len(like.shown.items),
  }
  one = request_lib.padding(sizes).inputs()
  request = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((*users, *x.shape), x.dtype), one
  )
  with _no_places():
    exported = jax.export.export(
      jax.jit(decoder(agent, params, catalogue)), platforms=config.platforms
    )(*arguments, request)
  buffer = io.BytesIO()
  np.savez(buffer, **named)
  with workdir_lib.replace_folder(folder, KIND) as new:
    manifest = folder_lib.Manifest(
      sizes=sizes,
      batch_sizes=tuple(sorted(set(config.batch_sizes))),
      platforms=tuple(config.platforms),
      codebooks=catalogue.codebooks_digest(),
      files={
        "decode": folder_lib.add_file(
          new, "decode.bin", bytes(exported.serialize())
        ),
        "policy": folder_lib.add_file(new, "policy.npz", buffer.getvalue()),
        "catalogue": folder_lib.add_catalogue(new, catalogue),
      },
      about={
        "hsrl_jax": __version__,
        "jax": jax.__version__,
        "serialization": exported.calling_convention_version,
        **about,
      },
      ranges=ranges,
      repeat=config.repeat,
    )
    folder_lib.write_manifest(new, manifest)
  return manifest


@contextlib.contextmanager
def _no_places() -> Iterator[None]:
  """Keeps source files and lines, of whatever machine, out of the artefact.

  So the artefact of a policy that was trained on is the same, byte for byte.
  """
  name = "jax_traceback_in_locations_limit"
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)
