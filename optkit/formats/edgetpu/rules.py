"""What of a TFLite file an Edge TPU cannot run, told without the compiler.

Operators and their limits are those of Coral's table of supported operations (Edge TPU runtime 14, compiler 16); the
versions are those of the TFLite release that compiler 16 was built from: a later one makes it refuse the whole file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.formats.onnx.refusal import Refusal
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model

INTEGERS = ("int8", "uint8")
SOFTMAX_LIMIT = 16_000
_QUANTISE = "quantise the float file with tflite.quantize and with: {mode: static, io: int8}"
_STATIC = "fix the batch at 1: torch.to_tflite with: {sizes: {batch: [1]}}; larger batches are then put together of it"
_REPLACE = "replace it in the model, or let it run on the CPU: tflite.to_edgetpu with: {allow_cpu: true}"
_VERSION = "convert it with an older converter: the Edge TPU compiler reads nothing newer"


@dataclass(frozen=True)
class Node:
    """One operator of a graph, and what a limit may ask about it."""

    name: str
    op: Any
    graph: Any
    model: Any

    def tensors(self, indices: Sequence[int]) -> list[Any]:
        return [self.graph.tensors[i] for i in indices if i != -1]

    @property
    def inputs(self) -> list[Any]:
        return self.tensors(self.op.inputs)

    @property
    def outputs(self) -> list[Any]:
        return self.tensors(self.op.outputs)

    def constant(self, tensor: Any) -> bool:
        data = self.model.buffers[tensor.buffer].data
        return data is not None and len(data) > 0

    def values(self, position: int) -> list[int] | None:
        """A constant input's integers, such as axes; None where it is not there or computed."""
        import numpy as np

        if len(self.inputs) <= position or not self.constant(self.inputs[position]):
            return None
        tensor = self.inputs[position]
        data = np.frombuffer(self.model.buffers[tensor.buffer].data, tflite_model.kind_of(tensor))
        return [int(n) for n in data]

    def option(self, name: str) -> Any:
        return getattr(self.op.builtinOptions, name, 0) or 0


def blocking(model: Any) -> list[Refusal]:
    """Why the compiler can make nothing of a file: several graphs, sizes that vary, no integers, too new operators."""
    found = []
    if len(model.subgraphs) != 1:
        held = ", ".join(tflite_model.signatures(model))
        what = f"the file holds {len(model.subgraphs)} graphs ({held}), and the compiler takes one"
        found.append(Refusal("", "", what, _STATIC))
    graph = model.subgraphs[0]
    for index in graph.inputs:
        tensor = graph.tensors[index]
        signed = tensor.shapeSignature
        axes = [str(axis) for axis, n in enumerate(signed if signed is not None else ()) if n < 0]
        if axes:
            what = f"axis {', '.join(axes)} of the input can be resized, and every size must be fixed"
            found.append(Refusal(tflite_model.text_of(tensor.name), "", what, _STATIC))
    for code, name in zip(model.operatorCodes, tflite_look.operator_names(model), strict=True):
        if code.version > VERSIONS.get(name, code.version):
            what = f"it has version {code.version}, and the compiler reads up to {VERSIONS[name]}"
            found.append(Refusal("", name, what, _VERSION))
    nodes = _nodes(model)
    if not any(tflite_model.is_quantised(t) and tflite_model.kind_of(t) in INTEGERS for n in nodes for t in n.outputs):
        found.append(Refusal("", "", "no operator computes in 8-bit integers: the file is not quantised", _QUANTISE))
    return found


def on_the_cpu(model: Any) -> list[Refusal]:
    """Each operator that an Edge TPU has not, or not for these types, sizes or attributes: it stays on the CPU."""
    named = _modules(model)
    found = []
    for node in _nodes(model):
        what, hint = _why(node)
        if what:
            name = tflite_model.text_of(node.outputs[0].name) if node.outputs else ""
            found.append(Refusal(name, node.name, what, hint, "" if named is None else _module(name, named)))
    return found


def _nodes(model: Any) -> list[Node]:
    return [Node(name, op, graph, model) for name, op, graph in tflite_look.operations(model)]


