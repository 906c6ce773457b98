"""Prepared logs, read and checked."""
