"""From metrics to verdicts: which bound applies to which case, and what is never held."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from optkit.artifact import Signature, TensorSpec
from optkit.parity.bounds import parse_bound
from optkit.parity.metrics import Comparison
from optkit.planning import Check
from optkit.running.judging import FACTOR, FLOOR, derived, judge_case, judge_cases

FLOATS = Signature((), (TensorSpec("y", "float32", ("batch", 4)),))
BOTH = Signature((), (TensorSpec("y", "float32", ("batch", 4)), TensorSpec("label", "int64", ("batch",))))
RNG = np.random.default_rng(0)
Y = RNG.standard_normal((64, 4))
LABEL = Y.argmax(1)


def case(kind: str = "samples", name: str = "samples", reference: Any = None, **candidate: Any) -> dict[str, Any]:
    """A case whose candidate gave these outputs; the reference is Y (and LABEL where that is asked for)."""
    outputs = reference or {"y": Y, "label": LABEL}
    comparison = Comparison()
    rows = len(next(iter(candidate.values())))
    comparison.add({k: v[:rows] for k, v in outputs.items() if k in candidate}, candidate, rows)
    return {"name": name, "kind": kind, "sizes": {}, "source": comparison.result()}


def check(*bounds: str, lossy: bool = False, precision: str = "float32") -> Check:
    parsed = tuple(parse_bound(text) for text in bounds)
    return Check(parsed, precision, lossy=lossy, stated_by=tuple(f"step{n}" for n in range(len(parsed))))


def off(rows: int, share: float) -> Any:
    """Y with noise of about `share` of its norm."""
    noise = np.random.default_rng(1).standard_normal((rows, 4))
    return Y[:rows] + share * np.linalg.norm(Y[:rows], axis=1, keepdims=True) * noise / np.linalg.norm(
        noise, axis=1, keepdims=True
    )


def flipped(rows: int, wrong: int) -> Any:
    """Y whose first `wrong` samples have another largest element."""
    y = Y[:rows].copy()
    y[:wrong] = -y[:wrong]
    return y


def test_a_faithful_step_is_judged_by_its_precision_and_the_sources_noise() -> None:
    noise = {"samples": {"y": 2e-7}}
    assert judge_case(case(y=off(64, 1e-6)), check(), noise, FLOATS)["held"]
    assert not judge_case(case(y=off(64, 1e-3)), check(), noise, FLOATS)["held"]
    assert judge_case(case(y=off(64, 1e-3)), check(precision="float16"), noise, FLOATS)["held"]
    (verdict,) = judge_case(case(y=off(64, 1e-3)), check(), noise, FLOATS)["verdicts"]
    assert (verdict["output"], verdict["held"], verdict["stated_by"]) == ("y", False, None)
    assert "noise" in verdict["reason"]
    assert verdict["measured"] == pytest.approx(1e-3, rel=0.01)


def test_noise_is_that_of_the_case_else_that_of_the_samples_else_unknown() -> None:
    result = case(y=Y)["source"]
    for noise, name, words in [
        ({"samples": {"y": 2e-7}, "zeros": {"y": 9e-6}}, "zeros", "9e-06"),
        ({"samples": {"y": 2e-7}}, "batch=4", "2e-07"),
        ({"samples": {}}, "samples", "not measured"),
        ({}, "samples", "not measured"),
        (None, "samples", "not measured"),
    ]:
        (bound,) = derived({"name": name, "kind": "samples"}, "float32", noise, FLOATS, result)
        assert words in bound.reason


def test_edge_values_that_the_source_itself_answers_by_rounding_alone_are_not_capped() -> None:
    noise = {"lowest": {"y": 7e-3}}
    lowest = {**case(y=off(64, 0.05)), "name": "lowest"}
    assert not judge_case({**lowest, "kind": "samples"}, check(), noise, FLOATS)["held"]
    assert judge_case({**lowest, "kind": "edge"}, check(), noise, FLOATS)["held"]
    assert not judge_case({**lowest, **case(y=off(64, 0.5)), "name": "lowest", "kind": "edge"}, check(), noise, FLOATS)[
        "held"
    ]


def test_whole_numbers_are_judged_as_decisions() -> None:
    good = judge_case(case(y=Y, label=LABEL), check(), None, BOTH)
    assert good["held"]
    assert {v["output"]: v["bound"].split()[0] for v in good["verdicts"]} == {
        "y": "y.rel_l2",
        "label": "label.mismatch",
    }
    assert not judge_case(case(y=Y, label=(LABEL + 1) % 4), check(), None, BOTH)["held"]


@pytest.mark.parametrize("noise", [None, {"samples": {}}, {}])
def test_a_model_with_whole_numbers_alone(noise: Any) -> None:
    """No bound on rel_l2 may be asked of what has none."""
    only = Signature((), (TensorSpec("label", "int64", ("batch",)),))
    assert judge_case(case(label=LABEL), check(), noise, only)["held"]
    assert not judge_case(case(label=(LABEL + 1) % 4), check(), noise, only)["held"]


def test_stated_bounds_say_who_stated_them() -> None:
    judged = judge_case(case(y=off(64, 0.1)), check("cosine >= 0.99", "rel_l2 <= 0.05"), None, FLOATS)
    assert [(v["bound"], v["held"], v["stated_by"]) for v in judged["verdicts"]] == [
        ("cosine >= 0.99", True, "step0"),
        ("rel_l2 <= 0.05", False, "step1"),
    ]
    assert not judged["held"]


def test_an_output_that_no_bound_covers_is_not_held() -> None:
    judged = judge_case(case(y=Y, label=LABEL), check("y.cosine >= 0.9", lossy=True), None, BOTH)
    assert not judged["held"]
    assert "no bound covers it" in judged["verdicts"][-1]["text"]


@pytest.mark.parametrize("kind", ["samples", "dims", "edge"])
def test_absence_is_failure_in_every_case(kind: str) -> None:
    for stated in (
        check(),
        check("cosine >= 0.9"),
        check("cosine >= 0.9", lossy=True),
        check("accuracy >= 1%", lossy=True),
    ):
        for outputs in ({"y": Y * np.nan}, {"y": Y[:, :3]}, {"z": Y}, {"y": np.zeros_like(Y)}):
            comparison = Comparison()
            comparison.add({"y": Y}, outputs, 64)
            odd = {"name": "n", "kind": kind, "sizes": {}, "source": comparison.result()}
            assert not judge_case(odd, stated, None, FLOATS, odd["source"])["held"], (stated, list(outputs))
        nothing = {"name": "n", "kind": kind, "sizes": {}, "source": Comparison().result()}
        assert not judge_case(nothing, stated, None, FLOATS, None)["held"]


# --- edge values


def test_nothing_found_on_either_side_is_agreement_on_edge_values_alone() -> None:
    found, none = np.arange(8.0).reshape(2, 4), np.zeros((2, 0))
    for kind, candidate, holds in (
        ("edge", none, True), ("edge", found, False), ("samples", none, False), ("dims", none, False),
    ):  # fmt: skip
        for stated in (check(), check("mismatch <= 0"), check("mismatch <= 0", lossy=True)):
            comparison = Comparison()
            comparison.add({"y": none}, {"y": candidate})
            comparison.add({"y": none}, {"y": candidate})
            odd = {"name": "zeros", "kind": kind, "sizes": {}, "source": comparison.result()}
            assert judge_case(odd, stated, None, FLOATS)["held"] == holds, (kind, stated)
    both = Comparison()
    both.add({"y": none, "label": LABEL}, {"y": none, "label": LABEL[::-1]}, 64)
    wrong = {"name": "zeros", "kind": "edge", "sizes": {}, "source": both.result()}
    assert not judge_case(wrong, check(), None, BOTH)["held"], "the other output still has to agree"


def test_a_lossy_artifact_must_only_be_sane_on_edge_values() -> None:
    far = case("edge", "zeros", y=off(2, 0.9))
    assert judge_case(far, check("cosine >= 0.99", lossy=True), None, FLOATS)["held"]
    assert not judge_case(far, check("cosine >= 0.99"), None, FLOATS)["held"]
    assert not judge_case(far, check(), None, FLOATS)["held"]


# --- what is counted over the judging set


def test_agreement_is_counted_over_the_judging_set_alone() -> None:
    """63 of 64 agree, which holds; on the one sample of batch=1, the one that disagrees, none would."""
    stated = check("top1_agreement >= 98%", lossy=True)
    y = Y.copy()
    y[0] = Y[0] + 0.5 * np.abs(Y[0]).max() * np.eye(4)[(LABEL[0] + 1) % 4]
    y[0, LABEL[0]] = y[0].min()
    cases = [case(y=y), case("dims", "batch=1", y=y[:1]), case("dims", "batch=8", y=y[:8])]
    judged = judge_cases(cases, stated, None, FLOATS)
    assert [c["held"] for c in judged] == [True, True, True]
    assert judged[0]["verdicts"][0]["stated_by"] == "step0"
    (verdict,) = judged[1]["verdicts"]
    assert verdict["bound"].startswith("y.rel_l2 <=")
    assert "worst sample of the judging set" in verdict["reason"]


def test_a_lossy_artifact_that_is_wrong_at_another_size_is_caught() -> None:
    stated = check("top1_agreement >= 98%", lossy=True)
    good = case(y=off(64, 0.05))
    worst = good["source"]["outputs"]["y"]["rel_l2"]["worst"]
    for share, held in [(0.9 * FACTOR * worst, True), (1.2 * FACTOR * worst, False), (2.0, False)]:
        judged = judge_cases([good, case("dims", "batch=7", y=off(7, share))], stated, None, FLOATS)
        assert [c["held"] for c in judged] == [True, held], share


def test_an_exact_artifact_may_be_off_by_rounding_at_another_size() -> None:
    stated = check("top1_agreement >= 98%", lossy=True)
    for share, held in [(0.5 * FLOOR, True), (2 * FLOOR, False)]:
        judged = judge_cases([case(y=Y), case("dims", "batch=7", y=off(7, share))], stated, None, FLOATS)
        assert [c["held"] for c in judged] == [True, held]


def test_what_counts_alone_leaves_a_faithful_step_to_its_precision() -> None:
    stated = check("top1_agreement >= 98%")
    for kind in ("dims", "edge"):
        assert judge_cases([case(y=Y), case(kind, "zeros", y=off(7, 1e-6))], stated, None, FLOATS)[1]["held"]
        assert not judge_cases([case(y=Y), case(kind, "zeros", y=off(7, 1e-3))], stated, None, FLOATS)[1]["held"]


def test_accuracy_is_asked_of_labelled_samples_alone() -> None:
    stated = check("accuracy_drop <= 1%", "cosine >= 0.9", lossy=True)
    comparison = Comparison()
    comparison.add({"y": Y}, {"y": Y}, 64, labels=LABEL)
    samples = {"name": "samples", "kind": "samples", "sizes": {}, "source": comparison.result()}
    judged = judge_cases([samples, case("dims", "batch=4", y=Y[:4])], stated, None, FLOATS)
    assert [c["held"] for c in judged] == [True, True]
    assert [[v["bound"] for v in c["verdicts"]] for c in judged] == [
        ["accuracy_drop <= 0.01", "cosine >= 0.9"],
        ["cosine >= 0.9"],
    ]
    assert not judge_cases([case(y=Y)], stated, None, FLOATS)[0]["held"], "without labels there is no accuracy"


def test_labels_that_are_no_classes_matter_where_accuracy_is_asked_for() -> None:
    compared = case(y=off(8, 1e-6))
    compared["source"]["problems"] = [{"kind": "labels", "output": None, "sample": None, "text": "labels are <U3"}]
    (plain,) = judge_cases([compared], check("rel_l2 <= 0.1"), None, None)
    assert plain["held"]
    assert plain["source"]["notes"][-1]["text"] == "labels are <U3"
    (asked,) = judge_cases([compared], check("rel_l2 <= 0.1", "accuracy >= 0.5"), None, None)
    assert not asked["held"]
    assert asked["source"]["problems"] == compared["source"]["problems"]


def test_a_bound_on_one_output_leaves_the_other_to_the_rest() -> None:
    two = Signature((), (TensorSpec("y", "float32", ("batch", 4)), TensorSpec("z", "float32", ("batch", 4))))
    stated = check("y.cosine >= 0.9", "z.top1_agreement >= 90%", lossy=True)
    outputs = {"y": Y, "z": Y}
    samples = case(reference=outputs, y=Y, z=off(64, 0.05))
    for share, held in [(0.05, True), (1.0, False)]:
        judged = judge_cases([samples, case("dims", "batch=8", outputs, y=Y[:8], z=off(8, share))], stated, None, two)
        assert [c["held"] for c in judged] == [True, held]


def test_a_case_is_handed_on_as_it_was() -> None:
    given = {**case(y=Y), "parent": {"outputs": {}}}
    judged = judge_case(given, check(), None, FLOATS)
    assert {k: judged[k] for k in given} == given
    assert set(judged) == {*given, "verdicts", "held"}


def beside(share_of_source: float, share_of_parent: float, kind: str = "samples") -> dict[str, Any]:
    """A case that is so far from the source, and so far from its parent."""
    parent = off(64, share_of_source)
    mine = parent + share_of_parent * (off(64, 1.0) - Y)[::-1]
    made = case(kind, y=mine)
    comparison = Comparison()
    comparison.add({"y": parent}, {"y": mine}, 64)
    return {**made, "parent": comparison.result()}


def test_a_conversion_of_a_pruned_model_has_to_answer_as_that_does() -> None:
    noise = {"samples": {"y": 2e-7}}
    stated = replace(check("cosine >= 0.5", lossy=True), as_parent=True)
    (good,) = judge_cases([beside(0.3, 1e-6)], stated, noise, FLOATS, "small")
    assert good["held"]
    (bad,) = judge_cases([beside(0.3, 0.05)], stated, noise, FLOATS, "small")
    assert not bad["held"], "its bound on the source would have let it pass"
    held, broken = bad["verdicts"]
    assert (held["against"], held["held"], held["stated_by"]) == ("source", True, "step0")
    assert (broken["against"], broken["held"], broken["stated_by"]) == ("small", False, None)
    assert broken["text"].endswith(", against small")
    assert "4 times the distance allowed from a source" in broken["reason"]
    (edge,) = judge_cases([beside(0.3, 0.05, "edge")], stated, noise, FLOATS, "small")
    assert edge["held"], "edge values are outside what it was pruned and trained on"
    (plain,) = judge_cases([beside(0.3, 0.05)], check("cosine >= 0.5", lossy=True), noise, FLOATS, "small")
    assert plain["held"]


def test_where_bounds_are_waived_the_parent_is_the_measure_or_nothing_is() -> None:
    noise = {"samples": {"y": 2e-7}}
    waived = replace(check(lossy=True), as_parent=True)
    (good,) = judge_cases([beside(0.9, 1e-6)], waived, noise, FLOATS, "small")
    assert good["held"]
    assert [v["against"] for v in good["verdicts"]] == ["small"]
    (bad,) = judge_cases([beside(0.9, 1e-3)], waived, noise, FLOATS, "small")
    assert not bad["held"]
    alone = {key: value for key, value in beside(0.9, 1e-6).items() if key != "parent"}
    for stated in (waived, check(lossy=True)):
        (untold,) = judge_cases([alone], stated, noise, FLOATS, "small")
        assert not untold["held"]
        assert untold["verdicts"][0]["text"] == "no bounds: nothing was asked of this step"
