"""How well programs are compiled on a CPU; elsewhere as XLA does by itself.

What is returned here may not be called inside a trace, such as jax.eval_shape:
JAX refuses options of the compiler there.
"""

from collections.abc import Callable

import jax


def once(function: Callable, **options) -> Callable:
  """`jax.jit` of what runs once: as little as possible is done for its speed.

  Args:
    function: what to compile.
    **options: of `jax.jit`.
  """
  return _at_level(0, function, options)


def often(function: Callable, **options) -> Callable:
  """`jax.jit` of a large program: compiled in 0.76 to 0.9 of the time.

  It is as fast: HSRL by replay and on-policy were measured.

  Args:
    function: what to compile.
    **options: of `jax.jit`.
  """
  return _at_level(1, function, options)


def _at_level(level: int, function: Callable, options: dict) -> Callable:
  compiler = None
  if jax.default_backend() == "cpu":
    if jax.config.read("jax_disable_most_optimizations"):
      level = 0  # As JAX itself compiles everything then.
    compiler = {"xla_backend_optimization_level": level}
  return jax.jit(function, compiler_options=compiler, **options)
