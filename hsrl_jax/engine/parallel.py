"""Seeds and users over devices; the only place with `jax.pmap`.

Where one process has at least as many seeds as devices, each device trains
seeds of its own and nothing crosses devices. Else, and always where there are
many processes, all devices of all processes share the users of every seed: a
process makes and holds the users of its own devices only, and what the devices
exchange is one vector an iteration. Seeds of one device follow one another on
a CPU, where a batch of small networks is slower than the networks in turn, and
gives other roundings; on accelerators they run side by side under a vmap.

The state of S seeds is a learner with leaves [S, ...] and a stream with leaves
[S, U, ...], of all U users, in the ring [S, C, U, ...]. It says nothing of
devices, so that a checkpoint of it goes on with another number of them; where
devices share the users, its arrays are spread over all processes. `place`
brings it to the devices, `collect` back.
"""

from collections.abc import Callable
from concurrent import futures
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from hsrl_jax.ops import tree

AXIS = "devices"


class Layout(NamedTuple):
  """How seeds lie on devices.

  Attributes:
    seeds: S.
    devices: all there are, of all processes.
    by_seed: whether each device has seeds of its own.
  """

  seeds: int
  devices: int
  by_seed: bool

  @property
  def shares_users(self) -> bool:
    """Whether more than one device has users of the same seed."""
    return self.devices > 1 and not self.by_seed


def layout(seeds: int) -> Layout:
  """The layout of S seeds on all devices of all processes."""
  devices = jax.device_count()
  alone = jax.process_count() == 1
  return Layout(seeds, devices, alone and seeds >= devices > 1)


def meet() -> None:
  """Connects all devices; called by all processes at about the same time.

  Gloo waits 30 s for the others where devices meet first, which compilation,
  sooner done on one host than on another, may exceed; later on it just waits.
  """
  multihost_utils.sync_global_devices("meet")
  total = jax.pmap(lambda x: jax.lax.psum(x, AXIS), axis_name=AXIS)
  jax.block_until_ready(total(np.ones(jax.local_device_count())))


def init(engine_init: Callable, seeds: tuple[int, ...], inputs, layout: Layout):
  """The state of all seeds, by an Engine's `init`."""
  if not layout.shares_users:
    return _of_all(jax.jit(engine_init), seeds, inputs)
  of_part = jax.jit(engine_init, static_argnums=3)
  states = [
    jax.device_put(
      _of_all(of_part, seeds, inputs, part, layout.devices), device
    )
    for part, device in enumerate(_devices(layout))
    if device.process_index == jax.process_index()
  ]
  learners, streams = zip(*states, strict=True)
  return _assembled(learners, streams, layout)


