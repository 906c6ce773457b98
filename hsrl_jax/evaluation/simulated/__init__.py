"""Sessions in the simulator, their bounds and their measures."""
