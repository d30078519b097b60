"""Models the contract tests convert: small, with one of each kind of layer that passes look for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Convolution, normalisation, attention-free mixing: `(batch, 3, 8, 8)` to `(batch, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.mix = nn.Linear(64, 64)
        self.layer = nn.LayerNorm(64)
        self.up = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(image))).flatten(2)
        x = self.mix(x)
        x = self.layer(x + nn.functional.gelu(self.up(x)))
        return self.head(x.mean(1))


class Plain(nn.Module):
    """Convolutions and a mean, a graph that TFLite can resize: `(batch, 3, 8, 8)` to `(batch, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 10, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(image))).mean((2, 3))


def plain() -> nn.Module:
    torch.manual_seed(0)
    return Plain().eval()


def train(module: nn.Module, data: Any, *, seed: int, source: nn.Module, **rest: Any) -> nn.Module:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in data.batches(4, seed=seed):
        (module(**batch.feeds) - source(**batch.feeds)).square().mean().backward()
        optimizer.step()
    return module


def build() -> nn.Module:
    torch.manual_seed(0)
    return Block().eval()
