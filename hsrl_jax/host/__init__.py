"""Workdirs, metrics, signals and time of a process."""
