"""Stage `quantize`: item features to codebooks, unique SIDs and a report."""

import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax import sid
from hsrl_jax.agents.base import Catalogue
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data.source import Items
from hsrl_jax.errors import InputError
from hsrl_jax.training import progress
from hsrl_jax.training import workdir as workdir_lib

FOLDER = "sids"


def run(config: QuantizerConfig, workdir: pathlib.Path, items: Items) -> dict:
  """Writes `sids/`: codebooks.npz, sids.npz and report.json.

  Args:
    config: of the quantizer.
    workdir: of the run.
    items: the catalogue.

  Returns:
    The report.

  Raises:
    InputError: V^L is too small for the catalogue.
  """
  features = items.features[1:]
  try:
    sid.check_capacity(len(features), config.levels, config.vocab_size)
  except ValueError as error:
    raise InputError(f"--sid_vocab_size, --sid_levels: {error}") from error
  with progress.bar(3, "quantize", "step") as bar:
    codebooks = np.asarray(
      sid.fit(
        jax.random.key(config.seed),
        jnp.asarray(features),
        levels=config.levels,
        vocab_size=config.vocab_size,
        iterations=config.iterations,
        restarts=config.restarts,
      )
    )
    bar.update()
    plain = np.asarray(sid.encode(codebooks, features))
    tokens = sid.encode_unique(codebooks, features)
    bar.update()
    report = describe(codebooks, features, plain, tokens)
    bar.update()
  folder = workdir / FOLDER
  _save(folder / "codebooks.npz", codebooks=codebooks)
  _save(
    folder / "sids.npz",
    item_id=np.arange(1, len(tokens) + 1, dtype=np.int32),
    tokens=tokens,
  )
  workdir_lib.write_json(folder / "report.json", report)
  return report


def load(workdir: pathlib.Path, items: Items, vocab_size: int) -> Catalogue:
  """The catalogue with the SIDs that `run` wrote.

  Raises:
    InputError: the file is missing or damaged.
  """
  path = workdir / FOLDER / "sids.npz"
  try:
    tokens = _load(path, "tokens")
    index = sid.build_index(tokens, vocab_size)
    codebooks = _load(workdir / FOLDER / "codebooks.npz", "codebooks")
  except Exception as error:  # noqa: BLE001 (any reader error is bad input)
    raise InputError(
      f"{path} cannot be read ({error}); delete {workdir}/.done/quantize and "
      "run --mode=quantize again"
    ) from error
  if len(tokens) + 1 != len(items.features):
    raise InputError(
      f"{path} has {len(tokens)} SIDs; expected one for each of the "
      f"{len(items.features) - 1} items: run --mode=quantize in a new --workdir"
    )
  return Catalogue(jnp.asarray(items.features), index, jnp.asarray(codebooks))


def describe(
  codebooks: np.ndarray,
  features: np.ndarray,
  plain: np.ndarray,
  tokens: np.ndarray,
) -> dict:
  """The report: how well the codes are used and what uniqueness costs.

  Args:
    codebooks: float32 [L, V, D].
    features: float32 [N, D].
    plain: int32 [N, L], tokens of residual k-means alone.
    tokens: int32 [N, L], the unique SIDs.

  Returns:
    Sizes; `relative_error` of the plain tokens after each level, and of the
    unique ones; how many items shared their plain tokens with another; per
    level the codes used and their perplexity.
  """
  levels, vocab_size, _ = codebooks.shape

  def error(tokens, upto):
    reconstruction = sid.reconstruct(codebooks[:upto], tokens[:, :upto])
    return float(sid.relative_error(features, reconstruction))

  _, inverse, sizes = np.unique(
    plain, axis=0, return_inverse=True, return_counts=True
  )
  usage = [np.bincount(t, minlength=vocab_size) for t in tokens.T]
  shares = [u[u > 0] / u.sum() for u in usage]
  return {
    "items": len(tokens),
    "levels": levels,
    "vocab_size": vocab_size,
    "relative_error": [error(plain, l + 1) for l in range(levels)],
    "relative_error_unique": error(tokens, levels),
    "collided_items": int((sizes[inverse.ravel()] > 1).sum()),
    "codes_used": [int((u > 0).sum()) for u in usage],
    "perplexity": [float(np.exp(-(p * np.log(p)).sum())) for p in shares],
  }


def _load(path: pathlib.Path, name: str) -> np.ndarray:
  # Opened here, since numpy leaves a damaged file open.
  with path.open("rb") as file, np.load(file) as arrays:
    return arrays[name]


def _save(path: pathlib.Path, **arrays: np.ndarray) -> None:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  workdir_lib.write_atomic(path, buffer.getvalue())
