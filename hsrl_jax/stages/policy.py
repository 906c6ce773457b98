"""Stage `policy`: trains the agent in the simulator, or from logs."""

import contextlib
import functools
import pathlib
from collections.abc import Callable
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from hsrl_jax.agents import agent_of
from hsrl_jax.agents.base import ActionSpace, Agent
from hsrl_jax.config import Config, TrainConfig
from hsrl_jax.data import blocks
from hsrl_jax.engine import checkpoint, engines, loop, parallel, processes
from hsrl_jax.engine import windows as windows_lib
from hsrl_jax.errors import InputError
from hsrl_jax.evaluation import measures, simulate, statistics
from hsrl_jax.host import metrics as metrics_lib
from hsrl_jax.host import speed, stop
from hsrl_jax.host import watch as watch_lib
from hsrl_jax.ops import sampling, tree
from hsrl_jax.sid import SidIndex
from hsrl_jax.sim.user_simulator import EnvParams, UserSimulator
from hsrl_jax.stages import logged, next_item
from hsrl_jax.stages.parts import Parts
from hsrl_jax.types import Array, Observation, Params, Sessions

FOLDER = "policy"
_LONG = 20.0  # Seconds of training whose speed is worth a look.


def acting(agent: Agent, index: SidIndex) -> str:
  """How the agent finds a slate, in words."""
  if agent.on_policy is not None:
    return f"slot after slot, of {index.num_items:,} items"
  if not agent.beams:
    return f"each of {index.num_items:,} items is scored"
  return f"beam search, {agent.beams} beams, {index.num_items:,} items"


@functools.lru_cache(maxsize=4)  # As many as `agents.agent_of` keeps.
def greedy(agent: Agent) -> simulate.Act:
  """The agent's greedy policy; its `params` are (params, ActionSpace)."""

  def act(params, observation, excluded, key):
    params, catalogue = params
    if not agent.draws:
      key = None
    return agent.act(params, catalogue, observation, excluded, key, 1.0).slate

  return act


def shown(
  agent: Agent,
  params: Params,
  catalogue: ActionSpace,
  observation: Observation,
  excluded: Array,
) -> tuple[Array, Array, Array]:
  """The greedy slate of one user: items, log probabilities, which are valid.

  Agents fill a slate that is not full with items that are not to be shown;
  here these are 0, with -inf.

  Args:
    agent: made for slates of K.
    params: of the agent.
    catalogue: the items.
    observation: of the user.
    excluded: int32 [T], ids that may not be shown; 0 is ignored.

  Returns:
    int32 [K], float32 [K] and bool [K].
  """
  action = agent.act(params, catalogue, observation, excluded, None, 1.0)
  slate = action.slate
  # An id of 0 is not active.
  valid = catalogue.index.active[slate]
  valid &= ~(slate[:, None] == excluded[None]).any(1)
  return (
    jnp.where(valid, slate, 0),
    jnp.where(valid, action.log_prob, -jnp.inf),
    valid,
  )


def by_seed(config: TrainConfig, params: Params) -> list[Params]:
  """Parameters with leading axis S as one pytree a seed."""
  return [_of_seed(params, i) for i in range(len(config.seeds))]


@jax.jit
def _of_seed(params: Params, i: int) -> Params:
  return jax.tree.map(lambda x: x[i], params)


