"""Hierarchical semantic reinforcement learning for recommendation, in JAX."""

__version__ = "0.1.0"
