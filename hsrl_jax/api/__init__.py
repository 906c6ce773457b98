"""The whole path in Python: logs in, a recommender out.

  from hsrl_jax import api

  recommender = api.fit(logs, items, workdir="runs/mine", iterations=2000)
  print(recommender.evaluate())
  recommender.recommend(["tea", "cake"], k=5)
  recommender.export("runs/mine/export")

`fit` runs the stages of the command in a workdir that the command knows too: it
skips what is done and goes on where it was stopped. No flags are parsed. Bad
input raises errors.InputError, whose one line says what was expected.
"""

from hsrl_jax.api.pipeline import fit, load
from hsrl_jax.api.recommender import Item, Recommender, Results

__all__ = ["Item", "Recommender", "Results", "fit", "load"]
