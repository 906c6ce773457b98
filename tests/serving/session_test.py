"""A policy that sees what was shown is served whole sessions."""

import functools
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax import serving
from hsrl_jax.errors import InputError
from hsrl_jax.sim import observed
from tests import toy
from tests.serving import toy_export

STEPS = 5  # More items than the policy sees.


class SessionTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = (
      pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
      / "export"
    )
    cls.exported = toy_export.make(folder, **toy_export.ON_POLICY)
    cls.recommender = serving.load(folder, [1])

  def test_a_session_is_that_of_the_agent_in_the_simulator(self):
    made, users = self.exported, toy.users()
    env = toy.env()._replace(observed_items=toy_export.SHOWN)
    items = toy_export.for_agents(made.catalogue)
    params = jax.device_put(made.params)
    act = jax.jit(
      functools.partial(
        made.agent.act,
        excluded=jnp.zeros(0, jnp.int32),
        key=None,
        temperature=1.0,
      )
    )
    step = jax.jit(env.step)
    state = env.start(3, users)
    likes = np.asarray(state.observation.history).tolist()
    earlier, differs = [], 0
    for number in range(STEPS):
      action = act(params, items, state.observation)
      profile = np.asarray(state.observation.profile).tolist()
      query = self.recommender.query(likes, profile, earlier=earlier)
      jax.tree.map(
        np.testing.assert_array_equal, query.earlier, state.observation.shown
      )
      served = self.recommender.decode([query])
      np.testing.assert_array_equal(served.items[0], action.slate)
      np.testing.assert_allclose(
        served.log_probs[0], action.log_prob, atol=1e-4
      )
      alone = self.recommender.decode([self.recommender.query(likes, profile)])
      differs += not np.allclose(served.log_probs, alone.log_probs, atol=1e-3)
      state, result = step(jax.random.key(number), state, action.slate, users)
      slate = np.asarray(action.slate).tolist()
      response = np.asarray(result.response).tolist()
      earlier.append((slate, response))
      likes += [x for x, liked in zip(slate, response, strict=True) if liked]
    self.assertGreater(differs, 1)

  def test_places_without_an_item_are_padded_as_in_the_simulator(self):
    slates = [
      ([3, 4, 5], [1, 0, 1]), ([9, 0, 20], [0, 1, 1]), ([0, 0, 7], [0, 0, 0]),
      ([1, 2, 3], [True, False, 0.5]),
    ]  # fmt: skip
    seen = observed.start(
      jnp.zeros(toy.GROUPS), jnp.zeros(toy.HISTORY, jnp.int32), toy_export.SHOWN
    )
    for count in range(len(slates) + 1):
      query = self.recommender.query(
        [], [0.0] * toy.GROUPS, earlier=slates[:count]
      )
      jax.tree.map(np.testing.assert_array_equal, query.earlier, seen.shown)
      if count < len(slates):
        slate, response = slates[count]
        seen = observed.after(
          seen, jnp.asarray(slate), jnp.asarray(response, jnp.float32)
        )

  @parameterized.parameters(
    ([([1, 2], [1])], "earlier holds .*; expected slates, each a pair"),
    ([[1, 2, 3]], "expected slates"),
    ([5], "expected slates"),
    ([([1], 5)], "expected slates"),
    ([([99], [1])], "earlier holds 99, which is no known item"),
    ([(["1"], [1])], "earlier holds '1'; expected item ids"),
    ([([1], [2])], "earlier has the response 2; expected numbers from 0"),
    ([([1], ["1"])], "earlier has the response '1'"),
    ([([1], [float("nan")])], "earlier has the response nan"),
  )
  def test_bad_sessions_say_why(self, earlier, what):
    with self.assertRaisesRegex(InputError, what):
      self.recommender.query([], [0.0] * toy.GROUPS, earlier=earlier)


if __name__ == "__main__":
  absltest.main()
