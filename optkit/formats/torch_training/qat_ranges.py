"""Grids that are measured on data first and learned then, beside the weights.

A scale is learned as the logarithm of its ratio to the measured one, as in Jain et al., "Trained Quantization
Thresholds" (MLSys 2020), so that the weights' learning rate fits all of them; its gradient is that of Esser et al.,
"Learned Step Size Quantization" (ICLR 2020), with rounding taken for the identity. Zero points stay as measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optkit.errors import StepError
from optkit.formats.torch.quantised import (
    INT32,
    RANGES,
    Activation,
    Quantised,
    along,
    dequantised,
    integers,
)
from optkit.formats.torch_training.qat_flow import Places
from optkit.plugin import need

TINY = 1e-12


class Measured:
    """The rounding that rounds nothing: it notes the lowest and highest value of each activation."""

    def __init__(self) -> None:
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}

    def activation(self, name: str, tensor: Any) -> Any:
        low, high = tensor.detach().aminmax()
        self.low[name] = min(self.low.get(name, math.inf), float(low))
        self.high[name] = max(self.high.get(name, -math.inf), float(high))
        return tensor

    def weight(self, name: str, tensor: Any) -> Any:
        return tensor

    def bias(self, name: str, tensor: Any) -> Any:
        return tensor


def grids(measured: Measured, kind: str) -> dict[str, Activation]:
    """The grid of each activation: the least range that holds what was measured, and 0 exactly.

    kind: uint8, or int8 with 0 in its middle. Raises StepError.
    """
    found = {}
    least, most = RANGES[kind]
    for name, low in measured.low.items():
        high = max(measured.high[name], 0.0)
        low = min(low, 0.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise StepError("the model gives values that are not finite on the fit data", subject="data",
                            hint="look at what it is fed")  # fmt: skip
        if kind == "int8":
            found[name] = Activation(max(-low, high, TINY) / most, 0, kind)
        else:
            scale = max(high - low, TINY) / (most - least)
            found[name] = Activation(scale, round(least - low / scale), kind)
    return found


def learned(module: Any, places: Places, start: Mapping[str, Activation], learns: bool) -> Any:
    """An nn.Module that rounds as `Rounding` says: on measured grids, which it learns where `learns` is true.

    In training, gradients pass; in evaluation it gives exactly what a loaded artifact will.
    """
    torch = need("torch")
    parameters = dict(module.named_parameters(remove_duplicate=False))

    class Learned(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.ratios = torch.nn.ParameterDict()
            self.numbers: dict[str, str] = {}
            for name, grid in start.items():
                self._add(name, torch.tensor([grid.scale]))
            for name, per in places.weights.items():
                self._add(name, _first_scale(parameters[name], per.axis, per.high, self._floor(name, per.axis)))

        def _add(self, name: str, scale: Any) -> None:
            key = self.numbers.setdefault(name, str(len(self.numbers)))
            self.register_buffer(f"first_{key}", scale.float())
            self.ratios[key] = torch.nn.Parameter(torch.zeros_like(scale), requires_grad=learns)

        def _floor(self, weight: str, axis: int | None) -> Any:
            """The least scale at which the bias fits into 32 bits, with room to learn."""
            for name, bias in places.biases.items():
                if bias.weight == weight:
                    least = 4 * parameters[name].detach().abs() / (start[bias.input].scale * INT32)
                    return least if axis is not None else least.max()
            return torch.tensor(TINY)

        def scale(self, name: str) -> Any:
            key = self.numbers[name]
            return getattr(self, f"first_{key}") * self.ratios[key].exp()

        def activation(self, name: str, tensor: Any) -> Any:
            _, zero, low, high = start[name].numbers()
            if not self.training:
                return torch.fake_quantize_per_tensor_affine(
                    tensor.float(), float(self.scale(name).detach()), zero, low, high
                )
            return _passed(tensor, self.scale(name), zero, low, high)

        def weight(self, name: str, tensor: Any) -> Any:
            grid = places.weights[name]
            scale = along(self.scale(name), tensor, grid.axis)
            if not self.training:
                return integers(tensor, scale, grid.low, grid.high) * scale
            return _passed(tensor, scale, 0, grid.low, grid.high)

        def bias(self, name: str, tensor: Any) -> Any:
            if self.training:
                return tensor
            scale = self.bias_scale(name)
            held = integers(tensor.double(), scale.double(), -INT32, INT32)
            return dequantised(held, scale, None)

        def bias_scale(self, name: str) -> Any:
            """The scale of the products that a bias is added to."""
            bias = places.biases[name]
            return (self.scale(bias.weight) * float(self.scale(bias.input).detach())).detach()

        def record(self, target: str, folded: Any) -> tuple[Quantised, dict[str, Any]]:
            """What is written down, and the scales of weights and biases."""
            on = {
                name: Activation(float(self.scale(name).detach()), grid.zero, grid.kind) for name, grid in start.items()
            }
            scales = {name: self.scale(name).detach().clone() for name in places.weights}
            scales |= {name: self.bias_scale(name) for name in places.biases}
            written = Quantised(target, tuple(folded), on, places.weights, places.biases, places.calls)
            return written, {name: scale.to("cpu").contiguous() for name, scale in scales.items()}

    return Learned()


def _first_scale(weight: Any, axis: int | None, most: int, floor: Any) -> Any:
    torch = need("torch")
    size = weight.detach().abs()
    top = size.amax().reshape(1) if axis is None else size.movedim(axis, 0).flatten(1).amax(1)
    return torch.maximum(top / most, floor.reshape(-1) if floor.dim() else floor).clamp(min=TINY)


def _passed(tensor: Any, scale: Any, zero: int, low: int, high: int) -> Any:
    """A tensor on its grid, in training: rounding passes the gradient on, the ends stop it."""
    torch = need("torch")
    share = 1 / math.sqrt(max(1, tensor.numel() / scale.numel()) * high)
    scale = scale * share + (scale - scale * share).detach()
    with torch.autocast(tensor.device.type, enabled=False):
        placed = (tensor.float() / scale + zero).clamp(low, high)
        rounded = placed + (placed.round() - placed).detach()
        return ((rounded - zero) * scale).to(tensor.dtype)


__all__ = ["Measured", "grids", "learned"]
