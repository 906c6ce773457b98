"""The simulated user: click model, reward, patience."""
