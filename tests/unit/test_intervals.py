"""Confidence intervals: known values, what happens at the ends, and how often they hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optkit.parity.intervals import bootstrapped, percentile, proportions, resamples, shares, tango, wilson


def test_wilsons_interval() -> None:
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe, Statistics in Medicine 17, 1998
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)  # the same
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)  # the same
    low, high = wilson(20, 20)
    assert (low, high) == (pytest.approx(1 - 0.1611, abs=1e-4), 1.0)
    assert wilson(50, 100, 0.99)[0] < wilson(50, 100)[0]
    with pytest.raises(ValueError, match="no samples"):
        wilson(0, 0)


def test_tangos_interval() -> None:
    z2 = 1.959964**2
    assert tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-6)
    assert tango(3, 9, 50) == pytest.approx(tuple(-end for end in reversed(tango(9, 3, 50))), abs=1e-9)
    # Its test of no difference is McNemar's: z = (b - c) / sqrt(b + c), beyond 1.96 from four against none on.
    assert tango(3, 0, 360)[0] < 0 < tango(4, 0, 360)[0]
    for b, c in ((12, 3), (40, 31), (7, 7), (16, 5)):
        assert (tango(b, c, 500)[0] > 0) == ((b - c) / math.sqrt(b + c) > 1.959964)
    assert tango(10, 0, 10)[1] == 1.0
    with pytest.raises(ValueError, match="no samples"):
        tango(0, 0, 0)


def test_one_sample_in_a_hundred_is_no_loss() -> None:
    right = np.ones(100, bool)
    worse = right.copy()
    worse[0] = False
    score = proportions(right, worse, right)
    assert score["change"] == 0.01
    assert score["change_interval"][0] < 0 < score["change_interval"][1]
    assert score["interval"] == [*wilson(99, 100)]


def test_only_known_samples_count() -> None:
    known = np.array([True, True, False, True])
    score = proportions(np.array([1, 1, 1, 0]), np.array([1, 0, 0, 0]), known)
    assert (score["source"], score["value"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_resamples_are_seeded_paired_and_complete() -> None:
    blocks = list(resamples(37, 250, 3))
    whole = np.concatenate(blocks)
    assert whole.shape == (250, 37)
    assert (whole.sum(1) == 37).all()
    np.testing.assert_array_equal(whole, np.concatenate(list(resamples(37, 250, 3))))
    assert (whole != np.concatenate(list(resamples(37, 250, 4)))).any()
    assert max(len(block) for block in resamples(3_000_000, 2, 0)) == 1  # held one by one where they are long


def test_a_bootstrap_without_width_or_value() -> None:
    same = np.full(1000, 1.0)
    low, high = percentile(same, 50, 0.95, 0, 1) or (0, 0)
    assert (low, high) == (pytest.approx(wilson(50, 50)[0]), 1.0)
    assert percentile(same, 50, 0.95) == (1.0, 1.0)  # a metric without limits: nothing else was seen
    assert percentile(same, 1, 0.95, 0, 1) is None
    assert percentile(np.where(np.arange(1000) < 200, np.nan, same), 50, 0.95, 0, 1) is None
    one = bootstrapped(np.ones(3), np.ones(3), 1, 0.95, 1, 0, 1)
    assert (one["interval"], one["method"]) == (None, "no interval: one sample")


def test_subtraction_leaves_no_noise() -> None:
    score = bootstrapped(np.full(3, 0.99), np.full(3, 0.985), 10, 0.95, 1, 0, 1)
    assert score["change"] == 0.005  # 0.99 - 0.985 in binary is above 0.005, and would break a bound of 0.5 %
    assert bootstrapped(np.full(3, 0.2), np.full(3, 0.3), 10, 0.95, -1, 0, math.inf)["change"] == 0.1


DRAWS = 300


def cover(held: list[bool]) -> float:
    assert len(held) == DRAWS
    return sum(held) / DRAWS


def test_the_intervals_of_proportions_cover() -> None:
    """Paired right-or-wrong outcomes of two models, right with 0.96 and 0.93, 150 samples a draw."""
    rng = np.random.default_rng(0)
    value, change = [], []
    for _ in range(DRAWS):
        kind = rng.choice(4, 150, p=[0.91, 0.05, 0.02, 0.02])  # both, the first only, the second only, none
        score = proportions(kind <= 1, (kind == 0) | (kind == 2), np.ones(150, bool))
        value.append(score["interval"][0] <= 0.93 <= score["interval"][1])
        change.append(score["change_interval"][0] <= 0.03 <= score["change_interval"][1])
    assert 0.90 <= cover(value) <= 0.99
    assert 0.90 <= cover(change) <= 0.99


def test_the_bootstrap_covers() -> None:
    """Accuracy of 4 labels a sample, which agree among themselves: samples, not labels, are what is drawn."""
    rng = np.random.default_rng(1)
    value, change = [], []
    for _ in range(DRAWS):
        hard = rng.beta(8, 2, 120)[:, None]  # how likely each label of a sample is right: 0.8 in the mean
        reference, candidate = (rng.random((120, 4)) < hard * share for share in (1.0, 0.95))
        score = shares(reference.sum(1), candidate.sum(1), np.full(120, 4))
        value.append(score["interval"][0] <= 0.76 <= score["interval"][1])
        change.append(score["change_interval"][0] <= 0.04 <= score["change_interval"][1])
    assert 0.90 <= cover(value) <= 0.99
    assert 0.90 <= cover(change) <= 0.99
