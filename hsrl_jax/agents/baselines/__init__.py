"""The agents that HSRL is compared with, each with its networks."""
