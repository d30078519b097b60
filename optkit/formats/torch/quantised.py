"""Which tensors of a torch module are 8-bit integers, written down so that a freshly built one can be made so again.

A torch artifact with fake quantisers has one key more than one with a structure (`torch_structure`):

    {..., "pruned": {...}, "quantised": "quantised.json"}

and in weights.safetensors integers and scales ("stem.0.weight_quantised" int8, "stem.0.weight_scale") in the place of
the float weights. The record has no code in it:

    {"version": 1, "for": "onnxruntime",
     "folded": [["stem.0", "stem.1"], ...],                            a convolution, and the batch norm that is in it
     "activations": {"a0": {"scale": 0.0039, "zero": 0, "kind": "uint8"}, ...},
     "weights": {"stem.0.weight": {"axis": 0, "low": -127, "high": 127}, ...},
     "biases": {"stem.0.bias": {"weight": "stem.0.weight", "input": "a0"}, ...},
     "calls": {"stem.0:conv2d:0": {"operands": {"0": "a0"}, "weight": ["1", "stem.0.weight"], ...}, ...}}

What a call takes and gives is rounded where it says so; keys are those of `torch_calls`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from optkit.errors import SourceError, StepError
from optkit.formats.torch.calls import handle_calls, tensor_slots, with_slots
from optkit.formats.torch.files import existing
from optkit.plugin import need

RECORD = "quantised.json"
VERSION = 1
RANGES = {"uint8": (0, 255), "int8": (-128, 127)}
INT32 = 2**31 - 1


@dataclass(frozen=True)
class Activation:
    """The grid of a tensor between layers: (integer - zero) * scale."""

    scale: float
    zero: int
    kind: str

    def numbers(self) -> tuple[float, int, int, int]:
        """Scale, zero point, lowest and highest integer."""
        return self.scale, self.zero, *RANGES[self.kind]


@dataclass(frozen=True)
class Weight:
    """The grid of a weight: integers low..high around 0. axis: of a scale each; None where one holds for all."""

    axis: int | None
    low: int
    high: int


@dataclass(frozen=True)
class Bias:
    """A bias in 32-bit integers at the scale of the products it is added to."""

    weight: str
    input: str


@dataclass(frozen=True)
class Call:
    """What is rounded at one call. operands: slot to activation. weight, bias: slot and name of the parameter."""

    operands: Mapping[str, str] = field(default_factory=dict)
    result: str | None = None
    weight: tuple[str, str] | None = None
    bias: tuple[str, str] | None = None


@dataclass(frozen=True)
class Quantised:
    """All of the record. target: whose kernels it is for."""

    target: str
    folded: tuple[tuple[str, str], ...]
    activations: Mapping[str, Activation]
    weights: Mapping[str, Weight]
    biases: Mapping[str, Bias]
    calls: Mapping[str, Call]

    def to_json(self) -> dict[str, Any]:
        parts = {name: {key: asdict(value) for key, value in getattr(self, name).items()}
                 for name in ("activations", "weights", "biases", "calls")}  # fmt: skip
        return {"version": VERSION, "for": self.target, "folded": [list(pair) for pair in self.folded], **parts}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Quantised:
        calls = {key: Call(call["operands"], call["result"], _pair(call["weight"]), _pair(call["bias"]))
                 for key, call in data["calls"].items()}  # fmt: skip
        return Quantised(
            data["for"], tuple((conv, norm) for conv, norm in data["folded"]),
            {key: Activation(**value) for key, value in data["activations"].items()},
            {key: Weight(**value) for key, value in data["weights"].items()},
            {key: Bias(**value) for key, value in data["biases"].items()}, calls,
        )  # fmt: skip


def _pair(items: Sequence[str] | None) -> tuple[str, str] | None:
    return (items[0], items[1]) if items else None


class Rounding(Protocol):
    """How tensors get onto their grids: learned, measured, or as written down."""

    def activation(self, name: str, tensor: Any) -> Any: ...

    def weight(self, name: str, tensor: Any) -> Any: ...

    def bias(self, name: str, tensor: Any) -> Any: ...


def attach(module: Any, calls: Mapping[str, Call], rounding: Rounding) -> Callable[[], None]:
    """Round in every forward of the module from now on; returns what ends that."""

    def handle(key: str, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        call = calls.get(key)
        if call is None:
            return func(*args, **kwargs)
        given = tensor_slots(args, kwargs)
        new = {slot: rounding.activation(at, given[slot]) for slot, at in call.operands.items() if slot in given}
        if call.weight and call.weight[0] in given:
            new[call.weight[0]] = rounding.weight(call.weight[1], given[call.weight[0]])
        if call.bias and call.bias[0] in given:
            new[call.bias[0]] = rounding.bias(call.bias[1], given[call.bias[0]])
        positional, named = with_slots(args, kwargs, new)
        result = func(*positional, **named)
        return result if call.result is None else rounding.activation(call.result, result)

    return handle_calls(module, handle)


def along(vector: Any, tensor: Any, axis: int | None) -> Any:
    """A vector of scales as a tensor that multiplies `tensor` along an axis; of one element where axis is None."""
    return vector if axis is None else vector.reshape([-1 if i == axis else 1 for i in range(tensor.dim())])


def integers(tensor: Any, scale: Any, low: int, high: int) -> Any:
    """The integers of a tensor on a symmetric grid, still as floats; scale: of its shape or one that broadcasts."""
    return (tensor / scale).round().clamp(low, high)


def dequantised(held: Any, scale: Any, axis: int | None) -> Any:
    """float32 values of integers; in double precision, as 32-bit integers need it."""
    return (held.double() * along(scale.double(), held, axis)).float()


# ------------------------------------------------------------------------------------------------ at rest


class Written:
    """The rounding of a loaded artifact: its weights are on their grid already.

    While torch.export looks, each rounding is a pair of quantise and dequantise operators, the ones that exporters
    know. integers: weights are stored integers there; else floats that are rounded, which OpenVINO's frontend wants.
    """

    def __init__(self, module: Any, record: Quantised) -> None:
        self.module, self.record, self.integers = module, record, True
        need("torch.ao.quantization.fx._decomposed", "torch")  # registers the operators
        # onnxruntime fuses products whose zero points are there, OpenVINO convolutions whose zero points are not.
        self.products = {name for key, call in record.calls.items() if key.split(":")[1] in ("linear", "addmm")
                         for _, name in filter(None, (call.weight, call.bias))}  # fmt: skip
        self.operators = need("torch").ops.quantized_decomposed

    def activation(self, name: str, tensor: Any) -> Any:
        torch = need("torch")
        scale, zero, low, high = self.record.activations[name].numbers()
        if not torch.compiler.is_exporting():
            return torch.fake_quantize_per_tensor_affine(tensor, scale, zero, low, high)
        grid = (scale, zero, low, high, torch.uint8 if low == 0 else torch.int8)
        return self.operators.dequantize_per_tensor(self.operators.quantize_per_tensor(tensor, *grid), *grid)

    def weight(self, name: str, tensor: Any) -> Any:
        torch = need("torch")
        if not torch.compiler.is_exporting():
            return tensor
        grid, per = self.record.weights[name], self.operators
        scale = _attribute(self.module, f"{name}_scale")
        ends = (grid.low, grid.high, torch.int8)
        if grid.axis is None:
            scale = self._single[name]
            held = _attribute(self.module, f"{name}_quantised") if self.integers else (
                per.quantize_per_tensor(tensor, scale, 0, *ends))  # fmt: skip
            return per.dequantize_per_tensor(held, scale, 0, *ends)
        zeros = torch.zeros_like(scale, dtype=torch.int64)
        held = _attribute(self.module, f"{name}_quantised") if self.integers else (
            per.quantize_per_channel(tensor, scale, zeros, grid.axis, *ends))  # fmt: skip
        return per.dequantize_per_channel(held, scale, self._zeros(name, zeros), grid.axis, *ends)

    def bias(self, name: str, tensor: Any) -> Any:
        torch = need("torch")
        if not (torch.compiler.is_exporting() and self.integers):
            return tensor
        held, scale = (_attribute(self.module, f"{name}_{end}") for end in ("quantised", "scale"))
        ends = (-INT32, INT32, torch.int32)
        if scale.numel() == 1 < held.numel():
            return self.operators.dequantize_per_tensor(held, self._single[name], 0, *ends)
        zeros = torch.zeros_like(scale, dtype=torch.int64)
        return self.operators.dequantize_per_channel(held, scale, self._zeros(name, zeros), 0, *ends)

    def _zeros(self, name: str, zeros: Any) -> Any:
        return zeros if name in self.products or not self.integers else None

    @property
    def _single(self) -> Mapping[str, float]:
        single: Mapping[str, float] = self.module.__dict__["_optkit_scales"]
        return single


def _attribute(module: Any, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)


def fold_away(module: Any, folded: Sequence[tuple[str, str]]) -> None:
    """Put an Identity in the place of each batch norm that is folded, and give its layer a bias."""
    torch = need("torch")
    for layer, norm in folded:
        owner = module.get_submodule(layer)
        if owner.bias is None:
            channels = module.get_submodule(norm).num_features
            owner.bias = torch.nn.Parameter(torch.zeros(channels, dtype=owner.weight.dtype), requires_grad=False)
        path, _, leaf = norm.rpartition(".")
        setattr(module.get_submodule(path), leaf, torch.nn.Identity())


def read(path: str | Path) -> Quantised:
    """The record in a file. Raises SourceError."""
    file = existing(path, "model")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise SourceError(f"{file} is of version {data['version']}; this optkit reads {VERSION}", subject="model",
                              hint="use the optkit that wrote it, or run torch.qat again")  # fmt: skip
        return Quantised.from_json(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file} is damaged: {type(error).__name__}: {error}", subject="model",
                          hint="run torch.qat again") from error  # fmt: skip


def record_of(descriptor: Path) -> Quantised | None:
    """The record that a torch.json names; None for a model without fake quantisers. Raises SourceError."""
    try:
        name = json.loads(descriptor.read_text(encoding="utf-8")).get("quantised")
    except (OSError, ValueError) as error:
        raise SourceError(f"{descriptor} cannot be read: {error}", subject="model") from error
    return read(descriptor.parent / name) if name else None


def prepare(module: Any, record: Quantised, state: Mapping[str, Any]) -> None:
    """Give a freshly built module the places for what is in `state`: integers, scales, folded batch norms."""
    torch = need("torch")
    try:
        fold_away(module, record.folded)
        for name in (*record.weights, *record.biases):
            path, _, leaf = name.rpartition(".")
            owner = module.get_submodule(path)
            held, scale = state[f"{name}_quantised"], state[f"{name}_scale"]
            was = getattr(owner, leaf)
            if tuple(was.shape) != tuple(held.shape):
                raise _unlike(name, f"it has shape {tuple(was.shape)}, not {tuple(held.shape)}")
            delattr(owner, leaf)
            owner.register_buffer(leaf, torch.empty(held.shape), persistent=False)
            owner.register_buffer(f"{leaf}_quantised", torch.empty_like(held))
            owner.register_buffer(f"{leaf}_scale", torch.empty_like(scale))
    except (AttributeError, KeyError) as error:
        raise _unlike(str(error).strip("'\""), "it is not there") from error


def finish(module: Any, record: Quantised) -> None:
    """Dequantise what was loaded, and have the module round from now on."""
    single: dict[str, float] = {}
    for name in (*record.weights, *record.biases):
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        held, scale = getattr(owner, f"{leaf}_quantised"), getattr(owner, f"{leaf}_scale")
        axis = record.weights[name].axis if name in record.weights else 0 if scale.numel() > 1 else None
        setattr(owner, leaf, dequantised(held, scale, axis))
        if scale.numel() == 1:
            single[name] = float(scale)
    module.__dict__["_optkit_scales"] = single
    written = Written(module, record)
    module.__dict__["_optkit_written"] = written
    attach(module, record.calls, written)


def written(module: Any) -> Written | None:
    """The rounding of a loaded module; None for one without fake quantisers."""
    found: Written | None = module.__dict__.get("_optkit_written")
    return found


def state_of(record: Quantised, state: Mapping[str, Any], scales: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of a module's float `state`: of each quantised tensor its integers and its scale, a vector."""
    torch = need("torch")
    made = {name: value for name, value in state.items() if name not in scales}
    for name, scale in scales.items():
        grid = record.weights.get(name)
        low, high, axis, kind = (
            (grid.low, grid.high, grid.axis, torch.int8) if grid else (-INT32, INT32, None, torch.int32)
        )
        whole = state[name].double() if grid is None else state[name]
        divisor = scale.to(whole.dtype)
        made[f"{name}_quantised"] = integers(whole, along(divisor, whole, axis), low, high).to(kind)
        made[f"{name}_scale"] = scale
    return made


def refuse(descriptor: Mapping[str, Any], use: str) -> None:
    """Raises StepError where a pass that changes float weights is given a model that has fake quantisers in it."""
    if descriptor.get("quantised"):
        raise StepError(f"the model has fake quantisers in it, which {use} cannot keep", subject="from",
                        hint=f"put {use} before torch.qat")  # fmt: skip


def _unlike(name: str, what: str) -> SourceError:
    return SourceError(f"the model was built otherwise than when it was quantised: {name}: {what}",
                       subject="model.torch", hint="build it with the code and the kwargs it had then, or run "
                       "torch.qat again")  # fmt: skip


__all__ = [
    "RECORD", "Activation", "Bias", "Call", "Quantised", "Rounding", "Weight", "Written", "along", "attach",
    "dequantised", "finish", "fold_away", "integers", "prepare", "read", "record_of", "refuse", "state_of", "written",
]  # fmt: skip
