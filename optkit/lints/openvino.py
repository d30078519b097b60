"""OpenVINO: its ONNX frontend converts what it can and marks the rest; the CPU plug-in is asked about the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx.refusal import Refusal, refused
from optkit.formats.openvino import core as openvino_core

_HINT = "replace the operator in the model, or deliver ONNX for onnxruntime"


def look(path: Path, model: Any) -> tuple[list[Refusal], list[str]]:
    """What is refused, and what could not be looked at here."""
    openvino_core.load()
    from openvino.frontend import FrontEndManager

    frontend = FrontEndManager().load_by_framework("onnx")
    try:
        loaded = frontend.load(str(path))  # nodes that were left as they are point into it
        graph = frontend.convert_partially(loaded)
    except Exception as error:  # each frontend raises its own classes
        return [Refusal("", "", openvino_core.reason(error), "onnx.checker.check_model(path) names broken nodes")], []
    left = [op for op in graph.get_ordered_ops() if "FrameworkNode" in op.get_type_name()]
    if left:
        return _converted(left, model), []
    taken = openvino_core.core().query_model(graph, "CPU")
    missing = [op for op in graph.get_ordered_ops() if op.get_friendly_name() not in taken]
    return [
        Refusal(op.get_friendly_name(), op.get_type_name(), "the CPU plug-in has no kernel for it", _HINT)
        for op in missing
    ], []


def _converted(left: list[Any], model: Any) -> list[Refusal]:
    names = {op.get_friendly_name(): str(op.get_attributes().get("ONNX_META_type", "")) for op in left}
    kinds = set(names.values())
    found = []
    for node in onnx_model.all_nodes(model.graph):
        if names.keys() & {node.name, *node.output} or node.op_type in kinds:
            found.append(refused(node, "there is no conversion for this operator", _HINT))
    told = {refusal.operator.rpartition(".")[2] for refusal in found}
    return found + [
        Refusal(name, kind, "there is no conversion for this operator", _HINT)
        for name, kind in names.items()
        if kind not in told
    ]