def run(
  config: Config,
  workdir: pathlib.Path,
  env: UserSimulator,
  catalogue: ActionSpace,
  users: EnvParams,
  val_users: EnvParams,
  val_rows: np.ndarray,
  logs: Sessions | blocks.Blocks,
  watch: watch_lib.Watch,
  start: Callable[[Params], Params] | None = None,
) -> None:
  """Trains; writes `policy/`: checkpoints, metrics.jsonl, TensorBoard events.

  Resumes from the last checkpoint; what it then leaves is, bit for bit, what
  an uninterrupted run would have left. A signal to stop waits for the end of
  the call, then the state is saved.

  Args:
    config: of the run.
    workdir: of the run.
    env: the simulator.
    catalogue: the items.
    users: the pool of the training split.
    val_users: the pool of the learning curve.
    val_rows: int32 [E], of that pool, of which its sessions are.
    logs: the training slates, for a run that learns from them; where they are
      on disk they are read by windows.
    watch: counts the time of the phases.
    start: makes of fresh parameters, [S, ...], those that training starts from;
      None: the fresh ones are.

  Raises:
    FloatingPointError: a metric or parameter became NaN or infinite; such a
      state is not saved.
    InputError: the users do not divide over the devices, or `start` raises it.
  """
  train, items = config.train, catalogue.index.num_items
  agent = agent_of(config, env.slate_size, items)
  folder = workdir / FOLDER
  if not agent.learns:
    folder.mkdir(parents=True, exist_ok=True)
    return
  engine = engines.make(agent, env, train)
  layout = parallel.layout(len(train.seeds))
  slates, feeding = None, windows_lib.unchanged
  if isinstance(logs, blocks.Blocks):
    windows = windows_lib.reader(logs, env.reward, env.observed_items)
    waiting = functools.partial(watch.phase, "waiting for slates")
    given = (*windows, train, layout, waiting)
    feeding = functools.partial(windows_lib.feed, *given)
  elif train.from_logs or agent.logged_share:
    _check_share(agent, env, logs)
    slates = logged.learned(logs, env.reward, items, env.observed_items)
  elif agent.offline:
    slates = loop.logged(logs, env.reward)
  inputs = loop.Inputs(catalogue, users, slates)
  curve = None
  with (
    futures.ThreadPoolExecutor(1) as beside,
    stop.deferred(by_all=True) as signals,
    checkpoint.open_directory(folder / "checkpoints") as checkpointer,
    feeding(checkpoint.latest_step(checkpointer)) as feed,
  ):
    with watch.phase("start"):
      placed, saved = _start(
        engine, inputs, layout, train.seeds, checkpointer, start
      )
    if not train.from_logs:  # Else no session is simulated.
      judged = catalogue, val_users, val_rows
      begin = parallel.target_params(placed[0], layout)
      curve = _curve(agent, env, config, *judged, begin, beside)
    learner, done = _train(
      parallel.over_devices(engine.run, layout),
      placed,
      feed,
      saved,
      train,
      layout,
      curve,
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


def _check_share(agent: Agent, env: UserSimulator, logs: Sessions) -> None:
  """Raises InputError where logged and simulated slates are no one batch."""
  if not agent.logged_share:
    return
  own, simulated = logs.exposed.shape[1], env.slate_size
  if own != simulated:
    raise InputError(
      f"--logged_share={agent.logged_share:g}: logged slates have {own} items, "
      f"simulated ones {simulated}; expected as many, or no --logged_share"
    )


def _speed(
  engine: loop.Engine, inputs: loop.Inputs, train: TrainConfig, rate: float
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
  inputs: loop.Inputs,
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


def _with_params(learner: loop.Learner, params: Params) -> loop.Learner:
  """A fresh learner that starts from other parameters."""

  def put(x, old):
    return jax.device_put(np.asarray(x), old.sharding)

  return learner._replace(
    params=jax.tree.map(put, params, learner.params),
    target_params=jax.tree.map(put, params, learner.target_params),
  )


def _train(
  iterate: Callable,
  placed: tuple,
  feed: windows_lib.Feed,
  saved: int,
  train: TrainConfig,
  layout: parallel.Layout,
  curve: Callable[[Params], tuple[dict, dict]] | None,
  checkpointer,
  signals: stop.Deferral,
  watch: watch_lib.Watch,
) -> tuple[loop.Learner, int]:
  """Iterates to the end, or to a signal; measures and saves on the way.

  Args:
    iterate: one call of the device, of `parallel.over_devices`.
    placed: learner, stream and inputs where it wants them.
    feed: gives the inputs of the next call.
    saved: step of the last checkpoint.
    train: how long, and what is done when.
    layout: of seeds and devices.
    curve: parameters -> metrics and token counts, see `_curve`; or None.
    checkpointer: where states are saved; metrics lie beside its folder.
    signals: tells whether to stop.
    watch: counts the time of the phases.

  Returns:
    The placed learner at the end, and how many iterations there were.
  """
  learner, stream, inputs = placed
  done = 0
  folder, first = (
    pathlib.Path(checkpointer.directory).parent,
    processes.is_first(),
  )
  steps = train.profile_range if first else None
  per_call = train.iterations_per_call
  with (
    metrics_lib.MetricsWriter(folder, saved)
    if first
    else contextlib.nullcontext() as writer,
    watch_lib.bar(train.iterations, "policy", "it", saved) as bar,
    watch_lib.profiler(folder / "profile", steps) as profiler,
  ):
    for step in range(saved + per_call, train.iterations + 1, per_call):
      profiler(step - per_call + 1, step)
      inputs = feed(step - per_call, inputs)
      with watch.phase("training"):
        learner, stream, measured = iterate(learner, stream, inputs)
        measured = metrics_lib.seed_means(measured)
      profiler(step + 1, step + per_call)
      last = step == train.iterations or signals.due()
      bad = tree.first_not_finite(measured)
      state = None
      if bad or last or step % train.save_every == 0:
        state = parallel.collect(learner, stream, layout)
        bad = tree.first_not_finite(parallel.one_copy(state[0])) or bad
      if bad:
        raise _not_finite(bad, step, saved, checkpointer.directory)
      bar.update(per_call)
      done += per_call
      if first:
        writer.write(step, measured)
        due = step % train.curve_every == 0 or step == train.iterations
        if curve is not None and due:
          with watch.phase("curve"):
            point, counts = curve(parallel.target_params(learner, layout))
          writer.write(step, {"eval": point}, counts)
          bar.set_postfix(val_reward=f"{point['total_reward']['mean']:.2f}")
      if state is not None:
        with watch.phase("checkpoints"):
          checkpoint.save(checkpointer, step, state)
        saved = step
      if last:
        break
  return learner, done


def _not_finite(bad: str, step: int, saved: int, folder) -> FloatingPointError:
  """The error of a state that is not worth saving."""
  kept = f"{saved} is the last good one" if saved else "none is good"
  return FloatingPointError(
    f"{bad} is not finite by iteration {step}; of the checkpoints in {folder} "
    f"{kept}: lower --learning_rate, in a new --workdir"
  )


def trained(parts: Parts) -> list[Params]:
  """What the stage left, whatever the task: one pytree a seed.

  Raises:
    InputError: no checkpoint can be read.
  """
  if parts.config.train.task == "next_item":
    return next_item.load(parts)
  return load(
    parts.config,
    parts.workdir,
    parts.env,
    parts.catalogue,
    parts.users("train"),
  )


def load(
  config: Config,
  workdir: pathlib.Path,
  env: UserSimulator,
  catalogue: ActionSpace,
  users: EnvParams,
) -> list[Params]:
  """The averaged parameters that `run` left, one pytree a seed.

  Raises:
    InputError: no checkpoint can be read.
  """
  seeds = config.train.seeds
  agent = agent_of(config, env.slate_size, catalogue.index.num_items)
  inputs = loop.Inputs(catalogue, users)
  if not agent.learns:
    return [_unlearned(agent, env, catalogue, users, seed) for seed in seeds]
  engine = engines.make(agent, env, config.train)
  like = parallel.shapes(engine.init, seeds, inputs)
  folder = workdir / FOLDER / "checkpoints"
  with checkpoint.open_directory(folder, read_only=True) as checkpointer:
    restored = checkpoint.restore_latest(checkpointer, like)
  if restored is None:
    raise InputError(
      f"{folder}: no checkpoint can be read; delete {workdir}/.done/policy "
      "and run --mode=policy again"
    )
  return by_seed(config.train, restored[0].target_params)


def _unlearned(
  agent: Agent,
  env: UserSimulator,
  catalogue: ActionSpace,
  users: EnvParams,
  seed: int,
) -> Params:
  """The parameters of an agent without training, the same every time."""
  keys = sampling.split(jax.random.key(seed), 2)
  user = env.start(0, users).observation
  params = agent.init(keys[0], catalogue, user)
  if agent.fit is None:
    return params
  fit = jax.jit(agent.fit, static_argnums=1)
  return fit(params, env, users, catalogue, keys[1])


def _curve(
  agent: Agent,
  env: UserSimulator,
  config: Config,
  catalogue: ActionSpace,
  users: EnvParams,
  rows: np.ndarray,
  params: Params,
  beside: futures.Executor,
) -> Callable[[Params], tuple[dict, dict]]:
  """A point of the learning curve: sessions of the validation users.

  It comes with how often each token was shown, by level. A first call compiles
  it beside training.
  """
  act, key = greedy(agent), jax.random.key(config.evaluate.seed)

  def simulated(params: Params) -> simulate.Sessions:
    given = (act, env, (params, catalogue), users, key, rows)
    return simulate.simulate(*given, episodes=len(rows))

  first = None
  if not processes.many():  # All would have to call it at the same time.
    first = beside.submit(simulated, by_seed(config.train, params)[0])

  def point(params: Params) -> tuple[dict, dict]:
    if first is not None:
      first.result()
    sessions = [simulated(p) for p in by_seed(config.train, params)]
    counts = measures.code_usage(
      catalogue.index, [np.asarray(s.slates) for s in sessions]
    )
    by_level = {f"level_{i}": x for i, x in enumerate(counts, start=1)}
    measured = {
      name: statistics.summarise([getattr(s, name) for s in sessions])
      for name in ("total_reward", "depth")
    }
    spread = {name: statistics.perplexity(x) for name, x in by_level.items()}
    measured["perplexity"] = spread
    return measured, {f"tokens/{name}": x for name, x in by_level.items()}

  return point
