"""Seeds and users over devices; the only place with `jax.pmap`.

Where one process has at least as many seeds as devices, each device trains
seeds of its own and nothing crosses devices. Else, and always where there are
many processes, all devices of all processes share the users of every seed: a
process makes and holds the users of its own devices only, and what the devices
exchange is one vector an iteration. On a CPU a device trains its seeds in turn,
each by the program that it has alone, which is faster than a batch of small
networks and rounds alike; on accelerators they run side by side under a vmap.

The state of S seeds is a learner with leaves [S, ...] and a stream with leaves
[S, U, ...], of all U users, in the ring [S, C, U, ...]. It says nothing of
devices, so that a checkpoint of it goes on with another number of them; where
devices share the users, its arrays are spread over all processes. `place`
brings it to the devices, `collect` back.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent import futures
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from hsrl_jax.config import TrainConfig
from hsrl_jax.ops import compilation, tree

AXIS = "devices"
# The fewest users of a device on a CPU. With eight an iteration already takes
# more time for each user than with sixteen.
_FEWEST = 8


class Layout(NamedTuple):
  """How seeds lie on devices."""

  seeds: int  # S.
  devices: int  # All there are, of all processes.
  # Whether each device has seeds of its own; else all share users.
  by_seed: bool
  # The devices, where they are not there and programs are compiled for them
  # alone; empty: those of this job.
  described: tuple[jax.Device, ...] = ()

  @property
  def platform(self) -> str:
    """The kind of the devices, as jax names it."""
    if self.described:
      return self.described[0].platform
    return jax.default_backend()

  @property
  def groups(self) -> int:
    """G of seeds that train at once, where `by_seed`: g, g + G, and so on."""
    return self.seeds if self.platform == "cpu" else self.devices


def use_cores(train: TrainConfig) -> None:
  """Has JAX make devices of a CPU's cores, before it is first used.

  Several seeds have a core each; a single one shares its users among cores. It
  does nothing where the user's environment says how many devices there are.
  """
  if "XLA_FLAGS" in os.environ or jax.config.jax_num_cpu_devices > 0:
    return
  cores, seeds = len(os.sched_getaffinity(0)), len(train.seeds)
  devices = min(cores, seeds)
  if seeds == 1 and train.recipe != "next_item":
    parts = range(1, min(cores, train.users // _FEWEST) + 1)
    devices = max((n for n in parts if train.users % n == 0), default=1)
  jax.config.update("jax_num_cpu_devices", devices)


def layout(seeds: int, described: Sequence[jax.Device] = ()) -> Layout:
  """The layout of S seeds on all devices of all processes, or on others."""
  devices = len(described) or jax.device_count()
  hosts = len({x.process_index for x in described}) or jax.process_count()
  by_seed = hosts == 1 and seeds >= devices
  return Layout(seeds, devices, by_seed, tuple(described))


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
  of_all = _of_all(engine_init, seeds)
  if layout.by_seed:
    return of_all(inputs)
  parts = [
    jax.device_put(of_all(inputs, part, layout.devices), device)
    for part, device in enumerate(_devices(layout))
    if device.process_index == jax.process_index()
  ]
  learners, streams = zip(*parts, strict=True)
  return _assembled(learners, streams, layout)


def shapes(engine_init: Callable, seeds: tuple[int, ...], inputs, parts=1):
  """Shapes of `init`, as jax.ShapeDtypeStruct without a device.

  Streams are those of one of so many equal `parts` of the users.
  """

  def of_seed(seed, inputs):
    part = () if parts == 1 else (0, parts)
    return engine_init(seed, inputs, *part)

  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((len(seeds), *x.shape), x.dtype),
    jax.eval_shape(of_seed, jnp.int32(0), inputs),
  )


def _of_all(engine_init: Callable, seeds: tuple[int, ...]) -> Callable:
  """Returns (*rest) -> the states of all seeds, each by a program of its own.

  Mapped over seeds it would round differently with another number of them.
  """

  def of_seed(seed, *rest):
    return jax.tree.map(lambda x: x[None], engine_init(seed, *rest))

  of_seed = compilation.once(of_seed, static_argnums=3)
  return lambda *rest: _join([of_seed(np.int32(x), *rest) for x in seeds])


def over_seeds(run: Callable, platform: str | None = None) -> Callable:
  """`run(learner, stream, ...)` of one seed for states with leaves [S, ...].

  Args:
    run: of one seed.
    platform: that it is compiled for; None: the one at hand.
  """
  on_cpu = (platform or jax.default_backend()) == "cpu"

  def of_all(learner, stream, *rest):
    def of_seed(state):
      return run(*state, *rest)

    if on_cpu:
      return jax.lax.map(of_seed, (learner, stream))
    return jax.vmap(of_seed)((learner, stream))

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

  def of_device(learner, stream, inputs):
    return over_seeds(run, layout.platform)(learner, stream, inputs, AXIS)

  mapped = jax.pmap(
    of_device,
    axis_name=AXIS,
    in_axes=(None, 0, None),
    out_axes=(None, 0, None),
    donate_argnums=(0, 1),
    devices=layout.described or None,
  )
  # The compiled program takes arrays of all processes; `place` makes those of
  # this process alone, which jax.pmap itself takes.
  alone = jax.process_count() == 1 and not layout.described
  return compilation.often_mapped(mapped) if alone else mapped


def of_group(run: Callable, platform: str | None = None) -> Callable:
  """The program of a group of seeds; see `Layout.groups`, `over_seeds`."""
  of_all = over_seeds(run, platform)
  return compilation.often(of_all, platform, donate_argnums=(0, 1))


def lowered(
  init: Callable, run: Callable, seeds: tuple[int, ...], inputs, layout: Layout
) -> jax.stages.Lowered:
  """An Engine's `run` for a described device, as `over_devices` would have it.

  Args:
    init: of the engine.
    run: of the engine.
    seeds: all of them, or those of one device where `layout.by_seed`.
    inputs: of the engine, arrays or their shapes.
    layout: of described devices.

  Raises:
    ValueError: the users do not divide over the devices.
  """
  parts = 1 if layout.by_seed else layout.devices
  given = *shapes(init, seeds, inputs, parts), inputs
  if layout.by_seed:
    chip = jax.sharding.SingleDeviceSharding(layout.described[0])
    given = _shapes(given, sharding=chip)
    return of_group(run, layout.platform).lower(*given)
  learner, stream, inputs = _shapes(given)
  stream = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((parts, *x.shape), x.dtype), stream
  )
  return over_devices(run, layout).lower(learner, stream, inputs)


def _shapes(x, **where):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, **where), x
  )


def _on_each(run: Callable, layout: Layout) -> Callable:
  # A program of one device, not one of all devices, which is compiled otherwise
  # and rounds otherwise: a seed is to do what it does alone.
  program = of_group(run)
  pool = futures.ThreadPoolExecutor(layout.devices)  # Compiles side by side.

  def run_all(learners, streams, inputs):
    own = itertools.cycle(inputs)
    results = list(pool.map(program, learners, streams, own))
    learners, streams, metrics = zip(*results, strict=True)
    return learners, streams, _join(metrics)

  return run_all


def place(learner, stream, inputs, layout: Layout):
  """Puts a loop's arguments where the mapped `run` wants them.

  Without it the second call would find its arguments placed otherwise than
  the first, and compile again. Where each device has seeds of its own, what is
  returned are tuples: of states with an entry for each of `Layout.groups`, of
  inputs for each device; else streams have a leading axis of this process's
  devices.
  """
  devices = jax.local_devices()[: layout.devices]
  if layout.by_seed:
    states = _split((learner, stream), layout.groups)
    states = map(jax.device_put, states, itertools.cycle(devices))
    return *zip(*states, strict=True), everywhere(inputs, layout)
  mesh = jax.sharding.Mesh(devices, (AXIS,))
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))

  # A state that one device holds, such as one read for it, is spread now.
  stream = jax.device_put(stream, _shardings(stream, layout))

  def whole(*rows):
    shape = (len(rows), *rows[0].shape[1:])
    return jax.make_array_from_single_device_arrays(shape, split, list(rows))

  return (
    everywhere(one_copy(learner), layout),
    jax.tree.map(whole, *map(_as_row(), _parts(stream, devices))),
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
  streams = [_of_row()(x) for x in _parts(stream, devices)]
  return _assembled(_parts(learner, devices), streams, layout)


# One program each for all leaves, where each leaf would compile its own.
@cache
def _as_row() -> Callable:
  """Adds a leading axis of one device to a device's part of a state."""
  return compilation.once(partial(jax.tree.map, lambda x: x[None]))


