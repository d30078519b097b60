"""PyTorch modules: loaded, called, exported, looked into and rewritten."""
