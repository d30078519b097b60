"""What TensorRT's parser refuses in an ONNX graph, with what mends it; and what a graph asks it to compute in.

The rules about integers hold for TensorRT 10, 11 and TensorRT-RTX, and can be applied without any of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.refusal import Refusal, refused

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_TYPES = ("float32", "float64", "float16", "bfloat16", "int8", "int32", "int64", "uint8", "bool", "int4", "undefined")
_REQUANTISE = "quantise with onnx.quantize and with: {for: tensorrt}, which gives symmetric int8 and a float bias"
_ATTENTION = "put an onnx.fp16 step before this one, or export with opset 22 or lower, which spells attention out"
_OUTSIDE = "replace the operator in the model, or compute it outside"
_DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_QOPERATOR = ("QLinearConv", "QLinearMatMul", "QLinearAdd", "QGemm", "QLinearSigmoid", "QLinearGlobalAveragePool")


def quantisation(model: Any, folder: Path) -> Iterator[Refusal]:
    """The quantised nodes of a graph whose integers TensorRT does not take."""
    tensors = {t.name: t for t in model.graph.initializer} | {
        node.output[0]: attribute.t
        for node in onnx_model.all_nodes(model.graph) if node.op_type == "Constant"
        for attribute in node.attribute if attribute.name == "value"
    }  # fmt: skip
    kinds = {name: onnx_model.dtype_name(t.data_type) for name, t in tensors.items()}
    for node in onnx_model.all_nodes(model.graph):
        why = ""
        if node.op_type in _DYNAMIC:
            why = "activations are quantised while the model runs, which TensorRT has no operators for"
            yield refused(node, why, remedy(node.op_type, why))
            continue
        if node.op_type in _QOPERATOR:
            why = (
                "the quantised operator itself (QOperator format); TensorRT takes QuantizeLinear/DequantizeLinear pairs"
            )
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            why = _integers(node, tensors, kinds, folder)
        if why:
            yield refused(node, why, _REQUANTISE)


def types(model: Any) -> Iterator[Refusal]:
    """The inputs and outputs of a graph whose type TensorRT has not."""
    initializers = {t.name for t in model.graph.initializer}
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in (v for v in values if v.name not in initializers):
            dtype = onnx_model.dtype_name(value.type.tensor_type.elem_type)
            if dtype not in _TYPES:
                yield Refusal(value.name, "", f"{kind} {value.name} is {dtype}, which TensorRT has not",
                              "keep what handles it outside of the model")  # fmt: skip


def unbuilt(model: Any, builder: str) -> Iterator[Refusal]:
    """The nodes that TensorRT-RTX reads and then has no kernel for, seen with 1.7; full TensorRT has them."""
    if builder != "tensorrt_rtx":
        return
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    for node in onnx_model.all_nodes(model.graph):
        if node.domain not in onnx_model.STANDARD_DOMAINS:
            continue
        if node.op_type == "NonMaxSuppression":
            yield refused(node, "TensorRT-RTX reads it and has no kernel for it", _OUTSIDE)
        elif node.op_type == "Attention" and onnx_model.dtype_name(types.get(node.input[0], 0)) == "float32":
            yield refused(node, "TensorRT-RTX has kernels for it in float16 and bfloat16 alone", _ATTENTION)


def _integers(node: Any, tensors: Mapping[str, Any], kinds: Mapping[str, str], folder: Path) -> str:
    """Why TensorRT does not take the integers of a QuantizeLinear or DequantizeLinear; "" where it does."""
    named_zero = node.input[2] if len(node.input) > 2 else ""
    zero = tensors.get(named_zero)
    if named_zero and zero is None:
        return ""  # computed in the graph: the parser tells
    if zero is not None:
        kind = kinds[named_zero]
    elif node.op_type == "DequantizeLinear":
        kind = kinds.get(node.input[0], "int8")  # of an activation: told at its QuantizeLinear
    else:
        asked = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
        kind = onnx_model.dtype_name(asked[0]) if asked else "uint8"
    if kind == "int32":
        return "a quantised int32 bias"
    if not kind.startswith(("int8", "int4", "float8", "float4")):
        return f"{kind} integers"
    if zero is not None and onnx_weights.read(zero, folder).any():
        return "a zero point other than 0 (asymmetric ranges)"
    return ""


def unknown(said: str) -> bool:
    """Whether the parser means that it has no importer and no plug-in for an operator."""
    return said == "false" or "Plugin not found" in said or "was not found in plugin registry" in said


def blamed(said: str, nodes: Iterable[Any]) -> Any:
    """The node whose layer a builder's error names ("nms_0 has no runners", "operation 'head'"); None where none is.

    Layers are called after their node, with a number where one node became several.
    """
    words = set(re.findall(r"[^\s'\"(),;]+", said))
    words |= {re.sub(r"_\d+$", "", word) for word in words}
    return next((node for node in nodes if node.name and node.name in words), None)


def remedy(operator: str, text: str) -> str:
    """One thing to try when the parser or the builder says `text` about an operator."""
    if operator in _DYNAMIC:
        return "onnx.quantize with: {method: static, for: tensorrt}"
    integers = operator in ("QuantizeLinear", "DequantizeLinear", *_QOPERATOR)
    if integers or re.search(r"zero.?point|UInt8|asymmetric", text, re.IGNORECASE):
        return _REQUANTISE
    if "Attention operation was not supported" in text:
        return _ATTENTION
    if "Turing" in text:
        return "put an onnx.fp16 step before this one, as products on 7.5 run in float16 alone, or leave 7.5 out"
    if "Could not find any implementation" in text or "within workspace limit" in text:
        return "raise with.workspace_mib, or leave it out; and free memory on the GPU"
    if "STRING" in text or "data type" in text:
        return "keep that operator outside of the model: TensorRT has no such type"
    if operator or "no runners that implement it" in text:
        return _OUTSIDE
    return "optkit lint MODEL --for tensorrt"


def wanted(path: Path) -> dict[str, dict[str, Any]]:
    """What a graph asks its products to compute in: node name to {"dtype", "quantised"}.

    Nodes of subgraphs, and those without a name, are left out.
    """
    model = onnx_model.load(path, weights=False)
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    return {
        node.name: {
            "dtype": onnx_model.dtype_name(types[node.input[0]]),
            "quantised": makers.get(node.input[0]) == "DequantizeLinear",
        }
        for node in model.graph.node
        if node.op_type in PRODUCTS and node.domain in onnx_model.STANDARD_DOMAINS and node.name
        and types.get(node.input[0])
    }  # fmt: skip
