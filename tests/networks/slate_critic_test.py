"""What the critic of slates sees of each kind of items, counted by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from hsrl_jax.networks import slate_policy as policy
from hsrl_jax.networks.slate_critic import Kinds
from hsrl_jax.types import Shown

KINDS, AGES = 5, 6
# Of items 1..8; item 0 is padding.
FIRST = np.array([-1, 0, 0, 1, 1, 2, 3, 4, 4])
# The newest last: eleven likes, so that the oldest is none of the last ten.
ITEMS = np.array([0, 1, 1, 3, 5, 5, 7, 2, 2, 6, 1, 4, 8, 3])
LIKED = np.array([0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0])
AGO = np.array([0, 9, 9, 9, 7, 7, 5, 5, 4, 4, 3, 2, 1, 1])
CHOSEN = np.array([[[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]] * 2, np.float32)
CHOSEN[1] = [[2, 0, 0, 1, 0], [1.5, 0, 0, 0.2, 0]]


def _tokens():
  codebooks = np.random.default_rng(0).normal(size=(2, KINDS, 3))
  return policy.Tokens(
    jnp.asarray(codebooks, jnp.float32), jnp.zeros((9, 3)), jnp.asarray(FIRST)
  )


def _shown():
  return Shown(
    jnp.asarray(ITEMS),
    jnp.asarray(LIKED, jnp.float32),
    jnp.zeros(len(ITEMS), jnp.int32),
    jnp.asarray(AGO),
    jnp.int32(9),
  )


def _counted():
  """Likes and items by age, and the newest ten likes; [2 AGES + 1, KINDS]."""
  rows = np.zeros((2 * AGES + 1, KINDS))
  left = 10
  for item, liked, ago in zip(ITEMS[::-1], LIKED[::-1], AGO[::-1], strict=True):
    if item:
      age = min(ago, AGES) - 1
      rows[age, FIRST[item]] += liked
      rows[AGES + age, FIRST[item]] += 1
      if liked and left:
        rows[-1, FIRST[item]] += 1
        left -= 1
  return rows


def _like():
  vectors = np.asarray(_tokens().codebooks[0], np.float64)
  centred = vectors - vectors.mean(0)
  unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
  return np.maximum(unit @ unit.T, 0.0)


class KindsTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_equals_plain_numpy(self, semantic):
    kinds, rng = Kinds(semantic), np.random.default_rng(1)
    args = (_tokens(), _shown(), jnp.asarray(CHOSEN))
    shapes = jax.eval_shape(kinds.init, jax.random.key(0), *args)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)
    found = jax.jit(kinds.apply)(params, *args)
    p, like = params["params"], _like() if semantic else np.eye(KINDS)
    rows = _counted()
    for slot in range(len(CHOSEN)):
      each = []
      for kind in range(KINDS):
        lately = [*rows[:, kind], *(rows @ like[:, kind])]
        chosen = [*CHOSEN[slot, :, kind], *(CHOSEN[slot] @ like[:, kind])]
        x = lately @ p["lately"]["kernel"] + p["lately"]["bias"]
        x = x + chosen @ p["chosen"]["kernel"] + p["own"][kind]
        x = np.maximum(x, 0.0) @ p["out"]["kernel"] + p["out"]["bias"]
        each.append(np.maximum(x, 0.0))
      expected = [*(np.sum(each, 0) / 4.0), *np.max(each, 0)]
      np.testing.assert_allclose(found[slot], expected, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
  absltest.main()
