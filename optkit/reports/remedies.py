"""What to try for a step whose check did not hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optkit.reports.bounds import bound_of, judged, table_of
from optkit.reports.layers import culprit
from optkit.reports.rows import cases, scores

Data = Mapping[str, Any]


def remedy(step: Data) -> str:
    """One thing to try for a step whose check did not hold."""
    lossy = step.get("fidelity") == "lossy"
    kinds = {case.get("kind") for case in cases(step) if not case.get("held")}
    if missed := [m["must"] for m in step.get("must") or () if not m["held"]]:
        return (
            f"other options (optkit passes {step.get('pass')}) or another runtime; without must: [{', '.join(missed)}] "
            "it ships as it is"
        )
    if any(g["status"] == "failed" for g in step.get("gates") or ()):
        return (
            f"other options (optkit passes {step.get('pass')}) or another runtime, or a gate that fits what is measured"
        )
    if kinds == {"dims"}:
        return "the model takes another way at that size: export it without size-dependent control flow"
    if unclear := _unclear(step):
        return unclear
    if lossy and (left_out := _left_out(step)):
        others = f"other options (optkit passes {step.get('pass')})"
        return f"leave that layer in float, {left_out}; or {_search(step) or others}"
    if lossy and (search := _search(step)):
        return f"{search}; or more or better data to fit on, or a looser bound"
    if found := (step.get("notes") or {}).get("budget"):
        return (
            f"a budget that is tighter than the check: {' and '.join(found['bounds'])} holds on the data that the step "
            f"is fitted on; or more of that data, like what judges"
        )
    if lossy:
        return f"other options (optkit passes {step.get('pass')}), more or better data to fit on, or a looser bound"
    return (
        "state bounds of your own with check: if this much deviation is expected, else look at the first step it cost"
    )


def _search(step: Data) -> str:
    """How to let the pass look for settings that hold the bounds; "" where it cannot, or did."""
    options = step.get("options") or {}
    broken = dict.fromkeys(j.bound for j in judged(step) if not j.held and j.bound and j.against == "source")
    if options.get("tune") is not False or not broken:
        return ""
    wish = "tune: true" if options.get("budget") else f"budget: {json.dumps(list(broken))}, tune: true"
    needs = "" if step.get("data") else " with data: to fit on"
    return f"let it look for settings that hold it, with: {{{wish}}}{needs}"


_LEAVING = {
    "onnx.quantize": ("with: {{exclude: [{}]}}", ("Conv", "ConvTranspose", "Gemm", "MatMul")),
    "onnx.compress_weights": ("with: {{exclude: [{}]}}", ("MatMul", "Gemm", "MatMulNBits")),
    "openvino.quantize": ("with: {{ignored: {{names: [{}]}}}}", ("Convolution", "GroupConvolution", "MatMul")),
}


def _left_out(step: Data) -> str:
    """The option that leaves the layer to blame as it was; "" where there is no such layer or option."""
    layer, (option, operators) = culprit(step), _LEAVING.get(str(step.get("pass")), ("", ()))
    return option.format(json.dumps(layer["node"])) if layer and layer["operator"] in operators else ""


def _unclear(step: Data) -> str:
    """What to try where all that is broken are bounds on changes that the samples cannot tell from one within them."""
    certain, alone, table = [], [], table_of(step)
    for one in (j for j in judged(step) if not j.held):
        bound, score = (
            bound_of(one.bound, table),
            scores(step).get(table[one.metric].task if one.metric in table else ""),
        )
        if bound is None or not score or not score.get("change_interval"):
            return ""
        if bound.info.part == "change" and score["change_interval"][0] <= bound.value:
            certain.append(f"{one.metric}_lower {bound.op} {bound.value:g}")
        elif bound.info.part == "change_upper" and score["change"] <= bound.value:
            alone.append(f"{one.metric.removesuffix('_upper')} {bound.op} {bound.value:g}")
        else:
            return ""
    ways = [f"bound what is certain of it: {', '.join(certain)}"] if certain else []
    ways += [f"bound the change itself: {', '.join(alone)}"] if alone else []
    return "; or ".join(["more samples, which tell the change better", *ways]) if ways else ""
