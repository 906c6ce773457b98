"""Trains all seeds of a run: starts or resumes, measures and saves on the way.

Whatever an agent learns from, this is the loop on the host; the loop on the
devices is `engine.loop`.
"""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.config import TrainConfig
from hsrl_jax.engine import checkpoint, core, loop, parallel, processes
from hsrl_jax.engine import windows as windows_lib
from hsrl_jax.errors import InputError
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import speed, stop
from hsrl_jax.host import watch as watch_lib
from hsrl_jax.ops import tree
from hsrl_jax.types import Params

FOLDER = "policy"
CHECKPOINTS = "checkpoints"
_LONG = 20.0  # Seconds of training whose speed is worth a look.

# Parameters [S, ...] to what is written of them, counts for histograms, and a
# measure of each seed, [S], by which its best parameters are kept.
Curve = Callable[[Params], tuple[dict, dict, np.ndarray | None]]


def run(
  folder: pathlib.Path,
  engine: loop.Engine,
  inputs: core.Inputs,
  train: TrainConfig,
  watch: watch_lib.Watch,
  *,
  feeding: Callable = windows_lib.unchanged,
  start: Callable[[Params], Params] | None = None,
  curve: Callable[[Params], Curve] | None = None,
  patience: int | None = None,
) -> None:
  """Trains; writes checkpoints, metrics.jsonl and TensorBoard events.

  Resumes from the last checkpoint; what it then leaves is, bit for bit, what
  an uninterrupted run would have left. A signal to stop waits for the end of
  the call, then the state is saved.

  Args:
    folder: that is written to.
    engine: the loop on the devices.
    inputs: of the engine.
    train: how long, how many seeds, and what is done when.
    watch: counts the time of the phases.
    feeding: gives the inputs of each call, see `windows.feed`.
    start: makes of fresh parameters, [S, ...], those that training starts from;
      None: the fresh ones are.
    curve: makes of parameters, [S, ...], what measures them; None: nothing is.
    patience: iterations without a better measure after which training ends;
      None: it goes on to its end.

  Raises:
    FloatingPointError: a metric or parameter became NaN or infinite; such a
      state is not saved.
    InputError: the users do not divide over the devices, or `start` raises it.
  """
  layout = parallel.layout(len(train.seeds))
  with (
    stop.deferred(by_all=True) as signals,
    checkpoint.open_directory(folder / CHECKPOINTS) as checkpointer,
    feeding(checkpoint.latest_step(checkpointer)) as feed,
  ):
    with watch.phase("start"):
      placed, saved = _start(
        engine, inputs, layout, train.seeds, checkpointer, start
      )
    measure = None
    if curve is not None:
      measure = curve(parallel.target_params(placed[0], layout))
    learner, done = _iterate(
      parallel.over_devices(engine.run, layout),
      placed,
      feed,
      saved,
      train,
      layout,
      measure,
      patience,
      checkpointer,
      signals,
      watch,
    )
  watch.split_compilation("training", "curve")
  parallel.assert_replicated(learner, layout)
  spent = watch.seconds().get("training", 0.0)
  if (
    spent > _LONG and feeding is windows_lib.unchanged and processes.is_first()
  ):
    watch.speed = _speed(engine, inputs, train, done / spent)


def restore(
  folder: pathlib.Path,
  engine: loop.Engine,
  inputs: core.Inputs,
  seeds: tuple[int, ...],
) -> core.Learner:
  """The learner that `run` left, leaves [S, ...].

  Raises:
    InputError: no checkpoint can be read.
  """
  like = parallel.shapes(engine.init, seeds, inputs)
  path = folder / CHECKPOINTS
  with checkpoint.open_directory(path, read_only=True) as checkpointer:
    restored = checkpoint.restore_latest(checkpointer, like)
  if restored is None:
    raise InputError(
      f"{path}: no checkpoint can be read; delete {folder.parent}/.done/policy "
      "and run --mode=policy again"
    )
  return restored[0]


def by_seed(params: Params) -> list[Params]:
  """Parameters with leading axis S as one pytree a seed."""
  return [_of_seed(params, i) for i in range(len(jax.tree.leaves(params)[0]))]


@jax.jit
def _of_seed(params: Params, i: int) -> Params:
  return jax.tree.map(lambda x: x[i], params)


def _speed(
  engine: loop.Engine, inputs: core.Inputs, train: TrainConfig, rate: float
) -> dict[str, float]:
  """See `speed.of_training`; `rate` is in iterations a second."""
  seeds = len(train.seeds)
  own = jax.eval_shape(engine.init, jnp.int32(0), inputs)
  slates = seeds * (train.batch_size if train.from_logs else train.users)
  return speed.of_training(
    engine.run, (*own, inputs), seeds, train.iterations_per_call, slates, rate
  )


def _start(
  engine: loop.Engine,
  inputs: core.Inputs,
  layout: parallel.Layout,
  seeds: tuple[int, ...],
  checkpointer,
  start: Callable[[Params], Params] | None,
) -> tuple[tuple, int]:
  """Learner, stream and inputs, placed, and the step to go on from.

  The state is that of the latest checkpoint, or a fresh one. A fresh one with
  parameters of `start` is saved, so that what they came from is needed no more.
  """
  try:
    state = parallel.init(engine.init, seeds, inputs, layout)
  except ValueError as error:
    raise InputError(str(error)) from error
  restored = checkpoint.restore_latest(checkpointer, state)
  if restored is None and start is not None:
    params = start(parallel.one_copy(state[0].params))
    state = (_with_params(state[0], params), state[1])
    checkpoint.save(checkpointer, 0, state)
  state = restored or state
  saved = int(parallel.one_copy(state[0].step)[0])
  return parallel.place(*state, inputs, layout), saved


