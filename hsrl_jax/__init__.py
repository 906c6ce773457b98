"""Hierarchical semantic reinforcement learning for recommendation, in JAX."""

__version__ = "1.0.0"
