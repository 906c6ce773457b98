"""Comparisons of many runs; `registry` has them by name."""
