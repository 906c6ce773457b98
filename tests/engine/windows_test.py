"""Windows of logged slates: who reads what, and a run that is stopped."""

import contextlib
import pathlib
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.data import blocks
from hsrl_jax.engine import checkpoint, core, parallel, windows
from hsrl_jax.types import Sessions
from tests import toy

_COUNT = 40  # Rows of a window.


def _config(**values):
  return toy.config(
    "sasrec",
    recipe="logs",
    iterations=24,
    iterations_per_call=2,
    curve_every=24,
    save_every=6,
    seeds=(0,),
    **values,
  )


def _fed(config, process=0, of_all=1, done=None, devices=1):
  """The rows that each call of the devices learns from.

  Where there are more than one, each has a seed of its own.
  """
  layout = parallel.Layout(devices, devices, devices > 1)
  with (
    mock.patch.object(jax, "process_count", lambda: of_all),
    mock.patch.object(jax, "process_index", lambda: process),
    windows.feed(
      lambda start, count: np.arange(start, start + count),
      _COUNT,
      config.train,
      layout,
      contextlib.nullcontext,
    ) as feed,
  ):
    inputs = parallel.everywhere(core.Inputs(None, None), layout)
    for step in done or range(0, 24, 2):
      inputs = feed(step, inputs)
      each = inputs if layout.by_seed else (inputs,)
      rows = [np.asarray(x.logs) for x in each]
      np.testing.assert_array_equal(rows, [rows[0]] * devices)
      yield rows[0]


class FeedTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 3)
  def test_windows_of_all_processes_are_the_whole_stream(self, of_all):
    config = _config()
    stay = windows.iterations(config.train, _COUNT) // 2
    if of_all == 1:
      # 40 rows are two and a half iterations of 16: whole calls of two.
      self.assertEqual(stay, 1)
    each = [list(_fed(config, p, of_all)) for p in range(of_all)]
    with mock.patch.object(jax, "process_count", lambda: of_all):
      stay = windows.iterations(config.train, _COUNT) // 2
    rows = [x for call in range(0, 12, stay) for own in each for x in own[call]]
    self.assertEqual(rows, list(range(len(rows))))
    for own in each:
      for call, window in enumerate(own):
        np.testing.assert_array_equal(window, own[call - call % stay])

  def test_devices_with_seeds_of_their_own_share_the_windows(self):
    alone, shared = (list(_fed(_config(), devices=x)) for x in (1, 2))
    np.testing.assert_array_equal(shared, alone)

  def test_a_step_tells_the_window(self):
    config = _config()
    whole = list(_fed(config))
    rest = list(_fed(config, done=range(14, 24, 2)))
    np.testing.assert_array_equal(rest, whole[7:])


def _logs(folder, users=60, steps=6):
  """Sessions of the toy's users on disk."""
  rng = np.random.default_rng(0)
  user = np.repeat(np.arange(users), steps)
  pool = toy.inputs().env_params
  count = len(user)
  shown = np.argsort(rng.random((count, toy.ITEMS)), 1)[:, : toy.SLATE] + 1
  logs = Sessions(
    user_id=user,
    profile=np.asarray(pool.profiles)[user % toy.USERS],
    history=np.asarray(pool.histories)[user % toy.USERS],
    exposed=shown.astype(np.int32),
    response=rng.integers(0, 2, shown.shape).astype(np.float32),
    session=user,
    step=np.tile(np.arange(steps), users),
  )
  with mock.patch.object(blocks, "BLOCK", 12):
    written = [blocks.write(folder, 0, logs)]
  blocks.write_index(folder, written, toy.ITEMS)
  return blocks.load(folder)


class RestartTest(absltest.TestCase):
  def test_a_restart_gives_the_same_bits(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    folder = pathlib.Path(folder)
    read, _ = windows.reader(_logs(folder), toy.env().reward, 0)
    starts, per_call = [], 2
    config, layout = _config(layers=0), parallel.Layout(1, 1, False)
    engine = toy.engine(config)
    start = jax.jit(engine.init)(0, toy.inputs())
    run = jax.jit(engine.run)

    def noted(first, count):
      starts.append(first)
      return read(first, count)

    def states(done, state):
      """After each call to the end."""
      waiting = contextlib.nullcontext
      with windows.feed(
        noted, _COUNT, config.train, layout, waiting, done
      ) as feed:
        inputs = toy.inputs()
        for step in range(done, 24, per_call):
          inputs = feed(step, inputs)
          *state, _ = run(*state, inputs)
          yield tuple(state)

    whole = list(states(0, start))
    self.assertEqual(starts, [_COUNT * x for x in range(12)])
    starts.clear()
    with checkpoint.open_directory(folder / "saved") as checkpointer:
      checkpoint.save(checkpointer, 10, whole[4])
    with checkpoint.open_directory(folder / "saved") as checkpointer:
      restored = checkpoint.restore_latest(checkpointer, start)
    chex.assert_trees_all_equal(list(states(10, restored)), whole[5:])
    self.assertEqual(starts, [_COUNT * x for x in range(5, 12)])


if __name__ == "__main__":
  absltest.main()
