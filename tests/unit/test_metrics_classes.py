"""Parity of class scores: agreement of the top classes, and accuracy where there are labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from metrics_kit import checked, compare, kinds

from optkit.parity.intervals import tango, wilson
from optkit.parity.metrics import Comparison


@pytest.fixture
def logits() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)


def test_ties_in_the_reference_agree_with_any_of_the_tied():
    reference = np.array([[1.0, 3, 3, 0], [2, 2, 2, 2], [5, 1, 1, 1]])
    candidate = np.array([[1.0, 3, 4, 0], [0, 0, 1, 0], [1, 1, 1, 1.1]])
    top1 = compare({"y": reference}, {"y": candidate}, 3)["outputs"]["y"]["top1_agreement"]
    assert top1 == {"value": 2 / 3, "disagreeing": 1, "total": 3, "worst_sample": 2}


def test_top5_takes_the_tied_class_that_the_candidate_ranks_best():
    candidate = np.array([[0.0, 7, 6, 5, 4, 3, 2]])
    reference = np.array([[9.0, 9, 0, 0, 0, 0, 0]])
    assert compare({"y": reference}, {"y": candidate}, 1)["outputs"]["y"]["top5_agreement"]["value"] == 1


def test_top5_does_not_credit_a_candidate_of_ties():
    reference = np.zeros((1, 8))
    reference[0, 7] = 1
    candidate = np.zeros((1, 8))
    candidate[0, 0] = -1
    assert compare({"y": reference}, {"y": candidate}, 1)["outputs"]["y"]["top5_agreement"]["value"] == 0
    five = compare({"y": reference[:, :5]}, {"y": candidate[:, :5]}, 1)
    assert "top5_agreement" not in five["outputs"]["y"]


def test_positions_are_counted_one_by_one():
    rng = np.random.default_rng(3)
    reference = rng.normal(size=(2, 7, 9))
    candidate = reference.copy()
    candidate[1, 4] = -candidate[1, 4]
    top1 = compare({"y": reference}, {"y": candidate}, 2)["outputs"]["y"]["top1_agreement"]
    assert top1 == {"value": 13 / 14, "disagreeing": 1, "total": 14, "worst_sample": 1}


def test_accuracy(logits):
    labels = logits.argmax(1)
    labels[0] = (labels[0] + 1) % 10
    candidate = logits.copy()
    candidate[[3, 4]] = -candidate[[3, 4]]
    pooled = np.zeros((16, 3, 10), np.float32) + logits[:, None]
    comparison = Comparison()
    for part in (slice(0, 10), slice(10, 16)):
        reference = {"logits": logits[part], "hidden": pooled[part]}
        comparison.add(reference, {**reference, "logits": candidate[part]}, len(labels[part]), labels[part])
    measured = checked(comparison)["outputs"]["logits"]
    assert measured["accuracy"] == {
        "value": 13 / 16, "reference": 15 / 16, "candidate": 13 / 16, "total": 16,
        "interval": [*wilson(13, 16)], "reference_interval": [*wilson(15, 16)],
    }  # fmt: skip
    assert measured["accuracy_drop"] == {
        "value": 2 / 16, "total": 16, "interval": [*tango(2, 0, 16)], "method": "Wilson, Tango (paired)",
    }  # fmt: skip


def test_accuracy_of_several_labels_per_sample_is_resampled_by_sample():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 6, 5))
    labels = np.where(rng.random((40, 6)) < 0.3, rng.integers(0, 5, (40, 6)), logits.argmax(-1))
    measured = compare({"y": logits}, {"y": logits + rng.normal(0, 0.4, logits.shape)}, 40, labels=labels)["outputs"][
        "y"
    ]
    low, high = measured["accuracy"]["interval"]
    assert low < measured["accuracy"]["value"] < high
    assert "bootstrap" in measured["accuracy_drop"]["method"]


def test_labels_that_fit_nothing_or_too_much(logits):
    labels = logits.argmax(1)
    both = {"a": logits, "b": logits}
    result = compare(both, both, 16, labels=labels)
    assert result["problems"] == []
    assert "fit 2 outputs" in result["notes"][0]["text"]
    named = Comparison(label_output="b")
    named.add(both, both, 16, labels)
    assert checked(named)["outputs"]["b"]["accuracy"]["value"] == 1
    wrong = Comparison(label_output="c")
    wrong.add(both, both, 16, labels)
    assert kinds(checked(wrong)) == {("labels", "c")}
    assert kinds(compare(both, both, 16, labels=labels * 0.5)) == {("labels", None)}
    beyond = compare({"a": logits}, {"a": logits}, 16, labels=labels + logits.shape[1])
    assert "is none of its" in beyond["problems"][0]["text"]
    assert "accuracy" not in beyond["outputs"]["a"], "no answer could have been right"
    ignored = np.where(np.arange(16) < 4, labels, -100)
    assert compare({"a": logits}, {"a": logits}, 16, labels=ignored)["outputs"]["a"]["accuracy"]["total"] == 4
