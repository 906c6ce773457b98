"""HSRL as the public code of the paper has it, to the letter."""
