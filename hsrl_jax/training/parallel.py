"""The only place with `jax.pmap`."""

from collections.abc import Callable

import jax
import numpy as np

from hsrl_jax.ops import tree

AXIS = "devices"


def over_devices(run: Callable) -> Callable:
  """Maps `run(learner, stream, inputs, axis_name)` over the local devices.

  The learner and the inputs are the same everywhere; the stream has a leading
  axis of devices. Learner and stream are donated. What `run` returns for the
  learner and the metrics must be the same on all devices, since one copy is
  kept unchecked: see `assert_replicated`.
  """

  def step(learner, stream, inputs):
    return run(learner, stream, inputs, AXIS)

  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0, None),
    out_axes=(None, 0, None),
    donate_argnums=(0, 1),
  )


def place(learner, stream, inputs):
  """Puts a loop's arguments where the mapped `run` wants them.

  Without it the second call would find its arguments placed otherwise than
  the first, and compile again.
  """
  mesh = jax.sharding.Mesh(jax.local_devices(), (AXIS,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  return (
    jax.device_put(learner, everywhere),
    jax.device_put(stream, split),
    jax.device_put(inputs, everywhere),
  )


def one_copy(x):
  """A replicated pytree on the first device alone."""
  return jax.tree.map(lambda a: a.addressable_shards[0].data, x)


def assert_replicated(x) -> None:
  """Raises AssertionError where devices hold different copies of `x`."""
  prints = [
    float(tree.fingerprint(jax.tree.map(lambda a, d=d: _copy_on(a, d), x)))
    for d in range(jax.local_device_count())
  ]
  if len(set(prints)) != 1:
    raise AssertionError(f"devices hold different copies: {prints}")


def _copy_on(x: jax.Array, device: int) -> np.ndarray:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  shards = x.addressable_shards
  return np.asarray(shards[min(device, len(shards) - 1)].data)
