"""Evaluation mode, with the weights that a module has now."""

from __future__ import annotations

from typing import Any


def evaluate(module: Any) -> None:
    """Put a module into evaluation mode, as if for the first time.

    Some modules keep in evaluation mode what they made of their weights (LeViT its position biases) and forget it when
    training begins. After weights have changed, eval() alone would leave them with what they made of the old ones.
    """
    module.train()
    module.eval()


__all__ = ["evaluate"]
