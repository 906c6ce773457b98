"""What many runs show when they are compared; `registry` has them by name."""
