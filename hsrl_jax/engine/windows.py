"""Logged slates that memory does not hold, learned from window by window.

A window is a number of rows of an endless stream of all slates in a random
order. It stays for about as many draws as it has rows, for all seeds; a thread
reads the next one meanwhile. Windows follow one another without a gap or an
overlap, over the processes first, so that each slate is drawn equally often in
expectation. Which window is in hand follows from the step alone, so a restart
finds it again.
"""

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures

import jax
import numpy as np

from hsrl_jax.config import TrainConfig
from hsrl_jax.data import blocks, transitions
from hsrl_jax.engine import core, parallel
from hsrl_jax.sim.reward import Reward
from hsrl_jax.types import Sessions, Transition

BYTES = 128 * 2**20  # Of a window.

# Row and count to so many transitions of the stream, numpy leaves [count, ...].
Read = Callable[[int, int], Transition]
# Iterations done and placed inputs to those with the slates that are next.
Feed = Callable[[int, core.Inputs], core.Inputs]


def reader(
  logs: blocks.Blocks, reward: Reward, observed_items: int = 0
) -> tuple[Read, int]:
  """Returns a reader of training slates on disk, and the rows of a window.

  Args:
    logs: the slates.
    reward: of slates whose reward was not logged.
    observed_items: R of Observation.shown; 0: what was shown is not seen.
  """

  def make(slates: Sessions) -> Transition:
    log_prob = transitions.logging_policy(slates, 0, logs.exposures)
    # Rewards that were not logged come last, all in one call.
    earned = np.full(len(log_prob), np.nan, np.float32)
    return transitions.transitions(slates, earned, log_prob, observed_items)

  def read(start: int, count: int) -> Transition:
    made = blocks.read(logs, start, count, make)
    earned = np.asarray(reward.slate(reward.items(made.response)))
    unknown = np.isnan(made.reward)
    return made._replace(reward=np.where(unknown, earned, made.reward))

  size = transitions.size(blocks.example(logs), observed_items)
  return read, max(BYTES // size, 1)


def iterations(config: TrainConfig, count: int) -> int:
  """Iterations that windows of `count` rows, one a process, stay in hand.

  They are whole calls of the device that draw about as many rows as there are.
  """
  drawn = config.batch_size * config.iterations_per_call
  calls = max(count * jax.process_count() // drawn, 1)
  return calls * config.iterations_per_call


@contextlib.contextmanager
def feed(
  read: Read,
  count: int,
  config: TrainConfig,
  layout: parallel.Layout,
  waiting: Callable[[], contextlib.AbstractContextManager],
  begun: int = 0,
) -> Iterator[Feed]:
  """Puts the window of a step into the inputs, and reads ahead.

  Args:
    read: see Read; it is called by a thread.
    count: rows of a window.
    config: of training.
    layout: of seeds and devices.
    waiting: what to do while training waits for a window.
    begun: iterations that are probably done; their window is read at once.
  """
  stay = iterations(config, count)
  of_all, own = jax.process_count(), jax.process_index()
  last = (config.iterations - 1) // stay
  held, coming = None, {}

  with futures.ThreadPoolExecutor(1) as pool:

    def ask(window: int) -> None:
      start = (window * of_all + own) * count
      coming[window] = pool.submit(read, start, count)

    def of_step(done: int, inputs: core.Inputs) -> core.Inputs:
      nonlocal held
      window = done // stay
      if window == held:
        return inputs
      with waiting():
        if window not in coming:
          coming.clear()
          ask(window)
        inputs = _with_logs(inputs, coming.pop(window).result(), layout)
      if window < last:
        ask(window + 1)
      held = window
      return inputs

    if begun < config.iterations:
      ask(begun // stay)
    yield of_step


def unchanged(begun: int) -> contextlib.AbstractContextManager[Feed]:
  """In place of `feed`, where the inputs have all slates."""
  del begun
  return contextlib.nullcontext(lambda done, inputs: inputs)


def _with_logs(
  inputs: core.Inputs, slates: Transition, layout: parallel.Layout
) -> core.Inputs:
  """Placed inputs with other slates."""
  placed = parallel.everywhere(slates, layout)
  if not layout.by_seed:
    return inputs._replace(logs=placed)
  each = zip(inputs, placed, strict=True)
  return tuple(x._replace(logs=own) for x, own in each)
