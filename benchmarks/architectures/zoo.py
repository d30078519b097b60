"""Every architecture of the coverage table, by name, and `build`, which makes its model."""

from __future__ import annotations

from typing import Any

import audio
import mixed
import scenes
import text
import torch
import transformers
import vision
from kinds import DIMS, Architecture
from torch import nn

ZOO: dict[str, Architecture] = {
    architecture.name: architecture
    for table in (vision, text, audio, scenes, mixed)
    for architecture in table.ARCHITECTURES
}


def build(name: str) -> nn.Module:
    """The architecture's model in evaluation mode, with weights that let errors be seen.

    transformers draws weights with a standard deviation of 0.02, as is right for hidden sizes of some hundred; at 32
    each layer would then fade its input by ten, and outputs hardly depend on the input. So every matrix, kernel and
    table is drawn anew with the variance 1 / fan-in (LeCun et al., Efficient BackProp, 1998), biases with a standard
    deviation of 0.1, BatchNorm's gains likewise around 1, and its statistics are those of random inputs.
    """
    torch.manual_seed(0)
    model = ZOO[name].build(transformers).eval()
    generator = torch.Generator().manual_seed(1)
    _enliven(model, generator)
    _settle(model, ZOO[name], generator)
    return model


def _enliven(model: nn.Module, generator: torch.Generator) -> None:
    seen: set[int] = set()
    with torch.no_grad():
        for module in model.modules():
            for parameter, kind in _drawn(module):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                fan_in = {"table": 1, "bias": 100, "gain": 100}.get(kind) or parameter[0].numel()
                drawn = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
                parameter.copy_(drawn + 1 if kind == "gain" else drawn)


def _drawn(module: nn.Module) -> list[tuple[Any, str]]:
    """The parameters of one module that are drawn anew."""
    if isinstance(module, nn.Embedding):
        return [(module.weight, "table")]
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
        return [(module.weight, "gain"), (module.bias, "bias")]
    if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d):
        return []
    own = dict(module.named_parameters(recurse=False))
    kinds = {"weight": "matrix", "bias": "bias"}
    return [(own[name], kind) for name, kind in kinds.items() if name in own]


def feeds(architecture: Architecture, generator: torch.Generator, batch: int) -> dict[str, torch.Tensor]:
    """Random inputs within their ranges; masks hide nothing."""
    made = {}
    for name, spec in architecture.inputs.items():
        shape = [batch if d == "batch" else DIMS[d]["opt"] if isinstance(d, str) else d for d in spec["shape"]]
        low, high = spec["range"]
        drawn = torch.rand(shape, generator=generator) * (high - low) + low
        made[name] = drawn.round().long() if spec.get("dtype") == "int64" else drawn
        if "mask" in name:
            made[name] = torch.ones_like(made[name])
    return made


def variation(name: str) -> dict[str, float]:
    """Of each output, how much it varies with the input: standard deviation over samples, over root mean square."""
    architecture, model = ZOO[name], build(name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        results = [model(**feeds(architecture, generator, 2)) for _ in range(4)]
    found = {}
    for output in architecture.outputs:
        values = torch.stack([r if isinstance(r, torch.Tensor) else r[output] for r in results]).double()
        found[output] = float((values.std(0).square().mean() / values.square().mean()).sqrt())
    return found


def _settle(model: nn.Module, architecture: Architecture, generator: torch.Generator) -> None:
    """Set BatchNorm's statistics in one forward pass: with mean 0 and variance 1 nothing would be normalised."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = None  # plain average over the forward passes, of which there is one
        norm.train()
    with torch.no_grad():
        model(**feeds(architecture, generator, 8))
    model.eval()
