"""What shows one thing once; nothing of the package imports it."""
