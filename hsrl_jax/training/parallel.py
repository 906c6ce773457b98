"""Seeds and users over devices; the only place with `jax.pmap`.

Where there are at least as many seeds as devices, each device trains seeds of
its own and nothing crosses devices. Else the devices share the users of every
seed. Seeds of one device follow one another on a CPU, where a batch of small
networks is slower than the networks in turn, and gives other roundings; on
accelerators they run side by side under a vmap.

The state of S seeds is a learner with leaves [S, ...] and a stream with leaves
[D, S, ...], where D devices share a seed's users. `place` brings it to the
devices, `collect` back.
"""

from collections.abc import Callable
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.ops import tree

AXIS = "devices"


class Layout(NamedTuple):
  """How seeds lie on devices.

  Attributes:
    seeds: S.
    devices: all there are.
    by_seed: whether each device has seeds of its own.
  """

  seeds: int
  devices: int
  by_seed: bool

  @property
  def user_devices(self) -> int:
    """D, the devices that share the users of a seed."""
    return 1 if self.by_seed else self.devices


def layout(seeds: int) -> Layout:
  """The layout of S seeds on the local devices."""
  devices = jax.local_device_count()
  return Layout(seeds, devices, seeds >= devices > 1)


def init(engine_init: Callable, seeds: tuple[int, ...], inputs, layout: Layout):
  """The state of all seeds, by an Engine's `init`."""

  def of_seed(seed, inputs):
    return engine_init(seed, inputs, layout.user_devices)

  by_seed = jax.vmap(of_seed, in_axes=(0, None), out_axes=(0, 1))
  return jax.jit(by_seed)(jnp.array(seeds), inputs)


def over_seeds(run: Callable) -> Callable:
  """`run(learner, stream, ...)` of one seed for states with leaves [S, ...]."""
  if jax.default_backend() != "cpu":
    return lambda learner, stream, *rest: jax.vmap(
      lambda learner, stream: run(learner, stream, *rest)
    )(learner, stream)

  def of_all(learner, stream, *rest):
    def of_seed(seed, learner, stream):
      state = jax.tree.map(lambda x: x[seed], (learner, stream))
      # What is fused with what is around would round differently.
      new = run(*jax.lax.optimization_barrier(state), *rest)
      return jax.lax.optimization_barrier(new)

    metrics = jax.tree.map(
      lambda x: jnp.zeros((len(learner.step), *x.shape), x.dtype),
      jax.eval_shape(of_seed, 0, learner, stream)[2],
    )

    def body(seed, carry):
      new = of_seed(seed, *carry[:2])
      return jax.tree.map(lambda x, y: x.at[seed].set(y), carry, new)

    # A loop whose length the compiler does not know: unrolled or not, it would
    # round differently, and a seed alone would not do what it does in company.
    count = len(learner.step) + jnp.minimum(learner.step[0], 0)
    return jax.lax.fori_loop(0, count, body, (learner, stream, metrics))

  return of_all


def over_devices(run: Callable, layout: Layout) -> Callable:
  """Maps an Engine's `run` over seeds and devices.

  Returns:
    (learner, stream, inputs) -> (learner, stream, metrics) of states as `place`
    leaves them, which are donated; metrics are [S]. Where devices share a
    seed, what `run` returns for the learner and the metrics must be the same on
    all of them, since one copy is kept unchecked: see `assert_replicated`.
  """
  if layout.by_seed:
    return _on_each(run, layout)
  axis_name = AXIS if layout.devices > 1 else None

  def of_device(learner, stream, inputs):
    return over_seeds(run)(learner, stream, inputs, axis_name)

  return jax.pmap(
    of_device,
    axis_name=AXIS,
    in_axes=(None, 0, None),
    out_axes=(None, 0, None),
    donate_argnums=(0, 1),
  )


def _on_each(run: Callable, layout: Layout) -> Callable:
  # Programs of one device each, not one program of all devices, which is
  # compiled otherwise and rounds otherwise: a seed is to do what it does alone.
  of_device = jax.jit(over_seeds(run), donate_argnums=(0, 1))
  pool = futures.ThreadPoolExecutor(layout.devices)  # Compiles side by side.

  def run_all(learners, streams, inputs):
    results = list(pool.map(of_device, learners, streams, inputs))
    learners, streams, metrics = zip(*results, strict=True)
    return learners, streams, _join(metrics)

  return run_all


def place(learner, stream, inputs, layout: Layout):
  """Puts a loop's arguments where the mapped `run` wants them.

  Without it the second call would find its arguments placed otherwise than
  the first, and compile again. Where each device has seeds of its own, what is
  returned are tuples with an entry for each device.
  """
  devices = jax.local_devices()
  if layout.by_seed:
    stream = jax.tree.map(lambda x: x[0], stream)

    def spread(x):
      own = [
        jax.tree.map(lambda a, d=d: a[d :: layout.devices], x)
        for d in range(layout.devices)
      ]
      return tuple(map(jax.device_put, own, devices))

    everywhere = tuple(jax.device_put(inputs, d) for d in devices)
    return spread(learner), spread(stream), everywhere
  mesh = jax.sharding.Mesh(devices, (AXIS,))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
  return (
    jax.device_put(learner, everywhere),
    jax.device_put(stream, split),
    jax.device_put(inputs, everywhere),
  )


def collect(learner, stream, layout: Layout):
  """Learner and stream as they were before `place`."""
  if layout.by_seed:
    return _join(learner), jax.tree.map(lambda x: x[None], _join(stream))
  return one_copy(learner), stream


def target_params(learner, layout: Layout):
  """A placed learner's averaged parameters, [S, ...], on the first device."""
  if layout.by_seed:
    return _join([x.target_params for x in learner])
  return one_copy(learner.target_params)


def _join(parts):
  """What devices have of their seeds, [S, ...] on the first device."""
  first = jax.local_devices()[0]
  parts = [jax.device_put(x, first) for x in parts]
  seeds = sum(len(jax.tree.leaves(x)[0]) for x in parts)

  def join(*leaves):
    x = jnp.concatenate(leaves)
    order = [np.arange(d, seeds, len(parts)) for d in range(len(parts))]
    return x[np.argsort(np.concatenate(order))]

  return jax.tree.map(join, *parts)


def one_copy(x):
  """A replicated pytree on the first device alone."""
  return jax.tree.map(lambda a: a.addressable_shards[0].data, x)


def assert_replicated(learner, layout: Layout) -> None:
  """Raises AssertionError where devices hold different copies of a learner."""
  if layout.by_seed:
    return
  prints = [
    float(
      tree.fingerprint(jax.tree.map(lambda a, d=d: _copy_on(a, d), learner))
    )
    for d in range(layout.devices)
  ]
  if len(set(prints)) != 1:
    raise AssertionError(f"devices hold different copies: {prints}")


def _copy_on(x: jax.Array, device: int) -> np.ndarray:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  shards = x.addressable_shards
  return np.asarray(shards[min(device, len(shards) - 1)].data)
