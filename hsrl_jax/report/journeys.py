"""Pictures of sessions in worlds where what is shown now matters later.

`of_sessions` collects what the picture needs, which is journeys.json: what was
shown by topic, what was liked, what bored the user and when, what made the user
leave. `figure` draws it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from hsrl_jax.evaluation.simulate import Simulated
from hsrl_jax.report import plots
from hsrl_jax.sim.dynamics import TopicBoredom
from hsrl_jax.sim.leave import ItemRule
from hsrl_jax.sim.topics import Topics
from hsrl_jax.sim.user_simulator import EnvParams, EnvState, UserSimulator

FILE = "journeys.json"
_OTHER = "#8c8c8c"  # Topics without a colour of their own.
_NOTHING = "#e8e8e8"  # Steps in which nothing is liked.


def has_any(env: UserSimulator) -> bool:
  """Whether there is anything to draw in a world."""
  return isinstance(env.dynamics, TopicBoredom) or isinstance(
    env.leave, ItemRule
  )


def of_sessions(
  env: UserSimulator,
  users: EnvParams,
  topics: Topics,
  policies: dict[str, Simulated],
  starts: Sequence[EnvState],
) -> dict[str, Any]:
  """The first sessions of policies, step by step.

  The state of the users is that of dynamics and leave rule, gone through again
  with the slates and responses of the sessions.

  Args:
    env: the simulator.
    users: its parameters.
    topics: of the items, for the picture alone.
    policies: name to sessions; session e is of the same user in all.
    starts: the states in which the first sessions began; as many are told.

  Returns:
    `topics`, the names; `max_steps`; and `sessions`, each with `policy`,
    `session`, `total_reward`, `left` (whether the user left before max_steps
    while there was something to show); and by step `topics` and `liked` of the
    items of the slate, `leaves`, whether each makes the user leave, and
    `boring`, the topics that bore. `everything`: whether nothing is liked then.
  """
  found = []
  for session, start in enumerate(starts):
    for name, own in policies.items():
      if session >= len(own.depth):
        continue
      depth = int(own.depth[session])
      slates = np.asarray(own.slates[session])[:depth]
      liked = np.asarray(own.responses[session])[:depth]
      boring, leaves = _replay(env, users, start, slates, liked)
      enough = not env.no_repeat or users.num_items is None
      enough = enough or users.num_items - slates.size >= env.slate_size
      found.append(
        {
          "policy": name,
          "session": session,
          "total_reward": float(own.total_reward[session]),
          "left": bool(depth < env.max_steps and enough),
          "topics": topics.of_items[slates].tolist(),
          "liked": (liked > 0).tolist(),
          "leaves": leaves.tolist(),
          "boring": [np.flatnonzero(row).tolist() for row in boring],
        }
      )
  return {
    "topics": list(topics.names),
    "max_steps": env.max_steps,
    "everything": getattr(env.dynamics, "everything", False),
    "sessions": found,
  }


def _replay(
  env: UserSimulator,
  users: EnvParams,
  start: EnvState,
  slates: np.ndarray,
  liked: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Boring topics, bool [D, T + 1], and who makes leave, bool [D, K]."""
  depth = len(slates)
  boring = np.zeros((depth, 1), bool)
  leaves = np.zeros(slates.shape, bool)
  at = start.steps + jnp.arange(depth)
  steps = at, jnp.asarray(slates), jnp.asarray(liked)
  if isinstance(env.dynamics, TopicBoredom):
    of_topics = dataclasses.replace(env.dynamics, everything=False)

    def bored(state, step):
      at, slate, response = step
      after = env.dynamics.after(state, users.topics[slate], response, at)
      return after, of_topics.bores(state, at)

    _, boring = jax.lax.scan(bored, start.dynamics, steps)
  if isinstance(env.leave, ItemRule):
    known, nothing = getattr(users, env.leave.knows), jnp.float32(0)

    def driven(state, step):
      _, slate, response = step
      after, _ = env.leave.step(state, slate, response, nothing, nothing, known)
      return after, env.leave.triggers(state, slate, known)

    _, leaves = jax.lax.scan(driven, start.leave, steps)
  return np.asarray(boring), np.asarray(leaves)


