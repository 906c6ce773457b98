"""The HTTP application of the server: bodies, batches, arms, answers."""
