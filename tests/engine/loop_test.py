"""The engine: devices, transfers, compilations, learning."""

import os
import pathlib
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax.config import TrainConfig
from hsrl_jax.data import transitions
from hsrl_jax.engine import checkpoint, core, parallel
from hsrl_jax.evaluation import simulate
from hsrl_jax.ops import tree
from hsrl_jax.stages import policy
from tests import toy


def _over_seeds(engine):
  return jax.jit(jax.vmap(engine.run, in_axes=(0, 0, None)))


def _words(x):
  """A copy on the host; of keys, the words of which they are made."""
  return jax.tree.map(lambda leaf: np.array(tree.words(leaf)), x)


def _on_one_device(x):
  """A copy that shares no memory with `x`, which may be donated."""
  copies = jax.tree.map(jnp.asarray, _words(x))
  return jax.tree.map(tree.of_words, x, copies)


def _collectives(text):
  """What devices exchange, by the text of a program."""
  kinds = "all.reduce|all.gather|all.to.all|reduce.scatter|collective.\\w+"
  # As StableHLO has it, or HLO, where it may have its end apart.
  found = rf"stablehlo\.({kinds})|= .*? ({kinds})(?:-start)?\("
  return ["".join(x) for x in re.findall(found, text)]


class DevicesTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_four_devices_do_what_one_does(self):
    self.assertEqual(jax.local_device_count(), 4)
    config = toy.config()
    engine, inputs = toy.engine(config), toy.inputs()
    layout = parallel.layout(2)
    self.assertFalse(layout.by_seed)
    learner, stream = parallel.init(
      engine.init, config.train.seeds, inputs, layout
    )
    one = _over_seeds(engine)
    one_learner, one_stream = _on_one_device((learner, stream))
    four = parallel.over_devices(engine.run, layout)
    learner, stream, placed = parallel.place(learner, stream, inputs, layout)
    start = jax.tree.map(np.asarray, one_learner.params)
    compiled = four.lower(learner, stream, placed).compile().as_text()
    self.assertEqual(_collectives(compiled), ["all-reduce"])
    for call in range(3):
      if call == 2:
        self._save(parallel.collect(learner, stream, layout))
      learner, stream, metrics = four(learner, stream, placed)
      one_learner, one_stream, one_metrics = one(
        one_learner, one_stream, inputs
      )
    # Identical experience, gradients and parameters up to summation order.
    _, merged = parallel.collect(learner, stream, layout)
    chex.assert_trees_all_equal(
      merged.replay.items.slate, one_stream.replay.items.slate
    )
    chex.assert_trees_all_equal(
      merged.replay.items.response, one_stream.replay.items.response
    )
    chex.assert_trees_all_close(metrics, one_metrics, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(
      learner.params, one_learner.params, rtol=1e-4, atol=2e-4
    )
    parallel.assert_replicated(learner, layout)
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(),
      start,
      jax.tree.map(np.asarray, learner.params),
    )
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-4)

    # The last call again, from the checkpoint before it: the same on as many
    # devices, and on other numbers up to summation order.
    shapes = parallel.shapes(engine.init, config.train.seeds, inputs)
    found = {1: one(*self._saved(shapes), inputs)[:2]}
    for devices in (4, 2):
      layout = parallel.Layout(2, devices, by_seed=False)
      like = parallel.init(engine.init, config.train.seeds, inputs, layout)
      placed = parallel.place(*self._saved(like), inputs, layout)
      run = four if devices == 4 else parallel.over_devices(engine.run, layout)
      found[devices] = parallel.collect(*run(*placed)[:2], layout)
    chex.assert_trees_all_equal(
      found[4][0]._replace(key=0), learner._replace(key=0)
    )
    chex.assert_trees_all_equal(found[4][1], merged)
    for got, rings in found.values():
      chex.assert_trees_all_close(
        got.params, learner.params, rtol=1e-4, atol=2e-4
      )
      chex.assert_trees_all_equal(
        rings.replay.items.slate, merged.replay.items.slate
      )

  def _save(self, state):
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    with checkpoint.open_directory(self.folder) as checkpointer:
      checkpoint.save(checkpointer, 8, state)

  def _saved(self, like):
    with checkpoint.open_directory(self.folder) as checkpointer:
      return checkpoint.restore_latest(checkpointer, like)

  def test_shapes_are_those_of_what_init_returns(self):
    config = toy.config(agent="a2c")
    engine, inputs = toy.engine(config), toy.inputs()
    given = (engine.init, config.train.seeds, inputs)
    made = parallel.init(*given, parallel.Layout(1, 1, by_seed=False))
    chex.assert_trees_all_equal_shapes_and_dtypes(made, parallel.shapes(*given))

  @parameterized.parameters("a2c", "sasrec")
  @pytest.mark.slow
  def test_devices_meet_once_an_iteration(self, agent):
    config = toy.config(agent=agent)
    engine, inputs = toy.engine(config), toy.inputs()._replace(logs=toy.logs())
    layout = parallel.layout(2)
    start = parallel.init(engine.init, config.train.seeds, inputs, layout)
    placed = parallel.place(*start, inputs, layout)
    text = parallel.over_devices(engine.run, layout).lower(*placed).as_text()
    self.assertEqual(_collectives(text), ["all_reduce"])
    # Devices that are only described get the same program.
    there = parallel.layout(2, jax.devices())
    given = engine.init, engine.run, config.train.seeds, inputs, there
    self.assertEqual(parallel.lowered(*given).as_text(), text)

  @pytest.mark.slow
  def test_gradients_of_four_devices_are_the_gradient_of_all(self):
    self._gradients_are_equal("a2c")

  @pytest.mark.slow
  def test_so_are_those_of_hsrl(self):
    self._gradients_are_equal("hsrl")

  def _gradients_are_equal(self, agent):
    config = toy.config(
      agent=agent,
      seeds=(0,),
      iterations_per_call=1,
      curve_every=1,
      save_every=1,
    )
    engine, inputs = toy.engine(config), toy.inputs()
    layout = parallel.layout(1)
    learner, stream = parallel.init(
      engine.init, config.train.seeds, inputs, layout
    )
    learner, stream, placed = parallel.place(learner, stream, inputs, layout)
    four = parallel.over_devices(engine.run, layout)
    learner, stream, _ = four(learner, stream, placed)  # Fills the ring.

    # Adam's first moment after one step from zero is 0.1 of the gradient.
    zeros = jax.tree.map(jnp.zeros_like, learner.opt_state)
    learner = learner._replace(opt_state=zeros)
    one_learner, one_stream = _on_one_device(
      parallel.collect(learner, stream, layout)
    )
    learner, stream, _ = four(learner, stream, placed)
    one_learner, _, _ = _over_seeds(engine)(one_learner, one_stream, inputs)
    chex.assert_trees_all_close(
      learner.opt_state, one_learner.opt_state, rtol=1e-4, atol=1e-6
    )

  @pytest.mark.slow
  def test_every_device_ends_with_the_same_learner(self):
    config = toy.config()
    engine, inputs = toy.engine(config), toy.inputs()
    init = jax.vmap(engine.init, (None, None, 0, None), (None, 0))
    learner, stream = init(0, inputs, jnp.arange(4), 4)

    def run(learner, stream):
      return engine.run(learner, stream, inputs, "d")[0]

    run = jax.pmap(run, axis_name="d", in_axes=(None, 0), out_axes=0)
    learner = run(learner, stream)
    for leaf in jax.tree.leaves(learner._replace(key=None)):
      for device in range(1, 4):
        np.testing.assert_array_equal(leaf[0], leaf[device])

  def test_assert_replicated_sees_a_difference(self):
    mapped = jax.pmap(lambda x: x, out_axes=None)(jnp.arange(4.0))
    with self.assertRaises(AssertionError):
      parallel.assert_replicated({"x": mapped}, parallel.layout(1))

  def test_users_must_divide_over_devices(self):
    engine = toy.engine(toy.config())
    with self.assertRaisesRegex(ValueError, "users is 8; .*3 devices"):
      engine.init(0, toy.inputs(), 0, 3)


