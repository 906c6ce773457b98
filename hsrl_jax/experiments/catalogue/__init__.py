"""Experiments in which the catalogue grows or changes."""
