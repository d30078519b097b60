"""A live module and its samples, for the tests of the Python API."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DIMS = {"batch": (1, 4, 8)}


class Net(nn.Module):
    """Dropout and batch norm, so that the mode matters; a dict out; inputs by keyword alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, *, image: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, Any]:
        hidden = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        logits = self.head(self.drop(hidden))
        return {"logits": logits if scale is None else logits * scale, "hidden": hidden, "cache": None}


def net() -> Net:
    torch.manual_seed(3)
    return Net()


SAMPLES = np.random.default_rng(0).standard_normal((20, 3, 8, 8)).astype(np.float32)
