"""Small torch models for the tests: this file is also the factory file their recipes name."""

from __future__ import annotations

import torch
from torch import nn


def cnn() -> nn.Module:
    """A top-level Sequential, left in training mode, whose first layer writes into its input."""
    return nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip


class Encoder(nn.Module):
    """Two int64 inputs (batch, sequence), a dict out with one entry that is no tensor."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True, dropout=0.5)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor | None]:
        hidden = self.layer(self.table(input_ids))
        mask = attention_mask.unsqueeze(-1).float()
        return {"hidden": hidden, "pooled": (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), "cache": None}


class Pair(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return x + y, (x * 2).sum(-1), x.reshape(-1)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 4:
            return self.linear(x)
        return self.linear(x) * 2


class One(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 1:
            return x * 2
        return x


class Values(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(5, x.shape[0] * 8 // 5)


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5)


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


class Casts(nn.Module):
    """Computes in float32 by name, whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.scale = torch.full((8,), 1.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.linear(x).to(torch.float32).exp()
        return (wide * self.scale.float() + torch.zeros(8)).float()


class Chosen(nn.Module):
    """Control flow by torch.cond, with a cast and a constant in a branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return torch.cond(
            x.sum() > 0, lambda t: t.to(torch.float32).exp() * torch.tensor(0.1), lambda t: t.exp() * 0.1, (x,)
        )


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


class SingleOnly(nn.Module):
    """Runs in float32 alone, as models with a kernel of their own do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError("expected float32")
        return self.layer(x)


class OneWindow(nn.Module):
    """Average pooling with a window larger than the image, as EfficientNet has it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(320, ceil_mode=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pool(image)


class Singular(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_Values()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers[0](x)


class Inside(nn.Module):
    """Calls its one layer as a wrapper would."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _Values()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class _Values(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svd(x)[1]


class Pass(nn.Module):
    """Outputs that are an input, one tensor twice, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.ones(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = x + 1
        return {"same": x, "once": y, "twice": y, "bias": self.bias}


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image).mean((2, 3))


class Half(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16()


class Scripted(nn.Module):
    """Control flow that scripting keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if x.shape[0] > 4:
            return self.linear(x), y + 1
        return self.linear(x) * 2, y + 1


class ScriptedDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"a": self.linear(x) * 2, "b": y + 1}


def broken() -> nn.Module:
    raise KeyError("no such layer")


def number(value: int = 3) -> int:
    return value
