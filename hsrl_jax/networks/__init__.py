"""Flax modules of one user."""
