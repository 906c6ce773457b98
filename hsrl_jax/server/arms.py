"""Versions by user: one for all, or two for shares of the users.

The folder is looked at whenever asked; what changed is loaded beside what is
served, checked, and returned.
"""

import hashlib
import pathlib
from typing import NamedTuple

from hsrl_jax.errors import InputError
from hsrl_jax.server import ids as ids_lib
from hsrl_jax.server.ids import ItemIds
from hsrl_jax.server.settings import Settings
from hsrl_jax.serving import recommender as recommender_lib
from hsrl_jax.serving import versions
from hsrl_jax.serving.folder import MANIFEST, POINTER
from hsrl_jax.serving.recommender import Recommender
from hsrl_jax.serving.versions import Version

STABLE, CANARY = "stable", "canary"


class Served(NamedTuple):
  """A version that is served."""

  recommender: Recommender  # A version with its catalogue.
  # Its number; of a folder without versions, a short hash of the policy's file.
  version: str
  ids: ItemIds | None  # Of its items; None where requests have rows.
  arm: str = STABLE  # Of the users who get it.


class Arms(NamedTuple):
  """The versions that are served."""

  stable: Served  # To all users, or to most of them.
  canary: Served | None = None  # To the others; None: there are none.

  def all(self) -> list[Served]:
    """Returns the arms that there are."""
    return [x for x in self if x is not None]


def share_of(user: str, version: str) -> float:
  """Returns where in [0, 1) a user is; the canary has those below its share.

  Args:
    user: any name.
    version: that is tried; each is tried with other users first.
  """
  digest = hashlib.blake2b(f"{version}\0{user}".encode(), digest_size=8)
  return int.from_bytes(digest.digest()) / 2**64


def wanted(settings: Settings) -> tuple[Version, Version | None]:
  """Returns the version of the stable arm, and of the canary.

  Raises:
    InputError: the file that names it is damaged.
  """
  newest, before = versions.served(settings.folder)
  if before is None or not settings.canary:
    return newest, None
  return before, newest


def load(settings: Settings) -> Arms:
  """Loads what the folder holds.

  Raises:
    InputError: it is no export, or damaged.
  """
  stable, canary = wanted(settings)
  first = recommender_lib.load(stable.folder)
  served = serve(first, stable.name, settings)
  if canary is None:
    return Arms(served)
  other = _refreshed(served, canary, settings)
  return Arms(served, other._replace(arm=CANARY))


def serve(
  recommender: Recommender,
  version: str,
  settings: Settings,
  before: Served | None = None,
) -> Served:
  """Returns a recommender with its name and the ids of its items."""
  version = version or recommender.manifest.files["policy"].sha256[:12]
  if settings.ids == "rows":
    return Served(recommender, version, None)
  known = ids_lib.NO_IDS
  if before is not None and before.ids is not None:
    known = before.ids
  ids = ids_lib.of_catalogue(recommender.catalogue, known)
  return Served(recommender, version, ids)


def _refreshed(before: Served, version: Version, settings: Settings) -> Served:
  recommender = before.recommender.refreshed(version.folder)
  if recommender.manifest == before.recommender.manifest:
    recommender = before.recommender
  return serve(recommender, version.name, settings, before)


def check_profiles(arms: Arms, width: int) -> None:
  """Raises InputError unless all arms take the profiles that a store has.

  Args:
    arms: to be served.
    width: numbers of a profile in the store, whose logs have one width.
  """
  for served in arms.all():
    own = served.recommender.manifest.sizes["profile"]
    if own != width:
      raise InputError(
        f"the store is of profiles of {width} numbers and version "
        f"{served.version} of {own}; expected the same: use another --store"
      )


def signature(settings: Settings) -> tuple:
  """Returns what tells whether the folder has changed, whatever is there."""
  try:
    folders = [x.folder for x in wanted(settings) if x is not None]
  except InputError:  # `refreshed` says what is wrong with the file.
    folders = []
  paths = [settings.folder / POINTER, *(x / MANIFEST for x in folders)]
  return tuple((path, *_stamp(path)) for path in paths)


def _stamp(path: pathlib.Path) -> tuple:
  """Inode, time and size of a file; the error's number without one."""
  try:
    status = path.stat()
  except OSError as error:
    return (error.errno,)
  return status.st_ino, status.st_mtime_ns, status.st_size


def refreshed(arms: Arms, settings: Settings) -> Arms:
  """Returns arms of what the folder holds now.

  Raises:
    InputError: something is missing or damaged.
  """
  by_version = {served.version: served for served in arms.all()}
  new = []
  for arm, version in zip((STABLE, CANARY), wanted(settings), strict=True):
    if version is not None:
      before = by_version.get(version.name, arms.stable)
      new.append(_refreshed(before, version, settings)._replace(arm=arm))
  return Arms(*new)
