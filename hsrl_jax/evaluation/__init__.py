"""What a policy is worth, and how sure that is."""