def _with_params(learner: core.Learner, params: Params) -> core.Learner:
  """A fresh learner that starts from other parameters."""

  def put(x, old):
    return jax.device_put(np.asarray(x), old.sharding)

  return learner._replace(
    params=jax.tree.map(put, params, learner.params),
    target_params=jax.tree.map(put, params, learner.target_params),
  )


def _iterate(
  call: Callable,
  placed: tuple,
  feed: windows_lib.Feed,
  saved: int,
  train: TrainConfig,
  layout: parallel.Layout,
  measure: Curve | None,
  patience: int | None,
  checkpointer,
  signals: stop.Deferral,
  watch: watch_lib.Watch,
) -> tuple[core.Learner, int]:
  """Iterates to the end, or to a signal."""
  learner, stream, inputs = placed
  folder = pathlib.Path(checkpointer.directory).parent
  first, begun = processes.is_first(), saved
  steps = train.profile_range if first else None
  per_call, step = train.iterations_per_call, saved
  with (
    metrics_lib.MetricsWriter(folder, saved)
    if first
    else contextlib.nullcontext() as writer,
    watch_lib.bar(
      train.iterations,
      "policy" if patience is None else "policy (at most)",
      "it",
      saved,
    ) as bar,
    watch_lib.profiler(folder / "profile", steps) as profiler,
  ):
    end = _end(learner, layout, train, patience)
    while step < end:
      profiler(step + 1, step + per_call)
      inputs = feed(step, inputs)
      step += per_call
      with watch.phase("training"):
        learner, stream, measured = call(learner, stream, inputs)
        measured = metrics_lib.seed_means(measured)
      profiler(step + 1, step + per_call)
      bad = tree.first_not_finite(measured)
      if bad:  # A parameter says more than a metric.
        own, _ = parallel.collect(learner, stream, layout)
        bad = tree.first_not_finite(parallel.one_copy(own)) or bad
        raise _not_finite(bad, step, saved, checkpointer.directory, train)
      if first:
        writer.write(step, measured)
      due = step % train.curve_every == 0 or step == train.iterations
      if first and measure is not None and due:
        with watch.phase("curve"):
          evaluated = parallel.target_params(learner, layout)
          point, counts, measures = measure(evaluated)
        bar.set_postfix(_in_short(point))
        if patience is not None:
          learner = _keep_best(learner, layout, measures, step, patience)
          point["kept"] = _kept(learner, layout)
        writer.write(step, {"eval": point}, counts)
      end = _end(learner, layout, train, patience)
      bar.total = end
      bar.update(per_call)
      last = step >= end or signals.due()
      if last or step % train.save_every == 0:
        state = parallel.collect(learner, stream, layout)
        bad = tree.first_not_finite(parallel.one_copy(state[0]))
        if bad:
          raise _not_finite(bad, step, saved, checkpointer.directory, train)
        with watch.phase("checkpoints"):
          checkpoint.save(checkpointer, step, state)
        saved = step
      if last:
        break
  return learner, step - begun


def _in_short(point: dict[str, Any]) -> dict[str, str]:
  """The first measure of a point of the curve, for a progress bar."""
  name, found = next(iter(point.items()))
  return {f"val_{name}": f"{found['mean']:.4g}"}


def _keep_best(
  learner: core.Learner,
  layout: parallel.Layout,
  measures: np.ndarray,
  step: int,
  patience: int,
) -> core.Learner:
  """The learner that remembers the best parameters of each seed.

  A seed without a better measure for longer than `patience` has ended, though
  others go on beside it: what it would find later does not count.
  """
  since = step - np.asarray(parallel.part(learner, layout, core.best_step))
  measures = np.where(since > patience, core.NO_MEASURE, measures)
  return parallel.on_learner(
    core.keep_best, learner, layout, measures.astype(np.float32)
  )


def _kept(learner: core.Learner, layout: parallel.Layout) -> dict[str, list]:
  """Iteration and measure of the best parameters so far, by seed."""
  best = parallel.part(learner, layout, lambda x: x.best._replace(params=()))
  return {
    "step": np.asarray(best.step).tolist(),
    "measure": np.asarray(best.measure).tolist(),
  }


def _end(
  learner: core.Learner,
  layout: parallel.Layout,
  train: TrainConfig,
  patience: int | None,
) -> int:
  """The iteration at which training ends, as far as is known yet."""
  if patience is None:
    return train.iterations
  best = parallel.part(learner, layout, core.best_step)
  return min(train.iterations, int(np.max(best)) + patience)


def _not_finite(
  bad: str, step: int, saved: int, folder, train: TrainConfig
) -> FloatingPointError:
  """The error of a state that is not worth saving."""
  prefix = "next_item_" if train.recipe == "next_item" else ""
  kept = f"{saved} is the last good one" if saved else "none is good"
  return FloatingPointError(
    f"{bad} is not finite by iteration {step}; of the checkpoints in {folder} "
    f"{kept}: lower --{prefix}learning_rate, in a new --workdir"
  )
