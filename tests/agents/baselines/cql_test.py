"""CQL's loss and its slates, once more in plain NumPy."""

import functools

import jax
import numpy as np
from absl.testing import absltest
from scipy import special

from hsrl_jax import agents, sid
from hsrl_jax.ops import sampling
from tests import toy
from tests.agents import checks

_WEIGHT, _INACTIVE = 0.3, 7


@functools.cache
def _case():
  """The agent, one item of whose catalogue is inactive; other parameters."""
  made = checks.made("cql", conservative_weight=_WEIGHT)
  index = sid.remove_items(made.catalogue.index, np.array([_INACTIVE]))
  made = made._replace(catalogue=made.catalogue._replace(index=index))
  made = made._replace(params=made.params | {"places": toy.SLATE})
  other = checks.random_params(made.agent, made.observation, 2)
  return made, other | {"places": toy.SLATE}


def _part(params, name, catalogue, observation, before):
  """r(s, b, i) or f(s, b, i) of all items, [N + 1]."""
  own = jax.tree.map(np.asarray, params[name]["params"])
  features = np.asarray(catalogue.features, np.float64)
  x = np.concatenate(
    [
      checks.state(params, catalogue, observation),
      (features[list(before)] @ own["added"]["kernel"]).sum(0),
      [len(before) / 10],
    ]
  )
  x = np.maximum(x @ own["layers_0"]["kernel"] + own["layers_0"]["bias"], 0)
  h = x @ own["out"]["kernel"] + own["out"]["bias"]
  alike = x @ own["alike"]["kernel"] + own["alike"]["bias"]
  length = np.linalg.norm(features, axis=1, keepdims=True)
  known = features / np.maximum(length, 1e-9)
  values = features @ own["row"]["kernel"] @ h[:-1] + h[-1]
  values += alike * (known @ known[list(before)].sum(0))
  return values + (features @ own["bias"]["kernel"])[:, 0]


def _values(params, catalogue, observation, before=()):
  """Q(s, b, i), -inf where an item may not be shown, [N + 1]."""
  where = (catalogue, observation, before)
  q = _part(params, "items", *where)
  q = q + toy.SLATE * _part(params, "future", *where)
  q[[0, _INACTIVE, *before]] = -np.inf
  return q


class CqlTest(absltest.TestCase):
  def test_loss_by_hand(self):
    made, target = _case()
    _, agent, params, catalogue, observation = made
    step = checks.transition(observation)
    slate, following = step.slate.tolist(), step.next_observation
    # The slate earned 0.6; its items 1, -0.1, 1, of mean 1.9 / 3.
    rewards = 0.6 + np.array([1, -0.1, 1]) - 1.9 / 3
    best = _values(params, catalogue, following).argmax()
    after = 0.9 * _values(target, catalogue, following)[best]
    y = np.array([rewards[1:].sum(), rewards[2], 0.0]) / 3 + after / 3

    def taken(name):
      return np.array(
        [
          _part(params, name, catalogue, observation, slate[:k])[item]
          for k, item in enumerate(slate)
        ]
      )

    earned = np.mean((taken("items") - rewards) ** 2)
    error = np.mean((taken("future") - y) ** 2)
    loss_fn, places = jax.jit(agent.loss), set()
    for seed in range(6):
      key = jax.random.key(seed)
      k = int(sampling.index(sampling.split(key, 2)[0], toy.SLATE))
      places.add(k)
      q = _values(params, catalogue, observation, slate[:k])
      above = special.logsumexp(q) - q[slate[k]]
      loss, metrics = loss_fn(params, target, catalogue, step, key, 0.5)
      for name, x in (
        ("reward_loss", earned),
        ("critic_loss", error),
        ("conservative_loss", above),
        ("loss", earned + error + _WEIGHT * above),
      ):
        np.testing.assert_allclose(metrics[name], x, rtol=1e-3, err_msg=name)
      np.testing.assert_allclose(loss, metrics["loss"])
    self.assertEqual(places, {0, 1, 2})

  def test_a_greedy_slate_is_greedy_place_by_place(self):
    made, _ = _case()
    _, agent, params, catalogue, observation = made
    want = []
    for _ in range(toy.SLATE):
      q = _values(params, catalogue, observation, want)
      q[5] = -np.inf
      want.append(int(q.argmax()))
    banned = np.array([5, 0])
    action = jax.jit(agent.act)(
      params, catalogue, observation, banned, None, 1.0
    )
    self.assertEqual(action.slate.tolist(), want)
    for place, item in enumerate(want):
      q = _values(params, catalogue, observation, want[:place])[item]
      np.testing.assert_allclose(action.log_prob[place], q, rtol=1e-4)
    # A longer slate begins as this one does.
    longer = agents.make_agent(made.config, 2 * toy.SLATE, toy.ITEMS)
    slate = jax.jit(longer.act)(
      params, catalogue, observation, banned, None, 1.0
    ).slate
    self.assertEqual(slate[: toy.SLATE].tolist(), want)
    first = agent.scores(params, catalogue, observation)
    np.testing.assert_allclose(
      first[1], _values(params, catalogue, observation)[1], rtol=1e-4
    )


if __name__ == "__main__":
  absltest.main()
