"""What the TFLite tests share: small models made on the spot, and a source converted once per module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_kit
from torch import nn

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.formats.tflite import model as tflite_model
from optkit.passes.torch_to_tflite import PASS, TorchToTflite
from optkit.plugin import Context
from optkit.runners.tflite_runner import RUNNER
from optkit.testing import ListSamples

HERE = Path(__file__)
DIMS = {"batch": Dim(1, 4, 9), "sequence": Dim(2, 6, 12)}
IMAGE = TensorSpec("image", "float32", ("batch", 3, 12, 10), "NCHW", (-1, 1))
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"), None, (0, 49))
MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"), None, (0, 1))


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.second(torch.relu(self.first(image))).relu()
        return self.head(hidden.mean((2, 3)))


class Masked(nn.Module):
    """A layer of attention that never looks at what the mask hides; one output per token, one per text."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(50, width), nn.Linear(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.table(input_ids)
        hide = (1.0 - attention_mask.float())[:, None, :] * -1e4
        weights = torch.softmax(self.inner(hidden) @ hidden.transpose(1, 2) / 4 + hide, -1)
        hidden = self.outer(weights @ hidden) + hidden
        mask = attention_mask.float()[..., None]
        return {"hidden": hidden, "pooled": (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)}


class Outlier(nn.Module):
    """Before its second layer one feature is 300 times as large as the rest, and then hardly matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 6)
        self.register_buffer("scale", torch.ones(16))
        self.scale[3] = 300.0
        with torch.no_grad():
            self.second.weight[:, 3] /= 300

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x).relu() * self.scale).relu())


class Maps(nn.Module):
    """Whose output is an image too, with the index of its largest channel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = self.conv(image)
        return found, found.mean((2, 3)).argmax(-1)


class Expands(nn.Module):
    """Separable attention as MobileViTV2 writes it, which litert-torch's layout passes turn into an invalid product."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.join = nn.Conv2d(8, 17, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = torch.split(self.parts(x), [1, 8, 8], dim=1)
        context = (key * torch.softmax(query, -1)).sum(-1, keepdim=True)
        return self.join(torch.relu(value) * context.expand_as(value))


class Spectrum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).real


class Loudness(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(x).abs()


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))


class Wide(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.double().sum(-1).float()


def source(folder: Path, factory: str, *inputs: TensorSpec, dims: Mapping[str, Dim] = DIMS,
           outputs: Any = None) -> tuple[Artifact, Context]:  # fmt: skip
    """A torch artifact and its context, by a factory of this file or of the zoo."""
    folder.mkdir(exist_ok=True)
    name = f"{HERE}:{factory}" if factory in globals() else factory
    made = torch_kit.artifact(torch_kit.descriptor(folder, inputs, name, outputs), dims)
    return made, torch_kit.context(made, folder, dims)


def described(path: Path) -> Artifact:
    return Artifact("tflite", path, "", RUNNER.describe(path, {}), (path.name,))


def converted(
    folder: Path, factory: str, *inputs: TensorSpec, dims: Mapping[str, Dim] = DIMS, outputs: Any = None, **options: Any
) -> tuple[Artifact, Artifact, Context, Any]:
    """Source, TFLite artifact, context and notes; confirmed, and it answers as the source does."""
    parent, given = source(folder, factory, *inputs, dims=dims, outputs=outputs)
    asked, out = TorchToTflite(**options), torch_kit.out_dir(folder)
    notes = PASS.run(parent, out, asked, given)
    assert sorted(p.name for p in out.iterdir()) == ["model.tflite"]
    made = described(out / "model.tflite")
    assert PASS.confirm is not None
    assert PASS.confirm(parent, made, asked, given) == []
    torch_kit.assert_same(parent, RUNNER, made.path, dims, tolerance=1e-5)
    assert made.signature is not None
    assert parent.signature is not None
    assert [spec.name for spec in made.signature.outputs] == [spec.name for spec in parent.signature.outputs]
    return parent, made, given, notes


def infer(artifact: Artifact, feeds: Mapping[str, Any]) -> dict[str, Any]:
    with RUNNER.open(artifact) as session:
        return dict(session.infer(dict(feeds)))


def rewritten(artifact: Artifact, path: Path, change: Any) -> Artifact:
    """The file with a change made to its `ModelT` and contract, in `path`."""
    model = tflite_model.read(artifact.path)
    agreed = change(model, tflite_model.contract(model)) or tflite_model.contract(model)
    tflite_model.write(model, path, agreed)
    return Artifact("tflite", path, "", artifact.signature, (path.name,))


def images(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [{"image": generator.uniform(-1, 1, (3, 12, 10)).astype(np.float32)} for _ in range(count)]


def texts(count: int, length: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    generator = np.random.default_rng(seed)
    return [
        {"input_ids": generator.integers(0, 50, length), "attention_mask": np.ones(length, np.int64)}
        for _ in range(count)
    ]


IMAGES, TEXTS = ListSamples(images(24)), ListSamples(texts(24))
