"""The options of onnx.quantize."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, model_validator

from optkit.formats import budget, tuning
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import ranges as onnx_ranges
from optkit.plugin import Options

STATIC = ("Conv", "ConvTranspose", "Gemm", "MatMul")
BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Relu", "Reshape",
           "Squeeze", "Unsqueeze")  # fmt: skip
DYNAMIC = ("Gemm", "MatMul")
WAYS: tuple[tuning.Way, ...] = (
    {},
    {"calibration": "mse"},
    {"smooth_quant": 0.5},
    {"smooth_quant": 0.8},
    {"equalise": True, "correct_bias": "fast"},
    {"rounding": "gptq", "correct_bias": "fast"},
    {"rounding": "gptq", "correct_bias": "fast", "smooth_quant": 0.8},
)
DYNAMIC_WAYS: tuple[tuning.Way, ...] = (
    {"method": "dynamic"},
    {"method": "dynamic", "smooth_quant": 0.5},
    {"method": "dynamic", "smooth_quant": 0.8},
)
MEASURED = 128  # samples, spread over the data, that full bias correction takes for each layer


class QuantizeOptions(Options):
    """What is quantised, and how."""

    method: Literal["static", "dynamic"] = Field(
        "static", description="static: ranges of activations from data; dynamic: found in each call, without data"
    )
    target: Literal["onnxruntime", "tensorrt"] = Field(
        "onnxruntime", alias="for", description="whose kernels: tensorrt takes symmetric int8 alone, bias in float"
    )
    calibration: Literal["minmax", "entropy", "percentile", "mse"] | None = Field(
        None, description="how a range follows from the data (static); mse: with the least squared error, for "
                          "heavy tails; minmax unless given")  # fmt: skip
    percentile: float | None = Field(
        None, gt=50, le=100, description="percent of the values inside the range, with calibration: percentile; 99.99 "
                                         "unless given")  # fmt: skip
    per_channel: bool = Field(True, description="a scale for each output channel of a weight, not one for all")
    activation_type: Literal["int8", "uint8"] | None = Field(
        None, description="static; unless given uint8 for onnxruntime, int8 for tensorrt"
    )
    weight_type: Literal["int8", "uint8"] = Field("int8", description="integer type of weights")
    symmetric: bool | None = Field(
        None, description="ranges of activations symmetric around 0 (static); unless given only for tensorrt"
    )
    equalise: bool = Field(False, description=(
        "first give the channels on either side of a ReLU weights of like range (cross-layer equalisation), which "
        "per_channel: false needs, and activations that differ much in range; exact, but at a Clip such as ReLU6 only "
        "below its limit and on the data"))  # fmt: skip
    smooth_quant: float | None = Field(None, ge=0, le=1, description=(
        "first move this share of the outliers in what goes into MatMul and Gemm to their weights, by data; try "
        "0.5 to 0.9, the best of them differs much from the rest; exact"))  # fmt: skip
    rounding: Literal["nearest", "gptq"] = Field(
        "nearest", description="gptq: integers that keep each layer's outputs on the data close, not each weight"
    )
    correct_bias: Literal["fast", "full"] | None = Field(None, description=(
        "what the rounding adds to each layer's mean output is taken off its bias (static). fast: by the means of its "
        f"inputs; full: as measured, layer after layer, each on {MEASURED} samples, what is clipped included"
    ))  # fmt: skip
    op_types: tuple[str, ...] = Field((), description=(
        f"operators to quantise. Unless given: {', '.join(STATIC)}, and with onnxruntime's convolutional models what "
        f"lies between them ({', '.join(BETWEEN)}); dynamic: {', '.join(DYNAMIC)}, and Gather for tables on request. "
        "Products of two activations stay float"))  # fmt: skip
    exclude: tuple[str, ...] = Field((), description="names of nodes that stay float; * stands for anything")
    reduce_range: bool = Field(False, description="7-bit weights, for x86 processors without VNNI, whose 8-bit "
                                                  "products saturate")  # fmt: skip
    budget: tuple[str, ...] = Field((), description=budget.DESCRIPTION)
    tune: bool = Field(False, description=tuning.DESCRIPTION)

    @model_validator(mode="after")
    def _consistent(self) -> QuantizeOptions:
        wrong = [text for holds, text in (
            (self.percentile is not None and self.calibration != "percentile",
             "percentile goes with calibration: percentile"),
            (self.method == "dynamic" and self.calibration is not None, "dynamic quantisation does not calibrate"),
            (self.method == "dynamic" and self.correct_bias is not None,
             "correct_bias goes with method: static"),
            (self.correct_bias == "full" and bool(self.budget),
             "correct_bias: full is measured on the whole model, not on a budget's trials: use fast"),
            (self.method == "dynamic" and self.symmetric, "dynamic quantisation has asymmetric activations"),
            (self.method == "dynamic" and self.activation_type == "int8", "dynamic activations are uint8"),
            (self.method == "dynamic" and not set(self.op_types) <= {*DYNAMIC, "Gather"},
             f"dynamic quantisation takes {', '.join(DYNAMIC)} and Gather: convolutions become slower by it"),
            (self.target == "tensorrt" and self.method == "dynamic", "tensorrt takes static quantisation alone"),
            (self.target == "tensorrt" and "uint8" in (self.activation_type, self.weight_type),
             "tensorrt takes int8 alone, not uint8"),
            (self.target == "tensorrt" and self.symmetric is False, "tensorrt takes symmetric ranges alone"),
            (self.target == "tensorrt" and self.reduce_range, "reduce_range is for x86 processors, not tensorrt"),
            (self.tune and not self.budget, tuning.ALONE),
        ) if holds]  # fmt: skip
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def activations(self) -> Literal["int8", "uint8"]:
        """The integer type of activations."""
        return self.activation_type or ("int8" if self.target == "tensorrt" else "uint8")

    @property
    def scheme(self) -> onnx_integer.Scheme:
        """How weights are quantised."""
        return onnx_integer.Scheme(self.weight_type, self.per_channel, self.reduce_range)

    @property
    def rule(self) -> onnx_ranges.Rule:
        """How a range follows from the data."""
        symmetric = self.target == "tensorrt" if self.symmetric is None else self.symmetric
        return onnx_ranges.Rule(self.calibration or "minmax", self.percentile or 99.99, symmetric)

    @property
    def learns(self) -> bool:
        """Whether data decides the output."""
        return self.method == "static" or self.smooth_quant is not None or self.rounding == "gptq"

    def form(self, *, smoothed: bool = True) -> str:
        """What decides the form of the float model that is quantised; "" for the parent's own."""
        changes = [self.equalise, self.smooth_quant if smoothed else None, self.correct_bias is not None and smoothed]
        if not any(one not in (None, False) for one in changes):
            return ""
        return json.dumps([*changes, self.method, self.target, self.op_types, self.exclude])
