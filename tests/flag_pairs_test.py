"""Flags that shipped flagfiles use, two by two: a program, or one line.

Nothing is compiled or trained: what a run would do with the toy's items and
users is traced alone, for shapes that do not go together.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import absltest, parameterized

from hsrl_jax import agents, settings
from hsrl_jax import flags as flags_lib
from hsrl_jax.agents import next_item
from hsrl_jax.data import sequences
from hsrl_jax.engine import loop
from hsrl_jax.errors import InputError
from hsrl_jax.sim import click_model, leave, topics, user_simulator
from hsrl_jax.stages import logged
from hsrl_jax.types import Observation, Sessions
from tests import toy
from tests.command import ROOT

# Sizes of the toy, for nothing depends on how long or how large.
_TOY = ("--sid_levels=2", "--sid_vocab_size=8")
_RL = (
  "--width=8",
  *("--critic_hidden=8", "--users=4", "--iterations=4"),
  "--iterations_per_call=4",
)
_REPLAY = (*_RL, "--batch_size=8", "--buffer_size=16")
_ON_POLICY = (*_RL, "--recipe=on_policy", "--segment=4", "--minibatches=2")
CASES = {
  "hsrl": _REPLAY,
  "on_policy": _ON_POLICY,
  "from_logs": (*_RL, "--recipe=logs", "--batch_size=8"),
  "a2c": ("--agent=a2c", *_REPLAY),
  "planner": ("--agent=planner", *_REPLAY),
}
# Flags that name what to compare, files, sizes as above, or other users.
_LEFT_OUT = {
  *("mode", "workdir", "dataset", "raw_data_dir", "agent", "recipe"),
  *("simulator_world", "split_by", "segment", "minibatches"),
  *("batch_size", "buffer_size", "simulator_slate_size"),
  *("curve_every", "save_every", "seeds", "polyak", "discount"),
  *(
    "width",
    "next_item_width",
    "sid_levels",
    "sid_vocab_size",
    "critic_hidden",
    "users",
  ),
  *("iterations", "iterations_per_call", "learning_rate"),
}


def _shipped() -> dict[str, list[str]]:
  """Flag to the values that flagfiles give it, at most four of each."""
  found: dict[str, list[str]] = {}
  for path in sorted((ROOT / "launch" / "flags").rglob("*.flags")):
    for name, value in re.findall(r"(?m)^--(\w+)=(.*)$", path.read_text()):
      values = found.setdefault(name, [])
      if value not in values[:4]:
        values.append(value)
  return {
    name: values[:4]
    for name, values in found.items()
    if name not in _LEFT_OUT and not name.startswith(("experiment", "evaluate"))
  }


def _rows(names: list[str], count: int = 9) -> list[list[str]]:
  """Sets of names, such that any two names are in one of them together.

  Each name is in more than half of the sets, so two share at least one.
  """
  codes = itertools.combinations(range(count), count // 2 + 1)
  rows: list[list[str]] = [[] for _ in range(count)]
  for name, code in zip(names, codes, strict=False):
    for row in code:
      rows[row].append(name)
  return rows


def _parsed(arguments: list[str]):
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  flags.FLAGS(["hsrl", *_TOY, *arguments])
  config = flags_lib.config_from_flags()
  flags.FLAGS.mark_as_parsed()
  return config


def _accepted(arguments: list[str], chosen: dict[str, str]):
  """The configuration, without what does not go with the rest."""
  while True:
    try:
      config = _parsed([*arguments, *(f"--{x}={y}" for x, y in chosen.items())])
      agents.check(config)
      return config, chosen
    except (InputError, flags.Error) as error:
      named = [x for x in re.findall(r"\w+", str(error)) if x in chosen]
      if not named:
        raise
      chosen = {x: y for x, y in chosen.items() if x != named[0]}


def _catalogue(weight: float, of: topics.Topics):
  """The toy's items, with topics beside their features where asked."""
  catalogue = toy.inputs().catalogue._replace(
    popularity=jnp.ones(toy.ITEMS + 1)
  )
  plain = catalogue.features
  if not weight:
    return catalogue, plain
  one_hot = np.eye(len(of.names) + 1, dtype=np.float32)[of.of_items][:, 1:]
  features = jnp.concatenate([plain, weight * one_hot], 1)
  codebooks = jnp.pad(
    catalogue.codebooks, ((0, 0), (0, 0), (0, one_hot.shape[1]))
  )
  return catalogue._replace(
    features=features, codebooks=codebooks, plain=plain[:0]
  ), plain


