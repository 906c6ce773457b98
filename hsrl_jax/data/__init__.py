"""Datasets: prepared by a TFDS builder, read back and checked."""
