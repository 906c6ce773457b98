"""Slates that know themselves: slot after slot, each knows the earlier ones."""
