"""Each format has a number; files of another number are refused.

`tests/formats/` has a small file of each format, `NAME_NUMBER`, by which a test
sees whether what is stored has changed. Where a number has gone up the first
test writes the new file and asks to commit it in place of the old one.
"""

import pathlib
import shutil
import tempfile
import zlib
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import files, sid
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data.embeddings import Embeddings
from hsrl_jax.engine import checkpoint, core, parallel
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import bounds, measures, simulate
from hsrl_jax.experiments import jobs, registry, results
from hsrl_jax.server import store as serving_store
from hsrl_jax.server.store import database, records, writer
from hsrl_jax.sid import store
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.user_simulator import EnvParams
from hsrl_jax.stages import quantize, quantizer_fit
from tests import folders, toy

FOLDER = pathlib.Path(__file__).parent / "formats"
CONFIG = toy.config(width=4, critic_hidden=(4,), buffer_size=8 * 4, seeds=(0,))


def _like():
  """Shapes and types of what the stage `policy` stores: learner and stream."""
  engine = toy.engine(CONFIG)
  tokens = np.stack(np.divmod(np.arange(toy.ITEMS), 8), 1)
  inputs = core.Inputs(
    Catalogue(
      jnp.zeros((toy.ITEMS + 1, 7)),
      sid.build_index(tokens, 8),
      jnp.zeros((2, 8, 7)),
    ),
    EnvParams(
      jnp.float32(1),
      jnp.zeros((toy.USERS, toy.GROUPS)),
      jnp.zeros((toy.USERS, toy.HISTORY), jnp.int32),
    ),
  )
  return parallel.shapes(engine.init, (0,), inputs)


def _made_up(path, like: jax.ShapeDtypeStruct) -> jax.Array:
  """Numbers that follow from a leaf's path and shape."""
  is_key = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
  if is_key:
    like = jax.eval_shape(jax.random.key_data, like)
  first = zlib.crc32(jax.tree_util.keystr(path).encode()) % 89
  values = (first + np.arange(like.size)).reshape(like.shape).astype(like.dtype)
  return jax.random.wrap_key_data(values) if is_key else jnp.asarray(values)


def _without_keys(state):
  """Keys as the words they are, which can be compared."""

  def words(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x

  return jax.tree.map(words, state)


def _checkpoint(folder: pathlib.Path) -> None:
  with checkpoint.open_directory(folder) as checkpointer:
    state = jax.tree_util.tree_map_with_path(_made_up, _like())
    checkpoint.save(checkpointer, 4, state)


def _sids(folder: pathlib.Path) -> None:
  rows = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
  ids = np.array([f"item-{i}" for i in range(12)])
  with tempfile.TemporaryDirectory() as workdir:
    quantize.run(
      QuantizerConfig(levels=2, vocab_size=4),
      pathlib.Path(workdir),
      Embeddings(rows, ids, np.char.upper(ids)),
      quantizer_fit.Source("made up"),
    )
    made = pathlib.Path(workdir) / store.FOLDER
    for name in ("codebooks.npz", "sids.npz", "index.npz", "report.json"):
      files.write_atomic(folder / "sids" / name, (made / name).read_bytes())


def _sessions() -> dict[str, list[simulate.Simulated]]:
  """Two sessions of two slates of three items, for each bound."""
  return {
    name: [
      simulate.Simulated(
        np.float32([reward, 2 * reward]),
        np.float32([2, 2]),
        np.float32([1, 3]),
        np.int32([[[1, 2, 3]] * 2] * 2),
        np.float32([[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 1]]]),
      )
    ]
    for name, reward in zip(bounds.BOUNDS, (1, 3, 5), strict=True)
  }


def _sessions_file(path: pathlib.Path) -> None:
  measures.save(path, _sessions(), np.int32([7, 9]))


def _results_file(path: pathlib.Path) -> None:
  policies = measures.report(_sessions(), items=40)
  files.write_json(
    path, {"format": measures.RESULTS_FORMAT, "policies": policies}
  )


def _experiment_file(path: pathlib.Path) -> None:
  files.write_json(path, {"format": jobs.FORMAT, "seconds": 1.5})


def _store_file(path: pathlib.Path) -> None:
  kept = serving_store.open_store(str(path))
  slate = serving_store.Slate(
    *("r1", "ann", "s", 3, 100.0, 2, '["a", "b"]', "[0.5, 0.25]"),
    *("[]", "[]", "1", "stable"),
  )
  answer = serving_store.Feedback("r1", [1, 0], 0.5, True)
  writer.apply(kept, [slate, answer])
  kept.close()


