"""Learning from logs: a small problem whose answer is known, and a restart."""

import dataclasses
import functools
import itertools
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from hsrl_jax import agents, sid
from hsrl_jax.config import QuantizerConfig
from hsrl_jax.data import transitions
from hsrl_jax.engine import checkpoint, core, loop
from hsrl_jax.sid.index import Catalogue
from hsrl_jax.sim.leave import Patience
from hsrl_jax.sim.reward import Reward
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.types import Observation, Sessions
from tests import toy

BAIT, DOOR, PRIZE = 1, 2, 3  # The items.
_DISCOUNT = 0.9


def _logs():
  """All sessions of two uniform steps, with rewards of their own.

  The bait earns 1 and ends the session. The prize earns 5, but only after the
  door, which earns nothing. So at the start the door is best, worth 0.9 * 5;
  who does not look ahead takes the bait.
  """
  rows = []
  sessions = itertools.product((BAIT, DOOR, PRIZE), repeat=2)
  for number, (first, second) in enumerate(sessions):
    ends = first == BAIT
    rows.append((number, 0, first, float(first == BAIT), ends))
    if not ends:
      prize = 5.0 if (first, second) == (DOOR, PRIZE) else 0.0
      earned = prize + float(second == BAIT)
      rows.append((number, 1, second, earned, True))
  number, step, item, reward, ends = map(np.array, zip(*rows, strict=True))
  first = np.where(step == 0, 0, np.roll(item, 1))
  return Sessions(
    user_id=number,
    profile=np.zeros((len(rows), 0)),
    history=np.stack([np.zeros_like(first), first], 1),
    exposed=item[:, None],
    response=np.ones((len(rows), 1)),
    propensity=np.full((len(rows), 1), 1 / 3),
    session=number,
    step=step,
    reward=reward,
    terminated=ends.astype(float),
  )


@functools.cache
def _inputs():
  logs = _logs()
  made = transitions.transitions(logs, logs.reward, np.log(logs.propensity))
  codebooks = jnp.eye(3)[None]
  index = sid.build_index(np.arange(3)[:, None], 3)
  features = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
  users = EnvParams(None, jnp.zeros((1, 0)), jnp.zeros((1, 2), jnp.int32))
  return core.Inputs(
    Catalogue(features, index, codebooks),
    users,
    jax.tree.map(jnp.asarray, made),
  )


def _no_response(*_):
  raise AssertionError("a simulator was asked")


@functools.cache
def _engine(agent, **values):
  """The agent, and the functions of its engine, compiled."""
  config = toy.config(
    agent,
    recipe="logs",
    layers=0,
    dropout=0.0,
    width=8,
    critic_hidden=(32,),
    users=8,
    batch_size=16,
    iterations=800,
    iterations_per_call=100,
    curve_every=800,
    save_every=800,
    learning_rate=0.01,
    polyak=0.1,
    seeds=(0,),
    **values,
  )
  sizes = QuantizerConfig(levels=1, vocab_size=3)
  config = dataclasses.replace(config, quantizer=sizes)
  made = agents.make_agent(config, slate_size=1, items=3)
  env = UserSimulator(_no_response, 1, False, 2, Reward(0.0), Patience(9.0))
  engine = loop.make(made, env, config.train)
  return made, jax.jit(engine.init), jax.jit(engine.run)


def _state(last):
  return Observation(jnp.zeros(0), jnp.array([0, last]))


def _learned(agent, calls=8, **values):
  made, init, run = _engine(agent, **values)
  learner, stream = init(0, _inputs())
  for _ in range(calls):
    learner, stream, metrics = run(learner, stream, _inputs())
  return made, learner, metrics


class SmallProblemTest(absltest.TestCase):
  def test_q_learning_finds_the_values_that_are_known(self):
    made, learner, _ = _learned("cql", conservative_weight=0.0)
    scores = jax.jit(made.scores)

    def q(last):
      known = scores(learner.params, _inputs().catalogue, _state(last))
      return np.asarray(known)[1:]

    np.testing.assert_allclose(q(0), [1, _DISCOUNT * 5, _DISCOUNT], atol=0.35)
    np.testing.assert_allclose(q(DOOR), [1, 0, 5], atol=0.35)

  def test_the_conservative_term_lowers_what_was_not_logged(self):
    inputs = _inputs()
    no_prize = np.flatnonzero(np.asarray(inputs.logs.slate[:, 0]) != PRIZE)
    logs = jax.tree.map(lambda x: x[no_prize], inputs.logs)
    made, init, run = _engine("cql", conservative_weight=1.0)
    learner, stream = init(0, inputs)
    for _ in range(3):
      learner, stream, _ = run(learner, stream, inputs._replace(logs=logs))
    known = made.scores(learner.params, inputs.catalogue, _state(DOOR))
    others = min(float(known[BAIT]), float(known[DOOR]))
    self.assertLess(float(known[PRIZE]), others - 1.0)

  def test_an_actor_critic_looks_ahead_from_logs_alone(self):
    made, learner, metrics = _learned(
      "hsrl",
      importance_clip=5.0,
      actor_weight=1.0,
      behaviour_weight=0.0,
      entropy_weight=0.01,
      entropy_weight_end=0.01,
      without=("level_critics",),
    )
    self.assertNotIn("reward", metrics)

    @jax.jit
    def greedy(last):
      nothing = jnp.zeros(0, jnp.int32)
      catalogue = _inputs().catalogue
      return made.act(
        learner.params, catalogue, _state(last), nothing, None, 1.0
      ).slate[0]

    # Under uniform play the door is worth 0.9 * (1 + 0 + 5) / 3 = 1.8.
    self.assertEqual([int(greedy(0)), int(greedy(DOOR))], [DOOR, PRIZE])


class RestartTest(absltest.TestCase):
  def test_a_restart_gives_the_same_bits(self):
    _, init, run = _engine("cql", conservative_weight=1.0)
    start = init(0, _inputs())
    learner, stream = start
    states = []
    for _ in range(3):
      learner, stream, _ = run(learner, stream, _inputs())
      states.append((learner, stream))
    self.assertEqual(stream.replay.items, ())
    with tempfile.TemporaryDirectory() as folder:
      with checkpoint.open_directory(pathlib.Path(folder)) as checkpointer:
        checkpoint.save(checkpointer, 100, states[0])
      with checkpoint.open_directory(pathlib.Path(folder)) as checkpointer:
        learner, stream = checkpoint.restore_latest(checkpointer, start)
    for _ in range(2):
      learner, stream, _ = run(learner, stream, _inputs())
    chex.assert_trees_all_equal((learner, stream), states[-1])


if __name__ == "__main__":
  absltest.main()
