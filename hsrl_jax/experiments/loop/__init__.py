"""The closed loop: serve, take feedback, learn again from logs, publish."""
