"""TFLite: which ONNX operators and types the converter takes, and which operators of a TFLite file LiteRT has not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx.refusal import Refusal, refused
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session

READS = (".onnx", ".tflite")
MAKE = "make one of these first: optkit convert MODEL --to onnx"

CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
INTEGER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_OPERATORS = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift
BitwiseNot BitwiseXor BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat Constant
ConstantOfShape Conv ConvTranspose Cos Cosh CumProd CumSum DeformConv DepthToSpace Det Div Dropout Einsum Elu Equal
Erf Exp Expand EyeLike Flatten Floor FusedConv FusedMatMul GRU Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNorm GroupNormalization
HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity InstanceNormalization Inverse IsInf IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool MatMul Max MaxPool MaxRoiPool
MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul MultiHeadAttention Neg
NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot OptionalHasElement Or PRelu Pad Pow RNN RandomNormal
RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
Round Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze StringNormalizer Sub Sum Tan Tanh
TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
CONVERTED = frozenset(_OPERATORS.split())
"""ONNX operators onnx2tf 2.6.9 makes TFLite operators of (flatbuffer_direct), but for control flow and integers."""

_AT_SOME_SIZES = ("Col2Im", "Det")
"""Of these, those whose conversion depends on sizes that may not stand in the file."""

_REPLACE = "replace the operator in the model, or deliver ONNX for onnxruntime"
_FLOAT = "convert the float model, then quantise the TFLite file: tflite.quantize"
_WIDE = ("float64", "complex64", "complex128", "uint64")


def look(path: Path, model: Any) -> tuple[list[Refusal], list[str]]:
    """What is refused, and what could not be looked at here."""
    if path.suffix.lower() == ".tflite":
        return list(_of_tflite(path, model)), []
    return list(_of_onnx(model)), _to_be_tried(model)


def _of_onnx(model: Any) -> Iterator[Refusal]:
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            dtype = onnx_model.dtype_name(value.type.tensor_type.elem_type)
            if dtype in _WIDE or not value.type.HasField("tensor_type"):
                kept = dtype if dtype in _WIDE else "no tensor"
                what = f"{kind} {value.name} is {kept}, which TFLite has no kernels for"
                yield Refusal(value.name, "", what, "cast it inside of the model, or outside")
    for node in onnx_model.all_nodes(model.graph):
        wide = {onnx_model.dtype_name(types[name]) for name in node.input if types.get(name, 0) > 0} & set(_WIDE)
        if node.op_type in CONTROL_FLOW:
            what = "control flow: but for a few patterns it becomes a custom operator that LiteRT has no kernel for"
            yield refused(
                node, what, "export both branches and choose with Where, or unroll the loop before the export"
            )
        elif node.op_type in INTEGER or node.op_type.startswith("QLinear") or node.op_type == "QGemm":
            what = (
                "its integers do not stay integers: the converter imitates them in float, slower than the float model"
            )
            yield refused(node, what, _FLOAT)
        elif node.op_type not in CONVERTED:
            yield refused(node, "there is no conversion for this operator", _REPLACE)
        elif wide and node.op_type not in ("Cast", "Constant", "Identity"):
            what = f"it computes in {', '.join(sorted(wide))}, which TFLite has no kernels for"
            yield refused(node, what, "export the model in float32")


def _to_be_tried(model: Any) -> list[str]:
    """What only the conversion tells: operators that depend on sizes, and which dims but the batch can vary."""
    named = [f"{node.op_type} {node.name or node.output[0]!r}" for node in onnx_model.all_nodes(model.graph)
             if node.op_type in _AT_SOME_SIZES]  # fmt: skip
    told = [f"whether {', '.join(named)} can be converted at these sizes"] if named else []
    initializers = {t.name for t in model.graph.initializer}
    dims: dict[str, None] = {}
    for value in (v for v in model.graph.input if v.name not in initializers):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if axis and not dim.HasField("dim_value"):
                dims[dim.dim_param or f"{value.name}_{axis}"] = None
    if not dims:
        return told
    along = f"whether the converted graph can be resized along {', '.join(dims)}"
    return [*told, f"{along}, which most can not: give fixed sizes"]


def _of_tflite(path: Path, model: Any) -> Iterator[Refusal]:
    tflite_model.interpreter(path)  # it verifies the file
    custom = False
    nodes = list(tflite_look.operations(model))
    for name, op, graph in nodes:
        if model.operatorCodes[op.opcodeIndex].customCode:
            custom = True
            what = "a custom operator, which LiteRT has no kernel for"
            yield Refusal(_place(op, graph), name, what, "convert it again with built-in operators alone")
    if custom or not model.signatureDefs:
        return
    try:
        tflite_session.TfliteSession(path, tflite_model.contract(model), 1)
    except OptkitError as error:
        at = re.search(r"\.?\s*Node number (\d+) \((\w+)\)", error.what)
        if at is None or len(model.subgraphs) > 1:
            yield Refusal("", "", error.what, error.hint)
        else:
            name, op, graph = nodes[int(at[1])]
            why = re.sub(r"^.*?cannot prepare [^:]*: (?:tflite/\S+ )?", "", error.what[: at.start()])
            yield Refusal(_place(op, graph), name, why, "replace it in the model, or cast its inputs to float32")


def _place(op: Any, graph: Any) -> str:
    return tflite_model.text_of(graph.tensors[op.outputs[0]].name) if len(op.outputs) else ""