def _why(node: Node) -> tuple[str, str]:
    """Why a node stays on the CPU, and what to do; ("", "") where it does not."""
    if node.name == "DEQUANTIZE":
        return "it turns integers into float, which the CPU does", _QUANTISE
    if node.name not in LIMITS:
        return "the Edge TPU has no such operator", _REPLACE
    moving = [*node.outputs, *(t for t in node.inputs if not node.constant(t))]
    kinds = [tflite_model.kind_of(t) for t in moving]
    if odd := next((kind for kind in kinds if kind not in INTEGERS), None):
        if node.name == "QUANTIZE" and odd == "float32":
            return "it turns float32 into integers, which the CPU does", _QUANTISE
        return f"it computes in {odd}, not in 8-bit integers", _QUANTISE
    for tensor in moving:
        shape = [int(n) for n in tensor.shape if tensor.shape is not None] if tensor.shape is not None else []
        if any(n > 1 for n in shape[:-3]):
            what = f"shape ({', '.join(map(str, shape))}) has more than 3 axes, and only the last 3 may be above 1"
            return what, _STATIC if math.prod(shape[1:-3]) == 1 else _REPLACE
    limit = LIMITS[node.name]
    what = limit(node) if limit else ""
    batched = "more than one axis above 1" in what and node.outputs[0].shape[0] > 1
    return what, (_STATIC if batched else _REPLACE) if what else ""


# ------------------------------------------------------------------------------------------------ limits


def _axes(node: Node) -> list[int] | None:
    """The axes a reduction is over, counted from 0; None where they are computed."""
    rank = len(node.inputs[0].shape)
    found = node.values(1)
    return None if found is None else [axis % rank for axis in found]


def _activation(node: Node) -> str:
    return "it has a fused activation" if node.option("fusedActivationFunction") else ""


def _concatenation(node: Node) -> str:
    import numpy as np

    constants = [t for t in node.inputs if node.constant(t)]
    for tensor in constants:
        data = np.frombuffer(node.model.buffers[tensor.buffer].data, tflite_model.kind_of(tensor))
        zero = int(tensor.quantization.zeroPoint[0]) if tflite_model.is_quantised(tensor) else 0
        if len(node.inputs) > 2 or (data != zero).any():
            return "it joins a constant, which may only be zeros and one of two inputs"
    return _activation(node)


def _constant_weights(node: Node) -> str:
    first = 2 if node.name == "TRANSPOSE_CONV" else 0  # its input stands behind the output's shape and the weights
    weights = [t for i, t in enumerate(node.inputs) if i != first]
    return "" if all(node.constant(t) for t in weights) else "its weights or bias are computed, and must be constant"


def _convolution(node: Node) -> str:
    if node.option("dilationWFactor") != node.option("dilationHFactor"):
        return "its dilations along height and width differ"
    return _constant_weights(node)


def _fully_connected(node: Node) -> str:
    if node.option("weightsFormat"):
        return "its weights are not in the default format"
    if sum(n > 1 for n in node.outputs[0].shape) > 1:
        return f"its output {_shown(node.outputs[0])} has more than one axis above 1"
    return _constant_weights(node)


def _mean(node: Node) -> str:
    axes, shape = _axes(node), node.inputs[0].shape
    if axes is not None and len(shape) - 1 in axes and shape[-1] % 4:
        return f"it is taken over the last axis of {_shown(node.inputs[0])}, whose size must be a multiple of 4"
    return _not_the_batch(node)


def _not_the_batch(node: Node) -> str:
    axes = _axes(node)
    if axes is None:
        return "its axes are computed, and must be constant"
    return "it is taken over the batch" if 0 in axes and len(node.inputs[0].shape) > 1 else ""


def _pack(node: Node) -> str:
    return "it packs along the batch" if not node.option("axis") else ""


def _pad(node: Node) -> str:
    widths = node.values(1)
    if widths is None:
        return "its widths are computed, and must be constant"
    return "it pads the batch" if len(widths) > 2 and any(widths[:2]) else ""


def _prelu(node: Node) -> str:
    return "its slopes vary along more than the last axis" if any(n > 1 for n in node.inputs[1].shape[:-1]) else ""


def _softmax(node: Node) -> str:
    shape = [int(n) for n in node.inputs[0].shape]
    if sum(n > 1 for n in shape) > 1:
        return f"its input {_shown(node.inputs[0])} has more than one axis above 1"
    return f"it is over more than {SOFTMAX_LIMIT} elements" if math.prod(shape) > SOFTMAX_LIMIT else ""


def _split(node: Node) -> str:
    axis = node.values(0)
    if axis is None:
        return "its axis is computed, and must be constant"
    return "it splits the batch" if axis[0] % len(node.inputs[1].shape) == 0 else ""


