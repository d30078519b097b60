"""Recipes that nobody wrote: from command-line flags, or by looking at a model."""
