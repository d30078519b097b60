"""Bounds: what is accepted, what is refused and how it says so, and how results are judged."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optkit.parity.bounds import METRICS, Bound, BoundError, default_bounds, held, judge, parse_bound


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("cosine >= 0.99", Bound("cosine", ">=", 0.99)),
        ("  cosine>=.99 ", Bound("cosine", ">=", 0.99)),
        ("logits.cosine >= 0.99", Bound("cosine", ">=", 0.99, "logits")),
        ("Stateful/Call:0.rel_l2 <= 1e-3", Bound("rel_l2", "<=", 1e-3, "Stateful/Call:0")),
        ("/head/fc.1/Gemm.out.sqnr_db >= 35", Bound("sqnr_db", ">=", 35, "/head/fc.1/Gemm.out")),
        ("a => b.kl <= 0.1", Bound("kl", "<=", 0.1, "a => b")),
        ("top1_agreement >= 99%", Bound("top1_agreement", ">=", 0.99)),
        ("top1_agreement >= 99.9 %", Bound("top1_agreement", ">=", 0.999)),
        ("accuracy_drop <= 0.5%", Bound("accuracy_drop", "<=", 0.005)),
        ("rel_l2 <= 1%", Bound("rel_l2", "<=", 0.01)),
        ("mismatch <= 0", Bound("mismatch", "<=", 0)),
    ],
)
def test_parse(text, bound):
    assert parse_bound(text) == bound
    assert parse_bound(str(bound)) == bound


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("cosin >= 0.9", "unknown metric 'cosin'", "did you mean cosine?"),
        ("top1 >= 0.9", "unknown metric 'top1'", "did you mean top1_agreement?"),
        ("logits >= 0.9", "unknown metric 'logits'", "use one of rel_l2"),
        ("Cosine >= 0.9", "unknown metric 'Cosine'", "did you mean cosine?"),
        ("centered_cosine >= 0.9", "unknown metric", "did you mean centred_cosine?"),
        ("atol <= 0.1", "unknown metric", "did you mean max_abs?"),
        ("cosine <= 0.9", "cosine is better when higher", "write cosine >= 0.9"),
        ("rel_l2 >= 0.1", "rel_l2 is better when lower", "write rel_l2 <= 0.1"),
        ("cosine > 0.9", "not >", "write cosine >= 0.9"),
        ("x.rel_l2 < 0.1", "not <", "write x.rel_l2 <= 0.1"),
        ("cosine == 1", "not ==", "write cosine >= 1"),
        ("cosine => 0.9", "not =>", "write cosine >= 0.9"),
        ("cosine >= high", "'high' is not a number", "write cosine >= and a number"),
        ("cosine >=", "'' is not a number", "write cosine >= and a number"),
        ("cosine >= 0,99", "is not a number", "write cosine >= and a number"),
        ("cosine >= nan", "not finite", "finite number"),
        ("rel_l2 <= inf", "not finite", "finite number"),
        ("rel_l2 <= 1e999999", "not finite", "finite number"),
        ("cosine >= sNaN", "is not a number", "a number"),
        ("cosine >= 1.5", "no model meets this", "inside -1 to 1"),
        ("top1_agreement >= 99", "no model meets this", "did you mean 99%?"),
        ("accuracy_drop <= 1.5", "every model meets this", "did you mean 1.5%?"),
        ("rel_l2 <= -1", "no model meets this", "inside 0 to inf"),
        ("mismatch <= 100%", "every model meets this", "inside 0 to 1"),
        ("cosine >= -1", "every model meets this", "inside -1 to 1"),
        ("top1_agreement >= 0", "every model meets this", "inside 0 to 1"),
        ("sqnr_db >= 35%", "sqnr_db takes no %", "write sqnr_db >= 0.35"),
        ("cosine 0.9", "no >= or <=", "cosine >= 0.99"),
        ("", "no >= or <=", "cosine >= 0.99"),
        (">= 0.9", "a name is missing", "logits.cosine >= 0.99"),
        (".cosine >= 0.9", "a name is missing", "logits.cosine >= 0.99"),
        ("logits. >= 0.9", "a name is missing", "logits.cosine >= 0.99"),
    ],
)
def test_refused(text, what, hint):
    with pytest.raises(BoundError) as caught:
        parse_bound(text)
    assert what in str(caught.value)
    assert hint in caught.value.hint


def test_a_bound_cannot_be_built_wrong():
    with pytest.raises(BoundError):
        Bound("cosine", "<=", 0.9)
    with pytest.raises(BoundError):
        Bound("cosine", ">=", math.nan)


CHARACTERS = st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="<>=!~≤≥")
NAMES = st.text(CHARACTERS, min_size=1, max_size=20)


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=10, deadline=None)
@given(st.data(), st.none() | NAMES)
def test_text_round_trips(metric, data, output):
    info = METRICS[metric]
    lower = info.better == "lower"
    values = st.floats(max(info.low, -1e6), min(info.high, 1e6), exclude_min=not lower, exclude_max=lower)
    bound = Bound(metric, "<=" if lower else ">=", data.draw(values), output)
    assert parse_bound(str(bound)) == bound


@settings(max_examples=100, deadline=None)
@given(st.text("cosine.rel_l2<>= 0123456789%e-", max_size=30))
def test_any_text_is_parsed_or_refused_with_a_hint(text):
    refused = None
    try:
        parse_bound(text)
    except BoundError as error:  # and no other exception
        refused = error
    assert refused is None or (str(refused) and refused.hint)


def test_parsing_needs_no_numpy():
    code = "import sys, optkit.parity.bounds as b; b.parse_bound('kl <= 1'); sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Judging


def worst(value: float | None, sample: int = 3) -> dict[str, Any]:
    return {"worst": value, "worst_sample": sample, "mean": 0.995, "p50": 0.996, "p05": 0.9}


def result(outputs: dict[str, Any], problems: tuple[Any, ...] = (), samples: int = 8) -> dict[str, Any]:
    return {"samples": samples, "problems": list(problems), "notes": [], "outputs": outputs}


LOGITS = {
    "cosine": worst(0.98),
    "rel_l2": worst(0.1),
    "top1_agreement": {"value": 0.99, "disagreeing": 1, "total": 100, "worst_sample": 5},
    "accuracy_drop": {"value": 0.01, "total": 100},
}


@pytest.mark.parametrize(
    ("text", "holds", "says"),
    [
        ("cosine >= 0.98", True, "logits: cosine 0.98 at sample 3 (mean 0.995), needs >= 0.98"),
        ("cosine >= 0.99", False, "needs >= 0.99"),
        ("logits.rel_l2 <= 0.1", True, "rel_l2 0.1"),
        ("rel_l2 <= 0.09", False, "rel_l2 0.1"),
        ("top1_agreement >= 99%", True, "0.99 (1 of 100 differ, first at sample 5)"),
        ("top1_agreement >= 99.5%", False, "needs >= 0.995"),
        ("accuracy_drop <= 1%", True, "accuracy_drop 0.01, needs <= 0.01"),
        ("kl <= 1", False, "no output has kl (outputs: logits)"),
        ("logits.kl <= 1", False, "output 'logits' has no kl (it has cosine, rel_l2"),
        ("boxes.cosine >= 0.5", False, "there is no output 'boxes' (outputs: logits)"),
    ],
)
def test_judge(text, holds, says):
    verdicts = judge(result({"logits": LOGITS}), [parse_bound(text)])
    assert (verdicts[0].held, held(result({"logits": LOGITS}), verdicts)) == (holds, holds)
    assert says in verdicts[0].text


def test_a_bound_without_output_judges_each_output_that_has_the_metric():
    outputs = {"a": {"cosine": worst(0.999)}, "b": {"cosine": worst(0.5)}}
    outputs["ids"] = {"mismatch": worst(0.0)}
    verdicts = judge(result(outputs), [parse_bound("cosine >= 0.99"), parse_bound("mismatch <= 0")])
    assert {verdict.output: verdict.held for verdict in verdicts} == {"a": True, "b": False, "ids": True}
    assert not held(result(outputs), verdicts)


def test_an_output_without_a_bound_does_not_hold():
    outputs = {"logits": {"cosine": worst(1.0)}, "ids": {"mismatch": worst(0.0)}}
    verdicts = judge(result(outputs), [parse_bound("cosine >= 0.99")])
    assert not held(result(outputs), verdicts)
    assert verdicts[-1].text == "output 'ids': no bound covers it (measured: mismatch)"


def test_no_bounds_do_not_hold():
    (verdict,) = judge(result({"logits": LOGITS}), [])
    assert not verdict.held
    assert "no bounds" in verdict.text
    assert not held(result({"logits": LOGITS}), [])


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_never_holds(value):
    outputs = {"y": {"rel_l2": worst(value), "cosine": worst(value)}}
    verdicts = judge(result(outputs), [parse_bound("rel_l2 <= 1e9"), parse_bound("cosine >= -0.99")])
    assert [(verdict.held, verdict.measured) for verdict in verdicts] == [(False, None)] * 2


def test_problems_and_absence_never_hold():
    good = {"y": {"cosine": worst(1.0)}}
    verdicts = judge(result(good), [parse_bound("cosine >= 0.99")])
    assert held(result(good), verdicts)
    assert not held(result(good, ({"kind": "nonfinite"},)), verdicts)
    assert not held(result(good, samples=0), verdicts)
    assert not held({"outputs": good, "samples": 8}, verdicts)
    assert not held(result({}), judge(result({}), [parse_bound("cosine >= 0.99")]))


def test_fraction_of_a_hundred_meets_its_percentage():
    for percent in range(1, 101):
        for tenth in range(10 if percent < 100 else 1):
            misses = 1000 - 10 * percent - tenth
            value = {"value": (1000 - misses) / 1000, "disagreeing": misses, "total": 1000, "worst_sample": 0}
            bound = parse_bound(f"top1_agreement >= {percent}.{tenth}%")
            assert judge(result({"y": {"top1_agreement": value}}), [bound])[0].held


# Defaults


@pytest.mark.parametrize(
    ("precision", "noise", "value", "says"),
    [
        ("float32", 0.0, 1.6e-5, "at least 256 unit roundoffs"),
        ("float32", 1e-6, 3.2e-5, "32 x the source's noise 1e-06"),
        ("float32", 1e-2, 1e-2, "capped at 0.01"),
        ("float32", None, 1e-4, "not measured"),
        ("float32", math.nan, 1e-4, "not measured"),
        ("float64", 0.0, 2.9e-14, "at least 256"),
        ("float16", 6e-8, 4.0e-3, "at least 8"),
        ("float16", 5e-7, 1.7e-2, "8.19e+03 for the unit roundoff"),
        ("float16", 1e-5, 0.05, "capped at 0.05"),
        ("float16", None, 0.02, "float16 rounding"),
        ("bfloat16", 6e-8, 3.2e-2, "at least 8"),
        ("bfloat16", 1e-6, 0.1, "capped at 0.1"),
        ("bfloat16", None, 0.1, "not measured"),
    ],
)
def test_default_bounds(precision, noise, value, says):
    (bound,) = default_bounds(precision, {"logits": noise})
    assert (bound.metric, bound.op, bound.output, bound.value) == ("rel_l2", "<=", "logits", value)
    assert says in bound.reason
    assert precision in bound.reason


def test_default_bounds_with_nothing_measured_apply_to_every_output():
    (bound,) = default_bounds("float32", None)
    assert str(bound) == "rel_l2 <= 0.0001"
    assert "not measured" in bound.reason


def test_default_bounds_on_edge_values_are_capped_where_nothing_is_left():
    values = [default_bounds("float32", {"y": noise}, edge=True)[0].value for noise in (1e-6, 7e-3, 0.5)]
    assert values == [3.2e-05, 0.23, 1.0]


def test_default_bounds_of_integer_outputs():
    bounds = default_bounds("float32", {"logits": 1e-6, "ids": 0.0}, integers=["ids"])
    assert [str(bound) for bound in bounds] == ["logits.rel_l2 <= 3.2e-05", "ids.mismatch <= 3.2e-05"]
    bounds = default_bounds("float16", {}, integers=["ids"])
    assert [str(bound) for bound in bounds] == ["ids.mismatch <= 0.02"]
    bounds = default_bounds("float16", None, integers=["ids"])
    assert [bound.metric for bound in bounds] == ["rel_l2", "mismatch"]


def test_default_bounds_grow_with_noise_and_precision_loss():
    precisions = ("float64", "float32", "float16", "bfloat16")
    for precision in precisions:
        noises = (0.0, 1e-7, 1e-6, 1e-5, 1e-3, 1.0)
        values = [default_bounds(precision, {"y": noise})[0].value for noise in noises]
        assert values == sorted(values)
    for noise in (0.0, 1e-6, 1e-3, None):
        values = [default_bounds(precision, {"y": noise})[0].value for precision in precisions]
        assert values == sorted(values)


def test_default_bounds_refuse_an_unknown_precision():
    with pytest.raises(BoundError, match="tf32") as caught:
        default_bounds("tf32", None)
    assert "float32" in caught.value.hint


def test_verdicts_are_plain_data():
    from dataclasses import asdict

    verdicts = judge(result({"logits": LOGITS}), [parse_bound("cosine >= 0.9")])
    assert json.loads(json.dumps([asdict(verdict) for verdict in verdicts]))[0]["held"] is True