def shapes(engine_init: Callable, seeds: tuple[int, ...], inputs):
  """What `init` returns, as jax.ShapeDtypeStruct without a device."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(seeds), *x.shape), x.dtype),
    jax.eval_shape(engine_init, jnp.int32(0), inputs),
  )


def _of_all(engine_init: Callable, seeds: tuple[int, ...], *rest):
  """The states of all seeds, each by the program that it has alone.

  Mapped over seeds it would round differently with another number of them.
  """
  each = [engine_init(seed, *rest) for seed in jnp.array(seeds)]
  return jax.tree.map(lambda *x: jnp.stack(x), *each)


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
      learner, stream, metrics = carry
      new_learner, new_stream, new_metrics = of_seed(seed, learner, stream)
      learner, metrics = jax.tree.map(
        lambda x, y: x.at[seed].set(y),
        (learner, metrics),
        (new_learner, new_metrics),
      )
      # In place, where a scatter would copy the replay. A learner that is put
      # back so would be rounded otherwise alone than in company.
      stream = jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, seed, 0),
        stream,
        new_stream,
      )
      return learner, stream, metrics

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
  returned are tuples with an entry for each device; else streams have a leading
  axis of this process's devices.
  """
  devices = jax.local_devices()[: layout.devices]
  if layout.by_seed:

    def spread(x):
      own = [
        jax.tree.map(lambda a, d=d: a[d :: layout.devices], x)
        for d in range(layout.devices)
      ]
      return tuple(map(jax.device_put, own, devices))

    return spread(learner), spread(stream), everywhere(inputs, layout)
  mesh = jax.sharding.Mesh(devices, (AXIS,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

  # A state that one device holds, such as one read for it, is spread now.
  stream = jax.device_put(stream, _shardings(stream, layout))

  def rows(x):
    own = [x[None] for x in _on_devices(x, devices)]
    shape = (len(own), *own[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, split, own)

  return (
    everywhere(one_copy(learner), layout),
    jax.tree.map(rows, stream),
    everywhere(inputs, layout),
  )


def everywhere(x, layout: Layout):
  """A pytree on all devices of this process, as `place` leaves inputs."""
  devices = jax.local_devices()[: layout.devices]
  if layout.by_seed:
    return tuple(jax.device_put(x, d) for d in devices)
  mesh = jax.sharding.Mesh(devices, (AXIS,))
  spec = jax.sharding.PartitionSpec()
  return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))


def collect(learner, stream, layout: Layout):
  """Learner and stream as they were before `place`."""
  if layout.by_seed:
    return _join(learner), _join(stream)
  devices = jax.local_devices()[: layout.devices]

  def parts(x):
    own = [_on_devices(a, devices) for a in jax.tree.leaves(x)]
    structure = jax.tree.structure(x)
    return [structure.unflatten(x) for x in zip(*own, strict=True)]

  streams = [jax.tree.map(lambda x: x[0], x) for x in parts(stream)]
  if not layout.shares_users:
    return one_copy(learner), streams[0]
  return _assembled(parts(learner), streams, layout)


def _assembled(learners, streams, layout: Layout):
  """The state of which each of this process's devices has a part."""
  shardings = _shardings(streams[0], layout)

  def join(sharding, *own):
    size = [layout.devices if x else 1 for x in sharding.spec]
    size += [1] * (own[0].ndim - len(size))
    return jax.make_array_from_single_device_arrays(
      tuple(np.multiply(own[0].shape, size)), sharding, list(own)
    )

  return (
    jax.tree.map(partial(join, shardings.replay.added), *learners),
    jax.tree.map(
      lambda s, *parts: jax.tree.map(partial(join, s), *parts),
      shardings,
      *streams,
    ),
  )


def _shardings(stream, layout: Layout):
  """How a stream lies on the devices that share its users, subtree-wise."""
  mesh = jax.sharding.Mesh(_devices(layout), (AXIS,))

  def sharding(*axes):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

  users = sharding(None, AXIS)
  return stream._replace(
    user=users,
    env=users,
    replay=stream.replay._replace(
      items=sharding(None, None, AXIS), added=sharding()
    ),
  )


def _devices(layout: Layout) -> list[jax.Device]:
  """All devices that share users, in the order that `jax.pmap` has them."""
  devices = [
    device
    for process in range(jax.process_count())
    for device in jax.local_devices(process)
  ]
  return devices[: layout.devices]


def _on_devices(x: jax.Array, devices) -> list[jax.Array]:
  """What each of some local devices has of an array."""
  own = {shard.device: shard.data for shard in x.addressable_shards}
  return [own[device] for device in devices]


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
    tree.digest(jax.tree.map(partial(_copy_on, device=d), learner))
    for d in range(min(layout.devices, jax.local_device_count()))
  ]
  prints = multihost_utils.process_allgather(np.array(prints, np.uint32))
  if len(set(prints.ravel().tolist())) != 1:
    raise AssertionError(f"devices hold different copies: {prints.tolist()}")


def _copy_on(x: jax.Array, device: int) -> np.ndarray:
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  shards = x.addressable_shards
  return np.asarray(shards[min(device, len(shards) - 1)].data)
