"""How fast training was, and how much of the devices it made use of."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_ROUNDS = 3


def of_training(
  run: Callable,
  state: tuple[Any, ...],
  seeds: int,
  per_call: int,
  slates: int,
  rate: float,
) -> dict[str, float]:
  """Measures the speed of training, for summary.json.

  Args:
    run: one call of one seed, of `state`.
    state: its arguments, arrays or their shapes.
    seeds: that are trained at the same time.
    per_call: iterations of a call.
    slates: shown in an iteration, of all seeds.
    rate: iterations a second.
  """
  of_iteration = products(run, *state) * seeds / per_call
  return {
    "iterations_per_second": rate,
    "slates_per_second": rate * slates,
    "gflop_per_iteration": of_iteration / 1e9,
    "utilisation": of_iteration * rate / largest_rate(),
  }


def products(function: Callable, *args: Any) -> float:
  """Floating-point operations of all matrix products of a call, by its trace.

  A product of M x K and K x N counts 2 M K N. Of a branch the costliest counts;
  the body of a loop whose length is not known counts once.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    total = 2.0 * equation.outvars[0].aval.size
    for axis in contracted:
      total *= shape[axis]
    return total
  if name == "cond":
    return max(_of_jaxpr(x.jaxpr) for x in params["branches"])
  inner = [getattr(x, "jaxpr", x) for x in params.values()]
  total = sum(_of_jaxpr(x) for x in inner if hasattr(x, "eqns"))
  return total * params["length"] if name == "scan" else total


def largest_rate() -> float:
  """Operations a second of a large product in the default precision.

  All devices together; those of a CPU share its cores.
  """
  on_cpu = jax.default_backend() == "cpu"
  size = 2_048 if on_cpu else 8_192
  x, product = jnp.ones((size, size)), jax.jit(jnp.matmul)
  jax.block_until_ready(product(x, x))
  seconds = []
  for _ in range(_ROUNDS):
    start = time.perf_counter()
    jax.block_until_ready(product(x, x))
    seconds.append(time.perf_counter() - start)
  devices = 1 if on_cpu else jax.device_count()
  return devices * 2.0 * size**3 / min(seconds)
