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


def often(
  function: Callable, platform: str | None = None, **options
) -> Callable:
  """`jax.jit` of a large program: compiled in 0.76 to 0.9 of the time.

  It is as fast: HSRL by replay and on-policy were measured.

  Args:
    function: what to compile.
    platform: that it is compiled for; None: the one at hand.
    **options: of `jax.jit`.
  """
  return _at_level(1, function, options, platform)


def often_mapped(mapped: Callable) -> Callable:
  """`often` for what is mapped over devices, which takes no options itself.

  Args:
    mapped: a function of arrays, with `lower` as those of `jax.jit` have.

  Returns:
    The function, compiled where it first meets arrays of such shapes.
  """
  programs = {}

  def call(*arguments):
    leaves, structure = jax.tree.flatten(arguments)
    shapes = structure, *((x.shape, x.dtype) for x in leaves)
    if shapes not in programs:
      lowered = mapped.lower(*arguments)
      programs[shapes] = lowered.compile(compiler_options=_options(1))
    return programs[shapes](*arguments)

  call.lower = mapped.lower
  return call


def _at_level(
  level: int, function: Callable, options: dict, platform: str | None = None
) -> Callable:
  own = _options(level, platform)
  return jax.jit(function, compiler_options=own, **options)


def _options(level: int, platform: str | None = None) -> dict[str, int] | None:
  """Options of the compiler."""
  if (platform or jax.default_backend()) != "cpu":
    return None
  if jax.config.read("jax_disable_most_optimizations"):
    level = 0  # As JAX itself compiles everything then.
  return {"xla_backend_optimization_level": level}