def figure(journeys: dict[str, Any]) -> Figure:
  """A panel for each session: steps to the right, the slate upwards.

  An item has the colour of its topic, strong where it was liked. Bars above
  the slates are topics that bore the user, a grey background steps in which all
  topics do. A cross is what made the user leave.

  Args:
    journeys: see `of_sessions`.
  """
  sessions = journeys["sessions"]
  colours = _colours(sessions)
  columns = max(sum(x["session"] == 0 for x in sessions), 1)
  rows = -(-len(sessions) // columns)
  bars = [_bars(x) for x in sessions]
  places = max(len(x["topics"][0]) for x in sessions if x["topics"])
  height = max(places + max(map(len, bars), default=0), 4)
  drawn = Figure(
    figsize=(5.5 * columns, rows * (0.7 + 0.17 * height) + 0.9),
    layout="constrained",
  )
  panels = drawn.subplots(rows, columns, squeeze=False).ravel()
  for axes, session, own in zip(panels, sessions, bars, strict=False):
    _draw(axes, session, own, colours, journeys["everything"])
    axes.set_xlim(0.3, journeys["max_steps"] + 1.7)
    axes.set_ylim(0.3, places + max(map(len, bars)) + 0.7)
  for axes in panels[len(sessions) :]:
    axes.remove()
  _legend(drawn, journeys, colours)
  return drawn


def _colours(sessions: list[dict[str, Any]]) -> dict[int, str]:
  """Colours of the topics that are shown most."""
  shown = [
    topic
    for session in sessions
    for step in session["topics"]
    for topic in step
    if topic
  ]
  count = np.bincount(shown) if shown else np.zeros(1)
  order = np.argsort(-count, kind="stable")
  best = [int(topic) for topic in order if count[topic]]
  return dict(zip(best, plots.COLOURS, strict=False))


def _bars(session: dict[str, Any]) -> list[tuple[int, list[int]]]:
  """Topics that bored, each with its steps; those of most steps first."""
  steps = {}
  for step, boring in enumerate(session["boring"], start=1):
    for topic in boring:
      steps.setdefault(topic, []).append(step)
  return sorted(steps.items(), key=lambda x: (-len(x[1]), x[0]))


def _draw(
  axes: Axes,
  session: dict[str, Any],
  bars: list[tuple[int, list[int]]],
  colours: dict[int, str],
  everything: bool,
) -> None:
  """One panel."""
  depth = len(session["topics"])
  end = f"left at step {depth}" if session["left"] else f"{depth} steps"
  liked = sum(map(sum, session["liked"]))
  plots.style(
    axes,
    f"{session['policy'].replace('_', ' ')}, user {session['session'] + 1}: "
    f"{liked} liked, {end}",
    "step",
  )
  axes.grid(False)
  axes.set_yticks([])
  axes.xaxis.get_major_locator().set_params(integer=True)
  places = len(session["topics"][0]) if depth else 0
  for step, boring in enumerate(session["boring"], start=1):
    if everything and boring:
      axes.axvspan(step - 0.5, step + 0.5, color=_NOTHING, linewidth=0)
  for step, (shown, hits, leaves) in enumerate(
    zip(session["topics"], session["liked"], session["leaves"], strict=True),
    start=1,
  ):
    for place, topic in enumerate(shown, start=1):
      strength = 1.0 if hits[place - 1] else 0.25
      axes.add_patch(
        Rectangle(
          (step - 0.42, place - 0.42),
          *(0.84, 0.84),
          facecolor=colours.get(topic, _OTHER),
          alpha=strength,
          linewidth=0,
        )
      )
      if leaves[place - 1]:
        axes.plot(step, place, "x", color="black", markersize=5)
  for row, (topic, steps) in enumerate(bars, start=places + 1):
    for step in steps:
      axes.plot(
        (step - 0.5, step + 0.5),
        (row, row),
        color=colours.get(topic, _OTHER),
        linewidth=2.5,
        solid_capstyle="butt",
      )
  if session["left"]:
    axes.axvline(depth + 0.6, color="black", linewidth=1.5)


def _legend(
  drawn: Figure, journeys: dict[str, Any], colours: dict[int, str]
) -> None:
  """Legend of colours and marks, below the panels."""
  names, sessions = journeys["topics"], journeys["sessions"]
  handles = [
    Patch(color=colour, label=names[topic - 1])
    for topic, colour in colours.items()
  ]
  handles.append(Patch(color=_OTHER, label="other topics"))
  if journeys["everything"] and any(any(x["boring"]) for x in sessions):
    handles.append(Patch(color=_NOTHING, label="nothing is liked"))
  if any(any(map(any, x["leaves"])) for x in sessions):
    cross = {"color": "black", "marker": "x", "linestyle": ""}
    handles.append(Line2D([], [], **cross, label="makes the user leave"))
  if any(x["left"] for x in sessions):
    handles.append(Line2D([], [], color="black", label="the user left"))
  plots.legend_below(drawn, 6, handles)
