"""How a recipe becomes a plan: each part resolved, and every mistake noted."""
