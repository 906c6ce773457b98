"""The compiled training loop, its devices, its processes, its checkpoints."""
