"""The numbers of /metrics."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import prometheus_client as prometheus

from hsrl_jax.serving.recommender import Recommender

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_Z = 1.959964  # Of a 95 % interval.


class Mean(NamedTuple):
  """A mean reward a slate, with its 95 % interval."""

  value: float  # What the slates earned over their number; NaN without slates.
  low: float  # End of the interval; NaN with fewer than two users.
  high: float  # The other end.


def mean_by_user(sums: Sequence[float]) -> Mean:
  """Mean reward a slate, whose interval takes users as clusters.

  The value is a ratio of sums over users; its variance is that of the
  linearised ratio, sum_u (r_u - mean n_u)^2 U / (U - 1) / (sum_u n_u)^2.

  Args:
    sums: see `Store.earned`.
  """
  users, r, n, rr, rn, nn = map(float, sums)
  if not n:
    return Mean(math.nan, math.nan, math.nan)
  mean = r / n
  if users < 2:
    return Mean(mean, math.nan, math.nan)
  residuals = max(0.0, rr - 2 * mean * rn + mean**2 * nn)
  half = _Z * math.sqrt(residuals * users / (users - 1)) / n
  return Mean(mean, mean - half, mean + half)


class Measures:
  """The numbers of /metrics."""

  def __init__(self):
    """Creates a registry for one server."""
    self.registry = prometheus.CollectorRegistry()
    prometheus.ProcessCollector(registry=self.registry)

    def counter(name, text, *labels):
      return prometheus.Counter(
        f"hsrl_{name}", text, labels, registry=self.registry
      )

    def gauge(name, text, *labels):
      return prometheus.Gauge(
        f"hsrl_{name}", text, labels, registry=self.registry
      )

    def histogram(name, text, buckets):
      return prometheus.Histogram(
        f"hsrl_{name}", text, buckets=buckets, registry=self.registry
      )

    powers = [2**i for i in range(9)]
    self.requests = counter("requests", "Requests by status.", "status")
    self.seconds = histogram("request_seconds", "Time to answer.", _SECONDS)
    self.batch = histogram("batch_size", "Requests decoded together.", powers)
    self.queue = gauge("queue", "Requests that wait.")
    self.items = gauge("items", "Active items.")
    self.catalogue = prometheus.Info(
      "hsrl_catalogue", "Version of the catalogue.", registry=self.registry
    )
    self.swaps = counter("swaps", "Contents of the folder that took over.")
    self.swap_errors = counter(
      "swap_errors", "Contents of the folder that were refused."
    )
    self.shown = counter("shown", "Slates recorded, by arm.", "arm")
    self.feedback = counter(
      "feedback", "Values of feedback by what became of them.", "outcome"
    )
    self.commit = histogram(
      "commit_size", "Slates and feedback committed together.", powers
    )
    self.store_errors = counter(
      "store_errors", "Slates and feedback that could not be kept."
    )
    arm = ("arm", "version")
    self.reward = gauge("reward", "Mean reward of an answered slate.", *arm)
    self.low = gauge("reward_low", "Low end of its 95 % interval.", *arm)
    self.high = gauge("reward_high", "High end of its 95 % interval.", *arm)
    self.answered = gauge("reward_slates", "Slates with feedback.", *arm)
    self.users = gauge("reward_users", "Users with feedback.", *arm)

  def show(self, recommender: Recommender) -> None:
    """Publishes which catalogue is served."""
    active = np.asarray(recommender.catalogue.index.active)
    self.items.set(int(active.sum()))
    self.catalogue.info({"version": recommender.version})

  def show_rewards(
    self, arms: Sequence[tuple[str, str, Sequence[float]]]
  ) -> None:
    """Publishes what each arm earns: its name, version and sums."""
    gauges = (self.reward, self.low, self.high, self.answered, self.users)
    for gauge in gauges:
      gauge.clear()  # Arms that are served no longer.
    for name, version, sums in arms:
      values = (*mean_by_user(sums), sums[2], sums[0])
      for gauge, value in zip(gauges, values, strict=True):
        gauge.labels(name, version).set(value)
