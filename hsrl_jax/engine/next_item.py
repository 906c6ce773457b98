"""Learning from sequences of likes: a call is an epoch, an iteration a step.

The rows of an epoch come in a random order, each once; what is left over of the
last batch is left out.
"""

import jax
import jax.numpy as jnp

from hsrl_jax.engine import core, replay
from hsrl_jax.engine.core import Best, Inputs, Learner, Loop, Stream
from hsrl_jax.types import Array, Metrics


def init(
  loop: Loop, seed: Array, inputs: Inputs, part: Array | int = 0, parts: int = 1
) -> tuple[Learner, Stream]:
  """See `loop.Engine.init`; there are no users, so all parts are alike."""
  del part, parts
  key = jax.random.key(seed)
  params = loop.agent.init(jax.random.fold_in(key, 0), inputs.catalogue, None)
  nothing = Best(params, jnp.float32(core.NO_MEASURE), jnp.int32(0))
  # Copies, since all are donated.
  averaged, best = jax.tree.map(jnp.copy, (params, nothing))
  opt_state = loop.optimizer.init(params)
  learner = Learner(params, averaged, opt_state, key, jnp.int32(0), best)
  return learner, Stream((), (), replay.ReplayState((), jnp.int32(0)))


def run(
  loop: Loop,
  learner: Learner,
  stream: Stream,
  inputs: Inputs,
  axis_name: str | None = None,
) -> tuple[Learner, Stream, Metrics]:
  """See `loop.Engine.run`: an epoch over `inputs.logs`, packed rows."""
  steps, batch = loop.config.iterations_per_call, loop.config.batch_size
  epoch = learner.step // steps + 1
  key = jax.random.fold_in(learner.key, epoch)
  order = jax.random.permutation(key, len(inputs.logs.item))
  order = order[: steps * batch].reshape(steps, batch)
  device, devices = 0, 1
  if axis_name is not None:
    device, devices = jax.lax.axis_index(axis_name), jax.lax.psum(1, axis_name)
  share = -(-batch // devices)
  # Where a batch does not divide over the devices, some get rows of padding.
  own = device * share + jnp.arange(share)
  order = order.at[:, own].get(mode="fill", fill_value=len(inputs.logs.item))

  def step(learner, numbered):
    number, rows = numbered
    batch = jax.tree.map(
      lambda x: x.at[rows].get(mode="fill", fill_value=0), inputs.logs
    )
    loss_key = jax.random.fold_in(key, number)
    if axis_name is not None:
      loss_key = jax.random.fold_in(loss_key, device)

    def loss(params):
      total, targets = loop.agent.sequence_loss(
        params, inputs.catalogue, batch, loss_key
      )
      if axis_name is not None:
        targets = jax.lax.psum(targets, axis_name)
      mean = total / jnp.maximum(targets, 1) * devices
      return mean, {"loss": mean}

    learner, metrics = core.gradient_step(
      loop, learner, loss, axis_name=axis_name
    )
    return learner._replace(step=learner.step + 1), metrics

  learner, metrics = jax.lax.scan(step, learner, (jnp.arange(steps), order))
  return learner, stream, jax.tree.map(jnp.mean, metrics)
