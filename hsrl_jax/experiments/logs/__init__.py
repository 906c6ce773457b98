"""Experiments on what is learned from logs, and what logs tell of a policy."""
