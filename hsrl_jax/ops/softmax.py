"""Cross-entropy over a whole catalogue without the table of all logits."""

import jax
import jax.numpy as jnp

from hsrl_jax.types import Array

_CHUNK = 256  # States whose logits are held at once; they stay in cache.


def catalogue_loss(states: Array, rows: Array, target: Array) -> Array:
  """Sum of -log softmax(rows x)[target] over the states x.

  Item 0 is padding: it takes part in no softmax, and states whose target it is
  count nothing. Loss and gradient come in one pass over chunks of states, so
  memory does not grow with M N.

  Args:
    states: float32 [M, d].
    rows: float32 [N + 1, d].
    target: int32 [M], the items that came next.

  Returns:
    float32 [].
  """
  return _loss(states, rows, target)


@jax.custom_vjp
def _loss(states, rows, target):
  return _forward(states, rows, target)[0]


def _forward(states, rows, target):
  count = -(-len(target) // _CHUNK)
  missing = count * _CHUNK - len(target)
  padded = jnp.pad(states, ((0, missing), (0, 0)))
  padded = padded.reshape(count, _CHUNK, -1)
  targets = jnp.pad(target, (0, missing)).reshape(count, _CHUNK)

  def step(carry, inputs):
    loss, of_rows = carry
    x, y = inputs
    logits = (x @ rows.T).at[:, 0].set(-jnp.inf)
    largest = logits.max(1, keepdims=True)
    weights = jnp.exp(logits - largest)
    norm = weights.sum(1, keepdims=True)
    counts = (y > 0).astype(jnp.float32)
    at = jnp.arange(_CHUNK)
    own = jnp.where(y > 0, logits[at, y], 0.0)
    loss += (counts * (jnp.log(norm) + largest)[:, 0] - own).sum()
    of_logits = weights * (counts[:, None] / norm)
    of_logits = of_logits.at[at, y].add(-counts)
    return (loss, of_rows + of_logits.T @ x), of_logits @ rows

  start = (jnp.zeros(()), jnp.zeros_like(rows))
  (loss, of_rows), of_states = jax.lax.scan(step, start, (padded, targets))
  of_states = of_states.reshape(-1, states.shape[1])[: len(states)]
  return loss, (of_states, of_rows)


def _backward(saved, grad):
  of_states, of_rows = saved
  return grad * of_states, grad * of_rows, None


_loss.defvjp(_forward, _backward)