def _trace(config) -> None:
  """Traces what training and acting of a configuration do."""
  names = ["", *("ab"[i % 2] for i in range(toy.ITEMS))]
  of = topics.of_categories(names)
  catalogue, plain = _catalogue(config.quantizer.topic_weight, of)
  c, users = config.simulator, toy.users()
  env = user_simulator.make(c, toy.SLATE, len(of.names))
  rows = np.zeros((toy.USERS, toy.SLATE), np.int32)
  sessions = Sessions(
    np.arange(toy.USERS), users.profiles, users.histories, rows + 1, rows
  )
  near = leave.nearness(np.asarray(plain))
  agent = agents.make_agent(config, toy.SLATE, toy.ITEMS)

  user = Observation(users.profiles[0], users.histories[0])

  def fitted(key):
    response = click_model.init(c, key, plain, user)
    if hasattr(env.dynamics, "init"):
      response = response._replace(boredom=env.dynamics.init(key))
    return response

  shapes = jax.eval_shape(fitted, jax.random.key(0))
  response = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  if response.blend is not None:
    known = {"user_ids": sessions.user_id, "users": np.zeros(toy.USERS)}
    response = response._replace(blend=response.blend._replace(**known))
  pool = user_simulator.pool(
    response._replace(item_features=plain),
    sessions,
    of if c.uses_topics else None,
    near if c.leave == "distance" else None,
    np.eye(toy.ITEMS + 1) if c.tires else None,
  )
  if config.train.recipe == "next_item":
    run = functools.partial(_next_item, config, agent, catalogue, pool, env)
    jax.eval_shape(run, jax.random.key(0))
    return
  logs = None
  if config.train.from_logs or agent.offline:
    logs = logged.learned(sessions, env.reward, toy.ITEMS, env.observed_items)
  inputs = loop.Inputs(catalogue, pool, logs)
  engine = loop.make(agent, env, config.train)

  def run(seed, inputs):
    learner, stream = engine.init(seed, inputs)
    return engine.run(learner, stream, inputs)

  jax.eval_shape(run, 0, inputs)


def _next_item(config, agent, catalogue, pool, env, key):
  observation = env.start(0, pool).observation
  params = agent.init(key, catalogue, observation)
  # The click model is that of the users, as a run has it.
  own = next_item.of_policy(pool.response, catalogue.plain)
  params = params | {"response": own}
  action = agent.act(
    params, catalogue, observation, jnp.zeros(3, jnp.int32), None, 1.0
  )
  policy = next_item.policy(config, toy.SLATE, toy.ITEMS)
  liked = sequences.from_lists([range(1, 9), range(4, 7)])
  batch = jax.tree.map(
    jnp.asarray, sequences.pack(liked, config.next_item.history)
  )
  known = policy.catalogue(params, catalogue)
  return action, policy.model.loss(params["model"], known, batch, key)


class FlagPairsTest(parameterized.TestCase):
  @parameterized.parameters("hsrl", "sasrec")
  def test_pairs_of_the_next_item(self, agent):
    self._check_pairs(
      ["--recipe=next_item", "--next_item_width=8", f"--agent={agent}"]
    )

  @parameterized.parameters(*CASES)
  @pytest.mark.slow
  def test_pairs_of_the_simulator(self, case):
    self._check_pairs([*CASES[case]])

  def _check_pairs(self, arguments):
    shipped, tried = _shipped(), set()
    config = _parsed(arguments)
    read = settings.reads(config.agent, config.train.recipe)
    names = [x for x in shipped if x in read]
    for number, row in enumerate(_rows(names)):
      chosen = {x: shipped[x][number % len(shipped[x])] for x in row}
      config, chosen = _accepted(arguments, chosen)
      with self.subTest(" ".join(f"--{x}={y}" for x, y in chosen.items())):
        _trace(config)
      tried |= {*itertools.combinations(sorted(chosen), 2)}
    possible = len({*itertools.combinations(sorted(names), 2)})
    self.assertGreater(len(tried), 0.8 * possible)

  def test_any_two_names_are_together(self):
    names = [f"n{i}" for i in range(60)]
    together = {
      pair for row in _rows(names) for pair in itertools.combinations(row, 2)
    }
    self.assertLen(together, 60 * 59 / 2)


if __name__ == "__main__":
  absltest.main()
