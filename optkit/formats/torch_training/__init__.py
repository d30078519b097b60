"""Training of PyTorch modules: distillation, recovery, fake quantisation, and training functions of users."""
