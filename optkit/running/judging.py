"""Metrics to verdicts. No model runs here, so a bound can be changed and judged again in no time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optkit.artifact import Signature
from optkit.parity.bounds import Bound, Verdict, default_bounds, held, judge
from optkit.planning import Check
from optkit.recipe import SOURCE

Noise = Mapping[str, Mapping[str, float]]
Result = Mapping[str, Any]

FACTOR = 2.0
"""How much farther off than on the judging set a sample may be at another size: other kernels, other padding."""

SLACK = 4.0
"""How much farther than from the source a conversion may be from its parent: the noise of a pruned or trained model was
not measured, and may be somewhat higher than the source's."""

FLOOR = 1e-4
"""Relative L2 below which that comparison is about float32 rounding alone."""


def judge_cases(
    cases: Sequence[Mapping[str, Any]],
    check: Check,
    noise: Noise | None,
    signature: Signature | None,
    parent: str | None = None,
) -> list[dict[str, Any]]:
    """Every case of a check's metrics, each with its `verdicts` and `held` added.

    parent: the step's parent by name, where `check.as_parent` asks for its answers.
    """
    whole = next((case["source"] for case in cases if case["kind"] == "samples"), None)
    judged = [judge_case(case, check, noise, signature, whole) for case in cases]
    return [_as_parent(case, check, noise, signature, parent) for case in judged] if parent else judged


