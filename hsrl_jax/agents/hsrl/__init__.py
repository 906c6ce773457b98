"""HSRL: the agent, its view of a slate, and composed slates."""
