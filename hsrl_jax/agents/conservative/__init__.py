"""Conservative Q-learning, the baseline of learning from logs."""
