"""A run, from the parent's side: what is handed to workers, what they answer, and the verdicts drawn from it."""
