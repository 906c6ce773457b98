"""Logged sessions, as agents learn from them without a simulator."""