# Name to today's version and what writes a file.
FORMATS = {
  "checkpoint": (checkpoint.FORMAT, _checkpoint),
  "sids": (store.FORMAT, _sids),
  "sessions": (measures.SESSIONS_FORMAT, _sessions_file),
  "results": (measures.RESULTS_FORMAT, _results_file),
  "experiment": (jobs.FORMAT, _experiment_file),
  "store": (database.FORMAT, _store_file),
}


def _file(name: str) -> pathlib.Path:
  """The file of a format."""
  return FOLDER / f"{name}_{FORMATS[name][0]}"


class FormatsTest(parameterized.TestCase):
  @parameterized.parameters(*FORMATS)
  def test_each_has_one_file(self, name):
    found = list(FOLDER.glob(f"{name}_*"))
    if _file(name) not in found:
      FORMATS[name][1](_file(name))
    self.assertEqual(found, [_file(name)], "commit the new file alone")

  def test_checkpoints(self):
    like = _like()
    want = jax.tree_util.tree_map_with_path(_made_up, like)
    path = _file("checkpoint")
    folder = pathlib.Path(self.create_tempdir()) / path.name
    shutil.copytree(path, folder)
    with checkpoint.open_directory(folder) as checkpointer:
      state = checkpoint.restore_latest(checkpointer, like)
    chex.assert_trees_all_equal(*map(_without_keys, (state, want)))

  def test_sids(self):
    path = _file("sids")
    found = store.read(path)
    self.assertEqual(list(found.item_id), [f"item-{i}" for i in range(12)])
    self.assertEqual(found.title[3], "ITEM-3")
    self.assertLen(set(map(tuple, found.tokens)), 12)
    self.assertEqual(found.codebooks.shape, (2, 4, 4))
    self.assertTrue(found.active.all())

  def test_sessions(self):
    path = _file("sessions")
    found = measures.read(path)
    np.testing.assert_array_equal(found["user"], [7, 9])
    np.testing.assert_array_equal(found["best_constant/total_reward"], [[3, 6]])
    np.testing.assert_array_equal(found["random/liked_slates"], [[1, 2]])

  def test_results(self):
    path = _file("results")
    found = measures.read_results(path)
    reward = {
      name: policy["total_reward"]["mean"]
      for name, policy in found["policies"].items()
    }
    self.assertEqual(
      reward, {"random": 1.5, "best_constant": 4.5, "greedy_oracle": 7.5}
    )

  def test_experiments(self):
    path = _file("experiment")
    self.assertEqual(files.read_json(path, jobs.FORMAT)["seconds"], 1.5)

  def test_stores(self):
    path = _file("store")
    own = pathlib.Path(self.create_tempdir()) / "store.db"
    shutil.copy(path, own)
    kept = serving_store.open_store(str(own))
    self.addCleanup(kept.close)
    ((name, *values),) = kept.find(["r1"])
    self.assertEqual(name, "r1")
    found = records.kept_of(*values)
    self.assertEqual(found.responses, [1, 0])
    self.assertEqual((found.reward, found.terminated), (0.5, True))


class OtherNumberTest(folders.FolderTest):
  """What another version wrote is refused, and not taken for damaged."""

  def _refused(self):
    return self.assertRaisesRegex(
      InputError, r"(npz|json|/2) has format 9; expected \d: another version"
    )

  def test_checkpoint(self):
    state = {"w": np.arange(3.0)}
    with checkpoint.open_directory(self.folder) as checkpointer:
      checkpoint.save(checkpointer, 1, state)
      with mock.patch.object(checkpoint, "FORMAT", 9):
        checkpoint.save(checkpointer, 2, state)
      with self._refused():
        checkpoint.restore_latest(checkpointer, state)

  def test_sids(self):
    for name in ("sids.npz", "codebooks.npz"):
      workdir = self.folder / name
      shutil.copytree(_file("sids"), workdir)
      file = workdir / "sids" / name
      np.savez(file, **(files.read_npz(file, 1) | {"format": 9}))
      with self._refused():
        store.read(workdir)

  def test_sessions(self):
    path = self.folder / "sessions.npz"
    np.savez(path, format=9)
    with self._refused():
      measures.read(path)

  def test_results_and_experiments(self):
    path = self.folder / "results.json"
    path.write_text('{"format": 9, "experiment": "ab"}')
    (self.folder / "plot.png").touch()
    with self._refused():
      measures.read_results(path)
    with self._refused():
      results._copy(self.folder, self.folder / "docs", registry.LAUNCH.known)

  def test_a_file_without_a_number(self):
    path = self.folder / "results.json"
    path.write_text('{"agent": "hsrl"}')
    with self.assertRaisesRegex(InputError, f"{path} has no number .*expected"):
      measures.read_results(path)
    path = self.folder / "sessions.npz"
    np.savez(path, user=[1])
    with self.assertRaisesRegex(InputError, f"{path} has no number .*expected"):
      measures.read(path)


if __name__ == "__main__":
  absltest.main()