def _strided_slice(node: Node) -> str:
    strides = node.values(3)
    if strides is None or any(n != 1 for n in strides):
        return "its strides are not all 1"
    return "it has an ellipsis or a new axis" if node.option("ellipsisMask") or node.option("newAxisMask") else ""


def _shown(tensor: Any) -> str:
    return f"({', '.join(str(int(n)) for n in tensor.shape)})"


LIMITS: dict[str, Callable[[Node], str] | None] = {
    "ADD": None, "AVERAGE_POOL_2D": _activation, "CONCATENATION": _concatenation, "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _convolution, "EXPAND_DIMS": None, "FULLY_CONNECTED": _fully_connected,
    "L2_NORMALIZATION": None, "LOGISTIC": None, "LSTM": None, "UNIDIRECTIONAL_SEQUENCE_LSTM": None, "MAXIMUM": None,
    "MAX_POOL_2D": _activation, "MEAN": _mean, "MINIMUM": None, "MUL": None, "PACK": _pack, "PAD": _pad,
    "PADV2": _pad, "PRELU": _prelu, "QUANTIZE": None, "REDUCE_MAX": _not_the_batch, "REDUCE_MIN": _not_the_batch,
    "RELU": None, "RELU6": None, "RELU_N1_TO_1": None, "RESHAPE": None, "RESIZE_BILINEAR": None,
    "RESIZE_NEAREST_NEIGHBOR": None, "RSQRT": None, "SLICE": None, "SOFTMAX": _softmax, "SPACE_TO_DEPTH": None,
    "SPLIT": _split, "SQUARED_DIFFERENCE": None, "SQUEEZE": None, "STRIDED_SLICE": _strided_slice, "SUB": None,
    "SUM": _not_the_batch, "TANH": None, "TRANSPOSE": None, "TRANSPOSE_CONV": _constant_weights,
}  # fmt: skip
"""Operators an Edge TPU has, with what tells why one of them does not qualify."""

VERSIONS = {
    "ADD": 4, "AVERAGE_POOL_2D": 3, "CONCATENATION": 3, "CONV_2D": 5, "DEPTHWISE_CONV_2D": 6, "DEQUANTIZE": 5, "EXP": 1,
    "EXPAND_DIMS": 1, "FULLY_CONNECTED": 9, "L2_NORMALIZATION": 2, "LOGISTIC": 3, "LSTM": 4, "MAXIMUM": 4,
    "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 4, "MUL": 5, "PACK": 3, "PAD": 4, "PADV2": 4, "PRELU": 1, "QUANTIZE": 3,
    "REDUCE_MAX": 3, "REDUCE_MIN": 3, "RELU": 3, "RELU6": 3, "RELU_N1_TO_1": 1, "RESHAPE": 1, "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4, "RSQRT": 2, "SLICE": 5, "SOFTMAX": 3, "SPACE_TO_DEPTH": 2, "SPLIT": 4,
    "SQUARED_DIFFERENCE": 2, "SQUEEZE": 2, "STRIDED_SLICE": 6, "SUB": 5, "SUM": 2, "TANH": 3, "TRANSPOSE": 5,
    "TRANSPOSE_CONV": 3, "UNIDIRECTIONAL_SEQUENCE_LSTM": 3,
}  # fmt: skip
"""The latest version of an operator that compiler 16 can read."""


# ------------------------------------------------------------------------------------------------ modules


def _modules(model: Any) -> set[str] | None:
    """The names of the file's ends, where all other tensors are called after torch modules, as torch.to_tflite does.

    None for a file of another converter, whose names say something else.
    """
    made = tflite_model.text_of(model.description).startswith("MLIR")
    agreed = tflite_model.recorded(model)
    return {spec.name for spec in (*agreed.inputs, *agreed.outputs)} if made and agreed is not None else None


def _module(name: str, ends: Collection[str]) -> str:
    """The module a tensor's name tells of ("encoder.layer.0" of "encoder.layer.0:2"); "" where it tells of none."""
    plain = re.sub(r"_(?:quantized|dequant)$", "", name.split(";")[0])  # of ai-edge-quantizer
    found = re.fullmatch(r"([A-Za-z_][\w.]*)(?::\d+)?", plain)
    return "" if found is None or found[1] in ends or found[1] in ("model", "constant") else found[1]


def refusals(model: Any) -> Iterator[Refusal]:
    """All that an Edge TPU refuses of a file, the file's own faults first."""
    yield from blocking(model)
    yield from on_the_cpu(model)
