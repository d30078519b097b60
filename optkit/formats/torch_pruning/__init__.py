"""Pruning of PyTorch modules: what hangs together, what it is worth, what goes."""