@cache
def _of_row() -> Callable:
  """Removes that axis from a device's part of a placed state."""
  return compilation.once(partial(jax.tree.map, lambda x: x[0]))


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


def _parts(x, devices) -> list:
  """Parts of a pytree, one of each local device."""
  leaves, structure = jax.tree.flatten(x)
  own = [{y.device: y.data for y in leaf.addressable_shards} for leaf in leaves]
  return [structure.unflatten(y[device] for y in own) for device in devices]


def part(learner, layout: Layout, pick: Callable):
  """A part of a placed learner by `pick`, [S, ...], on the first device."""
  if layout.by_seed:
    return _join([pick(x) for x in learner])
  return one_copy(pick(learner))


def target_params(learner, layout: Layout):
  """A placed learner's averaged parameters, see `part`."""
  return part(learner, layout, lambda x: x.target_params)


def on_learner(change: Callable, learner, layout: Layout, values: np.ndarray):
  """A placed learner changed by a function of one seed and its value, [S]."""
  of_seeds = jax.jit(jax.vmap(change))
  if not layout.by_seed:
    return everywhere(of_seeds(one_copy(learner), values), layout)
  groups = range(len(learner))
  return tuple(of_seeds(learner[g], values[g :: len(learner)]) for g in groups)


def _split(x, groups: int) -> list:
  """Splits all seeds [S, ...] by group; see `Layout.groups`."""

  def own(group: int):
    return jax.tree.map(lambda x: x[group::groups], words)

  if groups == 1:
    return [x]
  # By the host: a device would compile a program for each leaf.
  words = _on_host(x)
  return [jax.tree.map(tree.of_words, x, own(group)) for group in range(groups)]


def _join(parts):
  """Joins groups of seeds to [S, ...] on the first device."""
  parts = list(parts)
  if len(parts) == 1:
    return jax.device_put(parts[0], jax.local_devices()[0])
  seeds = sum(len(jax.tree.leaves(x)[0]) for x in parts)
  order = [np.arange(g, seeds, len(parts)) for g in range(len(parts))]
  order = np.argsort(np.concatenate(order))

  words = jax.tree.map(lambda *x: np.concatenate(x)[order], *_on_host(parts))
  joined = jax.tree.map(tree.of_words, parts[0], words)
  return jax.device_put(joined, jax.local_devices()[0])


def _on_host(x):
  return jax.device_get(jax.tree.map(tree.words, x))


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
  shards = tree.words(x).addressable_shards
  return np.asarray(shards[min(device, len(shards) - 1)].data)
