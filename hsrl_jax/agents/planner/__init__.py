"""Planning with what was learned of responses, boredom and leaving."""
