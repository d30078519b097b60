"""The steps that target formats stand for, each alone or with its int8."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.errors import UserError
from optkit.parity.bounds import BoundError, parse_bound

INT8 = {"onnx": "onnx.quantize", "openvino": "openvino.quantize", "tflite": "tflite.quantize"}
"""What makes int8 of a file of each format."""

MARGIN = 0.8
"""The part of what may be lost that int8 is fitted to: those samples are others than the ones that judge."""


def delivered_steps(section: Mapping[str, Any], targets: Sequence[str], int8: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe's `steps:` and `deliver:`: every target, and where bounds are given its int8, called TARGET-int8.

    section: a recipe's `model:`; of a target that it is already, int8 alone is made. int8: the bounds it is judged by.
    Its settings are looked for, and a budget keeps in floating point what does not fit. TensorRT takes int8 in an ONNX
    graph. Raises UserError for a target that has no int8.
    """
    steps: dict[str, dict[str, Any]] = {target: {"id": target, "to": target} for target in targets}
    if not int8:
        return {"steps": list(steps.values()), "deliver": list(targets)}
    if wrong := [target for target in targets if target not in (*INT8, "tensorrt")]:
        hint = f"int8 is made of {', '.join(INT8)} and tensorrt; for others write a recipe (optkit passes)"
        raise UserError(f"int8 of {', '.join(wrong)} is not made without a recipe", hint=hint, subject="int8")
    already = _format_of(section)
    steps.pop(already, None)
    settings = {"budget": [nearer(text) for text in int8], "tune": True}
    fitted = {"data": "fit", "check": list(int8)}
    for target in targets:
        name = f"{target}-int8"
        if target in INT8:
            parent = {} if target == already else {"from": target}
            steps[name] = {"id": name, **parent, "use": INT8[target], "with": settings, **fitted}
        else:
            parent = {} if already == "onnx" else {"from": "onnx"}
            if parent:
                steps.setdefault("onnx", {"id": "onnx", "to": "onnx"})
            graph = {"id": "onnx-qdq", **parent, "use": "onnx.quantize", "with": {**settings, "for": target}}
            steps |= {"onnx-qdq": {**graph, **fitted}, name: {"id": name, "from": "onnx-qdq", "to": target}}
    ends = [*(target for target in targets if target != already), *(f"{target}-int8" for target in targets)]
    return {"steps": list(steps.values()), "deliver": ends}


def _format_of(section: Mapping[str, Any]) -> str:
    """The format of the source, where it is a file that int8 can be made of."""
    from optkit.registry import format_of

    kind, place = next(iter(section.items()))
    return format_of(Path(str(place)).name) or "" if kind == "file" else str(kind)


def nearer(text: str) -> str:
    """A bound on `MARGIN` of what `text` lets be lost; what is no bound stays as it is, for planning to tell."""
    try:
        bound = parse_bound(text)
    except BoundError:
        return text
    if bound.metric == "sqnr_db":
        value = bound.value - 20 * math.log10(MARGIN)
    else:
        best = bound.info.high if bound.op == ">=" else max(0.0, bound.info.low)
        value = best + MARGIN * (bound.value - best)
    output = "" if bound.output is None else f"{bound.output}."
    return f"{output}{bound.metric} {bound.op} {value:.6g}"
