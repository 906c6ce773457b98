"""The worth of a policy, and how sure that is."""
