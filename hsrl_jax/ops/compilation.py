"""How well a program is compiled."""

from collections.abc import Callable

import jax


def once(function: Callable, **options) -> Callable:
  """`jax.jit` of what runs once: on a CPU it is compiled in less time.

  Args:
    function: what to compile.
    **options: of `jax.jit`.
  """
  compiler = None
  if jax.default_backend() == "cpu":
    compiler = {"xla_backend_optimization_level": 0}
  return jax.jit(function, compiler_options=compiler, **options)
