"""Simulated users for other people's agents, in two common shapes.

`worlds` makes them, or takes them from a run; `gymnax_like` has the shape of
gymnax, pure functions to jit and vmap; `gymnasium_like` that of gymnasium, with
NumPy in and out, and needs the extra `gym`. docs/bring_your_own.md shows both.
"""

from hsrl_jax.environments.gymnax_like import Environment
from hsrl_jax.environments.worlds import of_run, sardine

__all__ = ["Environment", "of_run", "sardine"]
