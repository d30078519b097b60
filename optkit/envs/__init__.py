"""Environments of their own for backends whose pins conflict, and what of all that is installed."""
