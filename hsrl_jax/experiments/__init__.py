"""What many runs show when they are compared."""
