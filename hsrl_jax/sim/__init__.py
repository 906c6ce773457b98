"""The simulated user: click model, dynamics, reward, leave rules, topics."""
