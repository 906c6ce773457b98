"""Another run's parameters, which training starts from (--continue_from)."""
