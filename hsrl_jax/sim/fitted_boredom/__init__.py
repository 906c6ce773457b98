"""Boredom as the sessions of the logs have it."""
