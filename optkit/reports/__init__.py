"""Reports for people and machines, each drawn from the report's JSON alone."""
