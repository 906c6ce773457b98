"""Slates drawn slot after slot: their probabilities, and what is learned."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from hsrl_jax import sid
from hsrl_jax.engine import core, loop, on_policy, parallel
from hsrl_jax.sim import observed
from tests import toy
from tests.agents import checks

ON_POLICY = {"recipe": "on_policy", "segment": 4, "minibatches": 2}
NONE = jnp.zeros(0)


@functools.cache
def _made(agent="hsrl", item_prior=True, **values):
  if not item_prior:
    values["without"] = ("item_prior",)
  made = checks.made(agent, **ON_POLICY, **values)
  seen = observed.start(*made.observation[:2], 8)
  for slate, response in (([3, 4, 5], [1, 0, 1]), ([9, 20, 0], [0, 1, 0])):
    seen = observed.after(seen, jnp.asarray(slate), jnp.asarray(response, "f"))
  params = checks.random_params(made.agent, seen, 1)
  # Random logits are so far from each other that one item has all weight.
  own, large = params["policy"]["params"], ["user"]
  if agent == "ppo":
    large += ["lower_out"]
  for name in large:
    own[name] = jax.tree.map(lambda x: x / 20, own[name])
  return made._replace(params=params, observation=seen)


def _allowed(index, slate, banned):
  """Tokens that lead to an item which may be shown, by hand: [K, L, V]."""
  tokens = index.sids
  left = [i for i in range(1, toy.ITEMS + 1) if i not in banned]
  result = np.zeros((len(slate), index.levels, index.vocab_size), bool)
  for k, item in enumerate(slate):
    below = [i for i in left if i not in slate[:k]]
    for level in range(index.levels):
      result[k, level, [tokens[i, level] for i in below]] = True
      below = [i for i in below if tokens[i, level] == tokens[item, level]]
  return result


def _row(tree, row):
  return jax.tree.map(lambda x: x[row], tree)


def _greedy(made):
  nothing = jnp.zeros(0, jnp.int32)
  act = (made.params, made.catalogue, made.observation, nothing, None, 1.0)
  return jax.jit(made.agent.act)(*act)


def _scores(made, params):
  return jax.jit(made.agent.scores)(params, made.catalogue, made.observation)


def _prior(made, notes, slate, banned):
  """What the items below each token add, but for a constant: [K, L, V]."""
  kernel = made.params["policy"]["params"]["vector_map"]["kernel"]
  user = np.asarray(notes.estimate.user)[:-1]
  logits = np.asarray(made.catalogue.features @ kernel) @ user / 0.5
  tokens = made.catalogue.index.sids
  left = [i for i in range(1, toy.ITEMS + 1) if i not in banned]
  weights = np.exp(logits - logits[left].max())
  sums = np.zeros((len(slate), *made.catalogue.codebooks.shape[:2]))
  for k, item in enumerate(slate):
    below = [i for i in left if i not in slate[:k]]
    for level in range(tokens.shape[1]):
      np.add.at(sums[k, level], tokens[below, level], weights[below])
      below = [i for i in below if tokens[i, level] == tokens[item, level]]
  return np.log(np.maximum(sums, 1e-8)).astype("f")


def _shares(logits, allowed):
  """What each token has of the softmax over the allowed ones, [..., V]."""
  weights = np.where(allowed, np.exp(logits), 0.0)
  return weights / weights.sum(-1, keepdims=True)


def _decision(made, slate, **notes):
  """A slate, all liked, as it is learned from."""
  notes = _greedy(made).notes._replace(**notes)
  return _shown(made, slate, notes)


def _shown(made, slate, notes):
  """A slate, all liked, with what the agent noted of it."""
  return checks.transition(
    made.observation,
    slate=slate,
    response=jnp.ones(toy.SLATE),
    hidden=NONE,
    notes=notes,
  )


def _log_probs(made, slates, banned=()):
  """Log-probability of each place of slates, [B, K], by `choices`."""
  index, notes = made.catalogue.index, _greedy(made).notes
  allowed = np.stack([_allowed(index, x, banned) for x in slates])
  if notes.prior.size:
    prior = np.stack([_prior(made, notes, x, banned) for x in slates])
  else:
    prior = np.zeros((len(slates), 0), "f")

  @jax.jit
  def run(slate, allowed, prior):
    one = _decision(made, slate, allowed=allowed, prior=prior)
    choices = made.agent.on_policy.choices(
      made.params, made.catalogue, one, None
    )
    return choices.log_probs.sum(-1)

  return np.asarray(jax.vmap(run)(jnp.asarray(slates), allowed, prior))


class SlateTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  @pytest.mark.slow
  def test_frequencies_are_the_probabilities(self, item_prior):
    made = _made(item_prior=item_prior)
    items = np.arange(1, toy.ITEMS + 1)
    others = [[j for j in items if j != i][: toy.SLATE - 1] for i in items]
    slates = [[i, *x] for i, x in zip(items, others, strict=True)]
    chance = np.exp(_log_probs(made, slates)[:, 0])
    np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-4)
    scores = _scores(made, made.params)
    np.testing.assert_allclose(np.exp(scores[1:]), chance, rtol=1e-3)
    acted = checks.sample(made, [])
    found = np.bincount(acted.slate[:, 0], minlength=toy.ITEMS + 1)[1:]
    error = np.sqrt(chance * (1 - chance) / checks.DRAWS) + 1e-4
    self.assertLess(
      np.abs(found / checks.DRAWS - chance).max(), 5 * error.max()
    )

  @parameterized.parameters(False, True)
  @pytest.mark.slow
  def test_a_later_slot_given_the_first(self, item_prior):
    made = _made(item_prior=item_prior)
    acted = jax.device_get(checks.sample(made, []))
    first = np.bincount(acted.slate[:, 0]).argmax()
    slates = acted.slate[acted.slate[:, 0] == first]
    rest = [i for i in range(1, toy.ITEMS + 1) if i != first]
    given = [[first, i, rest[0] if i != rest[0] else rest[1]] for i in rest]
    chance = np.exp(_log_probs(made, given)[:, 1])
    np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-4)
    found = np.bincount(slates[:, 1], minlength=toy.ITEMS + 1)[rest]
    error = np.sqrt(chance * (1 - chance) / len(slates)) + 1e-3
    self.assertLess(np.abs(found / len(slates) - chance).max(), 5 * error.max())

  @parameterized.parameters(
    ("sequential", False), ("independent", False), ("sequential", True)
  )
  @pytest.mark.slow
  def test_learning_sees_what_acting_did(self, slates, item_prior):
    made = _made(slates=slates, item_prior=item_prior)
    banned = [2, 7, 30]
    acted = jax.device_get(checks.sample(made, banned))
    for row in range(5):
      slate = acted.slate[row].tolist()
      self.assertLen(set(slate) - set(banned) - {0}, toy.SLATE)
      np.testing.assert_array_equal(
        acted.notes.allowed[row], _allowed(made.catalogue.index, slate, banned)
      )
      if item_prior:
        notes = _row(acted.notes, row)
        np.testing.assert_allclose(
          _shares(notes.prior, notes.allowed),
          _shares(_prior(made, notes, slate, banned), notes.allowed),
          rtol=1e-3,
        )
      np.testing.assert_allclose(
        acted.log_prob[row],
        _log_probs(made, [slate], banned)[0],
        rtol=1e-3,
        atol=1e-4,
      )

  @parameterized.parameters("sequential", "independent")
  @pytest.mark.slow
  def test_whether_a_slot_knows_the_slots_before(self, slates):
    made = _made(slates=slates)
    # Items that are gone leave the tokens allowed the same.
    index = sid.remove_items(made.catalogue.index, [1, 2, 3, 4])
    made = made._replace(catalogue=made.catalogue._replace(index=index))
    pairs = [[1, 2, 9], [3, 4, 9]]
    found = np.ptp(_log_probs(made, pairs, banned=[1, 2, 3, 4])[:, 2])
    if slates == "sequential":
      self.assertGreater(found, 1e-4)
    else:
      self.assertLess(found, 1e-5)

  def test_it_begins_with_a_softmax_over_items(self):
    made = _made(item_prior=True, repeat_penalty=0.0, lately_penalty=0.0)
    params = jax.tree.map(jnp.zeros_like, made.params)
    policy = params["policy"]["params"]
    for name in ("response", "user_hidden", "user", "vector_map"):
      policy[name] = made.params["policy"]["params"][name]
    made = made._replace(params=params)
    user = np.asarray(_greedy(made).notes.estimate.user)[:-1]
    vectors = made.catalogue.features @ policy["vector_map"]["kernel"]
    logits = np.asarray(vectors)[1:] @ user / 0.5
    self.assertGreater(np.ptp(logits), 0.5)
    scores = _scores(made, params)[1:]
    np.testing.assert_allclose(
      scores, logits - np.log(np.exp(logits).sum()), atol=1e-3
    )

  def test_where_too_few_items_are_left_places_stay_empty(self):
    made = _made()
    banned = np.arange(3, toy.ITEMS + 1)
    acted = jax.device_get(checks.sample(made, banned))
    self.assertEqual(
      {tuple(sorted(x)) for x in acted.slate.tolist()}, {(0, 1, 2)}
    )

  def test_the_greedy_slate_takes_the_best_token_at_each_step(self):
    made = _made()
    act = jax.jit(made.agent.act)
    args = (made.params, made.catalogue, made.observation)
    slate = act(*args, jnp.zeros(3, jnp.int32), None, 1.0).slate.tolist()
    acted = jax.device_get(checks.sample(made, [], 1e-6))
    np.testing.assert_array_equal(acted.slate, [slate] * checks.DRAWS)


class FlatTest(absltest.TestCase):
  """One logit for each item: the same slates without tokens."""

  def test_learning_sees_what_acting_did(self):
    made, banned = _made("ppo"), [2, 7, 30]
    acted = jax.device_get(checks.sample(made, banned))
    scores = _scores(made, made.params)
    chance = np.exp(scores)
    chance[[0, *banned]] = 0.0
    found = np.bincount(acted.slate[:, 0], minlength=len(chance))
    chance /= chance.sum()
    error = np.sqrt(chance * (1 - chance) / checks.DRAWS) + 1e-4
    self.assertLess(
      np.abs(found / checks.DRAWS - chance).max(), 5 * error.max()
    )

    @jax.jit
    def log_probs(slate):
      notes = jax.tree.map(lambda x: x[0], acted.notes)
      one = _shown(made, slate, notes)
      return made.agent.on_policy.choices(
        made.params, made.catalogue, one, None
      ).log_probs[:, 0]

    for slate, log_prob in zip(acted.slate[:5], acted.log_prob, strict=False):
      self.assertLen(set(slate.tolist()) - set(banned) - {0}, toy.SLATE)
      np.testing.assert_allclose(log_prob, log_probs(slate), rtol=1e-3)
    # All third items there are, given the first two.
    first, second = slate[:2].tolist()
    others = {*range(1, toy.ITEMS + 1)} - {first, second, *banned}
    slates = jnp.array([[first, second, i] for i in others])
    third = np.exp(jax.vmap(log_probs)(slates)[:, 2])
    np.testing.assert_allclose(third.sum(), 1.0, rtol=1e-4)

  def test_an_item_like_those_in_the_slate_loses(self):
    made = _made("ppo")
    features = np.array(made.catalogue.features)
    features[2] = features[1] + 1e-4
    space = made.catalogue._replace(features=jnp.asarray(features))
    params = jax.tree.map(jnp.zeros_like, made.params)
    params["policy"]["params"]["repeat"] = jnp.array([3.0, 0.0, 0.0])
    slate = jax.jit(made.agent.act)(
      params, space, made.observation, jnp.zeros(0, jnp.int32), None, 1.0
    ).slate
    self.assertEqual(slate[0], 1)
    self.assertNotIn(2, slate.tolist())
    centred = features[1:] - features[1:].mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    self.assertEqual(slate[1], 1 + (unit @ unit[0]).argmin())


class LatelyTest(parameterized.TestCase):
  @parameterized.parameters("hsrl", "ppo")
  @pytest.mark.slow
  def test_what_was_liked_lately_loses_by_the_penalty(self, agent):
    own = {"item_prior": False} if agent == "hsrl" else {}
    made = _made(agent, lately_penalty=0.25, repeat_penalty=0.0, **own)
    params = made.agent.init(
      jax.random.key(0), made.catalogue, made.observation, NONE
    )
    repeat = params["policy"]["params"]["repeat"]
    params = jax.tree.map(jnp.zeros_like, params)
    params["policy"]["params"]["repeat"] = repeat
    scores = _scores(made, params)
    liked = [3, 5, 20]
    if agent == "ppo":
      vectors, found = np.asarray(made.catalogue.features[1:]), scores[1:]
      of_liked = [i - 1 for i in liked]
    else:
      vectors = np.asarray(made.catalogue.codebooks[0])
      first = made.catalogue.index.sids[:, 0]
      of_liked = first[liked]
      sums = np.bincount(first[1:], np.exp(scores[1:]), len(vectors))
      found = np.log(np.maximum(sums, 1e-30))
    found = np.asarray(found)
    there = found > -50
    centred = vectors - vectors.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    like = unit @ unit.T
    if agent == "hsrl":
      like = np.maximum(like, 0.0)
    # A like counts by its age and among the newest ten.
    lost = 0.25 * 2 * like[of_liked].sum(0)
    self.assertGreater(np.ptp(lost[there]), 0.1)
    np.testing.assert_allclose(
      (found + lost)[there], (found + lost)[there].mean(), atol=1e-3
    )


class LeaveTest(parameterized.TestCase):
  """Items that drive away lose in the beginning, and nets are held to it."""

  @parameterized.parameters("hsrl", "ppo")
  def test_what_drives_away_loses_by_the_penalty(self, agent):
    made = _made(
      agent, leave_penalty=2.0, repeat_penalty=0.0, lately_penalty=0.0
    )
    params = jax.tree.map(jnp.zeros_like, made.params)
    policy, rng = params["policy"]["params"], np.random.default_rng(0)
    # Whatever was shown: a kind drives away, and so does any item a little.
    own = np.abs(rng.normal(size=policy["leave"]["out"]["kernel"].shape)) / 20
    policy["leave"]["out"]["kernel"] = jnp.asarray(own, jnp.float32)
    for name in ("own", "scale"):
      policy["leave"][name] = made.params["policy"]["params"]["leave"][name]
    policy["leave"]["hidden"]["kernel"] = jnp.ones((32, 16)) / 16
    policy["leave"]["always"]["bias"] = jnp.array([-1.0, 5.0])
    kinds = np.maximum(policy["leave"]["own"], 0).sum(1) / 16 * own.sum()
    scaled = made.catalogue.features * policy["leave"]["scale"][None]
    hazards = np.asarray(scaled)[1:] @ kinds - 1.0
    self.assertGreater(np.ptp(hazards), 0.1)
    lost = 2.0 * np.log1p(np.exp(hazards)) / 0.5
    scores = np.asarray(_scores(made, params))[1:]
    weights = np.exp(-lost)
    np.testing.assert_allclose(
      scores, np.log(weights / weights.sum()), atol=2e-3
    )

  @parameterized.parameters("hsrl", "ppo")
  def test_who_left_is_learned_and_a_divergence_costs(self, agent):
    made = _made(agent, leave_penalty=2.0, anchor_weight=0.5)
    free = _made(agent, leave_penalty=2.0)
    slate, notes = [9, 4, 0], _greedy(made).notes

    @functools.partial(jax.jit, static_argnums=0)
    def choices(agent, params, left):
      one = _shown(made, jnp.array(slate), notes)._replace(terminated=left)
      return agent.on_policy.choices(params, made.catalogue, one, None)

    stayed, left = (choices(made.agent, made.params, x) for x in (0.0, 1.0))
    chance = np.exp([-x.metrics["leave_loss"] for x in (stayed, left)])
    np.testing.assert_allclose(chance.sum(), 1.0, rtol=1e-4)
    divergence = left.metrics["divergence"]
    self.assertGreater(divergence, 1e-3)
    np.testing.assert_allclose(
      left.loss - choices(free.agent, made.params, 1.0).loss,
      0.5 * divergence,
      rtol=1e-2,
    )
    # Without networks log pi is what it begins with.
    params = jax.tree.map(lambda x: x, made.params)
    for name in ("first_out", "lower_out"):
      if name in params["policy"]["params"]:
        params["policy"]["params"][name] *= 0
    begins = choices(made.agent, params, 1.0)
    np.testing.assert_allclose(begins.metrics["divergence"], 0, atol=1e-6)
    both = zip(left.log_probs[:2], begins.log_probs[:2], strict=True)
    self.assertTrue(any((x != y).any() for x, y in both))

  @parameterized.parameters("hsrl", "ppo")
  def test_an_empty_place_counts_nothing(self, agent):
    made = _made(agent, leave_penalty=2.0, anchor_weight=0.5)
    notes, features = _greedy(made).notes, made.catalogue.features

    @jax.jit
    def choices(features, allowed):
      space = made.catalogue._replace(features=features)
      own = notes._replace(allowed=allowed)
      one = _shown(made, jnp.array([9, 4, 0]), own)
      return made.agent.on_policy.choices(made.params, space, one, None)

    found = choices(features, notes.allowed)
    np.testing.assert_array_equal(found.log_probs[2], 0.0)
    # Neither what padding is like ...
    others = [choices(features.at[0].set(0.5), notes.allowed)]
    if agent == "hsrl":  # ... nor what might stand there.
      allowed = notes.allowed.at[2].set(False).at[2, :, 0].set(True)
      others.append(choices(features, allowed))
    for other in others:
      np.testing.assert_allclose(other.entropy, found.entropy, rtol=1e-5)
      for name in ("leave_loss", "divergence"):
        np.testing.assert_allclose(
          other.metrics[name], found.metrics[name], rtol=1e-5
        )


class ValueTest(parameterized.TestCase):
  def _values(self, made, allowed=(toy.SLATE, 2, 8)):
    @jax.jit
    def values(slate):
      notes = jnp.ones(allowed, bool)
      one = _decision(made, slate, allowed=notes)
      return made.agent.on_policy.choices(
        made.params, made.catalogue, one, None
      ).values

    return values

  def _alone(self, made):
    return made.agent.on_policy.value(
      made.params, made.catalogue, made.observation, NONE
    )

  @parameterized.parameters(
    ("hsrl", (toy.SLATE, 2, 8)), ("ppo", (toy.ITEMS + 1,))
  )
  def test_all_choices_have_the_value_of_the_state(self, agent, allowed):
    made = _made(agent)
    found = self._values(made, allowed)(jnp.array([9, 20, 7]))
    self.assertEqual(found.shape[0], toy.SLATE)
    np.testing.assert_allclose(
      found, np.full(found.shape, self._alone(made)), rtol=1e-5
    )

  @pytest.mark.slow
  def test_a_choice_is_valued_without_itself_and_what_follows(self):
    made = _made(credit="token")
    values = self._values(made)
    tokens = made.catalogue.index.sids
    same = [i for i in range(1, 41) if tokens[i, 0] == tokens[1, 0]]
    one, other = (
      values(jnp.array([9, i, j])) for i, j in ((1, 20), (same[1], 7))
    )
    # The second slot's items differ in their last token alone.
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], other[1], rtol=1e-5)
    self.assertGreater(np.abs(one[2] - other[2]).max(), 1e-4)
    np.testing.assert_allclose(self._alone(made), one[0, 0], rtol=1e-5)

  @parameterized.parameters("hsrl", "ppo")
  @pytest.mark.slow
  def test_a_slot_is_valued_by_the_items_before_it(self, agent):
    made = _made(agent, credit="slot")
    shape = (toy.SLATE, 2, 8) if agent == "hsrl" else (toy.ITEMS + 1,)
    values = self._values(made, shape)
    a, b = values(jnp.array([9, 20, 7])), values(jnp.array([30, 20, 7]))
    np.testing.assert_allclose(a[0, 0], b[0, 0], rtol=1e-5)
    self.assertGreater(abs(float(a[1, 0] - b[1, 0])), 1e-5)


class EngineTest(absltest.TestCase):
  def _config(self, **values):
    return toy.config("hsrl", **(ON_POLICY | {"dropout": 0.0} | values))

  def _run(self, config, calls, env=None):
    env = env or toy.env()._replace(observed_items=8)
    made = loop.make(toy.agent(config), env, config.train)
    learner, stream = jax.jit(made.init)(0, toy.inputs())
    run = jax.jit(made.run)
    for _ in range(calls):
      learner, stream, metrics = run(learner, stream, toy.inputs())
    return learner, stream, metrics

  @pytest.mark.slow
  def test_one_call_of_eight_is_two_of_four(self):
    twice = self._run(self._config(), 2)
    once_config = self._config(
      iterations_per_call=8, curve_every=40, save_every=40, buffer_size=640
    )
    once = self._run(once_config, 1)
    chex.assert_trees_all_close(
      once[0].params, twice[0].params, rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_equal(once[1].env.steps, twice[1].env.steps)

  def test_epochs_have_keys_that_come_of_no_users(self):
    key, users = jax.random.key(3), jnp.arange(8)
    own = core.by_user(jax.random.fold_in(key, 0), users)
    for number in range(3):
      epoch = on_policy.epoch_key(key, jnp.int32(0), number)
      for user in own:
        words = [
          jax.random.key_data(x).tolist()
          for x in (epoch, jax.random.fold_in(user, number))
        ]
        self.assertNotEqual(*words)

  def test_a_blind_critic_has_no_weights_for_the_simulators_state(self):
    env = toy.env()._replace(observed_items=8)
    rows = []
    for sees in (True, False):
      config = self._config(without=() if sees else ("critic_state",))
      made = loop.make(toy.agent(config), env, config.train)
      learner, stream = jax.eval_shape(made.init, 0, toy.inputs())
      critic = learner.params["critic"]["params"]
      rows.append(critic["state"]["kernel"].shape[0])
    state = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), stream.env)
    unseen = env.hidden(state, toy.inputs().env_params)
    self.assertNotEmpty(unseen)
    self.assertEqual(rows[0] - rows[1], len(unseen))

  @pytest.mark.slow
  def test_four_devices_do_what_one_does(self):
    env = toy.env()._replace(observed_items=8)
    config = self._config()
    made = loop.make(toy.agent(config), env, config.train)
    found = []
    for devices in (1, 4):
      layout = parallel.Layout(2, devices, by_seed=False)
      state = parallel.init(made.init, (0, 1), toy.inputs(), layout)
      placed = parallel.place(*state, toy.inputs(), layout)
      run = parallel.over_devices(made.run, layout)
      learner, stream, placed_inputs = placed
      for _ in range(2):
        learner, stream, metrics = run(learner, stream, placed_inputs)
      learner, stream = parallel.collect(learner, stream, layout)
      found.append(jax.device_get((learner.params, stream.env.steps, metrics)))
    (params, steps, metrics), other = found
    np.testing.assert_array_equal(steps, other[1])
    chex.assert_trees_all_close(params, other[0], rtol=1e-3, atol=1e-4)
    chex.assert_trees_all_close(metrics, other[2], rtol=1e-3, atol=1e-4)

  @pytest.mark.slow
  def test_it_learns(self):
    values = {
      "learning_rate": 5e-3,
      "iterations": 400,
      "iterations_per_call": 40,
      "curve_every": 400,
      "save_every": 400,
      "segment": 8,
      "users": 16,
      "batch_size": 16,
      "buffer_size": 640,
      "explore_no_repeat": False,
      "repeat_penalty": 0.0,
      "lately_penalty": 0.0,
    }
    config = self._config(**values)
    reward = self._run(config, 10)[2]["reward"]
    # The greedy oracle earns 0.945 a slate, a random slate 0.24.
    self.assertGreater(reward, 0.8)


if __name__ == "__main__":
  absltest.main()
