"""Parity metrics over batches and chunks, and what holds of them for any numbers."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from metrics_kit import checked, compare, worst

from optkit.parity import metrics
from optkit.parity.bounds import METRICS
from optkit.parity.metrics import Comparison


@pytest.fixture
def logits() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(16, 10)).astype(np.float32)


def test_negative_batch_is_refused():
    with pytest.raises(ValueError, match="negative"):
        Comparison().add({}, {}, -1)


def test_result_can_be_read_while_adding(logits):
    comparison = Comparison()
    comparison.add({"y": logits}, {"y": logits}, 16)
    assert comparison.result() == comparison.result()
    comparison.add({"y": logits}, {"y": -logits}, 16)
    assert comparison.result()["outputs"]["y"]["cosine"]["worst_sample"] == 16


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_batch_splits_do_not_matter(sizes, seed):
    rng = np.random.default_rng(seed)
    total = sum(sizes)
    reference = {"y": rng.normal(size=(total, 3, 7)), "n": rng.integers(0, 5, (total, 4))}
    candidate = {"y": reference["y"] + rng.normal(size=(total, 3, 7)), "n": rng.integers(0, 5, (total, 4))}
    labels = rng.integers(0, 7, (total, 3))
    split, at = Comparison(), 0
    for size in sizes:
        part = slice(at, at + size)
        pair = ({name: value[part] for name, value in side.items()} for side in (reference, candidate))
        split.add(*pair, size, labels[part])
        at += size
    assert_close(checked(split), compare(reference, candidate, total, labels=labels))


def test_chunks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(5)
    reference = {"y": 50 + rng.normal(size=(5, 11, 13)), "n": rng.integers(0, 9, (5, 143))}
    reference["flat"] = rng.normal(size=(5, 143))
    candidate = {name: value[:, ::-1] for name, value in reference.items()}
    candidate["y"] = candidate["y"].copy()
    candidate["y"][3, 9, 4] = np.nan
    whole = compare(reference, candidate, 5)
    assert "[9, 4] of sample 3" in whole["problems"][0]["text"]
    for chunk in (1, 30, 143, 300):
        monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", chunk)
        assert_close(compare(reference, candidate, 5), whole)


def assert_close(left: Any, right: Any) -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_close(left[key], right[key])
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-9, abs=1e-12)
    else:
        assert left == right


def test_memory_does_not_grow_with_samples():
    tensor = np.random.default_rng(0).normal(size=(4, 50_000)).astype(np.float32)
    comparison = Comparison()
    comparison.add({"y": tensor}, {"y": tensor}, 4)
    tracemalloc.start()
    for _ in range(10):
        comparison.add({"y": tensor}, {"y": tensor}, 4)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 100_000  # ten batches hold 8 MB of float32


def test_large_samples_need_only_chunks(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_ELEMENTS", 1 << 14)  # 128 KB of float64
    tensor = np.random.default_rng(0).normal(size=(1, 1 << 12, 256)).astype(np.float32)  # 8 MB of float64
    comparison = Comparison()
    tracemalloc.start()
    comparison.add({"y": tensor}, {"y": tensor}, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * tensor.nbytes + 16 * (1 << 17)  # the two kept samples, and sixteen chunks


VECTORS = hnp.arrays(np.float64, (3, 6), elements=st.floats(-1e3, 1e3).map(lambda x: round(x, 3)))


@settings(max_examples=30, deadline=None)
@given(VECTORS, VECTORS, st.sampled_from([1e-30, 0.125, 7.0, -3.0, 1e30]))
def test_relative_metrics_do_not_depend_on_scale(r, c, scale):
    if not (r**2).sum(1).all():
        r = r + 1e4
    plain, scaled = compare({"y": r}, {"y": c}, 3), compare({"y": r * scale}, {"y": c * scale}, 3)
    for name in ("rel_l2", "cosine"):
        assert worst(scaled, name, "y") == pytest.approx(worst(plain, name, "y"), rel=1e-6, abs=1e-9), name


@settings(max_examples=30, deadline=None)
@given(VECTORS, VECTORS)
def test_cosine_is_symmetric(r, c):
    for row, other in zip(r, c, strict=True):  # one sample a case: no RMS but its own
        there, back = compare({"y": row}, {"y": other}), compare({"y": other}, {"y": row})
        assert worst(there, "cosine", "y") == pytest.approx(worst(back, "cosine", "y"), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)),
    hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)),
)
def test_any_float32_whatever_gives_json(r, c):
    result = compare({"y": r}, {"y": c}, 3)
    different = (np.isfinite(r) != np.isfinite(c)).any()
    assert not different or result["problems"]


@settings(max_examples=30, deadline=None)
@given(VECTORS, VECTORS)
def test_ranges(r, c):
    measured = compare({"y": r}, {"y": c}, 3)["outputs"]["y"]
    for name, value in measured.items():
        assert METRICS[name].low <= value.get("worst", value.get("value")) <= METRICS[name].high


def test_errors_that_differ_in_the_last_digit_alone_are_one_bar() -> None:
    high = np.nextafter(40.0, 41.0)
    found = metrics._histogram(np.array([40.0, high, high, 100.0]), 100.0)
    assert (found["perfect"], found["counts"]) == (1, [3])
