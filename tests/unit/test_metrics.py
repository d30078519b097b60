"""The checker against wrong models: whatever is wrong must show, and what is right must not."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from metrics_kit import checked, compare, kinds, worst

from optkit.parity.bounds import METRICS, held, judge, parse_bound
from optkit.parity.metrics import Comparison


def passes(result: dict[str, Any], *bounds: str) -> bool:
    return held(result, judge(result, [parse_bound(text) for text in bounds]))


@pytest.fixture
def logits() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)


def test_equal_outputs_measure_as_equal(logits):
    result = compare({"logits": logits}, {"logits": logits.copy()}, 16)
    assert result["problems"] == []
    assert result["notes"] == []
    assert result["samples"] == 16
    perfect = {"rel_l2": 0, "sqnr_db": 300, "cosine": 1, "centred_cosine": 1, "max_abs": 0, "kl": 0}
    assert {name: worst(result, name) for name in perfect} == perfect
    assert result["outputs"]["logits"]["top1_agreement"] == {
        "value": 1, "disagreeing": 0, "total": 16, "worst_sample": None,
    }  # fmt: skip
    assert set(result["outputs"]["logits"]) <= set(METRICS)


def test_metrics_against_their_definitions(logits):
    candidate = logits + np.random.default_rng(1).normal(size=logits.shape).astype(np.float32) * 0.3
    r, c = logits.astype(np.float64), candidate.astype(np.float64)
    rel = np.linalg.norm(c - r, axis=1) / np.linalg.norm(r, axis=1)
    cosine = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(r, c, strict=True)]
    centred = [np.corrcoef(x, y)[0, 1] for x, y in zip(r, c, strict=True)]
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (r, c))
    kl = (p * np.log(p / q)).sum(1)
    top5 = [row.argmax() in np.argsort(-other)[:5] for row, other in zip(r, c, strict=True)]
    measured = compare({"logits": logits}, {"logits": candidate}, 16)["outputs"]["logits"]
    for name, column, at in (
        ("rel_l2", rel, np.argmax(rel)),
        ("sqnr_db", -20 * np.log10(rel), np.argmax(rel)),
        ("cosine", cosine, np.argmin(cosine)),
        ("centred_cosine", centred, np.argmin(centred)),
        ("kl", kl, np.argmax(kl)),
        ("max_abs", np.abs(c - r).max(1), np.argmax(np.abs(c - r).max(1))),
    ):
        tail = 5 if METRICS[name].better == "higher" else 95
        expected = {"worst": column[at], "worst_sample": at, "mean": np.mean(column)}
        expected |= {"p50": np.median(column), f"p{tail:02}": np.percentile(column, tail)}
        told = {key: value for key, value in measured[name].items() if key != "histogram"}
        assert told == pytest.approx(expected, rel=1e-9), name
    counts, edges = np.histogram(-20 * np.log10(rel), 24)
    drawn = measured["sqnr_db"]["histogram"]
    assert drawn == {"perfect": 0, "low": pytest.approx(edges[0]), "high": pytest.approx(edges[-1]),
                     "counts": counts.tolist()}  # fmt: skip
    wrong = np.flatnonzero(r.argmax(1) != c.argmax(1))
    assert measured["top1_agreement"]["disagreeing"] == len(wrong) > 0
    assert measured["top1_agreement"]["worst_sample"] == wrong[0]
    assert measured["top5_agreement"]["value"] == np.mean(top5)


# Wrong models


def test_swapped_outputs_fail(logits):
    other = logits[:, ::-1] * 2
    result = compare({"a": logits, "b": other}, {"a": other, "b": logits}, 16)
    assert worst(result, "cosine", "a") < 0.9
    assert worst(result, "cosine", "b") < 0.9
    assert not passes(result, "cosine >= 0.99")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_nonfinite_element_fails_and_is_located(logits, value):
    candidate = logits.copy()
    candidate[11, 3] = value
    result = compare({"logits": logits}, {"logits": candidate}, 16)
    (problem,) = result["problems"]
    assert (problem["kind"], problem["sample"]) == ("nonfinite", 11)
    assert "[3] of sample 11" in problem["text"]
    assert (worst(result, "rel_l2"), worst(result, "sqnr_db"), worst(result, "cosine")) == (1e15, -300, -1)
    assert result["outputs"]["logits"]["rel_l2"]["worst_sample"] == 11
    assert result["outputs"]["logits"]["rel_l2"]["mean"] == 0
    assert result["outputs"]["logits"]["top1_agreement"]["disagreeing"] == 1
    assert not passes(result, "rel_l2 <= 1e14", "cosine >= -0.9")


def test_nonfinite_values_are_counted_over_batches(logits):
    comparison = Comparison()
    for _ in range(3):
        comparison.add({"logits": logits}, {"logits": np.full_like(logits, np.nan)}, 16)
    (problem,) = checked(comparison)["problems"]
    assert problem["sample"] == 0
    assert "first of 480" in problem["text"]


def test_reference_nonfinite_fails_unless_the_candidate_matches(logits):
    reference = logits.copy()
    reference[2, 1], reference[3, 0] = np.nan, -np.inf
    assert kinds(compare({"logits": reference}, {"logits": logits}, 16)) == {("reference", "logits")}
    other_sign = reference.copy()
    other_sign[3, 0] = np.inf
    assert kinds(compare({"logits": reference}, {"logits": other_sign}, 16)) == {("reference", "logits")}
    result = compare({"logits": reference}, {"logits": reference.copy()}, 16)
    assert result["problems"] == []
    assert [note["kind"] for note in result["notes"]] == ["matching"]
    assert passes(result, "rel_l2 <= 0", "kl <= 0", "top1_agreement >= 100%", "centred_cosine >= 1")
    changed = reference.copy()
    changed[2, 2] += 5
    assert worst(compare({"logits": reference}, {"logits": changed}, 16), "rel_l2") > 0.5


def test_all_nan_on_both_sides_is_not_a_pass(logits):
    nothing = np.full_like(logits, np.nan)
    result = compare({"logits": nothing}, {"logits": nothing}, 16)
    assert kinds(result) == {("empty", "logits")}
    assert result["outputs"] == {"logits": {}}


def test_masked_logits_keep_their_argmax():
    reference = np.array([[-np.inf, -3.0, -2.0, -4.0]])
    candidate = np.array([[-np.inf, -3.1, -2.1, -4.0]])
    result = compare({"logits": reference}, {"logits": candidate}, 1)
    assert result["outputs"]["logits"]["top1_agreement"]["value"] == 1
    result = compare({"logits": reference}, {"logits": reference[:, [0, 2, 1, 3]]}, 1)
    assert result["outputs"]["logits"]["top1_agreement"]["value"] == 0
    p = np.exp([-3.0, -2.0, -4.0]) / np.exp([-3.0, -2.0, -4.0]).sum()
    assert worst(result, "kl") == pytest.approx(p[0] * -1 + p[1] * 1)


def test_sign_flip_fails(logits):
    result = compare({"logits": logits}, {"logits": -logits}, 16)
    assert worst(result, "cosine") == pytest.approx(-1)
    assert worst(result, "rel_l2") == pytest.approx(2)
    assert not passes(result, "cosine >= 0")


def test_missing_and_extra_outputs_fail(logits):
    result = compare({"logits": logits, "boxes": logits}, {"logits": logits, "aux": logits}, 16)
    assert kinds(result) == {("missing", "boxes"), ("extra", "aux")}
    assert not passes(result, "cosine >= 0.99")


def test_output_missing_from_both_in_a_later_batch_fails(logits):
    comparison = Comparison()
    comparison.add({"a": logits, "b": logits}, {"a": logits, "b": logits}, 16)
    comparison.add({"a": logits}, {"a": logits}, 16)
    (problem,) = checked(comparison)["problems"]
    assert (problem["kind"], problem["output"]) == ("count", "b")
    assert "16 of 32" in problem["text"]


@pytest.mark.parametrize("shape", [(16, 10, 1), (10, 16), (15, 10), (160,)])
def test_other_shapes_fail_and_both_are_named(logits, shape):
    result = compare({"logits": logits}, {"logits": np.resize(logits, shape)}, 16)
    (problem,) = result["problems"]
    assert problem["kind"] == "shape"
    assert str(shape) in problem["text"]
    assert "(16, 10)" in problem["text"]


def test_broadcastable_shapes_are_not_equal():
    assert kinds(compare({"y": np.ones((4, 1))}, {"y": np.ones((4,))}, 4)) == {("shape", "y")}


def test_other_dtype_kinds_fail(logits):
    result = compare({"logits": logits}, {"logits": logits.astype(np.int32)}, 16)
    assert kinds(result) == {("dtype", "logits")}
    assert "int32" in result["problems"][0]["text"]
    assert kinds(compare({"y": np.array(["a"])}, {"y": np.array(["a"])})) == {("dtype", "y")}


def test_constant_output_fails(logits):
    result = compare({"logits": logits}, {"logits": np.full_like(logits, 0.1)}, 16)
    assert kinds(result) == {("constant", "logits")}
    assert "elements" in result["problems"][0]["text"]
    assert worst(result, "centred_cosine") == 0


def test_output_that_ignores_its_input_fails(logits):
    """A dead model: a large offset, hence a good rel_l2 and cosine, but the same row for every sample."""
    reference = 1000 + logits
    comparison = Comparison()
    for row in reference:  # one by one: no batch ever shows it
        comparison.add({"logits": row[None]}, {"logits": reference.mean(0)[None]}, 1)
    result = checked(comparison)
    assert worst(result, "rel_l2") < 3e-3
    assert worst(result, "cosine") > 0.9999
    assert kinds(result) == {("constant", "logits")}
    assert "over samples" in result["problems"][0]["text"]


def test_equal_rows_with_rounding_noise_are_not_a_dead_output():
    """Rows of one batch go through other code paths: equal inputs differ in the last bits on one side."""
    reference = np.tile(np.linspace(1, 2, 10, dtype=np.float32), (8, 1))
    candidate = reference.copy()
    reference[5] *= np.float32(1 + 2**-22)
    assert compare({"logits": reference}, {"logits": candidate}, 8)["problems"] == []


def test_scaled_output_fails_on_size_though_not_on_direction(logits):
    result = compare({"logits": logits}, {"logits": logits * np.float32(1.1)}, 16)
    assert worst(result, "cosine") == pytest.approx(1)
    assert worst(result, "rel_l2") == pytest.approx(0.1, rel=1e-4)
    assert worst(result, "sqnr_db") == pytest.approx(20, abs=1e-3)
    assert not passes(result, "rel_l2 <= 0.05")


def test_dead_model_with_tiny_outputs_fails(logits):
    """Outputs near 1e-28, as of a randomly initialised network: any absolute tolerance passes zeros."""
    tiny = logits * np.float32(1e-28)
    result = compare({"logits": tiny}, {"logits": np.zeros_like(tiny)}, 16)
    assert worst(result, "max_abs") < 1e-6  # would pass
    assert (worst(result, "rel_l2"), worst(result, "cosine")) == (1, 0)
    assert kinds(result) == {("constant", "logits")}
    noisy = compare({"logits": tiny}, {"logits": tiny[::-1].copy()}, 16)
    assert worst(noisy, "rel_l2") > 0.5
    assert not passes(noisy, "rel_l2 <= 0.1")


def test_permuted_samples_fail(logits):
    result = compare({"logits": logits}, {"logits": logits[::-1].copy()}, 16)
    assert not passes(result, "cosine >= 0.99")
    assert worst(result, "cosine") < 0.5


@pytest.mark.parametrize("batches", [0, 1])
def test_no_samples_fail(logits, batches):
    comparison = Comparison()
    for _ in range(batches):
        comparison.add({"logits": logits[:0]}, {"logits": logits[:0]}, 0)
    result = checked(comparison)
    assert kinds(result) == {("empty", None)}
    assert not passes(result, "cosine >= 0")


def test_no_outputs_and_no_elements_fail():
    assert kinds(compare({}, {}, 4)) == {("empty", None)}
    empty = np.zeros((4, 0), np.float32)
    assert kinds(compare({"y": empty}, {"y": empty}, 4)) == {("hollow", "y")}


def test_one_sample_without_elements_among_others_is_fine():
    comparison = Comparison()
    for boxes in (3, 0, 2):
        found = np.ones((boxes, 4)) * np.arange(4)
        comparison.add({"boxes": found}, {"boxes": found}, None)
    assert checked(comparison)["problems"] == []


def test_mean_does_not_hide_the_worst_sample(logits):
    candidate = logits.copy()
    candidate[7] = -candidate[7]
    reference = {"logits": np.tile(logits, (20, 1))}
    result = compare(reference, {"logits": np.concatenate([np.tile(logits, (19, 1)), candidate])}, 320)
    cosine = result["outputs"]["logits"]["cosine"]
    assert cosine["mean"] > 0.99
    assert cosine["p05"] == 1
    assert cosine["worst"] == pytest.approx(-1)
    assert cosine["worst_sample"] == 19 * 16 + 7
    assert not passes(result, "cosine >= 0.99")


# What the definitions leave open


def test_zero_samples_are_measured_against_the_case():
    reference, candidate = np.ones((4, 8)), np.ones((4, 8))
    reference[0], candidate[0] = 1e-12, -3e-12  # nothing, on the scale of the others
    result = compare({"y": reference}, {"y": candidate}, 4)
    assert worst(result, "rel_l2", "y") < 1e-10
    assert worst(result, "cosine", "y") == pytest.approx(1)
    candidate[0] = -1  # and a sample that should be zero and is not
    result = compare({"y": reference}, {"y": candidate}, 4)
    assert worst(result, "rel_l2", "y") == pytest.approx(math.sqrt(4 / 3))
    assert worst(result, "cosine", "y") < 0


def test_zero_reference():
    zeros = np.zeros((2, 3), np.float32)
    result = compare({"y": zeros}, {"y": zeros}, 2)
    assert passes(result, "rel_l2 <= 0", "cosine >= 1", "sqnr_db >= 300")
    other = zeros.copy()
    other[1, 1] = 1e-30
    result = compare({"y": zeros}, {"y": other}, 2)
    assert kinds(result) == {("zero_reference", "y")}
    values = [worst(result, name, "y") for name in ("rel_l2", "sqnr_db", "cosine")]
    assert values == [1e15, -300, 0]


def test_single_element_outputs():
    r = np.array([1.0, -2.0, 3.0], np.float32)
    result = compare({"y": r}, {"y": r * np.float32(1.5)}, 3)
    assert worst(result, "cosine", "y") == worst(result, "centred_cosine", "y") == 1
    assert worst(result, "rel_l2", "y") == pytest.approx(0.5)
    assert "top1_agreement" not in result["outputs"]["y"]
    assert "kl" not in result["outputs"]["y"]
    assert worst(compare({"y": r}, {"y": -r}, 3), "centred_cosine", "y") == -1


def test_centred_cosine_sees_what_a_common_offset_hides(logits):
    result = compare({"logits": 100 + logits}, {"logits": 100 - logits}, 16)
    assert worst(result, "cosine") > 0.999
    assert worst(result, "centred_cosine") == pytest.approx(-1, abs=1e-4)
    offset = 1e6 + logits.astype(np.float64) * 1e-3  # variance 18 orders below the square of the mean
    result = compare({"logits": offset * 1e4}, {"logits": offset[:, ::-1] * 1e4}, 16)
    assert worst(result, "centred_cosine") > 0.999999  # r is constant to 1e-6: falls back to cosine
    offset = 1e4 + logits.astype(np.float64)
    result = compare({"logits": offset}, {"logits": offset * 3}, 16)
    assert worst(result, "centred_cosine") == pytest.approx(1, abs=1e-12)


def test_centred_cosine_of_a_constant_candidate_is_zero():
    reference = np.random.default_rng(0).normal(size=(3, 1001))
    result = compare({"y": reference}, {"y": np.full_like(reference, 0.1)}, 3)  # its mean is not quite 0.1
    centred = result["outputs"]["y"]["centred_cosine"]
    assert centred["worst"] == centred["mean"] == 0


def test_integer_and_bool_outputs():
    ids = np.array([[2**60, 2, 3, 4], [5, 6, 7, 8]])
    other = ids.copy()
    other[0, 0] += 1  # the same float64
    result = compare({"ids": ids, "mask": ids > 3}, {"ids": other, "mask": other > 3}, 2)
    assert result["problems"] == []
    assert set(result["outputs"]["ids"]) == {"mismatch", "max_abs"}
    assert (worst(result, "mismatch", "ids"), worst(result, "mismatch", "mask")) == (0.25, 0)
    assert kinds(compare({"ids": ids}, {"ids": np.zeros_like(ids)}, 2)) == {("constant", "ids")}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_widths(logits, dtype):
    result = compare({"logits": logits}, {"logits": logits.astype(dtype)}, 16, labels=np.arange(16) % 10)
    unit = {np.float16: 2**-11, ml_dtypes.bfloat16: 2**-8, np.float64: 2**-53}[dtype]
    assert result["problems"] == []
    assert worst(result, "rel_l2") <= unit
    assert result["outputs"]["logits"]["accuracy_drop"]["value"] == 0


def test_values_whose_squares_leave_float64_are_a_problem():
    for scale in (1e-200, 1e200, 1e308):
        reference = np.array([[1.0, 0.5], [-0.2, 0.3]]) * scale
        assert ("range", "y") in kinds(compare({"y": reference}, {"y": -reference}, 2))


def test_whole_tensor_outputs_beside_batched_ones(logits):
    anchors = np.arange(12.0).reshape(3, 4)
    comparison = Comparison()
    for at in (0, 4, 8, 12):
        part = {"logits": logits[at : at + 4], "anchors": anchors}
        comparison.add(part, {**part, "anchors": anchors + (at == 8)}, 4)
    result = checked(comparison)
    assert result["problems"] == []
    assert result["samples"] == 16
    assert result["outputs"]["anchors"]["rel_l2"]["worst_sample"] == 8
