"""An exported policy answers requests, with jax and numpy alone."""

from hsrl_jax.serving.catalogue import ServedCatalogue, make_catalogue
from hsrl_jax.serving.folder import write_catalogue
from hsrl_jax.serving.recommender import Recommendations, Recommender, load

__all__ = [
  "ServedCatalogue",
  "Recommendations",
  "Recommender",
  "load",
  "make_catalogue",
  "write_catalogue",
]
