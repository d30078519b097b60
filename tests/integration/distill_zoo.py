"""Teachers and students for the tests of torch.distill and torch.train: tiny, each with one thing that is hard."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """`(batch, 8)` to `(batch, 4)` scores, through `width` units with dropout and batch norm."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.drop(torch.tanh(self.norm(self.first(x))))
        scores: Tensor = self.head(torch.tanh(self.second(hidden)))
        return scores


def teacher(width: int = 32) -> nn.Module:
    torch.manual_seed(1)
    return Net(width)


def student(width: int = 12, dropout: float = 0.1) -> nn.Module:
    torch.manual_seed(2)
    return Net(width, dropout)


class Five(nn.Module):
    """A student with one class too many."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x)
        return scores


def five() -> nn.Module:
    return Five()


class Several(nn.Module):
    """Outputs in a dict or a tuple: scores, an embedding of length one, and class numbers that nobody learns."""

    def __init__(self, width: int, named: bool) -> None:
        super().__init__()
        self.named = named
        self.body = nn.Linear(8, width)
        self.scores = nn.Linear(width, 4)
        self.embedding = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Any:
        hidden = torch.tanh(self.body(x))
        scores = self.scores(hidden)
        embedding = nn.functional.normalize(self.embedding(hidden), dim=-1)
        if self.named:
            return {"scores": scores, "embedding": embedding, "best": scores.argmax(-1)}
        return scores, embedding, scores.argmax(-1)


def several(width: int = 24, named: bool = True) -> nn.Module:
    torch.manual_seed(3)
    return Several(width, named)


class Diverges(nn.Module):
    """A student whose outputs leave the floats as soon as its weight grows."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(torch.exp(self.head(x)))


def diverges() -> nn.Module:
    torch.manual_seed(4)
    return Diverges()


class Keeps(nn.Module):
    """`(batch, 8)` to `(batch, 4)`: in evaluation mode it keeps what it made of a weight, until training begins."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.gains = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, 4)
        self.kept: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> Keeps:
        if mode:
            self.kept = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        gains = torch.tanh(self.gains)
        if not self.training:
            gains = self.kept.setdefault("gains", gains)
        scores: Tensor = self.head(torch.tanh(self.first(x)) * gains)
        return scores


def keeps(width: int = 16) -> nn.Module:
    """Called before it gets its weights."""
    torch.manual_seed(4)
    module = Keeps(width).eval()
    with torch.no_grad():
        module(torch.zeros(1, 8))
    return module


class Untouched(nn.Module):
    """A student whose forward lets no gradient through."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x)
        return scores


def untouched() -> nn.Module:
    torch.manual_seed(5)
    return Untouched()


class Attending(nn.Module):
    """One attention layer over `(batch, sequence)` ids, with its weights in sight; scores per sequence."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids)
        hidden = attention_mask == 0
        mixed, _ = self.attention(x, x, x, key_padding_mask=hidden, average_attn_weights=False)
        x = torch.tanh(self.mix(x + mixed))
        weight = attention_mask.unsqueeze(-1).to(x.dtype)
        scores: Tensor = self.head((x * weight).sum(1) / weight.sum(1))
        return scores


def attending(width: int = 16, heads: int = 4) -> nn.Module:
    torch.manual_seed(5)
    return Attending(width, heads)


class Images(nn.Module):
    """`(batch, 3, 8, 8)` to `(batch, 4)`: channels to be projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3)))
        return scores


def images(width: int = 12) -> nn.Module:
    torch.manual_seed(6)
    return Images(width)
