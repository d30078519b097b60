"""Models for the tests of torch.qat: each has what stands between layers and their integers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _shifted(module: nn.Module) -> nn.Module:
    """With batch norms that do something."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, 0, 0.2)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    return module.eval()


class Images(nn.Module):
    """`(batch, 3, 16, 16)` to `(batch, 5)`: depthwise, in place, a residual, a concat, pools, a silu in float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(inplace=True))
        self.deep = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.wide = nn.Conv2d(16, 24, 1)
        self.norm = nn.BatchNorm2d(24)
        self.last = nn.Conv2d(40, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        wide = functional.silu(self.norm(self.wide(functional.max_pool2d(self.deep(x), 3, 1, 1))))
        y = torch.relu(x + self.last(torch.cat([wide, x], 1)))
        scores: Tensor = self.head(functional.avg_pool2d(y, 8).flatten(1))
        return scores


def images() -> nn.Module:
    torch.manual_seed(0)
    return _shifted(Images())


class Encoder(nn.Module):
    """`(batch, sequence)` of 50 words to `(batch, 50)`: attention, and a head whose weight is the embedding's too."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(50, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.first = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, 50)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        x = self.first(x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))
        x = self.last(x + self.down(functional.gelu(self.up(x))))
        scores: Tensor = self.head(x.mean(1))
        return scores


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Encoder().eval()


class Writes(nn.Module):
    """What a gradient cannot come through: a result that is written over."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x))
        hidden.mul_(2)
        scores: Tensor = self.head(hidden)
        return scores


def writes() -> nn.Module:
    torch.manual_seed(0)
    return Writes().eval()


class Attends(nn.Module):
    """Nothing but an attention that torch alone computes, for it has a key of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.unsqueeze(1)
        scores: Tensor = self.attention(y, y, y, need_weights=False)[0][:, 0, :4]
        return scores


def attends() -> nn.Module:
    torch.manual_seed(0)
    return Attends().eval()


class Torchs(nn.Module):
    """`(batch, sequence)` of 50 words to `(batch, 5)`: torch's own encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu")
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(self.words(input_ids)).mean(1))
        return scores


def torchs() -> nn.Module:
    torch.manual_seed(0)
    return Torchs().eval()


class Pools(nn.Module):
    """`(batch, 8)` to `(batch, 4)`, beside a layer whose result nobody asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.pooler = nn.Linear(16, 16)
        self.added = nn.Linear(8, 4)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        torch.tanh(self.pooler(hidden))
        part = hidden[:, :4]
        part += self.added(x)  # into a view of what goes on
        scores: Tensor = self.head(torch.relu(hidden))
        return scores


def pools() -> nn.Module:
    torch.manual_seed(0)
    return Pools().eval()
