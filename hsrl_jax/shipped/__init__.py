"""The folders beside the package, as in `hsrl_jax.shipped.datasets.schema`.

A wheel brings `datasets` and `launch` into this folder (see setup.py). In a
checkout they lie beside `hsrl_jax`, and this package looks for them there.
"""

import pathlib

_HERE = pathlib.Path(__file__).parent
if not (_HERE / "datasets").exists():
  __path__ = [str(_HERE.parents[1])]
