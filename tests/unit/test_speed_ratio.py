"""The ratio of two speeds: right on known times, honest about noise."""

from __future__ import annotations

import numpy as np
import pytest

from optkit.running.racing import speed_of, told
from optkit.running.racing import verdict as verdict_of
from optkit.speed.ratio import ratio


def test_noise_that_slows_both_cancels() -> None:
    load = np.random.default_rng(0).uniform(1, 5, 30)
    found = ratio(2.0 * load, 1.0 * load)
    assert found.value == pytest.approx(2.0)
    assert (found.low, found.high) == pytest.approx((2.0, 2.0))


def test_an_outlier_in_one_side_does_not_decide() -> None:
    base = np.full(20, 1.0)
    other = base.copy()
    other[[3, 11]] = 50.0
    assert ratio(base, other).value == pytest.approx(1.0)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        base, other = np.exp(random.normal(0, 0.1, (2, 25)))
        found = ratio(1.3 * base, other, trial)
        held += found.low <= 1.3 <= found.high
    assert 175 <= held <= 199


def test_equal_seeds_give_equal_intervals() -> None:
    base, other = np.random.default_rng(2).uniform(1, 2, (2, 10))
    assert ratio(base, other, 7) == ratio(base, other, 7)


@pytest.mark.parametrize(("base", "other"), [([1.0], [1.0]), ([1.0, 2.0], [1.0])])
def test_too_few_or_unpaired_rounds_are_refused(base: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        ratio(base, other)


def test_where_others_have_the_processor_it_takes_more_to_be_slower() -> None:
    ratio = {"value": 0.92, "low": 0.91, "high": 0.93}
    assert [verdict_of({**ratio, "taken": taken}) for taken in (None, 0.4, 0.6)] == ["slower", "slower", "same"]
    assert verdict_of({"value": 0.8, "low": 0.75, "high": 0.9, "taken": 0.6}) == "slower"


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(2.0, 1.8, 2.2, "faster"), (0.5, 0.4, 0.6, "slower"), (1.02, 1.01, 1.03, "same"), (1.5, 0.9, 2.4, "same"),
     (0.97, 0.96, 0.98, "same")],
)  # fmt: skip
def test_verdicts(value: float, low: float, high: float, verdict: str) -> None:
    entrant = {"provider": "p", "latency_ms": {}, "ratio": {"value": value, "low": low, "high": high, "rounds": 9},
               "peak_bytes": 9, "mean_ms": 2.0}  # fmt: skip
    raced = {"entrants": {"slim": entrant, "int8": entrant}, "sizes": {}, "threads": 2, "samples": 4}
    speed = speed_of("slim", "int8", raced)
    assert speed["samples_per_second"] == 2000
    assert speed["verdict"] == verdict
    assert f"{value:.2f} times as fast as slim ({low:.2f} to {high:.2f})" in told(speed)