def with_scores(cases: Sequence[Mapping[str, Any]], scores: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The cases, that of the judging set with the `scores` of the declared task metrics.

    Labels are those metrics' then: that they are no class numbers is no problem any more.
    """

    def with_them(case: Mapping[str, Any]) -> Mapping[str, Any]:
        problems = [problem for problem in case["source"]["problems"] if problem["kind"] != "labels"]
        return {**case, "source": {**case["source"], "problems": problems}, "scores": scores}

    return [with_them(case) if scores and case["kind"] == "samples" else case for case in cases]


def judge_case(
    case: Mapping[str, Any],
    check: Check,
    noise: Noise | None,
    signature: Signature | None,
    whole: Result | None = None,
) -> dict[str, Any]:
    """One case of a check's metrics, with `verdicts` and `held` added.

    whole: the metrics of the judging set as a whole, which those of a few samples at another size are held against.

    Stated bounds hold on real samples and over the dims' ranges. On edge values a lossy artifact promises no
    accuracy, as its ranges were fitted on real data: there it must be finite, of the right shape and not dead.
    """
    case, hollow = _without_hollow(_without_labels(case, check))
    result = case["source"]
    default = () if check.lossy and not check.bounds else derived(case, check.precision, noise, signature, result)
    stated = _stated(case, check, whole, default)
    scores = case.get("scores")
    some = not hollow or set(result["outputs"]) > hollow
    asked = (stated and some) or check.unbounded
    judged = [v for v in judge(result, stated, scores) if v.output not in hollow] if asked else []
    if judged or (stated and not hollow):
        ok = held(result, judged, scores)
    else:
        ok = result["samples"] > 0 and not result["problems"]
    origin: Mapping[Bound, str] = dict(zip(check.bounds, check.stated_by, strict=True))
    return {
        **case,
        "verdicts": [_told(v, SOURCE, origin.get(v.bound) if v.bound else None) for v in judged],
        "held": ok,
    }


def _told(verdict: Verdict, against: str, stated_by: str | None = None) -> dict[str, Any]:
    """A verdict as a report has it."""
    return {
        "against": against,
        "bound": str(verdict.bound) if verdict.bound else None,
        "reason": verdict.bound.reason if verdict.bound else "",
        "output": verdict.output,
        "held": verdict.held,
        "measured": verdict.measured,
        "worst_sample": verdict.worst_sample,
        "text": verdict.text,
        "stated_by": stated_by,
    }


def _as_parent(
    case: dict[str, Any], check: Check, noise: Noise | None, signature: Signature | None, parent: str
) -> dict[str, Any]:
    """A judged case with the verdicts of a faithful step on its parent's answers added."""
    result = case.get("parent")
    if not check.as_parent or case["kind"] == "edge":
        return case
    if result is None:  # bounds of its own then have to do
        return case if check.bounds else judge_case(case, replace(check, as_parent=False), noise, signature)
    why = f"a conversion answers as what it is made from; {SLACK:g} times the distance allowed from a source:"
    bounds = [
        replace(bound, value=SLACK * bound.value, reason=f"{why} {bound.reason}")
        for bound in derived(case, check.precision, noise, signature, result)
    ]
    judged = [_told(replace(v, text=f"{v.text}, against {parent}"), parent) for v in judge(result, bounds)]
    odd = [
        _told(Verdict(None, p.get("output"), False, None, p.get("sample"), f"{p['text']}, against {parent}"), parent)
        for p in result["problems"]
        if not case["source"]["problems"]
    ]
    mine = [*judged, *odd]
    return {**case, "verdicts": [*case["verdicts"], *mine], "held": case["held"] and all(v["held"] for v in mine)}


def _without_labels(case: Mapping[str, Any], check: Check) -> Mapping[str, Any]:
    """A case whose labels are no class numbers of an output: a problem only for a check that asks for accuracy.

    Labels may be for something else: for a metric that is declared later, or for another step's training.
    """
    problems = case["source"]["problems"]
    apart = [problem for problem in problems if problem["kind"] == "labels"]
    if not apart or any(b.declared is None and b.metric.startswith("accuracy") for b in check.bounds):
        return case
    kept = [problem for problem in problems if problem not in apart]
    return {**case, "source": {**case["source"], "problems": kept, "notes": [*case["source"]["notes"], *apart]}}


def _without_hollow(case: Mapping[str, Any]) -> tuple[Mapping[str, Any], set[str]]:
    """An edge case without the problem that an output has no elements on either side, and those outputs.

    A detector finds nothing in an image of zeros, and an artifact that finds nothing either agrees. On real samples
    such a problem stays one: nothing was compared there.
    """
    problems = case["source"]["problems"]
    hollow = [problem for problem in problems if problem["kind"] == "hollow" and case["kind"] == "edge"]
    if not hollow:
        return case, set()
    kept = [problem for problem in problems if problem not in hollow]
    source = {**case["source"], "problems": kept, "notes": [*case["source"]["notes"], *hollow]}
    return {**case, "source": source}, {problem["output"] for problem in hollow}


def _stated(case: Mapping[str, Any], check: Check, whole: Result | None, default: Sequence[Bound]) -> Sequence[Bound]:
    """The bounds of one case: those the recipe states, or `default`.

    What is counted over the judging set (agreement, accuracy) says nothing about the few samples of another case:
    99 % of seven is all of them. There the default stands in on the way without a lossy step, and after one the
    distance that the judging set's own worst sample is off.
    """
    if not check.bounds:
        return default
    if case["kind"] == "samples":
        return check.bounds
    if case["kind"] == "edge" and check.lossy:
        return ()
    each = [bound for bound in check.bounds if bound.info.aggregate == "worst"]
    covered = {name for bound in each for name in ([bound.output] if bound.output else case["source"]["outputs"])}
    if not check.lossy:
        return [*each, *(bound for bound in default if bound.output not in covered)]
    return [*each, *_as_near(whole, covered)]


def _as_near(whole: Result | None, covered: Collection[str]) -> list[Bound]:
    reason = f"at most {FACTOR:g} times as far off as the worst sample of the judging set"
    return [
        Bound("rel_l2", "<=", max(FLOOR, FACTOR * measured["rel_l2"]["worst"]), name, reason)
        for name, measured in (whole or {"outputs": {}})["outputs"].items()
        if name not in covered and "rel_l2" in measured
    ]


def derived(
    case: Mapping[str, Any], precision: str, noise: Noise | None, signature: Signature | None, result: Result
) -> Sequence[Bound]:
    """The bounds of a faithful step: from the precision on the way, and the source's noise on this case's kind."""
    names = list(result["outputs"])
    floats = {t.name for t in signature.outputs if t.dtype.startswith(("float", "bfloat"))} if signature else set(names)
    measured = (noise or {}).get(case["name"]) or (noise or {}).get("samples") or {}
    levels = {name: measured.get(name) for name in names if name in floats}
    integers = [n for n in names if n not in floats]
    return default_bounds(precision, levels, integers=integers, edge=case["kind"] == "edge")