class LoopTest(parameterized.TestCase):
  @pytest.mark.slow
  def test_no_transfer_to_or_from_the_host_and_one_compilation(self):
    engine, inputs = toy.engine(toy.config()), toy.inputs()
    layout = parallel.layout(2)
    learner, stream = parallel.init(engine.init, (0, 1), inputs, layout)
    learner, stream, inputs = parallel.place(learner, stream, inputs, layout)
    traces = []

    def run(*arguments):
      traces.append(1)
      return engine.run(*arguments)

    run = parallel.over_devices(run, layout)
    with jax.transfer_guard("disallow"):
      for call in range(3):
        learner, stream, metrics = run(learner, stream, inputs)
        if not call:
          first = len(traces)
    self.assertLen(traces, first)
    self.assertEqual(learner.step.tolist(), [12, 12])
    chex.assert_tree_all_finite(metrics)

  def _optimized(self):
    """By the compiler as users have it, which rounds as it fuses."""
    name = "jax_disable_most_optimizations"
    self.addCleanup(jax.config.update, name, jax.config.values[name])
    jax.config.update(name, False)

  @pytest.mark.slow
  def test_a_trace_tells_the_parts_of_an_iteration(self):
    engine, inputs = toy.engine(toy.config()), toy.inputs()
    state = engine.init(0, inputs)
    lowered = jax.jit(engine.run).lower(*state, inputs)
    text = lowered.as_text(debug_info=True)
    for phase in core.PHASES:
      self.assertRegex(text, rf"[/(]{phase}[/)]")

  def test_a_seed_begins_alone_as_in_company(self):
    self._optimized()

    def begin(seed, users):
      x = jax.random.uniform(jax.random.key(seed), (64, 10))
      return users * x / x.sum(-1, keepdims=True)

    def begun(*seeds):
      layout = parallel.Layout(len(seeds), devices=1, by_seed=True)
      return parallel.init(begin, seeds, jnp.float32(1.0), layout)

    for seed, together in enumerate(begun(*range(10))):
      np.testing.assert_array_equal(together, begun(seed)[0])

  @parameterized.parameters(1, 2, 3, 5)
  def test_groups_have_every_so_many_th_seed(self, groups):
    keys = jax.random.split(jax.random.key(0), 5)
    state = {"x": jnp.arange(10).reshape(5, 2), "key": keys}
    parts = parallel._split(state, groups)
    for group, part in enumerate(parts):
      np.testing.assert_array_equal(part["x"], state["x"][group::groups])
    chex.assert_trees_all_equal(_words(parallel._join(parts)), _words(state))

  @parameterized.parameters(1, 2)
  @pytest.mark.slow
  def test_three_seeds_over_devices_equal_seeds_alone(self, devices):
    self._optimized()
    seeds = (3, 1, 4)
    engine, inputs = toy.engine(toy.config()), toy.inputs()

    def trained(seeds, devices):
      layout = parallel.Layout(len(seeds), devices, by_seed=True)
      start = parallel.init(engine.init, seeds, inputs, layout)
      run = parallel.over_devices(engine.run, layout)
      learner, stream, placed = parallel.place(*start, inputs, layout)
      for _ in range(3):
        learner, stream, metrics = run(learner, stream, placed)
      state = parallel.collect(learner, stream, layout)
      chex.assert_trees_all_equal(
        parallel.target_params(learner, layout), state[0].target_params
      )
      # Collected and placed again they are what they were.
      again = parallel.place(*state, inputs, layout)[:2]
      chex.assert_trees_all_equal(*_words(((learner, stream), again)))
      return _words((*state, metrics))

    self.assertTrue(parallel.layout(5).by_seed)
    together = trained(seeds, devices)
    for i, seed in enumerate(seeds):
      chex.assert_trees_all_equal(
        jax.tree.map(lambda x, i=i: x[i : i + 1], together),
        trained((seed,), 1),
      )

  @parameterized.parameters(
    # cores, seeds, users, {what the user says} -> devices
    (8, 1, 32, 4),  # Eight users each.
    (3, 1, 32, 2),  # Of three, parts would not be equal.
    (16, 1, 60, 6),
    (8, 1, 4, 1),
    (1, 1, 64, 1),
    (2, 5, 32, 2),  # Of several seeds each has a core of its own.
    (8, 3, 64, 3),
    (2, 1, 32, None, {"XLA_FLAGS": ""}),
    (2, 1, 32, None, {"JAX_NUM_CPU_DEVICES": "1"}),
  )
  def test_a_single_seed_shares_its_users_among_cores(
    self, cores, seeds, users, devices, said=None
  ):
    said = said or {}
    config = mock.Mock(
      jax_num_cpu_devices=int(said.get("JAX_NUM_CPU_DEVICES", -1))
    )
    train = TrainConfig(
      seeds=tuple(range(seeds)),
      users=users,
      batch_size=users,
      buffer_size=users * 1000,
    )
    with (
      mock.patch.dict(os.environ, said, clear=True),
      mock.patch.object(os, "sched_getaffinity", return_value=range(cores)),
      mock.patch.object(parallel.jax, "config", config),
    ):
      parallel.use_cores(train)
    expected = [mock.call("jax_num_cpu_devices", devices)] if devices else []
    self.assertEqual(config.update.call_args_list, expected)

  @pytest.mark.slow
  def test_learns_to_please(self):
    _, trained = toy.learning("hsrl")
    self.assertGreater(trained, 0.8)
    constant = toy.normalised(toy.bounds()["best_constant"])
    self.assertLess(constant, 0.5)

  @pytest.mark.slow
  def test_no_repeat_shows_nothing_twice(self):
    config = toy.config(seeds=(0,))
    inputs, env = toy.inputs(), toy.env(no_repeat=True)
    agent = toy.agent(config)
    observation = env.start(jnp.int32(0), inputs.env_params).observation
    params = agent.init(jax.random.key(0), inputs.catalogue, observation)
    sessions = simulate.simulate(
      policy.greedy(agent),
      env,
      (params, inputs.catalogue),
      inputs.env_params,
      jax.random.key(0),
      episodes=24,
    )
    for slates in np.asarray(sessions.slates):
      shown = slates[slates > 0]
      self.assertLen(set(shown.tolist()), len(shown))
      self.assertNotEmpty(shown)

  @pytest.mark.slow
  def test_explore_no_repeat(self):
    """In training, in a protocol that would show items again."""
    self._explores(True)

  @pytest.mark.slow
  def test_repeats_are_seen_where_they_are_allowed(self):
    self._explores(False)

  def _explores(self, explore):
    config = toy.config(explore_no_repeat=explore, temperature=0.01)
    _, stream, _ = toy.train(config, calls=10)
    self.assertEqual(int(stream.replay.added), 40)
    seen = stream.replay.items
    repeats = sessions = 0
    for user in range(config.train.users):
      shown, steps = set(), 0
      for step in range(40):
        slate = np.asarray(seen.slate[step, user]).tolist()
        repeats += len(shown.intersection(slate))
        shown, steps = shown.union(slate), steps + 1
        if seen.terminated[step, user] or steps == toy.env().max_steps:
          shown, steps, sessions = set(), 0, sessions + 1
    self.assertGreater(sessions, config.train.users)
    self.assertEqual(repeats == 0, explore)

  @pytest.mark.slow
  def test_the_largest_profiles_leave_training_finite(self):
    engine, inputs = toy.engine(toy.config()), toy.inputs()
    users = inputs.env_params
    large = users._replace(profiles=users.profiles * transitions.LARGEST)
    inputs = inputs._replace(env_params=large)
    learner, stream = jax.jit(engine.init)(0, inputs)
    learner, _, metrics = jax.jit(engine.run)(learner, stream, inputs)
    chex.assert_tree_all_finite((learner.params, metrics))

  @pytest.mark.slow
  def test_target_networks_follow_at_the_rate_polyak(self):
    config = toy.config(agent="a2c", seeds=(0,), polyak=0.0)
    start, _ = jax.jit(toy.engine(config).init)(0, toy.inputs())
    learner, *_ = toy.train(config, calls=2)
    chex.assert_trees_all_equal(learner.target_params, start.params)
    moved = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()), learner.params, start.params
    )
    self.assertGreater(max(jax.tree.leaves(moved)), 1e-4)

  @pytest.mark.slow
  def test_an_offline_agent_learns_from_logs_alone(self):
    config = toy.config(agent="sasrec", seeds=(0,))
    engine, inputs = toy.engine(config), toy.inputs()._replace(logs=toy.logs())
    learner, stream = jax.jit(engine.init)(0, inputs)
    run = jax.jit(engine.run)
    first = start = learner
    losses = []
    for _ in range(10):
      learner, after, metrics = run(learner, stream, inputs)
      chex.assert_trees_all_equal(stream, after)
      losses.append(float(metrics["loss"]))
    self.assertEqual(int(stream.replay.added), 0)
    self.assertEqual(int(learner.step), 40)
    self.assertNotIn("reward", metrics)
    self.assertLess(losses[-1], losses[0] - 0.01)
    # Other logs, other parameters.
    others = jax.tree.map(lambda x: x[::-1], inputs.logs)
    other, _, _ = run(first, stream, inputs._replace(logs=others))
    same, _, _ = run(start, stream, inputs)
    different = jax.tree.map(
      lambda a, b: float(jnp.abs(a - b).max()), other.params, same.params
    )
    self.assertGreater(max(jax.tree.leaves(different)), 1e-4)


if __name__ == "__main__":
  absltest.main()
