"""A model of 15 numbers whose training is written down: which weights each epoch ends with, and how well they score."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WEIGHTS = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1))
"""The weights after each epoch."""
SCORES = (0.2, 0.1, 0.9, 0.4)
"""The score of each epoch: the first is the best for a while, then the third is."""

_X = np.random.default_rng(0).uniform(-1, 1, (64, 4)).astype(np.float32)
JUDGE = {"x": _X, "label": (_X @ WEIGHTS[2].numpy().T).argmax(1).astype(np.int64)}
"""Samples with the labels that the third epoch's weights give: it is right on all, the others are not."""

OPTIONS: dict[str, Any] = {
    "to": "onnx", "dims": {"batch": (1, 4, 16)}, "data": JUDGE, "metric": "accuracy", "outputs": ["scores"],
    "name": "net", "jobs": 1,
}  # fmt: skip


class Net(nn.Module):
    """float32 x (batch, 4) to (batch, 3); dropout makes the mode matter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3, bias=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.linear(x))
        return out


def epoch_of(path: Any) -> int:
    """The epoch whose weights an exported ONNX file has."""
    import onnx

    arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(path / "model.onnx").graph.initializer]
    (weight,) = [a if a.shape == (3, 4) else a.T for a in arrays if sorted(a.shape) == [3, 4]]
    found = [n for n, known in enumerate(WEIGHTS.numpy()) if np.allclose(weight, known, atol=1e-6)]
    assert len(found) == 1, weight
    return found[0]
