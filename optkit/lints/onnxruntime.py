"""onnxruntime on CPU: IR and opset limits, and whether each operator has a kernel for its types."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, SourceError, StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx.refusal import Refusal, refused
from optkit.plugin import need

_UNKNOWN = "there is no such operator"
_LACKING = ("no kernel", "NOT_IMPLEMENTED", "No Op registered", "is not a registered function/op", "Type Error")


def look(path: Path, model: Any) -> tuple[list[Refusal], list[str]]:
    """What is refused, and what could not be looked at here.

    A session tells only the first node it refuses: when there is one, each kind of node is tried alone as well.
    """
    need("onnxruntime")
    try:
        onnx_session.open_session(path, optimise=False, prepack=False)
    except (SourceError, StepError) as error:
        return list(_lacking(model)) or [_whole(error)], []
    return [], []


def _whole(error: OptkitError) -> Refusal:
    return Refusal("", "", error.what, error.hint)


def _lacking(model: Any) -> Iterator[Refusal]:
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    answers: dict[bytes, str] = {}
    for node in model.graph.node:
        inputs = [types.get(name, 0) if name else -1 for name in node.input]
        if onnx_model.subgraphs(node) or 0 in inputs:
            continue
        key = f"{node.domain}.{node.op_type} {inputs}".encode() + b"".join(
            a.SerializeToString(deterministic=True) for a in node.attribute
        )
        if key not in answers:
            answers[key] = _alone(node, inputs, model)
        if answers[key]:
            kinds = ", ".join(onnx_model.dtype_name(kind) for kind in inputs if kind > 0)
            if answers[key] == _UNKNOWN:
                yield refused(node, _UNKNOWN, "replace the operator in the model")
            else:
                yield refused(node, f"{answers[key]} ({kinds})", "keep the operator in float32")


def _alone(node: Any, inputs: list[int], model: Any) -> str:
    """Why onnxruntime refuses a node that is a whole model; "" where it takes it, or refuses it for something else."""
    import onnx

    single = onnx.NodeProto()
    single.CopyFrom(node)
    helper = onnx.helper
    fed = dict.fromkeys((name, kind) for name, kind in zip(node.input, inputs, strict=True) if name)
    graph = helper.make_graph(
        [single],
        "alone",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in fed],
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
    )
    made = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    made.functions.extend(model.functions)
    try:
        onnx_session.open_session(made.SerializeToString(), optimise=False, prepack=False)
    except (SourceError, StepError) as error:
        told = f"{error.what} {error.details}"
        if not any(words in told for words in _LACKING):
            return ""
        if "No Op registered" in told or "not a registered" in told:
            return _UNKNOWN
        return "it does not take these types" if "Type Error" in told else "there is no kernel for these types"
    return ""
