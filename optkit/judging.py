"""Metrics to verdicts. No model runs here, so a bound can be changed and judged again in no time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.artifact import Signature
from optkit.parity.bounds import Bound, default_bounds, held, judge
from optkit.planning import Check

Noise = Mapping[str, Mapping[str, float]]


def judge_case(case: Mapping[str, Any], check: Check, noise: Noise | None,
               signature: Signature | None) -> dict[str, Any]:
    """One case of a check's metrics, with `verdicts` and `held` added.

    Stated bounds hold on real samples and over the dims' ranges. On edge values a lossy artifact promises no
    accuracy, as its ranges were fitted on real data: there it must be finite, of the right shape and not dead.
    """
    result = case["source"]
    if check.bounds:
        stated = check.bounds if not (check.lossy and case["kind"] == "edge") else ()
        if case["kind"] != "samples":  # only real samples have labels
            stated = tuple(bound for bound in stated if not bound.metric.startswith("accuracy"))
        origin: Mapping[Bound, str] = dict(zip(check.bounds, check.stated_by, strict=True))
    else:
        stated = tuple(derived(case["name"], check.precision, noise, signature, result))
        origin = {}
    if not stated:
        verdicts: list[dict[str, Any]] = []
        ok = result["samples"] > 0 and not result["problems"]
    else:
        judged = judge(result, stated)
        ok = held(result, judged)
        verdicts = [{
            "bound": str(v.bound) if v.bound else None, "reason": v.bound.reason if v.bound else "",
            "output": v.output, "held": v.held, "measured": v.measured, "worst_sample": v.worst_sample,
            "text": v.text, "stated_by": origin.get(v.bound) if v.bound else None,
        } for v in judged]  # fmt: skip
    return {**case, "verdicts": verdicts, "held": ok}


def derived(case: str, precision: str, noise: Noise | None, signature: Signature | None,
            result: Mapping[str, Any]) -> Sequence[Bound]:
    """The bounds of a faithful step: from the precision on the way, and the source's noise on this case's kind."""
    names = list(result["outputs"])
    floats = {t.name for t in signature.outputs if t.dtype.startswith(("float", "bfloat"))} if signature else set(names)
    measured = (noise or {}).get(case) or (noise or {}).get("samples")
    levels = {name: measured.get(name) if measured else None for name in names if name in floats}
    return default_bounds(precision, levels or None, integers=[n for n in names if n not in floats])
